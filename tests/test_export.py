"""An exported student says in llama.cpp what it says in transformers."""

from __future__ import annotations

import copy
import json
import math
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from gguf import GGUFReader
from tiny_models import byte_level_bpe, tiny
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill_helpers.course.local_server import serve_gguf
from distill_helpers.export import PRECISIONS, export_gguf
from distill_helpers.machine import get_profile
from distill_helpers.models import ModelError, load_model
from distill_helpers.tasks.teachers import load_teacher

pytest.importorskip("xllamacpp")

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of 10,000 "
    "pounds must be in want of a wife. Don't you think so? — “Ça va”, said she, 42 "
    "times."
)


@contextmanager
def served(path):
    with serve_gguf(path, threads=1, parallel=1) as url:

        def ask(what, **body):
            request = urllib.request.Request(
                f"{url.removesuffix('/v1')}/{what}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)

        yield ask


def marks(ask, ids, position, count=3):
    """The likeliest next tokens after some ids, as llama.cpp sees them."""
    reply = ask(
        "completion",
        prompt=ids[: position + 1],
        n_predict=1,
        n_probs=count,
        temperature=0,
        cache_prompt=True,
    )
    # Where the model would end, nothing is written, and nothing is said of the rest.
    written = reply.get("completion_probabilities") or [{"top_logprobs": []}]
    return {one["id"]: one["logprob"] for one in written[0]["top_logprobs"]}


def compare(model, ask, ids, positions):
    """Share of positions with the same favourite; mean distance of log p."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    same, gaps = [], []
    for position in positions:
        if found := marks(ask, ids, position):
            best = max(found, key=found.get)
            same.append(best == int(logits[position].argmax()))
            gaps += [abs(found[id_] - float(logits[position, id_])) for id_ in found]
    assert len(same) > len(positions) / 2
    return sum(same) / len(same), sum(gaps) / len(gaps)


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe(300)


def qwen2(tokenizer, *, tied):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 5,  # a padded head
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_qwen2_with_biases_and_a_padded_head(bpe, tied, tmp_path):
    model = qwen2(bpe, tied=tied)
    path = export_gguf(model, bpe, tmp_path / "deep" / "q.gguf", precision="f32")
    ids = bpe(TEXT).input_ids[:60]
    with served(path) as ask:
        assert ask("tokenize", content=TEXT)["tokens"] == bpe(TEXT).input_ids
        same, gap = compare(model, ask, ids, range(5, 60, 5))
    assert same == 1.0
    assert gap < 0.01
    assert [one.name for one in path.parent.iterdir()] == ["q.gguf"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_llama_in_every_precision(bpe, precision, tmp_path):
    model = tiny(bpe, width=64).eval()
    path = export_gguf(model, bpe, tmp_path / "l.gguf", precision=precision)
    ids = bpe(TEXT).input_ids[:60]
    with served(path) as ask:
        same, gap = compare(model, ask, ids, range(5, 60, 5))
    assert gap < {"f32": 0.005, "f16": 0.01, "q8_0": 0.1}[precision]
    assert same >= {"f32": 1.0, "f16": 0.9, "q8_0": 0.7}[precision]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_llama_whose_frequencies_are_scaled(bpe, rope, tmp_path):
    model = tiny(bpe, width=64)
    config = model.config
    config.rope_parameters = {"rope_theta": 10_000.0, **rope}
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    ids = bpe(TEXT).input_ids[:60]
    plain = model.eval()(torch.tensor([ids])).logits
    assert not torch.allclose(plain, other(torch.tensor([ids])).logits, atol=0.01)
    path = export_gguf(other, bpe, tmp_path / "s.gguf", precision="f32")
    with served(path) as ask:
        _, gap = compare(other, ask, ids, range(5, 60, 5))
    assert gap < 0.005


@pytest.mark.slow
def test_the_packaged_model_with_its_tokenizer_and_chat_template(tmp_path):
    model, tokenizer = load_teacher(get_profile("cpu"))
    path = export_gguf(model, tokenizer, tmp_path / "smollm2.gguf")
    ids = tokenizer(TEXT * 12).input_ids[:501]
    with served(path) as ask:
        assert ask("tokenize", content=TEXT)["tokens"] == tokenizer(TEXT).input_ids
        turns = [{"role": "user", "content": "What is a hat?"}]
        written = ask("apply-template", messages=turns)["prompt"]
        assert written == tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        same, gap = compare(model.float(), ask, ids, range(1, 501))
    assert same >= 0.99
    assert gap <= 0.01
    again = load_model(path)
    assert again.model.config.num_hidden_layers == model.config.num_hidden_layers


def test_a_head_of_its_own_is_carried_whatever_the_config_says(bpe, tmp_path):
    model = qwen2(bpe, tied=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    path = export_gguf(model, bpe, tmp_path / "student.gguf", precision="f32")
    again = load_model(path).model
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_several_chat_templates_are_carried_by_name(bpe, tmp_path):
    tokenizer = copy.deepcopy(bpe)
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = {"default": plain, "tool_use": plain + "!"}
    path = export_gguf(qwen2(bpe, tied=True), tokenizer, tmp_path / "student.gguf")
    fields = GGUFReader(path).fields
    assert fields["tokenizer.chat_template"].contents() == plain
    assert fields["tokenizer.chat_template.tool_use"].contents() == plain + "!"


# What cannot be carried ---------------------------------------------------------------


def test_another_type_of_model_is_refused_by_name(bpe, tmp_path):
    model = tiny(bpe)
    model.config.model_type = "gpt2"
    with pytest.raises(ModelError, match="'gpt2' cannot be exported"):
        export_gguf(model, bpe, tmp_path / "x.gguf")


def test_adapters_have_to_be_merged(bpe, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        tiny(bpe), peft.LoraConfig(target_modules=["q_proj"], r=2)
    )
    with pytest.raises(ModelError, match="merge_and_unload"):
        export_gguf(adapted, bpe, tmp_path / "x.gguf")
    merged = adapted.merge_and_unload()
    assert export_gguf(merged, bpe, tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}},
            "rope_type='yarn'",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_refused(bpe, change, words, tmp_path):
    model = tiny(bpe)
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(ModelError, match=words):
        export_gguf(model, bpe, tmp_path / "x.gguf")
    assert [*tmp_path.iterdir()] == []


def test_a_tokenizer_that_cuts_otherwise_is_refused(bpe, tmp_path):
    state = json.loads(bpe.backend_tokenizer.to_str())
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, state["pre_tokenizer"]],
    }
    other = byte_level_bpe(backend_json=json.dumps(state))
    with pytest.raises(ModelError, match="WhitespaceSplit"):
        export_gguf(tiny(bpe), other, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", {"type": "Lowercase"}, "Lowercase"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("model", {"ignore_merges": True}, "ignore_merges"),
    ],
)
def test_what_changes_a_text_on_its_way_is_refused(bpe, part, value, words, tmp_path):
    state = json.loads(bpe.backend_tokenizer.to_str())
    state[part] = {**(state[part] or {}), **value}
    other = byte_level_bpe(backend_json=json.dumps(state))
    with pytest.raises(ModelError, match=words):
        export_gguf(tiny(bpe), other, tmp_path / "x.gguf")


def test_the_chat_template_s_end_of_a_turn_ends_an_answer(bpe, tmp_path):
    """A base model that learned to answer would never stop otherwise."""
    state = json.loads(bpe.backend_tokenizer.to_str())
    other = byte_level_bpe(backend_json=json.dumps(state))
    other.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    other.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<turn>{% endfor %}"
    )
    path = export_gguf(tiny(other), other, tmp_path / "x.gguf")
    reader = GGUFReader(path)
    ends = [
        reader.get_field(f"tokenizer.ggml.{name}_token_id").contents()
        for name in ("eos", "eot")
    ]
    assert ends == [other.eos_token_id, other.convert_tokens_to_ids("<turn>")]


def test_weights_that_f16_cannot_hold_are_refused_and_leave_no_file(bpe, tmp_path):
    model = tiny(bpe)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match='precision="f32"'):
        export_gguf(model, bpe, tmp_path / "x.gguf")
    assert [*tmp_path.iterdir()] == []
    assert export_gguf(model, bpe, tmp_path / "x.gguf", precision="f32").exists()


def test_an_unknown_precision_names_the_known_ones(bpe, tmp_path):
    with pytest.raises(ValueError, match="precision='int3' must be one of"):
        export_gguf(tiny(bpe), bpe, tmp_path / "x.gguf", precision="int3")


def test_eight_bits_take_about_half_of_sixteen(bpe, tmp_path):
    model = tiny(bpe, layers=4, width=128)
    half = export_gguf(model, bpe, tmp_path / "h.gguf").stat().st_size
    eight = export_gguf(model, bpe, tmp_path / "e.gguf", precision="q8_0")
    assert math.isclose(eight.stat().st_size / half, 0.55, abs_tol=0.06)
