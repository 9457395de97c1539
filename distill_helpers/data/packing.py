"""From texts and examples to rows of one length.

Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers.data.base import DataError, dataset_of, whole_characters
from distill_helpers.data.prompts import TEACHER_PROMPT
from distill_helpers.data.rows import refuse_padding, row_labels
from distill_helpers.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def pack(
    corpus: Dataset | Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Dataset:
    """Turn texts into rows of exactly ``length`` token ids, without padding.

    Texts are joined with the tokenizer's end-of-text token between them and cut into
    rows; the last, incomplete row is dropped.

    Args:
        corpus: A dataset with a ``text`` column, or a sequence of strings. Half a
            character in them is read as ``U+FFFD``.
        tokenizer: The tokenizer of the models that will read the rows.
        length: Tokens per row, at least 2.

    Returns:
        A ``datasets.Dataset`` with the column ``input_ids``.

    Raises:
        ValueError: If ``length`` is below 2 or the corpus is too short for a row.
    """
    if length < 2:
        raise ValueError(f"length={length} must be at least 2: one token predicts one")
    if isinstance(corpus, str):
        raise ValueError("corpus is one string; pass a list of texts, or a dataset")
    ids = _joined(_texts(corpus), tokenizer)
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if not rows:
        raise DataError(
            f"the corpus has {len(ids)} tokens, fewer than one row of "
            f"length={length}; use more text or shorter rows"
        )
    return dataset_of([{"input_ids": row} for row in rows])


def _texts(corpus: Dataset | Sequence[str]) -> list[str]:
    if not hasattr(corpus, "column_names"):
        return list(corpus)
    dataset: Any = corpus
    if dataset.column_names is None:  # a stream
        return [row["text"] for row in dataset]
    if "text" not in dataset.column_names:
        raise DataError(
            f"corpus has the columns {dataset.column_names}, and no text among them; "
            'rename the one that holds it: corpus.rename_column("…", "text")'
        )
    return list(dataset["text"])


def _joined(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all texts in a row, with the end-of-text token behind each."""
    if not texts:
        return []  # a tokenizer refuses an empty list
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {number} is {text!r:.80}, no string; leave it out")
    whole = [whole_characters(text) for text in texts]
    try:
        found = tokenizer(whole, add_special_tokens=False)["input_ids"]
    except Exception as error:  # of tokenizers, which has no class of its own
        raise DataError(
            f"the tokenizer cannot read this text ({error}); was it made for another "
            "language or task?"
        ) from error
    return [token for ids in found for token in (*ids, *end)]


def stream_rows(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    split: str = "train",
    column: str = "text",
) -> Dataset:
    """The first rows of a text that is too large to download, packed as it arrives.

    Args:
        source: A dataset on the hub, or a folder that holds one.
        tokenizer: The tokenizer of the models that will read the rows.
        length: Tokens per row, at least 2.
        count: Rows wanted; reading stops when they are full.
        split: The split of the dataset to read.
        column: The column that holds the text.

    Returns:
        As :func:`pack`.

    Raises:
        DataError: If the text ends before.
        ValueError: If ``length`` is below 2 or ``count`` below 1.
    """
    if length < 2 or count < 1:
        raise ValueError(f"length={length} must be at least 2, count={count} positive")
    from datasets import load_dataset

    rows: list[dict[str, list[int]]] = []
    ids: list[int] = []
    texts = load_dataset(str(source), split=split, streaming=True)
    for batch in texts.iter(batch_size=100):
        ids += _joined(batch[column], tokenizer)
        full = min(len(ids) // length, count - len(rows))
        rows += [{"input_ids": ids[i * length : (i + 1) * length]} for i in range(full)]
        if len(rows) == count:
            return dataset_of(rows)
        del ids[: full * length]
    raise DataError(
        f"count={count}, but {source} holds only {len(rows)} rows of {length} tokens"
    )


def evenly_spaced(rows: Dataset, count: int) -> Dataset:
    """``count`` rows at equal distances, from the first on.

    The distance is a whole number, ``len(rows) // count``: of many rows every part is
    there, of fewer than ``2 * count`` only the beginning.
    """
    step = max(1, len(rows) // count)
    return rows.select(range(0, len(rows), step)[:count])


def pack_examples(rows: Dataset, length: int) -> Dataset:
    """Put several examples into each row, side by side and out of each other's sight.

    Unlike :func:`pack`, which cuts a text where a row ends, this keeps every example
    whole. Positions begin anew with each, from which ``transformers`` knows, with
    eager and sdpa attention, that none may attend to another. What it saves is
    padding: the examples of a batch need not be of one length.

    That holds for models whose attention asks for the positions, such as Llama, Qwen,
    Gemma and GPT-2. It does not hold for those that carry a state (Mamba, Qwen3-Next),
    write positions into a bias (BLOOM, MPT) or build their mask without them (OPT),
    nor for flash attention with several rows in a batch. The trainers find out by
    trying the model itself (:func:`~distill_helpers.models.isolates_examples`), and
    refuse such rows rather than let examples read one another.

    Args:
        rows: With ``input_ids`` and ``labels``, such as from :func:`mask_prompts`.
        length: Most tokens in a row; at least those of the longest example.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``. The loss is that of the same
        examples one by one.
    """
    examples = [
        (torch.as_tensor(row["input_ids"]).tolist(), row_labels(row, number).tolist())
        for number, row in enumerate(_whole_examples(rows))
    ]
    # What has no tokens takes no place.
    examples = sorted((e for e in examples if e[0]), key=lambda e: -len(e[0]))
    if not examples:
        raise DataError("there are no examples to pack")
    if len(examples[0][0]) > length:
        raise ValueError(
            f"length={length} is less than the {len(examples[0][0])} tokens of the "
            "longest example; use longer rows, or leave long examples out"
        )
    # Longest first, each into the fullest row that has room.
    packed: list[dict[str, list[int]]] = []
    room: dict[int, list[int]] = {}  # free places to rows
    for ids, labels in examples:
        free = min((size for size in room if size >= len(ids)), default=None)
        if free is None:
            packed.append({"input_ids": [], "labels": [], "position_ids": []})
            free, index = length, len(packed) - 1
        else:
            index = room[free].pop()
            if not room[free]:
                del room[free]
        row = packed[index]
        row["input_ids"] += ids
        # An example's first token is not the previous one's next.
        row["labels"] += [IGNORE_INDEX, *labels[1:]]
        row["position_ids"] += range(len(ids))
        room.setdefault(free - len(ids), []).append(index)
    return dataset_of(packed)


def _whole_examples(rows: Dataset) -> Iterator[Any]:
    for row in rows:
        if row.get("position_ids") is not None:
            raise DataError(
                "rows come from pack_examples already; pack the examples themselves"
            )
        if row.get(TEACHER_PROMPT) is not None:
            raise DataError(
                f"rows have {TEACHER_PROMPT}, and the teacher reads one prompt a row; "
                "train on them as they are, without pack_examples"
            )
        if row.get("attention_mask") is not None:
            refuse_padding([row["attention_mask"]])
        yield row
