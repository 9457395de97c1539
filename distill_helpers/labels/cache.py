"""Soft labels on disk: a teacher's distributions, small, and joined by content.

A cache is a folder: ``cache.json`` says what it was made from, and shards hold the
numbers as safetensors. Rows are found by the hash of their token ids, so shuffled data
cannot be misaligned. A writer that is killed goes on where it was, to the same bytes.
What is kept of a distribution, and for how many bytes, is in
:mod:`distill_helpers.labels.schemes`.

Taught in notebook 04. Paper: Anshumann et al. 2025 (Sparse Logit Sampling,
arXiv:2503.16870).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from distill_helpers.data import row_labels
from distill_helpers.labels.cache_files import (
    CacheError,
    check_shard,
    read_header,
    tokenizer_facts,
)
from distill_helpers.labels.cache_rows import RowEncoder, row_key
from distill_helpers.labels.schemes import (
    Scheme,
    decode,
    kept_entropy,
    unpack_ids,
)
from distill_helpers.losses import IGNORE_INDEX, SparseTargets
from distill_helpers.models import eval_mode

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Verification:
    """What :meth:`SoftLabelCache.verify` found.

    Attributes:
        rows: Rows that the teacher read again.
        positions: Distributions compared.
        largest_gap: The largest difference of two entropies, in nats.
    """

    rows: int
    positions: int
    largest_gap: float


_DTYPES = {
    "entropy": np.float32,
    "log_p": np.float16,
    "top_ids": np.uint8,
    "top_weights": np.float16,
    "draws": np.uint8,
}


class _Place(NamedTuple):
    """Where a row's distributions are: so many positions of a shard, from the first."""

    shard: int
    start: int
    size: int


@dataclass(frozen=True)
class SoftLabelCache:
    """A finished cache, opened. Hand it to ``SoftLabelTrainer`` as the teacher.

    Attributes:
        path: Its folder.
        header: What it was made from; ``cache.json``.
    """

    path: Path
    header: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Dataset | None = None,
        checksums: bool = True,
    ) -> SoftLabelCache:
        """Open a cache, and refuse one that does not belong here.

        Args:
            path: The folder.
            tokenizer: The student's; its vocabulary and chat template must be those
                the cache was written with.
            dataset: Rows that will be trained on; every one must be in the cache.
            checksums: Read every shard once and compare. Skip it only for a cache
                that was checked before.

        Raises:
            CacheError: Naming what does not fit.
        """
        path = Path(path)
        header = read_header(path)
        if "part" in header:
            raise CacheError(
                f"{path} is a part of a cache; join all parts (distill cache --merge, "
                f"merge_cache) and open {path.parent}"
            )
        if not header["complete"]:
            done = sum(shard["rows"] for shard in header["shards"])
            raise CacheError(
                f"{path} is unfinished ({done:,} of {header['dataset']['rows']:,} "
                "rows); write it again with the same options, and it is completed"
            )
        if tokenizer is not None:
            _check_tokenizer(path, header, tokenizer)
        cache = cls(path, header)
        for shard in header["shards"]:
            check_shard(path / shard["file"], shard, checksums=checksums)
        cache._check_positions()
        if dataset is not None:
            cache.check_dataset(dataset)
        return cache

    @property
    def scheme(self) -> Scheme:
        """What is kept of a distribution."""
        return Scheme(**self.header["scheme"])

    @property
    def vocabulary(self) -> int:
        """Tokens that the soft labels are over."""
        return self.scheme.vocabulary

    @property
    def temperature(self) -> float:
        """The temperature of the teacher's softmax when the cache was written."""
        return float(self.header["temperature"])

    @property
    def bytes_per_token(self) -> float:
        """Size on disk over the number of stored positions."""
        size = sum(shard["bytes"] for shard in self.header["shards"])
        return float(size / self.header["dataset"]["positions"])

    @cached_property
    def _shards(self) -> list[Any]:
        from safetensors import safe_open

        return [
            safe_open(str(self.path / shard["file"]), framework="numpy")
            for shard in self.header["shards"]
        ]

    @cached_property
    def _places(self) -> dict[int, _Place]:
        """Where each row's distributions are, by the row's key."""
        places = {}
        for number, shard in enumerate(self._shards):
            counts = shard.get_tensor("lengths").astype(np.int64) - 1
            starts = np.cumsum(counts) - counts
            for key, start, count in zip(
                shard.get_tensor("keys").tolist(),
                starts.tolist(),
                counts.tolist(),
                strict=True,
            ):
                places[key] = _Place(number, start, count)
        return places

    def _check_positions(self) -> None:
        found = sum(place.size for place in self._places.values())
        wanted = self.header["dataset"]["positions"]
        stored = sum(
            int(shard.get_slice("entropy").get_shape()[0]) for shard in self._shards
        )
        if found != wanted or stored != wanted:
            raise CacheError(
                f"{self.path} holds {stored:,} distributions for rows that need "
                f"{found:,}, and its header says {wanted:,}: a row of L tokens has "
                "L - 1; delete the folder and write it again"
            )

    def check_dataset(self, dataset: Dataset) -> None:
        """Refuse rows that the cache does not hold, or would learn what is unknown."""
        for index, ids in enumerate(dataset.with_format("numpy")["input_ids"]):
            if len(ids) > 1 and row_key(np.asarray(ids)) not in self._places:
                raise self._missing(f"row {index} of the dataset")
        if not self.header["teacher"].get("answers"):
            return
        for index, row in enumerate(dataset.with_format(None)):
            learned = row_labels(row, index)[1:].numpy() != IGNORE_INDEX
            place = self._places.get(row_key(np.asarray(row["input_ids"])))
            if place and np.isnan(self._stored(place, "entropy"))[learned].any():
                raise CacheError(
                    f"row {index} of the dataset learns its prompt too, and the server "
                    f"of {self.path} told nothing of it; train on the rows of "
                    "served_rows, whose labels are -100 there"
                )

    def _missing(self, what: str) -> CacheError:
        return CacheError(
            f"{what} is not in the cache {self.path}: its token ids differ from every "
            "row that was written (other text, packing, length or chat template); "
            "write a cache for this dataset"
        )

    def lookup(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SparseTargets | torch.Tensor:
        """The soft labels of a batch, in the order of its positions.

        Args:
            input_ids: ``[rows, length]``, padded on the right.
            attention_mask: 0 where padded.

        Returns:
            :class:`~distill_helpers.losses.SparseTargets` of rows · length
            positions; for the scheme ``full`` the teacher's logits, up to a
            constant, ``[rows, length, vocabulary]``. What stands at the last
            position of a row and at padding has no meaning.

        Raises:
            CacheError: If a row is not in the cache.
        """
        rows, length = input_ids.shape
        ids = input_ids.cpu().numpy().astype(np.int32)
        sizes = [length] * rows
        if attention_mask is not None:
            sizes = attention_mask.sum(-1).tolist()
        blank = self._blank(rows, length)
        for row, size in enumerate(sizes):
            place = self._places.get(row_key(ids[row, :size]))
            if place is None:
                if size < 2:
                    continue
                raise self._missing(f"row {row} of the batch")
            for name, column in blank.items():
                column[row, : place.size] = self._stored(place, name)
        return self._decoded(blank, input_ids.device)

    def _stored(self, place: _Place, column: str) -> NDArray[Any]:
        part = slice(place.start, place.start + place.size)
        values: NDArray[Any] = self._shards[place.shard].get_slice(column)[part]
        return values

    def _blank(self, rows: int, length: int) -> dict[str, NDArray[Any]]:
        first = self._shards[0]
        stored = set(first.keys())
        return {
            name: np.zeros(
                (rows, length, *first.get_slice(name).get_shape()[1:]), dtype=dtype
            )
            for name, dtype in _DTYPES.items()
            if name in stored
        }

    def _decoded(
        self, columns: dict[str, NDArray[Any]], device: torch.device
    ) -> SparseTargets | torch.Tensor:
        if "log_p" in columns:
            # As logits: the loss divides by T.
            log_p = torch.from_numpy(columns["log_p"]).to(device).float()
            return log_p * self.temperature
        flat = {name: c.reshape(-1, *c.shape[2:]) for name, c in columns.items()}
        targets = decode(flat, self.scheme, self.temperature).to(device)
        # Then the loss looks whether anything is known where it counts.
        return replace(targets, checked=not self.header["teacher"].get("answers"))

    def verify(
        self,
        teacher: PreTrainedModel,
        rows: Dataset,
        *,
        tokenizer: PreTrainedTokenizerBase,
        tolerance: float = 0.05,
    ) -> Verification:
        """Let the teacher read some rows again, and compare.

        Args:
            teacher: The model that the cache should be of; read in eval mode.
            rows: A few rows of the dataset; each must be in the cache. Rows of one
                token, which have no soft labels, are passed over.
            tokenizer: The teacher's; it pads.
            tolerance: Largest difference between a stored entropy and a recomputed
                one, in nats; of a teacher in half precision, the median difference.
                There other hardware or batching moves single positions by 0.3, and in
                fp32 hardly at all; a server that rounds its weights may move them by
                0.3, too.

        Raises:
            CacheError: If a distribution is another one, with the likely cause.
        """
        encoder = RowEncoder(teacher, tokenizer, self.header)
        half = self.header["teacher"].get("dtype") in ("bfloat16", "float16")
        worst, positions, compared = 0.0, 0, 0
        for row in rows.with_format("numpy")["input_ids"]:
            ids = np.asarray(row, dtype=np.int32)
            if len(ids) < 2:
                continue
            key = row_key(ids)
            if key not in self._places:
                raise self._missing("a row")
            place = self._places[key]
            with eval_mode(teacher):
                fresh = encoder.encode([ids.tolist()], np.array([key], dtype=np.uint64))
            stored = {
                name: self._stored(place, name)
                for name in fresh.keys() - {"keys", "lengths"}
            }
            if self.header["teacher"].get("served"):
                known = ~np.isnan(stored["entropy"])
                fresh["entropy"] = kept_entropy(fresh["top_weights"])
                stored, fresh = (
                    {name: side[name][known] for name in stored}
                    for side in (stored, fresh)
                )
            gaps = np.abs(stored["entropy"] - fresh["entropy"])
            largest = float(gaps.max())
            gap = float(np.median(gaps)) if half else largest
            worst, positions = max(worst, largest), positions + len(gaps)
            compared += 1
            agreement = _agreement(self.scheme, stored, fresh, draws=not half)
            # Not "gap > tolerance", which NaN would pass.
            if not gap <= tolerance or agreement < 0.7:
                raise CacheError(
                    f"{self.path} is not of this teacher: {_cause(stored, fresh)} "
                    f"(entropies differ by up to {largest:.2f} nats)"
                )
        return Verification(compared, positions, worst)


def _check_tokenizer(
    path: Path, header: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    facts = tokenizer_facts(tokenizer)
    if header["tokenizer"] != facts["tokenizer"]:
        raise CacheError(
            f"{path} was written with another tokenizer; its token ids mean other "
            "words. Use the teacher's tokenizer for the student"
        )
    if header["chat_template"] != facts["chat_template"]:
        raise CacheError(
            f"{path} was written with another chat template; the same conversation "
            "becomes other tokens. Give both tokenizers one template"
        )


def _agreement(
    scheme: Scheme,
    stored: dict[str, NDArray[Any]],
    fresh: dict[str, NDArray[Any]],
    *,
    draws: bool,
) -> float:
    """Share of the stored tokens that the teacher would give again.

    Of the likeliest, the order does not matter: rounding swaps neighbours. The draws
    come from the same offsets, so they too are the same tokens; but where sums are
    rounded, those behind a neighbour move, and ``draws=False`` leaves them out.
    """
    if "log_p" in stored:
        same = [stored["log_p"].argmax(-1) == fresh["log_p"].argmax(-1)]
        return float(np.concatenate(same, -1).mean())
    same = []
    for name, count in (("top_ids", scheme.top_k), ("draws", scheme.samples)):
        if name in stored and (draws or name != "draws" or "top_ids" not in stored):
            old, new = (
                unpack_ids(side[name], scheme.id_bits, count)
                for side in (stored, fresh)
            )
            if name == "top_ids":
                same.append((old[..., None] == new[:, None, :]).any(-1))
            else:
                same.append(old == new)
    return float(np.concatenate(same, -1).mean())


def _cause(stored: dict[str, NDArray[Any]], fresh: dict[str, NDArray[Any]]) -> str:
    old, new = stored["entropy"], fresh["entropy"]
    if len(old) > 2:
        for shift, words in ((1, "earlier"), (-1, "later")):
            moved = np.roll(old, shift)[1:-1] - new[1:-1]
            if np.abs(moved).max() < 0.05:
                return f"its distributions stand one position too {words}"
    return "other weights, another temperature or dtype, or other text"
