"""A student as a GGUF file, which llama.cpp, Ollama and LM Studio serve.

Llama- and Qwen2-like models with a byte-level BPE tokenizer. What a file cannot carry
exactly is refused by name: it would run, and answer otherwise. Taught in notebook 13.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers.models import (
    ModelError,
    end_tokens,
    is_fake_rounded,
    refuse_rounded,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Types of models, which llama.cpp calls by the same names.
_TYPES = ("llama", "qwen2")
PRECISIONS = ("f32", "f16", "q8_0")
# Numbers of a block that share one scale; rows that cannot be cut into blocks stay f16.
_BLOCK = 32
_LARGEST_HALF = 65_504.0

# How a text is cut before BPE, by the name that llama.cpp has for it.
_WORDS_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_LLAMA = _WORDS_QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_CUTS = {
    ("bytes and words",): "gpt-2",
    ("digits", "bytes and words"): "smollm",
    (_WORDS_QWEN, "bytes"): "qwen2",
    (_WORDS_LLAMA, "bytes"): "llama-bpe",
}


def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    precision: str = "f16",
    name: str | None = None,
) -> Path:
    """Write a model with its tokenizer and chat template into one GGUF file.

    Matrices are stored in the given precision; norms and biases, which are small, in
    fp32. The file appears under its name when it is whole.

    Args:
        model: A causal language model of the type ``llama`` or ``qwen2``. Adapters have
            to be merged first.
        tokenizer: Its tokenizer, a byte-level BPE.
        path: Where the file goes; its folder is made. A file of that name is replaced.
        precision: ``"f16"``, the default; ``"q8_0"``, 8 bits and a scale for every 32
            numbers, about half the size; or ``"f32"``.
        name: What programs call the model. Default: the file's name.

    Returns:
        The path.

    Raises:
        ImportError: If the ``gguf`` package is missing.
        ModelError: If something of the model or of the tokenizer cannot be carried: an
            unknown type, adapters, a kind of RoPE, a tokenizer that is no byte-level
            BPE or cuts texts in a way that llama.cpp has no name for, or, for ``f16``,
            weights that are too large.
        ValueError: If ``precision`` is none of the three, or the model is rounded.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {PRECISIONS}")
    try:
        import gguf
    except ImportError:
        raise ImportError(
            "export_gguf needs the gguf package; run: pip install gguf"
        ) from None
    path = Path(path)
    _check_model(model)
    vocabulary = _vocabulary(tokenizer, model.config.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    writer = gguf.GGUFWriter(unfinished, model.config.model_type)
    try:
        writer.add_name(name or path.stem)
        _write_settings(writer, model, precision)
        _write_tokenizer(writer, tokenizer, model, vocabulary)
        _write_weights(writer, model, precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


# The model --------------------------------------------------------------------------


def _check_model(model: PreTrainedModel) -> None:
    config = model.config
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in _TYPES:
        raise ModelError(
            f"model: the type {kind!r} cannot be exported; {_TYPES} can. "
            "llama.cpp's own convert_hf_to_gguf.py knows more types"
        )
    if any(".lora_" in one or "base_layer" in one for one in model.state_dict()):
        raise ModelError(
            "model has adapters; export what model.merge_and_unload() returns"
        )
    refuse_rounded("model", model, "exported", "load it without bits")
    if is_fake_rounded(model):
        raise ModelError("model computes as fake_round says; export bake(model)")
    if config.hidden_act != "silu":
        raise ModelError(
            f"model: hidden_act={config.hidden_act!r}; llama.cpp's {kind} has silu"
        )
    sliding = getattr(config, "layer_types", None) or []
    if any(one != "full_attention" for one in sliding):
        raise ModelError(
            "model: some layers see a sliding window, and the file cannot say which"
        )


def _rope_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """By what each frequency is divided; ``None`` if by nothing."""
    rope = model.config.rope_parameters
    kind = rope.get("rope_type", "default")
    module = model.model.rotary_emb
    allowed: tuple[str, ...] = ("default", "linear", "llama3")
    if model.config.model_type != "llama":
        allowed = ("default",)
    if kind not in allowed or module.attention_scaling != 1.0:
        raise ModelError(
            f"model: rope_type={kind!r} cannot be carried for "
            f"{model.config.model_type}; {allowed} can"
        )
    if kind == "default":
        return None
    width = _head_width(model.config)
    powers = torch.arange(0, width, 2, dtype=torch.float32) / width
    return 1 / rope["rope_theta"] ** powers / module.inv_freq.float().cpu()


def _head_width(config: Any) -> int:
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _write_settings(writer: Any, model: PreTrainedModel, precision: str) -> None:
    import gguf

    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(_head_width(config))
    writer.add_vocab_size(config.vocab_size)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[kinds[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_weights(writer: Any, model: PreTrainedModel, precision: str) -> None:
    import gguf

    config = model.config
    kind = config.model_type
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if (factors := _rope_factors(model)) is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    # By identity: a config may say "tied" of two matrices that differ.
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for here, tensor in model.state_dict().items():
        if here == "lm_head.weight" and tied:
            continue
        there = names.get_name(here, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise ModelError(f"model: llama.cpp's {kind} has no place for {here}")
        weight = tensor.detach().float().cpu()
        layer = here.split(".")[-2]
        if kind == "llama" and layer in heads:
            weight = _in_pairs(weight, heads[layer])
        data, stored_as = _stored(weight, precision, here)
        writer.add_tensor(there, data, raw_dtype=stored_as)


def _in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head in the order in which llama.cpp turns them, two by two.

    transformers turns row ``i`` of a head's first half with row ``i`` of its second;
    llama.cpp expects the two next to each other.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _stored(
    weight: torch.Tensor, precision: str, name: str
) -> tuple[NDArray[Any], Any]:
    """A weight's numbers and the type that the file says of them."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    numbers: NDArray[np.float32] = weight.contiguous().numpy()
    if precision == "f32" or weight.dim() < 2:
        return numbers, kinds.F32
    if precision == "q8_0" and weight.shape[-1] % _BLOCK == 0:
        return gguf.quantize(numbers, kinds.Q8_0), kinds.Q8_0
    largest = float(weight.abs().max())
    if largest > _LARGEST_HALF:
        raise ModelError(
            f'model: {name} holds {largest:.3g}, more than f16 can; use precision="f32"'
        )
    return numbers.astype("float16"), kinds.F16


# The tokenizer ----------------------------------------------------------------------


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """Tokens, their kinds, merges and the name of the cut, as the file wants them."""
    import gguf

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("tokenizer: only fast tokenizers can be exported")
    state = json.loads(backend.to_str())
    decoder = (state.get("decoder") or {}).get("type")
    if state["model"].get("type") != "BPE" or decoder != "ByteLevel":
        raise ModelError(
            f"tokenizer: {state['model'].get('type')} with the decoder {decoder}; only "
            "byte-level BPE can be exported"
        )
    cut = _cut(state.get("pre_tokenizer"))
    _check_rest(state, cut)
    tokens = dict(state["model"]["vocab"])
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for one in state.get("added_tokens", []):
        tokens[one["content"]] = one["id"]
        kinds[one["content"]] = (
            gguf.TokenType.CONTROL if one["special"] else gguf.TokenType.USER_DEFINED
        )
    by_id = {number: token for token, number in tokens.items()}
    if max(by_id) >= size:
        raise ModelError(
            f"tokenizer: its ids go up to {max(by_id)}, and the model has {size} "
            "outputs"
        )
    merges = [
        one if isinstance(one, str) else " ".join(one)
        for one in state["model"]["merges"]
    ]
    unused = gguf.TokenType.UNUSED
    return {
        # A head may be padded, and ids may have gaps.
        "tokens": [by_id.get(number, f"[PAD{number}]") for number in range(size)],
        "types": [kinds.get(by_id.get(number, ""), unused) for number in range(size)],
        "merges": merges,
        "cut": cut,
    }


def _check_rest(state: Mapping[str, Any], cut: str) -> None:
    """Refuse what changes a text or its merges, and has no place in the file.

    Qwen's own, NFC, is let pass: llama.cpp does without, and most texts are composed.
    """
    normalizer = (state.get("normalizer") or {}).get("type")
    model = state["model"]
    ignores = bool(model.get("ignore_merges"))
    changed = {
        "normalizer": None if normalizer == "NFC" else normalizer,
        "continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "end_of_word_suffix": model.get("end_of_word_suffix"),
        # llama.cpp looks whole words up before it merges under this cut alone.
        "ignore_merges": str(ignores) if ignores != (cut == "llama-bpe") else None,
    }
    for name, value in changed.items():
        if value:
            raise ModelError(
                f"tokenizer: its {name} ({value}) cannot be carried, and texts would "
                "be read otherwise"
            )


def _cut(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Llama.cpp's name for how a text is cut before BPE."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    found = tuple(map(_step, steps))
    if found not in _CUTS:
        raise ModelError(
            f"tokenizer: it cuts texts by {found}, for which no name of llama.cpp's is "
            f"known here; known are {[*_CUTS.values()]}"
        )
    return _CUTS[found]


def _step(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes and words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated":
        return str(step["pattern"].get("Regex"))
    return str(dict(step))


def _write_tokenizer(
    writer: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    vocabulary: Mapping[str, Any],
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["cut"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    ends = end_tokens(model, tokenizer)
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:  # what ends a turn, where that is another token
        writer.add_eot_token_id(ends[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    first = tokenizer("a").input_ids[0]
    writer.add_add_bos_token(first == tokenizer.bos_token_id)
    writer.add_add_space_prefix(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = [{"name": n, "template": text} for n, text in template.items()]
    if template:
        writer.add_chat_template(template)
