"""A teacher away from home: should it learn the domain before it teaches?

Rows are dictionary glosses, which the Austen teacher has never seen. Its soft labels
are compared with labels alone, as the teacher is and after a short training on the same
glosses ("teacher correction", Sreenivas et al. 2024, arXiv:2408.11796). Taught in
notebook 02.
"""

from __future__ import annotations

from functools import lru_cache

from distill_helpers.data import glosses, pack, spread
from distill_helpers.models import RememberingTeacher, load_tiny_teacher
from distill_helpers.profiles import get_profile
from distill_helpers.studies import Claim, Run, Study
from distill_helpers.studies.soft_labels import (
    LENGTH,
    TEST_ROWS,
    VALIDATION_ROWS,
    Pair,
    train_arm,
)
from distill_helpers.trainers import HardLabelTrainer, training_arguments

CORRECTION_STEPS = 200
# Arm: which teacher, and the arm of soft_labels that it is.
ARMS = {
    "labels": ("corrected", "labels"),
    "soft, teacher as it is": ("as it is", "soft T=1"),
    "mix, teacher as it is": ("as it is", "mix"),
    "soft, teacher corrected": ("corrected", "soft T=1"),
}


@lru_cache(maxsize=2)
def load_pair(which: str) -> Pair:
    """Gloss rows with the teacher ``"as it is"`` or ``"corrected"``."""
    loaded = load_tiny_teacher("prose")
    tokenizer = loaded.tokenizer
    texts = [f"{row['word']}: {row['gloss']}." for row in glosses()]
    train, validation, test = (
        pack(part, tokenizer, LENGTH)
        for part in (texts[:9000], texts[9000:10000], texts[10000:])
    )
    if which == "corrected":
        loaded.model.requires_grad_(True)
        HardLabelTrainer(
            loaded.model,
            args=training_arguments(
                get_profile("cpu"),
                steps=CORRECTION_STEPS,
                learning_rate=1e-3,
                batch_size=16,
                mixed_precision=False,
                disable_tqdm=True,
            ),
            train_dataset=train,
            tokenizer=tokenizer,
        ).train()
        loaded.model.requires_grad_(False).eval()
    return Pair(
        RememberingTeacher(loaded.model),
        tokenizer,
        train,
        spread(validation, VALIDATION_ROWS),
        spread(test, TEST_ROWS),
    )


def _run(run: Run) -> dict[str, float]:
    which, arm = ARMS[run.arm]
    pair = load_pair(which)
    rows = pair.train.shuffle(seed=run.seed).select(range(int(run.setting)))
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
    code=("losses", "trainers", "evaluation", "studies/soft_labels"),
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
