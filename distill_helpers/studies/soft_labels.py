"""What should a small student learn from: the text, or the teacher's distribution?

The tiny pair on Jane Austen. The student (2 layers, 96 wide) sees the same rows in the
same order in every arm; only the target changes. Taught in notebook 03.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from distill_helpers.data import evenly_spaced, pack
from distill_helpers.evaluation import (
    Evaluation,
    evaluate,
    fit_temperature,
    held_out_nll,
)
from distill_helpers.labels import relabel
from distill_helpers.models import RememberingTeacher, build_student
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe, Trained, train_tiny
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import SoftLabelTrainer, StoredLabels

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

LENGTH = 64
BATCH_SIZE = 16
STEPS = 300
# Rows that choose checkpoints, and rows that judge.
VALIDATION_ROWS = 80
TEST_ROWS = 200
LABELS, SOFT = "labels", "soft T=1"
# What each soft arm adds to SoftLabelTrainer's defaults.
SOFT_ARMS: dict[str, dict[str, Any]] = {
    SOFT: {"temperature": 1.0},
    "soft T=2": {"temperature": 2.0},
    "soft T=4": {"temperature": 4.0},
    "mix": {"temperature": 1.0, "alpha": 0.5},
}
# How the teacher makes the labels of the hard arms: once, for the whole text.
TEACHER_LABEL_ARMS = {"argmax": "argmax", "sampled": "sample"}


@dataclass(frozen=True)
class Judged(Trained):
    """A student with its measurements on the sixth novel.

    Attributes:
        test: Its measurements, as it is.
        calibrated_nll: Its NLL after dividing its logits by ``temperature``.
        temperature: The one that suits its validation rows best.
    """

    test: Evaluation
    calibrated_nll: float
    temperature: float

    def columns(self, *names: str) -> dict[str, Any]:
        """Some of the numbers, by the names that they have in a study's rows."""
        every = {
            **vars(self.test),
            "test_tokens": self.test.tokens,
            "validation_nll": self.validation,
            "nll_calibrated": self.calibrated_nll,
            "fitted_temperature": self.temperature,
            "best_step": max(self.curve, key=lambda point: -point[1])[0],
        }
        return {name: every[name] for name in names}


@dataclass(frozen=True)
class Pair:
    """The tiny teacher and the rows that every run shares."""

    teacher: RememberingTeacher
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    test: Dataset

    def validation_nll(self, model: nn.Module) -> float:
        """The number that chooses checkpoints."""
        nll: float = held_out_nll(model, self.validation, self.tokenizer)
        return nll


def make_pair(
    texts: Iterable[Any],
    validation_rows: int = VALIDATION_ROWS,
    test_rows: int = TEST_ROWS,
) -> Pair:
    """The teacher of prose, with texts to train, to validate and to test, packed."""
    model, tokenizer = load_tiny_teacher("prose")
    train, validation, test = (pack(part, tokenizer, LENGTH) for part in texts)
    return Pair(
        RememberingTeacher(model),
        tokenizer,
        train,
        evenly_spaced(validation, validation_rows),
        evenly_spaced(test, test_rows),
    )


@lru_cache(maxsize=1)
def load_pair(
    validation_rows: int = VALIDATION_ROWS, test_rows: int = TEST_ROWS
) -> Pair:
    """The teacher with packed rows; the counts limit how many rows judge a student."""
    novels = map(austen, ("train", "validation", "test"))
    return make_pair(novels, validation_rows, test_rows)


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
    steps: int = STEPS,
    **recipe: Unpack[Recipe],
) -> Judged:
    """Train one student from scratch.

    Args:
        pair: From :func:`load_pair`.
        rows: From :func:`choose_rows`.
        arm: One of ``STUDY.arms``.
        seed: Decides the student's weights, the data order and the teacher's draws.
        steps: Optimizer steps of 16 rows.
        recipe: Learning rate and weight decay.
    """
    # Rows that a short run does not reach need no teacher either.
    rows = rows.select(range(min(len(rows), steps * BATCH_SIZE)))
    if arm in TEACHER_LABEL_ARMS:
        rows = relabel(rows, pair.teacher, how=TEACHER_LABEL_ARMS[arm], seed=seed)
    teacher = pair.teacher if arm in SOFT_ARMS else None
    objective = SOFT_ARMS.get(arm, {})
    return train_student(
        pair, rows, teacher, objective, seed=seed, steps=steps, **recipe
    )


def train_student(
    pair: Pair,
    rows: Dataset,
    teacher: nn.Module | StoredLabels | None,
    objective: dict[str, Any],
    *,
    seed: int,
    steps: int = STEPS,
    **recipe: Unpack[Recipe],
) -> Judged:
    """Train one student on the rows' labels, or on a teacher's soft labels.

    Args:
        pair: Its validation rows choose the checkpoint, its test rows judge it.
        rows: What the student learns from.
        teacher: Live or stored; ``None`` for labels alone.
        objective: Options of ``SoftLabelTrainer``.
        seed: Same as in :func:`train_arm`, and so are the others.
        steps: Same as there.
        recipe: Same as there.
    """
    trainer = None
    if teacher is not None:
        trainer = partial(SoftLabelTrainer, teacher=teacher, **objective)
    trained = train_tiny(
        build_student(pair.tokenizer, layers=2, width=96, seed=seed),
        rows,
        pair.tokenizer,
        pair.validation_nll,
        every=max(1, steps // 3),
        trainer=trainer,
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        **recipe,
    )
    student = trained.model
    temperature = fit_temperature(student, pair.validation, pair.tokenizer)
    return Judged(
        **vars(trained),
        test=evaluate(student, pair.test, pair.tokenizer, teacher=pair.teacher),
        calibrated_nll=held_out_nll(
            student, pair.test, pair.tokenizer, temperature=temperature
        ),
        temperature=temperature,
    )


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    rows = choose_rows(pair, run.setting, run.seed)
    return train_arm(pair, rows, run.arm, **run.recipe).columns(
        *("validation_nll", "nll", "bits_per_byte", "kl_to_teacher", "agreement"),
        *("accuracy", "ece", "nll_calibrated", "fitted_temperature", "best_step"),
        "test_tokens",
    )


# What a claim is about, unless it says otherwise.
_claim = partial(Claim, metric="nll", arm=SOFT, baseline=LABELS, setting="800")
STUDY = Study(
    name="soft_labels",
    question="Labels alone, soft labels, or the teacher's hard labels?",
    arms=(LABELS, *SOFT_ARMS, *TEACHER_LABEL_ARMS),
    settings=("800", "3000", "all"),
    grid=cells(8e-3, 1.6e-2),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "few_data",
            "With 800 sequences, soft labels (T=1) beat labels alone on NLL",
            margin=0.3,
        ),
        _claim(
            "more_data",
            "With 3,000 sequences, soft labels (T=1) still beat labels alone",
            setting="3000",
            margin=0.1,
        ),
        _claim(
            "all_data",
            "With all sequences, soft labels (T=1) still beat labels alone",
            setting="all",
            margin=0.05,
        ),
        _claim(
            "soft_beats_argmax",
            "With 3,000 sequences, soft labels beat the teacher's argmax on NLL",
            baseline="argmax",
            setting="3000",
            margin=0.3,
        ),
        _claim(
            "soft_beats_argmax_calibrated",
            "The same after one temperature was fitted for each student",
            metric="nll_calibrated",
            baseline="argmax",
            setting="3000",
            margin=0.1,
        ),
        _claim(
            "sampled_beats_argmax",
            "With 3,000 sequences, sampled teacher labels beat argmax on NLL",
            arm="sampled",
            baseline="argmax",
            setting="3000",
            margin=0.1,
        ),
        _claim(
            "high_temperature",
            "With 800 sequences, T=4 beats T=1 on NLL",
            arm="soft T=4",
            baseline=SOFT,
        ),
        _claim(
            "mix_beats_soft",
            "With 800 sequences, mixing labels in (alpha 0.5) beats soft alone",
            arm="mix",
            baseline=SOFT,
        ),
    ),
)
