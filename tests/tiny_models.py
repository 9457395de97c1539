"""Small real tokenizers, models and rows that several test files share."""

from functools import lru_cache

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_helpers.models import build_student

TEXTS = (
    "It is a truth universally acknowledged, that a single man in possession of a "
    "good fortune, must be in want of a wife.",
    "However little known the feelings or views of such a man may be, this truth is "
    "so well fixed in the minds of the surrounding families.",
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy "
    "disposition, seemed to unite some of the best blessings of existence.",
)


@lru_cache
def _bpe_json(vocabulary: int) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend.to_str()


def byte_level_bpe(vocabulary=300, *, backend_json=None):
    """A byte-level BPE like the prose teacher's: its pad token is its end token."""
    backend = Tokenizer.from_str(backend_json or _bpe_json(vocabulary))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    )


def bpe_json(vocabulary=300):
    """The same tokenizer's file, to be changed."""
    return _bpe_json(vocabulary)


def tiny(tokenizer, *, seed=0, layers=2, width=32):
    """A fresh model with logits far enough apart to tell right from wrong."""
    # Small weights: at the high learning rates of these tests, large ones turn the
    # last bit of a sum into a visible difference.
    model = build_student(
        tokenizer, layers=layers, width=width, initializer_range=0.02, seed=seed
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def random_rows(count, length, vocabulary, *, seed=0):
    """Rows of one length with random ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (count, length), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()})


def ragged_rows(count, vocabulary, *, seed=0, shortest=3, longest=12):
    """Rows of different lengths whose labels are masked unevenly."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = [], []
    for index in range(count):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        row = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
        masked = index % (length - 1)  # at least one position counts
        ids.append(row)
        labels.append([-100] * masked + row[masked:])
    return Dataset.from_dict({"input_ids": ids, "labels": labels})
