"""Which of a teacher's answers a student should learn, and what was dropped.

A filter looks at the rows of :func:`~distill_helpers.hard_labels.write_labels` and says
of each whether it is to go. :func:`filter_labels` applies several, one after another,
and keeps account.

Taught in notebook 04.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
    """Answers without a letter or a digit."""
    return [not re.search(r"\w", answer) for answer in labels["answer"]]


def refused(labels: Dataset) -> list[bool]:
    """Answers that begin by declining, in English."""
    return [
        bool(_REFUSAL.search(answer[:_REFUSAL_WITHIN].replace("’", "'")))
        for answer in labels["answer"]
    ]


def duplicate(labels: Dataset) -> list[bool]:
    """The same prompt with the same answer, but for case and spaces; the first stays.

    The same answer to another prompt is no duplicate.
    """
    seen: set[tuple[str, ...]] = set()
    found = []
    for row in labels:
        parts = [*(message["content"] for message in row["messages"]), row["answer"]]
        same = tuple(" ".join(part.lower().split()) for part in parts)
        found.append(same in seen)
        seen.add(same)
    return found


def near_duplicate(threshold: float = 0.8, *, words: int = 3) -> Filter:
    """Prompts and answers that share most of their runs of words; the first stays.

    Words are what is written between spaces and signs, so languages without spaces
    need another filter. The system's message does not count.

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
            sketch.update_batch(
                [" ".join(run).encode() for run in _runs(_words(_text(row)), words)]
            )
            found.append(bool(index.query(sketch)))
            if not found[-1]:
                index.insert(number, sketch)
        return found

    return find


def contaminated(evaluation: Iterable[str], *, words: int = 8) -> Filter:
    """Prompts or answers that hold a run of words from the evaluation's texts.

    Args:
        evaluation: Its questions and answers.
        words: Length of a run. A shorter text counts if all of it is there, unless
            it has fewer than half as many words: a one-word answer is everywhere.
    """
    if words < 1:
        raise ValueError(f"words={words} must be at least 1")
    held_out = [_words(text) for text in evaluation]
    runs = {run for text in held_out for run in _runs(text, words)}
    runs = {run for run in runs if 2 * len(run) >= words}
    lengths = {len(run) for run in runs}

    def find(labels: Dataset) -> list[bool]:
        found = []
        for row in labels:
            text = _words(_text(row))
            found.append(
                any(run in runs for size in lengths for run in _runs(text, size))
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
    parts = [m["content"] for m in row["messages"] if m["role"] != "system"]
    return "\n".join([*parts, row["answer"]])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    if not words:
        return []
    size = min(size, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
