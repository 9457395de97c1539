"""Runs the loop of lesson 02 in a Python that has the package from its wheel alone.

``python tools/try_wheel.py PYTHON``: the loop is taken from the lesson's source, the
teacher and the texts from the wheel, and nothing from this folder. Fails if that Python
finds the package here, or if the student has not learned.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from course import load_course
from lesson_source import read_cells

ROOT = Path(__file__).resolve().parents[1]

BEFORE = """
import pathlib, sys
import torch
import distill_helpers
from distill_helpers import soft_label_loss
from distill_helpers.machine import progress_bar

package = pathlib.Path(distill_helpers.__file__).parent
print("package:", package)
# An environment may well lie in a folder of the repository.
if package.parent == pathlib.Path(sys.argv[1]):
    sys.exit("this is the package of the repository, not that of a wheel")
steps = 20


def loss_of(ours, theirs, labels, temperature, alpha):
    choice = {"temperature": temperature, "alpha": alpha}
    return soft_label_loss(ours, theirs, labels, **choice).loss
"""

AFTER = """
def distance(student):
    with torch.no_grad():
        ours, theirs = student(text[:16]).logits, teacher(text[:16]).logits
        return float(loss_of(ours, theirs, text[:16], 1.0, 1.0))


student = beginner()
before = distance(student)
my_loop(student, text)
after = distance(student)
print(f"distance from the teacher: {before:.3f} nats before, {after:.3f} after")
if after > 0.9 * before:
    sys.exit("the student has not learned")
"""


def program(root: Path) -> str:
    """Lesson 02's cells with the tiny pair and the loop, and a judgement of them."""
    course = load_course(root)
    (lesson,) = course.select(["02"])
    wanted = ('load_tiny_teacher("prose")', "def my_loop")
    cells = [one.source for one in read_cells(course, lesson)]
    found = [one for words in wanted for one in cells if words in one]
    if len(found) != len(wanted):
        raise ValueError(f"lesson 02 must have one cell each with {wanted}")
    return "\n\n".join([BEFORE, *found, AFTER])


def main(arguments: list[str] | None = None) -> int:
    (python,) = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory() as folder:
        # -P, an empty folder and no PYTHONPATH keep the repository out of reach.
        command = [str(Path(python).absolute()), "-P", "-c", program(ROOT), str(ROOT)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, cwd=folder, env=environment, check=False)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
