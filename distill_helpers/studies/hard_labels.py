"""What is a large teacher's writing worth to a small student?

The student is the tiny prose teacher (2,048 tokens of its own; soft labels would need
one vocabulary). It learns the gloss task from 600 labelled glosses, and from these
with thousands more that SmolLM2 labelled, after it had learned from the same 600.
Taught in notebook 05.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

import numpy as np
from datasets import Dataset, concatenate_datasets

from distill_helpers.evaluation import held_out_nll
from distill_helpers.labels import learn_answers
from distill_helpers.models import Loaded
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe, train_tiny
from distill_helpers.tasks.glosses import (
    Judged,
    judge,
    learned_rows,
    pool_labels,
    read_answer,
    splits,
)
from distill_helpers.tasks.teachers import load_tiny_teacher

STEPS = 300
BATCH_SIZE = 16
ALONE = "600 labelled"
TAUGHT = "and the teacher's"
RIGHT = "and the true ones"
ARMS = (ALONE, TAUGHT, RIGHT)
NONE, SOME, MOST = "0", "1000", "4000"


def choose_rows(arm: str, setting: str, tokenizer: Any) -> Dataset:
    """Training rows: the 600, and as many of the pool as the setting says."""
    parts = [learned_rows(splits().labelled, tokenizer)]
    if arm == TAUGHT:
        labels = pool_labels().select(range(int(setting)))
        valid = [read_answer(answer) is not None for answer in labels["answer"]]
        parts.append(learn_answers(labels.select(np.flatnonzero(valid)), tokenizer))
    elif arm == RIGHT:
        parts.append(learned_rows(splits().pool[: int(setting)], tokenizer))
    return concatenate_datasets(parts)


def train_student(
    rows: Dataset,
    *,
    seed: int,
    steps: int = STEPS,
    validation: int | None = None,
    **recipe: Unpack[Recipe],
) -> tuple[Loaded, float]:
    """The student at its best validation checkpoint, and its NLL there.

    Args:
        rows: What it learns from.
        seed: The seed of its training.
        steps: Optimizer steps.
        validation: Glosses to choose the checkpoint by. Default: all.
        recipe: Learning rate and weight decay.
    """
    model, tokenizer = load_tiny_teacher("prose")
    held_out = learned_rows(splits().validation[:validation], tokenizer)
    trained = train_tiny(
        model.requires_grad_(True),
        rows,
        tokenizer,
        lambda student: held_out_nll(student, held_out, tokenizer),
        every=max(1, steps // 10),
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        **recipe,
    )
    return Loaded(trained.model, tokenizer), trained.validation


def judge_student(student: Loaded, count: int | None = None) -> Judged:
    """On the test glosses, or the first of them."""
    return judge(student.model, student.tokenizer, splits().test[:count])


def _run(run: Run) -> dict[str, float]:
    tokenizer = load_tiny_teacher("prose").tokenizer
    rows = choose_rows(run.arm, run.setting, tokenizer)
    student, validation_nll = train_student(rows, **run.recipe)
    judged = judge_student(student)
    return {
        "validation_nll": validation_nll,
        "accuracy": judged.accuracy,
        "valid": judged.valid,
        "test_glosses": judged.count,
    }


_claim = partial(
    Claim,
    metric="accuracy",
    arm=TAUGHT,
    baseline=ALONE,
    baseline_setting=NONE,
    higher_is_better=True,
)
STUDY = Study(
    name="hard_labels",
    question="What is a large teacher's writing worth to a small student?",
    arms=ARMS,
    settings=(NONE, SOME, MOST),
    left_out=(
        *((ALONE, setting) for setting in (SOME, MOST)),
        *((arm, NONE) for arm in (TAUGHT, RIGHT)),
    ),
    grid=cells(1e-3, 3e-3),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "teacher_helps",
            "4,000 of the teacher's answers add 5 points to 600 labels",
            setting=MOST,
            margin=0.05,
        ),
        _claim(
            "nearly_the_truth",
            "They keep 80 % of what 4,000 true labels would add",
            reference=RIGHT,
            share=0.8,
            setting=MOST,
        ),
        _claim(
            "few_help_too",
            "1,000 of the teacher's answers already add something",
            setting=SOME,
        ),
    ),
)
