"""Models are tried out: the head, causality, and examples that share a row.

What is right is computed here from the models' own logits, in float64.
"""

import copy

import pytest
import torch
import transformers
from datasets import Dataset
from tiny_models import byte_level_bpe, random_rows
from versions import NEEDS_A_CAUSAL_REMBERT

from distill_helpers.data import Collator, mask_prompts, pack_examples
from distill_helpers.labels import write_cache
from distill_helpers.losses import Hidden
from distill_helpers.models import (
    HeadReader,
    check_causal,
    check_head,
    isolates_examples,
    why_not_plain,
)
from distill_helpers.trainers import HardLabels, SoftLabels

VOCABULARY = 300
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
KINDS = {
    "Llama": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Gemma2": {**GROUPED, "sliding_window": 4},
    "Qwen2": {"num_key_value_heads": 2},
}


def small(kind="Llama", seed=0, **changes):
    """A random model of an architecture, its weights as far apart as trained ones."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(
        **settings | KINDS.get(kind, {}) | changes
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model


def batch(count=3, length=12, seed=0):
    return Collator(0)(list(random_rows(count, length, VOCABULARY, seed=seed)))


def kl_of_own_logits(teacher, student, inputs):
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        p, q = (
            model(**given).logits[:, :-1].double().log_softmax(-1)
            for model in (teacher, student)
        )
    terms = (p.exp() * (p - q)).masked_fill(p.exp() == 0, 0.0)
    return terms.sum(-1).mean().item()


# --- what changes logits behind the head --------------------------------------------


def rule_out(_module, _inputs, outputs):
    outputs.logits[..., 100:200] = -torch.inf
    return outputs


def rule_out_at_the_beginning(_module, _inputs, outputs):
    if outputs.logits.shape[1]:
        outputs.logits[:, 0, 100:200] = -torch.inf
    return outputs


def favour_one(_module, _inputs, outputs):
    outputs.logits[..., 7] += 3.0
    return outputs


def flatten(_module, _inputs, outputs):
    outputs.logits = outputs.logits / 1.05
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [rule_out, rule_out_at_the_beginning, favour_one, flatten]
)
def test_a_hook_that_changes_a_teacher_s_logits_is_followed(kind, change):
    teacher, student = small(kind), small(kind, seed=1)
    inputs = batch()
    plain = kl_of_own_logits(teacher, student, inputs)
    teacher.register_forward_hook(change)
    right = kl_of_own_logits(teacher, student, inputs)
    assert abs(right - plain) > 1e-4 * right  # the change can be seen
    objective = SoftLabels(teacher, VOCABULARY)
    for _ in range(2):  # the try, and a step after it
        found = objective(student, inputs, None)["loss"].item()
        assert found == pytest.approx(right, rel=1e-5)


class Choosy(transformers.LlamaForCausalLM):
    """Changes what it says on some calls only; set ``when``."""

    def forward(self, *inputs, **options):
        outputs = super().forward(*inputs, **options)
        if self.when(self, options):
            outputs.logits = outputs.logits / 1.1
        return outputs


WHENS = {
    "in training": lambda model, _: model.training,
    "in evaluation": lambda model, _: not model.training,
    "without gradients": lambda *_: not torch.is_grad_enabled(),
    "on long rows": lambda _, options: options["input_ids"].shape[1] > 10,
    "on many rows": lambda _, options: len(options["input_ids"]) > 3,
    "on packed rows": lambda _, options: options.get("position_ids") is not None,
}


@pytest.mark.parametrize("when", WHENS)
def test_every_kind_of_call_is_tried(when):
    """The first call says nothing about calls of another kind."""
    model = Choosy(small().config)
    model.load_state_dict(small(seed=3).state_dict())
    model.when = WHENS[when]
    rows = random_rows(4, 6, VOCABULARY)
    rows = rows.add_column("labels", [[-100, *ids[1:]] for ids in rows["input_ids"]])
    packed = Collator(0)(list(pack_examples(rows, 12)))
    fused, plain = HardLabels(), HardLabels(fused=False)
    for training in (True, False):
        model.train(training)
        for gradients in (True, False):
            for inputs in (batch(2, 8), batch(2, 12), batch(5, 8), packed):
                with torch.set_grad_enabled(gradients):
                    want = plain(model, inputs, None)["loss"].item()
                    found = fused(model, inputs, None)["loss"].item()
                assert found == pytest.approx(want, rel=1e-5)


def test_a_hook_that_comes_later_is_found_out():
    model, inputs = small(), batch()
    objective = HardLabels()
    before = objective(model, inputs, None)["loss"].item()
    hook = model.register_forward_hook(favour_one)
    want = HardLabels(fused=False)(model, inputs, None)["loss"].item()
    assert objective(model, inputs, None)["loss"].item() == pytest.approx(want)
    hook.remove()
    assert objective(model, inputs, None)["loss"].item() == pytest.approx(before)


def test_a_head_that_was_replaced_is_looked_at_again():
    model, inputs = small(), batch()
    objective = HardLabels()
    objective(model, inputs, None)
    model.resize_token_embeddings(VOCABULARY + 20, mean_resizing=False)
    model.lm_head = torch.nn.Linear(32, VOCABULARY + 20)
    want = HardLabels(fused=False)(model, inputs, None)["loss"].item()
    found = objective(model, inputs, None)["loss"].item()
    assert objective.student.fused
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("scheme", ["full", "top_k", "sampled"])
def test_a_cache_stores_what_the_teacher_says(tmp_path, scheme):
    bpe = byte_level_bpe()
    teacher = small(vocab_size=len(bpe))
    teacher.register_forward_hook(rule_out)
    rows = random_rows(3, 12, len(bpe))
    cache = write_cache(
        teacher, rows, tmp_path, tokenizer=bpe, scheme=scheme, progress=False
    )
    stored = cache.lookup(torch.tensor(rows["input_ids"]))
    if scheme == "full":
        assert torch.isneginf(stored[:, :-1, 100:200]).all()
        assert torch.isfinite(stored[:, :-1, :100]).all()
    else:
        ids = stored.ids.view(3, 12, -1)[:, :-1]
        assert not ((ids >= 100) & (ids < 200)).any()


def test_a_model_that_has_diverged_keeps_its_path():
    """The loss says that it has; holding all logits would not help."""
    model = small()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    reader = HeadReader("student", fused=True)
    assert isinstance(reader.read(model, batch()), Hidden)
    assert reader.fused


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2", "OPT", "Llama4", "Mamba"])
def test_plain_heads_are_found(kind):
    """OPT calls its decoder past its trunk; Llama 4 has its trunk elsewhere."""
    if kind == "Llama4":
        config = transformers.Llama4TextConfig(**ENCODER | CAUSAL_LLAMA4)
        model = transformers.Llama4ForCausalLM(config).eval()
    else:
        model = small(kind, **MIXING.get(kind, {}))
    objective = HardLabels()
    found = objective(model, batch(), None)["loss"].item()
    want = HardLabels(fused=False)(model, batch(), None)["loss"].item()
    assert objective.student.fused
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["Electra", pytest.param("RemBert", marks=NEEDS_A_CAUSAL_REMBERT)]
)
def test_a_layer_before_the_head_is_noticed(name):
    """What goes into the head is then not what the trunk gives."""
    torch.manual_seed(0)
    shape = ENCODER | {"is_decoder": True, "max_position_embeddings": 64}
    config = getattr(transformers, f"{name}Config")(**shape)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    inputs = batch()
    want = HardLabels(fused=False)(model, inputs, None)["loss"].item()
    objective = HardLabels()
    assert objective(model, inputs, None)["loss"].item() == pytest.approx(want)
    assert not objective.student.fused


def test_the_try_takes_three_positions_once(monkeypatch):
    """Of 128 positions; and after that the head is left out."""
    model, asked = small(max_position_embeddings=256), []
    forward = model.forward

    def noted(*inputs, logits_to_keep=0, **options):
        asked.append(logits_to_keep)
        return forward(*inputs, logits_to_keep=logits_to_keep, **options)

    noted.__signature__ = None
    monkeypatch.setattr(model, "forward", noted)
    reader = HeadReader("student", fused=True)
    for seed in range(3):
        reader.read(model, batch(2, 128, seed=seed))
    kept = [places.tolist() for places in asked if torch.is_tensor(places)]
    assert kept == [[], [0, 64, 127], [], []]  # the first: is it causal?


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "lm_head", Doubled(32, VOCABULARY)), "Doubled"),
        (lambda m: m.lm_head.register_forward_hook(lambda *_: None), "forward hook"),
    ],
)
def test_the_reason_for_holding_logits_is_true(caplog, change, reason):
    model = small()
    change(model)
    assert reason in why_not_plain(model)
    HardLabels()(model, batch(), None)
    assert reason in caplog.text


class Doubled(torch.nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


# --- adapters -----------------------------------------------------------------------


def with_adapters(model, **settings):
    import peft

    options = {"r": 4, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**options | settings)).eval()


@pytest.mark.parametrize(
    ("targets", "more", "fused"),
    [
        (["q_proj", "v_proj"], {}, True),
        (["up_proj"], {"use_rslora": True}, True),
        (["q_proj", "lm_head"], {}, False),
        (["q_proj"], {"modules_to_save": ["lm_head"]}, False),
    ],
)
def test_a_student_with_adapters(targets, more, fused):
    """A head without an adapter is plain, whatever stands around the model."""
    student = with_adapters(small(seed=1), target_modules=targets, **more)
    teacher, inputs = small(), batch()
    objective = SoftLabels(teacher, VOCABULARY)
    found = objective(student, inputs, None)["loss"]
    right = kl_of_own_logits(teacher, student, inputs)
    assert found.item() == pytest.approx(right, rel=1e-5)
    assert objective.student.fused == fused
    found.backward()
    gradients = [p.grad for n, p in student.named_parameters() if "lora_B" in n]
    assert all(g.abs().max() > 0 for g in gradients)


# --- examples that share a row ------------------------------------------------------

LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
MIXING = {
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "Mamba": {"state_size": 8},
    "Qwen3Next": {"num_hidden_layers": 4, **GROUPED, **LINEAR},
}


def examples():
    generator = torch.Generator().manual_seed(5)
    ids = [
        torch.randint(2, VOCABULARY, (size,), generator=generator).tolist()
        for size in (7, 4, 6, 3, 5)
    ]
    labels = [[-100, -100, *row[2:]] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_packed_examples_have_the_loss_of_single_ones(kind, rows):
    model, given = small(kind), examples()
    right = HardLabels()(model, Collator(0)(list(given)), None)["loss"].item()
    packed = pack_examples(given, 32 if rows == 1 else 9)
    assert len(packed) == rows
    found = HardLabels()(model, Collator(0)(list(packed)), None)["loss"].item()
    assert found == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_whose_examples_see_each_other_is_refused(kind, who):
    mixing, plain = small(kind, **MIXING[kind]), small()
    packed = Collator(0)(list(pack_examples(examples(), 16)))
    assert not isolates_examples(mixing, packed["input_ids"])
    objective = SoftLabels(mixing if who == "teacher" else plain, VOCABULARY)
    student = mixing if who == "student" else plain
    with pytest.raises(ValueError, match=rf"pack_examples: in the {who}.*one to a row"):
        objective(student, packed, None)


@pytest.mark.parametrize("kind", MIXING)
def test_it_may_read_rows_of_one_example(kind):
    """Padding begins anew, too, but nobody learns from it."""
    model, given = small(kind, **MIXING[kind]), examples()
    right = HardLabels()(model, Collator(0)(list(given)), None)["loss"].item()
    alone = pack_examples(given, 7).filter(lambda row: 0 not in row["position_ids"][1:])
    inputs = Collator(0)(list(alone))
    assert "position_ids" in inputs
    found = HardLabels()(model, inputs, None)["loss"].item()
    want = HardLabels()(
        model,
        Collator(0)([{k: row[k] for k in ("input_ids", "labels")} for row in alone]),
        None,
    )["loss"].item()
    assert right > 0
    assert found == pytest.approx(want, rel=1e-4)


class LikeFlash(transformers.LlamaForCausalLM):
    """Tells examples apart in batches of one row alone, as flash attention does."""

    def forward(self, input_ids, position_ids=None, attention_mask=None, **options):
        if position_ids is not None and len(input_ids) > 1:
            attention_mask = torch.ones_like(input_ids)
        return super().forward(
            input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            **options,
        )


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_right_for_one_row_is_not_for_several(wrapped):
    model = LikeFlash(small().config)
    model.load_state_dict(small().state_dict())
    called = torch.nn.DataParallel(model) if wrapped else model
    given = examples()
    right = HardLabels()(small(), Collator(0)(list(given)), None)["loss"].item()
    one = Collator(0)(list(pack_examples(given, 32)))
    found = HardLabels()(called, one, None)["loss"].item()
    assert found == pytest.approx(right, rel=1e-5)
    objective = HardLabels()
    objective(called, one, None)
    with pytest.raises(ValueError, match="examples would see each other"):
        objective(called, Collator(0)(list(pack_examples(given, 9))), None)


def test_positions_beside_padding_on_the_left():
    """Other collators give both; the mask must not be dropped."""
    model = small("GPT2")
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": ids.masked_fill(mask == 0, -100),
    }
    inputs["labels"][0, 2] = -100
    right = HardLabels()(
        model,
        Collator(0)([{"input_ids": [5, 6, 7]}, {"input_ids": [9, 8, 7, 6, 5]}]),
        None,
    )["loss"].item()
    found = HardLabels()(model, inputs, None)["loss"].item()
    assert found == pytest.approx(right, rel=1e-5)


def test_packed_rows_with_padding_on_the_left_are_refused():
    ids = torch.tensor([[0, 5, 6, 7, 8], [9, 8, 7, 6, 5]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 1, 0, 1], [0, 1, 0, 1, 2]]),
        "labels": ids,
    }
    with pytest.raises(ValueError, match=r"padding on the left, .*pad on the right"):
        HardLabels()(small(), inputs, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # as torch traces
def test_a_model_that_is_compiled_in_place_keeps_its_numbers():
    model = small()
    right = HardLabels()(model, batch(), None)["loss"].item()
    model.compile(backend="eager")
    objective = HardLabels()
    for seed in (0, 0, 0):
        found = objective(model, batch(seed=seed), None)["loss"].item()
        assert found == pytest.approx(right, rel=1e-5)


def test_rounding_is_that_of_autocast():
    """Hidden states may be fp32 behind products in bf16."""
    model, given = small(num_hidden_layers=6), examples()
    packed = Collator(0)(list(pack_examples(given, 9)))
    mixing = small("Bloom", **MIXING["Bloom"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HardLabels()(model, packed, None)["loss"].item()
        assert not isolates_examples(mixing, packed["input_ids"])
    assert found == pytest.approx(
        HardLabels()(model, packed, None)["loss"].item(), 0.01
    )


def test_asking_a_model_changes_nothing_about_it():
    model = small(attention_dropout=0.5).train()
    state = torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    check_head("student", model)
    check_causal("student", model)
    isolates_examples(model, batch()["input_ids"])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


# --- models that are no causal language models --------------------------------------

ENCODER = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
ENCODER |= {"num_attention_heads": 4, "intermediate_size": 48}
REFUSED = {
    "BertForMaskedLM": ("BertConfig", ENCODER, "no causal language model"),
    "BertLMHeadModel": ("BertConfig", ENCODER, "no causal language model"),
    "RobertaForMaskedLM": ("RobertaConfig", ENCODER, "no causal language model"),
    "ElectraForMaskedLM": (
        "ElectraConfig",
        {**ENCODER, "embedding_size": 16},
        "no causal language model",
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48}
        | {"num_layers": 2, "num_heads": 4},
        "encoder-decoder",
    ),
    "BartForConditionalGeneration": (
        "BartConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1}
        | {"decoder_layers": 1, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        "encoder-decoder",
    ),
    "LlamaModel": ("LlamaConfig", ENCODER, "AutoModelForCausalLM"),
    "BertModel": ("BertConfig", ENCODER, "AutoModelForCausalLM"),
    "LlamaForSequenceClassification": (
        "LlamaConfig",
        ENCODER,
        "AutoModelForCausalLM",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_causal_is_refused_for_the_true_reason(name):
    config, settings, reason = REFUSED[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**settings)
    model = getattr(transformers, name)(config)
    with pytest.raises(TypeError, match=rf"the teacher, a {name},.*{reason}"):
        SoftLabels(model, VOCABULARY)(small(), batch(), None)


MBART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}
CAUSAL_LLAMA4 = {**GROUPED, "intermediate_size_mlp": 48, "num_local_experts": 2}
CAUSAL_LLAMA4 |= {"num_experts_per_tok": 1, "attention_chunk_size": 32}
CAUSAL = {
    "MBartForCausalLM": ("MBartConfig", {**MBART, "decoder_ffn_dim": 48}),
    "BertLMHeadModel": ("BertConfig", {"is_decoder": True}),
    "Llama4ForCausalLM": ("Llama4TextConfig", CAUSAL_LLAMA4),
    "MambaForCausalLM": ("MambaConfig", {"state_size": 8}),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_is_taken_whatever_it_is_called(name):
    config, settings = CAUSAL[name]
    torch.manual_seed(0)
    shape = ENCODER | {"max_position_embeddings": 64}
    config = getattr(transformers, config)(**shape | settings)
    model = getattr(transformers, name)(config).eval()
    inputs = batch()
    found = SoftLabels(model, VOCABULARY)(small(), inputs, None)["loss"].item()
    assert found == pytest.approx(kl_of_own_logits(model, small(), inputs), rel=1e-5)


def test_a_conversation_s_rows_are_told_from_packed_ones():
    bpe = byte_level_bpe()
    rows = mask_prompts(["a b ", "c "], ["d", "e f g"], bpe)
    inputs = Collator(bpe.pad_token_id)(list(rows))
    assert "position_ids" not in inputs
    model = small("OPT", vocab_size=len(bpe), **MIXING["OPT"])
    assert HardLabels()(model, inputs, None)["loss"].item() > 0
