"""Own text once more, from students that can write a little.

In ``on_policy`` one of five warm starts was right about one time in thirteen, and its
spread decided what was decided. Here a warm start goes on until it is right on four
validation problems in ten, and only then the arms part, as there. Exposure bias is
measured with four texts a prompt, since much of its scatter was drawing.

A second setting asks where exposure bias bites: it has students that were stopped
early, and so write prefixes that their teacher would never write. They are right so
seldom that to choose a checkpoint by it would be to choose by noise: there the last
step counts. Taught in notebook 08.
"""

from __future__ import annotations

from functools import lru_cache, partial

from distill_helpers.studies.on_policy import (
    FORWARD,
    FRESH,
    MORE,
    REVERSE,
    SOFT,
    SOFT_TIME,
    WARM,
    exposure,
    go_on,
    outcome,
    warm_start,
)
from distill_helpers.studies.study import (
    EXPLORE_SEEDS,
    Claim,
    Run,
    Study,
    all_but,
    cells,
)
from distill_helpers.studies.tiny import Trained

# A warm start is trained anew with more steps until it is right so often.
LEAST = 0.4
BEGUN_STEPS = (1500, 2500, 3500)
# On seeds 0 and 1, by hand: excess KL of 0.14 nats after 250 steps, 0.05 after 350.
WEAK_STEPS = 250
TEXTS = 4
BEGUN, WEAK = "has begun", "a worse writer"
# Not JSD and not the half mix of `on_policy`: no claim is made about them.
ARMS = (WARM, MORE, SOFT, FRESH, REVERSE, FORWARD, SOFT_TIME)
CHOSEN = {BEGUN: ARMS, WEAK: (WARM, MORE, REVERSE)}


@lru_cache(maxsize=1)
def start(setting: str, seed: int) -> Trained:
    """The student that every arm of a setting and a seed goes on from."""
    if setting == WEAK:
        return warm_start(seed, WEAK_STEPS, judged=False)
    for steps in BEGUN_STEPS:
        warm = warm_start(seed, steps)
        if 1 - warm.validation >= LEAST:
            break
    return warm


def _run(run: Run) -> dict[str, float]:
    trained = start(run.setting, run.seed)
    begun_at = 1 - trained.validation  # the share that is right
    if run.arm != WARM:
        judged = run.setting != WEAK
        trained = go_on(trained.model, run.arm, judged=judged, **run.recipe)
    bias = exposure(trained.model, texts=TEXTS)
    return {**outcome(trained, bias), "begun_at": begun_at}


_claim = partial(
    Claim, metric="exact_match", arm=REVERSE, setting=BEGUN, higher_is_better=True
)
_excess = partial(_claim, metric="excess_kl", higher_is_better=False, baseline=MORE)
STUDY = Study(
    name="own_text",
    question="Does own text pay, once a student can write a little?",
    arms=ARMS,
    settings=(BEGUN, WEAK),
    grid=cells(1e-3, 2e-3, 4e-3),
    run=_run,
    select="validation_wrong",
    explore_seeds=EXPLORE_SEEDS,
    confirm_seeds=tuple(range(900, 920)),
    left_out=all_but(CHOSEN, ARMS),
    # Directions and margins come from the seeds of `on_policy`, which are not used
    # again: own text was ahead of traces by 12 points, of soft labels by 3 once the
    # weak start was left out, of new text by 2, and level with soft labels in equal
    # time.
    claims=(
        _claim(
            "own_beats_traces",
            "Own text (reverse KL) beats more of the teacher's traces",
            baseline=MORE,
            margin=5.0,
        ),
        _claim(
            "own_beats_soft",
            "It also beats soft labels on the teacher's traces",
            baseline=SOFT,
            margin=1.0,
        ),
        _claim(
            "own_beats_new",
            "Own text beats new text by the teacher, both with forward KL",
            arm=FORWARD,
            baseline=FRESH,
            margin=0.5,
        ),
        _claim(
            "direction_is_equal",
            "On own text, reverse and forward KL come equally far",
            baseline=FORWARD,
            within=2.0,
        ),
        _claim(
            "own_in_time",
            "In equal time, own text and soft labels come equally far",
            baseline=SOFT_TIME,
            within=2.0,
        ),
        _excess(
            "own_heals",
            "Own text (reverse KL) leaves less excess KL than more traces",
            why_zero="that the bias shrinks at all is the claim; nobody pays in nats",
        ),
        _excess(
            "own_heals_weak",
            "It does so for a worse writer, by more than a hundredth of a nat",
            setting=WEAK,
            margin=0.01,
        ),
    ),
)
