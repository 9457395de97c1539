"""What a rehearsal says, against what really happens."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from training_runs import trainer
from transformers import AutoConfig, AutoModelForCausalLM

from distill_helpers import planning
from distill_helpers.losses.fused import working_bytes
from distill_helpers.machine import get_profile
from distill_helpers.planning import DEVICES, Step, plan, rehearsal, rehearse
from distill_helpers.tasks.teachers import prepare_packaged_teacher
from distill_helpers.trainers import SoftLabels

HERE = Path(__file__).parents[1]
T4_GIB = 14.6
# The largest training step of each lesson's `gpu` path, and how many further copies of
# the student's weights lie beside it.
GPU_STEPS = {
    "02": {"method": "soft", "student": 1, "batch_size": 4, "length": 128},
    "04": {"method": "soft", "student": 1, "batch_size": 4, "length": 256},
    "05": {
        **{"method": "hard", "batch_size": 2, "length": 512, "packed": True},
        "accumulation": 2,
    },
    "06": {
        **{"method": "hard", "batch_size": 1, "length": 1024, "packed": True},
        "accumulation": 4,
    },
    "07": {"method": "codistillation", "batch_size": 32, "length": 256},
    # Beside it: the untrained student, and the trained one in half precision.
    "13": {"method": "hard", "batch_size": 8, "length": 128, "packed": True},
}
COPIES = {"02": 2, "13": 1.5}


def shape(width=64, layers=2, vocabulary=3000, **more):
    known = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    return AutoConfig.for_model("llama", **(known | more))


def many_heads(**more):
    """As many heads of keys as of queries: every kernel can do it."""
    return shape(num_key_value_heads=4, **more)


def step(**changes):
    known = {
        "student": shape(),
        "teacher": shape(96, 3),
        "method": "soft",
        "batch_size": 2,
        "length": 64,
    }
    return Step(**(known | changes))


def weights(config):
    model = AutoModelForCausalLM.from_config(config)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def test_models_that_only_stay_come_on_top():
    step = {"method": "hard", "batch_size": 1, "length": 8, "device": "T4"}
    learner, other = shape(), shape(96, 3)
    alone = plan((None, learner), **step)
    model = AutoModelForCausalLM.from_config(other)
    beside = plan((None, learner), **step, resident=[model, other])
    # One lies there in fp32; the other would be put there in half precision.
    assert beside.resident == weights(other) * 3 // 2
    gained = beside.memory_gib - alone.memory_gib
    assert gained == pytest.approx(beside.resident / 2**30)
    assert "models that only stay" in str(beside)
    assert "models that only stay" not in str(alone)


def test_models_that_only_stay_are_named_as_the_remedy():
    large = shape(4096, 60, 50_000)
    step = {"method": "hard", "batch_size": 1, "length": 8, "device": "T4"}
    found = plan((None, shape()), **step, resident=[large])
    assert not found.fits
    assert found.remedy.startswith("it fits without the models that only stay")
    with pytest.raises(ValueError, match="resident='x' must be a list"):
        plan((None, shape()), **step, resident="x")


def test_a_remedy_names_the_options_of_plan():
    large = shape(4096, 50)
    found = plan((large, shape()), method="soft", batch_size=1, length=8, device="T4")
    assert not found.fits
    assert "bits=8" in found.remedy
    assert "teacher_bits" not in found.remedy


def test_weights_gradients_and_optimizer_are_counted_exactly():
    chosen = step(method="hard", teacher=None, optimizer="adamw_torch", fused=False)
    # So few tokens that the optimizer's step is the highest point.
    chosen = dataclasses.replace(chosen, batch_size=1, length=4)
    parts = rehearse(chosen).parts
    size = weights(chosen.student)
    # Rotary frequencies are buffers.
    assert parts["weights"] == pytest.approx(size, rel=1e-3)
    assert parts["gradients"] == pytest.approx(size, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(2 * size, rel=1e-3)
    assert parts["teacher's weights"] == parts["stored labels"] == 0


def test_nothing_of_a_forward_pass_waits_for_the_garbage_collector():
    # The optimizer's step is the highest point; no half-precision copy is left then.
    chosen = step(method="hard", teacher=None, batch_size=1, length=8)
    chosen = dataclasses.replace(chosen, autocast=torch.float16)
    gc.collect()
    gc.disable()
    try:
        parts = rehearse(chosen).parts
    finally:
        gc.enable()
    assert parts["half-precision copies"] == 0


def test_peak_is_that_of_the_real_tensors():
    """Against torch's own tracker, which watched the step on real memory."""
    chosen = step(fused=False, optimizer="adamw_torch")
    student = AutoModelForCausalLM.from_config(chosen.student)
    teacher = AutoModelForCausalLM.from_config(chosen.teacher)
    # Not frozen: the tracker cannot follow weights without gradients.
    teacher.eval()
    objective = SoftLabels(teacher, chosen.student.vocab_size, fused=False)
    optimizer = torch.optim.AdamW(student.parameters())
    ids = torch.zeros((chosen.batch_size, chosen.length), dtype=torch.int64)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    objective(student, inputs, None)  # tries the models out, once
    tracker = MemTracker()
    tracker.track_external(student, teacher, optimizer)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            objective(student, inputs, None)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seen = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert rehearse(chosen).peak == pytest.approx(seen, rel=0.03)


def test_logits_are_what_fusing_saves():
    whole = rehearse(step(fused=False, length=256, batch_size=4)).parts
    fused = rehearse(step(length=256, batch_size=4)).parts
    one = 4 * 4 * 256 * 3000
    assert whole["logits"] >= 2 * one
    tokens = 4 * (256 - 1)
    expected = working_bytes(tokens, 3000, torch.float32, "cpu")
    assert fused["logits"] == pytest.approx(expected, rel=0.06)
    assert whole["weights"] == fused["weights"]


def test_half_precision_and_a_half_teacher():
    full = rehearse(step())
    half = rehearse(step(autocast=torch.bfloat16, teacher_dtype=torch.bfloat16))
    sizes = [found.parts["teacher's weights"] for found in (half, full)]
    assert 2 * sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    assert half.parts["weights"] == full.parts["weights"]
    assert half.parts["activations"] < full.parts["activations"]
    assert half.flops == full.flops


def test_operations_follow_the_tokens():
    few, many = rehearse(step(batch_size=2)), rehearse(step(batch_size=4))
    assert many.flops == pytest.approx(2 * few.flops, rel=0.05)
    # Forward and backward of every weight, and the teacher's forward.
    tokens = 2 * 64
    student, teacher = weights(shape()) / 4, weights(shape(96, 3)) / 4
    assert few.flops == pytest.approx(tokens * (6 * student + 2 * teacher), rel=0.15)


def test_what_is_asked_of_a_model_once_is_no_part_of_a_step():
    """Whether it is causal, and whether it tells packed examples apart."""
    packed, plain = rehearse(step(packed=True)).flops, rehearse(step()).flops
    assert packed == pytest.approx(plain, rel=1e-4)  # Colab: 7 in a million


def test_the_optimizers_state_is_there_from_the_beginning():
    """AdamW keeps two numbers a weight; they wait while the losses are computed."""
    parts = rehearse(step(batch_size=8, length=256)).parts
    assert parts["logits"] > 0  # the highest point lies before the optimizer's step
    assert parts["optimizer"] == pytest.approx(2 * weights(shape()), rel=0.01)


@pytest.mark.parametrize("method", planning.METHODS)
@pytest.mark.parametrize("fused", [True, False])
def test_every_method_rehearses(method, fused):
    adapters = 4 if method == "adapters_off" else 0
    chosen = step(method=method, fused=fused, batch_size=4, adapters=adapters)
    parts = rehearse(chosen).parts
    assert (parts["stored labels"] > 0) == (method == "stored")
    assert (parts["teacher's weights"] > 0) == (method in ("soft", "codistillation"))
    if method == "codistillation":
        both = weights(shape()) + weights(shape(96, 3))
        assert parts["gradients"] + parts["optimizer"] >= 2 * both


def test_of_adapters_alone_gradients_and_state_are_kept():
    rank, options = 8, {"batch_size": 1, "length": 4, "optimizer": "adamw_torch"}
    whole = rehearse(step(method="hard", teacher=None, fused=False, **options))
    chosen = step(method="hard", teacher=None, fused=False, adapters=rank, **options)
    found = rehearse(chosen)
    # Widths in and out of a layer's seven matrices, in two layers.
    widths = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    learned = 2 * rank * widths
    assert found.trained == learned
    assert whole.trained == weights(shape()) / 4
    size = weights(shape())
    assert found.parts["weights"] == pytest.approx(size + 4 * learned, rel=1e-3)
    assert found.parts["optimizer"] == pytest.approx(8 * learned, rel=1e-3)
    assert found.parts["gradients"] <= 4 * learned
    assert found.peak < 0.6 * whole.peak


def test_a_teacher_that_is_the_student_has_no_weights():
    options = {"adapters": 4, "batch_size": 4}
    copied = rehearse(step(teacher=shape(), **options))
    own = rehearse(step(teacher=None, method="adapters_off", **options))
    assert own.parts["teacher's weights"] == 0
    less = copied.parts["teacher's weights"]
    assert less == pytest.approx(weights(shape()), rel=1e-3)
    assert copied.peak - own.peak == pytest.approx(less, rel=0.01)
    assert own.flops == copied.flops


def test_a_plan_says_how_many_learn():
    options = {"batch_size": 2, "length": 16, "device": "T4", "adapters": 8}
    models = (None, shape())
    text = str(plan(models, method="adapters_off", **options))
    assert "soft labels of the student with its adapters off, 2 × 16 tokens" in text
    assert "adapters of rank 8: 16,384 parameters learn" in text
    with pytest.raises(ValueError, match="needs a student with adapters"):
        plan(models, method="adapters_off", **options | {"adapters": 0})
    with pytest.raises(ValueError, match="adapters=-1 is a rank"):
        plan(models, method="hard", **options | {"adapters": -1})


@pytest.mark.slow
def test_checkpointing_and_accumulation():
    deep = shape(layers=8)
    plain = rehearse(step(student=deep, batch_size=8))
    again = rehearse(step(student=deep, batch_size=8, checkpointing=True))
    assert again.parts["activations"] < 0.7 * plain.parts["activations"]
    assert again.flops > plain.flops
    # Gradients wait through the second micro-batch.
    twice = rehearse(step(student=deep, batch_size=8, accumulation=2))
    assert twice.parts["gradients"] > plain.parts["gradients"]


@pytest.mark.slow
def test_a_gpu_works_in_larger_chunks():
    wide = step(student=shape(vocabulary=50_000), teacher=shape(vocabulary=50_000))
    wide = dataclasses.replace(wide, batch_size=8, length=512)
    on_cpu, on_gpu = rehearse(wide).parts, rehearse(wide, DEVICES["A100"]).parts
    assert on_cpu["logits"] < 0.2 * 2**30 < on_gpu["logits"] < 1.2 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize("lesson", GPU_STEPS)
def test_every_gpu_lesson_fits_a_t4(lesson):
    models = get_profile("gpu", planned=True)
    if lesson in ("05", "06", "13"):
        models = (None, models.second_students[0])
    if lesson == "07":
        big = {"width": 512, "layers": 8, "vocabulary": 2048}
        models = (many_heads(**big), many_heads(**big | {"width": 256, "layers": 4}))
    found = plan(models, device="T4", **GPU_STEPS[lesson])
    assert DEVICES["T4"].memory_gib == T4_GIB
    beside = COPIES.get(lesson, 0) * found.rehearsal.parts["weights"] / 2**30
    assert found.memory_gib + beside <= 0.9 * T4_GIB, str(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("pair", ["tiny", "packaged", "adapters", "adapters_off"])
def test_prediction_and_measured_peak_agree(pair):
    """A fresh process trains the pair for real; the kernel says how much it took."""
    # Every tensor in a mapping of its own, so that freed memory is given back: what an
    # allocator keeps between tensors is not what the step needs.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MKL_DISABLE_FAST_MM": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "measure_memory.py"), pair],
        env=os.environ | allocator | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.15), found


@pytest.mark.slow
def test_what_does_not_fit_says_what_to_change():
    models = (shape(256, 4), shape(256, 4))
    options = {"batch_size": 6, "length": 128}
    whole = plan(models, fused=False, device="T4", **options).memory_gib
    third = plan(models, device="T4", length=128, batch_size=2, accumulation=3)
    # Room for what a batch of two needs, and a little more.
    room = (third.memory_gib + 0.002) / 0.9
    small = dataclasses.replace(DEVICES["T4"], memory_gib=room)
    assert whole > 0.9 * room
    found = plan(models, fused=False, device=small, **options)
    assert "DOES NOT FIT" in str(found)
    # Six rows a step, as before.
    assert "fused=True, batch_size=2, accumulation=3:" in found.remedy
    assert plan(models, device=small, length=128, batch_size=2, accumulation=3).fits


def test_hopeless_cases_are_called_so():
    none = dataclasses.replace(DEVICES["T4"], memory_gib=0.6)
    found = plan((shape(), shape()), batch_size=1, length=8, device=none)
    assert "smaller student" in str(found)


def test_the_models_given_stay_as_they_were():
    """A dtype in a config is that of a file, not of the training."""
    halved = shape(dtype="bfloat16")
    before = halved.to_dict()
    found = plan((halved, halved), batch_size=1, length=8, device="T4")
    assert halved.to_dict() == before
    size = weights(shape())
    assert found.rehearsal.parts["weights"] == pytest.approx(size, rel=1e-3)


def test_planning_leaves_a_trainer_alone(tmp_path):
    made = trainer(output_dir=str(tmp_path))
    plan((shape(), shape()), batch_size=1, length=8, method="hard", device="T4")
    assert made.accelerator.num_processes == 1
    made.train()


def test_attention_is_counted():
    short, long = (
        rehearse(step(method="hard", teacher=None, batch_size=1, length=length)).flops
        for length in (512, 4096)
    )
    # Scores and their sum, forward and twice that backward, in two layers 64 wide;
    # the backward pass computes the scores once more.
    quadratic = 2 * (2 + 5) * 64 * 2
    linear = short / 512 - quadratic * 512
    expected = 4096 * (linear + quadratic * 4096)
    assert long == pytest.approx(expected, rel=0.1)


def test_an_old_gpu_repeats_shared_keys_and_keeps_no_scores():
    new, old = (
        rehearse(step(length=512, method="hard", teacher=None), DEVICES[name])
        for name in ("A100", "T4")
    )
    scores = 2 * 4 * 512 * 512 * 4  # rows, heads, fp32
    repeated = 2 * 2 * 2 * 512 * 64 * 4  # layers, keys and values, rows, width
    more = old.parts["activations"] - new.parts["activations"]
    assert 0 < more <= repeated < scores
    plain = step(length=512, method="hard", teacher=None, student=many_heads())
    same = [rehearse(plain, DEVICES[name]).peak for name in ("A100", "T4")]
    assert same[0] == same[1]


def test_time_money_and_disk():
    found = plan(
        (shape(96, 3), shape()), batch_size=4, length=64, steps=500, device="A100"
    )
    device = DEVICES["A100"]
    seconds = found.rehearsal.flops / (device.half_flops * device.utilisation)
    assert found.minutes == pytest.approx(500 * seconds / 60)
    assert found.dollars == pytest.approx(device.dollars_per_hour * found.minutes / 60)
    assert found.storage["full"] == 4 * 64 * 500 * (2 * 3000 + 4)
    assert found.storage["hybrid"] < 0.02 * found.storage["full"]
    text = str(found)
    assert "A100" in text
    assert "dollars" in text
    assert "on disk" in text


def test_micro_batches_count_in_full():
    models = (shape(96, 3), shape())
    one = plan(models, batch_size=4, length=64, device="T4")
    four = plan(models, batch_size=4, length=64, device="T4", accumulation=4)
    assert four.seconds_per_step == pytest.approx(4 * one.seconds_per_step)
    assert four.storage["full"] == 4 * one.storage["full"]


@pytest.mark.slow
def test_profiles_and_folders(tmp_path):
    shape().save_pretrained(tmp_path / "student")
    models = ("packaged", tmp_path / "student")
    assert plan(models, batch_size=1, length=8, method="hard", device="cpu").fits
    found = plan(get_profile("smoke"), batch_size=1, length=8, method="hard")
    assert found.device.name == "this CPU"
    # As the lessons prune it.
    assert found.step.student.num_hidden_layers == 20


def test_it_is_planned_for_where_the_student_lies():
    student = AutoModelForCausalLM.from_config(shape())
    found = plan((None, student), batch_size=1, length=8, method="hard")
    assert found.device.name == "this CPU"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_the_gpu_profile_is_planned_for_a_t4():
    profile = get_profile("gpu", planned=True)
    found = plan(profile, batch_size=1, length=8, method="hard")
    assert found.device == DEVICES["T4"]


def test_with_a_gpu_the_cpu_profile_is_planned_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert planning.device_of(get_profile("cpu")).name == "this CPU"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_gpus_go_by_the_names_that_they_report(monkeypatch, name, known):
    reported = SimpleNamespace(name=name, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: reported)
    expected = dataclasses.replace(DEVICES[known], name=name, memory_gib=80.0)
    assert planning.this_gpu() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method='magic'"),
        ({"device": "TPU"}, "device='TPU'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"length": 1}, "length=1"),
        ({"models": "packaged"}, "models='packaged'"),
        ({"models": get_profile("gpu", planned=True), "student": 5}, "student=5"),
        ({"models": (None, shape())}, "needs a teacher"),
        ({"models": (None, "no/such-model"), "method": "hard"}, "no/such-model"),
        ({"optimizer": "nonsense"}, "optimizer='nonsense'"),
    ],
)
def test_errors_are_sentences(changes, message):
    options = {"models": (shape(), shape()), "batch_size": 1, "length": 8}
    options |= {"device": "T4"} | changes
    models = options.pop("models")
    with pytest.raises(ValueError, match=message):
        plan(models, **options)


@pytest.mark.parametrize("name", planning.ARCHITECTURES)
def test_known_shapes_have_the_published_sizes(name):
    published = {
        "packaged": 134.5e6,
        "HuggingFaceTB/SmolLM2-135M": 134.5e6,
        "HuggingFaceTB/SmolLM2-360M": 361.8e6,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711.4e6,
        "Qwen/Qwen2.5-0.5B": 494.0e6,
        "Qwen/Qwen2.5-1.5B-Instruct": 1543.7e6,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(planning.config_of(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(published[name], rel=1e-3)


def test_the_packaged_shape_is_the_shipped_one():
    real = AutoConfig.from_pretrained(prepare_packaged_teacher())
    mine = planning.config_of("packaged")
    for field in planning.ARCHITECTURES["packaged"][1]:
        assert getattr(mine, field) == getattr(real, field), field


# --- architectures beside Llama -----------------------------------------------------


def other(kind, **more):
    known = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 3000,
    }
    return AutoConfig.for_model(kind, **(known | more))


def mixture(width=32):
    return other(
        "qwen3_moe",
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=width,
    )


def with_pictures():
    text = other("gemma3_text", num_key_value_heads=2, head_dim=16).to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )


OTHERS = {
    "mixture": mixture,
    "mixtral": lambda: other("mixtral", num_key_value_heads=2, num_local_experts=4),
    "soft-capped": lambda: other("gemma2", num_key_value_heads=2, head_dim=16),
    "states": lambda: other("mamba", state_size=8),
    "pictures": with_pictures,
    "falcon": lambda: other("falcon"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("device", ["T4", "H100"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_planned(kind, device, mixed, capfd):
    config = OTHERS[kind]()
    found = plan(
        (config, config),
        batch_size=2,
        length=16,
        steps=10,
        method="stored",
        device=device,
        mixed_precision=mixed,
    )
    assert "GiB" in str(found)
    model = AutoModelForCausalLM.from_config(config)
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    assert found.rehearsal.parts["weights"] == sum(tensors.values())
    assert capfd.readouterr() == ("", "")


def test_products_of_mixtures_are_counted():
    """Every token by the matrices of two experts: three products, three passes."""
    flops = [
        rehearse(step(student=mixture(width), teacher=None, method="hard")).flops
        for width in (32, 48)
    ]
    layers, tokens, experts = 2, 2 * 64, 2
    expected = layers * tokens * experts * 3 * (2 * 64 * (48 - 32)) * 3
    assert flops[1] - flops[0] == expected


def test_what_stops_without_content_is_refused_in_words(monkeypatch, capfd):
    def stops(*_):
        torch.ones(3).fill_(2).numpy()  # asks a fake tensor for its content

    monkeypatch.setattr(rehearsal, "run_step", stops)
    with pytest.raises(ValueError, match=r"models=llama: .*cannot be planned.*measure"):
        rehearse(step())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="optimizer='lion_9bit' cannot be rehearsed"):
        rehearse(step(optimizer="lion_9bit"))
    assert capfd.readouterr() == ("", "")
