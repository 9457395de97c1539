"""Load a causal language model from the hub, a folder or a GGUF file.

Used from notebook 00 on.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill_helpers.machine import has_flash_attention
from distill_helpers.models.base import Loaded
from distill_helpers.models.rounding import rounding_config

if TYPE_CHECKING:
    from transformers import (
        PreTrainedConfig,
    )


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    frozen: bool = False,
    bits: int | None = None,
) -> Loaded:
    """Load a causal language model and its tokenizer from the hub or a folder.

    Every architecture that transformers has a causal model for; attention is as
    :func:`attention_for` finds it from the model's class.

    Args:
        name_or_folder: A hub id or a local folder; or a GGUF file (llama.cpp), or a
            folder that holds one and no ``config.json``, whose weights are
            dequantised. Code that comes with a model is never run.
        dtype: Always explicit: transformers would otherwise take the file's dtype.
        device: Where the model goes.
        frozen: Without gradients, as a teacher.
        bits: 8 or 4 rounds the linear layers as they are loaded, with torchao, for a
            teacher that is read; see
            :func:`~distill_helpers.models.rounding.rounding_config`. Its soft labels
            are another teacher's: measure how far off with ``evaluate``. Notebook 09.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        ValueError: If a GGUF file cannot be read, or is one of several in a folder; or
            if the machine cannot do the bits.
    """
    flash = has_flash_attention(device)
    gguf = _gguf_in(Path(name_or_folder))
    if bits is not None and gguf is not None:
        raise ValueError(
            f"bits={bits} and {gguf}: a GGUF file is loaded in full; save what "
            "load_model gives (save_pretrained), and load that folder with bits"
        )
    rounding: dict[str, Any] = {}
    if bits is not None:
        rounding["quantization_config"] = rounding_config(bits, dtype, device)
        rounding["device_map"] = {"": device}  # rounded where it will be
    if gguf is None:
        model, tokenizer = _from_pretrained(
            name_or_folder, dtype, flash, use_safetensors=True, **rounding
        )
    else:
        model, tokenizer = from_gguf(gguf, dtype, flash)
    if not rounding:
        model.to(device)  # type: ignore[arg-type]
    model.eval()
    if frozen:
        model.requires_grad_(False)
    return Loaded(model, tokenizer)


def _from_pretrained(
    source: str | Path,
    dtype: torch.dtype,
    flash: bool,
    *,
    use_safetensors: bool | None = None,
    quantization_config: Any = None,
    device_map: Any = None,
    **where: str,
) -> Loaded:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # By default, transformers asks at a terminal whether it may run code.
    where_from: dict[str, Any] = {**where, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **where_from)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention_for(config, flash=flash),
        use_safetensors=use_safetensors,
        quantization_config=quantization_config,
        device_map=device_map,
        output_loading_info=True,
        **where_from,
    )
    model, report = loaded
    if any(".parametrizations." in name for name in report["unexpected_keys"]):
        raise ValueError(
            f"{source} holds a student of fake_round in the middle of its training; "
            "resume it, and call bake(model) before save_pretrained"
        )
    return Loaded(model, AutoTokenizer.from_pretrained(source, **where_from))


def _gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path means; ``None`` if it means something else."""
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ValueError(f"{path} is no file; give the path of a GGUF file")
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(one for one in path.iterdir() if one.suffix.lower() == ".gguf")
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ValueError(
            f"{path} holds several GGUF files ({names}); give the path of one of them"
        )
    return found[0] if found else None


def from_gguf(gguf: Path, dtype: torch.dtype, flash: bool) -> Loaded:
    """Load a GGUF file, its weights dequantised.

    Args:
        gguf: A file of llama.cpp.
        dtype: The type of the loaded weights.
        flash: Whether FlashAttention may be used.

    Raises:
        ValueError: If the file is damaged, or holds an unknown architecture.
    """
    try:
        model, tokenizer = _from_pretrained(
            gguf.parent, dtype, flash, gguf_file=gguf.name
        )
    except Exception as error:  # of numpy, struct, gguf or transformers
        raise ValueError(
            f"{gguf} cannot be loaded as a GGUF file ({type(error).__name__}: "
            f"{error}); copy it again if it is damaged, or give a folder in the format "
            "of transformers (config.json and safetensors)"
        ) from error
    # The weights are dequantised now; as long as the config says otherwise,
    # save_pretrained refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    return Loaded(model, tokenizer)


def attention_for(config: PreTrainedConfig, *, flash: bool) -> str | None:
    """The attention to ask transformers for, on a device with flash or without.

    Where heads share keys and values and no mask is needed, transformers' ``"sdpa"``
    leaves the sharing to torch's kernel. Of the kernels of a T4, which has no flash
    attention, only one can do that; it keeps every score and is slow (transformers'
    issue 48633). There, keys and values are repeated first, and the kernel that saves
    memory takes over.

    Args:
        config: The model's config. Its class says whether it has ``"sdpa"`` at all
            (Gemma 2 and Mamba have none) and lets its attention be exchanged (Falcon
            does not).
        flash: Whether the device has flash attention.

    Returns:
        ``None`` for transformers' own choice: ``"sdpa"`` if the model has it, or else
        what its authors wrote.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    exchanges = getattr(kind, "_supports_attention_backend", False)
    if flash or not (exchanges and kind._supports_sdpa):
        return None
    AttentionInterface.register("sdpa_per_head", _attend_per_head)
    AttentionMaskInterface.register("sdpa_per_head", sdpa_mask)
    return "sdpa_per_head"


def _attend_per_head(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Any:
    from transformers.integrations.sdpa_attention import (
        repeat_kv,
        sdpa_attention_forward,
    )

    if attention_mask is None and query.shape[2] == 1:
        # A token that is written sees all before it. With a mask that says so,
        # transformers spares it the copies.
        shape = (1, 1, 1, key.shape[2])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device)
    attending: Any = module
    if attention_mask is None:
        groups: Any = getattr(module, "num_key_value_groups", 1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        # Of the module, only this is asked; that heads were shared is over.
        attending = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return sdpa_attention_forward(
        attending, query, key, value, attention_mask, **options
    )
