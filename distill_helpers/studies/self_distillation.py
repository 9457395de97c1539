"""Does a prompt, or full precision, pass into the weights of the model itself?

Lesson 09 on more than one seed, by its own steps. In *a shared rule*, SmolLM2 reads
three examples of a JSON form and teaches itself, with adapters and without the
examples, to keep to that form. In *a hint for each word*, it reads the dictionary's
entry of the word that it is asked for. In *rounded to 2 bits*, the tiny teacher of
prose is rounded, and learns from itself in full precision or from the text. A seed
draws the words to learn from, to choose by and to judge on (or the rows of prose), the
adapters' start and the order.

Whatever is learned is chosen by the NLL of a text that both arms are taught: the
teacher's answers to other words, or other prose. That favours text, if anything, for
soft labels are trained on the whole distribution. Taught in notebook 09.

Looked at before this was declared, on exploring seed 0 alone. SmolLM2 at a rate of
1e-3: on new words soft labels left 5 % of the rule's KL, and text 31 %; of hints 84 %
were left, and 47 % on the words that were learned. 29 answers of 32 were in the form
after soft labels, 30 after text, 31 with the examples, none before. By validation NLL
3e-3 was worse for both. The rounded model at 3e-4 (text alone), 1e-3 and 4e-3: 1e-3 was
best, and soft labels led by 0.08 nats there. At 3 bits rounding did next to no harm.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from distill_helpers.data import (
    TEACHER_PROMPT,
    add_teacher_prompts,
    collator_for,
    join_row,
)
from distill_helpers.evaluation import evaluate
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.machine import get_profile
from distill_helpers.models import (
    AdaptersOff,
    add_adapters,
    fake_round,
    generate_batch,
    vocabulary_size,
)
from distill_helpers.studies.soft_labels import Pair, load_pair
from distill_helpers.studies.study import (
    EXPLORE_SEEDS,
    Claim,
    Run,
    Study,
    all_but,
    cells,
)
from distill_helpers.studies.tiny import columns, train_tiny
from distill_helpers.tasks.prose import glosses
from distill_helpers.tasks.teachers import load_teacher
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabels,
    SoftLabelTrainer,
    training_arguments,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXAMPLES = (
    ("What is a table?", "A table is a piece of furniture with a flat top."),
    ("What is a dog?", "A dog is an animal that people keep at home."),
    ("What is an idea?", "An idea is a thought about what could be done."),
)
BEFORE, TEACHER, SOFT, TEXT = "before", "teacher", "soft labels", "text"
ARMS = (BEFORE, TEACHER, SOFT, TEXT)
RULE, HINTS, ROUNDED = "a shared rule", "a hint for each word", "rounded to 2 bits"
# Hints are compared with the rule by what is left of their own start, 100 %, and have
# nothing to do with a form.
CHOSEN = {RULE: ARMS, HINTS: (SOFT,), ROUNDED: ARMS}
RANK, BITS = 8, 2
# Rows that are read at once where nothing is learned.
_TOGETHER = 8
REPAIR_STEPS, REPAIR_ROWS, TEST_ROWS = 100, 16, 60


# --- a prompt -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything, and for how long.

    Attributes:
        learn: Words that a student learns from.
        validation: Words that choose the learning rate.
        test: Words that judge.
        answer: Tokens after which an answer is cut off.
        steps: Optimizer steps.
        batch_size: Rows of a step.
    """

    learn: int = 32
    validation: int = 12
    test: int = 32
    answer: int = 48
    steps: int = 32
    batch_size: int = 2


SIZES = Sizes()


@dataclass(frozen=True)
class Heard:
    """Rows, in batches, with what their teacher says of each batch.

    Attributes:
        model: The teacher, and the student before it learned anything: they differ in
            what they read.
        objective: Compares a student with it.
        batches: The rows.
        said: What the teacher says of them.
    """

    model: PreTrainedModel
    objective: SoftLabels
    batches: tuple[dict[str, torch.Tensor], ...]
    said: tuple[Any, ...]

    def measure(self, student: Any = None) -> tuple[float, float]:
        """NLL of the teacher's answers and KL to the teacher, per token of theirs.

        Args:
            student: Who reads the questions alone; ``None``: the teacher itself.
        """
        sums, tokens = torch.zeros(2), 0
        for batch, said in zip(self.batches, self.said, strict=True):
            mine = said
            with torch.no_grad():
                if student is not None:
                    mine = self.objective.student.read(student, batch)
                found = self.objective.compare(mine, said, batch["labels"], 1)
            sums += torch.stack([found["hard"], found["soft"]])
            tokens += int((batch["labels"] != IGNORE_INDEX).sum())
        nll, kl = (sums / tokens).tolist()
        return nll, kl

    @cached_property
    def kl_before(self) -> float:
        """The KL that there is to be learned away."""
        return self.measure(self.model)[1]


@dataclass(frozen=True)
class Task:
    """What all arms of a setting and a seed share.

    Attributes:
        model: SmolLM2, frozen, without adapters. With its own prompts, the teacher.
        tokenizer: The model's.
        sizes: How much there is of everything.
        rows: What is learned, with the prompts that the teacher reads in their place.
        learned: The first of ``rows``, as many as validate.
        validation: Other words.
        test: Words that nobody has learned or chosen by.
        alone: Prompts of the words of ``test``, as the student reads them.
        answers: What the teacher answers them, behind its own prompts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sizes: Sizes
    rows: Dataset
    learned: Heard
    validation: Heard
    test: Heard
    alone: list[list[int]]
    answers: list[list[int]]


def question_of(word: str) -> str:
    """What is asked about a word."""
    return f"What is {'an' if word[0] in 'aeiou' else 'a'} {word}?"


def prompt_of(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    examples: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of a question, behind examples or alone."""
    turns = []
    for asked, text in examples:
        turns.append({"role": "user", "content": asked})
        turns.append({"role": "assistant", "content": json.dumps({"answer": text})})
    turns.append({"role": "user", "content": question})
    ids: Any = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    return list(ids)


def teacher_prompt(
    tokenizer: PreTrainedTokenizerBase, setting: str, word: str, entry: str
) -> list[int]:
    """Token ids of what the teacher reads before it answers about a word."""
    question = question_of(word)
    if setting == RULE:
        return prompt_of(tokenizer, question, EXAMPLES)
    return prompt_of(tokenizer, f"The dictionary says: {entry}. {question}")


@lru_cache
def entries() -> dict[str, str]:
    """Word to dictionary entry, names left out."""
    return {
        row["word"].replace("_", " "): row["gloss"]
        for row in glosses()
        if row["word"].islower()
    }


def write(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], most: int
) -> list[list[int]]:
    """Greedy answers of at most so many tokens, as ids, their ends included."""
    found = generate_batch(model, tokenizer, prompts, max_new_tokens=most)
    return [one.ids for one in found]


def obeys(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> bool:
    """Whether an answer is whole, and JSON with one field named answer."""
    try:
        found = json.loads(str(tokenizer.decode(answer, skip_special_tokens=True)))
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and list(found) == ["answer"]


@lru_cache(maxsize=4)
def load_task(setting: str, seed: int, sizes: Sizes = SIZES) -> Task:
    """Draw words, and let the teacher answer the questions about them.

    Args:
        setting: ``RULE`` or ``HINTS``.
        seed: Draws the words: the same ones in both settings.
        sizes: How many of each kind.
    """
    model, tokenizer = load_teacher(get_profile("cpu"))
    known = entries()
    counts = (sizes.learn, sizes.validation, sizes.test)
    words = random.Random(seed).sample(sorted(known), sum(counts))
    longer = [teacher_prompt(tokenizer, setting, word, known[word]) for word in words]
    alone = [prompt_of(tokenizer, question_of(word)) for word in words]
    answers = write(model, tokenizer, longer, sizes.answer)
    rows = add_teacher_prompts(
        Dataset.from_list(list(map(join_row, alone, answers))),
        Dataset.from_list(list(map(join_row, longer, answers))),
    )
    ends = (sizes.learn, sizes.learn + sizes.validation, len(words))
    learned, validation, test = (
        listen(model, tokenizer, rows.select(range(*part)))
        for part in ((0, sizes.validation), ends[:2], ends[1:])
    )
    return Task(
        model=model,
        tokenizer=tokenizer,
        sizes=sizes,
        rows=rows.select(range(sizes.learn)),
        learned=learned,
        validation=validation,
        test=test,
        alone=alone[ends[1] :],
        answers=answers[ends[1] :],
    )


def listen(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> Heard:
    """Read rows once with the teacher, which has its own prompts."""
    objective = SoftLabels(teacher, vocabulary_size(tokenizer))
    collate = collator_for(tokenizer)
    batches = tuple(
        collate(list(rows.select(range(start, min(start + _TOGETHER, len(rows))))))
        for start in range(0, len(rows), _TOGETHER)
    )
    said = tuple(map(objective.teacher.read, batches))
    return Heard(teacher, objective, batches, said)


def learn(task: Task, arm: str, *, seed: int, **recipe: Any) -> Any:
    """Train adapters on a copy of the model, which never reads the teacher's prompts.

    Args:
        task: What is learned from whom.
        arm: ``SOFT`` or ``TEXT``.
        seed: Decides the adapters' start and the order.
        recipe: Learning rate and weight decay.
    """
    student = add_adapters(copy.deepcopy(task.model), rank=RANK, seed=seed)
    trainer: Any = HardLabelTrainer
    rows = task.rows.remove_columns(TEACHER_PROMPT)
    if arm == SOFT:
        trainer = partial(SoftLabelTrainer, teacher=AdaptersOff(student))
        rows = task.rows
    trainer(
        student,
        args=training_arguments(
            get_profile("cpu"),
            steps=task.sizes.steps,
            batch_size=task.sizes.batch_size,
            seed=seed,
            disable_tqdm=True,
            **recipe,
        ),
        train_dataset=rows,
        tokenizer=task.tokenizer,
    ).train()
    return student.eval()


def outcome(task: Task, setting: str, student: Any = None) -> dict[str, float]:
    """A student's columns; without one, those of the teacher with its prompts."""
    share = float("nan")
    if setting == RULE:
        answers = task.answers
        if student is not None:
            answers = write(student, task.tokenizer, task.alone, task.sizes.answer)
        share = 100 * fmean(obeys(task.tokenizer, one) for one in answers)
    nll, kl = task.test.measure(student)
    learned = task.learned.measure(student)[1]
    return {
        "validation_nll": task.validation.measure(student)[0],
        "nll": nll,
        "kl_to_teacher": kl,
        "kl_left": 100 * kl / task.test.kl_before,
        "kl_left_learned": 100 * learned / task.learned.kl_before,
        "form": share,
        "bf16": int(get_profile("cpu").autocast_dtype is not None),
    }


# --- full precision -----------------------------------------------------------------


def rounded(pair: Pair) -> PreTrainedModel:
    """A copy of the teacher of prose that computes with rounded weights."""
    copied = copy.deepcopy(pair.teacher.teacher).requires_grad_(True)
    return fake_round(copied, BITS)


def repair(pair: Pair, arm: str, *, seed: int, **recipe: Any) -> PreTrainedModel:
    """Train a rounded copy on prose, or on what full precision says of it.

    Args:
        pair: Full precision, and prose.
        arm: ``SOFT`` or ``TEXT``.
        seed: Decides which rows, and their order.
        recipe: Learning rate and weight decay.
    """
    teacher = partial(SoftLabelTrainer, teacher=pair.teacher)
    trained = train_tiny(
        rounded(pair),
        pair.train.shuffle(seed=seed).select(range(REPAIR_STEPS * REPAIR_ROWS)),
        pair.tokenizer,
        None,
        trainer=teacher if arm == SOFT else None,
        steps=REPAIR_STEPS,
        batch_size=REPAIR_ROWS,
        seed=seed,
        **recipe,
    )
    return trained.model


# --- the study ----------------------------------------------------------------------


@lru_cache(maxsize=4)
def _untrained(arm: str, setting: str, seed: int) -> dict[str, float]:
    """Columns of an arm that no option of the grid changes."""
    if setting == ROUNDED:
        pair = load_pair(test_rows=TEST_ROWS)
        full = arm == TEACHER
        model = pair.teacher.teacher if full else rounded(pair)
        return judge_prose(pair, model)
    task = load_task(setting, seed)
    return outcome(task, setting, None if arm == TEACHER else task.model)


def judge_prose(pair: Pair, model: PreTrainedModel) -> dict[str, float]:
    """Columns of a model of prose."""
    found = evaluate(model, pair.test, pair.tokenizer, teacher=pair.teacher)
    return {
        "validation_nll": pair.validation_nll(model),
        **columns(found, "nll", "kl_to_teacher"),
    }


def _run(run: Run) -> dict[str, float]:
    if run.arm in (BEFORE, TEACHER):
        return _untrained(run.arm, run.setting, run.seed)
    if run.setting == ROUNDED:
        pair = load_pair(test_rows=TEST_ROWS)
        return judge_prose(pair, repair(pair, run.arm, **run.recipe))
    task = load_task(run.setting, run.seed)
    return outcome(task, run.setting, learn(task, run.arm, **run.recipe))


_form = partial(
    Claim, metric="form", arm=SOFT, setting=RULE, higher_is_better=True, within=10.0
)
_left = partial(Claim, metric="kl_left", arm=SOFT, baseline=BEFORE, setting=RULE)
STUDY = Study(
    name="self_distillation",
    question="Does a prompt, or full precision, pass into a model's own weights?",
    arms=ARMS,
    settings=(RULE, HINTS, ROUNDED),
    grid=cells(3e-4, 1e-3, 3e-3, weight_decay=0.0),
    run=_run,
    select="validation_nll",
    explore_seeds=EXPLORE_SEEDS,
    confirm_seeds=tuple(range(1100, 1116)),
    left_out=all_but(CHOSEN, ARMS),
    claims=(
        _form(
            "rule_is_kept",
            "A form that examples showed is kept without them, by many more answers",
            baseline=BEFORE,
            margin=50.0,
            within=None,
        ),
        _form(
            "as_by_examples",
            "The student without examples keeps to the form as the teacher with them",
            baseline=TEACHER,
        ),
        _form(
            "text_will_do",
            "For the form, the teacher's text teaches as well as its soft labels",
            baseline=TEXT,
        ),
        _left(
            "rule_carries_over",
            "Of the shared rule, less than a quarter of the KL is left on new words",
            margin=75.0,
        ),
        _left(
            "hints_do_not",
            "Of hints, at least half of the KL is left on new words",
            setting=HINTS,
            baseline_setting=RULE,
            higher_is_better=True,
            margin=-50.0,
        ),
        _left(
            "rule_not_hints",
            "Less is left of a shared rule than of hints, by 30 points",
            baseline=SOFT,
            baseline_setting=HINTS,
            margin=30.0,
        ),
        _left(
            "soft_takes_more",
            "Soft labels leave less of the rule's KL than the teacher's text",
            baseline=TEXT,
            margin=10.0,
        ),
        Claim(
            "itself_repairs",
            "A rounded model predicts prose better when full precision taught it than "
            "when the text did",
            metric="nll",
            arm=SOFT,
            baseline=TEXT,
            setting=ROUNDED,
            margin=0.03,
        ),
    ),
)
