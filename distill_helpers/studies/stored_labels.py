"""How much of the soft labels' gain survives, for how many bytes?

The student and rows of the study ``soft_labels`` with 800 sequences, each read six
times. The teacher is live ("full"), or has stored its soft labels before. Taught in
notebook 04.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from distill_helpers.labels import Scheme, SoftLabelCache, scheme_for, write_cache
from distill_helpers.studies.soft_labels import (
    LABELS,
    Judged,
    Pair,
    choose_rows,
    load_pair,
    train_student,
)
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

# Arm: how the teacher's distributions are stored.
STORED: dict[str, dict[str, Any]] = {
    "top-12": {"scheme": "top_k", "top_k": 12},
    "tail bucket of 16": {"scheme": "tail_bucket", "top_k": 16},
    "50 draws": {"scheme": "sampled", "samples": 50},
    "hybrid 4 + 12": {"scheme": "hybrid", "top_k": 4, "samples": 12},
    "hybrid 8 + 24": {"scheme": "hybrid", "top_k": 8, "samples": 24},
}
FULL = "full"
ARMS = (LABELS, FULL, *STORED)
DEFAULT = "hybrid 8 + 24"
# SmolLM2 has so many tokens: to say what a scheme costs there.
REAL_VOCABULARY = 49_152


def scheme_of(arm: str, vocabulary: int) -> Scheme | None:
    """The scheme behind an arm; ``None`` for labels."""
    if arm == LABELS:
        return None
    if arm == FULL:
        return scheme_for("full", vocabulary)
    options = dict(STORED[arm])
    return scheme_for(options.pop("scheme"), vocabulary, **options)


def store(
    pair: Pair, rows: Dataset, folder: str | Path, options: dict[str, Any], seed: int
) -> SoftLabelCache:
    """Write the teacher's soft labels; ``options`` name the scheme."""
    return write_cache(
        pair.teacher.teacher,
        rows,
        folder,
        tokenizer=pair.tokenizer,
        seed=seed,
        **options,
    )


def train_arm(arm: str, setting: str, *, seed: int, **recipe: Unpack[Recipe]) -> Judged:
    """Train one student from a cache that is written for it, and thrown away."""
    pair = load_pair()
    rows = choose_rows(pair, setting, seed)
    with tempfile.TemporaryDirectory() as folder:
        teacher: Any
        if arm in STORED:
            teacher = store(pair, rows, folder, STORED[arm], seed)
        else:
            teacher = {LABELS: None, FULL: pair.teacher}[arm]
        return train_student(pair, rows, teacher, {}, seed=seed, **recipe)


def _run(run: Run) -> dict[str, float]:
    trained = train_arm(run.arm, run.setting, **run.recipe)
    scheme = scheme_of(run.arm, len(load_pair().tokenizer))
    real = scheme_of(run.arm, REAL_VOCABULARY)
    return {
        **trained.columns("validation_nll", "nll", "bits_per_byte", "kl_to_teacher"),
        **trained.columns("ece", "nll_calibrated"),
        "bytes_per_token": 0 if scheme is None else scheme.bytes_per_position,
        "bytes_per_token_real": 0 if real is None else real.bytes_per_position,
        **trained.columns("test_tokens"),
    }


_claim = partial(Claim, metric="nll", baseline=LABELS, setting="800")
STUDY = Study(
    name="stored_labels",
    question="How much of the soft labels' gain survives, for how many bytes?",
    arms=ARMS,
    settings=("800",),
    grid=cells(8e-3, 1.6e-2),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "default_keeps",
            "8 exact tokens and 24 draws keep 90 % of the full gain over labels",
            arm=DEFAULT,
            reference=FULL,
            share=0.9,
        ),
        _claim(
            "draws_keep",
            "50 draws keep 90 % of the full distribution's gain over labels",
            arm="50 draws",
            reference=FULL,
            share=0.9,
        ),
        _claim(
            "top_k_is_biased",
            "Renormalised top-12 is worse than labels alone",
            arm=LABELS,
            baseline="top-12",
        ),
        _claim(
            "hybrid_beats_bucket",
            "A hybrid of 4 + 12 beats a tail bucket of 16, for fewer bytes",
            arm="hybrid 4 + 12",
            baseline="tail bucket of 16",
            margin=0.05,
        ),
    ),
)
