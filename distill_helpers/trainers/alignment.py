"""A teacher with a prompt of its own: what it reads, and its word where it counts.

Used by every teacher that reads rows itself; see ``data.add_teacher_prompts``.

Taught in notebook 09.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distill_helpers.losses import Hidden

_IDS, _MASK = "teacher_input_ids", "teacher_attention_mask"


def has_own_prompts(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the teacher reads other rows than the student."""
    return _IDS in inputs


def as_read_by_teacher(
    inputs: Mapping[str, torch.Tensor],
) -> Mapping[str, torch.Tensor]:
    """The batch that a teacher reads: its own rows, where it has some.

    Args:
        inputs: A batch of :class:`~distill_helpers.data.Collator`.
    """
    if not has_own_prompts(inputs):
        return inputs
    return {"input_ids": inputs[_IDS], "attention_mask": inputs[_MASK]}


def at_student_places(
    said: torch.Tensor | Hidden, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor | Hidden:
    """What a teacher says, put where the student says it.

    Both rows end alike, so that a row's places differ by as much as its two lengths.
    What it says of the student's prompt, which it may not have seen, is of no meaning,
    and has no label.

    Args:
        said: Logits or hidden states ``[rows, teacher's positions, …]``.
        inputs: The batch that they were read from.

    Returns:
        The same ``[rows, student's positions, …]``.
    """
    if not has_own_prompts(inputs):
        return said
    further = inputs[_MASK].sum(1) - inputs["attention_mask"].sum(1)
    ids = inputs["input_ids"]
    places = torch.arange(ids.shape[1], device=ids.device) + further.unsqueeze(1)
    places = places.clamp(0, inputs[_IDS].shape[1] - 1)
    rows = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    if isinstance(said, Hidden):
        return Hidden(said.states[rows, places], said.head, said.outputs)
    return said[rows, places]


def unpadded_prompt(
    inputs: Mapping[str, torch.Tensor], row: int, answer: int
) -> list[int]:
    """The teacher's prompt in a row of a batch.

    Args:
        inputs: The batch.
        row: Which of its rows.
        answer: How many tokens stand behind the prompt, the student's and this one.
    """
    ids = inputs[_IDS][row][inputs[_MASK][row].bool()].tolist()
    found: list[int] = ids[: len(ids) - answer]
    return found
