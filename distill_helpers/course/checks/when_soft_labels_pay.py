"""Notebook 03: a paired gain with its interval, and one fitted temperature."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from distill_helpers.course.checks.engine import Exercise

Tensor = torch.Tensor


def _interval(gains: Tensor, half: Tensor) -> Tensor:
    return torch.stack([gains.mean(), half])


def _gain(ours: Tensor, theirs: Tensor, t: float) -> Tensor:
    gains = theirs - ours
    return _interval(gains, t * gains.std() / math.sqrt(len(gains)))


def _unpaired(ours: Tensor, theirs: Tensor, t: float) -> Tensor:
    both = (ours.var() + theirs.var()) / len(ours)
    return _interval(theirs - ours, t * both.sqrt())


# Seeds that differ more from each other than the two ways do.
_SEEDS = torch.tensor([5.31, 5.02, 5.66, 5.24, 4.87], dtype=torch.float64)
_GAINS = torch.tensor([0.11, 0.07, 0.16, 0.09, 0.12], dtype=torch.float64)
_T_OF_FIVE = 2.776

GAIN_INTERVAL = Exercise(
    "gain_interval",
    reference=_gain,
    inputs=(
        (_SEEDS - _GAINS, _SEEDS, _T_OF_FIVE),
        (_SEEDS[:3] + _GAINS[:3], _SEEDS[:3], 4.303),
    ),
    wrong={
        "unpaired": _unpaired,
        "sign": lambda ours, theirs, t: _gain(theirs, ours, t),
        "of_one_run": lambda ours, theirs, t: _interval(
            theirs - ours, t * (theirs - ours).std()
        ),
        "divided_by_n": lambda ours, theirs, t: _interval(
            theirs - ours, t * (theirs - ours).std() / len(ours)
        ),
        "divided_by_all": lambda ours, theirs, t: _interval(
            theirs - ours,
            t * (theirs - ours).std(unbiased=False) / math.sqrt(len(ours)),
        ),
        "t_missing": lambda ours, theirs, t: _gain(ours, theirs, 1.0),
    },
)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Temperatures, and the loss at each."""
    # One after the other: a lesson hands in a whole vocabulary.
    candidates = torch.linspace(math.log(0.25), math.log(4), 201).exp()
    losses = [F.cross_entropy(logits / one, labels) for one in candidates]
    return candidates, torch.stack(losses)


def fitted(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature with the lowest loss."""
    candidates, losses = _losses(logits, labels)
    return candidates[losses.argmin()]


def _too_sure(factor: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits that are ``factor`` times as large as those that the labels come from."""
    generator = torch.Generator().manual_seed(seed)
    honest = 2 * torch.randn(400, 6, generator=generator)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator).squeeze(-1)
    return factor * honest, labels


FITTED_TEMPERATURE = Exercise(
    "fitted_temperature",
    reference=fitted,
    inputs=(_too_sure(2.5, 0), _too_sure(0.6, 1)),
    wrong={
        "inverted": lambda logits, labels: 1 / fitted(logits, labels),
        "highest": lambda logits, labels: _losses(logits, labels)[0][
            _losses(logits, labels)[1].argmax()
        ],
        "flattest": lambda logits, labels: fitted(logits, logits.argmax(-1)),
        "one": lambda logits, labels: torch.tensor(1.0),
    },
    tolerance=0.04,
)
