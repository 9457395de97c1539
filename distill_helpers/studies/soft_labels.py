"""What should a small student learn from: the text, or the teacher's distribution?

The tiny pair on Jane Austen. The student (2 layers, 96 wide) sees the same rows in the
same order in every arm; only the target changes. Taught in notebook 02.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from distill_helpers.data import austen, pack, spread
from distill_helpers.evaluation import (
    Evaluation,
    evaluate,
    fit_temperature,
    held_out_nll,
)
from distill_helpers.models import RememberingTeacher, build_student, load_tiny_teacher
from distill_helpers.studies import Claim, Run, Study, tiny_arguments
from distill_helpers.trainers import (
    HardLabelTrainer,
    KeepBest,
    SoftLabelTrainer,
    StoredLabels,
    relabel,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LENGTH = 64
BATCH_SIZE = 16
STEPS = 300
# Rows that choose checkpoints, and rows that judge.
VALIDATION_ROWS = 80
TEST_ROWS = 200
# What each soft arm adds to SoftLabelTrainer's defaults.
SOFT_ARMS: dict[str, dict[str, Any]] = {
    "soft T=1": {"temperature": 1.0},
    "soft T=2": {"temperature": 2.0},
    "soft T=4": {"temperature": 4.0},
    "mix": {"temperature": 1.0, "alpha": 0.5},
}
# How the teacher makes the labels of the hard arms: once, for the whole text.
TEACHER_LABEL_ARMS = {
    "argmax": "argmax",
    "sampled": "sample",
}


@dataclass(frozen=True)
class Trained:
    """A student with its measurements on the sixth novel.

    Attributes:
        model: At its best validation checkpoint.
        test: As the student is.
        calibrated_nll: After dividing its logits by ``temperature``.
        temperature: The one that suits its validation rows best.
        validation_nll: At the best checkpoint.
        curve: ``(step, validation NLL)``.
    """

    model: PreTrainedModel
    test: Evaluation
    calibrated_nll: float
    temperature: float
    validation_nll: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Pair:
    """The tiny teacher and the rows that every run shares."""

    teacher: RememberingTeacher
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    test: Dataset


@lru_cache(maxsize=1)
def load_pair(
    validation_rows: int = VALIDATION_ROWS, test_rows: int = TEST_ROWS
) -> Pair:
    """The teacher with packed rows; the counts limit how many rows judge a student."""
    loaded = load_tiny_teacher("prose")
    tokenizer = loaded.tokenizer
    splits = [
        pack(austen(name), tokenizer, LENGTH)
        for name in ("train", "validation", "test")
    ]
    train, validation, test = splits
    return Pair(
        RememberingTeacher(loaded.model),
        tokenizer,
        train,
        spread(validation, validation_rows),
        spread(test, test_rows),
    )


def choose_rows(pair: Pair, setting: str, seed: int) -> Dataset:
    """The training rows of a setting: "800", "3000" or "all", drawn by the seed.

    "all" means that no row comes twice: as many of the 14,679 as the steps can reach.
    """
    count = STEPS * BATCH_SIZE if setting == "all" else int(setting)
    return pair.train.shuffle(seed=seed).select(range(count))


def train_arm(
    pair: Pair,
    rows: Dataset,
    arm: str,
    *,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    steps: int = STEPS,
    progress: bool = False,
) -> Trained:
    """Train one student from scratch.

    Args:
        pair: From :func:`load_pair`.
        rows: From :func:`choose_rows`.
        arm: One of ``STUDY.arms``.
        seed: Of the student's weights, the data order and the teacher's draws.
        learning_rate: Peak.
        weight_decay: Of AdamW.
        steps: Optimizer steps of 16 rows.
        progress: Show a progress bar.
    """
    # Rows that a short run does not reach need no teacher either.
    rows = rows.select(range(min(len(rows), steps * BATCH_SIZE)))
    teacher: RememberingTeacher | None = None
    if arm in SOFT_ARMS:
        teacher = pair.teacher
    elif arm in TEACHER_LABEL_ARMS:
        rows = relabel(rows, pair.teacher, how=TEACHER_LABEL_ARMS[arm], seed=seed)
    return train_student(
        pair,
        rows,
        teacher,
        SOFT_ARMS.get(arm, {}),
        seed=seed,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        steps=steps,
        progress=progress,
    )


def train_student(
    pair: Pair,
    rows: Dataset,
    teacher: nn.Module | StoredLabels | None,
    objective: dict[str, Any],
    *,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    steps: int = STEPS,
    progress: bool = False,
) -> Trained:
    """Train one student on the rows' labels, or on a teacher's soft labels.

    Args:
        pair: Its validation rows choose the checkpoint, its test rows judge it.
        rows: To learn from.
        teacher: Live or stored; ``None`` for labels alone.
        objective: Options of ``SoftLabelTrainer``.
        seed: As in :func:`train_arm`, and so are the others.
        learning_rate: See there.
        weight_decay: See there.
        steps: See there.
        progress: See there.
    """
    student = build_student(pair.tokenizer, layers=2, width=96, seed=seed)
    keep = KeepBest(
        lambda model: held_out_nll(model, pair.validation, pair.tokenizer),
        every=max(1, steps // 3),
    )
    options: dict[str, Any] = {
        "args": tiny_arguments(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=BATCH_SIZE,
            weight_decay=weight_decay,
            seed=seed,
            progress=progress,
        ),
        "train_dataset": rows,
        "tokenizer": pair.tokenizer,
        "callbacks": [keep],
    }
    if teacher is None:
        trainer: Any = HardLabelTrainer(student, **options)
    else:
        trainer = SoftLabelTrainer(student, teacher=teacher, **objective, **options)
    trainer.train()
    keep.restore(student)
    temperature = fit_temperature(student, pair.validation, pair.tokenizer)

    test = evaluate(student, pair.test, pair.tokenizer, teacher=pair.teacher)
    calibrated = held_out_nll(
        student, pair.test, pair.tokenizer, temperature=temperature
    )
    return Trained(student, test, calibrated, temperature, keep.best, tuple(keep.curve))


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    trained = train_arm(
        pair,
        choose_rows(pair, run.setting, run.seed),
        run.arm,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
    )
    test = trained.test
    assert test.kl_to_teacher is not None
    assert test.agreement is not None
    return {
        "validation_nll": trained.validation_nll,
        "nll": test.nll,
        "bits_per_byte": test.bits_per_byte,
        "kl_to_teacher": test.kl_to_teacher,
        "agreement": test.agreement,
        "accuracy": test.accuracy,
        "ece": test.ece,
        "nll_calibrated": trained.calibrated_nll,
        "fitted_temperature": trained.temperature,
        "best_step": max(trained.curve, key=lambda point: -point[1])[0],
        "test_tokens": test.tokens,
    }


STUDY = Study(
    name="soft_labels",
    question="Labels alone, soft labels, or the teacher's hard labels?",
    arms=("labels", *SOFT_ARMS, *TEACHER_LABEL_ARMS),
    settings=("800", "3000", "all"),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (8e-3, 1.6e-2)
    ),
    run=_run,
    select="validation_nll",
    claims=(
        Claim(
            name="few_data",
            text="With 800 sequences, soft labels (T=1) beat labels alone on NLL",
            metric="nll",
            arm="soft T=1",
            baseline="labels",
            setting="800",
            margin=0.3,
        ),
        Claim(
            name="more_data",
            text="With 3,000 sequences, soft labels (T=1) still beat labels alone",
            metric="nll",
            arm="soft T=1",
            baseline="labels",
            setting="3000",
            margin=0.1,
        ),
        Claim(
            name="all_data",
            text="With all sequences, soft labels (T=1) still beat labels alone",
            metric="nll",
            arm="soft T=1",
            baseline="labels",
            setting="all",
            margin=0.05,
        ),
        Claim(
            name="soft_beats_argmax",
            text="With 3,000 sequences, soft labels beat the teacher's argmax on NLL",
            metric="nll",
            arm="soft T=1",
            baseline="argmax",
            setting="3000",
            margin=0.3,
        ),
        Claim(
            name="soft_beats_argmax_calibrated",
            text="The same after one temperature was fitted for each student",
            metric="nll_calibrated",
            arm="soft T=1",
            baseline="argmax",
            setting="3000",
            margin=0.1,
        ),
        Claim(
            name="sampled_beats_argmax",
            text="With 3,000 sequences, sampled teacher labels beat argmax on NLL",
            metric="nll",
            arm="sampled",
            baseline="argmax",
            setting="3000",
            margin=0.1,
        ),
        Claim(
            name="high_temperature",
            text="With 800 sequences, T=4 beats T=1 on NLL",
            metric="nll",
            arm="soft T=4",
            baseline="soft T=1",
            setting="800",
        ),
        Claim(
            name="mix_beats_soft",
            text="With 800 sequences, mixing labels in (alpha 0.5) beats soft alone",
            metric="nll",
            arm="mix",
            baseline="soft T=1",
            setting="800",
        ),
    ),
)
