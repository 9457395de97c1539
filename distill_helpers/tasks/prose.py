"""Two bundled texts: novels of Jane Austen, and the glosses of WordNet.

Used from notebook 00 on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from distill_helpers.data.base import dataset_of
from distill_helpers.data.corpus import passages
from distill_helpers.tasks.bundled import data_path

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TEST_NOVEL = "persuasion"
TRAINING_NOVELS = (
    "emma",
    "mansfield_park",
    "northanger_abbey",
    "pride_and_prejudice",
    "sense_and_sensibility",
)
# Every twentieth passage of the five novels is kept back for validation.
_VALIDATION_EVERY = 20


def austen(split: str = "train") -> Dataset:
    """Prose of Jane Austen, in passages of about 4,000 characters.

    Args:
        split: ``"train"`` and ``"validation"`` come from five novels (every
            twentieth passage validates), ``"test"`` is the whole sixth,
            *Persuasion*, which no model of the course has seen.

    Returns:
        A ``datasets.Dataset`` with the columns ``text`` and ``novel``.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r} must be 'train', 'validation' or 'test'")
    novels = (TEST_NOVEL,) if split == "test" else TRAINING_NOVELS
    rows = []
    for novel in novels:
        text = data_path(f"austen/{novel}.txt").read_text(encoding="utf-8")
        for index, passage in enumerate(passages(text)):
            validates = index % _VALIDATION_EVERY == _VALIDATION_EVERY - 1
            if split == "test" or validates == (split == "validation"):
                rows.append({"text": passage, "novel": novel})
    return dataset_of(rows)


def train_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE on the training part of the five novels.

    A larger one begins with the merges of a smaller one. The tiny teacher of prose has
    2,048 tokens.

    Args:
        size: How many tokens, the 256 bytes and ``<end>`` among them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        austen("train")["text"],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    )


def glosses() -> Dataset:
    """11,254 noun glosses of WordNet 3.0 with the columns word, supersense, gloss."""
    lines = data_path("wordnet_glosses.jsonl").read_text(encoding="utf-8").splitlines()
    return dataset_of([json.loads(line) for line in lines])
