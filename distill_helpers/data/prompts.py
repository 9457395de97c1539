"""Where a row's prompt ends, and a row made of a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill_helpers.losses import IGNORE_INDEX


def prompt_of(row: Mapping[str, list[int]]) -> list[int]:
    """What stands before the first token that a row learns.

    Args:
        row: ``input_ids`` and ``labels``, -100 where nothing is learned, unpadded.

    Raises:
        ValueError: If that is less than two tokens.
    """
    ids, labels = row["input_ids"], row["labels"]
    learned = (place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    start = next(learned, len(ids))
    # The collator masks the first token of every row, so one alone is no sign of it.
    if start < 2:
        raise ValueError(
            "a row has no prompt: its labels must be -100 for two tokens or more, and "
            "be learned from where the answer begins; use mask_prompts or learn_answers"
        )
    return ids[:start]


def join_row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of a prompt and what follows it."""
    return {
        "input_ids": [*prompt, *answer],
        "labels": [*[IGNORE_INDEX] * len(prompt), *answer],
    }
