"""A local teacher that writes: batches against one prompt at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import ratios, take_turns

from distill_helpers.labels import LocalTeacher, write_labels
from distill_helpers.machine import get_profile
from distill_helpers.tasks.glosses import splits
from distill_helpers.tasks.teachers import load_teacher

PROMPTS, TOKENS, BATCH = 32, 24, 32


def run(rounds: int = 3, say: Callable[[str], None] = print) -> dict[str, list[float]]:
    """Answer tokens a second of both, in turns, round by round."""
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

    one, many = "one prompt at a time", f"batches of {BATCH}"
    speeds = take_turns({one: partial(speed, 1), many: partial(speed, BATCH)}, rounds)
    results = {f"{name}, answer tokens/s": speeds[name] for name in speeds}
    results["batches / one at a time"] = ratios(speeds[many], speeds[one])
    say("\n".join(f"{name}: {values}" for name, values in results.items()))
    return results


if __name__ == "__main__":
    run()
