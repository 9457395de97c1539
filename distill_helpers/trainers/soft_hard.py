"""Trainers with one student: hard labels, and soft labels of a teacher or a cache.

Taught in notebooks 02, 04 and 05.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from distill_helpers.losses import (
    Hidden,
    SparseTargets,
    check_options,
    cut_outputs,
    hard_label_loss,
    soft_label_loss,
)
from distill_helpers.models import (
    HeadReader,
    RememberingTeacher,
    check_head,
    is_dispatched,
    output_width,
    shared_vocabulary,
    unwrapped,
    vocabulary_size,
)
from distill_helpers.trainers.base import (
    DistillationTrainer,
    Objective,
    check_student,
)
from distill_helpers.trainers.checkpoints import refuse_shared
from distill_helpers.trainers.cross import CrossLabels, aligned_options, check_cross


@runtime_checkable
class StoredLabels(Protocol):
    """Soft labels that were computed before, such as a ``SoftLabelCache``."""

    @property
    def temperature(self) -> float:
        """Of the teacher's softmax."""

    @property
    def vocabulary(self) -> int:
        """Outputs of the teacher's head."""

    def lookup(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SparseTargets | torch.Tensor:
        """Targets, or the teacher's logits, of every position of a batch."""


class HardLabels:
    """Cross-entropy with the batch's labels.

    Args:
        fused: Multiply by a plain head inside the loss, chunk by chunk, instead of
            holding all logits.
    """

    def __init__(self, *, fused: bool = True) -> None:
        self.student = HeadReader("student", fused=fused)

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss; see :class:`Objective`."""
        student = self.student.read(model, inputs)
        loss = hard_label_loss(student, inputs["labels"], num_items=num_items)
        return {"loss": loss}


class LiveTeacher:
    """Soft labels from a model that reads the student's batch.

    Args:
        model: Called under ``no_grad``.
        vocabulary: Number of tokens that both heads share. What stands behind them
            is padding, or tokens of the teacher alone.
        fused: Hand out hidden states and head instead of all logits.
    """

    def __init__(self, model: nn.Module, vocabulary: int, *, fused: bool) -> None:
        self.model = model
        self.vocabulary = vocabulary
        # A dispatched teacher's hidden states and head may be on devices of their
        # own; its logits come back to where the ids were.
        self.reader = HeadReader("teacher", fused=fused and not is_dispatched(model))

    def read(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | Hidden:
        """Return what the teacher says at every position of a batch."""
        with torch.no_grad():
            return cut_outputs(self.reader.read(self.model, inputs), self.vocabulary)


class StoredTeacher:
    """Soft labels that were computed before, found by the rows' tokens.

    Args:
        store: A ``SoftLabelCache``, or whatever has its ``lookup``.
    """

    def __init__(self, store: StoredLabels) -> None:
        self.store = store
        self.vocabulary = store.vocabulary

    def read(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | SparseTargets:
        """Return what was stored for every position of a batch."""
        if "position_ids" in inputs:
            raise ValueError(
                "rows of pack_examples hold several examples, and stored soft labels "
                "are found by whole rows; train on the rows that were stored"
            )
        return self.store.lookup(inputs["input_ids"], inputs.get("attention_mask"))


class SoftLabels:
    """The mix of labels and a teacher's distribution; see ``losses``.

    Args:
        teacher: Called under ``no_grad`` on the student's batch; or soft labels that
            were stored.
        vocabulary: Number of tokens that both heads share; wider (padded) heads are
            cut.
        fused: Same as in :class:`HardLabels`.
        options: Keywords of :func:`distill_helpers.losses.soft_label_loss`.
    """

    def __init__(
        self,
        teacher: nn.Module | StoredLabels,
        vocabulary: int,
        *,
        fused: bool = True,
        **options: Any,
    ) -> None:
        self.student = HeadReader("student", fused=fused)
        self.teacher = _reading(teacher, vocabulary, fused=fused)
        self.options = options

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its two parts; see :class:`Objective`."""
        teacher = self.teacher.read(inputs)
        student = self.student.read(model, inputs)
        result = soft_label_loss(
            cut_outputs(student, self.teacher.vocabulary),
            teacher,
            inputs["labels"],
            num_items=num_items,
            **self.options,
        )
        return {"loss": result.loss, "soft": result.soft, "hard": result.hard}


class HardLabelTrainer(DistillationTrainer):
    """Fine-tune on labels: a text's own tokens, or those a teacher wrote.

    Args:
        model: The student.
        args: From :func:`training_arguments`.
        train_dataset: Rows with ``input_ids``; ``labels`` where not all is learned.
        tokenizer: The student's tokenizer.
        fused: Never hold all logits; see :mod:`distill_helpers.losses.fused`. Models
            without a plain head fall back to holding them.
        options: Further keywords of ``Trainer``.
    """

    def __init__(
        self, model: PreTrainedModel, *, fused: bool = True, **options: Any
    ) -> None:
        check_student("student", model)
        super().__init__(model, HardLabels(fused=fused), **options)


class SoftLabelTrainer(DistillationTrainer):
    """Distil a teacher's whole distribution, token by token.

    Args:
        model: The student.
        teacher: Frozen here, put into eval mode, moved to the student's device unless
            accelerate has dispatched it, and never saved. Or a ``SoftLabelCache``:
            then the rows must be those that it was written for, ``temperature`` the
            one it was written at, and the divergence forward KL.
        teacher_tokenizer: If given, compared with ``tokenizer`` by content. Without
            it only the sizes of the two heads can be compared.
        cross: What to learn from a teacher with another tokenizer: ``"chunks"``
            (:func:`~distill_helpers.losses.chunk_likelihood_loss`), ``"mapped"`` or
            ``"sorted"``. The rows' text is written in the teacher's tokens once,
            before the training (:func:`~distill_helpers.data.align_rows`). The teacher
            may be a cache of scheme ``full``, of these ``teacher_input_ids``. ``None``
            refuses another tokenizer.
        temperature: The temperature of both softmaxes in the soft term, > 0; of
            chunks, the T of :func:`~distill_helpers.losses.binary_kl`, for which 10
            to 100 teaches more than 1.
        alpha: Weight of the soft term.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.
        beta: The share of the teacher in the JSD's mixture, in [0, 1].
        scale_by_t2: Multiply the soft term by T²; that of chunks by T.
        fused: Never hold all logits; see :mod:`distill_helpers.losses.fused`. Models
            without a plain head fall back to holding them.
        tokenizer: The student's tokenizer.
        options: ``args``, ``train_dataset`` and further keywords of ``Trainer``.

    Raises:
        TypeError: For models that do not predict the next token.
        ValueError: If the vocabularies do not fit, or cannot be aligned with
            ``cross``; or the teacher has weights that the student is to learn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        teacher: nn.Module | StoredLabels,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        cross: str | None = None,
        temperature: float = 1.0,
        alpha: float = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        scale_by_t2: bool = True,
        fused: bool = True,
        **options: Any,
    ) -> None:
        if isinstance(teacher, nn.Module) and _reader(teacher) is model:
            raise ValueError(
                "teacher and model are one object, and a teacher is frozen; pass "
                "copy.deepcopy(model) as the teacher"
            )
        # Here already, not when the first step is done.
        check_options(temperature, alpha, divergence, beta)
        check_student("student", model)
        alignment = None
        if cross is not None:
            alignment = check_cross(
                cross, tokenizer, teacher_tokenizer, divergence=divergence
            )
        vocabulary = vocabulary_size(tokenizer)
        readers: dict[str, nn.Module] = {"student": model}
        if isinstance(teacher, StoredLabels) and alignment is not None:
            options = aligned_options(alignment, model, None, options)
        elif isinstance(teacher, StoredLabels):
            _check_store(teacher, model, temperature, divergence)
            if teacher_tokenizer is not None:
                shared_vocabulary(teacher_tokenizer, tokenizer)
        else:
            reader = _reader(teacher)
            check_head("teacher", unwrapped(reader))
            _refuse_shared_teacher(model, reader)
            if alignment is not None:
                options = aligned_options(alignment, model, reader, options)
            else:
                if teacher_tokenizer is not None:
                    vocabulary = shared_vocabulary(teacher_tokenizer, tokenizer)
                else:
                    _check_head_sizes(reader, model)
                readers["teacher"] = reader
            teacher = _apart(teacher, model).requires_grad_(False).eval()
        objective: Objective
        if alignment is not None:
            assert cross is not None
            width = len(alignment.teacher.bytes_of)
            objective = CrossLabels(
                _reading(teacher, width, fused=fused),
                cross,
                alignment,
                fused=fused,
                temperature=temperature,
                alpha=alpha,
                scale=scale_by_t2,
            )
        else:
            objective = SoftLabels(
                teacher,
                vocabulary,
                fused=fused,
                temperature=temperature,
                alpha=alpha,
                divergence=divergence,
                beta=beta,
                scale_by_t2=scale_by_t2,
            )
        super().__init__(
            model, objective, tokenizer=tokenizer, readers=readers, **options
        )
        if isinstance(teacher, nn.Module) and not is_dispatched(teacher):
            _move(teacher, self.args.device)


def _reading(
    teacher: nn.Module | StoredLabels, vocabulary: int, *, fused: bool
) -> LiveTeacher | StoredTeacher:
    if isinstance(teacher, StoredLabels):
        return StoredTeacher(teacher)
    return LiveTeacher(teacher, vocabulary, fused=fused)


def _reader(teacher: nn.Module) -> nn.Module:
    """The model that reads, for one that remembers is a wrapper."""
    return teacher.teacher if isinstance(teacher, RememberingTeacher) else teacher


def _refuse_shared_teacher(student: nn.Module, teacher: nn.Module) -> None:
    remedy = "pass copy.deepcopy(teacher) as the teacher"
    if any(module is teacher for module in student.modules()):  # never itself
        remedy = (
            "the teacher is the base inside the student, and that carries the "
            "student's adapters; pass a copy taken before they were added, or the "
            "base loaded a second time"
        )
    refuse_shared("student", student, "teacher", teacher, remedy)


def _apart(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """The teacher; where it shares frozen modules, with modules of its own.

    The weights stay shared. A module is in eval mode or not: shared, it would be in
    training mode for both, and the teacher's dropout on.
    """
    students = set(student.modules())
    if students.isdisjoint(teacher.modules()):
        return teacher
    weights = (*teacher.parameters(), *teacher.buffers())
    return copy.deepcopy(teacher, {id(tensor): tensor for tensor in weights})


def _move(teacher: nn.Module, device: torch.device) -> None:
    # Quantised models refuse to be moved, even to where they are.
    weights = (*teacher.parameters(), *teacher.buffers())
    if any(tensor.device != device for tensor in weights):
        teacher.to(device)


def _check_store(
    store: StoredLabels, student: PreTrainedModel, temperature: float, divergence: str
) -> None:
    if temperature != store.temperature:
        raise ValueError(
            f"temperature={temperature}, but the stored soft labels were taken at "
            f"{store.temperature}; pass that, or write the cache again"
        )
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence={divergence!r} needs the teacher's whole distribution; with "
            "a cache only 'forward_kl' can be had"
        )
    width = output_width(student)
    if width is not None and width < store.vocabulary:
        raise ValueError(
            f"the student's head has {width} outputs and the cache holds soft labels "
            f"over {store.vocabulary}; build the student on the teacher's vocabulary"
        )


def _check_head_sizes(teacher: nn.Module, student: PreTrainedModel) -> None:
    theirs, ours = output_width(teacher), output_width(student)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(
            f"the teacher's head has {theirs} outputs and the student's {ours}; pass "
            "teacher_tokenizer= so that the vocabularies can be compared and both "
            "heads cut to the tokens that they share: heads may be padded, and a "
            "teacher may have a few more tokens behind the student's"
        )
