"""The folder of a cache: its header, its shards, and what is checked of both.

Taught in notebook 04.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.labels.files import replace_file
from distill_helpers.models import shared_vocabulary_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
HEADER = "cache.json"
PARTS = "part-*-of-*"  # folders inside a cache's, while parts of it are written


class CacheError(ValueError):
    """A cache is damaged, unfinished, or belongs to something else."""


def short_hash(data: bytes) -> str:
    """Sixteen hexadecimal digits that tell one content from another."""
    return hashlib.sha256(data).hexdigest()[:16]


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a header records of a tokenizer: its vocabulary and its chat template."""
    template = str(tokenizer.chat_template or "")
    return {
        "tokenizer": shared_vocabulary_hash(tokenizer),
        "chat_template": short_hash(template.encode()),
    }


def read_header(path: Path) -> dict[str, Any]:
    """The header of the cache in a folder.

    Raises:
        CacheError: If there is none, or it is damaged or of another format.
    """
    file = path / HEADER
    if not file.is_file():
        if any(path.glob(PARTS)):
            raise CacheError(
                f"{path} holds parts of a soft-label cache; join them first (distill "
                "cache --merge, merge_cache)"
            )
        raise CacheError(f"{path} holds no soft-label cache: {HEADER} is missing")
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheError(
            f"{file} is damaged ({error}); delete the folder and write it again"
        ) from None
    if header.get("format") != FORMAT:
        raise CacheError(
            f"{path} has format {header.get('format')}, and this version reads "
            f"{FORMAT}; delete the folder and write it again"
        )
    return header


def write_header(path: Path, header: Mapping[str, Any]) -> None:
    """Put a header in place, all of it or nothing."""
    text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
    replace_file(path / HEADER, text.encode())


def write_shard(path: Path, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Put a shard in place; returns what :func:`check_shard` compares it with."""
    from safetensors.numpy import save

    data = save(columns)
    replace_file(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def check_shard(path: Path, shard: Mapping[str, Any], *, checksums: bool) -> None:
    """Refuse a shard that is missing or cut off and, with checksums, a damaged one.

    Raises:
        CacheError: With what to do about it.
    """
    again = "write the cache again with the same options"
    if not path.is_file():
        raise CacheError(
            f"{path} is missing; copy the whole folder, or {again}, and it is completed"
        )
    if path.stat().st_size != shard["bytes"]:
        raise CacheError(
            f"{path} has {path.stat().st_size:,} bytes instead of "
            f"{shard['bytes']:,}; copy it again, or {again}, and it is completed"
        )
    if checksums:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard["sha256"]:
            raise CacheError(
                f"{path} is damaged: its checksum differs; copy it again, or delete it "
                f"and {again}"
            )
