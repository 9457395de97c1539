"""Whole conversations as rows that a student learns: its own turns, and no others.

Taught in notebook 05.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError, encode_answers, jsonl_rows
from distill_helpers.labels.api_content import REASONING, Content, read_message
from distill_helpers.labels.filters import ENDED
from distill_helpers.labels.messages import ASKING, Message, cleaned, plain_json
from distill_helpers.labels.rows import STAND_IN, Turn, answer_turn, quoted
from distill_helpers.labels.templates import ChatTemplate
from distill_helpers.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_LOGGER = logging.getLogger(__name__)
# Why a server ends a turn that calls tools.
_CALLED = ("tool_calls", "function_call")


def read_conversations(path: str | Path) -> list[dict[str, Any]]:
    """Conversations from a file, for :func:`learn_conversations`.

    Args:
        path: A ``.jsonl`` file with an object a line and its list of messages under
            ``messages``. Half a character, such as an emoji that was cut in two, is
            read as ``U+FFFD``.

    Raises:
        DataError: If the file is missing or empty, or a line holds no conversation;
            the message names file and line.

    Taught in notebook 05.
    """
    path, rows = Path(path), []
    for number, row in jsonl_rows(path):
        try:
            rows.append(dict(_checked(row)))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise DataError(f"{path} holds no conversations")
    return rows


def learn_conversations(
    conversations: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    split_turns: bool = False,
) -> Dataset:
    """Rows in which a student learns all of the assistant's turns, and nothing else.

    A conversation becomes one row in the *student's* chat template. Of it the
    assistant's turns are learned, each with the token that ends it; all else is
    labelled ``-100``. What the row holds before a turn are the very ids that a model
    is given there at inference: those of ``apply_chat_template(messages before it,
    add_generation_prompt=True)``, special tokens and merges included.

    That is tested turn by turn, not assumed. Written with the turn at its end, the
    conversation must begin with the prompt; and each later prompt must go on from the
    turn as it was learned. Many templates do otherwise: they drop thoughts once
    they are answered, or write the last turn in another way. Such a conversation is
    refused, for no single row would be right; ``split_turns=True`` takes a new row
    wherever the next prompt does not go on from the row.

    Of a template that marks what a model writes (``{% generation %}``), the marked
    tokens are learned, and the token that ends the turn even where the marks stop
    before it. Without marks all of the turn is learned: its thoughts
    (``reasoning_content`` and what else servers call it), its words, its
    ``tool_calls``, and what the template writes between them. A template that knows
    no thoughts leaves them out, and the log says how often.

    What is no whole answer is not learned. A conversation stops before the first turn
    of the assistant's that a server cut off (``finish_reason`` such as ``"length"`` or
    ``"content_filter"``), that declines in the field ``refusal``, or that has neither
    words nor calls (``"content": null``). The log counts them by reason. A content of
    ``""`` is an answer: the end alone is learned there, and counted. Not learned, but
    read, are turns that OpenAI's files mark with ``"weight": 0``, and a greeting of
    the assistant's that nobody asked for.

    Args:
        conversations: Rows with ``messages``, such as :func:`read_conversations` or
            ``datasets.load_dataset("json", …)`` gives them; if they have them also
            with ``tools``, a list of what may be called, or JSON of it, and with the
            ``finish_reason`` of the last turn (a message may hold its own).
        tokenizer: The student's tokenizer; it needs a chat template.
        max_length: Most tokens of a row. Turns that do not fit with all that stands
            before them are left out, and the log says how many: a cut-off one would
            teach to stop anywhere. ``None`` keeps all.
        template_options: Further variables of the chat template, such as
            ``{"enable_thinking": False}``; to be the same at inference.
        split_turns: Begin another row where a turn cannot share one with those
            before it. Each turn is still learned once; tokens before it are read
            again, so a long conversation takes many more of them.

    Returns:
        ``input_ids`` and ``labels`` (unshifted), for
        :class:`~distill_helpers.trainers.HardLabelTrainer`, in the given order; also
        for :class:`~distill_helpers.trainers.SoftLabelTrainer`, whose teacher then
        says what it would have said. :func:`~distill_helpers.data.pack_examples` puts
        several into a row.

    Raises:
        DataError: If nothing is left to learn.
        ValueError: If a conversation cannot be written, with its number, the reason
            and the remedy.

    Taught in notebook 05.
    """
    from datasets import Dataset

    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, and conversations need one; use that "
            "of a chat model, or set tokenizer.chat_template"
        )
    if isinstance(conversations, str | Path):
        raise ValueError(
            f"conversations={str(conversations)!r} is no rows; pass "
            "read_conversations(path)"
        )
    counts: Counter[str] = Counter()
    rows: list[dict[str, list[int]]] = []
    number = -1
    for number, row in enumerate(conversations):
        try:
            talk = _Talk.of(row, tokenizer, template_options or {}, counts)
            found = _rows(talk, max_length, split_turns, counts)
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from None
        rows += found
        counts["nothing"] += not found
        counts["split"] += len(found) > 1
    _report(counts, number + 1, len(rows), max_length)
    if not rows:
        raise DataError(
            f"{number + 1} conversations hold no turn of the assistant's to learn; "
            f"max_length={max_length} may be too small, or see the log"
        )
    return Dataset.from_list(rows)


def _report(counts: Counter[str], talks: int, rows: int, limit: int | None) -> None:
    """Say in the log what was not learned, and why; ``counts`` comes by reason."""
    ended = [f"{n} {why[5:]}" for why, n in counts.items() if why.startswith("ends ")]
    if ended:
        _LOGGER.warning(
            "conversations that stop before a turn that is no whole answer: %s",
            ", ".join(ended),
        )
    for name, words in (
        ("too long", f"turns end behind max_length={limit}, and are left out"),
        (
            "thoughtless",
            "turns have thoughts that the chat template does not write there, so they "
            "are not learned; to teach them, write them into the content, or use a "
            "template (or template_options) that knows them",
        ),
        ("empty", "turns are empty, and the student learns to end at once there"),
        ("nothing", f"of {talks} conversations hold no turn to learn"),
        ("split", f"of {talks} conversations took several rows, {rows} in all"),
    ):
        if counts[name]:
            _LOGGER.warning("%d %s", counts[name], words)


def _checked(row: Any) -> Mapping[str, Any]:
    """A row that holds a conversation, and no more than one."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(
            f"the row {row!r:.80} holds no list of messages; write "
            '{"messages": [{"role": "user", "content": "…"}, …]}'
        )
    if row.get("answer") is not None:
        raise ValueError(
            "the row has messages and an answer to them, as write_labels stores them; "
            "use learn_answers"
        )
    return row


# --- what a conversation holds ------------------------------------------------------


@dataclass(frozen=True)
class _Learned:
    """One of the assistant's turns, in tokens.

    Attributes:
        given: What the model reads before it.
        ids: What it writes, up to the token that ends its turn.
        labels: The same, -100 where it is not learned.
    """

    given: list[int]
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Talk:
    """A conversation up to its last turn that is learned.

    Attributes:
        template: The student's, with the conversation's own tools.
        messages: The messages, of JSON's kinds.
        places: Which of them are learned.
        counts: Where is noted what the log is to say.
    """

    template: ChatTemplate
    messages: tuple[Message, ...]
    places: tuple[int, ...]
    counts: Counter[str]

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        options: Mapping[str, Any],
        counts: Counter[str],
    ) -> _Talk:
        given = _checked(row)["messages"]
        whole = _whole_answers(given, row.get("finish_reason"), counts)
        messages = cleaned(given[:whole])
        asked = [number for number, one in enumerate(messages) if one["role"] in ASKING]
        places = tuple(
            number
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
            and asked
            and number > asked[0]
            and _counts(message)
        )
        messages = messages[: places[-1] + 1] if places else ()
        tools = row.get("tools")
        if isinstance(tools, str):
            tools = json.loads(tools)
        if tools:
            options = {**options, "tools": plain_json(tools)}
        talk = cls(ChatTemplate(tokenizer, options), messages, places, counts)
        if messages:
            talk._refuse_losses(bool(tools))
        return talk

    def _refuse_losses(self, tools: bool) -> None:
        """Look once at all of it, so that its parts need no look."""
        text = self.template.whole(self.messages)
        options = {k: v for k, v in self.template.options.items() if k != "tools"}
        bare = ChatTemplate(self.template.tokenizer, options)
        if tools and bare.unchecked(self.messages, asks=False) == text:
            raise ValueError(
                "the chat template leaves the tools out, so the model would learn "
                "calls of what it has not been told of; use a model whose template "
                "knows tools, or rows without tools"
            )

    def turns(self) -> Iterator[tuple[int, _Learned]]:
        """The turns that are learned, with their places among the messages."""
        found = {place: self._turn(place) for place in self.places}
        plain = {place: one for place, one in found.items() if isinstance(one, Turn)}
        parts = encode_answers(
            [turn.prompt for turn in plain.values()],
            [turn.answer for turn in plain.values()],
            self.template.tokenizer,
        )
        encoded = dict(zip(plain, parts, strict=True))
        for place, turn in found.items():
            if isinstance(turn, Turn):
                given, answer = encoded[place]
                ids = answer + turn.closing
                turn = _Learned(given, ids, ids)
            yield place, turn

    def _turn(self, place: int) -> Turn | _Learned:
        """A turn as a text behind a prompt; in tokens, if it is more than words."""
        template, marked = self.template, self.template.marks
        asked, message = self.messages[:place], self.messages[place]
        content = _content(message)
        prompt = template.unchecked(asked, asks=True)
        thoughts = content.thoughts.strip()
        if thoughts:
            whole = template.unchecked((*asked, message), asks=False)
            if not whole.startswith(prompt) or thoughts not in whole[len(prompt) :]:
                self.counts["thoughtless"] += 1
                thoughts = ""
                message = {k: v for k, v in message.items() if k not in REASONING}
        self.counts["empty"] += content.is_string and not (
            content.text.strip() or content.calls or thoughts
        )
        if not marked and not thoughts:
            # What stands before an answer is the prompt's, so that nothing is learned
            # that inference supplies, such as thoughts that are empty.
            plain = content.is_string and not content.calls
            said = content.text if plain else STAND_IN
            turn = answer_turn(template, asked, prompt, said)
            if plain:
                return turn
        return self._as_written(asked, message, prompt, marked)

    def _as_written(
        self,
        asked: tuple[Message, ...],
        message: Message,
        prompt: str,
        marked: bool,
    ) -> _Learned:
        """A turn with what the template puts around and between its parts.

        Args:
            asked: The messages before it.
            message: The turn.
            prompt: What the model reads before it.
            marked: Whether the template says which of it a model writes.
        """
        tokenizer, content = self.template.tokenizer, _content(message)
        whole = self.template.unchecked((*asked, message), asks=False)
        rest = whole.removeprefix(prompt)
        said = re.split("</?think>", content.text)
        appends = whole.startswith(prompt)
        if not appends or not all(one.strip() in rest for one in said):
            # Which is refused with better words where any answer would be.
            answer_turn(self.template, asked, prompt, STAND_IN)
            raise ValueError(
                f"the chat template writes the prompt {quoted(prompt[-60:])} or the "
                f"turn {quoted(str(message))} otherwise once both are there; use a "
                "template that only appends (template_options may help)"
            )
        special = _special(tokenizer)
        told = json.dumps(message, ensure_ascii=False)
        for token in special.values():
            if token in told:
                raise ValueError(
                    f"a turn of the assistant's holds the text {token!r}, which would "
                    "be read as a token there; leave the conversation out"
                )
        given, ids = _ids(prompt, tokenizer), _ids(whole, tokenizer)
        if ids[: len(given)] != given:
            raise ValueError(
                f"the tokenizer merges the end of the prompt, {quoted(prompt[-20:])}, "
                f"with the turn behind it, {quoted(rest[:20])}; begin the turn "
                "otherwise"
            )
        written = [True] * len(ids)
        if marked:
            written = self.template.marked((*asked, message))
        ends = [place for place in range(len(given), len(ids)) if ids[place] in special]
        stop = ends[-1] + 1 if ends else len(ids)
        turn, learned = ids[len(given) : stop], written[len(given) : stop]
        if not ends:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "neither the chat template nor the tokenizer ends a turn with a "
                    "token, so the student could not learn to stop; set "
                    "tokenizer.eos_token"
                )
            turn, learned = [*turn, tokenizer.eos_token_id], [*learned, False]
        learned[-1] = any(learned)
        pairs = zip(turn, learned, strict=True)
        labels = [token if one else IGNORE_INDEX for token, one in pairs]
        return _Learned(given, turn, labels)


def _whole_answers(messages: Sequence[Any], reason: Any, counts: Counter[str]) -> int:
    """How many messages stand before the first of the assistant's that is not whole.

    Args:
        messages: The conversation as it was given.
        reason: Why the server ended the last one; ``None`` if nobody knows.
        counts: Where the reasons are counted.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        content = _content(message)
        is_last = place == len(messages) - 1
        why = message.get("finish_reason") or (is_last and reason) or "stop"
        ending = content.ending(str(why))
        if content.calls and (why in ENDED or why in _CALLED):
            continue
        if ending != "stop":
            counts[f"ends {ending or 'unreadable'}"] += 1
            return place
    return len(messages)


def _counts(message: Message) -> bool:
    """Whether a turn is learned: its weight, as OpenAI's files have it."""
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise ValueError(
            f"a message has the weight {weight!r}; a turn is learned (1) or not (0)"
        )
    return bool(weight)


def _content(message: Mapping[str, Any]) -> Content:
    return read_message(SimpleNamespace(**{"content": None, **message}))


# --- from conversations to rows -----------------------------------------------------


def _rows(
    talk: _Talk, max_length: int | None, split_turns: bool, counts: Counter[str]
) -> list[dict[str, list[int]]]:
    """The rows of a conversation: one, or where it is to be split, as few as can be."""
    rows: list[dict[str, list[int]]] = []
    for place, turn in talk.turns():
        if max_length is not None and len(turn.given) + len(turn.ids) > max_length:
            counts["too long"] += 1
            continue
        if not any(label != IGNORE_INDEX for label in turn.labels):
            continue  # by the template's own marks
        before = rows[-1]["input_ids"] if rows else []
        if turn.given[: len(before)] != before:
            if not split_turns:
                raise ValueError(_refusal(before, turn.given, place, talk))
            before = []
        if not before:
            rows.append({"input_ids": [], "labels": []})
        new = turn.given[len(before) :]
        rows[-1]["input_ids"] += new + turn.ids
        rows[-1]["labels"] += [IGNORE_INDEX] * len(new) + turn.labels
    return rows


def _refusal(before: list[int], given: list[int], place: int, talk: _Talk) -> str:
    """Why a turn cannot stand behind the row so far, and what would help."""
    same = 0
    while before[same : same + 1] == given[same : same + 1]:
        same += 1
    read = talk.template.tokenizer.decode
    return (
        f"before messages[{place}] the chat template or the tokenizer writes an "
        f"earlier turn otherwise than it was learned: behind "
        f"{quoted(str(read(before[:same]))[-40:])}, "
        f"{quoted(str(read(before[same:])))} has become "
        f"{quoted(str(read(given[same:])))}, as where thoughts are dropped once they "
        "are answered. Pass split_turns=True, which begins another row there; or use "
        "a template that only appends (template_options may help)"
    )


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that stand for no text of their own, such as those that end a turn."""
    added = tokenizer.added_tokens_decoder.items()
    special = {token: str(mark) for token, mark in added if mark.special}
    end = tokenizer.eos_token_id
    return special if end is None else special | {end: str(tokenizer.eos_token)}
