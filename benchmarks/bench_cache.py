"""The cache of the real teacher: how fast it is written, and what reading it saves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import pruned, ratios, seconds, take_turns
from torch.utils.flop_counter import FlopCounterMode

from distill_helpers.data import pack
from distill_helpers.labels import SoftLabelCache, write_cache
from distill_helpers.machine import get_profile
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher
from distill_helpers.trainers import SoftLabelTrainer, training_arguments

LENGTH, ROWS, BATCH, STEPS, KEPT = 256, 128, 8, 5, 20


def run(rounds: int = 2, say: Callable[[str], None] = print) -> dict[str, list[float]]:
    """Writer against bare forward, cached steps against live ones, both in turns."""
    profile = get_profile("cpu")
    teacher, tokenizer = load_teacher(profile)
    rows = pack(austen("train"), tokenizer, LENGTH).select(range(ROWS))
    ids = torch.tensor(rows["input_ids"][:])

    def forward() -> None:
        with torch.no_grad():
            for start in range(0, ROWS, BATCH):
                teacher(input_ids=ids[start : start + BATCH], use_cache=False)

    def write(folder: str) -> SoftLabelCache:
        return write_cache(teacher, rows, folder, tokenizer=tokenizer, progress=False)

    def write_anew() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(folder)

    def train(who: Any) -> float:
        trainer = SoftLabelTrainer(
            pruned(teacher, KEPT),
            teacher=who,
            tokenizer=tokenizer,
            train_dataset=rows,
            args=training_arguments(
                profile,
                steps=STEPS,
                learning_rate=1e-4,
                batch_size=BATCH,
                disable_tqdm=True,
            ),
        )
        return seconds(trainer.train)

    took = take_turns(
        {"bare": partial(seconds, forward), "writer": partial(seconds, write_anew)},
        rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = write(folder)
        took |= take_turns(
            {
                "live": partial(train, teacher),
                "cached": partial(train, cache),
            },
            rounds,
        )
    gain = ratios(took["live"], took["cached"])
    predicted = _predicted(teacher, ids[:BATCH])
    tokens = ROWS * LENGTH
    found = {
        "bare forward, tokens/s": [tokens / one for one in took["bare"]],
        "writer, tokens/s": [tokens / one for one in took["writer"]],
        "writer / bare forward": ratios(took["bare"], took["writer"]),
        "bytes a token": [cache.bytes_per_token],
        "cached step / live step, speed-up": gain,
        "speed-up that FLOPs predict": [predicted],
        "gain reached (speed-up / predicted)": [one / predicted for one in gain],
    }
    say("\n".join(f"{name}: {values}" for name, values in found.items()))
    return found


def _predicted(teacher: Any, ids: torch.Tensor) -> float:
    student = pruned(teacher, KEPT)
    with FlopCounterMode(display=False) as mine:
        student(input_ids=ids, use_cache=False).logits.sum().backward()
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        teacher(input_ids=ids, use_cache=False)
    own = mine.get_total_flops()
    return (own + theirs.get_total_flops()) / own


if __name__ == "__main__":
    run()
