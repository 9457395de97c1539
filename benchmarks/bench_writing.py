"""A local teacher that writes: batches against one prompt at a time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from distill_helpers.labels import LocalTeacher, write_labels
from distill_helpers.machine import get_profile
from distill_helpers.tasks.glosses import splits
from distill_helpers.tasks.teachers import load_teacher

PROMPTS, TOKENS, BATCH = 32, 24, 32


def run(rounds: int = 3, say: Callable[[str], None] = print) -> dict[str, float]:
    """Answer tokens a second of both, in turns; the median of the rounds."""
    teacher, tokenizer = load_teacher(get_profile("cpu"))
    local = LocalTeacher(teacher, tokenizer)
    prompts = [gloss.instruction for gloss in splits().labelled[:PROMPTS]]

    def speed(concurrency: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            rows = write_labels(
                local,
                prompts,
                Path(folder) / "labels.jsonl",
                max_new_tokens=TOKENS,
                concurrency=concurrency,
                progress=False,
            )
            return sum(rows["completion_tokens"]) / (time.perf_counter() - start)

    one, many = [], []
    for turn in range(rounds + 1):
        found = speed(1), speed(BATCH)
        if turn:
            one.append(found[0])
            many.append(found[1])
    results = {
        "one prompt at a time, answer tokens/s": statistics.median(one),
        f"batches of {BATCH}, answer tokens/s": statistics.median(many),
        "batches / one at a time": statistics.median(many) / statistics.median(one),
    }
    for name, value in results.items():
        say(f"{name}: {value:.3g}")
    return results


if __name__ == "__main__":
    run()
