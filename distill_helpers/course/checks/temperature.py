"""Notebook 01: softmax with temperature, entropy, KL and perplexity."""

from __future__ import annotations

import math

import torch

from distill_helpers.course.checks.engine import Exercise

Tensor = torch.Tensor

_LOGITS = torch.tensor([2.0, 0.5, -1.0, 0.0, 1.2])
_MANY_LOGITS = torch.randn((2, 3, 5), generator=torch.Generator().manual_seed(0))
_P = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
_Q = torch.tensor([[0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
_P_WITH_ZERO = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])


def entropy(p: Tensor) -> Tensor:
    """The entropy of the last dimension in nats."""
    return -torch.xlogy(p, p).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last dimension in nats."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def picked(values: Tensor, ids: Tensor) -> Tensor:
    """The value of each row at its id."""
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


SOFTMAX = Exercise(
    "softmax",
    reference=lambda z, T: (z / T).softmax(-1),
    inputs=((_LOGITS, 1.0), (_LOGITS, 2.0), (_LOGITS, 0.5), (_MANY_LOGITS, 3.0)),
    edges={"overflow": (500 * _LOGITS, 1.0)},
    wrong={
        "temperature_multiplied": lambda z, T: (z * T).softmax(-1),
        "temperature_missing": lambda z, T: z.softmax(-1),
        "temperature_on_probabilities": lambda z, T: z.softmax(-1) / T,
        "wrong_dimension": (
            lambda z, T: (z / T).softmax(0),
            lambda z, T: (z / T).flatten().softmax(0).view_as(z),
        ),
        "log_probabilities": lambda z, T: (z / T).log_softmax(-1),
        "not_normalised": lambda z, T: (z / T).exp(),
        "overflow": lambda z, T: (z / T).exp() / (z / T).exp().sum(-1, keepdim=True),
    },
)

ENTROPY = Exercise(
    "entropy",
    reference=entropy,
    inputs=((_P[0],), (_P,)),
    edges={"zero_times_log": (_P_WITH_ZERO,)},
    wrong={
        "log2": lambda p: entropy(p) / math.log(2),
        "minus_missing": lambda p: -entropy(p),
        "mean_not_sum": lambda p: entropy(p) / p.shape[-1],
        "probabilities_missing": lambda p: -p.log().sum(-1),
        "zero_times_log": lambda p: -(p * p.log()).sum(-1),
    },
)

FORWARD_KL = Exercise(
    "forward_kl",
    reference=kl,
    inputs=((_P[0], _Q[0]), (_P, _Q), (_Q, _Q)),
    edges={"zero_times_log": (_P_WITH_ZERO, _Q)},
    wrong={
        "reversed": lambda p, q: kl(q, p),
        "cross_entropy": lambda p, q: -torch.xlogy(p, q).sum(-1),
        "log2": lambda p, q: kl(p, q) / math.log(2),
        "sign": lambda p, q: -kl(p, q),
        "mean_not_sum": lambda p, q: kl(p, q) / p.shape[-1],
        "probabilities_missing": lambda p, q: (p / q).log().sum(-1),
        "zero_times_log": lambda p, q: (p * (p / q).log()).sum(-1),
    },
)

PERPLEXITY = Exercise(
    "perplexity",
    reference=lambda nll: nll.exp(),
    inputs=[(torch.tensor(nll).double(),) for nll in (3.2, 0.7, 0.0)],
    wrong={
        "base_2": lambda nll: 2**nll,
        "sign": lambda nll: (-nll).exp(),
        "bits": lambda nll: nll / math.log(2),
        "unchanged": lambda nll: nll,
    },
)
