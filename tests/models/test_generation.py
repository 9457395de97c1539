"""Writing: every token that the tokenizer has, and a model that is left as it was."""

import copy

import pytest
import torch
from small_architectures import (
    composite,
    dispatched,
    lora,
    random_model,
    tokenizer_with_gaps,
)
from tiny_models import byte_level_bpe, tiny
from transformers import GenerationConfig

from distill_helpers.evaluation import exact_match
from distill_helpers.models import eval_mode, generate_batch

PROMPTS = [[5, 6, 7, 8], [9, 10]]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


# --- ids with gaps ------------------------------------------------------------------


def only_says(token, kind="Llama", vocabulary=48):
    model = random_model(kind, vocabulary, tie_word_embeddings=False)
    width = model.get_output_embeddings().in_features
    head = torch.nn.Linear(width, vocabulary)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()[token] = 50.0
    model.set_output_embeddings(head)
    return model


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OPT"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_behind_a_gap_is_written(kind, temperature):
    tokenizer = tokenizer_with_gaps()
    assert len(tokenizer) < tokenizer.eos_token_id
    options = {"temperature": temperature, "seeds": [1, 2]}
    written = generate_batch(
        only_says(41, kind), tokenizer, [[1, 2], [3]], max_new_tokens=4, **options
    )
    assert [(one.ids, one.ended) for one in written] == [([41], True)] * 2


def test_what_only_pads_the_head_is_not_written():
    (written,) = generate_batch(
        only_says(42), tokenizer_with_gaps(), [[1, 2]], max_new_tokens=4
    )
    assert max(written.ids) < 42


# --- the model's own settings -------------------------------------------------------


def with_settings(model):
    model.generation_config = GenerationConfig(
        eos_token_id=[7, 9], temperature=0.6, do_sample=True, repetition_penalty=1.5
    )
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "peft": lora,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "peft twice": lambda model: lora(lora(model), target_modules=["v_proj"]),
}


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("kind", ["Llama", "OPT", "Gemma3"])
def test_generation_settings_are_as_before(bpe, name, kind):
    make = composite if kind == "Gemma3" else random_model
    model = with_settings(make(kind, len(bpe)))
    own, wrapped = model.generation_config, WRAPPERS[name](model)
    before = copy.deepcopy(own.to_dict())
    held = [m for m in wrapped.modules() if "generation_config" in vars(m)]
    exact_match(wrapped, bpe, ["It is"], lambda *_: True, max_new_tokens=2)
    assert model.generation_config is own
    assert wrapped.generation_config is own
    assert own.to_dict() == before
    assert [m for m in wrapped.modules() if "generation_config" in vars(m)] == held


@pytest.mark.parametrize("name", ["plain", "peft"])
def test_they_are_so_after_a_failure_too(bpe, name):
    model = with_settings(random_model("Llama", len(bpe)))
    own, wrapped = model.generation_config, WRAPPERS[name](model)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_batch(wrapped, bpe, PROMPTS, max_new_tokens=3)
    hook.remove()
    assert model.generation_config is own


def test_a_merged_student_knows_its_ends(bpe, tmp_path):
    student = lora(with_settings(random_model("Llama", len(bpe))))
    generate_batch(student, bpe, PROMPTS, max_new_tokens=3)
    merged = student.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert loaded.eos_token_id == [7, 9]
    assert (loaded.temperature, loaded.repetition_penalty) == (0.6, 1.5)


def test_the_settings_do_not_count_meanwhile(bpe):
    plain, set_up = tiny(bpe), with_settings(tiny(bpe))
    ends = {"more_ends": [7, 9], "max_new_tokens": 8}
    wanted = generate_batch(plain, bpe, PROMPTS, **ends)
    assert generate_batch(lora_of_nothing(set_up), bpe, PROMPTS, **ends) == wanted


def lora_of_nothing(model):
    return lora(model, init_lora_weights=True)


def test_every_module_is_in_its_own_mode_again(bpe):
    model = tiny(bpe).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


# --- what the model cannot read -----------------------------------------------------


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "GPTJ"])
def test_prompt_and_answer_have_to_have_positions(bpe, kind):
    model = random_model(kind, len(bpe), positions=12, eos_token_id=299)
    # The last token is written and read no more: 4 + 9 - 1 = 12.
    generate_batch(model, bpe, PROMPTS, max_new_tokens=9, min_new_tokens=9)
    with pytest.raises(ValueError, match=r"13 tokens.* no more than 12 positions"):
        generate_batch(model, bpe, PROMPTS, max_new_tokens=10)


def test_a_pad_token_that_the_model_has_not_changes_no_text(bpe):
    model, padded = tiny(bpe), byte_level_bpe()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == len(bpe)
    wanted = generate_batch(model, bpe, PROMPTS, max_new_tokens=6)
    assert generate_batch(model, padded, PROMPTS, max_new_tokens=6) == wanted


@pytest.mark.parametrize("prompt", [[5, 300], [300]])
def test_a_prompt_that_the_model_cannot_read(bpe, prompt):
    with pytest.raises(ValueError, match=r"a prompt has the id 300.* model has 300"):
        generate_batch(tiny(bpe), bpe, [prompt, [5]], max_new_tokens=2)


def test_an_end_that_the_model_cannot_write(bpe):
    ending = byte_level_bpe()
    ending.add_special_tokens({"eos_token": "<stop>", "pad_token": "<stop>"})
    model = tiny(bpe)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="the token that ends a text has the id 300"):
        generate_batch(model, ending, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize("part", ["model.embed_tokens", "model.layers.0", "lm_head"])
def test_a_dispatched_model_writes_what_the_whole_one_does(bpe, tmp_path, part):
    model = random_model("Llama", len(bpe))
    spread = dispatched(model, tmp_path, part)
    options = {"max_new_tokens": 5, "temperature": 1.0, "seeds": [1, 2]}
    wanted = generate_batch(model, bpe, PROMPTS, **options)
    assert generate_batch(spread, bpe, PROMPTS, **options) == wanted


@pytest.mark.parametrize("prompts", [[], [[5], []]])
def test_a_prompt_holds_a_token(prompts):
    tokenizer = byte_level_bpe()
    with pytest.raises(ValueError, match="at least one token each"):
        generate_batch(tiny(tokenizer), tokenizer, prompts, max_new_tokens=2)
