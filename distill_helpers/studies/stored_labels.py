"""How much of the soft labels' gain survives, for how many bytes?

The student and rows of the study ``soft_labels`` with 800 sequences, each read six
times. The teacher is live ("full"), or has stored its soft labels before. Taught in
notebook 03.
"""

from __future__ import annotations

import tempfile
from typing import Any

from distill_helpers.soft_label_cache import write_cache
from distill_helpers.soft_label_schemes import Scheme, scheme_for
from distill_helpers.studies import Claim, Run, Study
from distill_helpers.studies.soft_labels import (
    Trained,
    choose_rows,
    load_pair,
    train_student,
)

# Arm: how the teacher's distributions are stored.
STORED: dict[str, dict[str, Any]] = {
    "top-12": {"scheme": "top_k", "top_k": 12},
    "tail bucket of 16": {"scheme": "tail_bucket", "top_k": 16},
    "50 draws": {"scheme": "sampled", "samples": 50},
    "hybrid 4 + 12": {"scheme": "hybrid", "top_k": 4, "samples": 12},
    "hybrid 8 + 24": {"scheme": "hybrid", "top_k": 8, "samples": 24},
}
ARMS = ("labels", "full", *STORED)
DEFAULT = "hybrid 8 + 24"
# Of SmolLM2, to say what a scheme costs there.
REAL_VOCABULARY = 49_152


def scheme_of(arm: str, vocabulary: int) -> Scheme | None:
    """The scheme behind an arm; ``None`` for labels."""
    if arm == "labels":
        return None
    if arm == "full":
        return scheme_for("full", vocabulary)
    options = dict(STORED[arm])
    return scheme_for(options.pop("scheme"), vocabulary, **options)


def train_arm(arm: str, setting: str, *, seed: int, **options: Any) -> Trained:
    """Train one student from a cache that is written for it, and thrown away."""
    pair = load_pair()
    rows = choose_rows(pair, setting, seed)
    if arm in ("labels", "full"):
        teacher = None if arm == "labels" else pair.teacher
        return train_student(pair, rows, teacher, {}, seed=seed, **options)
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(
            pair.teacher.teacher,
            rows,
            folder,
            tokenizer=pair.tokenizer,
            seed=seed,
            progress=False,
            **STORED[arm],
        )
        return train_student(pair, rows, cache, {}, seed=seed, **options)


def _run(run: Run) -> dict[str, float]:
    trained = train_arm(
        run.arm,
        run.setting,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
    )
    scheme = scheme_of(run.arm, len(load_pair().tokenizer))
    real = scheme_of(run.arm, REAL_VOCABULARY)
    test = trained.test
    assert test.kl_to_teacher is not None
    return {
        "validation_nll": trained.validation_nll,
        "nll": test.nll,
        "bits_per_byte": test.bits_per_byte,
        "kl_to_teacher": test.kl_to_teacher,
        "ece": test.ece,
        "nll_calibrated": trained.calibrated_nll,
        "bytes_per_token": 0 if scheme is None else scheme.bytes_per_position,
        "bytes_per_token_real": 0 if real is None else real.bytes_per_position,
        "test_tokens": test.tokens,
    }


STUDY = Study(
    name="stored_labels",
    question="How much of the soft labels' gain survives, for how many bytes?",
    arms=ARMS,
    settings=("800",),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (8e-3, 1.6e-2)
    ),
    run=_run,
    select="validation_nll",
    claims=(
        Claim(
            name="default_keeps",
            text="8 exact tokens and 24 draws keep 90 % of the full gain over labels",
            metric="nll",
            arm=DEFAULT,
            baseline="labels",
            reference="full",
            share=0.9,
            setting="800",
        ),
        Claim(
            name="draws_keep",
            text="50 draws keep 90 % of the full distribution's gain over labels",
            metric="nll",
            arm="50 draws",
            baseline="labels",
            reference="full",
            share=0.9,
            setting="800",
        ),
        Claim(
            name="top_k_is_biased",
            text="Renormalised top-12 is worse than labels alone",
            metric="nll",
            arm="labels",
            baseline="top-12",
            setting="800",
        ),
        Claim(
            name="hybrid_beats_bucket",
            text="A hybrid of 4 + 12 beats a tail bucket of 16, for fewer bytes",
            metric="nll",
            arm="hybrid 4 + 12",
            baseline="tail bucket of 16",
            setting="800",
            margin=0.05,
        ),
    ),
)
