"""Co-distillation for long enough that the teacher is really ahead.

In the other studies of co-distillation a run ends after 300 steps, where the larger
model has hardly begun to use its size. Here it has 2,000, all the rows that there are,
and is read a little more than twice. So a teacher has something to say while the
student can still use it: if learning beside a growing teacher pays anywhere, it should
be here.

The ramp of the other studies begins at a quarter of the run; the *late ramp* begins at
half of it, when the teacher is further ahead, and is done at three quarters. The bill
has its own rival: a student alone, for the operations of the pair. No run was looked at
before declaring; what is known is that after six times 300 steps a lone student with
3,000 rows still gained. Taught in notebook 07.
"""

from __future__ import annotations

from functools import partial

from distill_helpers.studies.codistillation import (
    AFTER,
    ALONE,
    LATE,
    RAMP,
    grow,
    measure,
    prose_cost,
    prose_task,
)
from distill_helpers.studies.soft_labels import load_pair
from distill_helpers.studies.study import Claim, Run, Study, all_but, cells

STEPS = 2000
ARMS = (ALONE, RAMP, LATE, AFTER)
ALL, EQUAL = "14679", "14679, equal FLOPs"


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    task = prose_task(pair, run.setting, run.seed, STEPS)
    cost, steps = prose_cost(), STEPS
    if run.setting == EQUAL:
        steps = cost.steps(run.arm, cost.of(RAMP, STEPS, 0))
    found = measure(grow(task, run.arm, steps=steps, **run.recipe), pair)
    # Not a number for the student alone, which has nobody beside it.
    gap = found["nll"] - found["partner_nll"]
    tflops = cost.of(run.arm, steps, task.head_start)
    return {**found, "gap": gap, "steps": steps, "tflops": tflops}


_claim = partial(
    Claim, metric="nll", arm=RAMP, baseline=ALONE, setting=ALL, margin=0.02
)
STUDY = Study(
    name="codistilled_late",
    question="When the teacher is really ahead, does it pay to grow beside it?",
    arms=ARMS,
    settings=(ALL, EQUAL),
    left_out=all_but({ALL: ARMS, EQUAL: (ALONE,)}, ARMS),
    # Of 300 steps, 8e-3 to 1.6e-2 were best; longer runs take lower rates.
    grid=cells(4e-3, 8e-3, 1.6e-2),
    run=_run,
    select="validation_nll",
    # A run of a pair takes nine minutes: one exploring seed.
    explore_seeds=(0,),
    confirm_seeds=tuple(range(1200, 1210)),
    claims=(
        _claim(
            "pays_late",
            "Over 2,000 steps, a student beside a growing teacher beats one alone",
        ),
        _claim(
            "later_is_better",
            "A ramp that begins at half of the run beats one that begins at a quarter",
            arm=LATE,
            baseline=RAMP,
            margin=0.01,
        ),
        _claim(
            "after_is_better_late",
            "Over 2,000 steps, distilling from the finished teacher is better still",
            arm=AFTER,
            baseline=RAMP,
        ),
        _claim(
            "bill_late",
            "For the operations of a pair's 2,000 steps, a student alone comes further",
            arm=ALONE,
            baseline=RAMP,
            setting=EQUAL,
            baseline_setting=ALL,
            margin=0.05,
        ),
    ),
)
