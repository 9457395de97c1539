"""Prompts as a model reads them: through its chat template, with nothing lost.

Taught in notebook 05.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_helpers.data import whole_characters
from distill_helpers.labels.messages import Message, cleaned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """A prompt's token ids, up to where the answer begins.

    In the tokenizer's chat template; without one, one user's turn as it is.
    """
    text = prompt_text(messages, tokenizer, template_options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError("a prompt is empty; a model cannot go on from nothing")
    return ids


def prompt_text(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """A prompt as the model reads it, up to where the answer begins.

    Raises:
        ValueError: If the tokenizer's chat template cannot write the conversation, or
            leaves out or garbles what is in it: tool calls, contents in parts.
    """
    return ChatTemplate(tokenizer, template_options or {}).prompt(cleaned(messages))


@dataclass(frozen=True)
class ChatTemplate:
    """How a tokenizer writes a conversation down.

    Attributes:
        tokenizer: The tokenizer, with a chat template or without.
        options: Further variables of the template.
    """

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]

    def prompt(self, asked: tuple[Message, ...]) -> str:
        """The text that an answer goes on from; :func:`prompt_text` says more."""
        if self.tokenizer.chat_template:
            return self._checked(asked, add_generation_prompt=True)
        if len(asked) > 1:
            raise ValueError(
                f"the tokenizer has no chat template, and a prompt has {len(asked)} "
                "messages; use a chat model, or prompts that are strings"
            )
        content = asked[0].get("content")
        if not isinstance(content, str):
            raise ValueError(
                f"the tokenizer has no chat template, and a prompt's content is no "
                f"string: {content!r:.80}; use a chat model, or prompts that are "
                "strings"
            )
        return content

    def whole(self, messages: tuple[Message, ...]) -> str:
        """A conversation whose last turn is there, refused as a prompt would be."""
        return self._checked(messages)

    def unchecked(self, messages: tuple[Message, ...], *, asks: bool) -> str:
        """A part of a conversation that :meth:`whole` has accepted.

        Args:
            messages: The first messages of it.
            asks: Whether an answer is to go on from there.
        """
        return self._written(messages, add_generation_prompt=asks)

    def with_answer(self, asked: tuple[Message, ...], answer: str) -> str:
        """The conversation once the answer is there."""
        return self._written([*asked, {"role": "assistant", "content": answer}])

    @property
    def marks(self) -> bool:
        """Whether the template says what of a conversation a model writes."""
        text = self.tokenizer.get_chat_template(None, self.options.get("tools"))
        return self.tokenizer.is_fast and bool(_MARKS.search(text))

    def marked(self, messages: tuple[Message, ...]) -> list[bool]:
        """Which tokens of a conversation a model writes, as the template says."""
        found: Any = self.tokenizer.apply_chat_template(
            list(self._understood(messages)),
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self.options,
        )
        return [bool(one) for one in found["assistant_masks"]]

    def _written(self, messages: Sequence[Message], **more: Any) -> str:
        return self._rendered(self._understood(messages, **more), **more)

    def _understood(
        self, messages: Sequence[Message], **more: Any
    ) -> Sequence[Message]:
        """The messages, with arguments of tool calls as the template wants them.

        OpenAI's protocol has JSON as a text, templates want either that or objects,
        and servers translate: of a text, some would write JSON of JSON.
        """
        given = list(_arguments(messages))
        if not given:
            return messages
        text = self._rendered(messages, **more)
        if not any(json.dumps(one, ensure_ascii=False) in text for one in given):
            return messages
        objects = _with_objects(list(messages))
        other = self._rendered(objects, **more)
        # One that wants texts would now write Python.
        values = [json.loads(one) for one in given]
        return messages if any(v and str(v) in other for v in values) else objects

    def _rendered(self, messages: Sequence[Message], **more: Any) -> str:
        from jinja2 import TemplateError

        try:
            text: Any = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, **more, **self.options
            )
        except (TemplateError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"the chat template cannot write a conversation of the turns "
                f"{[message['role'] for message in messages]} ({error}); it may not "
                "know tool calls or contents in parts: change the messages, the "
                "template or template_options"
            ) from None
        return whole_characters(str(text))

    def _checked(self, messages: tuple[Message, ...], **more: Any) -> str:
        text = self._written(messages, **more)
        for place, message in enumerate(messages):
            self._refuse_lost_fields(messages, place, text, **more)
            _refuse_garbled_parts(message.get("content"), text)
        return text

    def _refuse_lost_fields(
        self, asked: tuple[Message, ...], place: int, text: str, **more: Any
    ) -> None:
        """Refuse a template whose text is the same without what a message holds."""
        message = asked[place]
        for name, other in _other_values(message):
            turns = [*asked[:place], message | {name: other}, *asked[place + 1 :]]
            if turns[place] != message and text == self._written(turns, **more):
                raise ValueError(
                    f"the chat template leaves {name} of the {message['role']}'s turn "
                    f"out of a prompt, at least in part ({message[name]!r:.80}), so "
                    "the model would not see it; use a model whose template knows "
                    "tools, or prompts without tool_calls and their results"
                )


def _arguments(messages: Sequence[Message]) -> Iterator[str]:
    """Arguments of tool calls that are objects in JSON, as a text."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            found: Any = function.get("arguments")
            if _is_object(found):
                yield found


def _is_object(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _with_objects(value: Any) -> Any:
    """Messages whose tool calls have objects for arguments, where these are JSON."""
    if isinstance(value, list):
        return [_with_objects(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: json.loads(one)
        if name == "arguments" and _is_object(one)
        else _with_objects(one)
        for name, one in value.items()
    }


def _refuse_garbled_parts(content: Any, text: str) -> None:
    """Refuse parts that are no text, or that a template writes as Python does."""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(
                f"a message's content has the part {part!r:.80}, which is no text; "
                "a model of text cannot read it, so leave it out"
            )
        raw = str(part) in text or json.dumps(part, ensure_ascii=False) in text
        if raw or part["text"].strip() not in text:
            raise ValueError(
                "the chat template does not know a content that is a list of "
                "parts; join the parts' texts to one string"
            )


def _other_values(message: Message) -> Iterator[tuple[str, Any]]:
    """Fields that a prompt has to show, each with another value."""
    for name in ("tool_calls", "function_call"):
        for key in ("name", "arguments"):
            if name in message:
                yield name, _changed(message[name], key)
    content = message.get("content", "")
    if message["role"] in ("tool", "function") and isinstance(content, str):
        yield "content", f"{content} 1"


def _changed(calls: Any, key: str) -> Any:
    """Tool calls with another value wherever one has the key."""
    if isinstance(calls, list):
        return [_changed(call, key) for call in calls]
    if not isinstance(calls, dict):
        return calls
    other = {"name": "another", "arguments": {"another": 1}}[key]
    return {
        name: (json.dumps(other) if key != "name" and isinstance(value, str) else other)
        if name == key
        else _changed(value, key)
        for name, value in calls.items()
    }
