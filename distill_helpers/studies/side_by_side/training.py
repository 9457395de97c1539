"""Training one way, and how steadily its gradients point in one direction."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Unpack

import torch
from datasets import Dataset

from distill_helpers.data import collator_for
from distill_helpers.labels import write_cache
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.studies.reasoning_traces import wrong_judge
from distill_helpers.studies.shared_task import BATCH_SIZE
from distill_helpers.studies.side_by_side import ways
from distill_helpers.studies.tiny import (
    Recipe,
    Trained,
    mean_length,
    tiny_arguments,
    train_tiny,
)
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    MixSchedule,
    OnPolicyTrainer,
    SoftLabelTrainer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Taught(Trained):
    """A student at its best validation checkpoint, and what it took.

    Attributes:
        labelling_seconds: Processor time of everything the teacher made before.
        stored_bytes: What it made, on a disk.
    """

    labelling_seconds: float
    stored_bytes: float


class Uniform(torch.nn.Module):
    """A teacher to whom all tokens are equally likely."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Return logits of zero."""
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=torch.zeros(*input_ids.shape, self.vocabulary))


def trainer_of(arm: str, teacher: Any = None) -> Callable[..., Any]:
    """The trainer of an arm, which still wants a model and its rows.

    Args:
        arm: One of ``STUDENTS``.
        teacher: Whose soft labels the student learns: a model, or what it has stored.
    """
    if arm == ways.TOGETHER:
        schedule = MixSchedule(0.5)
        return partial(CoDistillationTrainer, teacher="partner", schedule=schedule)
    if arm == ways.OWN:
        longest = three_sums.MAX_ANSWER_TOKENS
        return partial(OnPolicyTrainer, teacher=teacher, max_new_tokens=longest)
    if arm in (ways.SELF, ways.BOTH_SOFT):
        return partial(SoftLabelTrainer, teacher=teacher, alpha=0.5)
    if arm in (ways.SOFT, ways.SOFT_FEW, ways.STORED, ways.REPAIRED):
        return partial(SoftLabelTrainer, teacher=teacher)
    if arm == ways.SMOOTHED:
        # Label smoothing: a teacher that knows nothing gets a tenth of the say.
        uniform = Uniform(len(load_tiny_teacher("sums").tokenizer))
        return partial(SoftLabelTrainer, teacher=uniform, alpha=0.1)
    return HardLabelTrainer


def train_arm(
    arm: str,
    base: PreTrainedModel,
    task: ways.Task,
    *,
    seed: int,
    steps: int,
    partner: PreTrainedModel | None = None,
    validation: int = ways.VALIDATION_SIZE,
    **recipe: Unpack[Recipe],
) -> Taught:
    """Train a copy of the base in one way.

    Args:
        arm: One of ``STUDENTS``.
        base: Where the student begins; not changed.
        task: What there is to learn from.
        seed: Decides order and draws.
        steps: Steps in all, of the student that is judged.
        partner: The model to co-distil with; not changed.
        validation: Problems that choose the checkpoint.
        recipe: Learning rate and weight decay.
    """
    teacher, tokenizer = load_tiny_teacher("sums")
    rows = ways.rows_of(arm, task)
    judge = wrong_judge(validation)

    def train(how: str, models: Any, count: int, teacher: Any = None) -> Trained:
        return train_tiny(
            models,
            rows,
            tokenizer,
            judge,
            every=max(1, -(-count // 3)),
            trainer=trainer_of(how, teacher),
            steps=count,
            batch_size=BATCH_SIZE,
            adam_beta2=ways.ADAM_BETA2,
            seed=seed,
            **recipe,
        )

    student = copy.deepcopy(base)
    models: Any = student
    given: Any = teacher
    left, spent, labelling, stored = steps, 0.0, 0.0, 0.0
    if rows is not task.labelled:
        labelling, stored = task.writing_seconds, ways.text_bytes(task.text)
    with tempfile.TemporaryDirectory() as folder:
        if arm == ways.STORED:
            began = time.process_time()
            given = write_cache(
                teacher,
                rows,
                folder,
                tokenizer=tokenizer,
                seed=seed,
                batch_size=BATCH_SIZE,
                **ways.STORAGE,
            )
            labelling += time.process_time() - began
            stored += given.bytes_per_token * given.header["dataset"]["positions"]
        elif arm == ways.SELF:
            first = train(ways.LABELS, copy.deepcopy(base), steps)
            given, spent = first.model, first.seconds
        elif arm == ways.OWN:
            warm = round(ways.WARM_SHARE * steps)
            left, spent = steps - warm, train(ways.TEXT, student, warm).seconds
        elif arm == ways.TOGETHER:
            models = {"partner": copy.deepcopy(partner), "student": student}
        trained = train(arm, models, left, given)
    whole = {
        "seconds": spent + trained.seconds,
        "tokens": steps * BATCH_SIZE * mean_length(rows),
    }
    return Taught(
        **vars(trained) | whole, labelling_seconds=labelling, stored_bytes=stored
    )


def gradient_cosine(
    arm: str,
    base: PreTrainedModel,
    task: ways.Task,
    *,
    seed: int,
    partner: PreTrainedModel | None = None,
    batches: int = 8,
) -> float:
    """How well a batch's gradient points where that of the other batches does.

    The mean over the first batches of the cosine between a batch's gradient and that
    of all of the arm's other rows, at the base student: where every arm begins.

    Args:
        arm: One of ``STUDENTS``, but not ``STORED``. The teacher of self-distillation
            is here the base itself.
        base: Where every arm begins; not changed.
        task: What there is to learn from.
        seed: Decides the order, and what a student writes.
        partner: The model to co-distil with; not changed.
        batches: How many are compared with the others.
    """
    student = copy.deepcopy(base)
    models: Any = student
    if arm == ways.TOGETHER:
        models = {"partner": copy.deepcopy(partner), "student": student}
    rows = ways.rows_of(arm, task).shuffle(seed=seed)
    teacher, tokenizer = load_tiny_teacher("sums")
    if arm == ways.SELF:
        teacher = copy.deepcopy(base)
    trainer = trainer_of(arm, teacher)(
        models,
        args=tiny_arguments(
            steps=1, batch_size=BATCH_SIZE, learning_rate=1e-3, seed=seed
        ),
        train_dataset=rows,
        tokenizer=tokenizer,
    )
    gradients, weights = [], []
    for batch in _batches(trainer, rows):
        items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        student.zero_grad()
        loss = trainer.compute_loss(
            trainer.model, dict(batch), num_items_in_batch=items
        )
        loss.backward()
        gradients.append(flat_gradient(student))
        weights.append(float(items))
    shares = torch.tensor(weights) / sum(weights)
    total = sum(s * g for s, g in zip(shares, gradients, strict=True))
    found = [
        torch.cosine_similarity(g, total - s * g, dim=0)
        for s, g in zip(shares[:batches], gradients, strict=False)
    ]
    return float(torch.stack(found).mean())


def _batches(trainer: Any, rows: Dataset) -> Iterator[Any]:
    collate = collator_for(trainer.processing_class)
    cuts = [*range(0, len(rows), BATCH_SIZE), len(rows)]
    for start, end in pairwise(cuts):
        batch = collate([rows[place] for place in range(start, end)])
        # Where the student writes, this is when it does.
        (made,), _ = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        yield made


def flat_gradient(model: PreTrainedModel) -> torch.Tensor:
    """All gradients of a model, one after another."""
    return torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )
