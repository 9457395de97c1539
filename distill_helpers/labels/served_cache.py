"""What a served teacher says of rows, as the columns of a shard.

Rows that :func:`~distill_helpers.labels.served.served_rows` made hold it already. For
others the server is asked, row by row, with the machinery of ``write_labels``: what
arrives is on the disk at once, and a journal in the cache's folder keeps account of
what was asked for.

Taught in notebook 05.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_helpers.labels.ask import ask_all
from distill_helpers.labels.cache_files import CacheError, short_hash, tokenizer_facts
from distill_helpers.labels.cache_rows import row_key
from distill_helpers.labels.schemes import Scheme, kept_entropy, pack_ids
from distill_helpers.labels.served import ServedTeacher, row_request
from distill_helpers.labels.store import LabelFile, Stored

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from distill_helpers.labels.budget import Budget
    from distill_helpers.labels.teachers import Request

_LOGGER = logging.getLogger(__name__)
_SCHEMES = ("top_k", "tail_bucket")


def check_served(
    teacher: ServedTeacher,
    tokenizer: PreTrainedTokenizerBase,
    scheme: str,
    top_k: int,
    temperature: float,
) -> None:
    """Refuse what a server's likeliest tokens cannot give.

    Raises:
        ValueError: With what to pass instead.
    """
    if scheme not in _SCHEMES:
        raise ValueError(
            f"scheme={scheme!r} needs the teacher's whole distribution, and a server "
            "gives the likeliest tokens; pass scheme='tail_bucket', or 'top_k'"
        )
    if temperature != 1:
        raise ValueError(
            f"temperature={temperature}, but a server's probabilities are those of "
            "T = 1, and without the tail there is no way from them to another; pass "
            "temperature=1"
        )
    if top_k > teacher.top_k:
        raise ValueError(
            f"top_k={top_k}, but the teacher is asked for {teacher.top_k} tokens; pass "
            "less, or make it with ServedTeacher(top_k=…)"
        )
    if tokenizer_facts(tokenizer) != tokenizer_facts(teacher.tokenizer):
        raise ValueError(
            "tokenizer is another than the served teacher's, by its vocabulary or "
            "chat template; pass tokenizer=teacher.tokenizer"
        )


def has_tops(dataset: Dataset) -> bool:
    """Whether rows hold what a served teacher said of its answers."""
    return {"top_ids", "top_logprobs"} <= set(dataset.column_names)


class ServedEncoder:
    """Turns rows of token ids into the columns of a shard, by a server's logprobs.

    Args:
        teacher: Who is asked.
        dataset: All rows; those of ``served_rows`` need no asking.
        path: The folder of the cache.
        header: The header of the cache: scheme and shards so far.
        budget: Fresh; what was spent on this cache before is counted here.
        resume: ``False`` forgets what was answered before.
    """

    def __init__(
        self,
        teacher: ServedTeacher,
        dataset: Dataset,
        path: Path,
        header: Mapping[str, Any],
        budget: Budget,
        *,
        resume: bool,
    ) -> None:
        self.teacher = teacher
        self.dataset = dataset
        self.budget = budget
        self.scheme = Scheme(**header["scheme"])
        self.file = path / "answers.jsonl"
        self.places: dict[int, int] = {}
        if has_tops(dataset):
            rows = dataset.with_format("numpy")["input_ids"]
            self.places = {row_key(np.asarray(r)): i for i, r in enumerate(rows)}
        elif not resume:
            with LabelFile.open(self.file, resume=False):
                pass
        # Its journal stays when answers are dropped. They cost what was set aside.
        budget.spend(Stored.read(self.file).spent())

    def encode(
        self, ids: list[list[int]], keys: NDArray[np.uint64], bar: Any = None
    ) -> dict[str, NDArray[Any]]:
        """Columns of all rows, each row's positions one after another.

        Raises:
            CacheError: If rows are missing, with the reason.
            LabelError: If the server cannot be asked.
        """
        if self.places:
            answers: list[Mapping[str, Any]] = [
                self.dataset[self.places[int(key)]] for key in keys
            ]
            if bar is not None:
                bar.update(sum(map(len, ids)) - len(ids))
        else:
            answers = self._asked(ids, keys, bar)
        parts = [
            self._columns(answer, len(row) - 1)
            for answer, row in zip(answers, ids, strict=True)
        ]
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        lengths = np.array([len(row) for row in ids], dtype=np.int32)
        return joined | {"keys": keys, "lengths": lengths}

    def forget(self) -> None:
        """Drop the answers, which are all in shards now; the journal stays."""
        self.file.unlink(missing_ok=True)

    def _asked(
        self, ids: list[list[int]], keys: NDArray[np.uint64], bar: Any
    ) -> list[Mapping[str, Any]]:
        identity = json.dumps(self.teacher.identity(), sort_keys=True, default=str)
        maker = short_hash(identity.encode())
        requests = [
            row_request(f"{int(key):016x}-{maker}", row)
            for key, row in zip(keys, ids, strict=True)
        ]
        wanted = {request.key for request in requests}
        if wanted.isdisjoint(Stored.read(self.file).answers):
            self.forget()  # those of the shards before

        def show(request: Request) -> None:
            if bar is not None:
                bar.set_postfix_str(self.budget.words(), refresh=False)
                bar.update(self.budget.worst(request).prompt - 1)

        with LabelFile.open(self.file, resume=True) as file:
            answers = file.stored.answers
            missing = [one for one in requests if one.key not in answers]
            for request in requests:
                if request.key in answers:
                    show(request)
            failures = ask_all(
                self.teacher,
                missing,
                file,
                self.budget,
                self.teacher.concurrency,
                show,
            )
        lacking = sum(request.key not in answers for request in requests)
        if lacking:
            why = "requests failed"
            if self.budget.ended:
                why = "the budget ends there; raise max_total_tokens or max_cost"
            if failures:
                why = f"{why}; the last failure: {failures[-1].reason}"
            raise CacheError(
                f"{self.file.parent} is unfinished: {lacking} of the {len(requests)} "
                f"rows of a shard are missing: {why}. What was read is stored; call "
                "again to go on"
            )
        found: list[Mapping[str, Any]] = [answers[one.key] for one in requests]
        unmapped = sum(answer["unmapped"] for answer in found)
        if unmapped:
            _LOGGER.warning(
                "%s: %d likeliest tokens are none of the tokenizer's, and are left out",
                self.file.parent,
                unmapped,
            )
        return found

    def _columns(
        self, answer: Mapping[str, Any], positions: int
    ) -> dict[str, NDArray[Any]]:
        """What is stored of one row; NaN where the server told nothing: its prompt."""
        k = self.scheme.top_k
        told = answer["top_ids"]
        fewest = min(map(len, told))
        if fewest < k:
            raise CacheError(
                f"a position of a row has {fewest} likeliest tokens that are known "
                f"here, and top_k={k} are to be kept; pass top_k={max(1, fewest)}, or "
                "make the teacher with a larger one"
            )
        ids = np.zeros((positions, k), dtype=np.int64)
        weights = np.full((positions, k), np.nan, dtype=np.float32)
        ids[-len(told) :] = [some[:k] for some in told]
        weights[-len(told) :] = np.exp([some[:k] for some in answer["top_logprobs"]])
        return {
            "entropy": kept_entropy(weights),
            "top_ids": pack_ids(ids, self.scheme.id_bits),
            "top_weights": weights.astype(np.float16),
        }
