"""Notebook 05: labels for an answer, copies of the test, and a budget."""

from __future__ import annotations

from distill_helpers.course.checks.answers import yes_or_no
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.losses import IGNORE_INDEX


def _labels(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [IGNORE_INDEX] * len(prompt) + [*answer, end]


ANSWER_LABELS = Exercise(
    "answer_labels",
    reference=_labels,
    # In the last one, the end token stands in the answer, too: say, between two steps.
    inputs=(([5, 6], [7, 8, 9], 0), ([4, 4, 4], [9], 2), ([5], [6, 2, 7], 2)),
    wrong={
        "end_not_learned": lambda *a: [*_labels(*a)[:-1], IGNORE_INDEX],
        "prompt_learned": lambda prompt, answer, end: [*prompt, *answer, end],
        "shifted_twice": lambda *a: [*_labels(*a)[1:], IGNORE_INDEX],
        "masked_by_id": lambda prompt, answer, end: [
            IGNORE_INDEX if token == end else token
            for token in _labels(prompt, answer, end)
        ],
    },
)


def _runs(text: str, n: int, *, lower: bool = True, missed: int = 0) -> set[str]:
    words = (text.lower() if lower else text).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1 - missed)}


_TEST = "a small animal that lives in trees"

SHARES_RUN = Exercise(
    "shares_run",
    reference=lambda text, test, n: bool(_runs(text, n) & _runs(test, n)),
    inputs=(
        ("It is a small animal that lives", _TEST, 4),
        ("an old ship", _TEST, 2),
        ("A SMALL ANIMAL", _TEST, 3),
        ("trees lives that small", _TEST, 2),
        ("mall anima", _TEST, 2),
        ("a small", _TEST, 3),
        ("lives in trees", _TEST, 3),
    ),
    wrong={
        "bag_of_words": lambda text, test, n: len(_runs(text, 1) & _runs(test, 1)) >= n,
        "case_matters": lambda text, test, n: bool(
            _runs(text, n, lower=False) & _runs(test, n, lower=False)
        ),
        "last_run_missed": lambda text, test, n: bool(
            _runs(text, n, missed=1) & _runs(test, n)
        ),
        "substring": lambda text, test, n: text.lower() in test.lower(),
    },
    adapt=yes_or_no,
)

MAY_ASK = Exercise(
    "may_ask",
    reference=lambda spent, waiting, worst, budget: (
        spent + sum(waiting) + worst <= budget
    ),
    inputs=(
        (0, [], 50, 100),
        (70, [], 50, 100),
        (10, [40, 40], 50, 100),
        (10, [40], 50, 100),
        (11, [40], 50, 100),
        (100, [], 1, 100),
    ),
    wrong={
        "under_way_forgotten": lambda spent, waiting, worst, budget: (
            spent + worst <= budget
        ),
        "asked_too_late": lambda spent, waiting, worst, budget: spent < budget,
        "next_forgotten": lambda spent, waiting, _, budget: (
            spent + sum(waiting) <= budget
        ),
        "last_one_refused": lambda spent, waiting, worst, budget: (
            spent + sum(waiting) + worst < budget
        ),
    },
    adapt=yes_or_no,
)
