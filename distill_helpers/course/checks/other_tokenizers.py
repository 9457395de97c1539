"""Notebook 10: alignment by bytes, probabilities of chunks, a mapped vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from distill_helpers.course.checks.answers import UnusableError, as_tensor, shape
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say

Tensor = torch.Tensor
Pieces = Sequence[bytes]
Pairs = list[tuple[int, int]]


# --- chunks -------------------------------------------------------------------------


def _ends(pieces: Pieces) -> list[int]:
    return list(accumulate(map(len, pieces)))


def _align(ours: Pieces, theirs: Pieces) -> Pairs:
    mine, others = _ends(ours), _ends(theirs)
    pairs, i, j = [], 0, 0
    for end in sorted({*mine} & {*others}):
        k, m = mine.index(end) + 1, others.index(end) + 1
        pairs.append((k - i, m - j))
        i, j = k, m
    return pairs


def _at_equal_tokens(ours: Pieces, theirs: Pieces) -> Pairs:
    """A token that both have is a chunk; what lies between two of them is another."""
    mine, others = _ends(ours), _ends(theirs)
    pairs, i, j = [], 0, 0
    for k, piece in enumerate(ours):
        if mine[k] in others and theirs[others.index(mine[k])] == piece:
            m = others.index(mine[k])
            if (k - i, m - j) != (0, 0):
                pairs.append((k - i, m - j))
            pairs.append((1, 1))
            i, j = k + 1, m + 1
    if i < len(ours):
        pairs.append((len(ours) - i, len(theirs) - j))
    return pairs


def _bytes_counted(ours: Pieces, theirs: Pieces) -> Pairs:
    ends = sorted({*_ends(ours)} & {*_ends(theirs)})
    return [
        (end - start, end - start) for start, end in zip([0, *ends], ends, strict=False)
    ]


def _places(ours: Pieces, theirs: Pieces) -> Pairs:
    pairs = _align(ours, theirs)
    totals = [accumulate(side) for side in zip(*pairs, strict=True)]
    return list(zip(*totals, strict=True))


def _as_table(result: Any, inputs: tuple[Any, ...]) -> Tensor:
    """Pairs under one another, with room below for more of them."""
    most = sum(map(len, inputs))
    table = torch.zeros(most, 2, dtype=torch.float64)
    if isinstance(result, list | tuple) and not len(result):
        return table
    pairs = as_tensor(result, differentiate=False)
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise UnusableError(say("no_chunks", came=shape(pairs)))
    if len(pairs) > most:
        raise UnusableError(say("too_many_chunks", most=most, came=len(pairs)))
    table[: len(pairs)] = pairs
    return table


_WONDERFUL = ([b" wonder", b"ful", b" day"], [b" wonderful", b" day"])
_CROSSED = (
    [b" w", b"onder", b"ful", b" d", b"ay", b"!"],
    [b" won", b"derful", b" day", b"!"],
)
_SMILE = "🙂".encode()
_ACCENT = "é".encode()

ALIGN = Exercise(
    "align",
    reference=_align,
    inputs=(
        _WONDERFUL,
        ([b"one", b" day"], [b"one", b" day"]),
        _CROSSED,
        _CROSSED[::-1],
        ([b"a", _SMILE[:2], _SMILE[2:], b" b"], [b"a", _SMILE, b" ", b"b"]),
        ([b"soir", _ACCENT, b"es"], [b"so", b"ir", _ACCENT[:1], _ACCENT[1:], b"es"]),
        ([b"abc", b"d", b"ef"], [b"ab", b"cde", b"f"]),
    ),
    wrong={
        "whole_text": lambda ours, theirs: [(len(ours), len(theirs))],
        "token_by_token": lambda ours, theirs: [
            (1, 1) for _ in zip(ours, theirs, strict=False)
        ],
        "equal_tokens": _at_equal_tokens,
        "last_lost": lambda ours, theirs: _align(ours, theirs)[:-1],
        "bytes_counted": _bytes_counted,
        "places": _places,
        "sides_swapped": lambda ours, theirs: _align(theirs, ours),
    },
    adapt=_as_table,
)


# --- the probability of a chunk -----------------------------------------------------


def _sums(log_p: Tensor, chunk: Tensor) -> Tensor:
    counts = chunk >= 0
    total = log_p.new_zeros(int(chunk.max()) + 1)
    return total.index_add(0, chunk[counts], log_p[counts])


def _sizes(chunk: Tensor) -> Tensor:
    return torch.bincount(chunk[chunk >= 0])


def _everyone(log_p: Tensor, chunk: Tensor, outsiders: Callable[..., Tensor]) -> Tensor:
    total = log_p.new_zeros(int(chunk.max()) + 1)
    return total.index_add(0, outsiders(chunk), log_p)


def _one_of_each(log_p: Tensor, chunk: Tensor, place: int) -> Tensor:
    chosen = [(chunk == n).nonzero()[place, 0] for n in range(int(chunk.max()) + 1)]
    return log_p[torch.stack(chosen)]


_LOG_P = torch.tensor([-0.5, -1.0, -0.1, -2.0, -0.3, -0.7])
_CHUNK = torch.tensor([-1, 0, 0, 1, 2, -1])
_MORE = torch.randn(12, generator=torch.Generator().manual_seed(10)).abs().neg()
_NUMBERS = torch.tensor([-1, 0, 1, 1, 1, 2, 3, 3, -1, 4, 5, 5])

CHUNK_LOG_P = Exercise(
    "chunk_log_p",
    reference=_sums,
    inputs=(
        (torch.tensor([0.5, 0.4]).log(), torch.tensor([0, 0])),
        (_LOG_P, _CHUNK),
        (_MORE, _NUMBERS),
    ),
    wrong={
        "mean": lambda log_p, chunk: _sums(log_p, chunk) / _sizes(chunk),
        "probability": lambda log_p, chunk: _sums(log_p, chunk).exp(),
        "sum_of_probabilities": lambda log_p, chunk: _sums(log_p.exp(), chunk).log(),
        "outsiders_in_the_last": partial(
            _everyone, outsiders=lambda chunk: chunk % (chunk.max() + 1)
        ),
        "outsiders_in_the_first": partial(
            _everyone, outsiders=lambda chunk: chunk.clamp(min=0)
        ),
        "first_token_alone": partial(_one_of_each, place=0),
        "last_token_alone": partial(_one_of_each, place=-1),
        "detached": lambda log_p, chunk: _sums(log_p.detach(), chunk),
    },
    differentiate=1,
)


# --- a mapped vocabulary ------------------------------------------------------------


def _project(p: Tensor, to_student: Tensor, size: int) -> Tensor:
    mapped = to_student >= 0
    q = p.new_zeros(len(p), size)
    return q.index_add(1, to_student[mapped], p[:, mapped])


def _overwritten(p: Tensor, to_student: Tensor, size: int) -> Tensor:
    mapped = to_student >= 0
    q = p.new_zeros(len(p), size)
    q[:, to_student[mapped]] = p[:, mapped]
    return q


def _outsiders_last(p: Tensor, to_student: Tensor, size: int) -> Tensor:
    return p.new_zeros(len(p), size).index_add(1, to_student % size, p)


def _other_way(p: Tensor, to_student: Tensor, size: int) -> Tensor:
    """Takes the map for one from the student's tokens to the teacher's."""
    return p[:, to_student[:size].clamp(0, p.shape[1] - 1)]


def _scaled(p: Tensor, to_student: Tensor, size: int) -> Tensor:
    q = _project(p, to_student, size)
    return q / q.sum(-1, keepdim=True)


_P = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]])
_MANY = torch.rand(3, 9, generator=torch.Generator().manual_seed(11)).softmax(-1)

PROJECT = Exercise(
    "project",
    reference=_project,
    inputs=(
        (_P, torch.tensor([2, 0, 1, 3]), 4),
        (_P, torch.tensor([1, 0, 1, -1]), 3),
        (_MANY, torch.tensor([3, 3, 0, -1, 1, 3, -1, 0, 2]), 5),
    ),
    wrong={
        "overwritten": _overwritten,
        "scaled": _scaled,
        "outsiders_in_the_last": _outsiders_last,
        "other_way": _other_way,
    },
)
