"""The soft-label loss without the logits: hidden states in, loss and gradients out.

A language model's head turns ``[tokens, width]`` into ``[tokens, vocabulary]``, and a
soft-label loss wants that twice, plus its gradient. At a vocabulary of 150,000 those
tensors, not the models, fill the memory. :func:`fused_soft_label_loss` multiplies by
the heads a few tokens at a time, turns each block of logits into its gradient in place
(the closed form), and multiplies on. Nothing of size [tokens, vocabulary] ever exists,
and nothing is computed twice: four matrix products in all, as in the plain way.

The mathematics is that of :mod:`distill_helpers.losses`. Taught in notebook 03.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from distill_helpers.heads import Head
from distill_helpers.losses import (
    Scratch,
    SoftLabelLoss,
    block_rows,
    check_options,
    counted,
    divergence_,
    item_count,
    refuse_bad_value,
    softmax_,
)

# Two buffers of [chunk, vocabulary] are held; more tokens at once make the matrix
# products faster, fewer make the buffers smaller.
_BUFFER_BYTES = {"cpu": 116 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's distribution at every position, as a cache gives it back.

    The losses check targets that were made by hand, at the positions that count: see
    :meth:`check`.

    Attributes:
        ids: Token ids ``[positions, k]``. One may come twice only where ``entropy`` is
            known and there is no tail, as draws do; their weights then add up.
        weights: Their probabilities ``[positions, k]``, fp32. A place that is not
            needed holds the weight 0 and, if there is a tail, a token of its own.
        tail: Probability ``[positions]`` of all other tokens together, where that is
            a class of its own (the tail bucket); else ``None``, and the weights sum
            to 1.
        entropy: Of the teacher's full distribution ``[positions]``, in nats; makes
            the value comparable with the full loss. ``None``: of what is stored.
        temperature: That the teacher's softmax was taken at.
        checked: Whether whoever made them has seen to all this, as a cache's writer
            does.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    tail: torch.Tensor | None
    entropy: torch.Tensor | None
    temperature: float
    checked: bool = False

    def select(self, rows: torch.Tensor | slice) -> SparseTargets:
        """The targets of some positions."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same on another device."""
        return self._each(lambda column: column.to(device))

    @property
    def known_entropy(self) -> torch.Tensor:
        """The stored entropy ``[positions]``, or that of what is stored."""
        if self.entropy is not None:
            return self.entropy
        entropy = -torch.xlogy(self.weights, self.weights).sum(-1)
        if self.tail is not None:
            entropy = entropy - torch.xlogy(self.tail, self.tail)
        return entropy

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SparseTargets:
        return SparseTargets(
            change(self.ids),
            change(self.weights),
            None if self.tail is None else change(self.tail),
            None if self.entropy is None else change(self.entropy),
            self.temperature,
            self.checked,
        )

    def check(self, vocabulary: int) -> None:
        """Refuse what is no distribution over the vocabulary, if nobody has looked yet.

        Raises:
            ValueError: Naming the column, what it holds, and what it should.
        """
        if self.checked or not self.ids.numel():
            return
        ids, weights = self.ids, self.weights
        if ids.shape != weights.shape or ids.is_floating_point():
            raise ValueError(
                f"ids has shape {tuple(ids.shape)} and dtype {ids.dtype}, weights "
                f"{tuple(weights.shape)}: there must be one whole number per weight"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"ids holds the token {low if low < 0 else high}, outside the "
                f"vocabulary of {vocabulary}; compare the two tokenizers"
            )
        used = ids
        if self.tail is None:  # then a place that is not used does nothing
            used = ids.where(weights > 0, -1 - torch.arange(ids.shape[1]).to(ids))
        order = used.sort(-1).values
        again = order[:, 1:] == order[:, :-1]
        # Draws may come twice: they add up, and their entropy is known.
        drawn = self.tail is None and self.entropy is not None
        if not drawn and bool(again.any()):
            raise ValueError(
                f"ids names token {int(order[:, 1:][again][0])} twice at one position; "
                "add its weights up (unused places need tokens of their own, with "
                "weight 0)"
            )
        columns = {"weights": weights}
        total = weights.sum(-1)
        if self.tail is not None:
            columns["tail"] = self.tail
            total = total + self.tail
        for name, column in columns.items():
            # Not "any below 0", which NaN would pass.
            if not bool((column >= 0).all()):
                raise ValueError(
                    f"{name} holds {column.min().item():.4g}; it must hold "
                    "probabilities (of log-probabilities, pass the exp())"
                )
        worst = total[(total - 1).abs().argmax()].item()
        if not abs(worst - 1) < 0.01:
            raise ValueError(
                f"weights and tail sum to {worst:.4g} at a position, and a "
                "distribution to 1: pass tail=1 - weights.sum(-1) for the "
                "probability of all other tokens, or divide the weights by their sum"
            )


def fused_soft_label_loss(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor | Head,
    teacher_hidden: torch.Tensor | SparseTargets,
    teacher_head: torch.Tensor | Head | None,
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
    """:func:`~distill_helpers.losses.soft_label_loss` that never holds the logits.

    Under autocast the matrix products run in its dtype; softmax, sums and the
    gradients' accumulators stay in fp32.

    Args:
        student_hidden: ``[..., width]``, the input of the student's head.
        student_head: ``[vocabulary, width]``, or a :class:`Head`.
        teacher_hidden: ``[..., teacher width]``; or, with ``teacher_head=None``, the
            teacher's logits ``[..., vocabulary]``, or :class:`SparseTargets` from a
            cache (forward KL only).
        teacher_head: As ``student_head``. Heads of unequal (padded) width are cut
            to the tokens that both have.
        labels: ``[...]`` token ids, unshifted, as in ``soft_label_loss``; ``-100`` is
            ignored.
        temperature: As in ``soft_label_loss``, and so are ``alpha``, ``divergence``,
            ``beta``, ``scale_by_t2``, ``num_items`` and ``shift``.
        alpha: See there.
        divergence: See there.
        beta: See there.
        scale_by_t2: See there.
        num_items: See there.
        shift: See there.
        chunk_tokens: Tokens whose logits exist at a time. Default: what fits into
            about 100 MB on a CPU, 500 MB on a GPU.

    Returns:
        A :class:`~distill_helpers.losses.SoftLabelLoss`. Its gradients are computed
        on the way, so ``backward()`` costs next to nothing and works once.

    Raises:
        ValueError: For arguments out of range, shapes that do not fit, or numbers
            that make the loss NaN or infinite.

    Taught in notebook 03.
    """
    check_options(temperature, alpha, divergence, beta)
    if divergence == "jsd" and beta in (0, 1):
        divergence = "reverse_kl" if beta else "forward_kl"
    teacher = _teacher(teacher_hidden, teacher_head, labels)
    if isinstance(teacher, SparseTargets):
        _check_sparse(teacher, temperature, divergence)
    plan = _Plan(
        temperature=float(temperature),
        alpha=float(alpha),
        divergence=divergence,
        beta=float(beta),
        scale=float(temperature) ** 2 if scale_by_t2 else 1.0,
        shift=shift,
        chunk_tokens=chunk_tokens,
    )
    return _fused(student_hidden, student_head, teacher, labels, num_items, plan)


def fused_hard_label_loss(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor | Head,
    labels: torch.Tensor,
    *,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """:func:`~distill_helpers.losses.hard_label_loss` that never holds the logits.

    Args:
        student_hidden: As in :func:`fused_soft_label_loss`, and so are the others.
        student_head: See there.
        labels: See there.
        num_items: See there.
        shift: See there.
        chunk_tokens: See there.

    Returns:
        A scalar in nats per item.

    Taught in notebook 03.
    """
    plan = _Plan(alpha=0.0, shift=shift, chunk_tokens=chunk_tokens)
    return _fused(student_hidden, student_head, None, labels, num_items, plan).loss


def sparse_soft_label_loss(
    student_logits: torch.Tensor,
    targets: SparseTargets,
    labels: torch.Tensor,
    *,
    alpha: float = 1.0,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
    shift: bool = True,
) -> SoftLabelLoss:
    """The loss from a cache for a student whose logits are there already.

    For heads that are no plain linear layer; holds several tensors of the logits' size.

    Args:
        student_logits: ``[..., vocabulary]``.
        targets: One per position.
        labels: ``[...]``, unshifted.
        alpha: As in :func:`fused_soft_label_loss`, and so are the others.
        scale_by_t2: See there.
        num_items: See there.
        shift: See there.
    """
    check_options(targets.temperature, alpha, "forward_kl", 0.5)
    if len(targets.ids) != labels.numel() or labels.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, labels "
            f"{tuple(labels.shape)}, and targets holds {len(targets.ids)} positions: "
            "there must be one label and one target per position"
        )
    rows, chosen = counted(labels, student_logits.shape[-1], shift=shift)
    logits = student_logits.flatten(0, -2).index_select(0, rows).float()
    count = item_count(num_items, chosen)
    kept = targets.select(rows)
    kept.check(logits.shape[-1])
    log_q = (logits / targets.temperature).log_softmax(-1)
    known = log_q.gather(-1, kept.ids)
    soft = -(kept.weights * known).sum()
    if kept.tail is not None:
        rest = (1 - known.exp().sum(-1)).clamp(min=1e-7)
        soft = soft - torch.xlogy(kept.tail, rest).sum()
    factor = targets.temperature**2 if scale_by_t2 else 1.0
    soft = (soft - kept.known_entropy.sum()) * factor / count
    hard = F.cross_entropy(logits, chosen, reduction="sum") / count
    loss = alpha * soft + (1 - alpha) * hard if alpha < 1 else soft
    refuse_bad_value(loss, student_logits=logits)
    return SoftLabelLoss(loss, soft.detach(), hard.detach(), count)


def working_bytes(
    tokens: int,
    vocabulary: int,
    dtype: torch.dtype,
    device_type: str,
    *,
    teacher: bool = True,
) -> int:
    """Memory that the fused losses hold while they work, gradients left aside.

    For planning on another machine than the one that will train. Where the first
    chunk lies in the head's gradient (:func:`_rows_on_loan`), it is less. A mix at
    another temperature than 1 takes one more block of rows, which is small.

    Args:
        tokens: Positions that count.
        vocabulary: Outputs that both heads share.
        dtype: Of the matrix products: the half precision under autocast.
        device_type: ``"cpu"`` or ``"cuda"``.
        teacher: Whether a teacher's logits are computed as well.
    """
    chunk = _chunk_size(_Plan(), tokens, device_type, vocabulary, dtype.itemsize)
    block = min(chunk, block_rows(vocabulary, device_type))
    precise = 3 + (dtype.itemsize < 4)
    buffers = (1 + teacher) * chunk * dtype.itemsize
    return vocabulary * (buffers + 4 * precise * block)


# --- arguments ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What is summed over positions, and how the work is divided up."""

    temperature: float = 1.0
    alpha: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    scale: float = 1.0  # of the soft term: T², or 1
    shift: bool = True
    chunk_tokens: int | None = None
    count: float = 1.0  # what the sums are divided by
    autocast: torch.dtype | None = None
    wanted: tuple[bool, ...] = (False, False, False)


def _teacher(
    hidden: torch.Tensor | SparseTargets,
    head: torch.Tensor | Head | None,
    labels: torch.Tensor,
) -> _HeadLogits | _GivenLogits | SparseTargets:
    if isinstance(hidden, SparseTargets):
        if len(hidden.ids) != labels.numel():
            raise ValueError(
                f"teacher_hidden holds targets for {len(hidden.ids)} positions, and "
                f"there are {labels.numel()} labels"
            )
        return hidden
    if head is None:
        if hidden.shape[:-1] != labels.shape:
            raise ValueError(
                f"teacher_hidden has shape {tuple(hidden.shape)}; without "
                "teacher_head it must hold the teacher's logits for each of the "
                f"{labels.numel()} labels"
            )
        return _GivenLogits(hidden.detach().flatten(0, -2))
    return _head_logits("teacher", hidden.detach(), head, labels)


def _head_logits(
    who: str, hidden: torch.Tensor, head: torch.Tensor | Head, labels: torch.Tensor
) -> _HeadLogits:
    if not isinstance(head, Head):
        head = Head(head)
    if hidden.dim() < 2 or hidden.shape[:-1] != labels.shape:
        raise ValueError(
            f"{who}_hidden has shape {tuple(hidden.shape)} and labels "
            f"{tuple(labels.shape)}: there must be one hidden state per label"
        )
    if head.weight.dim() != 2 or head.weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{who}_head has shape {tuple(head.weight.shape)} and {who}_hidden "
            f"{tuple(hidden.shape)}: the head must be [vocabulary, "
            f"{hidden.shape[-1]}]"
        )
    return _HeadLogits(hidden.flatten(0, -2), head)


def _check_sparse(targets: SparseTargets, temperature: float, divergence: str) -> None:
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence={divergence!r} needs the teacher's whole distribution; from "
            "a cache only 'forward_kl' can be had"
        )
    if temperature != targets.temperature:
        raise ValueError(
            f"temperature={temperature}, but the cached soft labels were taken at "
            f"{targets.temperature}; use that, or write the cache again"
        )


# --- logits, a chunk at a time ------------------------------------------------------


@dataclass(frozen=True)
class _HeadLogits:
    """Logits that are computed when they are asked for."""

    hidden: torch.Tensor
    head: Head

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden.dtype

    def prepared(self, vocabulary: int, dtype: torch.dtype | None) -> _HeadLogits:
        """Cut to the vocabulary and cast once, for all chunks."""
        hidden = self.hidden if dtype is None else self.hidden.to(dtype)
        head = self.head
        weight = head.weight.detach()[:vocabulary].to(hidden.dtype)
        bias = head.bias
        if bias is not None:
            bias = bias.detach()[:vocabulary].to(hidden.dtype)
        return _HeadLogits(hidden, replace(head, weight=weight, bias=bias))

    def rows(self, chosen: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """Logits of the chosen positions, written to the buffer."""
        return self.head.logits(self.hidden.index_select(0, chosen), out=buffer)


@dataclass(frozen=True)
class _GivenLogits:
    """Logits that somebody else computed."""

    logits: torch.Tensor

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    def prepared(self, vocabulary: int, _: torch.dtype | None) -> _GivenLogits:
        return _GivenLogits(self.logits[:, :vocabulary])

    def rows(self, chosen: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        return torch.index_select(self.logits, 0, chosen, out=buffer[: len(chosen)])


def _chunk_size(
    plan: _Plan, rows: int, device: str, vocabulary: int, itemsize: int
) -> int:
    """Rows of a chunk: all chunks of about one size, none over the budget."""
    if plan.chunk_tokens is not None:
        most = plan.chunk_tokens
    else:
        budget = _BUFFER_BYTES.get(device, _BUFFER_BYTES["cpu"])
        most = max(16, budget // (2 * itemsize * vocabulary))
    chunks = max(1, math.ceil(rows / most))
    return max(1, math.ceil(rows / chunks))


def _rows_on_loan(
    plan: _Plan,
    rows: int,
    student: _HeadLogits,
    dense: _HeadLogits | _GivenLogits | None,
    weight: torch.Tensor | None,
) -> int:
    """Rows of a first chunk whose logits lie in the head's gradient; 0 if none.

    Until the first product fills it, the gradient ``[vocabulary, width]`` is empty
    memory that has to be there anyway. The more rows share a matrix product, the
    faster it is, and the less often the head and its gradient are read.
    """
    if plan.chunk_tokens is not None or weight is None or weight.device.type != "cpu":
        return 0
    logits = [student] if dense is None else [student, dense]
    if any(one.dtype != weight.dtype for one in logits):
        return 0
    vocabulary, width = student.vocabulary, weight.shape[1]
    size = weight.dtype.itemsize
    # Both logits have to fit in, and what `_overwrite` sets aside has to fit into the
    # memory that the chunks' own buffers would take.
    spare = _BUFFER_BYTES["cpu"] * width / (size * vocabulary)
    lent = min(rows, width // len(logits), math.isqrt(int(spare)))

    def chunks(rows: int) -> int:
        return math.ceil(rows / _chunk_size(plan, rows, "cpu", vocabulary, size))

    return lent if 1 + chunks(rows - lent) < chunks(rows) else 0


# --- the loop -----------------------------------------------------------------------


def _fused(
    hidden: torch.Tensor,
    head: torch.Tensor | Head,
    teacher: _HeadLogits | _GivenLogits | SparseTargets | None,
    labels: torch.Tensor,
    num_items: torch.Tensor | int | float | None,
    plan: _Plan,
) -> SoftLabelLoss:
    if plan.chunk_tokens is not None and plan.chunk_tokens < 1:
        raise ValueError(
            f"chunk_tokens={plan.chunk_tokens} must be at least 1, or None"
        )
    student = _head_logits("student", hidden, head, labels)
    vocabulary = student.vocabulary
    if isinstance(teacher, (_HeadLogits, _GivenLogits)):
        vocabulary = min(vocabulary, teacher.vocabulary)
    rows, targets = counted(labels, vocabulary, shift=plan.shift)
    if isinstance(teacher, SparseTargets):
        teacher.select(rows).check(vocabulary)
    count = item_count(num_items, targets)

    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    inputs = (student.hidden, student.head.weight, student.head.bias)
    plan = replace(
        plan,
        count=float(count),
        autocast=torch.get_autocast_dtype(device) if autocast else None,
        wanted=tuple(
            torch.is_grad_enabled() and x is not None and x.requires_grad
            for x in inputs
        ),
    )
    # Everything in the loop chooses its own dtype.
    with torch.autocast(device, enabled=False):
        loss, soft, hard = _FusedLoss.apply(
            *inputs, student, teacher, rows, targets, vocabulary, plan
        )
    if not math.isfinite(loss.item()):
        _explain(student.hidden, teacher, rows, loss.item())
    return SoftLabelLoss(loss, soft.detach(), hard.detach(), count)


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients in one loop; ``backward`` hands the gradients out.

    The three tensors come first so that autograd knows them; the loop uses the
    records that hold them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        student: _HeadLogits,
        teacher: _HeadLogits | _GivenLogits | SparseTargets | None,
        rows: torch.Tensor,
        targets: torch.Tensor,
        vocabulary: int,
        plan: _Plan,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        student = student.prepared(vocabulary, plan.autocast)
        precise = torch.promote_types(student.dtype, torch.float32)
        gradients = _Gradients(student, len(weight), plan, precise)
        dense: _HeadLogits | _GivenLogits | None = None
        if isinstance(teacher, (_HeadLogits, _GivenLogits)):
            dense = teacher.prepared(vocabulary, plan.autocast)
        total = torch.zeros(2, dtype=precise, device=hidden.device)

        def work_off(
            first: int, last: int, ours: torch.Tensor, teachers: torch.Tensor
        ) -> None:
            """Rows ``[first, last)``; the buffers are ``[chunk, vocabulary]``."""
            work = _Work(ours, precise, plan, student.head.soft_cap)
            for start in range(first, last, len(ours)):
                part = slice(start, min(start + len(ours), last))
                chosen = rows[part]
                logits = student.rows(chosen, ours)
                theirs: torch.Tensor | SparseTargets | None = None
                if isinstance(teacher, SparseTargets):
                    theirs = teacher.select(chosen)
                elif dense is not None:
                    theirs = dense.rows(chosen, teachers)
                total.add_(work.differentiate_(logits, theirs, targets[part]))
                gradients.add(student, chosen, logits)

        lent = _rows_on_loan(plan, len(rows), student, dense, gradients.weight)
        if lent:
            work_off(0, lent, *gradients.lend(lent, dense is not None))
        if lent < len(rows):
            size = _chunk_size(
                plan,
                len(rows) - lent,
                hidden.device.type,
                vocabulary,
                student.dtype.itemsize,
            )
            buffer = hidden.new_empty((size, vocabulary), dtype=student.dtype)
            second = buffer[:0]
            if dense is not None:
                second = torch.empty_like(buffer, dtype=dense.dtype)
            work_off(lent, len(rows), buffer, second)
        ctx.gradients = gradients.finished()
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        soft, hard = (total / plan.count).unbind()
        soft = soft * plan.scale
        # A term with weight zero is reported, but an infinite one cannot spoil the sum.
        if plan.alpha == 0:
            loss = hard.clone()
        elif plan.alpha == 1:
            loss = soft.clone()
        else:
            loss = plan.alpha * soft + (1 - plan.alpha) * hard
        ctx.mark_non_differentiable(soft, hard)
        return loss, soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the fused loss computes its gradients once; call it again before a "
                "second backward()"
            )
        # Let go of them: autograd then makes them .grad without a copy.
        gradients, ctx.gradients = ctx.gradients, None
        on_cpu = grad_loss.device.type == "cpu"
        if not (on_cpu and grad_loss.item() == 1):
            gradients = [g if g is None else g.mul_(grad_loss) for g in gradients]
        # Not before: what a scaled loss lifts into the range of fp16 would be lost.
        rounded = [
            g if g is None else g.to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*rounded, None, None, None, None, None, None)


class _Gradients:
    """Gradients of hidden states, head and bias, filled chunk by chunk.

    All are kept in fp32. The head's are a sum, and one that is rounded to bf16 after
    every chunk is biased; and divided by the tokens of a step, gradients may be too
    small for fp16 before a scaled loss comes back in ``backward``.
    """

    def __init__(
        self, student: _HeadLogits, width: int, plan: _Plan, precise: torch.dtype
    ) -> None:
        hidden, head = student.hidden, student.head
        self.vocabulary = len(head.weight)
        # A mix is weighted in the blocks; soft labels alone are weighted here.
        outer = plan.scale / plan.temperature if plan.alpha == 1 else 1.0
        self.factor = outer * head.scale / plan.count
        self.hidden = None
        if plan.wanted[0]:
            self.hidden = torch.zeros_like(hidden, dtype=precise)
        self.weight = self.bias = None
        if plan.wanted[1]:
            self.weight = hidden.new_empty((width, hidden.shape[1]), dtype=precise)
            self.weight[self.vocabulary :].zero_()
        if plan.wanted[2]:
            self.bias = hidden.new_zeros(width, dtype=precise)
        self.empty = True
        self.lent = False

    def lend(self, rows: int, dense: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Two buffers in the head's gradient, which is empty yet, until the next `add`.

        The student's lies at its end, so that its first rows can be filled while the
        buffer is still being read; the teacher's, if it is dense, at its beginning.
        """
        assert self.weight is not None
        self.lent = True
        free = self.weight[: self.vocabulary].view(-1)
        size = rows * self.vocabulary
        theirs = free[: size if dense else 0].view(-1, self.vocabulary)
        return free[-size:].view(rows, self.vocabulary), theirs

    def add(
        self, student: _HeadLogits, chosen: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Carry the gradient of a chunk's logits on to what they came from."""
        if self.hidden is not None:
            product = torch.mm(gradient, student.head.weight).to(self.hidden.dtype)
            self.hidden.index_copy_(0, chosen, product.mul_(self.factor))
        if self.bias is not None:
            sums = gradient.sum(0, dtype=self.bias.dtype)
            self.bias[: self.vocabulary].add_(sums, alpha=self.factor)
        if self.weight is not None:
            inputs = student.hidden.index_select(0, chosen)
            if self.lent:
                self._overwrite(gradient, inputs)
            else:
                self._add_to_weight(gradient, inputs)

    def _overwrite(self, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """Fill the head's gradient, in whose last part ``gradient`` lies."""
        assert self.weight is not None
        total = self.weight[: self.vocabulary]
        # Rows that end before the block begins can be written at once.
        free = self.vocabulary - math.ceil(gradient.numel() / total.shape[1])
        for rows, part in (
            (total[:free], gradient[:, :free]),
            (total[free:], gradient[:, free:].clone()),
        ):
            torch.addmm(rows, part.T, inputs, beta=0, alpha=self.factor, out=rows)
        self.empty = self.lent = False

    def _add_to_weight(self, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        assert self.weight is not None
        total = self.weight[: self.vocabulary]
        if gradient.dtype == total.dtype:
            # The first product overwrites: no need to fill the buffer with zeros.
            beta = 0 if self.empty else 1
            torch.addmm(
                total, gradient.T, inputs, beta=beta, alpha=self.factor, out=total
            )
        else:
            if self.empty:
                total.zero_()
            step = max(1, 2**23 // inputs.shape[1])
            for start in range(0, self.vocabulary, step):
                part = slice(start, start + step)
                product = torch.mm(gradient[:, part].T, inputs)
                total[part].add_(product, alpha=self.factor)
        self.empty = False

    def finished(self) -> list[torch.Tensor | None]:
        """The gradients."""
        if self.empty and self.weight is not None:
            self.weight.zero_()
        return [self.hidden, self.weight, self.bias]


class _Work:
    """Turns blocks of logits into their gradient, in place."""

    def __init__(
        self,
        buffer: torch.Tensor,
        precise: torch.dtype,
        plan: _Plan,
        soft_cap: float | None,
    ) -> None:
        self.plan = plan
        self.soft_cap = soft_cap
        self.scratch = Scratch.like(buffer, precise)
        shape = self.scratch.spare.shape

        def block_buffer(needed: bool) -> torch.Tensor | None:
            return buffer.new_empty(shape, dtype=precise) if needed else None

        self.copied = block_buffer(buffer.dtype != precise)
        self.plain = block_buffer(plan.temperature != 1 and plan.alpha < 1)
        self.slope = block_buffer(soft_cap is not None)

    def differentiate_(
        self,
        logits: torch.Tensor,
        teacher: torch.Tensor | SparseTargets | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Overwrite logits by their gradient; return the sums of both terms ``[2]``."""
        sums = []
        for rows in self.scratch.blocks(len(logits)):
            block = logits[rows]
            student = block
            if self.copied is not None:
                student = self.copied[: len(block)].copy_(block)
            theirs: torch.Tensor | SparseTargets | None = None
            if isinstance(teacher, SparseTargets):
                theirs = teacher.select(rows)
            elif teacher is not None:
                theirs = teacher[rows]
                if theirs.dtype != student.dtype:
                    theirs = self.scratch.copy(theirs)
            sums.append(self._block_(student, theirs, targets[rows].unsqueeze(-1)))
            if self.copied is not None:
                block.copy_(student)
        return torch.stack(sums).sum(0)

    def _block_(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor | SparseTargets | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        plan, scratch = self.plan, self.scratch
        slope = None
        if self.slope is not None and self.soft_cap is not None:
            slope = torch.div(student, self.soft_cap, out=self.slope[: len(student)])
            slope.square_().neg_().add_(1)
        picked = student.gather(1, targets)
        plain = scratch.student[: len(student)]
        if teacher is None or plan.temperature != 1:
            if self.plain is not None:
                plain = self.plain[: len(student)]
            total = softmax_(student, plain)
        if teacher is None:
            soft = torch.zeros_like(picked)
        else:
            if plan.temperature != 1:
                student.div_(plan.temperature)
            if isinstance(teacher, SparseTargets):
                soft, soft_total = sparse_divergence_(student, teacher, scratch)
            else:
                if plan.temperature != 1:
                    teacher.div_(plan.temperature)
                soft, soft_total = divergence_(
                    student, teacher, plan.divergence, plan.beta, scratch
                )
            if plan.temperature == 1:
                total = soft_total
        if plan.alpha == 0:
            student.copy_(plain)
        elif plan.alpha < 1:
            student.mul_(plan.alpha * plan.scale / plan.temperature)
            student.add_(plain, alpha=1 - plan.alpha)
        if plan.alpha < 1:
            student.scatter_add_(1, targets, torch.full_like(picked, plan.alpha - 1.0))
        if slope is not None:
            student.mul_(slope)
        return torch.stack([soft.sum(), (total - picked).sum()])


def sparse_divergence_(
    student: torch.Tensor, targets: SparseTargets, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL from stored targets; ``student`` becomes its gradient.

    Args:
        student: Logits ``[rows, vocabulary]``, divided by T already.
        targets: For these rows.
        scratch: Its ``student`` holds the student's softmax afterwards.

    Returns:
        Divergence and logarithm of the sum of exponentials, both ``[rows, 1]``.
    """
    ids, weights = targets.ids, targets.weights.to(student.dtype)
    chosen = student.gather(1, ids)
    q = scratch.student[: len(student)]
    total = softmax_(student, q)
    student.copy_(q)
    value = (weights * (total - chosen)).sum(-1, keepdim=True)
    if targets.tail is None:
        student.scatter_add_(1, ids, -weights)
    else:
        tail = targets.tail.to(student.dtype).unsqueeze(-1)
        mass = q.gather(1, ids)
        # Summed, not 1 - sum: what is left may be tiny.
        rest = student.scatter_(1, ids, 0.0).sum(-1, keepdim=True)
        tiny = torch.finfo(rest.dtype).tiny
        value -= torch.xlogy(tail, rest.clamp(min=tiny))
        student.mul_(1 - tail / rest.clamp(min=tiny))
        student.scatter_(1, ids, mass - weights)
    return value - targets.known_entropy.to(value.dtype).unsqueeze(-1), total


def _explain(
    hidden: torch.Tensor, teacher: Any, rows: torch.Tensor, loss: float
) -> None:
    inputs = {"student_hidden": hidden}
    if isinstance(teacher, _HeadLogits):
        inputs["teacher_hidden"] = teacher.hidden
    elif isinstance(teacher, _GivenLogits):
        inputs["teacher_hidden"] = teacher.logits
    for name, value in inputs.items():
        if bool(value[rows].isnan().any()):
            raise ValueError(
                f"{name} holds NaN at positions that count; look for a diverged "
                "model or an fp16 overflow"
            )
    raise ValueError(
        f"the loss is {loss}: a head holds NaN, or one model gives probability zero "
        "(a logit of -inf or an fp16 overflow) to a token that the other, or the "
        "labels, need"
    )
