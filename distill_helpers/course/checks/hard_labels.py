"""Notebook 05: labels for an answer, copies of the test, and a second opinion."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from distill_helpers.course.checks.answers import UnusableError, yes_or_no
from distill_helpers.course.checks.answers import kind as kind_of
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import say
from distill_helpers.losses import IGNORE_INDEX


def _labels(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [IGNORE_INDEX] * len(prompt) + [*answer, end]


ANSWER_LABELS = Exercise(
    "answer_labels",
    reference=_labels,
    # In the last one, the end token stands in the answer, too: say, between two steps.
    inputs=(([5, 6], [7, 8, 9], 0), ([4, 4, 4], [9], 2), ([5], [6, 2, 7], 2)),
    wrong={
        "end_not_learned": lambda *a: [*_labels(*a)[:-1], IGNORE_INDEX],
        "prompt_learned": lambda prompt, answer, end: [*prompt, *answer, end],
        "shifted_twice": lambda *a: [*_labels(*a)[1:], IGNORE_INDEX],
        "masked_by_id": lambda prompt, answer, end: [
            IGNORE_INDEX if token == end else token
            for token in _labels(prompt, answer, end)
        ],
    },
)


def _runs(text: str, n: int, *, lower: bool = True, missed: int = 0) -> set[str]:
    words = (text.lower() if lower else text).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1 - missed)}


_TEST = "a small animal that lives in trees"

SHARES_RUN = Exercise(
    "shares_run",
    reference=lambda text, test, n: bool(_runs(text, n) & _runs(test, n)),
    inputs=(
        ("It is a small animal that lives", _TEST, 4),
        ("an old ship", _TEST, 2),
        ("A SMALL ANIMAL", _TEST, 3),
        ("trees lives that small", _TEST, 2),
        ("mall anima", _TEST, 2),
        ("a small", _TEST, 3),
        ("lives in trees", _TEST, 3),
    ),
    wrong={
        "bag_of_words": lambda text, test, n: len(_runs(text, 1) & _runs(test, 1)) >= n,
        "case_matters": lambda text, test, n: bool(
            _runs(text, n, lower=False) & _runs(test, n, lower=False)
        ),
        "last_run_missed": lambda text, test, n: bool(
            _runs(text, n, missed=1) & _runs(test, n)
        ),
        "substring": lambda text, test, n: text.lower() in test.lower(),
    },
    adapt=yes_or_no,
)

# --- a second opinion ---------------------------------------------------------------

# Share of right votes that is asked for; guessing gets a third.
_ENOUGH = 0.8
# Words that say nothing: they stand in texts of every kind, and in some more often.
_COMMON = ["a", "the", "of", "or", "in", "for", "with", "that", "is", "used"]
_TELLING = {
    "animal": [
        "wings",
        "fur",
        "hoofed",
        "bird",
        "tail",
        "fish",
        "nocturnal",
        "burrowing",
    ],
    "food": ["sweet", "baked", "sauce", "spicy", "dough", "fried", "soup", "served"],
    "time": [
        "month",
        "hour",
        "period",
        "century",
        "season",
        "date",
        "moment",
        "year",
    ],
}
Known = list[tuple[str, str]]


def _texts(count: int, seed: int) -> Known:
    """Short texts of three kinds; "time" has the longest, and most common words."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        kind = ("animal", "food", "time", "food", "time", "time", "food")[number % 7]
        common = draw.choices(_COMMON, k=6 if kind == "time" else 4)
        words = draw.sample(_TELLING[kind], k=2) + common + [f"w{draw.randrange(999)}"]
        draw.shuffle(words)
        made.append((" ".join(words), kind))
    return made


_KNOWN, _OTHERS = _texts(60, 0), _texts(30, 1)
_TRUTH = dict(_KNOWN + _OTHERS)


def _by_bayes(known: Known, texts: list[str], *, turned: int = 1) -> list[str]:
    """The kind under which a text's words are likeliest, as naive Bayes counts."""
    kinds = sorted({kind for _, kind in known})
    counts = {kind: Counter[str]() for kind in kinds}
    for text, kind in known:
        counts[kind].update(set(text.split()))
    sizes = Counter(kind for _, kind in known)

    def score(kind: str, text: str) -> float:
        shares = (
            (counts[kind][word] + 0.2) / (sizes[kind] + 0.4) for word in text.split()
        )
        return turned * sum(map(math.log, shares))

    return [max(kinds, key=lambda kind: score(kind, text)) for text in texts]


def _by_overlap(known: Known, texts: list[str]) -> list[str]:
    """Every shared word counts the same, however common it is."""
    words: dict[str, Counter[str]] = {}
    for text, kind in known:
        words.setdefault(kind, Counter()).update(text.split())
    return [
        max(words, key=lambda kind: sum(words[kind][word] for word in text.split()))
        for text in texts
    ]


def _share_right(votes: Any, inputs: tuple[Known, list[str]]) -> torch.Tensor:
    """Up to what is asked for: any way of voting will do that gets there."""
    texts = inputs[1]
    if not isinstance(votes, Sequence) or isinstance(votes, str):
        raise UnusableError(say("no_list", came=kind_of(votes)))
    if len(votes) != len(texts):
        raise UnusableError(say("list_length", wanted=len(texts), came=len(votes)))
    right = sum(vote == _TRUTH[text] for vote, text in zip(votes, texts, strict=True))
    return torch.tensor(min(right / len(texts), _ENOUGH), dtype=torch.float64)


SECOND_OPINION = Exercise(
    "second_opinion",
    reference=_by_bayes,
    inputs=(
        (_KNOWN[:30], [text for text, _ in _KNOWN[:30]]),
        (_KNOWN, [text for text, _ in _OTHERS]),
    ),
    wrong={
        "common_words_decide": _by_overlap,
        "one_kind": tuple(
            partial(lambda known, texts, kind: [kind] * len(texts), kind=kind)
            for kind in _TELLING
        ),
        "least_likely": partial(_by_bayes, turned=-1),
    },
    adapt=_share_right,
    show=lambda share: say("share_right", percent=round(100 * float(share))),
)
