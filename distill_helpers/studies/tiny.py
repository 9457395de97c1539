"""One training of one tiny model, as every study does it, and what it costs.

A study says which rows a student learns from, from what, and who chooses among its
checkpoints; :func:`train_tiny` does the rest. First used in notebook 02.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Required, TypedDict

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase, TrainingArguments


class Recipe(TypedDict, total=False):
    """What a study's grid sets for every arm, and what a notebook may add.

    Attributes:
        learning_rate: The peak; warmed up, then decayed to zero along a cosine.
        weight_decay: The one of AdamW, by default 0.1.
    """

    learning_rate: Required[float]
    weight_decay: float


@dataclass(frozen=True)
class Trained:
    """A student at its best validation checkpoint.

    Attributes:
        model: The student.
        validation: Its score there, the lowest of ``curve``.
        curve: ``(step, score)`` of every look at the validation.
        rows: How many rows it had to learn from.
        tokens: Tokens that went through training, prompts included, padding not.
        seconds: Processor time of the steps, without looking at the validation.
        log: What the trainer logged.
    """

    model: Any
    validation: float
    curve: tuple[tuple[int, float], ...]
    rows: int
    tokens: float
    seconds: float
    log: tuple[dict[str, float], ...]


def train_tiny(
    model: Any,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    judge: Callable[[Any], float] | None,
    *,
    every: int = 1,
    trainer: Callable[..., Any] | None = None,
    steps: int,
    batch_size: int,
    **arguments: Any,
) -> Trained:
    """Train one model in place, and put it back to its best checkpoint.

    Args:
        model: The student; or a dictionary with ``"student"`` and ``"partner"``, where
            two are trained together.
        rows: What it learns from.
        tokenizer: The tokenizer of the rows.
        judge: Gives a student the number that chooses its checkpoint: the lower, the
            better. ``None`` leaves it as the last step did, with a score of NaN.
        every: Steps between two looks at the validation.
        trainer: A trainer's class, with what it needs beside the rows (say
            ``partial(SoftLabelTrainer, teacher=teacher)``). Default:
            ``HardLabelTrainer``.
        steps: Optimizer steps.
        batch_size: Rows of a step.
        arguments: The seed, a :class:`Recipe`, and any field of
            ``TrainingArguments``.
    """
    from distill_helpers.trainers import HardLabelTrainer, KeepBest

    looking = 0.0

    def look(network: Any) -> float:
        nonlocal looking
        began = time.process_time()
        score = judge(student_of(network)) if judge is not None else 0.0
        looking += time.process_time() - began
        return score

    keep = KeepBest(look, every)
    training: Any = (trainer or HardLabelTrainer)(
        model,
        args=tiny_arguments(steps=steps, batch_size=batch_size, **arguments),
        train_dataset=rows,
        tokenizer=tokenizer,
        callbacks=[] if judge is None else [keep],
    )
    began = time.process_time()
    training.train()
    seconds = time.process_time() - began - looking
    if judge is not None:
        keep.restore(training.model)
    return Trained(
        model=student_of(training.model).eval(),
        validation=float("nan") if judge is None else keep.best,
        curve=tuple(keep.curve),
        rows=len(rows),
        tokens=steps * batch_size * mean_length(rows),
        seconds=seconds,
        log=tuple(training.state.log_history),
    )


def student_of(network: Any) -> Any:
    """The student, where it is trained together with a partner; else the model."""
    from distill_helpers.trainers import Partners

    return network.models["student"] if isinstance(network, Partners) else network


def tiny_arguments(**options: Any) -> TrainingArguments:
    """Training arguments of models this small: plain fp32, on a CPU.

    Args:
        options: What :func:`~distill_helpers.trainers.training_arguments` takes.
    """
    from distill_helpers.machine import get_profile
    from distill_helpers.trainers import training_arguments

    return training_arguments(get_profile("cpu"), mixed_precision=False, **options)


def columns(found: Any, *names: str) -> dict[str, Any]:
    """Some attributes of a record, such as an ``Evaluation``, as a study's columns."""
    return {name: getattr(found, name) for name in names}


def mean_length(rows: Dataset) -> float:
    """Tokens of a row, prompt included."""
    return sum(map(len, rows["input_ids"])) / len(rows)


def first_batch(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, size: int
) -> dict[str, Tensor]:
    """The first rows as a model takes them, to count what a pass costs."""
    from distill_helpers.data import collator_for

    batch = collator_for(tokenizer)([rows[place] for place in range(size)])
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def count_tflops(
    model: nn.Module, inputs: Mapping[str, Tensor], *, backward: bool
) -> float:
    """What a pass through a model costs, in 10¹² operations.

    Those of the matrix products. Attention scores are not counted on a CPU, where torch
    has no formula for its kernel: some 5 % of models as small as these.

    Args:
        model: A causal language model.
        inputs: The keywords that it is called with.
        backward: Count the backward pass, too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs).logits
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops()) / 1e12


def count_training(
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: Mapping[str, Tensor],
    steps: int,
) -> dict[str, float]:
    """TFLOPs of a whole training run, as a study's columns.

    Args:
        student: What is trained.
        teacher: Reads every batch, too; ``None``: nobody does.
        inputs: The keywords that both are called with.
        steps: Steps of the run.
    """
    called = 0.0
    if teacher is not None:
        called = count_tflops(teacher, inputs, backward=False)
    return {
        "student_tflops": steps * count_tflops(student, inputs, backward=True),
        "teacher_tflops": steps * called,
    }
