"""``distill cache`` in one process, in several, or as one task of a job array.

Taught in notebook 04.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from distill_helpers.cli import runs
from distill_helpers.cli.configs import CacheOptions
from distill_helpers.labels import SoftLabelCache, merge_cache, write_cache
from distill_helpers.machine import get_profile

# A process that is done waits for the others, whose rows may take days; one that ends
# is noticed at once.
_PATIENCE = timedelta(days=365)


def write_part_or_whole(options: CacheOptions) -> SoftLabelCache | Path | None:
    """Write what this process has to write.

    One process writes the cache. Several that ``accelerate launch`` or ``torchrun`` has
    started write a part each, and the first joins them. With ``options.part``, they
    divide that part among themselves, and nobody joins.

    Returns:
        The whole cache, the folder of a part, or ``None`` for a process whose part
        another one has joined to the rest.

    Raises:
        CacheError: Same as ``write_cache`` and ``merge_cache``.
        ValueError: For options that cannot be.
    """
    index, count = _part_of(options.part)
    rank = int(os.environ.get("RANK", "0"))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    profile = get_profile(options.profile)
    runs.take_own_gpu(profile)
    if processes > 1:
        _meet()
    part = (index * processes + rank, count * processes)
    teacher: Any
    if options.server:
        teacher = runs.resolve_served(options)
        tokenizer = teacher.tokenizer
    else:
        teacher, tokenizer = runs.resolve_teacher(
            options.teacher, profile, bits=options.bits
        )
        runs.check_length(options, teacher)
    found: SoftLabelCache | Path | None = write_cache(
        teacher,
        runs.load_rows(options, tokenizer),
        options.output,
        tokenizer=tokenizer,
        scheme=options.scheme or ("tail_bucket" if options.server else "hybrid"),
        top_k=options.top_k,
        samples=options.samples,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=rank == 0,
        max_total_tokens=options.max_total_tokens or None,
        part=None if part == (0, 1) else part,
    )
    if processes > 1 and count == 1:
        _wait_for_all()
        found = merge_cache(options.output) if rank == 0 else None
    return found


def _part_of(text: str) -> tuple[int, int]:
    """``"3/16"`` as numbers; ``(0, 1)``, which is all, for nothing."""
    if not text:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(
            f"part={text!r} must look like 3/16, and parts are counted from 0: the "
            "last of 16 is 15/16"
        )
    return int(found[1]), int(found[2])


def _meet() -> None:
    """Join the group of processes; over gloo, for they exchange no tensors."""
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)


def _wait_for_all() -> None:
    import torch.distributed

    torch.distributed.barrier()
