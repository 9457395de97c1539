"""Does it pay to let teacher and student grow together?

A teacher (4 layers, 192 wide) and a student (2 layers, 96 wide) start from scratch on
Jane Austen. Some students learn beside their teacher, some after it, some beside one
of their own size, some alone. In two settings every student takes the same number of
steps; in the third, every arm may spend what the co-distilled pair spends, counted in
floating-point operations. Taught in notebook 07.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from distill_helpers.evaluation import Ensemble, evaluate
from distill_helpers.models import RememberingTeacher, build_student
from distill_helpers.studies.soft_labels import BATCH_SIZE, Pair, load_pair
from distill_helpers.studies.study import Claim, Run, Study, all_but, cells
from distill_helpers.studies.tiny import (
    Recipe,
    Trained,
    count_tflops,
    first_batch,
    train_tiny,
)
from distill_helpers.trainers import (
    CoDistillationTrainer,
    MixSchedule,
    SoftLabelTrainer,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 300
ALONE, TWO = "alone", "two averaged"
SOFT, MIX, RAMP = "soft from the start", "mix from the start", "ramp"
HEAD_START, PEERS, AFTER = "head start", "two peers", "teacher first"
# In ``codistilled_few`` alone, and in ``codistilled_late``.
CONSTANT, SILENT = "constant of the ramp's mean", "beside a silent teacher"
LATE = "late ramp"
ARMS = (ALONE, TWO, SOFT, MIX, RAMP, HEAD_START, PEERS, AFTER)
FEW, MANY, EQUAL = "800", "3000", "3000, equal FLOPs"
# Not every arm is run in every setting: time.
CHOSEN = {
    FEW: (ALONE, MIX, RAMP, PEERS, AFTER),
    MANY: ARMS,
    EQUAL: (ALONE, TWO, AFTER),
}
SCHEDULES = {
    SOFT: MixSchedule(1.0),
    MIX: MixSchedule(0.5),
    RAMP: MixSchedule(0.7, warm_up=0.25, ramp=0.5),
    LATE: MixSchedule(0.7, warm_up=0.5, ramp=0.25),
    CONSTANT: MixSchedule(0.35),
    SILENT: MixSchedule(0.0),
    HEAD_START: MixSchedule(0.5),
    PEERS: MixSchedule(0.5, warm_up=0.25, ramp=0.5),
}


@dataclass(frozen=True)
class Task:
    """What the models of a run have in common.

    Attributes:
        tokenizer: The tokenizer of all of them.
        rows: What they learn from.
        judge: Held-out loss of a model; the lowest chooses the checkpoint.
        steps: Steps of the teacher, and of every student where steps are equal.
        batch_size: Rows of a step.
        teacher_shape: Layers and width of the teacher.
        adam_beta2: How AdamW averages squares, the same for every arm.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    judge: Callable[[nn.Module], float]
    steps: int
    batch_size: int
    teacher_shape: tuple[int, int]
    adam_beta2: float = 0.95

    def student(self, seed: int) -> PreTrainedModel:
        """2 layers, 96 wide, from scratch."""
        return build_student(self.tokenizer, layers=2, width=96, seed=seed)

    def teacher(self, seed: int) -> PreTrainedModel:
        """A larger model, from scratch."""
        layers, width = self.teacher_shape
        return build_student(
            self.tokenizer, layers=layers, width=width, seed=seed + 1000
        )

    @property
    def head_start(self) -> int:
        """Steps that a teacher with a head start is ahead."""
        return self.steps // 2


@dataclass(frozen=True)
class Grown:
    """What came of one arm.

    Attributes:
        student: The student at its best validation checkpoint.
        partner: The teacher or the peer at that step, or when it was finished.
        ensemble: The mean of two students, where two were averaged.
        validation_loss: The student's held-out loss there.
        log: What the trainer logged.
    """

    student: PreTrainedModel
    partner: PreTrainedModel | None
    ensemble: Ensemble | None
    validation_loss: float
    log: tuple[dict[str, float], ...]


def prose_task(pair: Pair, setting: str, seed: int, steps: int = STEPS) -> Task:
    """Jane Austen, with as many rows as the setting says, drawn by the seed."""
    count = int(setting.split(",")[0])
    return Task(
        tokenizer=pair.tokenizer,
        rows=pair.train.shuffle(seed=seed).select(range(count)),
        judge=pair.validation_nll,
        steps=steps,
        batch_size=BATCH_SIZE,
        teacher_shape=(4, 192),
    )


def train_on(
    task: Task,
    models: Any,
    *,
    seed: int,
    steps: int | None = None,
    judged: bool = True,
    trainer: Callable[..., Any] | None = None,
    **recipe: Unpack[Recipe],
) -> Trained:
    """One training on a task's rows, of one model or of two together.

    Args:
        task: Models, rows and judge.
        models: What is trained; what came of it is in :class:`Trained`.
        seed: Decides the order of the rows.
        steps: Default: the task's.
        judged: Look at the validation five times, and keep the best checkpoint; else
            the last.
        trainer: Default: a trainer on labels.
        recipe: Same as in :func:`grow`.
    """
    steps = steps or task.steps
    return train_tiny(
        models,
        task.rows,
        task.tokenizer,
        task.judge if judged else None,
        every=max(1, steps // 5),
        trainer=trainer,
        steps=steps,
        batch_size=task.batch_size,
        adam_beta2=task.adam_beta2,
        seed=seed,
        **recipe,
    )


def grow(
    task: Task,
    arm: str,
    *,
    seed: int,
    steps: int | None = None,
    **recipe: Unpack[Recipe],
) -> Grown:
    """Train one arm from scratch.

    Args:
        task: Models, rows and judge.
        arm: One of ``ARMS``.
        seed: Decides weights and order.
        steps: Steps of the student; default: the task's. A teacher that comes first
            takes as many.
        recipe: Learning rate and weight decay, of all models alike.
    """
    steps = steps or task.steps
    learn = partial(train_on, task, seed=seed, steps=steps, **recipe)
    student = task.student(seed)
    models: Any = student
    ensemble = partner = None
    trainer: Any = None
    if arm == TWO:
        partner = task.student(seed + 500)
        learn(partner)
        ensemble = Ensemble({"one": student, "other": partner})
    elif arm == AFTER:
        partner = task.teacher(seed)
        learn(partner, judged=False)
        teacher = RememberingTeacher(partner)
        trainer = partial(SoftLabelTrainer, teacher=teacher)
    elif arm != ALONE:
        partner = task.student(seed + 500) if arm == PEERS else task.teacher(seed)
        if arm == HEAD_START:
            learn(partner, steps=task.head_start, judged=False)
        models = {"partner": partner, "student": student}
        trainer = partial(
            CoDistillationTrainer,
            teacher=None if arm == PEERS else "partner",
            schedule=SCHEDULES[arm],
        )
    trained = learn(models, trainer=trainer)
    return Grown(student, partner, ensemble, trained.validation, trained.log)


@dataclass(frozen=True)
class Cost:
    """TFLOPs of one step.

    Attributes:
        student: Forward and backward pass of the student.
        teacher: The same of the teacher.
        labelling: The teacher's forward pass alone.
    """

    student: float
    teacher: float
    labelling: float

    def of(self, arm: str, steps: int, head_start: int) -> float:
        """TFLOPs of a whole arm whose student takes so many steps."""
        if arm == ALONE:
            return steps * self.student
        if arm in (TWO, PEERS):
            return steps * 2 * self.student
        together = steps * (self.student + self.teacher)
        if arm == AFTER:
            return together + steps * self.labelling
        if arm == HEAD_START:
            return together + head_start * self.teacher
        return together

    def steps(self, arm: str, budget: float) -> int:
        """Steps of the student that a budget pays for."""
        return round(budget / self.of(arm, 1, 0))


def count_cost(task: Task) -> Cost:
    """Count one step of each model."""
    inputs = first_batch(task.rows, task.tokenizer, task.batch_size)
    teacher = task.teacher(0)
    return Cost(
        student=count_tflops(task.student(0), inputs, backward=True),
        teacher=count_tflops(teacher, inputs, backward=True),
        labelling=count_tflops(teacher, inputs, backward=False),
    )


@lru_cache
def prose_cost() -> Cost:
    """What one step on prose costs."""
    return count_cost(prose_task(load_pair(), FEW, 0))


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    task = prose_task(pair, run.setting, run.seed)
    cost, steps = prose_cost(), STEPS
    if run.setting == EQUAL:
        steps = cost.steps(run.arm, cost.of(RAMP, STEPS, 0))
    grown = grow(task, run.arm, steps=steps, **run.recipe)
    return {
        **measure(grown, pair),
        "steps": steps,
        "tflops": cost.of(run.arm, steps, task.head_start),
    }


def measure(grown: Grown, pair: Pair) -> dict[str, float]:
    """What the held-out novel says of a student and its partner, as columns.

    What there is no partner for is NaN.

    Args:
        grown: From :func:`grow`.
        pair: Whose test text is read.
    """
    best = grown.ensemble or grown.student
    test = evaluate(best, pair.test, pair.tokenizer)
    found: dict[str, Any] = {
        "validation_nll": grown.validation_loss,
        "nll": test.nll,
        "bits_per_byte": test.bits_per_byte,
        "partner_nll": math.nan,
        "agreement": math.nan,
        "kl_to_partner": math.nan,
    }
    if grown.partner is not None:
        compared = evaluate(
            grown.student, pair.test, pair.tokenizer, teacher=grown.partner
        )
        found["agreement"] = compared.agreement
        found["kl_to_partner"] = compared.kl_to_teacher
        found["partner_nll"] = evaluate(grown.partner, pair.test, pair.tokenizer).nll
    return found


_claim = partial(Claim, metric="nll", arm=RAMP, baseline=MIX, setting=MANY)
# Two claims of 800 rows stood here, and the grid ended too early for them: they were
# declared anew in `codistilled_few`, whose verdicts are the ones to read.
STUDY = Study(
    name="codistillation",
    question="Does it pay to let teacher and student grow together?",
    arms=ARMS,
    settings=(FEW, MANY, EQUAL),
    grid=cells(4e-3, 8e-3),
    run=_run,
    select="validation_nll",
    left_out=all_but(CHOSEN, ARMS),
    # Declared after exploring on seed 0, before confirming.
    claims=(
        _claim(
            "noisy_start",
            "With soft labels alone from the start, the student ends worse than with "
            "none",
            arm=ALONE,
            baseline=SOFT,
            margin=0.1,
        ),
        _claim("ramp_helps", "A ramp beats an equal mix from the start"),
        _claim(
            "head_start_helps",
            "So does a teacher that is half a training run ahead",
            arm=HEAD_START,
            margin=0.05,
        ),
        _claim(
            "pays_many",
            "With 3,000 rows, a co-distilled student beats one alone",
            baseline=ALONE,
        ),
        _claim(
            "after_is_better",
            "Distilling from the teacher when it is finished is better still",
            arm=AFTER,
            baseline=RAMP,
        ),
        _claim(
            "equal_flops",
            "For the operations of the pair, a student that simply trains longer on "
            "its own comes further",
            arm=ALONE,
            baseline=RAMP,
            setting=EQUAL,
            baseline_setting=MANY,
            margin=0.3,
        ),
    ),
)
