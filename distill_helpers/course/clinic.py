"""Twelve patients, and eight probes that tell what ails a distillation loss.

A *patient* is a bug of :mod:`distill_helpers.course.bugs` that shipped in public,
called by a number, so that its name is not given away before the diagnosis. A *probe*
asks one question of a loss, in a hundredth of a second and without any model. No probe
knows what the right loss would be: each holds the loss against a promise that every
correct one keeps, so they work for a loss of one's own as well.

Taught in notebook 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from distill_helpers.course.bugs import KnownBug, find_bug, infected
from distill_helpers.course.mutants import LossFunction
from distill_helpers.losses import IGNORE_INDEX

Tensor = torch.Tensor

PATIENTS = (
    "swapped",
    "teacher_against_itself",
    "shuffled_cache",
    "t2_missing",
    "mean_of_means",
    "mask_after_exp",
    "padding_counted",
    "padded_vocabulary",
    "half_by_accident",
    "prose_denied",
    "not_log_probabilities",
    "wrong_dimension",
)


def diagnosis(number: int) -> KnownBug:
    """Say what a patient has; a notebook shows it with the patch and where it shipped.

    Args:
        number: The patient's number, from 1 to 12.

    Raises:
        ValueError: If there is no such patient.
    """
    if not 1 <= number <= len(PATIENTS):
        raise ValueError(f"number={number}: the patients are 1 to {len(PATIENTS)}")
    return find_bug(PATIENTS[number - 1])


def admit(number: int) -> LossFunction:
    """Return a patient's loss: the plain one with one bug in it.

    Args:
        number: The number of a patient whose bug lies in the loss.

    Returns:
        ``fn(student_logits, teacher_logits, labels, temperature, alpha)`` → scalar.

    Raises:
        ValueError: If there is no such patient, or its loss is healthy.
    """
    name = diagnosis(number).name
    try:
        return infected(name)
    except ValueError:
        raise ValueError(
            f"number={number}: this patient's loss is healthy; the bug lies elsewhere"
        ) from None


def sick_loss(number: int) -> LossFunction | None:
    """Return a loss that does what the patient does, wherever its bug lies.

    A shuffled cache is a loss that reads another row's teacher; a mean over
    micro-batches is one over rows.

    Args:
        number: The patient's number, from 1 to 12.

    Returns:
        The loss; ``None`` if the numbers are right, as in patient 10.

    Raises:
        ValueError: If there is no such patient.
    """
    mutants = diagnosis(number).mutants
    return mutants[0] if mutants else None


# --- the probes --------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One question to a loss.

    Attributes:
        name: The question in a word.
        promise: What every correct loss keeps.
        keeps: Tells whether a loss keeps it.
    """

    name: str
    promise: str
    keeps: Callable[[LossFunction], bool]


@dataclass(frozen=True)
class _Batch:
    """Random logits ``[4, 10, 12]`` with prompts and padding of every length."""

    student: Tensor
    teacher: Tensor
    labels: Tensor

    @classmethod
    def draw(cls) -> _Batch:
        draw = torch.Generator().manual_seed(0)
        shape = (4, 10, 12)
        student, teacher = (
            2 * torch.randn(shape, generator=draw, dtype=torch.float64) for _ in "st"
        )
        labels = torch.randint(12, shape[:2], generator=draw)
        for row in range(1, 4):
            labels[row, : 1 + row] = IGNORE_INDEX
            labels[row, 10 - row :] = IGNORE_INDEX
        return cls(student, teacher, labels)

    @property
    def ignored(self) -> Tensor:
        """Positions whose next label does not count, ``[4, 10, 1]``."""
        labels = F.pad(self.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        return (labels == IGNORE_INDEX).unsqueeze(-1)


def _near(a: Tensor, b: Tensor | float, tolerance: float = 1e-4) -> bool:
    gap = (a.detach().double() - b).norm()
    return bool(gap <= tolerance * max(1.0, float(a.detach().double().norm())))


def _gradients(
    loss: LossFunction, student: Tensor, teacher: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients at T = 2, α = 1; zero where there is none."""
    student, teacher = (x.clone().requires_grad_() for x in (student, teacher))
    value = loss(student, teacher, labels, 2.0, 1.0)
    found: tuple[Tensor | None, ...] = (None, None)
    if value.requires_grad:
        found = torch.autograd.grad(value, [student, teacher], allow_unused=True)
    ours, theirs = (
        torch.zeros_like(leaf) if one is None else one
        for leaf, one in zip((student, teacher), found, strict=True)
    )
    return value.detach(), ours, theirs


def _copy_is_perfect(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    value = loss(batch.teacher.clone(), batch.teacher, batch.labels, 2.0, 1.0)
    return _near(value, 0.0)


def _student_alone_learns(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    _, student, teacher = _gradients(loss, batch.student, batch.teacher, batch.labels)
    return bool(student.isfinite().all() and student.any() and not teacher.any())


def _ends_are_pure(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    student, teacher, labels = batch.student, batch.teacher, batch.labels
    targets = labels[:, 1:]
    plain = F.cross_entropy(student[:, :-1].transpose(1, 2), targets)
    others = torch.where(labels == IGNORE_INDEX, labels, (labels + 1) % 12)
    return all(
        (
            _near(loss(student, teacher, labels, 4.0, 0.0), float(plain)),
            _near(loss(student, teacher.flip(-1), labels, 4.0, 0.0), float(plain)),
            _near(
                loss(student, teacher, labels, 4.0, 1.0),
                float(loss(student, teacher, others, 4.0, 1.0)),
            ),
        )
    )


def _heat_keeps_the_scale(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    warm, hot = (
        float(loss(batch.student, batch.teacher, batch.labels, T, 1.0))
        for T in (50.0, 100.0)
    )
    return abs(hot - warm) <= 0.1 * abs(warm)


def _rows_belong_together(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    student = batch.teacher + 0.1 * batch.student
    own, *others = (
        float(loss(student, batch.teacher.roll(by, 0), batch.labels, 1.0, 1.0))
        for by in range(len(student))
    )
    return all(own < other for other in others)


def _padding_is_silent(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    before = _gradients(loss, batch.student, batch.teacher, batch.labels)
    for filling in (5.0 * batch.student.flip(-1), torch.tensor(-math.inf)):
        student = batch.student
        if filling.isfinite().all():
            student = torch.where(batch.ignored, filling, student)
        teacher = torch.where(batch.ignored, filling, batch.teacher)
        after = _gradients(loss, student, teacher, batch.labels)
        if not (_near(after[0], before[0]) and _near(after[1], before[1])):
            return False
    return True


def _pieces_add_up(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    whole = loss(batch.student, batch.teacher, batch.labels, 2.0, 0.5)
    counts = (~batch.ignored).sum((1, 2)).tolist()
    total = 0.0
    for row, count in enumerate(counts):
        piece = slice(row, row + 1)
        value = loss(
            batch.student[piece], batch.teacher[piece], batch.labels[piece], 2.0, 0.5
        )
        total += count * float(value)
    return _near(whole, total / sum(counts))


def _constants_cancel(loss: LossFunction) -> bool:
    batch = _Batch.draw()
    before = loss(batch.student, batch.teacher, batch.labels, 2.0, 0.5)
    after = loss(batch.student + 3, batch.teacher - 2, batch.labels, 2.0, 0.5)
    return _near(before, float(after))


PROBES = (
    Probe("copy", "a copy of the teacher has a loss of 0 at α = 1", _copy_is_perfect),
    Probe(
        "gradient",
        "the student gets a gradient, the teacher none",
        _student_alone_learns,
    ),
    Probe(
        "ends",
        "α = 0 is the cross-entropy with the labels, and α = 1 does not ask for them",
        _ends_are_pure,
    ),
    Probe(
        "heat",
        "twice a high temperature leaves the soft term about where it was",
        _heat_keeps_the_scale,
    ),
    Probe(
        "order",
        "with the teacher's rows in another order the loss rises",
        _rows_belong_together,
    ),
    Probe(
        "padding",
        "what stands at ignored positions, −inf too, changes nothing",
        _padding_is_silent,
    ),
    Probe(
        "pieces",
        "the pieces of a batch, weighted by their counts, add up to the whole",
        _pieces_add_up,
    ),
    Probe(
        "constant",
        "a constant added to all logits of a position changes nothing",
        _constants_cancel,
    ),
)


def examine(loss: LossFunction) -> dict[str, bool]:
    """Ask a loss the questions of all probes.

    Args:
        loss: ``fn(student_logits, teacher_logits, labels, temperature, alpha)`` →
            scalar; logits ``[rows, positions, vocabulary]``, labels unshifted, with
            ``-100`` ignored.

    Returns:
        For each probe, by name, whether its promise is kept. A loss that keeps all of
        them may still be another one: the reverse KL keeps them, too.
    """
    return {probe.name: probe.keeps(loss) for probe in PROBES}
