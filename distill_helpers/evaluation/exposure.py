"""Exposure bias: how a student fares behind its own words.

Taught in notebook 08. Ranzato et al. 2015 (arXiv:1511.06732) name the problem.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_helpers.data import collator_for
from distill_helpers.data.prompts import join_row
from distill_helpers.losses import token_divergence
from distill_helpers.machine import progress_bar
from distill_helpers.models import (
    Readers,
    eval_mode,
    generate_batch,
    model_ends,
    reading_device,
    vocabulary_size,
)

# Repetition is counted in runs of so many tokens.
_RUN = 4
# Rows whose logits are held at a time.
_SCORED = 8


@dataclass(frozen=True)
class ExposureBias:
    """How much worse a student fares behind its own words than behind its teacher's.

    Attributes:
        student_prefix: Mean KL(p_T ‖ p_S) at the first, second, … written token, after
            what the student wrote before it; in nats.
        teacher_prefix: Mean KL(p_T ‖ p_S) at the same places, after what the teacher
            wrote before them; in nats.
        counts: Positions that both have, by place; shorter texts have ended.
        student_entropy: Mean entropy of the teacher in the student's texts, in nats.
        teacher_entropy: Mean entropy of the teacher in its own texts, in nats.
        student_repetition: Share of runs of four tokens that the same text has had
            before, in the student's texts.
        teacher_repetition: That share in the teacher's texts.
    """

    student_prefix: tuple[float, ...]
    teacher_prefix: tuple[float, ...]
    counts: tuple[int, ...]
    student_entropy: float
    teacher_entropy: float
    student_repetition: float
    teacher_repetition: float

    @property
    def excess(self) -> float:
        """Mean difference of the two at equal places, from the second on.

        The first has the same prefix, the prompt. Read it beside entropy and
        repetition: a student that has shrunk to few, easy words can have a small or
        even a negative one.
        """
        own, his, counts = self.student_prefix, self.teacher_prefix, self.counts
        places = range(1, len(counts))
        total = sum(counts[place] for place in places)
        gaps = (counts[place] * (own[place] - his[place]) for place in places)
        return sum(gaps) / total if total else 0.0


def measure_exposure(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 64,
) -> ExposureBias:
    """Let both write, and compare the student's distribution with the teacher's.

    The teacher's NLL of a student's text would be no measure: it is low for loops.

    Args:
        student: The model whose own words are looked at.
        teacher: The model that it learned from, on the same device or another.
        tokenizer: The tokenizer that both share.
        prompts: Token ids; each model writes once to each.
        max_new_tokens: The most tokens that a text may have.
        seed: Decides what is drawn, at temperature 1.
        batch_size: Prompts that are answered at a time.

    Taught in notebook 08. Ranzato et al. 2015 (arXiv:1511.06732) name the problem.
    """
    if not prompts:
        raise ValueError("prompts is empty; pass at least one list of token ids")
    ends = (*model_ends(student), *model_ends(teacher))
    readers = Readers({"student": student, "teacher": teacher})
    readers.check_length(max(len(prompt) for prompt in prompts) + max_new_tokens)
    readers.check_pad(collator_for(tokenizer).pad_token_id)
    vocabulary = vocabulary_size(tokenizer)

    def write(writer: PreTrainedModel) -> list[list[int]]:
        texts: list[list[int]] = []
        starts = range(0, len(prompts), batch_size)
        for start in progress_bar(starts, desc="writing", unit="batch", leave=False):
            part = prompts[start : start + batch_size]
            draws = [random.Random(f"{seed}/{start + i}") for i in range(len(part))]
            written = generate_batch(
                writer,
                tokenizer,
                part,
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                seeds=[draw.getrandbits(62) for draw in draws],
                more_ends=ends,
            )
            texts += [one.ids for one in written]
        return texts

    def judge(texts: list[list[int]]) -> torch.Tensor:
        """By place: sums of KL and of the teacher's entropy, and their number."""
        sums = torch.zeros(3, max_new_tokens, dtype=torch.float64)
        pairs = list(zip(prompts, texts, strict=True))
        starts = range(0, len(pairs), _SCORED)
        for start in progress_bar(starts, desc="judging", unit="batch", leave=False):
            judged = pairs[start : start + _SCORED]
            places, found = _judge(student, teacher, tokenizer, judged, vocabulary)
            sums.index_add_(1, places, found)
        return sums

    texts = [write(student), write(teacher)]
    sums = torch.stack([judge(written) for written in texts])
    kl, entropy, counts = sums.unbind(1)
    # Counts never rise: a text that has ended stays ended.
    fewer = counts.min(0).values
    both = fewer[fewer > 0].int().tolist()
    own, his = (kl / counts)[:, : len(both)].tolist()
    own_entropy, his_entropy = (entropy.sum(1) / counts.sum(1)).tolist()
    return ExposureBias(
        student_prefix=tuple(own),
        teacher_prefix=tuple(his),
        counts=tuple(both),
        student_entropy=own_entropy,
        teacher_entropy=his_entropy,
        student_repetition=_repetition(texts[0]),
        teacher_repetition=_repetition(texts[1]),
    )


def _judge(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Sequence[int], list[int]]],
    vocabulary: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every written token of some prompts and texts.

    Returns:
        Its place in its text; and KL(p_T ‖ p_S), the teacher's entropy, and 1:
        ``[3, tokens]``.
    """
    batch = collator_for(tokenizer)([join_row(*pair) for pair in pairs])
    rows = [row for row, (_, text) in enumerate(pairs) for _ in text]
    places = [place for _, text in pairs for place in range(len(text))]
    # The position before a token is the one that predicts it.
    before = [len(prompt) - 1 for prompt, text in pairs for _ in text]
    positions = [first + place for first, place in zip(before, places, strict=True)]

    def logits_of(model: PreTrainedModel) -> torch.Tensor:
        device = reading_device(model)
        ids, mask = (batch[name].to(device) for name in ("input_ids", "attention_mask"))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[rows, positions, :vocabulary].float().cpu()

    with eval_mode(student, teacher), torch.inference_mode():
        theirs = logits_of(teacher)
        divergence = token_divergence(logits_of(student), theirs)
        entropy = torch.distributions.Categorical(logits=theirs).entropy()
    found = torch.stack([divergence, entropy, torch.ones_like(entropy)])
    return torch.tensor(places), found.double()


def _repetition(texts: Sequence[Sequence[int]]) -> float:
    """Share of runs of four tokens that came before in the same text."""
    again = total = 0
    for text in texts:
        runs = [tuple(text[i : i + _RUN]) for i in range(len(text) - _RUN + 1)]
        total += len(runs)
        again += len(runs) - len(set(runs))
    return again / total if total else 0.0
