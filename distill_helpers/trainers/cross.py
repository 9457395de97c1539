"""Soft labels of a teacher with another tokenizer: the objective, and its batches.

``SoftLabelTrainer(cross=…)`` comes here. Taught in notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from distill_helpers.data import (
    ALIGNED_COLUMNS,
    AlignedCollator,
    Alignment,
    align_rows,
    align_tokenizers,
    collator_for,
)
from distill_helpers.losses import (
    CrossLoss,
    Hidden,
    SparseTargets,
    chunk_likelihood_loss,
    cut_outputs,
    first_pieces_loss,
    hard_label_loss,
    mapped_vocabulary_loss,
    shared_beginnings_loss,
    sorted_probabilities_loss,
)
from distill_helpers.models import HeadReader, Readers
from distill_helpers.trainers.alignment import as_read_by_teacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CROSS = ("shared", "pieces", "chunks", "words", "mapped", "sorted")


class ReadingTeacher(Protocol):
    """Whoever says what comes next in the teacher's own rows."""

    def read(
        self, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | Hidden | SparseTargets:
        """What the teacher says at every position of a batch."""


class Standing(Protocol):
    """Which token stands for which of another vocabulary, as an ``Alignment`` says."""

    @property
    def twins(self) -> torch.Tensor:
        """For each of the student's ids the teacher's, or ``-1``."""

    @property
    def first_pieces(self) -> torch.Tensor:
        """For each of the teacher's ids the student's that begins it, or ``-1``."""

    @property
    def beginnings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of both, the number of the shared token that each id begins with."""

    @property
    def word_starts(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Both models' ids that end a word before; ``None`` where none is asked."""


class CrossLabels:
    """The mix of labels and a teacher who reads the text in tokens of its own.

    Args:
        teacher: Reads ``teacher_input_ids``.
        kind: One of ``CROSS``.
        alignment: How the student's and the teacher's tokens go together.
        fused: Same as in :class:`~distill_helpers.trainers.HardLabels`.
        temperature: ``T`` of the chosen loss.
        alpha: Weight of the soft term; the rest goes to the labels.
        scale: Multiply by what T makes gradients smaller by: T of chunks and words,
            T² of mapped vocabularies and of the KL of pieces and shared beginnings;
            sorted has no factor.
    """

    def __init__(
        self,
        teacher: ReadingTeacher,
        kind: str,
        alignment: Standing,
        *,
        fused: bool = True,
        temperature: float = 1.0,
        alpha: float = 1.0,
        scale: bool = True,
    ) -> None:
        self.student = HeadReader("student", fused=fused)
        self.teacher = teacher
        self.kind = kind
        self.outputs = len(alignment.twins)
        # Which token stands for which, in the direction that the loss takes.
        self.standing: tuple[torch.Tensor, ...] = ()
        if kind == "mapped":
            self.standing = (alignment.twins,)
        elif kind == "pieces":
            self.standing = (alignment.first_pieces,)
        elif kind == "shared":
            self.standing = alignment.beginnings
        self.starts = alignment.word_starts if kind == "words" else None
        self.temperature = temperature
        self.alpha = alpha
        self.scale = scale

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts; see :class:`Objective`.

        The parts are ``soft`` and, with labels in the mix, ``hard``; ``compared``, the
        share of the labels that the soft term compares; ``covered``, of mapped
        vocabularies, pieces and shared beginnings, the teacher's probability per label;
        and ``unaligned``, the number of rows that have no chunk.
        """
        labels = inputs["labels"]
        teacher = self.teacher.read(as_read_by_teacher(inputs))
        if isinstance(teacher, SparseTargets):
            raise ValueError(
                "the cache holds a part of each distribution, and across tokenizers "
                "the whole is needed; write it with scheme='full'"
            )
        student = cut_outputs(self.student.read(model, inputs), self.outputs)
        found = self._compare(student, teacher, inputs, num_items)
        parts = {"loss": found.loss, "soft": found.loss.detach()}
        if self.alpha < 1:
            hard = hard_label_loss(student, labels, num_items=num_items)
            parts["loss"] = self.alpha * found.loss + (1 - self.alpha) * hard
            parts["hard"] = hard.detach()
        parts["compared"] = found.compared
        if found.covered is not None:
            parts["covered"] = found.covered
        learns = (labels >= 0).any(1)
        parts["unaligned"] = (learns & (inputs["chunks"] < 0).all(1)).sum().float()
        return parts

    def _compare(
        self,
        student: torch.Tensor | Hidden,
        teacher: torch.Tensor | Hidden,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> CrossLoss:
        labels = inputs["labels"]
        both: tuple[torch.Tensor, ...] = (inputs["chunks"], inputs["teacher_chunks"])
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "num_items": num_items,
        }
        ids = inputs["teacher_input_ids"]
        if self.kind in ("chunks", "words"):
            options["word_starts"] = self.starts
            return chunk_likelihood_loss(
                student, teacher, labels, ids, *both, scale_by_t=self.scale, **options
            )
        if self.kind == "sorted":
            return sorted_probabilities_loss(student, teacher, labels, *both, **options)
        self.standing = tuple(one.to(labels.device) for one in self.standing)
        both += self.standing
        options["scale_by_t2"] = self.scale
        if self.kind == "mapped":
            return mapped_vocabulary_loss(student, teacher, labels, *both, **options)
        if self.kind == "pieces":
            return first_pieces_loss(student, teacher, labels, ids, *both, **options)
        return shared_beginnings_loss(student, teacher, labels, ids, *both, **options)


def check_cross(
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: Any,
    *,
    alone: bool,
    divergence: str,
) -> Alignment:
    """Align the tokenizers of ``SoftLabelTrainer(cross=…)``; refuse what cannot be.

    Args:
        kind: The value of ``cross``.
        tokenizer: The student's tokenizer.
        teacher_tokenizer: The teacher's tokenizer.
        alone: Whether the teacher is a single model.
        divergence: That of the trainer.

    Raises:
        ValueError: For options that do not go together, and for tokenizers whose
            tokens' bytes cannot be known.
    """
    if kind not in CROSS:
        raise ValueError(f"cross={kind!r} must be one of {', '.join(CROSS)}, or None")
    if teacher_tokenizer is None:
        raise ValueError(
            f"cross={kind!r} needs teacher_tokenizer=, to write each row's text in the "
            "teacher's tokens"
        )
    if not alone:
        raise ValueError(
            f"cross={kind!r} needs one teacher, a model or a cache of its own rows: "
            "several may have several tokenizers; pass that one, without teacher_column"
        )
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence={divergence!r} has no meaning with cross={kind!r}, which is a "
            "loss of its own; leave divergence out"
        )
    return align_tokenizers(tokenizer, teacher_tokenizer)


def aligned_options(
    alignment: Alignment,
    student: nn.Module,
    teacher: nn.Module | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Options of a trainer whose rows and batches hold the teacher's tokens too.

    Args:
        alignment: How the two tokenizers go together.
        student: Which ids it can read, its batches are held to.
        teacher: Which ids it can read, the batches' teacher part is held to; ``None``
            where a cache stands for it.
        options: With ``train_dataset`` and perhaps ``eval_dataset``. Rows of
            :func:`~distill_helpers.data.align_rows` stay as they are; others are
            aligned here, once.
    """
    changed = dict(options)
    if options.get("data_collator") is not None:
        raise ValueError(
            "data_collator would have no effect with cross=, which makes batches of "
            "both tokenizers' rows; leave it out"
        )
    collate = AlignedCollator(
        collator_for(alignment.student.tokenizer),
        collator_for(alignment.teacher.tokenizer),
    )
    Readers({"student": student}).check_pad(collate.student.pad_token_id)
    readers = Readers({} if teacher is None else {"teacher": teacher})
    readers.check_pad(collate.teacher.pad_token_id)
    changed["data_collator"] = _TeacherChecked(collate, readers)
    for name in ("train_dataset", "eval_dataset"):
        rows = options.get(name)
        if isinstance(rows, dict):
            changed[name] = {key: _aligned(one, alignment) for key, one in rows.items()}
        elif rows is not None:
            changed[name] = _aligned(rows, alignment)
    return changed


def _aligned(rows: Dataset, alignment: Alignment) -> Dataset:
    if {*ALIGNED_COLUMNS} <= {*(rows.column_names or ())}:
        return rows
    return align_rows(rows, alignment)


@dataclass(frozen=True)
class _TeacherChecked:
    """Makes a batch, and looks whether the teacher can read its part."""

    collate: Callable[[list[Any]], dict[str, torch.Tensor]]
    readers: Readers

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        self.readers.check_batch({"input_ids": batch["teacher_input_ids"]})
        return batch
