"""The course's one contract for the mathematics of distillation.

Every trainer, check and notebook takes its formulas from here. With student logits
``z_S``, teacher logits ``z_T``, temperature ``T`` and mixing weight ``alpha``::

    loss = (1 - alpha) * CE(softmax(z_S), labels)
         + alpha * T**2 * D(softmax(z_T / T) || softmax(z_S / T))

``D`` is a true divergence: zero when teacher and student agree. Labels come unshifted,
exactly as ``transformers`` has them, and ``-100`` marks positions that do not count.

:func:`plain_soft_label_loss` is that formula in ordinary autograd, to be read; every
other loss is tested against it. :func:`soft_label_loss` gives the same numbers from
less memory in less time, and takes its models in three forms: logits, hidden states
with their head (:class:`Hidden`), and distributions that were stored
(:class:`SparseTargets`). This room needs torch alone:

* ``targets``: these three forms;
* ``arguments``: what is refused, and with which words;
* ``gradients``: value and gradient of each divergence in closed form, in place;
* ``fused``: the loss block by block, so that all logits never exist at once;
* ``cross``: losses between models of different tokenizers; ``chunks``: which positions
  these compare; ``blocks``: their logits, some rows at a time; ``texts``: what they say
  of a piece of text, and of some of the tokens.

Taught in notebooks 01 (softmax, temperature, the divergences), 02 (the loss) and 10
(other tokenizers).
Papers: Hinton et al. 2015 (arXiv:1503.02531) for the loss and T²; Agarwal et al. 2023
(arXiv:2306.13649) for the generalised Jensen-Shannon divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from distill_helpers.losses.arguments import (
    DIVERGENCES,
    IGNORE_INDEX,
    check_divergence,
    check_logits,
    check_options,
    check_student,
    check_teacher,
    check_temperature,
    counted,
    item_count,
    refuse_bad_value,
    without_ends,
)
from distill_helpers.losses.cross import (
    CrossLoss,
    chunk_likelihood_loss,
    first_pieces_loss,
    mapped_vocabulary_loss,
    shared_beginnings_loss,
    sorted_probabilities_loss,
)
from distill_helpers.losses.fused import Options, fused_loss
from distill_helpers.losses.gradients import TokenDivergence
from distill_helpers.losses.targets import Head, Hidden, SparseTargets, cut_outputs
from distill_helpers.losses.texts import binary_kl

__all__ = [
    "DIVERGENCES",
    "IGNORE_INDEX",
    "CrossLoss",
    "Head",
    "Hidden",
    "SoftLabelLoss",
    "SparseTargets",
    "binary_kl",
    "check_options",
    "chunk_likelihood_loss",
    "cut_outputs",
    "first_pieces_loss",
    "forward_kl",
    "hard_label_loss",
    "jsd",
    "mapped_vocabulary_loss",
    "plain_soft_label_loss",
    "reverse_kl",
    "shared_beginnings_loss",
    "soft_label_loss",
    "sorted_probabilities_loss",
    "token_divergence",
]


# --- the plain form -----------------------------------------------------------------


def plain_soft_label_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    alpha: float = 1.0,
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Compute the soft-label loss the way it is usually written.

    Args:
        student: Logits ``[rows, positions, vocabulary]``.
        teacher: Logits of the same shape; no gradient flows into them.
        labels: ``[rows, positions]`` token ids, unshifted; ``-100`` does not count.
        temperature: ``T`` of both softmaxes in the soft term.
        alpha: Weight of the soft term.
        divergence: :func:`forward_kl` (default), :func:`reverse_kl` or :func:`jsd`,
            or any function of the teacher's and the student's log-probabilities.

    Returns:
        The scalar loss in nats per position that counts.

    Taught in notebook 02. Paper: Hinton et al. 2015.
    """
    counts = labels[:, 1:] != IGNORE_INDEX
    targets = labels[:, 1:][counts]
    z_s = student[:, :-1][counts]
    z_t = teacher[:, :-1][counts].detach()
    log_p = (z_t / temperature).log_softmax(-1)
    log_q = (z_s / temperature).log_softmax(-1)
    soft = (divergence or forward_kl)(log_p, log_q).sum()
    hard = F.cross_entropy(z_s, targets, reduction="sum")
    total = (1 - alpha) * hard + alpha * temperature**2 * soft
    return total / max(len(targets), 1)


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p ‖ q) ``[...]`` of log-probabilities ``[..., vocabulary]``."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(q ‖ p) ``[...]`` of log-probabilities ``[..., vocabulary]``."""
    return forward_kl(log_q, log_p)


def jsd(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """Return β·KL(p ‖ m) + (1−β)·KL(q ‖ m), m = (1−β)·q + β·p, for 0 < β < 1."""
    log_m = torch.logaddexp(log_q + math.log(1 - beta), log_p + math.log(beta))
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


# --- the losses ---------------------------------------------------------------------


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
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden | SparseTargets,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
    chunk_tokens: int | None = None,
) -> SoftLabelLoss:
    """Mix the cross-entropy with the labels and the divergence to the teacher.

    Args:
        student: Logits ``[..., positions, vocabulary]`` of any floating dtype; or
            :class:`Hidden`, whose logits are multiplied out a few tokens at a time
            and never held. Under autocast those products run in its dtype; softmax,
            sums and the gradients' accumulators stay in fp32.
        teacher: Logits; :class:`Hidden`; or :class:`SparseTargets` from a cache, for
            the forward KL only. No gradient flows into it. Two tensors of logits
            have one shape. With a :class:`Hidden`, heads of unequal (padded) width
            are cut to the tokens that both have.
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
        chunk_tokens: Tokens of a :class:`Hidden` student whose logits exist at a
            time. Default: what fits into about 100 MB on a CPU, 500 MB on a GPU.

    Returns:
        A :class:`SoftLabelLoss`. If no position counts, every number is zero and the
        graph is kept, so ``backward()`` gives zero gradients. For a :class:`Hidden`
        student, the gradients are computed on the way: ``backward()`` costs next to
        nothing, and works once.

    Raises:
        ValueError: For arguments out of range, shapes that do not fit, or numbers
            that make the loss NaN or infinite.

    Taught in notebooks 02 and 04. Paper: Hinton et al. 2015.
    """
    check_options(temperature, alpha, divergence, beta)
    check_student(student, labels)
    check_teacher(
        student, teacher, labels, temperature=temperature, divergence=divergence
    )
    scale = float(temperature) ** 2 if scale_by_t2 else 1.0
    if isinstance(student, Hidden):
        options = Options(
            temperature=float(temperature),
            alpha=float(alpha),
            divergence=without_ends(divergence, beta),
            beta=float(beta),
            scale=scale,
            shift=shift,
            chunk_tokens=chunk_tokens,
        )
        return SoftLabelLoss(*fused_loss(student, teacher, labels, num_items, options))
    if isinstance(teacher, Hidden):
        with torch.no_grad():
            teacher = teacher.logits()
        vocabulary = min(student.shape[-1], teacher.shape[-1])
        student, teacher = student[..., :vocabulary], teacher[..., :vocabulary]
    rows, targets = counted(labels, student.shape[-1], shift=shift)
    # Before any exponential: ignored rows may hold anything, -inf and NaN included.
    logits = student.flatten(0, -2).index_select(0, rows)
    count = item_count(num_items, targets)

    # A term with weight zero is still reported, but costs no gradient, and an
    # infinite value in it cannot spoil the sum.
    with torch.set_grad_enabled(torch.is_grad_enabled() and alpha > 0):
        if isinstance(teacher, SparseTargets):
            kept = teacher.select(rows)
            kept.check(logits.shape[-1])
            total = _sparse_forward_kl(logits, kept)
        else:
            total = token_divergence(
                logits,
                teacher.detach().flatten(0, -2).index_select(0, rows),
                kind=divergence,
                beta=beta,
                temperature=temperature,
            )
        soft = total.sum() * scale / count
    with torch.set_grad_enabled(torch.is_grad_enabled() and alpha < 1):
        hard = _cross_entropy_sum(logits, targets) / count
    if alpha == 0:
        loss = hard
    elif alpha == 1:
        loss = soft
    else:
        loss = (1 - alpha) * hard + alpha * soft
    refuse_bad_value(loss, rows, student, teacher)
    return SoftLabelLoss(loss, soft.detach(), hard.detach(), count)


def hard_label_loss(
    student: torch.Tensor | Hidden,
    labels: torch.Tensor,
    *,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """Compute the student's cross-entropy with one token per position, at T = 1.

    Args:
        student: Same as in :func:`soft_label_loss`, and so are the other arguments.
        labels: ``[..., positions]`` token ids, unshifted; ``-100`` is ignored.
        num_items: What the sum is divided by.
        shift: Whether a position predicts the next label.
        chunk_tokens: Tokens whose logits exist at a time.

    Returns:
        A scalar in nats per item; zero with its graph kept if no position counts.

    Raises:
        ValueError: For shapes that do not fit or numbers that make the loss NaN.

    Taught in notebook 02 (labels alone) and 05 (a teacher's labels).
    """
    check_student(student, labels)
    if isinstance(student, Hidden):
        options = Options(alpha=0.0, shift=shift, chunk_tokens=chunk_tokens)
        return fused_loss(student, None, labels, num_items, options)[0]
    rows, targets = counted(labels, student.shape[-1], shift=shift)
    logits = student.flatten(0, -2).index_select(0, rows)
    loss = _cross_entropy_sum(logits, targets) / item_count(num_items, targets)
    refuse_bad_value(loss, rows, student)
    return loss


def token_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    kind: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Compute the divergence of student from teacher at every position, without T².

    Args:
        student: Logits ``[..., vocabulary]``.
        teacher: Logits of the same shape; treated as a constant.
        kind: ``"forward_kl"`` is KL(p_T ‖ p_S), ``"reverse_kl"`` is KL(p_S ‖ p_T),
            ``"jsd"`` is β·KL(p_T ‖ m) + (1−β)·KL(p_S ‖ m) with
            m = (1−β)·p_S + β·p_T.
        beta: Mixing weight of the JSD, in [0, 1]. 0 means forward and 1 means
            reverse KL, as in TRL and Liger.
        temperature: ``T > 0`` of both softmaxes.

    Returns:
        ``[...]`` in nats, fp32 (float64 for float64 input). Its gradient is the
        closed form, and cannot be differentiated a second time.

    Raises:
        ValueError: For arguments out of range or shapes that differ.

    Taught in notebook 01. Paper: Agarwal et al. 2023 for the JSD.
    """
    check_temperature(temperature)
    check_divergence("kind", kind, beta)
    check_logits(student, teacher)
    kind = without_ends(kind, beta)
    divergence: torch.Tensor = TokenDivergence.apply(
        student, teacher.detach(), kind, float(beta), float(temperature)
    )
    return divergence


def _sparse_forward_kl(student: torch.Tensor, targets: SparseTargets) -> torch.Tensor:
    """KL ``[items]`` from stored targets, of logits ``[items, vocabulary]``."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_q = (student.to(dtype) / targets.temperature).log_softmax(-1)
    known = log_q.gather(-1, targets.ids)
    value = -(targets.weights * known).sum(-1)
    if targets.tail is not None:
        # Summed, not 1 - sum: what is left may be tiny.
        rest = log_q.exp().scatter(-1, targets.ids, 0.0).sum(-1)
        value = value - torch.xlogy(
            targets.tail, rest.clamp(min=torch.finfo(dtype).tiny)
        )
    return value - targets.known_entropy


def _cross_entropy_sum(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    return F.cross_entropy(student.to(dtype), targets, reduction="sum")
