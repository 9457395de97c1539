"""From a file of one's own to passages of text: :func:`load_corpus`.

Used in notebook 02, and wherever a learner brings a text.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill_helpers.data.base import DataError, dataset_of, jsonl_rows, read_utf8

if TYPE_CHECKING:
    from datasets import Dataset

_PASSAGE_CHARACTERS = 4000
# Nobody wraps prose at fewer characters, and most verse is shorter.
_LEAST_WIDTH = 36
_ITEM = re.compile(r"\s*([-*+•|>#]|\d+[.)]\s|```|//)")


def passages(text: str) -> list[str]:
    """Undo the hard line breaks and cut at paragraphs."""
    paragraphs = (" ".join(block.split()) for block in text.split("\n\n"))
    return _gathered(filter(None, paragraphs), "\n")


def _passages_of_file(text: str) -> list[str]:
    """As :func:`passages`, where line breaks are a matter of layout; else with them.

    Prose that was wrapped at a column has its breaks undone, all but those of blocks
    that are lists, tables, verse or code. A file that is no such prose keeps every
    line, blank ones included: its passages, joined by blank lines, are the file.
    """
    # A line of spaces is blank, too.
    parted = re.sub(r"(?m)^[^\S\n]+$", "", text).split("\n\n")
    blocks = [block.split("\n") for block in parted]
    width = _wrapped_at(blocks)
    breaks = [one for block in blocks for one in _breaks(block, width)]
    within = _capitals_within(blocks)
    if breaks and (_explained(breaks) < 0.8 or _is_verse(breaks, within, doubt=10)):
        return _gathered(text.split("\n\n"), "\n\n")
    paragraphs = [
        "\n".join(block).strip("\n")
        if _keeps_its_lines(block, width, within)
        else " ".join(" ".join(block).split())
        for block in blocks
    ]
    return _gathered([one for one in paragraphs if one.strip()], "\n")


def _gathered(blocks: Iterable[str], between: str) -> list[str]:
    """Blocks in passages of about 4,000 characters, without those that are blank."""
    passages = []
    passage: list[str] = []
    size = 0
    for block in blocks:
        passage.append(block)
        size += len(block)
        if size >= _PASSAGE_CHARACTERS:
            passages.append(passage)
            passage, size = [], 0
    texts = [between.join(one).strip("\n") for one in [*passages, passage]]
    return [text for text in texts if text.strip()]


def _wrapped_at(blocks: Sequence[Sequence[str]]) -> int:
    """The column that explains most line breaks: the word after each did not fit."""
    room = collections.Counter[int]()
    for line, following in itertools.chain(*map(itertools.pairwise, blocks)):
        words = following.split()
        if " " in line.strip() and words:
            # A column of `length` holds the line, one of `unfilled` also the word.
            length = len(line.rstrip())
            unfilled = length + 1 + len(words[0])
            if unfilled > _LEAST_WIDTH:
                room[max(length, _LEAST_WIDTH)] += 1
                room[unfilled] -= 1
    best, most, explained = 0, 0, 0
    for column in sorted(room):
        explained += room[column]
        if explained > most:
            best, most = column, explained
    return best


@dataclass(frozen=True)
class _Break:
    """A line break within a block.

    Attributes:
        explained: Layout explains it: the next word would not have fitted, or it
            stands in the middle of a sentence.
        stop: A punctuation mark stands before it.
        capital: A capital letter follows it.
    """

    explained: bool
    stop: bool
    capital: bool


def _breaks(lines: Sequence[str], width: int) -> list[_Break]:
    """The line breaks of a block, of text that was wrapped at ``width``, if any was.

    No column explains a break after a line without a space (Chinese, one word each).
    """
    begins_sentence = not lines[0].lstrip()[:1].islower()
    found = []
    for line, following in itertools.pairwise(lines):
        words, written = following.split(), line.rstrip()
        if not written or not words:
            continue
        first = next((one for one in following if one.isalpha()), "")
        fills = len(written) <= width < len(written) + 1 + len(words[0])
        filled = fills and " " in line.strip()
        continues = begins_sentence and words[0][0].islower()
        stop = not written[-1].isalnum()
        found.append(_Break(filled or continues, stop, first.isupper()))
    return found


def _explained(breaks: Sequence[_Break]) -> float:
    return sum(one.explained for one in breaks) / max(1, len(breaks))


def _capitals_within(blocks: Iterable[Sequence[str]]) -> float:
    """The share of words within lines that begin with a capital."""
    words = [word for lines in blocks for line in lines for word in line.split()[1:]]
    return sum(word[0].isupper() for word in words) / max(1, len(words))


def _is_verse(breaks: Sequence[_Break], within: float, *, doubt: float) -> bool:
    """Whether these are ``doubt`` times likelier in verse than in wrapped prose.

    Nearly every line of verse begins with a capital and half of them end with a mark.
    In wrapped prose, a line begins with one as often as a word within a line does:
    seldom in English, at each noun in German.
    """
    chance = min(max(within, 0.1), 0.6)
    odds = 0.0
    for one in breaks:
        # In verse : in prose, by rule of thumb.
        for found, verse, prose in (
            (one.capital, 0.95, chance),
            (one.stop, 0.55, 0.15),
            (one.explained, 0.4, 0.95),
        ):
            odds += math.log(verse / prose if found else (1 - verse) / (1 - prose))
    return odds > math.log(doubt)


def _keeps_its_lines(lines: Sequence[str], width: int, within: float) -> bool:
    """Whether a block amid wrapped prose is a list, a table, verse or code."""
    indents = {len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()}
    first = len(lines[0]) - len(lines[0].lstrip())
    if len(indents) > 1 or any(indent > first for indent in indents):
        return True
    if any(_ITEM.match(line) for line in lines[1:]):
        return True
    breaks = _breaks(lines, width)
    if len(breaks) >= 3 and _explained(breaks) < 0.5:
        return True
    # The text around it is prose, and has thousands of blocks.
    return _is_verse(breaks, within, doubt=10_000)


def load_corpus(path: str | Path) -> Dataset:
    """Read a learner's own text.

    Args:
        path: A ``.txt`` file or a ``.jsonl`` file with one object per line and its
            text under ``"text"``. The blocks of a ``.txt`` file, which blank lines
            part, are gathered into passages of about 4,000 characters. Where it is
            prose that was wrapped at a column, the line breaks in its paragraphs are
            undone; code, verse, lists and all other text keep their lines. Half a
            character, such as an emoji that was cut in two, is read as ``U+FFFD``.

    Returns:
        A ``datasets.Dataset`` with the column ``text``.

    Raises:
        DataError: If the file is missing, not UTF-8, empty, of another kind, or a
            line cannot be read; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path and the folder")
    if path.suffix == ".txt":
        texts = _passages_of_file(read_utf8(path))
    elif path.suffix == ".jsonl":
        texts = _jsonl_texts(path)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}; use .txt or .jsonl")
    if not texts:
        raise DataError(f"{path} holds no text")
    return dataset_of([{"text": text} for text in texts])


def _jsonl_texts(path: Path) -> list[str]:
    texts = []
    for number, row in jsonl_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(
                f'{path}, line {number}: no string under "text"; write one object '
                'per line, such as {"text": "…"}'
            )
        if row["text"].strip():
            texts.append(row["text"])
    return texts
