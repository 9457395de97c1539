"""The shared task's first rows: adding three numbers, from labels and soft labels.

The student (2 layers, 96 wide) reads worked answers. "labels" learns them as they are;
"soft" learns, on the same answers, what the 80 % teacher would have written next.
Judged by exact match on the frozen 2,000 problems. Taught in notebook 06; notebooks
07 and 08 add their rows.

The rows are of a second round with the same seeds, run when rewritten trainers rounded
otherwise; those of the first are in ``results/rounds/shared_task_0.csv``. The verdicts
are the same, single runs are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from distill_helpers.data import mask_prompts
from distill_helpers.evaluation import generate, held_out_nll
from distill_helpers.models import Loaded, RememberingTeacher, build_student
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe, count_training, first_batch, train_tiny
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import SoftLabelTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
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

    def validation_nll(self, model: nn.Module) -> float:
        """The number that chooses checkpoints."""
        nll: float = held_out_nll(
            model, self.validation, self.teacher.tokenizer, batch_size=250
        )
        return nll


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
    arm: str, count: int, *, seed: int, steps: int = STEPS, **recipe: Unpack[Recipe]
) -> tuple[PreTrainedModel, float]:
    """Train one student on ``count`` problems; return it and its validation NLL."""
    task = load_task()
    tokenizer = task.teacher.tokenizer
    trainer = None
    if arm == "soft":
        trainer = partial(SoftLabelTrainer, teacher=task.remembering)
    trained = train_tiny(
        build_student(tokenizer, layers=2, width=96, seed=seed),
        worked(three_sums.problems(count, seed=seed), tokenizer),
        tokenizer,
        task.validation_nll,
        every=max(1, steps // 3),
        trainer=trainer,
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        **recipe,
    )
    return trained.model, trained.validation


def share_right(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[three_sums.Problem],
    *,
    results_only: bool = False,
    batch_size: int = 1000,
) -> float:
    """Exact match; a student of results alone writes no semicolon."""
    texts = generate(
        model,
        tokenizer,
        three_sums.prompts(chosen),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=batch_size,
    )
    if results_only:
        texts = [f";{text}" for text in texts]
    return sum(map(three_sums.is_right, chosen, texts)) / len(chosen)


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int | None = None
) -> float:
    """Exact match on the frozen test, or its first problems, in percent."""
    test = three_sums.test_problems()[:count]
    return 100 * share_right(model, tokenizer, test, batch_size=500)


def _run(run: Run) -> dict[str, float]:
    student, validation_nll = train_student(run.arm, int(run.setting), **run.recipe)
    task = load_task()
    teacher, tokenizer = task.teacher
    return {
        "validation_nll": validation_nll,
        "exact_match": score(student, tokenizer),
        **count_training(
            student,
            teacher if run.arm == "soft" else None,
            first_batch(task.validation, tokenizer, BATCH_SIZE),
            STEPS,
        ),
        "test_problems": three_sums.TEST_SIZE,
    }


_claim = partial(
    Claim, metric="exact_match", arm="soft", baseline="labels", higher_is_better=True
)
STUDY = Study(
    name="shared_task",
    question="Do soft labels of an 80 % teacher help on worked sums?",
    arms=ARMS,
    settings=("2000", "8000"),
    grid=cells(4e-3, 8e-3),
    run=_run,
    select="validation_nll",
    claims=(
        _claim(
            "sums_some",
            "With 2,000 worked sums, soft labels beat labels alone",
            setting="2000",
            margin=5.0,
        ),
        _claim(
            "sums_many",
            "With 8,000 worked sums, soft labels still beat labels alone",
            setting="8000",
        ),
    ),
)
