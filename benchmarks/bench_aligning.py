"""How fast a text is written in another tokenizer's tokens and aligned, on one core.

*Plain* is ``Alignment.align`` row by row; *through a dataset* is ``align_rows``, which
reads the rows from a dataset and makes another of them. Tokens are the student's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
from common import on_cores, ratios, seconds, take_turns

from distill_helpers.data import Alignment, align_rows, align_tokenizers, pack
from distill_helpers.machine import get_profile
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher, load_tiny_teacher

LENGTH, ROWS = 256, 400


def run(rounds: int = 5, say: Callable[[str], None] = print) -> dict[str, list[float]]:
    """The two tokenizers of notebook 10, each as the student's."""
    tokenizers = {
        "SmolLM2": load_teacher(get_profile("smoke")).tokenizer,
        "prose": load_tiny_teacher("prose").tokenizer,
    }
    found = {}
    with on_cores(1):
        for ours, theirs in (("prose", "SmolLM2"), ("SmolLM2", "prose")):
            alignment = align_tokenizers(tokenizers[ours], tokenizers[theirs])
            rows = pack(austen("train"), tokenizers[ours], LENGTH).select(range(ROWS))
            pair = f"student {ours}, teacher {theirs}: "
            speeds = measure(alignment, rows, rounds)
            speeds["dataset / plain"] = ratios(*reversed(speeds.values()))
            found |= {pair + name: values for name, values in speeds.items()}
    say("\n".join(f"{name}: {values}" for name, values in found.items()))
    return found


def measure(alignment: Alignment, rows: Any, rounds: int) -> dict[str, list[float]]:
    """Tokens a second, plain and through a dataset, in turns."""
    ids = rows["input_ids"][:]
    count = sum(map(len, ids))

    def plain() -> None:
        for row in ids:
            alignment.align(row).numbers()

    ways = {
        "plain, tokens/s": plain,
        "through a dataset, tokens/s": lambda: align_rows(rows, alignment),
    }
    cached = datasets.is_caching_enabled()
    datasets.disable_caching()  # else the second round would only read the first
    datasets.disable_progress_bars()
    try:
        return take_turns(
            {name: partial(_speed, way, count) for name, way in ways.items()}, rounds
        )
    finally:
        datasets.enable_progress_bars()
        if cached:
            datasets.enable_caching()


def _speed(work: Callable[[], object], count: int) -> float:
    return count / seconds(work)


if __name__ == "__main__":
    run()
