"""Writing one cache with one process and with two, on the same cores.

By the command line, ``accelerate launch`` for two, and by ``write_cache(part=…)`` in
processes that know nothing of one another. Each process computes with its share of the
cores. A command that finds the cache finished does all but write it: what it takes is
the beginning (Python, teacher, rows), and the rest of the first call is the writing.
All ways must give the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from common import ratios, seconds

from distill_helpers.data import pack
from distill_helpers.labels import merge_cache, write_cache
from distill_helpers.machine import get_profile
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher

CORES, LENGTH, ROWS, SPLIT = 2, 256, 256, "test"
PROFILE = "smoke"  # fp32 in all processes: "cpu" measures what pays, in each anew
LAUNCH = [
    "accelerate.commands.launch",
    "--multi_gpu",  # accelerate's word for "several processes", also without one
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
    "--num_processes=2",
    "-m",
]


def run(
    rounds: int = 3, say: Callable[[str], None] = print, *, rows: int = ROWS
) -> dict[str, list[float]]:
    """Tokens a second, and how long the beginning of a command takes."""
    tokens = rows * LENGTH
    beginning: dict[int, list[float]] = {1: [], 2: []}
    command: dict[int, list[float]] = {1: [], 2: []}
    parts: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        written = set()
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                first = seconds(lambda: _command(count, path / "a", rows))  # noqa: B023
                again = seconds(lambda: _command(count, path / "a", rows))  # noqa: B023
                beginning[count].append(again)
                command[count].append(tokens / (first - again))
                took = _parts(count, path / "b", rows)
                parts[count].append(tokens / took)
                written |= {_content(path / name) for name in "ab"}
        assert len(written) == 1, "the ways differ in what they write"
    found = {}
    for count, name in ((1, "distill cache"), (2, "accelerate launch, 2 processes")):
        found[f"{name}: tokens/s"] = command[count]
        found[f"{name}: s before it writes"] = beginning[count]
    found["2 processes / 1, by the command"] = ratios(command[2], command[1])
    found["write_cache, whole: tokens/s"] = parts[1]
    found["write_cache(part=), 2 at once, and merge: tokens/s"] = parts[2]
    found["2 parts / whole"] = ratios(parts[2], parts[1])
    say("\n".join(f"{name}: {values}" for name, values in found.items()))
    return found


def _start(arguments: Sequence[str], count: int) -> subprocess.Popen[str]:
    threads = max(1, min(CORES, os.cpu_count() or 1) // count)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args}: {said[-2000:]}")
    return said


def _command(count: int, folder: Path, rows: int) -> None:
    arguments = ["-m", *(LAUNCH if count > 1 else []), "distill_helpers", "cache"]
    arguments += ["--output", str(folder), "--rows", str(rows)]
    arguments += ["--length", str(LENGTH), "--split", SPLIT, "--profile", PROFILE]
    _finish(_start(arguments, count))


def _parts(count: int, folder: Path, rows: int) -> float:
    """Seconds of the slowest part, and of joining them."""
    jobs = [
        _start([__file__, str(part), str(count), str(rows), str(folder)], count)
        for part in range(count)
    ]
    took = max(json.loads(_finish(job).splitlines()[-1]) for job in jobs)
    return took + (seconds(lambda: merge_cache(folder)) if count > 1 else 0.0)


def _content(folder: Path) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (file.name, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    )


def _write_part(part: int, count: int, rows: int, folder: str) -> float:
    teacher, tokenizer = load_teacher(get_profile(PROFILE))
    chosen = pack(austen(SPLIT), tokenizer, LENGTH)
    return seconds(
        lambda: write_cache(
            teacher,
            chosen.shuffle(seed=0).select(range(rows)),
            folder,
            tokenizer=tokenizer,
            progress=False,
            part=None if count == 1 else (part, count),
        )
    )


if __name__ == "__main__":
    print(_write_part(*map(int, sys.argv[1:4]), sys.argv[4]))
