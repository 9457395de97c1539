"""Training steps of ``SoftLabelTrainer`` against TRL's ``GKDTrainer(lmbda=0)``.

The same SmolLM2 teacher, the same pruned student, the same 4 × 512 tokens a step, the
same SGD. Every run has a process of its own; the two take turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_losses import status_bytes
from common import Clock, in_own_process, pruned

ROWS, LENGTH, STEPS, KEPT = 4, 512, 4, 20
WHO = ("SoftLabelTrainer", "GKDTrainer")
PRECISIONS = ("fp32", "bf16 autocast")


def run(rounds: int = 3, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Both trainers in both precisions, one after the other in every round."""
    rows = []
    for precision in PRECISIONS:
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
        for _ in range(rounds):
            for who in WHO:
                found[who].append(in_own_process(__file__, who, precision))
        for who, results in found.items():
            first = results[0]
            rows.append(
                {
                    "trainer": who,
                    "precision": precision,
                    "tokens_per_second": [r["tokens_per_second"] for r in results],
                    "mib": [r["mib"] for r in results],
                    "losses": first["losses"],
                    "gradient_norms": first["gradient_norms"],
                }
            )
            say(json.dumps(rows[-1]))
    return rows


def _train(who: str, precision: str) -> dict[str, Any]:
    import torch

    from distill_helpers.data import collator_for, pack
    from distill_helpers.models import load_model
    from distill_helpers.tasks.prose import austen
    from distill_helpers.tasks.teachers import prepare_packaged_teacher
    from distill_helpers.trainers import SoftLabelTrainer

    folder = prepare_packaged_teacher()
    teacher, tokenizer = load_model(folder, dtype=torch.float32, frozen=True)
    student = pruned(teacher, KEPT)
    rows = pack(austen("train"), tokenizer, LENGTH).select(range(ROWS * STEPS))
    clock = Clock()
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,  # measured, never clipped
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": precision != "fp32",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    if who == "SoftLabelTrainer":
        from transformers import TrainingArguments

        trainer: Any = SoftLabelTrainer(
            student,
            teacher=teacher,
            tokenizer=tokenizer,
            train_dataset=rows,
            args=TrainingArguments(remove_unused_columns=False, **common),
            callbacks=[clock],
        )
    else:
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        trainer = GKDTrainer(
            student,
            teacher_model=teacher,
            args=GKDConfig(lmbda=0.0, beta=0.0, temperature=1.0, **common),
            data_collator=collator_for(tokenizer),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[clock],
        )
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    before = status_bytes("VmRSS")
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "tokens_per_second": ROWS * LENGTH / statistics.mean(clock.steps()),
        "mib": (status_bytes("VmHWM") - before) / 2**20,
        "losses": [entry["loss"] for entry in logs],
        "gradient_norms": [entry["grad_norm"] for entry in logs],
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(_train(*sys.argv[1:])))
    else:
        run()
