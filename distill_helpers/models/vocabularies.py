"""Do two models speak of the same tokens?

Taught in notebook 02.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerBase,
    )

_LOGGER = logging.getLogger(__name__)


def shared_vocabulary(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> int:
    """Size of the vocabulary that teacher and student share; refuse different ones.

    Compared by content (id to token, merges, added tokens), never by size: two
    vocabularies of one size with different ids train without an error and teach
    nonsense. Heads padded to unequal widths are cut to the returned size.

    A teacher may have a few tokens more, if they were added behind the student's, as
    Qwen3's behind Qwen2.5's: the student's rows cannot hold them. The log says how
    many outputs of the teacher are left out. A student's own tokens are refused, for
    the teacher could not read them.

    Raises:
        ValueError: If the tokenizers differ, naming the first difference.
    """
    ours = _vocabulary_facts(student)
    theirs = ours if teacher is student else _vocabulary_facts(teacher)
    size = vocabulary_size(student)
    appended = {
        index: token
        for index, token in theirs["added tokens"].items()
        if index >= size and theirs["ids"].get(index) == token
    }
    for what in ours:
        shared = theirs.get(what)
        if isinstance(shared, dict):
            shared = {index: shared[index] for index in shared if index not in appended}
        if ours[what] != shared:
            raise ValueError(
                "teacher and student use different tokenizers: "
                f"{_first_difference(what, shared, ours[what])}; soft labels need one "
                "vocabulary. Build the student on the teacher's tokenizer, train "
                "across the two (SoftLabelTrainer(cross='chunks'), distill train soft "
                "--cross chunks), or distil with hard labels (text) instead"
            )
    if appended:
        _LOGGER.warning(
            "the teacher has %d more tokens than the student (%s from id %d on); soft "
            "labels are over the %d that both have, and what the teacher gives to the "
            "others is left out",
            len(appended),
            ", ".join(map(repr, list(appended.values())[:3])),
            min(appended),
            size,
        )
    for name in ("eos_token", "pad_token", "chat_template"):
        if getattr(teacher, name, None) != getattr(student, name, None):
            warnings.warn(
                f"teacher and student have a different {name}; check which one the "
                "training text was written with",
                stacklevel=2,
            )
    return size


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id; ``len`` is less where ids have gaps.

    Can be asked at every step: the vocabulary is looked through once.
    """
    return _highest_id(tokenizer, len(tokenizer)) + 1


@lru_cache(maxsize=4)
def _highest_id(tokenizer: PreTrainedTokenizerBase, _length: int) -> int:
    """With the length among what is remembered, tokens that are added are seen."""
    return int(max(tokenizer.get_vocab().values()))


def shared_vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what :func:`shared_vocabulary` compares: equal for equal vocabularies."""
    facts = json.dumps(_vocabulary_facts(tokenizer), sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _vocabulary_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ids": {index: token for token, index in tokenizer.get_vocab().items()}
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())["model"]
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        facts["merges"] = [
            tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
            for merge in model.get("merges") or []
        ]
    facts["added tokens"] = {
        index: str(token) for index, token in tokenizer.added_tokens_decoder.items()
    }
    return facts


def _first_difference(what: str, teacher: Any, student: Any) -> str:
    if isinstance(teacher, dict):
        for index in sorted(teacher.keys() | student.keys()):
            if teacher.get(index) != student.get(index):
                return (
                    f"id {index} is {teacher.get(index)!r} for the teacher and "
                    f"{student.get(index)!r} for the student ({what})"
                )
    return f"their {what} differ"
