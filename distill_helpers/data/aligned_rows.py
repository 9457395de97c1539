"""Datasets and batches whose rows stand in the tokens of two tokenizers.

Taught in notebook 10.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers.data.alignment import AlignedRow, Alignment, NotAligned
from distill_helpers.data.base import DataError
from distill_helpers.data.prompts import TEACHER_PROMPT
from distill_helpers.data.rows import Collator, row_labels
from distill_helpers.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset

_LOGGER = logging.getLogger(__name__)
ALIGNED_COLUMNS = ("teacher_input_ids", "chunks", "teacher_chunks")


def align_rows(
    rows: Dataset, alignment: Alignment, teacher_rows: Dataset | None = None
) -> Dataset:
    """Give each of a student's rows the same text in the teacher's tokens.

    Args:
        rows: The student's, with ``input_ids`` and, if not all is learned, ``labels``.
        alignment: From :func:`~distill_helpers.data.align_tokenizers`.
        teacher_rows: One for each, with ``labels``, where prompts are written
            otherwise for the teacher: ``learn_answers`` with its tokenizer, whose chat
            template is another one. What is learned in both is aligned. ``None``
            writes the text of the student's rows in the teacher's tokens.

    Returns:
        The rows with ``teacher_input_ids``; ``chunks`` and ``teacher_chunks``, the
        number of the chunk that each token is in (-1: none); and ``refused``, why a
        row could not be aligned, or ``""``. Such rows stay, with labels that count,
        and the log says how many there are.

    Raises:
        DataError: If a row holds several examples, or there is not one row of the
            teacher for each of the student's.

    Taught in notebook 10.
    """
    from datasets import Features, List, Value  # heavy: not at import

    if teacher_rows is not None and len(teacher_rows) != len(rows):
        raise DataError(
            f"there are {len(rows)} rows and {len(teacher_rows)} teacher_rows; one for "
            "each is needed (learn_answers with max_length leaves some out: give none, "
            "and leave out what is too long afterwards, in both)"
        )

    def aligned(row: dict[str, Any], number: int) -> dict[str, Any]:
        if row.get("position_ids") is not None:
            raise DataError(
                f"row {number} has position_ids, as rows of pack_examples do: it may "
                "hold several examples, and the teacher's would read one another; pass "
                "the examples one to a row"
            )
        if row.get(TEACHER_PROMPT) is not None:
            raise DataError(
                f"row {number} has {TEACHER_PROMPT}, in the student's tokens; leave "
                "that column out, and pass teacher_rows with the teacher's own prompts"
            )
        labels, refused = row_labels(row, number), ""
        try:
            found = _align(
                alignment,
                row,
                labels,
                None if teacher_rows is None else teacher_rows[number],
            )
        except NotAligned as error:
            refused = str(error)
            found = AlignedRow(tuple(row["input_ids"]), (), ())
        ours, theirs = found.numbers()
        columns = (list(found.teacher_ids), ours, theirs)
        return {**dict(zip(ALIGNED_COLUMNS, columns, strict=True)), "refused": refused}

    features = None
    if rows.features is not None:  # where the first rows are refused, none would tell
        numbers = dict.fromkeys(ALIGNED_COLUMNS, List(Value("int64")))
        features = Features({**rows.features, **numbers, "refused": Value("string")})
    done = rows.map(aligned, with_indices=True, features=features)
    if done.column_names is not None:  # of a stream, nothing is known yet
        _report(Counter(filter(None, done["refused"])), len(done))
    return done


def _report(refused: Counter[str], count: int) -> None:
    if refused:
        reasons = "; ".join(f"{n}: {why}" for why, n in refused.most_common(3))
        _LOGGER.warning(
            "%d of %d rows cannot be aligned, and learn nothing of the teacher (%s)",
            refused.total(),
            count,
            reasons,
        )


def _align(
    alignment: Alignment,
    row: Mapping[str, Any],
    labels: torch.Tensor,
    teacher_row: Mapping[str, Any] | None,
) -> AlignedRow:
    ids = [int(token) for token in row["input_ids"]]
    if teacher_row is None:
        return alignment.align(ids)
    ours, theirs = _learned(labels), _learned(row_labels(teacher_row))
    if len(ours) != len(theirs):
        raise NotAligned("the teacher's row has more answers, or fewer")
    teacher_ids = [int(token) for token in teacher_row["input_ids"]]
    return alignment.align_spans(ids, teacher_ids, list(zip(ours, theirs, strict=True)))


def _learned(labels: torch.Tensor) -> list[slice]:
    """Where labels count, in one piece each."""
    found, start = [], 0
    for counts, group in groupby((labels != IGNORE_INDEX).tolist()):
        end = start + len(list(group))
        if counts:
            found.append(slice(start, end))
        start = end
    return found


@dataclass(frozen=True)
class AlignedCollator:
    """Make a batch of rows of :func:`align_rows`.

    Attributes:
        student: Makes what the student reads.
        teacher: Makes what the teacher reads; it pads with a token of the teacher's.
    """

    student: Collator
    teacher: Collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the student's batch, and beside it what the teacher reads.

        That is ``teacher_input_ids``, ``teacher_attention_mask`` ``[rows, teacher's
        length]``; and ``chunks`` ``[rows, length]`` and ``teacher_chunks``, -1 where a
        token is in none.

        Raises:
            DataError: If the rows have not been aligned.
        """
        for row in rows:
            missing = [name for name in ALIGNED_COLUMNS if row.get(name) is None]
            if missing:
                raise DataError(
                    f"a row has no {missing[0]}; make them with data.align_rows"
                )
        batch = self.student(rows)
        read = self.teacher([{"input_ids": row["teacher_input_ids"]} for row in rows])
        for name in ("input_ids", "attention_mask"):
            batch["teacher_" + name] = read[name]
        for name, like in (("chunks", batch), ("teacher_chunks", read)):
            numbers = torch.full_like(like["input_ids"], -1)
            for place, row in zip(numbers, rows, strict=True):
                place[: len(row[name])] = torch.as_tensor(row[name])
            batch[name] = numbers
        return batch
