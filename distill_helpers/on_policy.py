"""On-policy distillation: the student writes, the teacher judges every token.

A student that learns from finished texts never meets its own mistakes; when it writes,
it does. Here it writes answers to the rows' prompts at every step, and learns from the
teacher's distribution at each token of its own text (generalised knowledge
distillation: Agarwal et al. 2023, arXiv:2306.13649; reverse KL: Gu et al. 2023,
arXiv:2306.08543).

Taught in notebook 07.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_helpers.data import collator_for
from distill_helpers.generation import Written, eval_mode, write_batch
from distill_helpers.losses import IGNORE_INDEX, token_divergence
from distill_helpers.trainers import SoftLabelTrainer

# Repetition is counted in runs of so many tokens.
_RUN = 4


class OnPolicyTrainer(SoftLabelTrainer):
    """Distil on text that the student writes while it learns.

    Every row is a prompt with an answer, from ``mask_prompts`` or ``learn_answers``.
    In a share of the rows the answer is replaced by what the student writes to the
    prompt; the loss is the divergence from the teacher at each written token. No
    gradient flows through the writing: which token was drawn is taken as given.

    What is drawn follows from ``args.seed``, the step and the row's place in it, so a
    resumed run writes what an uninterrupted one would have.

    Args:
        model: The student.
        teacher: A model; stored soft labels know nothing of the student's text.
        max_new_tokens: Where an answer is cut off.
        on_policy_share: Of rows with the student's own text, in [0, 1]; GKD's λ. The
            others keep their answers: 0 is ``SoftLabelTrainer``.
        sampling_temperature: Of the student's softmax when it writes; 0 takes the
            likeliest token.
        divergence: ``"reverse_kl"``, ``"jsd"`` or ``"forward_kl"``.
        beta: Of the JSD.
        temperature: Of both softmaxes in the divergence.
        options: As for :class:`~distill_helpers.trainers.SoftLabelTrainer`, without
            ``alpha``: cross-entropy with a student's own text teaches it nothing.

    Logs, beside the loss: ``written_tokens`` and ``ended``, an answer's mean length
    and the share that the student ended by itself, and ``writing_seconds`` of the
    first process.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        teacher: nn.Module,
        max_new_tokens: int,
        on_policy_share: float = 1.0,
        sampling_temperature: float = 1.0,
        divergence: str = "reverse_kl",
        **options: Any,
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                "teacher must be a model: stored soft labels cannot judge text that "
                "the student has yet to write"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if not 0 <= on_policy_share <= 1:
            raise ValueError(f"on_policy_share={on_policy_share} must be in [0, 1]")
        if not 0 <= sampling_temperature < math.inf:
            raise ValueError(
                f"sampling_temperature={sampling_temperature} must not be negative"
            )
        if "alpha" in options:
            raise ValueError(
                f"alpha={options['alpha']} has no meaning here: labels would be the "
                "student's own text; mix in the rows' answers with on_policy_share"
            )
        super().__init__(
            model, teacher=teacher, alpha=1.0, divergence=divergence, **options
        )
        self.max_new_tokens = max_new_tokens
        self.on_policy_share = on_policy_share
        self.sampling_temperature = sampling_temperature
        self._written: list[Written] = []
        self._writing_seconds = 0.0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Fetch the batches of a step and let the student write its share."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        written, place = [], 0
        for batch in batches:
            written.append(self._rewritten(batch, place))
            place += len(batch["labels"])
        return written, self._get_num_items_in_batch(written, device)

    def _rewritten(
        self, batch: Mapping[str, torch.Tensor], place: int
    ) -> Mapping[str, torch.Tensor]:
        """The batch with the student's answers in its share of the rows."""
        if "position_ids" in batch:
            raise ValueError(
                "rows of pack_examples hold several examples; on-policy rows are one "
                "prompt and one answer each"
            )
        # One generator per row of the step: how a step is cut into micro-batches
        # changes nothing.
        process = self.accelerator.process_index
        step = f"{self.args.seed}/{self.state.global_step}/{process}"
        count = len(batch["labels"])
        draws = [random.Random(f"{step}/{place + row}") for row in range(count)]
        own = [draw.random() < self.on_policy_share for draw in draws]
        if not any(own):
            return batch
        rows = [split_row(*row) for row in _unpadded(batch)]
        began = time.perf_counter()
        student: Any = self.model
        tokenizer: Any = self.processing_class
        with self.accelerator.autocast():
            written = write_batch(
                student,
                tokenizer,
                [prompt for (prompt, _), mine in zip(rows, own, strict=True) if mine],
                max_new_tokens=self.max_new_tokens,
                temperature=self.sampling_temperature,
                seeds=[
                    draw.getrandbits(62)
                    for draw, mine in zip(draws, own, strict=True)
                    if mine
                ],
            )
        self._writing_seconds += time.perf_counter() - began
        self._written += written
        answers = iter(written)
        return self.data_collator(
            [
                join_row(prompt, next(answers).ids if mine else answer)
                for (prompt, answer), mine in zip(rows, own, strict=True)
            ]
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was written to a training log."""
        if "loss" in logs and self._written:
            count = len(self._written)
            logs["written_tokens"] = sum(len(w.ids) for w in self._written) / count
            logs["ended"] = sum(w.ended for w in self._written) / count
            logs["writing_seconds"] = self._writing_seconds
            self._written, self._writing_seconds = [], 0.0
        super().log(logs, start_time)


def split_row(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """A row's prompt, and the answer that follows.

    Args:
        ids: Of the row, without padding.
        labels: The same with -100 where nothing is learned.

    Raises:
        ValueError: If nothing stands before the answer.
    """
    learned = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    start = learned[0] if learned else len(ids)
    # The collator masks every row's first token, for nothing predicts it.
    if start < 2:
        raise ValueError(
            "a row has no prompt: its labels must begin with -100 and be learned from "
            "where the answer begins; use mask_prompts or learn_answers"
        )
    return ids[:start], ids[start:]


def join_row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of a prompt and what follows it."""
    return {
        "input_ids": [*prompt, *answer],
        "labels": [*[IGNORE_INDEX] * len(prompt), *answer],
    }


def _unpadded(
    batch: Mapping[str, torch.Tensor],
) -> Iterator[tuple[list[int], list[int]]]:
    for ids, labels, mask in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        size = int(mask.sum())
        yield ids[:size].tolist(), labels[:size].tolist()


# --- exposure bias ------------------------------------------------------------------


@dataclass(frozen=True)
class ExposureBias:
    """How much worse a student fares behind its own words than behind its teacher's.

    Attributes:
        student_prefix: Mean KL(p_T ‖ p_S) at the first, second, … written token, after
            what the student wrote before it; in nats.
        teacher_prefix: The same after what the teacher wrote.
        counts: Positions that both have, by place; shorter texts have ended.
        student_repetition: Share of runs of four tokens that the same text has had
            before, in the student's texts.
        teacher_repetition: In the teacher's.
    """

    student_prefix: tuple[float, ...]
    teacher_prefix: tuple[float, ...]
    counts: tuple[int, ...]
    student_repetition: float
    teacher_repetition: float

    @property
    def excess(self) -> float:
        """Mean difference of the two, at equal places; 0 is no exposure bias."""
        gaps = zip(self.student_prefix, self.teacher_prefix, self.counts, strict=True)
        return sum(n * (own - his) for own, his, n in gaps) / sum(self.counts)


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
        student: Its texts and its distributions.
        teacher: Likewise.
        tokenizer: Of both.
        prompts: Token ids; each model writes once to each.
        max_new_tokens: Of a text.
        seed: Of the drawing, at temperature 1.
        batch_size: Prompts at a time.

    Taught in notebook 07. Ranzato et al. 2015 (arXiv:1511.06732) name the problem.
    """
    if not prompts:
        raise ValueError("prompts is empty; pass at least one list of token ids")
    means, counts, repetition = [], [], []
    for writer in (student, teacher):
        texts = list(
            _write(writer, tokenizer, prompts, max_new_tokens, seed, batch_size)
        )
        sums = torch.zeros(2, max_new_tokens, dtype=torch.float64)
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            sums += _kl_by_place(
                student, teacher, tokenizer, prompts[part], texts[part], max_new_tokens
            )
        means.append((sums[0] / sums[1].clamp(min=1)).tolist())
        counts.append(sums[1].tolist())
        repetition.append(_repetition(texts))
    both = [int(min(pair)) for pair in zip(*counts, strict=True)]
    length = sum(n > 0 for n in both)
    return ExposureBias(
        student_prefix=tuple(means[0][:length]),
        teacher_prefix=tuple(means[1][:length]),
        counts=tuple(both[:length]),
        student_repetition=repetition[0],
        teacher_repetition=repetition[1],
    )


def _write(
    writer: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> Iterator[list[int]]:
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        written = write_batch(
            writer,
            tokenizer,
            part,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            seeds=[
                random.Random(f"{seed}/{start + i}").getrandbits(62)
                for i in range(len(part))
            ],
        )
        yield from (one.ids for one in written)


def _kl_by_place(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[list[int]],
    places: int,
) -> torch.Tensor:
    """Sums of KL(p_T ‖ p_S) and their number, by place: ``[2, places]``."""
    pairs = list(zip(prompts, texts, strict=True))
    batch = collator_for(tokenizer)([join_row(*pair) for pair in pairs])
    inputs = {
        name: batch[name].to(student.device) for name in ("input_ids", "attention_mask")
    }
    width = len(tokenizer)
    with eval_mode(student, teacher), torch.inference_mode():
        logits = [
            model(**inputs, use_cache=False).logits[..., :width].float()
            for model in (student, teacher)
        ]
        divergence = token_divergence(*logits).double().cpu()
    sums = torch.zeros(2, places, dtype=torch.float64)
    for row, (prompt, text) in zip(divergence, pairs, strict=True):
        # The position before a token is the one that predicts it.
        first = len(prompt) - 1
        sums[0, : len(text)] += row[first : first + len(text)]
        sums[1, : len(text)] += 1
    return sums


def _repetition(texts: Sequence[Sequence[int]]) -> float:
    """Share of runs of four tokens that came before in the same text."""
    again = total = 0
    for text in texts:
        runs = Counter(tuple(text[i : i + _RUN]) for i in range(len(text) - _RUN + 1))
        total += sum(runs.values())
        again += sum(runs.values()) - len(runs)
    return again / total if total else 0.0
