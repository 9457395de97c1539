"""The same student texts, judged by TRL's on-policy trainer and by ours.

A small student answers problems of the shared task, cut off or ended by itself; the
texts, their labels and TRL's losses on them go into ``reference.json``, and `make test`
compares ``OnPolicyTrainer`` with them.
"""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from distill_helpers.data import collator_for, join_row
from distill_helpers.models import build_student, generate_batch
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
ROWS = 12
# Some answers are cut off here, others have ended.
LENGTH = 24


def beginner() -> PreTrainedModel:
    """A student as it starts; it follows from its seed."""
    tokenizer = load_tiny_teacher("sums").tokenizer
    return build_student(tokenizer, layers=2, width=96, seed=7).eval()


def write_rollouts() -> list[dict[str, list[int]]]:
    """What it writes to the first problems, as rows of ids and labels."""
    tokenizer = load_tiny_teacher("sums").tokenizer
    asked = three_sums.prompts(three_sums.test_problems()[:ROWS])
    prompts = tokenizer(asked, add_special_tokens=False)["input_ids"]
    written = generate_batch(
        beginner(),
        tokenizer,
        prompts,
        max_new_tokens=LENGTH,
        temperature=1.0,
        seeds=range(ROWS),
    )
    return [
        join_row(prompt, answer.ids)
        for prompt, answer in zip(prompts, written, strict=True)
    ]


def trainer_options(folder: str) -> dict[str, Any]:
    """Training arguments that both trainers are given."""
    return {
        "output_dir": folder,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
    }


def judge_with_trl() -> dict[str, Any]:
    """Loss, and the norm of its gradient in the head, by β; nothing is drawn anew."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher = load_tiny_teacher("sums")
    rows = write_rollouts()
    collate = collator_for(teacher.tokenizer)
    found = []
    for beta in BETAS:
        student = beginner()
        with tempfile.TemporaryDirectory() as folder:
            trainer = GKDTrainer(
                student,
                teacher_model=teacher.model,
                args=GKDConfig(
                    lmbda=1.0, beta=beta, temperature=1.0, **trainer_options(folder)
                ),
                data_collator=collate,
                train_dataset=Dataset.from_list(rows),
                processing_class=teacher.tokenizer,
            )
            loss = trainer.compute_loss(student, dict(collate(rows)))
            loss.backward()
        head = student.get_output_embeddings().weight.grad
        found.append(
            {"beta": beta, "loss": loss.item(), "head_gradient": head.norm().item()}
        )
    return {"rows": rows, "losses": found}
