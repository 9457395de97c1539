"""The ways there are: their names, what each reads, and what each costs."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from datasets import Dataset, concatenate_datasets

from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import build_student, prune_layers
from distill_helpers.studies.reasoning_traces import (
    RIGHT,
    TRACES,
    choose_rows,
    write_traces,
)
from distill_helpers.studies.shared_task import BATCH_SIZE, VALIDATION_SEED, worked
from distill_helpers.studies.tiny import count_tflops, first_batch
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

LABELLED, QUESTIONS = 500, 2000
STEPS = 600
RATE = 4e-3
# With 0.95, when a student begins to carry is luck: notebook 06.
ADAM_BETA2 = 0.99
BASE_SEED, BASE_STEPS, BASE_PROBLEMS, EASY = 0, 900, 6000, 39
VALIDATION_SIZE = 300
# Of the steps on own text, those that come before it, on the teacher's.
WARM_SHARE = 0.75
TEACHER, FOUR_BITS, HALF = "teacher", "teacher in 4 bits", "half the teacher"
BASE = "base student"
LABELS, SMOOTHED, SELF = "labels", "smoothed labels", "self-distillation"
SOFT_FEW, TOGETHER = "soft labels, labelled rows", "co-distillation"
TEXT, CHECKED, BOTH = "teacher's text", "checked text", "labels and text"
SOFT, STORED, OWN = "soft labels", "stored soft labels", "own text"
BOTH_SOFT, REPAIRED = "labels and soft labels", "half the teacher, soft labels"
MODELS = (TEACHER, FOUR_BITS, HALF, BASE)
STUDENTS = (
    *(LABELS, SMOOTHED, SELF, SOFT_FEW, TOGETHER),
    *(TEXT, CHECKED, BOTH, SOFT, STORED, BOTH_SOFT, OWN, REPAIRED),
)
ARMS = (*MODELS, *STUDENTS)
SAME_STEPS, EQUAL = "equal steps", "equal operations"
# Those whose step costs less than with a live teacher.
LONGER = (LABELS, TEXT, BOTH, STORED)
# Layers that pruning keeps: of all pairs those with the lowest loss on validation.
KEPT = (0, 1)
# Stored per token: the likeliest two of sixteen, and draws from the others.
STORAGE: dict[str, Any] = {"scheme": "hybrid", "top_k": 2, "samples": 4}
_SEED_OF_LABELS = 9000


@dataclass(frozen=True)
class Task:
    """What a seed's students have to learn from.

    Attributes:
        labelled: Rows of worked answers, all right.
        text: The teacher's greedy answers to the questions.
        checked: Those of them whose result is right.
        writing_seconds: Processor time in which the teacher wrote them.
    """

    labelled: Dataset
    text: Dataset
    checked: Dataset
    writing_seconds: float


@lru_cache
def load_task(seed: int, labelled: int = LABELLED, questions: int = QUESTIONS) -> Task:
    """Draw the labelled problems, and let the teacher answer the questions."""
    tokenizer = load_tiny_teacher("sums").tokenizer
    drawn = three_sums.problems(labelled, seed=_SEED_OF_LABELS + seed)
    began = time.process_time()
    traces = write_traces(questions, seed)
    seconds = time.process_time() - began
    return Task(
        labelled=worked(drawn, tokenizer),
        text=choose_rows(traces, TRACES, tokenizer),
        checked=choose_rows(traces, RIGHT, tokenizer),
        writing_seconds=seconds,
    )


def rows_of(arm: str, task: Task) -> Dataset:
    """What an arm's student reads."""
    if arm in (LABELS, SMOOTHED, SELF, SOFT_FEW, TOGETHER):
        return task.labelled
    if arm == CHECKED:
        return task.checked
    if arm in (BOTH, BOTH_SOFT):
        return concatenate_datasets([task.labelled, task.text])
    return task.text


def text_bytes(rows: Dataset) -> int:
    """The answers as text, a character being a token."""
    return sum(label != IGNORE_INDEX for labels in rows["labels"] for label in labels)


@dataclass(frozen=True)
class Costs:
    """TFLOPs of a batch of the task's rows.

    Attributes:
        learning: Forward and backward pass of a student.
        reading: Its forward pass; also what writing the rows costs it.
        teaching: The teacher's forward pass, or its writing.
        growing: Forward and backward pass of a model of the teacher's size.
        repairing: The same of half the teacher.
    """

    learning: float
    reading: float
    teaching: float
    growing: float
    repairing: float

    def of(self, arm: str, steps: float) -> float:
        """TFLOPs of a whole arm, the teacher's share included."""
        once = QUESTIONS / BATCH_SIZE * self.teaching
        learning = steps * self.learning
        if arm == REPAIRED:
            return steps * (self.repairing + self.teaching) + once
        if arm in (SOFT, SOFT_FEW, BOTH_SOFT):
            learning += steps * self.teaching
            return learning + (0 if arm == SOFT_FEW else once)
        if arm == SELF:
            return 2 * learning + steps * self.reading
        if arm == TOGETHER:
            return learning + steps * self.growing
        if arm in (TEXT, CHECKED, BOTH):
            return learning + once
        if arm == STORED:
            return learning + 2 * once
        if arm == OWN:
            own = (1 - WARM_SHARE) * steps
            return learning + once + own * (self.reading + self.teaching)
        return learning if arm in (LABELS, SMOOTHED) else 0.0

    def steps(self, arm: str, budget: float) -> int:
        """Steps that a budget pays for."""
        fixed = self.of(arm, 0)
        return round((budget - fixed) / (self.of(arm, 1) - fixed))


@lru_cache
def count_costs() -> Costs:
    """Count one batch of worked answers through each model."""
    teacher, tokenizer = load_tiny_teacher("sums")
    rows = worked(three_sums.problems(BATCH_SIZE, seed=VALIDATION_SEED), tokenizer)
    inputs = first_batch(rows, tokenizer, BATCH_SIZE)
    student = build_student(tokenizer, layers=2, width=96)
    large = copy.deepcopy(teacher).requires_grad_(True)
    return Costs(
        learning=count_tflops(student, inputs, backward=True),
        reading=count_tflops(student, inputs, backward=False),
        teaching=count_tflops(teacher, inputs, backward=False),
        growing=count_tflops(large, inputs, backward=True),
        repairing=count_tflops(prune_layers(large, KEPT), inputs, backward=True),
    )


def steps_of(arm: str, setting: str) -> int:
    """Steps of a student: the same for all, or what soft labels' operations buy."""
    if setting == SAME_STEPS:
        return STEPS
    costs = count_costs()
    return costs.steps(arm, costs.of(SOFT, STEPS))
