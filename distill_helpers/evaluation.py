"""Yardsticks: how good a student is, and how like its teacher.

Every number comes with the count of positions it rests on. Taught in notebook 02,
which shows that the yardsticks can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_helpers.data import collator_for, token_bytes
from distill_helpers.generation import eval_mode, write_batch
from distill_helpers.losses import IGNORE_INDEX, token_divergence

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        nll: Mean negative log-likelihood of the labels, nats per token.
        bits_per_byte: The same in bits per byte of text; comparable between
            tokenizers. ``nan`` if the counted tokens stand for no bytes.
        accuracy: Share of positions whose likeliest token is the label.
        ece: Expected calibration error of the likeliest token, 15 bins of equal
            width, in [0, 1] (Guo et al. 2017, arXiv:1706.04599).
        kl_to_teacher: Mean KL(p_T ‖ p_S) at T = 1, nats per token; ``None`` without a
            teacher.
        agreement: Share of positions where teacher and student have the same
            likeliest token; ``None`` without a teacher.
        tokens: Positions counted.
        bytes: Bytes of text that these positions stand for.
        temperature: The student's logits were divided by this (1: as they are).
    """

    nll: float
    bits_per_byte: float
    accuracy: float
    ece: float
    kl_to_teacher: float | None
    agreement: float | None
    tokens: int
    bytes: int
    temperature: float = 1.0


def evaluate(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: nn.Module | None = None,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> Evaluation:
    """Measure a model on held-out rows.

    Args:
        model: Put into eval mode for the measurement, then back, as is the teacher.
        rows: With ``input_ids`` and optionally ``labels``.
        tokenizer: Byte-level; pads, and counts bytes.
        teacher: To compare distributions with.
        temperature: Divide the student's logits by this first, see
            :func:`fit_temperature`.
        batch_size: Rows per forward pass.

    Raises:
        ValueError: If no position counts.

    Taught in notebook 02.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a positive number")
    sizes = token_bytes(tokenizer)
    sums = torch.zeros(5, dtype=torch.float64)
    confidence_sum = torch.zeros(_CALIBRATION_BINS, dtype=torch.float64)
    correct_sum = torch.zeros_like(confidence_sum)
    tokens = byte_count = 0
    for logits, teacher_logits, targets in _batches(
        model, rows, tokenizer, teacher, batch_size
    ):
        log_p = (logits / temperature).log_softmax(-1)
        confidence, guess = log_p.max(-1)
        confidence = confidence.exp()
        correct = guess == targets
        sums[0] -= log_p.gather(-1, targets.unsqueeze(-1)).double().sum().cpu()
        sums[1] += correct.sum().cpu()
        if teacher_logits is not None:
            divergence = token_divergence(log_p, teacher_logits)
            sums[2] += divergence.double().sum().cpu()
            sums[3] += (guess == teacher_logits.argmax(-1)).sum().cpu()
        bins = (confidence * _CALIBRATION_BINS).long().clamp(max=_CALIBRATION_BINS - 1)
        bins = bins.cpu()
        confidence_sum.index_add_(0, bins, confidence.double().cpu())
        correct_sum.index_add_(0, bins, correct.double().cpu())
        tokens += targets.numel()
        byte_count += int(sizes[targets.cpu()].sum())
    _refuse_nothing_counted(tokens)
    return Evaluation(
        nll=float(sums[0]) / tokens,
        bits_per_byte=(
            float(sums[0]) / math.log(2) / byte_count if byte_count else math.nan
        ),
        accuracy=float(sums[1]) / tokens,
        ece=float((confidence_sum - correct_sum).abs().sum()) / tokens,
        kl_to_teacher=None if teacher is None else float(sums[2]) / tokens,
        agreement=None if teacher is None else float(sums[3]) / tokens,
        tokens=tokens,
        bytes=byte_count,
        temperature=temperature,
    )


def held_out_nll(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> float:
    """Mean negative log-likelihood of the labels, nats per token; nothing else.

    Args:
        model: As in :func:`evaluate`.
        rows: With ``input_ids`` and optionally ``labels``.
        tokenizer: Pads.
        temperature: Divide the logits by this first.
        batch_size: Rows per forward pass.
    """
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for logits, _, targets in _batches(model, rows, tokenizer, None, batch_size):
        loss = nn.functional.cross_entropy(
            logits / temperature, targets, reduction="sum"
        )
        total += loss.double().cpu()
        tokens += targets.numel()
    _refuse_nothing_counted(tokens)
    return float(total) / tokens


def fit_temperature(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
) -> float:
    """The one temperature that minimises the NLL of the labels.

    Fit it on validation rows and hand it to :func:`evaluate`: what a student gains
    by being better calibrated disappears, what it gains by knowing more stays.

    Returns:
        A temperature in [0.25, 4].

    Paper: Guo et al. 2017 (arXiv:1706.04599). Taught in notebook 02.
    """
    # One forward pass serves all candidates; the NLL is smooth in log T, so a
    # parabola through the best three finds the minimum between them.
    log_t = torch.linspace(-2, 2, 17, dtype=torch.float64)
    totals = torch.zeros_like(log_t)
    tokens = 0
    for logits, _, targets in _batches(model, rows, tokenizer, None, batch_size):
        for index, temperature in enumerate((2**log_t).tolist()):
            loss = nn.functional.cross_entropy(
                logits / temperature, targets, reduction="sum"
            )
            totals[index] += loss.double().cpu()
        tokens += targets.numel()
    _refuse_nothing_counted(tokens)
    best = int(totals[1:-1].argmin()) + 1
    left, middle, right = totals[best - 1 : best + 2].tolist()
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    step = float(log_t[1] - log_t[0])
    return float(2 ** (log_t[best] + step * max(-1.0, min(1.0, shift))))


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    is_right: Callable[[int, str], bool],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
) -> tuple[float, int]:
    """Share of prompts whose greedy continuation is right.

    Args:
        model: Generates with its cache.
        tokenizer: Its tokenizer.
        prompts: What to continue.
        is_right: Called with the prompt's index and the continuation (without
            special tokens).
        max_new_tokens: Longest continuation.
        batch_size: Prompts per call of ``generate``.

    Returns:
        The share in [0, 1], and the count of prompts.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to judge")
    texts = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    right = sum(is_right(index, text) for index, text in enumerate(texts))
    return right / len(prompts), len(prompts)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
) -> list[str]:
    """Greedy continuations, padded on the left, without special tokens."""
    if not prompts:
        return []
    # Prompts of one length need no padding, so they go together.
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        written = write_batch(
            model,
            tokenizer,
            [encoded[index] for index in chosen],
            max_new_tokens=max_new_tokens,
        )
        for index, found in zip(chosen, written, strict=True):
            texts[index] = str(tokenizer.decode(found.ids, skip_special_tokens=True))
    return texts


def _refuse_nothing_counted(tokens: int) -> None:
    if tokens == 0:
        raise ValueError("rows hold no position that counts: every label is masked")


def _batches(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None,
    batch_size: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """Yield counted fp32 logits, the teacher's at the same places, and targets."""
    if "position_ids" in rows.column_names:
        raise ValueError(
            "rows come from pack_examples; judge the examples themselves, one to a row"
        )
    collate = collator_for(tokenizer)
    device = next(model.parameters()).device
    width = len(tokenizer)
    with eval_mode(model, teacher):
        for start in range(0, len(rows), batch_size):
            columns = rows[start : start + batch_size]
            known = ("input_ids", "labels", "attention_mask")
            names = [name for name in known if name in columns]
            batch = collate(
                [
                    dict(zip(names, values, strict=True))
                    for values in zip(*(columns[n] for n in names), strict=True)
                ]
            )
            batch = {name: value.to(device) for name, value in batch.items()}
            targets = batch["labels"][:, 1:].flatten()
            counted = (targets != IGNORE_INDEX).nonzero().squeeze(-1)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

            def logits_of(
                network: nn.Module,
                inputs: dict[str, torch.Tensor] = inputs,
                counted: torch.Tensor = counted,
            ) -> torch.Tensor:
                with torch.inference_mode():
                    logits = network(**inputs, use_cache=False).logits[:, :-1]
                logits = logits.flatten(0, 1).index_select(0, counted)
                return logits[:, :width].float()

            yield (
                logits_of(model),
                None if teacher is None else logits_of(teacher),
                targets.index_select(0, counted),
            )
