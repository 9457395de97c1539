"""Trainers with one student: hard labels, and soft labels of a teacher or a cache.

Taught in notebooks 02, 04 and 05.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeAlias, runtime_checkable

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
    AdaptersOff,
    HeadReader,
    RememberingTeacher,
    adapters_off,
    check_head,
    is_dispatched,
    output_width,
    shared_vocabulary,
    unwrapped,
    vocabulary_size,
)
from distill_helpers.trainers.alignment import (
    as_read_by_teacher,
    at_student_places,
    has_own_prompts,
)
from distill_helpers.trainers.base import (
    DistillationTrainer,
    Objective,
    check_student,
)
from distill_helpers.trainers.checkpoints import refuse_shared
from distill_helpers.trainers.cross import CrossLabels, aligned_options, check_cross
from distill_helpers.trainers.routes import RoutedCollator, RoutedLabels, each_teacher


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


# What soft labels come from.
AnyTeacher: TypeAlias = nn.Module | AdaptersOff | StoredLabels


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

    Or its own rows, where these have prompts for the teacher alone
    (:func:`~distill_helpers.data.add_teacher_prompts`).

    Args:
        model: Called under ``no_grad``; or the student with its adapters off.
        vocabulary: Number of tokens that both heads share. What stands behind them
            is padding, or tokens of the teacher alone.
        fused: Hand out hidden states and head instead of all logits.
    """

    def __init__(
        self, model: nn.Module | AdaptersOff, vocabulary: int, *, fused: bool
    ) -> None:
        self.is_student = isinstance(model, AdaptersOff)
        self.model: nn.Module = (
            model.student if isinstance(model, AdaptersOff) else model
        )
        self.vocabulary = vocabulary
        # A dispatched teacher's hidden states and head may be on devices of their
        # own; its logits come back to where the ids were.
        self.reader = HeadReader(
            "teacher", fused=fused and not is_dispatched(self.model)
        )

    def read(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | Hidden:
        """Return what the teacher says at every position of a batch."""
        off = adapters_off(self.model) if self.is_student else nullcontext()
        with torch.no_grad(), off:
            said = self.reader.read(self.model, as_read_by_teacher(inputs))
            return cut_outputs(at_student_places(said, inputs), self.vocabulary)


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
        if has_own_prompts(inputs):
            raise ValueError(
                "rows have teacher_prompt_ids, and stored soft labels know nothing of "
                "them; pass the teacher itself, or leave that column out"
            )
        return self.store.lookup(inputs["input_ids"], inputs.get("attention_mask"))


class SoftLabels:
    """The mix of labels and a teacher's distribution; see ``losses``.

    Args:
        teacher: Called under ``no_grad`` on the student's batch; or soft labels that
            were stored; or the student with its adapters off.
        vocabulary: Number of tokens that both heads share; wider (padded) heads are
            cut.
        fused: Same as in :class:`HardLabels`.
        options: Keywords of :func:`distill_helpers.losses.soft_label_loss`.
    """

    def __init__(
        self,
        teacher: nn.Module | AdaptersOff | StoredLabels,
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
        return self.compare(student, teacher, inputs["labels"], num_items)

    def compare(
        self,
        student: torch.Tensor | Hidden,
        teacher: torch.Tensor | Hidden | SparseTargets,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """The same of what both have said.

        Args:
            student: What the student says of every position.
            teacher: What the teacher says.
            labels: The batch's, ``[rows, positions]``.
            num_items: What the sums are divided by.
        """
        result = soft_label_loss(
            cut_outputs(student, self.teacher.vocabulary),
            teacher,
            labels,
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

    Rows may hold another prompt for the teacher, which then sees more than the student
    (:func:`~distill_helpers.data.add_teacher_prompts`).

    Args:
        model: The student.
        teacher: Frozen here, put into eval mode, moved to the student's device unless
            accelerate has dispatched it, and never saved. Where FSDP 2 spreads the
            student over processes, so is the teacher. Or a ``SoftLabelCache``:
            then the rows must be those that it was written for, ``temperature`` the
            one it was written at, and the divergence forward KL. Or
            ``AdaptersOff(model)``: the student itself without its adapters, which needs
            no second copy of the weights. Or several of them by name, such as
            ``{"maths": model, "prose": another}``.
        teacher_tokenizer: If given, compared with ``tokenizer`` by content. Without
            it only the sizes of the two heads can be compared. With several teachers
            one for all, or one for each by name.
        teacher_column: With several teachers, the column in which each row names its
            own. A teacher reads its rows alone, and every counted position of a batch
            weighs the same, whoever teaches it.
        cross: What to learn from a teacher with another tokenizer: ``"shared"``
            (:func:`~distill_helpers.losses.shared_beginnings_loss`), ``"pieces"``
            (:func:`~distill_helpers.losses.first_pieces_loss`; begin with this one
            where the teacher's vocabulary is the larger), ``"chunks"``, ``"words"``
            (chunks, with the ends of words told), ``"mapped"`` or ``"sorted"``. The
            rows' text is written in the teacher's tokens once, before the training
            (:func:`~distill_helpers.data.align_rows`). The teacher may be a cache of
            scheme ``full``, of these ``teacher_input_ids``. ``None`` refuses another
            tokenizer.
        temperature: The temperature of both softmaxes in the soft term, > 0; of
            chunks and words, the T of :func:`~distill_helpers.losses.binary_kl`, for
            which 10 to 100 teaches more than 1.
        alpha: Weight of the soft term.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.
        beta: The share of the teacher in the JSD's mixture, in [0, 1].
        scale_by_t2: Multiply the soft term by T²; that of chunks and words by T, of
            pieces and shared beginnings the KL alone, and sorted by nothing.
        fused: Never hold all logits; see :mod:`distill_helpers.losses.fused`. Models
            without a plain head fall back to holding them.
        tokenizer: The student's tokenizer.
        options: ``args``, ``train_dataset`` and further keywords of ``Trainer``.

    Raises:
        TypeError: For models that do not predict the next token.
        ValueError: If the vocabularies do not fit, or cannot be aligned with
            ``cross``; the teacher has weights that the student is to learn; or a row
            names a teacher that there is not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        teacher: AnyTeacher | Mapping[Any, AnyTeacher],
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase
        | Mapping[Any, PreTrainedTokenizerBase]
        | None = None,
        teacher_column: str | None = None,
        cross: str | None = None,
        temperature: float = 1.0,
        alpha: float = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        scale_by_t2: bool = True,
        fused: bool = True,
        **options: Any,
    ) -> None:
        # Here already, not when the first step is done.
        check_options(temperature, alpha, divergence, beta)
        check_student("student", model)
        alignment = None
        if cross is not None:
            alignment = check_cross(
                cross,
                tokenizer,
                teacher_tokenizer,
                alone=isinstance(teacher, nn.Module | StoredLabels)
                and not isinstance(teacher_tokenizer, Mapping),
                divergence=divergence,
            )
        mix: dict[str, Any] = {
            "fused": fused,
            "temperature": temperature,
            "alpha": alpha,
        }
        parts: list[Any] = []
        readers: dict[str, nn.Module] = {"student": model}
        named = each_teacher(teacher, teacher_tokenizer, teacher_column)
        for name, (one, theirs) in named.items():
            who = "teacher" if teacher_column is None else f"teacher {name!r}"
            reader = _reading_model(one)
            try:
                _refuse_teacher(one, model)
                if alignment is not None:
                    options = aligned_options(alignment, model, reader, options)
                    outputs = len(alignment.teacher.bytes_of)
                else:
                    outputs = _shared_outputs(
                        *(one, model, tokenizer, theirs, temperature, divergence)
                    )
                    readers |= {} if reader is None else {who: reader}
            except (TypeError, ValueError) as error:
                if teacher_column is None:
                    raise
                raise type(error)(f"{who}: {error}") from error
            ready = _frozen(one, model)
            if cross is not None and alignment is not None:
                lesson = _reading(ready, outputs, fused=fused)
                parts.append(
                    CrossLabels(lesson, cross, alignment, scale=scale_by_t2, **mix)
                )
                continue
            mix |= {"divergence": divergence, "beta": beta}
            parts.append(SoftLabels(ready, outputs, scale_by_t2=scale_by_t2, **mix))
        objective: Objective = parts[0]
        if teacher_column is not None:
            objective = RoutedLabels(tuple(parts))
        super().__init__(
            model, objective, tokenizer=tokenizer, readers=readers, **options
        )
        if teacher_column is not None:
            # A process without a row of a teacher would let the others wait for it.
            self._refuse_spread_weights("several teachers cannot be read")
            routed = RoutedCollator(self.data_collator, teacher_column, tuple(named))
            routed.check("train_dataset", self.train_dataset)
            routed.check("eval_dataset", self.eval_dataset)
            self.data_collator = routed
        for part in parts:
            live = part.teacher
            if not isinstance(live, LiveTeacher):
                continue
            if live.is_student:
                self._refuse_spread_weights(
                    "adapters cannot be turned off for the teacher",
                    "load the base a second time, and pass it as the teacher, or ",
                )
            elif not is_dispatched(live.model):
                if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
                    _spread(_reader(live.model))
                _move(live.model, self.args.device)


def _reading(
    teacher: AnyTeacher, vocabulary: int, *, fused: bool
) -> LiveTeacher | StoredTeacher:
    if isinstance(teacher, StoredLabels):
        return StoredTeacher(teacher)
    return LiveTeacher(teacher, vocabulary, fused=fused)


def _reading_model(teacher: AnyTeacher) -> nn.Module | None:
    """The model that reads for a teacher; a cache has none."""
    if isinstance(teacher, StoredLabels):
        return None
    return teacher.student if isinstance(teacher, AdaptersOff) else _reader(teacher)


def _reader(teacher: nn.Module) -> nn.Module:
    """The model that reads, for one that remembers is a wrapper."""
    return teacher.teacher if isinstance(teacher, RememberingTeacher) else teacher


def _refuse_teacher(teacher: AnyTeacher, student: PreTrainedModel) -> None:
    """Refuse a teacher that cannot be read, or that the student would change."""
    if isinstance(teacher, StoredLabels):
        return
    if isinstance(teacher, AdaptersOff):
        _check_adapters_off(teacher, student)
        return
    reader = _reader(teacher)
    if reader is student:
        raise ValueError(
            "teacher and model are one object, and a teacher is frozen; pass "
            "copy.deepcopy(model) as the teacher; or, if the model has adapters, "
            "models.AdaptersOff(model)"
        )
    check_head("teacher", unwrapped(reader))
    _refuse_shared_teacher(student, reader)


def _shared_outputs(
    teacher: AnyTeacher,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    temperature: float,
    divergence: str,
) -> int:
    """How many tokens both heads share; refuse heads and caches that do not fit."""
    if isinstance(teacher, StoredLabels):
        _check_store(teacher, student, temperature, divergence)
    elif isinstance(teacher, nn.Module) and teacher_tokenizer is None:
        _check_head_sizes(_reader(teacher), student)
    if teacher_tokenizer is not None:
        return shared_vocabulary(teacher_tokenizer, tokenizer)
    return vocabulary_size(tokenizer)


def _frozen(teacher: AnyTeacher, student: nn.Module) -> AnyTeacher:
    """A teacher that is a model of its own, made ready to be read."""
    if isinstance(teacher, nn.Module):
        return _apart(teacher, student).requires_grad_(False).eval()
    return teacher


def _refuse_shared_teacher(student: nn.Module, teacher: nn.Module) -> None:
    remedy = "pass copy.deepcopy(teacher) as the teacher"
    if any(module is teacher for module in student.modules()):  # never itself
        remedy = (
            "the teacher is the base inside the student, and that carries the "
            "student's adapters; pass models.AdaptersOff(student), which reads without "
            "them, or the base loaded a second time"
        )
    refuse_shared("student", student, "teacher", teacher, remedy)


def _check_adapters_off(teacher: AdaptersOff, student: nn.Module) -> None:
    if teacher.student is not student:
        raise ValueError(
            "teacher is AdaptersOff of another model than the student; pass "
            "AdaptersOff(model), or, of another model, a copy without adapters"
        )
    teacher.check()


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


def _spread(teacher: nn.Module) -> None:
    """Let every process keep its share of the teacher, as FSDP 2 does of the student.

    Layer by layer, so that no more than one is whole at a time. Weights that are
    rounded to whole numbers cannot be divided; such a teacher stays as it is.
    """
    from torch.distributed.fsdp import fully_shard

    if not all(weight.is_floating_point() for weight in teacher.parameters()):
        return
    layers = getattr(teacher, "_no_split_modules", None) or ()
    for module in list(teacher.modules()):
        if type(module).__name__ in layers:
            fully_shard(module)
    fully_shard(teacher)


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
