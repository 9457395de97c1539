"""Notebook 12: a plateau, two tests that catch bugs, and two losses to cure."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from distill_helpers.course.bugs import find_bug, plain_loss
from distill_helpers.course.checks.answers import yes_or_no
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.temperature import entropy, kl
from distill_helpers.course.checks.words import say
from distill_helpers.course.clinic import PROBES, examine
from distill_helpers.losses import IGNORE_INDEX

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _mean(logits: Tensor) -> Tensor:
    return logits.softmax(-1).mean(0)


_ROWS = 2 * torch.randn((7, 5), generator=torch.Generator().manual_seed(10))

PLATEAU = Exercise(
    "plateau",
    reference=lambda z: kl(z.softmax(-1), _mean(z)).mean(),
    inputs=(
        (torch.tensor([[40.0, 0.0], [0.0, 40.0]]),),
        (_ROWS[:1].expand(4, -1).clone(),),
        (_ROWS,),
        (_ROWS + 3,),
    ),
    wrong={
        "reversed_kl": lambda z: kl(_mean(z).expand_as(z), z.softmax(-1)).mean(),
        "mean_of_logits": lambda z: kl(z.softmax(-1), z.mean(0).softmax(-1)).mean(),
        "entropy_of_mean": lambda z: entropy(_mean(z)),
        "summed": lambda z: kl(z.softmax(-1), _mean(z)).sum(),
        "mean_over_vocabulary": lambda z: (
            kl(z.softmax(-1), _mean(z)).mean() / z.size(-1)
        ),
        "wrong_dimension": lambda z: kl(
            z.softmax(-1), z.softmax(-1).mean(-1, keepdim=True)
        ).mean(),
    },
)


def _at_half(loss: Callable[..., Tensor]) -> Loss:
    return lambda student, teacher, labels: loss(student, teacher, labels, 2.0, 0.5)


def _ill(name: str, mutant: int = 0) -> Loss:
    return _at_half(find_bug(name).mutants[mutant])


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(11)
    student, teacher = (2 * torch.randn((4, 9, 7), generator=draw) for _ in "st")
    labels = torch.randint(7, (4, 9), generator=draw)
    for row in range(1, 4):
        labels[row, : 1 + row] = IGNORE_INDEX
        labels[row, 9 - row :] = IGNORE_INDEX
    return student, teacher, labels


_HEALTHY = _at_half(plain_loss)
_BATCH = _STUDENT, _TEACHER, _LABELS = _batch()
_WITH_EMPTY_ROW = _LABELS.clone()
_WITH_EMPTY_ROW[3] = IGNORE_INDEX
_NEARLY_EVEN = torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(1))
_NEARLY_EVEN[0, -1] = IGNORE_INDEX


def _add_up(
    loss: Loss,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    shift: int = 1,
    even: bool = False,
    divide: bool = True,
    tolerance: float = 1e-4,
) -> bool:
    whole = float(loss(student, teacher, labels))
    total = count = 0.0
    for row in range(len(labels)):
        piece = slice(row, row + 1)
        n = int((labels[row, shift:] != IGNORE_INDEX).sum())
        if n:
            value = float(loss(student[piece], teacher[piece], labels[piece]))
            total += value if even else n * value
            count += 1 if even else n
    return abs(total / (count if divide else 1) - whole) <= tolerance * abs(whole)


PIECES_ADD_UP = Exercise(
    "pieces_add_up",
    reference=_add_up,
    inputs=(
        (_HEALTHY, *_BATCH),
        (_ill("mean_of_means"), *_BATCH),
        (_ill("mean_of_means"), _STUDENT, _TEACHER, _NEARLY_EVEN),
        (_ill("sum_not_mean"), *_BATCH),
        (_HEALTHY, _STUDENT, _TEACHER, _WITH_EMPTY_ROW),
        (_HEALTHY, *(part[:1] for part in _BATCH)),
    ),
    wrong={
        "always_true": lambda *_: True,
        "unweighted": partial(_add_up, even=True),
        "labels_not_shifted": partial(_add_up, shift=0),
        "too_strict": partial(_add_up, tolerance=0.0),
        "too_loose": partial(_add_up, tolerance=0.1),
        "not_divided": partial(_add_up, divide=False),
        "turned_round": lambda *a: not _add_up(*a),
    },
    adapt=yes_or_no,
    hint=lambda *_: say("allow_for_rounding"),
)


def _is_silent(
    loss: Loss,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    shifted: bool = True,
    gradient: bool = True,
    hole: float = -math.inf,
    move_student: bool = True,
) -> bool:
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) if shifted else labels
    ignored = (targets == IGNORE_INDEX).unsqueeze(-1)

    def ask(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student = student.detach().requires_grad_()
        value = loss(student, teacher, labels)
        return value.detach(), torch.autograd.grad(value, student)[0]

    before = ask(student, teacher)
    other = student.flip(-1) + 1 if move_student else student
    moved = torch.where(ignored, other, student)
    after = ask(moved, teacher.masked_fill(ignored, hole))
    pairs = list(zip(before, after, strict=True))[: 2 if gradient else 1]
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def _pulls_everywhere(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return _HEALTHY(student, teacher, labels) + 0.01 * student.square().mean()


PADDING_IS_SILENT = Exercise(
    "padding_is_silent",
    reference=_is_silent,
    inputs=(
        (_HEALTHY, *_BATCH),
        (_ill("padding_counted"), *_BATCH),
        (_ill("mask_after_exp"), *_BATCH),
        (_ill("mask_after_exp", 2), *_BATCH),
        (_pulls_everywhere, *_BATCH),
        (_ill("mean_over_all"), *_BATCH),
    ),
    wrong={
        "always_true": lambda *_: True,
        "value_only": partial(_is_silent, gradient=False),
        "finite_only": partial(_is_silent, hole=3.0),
        "teacher_only": partial(_is_silent, move_student=False),
        "labels_not_shifted": partial(_is_silent, shifted=False),
        "turned_round": lambda *a: not _is_silent(*a),
    },
    adapt=yes_or_no,
)


# --- two losses to cure -------------------------------------------------------------


def _examined(loss: Callable[..., Tensor]) -> Callable[[], list[float]]:
    """Asks for no value: which promises a loss keeps is all that counts."""
    return lambda: [float(kept) for kept in examine(loss).values()]


def _promises(kept: Tensor) -> str:
    broken = [
        probe.name
        for probe, one in zip(PROBES, kept.flatten().tolist(), strict=True)
        if not one
    ]
    if not broken:
        return say("all_promises", count=len(PROBES))
    return say("broken_promises", names=", ".join(broken))


def _cure(name: str) -> Exercise:
    return Exercise(
        name,
        reference=plain_loss,
        inputs=((),),
        wrong={},
        play=_examined,
        show=_promises,
    )


CURED_DIVERGENCE = _cure("cured_divergence")
CURED_AXIS = _cure("cured_axis")
