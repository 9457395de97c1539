"""Small words about any model: its error, its mode, its name, its size, its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


class ModelError(RuntimeError):
    """A model is missing, damaged, or does not fit what was asked of it."""


class Loaded(NamedTuple):
    """A model in eval mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def public_name(model: PreTrainedModel) -> str:
    """A hub id as it is; of an absolute path only its last part: records travel."""
    name = str(model.config.name_or_path or "")
    return Path(name).name if Path(name).is_absolute() else name


def weights_hash(model: nn.Module) -> str:
    """Hash of every weight, so that the smallest training or edit is another model.

    All bytes of all tensors, with their names, shapes and precisions: what another
    training left as it was does not hide what it changed. Weights that are dispatched
    (``device_map``) are read where they are, offloaded ones a module at a time. Of
    quantised ones the stored numbers count, so that a teacher in 8 bits is another one
    than in full.

    SHA-256 reads about 0.8 GB in a second: 0.4 s for the packaged teacher in bf16, less
    than loading takes.

    Raises:
        ValueError: If weights are nowhere: on the ``meta`` device, and not offloaded.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor) and value.is_meta:
            _hash_offloaded(digest, model, name)
        else:
            _hash_value(digest, value)
    return digest.hexdigest()[:16]


def _hash_offloaded(digest: Any, model: nn.Module, name: str) -> None:
    from accelerate.utils import align_module_device, has_offloaded_params

    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    if not has_offloaded_params(module):
        raise ValueError(
            f"model has no numbers for {name}: it is on the meta device; load the "
            "weights (from_pretrained)"
        )
    with align_module_device(module, torch.device("cpu")):
        _hash_value(digest, getattr(module, key))


def _hash_value(digest: Any, value: Any) -> None:
    """Whatever stands in a state dict: of quantised models, more than tensors."""
    if isinstance(value, (tuple, list)):
        for one in value:
            _hash_value(digest, one)
    elif not isinstance(value, torch.Tensor):
        digest.update(repr(value).encode())
    elif is_traceable_wrapper_subclass(value):  # such as torchao's
        names, context = value.__tensor_flatten__()
        digest.update(repr((type(value), context)).encode())
        for name in names:
            _hash_value(digest, getattr(value, name))
    else:
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        if value.is_quantized:
            value = value.dequantize()
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy())


@contextmanager
def eval_mode(*models: nn.Module | None) -> Iterator[None]:
    """Dropout off, and afterwards every module as it was."""
    given = [model for model in models if model is not None]
    was_training = [
        (module, module.training) for model in given for module in model.modules()
    ]
    try:
        for model in given:
            model.eval()
        yield
    finally:
        for module, training in was_training:
            module.training = training


def parameter_count(model: nn.Module, *, trained: bool = False) -> int:
    """Parameters, a tied matrix counted once.

    Args:
        model: Any model.
        trained: Count only those that learn, such as adapters.
    """
    every = model.parameters()
    return sum(one.numel() for one in every if one.requires_grad or not trained)


def checkpoint_activations(model: Any, **options: Any) -> None:
    """Let a model compute its activations again in the backward pass.

    The method's name changed within transformers 5.

    Args:
        model: A model of transformers.
        options: What this version of transformers takes, passed on unchanged.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)(**options)
