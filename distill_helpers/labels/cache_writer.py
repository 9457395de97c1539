"""Writing a cache of soft labels: resumable to the same bytes.

Taught in notebook 04.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from distill_helpers.data import TEACHER_PROMPT, refuse_padding
from distill_helpers.labels.budget import Budget
from distill_helpers.labels.cache import SoftLabelCache
from distill_helpers.labels.cache_files import (
    FORMAT,
    HEADER,
    CacheError,
    check_shard,
    read_header,
    short_hash,
    tokenizer_facts,
    write_header,
    write_shard,
)
from distill_helpers.labels.cache_rows import RowEncoder, row_key
from distill_helpers.labels.files import only_writer
from distill_helpers.labels.schemes import Scheme, scheme_for
from distill_helpers.labels.served import ServedTeacher
from distill_helpers.labels.served_cache import ServedEncoder, check_served, has_tops
from distill_helpers.models import (
    eval_mode,
    public_name,
    vocabulary_size,
    weights_hash,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A shard is what a kill can cost, and thousands of files are a nuisance.
_SHARDS, _SHARD_BYTES = 64, (2**20, 64 * 2**20)


def write_cache(
    teacher: PreTrainedModel | ServedTeacher,
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
    max_total_tokens: int | None = None,
    max_cost: float | None = None,
) -> SoftLabelCache:
    """Store a teacher's soft labels for every row of a dataset.

    Args:
        teacher: The model whose distributions are stored. It is read where it is, in
            eval mode and without gradients. Or a
            :class:`~distill_helpers.labels.served.ServedTeacher`, which gives its
            likeliest tokens at T = 1: for the schemes ``"top_k"`` and
            ``"tail_bucket"``. It is asked row by row, and for no row twice; for none
            where the rows come from
            :func:`~distill_helpers.labels.served.served_rows`.
        dataset: Rows with ``input_ids``. A row of L tokens gets L − 1 distributions.
            Rows with the same ids are stored once.
        path: A folder; made if it does not exist.
        tokenizer: The teacher's; its content is part of what is recorded. Outputs
            beyond its vocabulary, which only pad a head, are left out.
        scheme: What is kept of a distribution: one of the names that
            :mod:`distill_helpers.labels.schemes` explains. The default, ``"hybrid"``,
            costs 84 bytes a token at a vocabulary of 49,152.
        top_k: Tokens kept exactly.
        samples: Tokens drawn.
        temperature: The temperature of the teacher's softmax; fixed from here on.
        seed: Fixes the draws, together with the row's ids and the position: how rows
            are batched or ordered does not matter.
        batch_size: Rows per forward pass.
        resume: Go on with an unfinished cache of the same making, and return a
            finished one. From the first shard on that is missing or too short, a cache
            is unfinished. ``False`` begins anew.
        progress: Show a bar.
        shard_bytes: Size of a shard, which is also what a kill can cost; default: a
            64th of the cache, between 1 and 64 MiB.
        max_total_tokens: Ask a served teacher for nothing that could bring the tokens
            of this cache above this; what an earlier call asked for is counted.
        max_cost: The most money to spend, in the currency of the teacher's price.

    Returns:
        The opened cache.

    Raises:
        CacheError: If the folder holds a cache of another making, or another process
            is writing it, or the disk is too small; or if rows of a served teacher
            are missing, because the budget ends or requests failed. What was read is
            stored, and another call goes on.
        LabelError: If a served teacher cannot be asked; the message says why.
        ValueError: For options out of range.

    Taught in notebook 04.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a positive number")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    path = Path(path)
    if isinstance(teacher, ServedTeacher):
        check_served(teacher, tokenizer, scheme, top_k, temperature)
        budget = Budget(teacher, max_total_tokens, max_cost)
    elif max_total_tokens is not None or max_cost is not None:
        raise ValueError(
            "max_total_tokens and max_cost are for a ServedTeacher; a model in this "
            "process costs nothing"
        )
    path.mkdir(parents=True, exist_ok=True)
    rows = _Rows.of(dataset)
    vocabulary = _vocabulary(teacher, tokenizer, rows)
    chosen = scheme_for(scheme, vocabulary, top_k=top_k, samples=samples)
    plan = {
        "format": FORMAT,
        "scheme": asdict(chosen),
        "temperature": temperature,
        "seed": seed,
        "batch_size": batch_size,
        **tokenizer_facts(tokenizer),
        "teacher": _facts(teacher, dataset),
        "dataset": {
            "rows": len(rows.keys),
            "positions": rows.positions(),
            "order": short_hash(rows.keys.tobytes()),
        },
    }
    size = chosen.bytes_per_position * rows.positions()
    if shard_bytes is None:
        shard_bytes = min(max(size // _SHARDS, _SHARD_BYTES[0]), _SHARD_BYTES[1])
    batches = max(1, int(shard_bytes / (size / len(rows.keys)) / batch_size))
    plan["rows_per_shard"] = batches * batch_size
    with only_writer(path, path / ".lock", CacheError):
        header = _begin(path, plan, resume=resume)
        was_there = header["complete"]
        if not was_there:
            _check_space(path, header, rows)
            if isinstance(teacher, ServedTeacher):
                served = ServedEncoder(
                    teacher, dataset, path, header, budget, resume=resume
                )
                _write_shards(served, dataset, path, header, rows, progress=progress)
                served.forget()
            else:
                encoder = RowEncoder(teacher, tokenizer, header)
                with eval_mode(teacher):
                    _write_shards(
                        encoder, dataset, path, header, rows, progress=progress
                    )
    # The tokenizer is part of the plan, and fresh shards have just been hashed.
    return SoftLabelCache.open(path, checksums=was_there)


def _facts(teacher: PreTrainedModel | ServedTeacher, dataset: Dataset) -> Any:
    """What a header records of the teacher."""
    if isinstance(teacher, ServedTeacher):
        return teacher.identity() | {"served": True, "answers": has_tops(dataset)}
    return {
        "name": public_name(teacher),
        "revision": getattr(teacher.config, "_commit_hash", None),
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "weights": weights_hash(teacher),
    }


def _vocabulary(
    teacher: PreTrainedModel | ServedTeacher,
    tokenizer: PreTrainedTokenizerBase,
    rows: _Rows,
) -> int:
    """The tokens that teacher and tokenizer share; every row's are among them."""
    vocabulary = vocabulary_size(tokenizer)
    if not isinstance(teacher, ServedTeacher):
        vocabulary = min(vocabulary, int(teacher.config.get_text_config().vocab_size))
    if rows.highest >= vocabulary:
        raise ValueError(
            f"the rows hold token {rows.highest}, and teacher and tokenizer know "
            f"{vocabulary} together; were they made with another tokenizer?"
        )
    return vocabulary


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
        if TEACHER_PROMPT in dataset.column_names:
            raise ValueError(
                f"rows have {TEACHER_PROMPT}, and a cache holds what a teacher says of "
                "the row alone; train with the teacher itself, or store the rows "
                "without that column"
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

    def positions(self, part: slice = slice(None)) -> int:
        """Distributions of all rows, or of some: one less than a row has tokens."""
        return int((self.lengths[part] - 1).sum())


def _begin(path: Path, plan: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The header to go on with, on disk; half-written files are gone."""
    if (path / HEADER).is_file() and resume:
        header = read_header(path)
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
        header = plan | {"shards": [], "complete": False}
        write_header(path, header)
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
            check_shard(path / shard["file"], shard, checksums=False)
        except CacheError:
            header["shards"] = header["shards"][:number]
            header["complete"] = False
            write_header(path, header)
            return


def _check_space(path: Path, header: dict[str, Any], rows: _Rows) -> None:
    done = sum(shard["rows"] for shard in header["shards"])
    left = rows.positions(slice(done, None))
    needed = left * Scheme(**header["scheme"]).bytes_per_position
    free = shutil.disk_usage(path).free
    if needed > free:
        raise CacheError(
            f"the cache needs {needed / 1e9:.2f} GB more and {path} has "
            f"{free / 1e9:.2f} GB free; choose another scheme (hybrid costs under 100 "
            "bytes a token), fewer rows or another disk"
        )


def _write_shards(
    encoder: RowEncoder | ServedEncoder,
    dataset: Dataset,
    path: Path,
    header: dict[str, Any],
    rows: _Rows,
    *,
    progress: bool,
) -> None:
    size = header["rows_per_shard"]
    done = sum(shard["rows"] for shard in header["shards"])
    bar = tqdm(
        total=rows.positions(),
        initial=rows.positions(slice(done)),
        unit="tok",
        unit_scale=True,
        desc="soft labels",
        disable=not progress,
    )
    with bar:
        for start in range(done, len(rows.keys), size):
            part = slice(start, start + size)
            chosen = dataset.with_format(None).select(rows.indices[part])
            columns = encoder.encode(chosen["input_ids"][:], rows.keys[part], bar)
            name = f"shard-{len(header['shards']):05d}.safetensors"
            facts = write_shard(path / name, columns)
            header["shards"].append({"file": name, "rows": len(chosen), **facts})
            write_header(path, header)
    header["complete"] = True
    write_header(path, header)
