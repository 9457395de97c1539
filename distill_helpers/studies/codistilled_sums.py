"""Co-distillation on the shared task: learning to add beside a larger model.

Teacher (4 layers, 128 wide) and student (2 layers, 96 wide) start from scratch on the
same 2,000 worked sums. Judged by the student's exact match on the frozen problems. In
the second setting, a student alone may spend what the co-distilled pair spends, counted
in floating-point operations. Of the schedules of ``codistillation`` it has the equal
mix, which was ahead of the ramp on exploring seed 0, where both were tried by hand
(``results/rounds/codistilled_sums_0.csv``). Taught in notebook 07.
"""

from __future__ import annotations

from functools import lru_cache, partial

from distill_helpers.studies.codistillation import (
    AFTER,
    ALONE,
    MIX,
    PEERS,
    Cost,
    Task,
    count_cost,
    grow,
)
from distill_helpers.studies.shared_task import BATCH_SIZE, load_task, score, worked
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.tasks import three_sums

STEPS = 1000
ARMS = (ALONE, MIX, PEERS, AFTER)
SAME_STEPS, EQUAL = "2000", "2000, equal FLOPs"


def sums_task(setting: str, seed: int, steps: int = STEPS) -> Task:
    """Worked sums, as many as the setting says, drawn by the seed."""
    count = int(setting.split(",")[0])
    task = load_task()
    return Task(
        tokenizer=task.teacher.tokenizer,
        rows=worked(three_sums.problems(count, seed=seed), task.teacher.tokenizer),
        judge=task.validation_nll,
        steps=steps,
        batch_size=BATCH_SIZE,
        teacher_shape=(4, 128),
        # With 0.95, students begin to carry at any time, or not at all: notebook 06.
        adam_beta2=0.99,
    )


@lru_cache
def _cost() -> Cost:
    return count_cost(sums_task(SAME_STEPS, 0))


def _run(run: Run) -> dict[str, float]:
    task = sums_task(run.setting, run.seed)
    cost, steps = _cost(), STEPS
    if run.setting == EQUAL:
        steps = cost.steps(run.arm, cost.of(MIX, STEPS, 0))
    grown = grow(task, run.arm, steps=steps, **run.recipe)
    partner = float("nan")
    if grown.partner is not None:
        partner = score(grown.partner, task.tokenizer)
    return {
        "validation_nll": grown.validation_loss,
        "exact_match": score(grown.student, task.tokenizer),
        "partner_exact_match": partner,
        "steps": steps,
        "tflops": cost.of(run.arm, steps, task.head_start),
        "test_problems": three_sums.TEST_SIZE,
    }


_claim = partial(
    Claim,
    metric="exact_match",
    baseline=ALONE,
    setting=SAME_STEPS,
    higher_is_better=True,
)
STUDY = Study(
    name="codistilled_sums",
    question="Does it pay to learn to add beside a larger model?",
    arms=ARMS,
    settings=(SAME_STEPS, EQUAL),
    # One cell, for time: what `shared_task` chose for students of this shape.
    grid=cells(4e-3),
    run=_run,
    select="validation_nll",
    left_out=tuple((arm, EQUAL) for arm in ARMS if arm != ALONE),
    # Declared after exploring on seed 0, before confirming.
    claims=(
        _claim(
            "sums_pay",
            "On 2,000 worked sums, a co-distilled student beats one alone",
            arm=MIX,
        ),
        _claim(
            "sums_peers",
            "A peer of its own size helps a student to add, too",
            arm=PEERS,
        ),
        _claim(
            "sums_after",
            "Distilling from the teacher when it is finished is better still",
            arm=AFTER,
            baseline=MIX,
        ),
        _claim(
            "sums_flops",
            "For the operations of the pair, a student alone comes further",
            arm=ALONE,
            baseline=MIX,
            setting=EQUAL,
            baseline_setting=SAME_STEPS,
            margin=5.0,
        ),
    ),
)
