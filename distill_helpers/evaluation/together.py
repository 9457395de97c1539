"""How models that were trained together compare, and how much two runs differ.

For peers, which notebook 07 names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_helpers.evaluation.scores import evaluate

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class PartnerComparison:
    """How models that were trained together compare on held-out rows.

    Attributes:
        nll: Name to mean negative log-likelihood, nats per token.
        ensemble_nll: The same for the mean of all models' probabilities.
        kl: ``(of, to)`` to the mean KL(of ‖ to), nats per token.
        agreement: Share of positions where two have the same likeliest token, averaged
            over the pairs.
    """

    nll: dict[str, float]
    ensemble_nll: float
    kl: dict[tuple[str, str], float]
    agreement: float


class Ensemble(nn.Module):
    """The mean of several models' probabilities, as one model.

    Args:
        models: Models of one vocabulary, called as ``model(input_ids=…).logits``.
            Heads that are padded to different widths are cut to the narrowest.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models.values())

    def forward(self, **inputs: Any) -> Any:
        """Return log-probabilities as logits."""
        from transformers.modeling_outputs import CausalLMOutput

        logits = [model(**inputs).logits for model in self.models]
        width = min(one.shape[-1] for one in logits)
        log_p = [one[..., :width].float().log_softmax(-1) for one in logits]
        mean = torch.stack(log_p).logsumexp(0) - math.log(len(log_p))
        return CausalLMOutput(logits=mean)


def compare(
    models: Mapping[str, PreTrainedModel],
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
) -> PartnerComparison:
    """Measure models one by one, against each other, and together.

    Args:
        models: Name to model.
        rows: Held out, as for :func:`~distill_helpers.evaluation.evaluate`.
        tokenizer: The tokenizer that all models share.
        batch_size: Rows per forward pass.

    Raises:
        ValueError: For fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"models={sorted(models)}: at least two are needed")
    nll, kl, agreement = {}, {}, []
    for name, model in models.items():
        for other, teacher in models.items():
            if other != name:
                found = evaluate(
                    model, rows, tokenizer, teacher=teacher, batch_size=batch_size
                )
                nll[name] = found.nll
                assert found.kl_to_teacher is not None
                assert found.agreement is not None
                kl[other, name] = found.kl_to_teacher
                agreement.append(found.agreement)
    together = evaluate(Ensemble(models), rows, tokenizer, batch_size=batch_size)
    return PartnerComparison(nll, together.nll, kl, sum(agreement) / len(agreement))


def churn(
    one: nn.Module,
    other: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
) -> float:
    """Share of positions whose likeliest token differs between two training runs.

    Anil et al. 2018 found that co-distilled models have less of it.

    Args:
        one: The model that one run trained.
        other: The model that another run of the same recipe trained.
        rows: Held-out rows.
        tokenizer: The tokenizer that both models share.
        batch_size: Rows per forward pass.
    """
    found = evaluate(one, rows, tokenizer, teacher=other, batch_size=batch_size)
    assert found.agreement is not None
    return 1 - found.agreement
