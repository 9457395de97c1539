"""Parts of a cache that several processes or machines write, and their joining.

A part is a folder inside the cache's own. It holds every n-th shard, whole and under
the name that it has in the cache. So each shard is what one process would have written,
byte for byte, and joining parts means to check files, move them, and list them.

Taught in notebook 04.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_helpers.labels.cache import SoftLabelCache
from distill_helpers.labels.cache_files import (
    HEADER,
    PARTS,
    CacheError,
    check_shard,
    read_header,
    short_hash,
    write_header,
)
from distill_helpers.labels.files import only_writer

# What a header says besides what the cache is made from.
_PROGRESS = ("part", "shards", "complete")


@dataclass(frozen=True)
class StoredShard:
    """A shard that is there.

    Attributes:
        file: Where it is: in the cache's folder, or in that of a part.
        facts: Its entry in a header.
    """

    file: Path
    facts: Mapping[str, Any]


def check_part(part: tuple[int, int]) -> None:
    """Raise ``ValueError`` unless ``part`` is an index below a count of parts."""
    index, count = part
    if not 0 <= index < count:
        raise ValueError(
            f"part=({index}, {count}) must be an index and a count; parts are counted "
            f"from 0, so that the last of {max(count, 1)} is "
            f"({max(count, 1) - 1}, {max(count, 1)})"
        )


def part_folder(path: Path, part: tuple[int, int]) -> Path:
    """Where a part is written."""
    return path / f"part-{part[0]}-of-{part[1]}"


def shard_name(number: int) -> str:
    """The file of a shard, by its place in the cache."""
    return f"shard-{number:05d}.safetensors"


def shard_count(plan: Mapping[str, Any]) -> int:
    """Shards of the whole cache."""
    return math.ceil(plan["dataset"]["rows"] / plan["rows_per_shard"])


def plan_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache or a part is made from, without how much of it is done."""
    return {name: value for name, value in header.items() if name not in _PROGRESS}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first name under which two plans differ; empty if they are the same."""
    return next((name for name in one if other.get(name) != one[name]), "")


def read_headers(path: Path) -> dict[Path, dict[str, Any]]:
    """The headers in a cache's folder, by folder: its own first, then its parts'."""
    folders = (path, *sorted(path.glob(PARTS)))
    return {one: read_header(one) for one in folders if (one / HEADER).is_file()}


def find_shards(
    path: Path, headers: Mapping[Path, Mapping[str, Any]]
) -> dict[int, StoredShard]:
    """The shards that are there and of full length, by number.

    A joining that was cut short has moved some files and no header, so a part's shard
    may be in either folder.
    """
    found: dict[int, StoredShard] = {}
    for folder, header in headers.items():
        for facts in header["shards"]:
            number = int(Path(facts["file"]).stem.removeprefix("shard-"))
            for place in (path, folder):
                try:
                    check_shard(place / facts["file"], facts, checksums=False)
                except CacheError:
                    continue
                found.setdefault(number, StoredShard(place / facts["file"], facts))
    return found


def merge_cache(path: str | Path) -> SoftLabelCache:
    """Join the parts of a cache, and check that they are one cache, whole.

    Looks at every shard's checksum; that all parts are of one teacher, scheme, text and
    so on; and that the rows are those of the dataset, in order, none missing and none
    twice. Needs no teacher. What is left is byte for byte what one process writes, and
    a second call changes nothing.

    Args:
        path: The folder that ``write_cache(…, part=…)`` was given. Parts that were
            written elsewhere are copied into it first, folder by folder.

    Returns:
        The opened cache.

    Raises:
        CacheError: Naming the part that is missing, unfinished, damaged, of another
            making, or still being written.

    Taught in notebook 04.
    """
    path = Path(path)
    if not read_headers(path):
        read_header(path)  # says what is missing
    with only_writer(path, path / ".lock", CacheError):
        join_shards(path, checksums=True)
    return SoftLabelCache.open(path, checksums=False)


def join_shards(path: Path, *, checksums: bool) -> None:
    """Make one cache of all shards; the caller holds the lock of its folder.

    Args:
        path: The cache's folder.
        checksums: Also read the shards that are in that folder already.

    Raises:
        CacheError: Same as :func:`merge_cache`.
    """
    with _locked_parts(path):
        headers = read_headers(path)
        plan = _common_plan(headers)
        found = find_shards(path, headers)
        _refuse_missing(path, plan, headers, found)
        order = [found[number] for number in range(shard_count(plan))]
        for shard in order:
            moved = shard.file.parent != path
            check_shard(shard.file, shard.facts, checksums=checksums or moved)
        _check_rows(path, plan, order)
        for shard in order:
            shard.file.replace(path / shard.file.name)
        for old in path.glob("shard-*"):
            if old.name not in {shard.file.name for shard in order}:
                old.unlink()
        shards = [dict(shard.facts) for shard in order]
        write_header(path, plan | {"shards": shards, "complete": True})
    remove_parts(path)


def has_parts(path: Path) -> bool:
    """Whether there are parts in a cache's folder, or what is left of them."""
    return any(path.glob(PARTS))


def refuse_writers(path: Path) -> None:
    """Raise ``CacheError`` while another process writes a part."""
    with _locked_parts(path):
        pass


def remove_parts(path: Path) -> None:
    """Delete the parts in a cache's folder, unless one is being written."""
    refuse_writers(path)
    for folder in path.glob(PARTS):
        shutil.rmtree(folder)


@contextmanager
def _locked_parts(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        for folder in sorted(path.glob(PARTS)):
            stack.enter_context(only_writer(folder, folder / ".lock", CacheError))
        yield


def _common_plan(headers: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """What all parts are made from, or a refusal."""
    (first, header), *others = headers.items()
    plan = plan_of(header)
    for folder, other in others:
        if name := difference(plan, other):
            raise CacheError(
                f"{folder} has {name}={other.get(name)}, and {first} has {name}="
                f"{plan[name]}: they are not of one cache; delete the one that is "
                "wrong, and write that part again"
            )
    return plan


def _refuse_missing(
    path: Path,
    plan: Mapping[str, Any],
    headers: Mapping[Path, Mapping[str, Any]],
    found: Mapping[int, StoredShard],
) -> None:
    total = shard_count(plan)
    missing = [number for number in range(total) if number not in found]
    if not missing:
        return
    counts = [header["part"][1] for header in headers.values() if "part" in header]
    parts = counts[-1] if counts else 1
    names = ", ".join(f"{k}/{parts}" for k in sorted({n % parts for n in missing}))
    who = f"part {names}" if counts else "its end"
    raise CacheError(
        f"{path} is unfinished: {len(missing)} of {total} shards are missing, those of "
        f"{who}; write that again with the same options, or copy it here, and then "
        "merge (distill cache --merge, merge_cache)"
    )


def _check_rows(path: Path, plan: Mapping[str, Any], shards: list[StoredShard]) -> None:
    """The rows have to be the dataset's, in order: none missing, none twice."""
    from safetensors import safe_open

    keys = []
    for shard in shards:
        with safe_open(str(shard.file), framework="numpy") as columns:
            keys.append(columns.get_tensor("keys").tobytes())
    if short_hash(b"".join(keys)) != plan["dataset"]["order"]:
        raise CacheError(
            f"{path}: the rows in the shards are not those of the dataset, in its "
            "order; delete the folder and write it again"
        )
