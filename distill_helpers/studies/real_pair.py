"""Prune, then distil: SmolLM2 with layers taken out, labels against soft labels.

The real teacher, real text (Jane Austen), a few dozen steps: what a short repair of a
pruned model gains from the teacher's distribution, on several yardsticks. Runs in the
``cpu`` profile: bf16 where the processor has it. Taught in notebook 02.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from distill_helpers.data import evenly_spaced, pack
from distill_helpers.evaluation import Evaluation, evaluate, held_out_nll
from distill_helpers.machine import Profile, get_profile
from distill_helpers.models import Loaded, load_model, prune_layers, shared_vocabulary
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import columns
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabelTrainer,
    training_arguments,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

LENGTH = 128
BATCH_SIZE = 4
STEPS = 20
# The middle of the 30 layers goes, the ends stay.
REMOVED = range(10, 20)


@dataclass(frozen=True)
class RealPair:
    """The real teacher, and rows to repair and to judge a pruned student on."""

    teacher: Loaded
    train: Dataset
    validation: Dataset
    test: Dataset


@lru_cache(maxsize=1)
def load_pair(profile: Profile, test_rows: int = 24) -> RealPair:
    """Load the teacher; pack the five novels for training, the sixth for judging."""
    teacher = load_teacher(profile)
    length = profile.pick(smoke=32, cpu=LENGTH, gpu=LENGTH)
    passages = profile.pick(smoke=30, cpu=10_000, gpu=10_000)
    train, validation, test = (
        pack(austen(split)[:passages]["text"], teacher.tokenizer, length)
        for split in ("train", "validation", "test")
    )
    return RealPair(
        teacher,
        train,
        evenly_spaced(validation, test_rows),
        evenly_spaced(test, test_rows),
    )


def start_student(pair: RealPair, profile: Profile) -> PreTrainedModel:
    """The student before it learns anything.

    On a laptop the teacher without ten middle layers; on a GPU the profile's larger
    student from the hub.
    """
    if profile.students:
        name = profile.students[-1]
        student, tokenizer = load_model(name, device=profile.device)
        shared_vocabulary(pair.teacher.tokenizer, tokenizer)
        return student
    layers = pair.teacher.model.config.num_hidden_layers
    removed = profile.pick(smoke=range(2, layers - 2), cpu=REMOVED, gpu=REMOVED)
    return prune_layers(
        pair.teacher.model, [i for i in range(layers) if i not in removed]
    )


def repair(
    pair: RealPair,
    student: PreTrainedModel,
    arm: str,
    profile: Profile,
    *,
    seed: int,
    steps: int = STEPS,
    **recipe: Any,
) -> Evaluation:
    """Train a pruned student in place, on labels or soft labels; judge it."""
    trainer: Any = HardLabelTrainer
    if arm == "soft":
        trainer = partial(
            SoftLabelTrainer,
            teacher=pair.teacher.model,
            teacher_tokenizer=pair.teacher.tokenizer,
        )
    batch_size = profile.pick(smoke=1, cpu=BATCH_SIZE, gpu=BATCH_SIZE)
    trainer(
        student,
        args=training_arguments(
            profile,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            **recipe,
        ),
        train_dataset=pair.train.shuffle(seed=seed).select(range(steps * batch_size)),
        tokenizer=pair.teacher.tokenizer,
    ).train()
    return judge_student(pair, student)


def judge_student(pair: RealPair, student: PreTrainedModel) -> Evaluation:
    """All yardsticks on the sixth novel."""
    return evaluate(
        student,
        pair.test,
        pair.teacher.tokenizer,
        teacher=pair.teacher.model,
        batch_size=4,
    )


def _run(run: Run) -> dict[str, float]:
    profile = get_profile("cpu")
    pair = load_pair(profile)
    student = start_student(pair, profile)
    found = repair(pair, student, run.arm, profile, **run.recipe)
    assert found.agreement is not None
    validation_nll = held_out_nll(
        student, pair.validation, pair.teacher.tokenizer, batch_size=4
    )
    return {
        "nll_validation": validation_nll,
        **columns(found, "nll", "bits_per_byte", "kl_to_teacher"),
        "agreement": 100 * found.agreement,
        "ece": found.ece,
        "test_tokens": found.tokens,
        "bf16": int(profile.autocast_dtype is not None),
    }


_claim = partial(Claim, arm="soft", baseline="labels", setting="20 steps")
STUDY = Study(
    name="real_pair",
    question="How should a pruned SmolLM2 be repaired: on labels or on soft labels?",
    arms=("labels", "soft"),
    settings=("20 steps",),
    grid=cells(2e-4, 5e-4, weight_decay=0.0),
    run=_run,
    select="nll_validation",
    threads=2,
    claims=(
        _claim(
            "real_kl",
            "Soft labels bring the pruned student closer to its teacher (KL)",
            metric="kl_to_teacher",
            margin=0.1,
        ),
        _claim(
            "real_agreement",
            "Soft labels make it choose the teacher's token more often (points)",
            metric="agreement",
            margin=1.0,
            higher_is_better=True,
        ),
        _claim(
            "real_nll",
            "Soft labels also give the lower NLL on the text itself",
            metric="nll",
        ),
    ),
)
