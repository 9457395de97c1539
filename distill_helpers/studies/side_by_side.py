"""Every technique on one task, with one student and one budget.

What a project often has: a few worked answers (500 sums), more questions without any
(2,000), a teacher that is right four times in five, and one small model that has
learned on easier material: the base (2 layers, 96 wide) adds numbers up to 39, and the
task goes up to 99. Every student starts from it and trains for 600 steps with one
learning rate; in the second setting it may spend as many floating-point operations as
soft labels with a live teacher do in these steps. Beside them stand what is often
forgotten: the teacher itself, its weights in 4 bits, half of its layers (as they are,
and as a student), labels with smoothing, a student as its own teacher. Judged on the
frozen 2,000 problems. Taught in notebook 08.

This is the second round. In the first every seed had a base of its own, and three
confirming seeds of equal steps showed what that does: with the base of one seed no
student began to carry within 600 steps, whatever it learned from. Differences between
arms drowned in differences between bases, so the round was broken off; its rows are in
``results/rounds``. Now there is one base, that of seed 0, as in a project there is one
model to start from, and seeds draw the labels, the questions and the order. What comes
out holds for this base. The exploring rows of seed 0 are those of the first round, in
which nothing else was different; own text at equal operations was left out for time.

The learning rate was chosen by hand on seed 0, for labels, text and soft labels
together. "Labels and soft labels" was added after the first round.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, concatenate_datasets

from distill_helpers import three_sums
from distill_helpers.codistillation import CoDistillationTrainer, MixSchedule, Partners
from distill_helpers.data import collator_for
from distill_helpers.evaluation import evaluate
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import (
    build_student,
    load_tiny_teacher,
    parameter_count,
    prune_layers,
)
from distill_helpers.on_policy import OnPolicyTrainer
from distill_helpers.soft_label_cache import write_cache
from distill_helpers.studies import Claim, Run, Study, count_tflops, tiny_arguments
from distill_helpers.studies.reasoning_traces import (
    RIGHT,
    TRACES,
    VALIDATION_SEED,
    choose_rows,
    share_right,
    write_traces,
)
from distill_helpers.studies.shared_task import worked
from distill_helpers.three_sums import Problem
from distill_helpers.trainers import (
    HardLabelTrainer,
    KeepBest,
    SoftLabelTrainer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 64
LABELLED, QUESTIONS = 500, 2000
STEPS = 600
RATE = 4e-3
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


@dataclass(frozen=True)
class Trained:
    """A student at its best validation checkpoint, and what it took.

    Attributes:
        model: The student.
        validation_wrong: Share of wrong results there.
        seconds: Processor time of the training steps.
        labelling_seconds: Processor time of everything the teacher made before.
        stored_bytes: What it made, on a disk.
        tokens: That went through the student in training, padding not counted.
    """

    model: PreTrainedModel
    validation_wrong: float
    seconds: float
    labelling_seconds: float = 0.0
    stored_bytes: float = 0.0
    tokens: float = 0.0


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


# --- models -------------------------------------------------------------------------


@lru_cache
def base_student(steps: int = BASE_STEPS) -> PreTrainedModel:
    """A student that has learned to add numbers up to 39; where every arm begins."""
    return _pretrained((2, 96), BASE_SEED, steps)


@lru_cache
def base_partner(steps: int = BASE_STEPS) -> PreTrainedModel:
    """The same of the teacher's size; nobody has taught it the task either."""
    return _pretrained((4, 128), BASE_SEED + 1000, steps)


def _pretrained(shape: tuple[int, int], seed: int, steps: int) -> PreTrainedModel:
    tokenizer = load_tiny_teacher("sums").tokenizer
    layers, width = shape
    model = build_student(tokenizer, layers=layers, width=width, seed=seed)
    HardLabelTrainer(
        model,
        args=_arguments(seed, steps, 4e-3, 0.1),
        train_dataset=worked(easy_problems(BASE_PROBLEMS, seed), tokenizer),
        tokenizer=tokenizer,
    ).train()
    return model.eval()


def easy_problems(count: int, seed: int) -> list[Problem]:
    """Sums of three numbers up to 39, none of the frozen test."""
    taken = frozenset(three_sums.test_problems())
    draw = random.Random(seed)
    found: list[Problem] = []
    while len(found) < count:
        problem = Problem(*(draw.randint(three_sums.SMALLEST, EASY) for _ in range(3)))
        if problem not in taken:
            found.append(problem)
    return found


def in_few_bits(
    model: PreTrainedModel, bits: int = 4, group: int = 32
) -> PreTrainedModel:
    """A copy whose matrices are rounded: to 2^bits levels in every group of a row.

    The rounded weights are held in fp32: this shows what rounding does to the
    answers, not to the speed.

    Args:
        model: Left untouched.
        bits: Of a weight.
        group: Neighbours that share a smallest value and a step.
    """
    rounded = copy.deepcopy(model)
    for weight in rounded.parameters():
        if weight.dim() != 2:
            continue
        grouped = weight.data.view(-1, group)
        low, high = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
        weight.data.copy_(
            (((grouped - low) / step).round() * step + low).view_as(weight)
        )
    return rounded


def finished_model(arm: str) -> PreTrainedModel:
    """A model that is used as it is."""
    teacher = load_tiny_teacher("sums").model
    if arm == FOUR_BITS:
        return in_few_bits(teacher)
    if arm == HALF:
        return prune_layers(teacher, KEPT)
    return base_student() if arm == BASE else teacher


def model_bytes(arm: str, model: PreTrainedModel) -> float:
    """Weights at 16 bits; in 4 bits, a group of 32 shares two numbers of 16 bits."""
    return parameter_count(model) * ((4 + 2 * 16 / 32) / 8 if arm == FOUR_BITS else 2)


# --- rows ---------------------------------------------------------------------------


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


def mean_length(rows: Dataset) -> float:
    """Tokens of a row."""
    return sum(map(len, rows["input_ids"])) / len(rows)


# --- training -----------------------------------------------------------------------


def _arguments(
    seed: int, steps: int, learning_rate: float, weight_decay: float, **more: Any
) -> Any:
    return tiny_arguments(
        steps=steps,
        learning_rate=learning_rate,
        batch_size=BATCH_SIZE,
        weight_decay=weight_decay,
        # With 0.95, when a student begins to carry is luck: notebook 05.
        adam_beta2=0.99,
        seed=seed,
        **more,
    )


def make_trainer(
    arm: str,
    model: PreTrainedModel,
    rows: Dataset,
    *,
    teacher: Any = None,
    partner: PreTrainedModel | None = None,
    **arguments: Any,
) -> Any:
    """The trainer of an arm.

    Args:
        arm: One of ``STUDENTS``.
        model: The student.
        rows: From :func:`rows_of`.
        teacher: Of soft labels: a model, or what it has stored.
        partner: Of co-distillation.
        arguments: ``args`` and ``callbacks`` of the trainer.
    """
    options: dict[str, Any] = {
        "train_dataset": rows,
        "tokenizer": load_tiny_teacher("sums").tokenizer,
        **arguments,
    }
    if arm == TOGETHER:
        assert partner is not None
        return CoDistillationTrainer(
            {"partner": partner, "student": model},
            teacher="partner",
            schedule=MixSchedule(0.5),
            **options,
        )
    if arm == OWN:
        return OnPolicyTrainer(
            model,
            teacher=teacher,
            max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
            **options,
        )
    if arm in (SELF, BOTH_SOFT):
        return SoftLabelTrainer(model, teacher=teacher, alpha=0.5, **options)
    if arm in (SOFT, SOFT_FEW, STORED, REPAIRED):
        return SoftLabelTrainer(model, teacher=teacher, **options)
    if arm == SMOOTHED:
        # Label smoothing: a teacher that knows nothing gets a tenth of the say.
        uniform = Uniform(len(options["tokenizer"]))
        return SoftLabelTrainer(model, teacher=uniform, alpha=0.1, **options)
    return HardLabelTrainer(model, **options)


class Uniform(torch.nn.Module):
    """A teacher to whom all tokens are equally likely."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Return logits of zero."""
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=torch.zeros(*input_ids.shape, self.vocabulary))


def train_arm(
    arm: str,
    base: PreTrainedModel,
    task: Task,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.1,
    partner: PreTrainedModel | None = None,
    validation: int = VALIDATION_SIZE,
) -> Trained:
    """Train a copy of the base in one way.

    Args:
        arm: One of ``STUDENTS``.
        base: Not changed.
        task: What there is to learn from.
        seed: Of order and draws.
        steps: In all, of the student that is judged.
        learning_rate: At its highest.
        weight_decay: Of AdamW.
        partner: To co-distil with; not changed.
        validation: Problems that choose the checkpoint.
    """
    tokenizer = load_tiny_teacher("sums").tokenizer
    rows = rows_of(arm, task)
    judge = _Judge(tokenizer, three_sums.problems(validation, seed=VALIDATION_SEED))
    spent, labelling, stored = 0.0, 0.0, 0.0

    def train(
        how: str, model: PreTrainedModel, count: int, **options: Any
    ) -> tuple[PreTrainedModel, float]:
        nonlocal spent
        keep = KeepBest(judge, every=max(1, -(-count // 3)))
        trainer = make_trainer(
            how,
            model,
            rows,
            args=_arguments(seed, count, learning_rate, weight_decay),
            callbacks=[keep],
            **options,
        )
        began, looked = time.process_time(), judge.seconds
        trainer.train()
        spent += time.process_time() - began - (judge.seconds - looked)
        keep.restore(trainer.model)
        return model.eval(), keep.best

    student = copy.deepcopy(base)
    teacher = load_tiny_teacher("sums").model
    if rows is not task.labelled:
        labelling, stored = task.writing_seconds, text_bytes(task.text)
    if arm == STORED:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            cache = write_cache(
                teacher,
                rows,
                folder,
                tokenizer=tokenizer,
                seed=seed,
                batch_size=BATCH_SIZE,
                progress=False,
                **STORAGE,
            )
            labelling += time.process_time() - began
            stored += cache.bytes_per_token * cache.header["dataset"]["positions"]
            student, wrong = train(arm, student, steps, teacher=cache)
    elif arm == SELF:
        first, _ = train(LABELS, copy.deepcopy(base), steps)
        student, wrong = train(arm, student, steps, teacher=first)
    elif arm == OWN:
        warm = round(WARM_SHARE * steps)
        student, _ = train(TEXT, student, warm)
        student, wrong = train(arm, student, steps - warm, teacher=teacher)
    elif arm == TOGETHER:
        student, wrong = train(arm, student, steps, partner=copy.deepcopy(partner))
    else:
        student, wrong = train(arm, student, steps, teacher=teacher)
    return Trained(
        model=student,
        validation_wrong=wrong,
        seconds=spent,
        labelling_seconds=labelling,
        stored_bytes=stored,
        tokens=steps * BATCH_SIZE * mean_length(rows),
    )


class _Judge:
    """Share of wrong results of the student; counts the time that it takes."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Problem]
    ) -> None:
        self.tokenizer = tokenizer
        self.asked = tuple(asked)
        self.seconds = 0.0

    def __call__(self, model: Any) -> float:
        began = time.process_time()
        student = model.models["student"] if isinstance(model, Partners) else model
        found = 1 - share_right(student, self.tokenizer, self.asked)
        self.seconds += time.process_time() - began
        return found


# --- judging ------------------------------------------------------------------------


def gradient_cosine(
    arm: str,
    base: PreTrainedModel,
    task: Task,
    *,
    seed: int,
    partner: PreTrainedModel | None = None,
    batches: int = 8,
) -> float:
    """How well a batch's gradient points where that of the other batches does.

    The mean over the first batches of the cosine between a batch's gradient and that
    of all of the arm's other rows, at the base student: where every arm begins.

    Args:
        arm: One of ``STUDENTS``, but not ``STORED``. The teacher of self-distillation
            is here the base itself.
        base: Not changed.
        task: As in :func:`train_arm`.
        seed: Of the order, and what a student writes.
        partner: Of co-distillation; not changed.
        batches: How many are compared with the others.
    """
    student = copy.deepcopy(base)
    rows = rows_of(arm, task).shuffle(seed=seed)
    teacher = load_tiny_teacher("sums").model
    if arm == SELF:
        teacher = copy.deepcopy(base)
    trainer = make_trainer(
        arm,
        student,
        rows,
        args=_arguments(seed, 1, 1e-3, 0.0),
        teacher=teacher,
        partner=copy.deepcopy(partner),
    )
    gradients, weights = [], []
    for batch in _batches(trainer, rows):
        items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        student.zero_grad()
        loss = trainer.compute_loss(
            trainer.model, dict(batch), num_items_in_batch=items
        )
        loss.backward()
        gradients.append(_flat_gradient(student))
        weights.append(float(items))
    shares = torch.tensor(weights) / sum(weights)
    total = sum(s * g for s, g in zip(shares, gradients, strict=True))
    found = [
        torch.cosine_similarity(g, total - s * g, dim=0)
        for s, g in zip(shares[:batches], gradients, strict=False)
    ]
    return float(torch.stack(found).mean())


def _batches(trainer: Any, rows: Dataset) -> Iterator[Any]:
    collate = collator_for(trainer.processing_class)
    cuts = [*range(0, len(rows), BATCH_SIZE), len(rows)]
    for start, end in pairwise(cuts):
        batch = collate([rows[place] for place in range(start, end)])
        # Where the student writes, this is when it does.
        (made,), _ = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        yield made


def _flat_gradient(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


@lru_cache
def count_costs() -> Costs:
    """Count one batch of worked answers through each model."""
    teacher, tokenizer = load_tiny_teacher("sums")
    rows = worked(three_sums.problems(BATCH_SIZE, seed=VALIDATION_SEED), tokenizer)
    batch = collator_for(tokenizer)([rows[place] for place in range(BATCH_SIZE)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
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


def quality(model: PreTrainedModel, count: int | None = None) -> dict[str, float]:
    """On the frozen test: right results, and how the worked answers are predicted.

    Args:
        model: Any that reads the sums' tokens.
        count: So many problems, the first ones; default: all.
    """
    teacher, tokenizer = load_tiny_teacher("sums")
    test = three_sums.test_problems()[:count]
    found = evaluate(
        model, worked(list(test), tokenizer), tokenizer, teacher=teacher, batch_size=250
    )
    assert found.kl_to_teacher is not None
    assert found.agreement is not None
    return {
        "exact_match": 100 * share_right(model, tokenizer, test),
        "nll": found.nll,
        "ece": found.ece,
        "kl_to_teacher": found.kl_to_teacher,
        "agreement": found.agreement,
    }


@lru_cache
def _as_it_is(arm: str) -> dict[str, float]:
    """Of a model that no seed changes."""
    model = finished_model(arm)
    return {
        "validation_wrong": 0.0,
        **quality(model),
        "model_bytes": model_bytes(arm, model),
        "test_problems": three_sums.TEST_SIZE,
    }


def _run(run: Run) -> dict[str, float]:
    if run.arm in MODELS:
        return _as_it_is(run.arm)
    task = load_task(run.seed)
    base = finished_model(HALF if run.arm == REPAIRED else BASE)
    partner = base_partner() if run.arm == TOGETHER else None
    steps = steps_of(run.arm, run.setting)
    cosine = float("nan")
    # Stored soft labels are on average the live ones; another model has other weights.
    if run.setting == SAME_STEPS and run.arm not in (STORED, REPAIRED):
        cosine = gradient_cosine(run.arm, base, task, seed=run.seed, partner=partner)
    trained = train_arm(
        run.arm,
        base,
        task,
        seed=run.seed,
        steps=steps,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
        partner=partner,
    )
    return {
        "validation_wrong": trained.validation_wrong,
        **quality(trained.model),
        "model_bytes": model_bytes(run.arm, trained.model),
        "test_problems": three_sums.TEST_SIZE,
        "steps": steps,
        "trained_tokens": round(trained.tokens),
        "training_seconds": round(trained.seconds, 1),
        "labelling_seconds": round(trained.labelling_seconds, 1),
        "tflops": count_costs().of(run.arm, steps),
        "stored_bytes": trained.stored_bytes,
        "gradient_cosine": cosine,
    }


def _better(
    name: str,
    text: str,
    arm: str,
    baseline: str,
    setting: str = SAME_STEPS,
    baseline_setting: str | None = None,
    **more: Any,
) -> Claim:
    """A claim on exact match."""
    return Claim(
        name=name,
        text=text,
        metric="exact_match",
        arm=arm,
        baseline=baseline,
        setting=setting,
        baseline_setting=baseline_setting,
        higher_is_better=True,
        **more,
    )


STUDY = Study(
    name="side_by_side",
    question="Which technique, for one task, one student and one budget?",
    arms=ARMS,
    settings=(SAME_STEPS, EQUAL),
    grid=((("learning_rate", RATE), ("weight_decay", 0.1)),),
    run=_run,
    select="validation_wrong",
    confirm_seeds=(610, 611, 612, 613, 614),
    left_out=tuple((arm, EQUAL) for arm in ARMS if arm not in LONGER),
    # Declared before the first round, except for the added arm's; all of them before
    # any row of this one.
    claims=(
        _better(
            "text_beats_labels",
            "2,000 of the teacher's answers beat 500 right ones",
            TEXT,
            LABELS,
        ),
        _better(
            "both_beat_text",
            "Labels and the teacher's text together beat the text alone",
            BOTH,
            TEXT,
        ),
        _better(
            "both_soft_beat_both",
            "Soft labels on labels and text beat labels and text",
            BOTH_SOFT,
            BOTH,
        ),
        _better("checking_helps", "Checked text beats unchecked text", CHECKED, TEXT),
        _better("soft_beats_text", "Soft labels beat the teacher's text", SOFT, TEXT),
        _better(
            "labels_for_longer",
            "Soft labels also beat labels that train for as many operations",
            SOFT,
            LABELS,
            baseline_setting=EQUAL,
        ),
        _better(
            "text_for_longer",
            "Soft labels also beat text that trains for as many operations",
            SOFT,
            TEXT,
            baseline_setting=EQUAL,
        ),
        _better(
            "not_smoothing",
            "On the labelled rows, soft labels beat label smoothing",
            SOFT_FEW,
            SMOOTHED,
        ),
        _better("self_helps", "Self-distillation beats labels", SELF, LABELS),
        _better("together_helps", "Co-distillation beats labels", TOGETHER, LABELS),
        _better(
            "stored_keeps",
            "Stored soft labels keep 90 % of the live ones' gain over labels",
            STORED,
            LABELS,
            reference=SOFT,
            share=0.9,
        ),
        _better(
            "stored_pays",
            "For equal operations, stored soft labels beat live ones",
            STORED,
            SOFT,
            EQUAL,
            SAME_STEPS,
        ),
        _better(
            "own_helps",
            "A last quarter on own text beats the teacher's text to the end",
            OWN,
            TEXT,
        ),
        _better(
            "bits_beat_students",
            "The teacher in 4 bits beats the student of soft labels",
            FOUR_BITS,
            SOFT,
        ),
        _better(
            "repair_beats_small",
            "Half the teacher, repaired, beats the smaller student",
            REPAIRED,
            SOFT,
        ),
        Claim(
            name="steadier",
            text="Soft labels' gradients agree better between batches than text's",
            metric="gradient_cosine",
            arm=SOFT,
            baseline=TEXT,
            setting=SAME_STEPS,
            higher_is_better=True,
        ),
        Claim(
            name="calibrated",
            text="A student of soft labels is better calibrated than one of text",
            metric="ece",
            arm=SOFT,
            baseline=TEXT,
            setting=SAME_STEPS,
        ),
    ),
)
