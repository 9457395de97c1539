"""Small training runs that tests start here, in other processes, or kill.

As a script: ``training_runs.py FOLDER [name=value …]`` trains, and process zero writes
the weights to ``FOLDER/weights.pt``. ``kill_at=STEP kill_in=METHOD`` ends the process
with SIGKILL inside that method of the trainer; ``on_save`` seals its checkpoints.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch
from tiny_models import byte_level_bpe, ragged_rows, tiny
from transformers import TrainerCallback

from distill_helpers import machine
from distill_helpers.trainers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    MixSchedule,
    OnPolicyTrainer,
    SoftLabelTrainer,
    end_processes,
    training_arguments,
)

# Plain SGD without clipping hides nothing: AdamW would divide a wrong factor away.
SGD = {
    "optim": "sgd",
    "max_grad_norm": 0,
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "learning_rate": 0.5,
}


def trainer(
    output_dir=None,
    *,
    kind="soft",
    steps=4,
    batch_size=4,
    rows=None,
    eval_rows=None,
    dropout=0.0,
    teacher=None,
    objective=None,
    callbacks=(),
    profile=None,
    **arguments,
):
    """A trainer on two tiny models; what is not a parameter here goes to ``args``."""
    tokenizer = byte_level_bpe()
    student = tiny(tokenizer, seed=1)
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = dropout
    if rows is None:
        rows = ragged_rows(24, len(tokenizer))
        if kind == "on_policy":
            rows = rows.map(lambda row: {"labels": [-100, -100, *row["labels"][2:]]})
    options = {
        "args": training_arguments(
            profile or machine.get_profile("smoke"),
            steps=steps,
            batch_size=batch_size,
            output_dir=output_dir,
            learning_rate=arguments.pop("learning_rate", 3e-3),
            **{"disable_tqdm": True} | arguments,
        ),
        "train_dataset": rows,
        "eval_dataset": eval_rows,
        "tokenizer": tokenizer,
        "callbacks": list(callbacks),
    }
    if kind == "hard":
        return HardLabelTrainer(student, **(objective or {}), **options)
    if kind == "together":
        models = {"teacher": tiny(tokenizer, seed=2), "student": student}
        chosen = {"teacher": "teacher", "schedule": MixSchedule(0.7)} | (
            objective or {}
        )
        return CoDistillationTrainer(models, **chosen, **options)
    if kind == "on_policy":
        return OnPolicyTrainer(
            student, teacher=tiny(tokenizer, seed=2), max_new_tokens=5, **options
        )
    return SoftLabelTrainer(
        student,
        teacher=tiny(tokenizer, seed=2) if teacher is None else teacher,
        **{"alpha": 0.7, "temperature": 2.0} | (objective or {}),
        **options,
    )


class BreakOff(TrainerCallback):
    """Ctrl-C within a step: its loss is taken, its end not reached."""

    def __init__(self, after):
        self.after = after

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def weights(model):
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def bf16_profile():
    """The cpu profile of a processor with bf16."""
    return dataclasses.replace(
        machine.get_profile("smoke"), autocast_dtype=torch.bfloat16
    )


def _kill_in(made, method, step):
    owner = made._saves if method == "on_save" else made
    real = getattr(owner, method)

    def killing(*args, **kwargs):
        if made.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, method, killing)


def main(folder, *settings):
    """Run from the command line."""
    options = dict(setting.split("=", 1) for setting in settings)
    kill_at, kill_in = options.pop("kill_at", None), options.pop("kill_in", None)
    if options.pop("sgd", None):
        options = SGD | options
    for name, value in options.items():
        if isinstance(value, str) and value.replace(".", "", 1).isdigit():
            options[name] = float(value) if "." in value else int(value)
    folder = Path(folder)
    made = trainer(folder / "run", **options)
    if kill_at is not None:
        _kill_in(made, kill_in, int(kill_at))
    made.train()
    if made.is_world_process_zero():
        torch.save(weights(made.model), folder / "weights.pt")
    end_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
