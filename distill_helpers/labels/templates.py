"""Prompts as a model reads them: through its chat template, with nothing lost.

Taught in notebook 04.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    asked = cleaned(messages)
    options = template_options or {}
    if tokenizer.chat_template:
        text = rendered(asked, tokenizer, options, add_generation_prompt=True)
        _check_nothing_is_lost(asked, text, tokenizer, options)
        return text
    if len(asked) > 1:
        raise ValueError(
            f"the tokenizer has no chat template, and a prompt has {len(asked)} "
            "messages; use a chat model, or prompts that are strings"
        )
    content = asked[0].get("content")
    if not isinstance(content, str):
        raise ValueError(
            f"the tokenizer has no chat template, and a prompt's content is no string: "
            f"{content!r:.80}; use a chat model, or prompts that are strings"
        )
    return content


def rendered(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    **more: Any,
) -> str:
    from jinja2 import TemplateError

    try:
        text: Any = tokenizer.apply_chat_template(
            list(messages), tokenize=False, **more, **options
        )
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"the chat template cannot write a conversation of the turns "
            f"{[message['role'] for message in messages]} ({error}); it may not know "
            "tool calls or contents in parts: change the messages, the template or "
            "template_options"
        ) from None
    return whole_characters(str(text))


def _check_nothing_is_lost(
    messages: tuple[Message, ...],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> None:
    """Refuse what a template drops in silence, or writes as Python writes it."""
    for place, message in enumerate(messages):
        content = message.get("content", "")
        others: list[tuple[str, Any]] = [
            (name, _changed(message[name], key))
            for name in ("tool_calls", "function_call")
            for key in ("name", "arguments")
            if name in message
        ]
        if message["role"] in ("tool", "function") and isinstance(content, str):
            others.append(("content", f"{content} 1"))
        for name, other in others:
            turns = list(messages)
            turns[place] = message | {name: other}
            if turns[place] != message and text == rendered(
                turns, tokenizer, options, add_generation_prompt=True
            ):
                raise ValueError(
                    f"the chat template leaves {name} of the {message['role']}'s turn "
                    f"out of a prompt, at least in part ({message[name]!r:.80}), so "
                    "the model would not see it; use a model whose template knows "
                    "tools, or prompts without tool_calls and their results"
                )
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
