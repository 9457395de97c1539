"""Let a model answer, and count the answers that are exactly right.

Used from notebook 02 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distill_helpers.machine import progress_bar
from distill_helpers.models import generate_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    bar = progress_bar(total=len(order), desc="writing", unit="text", leave=False)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        written = generate_batch(
            model,
            tokenizer,
            [encoded[index] for index in chosen],
            max_new_tokens=max_new_tokens,
        )
        for index, found in zip(chosen, written, strict=True):
            texts[index] = str(tokenizer.decode(found.ids, skip_special_tokens=True))
        bar.update(len(chosen))
    bar.close()
    return texts
