"""The cache of the real teacher: how fast it is written, and what reading it saves."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_helpers.data import pack
from distill_helpers.labels import write_cache
from distill_helpers.machine import get_profile
from distill_helpers.models import prune_layers
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher
from distill_helpers.trainers import SoftLabelTrainer, training_arguments

LENGTH, ROWS, BATCH, STEPS, KEPT = 256, 128, 8, 5, 20


def run(rounds: int = 2, say: Callable[[str], None] = print) -> dict[str, float]:
    """Writer against bare forward, cached steps against live ones, both in turns."""
    profile = get_profile("cpu")
    teacher, tokenizer = load_teacher(profile)
    rows = pack(austen("train"), tokenizer, LENGTH).select(range(ROWS))
    ids = torch.tensor(rows["input_ids"][:])

    def forward() -> None:
        with torch.no_grad():
            for start in range(0, ROWS, BATCH):
                teacher(input_ids=ids[start : start + BATCH], use_cache=False)

    bare, writing = [], []
    for turn in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            forward()
            middle = time.perf_counter()
            cache = write_cache(
                teacher, rows, folder, tokenizer=tokenizer, progress=False
            )
            end = time.perf_counter()
            if turn:
                bare.append(middle - start)
                writing.append(end - middle)
    found = {
        "bare forward, tokens/s": ROWS * LENGTH / statistics.median(bare),
        "writer, tokens/s": ROWS * LENGTH / statistics.median(writing),
        "writer / bare forward": statistics.median(bare) / statistics.median(writing),
        "bytes a token": cache.bytes_per_token,
    }
    found |= _training(teacher, tokenizer, rows, profile, rounds)
    for name, value in found.items():
        say(f"{name}: {value:.3g}")
    return found


def _training(
    teacher: Any, tokenizer: Any, rows: Any, profile: Any, rounds: int
) -> dict[str, float]:
    layers = teacher.config.num_hidden_layers
    front = KEPT // 2
    kept = [*range(front), *range(layers - front, layers)]

    def seconds(who: Any) -> float:
        trainer = SoftLabelTrainer(
            prune_layers(teacher, kept),
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
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(teacher, rows, folder, tokenizer=tokenizer, progress=False)
        live, cached = [], []
        for turn in range(rounds + 1):
            one, two = seconds(teacher), seconds(cache)
            if turn:
                live.append(one)
                cached.append(two)
    measured = statistics.median(live) / statistics.median(cached)
    ids = torch.tensor(rows["input_ids"][:BATCH])
    student = prune_layers(teacher, kept)
    with FlopCounterMode(display=False) as mine:
        student(input_ids=ids, use_cache=False).logits.sum().backward()
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        teacher(input_ids=ids, use_cache=False)
    own = mine.get_total_flops()
    predicted = (own + theirs.get_total_flops()) / own
    return {
        "cached step / live step, speed-up": measured,
        "speed-up that FLOPs predict": predicted,
        "gain reached (speed-up / predicted)": measured / predicted,
    }


if __name__ == "__main__":
    run()
