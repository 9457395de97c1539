"""Steps of one student, side by side: adapters or all weights, other tokenizers or not.

SmolLM2 teaches its 20-layer self, 2 × 128 tokens a step, with AdamW. Every run has a
process of its own; what is compared takes turns, and ratios are taken round by round.

For ``cross=``, the teacher's tokenizer is the student's own. So teacher, student and
rows are those of the plain step, every token is a chunk, and what is compared is the
way of comparing alone. With other tokenizers there are fewer chunks than tokens, and
less to do.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_losses import status_bytes
from common import Clock, in_own_process, pruned, ratios

from distill_helpers.data import pack
from distill_helpers.machine import cpu_bf16_pays, get_profile
from distill_helpers.models import add_adapters, parameter_count
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabelTrainer,
    training_arguments,
)

ROWS, LENGTH, STEPS, KEPT, RANK = 2, 128, 6, 20, 16
# The profile that computes so.
PRECISIONS = {"fp32": "smoke", "bf16": "cpu"}


@dataclass(frozen=True)
class Step:
    """What a step learns from, and what it changes.

    Attributes:
        base: The step that it is compared with, which is of the same table.
        soft: It learns from the teacher's distributions, else from the text's labels.
        adapters: Adapters learn, else all weights.
        cross: ``cross=`` of the trainer.
    """

    base: str
    soft: bool = True
    adapters: bool = False
    cross: str | None = None


ADAPTERS = {
    "labels, all weights": Step("labels, all weights", soft=False),
    "labels, adapters": Step("labels, all weights", soft=False, adapters=True),
    "soft labels, all weights": Step("soft labels, all weights"),
    "soft labels, adapters": Step("soft labels, all weights", adapters=True),
}
CROSS = {
    "soft labels": Step("soft labels"),
    **{
        f"soft labels, cross={kind!r}": Step("soft labels", cross=kind)
        for kind in ("shared", "pieces", "chunks", "words", "mapped", "sorted")
    },
}
STEPS_OF = ADAPTERS | CROSS


def run(
    steps: Mapping[str, Step], rounds: int = 3, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """All steps in fp32, and in bf16 where the machine computes it natively."""
    rows = []
    for precision in list(PRECISIONS)[: 2 if cpu_bf16_pays() else 1]:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, results in found.items():
                results.append(in_own_process(__file__, name, precision))
        took = {name: [one["seconds"] for one in found[name]] for name in found}
        for name, step in steps.items():
            rows.append(
                {
                    "step": name,
                    "precision": precision,
                    "seconds": took[name],
                    "base": step.base,
                    "ratio": ratios(took[name], took[step.base]),
                    "mib": [one["mib"] for one in found[name]],
                    "trained": found[name][0]["trained"],
                }
            )
            say(json.dumps(rows[-1]))
    return rows


def _train(name: str, precision: str) -> dict[str, Any]:
    step = STEPS_OF[name]
    profile = get_profile(PRECISIONS[precision])
    teacher, tokenizer = load_teacher(profile)
    student = pruned(teacher, KEPT)
    if step.adapters:
        student = add_adapters(student, rank=RANK)
    # A few pages are enough: they are read again and again.
    rows = pack(austen("train")[:100]["text"], tokenizer, LENGTH)
    clock = Clock()
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "train_dataset": rows,
        "args": training_arguments(
            profile,
            steps=STEPS,
            learning_rate=1e-5,
            batch_size=ROWS,
            disable_tqdm=True,
        ),
        "callbacks": [clock],
    }
    if step.cross:
        options |= {"cross": step.cross, "teacher_tokenizer": tokenizer}
    trainer = (
        SoftLabelTrainer(student, teacher=teacher, **options)
        if step.soft
        else HardLabelTrainer(student, **options)
    )
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    before = status_bytes("VmRSS")
    trainer.train()
    return {
        "seconds": statistics.median(clock.steps()),
        "mib": (status_bytes("VmHWM") - before) / 2**20,
        "trained": parameter_count(student, trained=True),
    }


if __name__ == "__main__":
    print(json.dumps(_train(*sys.argv[1:])))
