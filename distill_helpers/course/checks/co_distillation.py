"""Notebook 07: the weight of a partner's word, one joint step, and an ensemble."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F

from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.temperature import kl, picked

Tensor = torch.Tensor


def _weight(
    now: float,
    alpha: float,
    warm_up: float,
    ramp: float,
    *,
    low: float = 0,
    top: float = 1,
) -> float:
    if not ramp:
        return alpha * (now >= warm_up)
    return alpha * max(low, min(top, (now - warm_up) / ramp))


MIX_WEIGHT = Exercise(
    "mix_weight",
    reference=_weight,
    inputs=(
        (0.1, 0.8, 0.2, 0.4),
        (0.4, 0.8, 0.2, 0.4),
        (0.3, 0.8, 0.2, 0.4),
        (0.9, 0.8, 0.2, 0.4),
        (0.5, 0.8, 0.2, 0.0),
        (0.1, 0.8, 0.0, 0.4),
        (0.0, 0.6, 0.0, 0.0),
    ),
    wrong={
        "never_stops": partial(_weight, top=math.inf),
        "below_zero": partial(_weight, low=-math.inf),
        "from_the_start": lambda now, alpha, warm_up, ramp: (
            (now >= warm_up) * _weight(now, alpha, 0.0, ramp and warm_up + ramp)
        ),
        "ramp_is_its_end": lambda now, alpha, warm_up, ramp: _weight(
            now, alpha, warm_up, ramp and max(ramp - warm_up, 1e-9)
        ),
        "all_at_once": lambda now, alpha, warm_up, _: alpha * float(now >= warm_up),
    },
)


def _joint_loss(
    teacher: Tensor,
    student: Tensor,
    labels: Tensor,
    alpha: float,
    *,
    detach: bool = True,
    own: float = 1.0,
    swapped: bool = False,
    frozen: bool = False,
) -> Tensor:
    partner = teacher.detach() if detach else teacher
    p, q = partner.softmax(-1), student.softmax(-1)
    soft = kl(q, p) if swapped else kl(p, q)
    theirs = F.cross_entropy(teacher.detach() if frozen else teacher, labels)
    hard = F.cross_entropy(student, labels)
    return own * theirs + (1 - alpha) * hard + alpha * soft.mean()


_SEED_6 = torch.Generator().manual_seed(6)
_TEACHER, _STUDENT = (2 * torch.randn(5, 7, generator=_SEED_6) for _ in "ts")
_LABELS = torch.tensor([0, 3, 6, 2, 2])

LEARN_TOGETHER = Exercise(
    "learn_together",
    reference=_joint_loss,
    inputs=(
        (_TEACHER, _STUDENT, _LABELS, 0.0),
        (_TEACHER, _STUDENT, _LABELS, 1.0),
        (_TEACHER, _TEACHER.clone(), _LABELS, 0.3),
        (_TEACHER, _STUDENT, _LABELS, 0.3),
    ),
    wrong={
        "partner_attached": partial(_joint_loss, detach=False),
        "teacher_does_not_learn": partial(_joint_loss, own=0.0),
        "teacher_frozen": partial(_joint_loss, frozen=True),
        "reverse": partial(_joint_loss, swapped=True),
        "alpha_swapped": lambda t, s, y, alpha: _joint_loss(t, s, y, 1 - alpha),
    },
    differentiate=2,
)


def _nll(log_p: Tensor, labels: Tensor) -> Tensor:
    return -picked(log_p, labels).mean()


def _log_sum(logits: Tensor) -> Tensor:
    """The logarithm of the sum of the models' probabilities."""
    return logits.log_softmax(-1).logsumexp(0)


_SEED_7 = torch.Generator().manual_seed(7)
_THREE = 3 * torch.randn(3, 6, 5, generator=_SEED_7)
_ROWS = torch.arange(6) % 5
_OPPOSITE = torch.tensor([[[400.0, 0.0]], [[0.0, 400.0]]])

ENSEMBLE_NLL = Exercise(
    "ensemble_nll",
    reference=lambda z, labels: _nll(_log_sum(z) - math.log(len(z)), labels),
    inputs=(
        (_THREE[:1], _ROWS),
        (_THREE[:1].repeat(2, 1, 1), _ROWS),
        (_OPPOSITE, torch.tensor([0])),
        (_THREE, _ROWS),
    ),
    wrong={
        "mean_of_losses": lambda z, labels: torch.stack(
            [_nll(one.log_softmax(-1), labels) for one in z]
        ).mean(),
        "mean_of_logits": lambda z, labels: _nll(z.mean(0).log_softmax(-1), labels),
        "sum_of_probabilities": lambda z, labels: _nll(_log_sum(z), labels),
        "likelihood": lambda z, labels: (
            -picked(z.softmax(-1).mean(0), labels).mean().log()
        ),
    },
)
