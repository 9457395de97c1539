"""FSDP 2 over two gloo processes: what one process learns, with half of the weights.

accelerate spreads weights only where it sees GPUs, and here it is told that it does.
All that follows is its own, on CPUs.
"""

from __future__ import annotations

import json

import pytest
import torch
from training_runs import SGD, trainer, weights
from two_processes import run_in_two

from distill_helpers.models import load_model

# The batch is that of both processes together.
RUNS = {
    "fused": {},
    "plain": {"objective": {"fused": False}},
    "accumulated": {"gradient_accumulation_steps": 2, "steps": 3},
    "hard": {"kind": "hard"},
    "jsd": {"objective": {"divergence": "jsd", "alpha": 0.5, "temperature": 1.5}},
}
WORKER = """
from training_runs import SGD, trainer

runs = json.loads(sys.argv[2])

def train(name, options, resume=False):
    half = {"fsdp": True, "save_steps": 2, "batch_size": 2}
    made = trainer(folder / name, **half | SGD | options)
    made.train(resume_from_checkpoint=resume)
    made.save_model()
    read = [made.objective.student]
    models = [made.model]
    if options.get("kind") != "hard":
        read.append(made.objective.teacher.reader)
        models.append(made.objective.teacher.model)
    return {
        "losses": [e["loss"] for e in made.state.log_history if "loss" in e],
        "fused": [one.fused for one in read],
        "spread": [
            all(isinstance(p, DTensor) for p in one.model.layers.parameters())
            for one in models
        ],
        "rank": made.args.process_index,
    }

try:
    train("untold", {})
except ValueError as error:
    found["refusal"] = str(error)
tell = True
found |= {name: train(name, options) for name, options in runs.items()}
# Of plain SGD, which has no state, torch cannot load one.
adamw = {"optim": "adamw_torch", "learning_rate": 3e-3}
found["whole"] = train("whole", adamw)
rank = found["whole"]["rank"]
if rank == 0:
    shutil.copytree(folder / "whole/checkpoint-2", folder / "again/checkpoint-2")
torch.distributed.barrier()
found["again"] = train("again", adamw, resume=True)
"""


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread")
    return folder, run_in_two(WORKER, folder, json.dumps(RUNS))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_with_half_the_weights_learn_what_one_learns(name, spread):
    folder, runs = spread
    found = runs[name]
    alone = trainer(**SGD, **RUNS[name])
    alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert found["losses"] == pytest.approx(losses, abs=1e-4)
    # It loads without FSDP, tokenizer and all.
    loaded, tokenizer = load_model(folder / name)
    assert len(tokenizer) == loaded.config.vocab_size
    torch.testing.assert_close(weights(loaded), weights(alone.model), rtol=0, atol=1e-4)
    # Not because nothing moved, or nothing was spread.
    assert (weights(alone.model) - weights(trainer().model)).abs().max() > 0.01
    assert all(found["spread"])
    assert found["fused"] == [name != "plain"] * len(found["fused"])


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(spread):
    folder, runs = spread
    assert len(runs["again"]["losses"]) == 4
    assert runs["again"]["losses"] == pytest.approx(runs["whole"]["losses"], abs=1e-6)
    whole, again = (load_model(folder / name).model for name in ("whole", "again"))
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_on_cpus_fsdp_is_refused_for_accelerate_would_forget_it(spread):
    _, runs = spread
    assert "accelerate spreads weights over GPUs alone" in runs["refusal"]
