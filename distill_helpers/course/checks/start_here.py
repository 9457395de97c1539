"""Notebook 00: bits per byte, and the likeliest next words."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from distill_helpers.course.checks.answers import UnusableError, kind
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say

Tensor = torch.Tensor

_LN2 = math.log(2)
_WORDS = ["dog", "cat", "sofa", "animal", "tree", "hamster"]
_LOGITS = torch.tensor([1.6, 2.9, -1.0, 1.0, -2.0, 0.3])

BITS_PER_BYTE = Exercise(
    "bits_per_byte",
    reference=lambda nll, tokens, size: nll * tokens / size / _LN2,
    inputs=[
        (torch.tensor(nll).double(), tokens, size)
        for nll, tokens, size in ((3.5, 100, 420), (1.2, 1000, 3100))
    ],
    wrong={
        "nats": (
            lambda nll, tokens, size: nll * tokens / size,
            lambda nll, tokens, size: nll * tokens / size * _LN2,
        ),
        "inverted": lambda nll, tokens, size: nll * size / tokens / _LN2,
        "per_token": lambda nll, tokens, size: nll / _LN2,
        "not_totalled": lambda nll, tokens, size: nll / size / _LN2,
    },
)


def _softmax(z: Tensor) -> Tensor:
    return z.softmax(-1)


def _ranked(z: Tensor) -> Tensor:
    return z.argsort(descending=True)


def _choices(
    z: Tensor,
    words: list[str],
    k: int,
    *,
    values: Callable[[Tensor], Tensor] = _softmax,
    order: Callable[[Tensor], Tensor] = _ranked,
) -> list[tuple[str, float]]:
    return [(words[i], float(values(z)[i])) for i in order(z).tolist()[:k]]


def _choice_table(choices: Any, inputs: tuple[Any, ...]) -> Tensor:
    """One row per choice, ``[k, vocabulary]``, with its probability at its word."""
    _, words, k = inputs
    if not isinstance(choices, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in choices
    ):
        raise UnusableError(say("no_pairs", came=kind(choices)))
    if len(choices) != k:
        raise UnusableError(say("pairs_count", k=k, came=len(choices)))
    table = torch.zeros(k, len(words), dtype=torch.float64)
    for place, (word, probability) in enumerate(choices):
        if word not in words:
            raise UnusableError(say("unknown_word", word=word))
        try:
            table[place, words.index(word)] = float(probability)
        except (TypeError, ValueError, RuntimeError):
            message = say("no_probability", word=word, came=kind(probability))
            raise UnusableError(message) from None
    return table


def _show_choices(table: Tensor) -> str:
    best = table.abs().argmax(-1).tolist()
    return ", ".join(
        f"{_WORDS[i]} {float(row[i]):.3g}" for i, row in zip(best, table, strict=True)
    )


TOP_CHOICES = Exercise(
    "top_choices",
    reference=_choices,
    inputs=((_LOGITS, _WORDS, 3), (_LOGITS, _WORDS, 6), (-_LOGITS, _WORDS, 1)),
    wrong={
        "raw_logits": partial(_choices, values=lambda z: z),
        "ascending": (
            partial(_choices, order=torch.argsort),
            lambda *a: _choices(*a)[::-1],
        ),
        "unsorted": partial(_choices, order=lambda z: torch.arange(len(z))),
        "renormalised": lambda z, words, k: _choices(
            z, words, k, values=lambda z: _softmax(z) / _softmax(z).topk(k).values.sum()
        ),
        "log_probabilities": partial(_choices, values=lambda z: z.log_softmax(-1)),
    },
    adapt=_choice_table,
    tolerance=1e-2,
    show=_show_choices,
)
