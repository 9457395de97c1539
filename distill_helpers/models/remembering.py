"""A frozen teacher that computes every row once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
    )


class RememberingTeacher(nn.Module):
    """A frozen teacher that computes every row once.

    For small studies in which many students learn from one teacher on the same rows.
    Rows are recognised by their ids, so data order is free; logits are kept in fp16.
    Storing soft labels for good is another matter: notebook 04.

    Args:
        teacher: A causal model, called as ``teacher(input_ids=…).logits``. Rows may
            be padded on the right, where padding reaches no counted position.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        super().__init__()
        self.teacher = teacher
        self.config = teacher.config
        self._rows: dict[bytes, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """Return logits ``[rows, positions, vocabulary]``, fp32."""
        if "position_ids" in options:
            raise ValueError(
                "a RememberingTeacher reads whole rows, and rows of pack_examples "
                "hold several examples; pass the teacher itself"
            )
        from transformers.modeling_outputs import CausalLMOutput

        keys = [row.numpy(force=True).tobytes() for row in input_ids]
        new = [index for index, key in enumerate(keys) if key not in self._rows]
        if new:
            with torch.no_grad():
                logits = self.teacher(input_ids=input_ids[new], use_cache=False).logits
            for index, row in zip(new, logits.half(), strict=True):
                self._rows[keys[index]] = row
        return CausalLMOutput(logits=torch.stack([self._rows[k] for k in keys]).float())
