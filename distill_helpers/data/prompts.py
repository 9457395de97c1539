"""Where a row's prompt ends; rows of a prompt and what follows; a teacher's own prompt.

A teacher may see more than its student: a system prompt, a worked example, the answer.
Its prompt then stands in a column of its own, ``teacher_prompt_ids``, and it reads that
in place of all that the student sees before the first learned token. What follows is
the same for both, so that they are compared token by token.

Taught in notebook 09. Paper: Snell et al. 2022 (arXiv:2209.15189).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_helpers.data.base import DataError
from distill_helpers.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset

TEACHER_PROMPT = "teacher_prompt_ids"


def add_teacher_prompts(rows: Dataset, teacher_rows: Dataset) -> Dataset:
    """Give a student's rows the prompts that the teacher sees in their place.

    Both kinds of rows come from ``mask_prompts`` or ``learn_answers``, of the same
    answers in the same order behind different prompts::

        rows = add_teacher_prompts(
            mask_prompts(questions, answers, tokenizer),
            mask_prompts([rules + one for one in questions], answers, tokenizer),
        )

    Args:
        rows: What the student reads: ``input_ids`` and ``labels``. Rows of prompts
            alone, for a student that writes its answers, will do.
        teacher_rows: What the teacher reads.

    Returns:
        ``rows`` with the column ``teacher_prompt_ids``: the teacher's tokens before the
        first that is learned.

    Raises:
        DataError: If the two differ in number, or behind their prompts.

    Taught in notebook 09.
    """
    if len(rows) != len(teacher_rows):
        raise DataError(
            f"{len(rows)} rows and {len(teacher_rows)} teacher_rows: one for each is "
            "needed; make both of the same answers, and leave the same ones out"
        )
    prompts = []
    for number, (row, theirs) in enumerate(zip(rows, teacher_rows, strict=True)):
        start, longer = first_learned(row["labels"]), first_learned(theirs["labels"])
        if any(row[n][start:] != theirs[n][longer:] for n in ("input_ids", "labels")):
            raise DataError(
                f"row {number}: what is learned is not the same in rows and in "
                "teacher_rows; give both the same answer, and end both prompts alike "
                "(with the same line feed or space), so that it is the same tokens"
            )
        if not longer:
            raise DataError(
                f"row {number}: teacher_rows has no prompt: its labels must be -100 "
                "where the teacher's prompt stands; use mask_prompts or learn_answers"
            )
        prompts.append(theirs["input_ids"][:longer])
    return rows.add_column(TEACHER_PROMPT, prompts)


def first_learned(labels: Sequence[Any]) -> int:
    """The place of the first label that is not -100; behind the last, if all are."""
    learned = (place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    return next(learned, len(labels))


def prompt_of(row: Mapping[str, list[int]]) -> list[int]:
    """What stands before the first token that a row learns.

    Args:
        row: ``input_ids`` and ``labels``, -100 where nothing is learned, unpadded.

    Raises:
        ValueError: If that is less than two tokens.
    """
    start = first_learned(row["labels"])
    # The collator masks the first token of every row, so one alone is no sign of it.
    if start < 2:
        raise ValueError(
            "a row has no prompt: its labels must be -100 for two tokens or more, and "
            "be learned from where the answer begins; use mask_prompts or learn_answers"
        )
    return row["input_ids"][:start]


def join_row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of a prompt and what follows it."""
    return {
        "input_ids": [*prompt, *answer],
        "labels": [*[IGNORE_INDEX] * len(prompt), *answer],
    }
