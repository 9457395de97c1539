"""Does it pay to learn from one's own text?

Every student (2 layers, 96 wide) has learned the greedy answers of the teacher that is
right four times in five to 1,500 questions of the shared task: the warm start. From
there it goes on: with the same answers, with the teacher's distribution on them or on
answers that the teacher samples anew each time, or with what it writes itself, judged
by the teacher. All for 400 steps; and since writing takes time, soft labels also for as
many steps as fit into the same time. Nobody sees a right answer that the teacher did
not write. Judged by exact match on the frozen 2,000 problems. Taught in notebook 08.

This is the second round. The first chose a learning rate for each arm on seed 0, where
some had a tie: what it compared on the confirming seeds were rates as much as texts. It
was broken off after three of them, and its rows are in ``results/rounds``. Now every
arm has the same rate, the one that most had chosen, and confirming seeds are fresh.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from datasets import Dataset

from distill_helpers.data import join_row
from distill_helpers.evaluation import ExposureBias, measure_exposure
from distill_helpers.models import RememberingTeacher, build_student, generate_batch
from distill_helpers.studies.reasoning_traces import (
    TRACES,
    choose_rows,
    score,
    write_traces,
    wrong_judge,
)
from distill_helpers.studies.shared_task import BATCH_SIZE
from distill_helpers.studies.study import Claim, Run, Study, cells
from distill_helpers.studies.tiny import Recipe, Trained, train_tiny
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import OnPolicyTrainer, SoftLabelTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTIONS = 1500
SETTING = str(QUESTIONS)
WARM_STEPS, STEPS = 1500, 400
# Steps without writing that take as long as STEPS with it, on one core; the column
# training_seconds tells what they took.
AS_LONG = 1000
VALIDATION_SIZE = 500
WARM = "warm start"
MORE, SOFT, FRESH = "traces", "soft labels", "soft labels, new text"
SOFT_TIME = "soft labels, equal time"
REVERSE, JSD = "own text, reverse KL", "own text, JSD"
FORWARD, HALF = "own text, forward KL", "half own text, reverse KL"
DIVERGENCE = {
    REVERSE: "reverse_kl",
    JSD: "jsd",
    FORWARD: "forward_kl",
    HALF: "reverse_kl",
}
ARMS = (WARM, MORE, SOFT, FRESH, *DIVERGENCE, SOFT_TIME)
# Answers that the teacher writes at a time.
_TOGETHER = 1000


def teacher_rows(seed: int, questions: int = QUESTIONS) -> Dataset:
    """The teacher's greedy answers."""
    tokenizer = load_tiny_teacher("sums").tokenizer
    return choose_rows(write_traces(questions, seed), TRACES, tokenizer)


@lru_cache(maxsize=1)
def sampled_rows(seed: int, questions: int, rounds: int) -> Dataset:
    """Every question as often as there are rounds, each time with a new answer."""
    teacher = load_tiny_teacher("sums")
    asked = three_sums.prompts(write_traces(questions, seed).problems)
    prompts = teacher.tokenizer(asked, add_special_tokens=False)["input_ids"] * rounds
    draw = random.Random(seed)
    rows = []
    for start in range(0, len(prompts), _TOGETHER):
        part = prompts[start : start + _TOGETHER]
        written = generate_batch(
            *teacher,
            part,
            max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
            temperature=1.0,
            seeds=[draw.getrandbits(62) for _ in part],
        )
        rows += [
            join_row(prompt, answer.ids)
            for prompt, answer in zip(part, written, strict=True)
        ]
    return Dataset.from_list(rows)


@lru_cache(maxsize=1)
def warm_start(
    seed: int,
    steps: int = WARM_STEPS,
    questions: int = QUESTIONS,
    validation: int = VALIDATION_SIZE,
    *,
    judged: bool = True,
) -> Trained:
    """A student that has learned the teacher's answers; where every arm begins.

    Args:
        seed: Decides its weights, the questions and the order.
        steps: How long it learns.
        questions: How many the teacher has answered.
        validation: Problems that judge it.
        judged: Keep the best checkpoint by them, not the last.
    """
    tokenizer = load_tiny_teacher("sums").tokenizer
    return _train(
        build_student(tokenizer, layers=2, width=96, seed=seed),
        teacher_rows(seed, questions),
        validation,
        judged=judged,
        steps=steps,
        seed=seed,
        learning_rate=2e-3,
    )


def go_on(
    warm: PreTrainedModel,
    arm: str,
    *,
    seed: int,
    steps: int | None = None,
    questions: int = QUESTIONS,
    validation: int = VALIDATION_SIZE,
    judged: bool = True,
    **recipe: Unpack[Recipe],
) -> Trained:
    """Train a copy of a student that has had its warm start.

    Args:
        warm: From :func:`warm_start`; not changed.
        arm: One of ``ARMS``, but not ``WARM``.
        seed: Decides the order, the questions, and what is drawn.
        steps: Default: what the study gives the arm.
        questions: How many the teacher has answered.
        validation: Problems that choose the checkpoint.
        judged: Same as in :func:`warm_start`.
        recipe: Learning rate and weight decay.
    """
    if steps is None:
        steps = AS_LONG if arm == SOFT_TIME else STEPS
    teacher = load_tiny_teacher("sums").model
    rows = teacher_rows(seed, questions)
    trainer: Any = None
    if arm in (SOFT, SOFT_TIME):
        trainer = partial(SoftLabelTrainer, teacher=RememberingTeacher(teacher))
    elif arm == FRESH:
        trainer = partial(SoftLabelTrainer, teacher=teacher)
        rows = sampled_rows(seed, questions, -(-steps * BATCH_SIZE // questions))
    elif arm in DIVERGENCE:
        trainer = partial(
            OnPolicyTrainer,
            teacher=teacher,
            divergence=DIVERGENCE[arm],
            on_policy_share=0.5 if arm == HALF else 1.0,
            max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        )
    student = copy.deepcopy(warm)
    return _train(
        student,
        rows,
        validation,
        judged=judged,
        steps=steps,
        seed=seed,
        trainer=trainer,
        **recipe,
    )


def _train(
    model: PreTrainedModel,
    rows: Dataset,
    validation: int,
    *,
    steps: int,
    judged: bool,
    **more: Any,
) -> Trained:
    judge = wrong_judge(validation)
    trained = train_tiny(
        model,
        rows,
        load_tiny_teacher("sums").tokenizer,
        judge if judged else None,
        every=max(1, steps // 4),
        steps=steps,
        batch_size=BATCH_SIZE,
        adam_beta2=0.99,
        **more,
    )
    return trained if judged else replace(trained, validation=judge(trained.model))


def exposure(
    model: PreTrainedModel, count: int = 600, *, texts: int = 1
) -> ExposureBias:
    """The exposure bias of a student, on the first problems of the frozen test.

    Args:
        model: The student.
        count: How many problems.
        texts: How many texts each of the two writes to a problem.
    """
    teacher = load_tiny_teacher("sums")
    asked = three_sums.prompts(three_sums.test_problems()[:count])
    prompts = teacher.tokenizer(asked, add_special_tokens=False)["input_ids"]
    return measure_exposure(
        model, *teacher, prompts * texts, max_new_tokens=three_sums.MAX_ANSWER_TOKENS
    )


def _run(run: Run) -> dict[str, float]:
    trained = warm_start(run.seed)
    if run.arm != WARM:
        trained = go_on(trained.model, run.arm, **run.recipe)
    return outcome(trained, exposure(trained.model))


def outcome(trained: Trained, bias: ExposureBias) -> dict[str, float]:
    """What became of a student, as a study's columns.

    Args:
        trained: The student.
        bias: Its exposure bias.
    """
    return {
        "validation_wrong": trained.validation,
        "exact_match": score(trained.model, TRACES),
        "excess_kl": bias.excess,
        "repetition": 100 * bias.student_repetition,
        "entropy": bias.student_entropy,
        "training_seconds": round(trained.seconds, 1),
        "test_problems": three_sums.TEST_SIZE,
    }


_claim = partial(
    Claim, metric="exact_match", arm=REVERSE, setting=SETTING, higher_is_better=True
)
STUDY = Study(
    name="on_policy",
    question="Does it pay to learn from one's own text?",
    arms=ARMS,
    settings=(SETTING,),
    grid=cells(2e-3),
    run=_run,
    select="validation_wrong",
    confirm_seeds=(500, 501, 502, 503, 504),
    # Declared after the first round, before this one.
    claims=(
        _claim(
            "own_beats_traces",
            "Own text (reverse KL) beats more of the teacher's traces",
            baseline=MORE,
        ),
        _claim(
            "own_beats_soft",
            "It also beats soft labels on the teacher's traces",
            baseline=SOFT,
        ),
        _claim(
            "own_beats_new",
            "Own text beats new text by the teacher, both with forward KL",
            arm=FORWARD,
            baseline=FRESH,
        ),
        _claim(
            "own_heals",
            "Own text (reverse KL) leaves less excess KL than more traces",
            metric="excess_kl",
            higher_is_better=False,
            baseline=MORE,
        ),
        _claim(
            "own_in_time",
            "Own text (reverse KL) beats soft labels that have as much time",
            baseline=SOFT_TIME,
        ),
    ),
)
