"""Where does the gain of soft labels end? The tiny pair, trained for longer.

The study ``soft_labels`` stops after 300 steps. Here the same student reads the whole
corpus, for 1,000 and for 3,000 steps of 16 rows: at the end each row came three times.
A step with soft labels also costs the teacher's pass, which is more than the student's
own work; so soft labels are compared with labels at equal steps, and also with labels
that were trained three times as long. Taught in notebook 03.
"""

from __future__ import annotations

from functools import partial

import torch

from distill_helpers.studies.soft_labels import (
    BATCH_SIZE,
    LABELS,
    LENGTH,
    SOFT,
    load_pair,
    train_arm,
)
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import count_training


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    rows = pair.train.shuffle(seed=run.seed)
    steps = int(run.setting)
    trained = train_arm(pair, rows, run.arm, steps=steps, **run.recipe)
    teacher = None if run.arm == LABELS else pair.teacher.teacher
    ids = torch.zeros(BATCH_SIZE, LENGTH, dtype=torch.long)
    return {
        **trained.columns("validation_nll", "nll", "bits_per_byte", "kl_to_teacher"),
        **trained.columns("nll_calibrated"),
        **count_training(trained.model, teacher, {"input_ids": ids}, steps),
        **trained.columns("test_tokens"),
    }


_claim = partial(Claim, metric="nll", arm=SOFT, baseline=LABELS)
STUDY = Study(
    name="longer_training",
    question="Where does the gain of soft labels end?",
    arms=(LABELS, SOFT),
    settings=("1000", "3000"),
    grid=cells(8e-3, 1.6e-2),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "long_run",
            "After 3,000 steps, soft labels (T=1) still beat labels alone",
            setting="3000",
            margin=0.05,
        ),
        _claim(
            "labels_for_longer",
            "1,000 steps with soft labels beat 3,000 steps with labels alone",
            setting="1000",
            baseline_setting="3000",
        ),
    ),
)
