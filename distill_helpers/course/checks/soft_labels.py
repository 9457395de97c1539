"""Notebook 02: the loss with soft labels, and labels drawn from the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from distill_helpers import losses
from distill_helpers.course.bugs import KNOWN_BUGS
from distill_helpers.course.checks.answers import UnusableError, show
from distill_helpers.course.checks.engine import (
    Exercise,
    Inputs,
    Outcome,
    broken,
    same,
)
from distill_helpers.course.checks.words import Mistake, say

Tensor = torch.Tensor

# Places among the inputs of loss_probes, for the hints.
_T1, _SOFT, _HARD, _MIX, _EQUAL, _OTHER_PADS, _ORDINARY = 0, 1, 2, 3, 4, 5, 7


def loss_probes(
    seed: int = 0,
    batch: int = 3,
    positions: int = 8,
    vocabulary: int = 12,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Inputs], dict[str, Inputs]]:
    """Return the inputs and the edges of the loss's exercise."""
    generator = torch.Generator().manual_seed(seed)

    def logits() -> Tensor:
        shape = (batch, positions, vocabulary)
        return (2 * torch.randn(shape, generator=generator)).to(dtype)

    student, teacher, second_student, second_teacher = (logits() for _ in range(4))
    labels = torch.randint(vocabulary, (batch, positions), generator=generator)
    # Ragged prompts and ragged padding; the first row has neither, so that the first
    # and the last position matter.
    for row in range(1, batch):
        labels[row, : 1 + row % 3] = losses.IGNORE_INDEX
        labels[row, positions - row % 3 :] = losses.IGNORE_INDEX
    one_row_masked = labels.clone()
    one_row_masked[batch - 1] = losses.IGNORE_INDEX
    targets = F.pad(labels[:, 1:], (0, 1), value=losses.IGNORE_INDEX)
    ignored = (targets == losses.IGNORE_INDEX).unsqueeze(-1)
    even = (torch.arange(positions) % 2 == 0).unsqueeze(-1)
    hostile = torch.where(ignored & even, -math.inf, teacher)
    hostile = torch.where(ignored & ~even, 1000 * teacher, hostile)
    other_student = torch.where(ignored, second_student, student)
    other_teacher = torch.where(ignored, second_teacher, teacher)
    nothing = torch.full_like(labels, losses.IGNORE_INDEX)
    ordinary: list[Inputs] = [
        (student, teacher, labels, 1.0, 1.0),
        (student, teacher, labels, 4.0, 1.0),
        (student, teacher, labels, 4.0, 0.0),
        (student, teacher, labels, 4.0, 0.5),
        (teacher, teacher, labels, 2.0, 1.0),
        (other_student, other_teacher, labels, 4.0, 1.0),
        # Nearly every mistake shows here, so suspects are tried on this one first.
        (second_student, second_teacher, one_row_masked, 2.0, 0.3),
    ]
    edges: dict[str, Inputs] = {
        "mask_after_exp": (student, hostile, labels, 4.0, 0.5),
        "zero_over_zero": (student, teacher, nothing, 2.0, 0.5),
    }
    return ordinary, edges


def _loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    return losses.soft_label_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha
    ).loss


def _loss_hint(expected: Sequence[Outcome], came: Sequence[Outcome]) -> str:
    """What can be said of a loss that behaves like no single known mistake."""

    def right(index: int) -> bool:
        return same(came[index], expected[index], 2e-3, strict=False)

    if all(right(i) for i in range(_ORDINARY)):
        return say("rest_right")
    hints = [say("several")]
    hard, soft = right(_HARD), right(_SOFT)
    if hard != soft:
        good, bad = ("hard", "soft") if hard else ("soft", "hard")
        hints.append(say("one_term_right", good=good, bad=bad))
    elif hard and not right(_MIX):
        hints.append(say("mixed_wrongly"))
    if not soft:
        if right(_T1):
            hints.append(say("right_at_one"))
        hints.append(_ratio(expected[_SOFT], came[_SOFT], "soft"))
    if not hard:
        hints.append(_ratio(expected[_HARD], came[_HARD], "hard"))
    if not right(_EQUAL):
        hints.append(say("not_zero_if_equal", came=show(came[_EQUAL].value)))
    if not same(came[_SOFT], came[_OTHER_PADS], 1e-4, strict=False):
        hints.append(say("reads_padding"))
    return " ".join(hint for hint in hints if hint)


def _ratio(expected: Outcome, came: Outcome, term: str) -> str:
    if broken(came):
        return ""
    wanted, got = expected.gradients[0].flatten(), came.gradients[0].flatten()
    if not float(got.norm()):
        return say("term_detached", term=term)
    value = float(came.value / expected.value)
    length = float(got.norm() / wanted.norm())
    cosine = float(torch.dot(wanted, got) / (wanted.norm() * got.norm()))
    return say("ratio", term=term, value=value, gradient=length, cosine=cosine)


def loss_exercise(probes: tuple[list[Inputs], dict[str, Inputs]]) -> Exercise:
    """Return the exercise of the loss for inputs of :func:`loss_probes`."""
    known = [bug for bug in KNOWN_BUGS if bug.mutants]
    return Exercise(
        "soft_label_loss",
        reference=_loss,
        inputs=probes[0],
        edges=probes[1],
        wrong={bug.name: bug.mutants for bug in known},
        mistakes={
            bug.name: Mistake(bug.title, bug.symptom, bug.taught_in) for bug in known
        },
        differentiate=2,
        hint=_loss_hint,
        random_bug="teacher_dropout",
    )


SOFT_LABEL_LOSS = loss_exercise(loss_probes())


def _draws(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def _frequencies(ids: Any, inputs: Inputs) -> Tensor:
    """How often each id came, ``[2, vocabulary]``: even and odd positions apart."""
    positions, vocabulary = inputs[0].shape
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex():
        came = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise UnusableError(say("no_ids", came=came))
    if ids.shape != (positions,):
        words = say("wrong_ids_shape", positions=positions, came=list(ids.shape))
        raise UnusableError(words)
    lowest, highest, last = int(ids.min()), int(ids.max()), vocabulary - 1
    if lowest < 0 or highest > last:
        words = say("ids_outside", last=last, lowest=lowest, highest=highest)
        raise UnusableError(words)
    hits = F.one_hot(ids.long(), vocabulary).double()
    return hits.view(-1, 2, vocabulary).mean(0)


_TWO_ROWS = torch.tensor([[2.0, 1.0, 0.0, 0.5, -1.0], [0.0, -1.0, 1.0, 2.0, 2.0]])

SAMPLED_LABELS = Exercise(
    "sampled_labels",
    reference=_draws,
    inputs=((_TWO_ROWS.repeat(3000, 1), torch.Generator().manual_seed(0)),),
    wrong={
        "generator_ignored": lambda z, generator: _draws(z, None),
        "argmax": lambda z, generator: z.argmax(-1),
        "uniform": lambda z, generator: torch.randint(
            z.shape[-1], z.shape[:-1], generator=generator
        ),
    },
    adapt=_frequencies,
    random_bug="generator_ignored",
    # Frequencies in 3,000 draws.
    tolerance=0.15,
)
