"""Every technique on one task, with one student and one budget.

What a project often has: a few worked answers (500 sums), more questions without any
(2,000), a teacher that is right four times in five, and one small model that has
learned on easier material: the base (2 layers, 96 wide) adds numbers up to 39, and the
task goes up to 99. Every student starts from it and trains for 600 steps with one
learning rate; in the second setting it may spend as many floating-point operations as
soft labels with a live teacher do in these steps. Beside them stand what is often
forgotten: the teacher itself, its weights in 4 bits, half of its layers (as they are,
and as a student), labels with smoothing, a student as its own teacher. Judged on the
frozen 2,000 problems. Taught in notebook 11.

This is the second round. In the first every seed had a base of its own, and three
confirming seeds of equal steps showed what that does: with the base of one seed no
student began to carry within 600 steps, whatever it learned from. Differences between
arms drowned in differences between bases, so the round was broken off; its rows are in
``results/rounds``. Now there is one base, that of seed 0, as in a project there is one
model to start from, and seeds draw the labels, the questions and the order. What comes
out holds for this base. The exploring rows of seed 0 are those of the first round, in
which nothing else was different; own text at equal operations was left out for time.

The learning rate was chosen by hand on seed 0, for labels, text and soft labels
together. "Labels and soft labels" was added after the first round.

``ways`` names what is compared and counts its costs, ``models`` makes what students
begin from, ``training`` trains them.
"""

from __future__ import annotations

from functools import lru_cache, partial

from distill_helpers.studies.side_by_side import models, training, ways
from distill_helpers.studies.side_by_side.models import *  # noqa: F403
from distill_helpers.studies.side_by_side.training import *  # noqa: F403
from distill_helpers.studies.side_by_side.ways import *  # noqa: F403
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.tasks import three_sums


@lru_cache
def _as_it_is(arm: str) -> dict[str, float]:
    """The numbers of a model that no seed changes."""
    model = models.finished_model(arm)
    return {
        "validation_wrong": 0.0,
        **models.quality(model),
        "model_bytes": models.model_bytes(arm, model),
        "test_problems": three_sums.TEST_SIZE,
    }


def _run(run: Run) -> dict[str, float]:
    if run.arm in ways.MODELS:
        return _as_it_is(run.arm)
    task = ways.load_task(run.seed)
    base = models.finished_model(ways.HALF if run.arm == ways.REPAIRED else ways.BASE)
    partner = models.base_partner() if run.arm == ways.TOGETHER else None
    steps = ways.steps_of(run.arm, run.setting)
    cosine = float("nan")
    # Stored soft labels are on average the live ones; another model has other weights.
    if run.setting == ways.SAME_STEPS and run.arm not in (ways.STORED, ways.REPAIRED):
        cosine = training.gradient_cosine(
            run.arm, base, task, seed=run.seed, partner=partner
        )
    trained = training.train_arm(
        run.arm, base, task, steps=steps, partner=partner, **run.recipe
    )
    return {
        "validation_wrong": trained.validation,
        **models.quality(trained.model),
        "model_bytes": models.model_bytes(run.arm, trained.model),
        "test_problems": three_sums.TEST_SIZE,
        "steps": steps,
        "trained_tokens": round(trained.tokens),
        "training_seconds": round(trained.seconds, 1),
        "labelling_seconds": round(trained.labelling_seconds, 1),
        "tflops": ways.count_costs().of(run.arm, steps),
        "stored_bytes": trained.stored_bytes,
        "gradient_cosine": cosine,
    }


_claim = partial(
    Claim, metric="exact_match", setting=ways.SAME_STEPS, higher_is_better=True
)
_soft = partial(_claim, arm=ways.SOFT, baseline=ways.TEXT)
STUDY = Study(
    name="side_by_side",
    question="Which technique, for one task, one student and one budget?",
    arms=ways.ARMS,
    settings=(ways.SAME_STEPS, ways.EQUAL),
    grid=cells(ways.RATE),
    run=_run,
    select="validation_wrong",
    confirm_seeds=(610, 611, 612, 613, 614),
    left_out=tuple((arm, ways.EQUAL) for arm in ways.ARMS if arm not in ways.LONGER),
    # Declared before the first round, except for the added arm's; all of them before
    # any row of this one.
    claims=(
        _claim(
            "text_beats_labels",
            "2,000 of the teacher's answers beat 500 right ones",
            ways.TEXT,
            ways.LABELS,
        ),
        _claim(
            "both_beat_text",
            "Labels and the teacher's text together beat the text alone",
            ways.BOTH,
            ways.TEXT,
        ),
        _claim(
            "both_soft_beat_both",
            "Soft labels on labels and text beat labels and text",
            ways.BOTH_SOFT,
            ways.BOTH,
        ),
        _claim(
            "checking_helps",
            "Checked text beats unchecked text",
            ways.CHECKED,
            ways.TEXT,
        ),
        _soft("soft_beats_text", "Soft labels beat the teacher's text"),
        _soft(
            "labels_for_longer",
            "Soft labels also beat labels that train for as many operations",
            baseline=ways.LABELS,
            baseline_setting=ways.EQUAL,
        ),
        _soft(
            "text_for_longer",
            "Soft labels also beat text that trains for as many operations",
            baseline_setting=ways.EQUAL,
        ),
        _claim(
            "not_smoothing",
            "On the labelled rows, soft labels beat label smoothing",
            ways.SOFT_FEW,
            ways.SMOOTHED,
        ),
        _claim("self_helps", "Self-distillation beats labels", ways.SELF, ways.LABELS),
        _claim(
            "together_helps", "Co-distillation beats labels", ways.TOGETHER, ways.LABELS
        ),
        _claim(
            "stored_keeps",
            "Stored soft labels keep 90 % of the live ones' gain over labels",
            ways.STORED,
            ways.LABELS,
            reference=ways.SOFT,
            share=0.9,
        ),
        _claim(
            "stored_pays",
            "For equal operations, stored soft labels beat live ones",
            ways.STORED,
            ways.SOFT,
            setting=ways.EQUAL,
            baseline_setting=ways.SAME_STEPS,
        ),
        _claim(
            "own_helps",
            "A last quarter on own text beats the teacher's text to the end",
            ways.OWN,
            ways.TEXT,
        ),
        _claim(
            "bits_beat_students",
            "The teacher in 4 bits beats the student of soft labels",
            ways.FOUR_BITS,
            ways.SOFT,
        ),
        _claim(
            "repair_beats_small",
            "Half the teacher, repaired, beats the smaller student",
            ways.REPAIRED,
            ways.SOFT,
        ),
        _soft(
            "steadier",
            "Soft labels' gradients agree better between batches than text's",
            metric="gradient_cosine",
        ),
        _soft(
            "calibrated",
            "A student of soft labels is better calibrated than one of text",
            metric="ece",
            higher_is_better=False,
        ),
    ),
)
