"""A teacher's answers as rows that a student learns.

Taught in notebook 05.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError, encode_answers, join_row, whole_characters
from distill_helpers.labels.messages import Message, Prompt, asked_messages, cleaned
from distill_helpers.labels.store import as_dataset
from distill_helpers.labels.templates import ChatTemplate
from distill_helpers.models import closing_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_LOGGER = logging.getLogger(__name__)
STAND_IN = "An-answer-that-nobody-gives"
# Variables of chat templates that switch the thoughts of reasoning models off.
_NO_THOUGHTS: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False},
    {"thinking": False},
)


def own_labels(prompts: Sequence[Prompt], answers: Sequence[str]) -> Dataset:
    """Answers that you have already, in the columns that :func:`learn_answers` reads.

    Args:
        prompts: Strings, or conversations as lists of messages, such as
            :func:`~distill_helpers.labels.ask.write_labels` takes.
        answers: One for each; half an emoji in it becomes U+FFFD.
    """
    if isinstance(prompts, str) or isinstance(answers, str):
        raise ValueError("prompts and answers are lists, one answer per prompt")
    if len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: one answer per prompt"
        )
    rows = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not isinstance(answer, str):
            raise ValueError(
                f"answers[{number}] is {answer!r:.80}, no string; leave it out, with "
                "its prompt"
            )
        messages = list(asked_messages(prompt, number))
        rows.append({"messages": messages, "answer": whole_characters(answer)})
    return as_dataset(rows)


def learn_answers(
    labels: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Rows in which a student learns the answers, and nothing else.

    The prompt stands in the *student's* chat template and is labelled ``-100``. The
    answer and the token that ends the turn are learned, or the student would never
    stop. What a template puts behind that token is left out.

    So that a student learns what it will write, the prompt's ids are those of
    :func:`~distill_helpers.labels.templates.prompt_ids`, and the answer goes on from
    them as :func:`~distill_helpers.data.encode_answers` says, whatever the tokenizer
    puts before a text. Where the answer begins in a chat template, and what ends it, is
    found out row by row: the conversation is written with and without the answer, and
    the one must begin with the other and go on, but for white space, with the answer as
    given or without the white space around it. A template that does otherwise is
    refused, with what it did; but thoughts up to ``</think>`` in an answer, which
    templates of reasoning models rewrite or take out, are learned as given if the
    prompt or the answer opens them. Thoughts in the column ``reasoning`` are not
    learned; write them into the answers for that.

    Where an answer is empty, or white space that the template trims, the end alone is
    learned, and the log says how often: the student learns to say nothing there.
    :func:`~distill_helpers.labels.filters.empty` leaves such rows out.

    Args:
        labels: Rows with ``messages`` and ``answer``, such as
            :func:`~distill_helpers.labels.ask.write_labels` returns.
        tokenizer: The student's tokenizer.
        max_length: Rows with more tokens are left out, and the log says how many: a
            cut-off answer would teach to stop anywhere. ``None`` keeps all.
        template_options: Further variables of the chat template, such as
            ``{"enable_thinking": False}``; to be the same at inference.

    Returns:
        ``input_ids`` and ``labels`` (unshifted), for
        :class:`~distill_helpers.trainers.HardLabelTrainer`, in the given order.

    Raises:
        DataError: If nothing is left.
        ValueError: If a row cannot be written, with its number and the reason.
    """
    from datasets import Dataset

    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token: the student could not learn to "
            "stop; set tokenizer.eos_token"
        )
    template = ChatTemplate(tokenizer, template_options or {})
    turns = []
    for number, row in enumerate(labels):
        try:
            turns.append(_turn(template, row["messages"], row["answer"]))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    empty = sum(not turn.answer for turn in turns)
    if empty:
        _LOGGER.warning(
            "%d of %d answers are empty, and the student learns to end at once there; "
            "labels.filters.empty leaves them out",
            empty,
            len(turns),
        )
    parts = encode_answers(
        [turn.prompt for turn in turns], [turn.answer for turn in turns], tokenizer
    )
    rows = []
    for (prompt, answer), turn in zip(parts, turns, strict=True):
        learned = answer + turn.closing
        if max_length is None or len(prompt) + len(learned) <= max_length:
            rows.append(join_row(prompt, learned))
    left_out = len(labels) - len(rows)
    if left_out:
        _LOGGER.warning(
            "%d of %d answers are longer than max_length=%s with their prompts, and "
            "are left out",
            left_out,
            len(labels),
            max_length,
        )
    if not rows:
        raise DataError(
            f"labels holds {len(labels)} answers and none is left to learn; "
            f"max_length={max_length} may be too small"
        )
    return Dataset.from_list(rows)


@dataclass(frozen=True)
class Turn:
    """An answer where a model will write it.

    Attributes:
        prompt: Text up to where the model begins.
        answer: Text that it writes, with what the template puts around it.
        closing: Ids that end its turn.
    """

    prompt: str
    answer: str
    closing: list[int]


def _turn(template: ChatTemplate, messages: Sequence[Message], answer: Any) -> Turn:
    if not isinstance(answer, str):
        raise ValueError(
            f"the answer {answer!r:.80} is no string; leave the row out, with a filter "
            "of your own or labels.filters.empty"
        )
    asked = cleaned(messages)
    return answer_turn(template, asked, template.prompt(asked), answer)


def answer_turn(
    template: ChatTemplate, asked: tuple[Message, ...], prompt: str, answer: str
) -> Turn:
    """Where an answer begins behind a prompt, and what ends it.

    Args:
        template: The student's.
        asked: The conversation up to the answer.
        prompt: The same as the student reads it.
        answer: What it learns to write.

    Raises:
        ValueError: If the template writes prompt or answer otherwise once both are
            there; the message says what it did, and what would help.
    """
    row = _Row(template, asked, prompt, whole_characters(answer))
    tokenizer = template.tokenizer
    if not tokenizer.chat_template:
        return Turn(row.prompt, row.answer, [tokenizer.eos_token_id])
    found = row.plainly()
    if found is None and "</think>" in answer:
        found = row.with_thoughts()
    if found is None:
        raise ValueError(row.refusal())
    text, after = found
    between, closing = _parted(after, tokenizer)
    if not text:  # the end alone
        return Turn(row.prompt, "", closing[-1:])
    return Turn(row.prompt, text + between, closing)


def _parted(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """What follows an answer: text that belongs to its turn, and the ids that end it.

    The text, such as a space, continues the answer and is encoded with it.
    """
    closing = closing_tokens(after, tokenizer) or [tokenizer.eos_token_id]
    between, end, _ = after.partition(str(tokenizer.decode(closing[-1:])))
    return (between, closing[-1:]) if end and len(closing) > 1 else ("", closing)


@dataclass(frozen=True)
class _Row:
    """A conversation, its answer, and what a chat template makes of both.

    Attributes:
        template: The student's.
        asked: The conversation up to the answer.
        prompt: The same as the student reads it.
        answer: The answer as given.
    """

    template: ChatTemplate
    asked: tuple[Message, ...]
    prompt: str
    answer: str

    def _whole(self, answer: str) -> str:
        return self.template.with_answer(self.asked, answer)

    def _opened(self) -> bool:
        return self.prompt.rstrip().endswith("<think>")

    def plainly(self) -> tuple[str, str] | None:
        """What a template writes behind the prompt: the answer, and what follows.

        ``None`` if that is another prompt or another answer.
        """
        # An empty text is everywhere, so another one shows the place.
        told = self.answer if self.answer.strip() else "."
        whole = self._whole(told)
        if not whole.startswith(self.prompt):
            return None
        rest = whole.removeprefix(self.prompt)
        told = told if told in rest else told.strip()  # as many templates do
        before, found, after = rest.partition(told)
        if not found or before.strip():
            return None
        return (before + told if self.answer.strip() else ""), after

    def with_thoughts(self) -> tuple[str, str] | None:
        """The same for thoughts and an answer, of which the template shows the answer.

        ``None`` if the thoughts are opened twice or by nobody, or no answer follows.
        """
        answer = self.answer
        if self._opened() == answer.lstrip().startswith("<think>"):
            return None
        thoughts, mark, said = answer.rpartition("</think>")
        if not said.strip():
            return None
        # In another answer's place the end is told from what the answer says.
        other = thoughts + mark + said.replace(said.strip(), STAND_IN)
        before, found, after = self._whole(other).rpartition(STAND_IN)
        shared = self.prompt.rstrip().removesuffix("<think>")
        if not found or not before.startswith(shared):
            return None
        if self._whole(answer) != before + said.strip() + after:
            return None
        return answer.rstrip(), after  # which begins with the space that is kept

    def refusal(self) -> str:
        """Why the row is refused: what the template did, and what would help."""
        prompt, whole = self.prompt, self._whole(self.answer)
        same = len(prompt)
        while not whole.startswith(prompt[:same]):
            same -= 1
        did = f"goes on with {quoted(whole[same:])}, and not with the answer as given"
        if same < len(prompt):
            did = (
                f"writes {quoted(whole[same:])} in the place of {quoted(prompt[same:])}"
            )
        helps = "use a template that only appends (template_options may help)"
        for off in _NO_THOUGHTS:
            without = ChatTemplate(
                self.template.tokenizer, {**self.template.options, **off}
            )
            try:
                prompt_without = without.prompt(self.asked)
                found = _Row(without, self.asked, prompt_without, self.answer).plainly()
            except ValueError:
                continue
            if found is not None:
                helps = (
                    f"pass template_options={off!r}, here and at inference, for "
                    "answers without thoughts"
                )
                break
        if "<think>" in prompt[-20:] + whole[same:]:
            thoughts = "…</think>" if self._opened() else "<think>…</think>"
            helps += (
                f"; or keep the thoughts, in answers that are {thoughts!r} + answer"
            )
        return (
            "the chat template writes a prompt or an answer differently once both are "
            f"there, so where the answer begins cannot be told: behind "
            f"{quoted(prompt[:same][-40:])} it {did}; {helps}"
        )


def quoted(text: str) -> str:
    """A text in quotation marks, for a message; of a long one the beginning."""
    return repr(text if len(text) <= 80 else text[:80] + "…")
