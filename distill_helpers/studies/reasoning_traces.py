"""What is in a trace? Students of a teacher that is right four times in five.

The teacher (4 layers, 128 wide) answers questions of the shared task, greedily. The
student (2 layers, 96 wide) learns what it wrote: results alone, whole traces, only the
traces whose result a checker accepts, or the teacher's distribution on these. Equal
training tokens for all students; a teacher that is retrained on what the checker
accepts gets as much compute instead. Judged by exact match on the frozen 2,000
problems. Taught in notebook 06.

This is the third round. The first two were broken off, and their rows are in
``results/rounds``: some runs, whatever their arm, had not begun to carry when they
ended, so that differences between arms were differences of luck. With AdamW's second
moment averaged over 100 steps (``adam_beta2=0.99``) rather than 20, students that were
tried beside the study began at 700 to 800 steps rather than 1,400 to more than 2,000.
So this round has that for every arm, fresh confirming seeds, and questions that the
teacher did not learn from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from distill_helpers.data import mask_prompts
from distill_helpers.evaluation import generate
from distill_helpers.models import RememberingTeacher, build_student, parameter_count
from distill_helpers.studies.shared_task import (
    BATCH_SIZE,
    STEPS,
    VALIDATION_SEED,
    share_right,
)
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe, Trained, mean_length, train_tiny
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.tasks.three_sums import Problem
from distill_helpers.trainers import SoftLabelTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The teacher learned from the problems of seed 0; what it is asked here is drawn anew.
QUESTIONS_SEED = 5000
VALIDATION_SIZE = 500
TEACHER = "the teacher"
AGAIN = "the teacher, retrained"
ANSWERS = "answers only"
TRACES = "all traces"
AS_MANY = "all traces, as many"
RIGHT = "right traces"
SOFT = "right traces, soft"
ARMS = (TEACHER, AGAIN, ANSWERS, TRACES, AS_MANY, RIGHT, SOFT)
FEW, SOME, MOST = "1500", "5000", "20000"


@dataclass(frozen=True)
class Traces:
    """What the teacher wrote, question by question.

    Attributes:
        problems: The questions.
        texts: Its greedy answers.
        right: Whether the result is right, as the checker says.
    """

    problems: tuple[Problem, ...]
    texts: tuple[str, ...]
    right: tuple[bool, ...]


@lru_cache(maxsize=2)
def write_traces(count: int, seed: int) -> Traces:
    """Let the teacher answer."""
    teacher = load_tiny_teacher("sums")
    asked = three_sums.problems(count, seed=QUESTIONS_SEED + seed)
    texts = generate(
        *teacher,
        three_sums.prompts(asked),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=1000,
    )
    right = map(three_sums.is_right, asked, texts)
    return Traces(tuple(asked), tuple(texts), tuple(right))


def choose_rows(
    traces: Traces, arm: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> Dataset:
    """The rows that an arm learns from."""
    chosen = list(range(len(traces.texts)))
    if arm in (RIGHT, SOFT, AGAIN):
        chosen = [place for place in chosen if traces.right[place]]
    elif arm == AS_MANY:
        chosen = random.Random(seed).sample(chosen, sum(traces.right))
    texts = [traces.texts[place] for place in chosen]
    if arm == ANSWERS:
        texts = [text.rpartition(";")[2] for text in texts]
    prompts = [traces.problems[place].prompt for place in chosen]
    return mask_prompts(prompts, texts, tokenizer)


def wrong_judge(count: int, *, results_only: bool = False) -> Callable[[Any], float]:
    """Share of wrong results on so many validation problems: chooses checkpoints."""
    tokenizer = load_tiny_teacher("sums").tokenizer
    asked = three_sums.problems(count, seed=VALIDATION_SEED)
    return lambda model: (
        1 - share_right(model, tokenizer, asked, results_only=results_only)
    )


def train_student(
    traces: Traces, arm: str, *, seed: int, steps: int = STEPS, **recipe: Unpack[Recipe]
) -> Trained:
    """Train one student of an arm; or the teacher itself, for as much compute."""
    teacher, tokenizer = load_tiny_teacher("sums")
    rows = choose_rows(traces, arm, tokenizer, seed=seed)
    model = build_student(tokenizer, layers=2, width=96, seed=seed)
    batch_size, trainer = BATCH_SIZE, None
    if arm == AGAIN:
        steps = round(steps * parameter_count(model) / parameter_count(teacher))
        model = teacher.requires_grad_(True)
    elif arm == ANSWERS:
        whole = mean_length(choose_rows(traces, TRACES, tokenizer))
        batch_size = round(BATCH_SIZE * whole / mean_length(rows))
    elif arm == SOFT:
        trainer = partial(SoftLabelTrainer, teacher=RememberingTeacher(teacher))
    return train_tiny(
        model,
        rows,
        tokenizer,
        wrong_judge(VALIDATION_SIZE, results_only=arm == ANSWERS),
        every=max(1, steps // 6),
        trainer=trainer,
        steps=steps,
        batch_size=batch_size,
        adam_beta2=0.99,
        seed=seed,
        **recipe,
    )


def score(model: PreTrainedModel, arm: str, count: int | None = None) -> float:
    """Exact match on the frozen test, or its first problems, in percent."""
    return 100 * share_right(
        model,
        load_tiny_teacher("sums").tokenizer,
        three_sums.test_problems()[:count],
        results_only=arm == ANSWERS,
    )


def _run(run: Run) -> dict[str, float]:
    if run.arm == TEACHER:
        model = load_tiny_teacher("sums").model
        return {
            "validation_wrong": 0.0,
            "exact_match": score(model, run.arm),
            "rows": 0,
            "trained_tokens": 0,
            "test_problems": three_sums.TEST_SIZE,
        }
    traces = write_traces(int(run.setting), run.seed)
    trained = train_student(traces, run.arm, **run.recipe)
    return {
        "validation_wrong": trained.validation,
        "exact_match": score(trained.model, run.arm),
        "rows": trained.rows,
        "trained_tokens": round(trained.tokens),
        "test_problems": three_sums.TEST_SIZE,
    }


_claim = partial(
    Claim, metric="exact_match", arm=RIGHT, setting=MOST, higher_is_better=True
)
STUDY = Study(
    name="reasoning_traces",
    question="What is in a trace, and can a student pass its teacher?",
    arms=ARMS,
    settings=(FEW, SOME, MOST),
    grid=cells(1e-3, 2e-3),
    run=_run,
    select="validation_wrong",
    confirm_seeds=(300, 301, 302, 303, 304),
    # Fewer questions only for the curve of how many are enough.
    left_out=tuple((arm, few) for arm in ARMS if arm != RIGHT for few in (FEW, SOME)),
    claims=(
        _claim(
            "steps_help",
            "Whole traces beat their results alone by 45 points",
            arm=TRACES,
            baseline=ANSWERS,
            margin=45.0,
        ),
        _claim(
            "filter_helps",
            "Only right traces beat as many unfiltered ones",
            baseline=AS_MANY,
        ),
        _claim(
            "passes_teacher",
            "A student of the right traces passes its teacher",
            baseline=TEACHER,
        ),
        _claim(
            "passes_retrained",
            "It also passes the teacher trained on its own right traces",
            baseline=AGAIN,
        ),
        _claim(
            "soft_traces",
            "Soft labels on the right traces beat the traces' own tokens",
            arm=SOFT,
            baseline=RIGHT,
        ),
        _claim(
            "more_questions",
            "20,000 questions beat 5,000",
            baseline=RIGHT,
            baseline_setting=SOME,
        ),
    ),
)
