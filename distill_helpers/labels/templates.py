"""Prompts as a model reads them: through its chat template, with nothing lost.

Taught in notebook 05.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_helpers.data import whole_characters
from distill_helpers.labels.messages import Message, cleaned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
            text = self._written(asked, add_generation_prompt=True)
            for place, message in enumerate(asked):
                self._refuse_lost_fields(asked, place, text)
                _refuse_garbled_parts(message.get("content"), text)
            return text
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

    def with_answer(self, asked: tuple[Message, ...], answer: str) -> str:
        """The conversation once the answer is there."""
        return self._written([*asked, {"role": "assistant", "content": answer}])

    def _written(self, messages: Sequence[Message], **more: Any) -> str:
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

    def _refuse_lost_fields(
        self, asked: tuple[Message, ...], place: int, text: str
    ) -> None:
        """Refuse a template whose prompt is the same without what a message holds."""
        message = asked[place]
        for name, other in _other_values(message):
            turns = [*asked[:place], message | {name: other}, *asked[place + 1 :]]
            if turns[place] != message and text == self._written(
                turns, add_generation_prompt=True
            ):
                raise ValueError(
                    f"the chat template leaves {name} of the {message['role']}'s turn "
                    f"out of a prompt, at least in part ({message[name]!r:.80}), so "
                    "the model would not see it; use a model whose template knows "
                    "tools, or prompts without tool_calls and their results"
                )


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
