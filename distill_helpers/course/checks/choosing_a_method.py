"""Notebook 11: how many steps a budget buys, and which ways nobody beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from distill_helpers.course.checks.answers import places
from distill_helpers.course.checks.engine import Exercise

STEPS_FOR = Exercise(
    "steps_for",
    reference=lambda budget, once, step: max(0, math.floor((budget - once) / step)),
    inputs=(
        (12.0, 0.0, 4.0),
        (12.0, 2.0, 5.0),
        (12.0, 1.0, 4.0),
        (3.0, 3.0, 1.0),
        (3.0, 8.0, 1.0),
    ),
    wrong={
        "once_forgotten": lambda budget, once, step: math.floor(budget / step),
        "rounded_up": lambda budget, once, step: math.ceil(
            max(0, budget - once) / step
        ),
        "fractions": lambda budget, once, step: max(0.0, (budget - once) / step),
        "negative": lambda budget, once, step: math.floor((budget - once) / step),
        "once_per_step": lambda budget, once, step: math.floor(budget / (step + once)),
    },
)

Costs = Sequence[float]
Beats = Callable[[float, float, float, float], bool]


def _beats(c: float, s: float, cost: float, score: float) -> bool:
    return c <= cost and s >= score and (c, s) != (cost, score)


def _unbeaten(costs: Costs, scores: Costs, beats: Beats = _beats) -> list[int]:
    ways = list(zip(costs, scores, strict=True))
    return [
        place
        for place, (cost, score) in enumerate(ways)
        if not any(beats(c, s, cost, score) for c, s in ways)
    ]


FRONTIER = Exercise(
    "frontier",
    reference=_unbeaten,
    inputs=(
        ([1, 2, 3], [10, 30, 20]),
        ([3, 1, 2], [9, 5, 7]),
        ([1, 1, 2], [4, 6, 8]),
        ([1, 2, 3], [5, 5, 7]),
        ([2, 2, 1], [8, 8, 3]),
        ([4, 1, 2], [5, 9, 6]),
    ),
    wrong={
        "best_score_only": lambda costs, scores: [scores.index(max(scores))],
        "cheapest_only": lambda costs, scores: [costs.index(min(costs))],
        "score_minimised": lambda costs, scores: _unbeaten(costs, [-s for s in scores]),
        "better_in_both": partial(
            _unbeaten, beats=lambda c, s, cost, score: c < cost and s > score
        ),
        "beaten_by_its_equal": partial(
            _unbeaten, beats=lambda c, s, cost, score: c <= cost and s >= score
        ),
        "best_ratio": lambda costs, scores: [int(np.argmax(np.divide(scores, costs)))],
    },
    adapt=places,
)
