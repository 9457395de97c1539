"""Do stored draws that are read again and again become a bias?

An unbiased estimate is right on average over its draws. A cache draws once, and a
student that reads the same rows for many epochs can learn those draws by heart. The
student of the study ``soft_labels`` sees 4,800 sequences: all of them different, or 400
twelve times over, with the draws that were stored or with new ones in every epoch.
Taught in notebook 04.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distill_helpers.labels import SoftLabelCache
from distill_helpers.losses import SparseTargets
from distill_helpers.studies import stored_labels
from distill_helpers.studies.soft_labels import (
    BATCH_SIZE,
    STEPS,
    load_pair,
    train_student,
)
from distill_helpers.studies.stored_labels import DEFAULT, FULL, store
from distill_helpers.studies.study import Claim, Run, Study

EPOCHS = 12
ONCE = "1 epoch"
REUSED = "12 epochs"
FRESH = "12 epochs, fresh draws"
DRAWS = "12 draws"
STORED: dict[str, dict[str, Any]] = {
    DRAWS: {"scheme": "sampled", "samples": 12},
    DEFAULT: stored_labels.STORED[DEFAULT],
}


class FreshDraws:
    """Several caches of the same rows, one after another.

    Args:
        caches: One per epoch.
        batches: Batches of an epoch.
    """

    def __init__(self, caches: list[SoftLabelCache], batches: int) -> None:
        self.caches = caches
        self.batches = batches
        self.read = 0

    @property
    def temperature(self) -> float:
        """The temperature of the teacher's softmax."""
        return self.caches[0].temperature

    @property
    def vocabulary(self) -> int:
        """Outputs of the teacher's head."""
        return self.caches[0].vocabulary

    def lookup(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SparseTargets | torch.Tensor:
        """The soft labels of a batch, from the cache whose epoch it is."""
        cache = self.caches[self.read // self.batches]
        self.read += 1
        return cache.lookup(input_ids, attention_mask)


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    epochs = 1 if run.setting == ONCE else EPOCHS
    count = STEPS * BATCH_SIZE // epochs
    rows = pair.train.shuffle(seed=run.seed).select(range(count))
    with tempfile.TemporaryDirectory() as folder:
        teacher: Any = pair.teacher
        if run.arm != FULL:
            drawn = epochs if run.setting == FRESH else 1
            caches = [
                store(
                    pair,
                    rows,
                    Path(folder) / str(epoch),
                    STORED[run.arm],
                    run.seed * EPOCHS + epoch,
                )
                for epoch in range(drawn)
            ]
            teacher = FreshDraws(caches, STEPS // drawn)
        trained = train_student(pair, rows, teacher, {}, **run.recipe)
    return trained.columns(
        "validation_nll", "nll", "kl_to_teacher", "ece", "test_tokens"
    )


_claim = partial(Claim, metric="nll")
STUDY = Study(
    name="reused_draws",
    question="Do stored draws that are read again and again become a bias?",
    arms=(FULL, *STORED),
    settings=(ONCE, REUSED, FRESH),
    grid=stored_labels.STUDY.grid,
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "fresh_draws_help",
            "12 draws a token: new ones every epoch beat one set read 12 times",
            arm=DRAWS,
            setting=FRESH,
            baseline=DRAWS,
            baseline_setting=REUSED,
        ),
        _claim(
            "hybrid_forgives",
            "8 exact tokens and 24 draws: reading one set 12 times costs less than "
            "0.02 nats",
            arm=DEFAULT,
            setting=REUSED,
            baseline=DEFAULT,
            baseline_setting=FRESH,
            margin=-0.02,
        ),
        _claim(
            "draws_once",
            "Read once, 12 draws cost less than 0.05 nats against everything",
            arm=DRAWS,
            setting=ONCE,
            baseline=FULL,
            margin=-0.05,
        ),
    ),
)
