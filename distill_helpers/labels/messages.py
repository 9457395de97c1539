"""Conversations that a teacher is asked to go on with.

A prompt is a string, or a list of messages; what is asked is stored with its answer, so
it consists of what JSON can hold.

Taught in notebook 05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from distill_helpers.data import whole_characters

Message: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | Sequence[Message]

# Who may speak last in a prompt: an answer to them is what is asked for.
ASKING = ("user", "tool", "function")
# Types of parts of a content, by their beginning.
_MEDIA = ("image", "audio", "video", "file")


def asked_messages(prompt: Prompt, number: int) -> tuple[Message, ...]:
    """What is asked, key for key; ``number`` is the prompt's, for what is refused."""
    if isinstance(prompt, str):
        return ({"role": "user", "content": whole_characters(prompt)},)
    try:
        messages = cleaned(prompt)
    except (TypeError, ValueError) as error:
        raise ValueError(f"prompts[{number}]: {error}") from None
    last = messages[-1]["role"] if messages else "nobody"
    if last not in ASKING:
        raise ValueError(
            f"prompts[{number}] has the messages {messages!r:.300}, and {last} speaks "
            "last; the last one must be the user's, or a tool's result. An answer that "
            "goes on from words of the assistant's (a prefill) cannot be asked for: "
            "leave its turn out"
        )
    return messages


def cleaned(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages as they are asked: of JSON's kinds, without ``None``, whole characters.

    ``datasets`` gives every message all fields of all messages, ``None`` where there
    was none; what was asked then must be the same conversation still.
    """
    found = tuple(plain_json(message) for message in messages)
    for message in found:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"the message {message!r:.80} must be a dictionary whose role is a "
                "string"
            )
        content = message.get("content", "")
        speaks = "content" in message or message["role"] == "assistant"
        if not speaks or len(message) == 1:
            raise ValueError(
                f"the message {message!r:.80} has no content; leave it out, or write "
                '"" for a result that is empty'
            )
        for part in content if isinstance(content, list) else ():
            kind = str(part.get("type", "")) if isinstance(part, dict) else ""
            if kind.removeprefix("input_").startswith(_MEDIA):
                raise ValueError(
                    f"a message's content has a part of type {kind!r}, which no "
                    "student of text can read, and whose tokens no budget can bound; "
                    "leave it out"
                )
        if not isinstance(content, str | list):
            raise ValueError(
                f"the {message['role']}'s message has the content {content!r:.80}; it "
                "must be a string, or a list of parts"
            )
    return found


def plain_json(value: Any) -> Any:
    """A value of JSON's kinds, without ``None`` in objects, in whole characters."""
    if isinstance(value, str):
        return whole_characters(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            whole_characters(str(key)): plain_json(one)
            for key, one in value.items()
            if one is not None
        }
    if isinstance(value, list | tuple):
        return [plain_json(one) for one in value]
    raise ValueError(
        f"a message holds {value!r:.80} of type {type(value).__name__}, which JSON has "
        "no words for; write it as text"
    )
