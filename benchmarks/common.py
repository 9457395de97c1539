"""What several benchmarks share: turns, ratios, processes of their own, few cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from distill_helpers.models import prune_layers


def take_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """What each way returns, round by round; one round more warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if turn:
                found[name].append(value)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round: a machine that is slow for a while is so for both."""
    return [one / other for one, other in zip(over, under, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_own_process(file: str, *arguments: str) -> Any:
    """What a script prints in its last line, as JSON."""
    done = subprocess.run(
        [sys.executable, file, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{', '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Within it, this process and those that it starts have so many cores; Linux."""
    available = getattr(os, "sched_getaffinity", None)
    before = available(0) if available else set()
    if available:
        os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        if available:
            os.sched_setaffinity(0, before)


def pruned(teacher: PreTrainedModel, kept: int) -> PreTrainedModel:
    """The teacher without its middle layers."""
    layers, front = teacher.config.num_hidden_layers, kept // 2
    return prune_layers(teacher, [*range(front), *range(layers - front, layers)])


class Clock(TrainerCallback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of all steps but the first, which warms up."""
        return [end - start for start, end in pairwise(self.ends)]
