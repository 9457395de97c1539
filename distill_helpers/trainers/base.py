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
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
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

from distill_helpers.data import collator_for
from distill_helpers.machine import Profile
from distill_helpers.models import (
    Readers,
    bits_of,
    check_head,
    is_dispatched,
    refuse_rounded,
    text_config,
    unwrapped,
)
from distill_helpers.trainers.callbacks import ProgressBar
from distill_helpers.trainers.checkpoints import (
    SealCheckpoints,
    is_complete,
    last_complete_checkpoint,
    load_adapters,
    refuse_unsaved,
    refuse_without,
    warn_of_an_earlier_run,
)

if TYPE_CHECKING:
    from datasets import Dataset

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
        tokenizer: The student's tokenizer.
        readers: Name to model, of all that read the batches; the student alone, if
            nothing is said.
        options: Further keywords of ``Trainer``.

    Raises:
        ValueError: For options of ``Trainer`` that would have no effect, since the
            objective is the whole loss; for FSDP on CPUs, where accelerate forgets it;
            and for a pad token that a model does not have.
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
        # Trainer would delete old checkpoints before the new one is complete.
        args, keep = copy.copy(args), args.save_total_limit
        args.save_total_limit = None
        # The collator decides what a batch holds; Trainer would drop masks and prompts.
        args.remove_unused_columns = False
        self._saves = SealCheckpoints(keep)
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
            # First, so that what others do on saving finds a complete checkpoint.
            callbacks=[self._saves, *(options.pop("callbacks", None) or ())],
            **options,
        )
        self._refuse_fsdp_without_effect()
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
            refuse_without(checkpoint, TRAINER_STATE_NAME)
            finished = self._finished(checkpoint)
            if finished is not None:
                return finished
            # Those keep an optimizer's state in files of their own.
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                refuse_without(checkpoint, OPTIMIZER_NAME, SCHEDULER_NAME)
        elif self.is_world_process_zero():
            warn_of_an_earlier_run(Path(str(self.args.output_dir)))
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

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # An output head that is tied to the embeddings is not stored twice, and Trainer
        # would warn of it as missing.
        model: Any = self.model
        named = dict(model.named_parameters(remove_duplicate=False))
        missing = load_result.missing_keys
        loaded = {id(named[name]) for name in named.keys() - set(missing)}
        missing[:] = [name for name in missing if id(named.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result)

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False
    ) -> None:
        """Write the weights; a checkpoint's folder is not complete while they change.

        Args:
            output_dir: Where to; ``args.output_dir`` without one.
        """
        self._saves.begin(Path(str(output_dir or self.args.output_dir)), self.args)
        super().save_model(output_dir, _internal_call)

    def _refuse_fsdp_without_effect(self) -> None:
        asked = self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
        on_cpu = self.args.device.type == "cpu" and self.args.world_size > 1
        if asked and on_cpu and not self.is_fsdp_enabled:
            raise ValueError(
                "fsdp would have no effect: accelerate spreads weights over GPUs "
                "alone, and on CPUs every process would keep all; run on GPUs, or "
                "leave fsdp out (in accelerate's config, distributed_type: MULTI_CPU)"
            )

    def _refuse_spread_weights(self, what_fails: str, remedy: str = "") -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{what_fails} where weights are spread over processes; {remedy}run "
                "without FSDP and DeepSpeed"
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
            that accelerate keeps elsewhere; for rounded ones without adapters.
    """
    check_head(who, unwrapped(model))
    if not getattr(model, "peft_config", None):
        refuse_rounded(
            who,
            unwrapped(model),
            "trained itself",
            "train adapters on it (models.add_adapters, with 8 bits), or load it "
            "without bits; fake_round trains whole weights to be rounded later",
        )
    elif bits_of(unwrapped(model)) == 4:
        raise ValueError(
            f"the {who} carries adapters on a base with bits=4, which passes no "
            "gradient on; load the base with bits=8"
        )
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
        "warmup_steps": steps // 20,
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
