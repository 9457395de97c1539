"""Soft labels on disk: a teacher's distributions, small, and joined by content.

A cache is a folder: ``cache.json`` says what it was made from, and shards hold the
numbers as safetensors. Rows are found by the hash of their token ids, so shuffled data
cannot be misaligned. A writer that is killed goes on where it was, to the same bytes.
What is kept of a distribution, and for how many bytes, is in
:mod:`distill_helpers.soft_label_schemes`.

Taught in notebook 03. Paper: Anshumann et al. 2025 (Sparse Logit Sampling,
arXiv:2503.16870).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from distill_helpers.data import collator_for, refuse_padding
from distill_helpers.heads import HeadReader
from distill_helpers.limits import reading_device
from distill_helpers.losses import Head, Hidden, SparseTargets
from distill_helpers.models import (
    eval_mode,
    public_name,
    shared_vocabulary_hash,
    vocabulary_size,
    weights_hash,
)
from distill_helpers.soft_label_schemes import (
    Scheme,
    decode,
    encode,
    scheme_for,
    unpack_ids,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FORMAT = 1
_HEADER = "cache.json"
# Logits of this many bytes exist at a time while a cache is written.
_CHUNK_BYTES = 64 * 2**20
# A shard is what a kill can cost, and thousands of files are a nuisance.
_SHARDS, _SHARD_BYTES = 64, (2**20, 64 * 2**20)


class CacheError(ValueError):
    """A cache is damaged, unfinished, or belongs to something else."""


@dataclass(frozen=True)
class Verification:
    """What :meth:`SoftLabelCache.verify` found.

    Attributes:
        rows: Rows that the teacher read again.
        positions: Distributions compared.
        largest_gap: Of the entropies, in nats.
    """

    rows: int
    positions: int
    largest_gap: float


# --- writing ------------------------------------------------------------------------


def write_cache(
    teacher: PreTrainedModel,
    dataset: Dataset,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    scheme: str = "hybrid",
    top_k: int = 8,
    samples: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    resume: bool = True,
    progress: bool = True,
    shard_bytes: int | None = None,
) -> SoftLabelCache:
    """Store a teacher's soft labels for every row of a dataset.

    Args:
        teacher: Read in eval mode, without gradients, where it is.
        dataset: Rows with ``input_ids``. A row of L tokens gets L − 1 distributions.
            Rows with the same ids are stored once.
        path: A folder; made if it does not exist.
        tokenizer: The teacher's; its content is part of what is recorded. Outputs
            beyond its vocabulary, which only pad a head, are left out.
        scheme: See the module. The default, ``"hybrid"``, costs 84 bytes a token at a
            vocabulary of 49,152.
        top_k: Tokens kept exactly.
        samples: Tokens drawn.
        temperature: Of the teacher's softmax; fixed from here on.
        seed: Of the draws, together with the row's ids and the position: how rows are
            batched or ordered does not matter.
        batch_size: Rows per forward pass.
        resume: Go on with an unfinished cache of the same making, and return a
            finished one. From the first shard on that is missing or too short, a cache
            is unfinished. ``False`` begins anew.
        progress: Show a bar.
        shard_bytes: Size of a shard, which is also what a kill can cost; default: a
            64th of the cache, between 1 and 64 MiB.

    Returns:
        The opened cache.

    Raises:
        CacheError: If the folder holds a cache of another making, or another process
            is writing it, or the disk is too small.
        ValueError: For options out of range.
    """
    from filelock import FileLock, Timeout

    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a positive number")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    rows = _Rows.of(dataset)
    plan = _header(
        teacher, tokenizer, rows, scheme, top_k, samples, temperature, seed, batch_size
    )
    plan["rows_per_shard"] = _rows_per_shard(plan, rows, shard_bytes)
    lock = FileLock(path / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise CacheError(
            f"another process is writing to {path}; wait for it, or choose another path"
        ) from None
    with held:
        header = _begin(path, plan, resume=resume)
        was_there = header["complete"]
        if not was_there:
            _check_space(path, header, rows)
            _write_shards(
                teacher, dataset, tokenizer, path, header, rows, progress=progress
            )
    # The tokenizer is part of the plan, and fresh shards have just been hashed.
    return SoftLabelCache.open(path, checksums=was_there)


def _header(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: _Rows,
    scheme: str,
    top_k: int,
    samples: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    width = int(teacher.config.get_text_config().vocab_size)
    vocabulary = min(width, vocabulary_size(tokenizer))
    if rows.highest >= vocabulary:
        raise ValueError(
            f"the rows hold token {rows.highest}, and teacher and tokenizer know "
            f"{vocabulary} together; were they made with another tokenizer?"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    chosen = scheme_for(scheme, vocabulary, top_k=top_k, samples=samples)
    return {
        "format": _FORMAT,
        "scheme": asdict(chosen),
        "temperature": temperature,
        "seed": seed,
        "batch_size": batch_size,
        "tokenizer": shared_vocabulary_hash(tokenizer),
        "chat_template": _hash_text(str(tokenizer.chat_template or "")),
        "teacher": {
            "name": public_name(teacher),
            "revision": getattr(teacher.config, "_commit_hash", None),
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "weights": weights_hash(teacher),
        },
        "dataset": {
            "rows": len(rows.keys),
            "positions": int((rows.lengths - 1).sum()),
            "order": _hash_bytes(rows.keys.tobytes()),
        },
    }


def _hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _hash_text(text: str) -> str:
    return _hash_bytes(text.encode())


def row_key(ids: NDArray[np.int32]) -> int:
    """What a row is found by: 64 bits of a hash of its token ids."""
    digest = hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class _Rows:
    """The distinct rows of a dataset, in order."""

    keys: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    indices: NDArray[np.int64]
    highest: int  # token id

    @classmethod
    def of(cls, dataset: Dataset) -> _Rows:
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                f"dataset is a stream ({type(dataset).__name__}), and a cache has to "
                "know its rows before it begins: make a Dataset of them "
                "(Dataset.from_list(list(dataset))), or of a part (dataset.take(n)). "
                "The rows of data.stream_rows, too, are learned from a live teacher"
            )
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                f"dataset has the columns {dataset.column_names}; it needs input_ids: "
                "tokenize and pack it first (data.pack)"
            )
        if "position_ids" in dataset.column_names:
            raise ValueError(
                "rows come from pack_examples and hold several examples each; store "
                "the examples themselves, one to a row"
            )
        if "attention_mask" in dataset.column_names:
            refuse_padding(dataset.with_format("numpy")["attention_mask"])
        found: dict[int, tuple[int, int]] = {}
        highest = 0
        for index, ids in enumerate(dataset.with_format("numpy")["input_ids"]):
            if len(ids) > 1:  # a single token is followed by nothing
                found.setdefault(row_key(np.asarray(ids)), (len(ids), index))
                highest = max(highest, int(np.max(ids)))
        if not found:
            raise ValueError("dataset holds no row of two tokens or more")
        lengths, indices = np.array(list(found.values()), dtype=np.int64).T
        keys = np.array(list(found), dtype=np.uint64)
        return cls(keys, lengths, indices, highest)


def _rows_per_shard(
    header: dict[str, Any], rows: _Rows, shard_bytes: int | None
) -> int:
    size = Scheme(**header["scheme"]).bytes_per_position
    size *= header["dataset"]["positions"]
    if shard_bytes is None:
        least, most = _SHARD_BYTES
        shard_bytes = min(max(size // _SHARDS, least), most)
    mean = size / len(rows.keys)
    batches = max(1, int(shard_bytes / mean / header["batch_size"]))
    return batches * int(header["batch_size"])


def _begin(path: Path, plan: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The header to go on with, on disk; half-written files are gone."""
    file = path / _HEADER
    if file.is_file() and resume:
        header = _read_header(path)
        for name, wanted in plan.items():
            # However it was cut into shards, it goes on like that.
            if name != "rows_per_shard" and header.get(name) != wanted:
                raise CacheError(
                    f"{path} holds a cache with {name}={header.get(name)}, and now "
                    f"{name}={wanted} is asked for; choose another path, or begin "
                    "anew (delete the folder, or pass resume=False)"
                )
        _cut_at_gap(path, header)
    else:
        for old in path.glob("shard-*"):
            old.unlink()
        header = plan | {"shards": [], "complete": False}
        _write_header(path, header)
    known = {shard["file"] for shard in header["shards"]}
    for old in path.glob("shard-*"):
        if old.name not in known:
            old.unlink()
    return header


def _cut_at_gap(path: Path, header: dict[str, Any]) -> None:
    """Forget the shards from the first on that is lost, so that they are written.

    A folder that was copied may have come without some of its files, or with parts.
    """
    for number, shard in enumerate(header["shards"]):
        try:
            _check_shard(path / shard["file"], shard, checksums=False)
        except CacheError:
            header["shards"] = header["shards"][:number]
            header["complete"] = False
            _write_header(path, header)
            return


def _check_space(path: Path, header: dict[str, Any], rows: _Rows) -> None:
    done = sum(shard["rows"] for shard in header["shards"])
    left = int((rows.lengths[done:] - 1).sum())
    needed = left * Scheme(**header["scheme"]).bytes_per_position
    free = shutil.disk_usage(path).free
    if needed > free:
        raise CacheError(
            f"the cache needs {needed / 1e9:.2f} GB more and {path} has "
            f"{free / 1e9:.2f} GB free; choose another scheme (hybrid costs under 100 "
            "bytes a token), fewer rows or another disk"
        )


def _write_shards(
    teacher: PreTrainedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    header: dict[str, Any],
    rows: _Rows,
    *,
    progress: bool,
) -> None:
    writer = _Writer(teacher, tokenizer, header)
    size = header["rows_per_shard"]
    done = sum(shard["rows"] for shard in header["shards"])
    bar = tqdm(
        total=int((rows.lengths - 1).sum()),
        initial=int((rows.lengths[:done] - 1).sum()),
        unit="tok",
        unit_scale=True,
        desc="soft labels",
        disable=not progress,
    )
    with bar, eval_mode(teacher):
        for start in range(done, len(rows.keys), size):
            part = slice(start, start + size)
            chosen = dataset.with_format(None).select(rows.indices[part])
            columns = writer.shard(chosen["input_ids"][:], rows.keys[part], bar)
            name = f"shard-{len(header['shards']):05d}.safetensors"
            facts = _write_file(path / name, columns)
            header["shards"].append(
                {"file": name, "rows": len(rows.keys[part]), **facts}
            )
            _write_header(path, header)
    header["complete"] = True
    _write_header(path, header)


def _write_file(path: Path, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    from safetensors.numpy import save

    data = save(columns)
    _replace(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_header(path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
    _replace(path / _HEADER, text.encode())


def _replace(path: Path, data: bytes) -> None:
    """All of it or nothing, also when the power fails."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class _Writer:
    """Turns rows of token ids into the columns of a shard."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        header: Mapping[str, Any],
    ) -> None:
        self.teacher = teacher
        self.scheme = Scheme(**header["scheme"])
        self.temperature = float(header["temperature"])
        self.seed = int(header["seed"])
        self.batch_size = int(header["batch_size"])
        self.collate = collator_for(tokenizer)
        self.reader = HeadReader("teacher", fused=True)

    def shard(
        self, ids: list[list[int]], keys: NDArray[np.uint64], bar: Any = None
    ) -> dict[str, NDArray[Any]]:
        """Columns of all rows, each row's positions one after another."""
        lengths = np.array([len(row) for row in ids])
        # Rows of one length belong together; the plan depends on nothing else.
        order = np.argsort(-lengths, kind="stable")
        parts: list[dict[str, NDArray[Any]]] = [{} for _ in ids]
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            columns = self._batch([ids[index] for index in chosen], keys[chosen])
            ends = np.cumsum(lengths[chosen] - 1)
            for index, end in zip(chosen, ends, strict=True):
                positions = slice(end - lengths[index] + 1, end)
                parts[index] = {name: c[positions] for name, c in columns.items()}
            if bar is not None:
                bar.update(int(ends[-1]))
        joined = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
        return joined | {"keys": keys, "lengths": lengths.astype(np.int32)}

    @torch.no_grad()
    def _batch(
        self, ids: list[list[int]], keys: NDArray[np.uint64]
    ) -> dict[str, NDArray[Any]]:
        device = reading_device(self.teacher)
        batch = {
            name: value.to(device)
            for name, value in self.collate([{"input_ids": row} for row in ids]).items()
        }
        read = self.reader.read(self.teacher, batch)
        head = None
        if isinstance(read, Hidden):
            head = read.head.cut(self.scheme.vocabulary)
        hidden = read.states if isinstance(read, Hidden) else read
        # The last position of a row predicts nothing that is there.
        counted = batch["attention_mask"][:, 1:].bool()
        hidden = hidden[:, :-1][counted]
        offsets = np.concatenate(
            [
                _offsets(self.seed, int(key), len(row) - 1)
                for row, key in zip(ids, keys, strict=True)
            ]
        )
        pieces = [
            encode(logits, self.scheme, torch.from_numpy(some).to(device))
            for logits, some in self._blocks(hidden, head, offsets)
        ]
        return {
            name: np.concatenate([piece[name] for piece in pieces])
            for name in pieces[0]
        }

    def _blocks(
        self, hidden: torch.Tensor, head: Head | None, offsets: NDArray[np.float64]
    ) -> Iterator[tuple[torch.Tensor, NDArray[np.float64]]]:
        """Logits over T in fp32, a few positions at a time, and their offsets.

        The product with the head wants many positions at once and one buffer that
        stays; what follows wants blocks that stay in the processor's cache.
        """
        chunk = max(1, _CHUNK_BYTES // (4 * self.scheme.vocabulary))
        most = 2**20 if hidden.device.type == "cpu" else 2**25
        block = max(1, most // self.scheme.vocabulary)
        buffer = None
        for start in range(0, len(hidden), chunk):
            logits = hidden[start : start + chunk]
            if head is None:
                logits = logits[:, : self.scheme.vocabulary]
            else:
                if buffer is None:
                    buffer = hidden.new_empty(len(logits), self.scheme.vocabulary)
                logits = head.logits(logits, out=buffer)
            for i in range(0, len(logits), block):
                some = logits[i : i + block].to(torch.float32, copy=True)
                if self.temperature != 1:
                    some /= self.temperature
                yield some, offsets[start + i :][: len(some)]


def _offsets(seed: int, key: int, positions: int) -> NDArray[np.float64]:
    """One uniform number per position, from seed and row alone."""
    bits = np.random.Philox(key=np.array([seed, key], dtype=np.uint64))
    return np.random.Generator(bits).random(positions)


# --- reading ------------------------------------------------------------------------


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
        header = _read_header(path)
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
            _check_shard(path / shard["file"], shard, checksums=checksums)
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
        """Of the teacher's softmax."""
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
    def _places(self) -> dict[int, tuple[int, int, int]]:
        """Row key to (shard, first position, number of positions)."""
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
                places[key] = (number, start, count)
        return places

    def _check_positions(self) -> None:
        found = sum(count for _, _, count in self._places.values())
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
        """Refuse rows that the cache does not hold."""
        for index, ids in enumerate(dataset.with_format("numpy")["input_ids"]):
            if len(ids) > 1 and row_key(np.asarray(ids)) not in self._places:
                raise self._missing(f"row {index} of the dataset")

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
            number, start, count = place
            for name, column in blank.items():
                column[row, :count] = self._shards[number].get_slice(name)[
                    start : start + count
                ]
        return self._decoded(blank, input_ids.device)

    def _blank(self, rows: int, length: int) -> dict[str, NDArray[Any]]:
        if not self._shards:
            return {}
        names = ("entropy", "log_p", "top_ids", "top_weights", "draws")
        first = self._shards[0]
        return {
            name: np.zeros(
                (rows, length, *first.get_slice(name).get_shape()[1:]),
                dtype=_DTYPES[name],
            )
            for name in names
            if name in first.keys()  # noqa: SIM118 (no mapping)
        }

    def _decoded(
        self, columns: dict[str, NDArray[Any]], device: torch.device
    ) -> SparseTargets | torch.Tensor:
        if "log_p" in columns:
            # As logits: the loss divides by T.
            log_p = torch.from_numpy(columns["log_p"]).to(device).float()
            return log_p * self.temperature
        flat = {name: c.reshape(-1, *c.shape[2:]) for name, c in columns.items()}
        return decode(flat, self.scheme, self.temperature).to(device)

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
            teacher: That the cache should be of; read in eval mode.
            rows: A few rows of the dataset; each must be in the cache. Rows of one
                token, which have no soft labels, are passed over.
            tokenizer: Pads.
            tolerance: Largest difference between a stored entropy and a recomputed
                one, in nats. Other hardware or batching moves it by less.

        Raises:
            CacheError: If a distribution is another one, with the likely cause.
        """
        writer = _Writer(teacher, tokenizer, self.header)
        worst, positions, compared = 0.0, 0, 0
        for row in rows.with_format("numpy")["input_ids"]:
            ids = np.asarray(row, dtype=np.int32)
            if len(ids) < 2:
                continue
            key = row_key(ids)
            if key not in self._places:
                raise self._missing("a row")
            number, start, count = self._places[key]
            with eval_mode(teacher):
                fresh = writer.shard([ids.tolist()], np.array([key], dtype=np.uint64))
            stored = {
                name: self._shards[number].get_slice(name)[start : start + count]
                for name in fresh.keys() - {"keys", "lengths"}
            }
            gap = float(np.abs(stored["entropy"] - fresh["entropy"]).max())
            worst, positions = max(worst, gap), positions + count
            compared += 1
            # Not "gap > tolerance", which NaN would pass.
            if not gap <= tolerance or self._agreement(stored, fresh) < 0.7:
                raise CacheError(
                    f"{self.path} is not of this teacher: {_cause(stored, fresh)} "
                    f"(entropies differ by up to {gap:.2f} nats)"
                )
        return Verification(compared, positions, worst)

    def _agreement(
        self, stored: dict[str, NDArray[Any]], fresh: dict[str, NDArray[Any]]
    ) -> float:
        """Share of the stored tokens that the teacher would give again.

        The draws come from the same offsets, so they too are the same tokens.
        """
        if "log_p" in stored:
            return float(
                (stored["log_p"].argmax(-1) == fresh["log_p"].argmax(-1)).mean()
            )
        scheme = self.scheme
        same = [
            unpack_ids(stored[name], scheme.id_bits, count)
            == unpack_ids(fresh[name], scheme.id_bits, count)
            for name, count in (("top_ids", scheme.top_k), ("draws", scheme.samples))
            if name in stored
        ]
        return float(np.concatenate(same, -1).mean())


_DTYPES = {
    "entropy": np.float32,
    "log_p": np.float16,
    "top_ids": np.uint8,
    "top_weights": np.float16,
    "draws": np.uint8,
}


def _cause(stored: dict[str, NDArray[Any]], fresh: dict[str, NDArray[Any]]) -> str:
    old, new = stored["entropy"], fresh["entropy"]
    if len(old) > 2:
        for shift, words in ((1, "earlier"), (-1, "later")):
            moved = np.roll(old, shift)[1:-1] - new[1:-1]
            if np.abs(moved).max() < 0.05:
                return f"its distributions stand one position too {words}"
    return "other weights, another temperature or dtype, or other text"


def _read_header(path: Path) -> dict[str, Any]:
    file = path / _HEADER
    if not file.is_file():
        raise CacheError(f"{path} holds no soft-label cache: {_HEADER} is missing")
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheError(
            f"{file} is damaged ({error}); delete the folder and write it again"
        ) from None
    if header.get("format") != _FORMAT:
        raise CacheError(
            f"{path} has format {header.get('format')}, and this version reads "
            f"{_FORMAT}; delete the folder and write it again"
        )
    return header


def _check_tokenizer(
    path: Path, header: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    if header["tokenizer"] != shared_vocabulary_hash(tokenizer):
        raise CacheError(
            f"{path} was written with another tokenizer; its token ids mean other "
            "words. Use the teacher's tokenizer for the student"
        )
    if header["chat_template"] != _hash_text(str(tokenizer.chat_template or "")):
        raise CacheError(
            f"{path} was written with another chat template; the same conversation "
            "becomes other tokens. Give both tokenizers one template"
        )


def _check_shard(path: Path, shard: Mapping[str, Any], *, checksums: bool) -> None:
    if not path.is_file():
        raise CacheError(
            f"{path} is missing; copy the whole folder, or write the cache again with "
            "the same options, and it is completed"
        )
    if path.stat().st_size != shard["bytes"]:
        raise CacheError(
            f"{path} has {path.stat().st_size:,} bytes instead of "
            f"{shard['bytes']:,}; copy it again, or write the cache again with the "
            "same options, and it is completed"
        )
    if checksums:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard["sha256"]:
            raise CacheError(
                f"{path} is damaged: its checksum differs; copy it again, or delete it "
                "and write the cache again with the same options"
            )
