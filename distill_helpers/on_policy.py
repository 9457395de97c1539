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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_helpers.data import collator_for
from distill_helpers.generation import Written, eval_mode, model_ends, write_batch
from distill_helpers.limits import Readers, reading_device
from distill_helpers.losses import IGNORE_INDEX, token_divergence
from distill_helpers.models import RememberingTeacher, vocabulary_size
from distill_helpers.trainers import SoftLabelTrainer

# Repetition is counted in runs of so many tokens.
_RUN = 4
# Rows whose logits are held at a time.
_SCORED = 8


class OnPolicyTrainer(SoftLabelTrainer):
    """Distil on text that the student writes while it learns.

    Every row is a prompt with an answer, from ``mask_prompts`` or ``learn_answers``.
    In a share of the rows the answer is replaced by what the student writes to the
    prompt; the loss is the divergence from the teacher at each written token. No
    gradient flows through the writing: which token was drawn is taken as given.

    What is drawn follows from ``args.seed``, the step and the row's place in it: a
    resumed run writes what an uninterrupted one would have, and so do two processes
    that share a step.

    With an ``eval_dataset``, ``eval_loss`` is the same divergence on the rows' own
    answers, which nobody rewrites.

    Args:
        model: The student.
        teacher: A model; stored soft labels know nothing of the student's text. Of a
            ``RememberingTeacher``, the teacher inside: no text comes twice.
        max_new_tokens: Where an answer is cut off.
        on_policy_share: Of rows with the student's own text, in [0, 1]; GKD's λ. The
            others keep their answers: 0 is ``SoftLabelTrainer``. At 1, prompts alone
            will do: rows in which nothing is learned.
        sampling_temperature: Of the student's softmax when it writes; 0 takes the
            likeliest token.
        divergence: ``"reverse_kl"``, ``"jsd"`` or ``"forward_kl"``.
        beta: Of the JSD.
        temperature: Of both softmaxes in the divergence.
        options: As for :class:`~distill_helpers.trainers.SoftLabelTrainer`, without
            ``alpha``: cross-entropy with a student's own text teaches it nothing.

    Logs, beside the loss and its soft term: ``written_tokens`` and ``ended``, an
    answer's mean length and the share that the student ended by itself; and
    ``writing_seconds``, which a process spent on it since the last log.
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
        if isinstance(teacher, RememberingTeacher):
            teacher = teacher.teacher
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
                f"sampling_temperature={sampling_temperature} must be 0 or a positive "
                "number"
            )
        if "alpha" in options:
            raise ValueError(
                f"alpha={options['alpha']} has no meaning here: labels would be the "
                "student's own text; mix in the rows' answers with on_policy_share"
            )
        super().__init__(
            model, teacher=teacher, alpha=1.0, divergence=divergence, **options
        )
        self._refuse_spread_weights("a student cannot write")
        self.max_new_tokens = max_new_tokens
        self.on_policy_share = on_policy_share
        self.sampling_temperature = sampling_temperature
        self._teacher_ends = model_ends(teacher)
        self._nothing_written()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Fetch the batches of a step and let the student write its share."""
        batches = [
            self._rewritten(batch, number)
            for number, batch in enumerate(islice(epoch_iterator, num_batches))
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    def _rewritten(
        self, batch: Mapping[str, torch.Tensor], number: int
    ) -> Mapping[str, torch.Tensor]:
        """The batch with the student's answers in its share of the rows.

        Args:
            batch: Of this process.
            number: Which micro-batch of the step it is.
        """
        if "position_ids" in batch:
            raise ValueError(
                "rows of pack_examples hold several examples; on-policy rows are one "
                "prompt and one answer each"
            )
        # One generator per row of the step: how a step is cut into micro-batches and
        # given to processes changes nothing.
        dealt = number * self.accelerator.num_processes + self.accelerator.process_index
        first = dealt * self.args.per_device_train_batch_size
        step = f"{self.args.seed}/{self.state.global_step}"
        rows = list(_unpadded(batch))
        draws = [random.Random(f"{step}/{first + place}") for place in range(len(rows))]
        # An empty text, which the collator makes a pad token of, has no prompt.
        tokenizer: Any = self.processing_class
        nothing = [collator_for(tokenizer).pad_token_id]
        filled = [row["input_ids"] not in ([], nothing) for row in rows]
        own = [
            draw.random() < self.on_policy_share and there
            for draw, there in zip(draws, filled, strict=True)
        ]
        if any(
            there and not mine and set(row["labels"]) == {IGNORE_INDEX}
            for there, mine, row in zip(filled, own, rows, strict=True)
        ):
            raise ValueError(
                "a row has no answer to keep; rows of prompts alone need "
                "on_policy_share=1"
            )
        if not any(own):
            return batch
        places = [place for place, mine in enumerate(own) if mine]
        prompts = [prompt_of(rows[place]) for place in places]
        written = self._write(prompts, [draws[p].getrandbits(62) for p in places])
        for place, prompt, answer in zip(places, prompts, written, strict=True):
            rows[place] = join_row(prompt, answer.ids)
        return self.data_collator(rows)

    def _write(self, prompts: list[list[int]], seeds: list[int]) -> list[Written]:
        student: Any = self.model
        tokenizer: Any = self.processing_class
        # All of a text is read afterwards, and as long as this it may become.
        longest = max(len(prompt) for prompt in prompts)
        self._readers.check_length(longest + self.max_new_tokens)
        began = time.perf_counter()
        with self.accelerator.autocast():
            written = write_batch(
                student,
                tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                temperature=self.sampling_temperature,
                seeds=seeds,
                more_ends=self._teacher_ends,
            )
        self._seconds += time.perf_counter() - began
        self._texts += len(written)
        self._tokens += sum(len(one.ids) for one in written)
        self._ended += sum(one.ended for one in written)
        return written

    def _forget_run(self) -> None:
        super()._forget_run()
        self._nothing_written()

    def _nothing_written(self) -> None:
        self._texts, self._tokens, self._ended, self._seconds = 0, 0, 0, 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was written to a training log."""
        found: dict[str, float] = {}
        if "loss" in logs:
            mine = torch.tensor(
                [self._texts, self._tokens, self._ended, self._seconds],
                device=self.accelerator.device,
            )
            every: Any = self.accelerator.reduce(mine, "sum")
            texts, tokens, ended, seconds = every.tolist()
            if texts:
                found = {
                    "written_tokens": tokens / texts,
                    "ended": ended / texts,
                    "writing_seconds": seconds / self.accelerator.num_processes,
                }
            self._nothing_written()
        if self.on_policy_share:
            # The cross-entropy of the student's text with itself: it measures nothing.
            self._parts.pop("hard", None)
        super().log(logs | found, start_time)


def prompt_of(row: Mapping[str, list[int]]) -> list[int]:
    """What stands before the first token that a row learns.

    Args:
        row: ``input_ids`` and ``labels``, -100 where nothing is learned, unpadded.

    Raises:
        ValueError: If that is less than two tokens.
    """
    ids, labels = row["input_ids"], row["labels"]
    learned = (place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    start = next(learned, len(ids))
    # The collator masks the first token of every row, so one alone is no sign of it.
    if start < 2:
        raise ValueError(
            "a row has no prompt: its labels must be -100 for two tokens or more, and "
            "be learned from where the answer begins; use mask_prompts or learn_answers"
        )
    return ids[:start]


def join_row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of a prompt and what follows it."""
    return {
        "input_ids": [*prompt, *answer],
        "labels": [*[IGNORE_INDEX] * len(prompt), *answer],
    }


def _unpadded(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, list[int]]]:
    names = ("input_ids", "labels")
    masks = batch.get("attention_mask")
    if masks is None:  # of a collator that does not pad
        masks = torch.ones_like(batch["input_ids"])
    for row, mask in enumerate(masks.bool()):
        yield {name: batch[name][row][mask].tolist() for name in names}


# --- exposure bias ------------------------------------------------------------------


@dataclass(frozen=True)
class ExposureBias:
    """How much worse a student fares behind its own words than behind its teacher's.

    Attributes:
        student_prefix: Mean KL(p_T ‖ p_S) at the first, second, … written token, after
            what the student wrote before it; in nats.
        teacher_prefix: The same after what the teacher wrote.
        counts: Positions that both have, by place; shorter texts have ended.
        student_entropy: Mean entropy of the teacher in the student's texts, in nats.
        teacher_entropy: In its own.
        student_repetition: Share of runs of four tokens that the same text has had
            before, in the student's texts.
        teacher_repetition: In the teacher's.
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
        student: Its texts and its distributions.
        teacher: Likewise.
        tokenizer: Of both.
        prompts: Token ids; each model writes once to each.
        max_new_tokens: Of a text.
        seed: Of the drawing, at temperature 1.
        batch_size: Prompts that are answered at a time.

    Taught in notebook 07. Ranzato et al. 2015 (arXiv:1511.06732) name the problem.
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
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            draws = [random.Random(f"{seed}/{start + i}") for i in range(len(part))]
            written = write_batch(
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
        for start in range(0, len(pairs), _SCORED):
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
