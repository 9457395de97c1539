"""Rounded weights: the grid, the gradient, and models that are read in 8 or 4 bits."""

import copy
import importlib.util

import pytest
import torch
from small_architectures import lora
from tiny_models import byte_level_bpe, random_rows, tiny
from torch import nn

from distill_helpers import planning
from distill_helpers.cli.runs import resolve_teacher
from distill_helpers.evaluation import evaluate
from distill_helpers.export import export_gguf
from distill_helpers.labels import write_cache
from distill_helpers.losses import Hidden
from distill_helpers.machine import get_profile
from distill_helpers.models import (
    HeadReader,
    bake,
    bits_of,
    check_causal,
    fake_round,
    is_fake_rounded,
    load_model,
    prune_layers,
    round_groups,
    weights_hash,
)
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabelTrainer,
    training_arguments,
)

LENGTH = 12
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture
def model(bpe):
    return tiny(bpe)


@pytest.fixture(scope="module")
def folder(bpe, tmp_path_factory):
    """A saved model, to be loaded whole or rounded."""
    path = tmp_path_factory.mktemp("whole")
    tiny(bpe, width=64).save_pretrained(path)
    bpe.save_pretrained(path)
    return path


def ids(bpe, rows=4):
    return torch.tensor(random_rows(rows, LENGTH, len(bpe))["input_ids"])


def logits_of(model, inputs):
    with torch.no_grad():
        return model(input_ids=inputs, use_cache=False).logits.float()


def arguments(folder=None, **changes):
    known = {"steps": 4, "learning_rate": 1e-2, "batch_size": 4, "output_dir": folder}
    known |= {"disable_tqdm": True, "mixed_precision": False}
    return training_arguments(get_profile("smoke"), **(known | changes))


# --- the grid -----------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 16), (4, 32), (8, 64)])
def test_rounded_numbers_lie_on_the_nearest_points_of_a_grid(bits, group):
    weight = torch.randn(6, 128, dtype=torch.float64, generator=torch.manual_seed(3))
    found = round_groups(weight.float(), bits, group).double()
    most = 2 ** (bits - 1) - 1
    for row, rounded in zip(weight, found, strict=True):
        for start in range(0, 128, group):
            part, given = row[start : start + group], rounded[start : start + group]
            step = part.abs().max() / most
            points = step * torch.arange(-most, most + 1)
            nearest = points[(part[:, None] - points).abs().argmin(1)]
            torch.testing.assert_close(given, nearest, rtol=1e-6, atol=1e-7)
            assert len(given.unique()) <= 2**bits
    again = round_groups(found.float(), bits, group)
    torch.testing.assert_close(again, found.float(), rtol=1e-6, atol=1e-7)


def test_zeros_and_half_precision_are_rounded_too():
    assert torch.equal(round_groups(torch.zeros(2, 32)), torch.zeros(2, 32))
    half = torch.randn(2, 32).bfloat16()
    assert round_groups(half).dtype == torch.bfloat16


def test_the_gradient_passes_as_if_nothing_was_rounded(model):
    """That of the parameter is that of the rounded weight, number by number."""
    layer = model.model.layers[0].mlp.down_proj
    inputs = torch.randn(3, layer.in_features)
    wanted = nn.Parameter(round_groups(layer.weight.detach()))
    nn.functional.linear(inputs, wanted).square().sum().backward()
    fake_round(model)
    layer(inputs).square().sum().backward()
    whole = layer.parametrizations.weight.original
    torch.testing.assert_close(whole.grad, wanted.grad, rtol=0, atol=0)


# --- a student that computes with rounded weights ------------------------------------


def test_all_linear_layers_compute_rounded_but_the_head(model, bpe):
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    other = copy.deepcopy(model)
    assert fake_round(model) is model
    assert is_fake_rounded(model)
    assert not is_fake_rounded(model.get_output_embeddings())
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if ".layers." in name and weight.dim() == 2:
                weight.copy_(round_groups(before[name]))
    assert torch.equal(logits_of(model, ids(bpe)), logits_of(other, ids(bpe)))
    reading = HeadReader("student", fused=True).read(model, {"input_ids": ids(bpe)})
    assert isinstance(reading, Hidden)
    bake(model)
    assert not is_fake_rounded(model)
    for name, weight in other.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def test_the_whole_weights_come_back(model):
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    bake(fake_round(model), rounded=False)
    assert all(torch.equal(before[name], one) for name, one in model.named_parameters())


def test_what_cannot_be_rounded_is_refused_by_name(model, bpe):
    with pytest.raises(ValueError, match="bits=1 must be from 2 to 8"):
        fake_round(model, bits=1)
    with pytest.raises(ValueError, match=r"group=24 does not divide model\.layers\.0"):
        fake_round(model, group=24)
    assert not is_fake_rounded(model)
    fake_round(model)
    with pytest.raises(ValueError, match="rounded already; bake"):
        fake_round(model)
    with pytest.raises(ValueError, match="prune first"):
        prune_layers(model, [0])
    with pytest.raises(RuntimeError, match=r"export bake\(model\)"):
        export_gguf(model, bpe, "student.gguf")


def test_a_rounded_student_is_repaired_by_its_whole_self(model, bpe):
    rows, held = (random_rows(n, 24, len(bpe), seed=s) for n, s in ((64, 1), (16, 2)))
    student = fake_round(copy.deepcopy(model), bits=2)
    before = evaluate(student, held, bpe, teacher=model).kl_to_teacher
    SoftLabelTrainer(
        student,
        teacher=model,
        args=arguments(steps=40, learning_rate=3e-3),
        train_dataset=rows,
        tokenizer=bpe,
    ).train()
    after = evaluate(student, held, bpe, teacher=model).kl_to_teacher
    assert after < 0.8 * before
    baked = evaluate(bake(student), held, bpe, teacher=model).kl_to_teacher
    assert baked == pytest.approx(after, rel=1e-5)


def test_a_run_goes_on_and_only_baked_students_load(model, bpe, tmp_path):
    rows = random_rows(32, LENGTH, len(bpe))

    def train(steps, folder, start):
        student = fake_round(copy.deepcopy(model), bits=3)
        trainer = HardLabelTrainer(
            student,
            args=arguments(folder, max_steps=steps, save_steps=2, **start),
            train_dataset=rows,
            tokenizer=bpe,
        )
        trainer.train(resume_from_checkpoint=True)
        return trainer

    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    whole = train(4, tmp_path / "whole", constant).model
    train(2, tmp_path / "cut", constant)
    trainer = train(4, tmp_path / "cut", constant)
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, trainer.model.get_parameter(name)), name
    trainer.save_model(str(tmp_path / "unbaked"))
    with pytest.raises(ValueError, match=r"in the middle of its training.*bake"):
        load_model(tmp_path / "unbaked")
    bake(trainer.model).save_pretrained(tmp_path / "baked")
    bpe.save_pretrained(tmp_path / "baked")
    again = load_model(tmp_path / "baked").model
    assert torch.equal(logits_of(again, ids(bpe)), logits_of(trainer.model, ids(bpe)))


# --- a teacher in 8 or 4 bits -------------------------------------------------------


def test_bits_that_cannot_be_had_are_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match="bits=3 must be 8 or 4"):
        load_model(folder, bits=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'distill-helpers\[rounded\]'"):
        load_model(folder, bits=8)


@needs_torchao
def test_four_bits_need_bf16_and_no_gguf(folder, tmp_path):
    with pytest.raises(ValueError, match=r"bits=4 computes in bf16 alone"):
        load_model(folder, bits=4)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"a GGUF file is loaded in full"):
        load_model(tmp_path / "model.gguf", bits=8)


@needs_torchao
def test_eight_bits_are_the_nearest_multiples_of_a_rows_step(folder, bpe):
    rounded = load_model(folder, bits=8, frozen=True).model
    whole = load_model(folder).model
    assert bits_of(rounded) == 8
    assert bits_of(whole) is None
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight
    assert torch.equal(rounded.lm_head.weight, whole.lm_head.weight)
    for name, module in whole.model.named_modules():
        if isinstance(module, nn.Linear):
            stored = rounded.model.get_submodule(name).weight.dequantize()
            step = module.weight.detach().abs().amax(1, keepdim=True) / 127.5
            assert ((stored - module.weight).abs() <= 0.5001 * step).all()
            places = stored / step
            torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-3)
            module.weight.data.copy_(stored)
    torch.testing.assert_close(
        logits_of(rounded, ids(bpe)), logits_of(whole, ids(bpe)), rtol=1e-3, atol=1e-4
    )


@needs_torchao
@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_teacher_goes_through_every_door(bits, folder, bpe, tmp_path):
    dtype = torch.bfloat16 if bits == 4 else torch.float32
    teacher = load_model(folder, bits=bits, dtype=dtype, frozen=True).model
    check_causal("teacher", teacher)
    inputs = ids(bpe)
    apart = torch.cat([logits_of(teacher, row[None]) for row in inputs])
    together = logits_of(teacher, inputs)
    near = 1e-5 if bits == 8 else 2e-2
    torch.testing.assert_close(apart, together, rtol=near, atol=near)
    before = weights_hash(teacher)
    reading = HeadReader("teacher", fused=True).read(teacher, {"input_ids": inputs})
    assert isinstance(reading, Hidden)
    rows = random_rows(8, LENGTH, len(bpe))
    write_cache(teacher, rows, tmp_path / "cache", tokenizer=bpe, progress=False)
    assert weights_hash(teacher) == before != weights_hash(load_model(folder).model)
    student = tiny(bpe, seed=1)
    trained = SoftLabelTrainer(
        student,
        teacher=teacher,
        args=arguments(),
        train_dataset=rows,
        tokenizer=bpe,
    )
    assert trained.train().training_loss > 0
    found = evaluate(load_model(folder).model, rows, bpe, teacher=teacher)
    assert 0 < found.kl_to_teacher < 0.5


@needs_torchao
def test_a_rounded_model_is_read_and_nothing_else(folder, bpe, tmp_path):
    rounded = load_model(folder, bits=8).model
    rows = random_rows(8, LENGTH, len(bpe))
    common = {"args": arguments(), "train_dataset": rows, "tokenizer": bpe}
    with pytest.raises(ValueError, match=r"student is rounded .*adapters"):
        HardLabelTrainer(rounded, **common)
    with pytest.raises(ValueError, match="cannot be pruned"):
        prune_layers(rounded, [0])
    with pytest.raises(ValueError, match="cannot be exported"):
        export_gguf(rounded, bpe, tmp_path / "student.gguf")
    with pytest.raises(ValueError, match="cannot be rounded again"):
        fake_round(rounded)


@needs_torchao
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear:UserWarning")
def test_adapters_are_the_remedy_in_eight_bits(folder, bpe):
    rows = random_rows(8, LENGTH, len(bpe))
    common = {"args": arguments(), "train_dataset": rows, "tokenizer": bpe}
    student = lora(load_model(folder, bits=8).model)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    HardLabelTrainer(student, **common).train()
    moved = {
        name
        for name, one in student.named_parameters()
        if "lora_" in name and not torch.equal(one, before[name])
    }
    assert moved
    four = lora(load_model(folder, bits=4, dtype=torch.bfloat16).model)
    with pytest.raises(ValueError, match=r"bits=4, which passes no gradient"):
        HardLabelTrainer(four, **common)


@needs_torchao
@pytest.mark.parametrize("bits", [8, 4])
def test_a_plan_knows_the_bytes(bits, folder, bpe):
    options = {"batch_size": 2, "length": 16, "device": "cpu"}
    dtype = torch.bfloat16 if bits == 4 else torch.float32
    teacher = load_model(folder, bits=bits, dtype=dtype, frozen=True).model
    student = tiny(bpe)
    found = planning.plan((teacher, student), **options)
    held = set()
    for tensor in [*teacher.parameters(), *teacher.buffers()]:
        names = getattr(tensor, "__tensor_flatten__", lambda: ((), None))()[0]
        for one in [getattr(tensor, name) for name in names] or [tensor]:
            held.add((one.untyped_storage().data_ptr(), one.untyped_storage().nbytes()))
    assert found.rehearsal.parts["teacher's weights"] == pytest.approx(
        sum(size for _, size in held), rel=0.01
    )
    named = planning.plan((folder, student), bits=bits, **options)
    assert named.step.teacher_bits == bits
    with pytest.raises(ValueError, match="a rounded model cannot be"):
        planning.plan((folder, student), method="codistillation", bits=8, **options)


@needs_torchao
def test_the_command_line_loads_it(folder):
    for bits in (8, 4):
        profile = get_profile("smoke")
        assert bits_of(resolve_teacher(str(folder), profile, bits=bits).model) == bits
