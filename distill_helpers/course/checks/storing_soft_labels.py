"""Notebook 04: a tail bucket, draws, a scheme of one's own, and a late cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from distill_helpers.course.checks.answers import UnusableError, kind
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.temperature import entropy, kl
from distill_helpers.course.checks.words import say

Tensor = torch.Tensor


def _kept(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    weights, ids = logits.softmax(-1).topk(k)
    return ids, weights


def _with_rest(p: Tensor) -> Tensor:
    """Probabilities of the kept tokens, and one for all the others together."""
    return torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)


def _bucket_loss(
    student: Tensor, ids: Tensor, weights: Tensor, *, turned: bool = False
) -> Tensor:
    q, p = _with_rest(student.softmax(-1).gather(-1, ids)), _with_rest(weights)
    return kl(q, p) if turned else kl(p, q)


def _kept_loss(
    student: Tensor,
    ids: Tensor,
    weights: Tensor,
    *,
    scale_p: bool = False,
    scale_q: bool = False,
) -> Tensor:
    """What comes of the kept tokens alone."""
    if scale_q:
        log_q = student.gather(-1, ids).log_softmax(-1)
    else:
        log_q = student.log_softmax(-1).gather(-1, ids)
    p = weights / weights.sum(-1, keepdim=True) if scale_p else weights
    return (p * (p.log() - log_q)).sum(-1)


_SEED_3 = torch.Generator().manual_seed(3)
_STUDENT, _TEACHER = 2 * torch.randn(2, 4, 9, generator=_SEED_3, dtype=torch.float64)

TAIL_BUCKET = Exercise(
    "tail_bucket",
    reference=_bucket_loss,
    inputs=(
        (
            torch.tensor([[0.5, 0.3, 0.1, 0.1]]).double().log(),
            torch.tensor([[0, 1]]),
            torch.tensor([[0.4, 0.4]]).double(),
        ),
        (_STUDENT, *_kept(_TEACHER, 3)),
        (_TEACHER, *_kept(_TEACHER, 3)),
    ),
    wrong={
        "top_k_renormalised": partial(_kept_loss, scale_p=True),
        "tail_missing": _kept_loss,
        "both_renormalised": partial(_kept_loss, scale_p=True, scale_q=True),
        "student_renormalised": partial(_kept_loss, scale_q=True),
        "reversed": partial(_bucket_loss, turned=True),
        "cross_entropy": lambda s, ids, w: (
            _bucket_loss(s, ids, w) + entropy(_with_rest(w))
        ),
    },
    differentiate=1,
)


def _counts(draws: Tensor, vocabulary: int) -> Tensor:
    return F.one_hot(draws, vocabulary).double().sum(1)


def _presence(draws: Tensor, vocabulary: int) -> Tensor:
    return (_counts(draws, vocabulary) > 0).double()


SAMPLED_ESTIMATE = Exercise(
    "sampled_estimate",
    reference=lambda draws, size: _counts(draws, size) / draws.shape[1],
    inputs=(
        (torch.tensor([[2, 0, 2, 1]]), 4),
        (torch.tensor([[0, 0, 0, 5, 1], [4, 3, 4, 3, 3]]), 6),
    ),
    wrong={
        "counts_not_divided": _counts,
        "repetitions_lost": (
            lambda *a: _presence(*a) / _presence(*a).sum(-1, keepdim=True),
            lambda draws, size: _presence(draws, size) / draws.shape[1],
        ),
        "divided_by_vocabulary": lambda draws, size: _counts(draws, size) / size,
        "divided_by_positions": lambda draws, size: (
            _counts(draws, size) / draws.shape[0]
        ),
    },
)


# --- a scheme of one's own ----------------------------------------------------------

# A kept token costs an id and a probability, a drawn one an id; the entropy takes four.
_MOST_BYTES = 50


def _scheme(
    p: Tensor,
    generator: torch.Generator | None,
    *,
    k: int = 4,
    draws: int = 13,
    rest_alone: bool = True,
    flat: bool = False,
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, and draws from what is left."""
    kept = p.topk(k, dim=-1).indices
    rest = p.scatter(-1, kept, 0.0) if rest_alone else p
    rest = rest.gt(0).double() if flat else rest
    return kept, torch.multinomial(rest, draws, replacement=True, generator=generator)


def _next_best(p: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
    order = p.argsort(-1, descending=True)
    return order[:, :4], order[:, 4:17]


def _estimate(scheme: Any, inputs: tuple[Tensor, torch.Generator]) -> Tensor:
    """What the scheme's reader makes of it, averaged over equal positions."""
    p = inputs[0]
    if not isinstance(scheme, (tuple, list)) or len(scheme) != 2:
        raise UnusableError(say("no_pair_of_ids", came=kind(scheme)))
    for name, ids in zip(("kept", "drawn"), scheme, strict=True):
        whole = isinstance(ids, Tensor) and not ids.is_floating_point()
        if not whole or ids.dim() != 2 or len(ids) != len(p):
            came = list(ids.shape) if isinstance(ids, Tensor) else kind(ids)
            raise UnusableError(say("no_ids_of", name=name, rows=len(p), came=came))
    kept, drawn = scheme
    cost = 4 * kept.shape[-1] + 2 * drawn.shape[-1] + 4
    if cost >= _MOST_BYTES:
        raise UnusableError(say("too_many_bytes", most=_MOST_BYTES, came=cost))
    found = torch.zeros_like(p).scatter(-1, kept, p.gather(-1, kept))
    if drawn.shape[-1]:
        share = (1 - found.sum(-1, keepdim=True)) / drawn.shape[-1]
        found = found.scatter_add(-1, drawn, share.expand(drawn.shape))
    return found.mean(0)


_OPEN = 1 / torch.arange(1, 25, dtype=torch.float64)
_OPEN_POSITIONS = (_OPEN / _OPEN.sum()).expand(6000, -1).contiguous()

OWN_SCHEME = Exercise(
    "own_scheme",
    reference=_scheme,
    inputs=((_OPEN_POSITIONS, torch.Generator().manual_seed(0)),),
    wrong={
        "next_best": _next_best,
        "kept_again": partial(_scheme, rest_alone=False),
        "flat_draws": partial(_scheme, flat=True),
        "generator_ignored": lambda p, generator: _scheme(p, None),
    },
    adapt=_estimate,
    random_bug="generator_ignored",
    # Shares in 6,000 times 13 draws.
    tolerance=0.06,
)


_IDS = torch.randint(50, (40,), generator=torch.Generator().manual_seed(4))


def _moved(shift: int) -> Tensor:
    ids = torch.roll(_IDS, shift)
    ids[7] = 0  # a tie that fell the other way
    return ids


def _agreement(cached: Tensor, recomputed: Tensor, shift: int) -> int:
    n = len(cached)
    left = cached[max(0, shift) : n + min(0, shift)]
    right = recomputed[max(0, -shift) : n - max(0, shift)]
    return int((left == right).sum())


def _shift(cached: Tensor, recomputed: Tensor) -> Tensor:
    best = max(range(-2, 3), key=lambda s: _agreement(cached, recomputed, s))
    return torch.tensor(float(best))


CACHE_SHIFT = Exercise(
    "cache_shift",
    reference=_shift,
    inputs=[(_moved(shift), _IDS) for shift in (0, 1, -1, 2)],
    wrong={
        "sign": lambda *a: -_shift(*a),
        "always_zero": lambda *_: torch.tensor(0.0),
        "size_only": lambda *a: _shift(*a).abs(),
    },
)
