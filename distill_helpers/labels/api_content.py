"""What the messages of OpenAI-compatible servers hold, in all the shapes they come in.

Taught in notebook 05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill_helpers.labels.filters import ENDED

# Fields of a message in which servers tell the thoughts before an answer.
REASONING = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thinking_blocks",
    "reasoning_details",
)
# Kinds of parts, by the beginning of their type's name. Notes are not part of a text.
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")
_NOTE_PARTS = ("reference", "citation")


@dataclass(frozen=True)
class Content:
    """What a message holds.

    Attributes:
        text: The answer.
        thoughts: The thoughts before it, where a server tells them apart.
        refusal: A refusal in words, in the place of an answer.
        unknown: Types of other parts.
        calls: Whether the message calls a tool.
        is_string: Whether all of the content is one string.
    """

    text: str = ""
    thoughts: str = ""
    refusal: str = ""
    unknown: tuple[str, ...] = ()
    calls: bool = False
    is_string: bool = False

    def ending(self, reason: str) -> str | None:
        """Why an answer ends there: ``"stop"`` only for one that is whole.

        Args:
            reason: The server's word for it.

        Returns:
            ``None`` if there are parts of an unknown kind and no text: no answer.
        """
        if reason not in ENDED:
            return reason
        if self.calls:
            return "tool_calls"
        if self.unknown:
            return "unreadable" if self.text else None
        if self.text.strip():
            return "stop"
        if self.refusal:
            return "refusal"
        # A string without a word may be all that a model wanted to say.
        return "stop" if self.is_string and not self.thoughts else "no_content"


def read_message(message: Any) -> Content:
    """Read a message of any shape; what a server sends is untrusted."""
    content = message.content
    found: dict[str, list[str]] = {"text": [], "thoughts": [], "refusal": []}
    unknown = []
    for part in content if isinstance(content, list) else [content]:
        if part is None:
            continue
        fields = part if isinstance(part, Mapping) else {"type": type(part).__name__}
        kind = str(fields.get("type") or "text")
        if isinstance(part, str):
            found["text"].append(part)
        elif kind in _TEXT_PARTS and isinstance(fields.get("text"), str | Mapping):
            found["text"].append(_strings(fields["text"]))
        elif kind.startswith(_THOUGHT_PARTS):
            found["thoughts"].append(_strings(part))
        elif kind == "refusal":
            found["refusal"].append(_strings(fields.get("refusal")))
        elif not kind.startswith(_NOTE_PARTS):
            unknown.append(kind)
    text, thoughts, refusal = map("".join, found.values())
    said_apart = getattr(message, "refusal", None)
    if isinstance(said_apart, str) and not text:
        refusal = said_apart
    if not thoughts:
        told = (_strings(getattr(message, name, None)) for name in REASONING)
        thoughts = next(filter(None, told), "")
    calls = [getattr(message, name, None) for name in ("tool_calls", "function_call")]
    return Content(
        text, thoughts, refusal, tuple(unknown), any(calls), isinstance(content, str)
    )


def _strings(value: Any) -> str:
    """All text of thoughts or of a text, however a server packs it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_strings, value))
    if isinstance(value, Mapping):
        names = ("thinking", "reasoning", "summary", "text", "value", "content")
        return "".join(_strings(value[name]) for name in names if name in value)
    return ""
