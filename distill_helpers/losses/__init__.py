"""The course's one contract for the mathematics of distillation.

Every trainer, check and notebook takes its formulas from here. With student logits
``z_S``, teacher logits ``z_T``, temperature ``T`` and mixing weight ``alpha``::

    loss = (1 - alpha) * CE(softmax(z_S), labels)
         + alpha * T**2 * D(softmax(z_T / T) || softmax(z_S / T))

``D`` is a true divergence: zero when teacher and student agree. Labels come unshifted,
exactly as ``transformers`` has them, and ``-100`` marks positions that do not count.

Taught in notebooks 01 (softmax, temperature, the divergences) and 02 (the loss).
Papers: Hinton et al. 2015 (arXiv:1503.02531) for the loss and T²; Agarwal et al. 2023
(arXiv:2306.13649) for the generalised Jensen-Shannon divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class SoftLabelLoss:
    """What :func:`soft_label_loss` returns.

    Attributes:
        loss: The number to call ``backward()`` on (scalar, at least fp32).
        soft: The divergence to the teacher, per item, T² included if asked for;
            carries no gradient.
        hard: The cross-entropy with the labels at T = 1, per item; no gradient.
        num_items: What the sums were divided by.
    """

    loss: torch.Tensor
    soft: torch.Tensor
    hard: torch.Tensor
    num_items: torch.Tensor | int | float


def soft_label_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
) -> SoftLabelLoss:
    """Mix the cross-entropy with the labels and the divergence to the teacher.

    Args:
        student_logits: ``[..., positions, vocabulary]``, any floating dtype.
        teacher_logits: Same shape; no gradient flows into it.
        labels: ``[..., positions]`` token ids, unshifted; ``-100`` is ignored.
        temperature: ``T > 0`` of both softmaxes in the soft term. The hard term
            always uses T = 1.
        alpha: Weight of the soft term, in [0, 1]. 1 ignores the labels' values (not
            their mask); 0 is plain cross-entropy.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.
        beta: Mixing weight of the JSD; 0 means forward and 1 means reverse KL.
        scale_by_t2: Multiply the soft term by T². Turn off for parity with
            libraries that leave it out.
        num_items: Divide the sums by this. Default: the positions that count in
            this call. Under gradient accumulation or several processes pass the
            global count.
        shift: Position ``t`` predicts label ``t + 1`` (a language model's logits).
            ``False`` where logits and labels are aligned already.

    Returns:
        A :class:`SoftLabelLoss`. If no position counts, every number is zero and the
        graph is kept, so ``backward()`` gives zero gradients.

    Raises:
        ValueError: For arguments out of range, shapes that do not fit, or logits
            that make the loss NaN or infinite.

    Taught in notebook 02. Paper: Hinton et al. 2015.
    """
    check_options(temperature, alpha, divergence, beta)
    _check_logits(student_logits, teacher_logits)
    student, targets, rows = _counted_rows(student_logits, labels, shift)
    teacher = teacher_logits.detach().flatten(0, -2).index_select(0, rows)
    count = item_count(num_items, targets)

    # A term with weight zero is still reported, but costs no gradient, and an
    # infinite value in it cannot spoil the sum.
    with torch.set_grad_enabled(torch.is_grad_enabled() and alpha > 0):
        soft = token_divergence(
            student, teacher, kind=divergence, beta=beta, temperature=temperature
        ).sum()
        soft = soft * (temperature**2 if scale_by_t2 else 1.0) / count
    with torch.set_grad_enabled(torch.is_grad_enabled() and alpha < 1):
        hard = _cross_entropy_sum(student, targets) / count
    if alpha == 0:
        loss = hard
    elif alpha == 1:
        loss = soft
    else:
        loss = (1 - alpha) * hard + alpha * soft
    refuse_bad_value(loss, student_logits=student, teacher_logits=teacher)
    return SoftLabelLoss(loss, soft.detach(), hard.detach(), count)


def hard_label_loss(
    student_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
) -> torch.Tensor:
    """Cross-entropy of the student with one token per position, at T = 1.

    Args:
        student_logits: ``[..., positions, vocabulary]``.
        labels: ``[..., positions]`` token ids, unshifted; ``-100`` is ignored.
        num_items: As in :func:`soft_label_loss`.
        shift: As in :func:`soft_label_loss`.

    Returns:
        A scalar in nats per item; zero with its graph kept if no position counts.

    Raises:
        ValueError: For shapes that do not fit or logits that make the loss NaN.

    Taught in notebook 02 (labels alone) and 04 (a teacher's labels).
    """
    student, targets, _ = _counted_rows(student_logits, labels, shift)
    loss = _cross_entropy_sum(student, targets) / item_count(num_items, targets)
    refuse_bad_value(loss, student_logits=student)
    return loss


def token_divergence(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    kind: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Divergence between teacher and student at every position, without T².

    Args:
        student_logits: ``[..., vocabulary]``.
        teacher_logits: Same shape; treated as a constant.
        kind: ``"forward_kl"`` is KL(p_T ‖ p_S), ``"reverse_kl"`` is KL(p_S ‖ p_T),
            ``"jsd"`` is β·KL(p_T ‖ m) + (1−β)·KL(p_S ‖ m) with
            m = (1−β)·p_S + β·p_T.
        beta: For ``"jsd"``, in [0, 1]. 0 means forward and 1 means reverse KL, as in
            TRL and Liger.
        temperature: ``T > 0`` of both softmaxes.

    Returns:
        ``[...]`` in nats, fp32 (float64 for float64 input). Its gradient is the
        closed form, and cannot be differentiated a second time.

    Raises:
        ValueError: For arguments out of range or shapes that differ.

    Taught in notebook 01. Paper: Agarwal et al. 2023 for the JSD.
    """
    _check_temperature(temperature)
    _check_divergence("kind", kind, beta)
    _check_logits(student_logits, teacher_logits)
    if kind == "jsd" and beta in (0, 1):
        kind = "reverse_kl" if beta else "forward_kl"
    return _TokenDivergence.apply(
        student_logits, teacher_logits.detach(), kind, float(beta), float(temperature)
    )


class _TokenDivergence(torch.autograd.Function):
    """Divergence per row, its gradient written into one buffer on the way.

    Plain autograd would keep three or four [rows, vocabulary] tensors until
    backward; the closed form needs one. It stays in fp32 until it has been
    multiplied by the incoming gradient: a GradScaler's factor comes in that way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        kind: str,
        beta: float,
        temperature: float,
    ) -> torch.Tensor:
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        # A fresh buffer: it becomes the gradient.
        vocabulary = student_logits.shape[-1]
        gradient = student_logits.new_empty(student_logits.shape, dtype=dtype)
        gradient = gradient.copy_(student_logits).view(-1, vocabulary)
        teacher = teacher_logits.reshape(-1, vocabulary)
        value = gradient.new_empty(len(gradient), 1)
        scratch = Scratch.like(gradient)
        # Autocast would take the expectations in half precision.
        with torch.autocast(gradient.device.type, enabled=False):
            for rows in scratch.blocks(len(gradient)):
                value[rows], _ = divergence_(
                    gradient[rows].div_(temperature),
                    scratch.copy(teacher[rows]).div_(temperature),
                    kind,
                    beta,
                    scratch,
                )
        if ctx.needs_input_grad[0]:
            ctx.temperature = temperature
            ctx.dtype = student_logits.dtype
            ctx.save_for_backward(gradient.view(student_logits.shape))
        return value.view(student_logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        scale = (grad_output / ctx.temperature).unsqueeze(-1)
        return (gradient * scale).to(ctx.dtype), None, None, None, None


# --- the closed forms, in place -----------------------------------------------------
# Shared with `fused_losses`. Work goes over blocks of rows small enough for the
# processor's cache, in buffers that are used again and again: fresh memory costs more
# than the arithmetic.


@dataclass(frozen=True)
class Scratch:
    """Three buffers ``[rows, vocabulary]`` for one block of rows.

    Attributes:
        student: The student's softmax after :func:`divergence_`.
        teacher: The teacher's.
        spare: Where :meth:`copy` puts things.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    spare: torch.Tensor

    @classmethod
    def like(cls, logits: torch.Tensor, dtype: torch.dtype | None = None) -> Scratch:
        """Buffers for blocks of ``logits`` ``[rows, vocabulary]``."""
        rows, vocabulary = logits.shape
        size = block_rows(vocabulary, logits.device.type)
        shape = (max(1, min(rows, size)), vocabulary)
        student, teacher, spare = (logits.new_empty(shape, dtype=dtype) for _ in "abc")
        return cls(student, teacher, spare)

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices that cover ``rows``."""
        size = len(self.spare)
        return (slice(i, min(i + size, rows)) for i in range(0, rows, size))

    def copy(self, block: torch.Tensor) -> torch.Tensor:
        """A copy of a block in the spare buffer and its dtype."""
        return self.spare[: len(block)].copy_(block)


def block_rows(vocabulary: int, device_type: str) -> int:
    """Rows of logits that are worked on at a time."""
    if device_type != "cpu":
        return max(1, 2**25 // vocabulary)
    # Small enough for the cache, and some rows for every thread.
    threads = min(torch.get_num_threads(), 8)
    return max(1, round(2**18 / (vocabulary * threads))) * threads


def softmax_(logits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the softmax of ``[rows, vocabulary]`` to ``out``, which may be ``logits``.

    Returns:
        The logarithm of each row's sum of exponentials, ``[rows, 1]``.
    """
    top = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=out)
    # p = exp(z - lse), read off where p is largest and so most precise.
    return top - out.amax(-1, keepdim=True).log()


def divergence_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: str,
    beta: float,
    scratch: Scratch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence of each row; ``student`` becomes its gradient, ``teacher`` is used up.

    Args:
        student: Logits ``[rows, vocabulary]``, divided by T already.
        teacher: Same shape and dtype.
        kind: As in :func:`token_divergence`; a JSD needs ``0 < beta < 1``.
        beta: Of the JSD.
        scratch: Its ``student`` holds the student's softmax afterwards.

    Returns:
        The divergence, and the logarithm of the student's sum of exponentials, both
        ``[rows, 1]``.
    """
    q, p = scratch.student[: len(student)], scratch.teacher[: len(student)]
    total = softmax_(student, q)
    shift = total - softmax_(teacher, p)
    if kind == "forward_kl":
        value = _expectation_(p, teacher.sub_(student)) + shift
        torch.sub(q, p, out=student)
        return value, total
    if kind == "reverse_kl":
        mean = _expectation_(q, student.sub_(teacher))
        student.sub_(mean).mul_(q)
        return mean - shift, total
    # With u = log(beta p / (1 - beta) q): log(q / m) = -log(1 - beta) - softplus(u)
    # and log(p / m) = -log(beta) - (softplus(u) - u).
    teacher.sub_(student).add_(shift + math.log(beta) - math.log1p(-beta))
    teacher.clamp_(-1e4, 1e4)  # a token that one model rules out: inf - inf below
    torch.ops.aten.softplus.out(teacher, out=student)
    teacher_mean = _expectation_(p, torch.sub(student, teacher, out=teacher))
    student_mean = _expectation_(q, student)
    student.sub_(student_mean).mul_(q).mul_(beta - 1)
    teacher_side = -(math.log(beta) + teacher_mean)
    student_side = -(math.log1p(-beta) + student_mean)
    return beta * teacher_side + (1 - beta) * student_side, total


def _expectation_(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``sum(p * x)`` over the vocabulary; sets ``x`` to 0 where 0 · ±inf came up."""
    # A product of two vectors reads memory once and writes none. Only a logit of
    # -inf (a token that is ruled out) makes it NaN, and then the slow way is right.
    value = torch.linalg.vecdot(p, x)
    if bool(value.isnan().any()):
        value = torch.linalg.vecdot(p, x.masked_fill_(p == 0, 0.0))
    return value.unsqueeze(-1)


def _cross_entropy_sum(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    return F.cross_entropy(student.to(dtype), targets, reduction="sum")


def _counted_rows(
    logits: torch.Tensor, labels: torch.Tensor, shift: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick the rows that count, before any exponential is taken.

    Ignored rows may hold anything, -inf and NaN included: they are never read.

    Returns:
        Logits ``[items, vocabulary]``, their targets ``[items]``, and the index of
        each row in the flattened input.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and student_logits "
            f"{tuple(logits.shape)}: labels needs one id per position, "
            f"{tuple(logits.shape[:-1])}"
        )
    rows, targets = counted(labels, logits.shape[-1], shift=shift)
    return logits.flatten(0, -2).index_select(0, rows), targets, rows


def counted(
    labels: torch.Tensor, vocabulary: int, *, shift: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions count, in the flattened input, and what they are to predict.

    Args:
        labels: ``[..., positions]``, of any whole-number dtype (NumPy on Windows gives
            int32).
        vocabulary: Outputs of the head.
        shift: Whether a position predicts the next label, rather than its own.

    Raises:
        ValueError: For labels that are no whole numbers, or that no output stands for.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels has the dtype {labels.dtype}; it must hold token ids (torch.long)"
        )
    if shift:
        labels = F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
    flat = labels.flatten()
    rows = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
    targets = flat.index_select(0, rows).long()
    _check_targets(targets, vocabulary)
    return rows, targets


def _check_targets(targets: torch.Tensor, vocabulary: int) -> None:
    """Refuse labels that no output of the head stands for."""
    if targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"labels holds the id {low if low < 0 else high}, outside the "
                f"vocabulary of {vocabulary}; mask positions with "
                f"{IGNORE_INDEX} and check that tokenizer and model belong together"
            )


def item_count(
    num_items: torch.Tensor | int | float | None, targets: torch.Tensor
) -> torch.Tensor | int | float:
    """What sums over ``targets`` are divided by."""
    if num_items is None:
        # No item at all: 0 / 1 is a zero that keeps the graph.
        return max(targets.numel(), 1)
    if torch.is_tensor(num_items):
        return num_items.clamp(min=1)  # none counts in the whole step: 0 / 1
    if num_items <= 0:
        raise ValueError(
            f"num_items={num_items} must be positive: pass the number of positions "
            "that count in the whole batch, or None"
        )
    return num_items


def check_options(
    temperature: float, alpha: float, divergence: str, beta: float
) -> None:
    """Refuse options of a soft-label loss that are out of range."""
    _check_temperature(temperature)
    _check_unit_interval("alpha", alpha)
    _check_divergence("divergence", divergence, beta)


def _check_divergence(name: str, kind: str, beta: float) -> None:
    if kind not in DIVERGENCES:
        raise ValueError(
            f"{name}={kind!r} is not a divergence; choose one of "
            f"{', '.join(DIVERGENCES)}"
        )
    _check_unit_interval("beta", beta)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be a positive number; 1 leaves the "
            "distributions as they are, 2 to 4 is usual for soft labels"
        )


def _check_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1")


def _check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.dim() < 1 or student.shape != teacher.shape:
        hint = ""
        if student.shape[:-1] == teacher.shape[:-1]:
            hint = (
                "; vocabularies differ: if the tokenizers are equal and only the "
                "heads are padded, cut both to the shared tokens "
                "(models.shared_vocabulary)"
            )
        raise ValueError(
            f"student_logits has shape {tuple(student.shape)} and teacher_logits "
            f"{tuple(teacher.shape)}: they must be the same{hint}"
        )


def refuse_bad_value(loss: torch.Tensor, **logits: torch.Tensor) -> None:
    """Raise ``ValueError`` for a loss that is no number, with the likely cause."""
    if math.isfinite(loss.item()):
        return
    for name, value in logits.items():
        if bool(value.isnan().any()):
            raise ValueError(
                f"{name} holds NaN at positions that count; look for a diverged "
                "model, an fp16 overflow, or a row whose every logit is -inf"
            )
    raise ValueError(
        f"the loss is {loss.item()}: one model gives probability zero (a logit of "
        "-inf or an fp16 overflow) to a token that the other, or the labels, need; "
        "rule tokens out in both models or in neither"
    )
