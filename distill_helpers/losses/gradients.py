"""Divergences and their gradients in closed form, written over their own inputs.

Plain autograd would keep three or four tensors ``[rows, vocabulary]`` until the
backward pass. The closed forms need one, and the logits' own memory serves for it.
Work goes over blocks of rows that are small enough for the processor's cache, in
buffers that are used again and again: fresh memory costs more than the arithmetic.

A name with a trailing underscore overwrites its inputs, as in torch. The healthy,
readable form of all this is :func:`distill_helpers.losses.plain_soft_label_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from distill_helpers.losses.targets import SparseTargets


class TokenDivergence(torch.autograd.Function):
    """Divergence of each row, with its gradient computed on the way.

    The gradient stays in fp32 until it has been multiplied by the incoming one: a
    GradScaler's factor comes in that way.
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
        """Return the divergences ``[...]`` of logits ``[..., vocabulary]``."""
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        # A copy: it holds the logits first, and their gradient afterwards.
        vocabulary = student_logits.shape[-1]
        gradient = student_logits.new_empty(student_logits.shape, dtype=dtype)
        gradient = gradient.copy_(student_logits).view(-1, vocabulary)
        teacher = teacher_logits.reshape(-1, vocabulary)
        value = gradient.new_empty(len(gradient), 1)
        scratch = Scratch.like(gradient)
        # Autocast would take the expectations in half precision.
        with torch.autocast(gradient.device.type, enabled=False):
            for rows in scratch.blocks(len(gradient)):
                value[rows], _ = divergence_and_grad_(
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
        """Scale the gradient that the forward pass has left."""
        (gradient,) = ctx.saved_tensors
        scale = (grad_output / ctx.temperature).unsqueeze(-1)
        return (gradient * scale).to(ctx.dtype), None, None, None, None


@dataclass(frozen=True)
class Scratch:
    """Three buffers ``[rows, vocabulary]`` for one block of rows.

    Attributes:
        student: Holds the student's softmax after :func:`divergence_and_grad_`.
        teacher: Holds the teacher's.
        spare: Holds what :meth:`copy` was given.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    spare: torch.Tensor

    @classmethod
    def like(cls, logits: torch.Tensor, dtype: torch.dtype | None = None) -> Scratch:
        """Make buffers for blocks of ``logits`` ``[rows, vocabulary]``."""
        rows, vocabulary = logits.shape
        size = block_rows(vocabulary, logits.device.type)
        shape = (max(1, min(rows, size)), vocabulary)
        student, teacher, spare = (logits.new_empty(shape, dtype=dtype) for _ in "abc")
        return cls(student, teacher, spare)

    def blocks(self, rows: int) -> Iterator[slice]:
        """Cut ``rows`` into slices of a buffer's size."""
        size = len(self.spare)
        return (slice(i, min(i + size, rows)) for i in range(0, rows, size))

    def copy(self, block: torch.Tensor) -> torch.Tensor:
        """Copy a block into the spare buffer, and so into its dtype."""
        return self.spare[: len(block)].copy_(block)


def block_rows(vocabulary: int, device_type: str) -> int:
    """Return how many rows of logits are worked on at a time."""
    if device_type != "cpu":
        return max(1, 2**25 // vocabulary)
    # Small enough for the cache, and some rows for every thread.
    threads = min(torch.get_num_threads(), 8)
    return max(1, round(2**18 / (vocabulary * threads))) * threads


def softmax_into(logits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the softmax of ``[rows, vocabulary]`` to ``out``, which may be ``logits``.

    Returns:
        The logarithm of each row's sum of exponentials, ``[rows, 1]``.
    """
    top = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=out)
    # p = exp(z - lse), read off where p is largest and so most precise.
    return top - out.amax(-1, keepdim=True).log()


def divergence_and_grad_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: str,
    beta: float,
    scratch: Scratch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute each row's divergence; its gradient takes the place of ``student``.

    Args:
        student: Logits ``[rows, vocabulary]``, divided by T already. Afterwards, the
            same memory holds the divergence's gradient with respect to them.
        teacher: Logits of the same shape and dtype. Afterwards, of no use.
        kind: The name of the divergence; a JSD needs ``0 < beta < 1``.
        beta: The JSD's mixing weight.
        scratch: Buffers. ``scratch.student`` holds the student's softmax afterwards.

    Returns:
        The divergence, and the logarithm of the student's sum of exponentials, both
        ``[rows, 1]``.
    """
    q, p = scratch.student[: len(student)], scratch.teacher[: len(student)]
    lse_q = softmax_into(student, q)
    # log p - log q = (z_T - z_S) + (lse_q - lse_p) at every token.
    lse_difference = lse_q - softmax_into(teacher, p)
    if kind == "forward_kl":
        logit_difference = teacher.sub_(student)
        value = _expectation_(p, logit_difference) + lse_difference
        torch.sub(q, p, out=student)  # the gradient
        return value, lse_q
    if kind == "reverse_kl":
        logit_difference = student.sub_(teacher)
        mean = _expectation_(q, logit_difference)
        logit_difference.sub_(mean).mul_(q)  # the gradient, in student's memory
        return mean - lse_difference, lse_q
    # With u = log(beta p / (1 - beta) q): log(q / m) = -log(1 - beta) - softplus(u)
    # and log(p / m) = -log(beta) - (softplus(u) - u).
    u = teacher.sub_(student).add_(lse_difference + math.log(beta) - math.log1p(-beta))
    u.clamp_(-1e4, 1e4)  # a token that one model rules out: inf - inf below
    softplus_u = torch.ops.aten.softplus.out(u, out=student)
    teacher_mean = _expectation_(p, torch.sub(softplus_u, u, out=u))
    student_mean = _expectation_(q, softplus_u)
    softplus_u.sub_(student_mean).mul_(q).mul_(beta - 1)  # the gradient
    teacher_side = -(math.log(beta) + teacher_mean)
    student_side = -(math.log1p(-beta) + student_mean)
    return beta * teacher_side + (1 - beta) * student_side, lse_q


def sparse_divergence_and_grad_(
    student: torch.Tensor, targets: SparseTargets, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the forward KL from stored targets; ``student`` becomes its gradient.

    Args:
        student: Logits ``[rows, vocabulary]``, divided by T already. Afterwards, the
            same memory holds the gradient.
        targets: The stored distributions of these rows.
        scratch: Buffers. ``scratch.student`` holds the student's softmax afterwards.

    Returns:
        Divergence and logarithm of the sum of exponentials, both ``[rows, 1]``.
    """
    ids, weights = targets.ids, targets.weights.to(student.dtype)
    chosen = student.gather(1, ids)
    q = scratch.student[: len(student)]
    lse_q = softmax_into(student, q)
    gradient = student.copy_(q)
    value = (weights * (lse_q - chosen)).sum(-1, keepdim=True)
    if targets.tail is None:
        gradient.scatter_add_(1, ids, -weights)
    else:
        tail = targets.tail.to(student.dtype).unsqueeze(-1)
        mass = q.gather(1, ids)
        # Summed, not 1 - sum: what is left may be tiny.
        rest = gradient.scatter_(1, ids, 0.0).sum(-1, keepdim=True)
        tiny = torch.finfo(rest.dtype).tiny
        value -= torch.xlogy(tail, rest.clamp(min=tiny))
        gradient.mul_(1 - tail / rest.clamp(min=tiny))
        gradient.scatter_(1, ids, mass - weights)
    return value - targets.known_entropy.to(value.dtype).unsqueeze(-1), lse_q


def _expectation_(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``sum(p * x)`` over the vocabulary; sets ``x`` to 0 at 0 · ±inf."""
    # A product of two vectors reads memory once and writes none. Only a logit of
    # -inf (a token that is ruled out) makes it NaN, and then the slow way is right.
    value = torch.linalg.vecdot(p, x)
    if bool(value.isnan().any()):
        value = torch.linalg.vecdot(p, x.masked_fill_(p == 0, 0.0))
    return value.unsqueeze(-1)
