"""Co-distillation on the shared task: learning to add beside a larger model.

Teacher (4 layers, 128 wide) and student (2 layers, 96 wide) start from scratch on the
same worked sums. Judged by the student's exact match on the frozen 2,000 problems.
Taught in notebook 06.
"""

from __future__ import annotations

from functools import lru_cache

from distill_helpers import three_sums
from distill_helpers.evaluation import held_out_nll
from distill_helpers.models import load_tiny_teacher
from distill_helpers.studies import Run
from distill_helpers.studies.codistillation import (
    AFTER,
    ALONE,
    MIX,
    PEERS,
    RAMP,
    Cost,
    Task,
    count_cost,
    grow,
)
from distill_helpers.studies.shared_task import (
    BATCH_SIZE,
    VALIDATION_SEED,
    score,
    worked,
)

STEPS = 1000
ARMS = (ALONE, MIX, RAMP, PEERS, AFTER)
FEW, EQUAL = "2000", "2000, equal FLOPs"


def sums_task(setting: str, seed: int, steps: int = STEPS) -> Task:
    """Worked sums, as many as the setting says, drawn by the seed."""
    count = int(setting.split(",")[0])
    tokenizer = load_tiny_teacher("sums").tokenizer
    validation = worked(three_sums.problems(500, seed=VALIDATION_SEED), tokenizer)
    return Task(
        tokenizer=tokenizer,
        rows=worked(three_sums.problems(count, seed=seed), tokenizer),
        judge=lambda model: held_out_nll(model, validation, tokenizer, batch_size=250),
        steps=steps,
        batch_size=BATCH_SIZE,
        teacher_shape=(4, 128),
        # With 0.95, students begin to carry at any time, or not at all: notebook 05.
        options=(("adam_beta2", 0.99),),
    )


@lru_cache
def _cost() -> Cost:
    return count_cost(sums_task(FEW, 0))


def _run(run: Run) -> dict[str, float]:
    task = sums_task(run.setting, run.seed)
    steps, cost = STEPS, _cost()
    if run.setting == EQUAL:
        steps = cost.steps(run.arm, cost.of(RAMP, STEPS, 0))
    grown = grow(
        task,
        run.arm,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
        steps=steps,
    )
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
