"""The losses without the logits: hidden states in, loss and gradients out.

A language model's head turns ``[tokens, width]`` into ``[tokens, vocabulary]``, and a
soft-label loss wants that twice, plus its gradient. At a vocabulary of 150,000 those
tensors, not the models, fill the memory. Here the heads are multiplied a few tokens at
a time, each block of logits becomes its own gradient (the closed form), and is
multiplied on. Nothing of size ``[tokens, vocabulary]`` ever exists, and nothing is
computed twice: four matrix products in all, as in the plain way.

:func:`distill_helpers.losses.soft_label_loss` comes here with a student that is given
as :class:`~distill_helpers.losses.Hidden`. Taught in notebook 04.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from distill_helpers.losses.arguments import counted, item_count, refuse_bad_value
from distill_helpers.losses.gradients import (
    Scratch,
    block_rows,
    divergence_and_grad_,
    softmax_into,
    sparse_divergence_and_grad_,
)
from distill_helpers.losses.targets import Head, Hidden, SparseTargets

# Two buffers of [chunk, vocabulary] are held; more tokens at once make the matrix
# products faster, fewer make the buffers smaller.
_BUFFER_BYTES = {"cpu": 116 * 2**20, "cuda": 512 * 2**20}


def working_bytes(
    tokens: int,
    vocabulary: int,
    dtype: torch.dtype,
    device_type: str,
    *,
    teacher: bool = True,
) -> int:
    """Return the bytes that the losses hold while they work, gradients left aside.

    For planning on another machine than the one that will train. Where the first
    chunk lies in the head's gradient (:func:`_rows_in_head_grad`), it is less. A mix at
    another temperature than 1 takes one more block of rows, which is small.

    Args:
        tokens: Positions that count.
        vocabulary: Outputs that both heads share.
        dtype: The dtype of the matrix products: the half precision under autocast.
        device_type: ``"cpu"`` or ``"cuda"``.
        teacher: Whether a teacher's logits are computed as well.
    """
    chunk = _chunk_size(Options(), tokens, device_type, vocabulary, dtype.itemsize)
    block = min(chunk, block_rows(vocabulary, device_type))
    precise = 3 + (dtype.itemsize < 4)
    buffers = (1 + teacher) * chunk * dtype.itemsize
    return vocabulary * (buffers + 4 * precise * block)


# --- options ------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is summed over positions, and how the work is divided up.

    Attributes:
        temperature: The temperature of both softmaxes in the soft term.
        alpha: The weight of the soft term.
        divergence: Its name; a JSD has ``0 < beta < 1``.
        beta: The JSD's mixing weight.
        scale: Factor on the soft term: T², or 1.
        shift: Whether a position predicts the next label.
        chunk_tokens: Tokens whose logits exist at a time; ``None`` chooses.
        count: What the sums are divided by; :func:`fused_loss` fills it in, and the
            rest.
        autocast: The dtype of the matrix products, where autocast is on.
        wanted: Whether states, head and bias need a gradient.
    """

    temperature: float = 1.0
    alpha: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    scale: float = 1.0
    shift: bool = True
    chunk_tokens: int | None = None
    count: float = 1.0
    autocast: torch.dtype | None = None
    wanted: tuple[bool, ...] = (False, False, False)


# --- logits, a chunk at a time ------------------------------------------------------


@dataclass(frozen=True)
class _ComputedLogits:
    """Logits that are computed when they are asked for."""

    states: torch.Tensor
    head: Head

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.states.dtype

    def prepared(self, vocabulary: int, dtype: torch.dtype | None) -> _ComputedLogits:
        """Cut to the vocabulary and cast once, for all chunks."""
        states = self.states if dtype is None else self.states.to(dtype)
        head = self.head
        weight = head.weight.detach()[:vocabulary].to(states.dtype)
        bias = head.bias
        if bias is not None:
            bias = bias.detach()[:vocabulary].to(states.dtype)
        return _ComputedLogits(states, replace(head, weight=weight, bias=bias))

    def rows(self, chosen: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """Logits of the chosen positions, written to the buffer."""
        return self.head.logits(self.states.index_select(0, chosen), out=buffer)


@dataclass(frozen=True)
class _GivenLogits:
    """Logits that somebody else computed."""

    logits: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    def prepared(self, vocabulary: int, _: torch.dtype | None) -> _GivenLogits:
        return _GivenLogits(self.logits[:, :vocabulary])

    def rows(self, chosen: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        return torch.index_select(self.logits, 0, chosen, out=buffer[: len(chosen)])


def _chunk_size(
    options: Options, rows: int, device: str, vocabulary: int, itemsize: int
) -> int:
    """Rows of a chunk: all chunks of about one size, none over the budget."""
    if options.chunk_tokens is not None:
        most = options.chunk_tokens
    else:
        budget = _BUFFER_BYTES.get(device, _BUFFER_BYTES["cpu"])
        most = max(16, budget // (2 * itemsize * vocabulary))
    chunks = max(1, math.ceil(rows / most))
    return max(1, math.ceil(rows / chunks))


def _rows_in_head_grad(
    options: Options,
    rows: int,
    student: _ComputedLogits,
    dense: _ComputedLogits | _GivenLogits | None,
    weight: torch.Tensor | None,
) -> int:
    """Rows of a first chunk whose logits lie in the head's gradient; 0 if none.

    Until the first product fills it, the gradient ``[vocabulary, width]`` is empty
    memory that has to be there anyway. The more rows share a matrix product, the
    faster it is, and the less often the head and its gradient are read.
    """
    if (
        options.chunk_tokens is not None
        or weight is None
        or weight.device.type != "cpu"
    ):
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
        return math.ceil(rows / _chunk_size(options, rows, "cpu", vocabulary, size))

    return lent if 1 + chunks(rows - lent) < chunks(rows) else 0


# --- the loop -----------------------------------------------------------------------


def fused_loss(
    student: Hidden,
    teacher: torch.Tensor | Hidden | SparseTargets | None,
    labels: torch.Tensor,
    num_items: torch.Tensor | int | float | None,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | int | float]:
    """Compute the soft-label loss without holding the logits.

    Shapes and options have been checked by the caller.

    Args:
        student: States ``[..., positions, width]`` and head.
        teacher: The teacher's logits, states and head, or stored targets; ``None``
            for labels alone. Heads of unequal (padded) width are cut to the tokens
            that both have.
        labels: ``[..., positions]`` token ids.
        num_items: Number that the sums are divided by; ``None`` for the positions
            that count.
        options: Everything else.

    Returns:
        The loss, its soft and its hard part, and what the sums were divided by.
    """
    if options.chunk_tokens is not None and options.chunk_tokens < 1:
        raise ValueError(
            f"chunk_tokens={options.chunk_tokens} must be at least 1, or None"
        )
    ours = _ComputedLogits(student.states.flatten(0, -2), student.head)
    theirs = _flat_teacher(teacher)
    vocabulary = student.vocabulary
    if isinstance(teacher, Hidden):
        vocabulary = min(vocabulary, teacher.vocabulary)
    elif isinstance(teacher, torch.Tensor):
        vocabulary = min(vocabulary, teacher.shape[-1])
    rows, targets = counted(labels, vocabulary, shift=options.shift)
    if isinstance(theirs, SparseTargets):
        theirs.select(rows).check(vocabulary)
    count = item_count(num_items, targets)

    device = student.states.device.type
    autocast = torch.is_autocast_enabled(device)
    inputs = (ours.states, ours.head.weight, ours.head.bias)
    options = replace(
        options,
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
            *inputs, ours, theirs, rows, targets, vocabulary, options
        )
    refuse_bad_value(loss, rows, student, teacher)
    return loss, soft, hard, count


def _flat_teacher(
    teacher: torch.Tensor | Hidden | SparseTargets | None,
) -> _ComputedLogits | _GivenLogits | SparseTargets | None:
    """The teacher with one row per position, and no graph behind it."""
    if isinstance(teacher, Hidden):
        return _ComputedLogits(teacher.states.detach().flatten(0, -2), teacher.head)
    if isinstance(teacher, torch.Tensor):
        return _GivenLogits(teacher.detach().flatten(0, -2))
    return teacher


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients in one loop; ``backward`` hands the gradients out.

    The three tensors come first so that autograd knows them; the loop uses the
    records that hold them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        student: _ComputedLogits,
        teacher: _ComputedLogits | _GivenLogits | SparseTargets | None,
        rows: torch.Tensor,
        targets: torch.Tensor,
        vocabulary: int,
        options: Options,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        student = student.prepared(vocabulary, options.autocast)
        precise = torch.promote_types(student.dtype, torch.float32)
        gradients = _Gradients(student, len(weight), options, precise)
        dense: _ComputedLogits | _GivenLogits | None = None
        if isinstance(teacher, (_ComputedLogits, _GivenLogits)):
            dense = teacher.prepared(vocabulary, options.autocast)
        total = torch.zeros(2, dtype=precise, device=states.device)

        def process_rows(
            first: int, last: int, ours: torch.Tensor, teachers: torch.Tensor
        ) -> None:
            """Rows ``[first, last)``; the buffers are ``[chunk, vocabulary]``."""
            work = _BlockGradients(ours, precise, options, student.head.soft_cap)
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

        lent = _rows_in_head_grad(options, len(rows), student, dense, gradients.weight)
        if lent:
            process_rows(
                0, lent, *gradients.logits_in_head_grad(lent, dense is not None)
            )
        if lent < len(rows):
            size = _chunk_size(
                options,
                len(rows) - lent,
                states.device.type,
                vocabulary,
                student.dtype.itemsize,
            )
            buffer = states.new_empty((size, vocabulary), dtype=student.dtype)
            second = buffer[:0]
            if dense is not None:
                second = torch.empty_like(buffer, dtype=dense.dtype)
            process_rows(lent, len(rows), buffer, second)
        ctx.gradients = gradients.finished()
        ctx.dtypes = [None if x is None else x.dtype for x in (states, weight, bias)]
        soft, hard = (total / options.count).unbind()
        soft = soft * options.scale
        # A term with weight zero is reported, but an infinite one cannot spoil the sum.
        if options.alpha == 0:
            loss = hard.clone()
        elif options.alpha == 1:
            loss = soft.clone()
        else:
            loss = options.alpha * soft + (1 - options.alpha) * hard
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
        self,
        student: _ComputedLogits,
        width: int,
        options: Options,
        precise: torch.dtype,
    ) -> None:
        states, head = student.states, student.head
        self.vocabulary = len(head.weight)
        # A mix is weighted in the blocks; soft labels alone are weighted here.
        outer = options.scale / options.temperature if options.alpha == 1 else 1.0
        self.factor = outer * head.scale / options.count
        self.states = None
        if options.wanted[0]:
            self.states = torch.zeros_like(states, dtype=precise)
        self.weight = self.bias = None
        if options.wanted[1]:
            self.weight = states.new_empty((width, states.shape[1]), dtype=precise)
            self.weight[self.vocabulary :].zero_()
        if options.wanted[2]:
            self.bias = states.new_zeros(width, dtype=precise)
        self.empty = True
        self.holds_logits = False

    def logits_in_head_grad(
        self, rows: int, dense: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two buffers in the head's gradient, which is empty yet, until the next `add`.

        The student's lies at its end, so that its first rows can be filled while the
        buffer is still being read; the teacher's, if it is dense, at its beginning.
        """
        assert self.weight is not None
        self.holds_logits = True
        free = self.weight[: self.vocabulary].view(-1)
        size = rows * self.vocabulary
        theirs = free[: size if dense else 0].view(-1, self.vocabulary)
        return free[-size:].view(rows, self.vocabulary), theirs

    def add(
        self, student: _ComputedLogits, chosen: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Carry the gradient of a chunk's logits on to what they came from."""
        if self.states is not None:
            product = torch.mm(gradient, student.head.weight).to(self.states.dtype)
            self.states.index_copy_(0, chosen, product.mul_(self.factor))
        if self.bias is not None:
            sums = gradient.sum(0, dtype=self.bias.dtype)
            self.bias[: self.vocabulary].add_(sums, alpha=self.factor)
        if self.weight is not None:
            inputs = student.states.index_select(0, chosen)
            if self.holds_logits:
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
        self.empty = self.holds_logits = False

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
        return [self.states, self.weight, self.bias]


class _BlockGradients:
    """Turns blocks of logits into their gradient, in place."""

    def __init__(
        self,
        buffer: torch.Tensor,
        precise: torch.dtype,
        options: Options,
        soft_cap: float | None,
    ) -> None:
        self.options = options
        self.soft_cap = soft_cap
        self.scratch = Scratch.like(buffer, precise)
        shape = self.scratch.spare.shape

        def block_buffer(needed: bool) -> torch.Tensor | None:
            return buffer.new_empty(shape, dtype=precise) if needed else None

        self.copied = block_buffer(buffer.dtype != precise)
        self.plain = block_buffer(options.temperature != 1 and options.alpha < 1)
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
        options, scratch = self.options, self.scratch
        slope = None
        if self.slope is not None and self.soft_cap is not None:
            slope = torch.div(student, self.soft_cap, out=self.slope[: len(student)])
            slope.square_().neg_().add_(1)
        picked = student.gather(1, targets)
        plain = scratch.student[: len(student)]
        if teacher is None or options.temperature != 1:
            if self.plain is not None:
                plain = self.plain[: len(student)]
            total = softmax_into(student, plain)
        if teacher is None:
            soft = torch.zeros_like(picked)
        else:
            if options.temperature != 1:
                student.div_(options.temperature)
            if isinstance(teacher, SparseTargets):
                soft, soft_total = sparse_divergence_and_grad_(
                    student, teacher, scratch
                )
            else:
                if options.temperature != 1:
                    teacher.div_(options.temperature)
                soft, soft_total = divergence_and_grad_(
                    student, teacher, options.divergence, options.beta, scratch
                )
            if options.temperature == 1:
                total = soft_total
        if options.alpha == 0:
            student.copy_(plain)
        elif options.alpha < 1:
            student.mul_(options.alpha * options.scale / options.temperature)
            student.add_(plain, alpha=1 - options.alpha)
        if options.alpha < 1:
            student.scatter_add_(
                1, targets, torch.full_like(picked, options.alpha - 1.0)
            )
        if slope is not None:
            student.mul_(slope)
        return torch.stack([soft.sum(), (total - picked).sum()])
