"""On-policy distillation: the student writes, the teacher judges every token.

A student that learns from finished texts never meets its own mistakes; when it writes,
it does. Here it writes answers to the rows' prompts at every step, and learns from the
teacher's distribution at each token of its own text (generalised knowledge
distillation: Agarwal et al. 2023, arXiv:2306.13649; reverse KL: Gu et al. 2023,
arXiv:2306.08543).

Taught in notebook 08.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from distill_helpers.data import (
    TEACHER_PROMPT,
    collator_for,
    first_learned,
    join_row,
    prompt_of,
)
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import (
    AdaptersOff,
    Generation,
    RememberingTeacher,
    generate_batch,
    model_ends,
)
from distill_helpers.trainers.alignment import has_own_prompts, unpadded_prompt
from distill_helpers.trainers.routes import ROUTE
from distill_helpers.trainers.soft_hard import SoftLabelTrainer


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
        teacher: A model, or ``AdaptersOff(model)``; stored soft labels know nothing of
            the student's text. Of a ``RememberingTeacher``, the teacher inside: no text
            comes twice. Where rows have a prompt for the teacher
            (:func:`~distill_helpers.data.add_teacher_prompts`), it reads the student's
            answer behind that. Or several by name, with a ``teacher_column``: what the
            student writes to a row's prompt is judged by the row's teacher. A token
            that ends a text for one of them ends it for all.
        max_new_tokens: Where an answer is cut off.
        on_policy_share: The share of rows that get the student's own text, in [0, 1];
            GKD's λ. The others keep their answers: 0 is ``SoftLabelTrainer``. At 1,
            prompts alone will do: rows in which nothing is learned.
        sampling_temperature: The student's temperature when it writes; 0 takes the
            likeliest token.
        divergence: ``"reverse_kl"``, ``"jsd"`` or ``"forward_kl"``.
        beta: The share of the teacher in the JSD's mixture, in [0, 1].
        temperature: The temperature of both softmaxes in the divergence, > 0.
        options: Keywords of :class:`~distill_helpers.trainers.SoftLabelTrainer`, but
            not ``alpha``: cross-entropy with one's own text teaches nothing.

    Logs, beside the loss and its soft term: ``written_tokens`` and ``ended``, an
    answer's mean length and the share that the student ended by itself; and
    ``writing_seconds``, which a process spent on it since the last log.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        teacher: nn.Module | AdaptersOff | Mapping[Any, nn.Module | AdaptersOff],
        max_new_tokens: int,
        on_policy_share: float = 1.0,
        sampling_temperature: float = 1.0,
        divergence: str = "reverse_kl",
        **options: Any,
    ) -> None:
        given = teacher if isinstance(teacher, Mapping) else {None: teacher}
        teachers = {
            name: one.teacher if isinstance(one, RememberingTeacher) else one
            for name, one in given.items()
        }
        usable = (nn.Module, AdaptersOff)
        if not all(isinstance(one, usable) for one in teachers.values()):
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
        if options.get("cross") is not None:
            raise ValueError(
                f"cross={options['cross']!r} needs rows that are aligned beforehand, "
                "and the student has yet to write these; take a teacher of the same "
                "tokenizer, or SoftLabelTrainer"
            )
        super().__init__(
            model,
            teacher=teachers if isinstance(teacher, Mapping) else teachers[None],
            alpha=1.0,
            divergence=divergence,
            **options,
        )
        self._refuse_spread_weights("a student cannot write")
        self.max_new_tokens = max_new_tokens
        self.on_policy_share = on_policy_share
        self.sampling_temperature = sampling_temperature
        writers = [
            model if isinstance(one, AdaptersOff) else one for one in teachers.values()
        ]
        self._teacher_ends = [end for one in writers for end in model_ends(one)]
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
            batch: This process's batch.
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
            rows[place] |= join_row(prompt, answer.ids)
        return self.data_collator(rows)

    def _write(self, prompts: list[list[int]], seeds: list[int]) -> list[Generation]:
        student: Any = self.model
        tokenizer: Any = self.processing_class
        # All of a text is read afterwards, and as long as this it may become.
        longest = max(len(prompt) for prompt in prompts)
        self._readers.check_length(longest + self.max_new_tokens)
        began = time.perf_counter()
        with self.accelerator.autocast():
            written = generate_batch(
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


def _unpadded(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
    """A batch's rows, as they went into the collator."""
    names = ("input_ids", "labels")
    masks = batch.get("attention_mask")
    if masks is None:  # of a collator that does not pad
        masks = torch.ones_like(batch["input_ids"])
    for number, mask in enumerate(masks.bool()):
        row: dict[str, Any] = {
            name: batch[name][number][mask].tolist() for name in names
        }
        if ROUTE in batch:
            row[ROUTE] = int(batch[ROUTE][number])
        if has_own_prompts(batch):
            answer = len(row["labels"]) - first_learned(row["labels"])
            row[TEACHER_PROMPT] = unpadded_prompt(batch, number, answer)
        yield row
