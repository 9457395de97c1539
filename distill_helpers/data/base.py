"""Words that every file about data needs: its error, and a dataset of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """What each line of a ``.jsonl`` file holds, with its number; none for a blank one.

    Half a character, such as an emoji that was cut in two, is read as ``U+FFFD``.

    Raises:
        DataError: If there is no such file, or a line is no JSON; it names both.
    """
    if path.suffix != ".jsonl" or not path.is_file():
        raise DataError(f"{path} is no .jsonl file; check the path and the ending")
    # JSON escapes line feeds, and only those end a line.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # Only when it is read does an escape turn out to be half a character.
            row = json.loads(whole_characters(json.dumps(row, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no JSON: {error}") from None
        yield number, row


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
