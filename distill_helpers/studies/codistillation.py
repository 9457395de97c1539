"""Does it pay to let teacher and student grow together?

A teacher (4 layers, 192 wide) and a student (2 layers, 96 wide) start from scratch on
Jane Austen. Some students learn beside their teacher, some after it, some beside one
of their own size, some alone. In two settings every student takes the same number of
steps; in the third, every arm may spend what the co-distilled pair spends, counted in
floating-point operations. Taught in notebook 06.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from distill_helpers.codistillation import (
    CoDistillationTrainer,
    Ensemble,
    MixSchedule,
    Partners,
)
from distill_helpers.data import collator_for
from distill_helpers.evaluation import evaluate, held_out_nll
from distill_helpers.models import RememberingTeacher, build_student
from distill_helpers.studies import Claim, Run, Study, count_tflops, tiny_arguments
from distill_helpers.studies.soft_labels import BATCH_SIZE, Pair, load_pair
from distill_helpers.trainers import (
    HardLabelTrainer,
    KeepBest,
    SoftLabelTrainer,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 300
ALONE, TWO = "alone", "two averaged"
SOFT, MIX, RAMP = "soft from the start", "mix from the start", "ramp"
HEAD_START, PEERS, AFTER = "head start", "two peers", "teacher first"
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
    HEAD_START: MixSchedule(0.5),
    PEERS: MixSchedule(0.5, warm_up=0.25, ramp=0.5),
}


@dataclass(frozen=True)
class Task:
    """What the models of a run have in common.

    Attributes:
        tokenizer: Of all of them.
        rows: They learn from.
        judge: Held-out loss of a model; the lowest chooses the checkpoint.
        steps: Of the teacher, and of every student where steps are equal.
        batch_size: Rows of a step.
        teacher_shape: Layers and width.
        options: Further training arguments, the same for every arm.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    judge: Callable[[nn.Module], float]
    steps: int
    batch_size: int
    teacher_shape: tuple[int, int]
    options: tuple[tuple[str, Any], ...] = ()

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
        student: At its best validation checkpoint.
        partner: The teacher or the peer at that step, or when it was finished.
        ensemble: The mean of two students, where two were averaged.
        validation_loss: The student's.
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
        judge=lambda model: held_out_nll(model, pair.validation, pair.tokenizer),
        steps=steps,
        batch_size=BATCH_SIZE,
        teacher_shape=(4, 192),
    )


def grow(
    task: Task,
    arm: str,
    *,
    seed: int,
    learning_rate: float,
    weight_decay: float = 0.1,
    steps: int | None = None,
) -> Grown:
    """Train one arm from scratch.

    Args:
        task: Models, rows and judge.
        arm: One of ``ARMS``.
        seed: Of weights and order.
        learning_rate: Peak, of all models alike.
        weight_decay: Of AdamW.
        steps: Of the student; default: the task's. A teacher that comes first takes
            as many.
    """
    steps = steps or task.steps

    def train(kind: Callable[..., Any], models: Any, count: int, **more: Any) -> Any:
        trainer = kind(
            models,
            args=tiny_arguments(
                steps=count,
                learning_rate=learning_rate,
                batch_size=task.batch_size,
                weight_decay=weight_decay,
                seed=seed,
                **dict(task.options),
            ),
            train_dataset=task.rows,
            tokenizer=task.tokenizer,
            **more,
        )
        trainer.train()
        return trainer

    def grown(
        kind: Callable[..., Any],
        models: Any,
        *,
        partner: PreTrainedModel | None = None,
        ensemble: Ensemble | None = None,
        **more: Any,
    ) -> Grown:
        keep = KeepBest(
            lambda trained: task.judge(_student_of(trained)), every=max(1, steps // 5)
        )
        trainer = train(kind, models, steps, callbacks=[keep], **more)
        keep.restore(trainer.model)
        log = tuple(trainer.state.log_history)
        return Grown(student, partner, ensemble, keep.best, log)

    student = task.student(seed)
    if arm == ALONE:
        return grown(HardLabelTrainer, student)
    if arm == TWO:
        other = task.student(seed + 500)
        grown(HardLabelTrainer, other)
        both = Ensemble({"one": student, "other": other})
        return grown(HardLabelTrainer, student, partner=other, ensemble=both)
    partner = task.student(seed + 500) if arm == PEERS else task.teacher(seed)
    if arm == AFTER:
        train(HardLabelTrainer, partner, steps)
        remembering = RememberingTeacher(partner)
        return grown(SoftLabelTrainer, student, partner=partner, teacher=remembering)
    if arm == HEAD_START:
        train(HardLabelTrainer, partner, task.head_start)
    return grown(
        CoDistillationTrainer,
        {"partner": partner, "student": student},
        partner=partner,
        teacher=None if arm == PEERS else "partner",
        schedule=SCHEDULES[arm],
    )


def _student_of(trained: nn.Module) -> nn.Module:
    return trained.models["student"] if isinstance(trained, Partners) else trained


@dataclass(frozen=True)
class Cost:
    """TFLOPs of one step.

    Attributes:
        student: Forward and backward.
        teacher: Likewise.
        labelling: The teacher's forward alone.
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
    batch = collator_for(task.tokenizer)(
        [task.rows[index] for index in range(task.batch_size)]
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    teacher = task.teacher(0)
    return Cost(
        student=count_tflops(task.student(0), inputs, backward=True),
        teacher=count_tflops(teacher, inputs, backward=True),
        labelling=count_tflops(teacher, inputs, backward=False),
    )


@lru_cache
def _prose_cost() -> Cost:
    return count_cost(prose_task(load_pair(), FEW, 0))


def student_steps(arm: str, setting: str) -> int:
    """Steps of the student: the same for all, or what the pair's FLOPs buy."""
    if setting != EQUAL:
        return STEPS
    cost = _prose_cost()
    return cost.steps(arm, cost.of(RAMP, STEPS, 0))


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    task = prose_task(pair, run.setting, run.seed)
    steps = student_steps(run.arm, run.setting)
    grown = grow(task, run.arm, seed=run.seed, steps=steps, **dict(run.options))
    best = grown.ensemble or grown.student
    test = evaluate(best, pair.test, pair.tokenizer)
    found = {
        "validation_nll": grown.validation_loss,
        "nll": test.nll,
        "bits_per_byte": test.bits_per_byte,
        "steps": steps,
        "tflops": _prose_cost().of(run.arm, steps, task.head_start),
        "partner_nll": float("nan"),
        "agreement": float("nan"),
        "kl_to_partner": float("nan"),
    }
    if grown.partner is not None:
        compared = evaluate(
            grown.student, pair.test, pair.tokenizer, teacher=grown.partner
        )
        assert compared.agreement is not None
        assert compared.kl_to_teacher is not None
        found["agreement"] = compared.agreement
        found["kl_to_partner"] = compared.kl_to_teacher
        found["partner_nll"] = evaluate(grown.partner, pair.test, pair.tokenizer).nll
    return found


STUDY = Study(
    name="codistillation",
    question="Does it pay to let teacher and student grow together?",
    arms=ARMS,
    settings=(FEW, MANY, EQUAL),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (4e-3, 8e-3)
    ),
    run=_run,
    select="validation_nll",
    left_out=tuple(
        (arm, setting)
        for setting in CHOSEN
        for arm in ARMS
        if arm not in CHOSEN[setting]
    ),
    # Declared after exploring on seed 0, before confirming.
    claims=(
        Claim(
            name="noisy_start",
            text="With soft labels alone from the start, the student ends worse than "
            "with none",
            metric="nll",
            arm=ALONE,
            baseline=SOFT,
            setting=MANY,
            margin=0.1,
        ),
        Claim(
            name="ramp_helps",
            text="A ramp beats an equal mix from the start",
            metric="nll",
            arm=RAMP,
            baseline=MIX,
            setting=MANY,
        ),
        Claim(
            name="head_start_helps",
            text="So does a teacher that is half a training run ahead",
            metric="nll",
            arm=HEAD_START,
            baseline=MIX,
            setting=MANY,
            margin=0.05,
        ),
        Claim(
            name="pays_few",
            text="With 800 rows, a co-distilled student beats one alone",
            metric="nll",
            arm=RAMP,
            baseline=ALONE,
            setting=FEW,
        ),
        Claim(
            name="pays_many",
            text="With 3,000 rows, it still does",
            metric="nll",
            arm=RAMP,
            baseline=ALONE,
            setting=MANY,
        ),
        Claim(
            name="peers_pay",
            text="With 800 rows, a peer of its own size helps a student, too",
            metric="nll",
            arm=PEERS,
            baseline=ALONE,
            setting=FEW,
        ),
        Claim(
            name="after_is_better",
            text="Distilling from the teacher when it is finished is better still",
            metric="nll",
            arm=AFTER,
            baseline=RAMP,
            setting=MANY,
        ),
        Claim(
            name="equal_flops",
            text="For the operations of the pair, a student that simply trains longer "
            "on its own comes further",
            metric="nll",
            arm=ALONE,
            baseline=RAMP,
            setting=EQUAL,
            baseline_setting=MANY,
            margin=0.3,
        ),
    ),
)
