"""Sees to it that notebooks run in this very Python, with the environment we mean."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

KERNEL_NAME = "python3"
# OpenMP's threads wait for work by spinning: fine for one program that has the cores
# to itself, and costly where two share them. Asleep at once, they wake too late for the
# many short loops of a step; so they spin for a moment first (libgomp's own variable,
# which others ignore). Read once, when torch is loaded. The same stands, for those who
# come by another way, in the Makefile, in the set-up cell (template.py) and in the
# command line (distill_helpers/cli/commands.py).
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}


def use_this_python() -> None:
    """Make ``python3`` mean this interpreter for every kernel started from here.

    And let the kernels wait as ``WAITING`` says, unless the user said otherwise. The
    kernel's own file does not say it: that would overrule the user.

    Jupyter looks into the user's own kernels before the environment's, and one that
    another project installed there would run our notebooks in a foreign Python.
    """
    folder = Path(sys.prefix, "share", "distill")
    spec = folder / "kernels" / KERNEL_NAME / "kernel.json"
    # ipykernel logs a line about missing encryption at every start, and an "error" when
    # it is interrupted in order to be shut down. What a cell raises is no log.
    quiet = "--IPKernelApp.log_level=50"
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
    for name, value in waiting(os.environ).items():
        os.environ.setdefault(name, value)


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What is missing of ``WAITING``: nothing, if the user has said how to wait."""
    return {} if "OMP_WAIT_POLICY" in environment else WAITING


def kernel_environment(profile: str) -> dict[str, str]:
    """The environment variables of a kernel that runs in ``profile``."""
    environment = {
        **waiting(os.environ),
        **os.environ,
        "DISTILL_PROFILE": profile,
    }
    # A backend set for scripts would keep figures out of the notebook.
    environment.pop("MPLBACKEND", None)
    if profile in ("smoke", "cpu"):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment
