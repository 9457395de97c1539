"""Logits of some positions, a block of rows at a time.

Logits are multiplied out block by block, and once more for the gradient, so that those
of all positions never exist at once. For losses between tokenizers, taught in
notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from distill_helpers.losses.targets import Hidden

# Logits of a block of rows, of one model.
BLOCK_NUMBERS = {"cpu": 2**24, "cuda": 2**27}
LEAST_ROWS = 16


@dataclass(frozen=True)
class Rows:
    """Some positions of a model: their hidden states and head, or logits.

    Attributes:
        hidden: The states of these positions and the head; ``None`` with logits.
        values: ``[positions, features]`` states, or ``[positions, vocabulary]`` logits.
    """

    hidden: Hidden | None
    values: torch.Tensor

    @classmethod
    def of(cls, model: torch.Tensor | Hidden, rows: torch.Tensor) -> Rows:
        """Take some positions, counted over all rows, of what a model said."""
        if isinstance(model, Hidden):
            # Cut here, once, and not in every block.
            head = model.head.cut(model.vocabulary)
            states = model.states.flatten(0, -2).index_select(0, rows)
            return cls(Hidden(states, head), states)
        return cls(None, model.flatten(0, -2).index_select(0, rows))

    @property
    def vocabulary(self) -> int:
        """The number of outputs."""
        return self.values.shape[-1] if self.hidden is None else self.hidden.vocabulary

    def logits(self, part: slice) -> torch.Tensor:
        """The logits ``[rows, vocabulary]`` of a block, at least in fp32."""
        logits = self.values[part]
        if self.hidden is not None:
            logits = self.hidden.head.logits(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def by_blocks(
    function: Callable[..., torch.Tensor],
    models: list[Rows],
    more: torch.Tensor,
) -> torch.Tensor:
    """Join what a function makes of the logits of each block of rows.

    With more blocks than one, logits are not kept for the gradient, but multiplied out
    a second time.

    Args:
        function: Takes each model's logits ``[rows, vocabulary]`` in fp32, and as many
            places of ``more``; returns one number, or several, for each row.
        models: The positions of one model or two.
        more: One value for each position, such as the token that comes there.
    """
    count, device = len(more), more.device.type
    numbers = BLOCK_NUMBERS.get(device, BLOCK_NUMBERS["cpu"])
    size = max(LEAST_ROWS, numbers // max(model.vocabulary for model in models))

    def block(part: slice) -> torch.Tensor:
        return function(*(model.logits(part) for model in models), more[part])

    parts = [slice(start, start + size) for start in range(0, max(count, 1), size)]
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([block(part) for part in parts])
    return torch.cat(
        [
            checkpoint(block, part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
    )


def token_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log-probability, per row of logits, of one token each."""
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
