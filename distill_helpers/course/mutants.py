"""The known bugs as losses that run: each is right but for one mistake.

:func:`make_loss` is the loss in five stages, every one of which can be replaced, and a
mutant replaces one of them (two where the mistake is made twice). All are in plain
autograd, the way such code is usually written, and share nothing with
:mod:`distill_helpers.losses`. What a mistake is called, and how it shows, stands in
``bugs.toml``.

Taught in notebook 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from distill_helpers.losses import IGNORE_INDEX

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
Batch = tuple[Tensor, Tensor, Tensor]

ALL, BUT_FIRST, BUT_LAST = slice(None), slice(1, None), slice(None, -1)


# --- the stages of a correct loss ---------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What the two terms compare.

    Attributes:
        student: Logits ``[items, vocabulary]`` at the positions that count.
        teacher: The teacher's logits of the same shape.
        targets: Token ids ``[items]``.
        batch: Student, teacher and labels that the rows were chosen from, unshifted.
    """

    student: Tensor
    teacher: Tensor
    targets: Tensor
    batch: Batch

    @property
    def keep(self) -> Tensor:
        """Which positions have a label to predict, ``[batch, positions - 1]``."""
        return self.batch[2][:, 1:] != IGNORE_INDEX


Inputs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Choice = Callable[[Tensor, Tensor, Tensor], Rows]
Term = Callable[[Rows, float], Tensor]
Mix = Callable[[Tensor, Tensor, float], Tensor]
Divergence = Callable[[Tensor, Tensor, float], Tensor]
Reduction = Callable[[Tensor, Tensor], Tensor]


def detached_teacher(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Let no gradient into the teacher."""
    return student, teacher.detach()


def rows_at(logits: slice, labels: slice, mask: slice | None = None) -> Choice:
    """Choose the logits at some positions and the labels at others.

    Args:
        logits: Positions of the logits.
        labels: Positions of the labels that these logits are to predict.
        mask: Positions of the labels that say what counts; default: ``labels``.
    """

    def choose(student: Tensor, teacher: Tensor, ids: Tensor) -> Rows:
        keep = ids[:, labels if mask is None else mask] != IGNORE_INDEX
        return Rows(
            student[:, logits][keep],
            teacher[:, logits][keep],
            ids[:, labels][keep],
            (student, teacher, ids),
        )

    return choose


# What a correct loss compares: each position with the next token.
NEXT = rows_at(BUT_LAST, BUT_FIRST)


def per_item(values: Tensor) -> Tensor:
    """Mean over items; of no item, a zero that keeps the graph."""
    return values.sum() / max(len(values), 1)


def log_softmax(logits: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """Log-probabilities at a temperature."""
    return (logits / temperature).log_softmax(dim)


def kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    dims: tuple[int, int] = (-1, -1),
) -> Tensor:
    """KL(p_T ‖ p_S) at every position, without T²; softmaxes over ``dims``."""
    log_s = log_softmax(student, temperature, dims[0])
    log_t = log_softmax(teacher, temperature, dims[1])
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def soft_term(rows: Rows, temperature: float, divergence: Divergence = kl) -> Tensor:
    """T² times the mean divergence of the rows."""
    found = divergence(rows.student, rows.teacher, temperature)
    return temperature**2 * per_item(found)


def hard_term(rows: Rows, temperature: float) -> Tensor:
    """Mean cross-entropy with the targets: at T = 1, whatever the temperature is."""
    total = F.cross_entropy(rows.student, rows.targets, reduction="sum")
    return total / (rows.targets != IGNORE_INDEX).sum().clamp_min(1)


def weighted(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """Both terms, the soft one with weight α."""
    return (1 - alpha) * hard + alpha * soft


def make_loss(
    *,
    inputs: Inputs = detached_teacher,
    rows: Choice = NEXT,
    soft: Term = soft_term,
    hard: Term = hard_term,
    mix: Mix = weighted,
) -> LossFunction:
    """Put a loss together; without arguments, the correct one.

    Args:
        inputs: Takes and returns the logits of student and teacher.
        rows: Chooses what is compared.
        soft: The soft term of the rows at a temperature.
        hard: The hard term of the rows; it is told the temperature, too.
        mix: Puts hard and soft term together, given α.

    Returns:
        ``fn(student_logits, teacher_logits, labels, temperature, alpha)`` → scalar;
        logits ``[batch, positions, vocabulary]``, labels ``[batch, positions]``
        unshifted, with ``-100`` ignored.
    """

    def loss(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        chosen = rows(*inputs(student, teacher), labels)
        return mix(hard(chosen, temperature), soft(chosen, temperature), alpha)

    return loss


# --- stages with a mistake ----------------------------------------------------------


def with_teacher(change: Callable[[Tensor], Tensor]) -> LossFunction:
    """Change the teacher's logits first."""
    return make_loss(inputs=lambda s, t: (s, change(t.detach())))


def with_divergence(divergence: Divergence) -> LossFunction:
    """Replace the divergence of the rows, ``[items, vocabulary]`` → ``[items]``."""
    return make_loss(soft=partial(soft_term, divergence=divergence))


def elsewhere(term: Term, choice: Choice) -> Term:
    """Take one of the two terms of other rows."""
    return lambda rows, temperature: term(choice(*rows.batch), temperature)


def everywhere(
    reduce: Reduction, *, positions: slice = BUT_LAST, divergence: Divergence = kl
) -> Term:
    """Take the soft term at every position, whether it counts or not.

    Args:
        reduce: Takes the divergences ``[batch, positions]`` and the boolean mask
            ``[batch, positions - 1]`` of what counts; returns a scalar.
        positions: Positions of the logits.
        divergence: The divergence at each of them.
    """

    def soft(rows: Rows, temperature: float) -> Tensor:
        student, teacher, _ = rows.batch
        values = divergence(student[:, positions], teacher[:, positions], temperature)
        return temperature**2 * reduce(values, rows.keep)

    return soft


def reduced(reduce: Reduction, *, hard: bool = True, soft: bool = True) -> LossFunction:
    """Replace the reduction of one term or both.

    Args:
        reduce: Takes values ``[batch, positions - 1]``, zero where they do not count,
            and the boolean mask of the same shape; returns a scalar.
        hard: Whether the hard term is reduced so.
        soft: Whether the soft term is.
    """

    def together(rows: Rows, values: Tensor) -> Tensor:
        nothing = values.new_zeros(rows.keep.shape)
        return reduce(nothing.masked_scatter(rows.keep, values), rows.keep)

    def wrong_soft(rows: Rows, temperature: float) -> Tensor:
        values = kl(rows.student, rows.teacher, temperature)
        return temperature**2 * together(rows, values)

    def wrong_hard(rows: Rows, temperature: float) -> Tensor:
        values = F.cross_entropy(rows.student, rows.targets, reduction="none")
        return together(rows, values)

    return make_loss(
        soft=wrong_soft if soft else soft_term, hard=wrong_hard if hard else hard_term
    )


def per_sequence(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over sequences of their means; an empty one counts as zero."""
    return (values.sum(1) / keep.sum(1).clamp_min(1)).mean()


def per_filled_sequence(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over sequences of their means; empty ones are left out."""
    filled = keep.any(1)
    return per_item(values[filled].sum(1) / keep[filled].sum(1))


def unsafe_per_sequence(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over sequences of their means; an empty one gives NaN."""
    return (values.sum(1) / keep.sum(1)).mean()


def by_all(values: Tensor, keep: Tensor) -> Tensor:
    """The sum by the number of all positions, the last one included."""
    return values.sum() / (keep.numel() + len(keep))


def by_counted(values: Tensor, keep: Tensor) -> Tensor:
    """The sum by the number of positions that count."""
    return values.sum() / keep.sum().clamp_min(1)


def masked_late(*, multiply: bool, safe_count: bool) -> LossFunction:
    """Mask the divergences instead of the logits."""

    def reduce(values: Tensor, keep: Tensor) -> Tensor:
        values = values * keep if multiply else torch.where(keep, values, 0.0)
        return by_counted(values, keep) if safe_count else values.sum() / keep.sum()

    return make_loss(soft=everywhere(reduce))


def hot_hard(rows: Rows, temperature: float) -> Tensor:
    """Mean cross-entropy with the targets at the temperature."""
    hot = replace(rows, student=rows.student / temperature)
    return hard_term(hot, temperature)


def softmax_over(
    ours: int, theirs: int, *, positions: slice = BUT_LAST
) -> LossFunction:
    """Take the softmaxes over other dimensions of the batch's logits.

    Args:
        ours: The student's: 0 for the sequences, 1 for the positions, -1 is right.
        theirs: The teacher's.
        positions: Positions of the logits before the softmax.
    """

    def reduce(values: Tensor, keep: Tensor) -> Tensor:
        return per_item(values[:, : keep.shape[1]][keep])

    divergence = partial(kl, dims=(ours, theirs))
    return make_loss(
        soft=everywhere(reduce, positions=positions, divergence=divergence)
    )


def hard_everywhere(rows: Rows, temperature: float) -> Tensor:
    """Cross-entropy at every position, with token 0 where no label counts."""
    student, _, labels = rows.batch
    filled = labels[:, 1:].clamp_min(0)
    return F.cross_entropy(student[:, :-1].flatten(0, 1), filled.flatten())


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature."""
    return (logits / temperature).softmax(-1)


def heated(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature."""
    return logits / temperature


def raw(logits: Tensor, temperature: float) -> Tensor:
    """Logits as they are."""
    return logits


def through_kl_div(
    ours: Callable[[Tensor, float], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    *,
    log_target: bool = False,
) -> LossFunction:
    """Give ``F.kl_div`` something made of the student's and of the teacher's logits."""

    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        pair = ours(student, temperature), theirs(teacher, temperature)
        return F.kl_div(*pair, reduction="none", log_target=log_target).sum(-1)

    return with_divergence(divergence)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p_T ‖ p_S) without the teacher's entropy."""
    p_t, log_s = softmax(teacher, temperature), log_softmax(student, temperature)
    return -(p_t * log_s).sum(-1)


def half_jsd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence with β = 0.5."""
    p_s, p_t = softmax(student, temperature), softmax(teacher, temperature)
    m = (p_s + p_t) / 2
    return (p_t * (p_t / m).log() + p_s * (p_s / m).log()).sum(-1) / 2


def top_k_renormalised(k: int) -> LossFunction:
    """Compare the teacher's k likeliest tokens alone, rescaled to sum to 1."""

    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        top, ids = (teacher / temperature).topk(min(k, teacher.shape[-1]), dim=-1)
        log_t = top.log_softmax(-1)
        log_s = log_softmax(student, temperature).gather(-1, ids)
        return (log_t.exp() * (log_t - log_s)).sum(-1)

    return with_divergence(divergence)


def clamped(top_k: int | None) -> LossFunction:
    """Clamp every token's part of the KL, or the KL of the top k tokens alone."""

    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_s = log_softmax(student, temperature)
        log_t = log_softmax(teacher, temperature)
        parts = log_t.exp() * (log_t - log_s)
        if top_k is None:
            return parts.clamp_min(0).sum(-1)
        ids = log_t.topk(min(top_k, log_t.shape[-1]), dim=-1).indices
        return parts.gather(-1, ids).sum(-1).clamp_min(0)

    return with_divergence(divergence)


def half_and_half(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """Both terms at a weight of one half."""
    return 0.5 * hard + 0.5 * soft


# --- the mutants --------------------------------------------------------------------

ITSELF, ONE_BEFORE = rows_at(ALL, ALL), rows_at(BUT_FIRST, BUT_LAST)

MUTANTS: dict[str, tuple[LossFunction, ...]] = {
    "t2_missing": (make_loss(soft=lambda r, T: per_item(kl(r.student, r.teacher, T))),),
    "t_once": (make_loss(soft=lambda r, T: soft_term(r, T) / T),),
    "mean_reduction": (
        make_loss(soft=lambda r, T: soft_term(r, T) / r.student.shape[-1]),
    ),
    "batchmean": (
        make_loss(soft=everywhere(lambda v, keep: v[keep].sum() / len(v))),
        make_loss(soft=everywhere(lambda v, keep: v.sum() / len(v))),
    ),
    "sum_not_mean": (
        reduced(lambda v, keep: v.sum()),
        reduced(lambda v, keep: v.sum(), hard=False),
        reduced(lambda v, keep: v.sum(), soft=False),
    ),
    "not_log_probabilities": (
        through_kl_div(softmax, softmax),
        through_kl_div(heated, softmax),
        through_kl_div(raw, softmax),
        through_kl_div(log_softmax, softmax, log_target=True),
        through_kl_div(softmax, softmax, log_target=True),
        through_kl_div(log_softmax, heated, log_target=True),
        through_kl_div(log_softmax, raw, log_target=True),
        through_kl_div(heated, heated, log_target=True),
    ),
    "log_target_missing": (
        through_kl_div(log_softmax, log_softmax),
        through_kl_div(log_softmax, heated),
        through_kl_div(heated, heated),
    ),
    "wrong_dimension": (
        with_divergence(partial(kl, dims=(0, 0))),
        softmax_over(0, 0),
        softmax_over(0, -1),
        softmax_over(-1, 0),
        softmax_over(1, 1),
        softmax_over(1, -1),
        softmax_over(-1, 1),
        softmax_over(1, 1, positions=ALL),
        softmax_over(1, -1, positions=ALL),
        softmax_over(-1, 1, positions=ALL),
    ),
    "one_sided_temperature": (
        with_divergence(lambda s, t, T: kl(s, T * t, T)),
        with_divergence(lambda s, t, T: kl(T * s, t, T)),
    ),
    "soft_cross_entropy": (with_divergence(soft_cross_entropy),),
    "reversed_kl": (with_divergence(lambda s, t, T: kl(t, s, T)),),
    "padding_counted": (
        make_loss(soft=everywhere(lambda v, keep: v.mean())),
        make_loss(soft=everywhere(lambda v, keep: v.mean(), positions=ALL)),
        make_loss(soft=everywhere(by_counted)),
        make_loss(soft=everywhere(by_counted, positions=ALL)),
        make_loss(soft=everywhere(lambda v, keep: v.mean()), hard=hard_everywhere),
    ),
    "mean_over_all": (
        reduced(lambda v, keep: v.mean(), hard=False),
        reduced(lambda v, keep: v.mean()),
        reduced(by_all, hard=False),
        reduced(by_all),
    ),
    "labels_not_shifted": (
        make_loss(hard=elsewhere(hard_term, ITSELF)),
        make_loss(rows=ITSELF),
    ),
    "shifted_wrong_way": (
        make_loss(hard=elsewhere(hard_term, ONE_BEFORE)),
        make_loss(rows=ONE_BEFORE),
    ),
    "mask_not_shifted": (
        make_loss(soft=elsewhere(soft_term, rows_at(BUT_LAST, BUT_LAST))),
        make_loss(soft=elsewhere(soft_term, ITSELF)),
        make_loss(rows=rows_at(BUT_LAST, BUT_FIRST, mask=BUT_LAST)),
    ),
    "temperature_on_hard": (
        make_loss(hard=hot_hard),
        make_loss(hard=lambda r, T: T**2 * hot_hard(r, T)),
    ),
    "t2_on_hard": (make_loss(hard=lambda r, T: T**2 * hard_term(r, T)),),
    "teacher_dropout": (with_teacher(lambda t: F.dropout(t, 0.1, training=True)),),
    "teacher_attached": (make_loss(inputs=lambda s, t: (s, t)),),
    "student_detached": (
        make_loss(inputs=lambda s, t: (s.detach(), t.detach())),
        with_divergence(lambda s, t, T: kl(s.detach(), t, T)),
    ),
    "mean_of_means": (
        reduced(per_sequence),
        reduced(per_sequence, hard=False),
        reduced(per_filled_sequence),
        reduced(per_filled_sequence, hard=False),
    ),
    "zero_over_zero": (
        reduced(lambda v, keep: v.sum() / keep.sum()),
        reduced(unsafe_per_sequence),
        reduced(unsafe_per_sequence, hard=False),
    ),
    "mask_after_exp": (
        masked_late(multiply=False, safe_count=True),
        masked_late(multiply=False, safe_count=False),
        masked_late(multiply=True, safe_count=True),
        masked_late(multiply=True, safe_count=False),
    ),
    "top_k_renormalised": tuple(top_k_renormalised(k) for k in (1, 2, 3, 4, 5, 8)),
    "off_by_one_cache": (
        with_teacher(lambda t: t.roll(-1, dims=1)),
        with_teacher(lambda t: t.roll(1, dims=1)),
    ),
    "shuffled_cache": (with_teacher(lambda t: t.roll(1, dims=0)),),
    "padded_vocabulary": (
        with_divergence(lambda s, t, T: kl(F.pad(s, (0, 4)), F.pad(t, (0, 4)), T)),
    ),
    "different_ids": (
        with_teacher(lambda t: t.roll(1, dims=-1)),
        with_teacher(lambda t: t.flip(-1)),
    ),
    "alpha_on_both": (
        make_loss(mix=lambda hard, soft, alpha: alpha * (hard + soft)),
        make_loss(mix=lambda hard, soft, alpha: (1 - alpha) * (hard + soft)),
    ),
    "alpha_swapped": (
        make_loss(mix=lambda hard, soft, alpha: alpha * hard + (1 - alpha) * soft),
    ),
    "one_term_unweighted": (
        make_loss(mix=lambda hard, soft, alpha: hard + alpha * soft),
        make_loss(mix=lambda hard, soft, alpha: (1 - alpha) * hard + soft),
    ),
    "swapped": (
        make_loss(inputs=lambda s, t: (t, s.detach())),
        make_loss(inputs=lambda s, t: (t, s)),
        make_loss(inputs=lambda s, t: (t.detach(), s)),
    ),
    "teacher_against_itself": (with_divergence(lambda s, t, T: kl(t, t, T)),),
    "half_by_accident": (
        make_loss(mix=half_and_half),
        make_loss(
            soft=lambda r, T: per_item(half_jsd(r.student, r.teacher, T)),
            mix=half_and_half,
        ),
        make_loss(soft=partial(soft_term, divergence=half_jsd), mix=half_and_half),
    ),
    "clamped": (clamped(None), clamped(2), clamped(4), clamped(8)),
}
