"""Notebook 09: where answers are compared, how large adapters are, a rounded weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from distill_helpers.course.checks.answers import UnusableError, as_tensor, show
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say

Tensor = torch.Tensor
Shapes = Sequence[tuple[int, int]]


# --- where to compare ---------------------------------------------------------------


def _places(prompt: int, answer: int, *, start: int = -1, more: int = 0) -> list[int]:
    return list(range(prompt + start, prompt + start + answer + more))


def _as_marks(result: Any, inputs: tuple[Any, ...]) -> Tensor:
    """How often each place of the row is named, and one place more."""
    given = list(result) if isinstance(result, range) else result
    named = as_tensor(given, differentiate=False).flatten()
    count = sum(inputs) + 1
    if any(place not in range(count) for place in named.tolist()):
        raise UnusableError(say("no_places", last=count - 2, came=show(named)))
    return torch.zeros(count).index_add_(0, named.long(), torch.ones(len(named)))


ANSWER_PLACES = Exercise(
    "answer_places",
    reference=_places,
    inputs=((5, 3), (1, 4), (20, 1), (7, 12)),
    wrong={
        "places_of_the_answer": partial(_places, start=0),
        "end_predicted": partial(_places, more=1),
        "last_lost": partial(_places, more=-1),
        "whole_row": lambda prompt, answer: list(range(prompt + answer)),
        "from_the_answer_alone": lambda prompt, answer: list(range(answer)),
    },
    adapt=_as_marks,
)


# --- what learns --------------------------------------------------------------------


def _size(shapes: Shapes, rank: int) -> int:
    return sum(rank * (rows + columns) for rows, columns in shapes)


ADAPTER_SIZE = Exercise(
    "adapter_size",
    reference=_size,
    inputs=(
        ([(6, 4)], 2),
        ([(8, 8)], 1),
        ([(6, 4), (4, 10), (3, 7)], 4),
        ([(576, 576), (1536, 576)], 16),
    ),
    wrong={
        "whole_matrices": lambda shapes, rank: sum(r * c for r, c in shapes),
        "one_of_the_two": lambda shapes, rank: sum(rank * c for _, c in shapes),
        "rank_squared": lambda shapes, rank: (
            _size(shapes, rank) + len(shapes) * rank**2
        ),
        "rank_forgotten": lambda shapes, rank: _size(shapes, 1),
        "first_matrix_alone": lambda shapes, rank: _size(shapes[:1], rank),
        "product_times_rank": lambda shapes, rank: sum(rank * r * c for r, c in shapes),
    },
)


# --- a rounded weight ---------------------------------------------------------------


def _steps(weight: Tensor, bits: int, *, most: int | None = None) -> Tensor:
    """The distance of two values that can be written, one for each row."""
    highest = 2 ** (bits - 1) - 1 if most is None else most
    return weight.detach().abs().amax(-1, keepdim=True) / highest


def _through(weight: Tensor, rounded: Tensor) -> Tensor:
    return weight + (rounded - weight).detach()


def _rounded(weight: Tensor, bits: int) -> Tensor:
    step = _steps(weight, bits)
    return _through(weight, (weight / step).round() * step)


def _one_step_for_all(weight: Tensor, bits: int) -> Tensor:
    step = _steps(weight, bits).max()
    return _through(weight, (weight / step).round() * step)


def _too_fine(weight: Tensor, bits: int) -> Tensor:
    step = _steps(weight, bits, most=2**bits - 1)
    return _through(weight, (weight / step).round() * step)


def _no_slope(weight: Tensor, bits: int) -> Tensor:
    step = _steps(weight, bits)
    return (weight / step).round() * step + 0 * weight


def _rounded_down(weight: Tensor, bits: int) -> Tensor:
    step = _steps(weight, bits)
    return _through(weight, (weight / step).floor() * step)


def _whole_numbers(weight: Tensor, bits: int) -> Tensor:
    return _through(weight, (weight / _steps(weight, bits)).round())


_GROUPS = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))

FAKE_ROUND = Exercise(
    "fake_round",
    reference=_rounded,
    inputs=(
        (torch.tensor([[0.6, -0.25, 0.13]]), 3),
        (torch.tensor([[0.7, 0.1, -0.32], [7.0, 1.0, -3.2]]), 4),
        (_GROUPS, 4),
        (_GROUPS * torch.tensor([[0.01], [0.1], [1.0], [10.0]]), 3),
    ),
    wrong={
        "no_slope": _no_slope,
        "detached": lambda weight, bits: _rounded(weight.detach(), bits),
        "one_step_for_all": _one_step_for_all,
        "twice_as_fine": _too_fine,
        "rounded_down": _rounded_down,
        "whole_numbers": _whole_numbers,
        "not_rounded": lambda weight, bits: weight * 1.0,
    },
    differentiate=1,
)
