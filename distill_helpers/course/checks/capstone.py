"""Notebook 13: where to go on from, a verdict, and when a student pays for itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from distill_helpers.course.checks.answers import UnusableError, kind
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say

RESUME_STEP = Exercise(
    "resume_step",
    reference=lambda saved: max((step for step, done in saved if done), default=0),
    inputs=(
        ([(100, True)],),
        ([],),
        ([(100, False)],),
        ([(90, True), (100, True)],),
        ([(90, True), (100, True), (80, True)],),
        ([(2000, False), (1000, True), (300, False), (200, True)],),
    ),
    wrong={
        "incomplete_taken": lambda saved: max((step for step, _ in saved), default=0),
        "last_in_list": lambda saved: [0, *(step for step, done in saved if done)][-1],
        "as_text": lambda saved: int(
            max(["0", *(str(s) for s, done in saved if done)])
        ),
    },
)


def _verdict(low: float, high: float, bar: float) -> int:
    if low >= bar:
        return 1
    return -1 if high < bar else 0


REACHES = Exercise(
    "reaches",
    reference=_verdict,
    inputs=(
        (0.96, 0.99, 0.95),
        (0.90, 0.94, 0.95),
        (2.0, 3.0, 2.0),
        (1.0, 2.0, 2.0),
        (1.0, 2.2, 2.0),
        (0.94, 0.99, 0.95),
    ),
    wrong={
        "middle_decides": lambda low, high, bar: 1 if (low + high) / 2 >= bar else -1,
        "best_end": lambda low, high, bar: 1 if high >= bar else -1,
        "never_undecided": lambda low, high, bar: 1 if low >= bar else -1,
        "bar_itself_missed": lambda low, high, bar: (
            1 if low > bar else -1 if high < bar else 0
        ),
        "signs_swapped": lambda *a: -_verdict(*a),
    },
)

# Infinity is compared as -1, which no number of answers is.
_NEVER = -1.0


def _answers(once: float, teacher: float, student: float) -> float:
    return once / (teacher - student) if student < teacher else math.inf


def _finite(result: Any, _: tuple[Any, ...]) -> torch.Tensor:
    try:
        number = float(result)
    except (TypeError, ValueError):
        raise UnusableError(say("no_answers", came=kind(result))) from None
    if number == _NEVER:
        number = -2.0
    return torch.tensor(_NEVER if number == math.inf else number)


def _show_answers(value: torch.Tensor) -> str:
    number = float(value)
    return say("infinity") if number == _NEVER else f"{number:g}"


BREAK_EVEN = Exercise(
    "break_even",
    reference=_answers,
    inputs=(
        (100.0, 3.0, 1.0),
        (1.0, 3.0, 1.0),
        (100.0, 2.0, 2.0),
        (100.0, 1.0, 3.0),
        (90.0, 1.0, 0.9),
    ),
    wrong={
        "student_is_free": lambda once, teacher, student: once / teacher,
        "negative": lambda once, teacher, student: (
            once / (teacher - student) if teacher != student else math.inf
        ),
        "costs_added": lambda once, teacher, student: once / (teacher + student),
        "rounded": lambda *a: np.ceil(_answers(*a)),
    },
    adapt=_finite,
    show=_show_answers,
)
