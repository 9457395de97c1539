"""Words that every file about data needs: its error, and a dataset of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


class DataError(ValueError):
    """A bundled file is missing or damaged, or a learner's file cannot be used."""


def read_utf8(path: Path) -> str:
    """A file's text, without a byte order mark; :class:`DataError` names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each lone surrogate.

    JSON can hold half an emoji, and tools that cut texts at a length write it. No
    file, no tokenizer and no table can.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def dataset_of(rows: list[dict[str, Any]]) -> Dataset:
    """Make a ``Dataset`` of rows, one dict a row."""
    from datasets import Dataset  # heavy: not at import

    return Dataset.from_list(rows)
