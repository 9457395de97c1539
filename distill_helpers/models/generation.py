"""Letting a causal model write: batches, padding on the left, seeds per answer.

Used by :mod:`distill_helpers.evaluation` and
:class:`~distill_helpers.labels.LocalTeacher`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from distill_helpers.models.base import eval_mode
from distill_helpers.models.limits import Limits, check_ids, input_rows, reading_device
from distill_helpers.models.vocabularies import vocabulary_size


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
        ids: Token ids, with the one that ended it.
        ended: Whether it ended by itself, rather than being cut off.
    """

    ids: list[int]
    ended: bool


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    more_ends: Sequence[int] = (),
    min_new_tokens: int = 0,
) -> list[Generation]:
    """Continue one batch of prompts.

    Of a head with more rows than the tokenizer has tokens, only those are written.

    Args:
        model: Read in eval mode, without gradients.
        tokenizer: Pads, and knows the end-of-text token.
        prompts: Token ids, each at least one.
        max_new_tokens: Where each is cut off.
        temperature: 0 takes the likeliest token; else tokens are drawn from the
            softmax at this temperature, nothing cut off.
        seeds: One per prompt for drawing. A prompt's text follows from its own seed,
            whatever else is in the batch, up to rounding.
        more_ends: Tokens that end a text, beside those of :func:`end_tokens`.
        min_new_tokens: Before so many, none of these is written; for timing.

    Raises:
        ValueError: If the model has no embedding for a prompt's ids, no position for
            the longest text, or no token that ends one.
    """
    ends = tuple(dict.fromkeys((*end_tokens(model, tokenizer), *more_ends)))
    if not ends:
        raise ValueError(
            "neither the tokenizer nor the model knows a token that ends a text; set "
            "tokenizer.eos_token"
        )
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(
            "prompts must hold at least one token each; begin an empty one with "
            "tokenizer.bos_token_id"
        )
    length = max(len(prompt) for prompt in prompts)
    limits = Limits.of("model", model)
    limits.check_ids(max(max(prompt) for prompt in prompts), "a prompt")
    if limits.tabled:
        # The last token is written, and not read any more.
        limits.check_length(length + max_new_tokens - 1)
    pad = _pad(model, tokenizer, ends)
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    processors = LogitsProcessorList([_VocabularyLimit(vocabulary_size(tokenizer))])
    device = reading_device(model)
    if temperature:
        if seeds is None or len(seeds) != len(prompts):
            raise ValueError("drawing needs seeds, one per prompt")
        processors.append(_GumbelSampling(temperature, seeds, device))
    generator: Any = model
    with (
        eval_mode(model),
        _plain_settings(model),
        _whole_head_input(model),
        torch.inference_mode(),
    ):
        output = generator.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=processors,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens or None,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=list(ends),
            ),
        )
    return [_until_end(row, ends) for row in output[:, length:].tolist()]


def _pad(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> int:
    """What fills a batch: nobody looks at it, but the model must have it."""
    rows = input_rows(model)
    pads = [tokenizer.pad_token_id, *ends]
    found = [pad for pad in pads if pad is not None and (rows is None or pad < rows)]
    if not found:
        check_ids("model", model, min(ends), "the token that ends a text")
    return found[0]


def end_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's, the model's, and the chat template's.

    A base model that learned a template's answers ends them as the template does,
    which neither its tokenizer nor its settings need know.
    """
    found = [tokenizer.eos_token_id, *model_ends(model), _turn_end(tokenizer)]
    return tuple(dict.fromkeys(end for end in found if end is not None))


def model_ends(model: nn.Module) -> tuple[int, ...]:
    """Tokens that end a text by the model's own settings."""
    settings = getattr(model, "generation_config", None)
    known = getattr(settings, "eos_token_id", None)
    return (known,) if isinstance(known, int) else tuple(known or ())


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token behind an answer in the chat template, if there is one."""
    if not tokenizer.chat_template:
        return None
    answer = "The answer."
    turns = [
        {"role": "user", "content": "A question?"},
        {"role": "assistant", "content": answer},
    ]
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, ValueError):
        return None  # it wants more than two turns; the other ends have to do
    _, found, behind = whole.rpartition(answer)
    closing = closing_tokens(behind, tokenizer) if found else []
    return closing[-1] if closing else None


def closing_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a template puts behind an answer, up to the token that ends the turn.

    Empty if no special token is among it.
    """
    added = tokenizer.added_tokens_decoder
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place, token in enumerate(ids):
        if token == tokenizer.eos_token_id or (token in added and added[token].special):
            return ids[: place + 1]
    return []


@contextmanager
def _plain_settings(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own settings, which may cut tokens off or punish repeats.

    ``generate`` fills whatever is not given from them. Afterwards every module has
    its own again: a wrapper (PEFT) hands its settings on to the model inside.
    """
    name = "generation_config"
    own = {
        module: vars(module)[name] for module in model.modules() if name in vars(module)
    }
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module in model.modules():
            vars(module).pop(name, None)
        for module, settings in own.items():
            vars(module)[name] = settings


@contextmanager
def _whole_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Hand the head a tensor without gaps.

    ``generate`` cuts the last position out of each prompt. Multiplying such a slice on
    a CPU copies the head's weights once per row, which takes longer than the prompt.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


def _until_end(ids: list[int], ends: tuple[int, ...]) -> Generation:
    for place, token in enumerate(ids):
        if token in ends:
            return Generation(ids[: place + 1], ended=True)
    return Generation(ids, ended=False)


class _VocabularyLimit(LogitsProcessor):
    """Rules out the padding rows of a head, which stand for no token."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        if scores.shape[-1] > self.tokens:
            scores[:, self.tokens :] = -torch.inf
        return scores


class _GumbelSampling(LogitsProcessor):
    """Gumbel noise on the logits: the largest is then a draw from their softmax.

    So each row can have a random generator of its own, which one call that draws for
    the whole batch cannot offer.
    """

    def __init__(
        self, temperature: float, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        noisy: Any = scores.float() / self.temperature - noise.log_()
        return noisy
