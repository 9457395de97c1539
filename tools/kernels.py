"""Sees to it that notebooks run in this very Python, with the environment we mean."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

KERNEL_NAME = "python3"


def use_this_python() -> None:
    """Make ``python3`` mean this interpreter for every kernel started from here.

    Jupyter looks into the user's own kernels before the environment's, and one that
    another project installed there would run our notebooks in a foreign Python.
    """
    folder = Path(sys.prefix, "share", "distill")
    spec = folder / "kernels" / KERNEL_NAME / "kernel.json"
    # ipykernel logs a line about missing encryption at every start; errors still show.
    quiet = "--IPKernelApp.log_level=40"
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {
        "argv": [*launch, quiet],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    spec.parent.mkdir(parents=True, exist_ok=True)
    # Several test workers may get here at once: each writes its own, then renames.
    draft = spec.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(spec)
    os.environ["JUPYTER_PATH"] = str(folder)


def kernel_environment(profile: str) -> dict[str, str]:
    """The environment variables of a kernel that runs in ``profile``."""
    environment = {**os.environ, "DISTILL_PROFILE": profile}
    # A backend set for scripts would keep figures out of the notebook.
    environment.pop("MPLBACKEND", None)
    if profile in ("smoke", "cpu"):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment
