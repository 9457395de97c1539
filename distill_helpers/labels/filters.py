"""Which of a teacher's answers a student should learn, and what was dropped.

A filter looks at the rows of :func:`~distill_helpers.labels.ask.write_labels` and says
of each whether it is to go. :func:`filter_labels` applies several, one after another,
and keeps account.

Taught in notebook 05.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]
Filter: TypeAlias = Callable[["Dataset"], list[bool]]

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can't|cannot|won't|will not) "
    r"(?:help|assist|answer|provide|do that|fulfil|comply)|as an ai\b|"
    r"i (?:do not|don't) have (?:access|enough information))",
    re.IGNORECASE,
)
# An answer that ended by itself, in the words of different servers; "stop" is OpenAI's,
# and what is stored.
ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})
# A refusal says so at once; a later "I am sorry" may be part of a story.
_REFUSAL_WITHIN = 120
# Scripts that are written without spaces, by the first words of their letters' names,
# and about how many letters make a word.
_UNSPACED = {
    "CJK": 2,
    "HIRAGANA": 2,
    "KATAKANA": 2,
    "KATAKANA-HIRAGANA": 2,
    "IDEOGRAPHIC": 2,
    "BOPOMOFO": 2,
    "YI": 2,
    "THAI": 3,
    "LAO": 3,
    "KHMER": 3,
    "MYANMAR": 3,
    "JAVANESE": 3,
    "BALINESE": 3,
    "TAI": 3,
    "NEW": 3,  # New Tai Lue
}


@dataclass(frozen=True)
class Filtered:
    """What :func:`filter_labels` kept and dropped.

    Attributes:
        kept: Rows that no filter objected to, in their order.
        dropped: The others, with the name of the first filter that did in the column
            ``dropped_by``.
        counts: Rows dropped, by filter, in the order of the filters.
    """

    kept: Dataset
    dropped: Dataset
    counts: dict[str, int]

    def __repr__(self) -> str:
        parts = [f"{len(self.kept)} kept"]
        parts += [f"{count} {name}" for name, count in self.counts.items()]
        return ", ".join(parts)


def filter_labels(labels: Dataset, filters: Mapping[str, Filter]) -> Filtered:
    """Apply filters one after another; each sees what those before it left.

    Args:
        labels: Rows with ``messages``, ``answer`` and ``finish_reason``.
        filters: Name to filter; the name is what the report says.
    """
    left = list(range(len(labels)))
    reasons: dict[int, str] = {}
    counts = {}
    for name, find in filters.items():
        bad = find(labels.select(left))
        if len(bad) != len(left):
            raise ValueError(
                f"the filter {name!r} judged {len(bad)} of {len(left)} rows; it must "
                "return one bool per row"
            )
        reasons |= {i: name for i, drop in zip(left, bad, strict=True) if drop}
        counts[name] = sum(map(bool, bad))
        left = [index for index in left if index not in reasons]
    if "dropped_by" in labels.column_names:  # of an earlier round
        labels = labels.remove_columns("dropped_by")
    # Before rows are chosen: datasets cannot add to a choice of none.
    named = labels.add_column(
        "dropped_by", [reasons.get(index, "") for index in range(len(labels))]
    )
    return Filtered(labels.select(left), named.select(sorted(reasons)), counts)


def truncated(labels: Dataset) -> list[bool]:
    """Answers that were cut off, whose end a student would never learn."""
    return [reason not in ENDED for reason in labels["finish_reason"]]


def empty(labels: Dataset) -> list[bool]:
    """Answers without a letter or a digit of any script.

    One of signs alone, such as an arrow or an emoji, counts as empty, and so does none.
    """
    return [not re.search(r"\w", answer or "") for answer in labels["answer"]]


def refused(labels: Dataset) -> list[bool]:
    """Answers that begin by declining, in English; other languages pass."""
    return [
        bool(_REFUSAL.search((answer or "")[:_REFUSAL_WITHIN].replace("’", "'")))
        for answer in labels["answer"]
    ]


def duplicate(labels: Dataset) -> list[bool]:
    """The same prompt with the same answer, but for case and spaces; the first stays.

    The same answer to another prompt is no duplicate.
    """
    seen: set[tuple[str, ...]] = set()
    found = []
    for row in labels:
        parts = [*map(_said, row["messages"]), row["answer"] or ""]
        same = tuple(
            " ".join(unicodedata.normalize("NFC", part).lower().split())
            for part in parts
        )
        found.append(same in seen)
        seen.add(same)
    return found


def near_duplicate(threshold: float = 0.8, *, words: int = 3) -> Filter:
    """Prompts and answers that share most of their runs of words; the first stays.

    Words are what is written between spaces and signs; in scripts without spaces, each
    letter with its marks counts as one. Case, and ways to write the same letters, make
    no difference. The system's message does not count.

    Args:
        threshold: Jaccard similarity of the sets of runs, about.
        words: Length of a run.

    Returns:
        A filter. It needs the ``datasketch`` package (MinHash with banding: Broder
        1997), so its cost grows with the rows and not with their pairs.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in (0, 1]")

    def find(labels: Dataset) -> list[bool]:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ImportError(
                "near_duplicate needs the datasketch package; run: pip install "
                "datasketch"
            ) from None
        index = MinHashLSH(threshold=threshold, num_perm=128)
        found = []
        for number, row in enumerate(labels):
            sketch = MinHash(num_perm=128)
            text = _text(row)
            # Signs alone are a text, too.
            runs = _runs(_words(text), words) or [(text,)]
            sketch.update_batch([" ".join(run).encode() for run in runs])
            found.append(bool(index.query(sketch)))
            if not found[-1]:
                index.insert(number, sketch)
        return found

    return find


def contaminated(evaluation: Iterable[str], *, words: int = 8) -> Filter:
    """Prompts or answers that hold a run of words from the evaluation's texts.

    A prompt that is one of the texts is always found, however short it is. Case and
    ways to write the same letters (composed or not, full width or half) make no
    difference. Words are what is written between spaces and signs. In scripts without
    spaces, words are counted by their letters, each with its marks: two are about a
    word in Chinese and Japanese, three in Thai, Lao, Khmer, Burmese and their like.
    Translations and paraphrases are not found.

    Args:
        evaluation: Its questions and answers.
        words: Length of a run. A shorter text counts if all of it is there, unless
            it has fewer than half as many words: a one-word answer is everywhere.
    """
    if words < 1:
        raise ValueError(f"words={words} must be at least 1")
    if isinstance(evaluation, str):
        raise ValueError("evaluation is one string; pass a list of texts")
    texts = list(evaluation)
    wholes = {_bare(text) for text in texts} - {""}
    held_out = [_words(text) for text in texts]
    runs = {run for text in held_out for run in _long_runs(text, words)}
    short = {tuple(t) for t in held_out if 3 * words <= _weight(t) < 6 * words}
    sizes = {len(text) for text in short}

    def find(labels: Dataset) -> list[bool]:
        found = []
        for row in labels:
            text = _words(_text(row))
            found.append(
                any(
                    message["role"] != "assistant"
                    and _bare(_content(message)) in wholes
                    for message in row["messages"]
                )
                or any(run in runs for run in _long_runs(text, words))
                or any(
                    len(run) == size and run in short
                    for size in sizes
                    for run in _runs(text, size)
                )
            )
        return found

    return find


def wrong(is_right: Callable[[Row], bool]) -> Filter:
    """Answers that a checker of yours does not accept.

    Args:
        is_right: Called with a row.
    """
    return lambda labels: [not is_right(row) for row in labels]


def _text(row: Row) -> str:
    parts = [_said(m) for m in row["messages"] if m["role"] != "system"]
    return "\n".join([*parts, row["answer"] or ""])


def _said(message: Mapping[str, Any]) -> str:
    """A message's content, and the tools that it calls."""
    calls = [message.get(name) for name in ("tool_calls", "function_call")]
    written = [json.dumps(c, sort_keys=True, ensure_ascii=False) for c in calls if c]
    return "\n".join([_content(message), *written])


def _content(message: Mapping[str, Any]) -> str:
    """A message's text, be it a string, a list of parts or none."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    texts = [p if isinstance(p, str) else (p or {}).get("text") for p in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def _folded(text: str) -> str:
    """The text in one way of writing: composed, of plain width, without case."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


def _bare(text: str) -> str:
    """The text without spaces; its signs may tell "2 + 2" from "2 - 2"."""
    return "".join(_folded(text).split())


def _words(text: str) -> list[str]:
    """Words, and single letters of scripts without spaces, with their marks."""
    text = _folded(text)
    if text.isascii():
        return re.findall(r"\w+", text)
    text = "".join(character for character in text if _kind(character) != "-")
    kinds = "".join(map(_kind, text))
    return [text[m.start() : m.end()] for m in re.finditer("um*|w[wm]*", kinds)]


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """``w``ord, ``m``ark, ``u``nspaced letter, ``-`` for nothing, or a space."""
    category = unicodedata.category(character)
    if category == "Cf":  # joiners, and the breaks that Khmer and Thai are given
        return "-"
    if category[0] == "M":
        return "m"
    if not character.isalnum() and character != "_":
        return " "
    return "u" if _letters_a_word(character) > 1 else "w"


@lru_cache(maxsize=1 << 16)
def _letters_a_word(character: str) -> int:
    script = unicodedata.name(character, "").partition(" ")[0]
    return _UNSPACED.get(script, 1)


def _weight(words: Iterable[str]) -> int:
    """Sixths of words, about, as a reader of the script would count them."""
    return sum(6 // _letters_a_word(word[0]) for word in words)


def _long_runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    """From each place the shortest run that is ``size`` words long, by its weight."""
    weights = [_weight([word]) for word in words]
    runs, end, total = [], 0, 0
    for start, weight in enumerate(weights):
        while total < 6 * size and end < len(words):
            total += weights[end]
            end += 1
        if total < 6 * size:
            break
        runs.append(tuple(words[start:end]))
        total -= weight
    return runs


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    if not words:
        return []
    size = min(size, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
