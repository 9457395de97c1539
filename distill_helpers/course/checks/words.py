"""What learners read: the texts of ``words.toml``, which is read once."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """How to speak of a mistake.

    Attributes:
        mistake: What it is, in one clause.
        symptom: How it shows itself; it does not say how to mend it.
        lesson: The notebook that explains it; empty for the exercise's own.
    """

    mistake: str
    symptom: str
    lesson: str = ""


@dataclass(frozen=True)
class Words:
    """How to speak of an exercise.

    Attributes:
        lesson: The notebook that it belongs to.
        help: The docstring of its check.
        inputs: For each input, when it was: ``"at T = 4"``.
        wrong: Its mistakes by name.
    """

    lesson: str
    help: str
    inputs: tuple[str, ...]
    wrong: Mapping[str, Mistake]


@cache
def read_texts() -> dict[str, Any]:
    """Return ``words.toml`` as it stands."""
    file = resources.files(__package__) / "words.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


_FALLBACK = """\
    fallback: Show what came of it, and return the function to go on with: yours if
        it passes, the course's own if not."""


def words_of(exercise: str) -> Words:
    """Return the words of the exercise of that name."""
    table = read_texts()[exercise]
    wrong = {name: Mistake(*texts) for name, texts in table.get("wrong", {}).items()}
    fn = textwrap.fill(
        f"fn: {table['fn']}", 88, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
    paragraphs = [
        table["about"],
        f"Args:\n{fn}\n{_FALLBACK}",
        f"Returns:\n    A :class:`CheckResult`. {table.get('note', '')}".rstrip(),
        f"Exercise of {table['lesson']}.",
    ]
    return Words(
        table["lesson"], "\n\n".join(paragraphs), tuple(table["inputs"]), wrong
    )


def say(message: str, **values: object) -> str:
    """Return the message of that name with its braces filled in."""
    text: str = read_texts()["messages"][message]
    return text.format(**values)
