"""Train a pair for real in this process; print its highest memory and the forecast."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bench_losses import status_bytes

from distill_helpers.data import pack
from distill_helpers.machine import get_profile
from distill_helpers.models import (
    AdaptersOff,
    Loaded,
    add_adapters,
    build_student,
    prune_layers,
)
from distill_helpers.planning import plan
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher, load_tiny_teacher
from distill_helpers.trainers import SoftLabelTrainer, training_arguments

# With adapters, from a second copy of the model or from the model itself.
SIZES = {
    "tiny": (64, 256),
    "packaged": (4, 128),
    "adapters": (4, 128),
    "adapters_off": (4, 128),
}
RANK = 16


def load(pair: str):
    if pair == "tiny":
        teacher = load_tiny_teacher("prose")
        student = build_student(teacher.tokenizer, layers=2, width=96)
    elif pair.startswith("adapters"):
        teacher = load_teacher(get_profile("cpu"))
        copied = copy.deepcopy(teacher.model).float().requires_grad_(True)
        student = add_adapters(copied, rank=RANK)
        if pair == "adapters_off":
            teacher = Loaded(AdaptersOff(student), teacher.tokenizer)
    else:
        teacher = load_teacher(get_profile("cpu"))
        student = prune_layers(teacher.model, [*range(10), *range(20, 30)])
    return teacher, student


def train(teacher, student, batch_size: int, length: int, steps: int) -> None:
    rows = pack(austen("train").select(range(200)), teacher.tokenizer, length)
    SoftLabelTrainer(
        student,
        teacher=teacher.model,
        tokenizer=teacher.tokenizer,
        train_dataset=rows,
        args=training_arguments(
            get_profile("cpu"),
            steps=steps,
            learning_rate=1e-4,
            batch_size=batch_size,
            mixed_precision=pair != "tiny",
            disable_tqdm=True,
        ),
    ).train()


pair = sys.argv[1]
batch_size, length = SIZES[pair]
# Libraries and thread pools allocate at their first use.
tiny, student = load("tiny")
train(tiny, student, 2, 16, steps=1)
del tiny, student
before = status_bytes("VmRSS")
teacher, student = load(pair)
Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
train(teacher, student, batch_size, length, steps=3)
measured = status_bytes("VmHWM") - before
off = pair == "adapters_off"
found = plan(
    (None if off else teacher.model, student),
    method="adapters_off" if off else "soft",
    adapters=RANK if pair.startswith("adapters") else 0,
    batch_size=batch_size,
    length=length,
    mixed_precision=pair != "tiny",
    device="cpu",
)
print(found)
print(json.dumps({"measured": measured, "predicted": found.rehearsal.peak}))
