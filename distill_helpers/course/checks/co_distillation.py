"""Notebook 07: the weight of a partner's word, one joint loss, the loop for two."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from distill_helpers.course.checks.answers import UnusableError, kind
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.small_models import Bigrams
from distill_helpers.course.checks.temperature import kl
from distill_helpers.course.checks.words import say

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
    ids: Tensor,
    alpha: float,
    *,
    detach: bool = True,
    own: float = 1.0,
    swapped: bool = False,
    frozen: bool = False,
    shift: int = 1,
) -> Tensor:
    labels = ids[:, shift:].flatten()
    length = ids.shape[1] - shift
    teacher, student = (z[:, :length].flatten(0, 1) for z in (teacher, student))
    partner = teacher.detach() if detach else teacher
    p, q = partner.softmax(-1), student.softmax(-1)
    soft = kl(q, p) if swapped else kl(p, q)
    theirs = F.cross_entropy(teacher.detach() if frozen else teacher, labels)
    hard = F.cross_entropy(student, labels)
    return own * theirs + (1 - alpha) * hard + alpha * soft.mean()


_SEED_6 = torch.Generator().manual_seed(6)
_TEACHER, _STUDENT = (2 * torch.randn(2, 4, 7, generator=_SEED_6) for _ in "ts")
_IDS = torch.tensor([[0, 3, 6, 2], [2, 5, 1, 1]])

LEARN_TOGETHER = Exercise(
    "learn_together",
    reference=_joint_loss,
    inputs=(
        (_TEACHER, _STUDENT, _IDS, 0.0),
        (_TEACHER, _STUDENT, _IDS, 1.0),
        (_TEACHER, _TEACHER.clone(), _IDS, 0.3),
        (_TEACHER, _STUDENT, _IDS, 0.3),
    ),
    wrong={
        "partner_attached": partial(_joint_loss, detach=False),
        "teacher_does_not_learn": partial(_joint_loss, own=0.0),
        "teacher_frozen": partial(_joint_loss, frozen=True),
        "reverse": partial(_joint_loss, swapped=True),
        "alpha_swapped": lambda t, s, y, alpha: _joint_loss(t, s, y, 1 - alpha),
        "not_shifted": partial(_joint_loss, shift=0),
    },
    differentiate=2,
)


# --- the loop for two ---------------------------------------------------------------


def _co_distil(
    teacher: Callable[[Tensor], Any],
    student: Callable[[Tensor], Any],
    batches: Sequence[Tensor],
    weight: Callable[[float], float],
    rate: float,
    *,
    joint: Callable[..., Tensor] = _joint_loss,
    clear: bool = True,
    learners: Collection[str] = ("teacher", "student"),
    progress: Callable[[int, int], float] = lambda step, steps: step / steps,
) -> list[tuple[float, float]]:
    """The loop: both learn from every batch; what each lost on it is returned."""
    pair: dict[str, Any] = {"teacher": teacher, "student": student}
    optimizers = [torch.optim.Adam(pair[name].parameters(), rate) for name in learners]
    log = []
    for step, ids in enumerate(batches):
        theirs, ours = teacher(ids).logits, student(ids).logits
        alpha = weight(progress(step, len(batches)))
        joint(theirs, ours, ids, alpha).backward()
        labels = ids[:, 1:].flatten()
        teacher_ce, student_ce = (
            float(F.cross_entropy(z.detach()[:, :-1].flatten(0, 1), labels))
            for z in (theirs, ours)
        )
        log.append((teacher_ce, student_ce))
        for optimizer in optimizers:
            optimizer.step()
        if clear:
            for model in pair.values():
                model.zero_grad()
    return log


def _as_log(result: Any, inputs: tuple[Any, ...]) -> Tensor:
    """Two numbers a step."""
    steps = len(inputs[2])
    try:
        log = torch.tensor([[float(x) for x in pair] for pair in result])
    except (TypeError, ValueError):
        raise UnusableError(say("no_log", came=kind(result))) from None
    if log.shape != (steps, 2):
        raise UnusableError(say("log_shape", steps=steps, came=list(log.shape)))
    return log


def _play(weight: Callable[[float], float]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(8)
    batches = list(torch.randint(5, (8, 3, 6), generator=generator))
    return Bigrams(0), Bigrams(1), batches, weight, 0.3


CO_DISTIL = Exercise(
    "co_distil",
    reference=_co_distil,
    inputs=(
        _play(lambda progress: 0.0),
        _play(lambda progress: 1.0),
        _play(lambda progress: min(0.6, progress)),
    ),
    wrong={
        "partner_attached": partial(
            _co_distil, joint=partial(_joint_loss, detach=False)
        ),
        "gradients_kept": partial(_co_distil, clear=False),
        "teacher_stays": partial(_co_distil, learners=("student",)),
        "student_stays": partial(_co_distil, learners=("teacher",)),
        "weight_of_step": partial(_co_distil, progress=lambda step, steps: step),
        "weight_of_start": partial(_co_distil, progress=lambda step, steps: 0.0),
        "weight_too_late": partial(
            _co_distil, progress=lambda step, steps: (step + 1) / steps
        ),
    },
    adapt=_as_log,
)


LONE_STEPS = Exercise(
    "lone_steps",
    reference=lambda steps, student, teacher: int(
        steps * (student + teacher) // student
    ),
    inputs=((100, 2.0, 3.0), (300, 4.0, 4.0), (7, 3.0, 5.0), (300, 2.57, 13.3)),
    wrong={
        "teacher_alone": lambda steps, student, teacher: int(
            steps * teacher // student
        ),
        "not_whole": lambda steps, student, teacher: (
            steps * (student + teacher) / student
        ),
        "too_many": lambda steps, student, teacher: math.ceil(
            steps * (student + teacher) / student
        ),
        "teacher_s_steps": lambda steps, student, teacher: int(
            steps * (student + teacher) // teacher
        ),
    },
)
