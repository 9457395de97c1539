"""The worlds a notebook can run in: ``smoke``, ``cpu`` and ``gpu``.

A profile answers every question about the machine once: device, dtypes, models. A
notebook states its own sizes with ``profile.pick(smoke=…, cpu=…, gpu=…)`` and asks
nothing else. Used in every notebook.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch

from distill_helpers import runtime

T = TypeVar("T")

PROFILE_NAMES = ("smoke", "cpu", "gpu")


@dataclass(frozen=True)
class Profile:
    """Where a notebook runs and with which models.

    Attributes:
        name: ``"smoke"``, ``"cpu"`` or ``"gpu"``.
        device: A torch device name.
        teacher: ``"packaged"`` (SmolLM2-135M-Instruct) or a hub id.
        students: Hub ids of students; empty where the student is the teacher pruned.
        second_teacher: Hub id of a larger teacher of another family, or ``None``.
        second_students: Its students.
        teacher_dtype: Of the frozen teacher's weights.
        autocast_dtype: For a student in training, whose weights stay fp32; ``None``
            trains in plain fp32.
    """

    name: str
    device: str
    teacher: str
    students: tuple[str, ...]
    second_teacher: str | None
    second_students: tuple[str, ...]
    teacher_dtype: torch.dtype
    autocast_dtype: torch.dtype | None

    def pick(self, *, smoke: T, cpu: T, gpu: T) -> T:
        """The value for this profile; all three must be given."""
        return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[self.name]


def get_profile(name: str = "auto", *, planned: bool = False) -> Profile:
    """Look a profile up by name.

    Args:
        name: ``"smoke"``, ``"cpu"``, ``"gpu"`` or ``"auto"``. ``auto`` reads the
            environment variable ``DISTILL_PROFILE``, then takes ``gpu`` if CUDA is
            there, else ``cpu``.
        planned: Only to plan with: without CUDA, ``gpu`` is what it is on a T4.

    Raises:
        ValueError: For an unknown name, or ``gpu`` without CUDA.
    """
    source = "name"
    if name == "auto" and os.environ.get("DISTILL_PROFILE"):
        name, source = os.environ["DISTILL_PROFILE"], "DISTILL_PROFILE"
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "cpu"
    if name not in PROFILE_NAMES:
        known = ", ".join((*PROFILE_NAMES, "auto"))
        raise ValueError(f"{source}={name!r} is not a profile; choose one of: {known}")
    if name != "gpu":
        # smoke compares outputs between machines, so it stays in fp32.
        fast = name == "cpu" and runtime.cpu_bf16_pays()
        dtype = torch.bfloat16 if fast else torch.float32
        return Profile(
            name=name,
            device="cpu",
            teacher="packaged",
            students=(),
            second_teacher=None,
            second_students=(),
            teacher_dtype=dtype,
            autocast_dtype=dtype if fast else None,
        )
    found = torch.cuda.is_available()
    if not (found or planned):
        raise ValueError(
            f"{source}='gpu' needs CUDA, which torch does not find here; use 'cpu', "
            "or on Colab choose Runtime > Change runtime type > T4 GPU"
        )
    dtype = runtime.cuda_dtype() if found else torch.float16
    return Profile(
        name="gpu",
        device="cuda",
        teacher="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        students=("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M"),
        second_teacher="Qwen/Qwen2.5-1.5B-Instruct",
        second_students=("Qwen/Qwen2.5-0.5B",),
        teacher_dtype=dtype,
        autocast_dtype=dtype,
    )
