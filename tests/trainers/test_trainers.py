"""The trainers: right sums, a frozen teacher, runs that are cut off and go on."""

import copy
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import training_runs
from datasets import Dataset
from safetensors import safe_open
from tiny_models import byte_level_bpe, ragged_rows, random_rows, tiny
from training_runs import SGD, bf16_profile, trainer, weights
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from distill_helpers import machine
from distill_helpers.data import collator_for, pack_examples
from distill_helpers.labels.choices import relabel
from distill_helpers.losses import hard_label_loss, soft_label_loss
from distill_helpers.models import RememberingTeacher
from distill_helpers.tasks import three_sums
from distill_helpers.trainers import (
    CoDistillationTrainer,
    DistillationTrainer,
    HardLabels,
    HardLabelTrainer,
    KeepBest,
    OnPolicyTrainer,
    SoftLabels,
    SoftLabelTrainer,
    is_complete,
    last_complete_checkpoint,
    training_arguments,
)

RUNS = Path(training_runs.__file__)


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def trained(*args, resume=None, **options):
    made = trainer(*args, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def start():
    """The weights that every student of ``trainer`` starts from."""
    return weights(tiny(byte_level_bpe(), seed=1))


# --- sums over the whole step -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_one_batch(kind, accumulation):
    whole = trained(kind=kind, batch_size=8, **SGD)
    parts = trained(
        kind=kind,
        batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        **SGD,
    )
    assert (weights(whole.model) - start()).abs().max() > 0.02  # it did learn
    torch.testing.assert_close(
        weights(parts.model), weights(whole.model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_one_step_is_the_gradient_of_the_contract(bpe, kind):
    """One SGD step against the loss taken by hand over the whole batch."""
    rows = ragged_rows(8, len(bpe))
    made = trained(
        kind=kind,
        rows=rows,
        steps=1,
        batch_size=2,
        gradient_accumulation_steps=4,
        **SGD,
    )
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=2)
    batch = collator_for(bpe)(list(rows))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = student(**inputs).logits
    if kind == "hard":
        loss = hard_label_loss(logits, batch["labels"])
    else:
        with torch.no_grad():
            teacher_logits = teacher(**inputs).logits
        loss = soft_label_loss(
            logits, teacher_logits, batch["labels"], alpha=0.7, temperature=2.0
        ).loss
    loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= SGD["learning_rate"] * parameter.grad
    torch.testing.assert_close(
        weights(made.model), weights(student), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("fused", [True, False])
def test_packed_examples_do_not_see_each_other(bpe, kind, fused):
    """One step on packed rows equals one step on the same examples alone."""
    rows = ragged_rows(12, len(bpe))
    packed = pack_examples(rows, 2 * max(map(len, rows["input_ids"])))
    assert len(packed) < len(rows)
    one, two = (
        trained(
            kind=kind,
            rows=chosen,
            steps=1,
            batch_size=len(chosen),
            objective={"fused": fused},
            **SGD,
        )
        for chosen in (rows, packed)
    )
    assert (weights(one.model) - start()).abs().max() > 0.002
    torch.testing.assert_close(
        weights(two.model), weights(one.model), rtol=1e-4, atol=1e-5
    )


class Stored:
    """Soft labels by whole rows."""

    temperature = 2.0
    vocabulary = 300

    def lookup(self, input_ids, attention_mask=None):
        raise AssertionError("packed rows must not get here")


@pytest.mark.parametrize("kind", ["remembering", "stored"])
def test_soft_labels_of_whole_rows_refuse_packed_ones(bpe, kind):
    teacher = Stored()
    if kind == "remembering":
        teacher = RememberingTeacher(tiny(bpe, seed=2))
    with pytest.raises(ValueError, match="whole rows"):
        trained(
            rows=pack_examples(ragged_rows(4, len(bpe)), 200),
            steps=1,
            batch_size=2,
            teacher=teacher,
        )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(folder, *settings, processes=1):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    path = [str(RUNS.parents[1]), str(RUNS.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [*command, str(RUNS), str(folder), *settings],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(path), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="the loopback has another name")
@pytest.mark.parametrize("kind", ["soft", "hard", "together", "on_policy"])
def test_two_processes_equal_one(tmp_path, kind):
    """Two ranks whose rows hold unequal numbers of tokens, two batches a step each."""
    done = run_script(
        tmp_path,
        f"kind={kind}",
        "sgd=1",
        "batch_size=2",
        "gradient_accumulation_steps=2",
        processes=2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = trained(kind=kind, batch_size=8, **SGD)
    before = weights(trainer(kind=kind).model)
    assert (weights(one.model) - before).abs().max() > 0.02
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(two, weights(one.model), rtol=1e-4, atol=1e-4)
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-4"


def test_a_step_without_a_counted_token_changes_nothing(bpe):
    rows = Dataset.from_dict(
        {"input_ids": [[3, 4, 5]] * 4, "labels": [[-100, -100, -100]] * 4}
    )
    for kind in ("soft", "hard"):
        made = trained(kind=kind, rows=rows, steps=2, **SGD)
        assert torch.equal(weights(made.model), start())


# --- going on after a cut -----------------------------------------------------------

# Twelve rows, six batches an epoch, two batches a step: cut in the middle of an epoch.
RESUMED = {
    "steps": 6,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "dropout": 0.2,
    "logging_steps": 1,
}


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"), **RESUMED)


def losses(made):
    return {log["step"]: log["loss"] for log in made.state.log_history if "loss" in log}


def test_dropout_is_at_work_in_these_runs(uninterrupted):
    """Else the resume tests would not look at the random state."""
    calm = trained(**RESUMED | {"dropout": 0.0})
    assert not torch.equal(weights(calm.model), weights(uninterrupted.model))


@pytest.mark.parametrize("step", [3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, step):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[Interrupt(step)], **RESUMED)
    torch.manual_seed(99)  # another process would be in another state
    resumed = trained(tmp_path, resume=True, **RESUMED)
    assert torch.equal(weights(resumed.model), weights(uninterrupted.model))
    assert losses(resumed) == losses(uninterrupted)
    optimizer = resumed.optimizer.state_dict()["state"]
    for key, state in uninterrupted.optimizer.state_dict()["state"].items():
        assert torch.equal(optimizer[key]["exp_avg_sq"], state["exp_avg_sq"])


def test_resuming_from_nothing_starts_anew(tmp_path, uninterrupted):
    fresh = trained(tmp_path / "empty", resume=True, **RESUMED)
    assert torch.equal(weights(fresh.model), weights(uninterrupted.model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("_save_optimizer_and_scheduler", 2),  # the weights stand, Adam's state not
        ("_save_rng_state", 1),
        ("on_save", 1),  # all is written but the marker
    ],
)
def test_killed_in_the_middle_of_a_save(tmp_path, uninterrupted, method, limit):
    settings = [f"{name}={value}" for name, value in RESUMED.items()]
    done = run_script(
        tmp_path,
        *settings,
        f"save_total_limit={limit}",
        "kill_at=4",
        f"kill_in={method}",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    run = tmp_path / "run"
    assert (run / "checkpoint-4" / "model.safetensors").is_file()
    assert not is_complete(run / "checkpoint-4")
    assert last_complete_checkpoint(run) == run / "checkpoint-2"
    resumed = trained(run, resume=True, **RESUMED | {"save_total_limit": limit})
    assert torch.equal(weights(resumed.model), weights(uninterrupted.model))
    assert last_complete_checkpoint(run) == run / "checkpoint-6"


def test_old_checkpoints_go_only_when_a_new_one_stands(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(sorted(p.name for p in tmp_path.glob("checkpoint-*")))

    trained(tmp_path, steps=4, save_steps=1, save_total_limit=1, callbacks=[Look()])
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"]]
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"


def test_a_half_written_checkpoint_never_displaces_a_complete_one(tmp_path):
    left = tmp_path / "checkpoint-50"  # a killed run of other lengths left it
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    trained(tmp_path, steps=3, save_steps=1, save_total_limit=1)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert not (tmp_path / "checkpoint-2").exists()


def test_an_earlier_run_s_checkpoints_go_first(tmp_path, caplog):
    """Else a run that is cut off would be resumed from the end of that one."""
    trained(tmp_path, steps=4, save_steps=1)
    assert not caplog.records
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, steps=4, save_steps=1, callbacks=[Interrupt(3)])
    assert "holds checkpoint-3, checkpoint-4 of an earlier run" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-1",
        "checkpoint-2",
    }


def test_without_a_limit_every_checkpoint_stays(tmp_path):
    trained(tmp_path, steps=3, save_steps=1, save_total_limit=None)
    assert len(list(tmp_path.glob("checkpoint-*/COMPLETE"))) == 3


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, bpe, limit):
    made = trained(
        tmp_path,
        steps=4,
        save_steps=1,
        save_total_limit=limit,
        eval_rows=ragged_rows(4, len(bpe), seed=9),
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        load_best_model_at_end=True,
        **SGD | {"learning_rate": 5.0},  # so far too high that the first is best
    )
    names = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert made.state.best_model_checkpoint is not None
    assert names == {Path(made.state.best_model_checkpoint).name, "checkpoint-4"}


def test_an_incomplete_checkpoint_cannot_be_asked_for(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="is not a complete checkpoint; pass True"):
        trained(tmp_path, resume=str(tmp_path / "checkpoint-2"))


def test_a_complete_checkpoint_can_be_asked_for(tmp_path, uninterrupted):
    trained(tmp_path, **RESUMED | {"save_total_limit": None})
    again = trained(tmp_path, resume=str(tmp_path / "checkpoint-2"), **RESUMED)
    assert torch.equal(weights(again.model), weights(uninterrupted.model))


def test_the_last_complete_checkpoint_goes_by_number(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 100, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 200:
            (tmp_path / f"checkpoint-{step}" / "COMPLETE").touch()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-100"


class Trap:
    """What a stranger could put into a checkpoint: unpickled, it makes a file."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_checkpoints_load_without_unpickling(tmp_path, name):
    """Resuming reads the file, and refuses to run what is in it."""
    trained(tmp_path, **RESUMED | {"steps": 4})
    file = tmp_path / "checkpoint-4" / name
    sprung = tmp_path / "sprung"
    torch.save(Trap(sprung), file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trained(tmp_path, resume=True, **RESUMED)
    assert not sprung.exists()
    torch.load(file, weights_only=False)
    assert sprung.exists()  # so the trap does work


def test_what_is_never_read_of_a_checkpoint_may_be_anything(tmp_path, uninterrupted):
    """Trainer pickles its arguments, and nobody unpickles them here."""
    trained(tmp_path, **RESUMED | {"save_total_limit": None})
    run = tmp_path / "checkpoint-2"
    torch.save(Trap(tmp_path / "sprung"), run / "training_args.bin")
    resumed = trained(tmp_path, resume=str(run), **RESUMED)
    assert torch.equal(weights(resumed.model), weights(uninterrupted.model))
    assert not (tmp_path / "sprung").exists()


def test_without_an_output_folder_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = trained(steps=2)
    assert list(tmp_path.rglob("*")) == []
    assert not list(Path(made.args.output_dir).glob("checkpoint-*"))


# --- the teacher --------------------------------------------------------------------


def test_the_teacher_is_frozen_unchanged_and_never_saved(tmp_path, bpe):
    teacher = tiny(bpe, seed=2).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    made = trained(tmp_path, teacher=teacher, steps=2, save_steps=1)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    optimized = {id(p) for g in made.optimizer.param_groups for p in g["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}
    # In no file of any checkpoint, under whatever name.
    needles = [
        tensor.flatten()[-16:].numpy().tobytes()
        for name, tensor in before.items()
        if tensor.dim() == 2
    ]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), path
    with safe_open(tmp_path / "checkpoint-2" / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) <= set(made.model.state_dict())


def by_hand(student, teacher, tokenizer, rows):
    batch = collator_for(tokenizer)(list(rows))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return soft_label_loss(
            student(**inputs).logits,
            teacher(**inputs).logits,
            batch["labels"],
            alpha=0.7,
            temperature=2.0,
        )


def training_logs(made):
    return [log for log in made.state.log_history if "loss" in log]


# With a learning rate of zero and all rows in every step, all logs are one number.
STILL = {**SGD, "learning_rate": 0.0, "batch_size": 2, "gradient_accumulation_steps": 4}


def test_the_logged_parts_are_the_parts(bpe):
    rows = ragged_rows(8, len(bpe))
    made = trained(rows=rows, steps=5, logging_steps=2, **STILL)
    expected = by_hand(tiny(bpe, seed=1), tiny(bpe, seed=2), bpe, rows)
    logs = training_logs(made)
    assert [log["step"] for log in logs] == [2, 4]
    for log in logs:
        assert log["loss"] == pytest.approx(float(expected.loss), rel=1e-4)
        assert log["soft"] == pytest.approx(float(expected.soft), rel=1e-4)
        assert log["hard"] == pytest.approx(float(expected.hard), rel=1e-4)
        assert log["loss"] == pytest.approx(0.7 * log["soft"] + 0.3 * log["hard"])


def test_the_logged_parts_are_right_after_resuming_between_two_logs(tmp_path, bpe):
    rows = ragged_rows(8, len(bpe))
    options = {"rows": rows, "steps": 6, "logging_steps": 3, "save_steps": 2, **STILL}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[Interrupt(5)], **options)
    for path in (tmp_path / "checkpoint-4").iterdir():
        path.unlink()  # go on from 2, between the logs at 0 and 3
    (tmp_path / "checkpoint-4").rmdir()
    made = trained(tmp_path, resume=True, **options)
    expected = by_hand(tiny(bpe, seed=1), tiny(bpe, seed=2), bpe, rows)
    logs = training_logs(made)
    assert [log["step"] for log in logs] == [3, 6]
    for log in logs:
        assert log["soft"] == pytest.approx(float(expected.soft), rel=1e-4)
        assert log["hard"] == pytest.approx(float(expected.hard), rel=1e-4)


def test_the_teacher_s_dropout_is_off(bpe):
    rows = ragged_rows(8, len(bpe))
    teacher = tiny(bpe, seed=2).train()
    for layer in teacher.model.layers:
        layer.self_attn.attention_dropout = 0.5
    made = trained(rows=rows, teacher=teacher, steps=2, logging_steps=1, **STILL)
    expected = by_hand(tiny(bpe, seed=1), tiny(bpe, seed=2), bpe, rows)
    for log in training_logs(made):
        assert log["soft"] == pytest.approx(float(expected.soft), rel=1e-4)


def padded(model, extra=20):
    """The same model with a wider head, as Qwen2.5's larger models have it."""
    wide = copy.deepcopy(model)
    size = model.config.vocab_size
    wide.resize_token_embeddings(size + extra, mean_resizing=False)
    with torch.no_grad():
        wide.get_output_embeddings().weight[size:] = 5.0
    return wide


def test_padded_heads_are_cut_to_the_shared_tokens(bpe):
    rows = ragged_rows(6, len(bpe))
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=2)
    batch = collator_for(bpe)(list(rows))
    expected = SoftLabels(teacher, len(bpe))(student, batch, None)["loss"]
    for left, right in [(student, padded(teacher)), (padded(student), teacher)]:
        found = SoftLabels(right, len(bpe))(left, batch, None)["loss"]
        torch.testing.assert_close(found, expected)
    plain = trained(rows=rows, steps=2, **SGD)
    cut = trained(
        rows=rows,
        steps=2,
        teacher=padded(teacher),
        objective={"teacher_tokenizer": bpe},
        **SGD,
    )
    torch.testing.assert_close(weights(cut.model), weights(plain.model))


def test_heads_of_two_widths_need_the_teacher_s_tokenizer(bpe):
    with pytest.raises(
        ValueError, match=r"head has 320 .*300; pass teacher_tokenizer="
    ):
        trainer(teacher=padded(tiny(bpe)))


def test_different_tokenizers_are_refused(bpe):
    other = byte_level_bpe(299)
    with pytest.raises(ValueError, match=r"different tokenizers.*hard labels"):
        trainer(teacher=tiny(other), objective={"teacher_tokenizer": other})


def test_a_model_cannot_be_its_own_teacher(bpe):
    model = tiny(bpe)
    with pytest.raises(ValueError, match=r"one object.*copy\.deepcopy"):
        SoftLabelTrainer(
            model,
            teacher=model,
            tokenizer=bpe,
            args=training_arguments(
                machine.get_profile("smoke"), steps=1, learning_rate=1, batch_size=1
            ),
            train_dataset=random_rows(1, 4, 300),
        )
    assert all(p.requires_grad for p in model.parameters())


def test_a_teacher_with_nan_is_named(bpe):
    teacher = tiny(bpe, seed=2)
    with torch.no_grad():
        teacher.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"teacher(\.states)? holds NaN"):
        trained(teacher=teacher, steps=1)


def test_bad_options_reach_the_loss_s_own_errors():
    with pytest.raises(ValueError, match="temperature=0 must be a positive number"):
        trained(objective={"temperature": 0}, steps=1)
    with pytest.raises(ValueError, match="alpha=2 must lie between 0 and 1"):
        trained(objective={"alpha": 2}, steps=1)


def test_soft_labels_alone_bring_the_student_to_the_teacher(bpe):
    """The point of it all: the KL falls, and to the teacher's side."""
    rows = random_rows(16, 8, len(bpe))
    made = trainer(
        rows=rows,
        steps=60,
        batch_size=16,
        learning_rate=1e-2,
        objective={"alpha": 1.0, "temperature": 1.0},
        logging_steps=1,
    )
    made.train()
    soft = [log["soft"] for log in training_logs(made)]
    assert soft[-1] < soft[0] / 3


# --- precision, arguments, logs -----------------------------------------------------


def test_bf16_autocast_trains_fp32_weights(bpe):
    seen = set()
    made = trainer(
        profile=training_runs.bf16_profile(), steps=40, batch_size=24, logging_steps=1
    )
    layer = made.model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    made.train()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    found = [log["loss"] for log in training_logs(made)]
    assert found[-1] < 0.8 * found[0]


def shrunk(kind, vocabulary, *, tied, seed=0):
    """A model of the architectures that the gpu profile names, made small."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True)]
)
def test_a_step_in_fp16_loses_no_gradient(family, tied, fused, kind):
    """As Trainer does it on a T4: fp16 autocast, a scaled loss, weights in fp32.

    Divided by the tokens of a whole step, a gradient is too small for fp16 until the
    loss is scaled; so nothing may be rounded before that.
    """
    student = shrunk(family, 320, tied=tied)
    # The teacher's head is padded to another width.
    teacher = shrunk(family, 352, tied=tied, seed=1).requires_grad_(False)
    objective = HardLabels(fused=fused)
    if kind == "soft":
        options = {"temperature": 1.0, "alpha": 0.5, "scale_by_t2": True}
        objective = SoftLabels(teacher, 300, fused=fused, **options)
    ids = random_rows(4, 16, 300).with_format("torch")[:]["input_ids"]
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    count = 2**17

    objective(student, inputs, count)["loss"].backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    teacher.half()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = objective(student, inputs, count)["loss"]
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in student.named_parameters():
        gap = (parameter.grad - expected[name]).norm()
        assert gap < 0.03 * expected[name].norm(), name
        lost = (parameter.grad == 0) & (expected[name] != 0)
        assert lost.float().mean() < 0.02, name


def test_mixed_precision_can_be_turned_off():
    arguments = training_arguments(
        training_runs.bf16_profile(),
        steps=1,
        learning_rate=1e-3,
        batch_size=1,
        mixed_precision=False,
    )
    assert not arguments.bf16
    assert not arguments.fp16


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_without_a_gpu_profile_no_accelerator_is_taken(name):
    arguments = training_arguments(
        machine.get_profile(name), steps=1, learning_rate=1e-3, batch_size=1
    )
    assert arguments.use_cpu
    assert arguments.device.type == "cpu"


def test_defaults_and_overrides(tmp_path):
    smoke = machine.get_profile("smoke")
    plain = training_arguments(smoke, steps=200, learning_rate=1e-3, batch_size=2)
    assert plain.save_strategy == "no"
    assert plain.warmup_steps == 10
    assert not plain.logging_nan_inf_filter
    assert not plain.remove_unused_columns
    changed = training_arguments(
        smoke,
        steps=200,
        learning_rate=1e-3,
        batch_size=2,
        output_dir=tmp_path,
        save_steps=7,
        weight_decay=0.0,
    )
    assert changed.save_strategy == "steps"
    assert (changed.save_steps, changed.weight_decay) == (7, 0.0)
    assert changed.output_dir == str(tmp_path)


def test_weighing_processes_instead_of_tokens_is_refused():
    with pytest.raises(ValueError, match="average_tokens_across_devices=False"):
        trainer(average_tokens_across_devices=False)


def test_long_training_prints_one_line_of_progress_on_stderr(capfd, monkeypatch):
    monkeypatch.setattr(machine, "BAR_DELAY", 0.0)
    trained(steps=2, disable_tqdm=False, logging_steps=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "loss=" in err
    monkeypatch.undo()
    trained(steps=2, disable_tqdm=False, logging_steps=1)
    assert capfd.readouterr() == ("", "")


def without_labels(rows):
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}


def pull_to_zero(model, inputs, num_items):
    assert num_items is None
    return {"loss": model(**inputs).logits.square().mean()}


def test_without_labels_micro_batches_are_averaged(bpe):
    """There is nothing to count then, so an objective gives a mean."""
    found = []
    for batch_size in (8, 2):
        made = trainer(
            kind="hard",
            rows=random_rows(8, 6, len(bpe)),
            batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            **SGD,
        )
        made.objective, made.data_collator = pull_to_zero, without_labels
        made.train()
        found.append(weights(made.model))
    assert (found[0] - start()).abs().max() > 1e-3
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_evaluation_inside_the_trainer_is_the_same_loss(bpe):
    made = trainer(rows=ragged_rows(4, len(bpe)))
    rows = ragged_rows(5, len(bpe), seed=7)
    found = made.evaluate(rows)["eval_loss"]
    expected = by_hand(tiny(bpe, seed=1), tiny(bpe, seed=2), bpe, rows)
    assert found == pytest.approx(float(expected.loss), rel=1e-4)


def test_any_objective_can_be_trained(bpe):
    class Small:
        """Pulls all logits to zero; logs a part of its own."""

        def __call__(self, model, inputs, num_items):
            logits = model(input_ids=inputs["input_ids"]).logits
            size = logits.square().mean()
            return {"loss": size, "size": size}

    made = DistillationTrainer(
        tiny(bpe),
        Small(),
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=20,
            learning_rate=1e-2,
            batch_size=4,
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=random_rows(8, 6, len(bpe)),
        tokenizer=bpe,
    )
    made.train()
    sizes = [log["size"] for log in training_logs(made)]
    assert sizes[-1] < sizes[0] / 2
    assert sizes == pytest.approx([log["loss"] for log in training_logs(made)])


def test_hard_labels_learn_an_answer_by_heart():
    from distill_helpers.data import mask_prompts
    from distill_helpers.evaluation import generate
    from distill_helpers.models import build_student

    tokenizer = three_sums.build_tokenizer()
    model = build_student(tokenizer, layers=1, width=32)
    made = HardLabelTrainer(
        model,
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=60,
            learning_rate=1e-2,
            batch_size=2,
            disable_tqdm=True,
        ),
        train_dataset=mask_prompts(["1+2=", "30+4="], [";3", ";34"], tokenizer),
        tokenizer=tokenizer,
    )
    made.train()
    found = generate(model, tokenizer, ["1+2=", "30+4="], max_new_tokens=8)
    assert found == [";3", ";34"]  # and it stops there


def test_masked_labels_teach_nothing(bpe):
    """Other ids under the mask of the labels: the same gradient."""
    ids = [[5, 6, 7, 8]]
    objective, model = HardLabels(), tiny(bpe)

    def loss(labels):
        rows = [{"input_ids": ids[0], "labels": labels}]
        return objective(model, collator_for(bpe)(rows), None)["loss"].item()

    assert loss([5, -100, -100, 8]) == loss([-100, -100, -100, 8])
    assert loss([5, 6, 7, 8]) != loss([-100, -100, -100, 8])


# --- labels from a teacher ----------------------------------------------------------


def test_relabel_argmax_is_the_teacher_s_choice_one_earlier(bpe):
    teacher = tiny(bpe, seed=2)
    rows = random_rows(7, 9, len(bpe))
    found = relabel(rows, teacher, how="argmax", batch_size=3)
    assert found["input_ids"][:] == rows["input_ids"][:]
    for row in found:
        with torch.no_grad():
            choice = teacher(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        assert row["labels"][1:] == choice[:-1].tolist()
        assert row["labels"][1:] != row["input_ids"][1:]


def test_relabel_sample_draws_from_the_teacher(bpe):
    tokenizer = three_sums.build_tokenizer()
    teacher = tiny(tokenizer, seed=2)
    ids = [[3, 9, 5]]
    rows = Dataset.from_dict({"input_ids": ids * 4000})
    found = torch.tensor(
        relabel(rows, teacher, how="sample", batch_size=512)["labels"][:]
    )
    with torch.no_grad():
        p = teacher(torch.tensor(ids)).logits[0].softmax(-1)
    for position in (1, 2):
        counts = found[:, position].bincount(minlength=16) / 4000
        spread = (p[position - 1] * (1 - p[position - 1]) / 4000).sqrt()
        assert ((counts - p[position - 1]).abs() < 5 * spread + 1e-3).all()
    assert (p[0] - p[1]).abs().max() > 0.03  # else alignment is not tested


def test_relabel_is_seeded_and_leaves_the_global_state(bpe):
    teacher, rows = tiny(bpe, seed=2), random_rows(6, 9, len(bpe))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = relabel(rows, teacher, how="sample", seed=1)["labels"][:]
    assert torch.equal(torch.rand(2), expected)
    assert relabel(rows, teacher, how="sample", seed=1)["labels"][:] == first
    assert relabel(rows, teacher, how="sample", seed=2)["labels"][:] != first


def test_relabel_replaces_labels_that_are_there(bpe):
    teacher, rows = tiny(bpe, seed=2), random_rows(4, 6, len(bpe))
    twice = relabel(relabel(rows, teacher, how="sample"), teacher, how="argmax")
    assert twice["labels"][:] == relabel(rows, teacher, how="argmax")["labels"][:]


def test_relabel_errors(bpe):
    teacher = tiny(bpe)
    with pytest.raises(ValueError, match="how='best' must be 'argmax' or 'sample'"):
        relabel(random_rows(2, 4, 300), teacher, how="best")
    with pytest.raises(ValueError, match="differ in length; pack them"):
        relabel(ragged_rows(4, 300), teacher, how="argmax")


# --- keeping the best ---------------------------------------------------------------


def test_keep_best_restores_the_best_weights():
    kept = {}
    scores = iter([3.0, 1.0, 2.0, 5.0])

    def score(model):
        value = next(scores)
        kept[value] = weights(model).clone()
        return value

    best = KeepBest(score, every=2)
    made = trained(steps=7, callbacks=[best])
    assert best.curve == [(2, 3.0), (4, 1.0), (6, 2.0), (7, 5.0)]
    assert (best.best, best.step) == (1.0, 4)
    assert not torch.equal(weights(made.model), kept[1.0])
    best.restore(made.model)
    assert torch.equal(weights(made.model), kept[1.0])


def test_keep_best_ignores_nan():
    scores = iter([2.0, float("nan"), 3.0])
    best = KeepBest(lambda _: next(scores), every=1)
    trained(steps=3, callbacks=[best])
    assert (best.best, best.step) == (2.0, 1)


def test_keep_best_before_training_says_so(bpe):
    with pytest.raises(RuntimeError, match="nothing was kept"):
        KeepBest(lambda _: 0.0, every=1).restore(tiny(bpe))


@pytest.mark.parametrize(("every", "missed"), [(2, True), (3, False)])
def test_keep_best_says_what_it_has_not_seen(tmp_path, caplog, every, missed):
    """Its memory ends with the process; here a new callback stands for a new one."""
    options = {"steps": 4, "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[Interrupt(3)], **options)
    late, too_late = KeepBest(lambda _: 1.0, every), KeepBest(lambda _: 1.0, every)
    trained(tmp_path, resume=True, callbacks=[late], **options)
    warned = "from step 2: the best of the steps before is lost" in caplog.text
    assert warned == missed
    finished = trained(tmp_path, resume=True, callbacks=[too_late], **options)
    with pytest.raises(RuntimeError, match="finished run that is resumed takes no"):
        too_late.restore(finished.model)


# --- the fused path -----------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_fused_and_plain_losses_train_alike(kind, precision):
    found = []
    profile = bf16_profile() if precision == "bf16" else None
    for fused in (True, False):
        made = trainer(kind=kind, profile=profile, objective={"fused": fused}, **SGD)
        made.train()
        found.append(weights(made.model))
    moved = (found[0] - weights(tiny(byte_level_bpe(), seed=1))).norm()
    assert (found[0] - found[1]).norm() < (
        1e-5 if precision == "fp32" else 0.02
    ) * moved


@pytest.mark.parametrize("reshards", [True, False])
def test_a_head_that_is_spread_over_processes_is_read_while_it_is_whole(bpe, reshards):
    """FSDP 2 leaves it so from the model's call to the backward pass, or it does not.

    Then the model's logits are taken. Either way it must notice the backward pass.
    """
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    batch = collator_for(bpe)(list(ragged_rows(4, len(bpe))))
    whole, spread = tiny(bpe, seed=1), tiny(bpe, seed=1)
    wanted = HardLabels()(whole, batch, None)["loss"]
    wanted.backward()
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        fully_shard(spread, mesh=mesh, reshard_after_forward=reshards)
        assert isinstance(spread.lm_head.weight, DTensor)
        learns = HardLabels()
        loss = learns(spread, batch, None)["loss"]
        assert learns.student.fused != reshards
        loss.backward()
        found = spread.lm_head.weight.grad.full_tensor()
    finally:
        destroy_process_group()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, whole.lm_head.weight.grad)


def test_a_plain_head_is_used_without_a_word(caplog):
    made = trained(steps=1)
    assert made.objective.student.fused
    assert made.objective.teacher.reader.fused
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # as torch traces
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_compiled_student_keeps_the_fused_loss(kind, caplog):
    found = []
    for compiled in (True, False):
        backend = {"torch_compile_backend": "aot_eager"} if compiled else {}
        made = trainer(kind=kind, steps=2, torch_compile=compiled, **backend, **SGD)
        made.train()
        assert made.objective.student.fused
        found.append(weights(made.model))
    torch.testing.assert_close(*found)
    assert "logits are held in full" not in caplog.text


def test_a_head_that_is_not_plain_falls_back_with_a_message(bpe, caplog):
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0.5

    made = trainer(steps=2, **SGD)
    head = made.model.lm_head
    adapted = Adapted(head.in_features, head.out_features, bias=False)
    adapted.weight = head.weight
    made.model.lm_head = adapted
    made.train()
    assert "is not a plain linear layer" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_without_a_head_is_refused(bpe, who, fused):
    models = {"student": tiny(bpe, seed=1), "teacher": tiny(bpe, seed=2)}
    models[who] = models[who].model
    batch = collator_for(bpe)(list(ragged_rows(2, len(bpe))))
    objective = SoftLabels(models["teacher"], len(bpe), fused=fused)
    with pytest.raises(TypeError, match=f"the {who}, a LlamaModel, has no output"):
        objective(models["student"], batch, None)


def test_a_head_whose_logits_are_changed_afterwards_is_found_out(caplog):
    """And the try leaves no trace: the same dropout follows it."""
    options = {"steps": 2, "dropout": 0.2, **SGD}
    made = trainer(**options)
    made.model.config.logit_scale = 0.5  # a name that Llama does not know
    made.train()
    assert "does more than multiply" in caplog.text
    plain = trained(objective={"fused": False}, **options)
    torch.testing.assert_close(weights(made.model), weights(plain.model))


def test_the_try_of_a_head_is_forgotten_before_the_fallback(bpe):
    """Two graphs at a time would not fit where one does."""
    model = tiny(bpe, seed=1)
    model.config.logit_scale = 0.5
    given, alive = [], []
    model.register_forward_hook(
        lambda _model, _inputs, outputs: given.append(weakref.ref(outputs.logits))
    )
    model.register_forward_pre_hook(
        lambda *_: alive.append([one() is not None for one in given])
    )
    HardLabels()(model, collator_for(bpe)(list(ragged_rows(4, len(bpe)))), None)
    # Is it causal, does its head say what it says, and the step itself.
    assert alive == [[], [False], [False, False]]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}),
        ("recurrent_gemma", {"logits_soft_cap": 2.0}),
    ],
)
def test_a_soft_cap_is_followed(bpe, family, options):
    """Gemma 2 caps its logits; the fused loss has to do the same."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(bpe),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **options,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.lm_head.weight.data.mul_(30)
    batch = collator_for(bpe)(list(ragged_rows(6, len(bpe))))
    teacher = tiny(bpe, seed=2)
    found = []
    for fused in (True, False):
        objective = SoftLabels(teacher, len(bpe), fused=fused)
        loss = objective(model, batch, None)["loss"]
        assert objective.student.fused == fused
        found.append(torch.autograd.grad(loss, model.lm_head.weight)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_autocast_leaves_the_plain_loss_precise():
    student, teacher = torch.randn(2, 4, 6, 50).mul(5).unbind()
    labels = torch.randint(50, (4, 6))
    wanted = soft_label_loss(student, teacher, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_label_loss(student, teacher, labels)
    torch.testing.assert_close(found.loss, wanted.loss)


# --- what Trainer offers and an objective does not use ------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft", "together", "on_policy"])
def test_smoothing_would_have_no_effect(kind):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1 would have no"):
        trainer(kind=kind, label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    "name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"]
)
def test_functions_that_nobody_would_call(bpe, name):
    with pytest.raises(ValueError, match=f"{name} would have no effect"):
        HardLabelTrainer(
            tiny(bpe, seed=1),
            args=training_arguments(
                machine.get_profile("smoke"), steps=1, batch_size=2, learning_rate=1e-3
            ),
            train_dataset=ragged_rows(4, len(bpe)),
            tokenizer=bpe,
            **{name: print},
        )


@pytest.mark.parametrize("kind", ["together", "on_policy"])
@pytest.mark.parametrize("sign", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_spread_over_processes(monkeypatch, kind, sign):
    """Refused where a model is needed whole; a test has no such processes."""
    real = DistillationTrainer.create_accelerator_and_postprocess

    def spread(self):
        real(self)
        setattr(self, sign, True)

    monkeypatch.setattr(
        DistillationTrainer, "create_accelerator_and_postprocess", spread
    )
    with pytest.raises(ValueError, match="run without FSDP and DeepSpeed"):
        trainer(kind=kind)


def with_router(bpe):
    student = tiny(bpe, seed=1)
    student.config.output_router_logits = True
    options = {
        "args": training_arguments(
            machine.get_profile("smoke"),
            steps=1,
            batch_size=2,
            learning_rate=1e-3,
            disable_tqdm=True,
        ),
        "train_dataset": ragged_rows(4, len(bpe)),
        "tokenizer": bpe,
    }
    return student, options


@pytest.mark.parametrize("kind", [HardLabelTrainer, SoftLabelTrainer, OnPolicyTrainer])
def test_a_router_s_own_loss_is_not_forgotten_silently(bpe, kind):
    student, options = with_router(bpe)
    if kind is not HardLabelTrainer:
        options["teacher"] = tiny(bpe, seed=2)
    if kind is OnPolicyTrainer:
        options["max_new_tokens"] = 5
    with pytest.raises(ValueError, match="balances the experts"):
        kind(student, **options)


def test_nor_is_that_of_one_of_several(bpe):
    student, options = with_router(bpe)
    models = {"one": tiny(bpe, seed=2), "other": student}
    with pytest.raises(ValueError, match="balances the experts"):
        CoDistillationTrainer(models, **options)


def test_an_objective_of_one_s_own_may_balance_experts(bpe):
    student, options = with_router(bpe)
    made = DistillationTrainer(student, HardLabels(), **options)
    made.train()
    assert made.state.global_step == 1


@pytest.mark.parametrize("kind", ["hard", "soft", "together"])
def test_any_trainer_evaluates_while_it_trains(bpe, kind):
    rows = ragged_rows(8, len(bpe), seed=9)
    made = trained(
        kind=kind,
        eval_rows=rows,
        steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    losses = [e["eval_loss"] for e in made.state.log_history if "eval_loss" in e]
    assert len(losses) == 2
    assert all(0 < loss < 50 for loss in losses)


class KeepsTheFirstLabel:
    """A collator as others write it: it leaves the shift to the loss."""

    def __call__(self, rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize("kind", ["hard", "together"])
def test_a_first_label_is_never_counted(bpe, kind):
    """Nothing predicts it, whoever made the batch; and no mask means no padding."""
    rows = random_rows(8, 4, len(bpe))
    ours = trainer(kind=kind, rows=rows, **SGD)
    theirs = trainer(kind=kind, rows=rows, **SGD)
    theirs.data_collator = KeepsTheFirstLabel()
    ours.train()
    theirs.train()
    torch.testing.assert_close(weights(theirs.model), weights(ours.model))


def test_an_interrupted_run_leaves_nothing_in_the_next_one_s_log():
    made = trainer(steps=4, logging_steps=4)
    undisturbed = trained(steps=4, logging_steps=4).state.log_history[0]

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 2:
                raise KeyboardInterrupt

    interrupt = Interrupt()
    made.add_callback(interrupt)
    before = copy.deepcopy(made.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.remove_callback(interrupt)
    made.model.load_state_dict(before)
    made.optimizer = made.lr_scheduler = None
    made.train()
    again = made.state.log_history[0]
    for name in ("soft", "hard"):
        assert again[name] == pytest.approx(undisturbed[name], rel=0.05)


def test_a_teacher_relabels_in_eval_mode(bpe):
    teacher = tiny(bpe, seed=2)
    for layer in teacher.model.layers:
        layer.self_attn.attention_dropout = 0.5
    rows = random_rows(6, 12, len(bpe))
    teacher.train()
    noisy = relabel(rows, teacher, how="argmax")["labels"]
    assert teacher.training
    assert noisy == relabel(rows, teacher.eval(), how="argmax")["labels"]


@pytest.mark.parametrize("kind", ["hard", "soft", "together", "on_policy"])
def test_a_finished_run_is_left_alone(kind, tmp_path):
    """Called once more, Trainer would take a step beyond the last."""
    options = {"kind": kind, "steps": 3, "save_steps": 1, "lr_scheduler_type": "linear"}
    done = trained(tmp_path, **options)
    there = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):
        again = trainer(tmp_path, **options)
        found = again.train(resume_from_checkpoint=True)
        assert found.global_step == again.state.global_step == 3
        assert torch.equal(weights(again.model), weights(done.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    with pytest.raises(ValueError, match=r"max_steps=2, but .* has 3 steps behind it"):
        trained(tmp_path, resume=True, **options | {"steps": 2})
    assert (
        trained(tmp_path, resume=True, **options | {"steps": 4}).state.global_step == 4
    )


def test_copies_of_checkpoints_are_left_alone(tmp_path):
    options = {"kind": "hard", "steps": 3, "save_steps": 1, "save_total_limit": 1}
    trained(tmp_path, **options | {"steps": 1})
    for name in ("checkpoint-1-backup", "checkpoint-best-1"):
        shutil.copytree(tmp_path / "checkpoint-1", tmp_path / name)
    trained(tmp_path, resume=True, **options)
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {"checkpoint-3", "checkpoint-1-backup", "checkpoint-best-1"}


def test_a_single_step_learns():
    """Twenty steps have one of warm-up, with the rate 0; fewer have none."""
    profile = machine.get_profile("cpu")
    options = {"learning_rate": 1e-3, "batch_size": 1}
    for steps, warm_up in ((1, 0), (19, 0), (20, 1), (100, 5)):
        args = training_arguments(profile, steps=steps, **options)
        assert args.warmup_steps == warm_up


def test_a_tied_head_is_not_called_missing(tmp_path, caplog):
    """It is stored once, with the embeddings, and so a checkpoint is whole."""
    options = {"kind": "hard", "steps": 2, "save_steps": 1}
    trained(tmp_path, **options)
    shutil.rmtree(tmp_path / "checkpoint-2")
    log = logging.getLogger("transformers.trainer")
    log.addHandler(caplog.handler)
    try:
        trained(tmp_path, resume=True, **options)
        assert "missing keys" not in caplog.text
        again = trainer(tmp_path, **options)
        lost = SimpleNamespace(missing_keys=["model.norm.weight"], unexpected_keys=[])
        again._issue_warnings_after_load(lost)
        assert (
            "missing keys in the checkpoint model loaded: ['model.norm" in caplog.text
        )
    finally:
        log.removeHandler(caplog.handler)


def test_a_finished_run_has_its_best_weights(bpe, tmp_path):
    options = {
        "eval_rows": ragged_rows(8, len(bpe), seed=9),
        "steps": 3,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "learning_rate": 5.0,  # so that the first step, of rate 0, is the best
        "warmup_steps": 1,
    }
    done = trained(tmp_path, **options)
    assert done.state.best_model_checkpoint.endswith("checkpoint-1")
    again = trained(tmp_path, resume=True, **options)
    assert torch.equal(weights(again.model), weights(done.model))
