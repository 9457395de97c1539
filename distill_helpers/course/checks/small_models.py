"""The smallest language model there is, for checks of loops and steps."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class Bigrams(nn.Module):
    """What follows depends on the last token alone.

    Args:
        seed: Decides the logits.
        vocabulary: How many tokens there are.
    """

    def __init__(self, seed: int, vocabulary: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(vocabulary, vocabulary, generator=generator)
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Logits ``[rows, positions, vocabulary]``, as ``.logits``."""
        return SimpleNamespace(logits=self.table[input_ids])
