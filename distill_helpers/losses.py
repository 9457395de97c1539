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
    _check_temperature(temperature)
    _check_unit_interval("alpha", alpha)
    _check_logits(student_logits, teacher_logits)
    student, targets, rows = _counted_rows(student_logits, labels, shift)
    teacher = teacher_logits.detach().flatten(0, -2).index_select(0, rows)
    count = _item_count(num_items, targets)

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
    _refuse_bad_value(loss, student_logits=student, teacher_logits=teacher)
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
    loss = _cross_entropy_sum(student, targets) / _item_count(num_items, targets)
    _refuse_bad_value(loss, student_logits=student)
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
    _check_unit_interval("beta", beta)
    _check_logits(student_logits, teacher_logits)
    if kind not in DIVERGENCES:
        raise ValueError(
            f"kind={kind!r} is not a divergence; choose one of {', '.join(DIVERGENCES)}"
        )
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
        log_s = _log_softmax(student_logits, temperature)
        log_t = _log_softmax(teacher_logits, temperature)
        need_gradient = ctx.needs_input_grad[0]
        if kind == "forward_kl":
            value, gradient = _forward_kl(log_s, log_t, need_gradient)
        elif kind == "reverse_kl":
            value, gradient = _reverse_kl(log_s, log_t)
        else:
            value, gradient = _jsd(log_s, log_t, beta)
        if need_gradient:
            ctx.temperature = temperature
            ctx.dtype = student_logits.dtype
            ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        scale = (grad_output / ctx.temperature).unsqueeze(-1)
        return (gradient * scale).to(ctx.dtype), None, None, None, None


def _forward_kl(
    log_s: torch.Tensor, log_t: torch.Tensor, need_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    # The buffers of the log-probabilities are ours, so they are reused.
    p_t = log_t.exp()
    value = _expectation(p_t, log_t.sub_(log_s))
    return value, log_s.exp_().sub_(p_t) if need_gradient else log_s


def _reverse_kl(
    log_s: torch.Tensor, log_t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    p_s = log_s.exp()
    gap = log_s.sub_(log_t)
    value = _expectation(p_s, gap)
    return value, _times(p_s, gap.sub_(value.unsqueeze(-1)))


def _jsd(
    log_s: torch.Tensor, log_t: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_m = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
    p_s = log_s.exp()
    teacher_side = _expectation(log_t.exp(), log_t.sub_(log_m))
    gap = log_s.sub_(log_m)
    student_side = _expectation(p_s, gap)
    value = beta * teacher_side + (1 - beta) * student_side
    gradient = _times(p_s, gap.sub_(student_side.unsqueeze(-1))).mul_(1 - beta)
    return value, gradient


def _times(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``p * x`` with 0 · ±inf = 0: a token of probability zero contributes nothing."""
    return x.mul_(p).masked_fill_(p == 0, 0.0)


def _expectation(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``sum(p * x)`` over the vocabulary, with 0 · ±inf = 0."""
    # A product of two vectors reads memory once and writes none. Only a logit of
    # -inf (a token that is ruled out) makes it NaN, and then the slow way is right.
    value = torch.linalg.vecdot(p, x)
    if bool(value.isnan().any()):
        return (p * x).masked_fill_(p == 0, 0.0).sum(-1)
    return value


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scaled = logits.to(dtype)
    if temperature != 1:
        scaled = scaled / temperature
    return F.log_softmax(scaled, dim=-1)


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
    if shift:
        labels = F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
    flat = labels.flatten()
    rows = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
    targets = flat.index_select(0, rows)
    if targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(
                f"labels holds the id {low if low < 0 else high}, outside the "
                f"vocabulary of {logits.shape[-1]}; mask positions with "
                f"{IGNORE_INDEX} and check that tokenizer and model belong together"
            )
    return logits.flatten(0, -2).index_select(0, rows), targets, rows


def _item_count(
    num_items: torch.Tensor | int | float | None, targets: torch.Tensor
) -> torch.Tensor | int | float:
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


def _refuse_bad_value(loss: torch.Tensor, **logits: torch.Tensor) -> None:
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
