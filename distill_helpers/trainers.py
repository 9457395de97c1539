"""Trainers that distil, on transformers' ``Trainer``.

One base trainer calls ``objective(model, inputs, num_items)``; what is learned from –
labels, soft labels, later a cache or the student's own text – is an objective. So
gradient accumulation, several processes, precision and resuming are solved once, here.

Taught in notebook 02.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)
from transformers.trainer_utils import SaveStrategy, TrainOutput
from transformers.utils.notebook import NotebookProgressCallback

from distill_helpers.data import collator_for, refuse_padding
from distill_helpers.heads import HeadReader, check_head
from distill_helpers.limits import (
    Readers,
    is_dispatched,
    output_width,
    text_config,
    unwrapped,
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
    RememberingTeacher,
    eval_mode,
    shared_vocabulary,
    vocabulary_size,
)
from distill_helpers.profiles import Profile

if TYPE_CHECKING:
    from datasets import Dataset

_COMPLETE = "COMPLETE"
_LOGGER = logging.getLogger(__name__)


class Objective(Protocol):
    """What a trainer minimises."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """Return at least ``{"loss": scalar}``; other entries are logged.

        Args:
            model: The student as the Trainer wraps it; call it, never its parts, or
                several processes stop sharing gradients.
            inputs: A batch of :class:`distill_helpers.data.Collator`.
            num_items: Counted positions of the whole optimizer step, in all
                processes; sums are divided by it.
        """


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
        self.teacher: LiveTeacher | StoredTeacher
        if isinstance(teacher, StoredLabels):
            self.teacher = StoredTeacher(teacher)
        else:
            self.teacher = LiveTeacher(teacher, vocabulary, fused=fused)
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


class DistillationTrainer(Trainer):
    """``Trainer`` for an :class:`Objective`.

    Beyond the base class: the loss is right under accumulation and in several
    processes; a checkpoint counts only when it is complete, and
    ``train(resume_from_checkpoint=True)`` goes on from the last complete one, or
    starts anew if there is none; the objective's parts are logged; ids and rows that
    a model cannot read are found before it is called.

    Args:
        model: The student.
        objective: What to minimise.
        args: From :func:`training_arguments`, or your own.
        train_dataset: Rows with ``input_ids`` and, if not all is learned, ``labels``.
        tokenizer: Of the student.
        readers: Name to model, of all that read the batches; the student alone, if
            nothing is said.
        options: Further keywords of ``Trainer``.

    Raises:
        ValueError: For options of ``Trainer`` that would have no effect, since the
            objective is the whole loss; and for a pad token that a model does not have.
    """

    objective: Objective

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        *,
        args: TrainingArguments,
        train_dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        readers: Mapping[str, nn.Module] | None = None,
        **options: Any,
    ) -> None:
        if not args.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False would weigh processes instead "
                "of tokens; leave it at True"
            )
        _refuse_without_effect(args, options)
        if args.n_gpu > 1:
            # DataParallel splits num_items in ways a loss cannot follow; several
            # GPUs are used through `accelerate launch`.
            args._n_gpu = 1
        if args.save_strategy != SaveStrategy.NO:
            refuse_unsaved("student", model)
        self._readers = Readers(readers or {"student": model})
        collate = options.pop("data_collator", None)
        if collate is None:
            collate = collator_for(tokenizer)
            self._readers.check_pad(collate.pad_token_id)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=_CheckedCollator(collate, self._readers),
            processing_class=tokenizer,
            **options,
        )
        # Makes Trainer count the labels of the whole step and pass the number on; the
        # objective divides by it, so Trainer does not divide by the micro-batches
        # again. Without labels there is no number, and Trainer averages them.
        self.model_accepts_loss_kwargs = True
        # It does so, and leaves the first label of a row out, for models whose
        # class it knows; an objective takes any module.
        self.label_names = ["labels"]
        self._loss_shifts_labels = True
        self.objective = objective
        self._forget_parts()
        for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
            self.remove_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(ProgressBar())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Call the objective; scale for the average that processes will take."""
        with self.accelerator.autocast():  # for the teacher, and a fused head
            parts = self.objective(model, inputs, num_items_in_batch)
        loss = parts["loss"]
        if model.training:
            for name, value in parts.items():
                if name != "loss":
                    # A part may join later: a partner that has to learn first.
                    self._parts_since.setdefault(name, self.state.global_step)
                    total = self._parts.get(name, 0.0)
                    self._parts[name] = total + value.detach()
        if num_items_in_batch is not None:
            # Gradients are averaged over processes, and num_items counts them all.
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's parts, per step, to a training log."""
        if "loss" in logs:
            for name, value in self._parts.items():
                steps = self.state.global_step - self._parts_since[name]
                if steps > 0:
                    logs[name] = float(self.accelerator.reduce(value, "sum")) / steps
            self._forget_parts()
        super().log(logs, start_time)

    def _forget_parts(self) -> None:
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_since: dict[str, int] = {}

    def _forget_run(self) -> None:
        """Forget what an interrupted run has gathered; before every run."""
        self._forget_parts()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on where a run was cut off.

        A run that starts anew in a folder with complete checkpoints warns: cut off
        early, it would be resumed from one of those.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(str(self.args.output_dir))
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint and not is_complete(Path(resume_from_checkpoint)):
            raise ValueError(
                f"resume_from_checkpoint={resume_from_checkpoint!r} is not a complete "
                "checkpoint; pass True to take the last complete one"
            )
        self._forget_run()
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            _refuse_without(checkpoint, TRAINER_STATE_NAME)
            finished = self._finished(checkpoint)
            if finished is not None:
                return finished
            # Those keep an optimizer's state in files of their own.
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                _refuse_without(checkpoint, OPTIMIZER_NAME, SCHEDULER_NAME)
        elif self.is_world_process_zero():
            _warn_of_an_earlier_run(Path(str(self.args.output_dir)))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        """The end of a run that has no steps left, its weights loaded.

        ``Trainer`` would take one more step, and change a model that was done.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        wanted = self.args.max_steps
        if wanted <= 0 or state.global_step < wanted:
            return None
        if state.global_step > wanted:
            raise ValueError(
                f"max_steps={wanted}, but {checkpoint} has {state.global_step} steps "
                "behind it; choose another output folder, or ask for as many"
            )
        _LOGGER.info("%s is the end of this run: nothing is left to train", checkpoint)
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        mean = sum(losses) / len(losses) if losses else math.nan
        return TrainOutput(state.global_step, mean, {})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        student: Any = self.model
        if isinstance(student, PreTrainedModel) and hasattr(student, "peft_config"):
            # Adapters without PEFT's wrapper, in whose checkpoints Trainer looks for
            # the whole model.
            load_adapters(student, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer writes in place and deletes old checkpoints at once. Here the marker
        # comes last, and nothing is deleted before it stands.
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (checkpoint / _COMPLETE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._seal_checkpoint(checkpoint)

    def _finalize_training(self, *arguments: Any, **options: Any) -> TrainOutput:
        # With a limit of 1, Trainer would now delete all but the best checkpoint, and
        # without its last one a finished run would be trained again. The limit was
        # kept to whenever a checkpoint was sealed.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output: TrainOutput = super()._finalize_training(*arguments, **options)
        finally:
            self.args.save_total_limit = limit
        return output

    def _seal_checkpoint(self, checkpoint: Path) -> None:
        (checkpoint / _COMPLETE).touch()
        best = self.state.best_model_checkpoint
        _remove_oldest(
            checkpoint.parent,
            self.args.save_total_limit,
            # By name: an earlier process may have written the folder otherwise.
            protected={checkpoint, checkpoint.with_name(Path(best or checkpoint).name)},
        )

    def _refuse_spread_weights(self, what_fails: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{what_fails} where weights are spread over processes; run without "
                "FSDP and DeepSpeed"
            )


@dataclass(frozen=True)
class _CheckedCollator:
    """Makes a batch, and looks whether every model can read it."""

    collate: Callable[[list[Any]], Any]
    readers: Readers

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        self.readers.check_batch(batch)
        return batch


def _refuse_without_effect(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    names = ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")
    unused = [name for name in names if options.get(name) is not None]
    if args.label_smoothing_factor:
        unused.append(f"label_smoothing_factor={args.label_smoothing_factor}")
    if unused:
        raise ValueError(
            f"{unused[0]} would have no effect: the objective is the loss, and it "
            "gives no logits; write an Objective for another loss, and measure with "
            "evaluation.evaluate"
        )


def check_student(who: str, model: nn.Module) -> None:
    """Refuse a model that could not be trained, or not as one thinks.

    Args:
        who: ``"student"``, or a name, for the message.
        model: To be trained.

    Raises:
        TypeError: For a model that does not predict the next token.
        ValueError: For experts whose balance would silently be forgotten; for weights
            that accelerate keeps elsewhere.
    """
    check_head(who, unwrapped(model))
    if getattr(text_config(model), "output_router_logits", False):
        raise ValueError(
            "config.output_router_logits=True would have no effect: the loss that "
            "balances the experts is not part of this objective; set it to False, "
            "or give DistillationTrainer an Objective that adds it"
        )
    if is_dispatched(model):
        raise ValueError(
            f"the {who} is dispatched over several devices or to disk (device_map), "
            "where its weights cannot be trained; load it without device_map, or train "
            "an adapter on a quantised base that fits one device"
        )


def refuse_shared(
    who: str, model: nn.Module, whose: str, other: nn.Module, remedy: str
) -> None:
    """Raise ``ValueError`` where another model has a weight that this one learns.

    By identity, and by the memory that it lies in. What is frozen may be shared.

    Args:
        who: Name of ``model``, for the message, and so is ``whose``.
        model: To be trained.
        whose: Name of ``other``.
        other: That would change, or be frozen, with it.
        remedy: What to do about it.
    """
    theirs = {_memory(tensor) for tensor in (*other.parameters(), *other.buffers())}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _memory(parameter) in theirs:
            raise ValueError(
                f"the {who} and the {whose} share {name}, which the {who} is to learn: "
                f"one could not change without the other; {remedy}"
            )


def refuse_unsaved(who: str, model: nn.Module) -> None:
    """Raise ``ValueError`` for weights that a checkpoint of adapters leaves out.

    PEFT saves adapters and what ``modules_to_save`` names. A resumed run would have
    everything else as it was in the beginning.

    Args:
        who: ``"student"``, or a name, for the message.
        model: To be trained and saved.
    """
    adapters = getattr(model, "peft_config", None) or {}
    # Of learned prompts, PEFT saves what it makes of them, and can go on from that.
    if not adapters or any(one.is_prompt_learning for one in adapters.values()):
        return
    from peft import get_peft_model_state_dict

    saved = {
        _memory(tensor)
        for name in adapters
        for tensor in get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        ).values()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _memory(parameter) not in saved:
            raise ValueError(
                f"the {who} learns {name}, which is not part of its adapters and is "
                "not saved with them, so that no run could go on from a checkpoint; "
                "name its module in modules_to_save, freeze it, or save nothing "
                "(output_dir=None, or save_strategy='no')"
            )


def load_adapters(model: Any, folder: Path) -> None:
    """Load the adapters that ``save_pretrained`` wrote into those that a model has."""
    from peft import load_peft_weights, set_peft_model_state_dict

    for name in model.peft_config:
        own = folder if name == "default" else folder / name
        weights = load_peft_weights(str(own), device="cpu")
        set_peft_model_state_dict(model, weights, adapter_name=name)


def _memory(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie; its identity, if they are in no memory or many."""
    if tensor.is_meta or type(tensor) not in (torch.Tensor, nn.Parameter):
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)


class HardLabelTrainer(DistillationTrainer):
    """Fine-tune on labels: a text's own tokens, or those a teacher wrote.

    Args:
        model: The student.
        args: From :func:`training_arguments`.
        train_dataset: Rows with ``input_ids``; ``labels`` where not all is learned.
        tokenizer: Of the student.
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
        temperature: Of both softmaxes in the soft term.
        alpha: Weight of the soft term.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.
        beta: Of the JSD.
        scale_by_t2: Multiply the soft term by T².
        fused: Never hold all logits; see :mod:`distill_helpers.losses.fused`. Models
            without a plain head fall back to holding them.
        tokenizer: Of the student.
        options: ``args``, ``train_dataset`` and further keywords of ``Trainer``.

    Raises:
        TypeError: For models that do not predict the next token.
        ValueError: If the vocabularies do not fit, or the teacher has weights that the
            student is to learn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        teacher: nn.Module | StoredLabels,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
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
        vocabulary = vocabulary_size(tokenizer)
        readers: dict[str, nn.Module] = {"student": model}
        if isinstance(teacher, StoredLabels):
            _check_store(teacher, model, temperature, divergence)
            if teacher_tokenizer is not None:
                shared_vocabulary(teacher_tokenizer, tokenizer)
        else:
            reader = _reader(teacher)
            check_head("teacher", unwrapped(reader))
            _refuse_shared_teacher(model, reader)
            if teacher_tokenizer is not None:
                vocabulary = shared_vocabulary(teacher_tokenizer, tokenizer)
            else:
                _check_head_sizes(reader, model)
            teacher = _apart(teacher, model).requires_grad_(False).eval()
            readers["teacher"] = reader
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


def relabel(
    rows: Dataset,
    teacher: nn.Module,
    *,
    how: str,
    seed: int = 0,
    batch_size: int = 16,
) -> Dataset:
    """Replace every label by the teacher's own choice at that position.

    The text that the teacher reads stays the same; only what the student should say
    next changes. This is the token-level form of hard labels.

    Args:
        rows: Rows of one length with ``input_ids``, none of it masked.
        teacher: Read in eval mode.
        how: ``"argmax"`` takes the likeliest token, ``"sample"`` draws one from the
            teacher's distribution at T = 1.
        seed: Of the draws.
        batch_size: Rows per forward pass.

    Returns:
        The rows with a ``labels`` column (unshifted: label t + 1 belongs to the
        distribution at t).
    """
    if how not in ("argmax", "sample"):
        raise ValueError(f"how={how!r} must be 'argmax' or 'sample'")
    rows = rows.with_format("torch")
    if "attention_mask" in rows.column_names:
        refuse_padding(rows["attention_mask"])
    device = next(teacher.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    labels: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        ids = rows[start : start + batch_size]["input_ids"]
        if not torch.is_tensor(ids):
            raise ValueError("rows differ in length; pack them into rows of one length")
        ids = ids.to(device)
        with torch.no_grad(), eval_mode(teacher):
            logits = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float()
        if how == "argmax":
            chosen = logits.argmax(-1)
        else:
            flat = logits.softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(flat, 1, generator=generator)
            chosen = drawn.view(ids[:, 1:].shape)
        labels += torch.cat([ids[:, :1], chosen], 1).tolist()
    rows = rows.with_format(None)
    if "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    return rows.add_column("labels", labels)


def training_arguments(
    profile: Profile,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    output_dir: str | Path | None = None,
    mixed_precision: bool = True,
    **overrides: Any,
) -> TrainingArguments:
    """``TrainingArguments`` with the defaults that distilling needs.

    Args:
        profile: Decides device and precision.
        steps: Optimizer steps.
        learning_rate: Peak; warmed up over 5 % of the steps, then decayed to zero
            along a cosine.
        batch_size: Rows per micro-batch and process.
        output_dir: For checkpoints. Without one, nothing is saved.
        mixed_precision: ``False`` trains in plain fp32 wherever it runs.
        overrides: Any field of ``TrainingArguments``.
    """
    autocast = profile.autocast_dtype if mixed_precision else None
    unsaved = Path(tempfile.gettempdir()) / "distill_unsaved"
    settings: dict[str, Any] = {
        "output_dir": str(output_dir or unsaved),
        "max_steps": steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "warmup_steps": max(1, steps // 20),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "logging_steps": max(1, steps // 20),
        # A NaN is to be seen, not filtered out of the log.
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if output_dir is None else "steps",
        "save_steps": max(1, steps // 5),
        "save_total_limit": 2,
        "report_to": "none",
        # The collator decides what a batch holds.
        "remove_unused_columns": False,
        "dataloader_pin_memory": profile.device == "cuda",
        # Without this, Trainer takes any accelerator it finds.
        "use_cpu": profile.device == "cpu",
        "bf16": autocast == torch.bfloat16,
        "fp16": autocast == torch.float16,
    }
    return TrainingArguments(**(settings | overrides))


def end_processes() -> None:
    """End this process, if it is one of several; the last line of such a script.

    Waits for the others, flushes what was printed and leaves with status 0 at once.
    Gloo offers no safe way home: its group's destructor waits for a thread that may
    wait for the interpreter, so that tearing it down can hang, and leaving it to
    Python's own exit can abort (pytorch issue 190489). With one process this does
    nothing.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    distributed.barrier()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _refuse_without(checkpoint: Path, *names: str) -> None:
    missing = [name for name in names if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} has no {' and no '.join(missing)}, as save_only_model=True "
            "leaves it: nobody could go on from there, only begin a new schedule with "
            "its weights. Train with save_only_model=False to resume; or load the "
            "weights with from_pretrained and train into another output folder"
        )


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint folder was written to its end."""
    return (checkpoint / _COMPLETE).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint with the highest step, or ``None``."""
    found = _complete_checkpoints(Path(output_dir))
    return found[-1] if found else None


def _complete_checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def _warn_of_an_earlier_run(folder: Path) -> None:
    found = _complete_checkpoints(folder)
    if found:
        _LOGGER.warning(
            "output_dir=%r holds %s of an earlier run, and this one starts anew: cut "
            "off early, it would be resumed from there; choose another folder, delete "
            "them, or go on from the last with resume_from_checkpoint=True",
            str(folder),
            ", ".join(path.name for path in found),
        )


def _remove_oldest(folder: Path, limit: int | None, protected: set[Path]) -> None:
    # Trainer's own rotation counts half-written checkpoints too: one with a high
    # number, left by a killed run, would be kept in place of a complete one.
    complete = _complete_checkpoints(folder)
    excess = len(complete) - limit if limit else 0
    removable = [path for path in complete if path not in protected]
    # By time, since an earlier run may have left higher numbers; at equal times, as
    # copying may leave them, the order by number stays.
    removable.sort(key=lambda path: (path / _COMPLETE).stat().st_mtime_ns)
    for path in removable[: max(0, excess)]:
        (path / _COMPLETE).unlink()
        shutil.rmtree(path, ignore_errors=True)


class ProgressBar(TrainerCallback):
    """One line on stderr with the step and the latest loss."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where training starts or resumes."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Show the loss."""
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class KeepBest(TrainerCallback):
    """Keep the weights with the lowest score in memory; for small models.

    No checkpoint holds them: a run that is resumed in another process keeps the best
    of the steps that are left, and warns.

    Args:
        score: Called with the model, returns a number to minimise (held-out NLL).
        every: Steps between two looks; the last step is always looked at.

    Attributes:
        best: The lowest score.
        step: The step it was reached at.
        curve: ``(step, score)`` of every look.
    """

    def __init__(self, score: Callable[[nn.Module], float], every: int) -> None:
        self.score = score
        self.every = every
        self.best = float("inf")
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Warn if a run goes on whose first looks were taken elsewhere."""
        missed = state.global_step >= self.every and not self.curve
        if missed and state.is_world_process_zero:
            _LOGGER.warning(
                "KeepBest keeps weights in memory alone, and this run goes on from "
                "step %s: the best of the steps before is lost; train without "
                "resuming, or score the checkpoints (save_total_limit=None keeps all)",
                state.global_step,
            )

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Look, and remember the weights if they are the best so far."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        value = self.score(model)
        self.curve.append((state.global_step, value))
        if value < self.best:
            self.best, self.step = value, state.global_step
            self._weights = copy.deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Load the best weights back into the model.

        Raises:
            RuntimeError: If no step was looked at, or every score was NaN.
        """
        if not self._weights:
            raise RuntimeError(
                "nothing was kept: train with this callback first, and with a score "
                "that is a number; a finished run that is resumed takes no step, so "
                "train it anew, or score its checkpoints"
            )
        model.load_state_dict(self._weights)
