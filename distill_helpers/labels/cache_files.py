"""The folder of a cache: its header, its shards, and what is checked of both.

Taught in notebook 03.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.models import shared_vocabulary_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
HEADER = "cache.json"


class CacheError(ValueError):
    """A cache is damaged, unfinished, or belongs to something else."""


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def hash_text(text: str) -> str:
    return hash_bytes(text.encode())


def read_header(path: Path) -> dict[str, Any]:
    file = path / HEADER
    if not file.is_file():
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


def write_header(path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
    replace_file(path / HEADER, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """All of it or nothing, also when the power fails."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def check_tokenizer(
    path: Path, header: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    if header["tokenizer"] != shared_vocabulary_hash(tokenizer):
        raise CacheError(
            f"{path} was written with another tokenizer; its token ids mean other "
            "words. Use the teacher's tokenizer for the student"
        )
    if header["chat_template"] != hash_text(str(tokenizer.chat_template or "")):
        raise CacheError(
            f"{path} was written with another chat template; the same conversation "
            "becomes other tokens. Give both tokenizers one template"
        )


def check_shard(path: Path, shard: Mapping[str, Any], *, checksums: bool) -> None:
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
