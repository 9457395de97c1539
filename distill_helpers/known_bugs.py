"""Wrong implementations of the distillation loss, and how each one shows itself.

One table serves three readers: the tests hold that every mutant is told from
:func:`distill_helpers.losses.soft_label_loss`, :mod:`distill_helpers.checks` names the
one that a learner's function behaves like, and notebook 09 (the bug clinic) shows them.

A mutant is a complete loss, correct but for one mistake, with the signature of the
exercise: ``(student_logits, teacher_logits, labels, temperature, alpha)`` → scalar.
Logits are ``[batch, positions, vocabulary]``, labels ``[batch, positions]``, unshifted,
with ``-100`` ignored; the divergence is forward KL. The mutants are written in plain
autograd, the way such code is usually written, and share nothing with ``losses``.

:func:`plain_loss` is the healthy patient: the loss in a dozen lines. Where a bug can be
written as other lines in it, its entry holds them, and :func:`infected` puts them in.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from distill_helpers.losses import IGNORE_INDEX

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


@dataclass(frozen=True)
class KnownBug:
    """One mistake.

    Attributes:
        name: Identifier, stable.
        title: The mistake in one clause.
        symptom: What shows, in numbers where there are any. It does not say how to
            mend the bug, so an exercise may show it.
        remedy: What to do instead.
        taught_in: The notebook that explains it.
        issue: Where it shipped in public, ``"owner/name #1, #2"``, or an empty string.
        mutants: Losses with this mistake, one for each way to make it. Empty where the
            mistake lies outside the loss: in the data, the cache or the trainer.
        fault: Lines as they should be, each with what stands in its place; mostly
            lines of :func:`plain_loss`.
    """

    name: str
    title: str
    symptom: str
    remedy: str
    taught_in: str
    issue: str = ""
    mutants: tuple[LossFunction, ...] = ()
    fault: tuple[tuple[str, str], ...] = ()

    @property
    def links(self) -> tuple[str, ...]:
        """Addresses of the public issues and pull requests."""
        repository, _, rest = self.issue.partition(" ")
        # GitHub sends an issue's address on to the pull request of that number.
        return tuple(
            f"https://github.com/{repository}/issues/{number}"
            for number in re.findall(r"#(\d+)", rest)
        )

    @property
    def patch(self) -> str:
        """The lines at fault, each marked −, and the right ones, marked +."""
        return "\n".join(f"- {wrong}\n+ {right}" for right, wrong in self.fault)

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.title}", self.patch, f"Remedy: {self.remedy}"]
        if self.issue:
            parts.append(f"Shipped in {self.issue}")
        return "\n".join(part for part in parts if part)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """In a notebook, the diagnosis: mistake, patch, remedy, where it shipped."""
        parts = [f"**Diagnosis** (`{self.name}`): {self.title}."]
        if self.fault:
            parts.append(f"```diff\n{self.patch}\n```")
        parts.append(f"**Remedy.** {self.remedy}")
        if self.issue:
            repository = self.issue.partition(" ")[0]
            numbers = [f"[#{link.rpartition('/')[2]}]({link})" for link in self.links]
            parts.append(f"**Shipped in** {repository} {', '.join(numbers)}.")
        return {"text/markdown": "\n\n".join(parts), "text/plain": str(self)}


def find_bug(name: str) -> KnownBug:
    """Return the entry of that name.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    for bug in KNOWN_BUGS:
        if bug.name == name:
            return bug
    known = ", ".join(bug.name for bug in KNOWN_BUGS)
    raise ValueError(f"name={name!r} is not a known bug; choose one of {known}")


# --- The healthy patient. ---


def plain_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """The soft-label loss the way it is usually written; correct."""
    keep = labels[:, 1:] != IGNORE_INDEX
    s = student[:, :-1][keep]
    t = teacher[:, :-1][keep].detach()
    y = labels[:, 1:][keep]
    n = max(len(y), 1)
    log_q = (s / temperature).log_softmax(-1)
    log_p = (t / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    soft = temperature**2 * kl.sum() / n
    hard = F.cross_entropy(s, y, reduction="sum") / n
    return (1 - alpha) * hard + alpha * soft


# Lines of it that several bugs change.
_STUDENT = "s = student[:, :-1][keep]"
_TEACHER = "t = teacher[:, :-1][keep].detach()"
_SOFT = "soft = temperature**2 * kl.sum() / n"
_EVERY_ROW = (
    (_STUDENT, "s = student[:, :-1]"),
    (_TEACHER, "t = teacher[:, :-1].detach()"),
    (
        'hard = F.cross_entropy(s, y, reduction="sum") / n',
        'hard = F.cross_entropy(s[keep], y, reduction="sum") / n',
    ),
)


def infected(name: str) -> LossFunction:
    """:func:`plain_loss` with the lines at fault of a bug put in.

    Raises:
        ValueError: If the bug is unknown, or is not one of these lines.
    """
    bug = find_bug(name)
    source = inspect.getsource(plain_loss)
    for right, wrong in bug.fault:
        if right not in source:
            break
        source = source.replace(right, wrong)
    else:
        if bug.fault:
            # A function of our own, with one of our own lines changed.
            namespace: dict[str, LossFunction] = {}
            exec(source, {**globals(), "__name__": __name__}, namespace)
            return namespace["plain_loss"]
    raise ValueError(f"name={name!r}: this bug does not lie in a line of plain_loss")


# --- Correct parts, from which the mutants are built. ---


def _rows(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Rows that count: student, teacher (``[items, vocabulary]``), targets."""
    targets = labels[:, 1:]
    keep = targets != IGNORE_INDEX
    return student[:, :-1][keep], teacher[:, :-1][keep].detach(), targets[keep]


def _per_item(values: Tensor) -> Tensor:
    """Mean over items; of no item, a zero that keeps the graph."""
    return values.sum() / max(len(values), 1)


def _hard(student: Tensor, targets: Tensor) -> Tensor:
    return _per_item(F.cross_entropy(student, targets, reduction="none"))


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p_T ‖ p_S) at every position, without T²."""
    log_s = (student / temperature).log_softmax(-1)
    log_t = (teacher / temperature).log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def _soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * _per_item(_kl(student, teacher, temperature))


def _where_counted(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``[batch, positions - 1]`` values over the positions that count."""
    return _per_item(values[labels[:, 1:] != IGNORE_INDEX])


# --- Makers: the correct loss but for one part. ---


def _with_soft(soft: Callable[[Tensor, Tensor, float], Tensor]) -> LossFunction:
    """Replace the soft term; it sees the rows that count, ``[items, vocabulary]``."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, targets = _rows(student, teacher, labels)
        return (1 - alpha) * _hard(s, targets) + alpha * soft(s, t, temperature)

    return mutant


def _with_whole_soft(
    soft: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> LossFunction:
    """Replace the soft term; it sees the whole batch, unshifted, and the labels."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, _, targets = _rows(student, teacher, labels)
        divergence = soft(student, teacher.detach(), labels, temperature)
        return (1 - alpha) * _hard(s, targets) + alpha * divergence

    return mutant


def _with_hard(hard: Callable[[Tensor, Tensor, float], Tensor]) -> LossFunction:
    """Replace the hard term; it sees the rows that count, their targets and T."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, targets = _rows(student, teacher, labels)
        hard_part = (1 - alpha) * hard(s, targets, temperature)
        return hard_part + alpha * _soft(s, t, temperature)

    return mutant


def _with_mix(mix: Callable[[Tensor, Tensor, float], Tensor]) -> LossFunction:
    """Replace the way hard and soft term are put together."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, targets = _rows(student, teacher, labels)
        return mix(_hard(s, targets), _soft(s, t, temperature), alpha)

    return mutant


def _with_inputs(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> LossFunction:
    """Change the logits first, then compute the correct loss without detaching."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        student, teacher = change(student, teacher)
        targets = labels[:, 1:]
        keep = targets != IGNORE_INDEX
        s, t = student[:, :-1][keep], teacher[:, :-1][keep]
        return (1 - alpha) * _hard(s, targets[keep]) + alpha * _soft(s, t, temperature)

    return mutant


def _with_teacher(change: Callable[[Tensor], Tensor]) -> LossFunction:
    """Change the teacher's logits first."""
    return _with_inputs(lambda student, teacher: (student, change(teacher.detach())))


def _reduced(
    reduce: Callable[[Tensor, Tensor], Tensor], *, hard: bool = True, soft: bool = True
) -> LossFunction:
    """Replace the reduction of one term or both.

    ``reduce`` takes values ``[batch, positions - 1]``, zero where they do not count,
    and the boolean mask of the same shape.
    """

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, targets = _rows(student, teacher, labels)
        keep = labels[:, 1:] != IGNORE_INDEX
        empty = student.new_zeros(keep.shape)

        def term(values: Tensor, wrong: bool) -> Tensor:
            spread = empty.masked_scatter(keep, values)
            return reduce(spread, keep) if wrong else _per_item(values)

        ce = term(F.cross_entropy(s, targets, reduction="none"), hard)
        kl = term(_kl(s, t, temperature), soft)
        return (1 - alpha) * ce + alpha * temperature**2 * kl

    return mutant


# --- Mistakes that take more than one line. ---


def _kl_div(
    scale: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]], log_target: bool
) -> LossFunction:
    """``F.kl_div`` on whatever ``scale`` makes of the student's and teacher's rows."""

    def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        first, second = scale(student, teacher, temperature)
        values = F.kl_div(first, second, reduction="none", log_target=log_target)
        return temperature**2 * _per_item(values.sum(-1))

    return _with_soft(soft)


def _mean_reduction(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    vocabulary = student.shape[-1]
    return _soft(student, teacher, temperature) / vocabulary


def _batchmean(masked: bool) -> LossFunction:
    def soft(
        student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        values = _kl(student[:, :-1], teacher[:, :-1], temperature)
        if masked:
            values = values[labels[:, 1:] != IGNORE_INDEX]
        return temperature**2 * values.sum() / len(student)

    return _with_whole_soft(soft)


def _softmax_over(dim: int, sides: str, *, shift_first: bool = True) -> LossFunction:
    """Softmax over the batch (0) or the positions (1) on ``"both"`` sides or one."""

    def soft(
        student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        if shift_first:
            student, teacher = student[:, :-1], teacher[:, :-1]
        log_s = (student / temperature).log_softmax(-1 if sides == "teacher" else dim)
        log_t = (teacher / temperature).log_softmax(-1 if sides == "student" else dim)
        values = (log_t.exp() * (log_t - log_s)).sum(-1)
        values = values if shift_first else values[:, :-1]
        return temperature**2 * _where_counted(values, labels)

    return _with_whole_soft(soft)


def _softmax_over_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_s = (student / temperature).log_softmax(0)
    log_t = (teacher / temperature).log_softmax(0)
    return temperature**2 * _per_item((log_t.exp() * (log_t - log_s)).sum(-1))


def _one_sided(on_student: bool) -> LossFunction:
    def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        if on_student:
            teacher = teacher * temperature
        else:
            student = student * temperature
        return _soft(student, teacher, temperature)

    return _with_soft(soft)


def _soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_s = (student / temperature).log_softmax(-1)
    p_t = (teacher / temperature).softmax(-1)
    return temperature**2 * _per_item(-(p_t * log_s).sum(-1))


def _padding_counted(
    positions_left_out: int, by_valid: bool, hard_too: bool = False
) -> LossFunction:
    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, _, targets = _rows(student, teacher, labels)
        until = student.shape[1] - positions_left_out
        values = _kl(student[:, :until], teacher.detach()[:, :until], temperature)
        count = max(len(targets), 1) if by_valid else values.numel()
        hard = _hard(s, targets)
        if hard_too:
            filled = labels[:, 1:].clamp_min(0)
            hard = F.cross_entropy(student[:, :-1].flatten(0, 1), filled.flatten())
        return (1 - alpha) * hard + alpha * temperature**2 * values.sum() / count

    return mutant


def _misplaced(
    logits_for_hard: slice, labels_for_hard: slice, *, soft_too: bool
) -> LossFunction:
    """The hard term, and on request the mask of the soft term, at other positions."""

    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, _ = _rows(student, teacher, labels)
        targets = labels[:, labels_for_hard]
        keep = targets != IGNORE_INDEX
        moved = student[:, logits_for_hard][keep]
        if soft_too:
            s, t = moved, teacher.detach()[:, logits_for_hard][keep]
        hard = _hard(moved, targets[keep])
        return (1 - alpha) * hard + alpha * _soft(s, t, temperature)

    return mutant


def _mask_not_shifted(positions: slice) -> LossFunction:
    def soft(
        student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        keep = labels[:, positions] != IGNORE_INDEX
        s, t = student[:, positions][keep], teacher[:, positions][keep]
        return _soft(s, t, temperature)

    return _with_whole_soft(soft)


def _mask_not_shifted_in_both(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    keep = labels[:, :-1] != IGNORE_INDEX
    s, t = student[:, :-1][keep], teacher.detach()[:, :-1][keep]
    targets = labels[:, 1:][keep]
    hard = F.cross_entropy(s, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    hard = hard / (targets != IGNORE_INDEX).sum().clamp_min(1)
    return (1 - alpha) * hard + alpha * _soft(s, t, temperature)


def _mean_per_sequence(values: Tensor, keep: Tensor) -> Tensor:
    return (values.sum(1) / keep.sum(1).clamp_min(1)).mean()


def _mean_per_filled_sequence(values: Tensor, keep: Tensor) -> Tensor:
    filled = keep.any(1)
    return _per_item(values[filled].sum(1) / keep[filled].sum(1))


def _masked_after(multiply: bool, safe_count: bool) -> LossFunction:
    def soft(
        student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        keep = labels[:, 1:] != IGNORE_INDEX
        values = _kl(student[:, :-1], teacher[:, :-1], temperature)
        if multiply:
            values = values * keep
        else:
            values = torch.where(keep, values, torch.zeros_like(values))
        count = keep.sum().clamp_min(1) if safe_count else keep.sum()
        return temperature**2 * values.sum() / count

    return _with_whole_soft(soft)


def _top_k_renormalised(k: int) -> LossFunction:
    def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        top, ids = (teacher / temperature).topk(min(k, teacher.shape[-1]), dim=-1)
        log_t = top.log_softmax(-1)
        log_s = (student / temperature).log_softmax(-1).gather(-1, ids)
        return temperature**2 * _per_item((log_t.exp() * (log_t - log_s)).sum(-1))

    return _with_soft(soft)


def _padded_with_zeros(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    extra = (0, 4)
    return _soft(F.pad(student, extra), F.pad(teacher, extra), temperature)


def _half_jsd(scale_by_t2: bool) -> LossFunction:
    def mutant(
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        s, t, targets = _rows(student, teacher, labels)
        p_s = (s / temperature).softmax(-1)
        p_t = (t / temperature).softmax(-1)
        m = (p_s + p_t) / 2
        jsd = (p_t * (p_t / m).log() + p_s * (p_s / m).log()).sum(-1) / 2
        factor = temperature**2 if scale_by_t2 else 1.0
        return 0.5 * _hard(s, targets) + 0.5 * factor * _per_item(jsd)

    return mutant


def _clamped(top_k: int | None) -> LossFunction:
    """Clamp every token's part of the KL, or the KL of the top k tokens alone."""

    def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_s = (student / temperature).log_softmax(-1)
        log_t = (teacher / temperature).log_softmax(-1)
        parts = log_t.exp() * (log_t - log_s)
        if top_k is None:
            values = parts.clamp_min(0).sum(-1)
        else:
            ids = log_t.topk(min(top_k, log_t.shape[-1]), dim=-1).indices
            values = parts.gather(-1, ids).sum(-1).clamp_min(0)
        return temperature**2 * _per_item(values)

    return _with_soft(soft)


def _log(x: Tensor, temperature: float) -> Tensor:
    return (x / temperature).log_softmax(-1)


def _prob(x: Tensor, temperature: float) -> Tensor:
    return (x / temperature).softmax(-1)


# The order is that of the project's list of fingerprints: what is seen most often
# comes first.
KNOWN_BUGS: tuple[KnownBug, ...] = (
    KnownBug(
        name="t2_missing",
        title="the soft term is not rescaled for the temperature",
        symptom="Loss and gradient of the soft term are 1/T² of the correct ones: a "
        "sixteenth at T = 4, and right at T = 1.",
        remedy="Multiply the divergence by T².",
        taught_in="notebook 01",
        issue="IntelLabs/distiller #122",
        fault=((_SOFT, "soft = kl.sum() / n"),),
        mutants=(_with_soft(lambda s, t, T: _per_item(_kl(s, t, T))),),
    ),
    KnownBug(
        name="t_once",
        title="the soft term is rescaled by T, not by its square",
        symptom="Loss and gradient of the soft term are 1/T of the correct ones: a "
        "quarter at T = 4, and right at T = 1.",
        remedy="Multiply the divergence by T².",
        taught_in="notebook 01",
        mutants=(_with_soft(lambda s, t, T: T * _per_item(_kl(s, t, T))),),
    ),
    KnownBug(
        name="mean_reduction",
        title="the soft term is averaged over the vocabulary as well",
        symptom="Loss and gradient of the soft term are 1/V of the correct ones, V the "
        "size of the vocabulary.",
        remedy="Sum over the vocabulary, then average over the positions that count.",
        taught_in="notebook 02",
        mutants=(_with_soft(_mean_reduction),),
    ),
    KnownBug(
        name="batchmean",
        title="the soft term is divided by the number of sequences, not of positions",
        symptom="The soft term grows with the length of the sequences: it is too large "
        "by about the positions per sequence.",
        remedy="Divide the sum by the positions that count; `batchmean` divides by the "
        "first dimension alone.",
        taught_in="notebook 02",
        mutants=(_batchmean(masked=True), _batchmean(masked=False)),
    ),
    KnownBug(
        name="sum_not_mean",
        title="the sum over the positions is never divided",
        symptom="Loss and gradient grow with the number of positions that count: twice "
        "the batch, twice the gradient.",
        remedy="Divide the sum by the positions that count.",
        taught_in="notebook 02",
        mutants=(
            _reduced(lambda values, keep: values.sum()),
            _reduced(lambda values, keep: values.sum(), hard=False),
            _reduced(lambda values, keep: values.sum(), soft=False),
        ),
    ),
    KnownBug(
        name="not_log_probabilities",
        title="raw logits or probabilities stand where log-probabilities belong",
        symptom="The divergence turns negative, or is not zero when teacher and "
        "student agree.",
        remedy="Give `F.kl_div` the student's log-probabilities as its first argument; "
        "with `log_target=True` the teacher's log-probabilities as the second.",
        taught_in="notebook 02",
        mutants=(
            _kl_div(lambda s, t, T: (_prob(s, T), _prob(t, T)), False),
            _kl_div(lambda s, t, T: (s / T, _prob(t, T)), False),
            _kl_div(lambda s, t, T: (s, _prob(t, T)), False),
            _kl_div(lambda s, t, T: (_log(s, T), _prob(t, T)), True),
            _kl_div(lambda s, t, T: (_prob(s, T), _prob(t, T)), True),
            _kl_div(lambda s, t, T: (_log(s, T), t / T), True),
            _kl_div(lambda s, t, T: (_log(s, T), t), True),
            _kl_div(lambda s, t, T: (s / T, t / T), True),
        ),
    ),
    KnownBug(
        name="log_target_missing",
        title="the target of the divergence is logarithms where it takes probabilities",
        symptom="The loss is NaN: the logarithm of a negative number is taken.",
        remedy="Pass the teacher's probabilities, or its log-probabilities together "
        "with `log_target=True`.",
        taught_in="notebook 02",
        mutants=(
            _kl_div(lambda s, t, T: (_log(s, T), _log(t, T)), False),
            _kl_div(lambda s, t, T: (_log(s, T), t / T), False),
            _kl_div(lambda s, t, T: (s / T, t / T), False),
        ),
    ),
    KnownBug(
        name="wrong_dimension",
        title="the softmax runs over the wrong dimension",
        symptom="The numbers of a row do not sum to 1 over the vocabulary, and one "
        "sequence's loss changes with the length or the company it comes in.",
        remedy="Take every softmax over the last dimension, the vocabulary.",
        taught_in="notebook 01",
        mutants=(
            *(
                _softmax_over(dim, sides)
                for dim in (0, 1)
                for sides in ("both", "student", "teacher")
            ),
            *(
                _softmax_over(1, sides, shift_first=False)
                for sides in ("both", "student", "teacher")
            ),
            _with_soft(_softmax_over_rows),
        ),
    ),
    KnownBug(
        name="one_sided_temperature",
        title="only one of the two softmaxes is taken at temperature T",
        symptom="The divergence is not zero when teacher and student agree, except at "
        "T = 1.",
        remedy="Divide the logits of both, teacher and student, by T.",
        taught_in="notebook 01",
        mutants=(_one_sided(on_student=True), _one_sided(on_student=False)),
    ),
    KnownBug(
        name="soft_cross_entropy",
        title="the soft term is a cross-entropy, not a divergence",
        symptom="The gradient is right, but when teacher and student agree the loss is "
        "T² times the teacher's entropy where it should be zero.",
        remedy="Subtract the teacher's entropy: the sum of p_T (log p_T − log p_S).",
        taught_in="notebook 01",
        mutants=(_with_soft(_soft_cross_entropy),),
    ),
    KnownBug(
        name="reversed_kl",
        title="the divergence runs the other way: from student to teacher",
        symptom="Zero when teacher and student agree, so it looks right there; away "
        "from there loss and gradient are those of the reverse KL.",
        remedy="Weight the log-ratio with the teacher's probabilities; `F.kl_div` "
        "takes the student first and the teacher second.",
        taught_in="notebook 01",
        mutants=(_with_soft(lambda s, t, T: T**2 * _per_item(_kl(t, s, T))),),
    ),
    KnownBug(
        name="padding_counted",
        title="positions that should be ignored are counted",
        symptom="Changing the logits at padding or in the prompt changes the loss.",
        remedy="Keep only the positions whose next label is not −100, in both terms.",
        taught_in="notebook 02",
        issue="peremartra/optipfair #34",
        fault=(
            *_EVERY_ROW,
            (_SOFT, "soft = temperature**2 * kl.mean()"),
        ),
        mutants=(
            _padding_counted(1, by_valid=False),
            _padding_counted(0, by_valid=False),
            _padding_counted(1, by_valid=True),
            _padding_counted(0, by_valid=True),
            _padding_counted(1, by_valid=False, hard_too=True),
        ),
    ),
    KnownBug(
        name="mean_over_all",
        title="the sum is divided by all positions, the ignored ones included",
        symptom="The more padding in a batch, the smaller loss and gradient: the ratio "
        "is the share of positions that count.",
        remedy="Divide by the number of positions that count.",
        taught_in="notebook 02",
        mutants=(
            _reduced(lambda values, keep: values.mean(), hard=False),
            _reduced(lambda values, keep: values.mean()),
            _reduced(
                lambda values, keep: values.sum() / (keep.numel() + len(keep)),
                hard=False,
            ),
            _reduced(lambda values, keep: values.sum() / (keep.numel() + len(keep))),
        ),
    ),
    KnownBug(
        name="labels_not_shifted",
        title="each position is compared with its own token, not with the next one",
        symptom="The hard term rewards copying the input: it answers to the last "
        "token's logits and not to those just before the answer.",
        remedy="Compare logits[:, :-1] with labels[:, 1:].",
        taught_in="notebook 02",
        mutants=(
            _misplaced(slice(None), slice(None), soft_too=False),
            _misplaced(slice(None), slice(None), soft_too=True),
        ),
    ),
    KnownBug(
        name="shifted_wrong_way",
        title="the labels are shifted the wrong way: each position is compared with "
        "the token before it",
        symptom="The hard term answers to the last position, which has nothing to "
        "predict, and learns to repeat the past.",
        remedy="Compare logits[:, :-1] with labels[:, 1:].",
        taught_in="notebook 02",
        mutants=(
            _misplaced(slice(1, None), slice(None, -1), soft_too=False),
            _misplaced(slice(1, None), slice(None, -1), soft_too=True),
        ),
    ),
    KnownBug(
        name="mask_not_shifted",
        title="the mask of the ignored positions is not shifted along with the labels",
        symptom="The last position of the prompt, which predicts the answer's first "
        "token, has no effect on the loss; one position too late has.",
        remedy="Take the mask from the shifted labels: labels[:, 1:] != -100.",
        taught_in="notebook 02",
        mutants=(
            _mask_not_shifted(slice(None, -1)),
            _mask_not_shifted(slice(None)),
            _mask_not_shifted_in_both,
        ),
    ),
    KnownBug(
        name="temperature_on_hard",
        title="the hard term is taken at temperature T too",
        symptom="At α = 0 the loss still changes with T.",
        remedy="Take the cross-entropy with the labels at T = 1.",
        taught_in="notebook 02",
        mutants=(
            _with_hard(lambda s, targets, T: _hard(s / T, targets)),
            _with_hard(lambda s, targets, T: T**2 * _hard(s / T, targets)),
        ),
    ),
    KnownBug(
        name="t2_on_hard",
        title="the hard term is rescaled for the temperature too",
        symptom="At α = 0 loss and gradient are T² times those of the plain "
        "cross-entropy: sixteen times at T = 4.",
        remedy="Multiply the soft term alone by T².",
        taught_in="notebook 02",
        mutants=(_with_hard(lambda s, targets, T: T**2 * _hard(s, targets)),),
    ),
    KnownBug(
        name="teacher_dropout",
        title="something random is at work, as in a teacher that is not in eval mode",
        symptom="Two calls with the same input give different losses.",
        remedy="Call `teacher.eval()`, and compute its logits without gradients.",
        taught_in="notebook 02",
        mutants=(_with_teacher(lambda t: F.dropout(t, 0.1, training=True)),),
    ),
    KnownBug(
        name="teacher_attached",
        title="the gradient flows into the teacher as well",
        symptom="After `backward()` the teacher has gradients: it would move towards "
        "the student, and memory holds two graphs.",
        remedy="Compute the teacher's logits under `torch.no_grad()`, or detach them.",
        taught_in="notebook 02",
        mutants=(_with_inputs(lambda student, teacher: (student, teacher)),),
    ),
    KnownBug(
        name="student_detached",
        title="the loss is cut off from the student",
        symptom="The value is right, but no gradient reaches the student.",
        remedy="Keep `.detach()`, `.item()`, `torch.tensor()` and `no_grad()` away "
        "from everything computed from the student's logits.",
        taught_in="notebook 02",
        mutants=(
            _with_inputs(lambda s, t: (s.detach(), t.detach())),
            _with_soft(lambda s, t, T: _soft(s.detach(), t, T)),
        ),
    ),
    KnownBug(
        name="mean_of_means",
        title="the mean is taken per sequence or micro-batch, then averaged",
        symptom="A short sequence's positions weigh more than a long one's, and "
        "splitting a batch in 1, 2 or 4 changes the gradient.",
        remedy="Sum over all positions and divide once, by the count of the whole "
        "batch (`num_items`).",
        taught_in="notebook 02",
        issue="huggingface/trl #4719, #6006, #6478",
        fault=(("loss = kl.sum() / num_items", "loss = kl.sum() / len(kl)"),),
        mutants=(
            _reduced(_mean_per_sequence),
            _reduced(_mean_per_sequence, hard=False),
            _reduced(_mean_per_filled_sequence),
            _reduced(_mean_per_filled_sequence, hard=False),
        ),
    ),
    KnownBug(
        name="zero_over_zero",
        title="where no position counts, zero is divided by zero",
        symptom="A batch or a sequence in which every label is −100 gives NaN, and one "
        "such batch spoils the weights for good.",
        remedy="Divide by the count, but at least by 1.",
        taught_in="notebook 02",
        issue="microsoft/LMOps #38",
        mutants=(
            _reduced(lambda values, keep: values.sum() / keep.sum()),
            _reduced(lambda values, keep: (values.sum(1) / keep.sum(1)).mean()),
            _reduced(
                lambda values, keep: (values.sum(1) / keep.sum(1)).mean(), hard=False
            ),
        ),
    ),
    KnownBug(
        name="mask_after_exp",
        title="ignored positions are masked only after the exponential",
        symptom="The loss may look finite, but a teacher's −inf at padding turns it or "
        "its gradient into NaN: 0 · NaN is NaN.",
        remedy="Select the rows that count first, then take the softmax.",
        taught_in="notebook 02",
        issue="huggingface/trl #5594",
        fault=(
            *_EVERY_ROW,
            (_SOFT, "soft = temperature**2 * torch.where(keep, kl, 0.0).sum() / n"),
        ),
        mutants=tuple(
            _masked_after(multiply, safe_count)
            for multiply in (False, True)
            for safe_count in (True, False)
        ),
    ),
    KnownBug(
        name="top_k_renormalised",
        title="only the teacher's likeliest tokens are kept, and rescaled to sum to 1",
        symptom="The student grows over-confident: the mass of all other tokens is "
        "taught to be zero, and more data do not mend it.",
        remedy="Keep the tail: as one bucket, or better as random draws.",
        taught_in="notebook 03",
        mutants=tuple(_top_k_renormalised(k) for k in (1, 2, 3, 4, 5, 8)),
    ),
    KnownBug(
        name="off_by_one_cache",
        title="the teacher's distributions are one position off",
        symptom="The argmax of entry t disagrees with the token that the teacher "
        "itself writes at t + 1.",
        remedy="Store exactly L − 1 distributions for L tokens, and recompute a few "
        "when the cache is opened.",
        taught_in="notebook 03",
        mutants=(
            _with_teacher(lambda t: t.roll(-1, dims=1)),
            _with_teacher(lambda t: t.roll(1, dims=1)),
        ),
    ),
    KnownBug(
        name="shuffled_cache",
        title="the teacher's logits were cached in another order than the data",
        symptom="The divergence falls to that between the teacher and its average "
        "distribution, and no further.",
        remedy="Key the cache by example, and recompute a few rows when it is opened.",
        taught_in="notebook 03",
        issue="haitongli/knowledge-distillation-pytorch #4, #9, #23",
        fault=(("theirs = cache.lookup(ids)", "theirs = stored[step]"),),
        mutants=(_with_teacher(lambda t: t.roll(1, dims=0)),),
    ),
    KnownBug(
        name="eos_masked",
        title="the padding token is the end token, and so the end is masked",
        symptom="The student never stops: no label ever asks it to.",
        remedy="Mask by position, not by token id, or use a padding token of its own.",
        taught_in="notebook 04",
    ),
    KnownBug(
        name="padded_vocabulary",
        title="vocabularies padded to different sizes are compared as they are",
        symptom="A broadcast error; or, where the shorter one was filled with zeros, "
        "probability mass on tokens that do not exist.",
        remedy="Compare tokenizers by content, and cut both heads to the shared "
        "tokens.",
        taught_in="notebook 02",
        issue="huggingface/trl #2215, #6252",
        fault=(
            (
                "log_q = (s / temperature).log_softmax(-1)",
                "log_q = F.pad(s / temperature, (0, 4)).log_softmax(-1)",
            ),
            (
                "log_p = (t / temperature).log_softmax(-1)",
                "log_p = F.pad(t / temperature, (0, 4)).log_softmax(-1)",
            ),
        ),
        mutants=(_with_soft(_padded_with_zeros),),
    ),
    KnownBug(
        name="different_ids",
        title="vocabularies of equal size, but the same id means different tokens",
        symptom="The divergence is high from the start and stays high, without an "
        "error.",
        remedy="Compare tokenizers by content (id → token), not by size.",
        taught_in="notebook 02",
        mutants=(
            _with_teacher(lambda t: t.roll(1, dims=-1)),
            _with_teacher(lambda t: t.flip(-1)),
        ),
    ),
    KnownBug(
        name="alpha_on_both",
        title="both terms get the same weight",
        symptom="At α = 0 the loss is zero where it should be the plain cross-entropy, "
        "or at α = 1 the labels still matter.",
        remedy="Weight the soft term with α and the hard term with 1 − α.",
        taught_in="notebook 02",
        mutants=(
            _with_mix(lambda hard, soft, alpha: alpha * (hard + soft)),
            _with_mix(lambda hard, soft, alpha: (1 - alpha) * (hard + soft)),
        ),
    ),
    KnownBug(
        name="alpha_swapped",
        title="the two weights are swapped",
        symptom="α = 1 gives the plain cross-entropy and α = 0 ignores the labels; at "
        "α = 0.5 nothing shows.",
        remedy="Weight the soft term with α and the hard term with 1 − α.",
        taught_in="notebook 02",
        mutants=(
            _with_mix(lambda hard, soft, alpha: alpha * hard + (1 - alpha) * soft),
        ),
    ),
    KnownBug(
        name="one_term_unweighted",
        title="only one of the two terms is weighted",
        symptom="At one end, α = 0 or α = 1, both terms are there at full weight.",
        remedy="Weight the soft term with α and the hard term with 1 − α.",
        taught_in="notebook 02",
        mutants=(
            _with_mix(lambda hard, soft, alpha: hard + alpha * soft),
            _with_mix(lambda hard, soft, alpha: (1 - alpha) * hard + soft),
        ),
    ),
    KnownBug(
        name="partner_not_detached",
        title="in co-distillation, the student's loss trains its teacher too",
        symptom="The teacher's weights get a gradient from the student's loss, and its "
        "curve is no longer that of training alone.",
        remedy="Detach the teacher's logits before they enter the student's loss.",
        taught_in="notebook 06",
    ),
    KnownBug(
        name="identical_partners",
        title="in co-distillation, partners start alike and see the same order",
        symptom="Their divergence is 0 for ever: they have nothing to teach each "
        "other.",
        remedy="Give each partner its own seed for the weights.",
        taught_in="notebook 06",
    ),
    KnownBug(
        name="swapped",
        title="teacher and student are swapped",
        symptom="The hard term is the teacher's, so it does not change when the "
        "student does, and the gradient goes the wrong way or nowhere.",
        remedy="Check the order of the arguments where the loss is called.",
        taught_in="notebook 02",
        issue="keras-team/keras-io #257",
        fault=(
            (_STUDENT, "s = teacher[:, :-1][keep]"),
            (_TEACHER, "t = student[:, :-1][keep].detach()"),
        ),
        mutants=(
            _with_inputs(lambda student, teacher: (teacher, student.detach())),
            _with_inputs(lambda student, teacher: (teacher, student)),
            _with_inputs(lambda student, teacher: (teacher.detach(), student)),
        ),
    ),
    KnownBug(
        name="teacher_against_itself",
        title="the teacher is compared with itself",
        symptom="The soft term is exactly zero from the first step and gives no "
        "gradient, however different the student is.",
        remedy="Put the student's log-probabilities into the divergence.",
        taught_in="notebook 02",
        issue="labmlai/annotated_deep_learning_paper_implementations #66",
        fault=(
            (
                "log_q = (s / temperature).log_softmax(-1)",
                "log_q = (t / temperature).log_softmax(-1)",
            ),
        ),
        mutants=(_with_soft(lambda s, t, T: _soft(t, t, T)),),
    ),
    KnownBug(
        name="half_by_accident",
        title="fixed weights of one half are used, whatever α says",
        symptom="α changes nothing: half of the loss is cross-entropy even at α = 1.",
        remedy="Pass the weights on; look for the library's defaults of 0.5 and 0.5.",
        taught_in="notebook 02",
        issue="huggingface/trl #5731",
        fault=(
            (
                "return (1 - alpha) * hard + alpha * soft",
                "return 0.5 * hard + 0.5 * soft",
            ),
        ),
        mutants=(
            _with_mix(lambda hard, soft, alpha: 0.5 * (hard + soft)),
            _half_jsd(scale_by_t2=False),
            _half_jsd(scale_by_t2=True),
        ),
    ),
    KnownBug(
        name="soft_cap_ignored",
        title="the model caps its logits, and the loss reads them uncapped",
        symptom="The teacher's distribution in the loss is sharper than the one it "
        "generates with.",
        remedy="Take the logits from the model's own output, not from its head.",
        taught_in="notebook 02",
        issue="huggingface/trl #6629",
    ),
    KnownBug(
        name="clamped",
        title="parts of the divergence are cut off at zero",
        symptom="Where a part is negative its gradient vanishes: at some tokens the "
        "student learns nothing.",
        remedy="Leave single parts of the sum negative; only the whole sum is ≥ 0, and "
        "a truncated one need not be.",
        taught_in="notebook 03",
        issue="verl-project/verl #7806",
        mutants=(_clamped(None), *(_clamped(k) for k in (2, 4, 8))),
    ),
    KnownBug(
        name="prose_denied",
        title="the text promises a gain that its own printed numbers deny",
        symptom="The distilled student's printed score is no better than that of the "
        "student trained alone.",
        remedy="Generate the numbers in the text from the results.",
        taught_in="notebook 09",
        # The pull request that brought the page in; on the page itself the sentence
        # and the printed numbers stand side by side.
        issue="keras-team/keras-io #242",
        fault=(
            (
                "print(sentence(distilled, alone))",
                'print("The distilled student is better.")',
            ),
        ),
    ),
)
