"""Adapters in two gloo processes: what one process learns, alone or its own teacher.

Weights are spread (FSDP 2) as in ``test_fsdp``, where accelerate is told of GPUs.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import byte_level_bpe, ragged_rows, tiny
from training_runs import SGD, weights
from two_processes import run_in_two

from distill_helpers import machine
from distill_helpers.models import AdaptersOff, add_adapters
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabelTrainer,
    training_arguments,
)


def made(kind, folder=None, **options):
    """A trainer of adapters; rows have prompts for the teacher alone."""
    tokenizer = byte_level_bpe()
    student = add_adapters(tiny(tokenizer, seed=1), rank=4, seed=3)
    rows = ragged_rows(24, len(tokenizer), shortest=6)
    rows = rows.map(lambda row: {"labels": [-100, -100, *row["labels"][2:]]})
    common = {"train_dataset": rows, "tokenizer": tokenizer}
    common["args"] = training_arguments(
        machine.get_profile("smoke"),
        steps=4,
        output_dir=folder,
        logging_steps=1,
        disable_tqdm=True,
        **{"batch_size": 4} | SGD | options,
    )
    if kind == "hard":
        return HardLabelTrainer(student, **common)
    if kind == "off":
        prompts = [[5, 6, 7, number + 8, 9, 10] for number in range(len(rows))]
        common["train_dataset"] = rows.add_column("teacher_prompt_ids", prompts)
        return SoftLabelTrainer(student, teacher=AdaptersOff(student), **common)
    return SoftLabelTrainer(student, teacher=tiny(tokenizer, seed=2), **common)


def trained(trainer, resume=False):
    trainer.train(resume_from_checkpoint=resume)
    history = trainer.state.log_history
    return [entry["loss"] for entry in history if "loss" in entry]


WORKER = """
from test_adapters_processes import made, trained

def run(name, kind, resume=False, **options):
    trainer = made(kind, folder / name, batch_size=2, save_steps=2, **options)
    losses = trained(trainer, resume)
    trainer.save_model()
    learned = [p for p in trainer.model.parameters() if p.requires_grad]
    spread = [isinstance(p, DTensor) for p in learned]
    found[name] = {"losses": losses, "spread": spread}
    return trainer.args.process_index

run("off", "off")
AcceleratorState._reset_state(True)
tell = True
for kind in ("hard", "soft"):
    run(kind, kind, fsdp=True)
adamw = {"optim": "adamw_torch", "learning_rate": 3e-3, "fsdp": True}
rank = run("whole", "hard", **adamw)
if rank == 0:
    shutil.copytree(folder / "whole/checkpoint-2", folder / "again/checkpoint-2")
torch.distributed.barrier()
run("again", "hard", resume=True, **adamw)
try:
    made("off", fsdp=True)
except ValueError as error:
    found["refusal"] = str(error)
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return folder, run_in_two(WORKER, folder)


def saved(folder):
    """The adapters of a folder, on the base, as one vector with the base."""
    from peft import PeftModel

    return weights(PeftModel.from_pretrained(tiny(byte_level_bpe(), seed=1), folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["off", "hard", "soft"])
def test_two_processes_learn_the_adapters_that_one_learns(kind, processes):
    folder, found = processes
    alone = made(kind)
    begins = weights(alone.model).clone()
    losses = trained(alone)
    assert found[kind]["losses"] == pytest.approx(losses, abs=1e-4)
    learned = weights(alone.model)
    torch.testing.assert_close(saved(folder / kind), learned, rtol=0, atol=1e-4)
    # Not because nothing moved, or nothing was spread.
    assert (learned - begins).abs().max() > 1e-3
    assert set(found[kind]["spread"]) == {kind != "off"}


@pytest.mark.slow
def test_adapters_whose_run_was_cut_off_go_on_with_spread_weights(processes):
    folder, found = processes
    assert found["again"]["losses"] == pytest.approx(found["whole"]["losses"], abs=1e-6)
    again, whole = (saved(folder / name) for name in ("again", "whole"))
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_where_weights_are_spread_another_teacher_is_named(processes):
    _, found = processes
    assert "adapters cannot be turned off for the teacher" in found["refusal"]
    assert "load the base a second time, and pass it as the teacher" in found["refusal"]
