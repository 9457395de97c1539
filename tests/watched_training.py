"""Watches what a study hands to its trainers, and may cut their runs short.

A study's arms differ in what they learn from, from whom, and for how long. All of that
has met when a trainer starts; so this is where tests look. The training itself is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_helpers.models import RememberingTeacher, weights_hash
from distill_helpers.studies import Run
from distill_helpers.trainers import DistillationTrainer

# What SoftLabelTrainer does unless it is told otherwise: the plain soft labels.
PLAIN = {
    "temperature": 1.0,
    "alpha": 1.0,
    "divergence": "forward_kl",
    "beta": 0.5,
    "scale_by_t2": True,
}


@dataclass
class Training:
    """One call of a trainer's ``train``.

    Attributes:
        trainer: The trainer.
        steps: The steps that it was to take, however many it was let.
        begins: Hashes of what it trains, before the first step; by name, where
            several models train together.
        teacher: Hash of the model whose distribution is learned, before the first
            step; ``None`` without one.
        tflops: 10¹² operations of the steps that were taken, if they were counted.
    """

    trainer: Any
    steps: int
    begins: Any
    teacher: str | None
    tflops: float = field(default=float("nan"))

    @property
    def kind(self) -> str:
        return type(self.trainer).__name__

    @property
    def rows(self) -> Any:
        return self.trainer.train_dataset

    @property
    def options(self) -> dict[str, Any]:
        """Options of the loss; what only some trainers have is not among them."""
        return self.trainer.objective.options

    @property
    def store(self) -> Any:
        """The stored soft labels that are learned."""
        return self.trainer.objective.teacher.store

    @property
    def settings(self) -> tuple[int, int, int, float, float, float]:
        """Steps, rows of a step, seed, learning rate, weight decay and beta 2."""
        args = self.trainer.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return (
            *(self.steps, rows, args.seed),
            *(args.learning_rate, args.weight_decay, args.adam_beta2),
        )


def _begun(trainer: Any) -> Training:
    teacher = getattr(getattr(trainer.objective, "teacher", None), "model", None)
    if isinstance(teacher, RememberingTeacher):
        teacher = teacher.teacher
    model = trainer.model
    begins: Any = weights_hash(model)
    if hasattr(model, "models"):
        begins = {name: weights_hash(one) for name, one in model.models.items()}
    known = None if teacher is None else _hash_of(teacher)
    return Training(trainer, trainer.args.max_steps, begins, known)


def _hash_of(teacher: torch.nn.Module) -> str:
    # A teacher that knows nothing has no weights to be told by.
    return weights_hash(teacher) if [*teacher.parameters()] else type(teacher).__name__


@contextmanager
def watching(steps: int = 1, *, count: bool = False) -> Iterator[list[Training]]:
    """Gather every training inside, in order.

    Args:
        steps: The most that each takes, whatever it was to take. The first changes
            no weights: all are warmed up, so that the learning rate begins at zero.
        count: Count the operations; it makes small models several times slower.
    """
    found: list[Training] = []
    real = DistillationTrainer.train

    def train(self: Any, *args: Any, **options: Any) -> Any:
        begun = _begun(self)
        found.append(begun)
        self.args.max_steps = min(steps, self.args.max_steps)
        self.args.warmup_steps = max(1, self.args.warmup_steps)
        if not count:
            return real(self, *args, **options)
        with FlopCounterMode(display=False) as counter:
            result = real(self, *args, **options)
        begun.tflops = counter.get_total_flops() / 1e12
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "train", train)
        yield found


def run_of(arm: str, setting: str, *, seed: int = 3) -> Run:
    """A run whose seed and options no default has."""
    return Run(arm, setting, seed, (("learning_rate", 0.003), ("weight_decay", 0.07)))


def settings_of(
    steps: int, batch_size: int, *, seed: int = 3, adam_beta2: float = 0.95
) -> tuple[int, int, int, float, float, float]:
    """What :attr:`Training.settings` should be in a run of :func:`run_of`."""
    return (steps, batch_size, seed, 0.003, 0.07, adam_beta2)


def same_rows(one: Any, other: Any) -> bool:
    """Whether two datasets have the same rows in the same order; of many, some."""
    columns = sorted(one.column_names)
    if columns != sorted(other.column_names) or len(one) != len(other):
        return False
    some = range(0, len(one), max(1, len(one) // 300))
    one, other = one.select(some), other.select(some)
    return all(one[column][:] == other[column][:] for column in columns)
