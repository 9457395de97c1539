"""Notebook 08: reverse KL from draws, the generalised JSD, and exposure bias."""

from __future__ import annotations

import math
from functools import partial

import torch

from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.temperature import kl, picked

Tensor = torch.Tensor


def _ratio(student: Tensor, teacher: Tensor) -> Tensor:
    return student.log_softmax(-1) - teacher.log_softmax(-1)


_SEED_8 = torch.Generator().manual_seed(8)
_STUDENT, _TEACHER = (2 * torch.randn(6, 5, generator=_SEED_8) for _ in "st")
_DRAWN = torch.tensor([0, 4, 1, 1, 3, 2])
_EVEN = torch.zeros(2, 2)
_THREE_TO_ONE = torch.tensor([[3.0, 1.0]] * 2).log()

DRAWN_REVERSE_KL = Exercise(
    "drawn_reverse_kl",
    reference=lambda s, t, drawn: picked(_ratio(s, t), drawn).mean(),
    inputs=(
        (_EVEN, _THREE_TO_ONE, torch.tensor([0, 1])),
        (_STUDENT, _STUDENT.clone(), _DRAWN),
        (_STUDENT, _TEACHER, _DRAWN),
        (_STUDENT[:1], _TEACHER[:1], _DRAWN[:1]),
        (torch.tensor([[0.0, -200.0]]), _EVEN[:1], torch.tensor([1])),
    ),
    wrong={
        "sign": lambda s, t, drawn: picked(_ratio(t, s), drawn).mean(),
        "exact": lambda s, t, drawn: kl(s.softmax(-1), t.softmax(-1)).mean(),
        "weighted": lambda s, t, drawn: picked(
            s.softmax(-1) * _ratio(s, t), drawn
        ).mean(),
        "logits": lambda s, t, drawn: picked(s - t, drawn).mean(),
        "summed": lambda s, t, drawn: picked(_ratio(s, t), drawn).sum(),
        "only_teacher": lambda s, t, drawn: -picked(t.log_softmax(-1), drawn).mean(),
    },
)


def _kl_of_logs(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _jsd(
    student: Tensor,
    teacher: Tensor,
    beta: float,
    *,
    mixed: float | None = None,
    weight: float | None = None,
    turned: bool = False,
) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    share = beta if mixed is None else mixed
    log_m = torch.logaddexp(log_q + math.log(1 - share), log_p + math.log(share))
    part = beta if weight is None else weight
    if turned:
        to_p, to_q = _kl_of_logs(log_m, log_p), _kl_of_logs(log_m, log_q)
    else:
        to_p, to_q = _kl_of_logs(log_p, log_m), _kl_of_logs(log_q, log_m)
    return (part * to_p + (1 - part) * to_q).mean()


def _jsd_from_probabilities(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    m = (1 - beta) * q + beta * p
    to_p, to_q = p * (p.log() - m.log()), q * (q.log() - m.log())
    return (beta * to_p + (1 - beta) * to_q).sum(-1).mean()


def _mixed_logits(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    m = ((1 - beta) * student + beta * teacher).softmax(-1)
    return beta * kl(p, m).mean() + (1 - beta) * kl(q, m).mean()


_SEED_9 = torch.Generator().manual_seed(9)
_S, _T = (2 * torch.randn(5, 7, generator=_SEED_9) for _ in "st")

GENERALISED_JSD = Exercise(
    "generalised_jsd",
    reference=_jsd,
    inputs=((_S, _S.clone(), 0.3), (_S, _T, 0.5), (_S, _T, 0.2), (_S, _T, 0.9)),
    edges={
        "zero_times_log": (torch.tensor([[0.0, -300.0]]), torch.zeros(1, 2), 0.5),
    },
    wrong={
        "beta_reversed": lambda s, t, beta: _jsd(s, t, 1 - beta),
        "mixture_swapped": lambda s, t, beta: _jsd(s, t, beta, mixed=1 - beta),
        "always_half": partial(_jsd, mixed=0.5),
        "weights_half": partial(_jsd, weight=0.5),
        "weights_swapped": lambda s, t, beta: _jsd(s, t, beta, weight=1 - beta),
        "from_the_middle": partial(_jsd, turned=True),
        "mixed_logits": _mixed_logits,
        "summed": lambda s, t, beta: len(s) * _jsd(s, t, beta),
        "zero_times_log": _jsd_from_probabilities,
    },
    differentiate=1,
)


def _excess(
    own: list[float], his: list[float], counts: list[int], *, first: int = 1
) -> float:
    kept = list(zip(own, his, counts, strict=True))[first:]
    total = sum(count for *_, count in kept)
    return sum(count * (a - b) for a, b, count in kept) / total


def _absolute(own: list[float], his: list[float], counts: list[int]) -> float:
    gaps = [abs(a - b) for a, b in zip(own, his, strict=True)]
    return _excess(gaps, [0.0] * len(gaps), counts)


def _quotient(own: list[float], his: list[float], counts: list[int]) -> float:
    nothing = [0.0] * len(own)
    return _excess(own, nothing, counts) / _excess(his, nothing, counts)


EXCESS_KL = Exercise(
    "excess_kl",
    reference=_excess,
    inputs=(
        ([0.1, 0.4, 0.6], [0.1, 0.2, 0.2], [9, 6, 2]),
        ([0.2, 0.5], [0.2, 0.1], [4, 4]),
        ([0.5, 0.3, 0.3, 0.9], [0.1, 0.3, 0.1, 0.2], [8, 8, 5, 1]),
        ([0.0, 0.1, 0.1], [0.0, 0.3, 0.2], [3, 3, 1]),
    ),
    wrong={
        "first_counts": partial(_excess, first=0),
        "unweighted": lambda own, his, counts: _excess(own, his, [1] * len(counts)),
        "ratio": _quotient,
        "sign": lambda *a: -_excess(*a),
        "all_counts": lambda own, his, counts: (
            _excess(own, his, counts) * sum(counts[1:]) / sum(counts)
        ),
        "absolute": _absolute,
    },
)
