"""Notebook 08: an on-policy step, draws instead of sums, JSD, and exposure bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from distill_helpers.course.checks.answers import UnusableError, kind
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.small_models import Bigrams
from distill_helpers.course.checks.temperature import kl, picked
from distill_helpers.course.checks.words import say

Tensor = torch.Tensor


# --- one step -----------------------------------------------------------------------

_END, _NEW_TOKENS = 0, 4


class _Writer:
    """Draws answers, new ones at every call, which may end early."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(11)

    def __call__(self, model: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        ids = prompts
        written = torch.zeros_like(prompts, dtype=torch.bool)
        goes_on = torch.ones(len(prompts), dtype=torch.bool)
        with torch.no_grad():
            for _ in range(_NEW_TOKENS):
                p = model(ids).logits[:, -1].softmax(-1)
                drawn = torch.multinomial(p, 1, generator=self.generator)[:, 0]
                ids = torch.cat([ids, (drawn * goes_on)[:, None]], 1)
                written = torch.cat([written, goes_on[:, None]], 1)
                goes_on = goes_on & (drawn != _END)
        return ids, written


def _forward_kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return kl(theirs.softmax(-1), ours.softmax(-1))


def _reverse_kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return kl(ours.softmax(-1), theirs.softmax(-1))


def _step(
    student: Any,
    teacher: Any,
    prompts: Any,
    write: Callable[[Any, Any], tuple[Tensor, Tensor]],
    divergence: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    counted: Callable[[Tensor, Any], Tensor] = lambda written, _: written[:, 1:],
    turned: bool = False,
    by_rows: bool = False,
    sampled: bool = False,
    clear: bool = True,
    learn: bool = True,
    teacher_writes: bool = False,
) -> float:
    ids, written = write(teacher if teacher_writes else student, prompts)
    counts = counted(written, prompts)
    ours = student(ids).logits[:, :-1]
    with torch.no_grad():
        theirs = teacher(ids).logits[:, :-1]
    pair = (theirs, ours) if turned else (ours, theirs)
    marks = divergence(*pair)
    if sampled:
        marks = picked(_ratio(ours, theirs), ids[:, 1:])
    loss = marks[counts].mean()
    if by_rows:
        loss = torch.stack(
            [row[chosen].mean() for row, chosen in zip(marks, counts, strict=True)]
        ).mean()
    if clear:
        optimizer.zero_grad()
    if learn:
        loss.backward()
        optimizer.step()
    return loss.item()


def _after_the_end(written: Tensor, prompts: Tensor) -> Tensor:
    counts = torch.ones_like(written)
    counts[:, : prompts.shape[1]] = False
    return counts[:, 1:]


def _several_steps(step: Callable[..., Any]) -> Callable[..., Any]:
    def play(student: Any, teacher: Any, rounds: list[Tensor], divergence: Any) -> Any:
        optimizer = torch.optim.Adam(student.parameters(), 0.1)
        write = _Writer()
        losses = [
            step(student, teacher, prompts, write, divergence, optimizer)
            for prompts in rounds
        ]
        return None if any(loss is None or loss is ... for loss in losses) else losses

    return play


def _as_losses(result: list[Any], _: tuple[Any, ...]) -> Tensor:
    try:
        return torch.tensor([float(loss) for loss in result])
    except (TypeError, ValueError):
        raise UnusableError(say("no_number", came=kind(result[0]))) from None


_ROUNDS = list(
    torch.randint(1, 5, (6, 12, 2), generator=torch.Generator().manual_seed(10))
)

ON_POLICY_STEP = Exercise(
    "on_policy_step",
    reference=_step,
    inputs=(
        (Bigrams(0), Bigrams(1), _ROUNDS[:1], _forward_kl),
        (Bigrams(0), Bigrams(1), _ROUNDS, _forward_kl),
        (Bigrams(2), Bigrams(3), _ROUNDS, _reverse_kl),
    ),
    wrong={
        "prompt_marked": partial(
            _step, counted=lambda written, _: torch.ones_like(written[:, 1:])
        ),
        "not_shifted": partial(_step, counted=lambda written, _: written[:, :-1]),
        "marked_after_the_end": partial(_step, counted=_after_the_end),
        "swapped": partial(_step, turned=True),
        "mean_of_rows": partial(_step, by_rows=True),
        "drawn_tokens_alone": partial(_step, sampled=True),
        "gradients_kept": partial(_step, clear=False),
        "nothing_learned": partial(_step, learn=False),
        "teacher_writes": partial(_step, teacher_writes=True),
    },
    play=_several_steps,
    adapt=_as_losses,
)


# --- what the drawn tokens say ------------------------------------------------------


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
