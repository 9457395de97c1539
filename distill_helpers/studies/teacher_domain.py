"""A teacher away from home: should it learn the domain before it teaches?

Rows are dictionary glosses, which the Austen teacher has never seen. Its soft labels
are compared with labels alone, as the teacher is and after a short training on the very
rows that its student will read ("teacher correction", Sreenivas et al. 2024,
arXiv:2408.11796). Taught in notebook 03.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

from datasets import Dataset

from distill_helpers.evaluation import held_out_nll
from distill_helpers.models import RememberingTeacher
from distill_helpers.studies.soft_labels import (
    BATCH_SIZE,
    LABELS,
    SOFT,
    Pair,
    choose_rows,
    make_pair,
    train_arm,
)
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import train_tiny
from distill_helpers.tasks.prose import glosses
from distill_helpers.tasks.teachers import load_tiny_teacher

CORRECTION_STEPS = 150
AS_IT_IS, CORRECTED = "soft, teacher as it is", "soft, teacher corrected"
# Arm: the arm of soft_labels that it is.
ARMS = {LABELS: LABELS, AS_IT_IS: SOFT, "mix, teacher as it is": "mix", CORRECTED: SOFT}


@lru_cache
def load_pair() -> Pair:
    """Gloss rows, and the Austen teacher as it is."""
    texts = [f"{row['word']}: {row['gloss']}." for row in glosses()]
    return make_pair((texts[:9000], texts[9000:10000], texts[10000:]))


def correct_teacher(
    pair: Pair, rows: Dataset, *, seed: int, steps: int = CORRECTION_STEPS
) -> Pair:
    """The pair with a teacher that was trained on ``rows``, at its best checkpoint."""
    teacher = train_tiny(
        load_tiny_teacher("prose").model.requires_grad_(True),
        rows,
        pair.tokenizer,
        pair.validation_nll,
        every=max(1, steps // 3),
        steps=steps,
        learning_rate=1e-3,
        batch_size=BATCH_SIZE,
        seed=seed,
    ).model
    return replace(pair, teacher=RememberingTeacher(teacher.requires_grad_(False)))


def teacher_nll(pair: Pair) -> float:
    """NLL of the pair's teacher on the test rows."""
    nll: float = held_out_nll(pair.teacher.teacher, pair.test, pair.tokenizer)
    return nll


@lru_cache(maxsize=1)
def _corrected(setting: str, seed: int) -> Pair:
    pair = load_pair()
    return correct_teacher(pair, choose_rows(pair, setting, seed), seed=seed)


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    rows = choose_rows(pair, run.setting, run.seed)
    if run.arm == CORRECTED:
        pair = _corrected(run.setting, run.seed)
    trained = train_arm(pair, rows, ARMS[run.arm], **run.recipe)
    return {
        **trained.columns("validation_nll", "nll", "bits_per_byte", "nll_calibrated"),
        "teacher_nll": teacher_nll(pair),
        **trained.columns("test_tokens"),
    }


_claim = partial(Claim, metric="nll", setting="800", margin=0.1)
STUDY = Study(
    name="teacher_domain",
    question="Does a teacher have to know the domain before it teaches it?",
    arms=tuple(ARMS),
    settings=("800",),
    grid=cells(8e-3, 1.6e-2),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "stranger_hurts",
            "On glosses, soft labels of the Austen teacher lose to labels alone",
            LABELS,
            AS_IT_IS,
        ),
        _claim(
            "correction_helps",
            "Corrected to glosses first, its soft labels beat labels alone",
            CORRECTED,
            LABELS,
        ),
    ),
)
