"""What `make bench` measured holds here too: values, one memory ceiling, one ratio."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from distill_helpers.losses import Hidden, soft_label_loss
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import OnPolicyTrainer

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
import bench_losses  # noqa: E402
import rollouts  # noqa: E402
from peers import LOSSES, make_inputs  # noqa: E402

REFERENCE = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "row",
    REFERENCE["values"],
    ids=lambda row: f"{row['library']} {row['divergence']}",
)
def test_values_and_gradients_of_the_libraries(row):
    tensors = make_inputs(*row["shape"])
    loss = LOSSES["ours"](*tensors, divergence=row["divergence"])
    loss.backward()
    assert loss.item() == pytest.approx(row["loss"], rel=1e-5)
    for tensor, wanted in zip(
        tensors, (row["hidden_gradient"], row["head_gradient"]), strict=False
    ):
        found = [tensor.grad.norm().item(), *tensor.grad.flatten()[:6].tolist()]
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    "row", REFERENCE["rollouts"]["losses"], ids=lambda row: f"beta {row['beta']}"
)
def test_on_policy_loss_is_that_of_trl_on_the_same_texts(row, tmp_path):
    teacher = load_tiny_teacher("sums")
    student = rollouts.beginner()
    rows = REFERENCE["rollouts"]["rows"]
    trainer = OnPolicyTrainer(
        student,
        teacher=teacher.model,
        max_new_tokens=rollouts.LENGTH,
        divergence="jsd",
        beta=row["beta"],
        tokenizer=teacher.tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=TrainingArguments(
            remove_unused_columns=False, **rollouts.trainer_options(str(tmp_path))
        ),
    )
    loss = trainer.compute_loss(student, dict(trainer.data_collator(rows)))
    loss.backward()
    gradient = student.get_output_embeddings().weight.grad
    assert loss.item() == pytest.approx(row["loss"], rel=1e-5)
    assert gradient.norm().item() == pytest.approx(row["head_gradient"], rel=1e-4)


def test_the_texts_of_the_reference_are_what_the_student_writes():
    rows = REFERENCE["rollouts"]["rows"]
    assert rollouts.write_rollouts() == rows
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) > 3, "some end by themselves, some are cut off"


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high mark is Linux's"
)
def test_memory_stays_below_the_ceiling():
    shape = bench_losses.SHAPES[0]
    assert bench_losses.measure_memory("ours", shape, "forward_kl") <= 128


def test_faster_than_the_plain_way():
    tensors = make_inputs(*bench_losses.SHAPES[0])
    seconds = {"ours": [], "naive PyTorch": []}
    # As many turns as it takes for the median to forget what other processes do.
    for turn in range(10):
        for name, found in seconds.items():
            for tensor in tensors[:2]:
                tensor.grad = None
            start = time.perf_counter()
            LOSSES[name](*tensors, divergence="forward_kl").backward()
            if turn:
                found.append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    assert medians["ours"] < medians["naive PyTorch"]


def test_memory_does_not_grow_with_the_tokens():
    """Blocks, not [tokens, vocabulary]: the largest tensor asked for stays small."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    tensors = make_inputs(4096, 8, 20_000)
    with Watch():
        student, teacher = Hidden(*tensors[:2]), Hidden(*tensors[2:4])
        loss = soft_label_loss(
            student, teacher, tensors[4], chunk_tokens=64, shift=False
        ).loss
    loss.backward()
    assert max(sizes) <= max(64 * 20_000, 20_000 * 8, 4096 * 8)


# --- what the last `make bench` found -----------------------------------------------

RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "row",
    RESULTS["losses"]["found"]["losses"],
    ids=lambda row: f"{row['shape'][2]} {row['divergence']}",
)
def test_published_memory_and_time(row):
    memory, seconds = row["mib"], row["seconds"]
    assert memory["ours"] <= 128
    if row["shape"][2] > 32_000:
        assert memory["ours"] <= 0.5 * min(v for k, v in memory.items() if k != "ours")
    most = 2.3 if row["shape"][2] > 100_000 else 2.0
    assert seconds["ours"] <= most * seconds[bench_losses.FLOOR]


def test_published_growth_is_linear_in_time_and_flat_in_memory():
    rows = RESULTS["losses"]["found"]["growth"]
    per_token = [row["seconds"] / row["tokens"] for row in rows]
    assert max(per_token) <= 1.25 * min(per_token)
    assert max(row["mib"] for row in rows) <= 128


def test_the_published_tables_are_of_these_results():
    import run

    assert (FOLDER / "results.md").read_text(encoding="utf-8") == run.tables(RESULTS)
