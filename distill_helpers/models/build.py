"""A small student of its own, with the teacher's vocabulary.

Used from notebook 00 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill_helpers.models.vocabularies import vocabulary_size

if TYPE_CHECKING:
    from transformers import (
        LlamaConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


def build_student(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int,
    width: int,
    heads: int | None = None,
    max_length: int = 512,
    initializer_range: float | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A fresh Llama-architecture model on a tokenizer's vocabulary.

    Args:
        tokenizer: There is an output for each of its ids.
        layers: Decoder layers.
        width: Hidden size; the feed-forward part is 8/3 times as wide, rounded up
            to a multiple of 32.
        heads: Attention heads. Default: heads of 32 dimensions (at least one).
        max_length: Longest sequence.
        initializer_range: Standard deviation of the random weights. Default:
            ``width ** -0.5``, as wide models have it; Llama's fixed 0.02 makes small
            ones start slowly.
        seed: Decides the random weights; the global random state stays as it was.

    Returns:
        A trainable fp32 model, input and output embeddings tied.
    """
    from transformers import LlamaForCausalLM

    config = student_config(
        vocabulary_size(tokenizer),
        layers=layers,
        width=width,
        heads=heads,
        max_length=max_length,
        initializer_range=initializer_range,
    )
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed every GPU.
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    # Only now: an embedding does not learn its padding row, and padding is often the
    # end-of-text token, which has to be learned.
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
    return model


def student_config(
    vocabulary: int,
    *,
    layers: int,
    width: int,
    heads: int | None = None,
    max_length: int = 512,
    initializer_range: float | None = None,
) -> LlamaConfig:
    """The shape of what :func:`build_student` builds, without special tokens.

    Args:
        vocabulary: The number of tokens.

    Same as in :func:`build_student`: ``layers``, ``width``, ``heads``, ``max_length``,
    ``initializer_range``.

    Raises:
        ValueError: If the sizes do not go together.
    """
    from transformers import LlamaConfig

    heads = heads or max(1, width // 32)
    if layers < 1 or width < 1 or width % heads or (width // heads) % 2:
        raise ValueError(
            f"layers={layers}, width={width}, heads={heads}: width must be heads "
            "times an even number, and there must be a layer"
        )
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=initializer_range or width**-0.5,
    )
