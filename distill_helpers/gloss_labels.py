"""How ``data/gloss_labels.jsonl`` was made: ``distill label-glosses``.

SmolLM2 learns the gloss task from 600 labelled glosses, and then answers a pool of
thousands. The answers ship with the course, so nobody has to run this; anybody can, and
a run that is cut off goes on where it was.

Used in notebook 04.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from distill_helpers.data import data_path, pack_examples
from distill_helpers.gloss_task import MAX_ANSWER_TOKENS, Gloss, splits
from distill_helpers.hard_labels import (
    LocalTeacher,
    learn_answers,
    own_labels,
    read_labels,
    write_labels,
)
from distill_helpers.models import Loaded, load_teacher
from distill_helpers.profiles import Profile
from distill_helpers.trainers import HardLabelTrainer, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL = 4000
STEPS = 60
LICENCE = "SmolLM2 is Apache-2.0 and sets no terms for its answers; glosses: WordNet"
# Of a row that holds several examples.
LENGTH = 512


def learned_rows(known: Sequence[Gloss], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Glosses with their right answers, as rows for ``HardLabelTrainer``."""
    labels = own_labels([g.prompt for g in known], [g.answer for g in known])
    return learn_answers(labels, tokenizer)


def train_teacher(
    profile: Profile, *, steps: int = STEPS, learning_rate: float = 1e-4, seed: int = 0
) -> Loaded:
    """SmolLM2 after some steps on the labelled glosses.

    Args:
        profile: Says where.
        steps: Of 4 × 512 tokens, about 25 glosses each.
        learning_rate: Peak.
        seed: Of the order.
    """
    model, tokenizer = load_teacher(profile)
    rows = pack_examples(learned_rows(splits().labelled, tokenizer), LENGTH)
    model = model.float().requires_grad_(True)
    HardLabelTrainer(
        model,
        args=training_arguments(
            profile,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=4,
            seed=seed,
        ),
        train_dataset=rows,
        tokenizer=tokenizer,
    ).train()
    return Loaded(model.requires_grad_(False).eval(), tokenizer)


def label_pool(teacher: Loaded, path: str | Path, *, count: int = POOL) -> Dataset:
    """The teacher's greedy answers to the first glosses of the pool."""
    local = LocalTeacher(teacher.model, teacher.tokenizer, licence=LICENCE)
    prompts = [gloss.prompt for gloss in splits().pool[:count]]
    return write_labels(
        local, prompts, path, max_new_tokens=MAX_ANSWER_TOKENS, concurrency=64
    )


def pool_labels() -> Dataset:
    """The shipped answers, in the order of the pool's glosses.

    The file has them in the order in which they came, the longest prompts first.
    """
    labels = read_labels(data_path("gloss_labels.jsonl"))
    places = {gloss.prompt: place for place, gloss in enumerate(splits().pool)}
    asked = [messages[0]["content"] for messages in labels["messages"]]
    return labels.select(sorted(range(len(asked)), key=lambda row: places[asked[row]]))
