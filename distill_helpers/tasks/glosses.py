"""What kind of thing is it? A task for hard labels that anybody can judge.

A dictionary's gloss of a noun goes in, one of twelve kinds comes out, as JSON:
``{"kind": "animal"}``. The right answers are WordNet's. A few hundred glosses are
labelled; for the thousands in the pool only a teacher's answers are to be had.

Taught in notebook 05.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from distill_helpers.evaluation import generate
from distill_helpers.labels import learn_answers, own_labels, prompt_text, read_labels
from distill_helpers.tasks.bundled import data_path
from distill_helpers.tasks.prose import glosses

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEST, VALIDATION, LABELLED = 2000, 400, 600
# Glosses of the pool to which the shipped answers of a teacher belong.
POOL = 4000
# The longest answer that is right, with room for one that is not.
MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Gloss:
    """One noun with its gloss and its kind.

    Attributes:
        word: The noun.
        gloss: What the dictionary says about it.
        kind: WordNet's supersense.
    """

    word: str
    gloss: str
    kind: str

    @property
    def prompt(self) -> str:
        """For a model that has learned the task."""
        return f"{self.word}: {self.gloss}\nKind, as JSON:"

    @property
    def instruction(self) -> str:
        """For a model that has to be told."""
        return (
            f"What kind of thing is this? {self.word}: {self.gloss}.\n"
            f"Choose one of: {', '.join(kinds())}.\n"
            'Answer only with JSON, such as {"kind": "animal"}.'
        )

    @property
    def answer(self) -> str:
        """The right one."""
        return json.dumps({"kind": self.kind})


@dataclass(frozen=True)
class Splits:
    """The glosses, always divided in the same way.

    Attributes:
        labelled: A few hundred, whose kinds may be used.
        pool: Thousands, whose kinds are for comparison alone.
        validation: Chooses checkpoints.
        test: 2,000 that judge.
    """

    labelled: tuple[Gloss, ...]
    pool: tuple[Gloss, ...]
    validation: tuple[Gloss, ...]
    test: tuple[Gloss, ...]


@dataclass(frozen=True)
class Judged:
    """How a model does the task.

    Attributes:
        accuracy: Share of right answers.
        valid: Share of answers that are JSON of the right form.
        count: Glosses asked.
    """

    accuracy: float
    valid: float
    count: int


@lru_cache
def splits() -> Splits:
    """Divide the glosses; a gloss that comes twice is taken once."""
    rows = glosses().shuffle(seed=0)
    found = {
        row["gloss"]: Gloss(row["word"], row["gloss"], row["supersense"])
        for row in rows
    }
    every = tuple(found.values())
    ends = [TEST, TEST + VALIDATION, TEST + VALIDATION + LABELLED]
    return Splits(
        test=every[: ends[0]],
        validation=every[ends[0] : ends[1]],
        labelled=every[ends[1] : ends[2]],
        pool=every[ends[2] :],
    )


def glosses_of(split: str = "train") -> tuple[Gloss, ...]:
    """The glosses as a text to learn from or to be measured on.

    Args:
        split: ``"train"`` (labelled and pool), ``"validation"`` or ``"test"``.
    """
    parts = splits()
    by_name = {
        "train": (*parts.labelled, *parts.pool),
        "validation": parts.validation,
        "test": parts.test,
    }
    if split not in by_name:
        raise ValueError(f"split={split!r} must be 'train', 'validation' or 'test'")
    return by_name[split]


@lru_cache
def kinds() -> tuple[str, ...]:
    """The twelve, in alphabetical order."""
    return tuple(sorted(set(glosses()["supersense"])))


def read_answer(text: str) -> str | None:
    """The kind in an answer, or ``None`` if it is not JSON of the right form."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # also a number of too many digits
        return None
    if not isinstance(found, dict) or found.keys() != {"kind"}:
        return None
    kind = found["kind"]
    return kind if isinstance(kind, str) and kind in kinds() else None


def judge_answers(texts: Sequence[str], right: Sequence[Gloss]) -> Judged:
    """Compare written answers with the right ones."""
    if len(texts) != len(right) or not right:
        raise ValueError(f"{len(texts)} texts and {len(right)} glosses: one for each")
    found = [read_answer(text) for text in texts]
    hits = sum(kind == gloss.kind for kind, gloss in zip(found, right, strict=True))
    valid = sum(kind is not None for kind in found)
    return Judged(hits / len(right), valid / len(right), len(right))


def judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Gloss],
    *,
    batch_size: int = 200,
) -> Judged:
    """Let a model answer greedily, and compare."""
    prompts = [
        prompt_text([{"role": "user", "content": gloss.prompt}], tokenizer)
        for gloss in asked
    ]
    texts = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=MAX_ANSWER_TOKENS,
        batch_size=batch_size,
    )
    return judge_answers(texts, asked)


def learned_rows(known: Sequence[Gloss], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Turn glosses with their right answers into rows for ``HardLabelTrainer``.

    Args:
        known: The glosses.
        tokenizer: The student's tokenizer.
    """
    labels = own_labels([g.prompt for g in known], [g.answer for g in known])
    return learn_answers(labels, tokenizer)


def pool_labels() -> Dataset:
    """Read the shipped answers of a teacher, in the order of the pool's glosses.

    The file has them in the order in which they came, the longest prompts first;
    ``tools/label_glosses.py`` made it.
    """
    labels = read_labels(data_path("gloss_labels.jsonl"))
    places = {gloss.prompt: place for place, gloss in enumerate(splits().pool)}
    asked = [messages[0]["content"] for messages in labels["messages"]]
    return labels.select(sorted(range(len(asked)), key=lambda row: places[asked[row]]))
