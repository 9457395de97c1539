"""What only a GPU can show; skipped where there is none. ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch
from tiny_models import byte_level_bpe, random_rows
from transformers import AutoConfig, AutoModelForCausalLM

from distill_helpers.losses import Hidden, soft_label_loss
from distill_helpers.machine import cuda_dtype, get_profile
from distill_helpers.planning import plan, this_gpu
from distill_helpers.trainers import (
    CoDistillationTrainer,
    SoftLabelTrainer,
    training_arguments,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def model(width, layers, vocabulary, *, seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config).to("cuda")


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_fused_loss_is_that_of_a_cpu(divergence, alpha):
    draw = torch.Generator().manual_seed(0)
    sizes = ((700, 64), (5000, 64), (700, 96), (5000, 96))
    given = [0.1 * torch.randn(size, generator=draw) for size in sizes]
    labels = torch.randint(5000, (700,), generator=draw)
    found = []
    for device in ("cpu", "cuda"):
        hidden, head, *teacher = (x.to(device) for x in given)
        hidden.requires_grad_()
        head.requires_grad_()
        result = soft_label_loss(
            Hidden(hidden, head),
            Hidden(*teacher),
            labels.to(device),
            shift=False,
            divergence=divergence,
            alpha=alpha,
            temperature=2.0,
        )
        result.loss.backward()
        found.append([result.loss.detach(), hidden.grad, head.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=2e-3, atol=1e-6)


def test_a_student_follows_its_teacher_in_half_precision():
    tokenizer = byte_level_bpe()
    vocabulary = len(tokenizer)
    teacher = model(96, 2, vocabulary, seed=0).to(cuda_dtype())
    trainer = SoftLabelTrainer(
        model(64, 2, vocabulary, seed=1),
        teacher=teacher,
        tokenizer=tokenizer,
        train_dataset=random_rows(64, 32, vocabulary),
        args=training_arguments(
            get_profile("gpu"), steps=60, learning_rate=3e-3, batch_size=16
        ),
    )
    trainer.train()
    losses = [entry["soft"] for entry in trainer.state.log_history if "soft" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_partners_learn_together():
    tokenizer = byte_level_bpe()
    models = {name: model(64, 2, len(tokenizer), seed=i) for i, name in enumerate("ab")}
    trainer = CoDistillationTrainer(
        models,
        tokenizer=tokenizer,
        train_dataset=random_rows(64, 32, len(tokenizer)),
        args=training_arguments(
            get_profile("gpu"), steps=40, learning_rate=3e-3, batch_size=16
        ),
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "a_hard" in entry]
    assert log[-1]["a_hard"] < log[0]["a_hard"]
    assert log[-1]["b_hard"] < log[0]["b_hard"]


def test_the_plan_is_what_is_allocated():
    """Prediction and measured peak within 15 %."""
    tokenizer = byte_level_bpe(300)
    teacher = model(512, 8, 32_000, seed=0).to(cuda_dtype())
    student = model(384, 6, 32_000, seed=1)
    found = plan((teacher, student), batch_size=8, length=512)
    assert found.device.kind == "cuda"
    trainer = SoftLabelTrainer(
        student,
        teacher=teacher,
        tokenizer=tokenizer,
        train_dataset=random_rows(32, 512, len(tokenizer)),
        args=training_arguments(
            get_profile("gpu"), steps=3, learning_rate=1e-4, batch_size=8
        ),
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    measured = torch.cuda.max_memory_allocated()
    assert found.rehearsal.peak == pytest.approx(measured, rel=0.15)


def test_a_gpu_that_no_table_knows_is_measured(monkeypatch):
    monkeypatch.setattr("distill_helpers.planning.devices.DEVICES", {})
    found = this_gpu()
    assert found.half_flops > found.full_flops > 1e11
