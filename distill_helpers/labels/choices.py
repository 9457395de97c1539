"""The teacher's own choices, token by token: hard labels without text.

Taught in notebook 02.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_helpers.data import refuse_padding
from distill_helpers.models import (
    eval_mode,
)

if TYPE_CHECKING:
    from datasets import Dataset


def relabel(
    rows: Dataset,
    teacher: nn.Module,
    *,
    how: str,
    seed: int = 0,
    batch_size: int = 16,
) -> Dataset:
    """Replace every label by the teacher's own choice at that position.

    The text that the teacher reads stays the same; only what the student should say
    next changes. This is the token-level form of hard labels.

    Args:
        rows: Rows of one length with ``input_ids``, none of it masked.
        teacher: Read in eval mode.
        how: ``"argmax"`` takes the likeliest token, ``"sample"`` draws one from the
            teacher's distribution at T = 1.
        seed: Decides the draws.
        batch_size: Rows per forward pass.

    Returns:
        The rows with a ``labels`` column (unshifted: label t + 1 belongs to the
        distribution at t).
    """
    if how not in ("argmax", "sample"):
        raise ValueError(f"how={how!r} must be 'argmax' or 'sample'")
    rows = rows.with_format("torch")
    if "attention_mask" in rows.column_names:
        refuse_padding(rows["attention_mask"])
    device = next(teacher.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    labels: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        ids = rows[start : start + batch_size]["input_ids"]
        if not torch.is_tensor(ids):
            raise ValueError("rows differ in length; pack them into rows of one length")
        ids = ids.to(device)
        with torch.no_grad(), eval_mode(teacher):
            logits = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float()
        if how == "argmax":
            chosen = logits.argmax(-1)
        else:
            flat = logits.softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(flat, 1, generator=generator)
            chosen = drawn.view(ids[:, 1:].shape)
        labels += torch.cat([ids[:, :1], chosen], 1).tolist()
    rows = rows.with_format(None)
    if "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    return rows.add_column("labels", labels)
