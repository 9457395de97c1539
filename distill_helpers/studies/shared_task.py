"""The shared task's first rows: adding three numbers, from labels and soft labels.

The student (2 layers, 96 wide) reads worked answers. "labels" learns them as they are;
"soft" learns, on the same answers, what the 80 % teacher would have written next.
Judged by exact match on the frozen 2,000 problems. Taught in notebook 02; notebooks 05,
06 and 07 add their rows.

The rows are of a second round with the same seeds, run when rewritten trainers rounded
otherwise; those of the first are in ``results/rounds/shared_task_0.csv``. The verdicts
are the same, single runs are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from distill_helpers import three_sums
from distill_helpers.data import collator_for, mask_prompts
from distill_helpers.evaluation import exact_match, held_out_nll
from distill_helpers.models import (
    Loaded,
    RememberingTeacher,
    build_student,
    load_tiny_teacher,
)
from distill_helpers.studies import Claim, Run, Study, count_tflops, tiny_arguments
from distill_helpers.trainers import (
    HardLabelTrainer,
    KeepBest,
    SoftLabelTrainer,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 64
STEPS = 1200
VALIDATION_SEED = 777
ARMS = ("labels", "soft")


@dataclass(frozen=True)
class Task:
    """The sums teacher, and worked problems that choose checkpoints."""

    teacher: Loaded
    remembering: RememberingTeacher
    validation: Dataset


@lru_cache
def load_task() -> Task:
    """Load the teacher once; its logits are kept for the arms that share rows."""
    teacher = load_tiny_teacher("sums")
    chosen = three_sums.problems(500, seed=VALIDATION_SEED)
    return Task(
        teacher, RememberingTeacher(teacher.model), worked(chosen, teacher.tokenizer)
    )


def worked(
    problems: list[three_sums.Problem], tokenizer: PreTrainedTokenizerBase
) -> Dataset:
    """Rows of problem and full answer; only the answer is learned."""
    return mask_prompts(
        [problem.prompt for problem in problems],
        [problem.answer for problem in problems],
        tokenizer,
    )


def train_student(
    arm: str,
    count: int,
    *,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    steps: int = STEPS,
    progress: bool = False,
) -> tuple[PreTrainedModel, float]:
    """Train one student on ``count`` problems; return it and its validation NLL."""
    task = load_task()
    tokenizer = task.teacher.tokenizer
    student = build_student(tokenizer, layers=2, width=96, seed=seed)
    keep = KeepBest(
        lambda model: held_out_nll(model, task.validation, tokenizer, batch_size=250),
        every=max(1, steps // 3),
    )
    options: dict[str, Any] = {
        "args": tiny_arguments(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=BATCH_SIZE,
            weight_decay=weight_decay,
            seed=seed,
            progress=progress,
        ),
        "train_dataset": worked(three_sums.problems(count, seed=seed), tokenizer),
        "tokenizer": tokenizer,
        "callbacks": [keep],
    }
    if arm == "soft":
        trainer: Any = SoftLabelTrainer(student, teacher=task.remembering, **options)
    else:
        trainer = HardLabelTrainer(student, **options)
    trainer.train()
    keep.restore(student)
    return student, keep.best


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int = three_sums.TEST_SIZE,
) -> float:
    """Exact match on the first ``count`` problems of the frozen test, in percent."""
    test = three_sums.test_problems()[:count]
    share, _ = exact_match(
        model,
        tokenizer,
        three_sums.prompts(test),
        lambda index, text: three_sums.is_right(test[index], text),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=500,
    )
    return 100 * share


def count_flops(arm: str) -> tuple[float, float]:
    """TFLOPs of a whole training run: the student's, and the teacher's on top."""
    task = load_task()
    tokenizer = task.teacher.tokenizer
    batch = collator_for(tokenizer)(
        [task.validation[index] for index in range(BATCH_SIZE)]
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    student = build_student(tokenizer, layers=2, width=96)
    calls = STEPS if arm == "soft" else 0
    return (
        STEPS * count_tflops(student, inputs, backward=True),
        calls * count_tflops(task.teacher.model, inputs, backward=False),
    )


def _run(run: Run) -> dict[str, float]:
    student, validation_nll = train_student(
        run.arm,
        int(run.setting),
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
    )
    tokenizer = load_task().teacher.tokenizer
    student_tflops, teacher_tflops = count_flops(run.arm)
    return {
        "validation_nll": validation_nll,
        "exact_match": score(student, tokenizer),
        "student_tflops": student_tflops,
        "teacher_tflops": teacher_tflops,
        "test_problems": three_sums.TEST_SIZE,
    }


STUDY = Study(
    name="shared_task",
    question="Do soft labels of an 80 % teacher help on worked sums?",
    arms=ARMS,
    settings=("2000", "8000"),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (4e-3, 8e-3)
    ),
    run=_run,
    select="validation_nll",
    claims=(
        Claim(
            name="sums_some",
            text="With 2,000 worked sums, soft labels beat labels alone",
            metric="exact_match",
            arm="soft",
            baseline="labels",
            setting="2000",
            margin=5.0,
            higher_is_better=True,
        ),
        Claim(
            name="sums_many",
            text="With 8,000 worked sums, soft labels still beat labels alone",
            metric="exact_match",
            arm="soft",
            baseline="labels",
            setting="8000",
            higher_is_better=True,
        ),
    ),
)
