"""Prune, then distil: SmolLM2 with layers taken out, labels against soft labels.

The real teacher, real text (Jane Austen), a few dozen steps: what a short repair of a
pruned model gains from the teacher's distribution, on several yardsticks. Runs in the
``cpu`` profile: bf16 where the processor has it. Taught in notebook 02.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from distill_helpers.data import austen, pack, spread
from distill_helpers.evaluation import Evaluation, evaluate, held_out_nll
from distill_helpers.models import (
    Loaded,
    load_model,
    load_teacher,
    prune_layers,
    shared_vocabulary,
)
from distill_helpers.profiles import Profile, get_profile
from distill_helpers.studies import Claim, Run, Study
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
        teacher, train, spread(validation, test_rows), spread(test, test_rows)
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
    learning_rate: float,
    weight_decay: float,
    steps: int = STEPS,
    progress: bool = False,
) -> Evaluation:
    """Train a pruned student in place, on labels or soft labels; judge it."""
    batch_size = profile.pick(smoke=1, cpu=BATCH_SIZE, gpu=BATCH_SIZE)
    options: dict[str, Any] = {
        "args": training_arguments(
            profile,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
            seed=seed,
            disable_tqdm=not progress,
        ),
        "train_dataset": pair.train.shuffle(seed=seed).select(
            range(steps * batch_size)
        ),
        "tokenizer": pair.teacher.tokenizer,
    }
    if arm == "soft":
        trainer: Any = SoftLabelTrainer(
            student,
            teacher=pair.teacher.model,
            teacher_tokenizer=pair.teacher.tokenizer,
            **options,
        )
    else:
        trainer = HardLabelTrainer(student, **options)
    trainer.train()
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
    found = repair(
        pair,
        student,
        run.arm,
        profile,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
    )
    assert found.kl_to_teacher is not None
    assert found.agreement is not None
    return {
        "nll_validation": held_out_nll(
            student, pair.validation, pair.teacher.tokenizer, batch_size=4
        ),
        "nll": found.nll,
        "bits_per_byte": found.bits_per_byte,
        "kl_to_teacher": found.kl_to_teacher,
        "agreement": 100 * found.agreement,
        "ece": found.ece,
        "test_tokens": found.tokens,
        "bf16": int(profile.autocast_dtype is not None),
    }


STUDY = Study(
    name="real_pair",
    question="How should a pruned SmolLM2 be repaired: on labels or on soft labels?",
    arms=("labels", "soft"),
    settings=("20 steps",),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.0)) for rate in (2e-4, 5e-4)
    ),
    run=_run,
    select="nll_validation",
    threads=2,
    claims=(
        Claim(
            name="real_kl",
            text="Soft labels bring the pruned student closer to its teacher (KL)",
            metric="kl_to_teacher",
            arm="soft",
            baseline="labels",
            setting="20 steps",
            margin=0.1,
        ),
        Claim(
            name="real_agreement",
            text="Soft labels make it choose the teacher's token more often (points)",
            metric="agreement",
            arm="soft",
            baseline="labels",
            setting="20 steps",
            margin=1.0,
            higher_is_better=True,
        ),
        Claim(
            name="real_nll",
            text="Soft labels also give the lower NLL on the text itself",
            metric="nll",
            arm="soft",
            baseline="labels",
            setting="20 steps",
        ),
    ),
)
