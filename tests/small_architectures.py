"""Random models of other architectures than the package's own students."""

import warnings

import torch
import transformers

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}
_OWN = {
    "GPT2": _GPT,
    "GPTJ": _GPT | {"rotary_dim": 4},
    "GPTNeo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
    },
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "XGLM": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "Bart": _BART | {"decoder_ffn_dim": 48, "encoder_layers": 1},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Roberta": {"is_decoder": True, "pad_token_id": 1},
    "Mamba": {"state_size": 8},
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_COMPOSITE = {
    "Gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 8}, "SiglipVision"),
    "Mistral3": ("Mistral", {}, "PixtralVision"),
    "Llava": ("Llama", {}, "CLIPVision"),
}


def random_model(kind, vocabulary, *, seed=0, positions=64, **changes):
    """A causal model, its logits far enough apart to tell right from wrong."""
    options = _SHAPE | {"vocab_size": vocabulary, "pad_token_id": 0}
    options |= {"max_position_embeddings": positions}
    if kind == "Mpt":
        options["max_seq_len"] = positions
    options |= {"bos_token_id": 0, "eos_token_id": 0} | _OWN.get(kind, {}) | changes
    config = getattr(transformers, f"{kind}Config")(**options)
    torch.manual_seed(seed)
    return _louder(transformers.AutoModelForCausalLM.from_config(config)).eval()


def composite(kind, vocabulary, *, seed=0):
    """A model that also reads pictures: its vocabulary is that of its text part."""
    text, more, vision = _COMPOSITE[kind]
    options = _SHAPE | {"vocab_size": vocabulary, "num_key_value_heads": 2} | more
    text_config = getattr(transformers, f"{text}Config")(**options)
    vision_config = getattr(transformers, f"{vision}Config")(**_VISION)
    config = getattr(transformers, f"{kind}Config")(
        text_config=text_config.to_dict(), vision_config=vision_config.to_dict()
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return _louder(model).eval()


def _louder(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def lora(model, *, seed=0, **options):
    """The model with adapters that say something from the start."""
    import peft

    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    torch.manual_seed(seed)
    with warnings.catch_warnings():  # it asks for names that transformers gives up
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", **settings | options)
        )


def dispatched(model, folder, *on_disk):
    """The model as ``device_map`` loads it, with some of its parts on disk."""
    model.save_pretrained(folder / "saved")
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    parts += [f"model.layers.{i}" for i in range(model.config.num_hidden_layers)]
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "saved",
        device_map={part: "disk" if part in on_disk else "cpu" for part in parts},
        offload_folder=str(folder / "disk"),
    )


def tokenizer_with_gaps():
    """Eight words with the ids 0 to 7, and an end that has 41."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "the", "cat", "dog", "sat", "ran", "on", "mat"]
    ids = {word: index for index, word in enumerate(words)} | {"<|end|>": 41}
    backend = Tokenizer(models.WordLevel(ids, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<unk>",
    )
