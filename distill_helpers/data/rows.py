"""What a row holds: labels, masks and padding, and how rows become a batch.

Taught in notebook 02.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers.data.base import DataError
from distill_helpers.data.prompts import TEACHER_PROMPT, first_learned
from distill_helpers.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Columns of other tools that say which tokens count, with 1: of apply_chat_template,
# TRL, llm-foundry and NeMo, and verl.
_COUNTING_MASKS = (
    "assistant_masks",
    "assistant_mask",
    "completion_mask",
    "loss_mask",
    "response_mask",
)
# Columns of other tools that say where in a row another example begins.
_BORDERS = (
    "seq_lengths",
    "cu_seqlens",
    "cu_seq_lens_q",
    "seq_idx",
    "segment_ids",
    "sequence_ids",
)
# What goes with the tokens, one by one, beside the masks.
_TOKEN_COLUMNS = ("input_ids", "labels", "position_ids", "token_type_ids")


def row_labels(row: Mapping[str, Any], number: int = 0) -> torch.Tensor:
    """What is to be learned at each token of a row, ``-100`` where nothing is.

    These are the row's ``labels``, or its tokens where there are none. Masks of other
    tools say which tokens count: ``assistant_masks`` (``apply_chat_template``),
    ``assistant_mask``, ``completion_mask`` (TRL), ``loss_mask`` (NeMo, llm-foundry),
    ``response_mask`` (verl). Where a row has several, what counts in all of them
    counts, as in TRL. Columns that are ``None`` are as good as absent.

    Args:
        row: With ``input_ids``, one row of token ids.
        number: The row's number, for messages.

    Returns:
        ``[tokens]``, int64, unshifted.

    Raises:
        DataError: If the row has no ``input_ids``; a column differs from it in length;
            labels and masks disagree; or a column would change what is learned in a
            way that is not known here: another mask, weights, borders of examples.
    """
    if row.get("input_ids") is None:
        raise DataError(
            f"row {number} has no input_ids, only {sorted(row)}; make rows of tokens "
            "first (data.pack, data.mask_prompts)"
        )
    ids = torch.as_tensor(row["input_ids"])
    if ids.dim() != 1:
        raise DataError(
            f"input_ids of row {number} have the shape {list(ids.shape)}; a row is "
            "one list of token ids"
        )
    ids = ids.long()
    labels = _along(row, "labels", ids, number)
    counts = None
    for name in row:
        if name in _COUNTING_MASKS:
            mask = _along(row, name, ids, number)
            if mask is not None:
                counts = mask if counts is None else counts & mask
        else:
            _refuse_unknown(row, name, len(ids), number)
    if counts is None:
        return ids if labels is None else labels
    if labels is None:
        return ids.masked_fill(counts == 0, IGNORE_INDEX)
    if not torch.equal((labels != IGNORE_INDEX)[1:], (counts == 1)[1:]):
        names = " and ".join(name for name in _COUNTING_MASKS if name in row)
        raise DataError(
            f"row {number}: labels and {names} disagree about which tokens count; "
            'leave one of them out: rows.remove_columns("labels")'
        )
    return labels


def _along(
    row: Mapping[str, Any], name: str, ids: torch.Tensor, number: int
) -> torch.Tensor | None:
    """A column with one whole number for each token, or ``None``."""
    if row.get(name) is None:
        return None
    column = torch.as_tensor(row[name])
    if column.shape != ids.shape:
        raise DataError(
            f"row {number}: {name} has the shape {list(column.shape)}, and there are "
            f"{len(ids)} input_ids; one for each token is needed (was one of them "
            "truncated or padded?)"
        )
    if name != "labels" and not ((column == 0) | (column == 1)).all():
        raise DataError(
            f"row {number}: {name} holds {column.unique().tolist()[:4]}, and tokens "
            "either count (1) or not (0); write labels instead, -100 where nothing is "
            "to be learned"
        )
    return column.long()


def _refuse_unknown(row: Mapping[str, Any], name: str, size: int, number: int) -> None:
    """Refuse a column that means something for the loss, but not here."""
    value = row[name]
    if value is None:
        return
    if name in _BORDERS and row.get("position_ids") is None:
        raise DataError(
            f"row {number} has {name}: it holds several examples, which would read "
            "each other; pass the examples one to a row, or pack them with "
            "data.pack_examples"
        )
    weighs = name.endswith(("mask", "masks", "weight", "weights"))
    harmless = name in ("attention_mask", "special_tokens_mask")
    if weighs and not harmless and size and _length(value) == size:
        raise DataError(
            f"row {number} has {name}, one for each token, and what it says would be "
            "ignored; write labels instead (-100 where nothing is to be learned), or "
            f'leave it out: rows.remove_columns("{name}")'
        )


def _length(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return len(value)
    shape = getattr(value, "shape", ())
    return int(shape[0]) if shape else None


@dataclass(frozen=True)
class Collator:
    """Make a batch of rows: pad on the right, mask, label.

    Rows without ``labels`` learn every token that the masks of other tools do not
    hide (:func:`row_labels`). The first label of a row is always ``-100``: nothing
    predicts it, and ``transformers`` must not count it. A row without tokens becomes
    one pad token that is read and not learned, so that it changes nothing, and a
    batch of such rows is one from which nothing is learned.

    Attributes:
        pad_token_id: Fills ``input_ids``; padded positions are labelled ``-100`` by
            their position, never by their id, so a pad token that is also the
            end-of-text token is still learned.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels``: ``[rows, length]``.

        And ``position_ids``, if the rows have them (:func:`pack_examples`); and, if
        they have prompts for the teacher (:func:`add_teacher_prompts`), what it reads,
        as ``teacher_input_ids`` and ``teacher_attention_mask``.

        Raises:
            DataError: For rows that are padded already, and as :func:`row_labels`.
        """
        hidden = (row.get("attention_mask") for row in rows)
        refuse_padding(mask for mask in hidden if mask is not None)
        learned = [row_labels(row, number) for number, row in enumerate(rows)]
        packed = any(row.get("position_ids") is not None for row in rows)
        tokens = [torch.as_tensor(row["input_ids"]).long() for row in rows]
        ids, mask = self._padded(tokens)
        length = ids.shape[1]
        labels = torch.full_like(ids, IGNORE_INDEX)
        positions = torch.zeros_like(ids)
        for index, (row, wanted) in enumerate(zip(rows, learned, strict=True)):
            size = len(wanted)
            labels[index, :size] = wanted
            if packed:
                positions[index, :size] = self._positions(row, size)
                # The padding too is an example of its own.
                positions[index, size:] = torch.arange(length - size)
        labels[:, 0] = IGNORE_INDEX
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        prompts = [row.get(TEACHER_PROMPT) for row in rows]
        if any(prompt is not None for prompt in prompts):
            if packed:
                raise DataError(
                    f"rows have {TEACHER_PROMPT} and hold several examples "
                    "(position_ids), and a prompt belongs to one; do without "
                    "pack_examples"
                )
            theirs = self._padded(list(map(_behind, prompts, tokens, learned)))
            names = ("teacher_input_ids", "teacher_attention_mask")
            batch |= dict(zip(names, theirs, strict=True))
        return batch | {"position_ids": positions} if packed else batch

    def _padded(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids ``[rows, length]`` and their mask."""
        length = max(1, *map(len, rows))
        ids = torch.full((len(rows), length), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            # Rows of which nothing can be seen are nan in some models.
            mask[index, : max(1, len(row))] = 1
        return ids, mask

    @staticmethod
    def _positions(row: Mapping[str, Any], size: int) -> torch.Tensor:
        """Of a row beside packed ones that has none: it is one example."""
        given = row.get("position_ids")
        return torch.arange(size) if given is None else torch.as_tensor(given)


def _behind(prompt: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What a row learns, behind the teacher's prompt; the row itself without one."""
    if prompt is None:
        return ids
    answer = ids[first_learned(labels.tolist()) :]
    return torch.cat([torch.as_tensor(prompt).long(), answer])


def refuse_padding(masks: Iterable[Any]) -> None:
    """Raise :class:`DataError` if an ``attention_mask`` hides anything.

    Batches are padded as they are made. Padding that is part of the rows would be
    read, learned and stored as text.
    """
    for mask in masks:
        if 0 in mask:
            raise DataError(
                "rows are padded (zeros in attention_mask), and the padding would be "
                "learned as text; tokenize without padding, or take it out with "
                "data.strip_padding(rows)"
            )


def strip_padding(rows: Dataset) -> Dataset:
    """Take out what the rows' ``attention_mask`` hides, on either side.

    Args:
        rows: With ``input_ids`` and ``attention_mask``, as tokenizers give them; and
            with ``labels`` or a mask (:func:`row_labels`), if not all is learned.
            What else goes with the tokens is cut alike.

    Returns:
        The rows without the mask, each as long as its text. Rows without a mask are
        returned as they are.

    Raises:
        DataError: If a column is not as long as the mask, or rows are a stream.
    """
    if rows.column_names is None:
        raise DataError(
            "rows are a stream, whose columns are not known; collect them first: "
            "Dataset.from_list(list(rows))"
        )
    if "attention_mask" not in rows.column_names:
        return rows
    names = [
        name
        for name in rows.column_names
        if name in _TOKEN_COLUMNS or name.endswith(("mask", "masks"))
    ]
    names.remove("attention_mask")

    def text(row: dict[str, Any]) -> dict[str, list[int] | None]:
        if row["attention_mask"] is None:
            return {name: row[name] for name in names}
        return {name: None if row[name] is None else _seen(row, name) for name in names}

    return rows.map(text, remove_columns="attention_mask")


def _seen(row: Mapping[str, Any], name: str) -> list[int]:
    mask, column = row["attention_mask"], row[name]
    if len(mask) != len(column):
        raise DataError(
            f"a row has {len(column)} {name} and {len(mask)} numbers in its "
            "attention_mask; one for each token is needed"
        )
    return [int(one) for one, real in zip(column, mask, strict=True) if real]


def collator_for(tokenizer: PreTrainedTokenizerBase) -> Collator:
    """A :class:`Collator` that pads with the tokenizer's pad or end-of-text token.

    Raises:
        ValueError: If it has neither.
    """
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has neither a pad token nor one that ends a text, so rows "
            "of different lengths cannot be padded; set tokenizer.pad_token to a "
            "token of the model"
        )
    return Collator(pad)
