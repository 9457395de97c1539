"""Everything that has to hold before a change is accepted: ``make test``.

All steps run, whatever fails; the summary and the exit status say what did.
``--part`` runs a part of it; CI runs all parts, each on a machine of its own.
``--quick`` runs the toolkit's own tests without the slow ones, in a few minutes;
``--coverage`` does the same and counts the toolkit's lines that ran.
``--colab`` runs the tests of the package and every notebook with the versions that
Colab ships, the package installed from its wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kernels import use_this_python, waiting

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["-m", "pytest", "-n", "2", "--dist", "loadfile"]
NBVAL = [
    *PYTEST,
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout=300",
    # Otherwise a cell that times out and swallows the interrupt counts as passed.
    "-o",
    "xfail_strict=true",
]


def steps() -> dict[str, list[str]]:
    """What is run, in this order; every command is an argument list for Python."""
    return {
        "ruff: rules": ["-m", "ruff", "check", "."],
        "ruff: layout": ["-m", "ruff", "format", "--check", "."],
        "spelling": ["-m", "codespell_lib", "."],
        "types of the package": ["-m", "mypy"],
        "types of the tools": ["-m", "mypy", "tools"],
        "unit tests": [*PYTEST, "tests"],
        "notebooks are built from their sources": ["tools/build_notebooks.py", "check"],
        "solved notebooks pass their checks": [
            "tools/run_notebooks.py",
            "--solved",
            "--enforce",
            "--profile=smoke",
        ],
        "learners' notebooks run": [*NBVAL, "notebooks"],
    }


# The unit tests in parts that take about as long, by rooms; the other parts are steps.
ROOMS = {
    "foundations": ("losses", "machine", "data", "models", "evaluation", "planning"),
    "training": ("labels", "trainers", "test_export.py"),
    "course": ("tasks", "studies", "course", "cli"),
    "repository": ("repo",),
}
TOOLKIT = ("foundations", "training")
PARTS = ("rules", *ROOMS, "notebooks")


def part_steps(part: str) -> dict[str, list[str]]:
    """The steps of one of ``PARTS``."""
    if part in ROOMS:
        folders = [f"tests/{room}" for room in ROOMS[part]]
        return {f"unit tests: {part}": [*PYTEST, *folders]}
    titles = list(steps())
    # What is checked without running much, then what runs the notebooks.
    split = titles.index("unit tests")
    wanted = titles[:split] if part == "rules" else titles[split + 1 :]
    return {title: steps()[title] for title in wanted}


def quick_steps() -> dict[str, list[str]]:
    """What to run between two changes: the rooms that everything else rests on."""
    folders = [f"tests/{room}" for part in TOOLKIT for room in ROOMS[part]]
    return {"the toolkit's quick tests": [*PYTEST, "-m", "not slow", *folders]}


def coverage_steps() -> dict[str, list[str]]:
    """The quick tests, counted, and what they left out as ``build/coverage``."""
    (quick,) = quick_steps().values()
    # One process: each further worker would have to be told to count.
    tests = [*quick[:2], "-n", "0", *quick[len(PYTEST) :]]
    return {
        "the toolkit's quick tests, counted": ["-m", "coverage", "run", *tests],
        "pages": ["-m", "coverage", "html", "--skip-empty", "-q"],
        "figure": ["-m", "coverage", "report", "--skip-covered", "--sort=cover"],
    }


def colab_steps() -> dict[str, list[str]]:
    """The same package, installed from its wheel among older neighbours."""
    # -P keeps the repository off the path: the wheel is what is tested. The tools of
    # the repository are not on Colab, and older libraries warn of other things.
    options = ["-W", "default", "--ignore=tests/repo/test_tools.py"]
    options += ["--ignore=tests/repo/test_packaging.py"]
    options += ["--ignore=tests/repo/test_gpu_notebooks.py"]
    options += ["--ignore=tests/repo/test_site.py"]
    options += ["--ignore=tests/course/test_browser.py"]
    return {
        "unit tests": ["-P", *PYTEST, *options, "tests"],
        "learners' notebooks run": ["-P", *NBVAL, "-W", "default", "notebooks"],
    }


def environment(command: list[str], *, colab: bool = False) -> Mapping[str, str]:
    """For the notebooks: offline and small; two pytest workers get a thread each.

    With ``colab``, notebooks also find Colab's variable and a stand-in for its package;
    the unit tests set these where they need them.
    """
    folders = [str(ROOT / "tests" / "offline")]
    simulated = {}
    if colab and "--nbval-lax" in command:
        folders.append(str(ROOT / "tests" / "colab"))
        simulated["COLAB_RELEASE_TAG"] = "release-colab-20260801"
    return {
        **waiting(os.environ),
        **os.environ,
        "DISTILL_PROFILE": "smoke",
        "HF_HUB_OFFLINE": "1",
        **({"OMP_NUM_THREADS": "1"} if "pytest" in command else {}),
        # Colab's older ipykernel would print a debugger's advice at every start.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONPATH": os.pathsep.join(folders),
        **simulated,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--part", choices=PARTS, help="a part; CI runs all of them")
    which.add_argument("--quick", action="store_true", help="the toolkit's, not slow")
    which.add_argument("--coverage", action="store_true", help="the same, counted")
    which.add_argument("--colab", action="store_true", help="with Colab's versions")
    options = parser.parse_args()
    use_this_python()
    outcome = []
    chosen = steps()
    if options.part:
        chosen = part_steps(options.part)
    elif options.quick:
        chosen = quick_steps()
    elif options.coverage:
        chosen = coverage_steps()
    elif options.colab:
        chosen = colab_steps()
    for title, command in chosen.items():
        print(f"\n=== {title}", flush=True)
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(command, colab=options.colab),
        )
        seconds = time.monotonic() - start
        outcome.append((title, done.returncode, seconds))
        print(f"=== {title}: {seconds:.0f} s", flush=True)
    print("\n=== summary")
    for title, code, seconds in outcome:
        print(f"{'ok' if code == 0 else 'FAILED':<6}  {seconds:5.0f} s  {title}")
    return 1 if any(code for _, code, _ in outcome) else 0


if __name__ == "__main__":
    sys.exit(main())
