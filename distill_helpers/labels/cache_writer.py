"""Writing a cache of soft labels: resumable to the same bytes.

Taught in notebook 04.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from distill_helpers.data import TEACHER_PROMPT, refuse_padding
from distill_helpers.labels.budget import Budget
from distill_helpers.labels.cache import SoftLabelCache
from distill_helpers.labels.cache_files import (
    FORMAT,
    HEADER,
    CacheError,
    short_hash,
    tokenizer_facts,
    write_header,
    write_shard,
)
from distill_helpers.labels.cache_parts import (
    StoredShard,
    check_part,
    difference,
    find_shards,
    has_parts,
    join_shards,
    part_folder,
    read_headers,
    refuse_writers,
    remove_parts,
    shard_count,
    shard_name,
)
from distill_helpers.labels.cache_rows import RowEncoder, row_key
from distill_helpers.labels.files import only_writer
from distill_helpers.labels.schemes import Scheme, scheme_for
from distill_helpers.labels.served import ServedTeacher
from distill_helpers.labels.served_cache import ServedEncoder, check_served, has_tops
from distill_helpers.machine import progress_bar
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
_SHARDS, _SHARD_BYTES = 64, (192 * 2**10, 64 * 2**20)


@overload
def write_cache(
    teacher: PreTrainedModel | ServedTeacher,
    dataset: Dataset,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    part: None = None,
    **options: Any,
) -> SoftLabelCache: ...
@overload
def write_cache(
    teacher: PreTrainedModel,
    dataset: Dataset,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    part: tuple[int, int],
    **options: Any,
) -> Path: ...
def write_cache(  # type: ignore[misc]  # the overloads tell apart what is returned
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
    part: tuple[int, int] | None = None,
) -> SoftLabelCache | Path:
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
            finished one. A shard that is missing or too short is written again, and
            one that a part has written is taken over. ``False`` begins anew.
        progress: Show a bar.
        shard_bytes: Size of a shard, which is also what a kill can cost; default: a
            64th of the cache, between 192 KiB and 64 MiB. The same for all parts.
        max_total_tokens: Ask a served teacher for nothing that could bring the tokens
            of this cache above this; what an earlier call asked for is counted.
        max_cost: The most money to spend, in the currency of the teacher's price.
        part: Write one part of several, such as ``(3, 16)``: counted from 0, as the
            ranks of processes and the tasks of a job array are. A part is every 16th
            shard, in a folder of its own inside ``path``, so that the parts can be
            written at the same time, and on machines that share no disk. Each may be
            killed and goes on; with another count of parts, too, what is there stays.
            Then :func:`~distill_helpers.labels.cache_parts.merge_cache` joins them to
            the bytes that one process writes: draws depend on a row, not on who reads
            it, and shards are never divided. Hardware that rounds otherwise may move
            a last bit, as it may for one process. Of a model in this process alone.

    Returns:
        The opened cache; for a part, its folder.

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
    if part is not None:
        check_part(part)
    path = Path(path)
    if isinstance(teacher, ServedTeacher):
        check_served(teacher, tokenizer, scheme, top_k, temperature)
        if part is not None:
            raise ValueError(
                f"part={part} is for a model in each process; a server is asked by one "
                "process, many requests at a time: ServedTeacher(concurrency=…)"
            )
        budget = Budget(teacher, max_total_tokens, max_cost)
    elif max_total_tokens is not None or max_cost is not None:
        raise ValueError(
            "max_total_tokens and max_cost are for a ServedTeacher; a model in this "
            "process costs nothing"
        )
    folder = path if part is None else part_folder(path, part)
    folder.mkdir(parents=True, exist_ok=True)
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
    plan = json.loads(json.dumps(plan))  # as a header comes back from the disk
    with only_writer(folder, folder / ".lock", CacheError):
        if part is None:
            refuse_writers(path)
        if not resume:
            (folder / HEADER).unlink(missing_ok=True)
            if part is None:
                remove_parts(path)
        # Another part's shards count as done: how many parts there are may change.
        headers = read_headers(path) if resume or part is None else {}
        plan = _same_plan(headers, plan)
        found = find_shards(path, headers)
        first, step = part or (0, 1)
        numbers = range(first, shard_count(plan), step)
        left = [number for number in numbers if number not in found]
        if left:
            header = _begin(folder, plan, headers, found, part)
            _check_space(folder, header, rows, left)
            if isinstance(teacher, ServedTeacher):
                served = ServedEncoder(
                    teacher, dataset, folder, header, budget, resume=resume
                )
                _write_shards(
                    served, dataset, folder, header, rows, left, progress=progress
                )
                served.forget()
            else:
                encoder = RowEncoder(teacher, tokenizer, header)
                with eval_mode(teacher):
                    _write_shards(
                        encoder, dataset, folder, header, rows, left, progress=progress
                    )
        if part is not None:
            return folder
        done = headers.get(path, {}).get("complete", False)
        if left or not done or has_parts(path):
            join_shards(path, checksums=False)
    # The tokenizer is part of the plan, and fresh shards have just been hashed.
    return SoftLabelCache.open(path, checksums=not left)


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


def _same_plan(
    headers: Mapping[Path, Mapping[str, Any]], plan: dict[str, Any]
) -> dict[str, Any]:
    """The plan, cut into shards as those that are there, or a refusal."""
    for folder, header in headers.items():
        # However a cache was cut into shards, it goes on like that.
        plan = plan | {"rows_per_shard": header.get("rows_per_shard")}
        if name := difference(plan, header):
            raise CacheError(
                f"{folder} holds a cache with {name}={header.get(name)}, and now "
                f"{name}={plan[name]} is asked for; choose another path, or begin "
                "anew (delete the folder, or pass resume=False)"
            )
    return plan


def _begin(
    folder: Path,
    plan: dict[str, Any],
    headers: Mapping[Path, Mapping[str, Any]],
    found: Mapping[int, StoredShard],
    part: tuple[int, int] | None,
) -> dict[str, Any]:
    """The header to go on with, on disk; half-written files are gone."""
    known = {shard.file for shard in found.values()}
    for old in folder.glob("shard-*"):
        if old not in known:
            old.unlink()
    there = {shard.file.name for shard in found.values()}
    own = headers.get(folder, {"shards": []})["shards"]
    header = plan | ({} if part is None else {"part": list(part)})
    header["shards"] = [facts for facts in own if facts["file"] in there]
    header["complete"] = False
    write_header(folder, header)
    return header


def _check_space(
    folder: Path, header: dict[str, Any], rows: _Rows, left: Sequence[int]
) -> None:
    size = header["rows_per_shard"]
    positions = sum(rows.positions(_rows_of(number, size)) for number in left)
    needed = positions * Scheme(**header["scheme"]).bytes_per_position
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"the cache needs {needed / 1e9:.2f} GB more and {folder} has "
            f"{free / 1e9:.2f} GB free; choose another scheme (hybrid costs under 100 "
            "bytes a token), fewer rows or another disk"
        )


def _rows_of(number: int, size: int) -> slice:
    return slice(number * size, (number + 1) * size)


def _write_shards(
    encoder: RowEncoder | ServedEncoder,
    dataset: Dataset,
    folder: Path,
    header: dict[str, Any],
    rows: _Rows,
    left: Sequence[int],
    *,
    progress: bool,
) -> None:
    size = header["rows_per_shard"]
    bar = progress_bar(
        total=sum(rows.positions(_rows_of(number, size)) for number in left),
        unit="tok",
        unit_scale=True,
        desc="soft labels",
        show=progress,
    )
    with bar:
        for number in left:
            part = _rows_of(number, size)
            chosen = dataset.with_format(None).select(rows.indices[part])
            columns = encoder.encode(chosen["input_ids"][:], rows.keys[part], bar)
            name = shard_name(number)
            facts = write_shard(folder / name, columns)
            header["shards"].append({"file": name, "rows": len(chosen), **facts})
            write_header(folder, header)
