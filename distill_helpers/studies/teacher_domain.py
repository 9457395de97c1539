"""A teacher away from home: should it learn the domain before it teaches?

Rows are dictionary glosses, which the Austen teacher has never seen. Its soft labels
are compared with labels alone, as the teacher is and after a short training on the very
rows that its student will read ("teacher correction", Sreenivas et al. 2024,
arXiv:2408.11796). Taught in notebook 02.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from datasets import Dataset

from distill_helpers.data import glosses, pack, spread
from distill_helpers.evaluation import held_out_nll
from distill_helpers.models import RememberingTeacher, load_tiny_teacher
from distill_helpers.studies import Claim, Run, Study, tiny_arguments
from distill_helpers.studies.soft_labels import (
    BATCH_SIZE,
    LENGTH,
    TEST_ROWS,
    VALIDATION_ROWS,
    Pair,
    train_arm,
)
from distill_helpers.trainers import HardLabelTrainer, KeepBest

CORRECTION_STEPS = 150
# Arm: which teacher, and the arm of soft_labels that it is.
ARMS = {
    "labels": ("as it is", "labels"),
    "soft, teacher as it is": ("as it is", "soft T=1"),
    "mix, teacher as it is": ("as it is", "mix"),
    "soft, teacher corrected": ("corrected", "soft T=1"),
}


@lru_cache
def load_pair() -> Pair:
    """Gloss rows, and the Austen teacher as it is."""
    loaded = load_tiny_teacher("prose")
    texts = [f"{row['word']}: {row['gloss']}." for row in glosses()]
    train, validation, test = (
        pack(part, loaded.tokenizer, LENGTH)
        for part in (texts[:9000], texts[9000:10000], texts[10000:])
    )
    return Pair(
        RememberingTeacher(loaded.model),
        loaded.tokenizer,
        train,
        spread(validation, VALIDATION_ROWS),
        spread(test, TEST_ROWS),
    )


def choose_rows(pair: Pair, setting: str, seed: int) -> Dataset:
    """As many gloss rows as the setting says, drawn by the seed."""
    return pair.train.shuffle(seed=seed).select(range(int(setting)))


def correct_teacher(
    pair: Pair, rows: Dataset, *, seed: int, steps: int = CORRECTION_STEPS
) -> Pair:
    """The pair with a teacher that was trained on ``rows``, at its best checkpoint."""
    teacher = load_tiny_teacher("prose").model.requires_grad_(True)
    keep = KeepBest(
        lambda model: held_out_nll(model, pair.validation, pair.tokenizer),
        every=max(1, steps // 3),
    )
    HardLabelTrainer(
        teacher,
        args=tiny_arguments(
            steps=steps,
            learning_rate=1e-3,
            batch_size=BATCH_SIZE,
            seed=seed,
        ),
        train_dataset=rows,
        tokenizer=pair.tokenizer,
        callbacks=[keep],
    ).train()
    keep.restore(teacher)
    frozen = RememberingTeacher(teacher.requires_grad_(False).eval())
    return replace(pair, teacher=frozen)


def teacher_nll(pair: Pair) -> float:
    """NLL of the pair's teacher on the test rows."""
    nll: float = held_out_nll(pair.teacher.teacher, pair.test, pair.tokenizer)
    return nll


@lru_cache(maxsize=1)
def _corrected(setting: str, seed: int) -> Pair:
    pair = load_pair()
    return correct_teacher(pair, choose_rows(pair, setting, seed), seed=seed)


def _run(run: Run) -> dict[str, float]:
    which, arm = ARMS[run.arm]
    pair = load_pair()
    rows = choose_rows(pair, run.setting, run.seed)
    if which == "corrected":
        pair = _corrected(run.setting, run.seed)
    trained = train_arm(
        pair,
        rows,
        arm,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
    )
    return {
        "validation_nll": trained.validation_nll,
        "nll": trained.test.nll,
        "bits_per_byte": trained.test.bits_per_byte,
        "nll_calibrated": trained.calibrated_nll,
        "teacher_nll": teacher_nll(pair),
        "test_tokens": trained.test.tokens,
    }


STUDY = Study(
    name="teacher_domain",
    question="Does a teacher have to know the domain before it teaches it?",
    arms=tuple(ARMS),
    settings=("800",),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (8e-3, 1.6e-2)
    ),
    run=_run,
    select="validation_nll",
    claims=(
        Claim(
            name="stranger_hurts",
            text="On glosses, soft labels of the Austen teacher lose to labels alone",
            metric="nll",
            arm="labels",
            baseline="soft, teacher as it is",
            setting="800",
            margin=0.1,
        ),
        Claim(
            name="correction_helps",
            text="Corrected to glosses first, its soft labels beat labels alone",
            metric="nll",
            arm="soft, teacher corrected",
            baseline="labels",
            setting="800",
            margin=0.1,
        ),
    ),
)
