"""Notebook 06: a checker of results, one of steps, rejection sampling, and pass@k."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

from distill_helpers.course.checks.answers import places, yes_or_no
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say


def _is_right(answer: str, result: int) -> bool:
    _, semicolon, last = answer.rpartition(";")
    return bool(semicolon) and last.strip() == str(result)


_STEPS = "27+58=85,85+46=131"
_ENDS = (";131", ";121", ";13", ";1131", "; 131 ", ";131 or so", "", ";131;121", ";")

EXACT_CHECKER = Exercise(
    "exact_checker",
    reference=_is_right,
    inputs=[(_STEPS + end, 131) for end in _ENDS],
    wrong={
        "found_anywhere": lambda answer, result: str(result) in answer,
        "ends_with": lambda answer, result: answer.strip().endswith(str(result)),
        "begins_with": lambda answer, result: (
            ";" in answer and answer.rpartition(";")[2].strip().startswith(str(result))
        ),
        "first_semicolon": lambda answer, result: (
            (answer.split(";")[1:2] or [""])[0].strip() == str(result)
        ),
        "end_not_needed": lambda answer, result: (
            re.split("[;=]", answer)[-1].strip() == str(result)
        ),
    },
    adapt=yes_or_no,
)

_STEP = re.compile(r"(\d+)\+(\d+)=(\d+)")


def _steps_hold(
    prompt: str, answer: str, *, given: bool = True, all_used: bool = True
) -> bool:
    """Whether every step is true, and made of numbers that are there to be added."""
    steps, semicolon, result = answer.partition(";")
    at_hand = prompt.rstrip("=").split("+")
    for step in steps.split(","):
        parts = _STEP.fullmatch(step)
        if parts is None or int(parts[1]) + int(parts[2]) != int(parts[3]):
            return False
        for number in (parts[1], parts[2]):
            if number in at_hand:
                at_hand.remove(number)
            elif given:
                return False
        at_hand.append(parts[3])
    left = at_hand if all_used else at_hand[-1:]
    return bool(semicolon) and left == [result]


def _true_sums(prompt: str, answer: str) -> bool:
    return all(
        int(x) + int(y) == int(z) for x, y, z in _STEP.findall(answer)
    ) and _ends_right(prompt, answer)


def _ends_right(prompt: str, answer: str) -> bool:
    numbers = map(int, prompt.rstrip("=").split("+"))
    return _is_right(answer, sum(numbers))


def _perfect(prompt: str, answer: str) -> bool:
    a, b, c = map(int, prompt.rstrip("=").split("+"))
    return answer == f"{a}+{b}={a + b},{a + b}+{c}={a + b + c};{a + b + c}"


_ASKED = "27+58+46="
_TRACES = (
    (_ASKED, "27+58=85,85+46=131;131"),
    (_ASKED, "27+58=85,85+46=131;121"),
    (_ASKED, "27+58=75,75+46=131;131"),
    (_ASKED, "58+46=104,27+104=131;131"),
    (_ASKED, "27+57=84,84+47=131;131"),
    (_ASKED, "27+58=85;85"),
    (_ASKED, "27+58=85,85+46=131"),
    (_ASKED, "27+58=85,85+46;131"),
    ("30+30+40=", "30+30=60,60+40=100;100"),
    ("30+20+50=", "30+20=50,50+50=100;100"),
    ("30+20+40=", "30+20=50,50+50=100;100"),
    ("30+20+40=", "30+30=60,60+40=100;100"),
)

STEPS_HOLD = Exercise(
    "steps_hold",
    reference=_steps_hold,
    inputs=_TRACES,
    wrong={
        "result_only": _ends_right,
        "true_sums_alone": (
            _true_sums,
            partial(_steps_hold, given=False, all_used=False),
            lambda prompt, answer: (
                _steps_hold(prompt, answer, given=False, all_used=False)
                and _ends_right(prompt, answer)
            ),
        ),
        "one_order_only": _perfect,
        "numbers_left_over": partial(_steps_hold, all_used=False),
        "end_not_compared": lambda prompt, answer: (
            ";" in answer
            and _steps_hold(
                prompt,
                answer.partition(";")[0] + ";" + re.split("[=;]", answer)[-2],
            )
        ),
    },
    adapt=yes_or_no,
)

Sample = tuple[str, str]


def _keep(
    samples: list[Sample],
    right: list[bool],
    same: Callable[[Sample], Any] = lambda sample: sample,
) -> list[int]:
    seen: set[Any] = set()
    kept = []
    for place, (sample, is_right) in enumerate(zip(samples, right, strict=True)):
        if is_right and same(sample) not in seen:
            seen.add(same(sample))
            kept.append(place)
    return kept


def _first_tries(samples: list[Sample]) -> list[int]:
    return _keep(samples, [True] * len(samples), itemgetter(0))


_SAMPLES = [("1+2", "3"), ("1+2", "4"), ("2+1", "3"), ("1+2", "3"), ("1+2", "2+1;3")]
_RIGHT = [True, False, True, True, True]

KEEP_RIGHT = Exercise(
    "keep_right",
    reference=_keep,
    inputs=[
        (_SAMPLES[part], _RIGHT[part])
        for part in (slice(2), slice(3), slice(4), slice(5), slice(1, 2))
    ],
    wrong={
        "repeats_kept": lambda samples, right: [i for i, ok in enumerate(right) if ok],
        "wrong_kept": lambda samples, right: _keep(samples, [True] * len(samples)),
        "answers_alone_compared": partial(_keep, same=itemgetter(1)),
        "one_per_question": partial(_keep, same=itemgetter(0)),
        "wrong_ones_block": lambda samples, right: [
            place for place in _first_tries(samples) if right[place]
        ],
    },
    adapt=places,
    show=lambda kept: say("places", places=kept.nonzero().flatten().tolist()),
)


def _pass_at_k(drawn: int, right: int, k: int) -> float:
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


PASS_AT_K = Exercise(
    "pass_at_k",
    reference=_pass_at_k,
    inputs=((4, 1, 1), (4, 1, 2), (10, 3, 5), (4, 0, 2), (4, 3, 2), (8, 1, 8)),
    wrong={
        "plugged_in": lambda drawn, right, k: 1 - (1 - right / drawn) ** k,
        "share_right": lambda drawn, right, k: right / drawn,
        "chances_added": lambda drawn, right, k: min(1.0, k * right / drawn),
        "none_right": lambda *a: 1 - _pass_at_k(*a),
        "all_right": lambda drawn, right, k: math.comb(right, k) / math.comb(drawn, k),
    },
)
