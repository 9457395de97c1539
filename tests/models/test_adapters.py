"""Adapters: what they add, what learns, what is saved, and the model that remains."""

import copy
import sys

import peft
import pytest
import torch
import transformers
from small_architectures import composite, random_model
from tiny_models import byte_level_bpe, tiny

from distill_helpers.export import export_gguf
from distill_helpers.models import (
    AdaptersOff,
    adapters_off,
    add_adapters,
    merge_adapters,
    parameter_count,
    prune_layers,
)

VOCABULARY = 300
IDS = torch.arange(5, 25).reshape(2, 10)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llama(tied=True, **changes):
    return random_model("Llama", VOCABULARY, tie_word_embeddings=tied, **changes)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def disturb(model, seed=1):
    """As if all that learns had learned something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def learning(model):
    return {name for name, one in model.named_parameters() if one.requires_grad}


# --- what is added ------------------------------------------------------------------


def test_at_first_nothing_has_changed():
    plain = llama()
    student = add_adapters(copy.deepcopy(plain), rank=4)
    assert torch.equal(logits(student), logits(plain))
    assert not student.training
    assert add_adapters(llama().train()).training


@pytest.mark.parametrize("rank", [1, 4])
def test_every_linear_layer_of_the_blocks_and_nothing_else(rank):
    plain = llama()
    shapes = [
        module.weight.shape
        for name, module in plain.named_modules()
        if name.endswith(LINEAR)
    ]
    assert len(shapes) == 2 * 7
    student = add_adapters(plain, rank=rank)
    expected = sum(rank * (rows + columns) for rows, columns in shapes)
    assert parameter_count(student, trained=True) == expected
    assert all(".lora_" in name for name in learning(student))
    assert parameter_count(student) == expected + parameter_count(llama())


def test_what_an_adapter_computes():
    """W x + (alpha / rank) B A x, multiplied out by hand."""
    student = disturb(add_adapters(llama(), rank=3, alpha=5, targets=["up_proj"]))
    layer = student.get_base_model().model.layers[1].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(4, 32)
    expected = x @ (layer.base_layer.weight + 5 / 3 * b @ a).T
    torch.testing.assert_close(layer(x), expected)


def test_the_seed_decides_and_the_global_state_stays():
    one, same, other = (
        torch.cat([p.flatten() for p in add_adapters(llama(), seed=s).parameters()])
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    plain = llama()
    before = torch.get_rng_state()
    add_adapters(plain)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Bloom", "Mixtral", "Qwen2"])
def test_other_architectures(kind):
    shared = {"num_key_value_heads": 2} if kind in ("Mixtral", "Qwen2") else {}
    student = add_adapters(random_model(kind, VOCABULARY, **shared), rank=2)
    assert logits(student).shape == (2, 10, VOCABULARY)
    assert not any("lm_head" in name for name in learning(student))
    assert torch.isfinite(logits(merge_adapters(disturb(student)))).all()


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava"])
def test_of_a_model_that_sees_pictures_the_text_part(kind):
    student = add_adapters(composite(kind, VOCABULARY), rank=2)
    assert learning(student)
    assert all("language_model" in name for name in learning(student))


def test_a_half_precision_base_has_full_adapters():
    student = add_adapters(llama().to(torch.bfloat16))
    kinds = {p.dtype for p in student.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert student.get_base_model().lm_head.weight.dtype == torch.bfloat16


# --- modules that are trained whole -------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "train", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm"]]
)
def test_modules_that_are_trained_whole(tmp_path, tied, train):
    """Saved with the adapters, loaded again, merged: it always says the same."""
    plain = llama(tied)
    untouched = copy.deepcopy(plain)
    student = disturb(add_adapters(plain, rank=2, train=train))
    matrices = [name for name in learning(student) if ".lora_" not in name]
    one = tied or len(train) == 1
    assert len(matrices) == (5 if train == ["norm"] else 1 if one else 2)
    said = logits(student)
    with adapters_off(student):
        torch.testing.assert_close(logits(student), logits(untouched))
    student.save_pretrained(tmp_path / "adapters")
    again = peft.PeftModel.from_pretrained(untouched, tmp_path / "adapters").eval()
    assert torch.equal(logits(again), said)
    merged = merge_adapters(student)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    torch.testing.assert_close(logits(merged), said, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(alone), logits(merged))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"targets": ["q_proj", "w_proj"]}, "targets names 'w_proj', .* q_proj"),
        ({"train": ["head"]}, "train names 'head', .* there are .*lm_head"),
        ({"targets": ["q_proj", "lm_head"]}, "lm_head is one matrix with the embed"),
        ({"targets": ["embed_tokens"]}, r"embed_tokens is .*train=\['model.embed_tok"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(llama(), **options)


def test_a_head_of_its_own_can_have_an_adapter():
    student = disturb(add_adapters(llama(tied=False), targets=["lm_head"], rank=2))
    said = logits(student)
    torch.testing.assert_close(logits(merge_adapters(student)), said)


def test_adapters_are_added_once():
    with pytest.raises(ValueError, match=r"has adapters already; .*merge_adapters"):
        add_adapters(add_adapters(llama()))
    student = merge_adapters(disturb(add_adapters(llama(), rank=2)))
    assert torch.equal(logits(add_adapters(student)), logits(student))


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (add_adapters, merge_adapters, AdaptersOff):
        with pytest.raises(ImportError, match=r"pip install 'distill-helpers\[adap"):
            call(llama())


# --- the plain model that remains ---------------------------------------------------


def test_merged_it_is_a_model_like_any_other(tmp_path):
    bpe = byte_level_bpe()
    plain = tiny(bpe)
    student = disturb(add_adapters(plain, rank=2))
    said = logits(student)
    with pytest.raises(ValueError, match="pass the model itself"):
        prune_layers(student, [0])
    merged = merge_adapters(student)
    assert type(merged) is type(plain)
    assert not any("lora" in name for name in merged.state_dict())
    assert learning(merged) == {name for name, _ in merged.named_parameters()}
    torch.testing.assert_close(logits(merged), said, rtol=1e-4, atol=1e-4)
    assert prune_layers(merged, [0]).config.num_hidden_layers == 1
    assert export_gguf(merged, bpe, tmp_path / "student.gguf").is_file()


def test_nothing_to_merge_and_nan():
    with pytest.raises(ValueError, match=r"without adapters .* nothing to merge"):
        merge_adapters(llama())
    student = disturb(add_adapters(llama()))
    next(p for p in student.parameters() if p.requires_grad).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        merge_adapters(student)


# --- adapters off -------------------------------------------------------------------


def test_off_it_is_the_model_that_it_was():
    plain = llama(attention_dropout=0.5)
    student = disturb(add_adapters(copy.deepcopy(plain), dropout=0.5)).train()
    # A frozen layer stays frozen, and a module in eval mode stays so.
    frozen = next(p for p in student.parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    student.get_base_model().model.layers[0].eval()
    state = [m.training for m in student.modules()], learning(student)
    with adapters_off(student):
        found = student(input_ids=IDS).logits
        assert not found.requires_grad
    assert torch.equal(found, logits(plain.eval()))
    assert ([m.training for m in student.modules()], learning(student)) == state
    assert not torch.equal(logits(student.eval()), found)


def test_an_error_within_turns_them_on_again():
    student = disturb(add_adapters(llama()))
    said, learns = logits(student), learning(student)
    with pytest.raises(KeyError), adapters_off(student):
        raise KeyError
    assert torch.equal(logits(student), said)
    assert learning(student) == learns


def test_a_teacher_that_would_change_is_refused():
    with pytest.raises(ValueError, match="a LlamaForCausalLM without adapters"):
        AdaptersOff(llama())
    student = add_adapters(llama(), train=["norm"])
    AdaptersOff(student)
    student.get_base_model().model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"learns .*embed_tokens.weight, .*train="):
        AdaptersOff(student)
