"""A student that keeps some of its teacher's layers.

Taught in notebook 02 (Muralidharan et al. 2024, arXiv:2407.14679, for "prune, then
distil").
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from distill_helpers.models.base import eval_mode
from distill_helpers.models.rounding import is_fake_rounded, refuse_rounded

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
    )


def prune_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """Copy a model with only some of its decoder layers: "prune, then distil".

    The copy is built from a configuration in which all that is said layer by layer has
    gone along with its layer: lists with a value for each (kinds of attention, layers
    without RoPE, widths), lists of layers (which are mixtures), and numbers that stand
    for such lists (the first three are dense). That this went well is not believed but
    tried: every layer's settings are compared with those of the original, and what the
    copy says to a few tokens with what the original says if it passes by the layers
    that are gone. That takes a forward pass of each, and no more memory.

    Args:
        model: Its decoder keeps its layers in ``layers``, as Llama, Qwen, Gemma,
            Mistral, OPT, Mamba and most others do; also models that read pictures,
            whose language part is pruned. Left untouched.
        keep: Layer indices to keep, in order, without repetition.

    Returns:
        A new trainable fp32 model that saves, reloads and generates with its cache.

    Raises:
        ValueError: If ``keep`` is empty, out of range, unordered or repeats itself; or
            if the layers that are kept would be others without those that are gone,
            because a setting follows from where a layer stands.
    """
    count = len(_decoder_layers(model))
    keep = [int(index) for index in keep]
    if not keep or keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= count:
        raise ValueError(
            f"keep={keep} must be ascending layer indices between 0 and {count - 1}, "
            "each once"
        )
    student = _without_layers(model, keep)
    student.to(model.device)
    student.generation_config = copy.deepcopy(model.generation_config)
    student.eval()
    for trouble in (_difference(student, model, keep), _trouble_in_writing(student)):
        if trouble is not None:
            raise _cannot_prune(model, keep, trouble)
    return cast("PreTrainedModel", student.float())


def _cannot_prune(model: nn.Module, keep: list[int], why: str) -> ValueError:
    return ValueError(
        f"keep={keep}: a {type(model).__name__} of these layers alone would be another "
        f"model ({why}); keep the first layers (keep=range(n)), with one of every kind "
        "among them, or take a model whose layers are alike"
    )


def _without_layers(model: Any, keep: list[int]) -> Any:
    """The copy, in the precision of the original."""
    from transformers.initialization import no_init_weights

    layers = _decoder(model).layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    try:
        config = config_of_kept(model.config, keep, len(layers))
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            for part in (config, config.get_text_config()):
                part.tie_word_embeddings = False  # whatever the file said
        # Every weight is about to be copied: drawing random ones would take seconds,
        # and change the global random state.
        with no_init_weights():
            student = type(model)(config)
    except Exception as error:  # whatever an architecture makes of such a config
        raise _cannot_prune(model, keep, f"{type(error).__name__}: {error}") from error
    state = _renumbered(model.state_dict(), prefix, keep)
    wanted = student.state_dict()
    if other := sorted(state.keys() ^ wanted.keys()):
        where = "lost" if other[0] in state else "missing"
        raise _cannot_prune(model, keep, f"{other[0]} is {where}")
    for name, value in state.items():
        state[name] = _of_kept(value, wanted[name].shape, keep, len(layers)).clone()
        if state[name].shape != wanted[name].shape:
            shapes = f"{list(value.shape)} for {list(wanted[name].shape)}"
            raise _cannot_prune(model, keep, f"{name} is {shapes}")
    student.load_state_dict(state, assign=True)
    student.tie_weights()  # part of the initialisation that was left out
    return student


def _decoder(model: Any) -> Any:
    """What has the layers: some models of transformers (Llama 4) do not say."""
    found = model.get_decoder()
    return found if hasattr(found, "layers") else getattr(model, "model", found)


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    from transformers import PreTrainedModel

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model is a {name}, no model of transformers; pass the model itself "
            "(of PEFT: model.merge_and_unload())"
        )
    layers = getattr(_decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList) or model.config.is_encoder_decoder:
        raise ValueError(
            f"{name} keeps its layers elsewhere than in the layers of one decoder; "
            "use a Llama-like model (Llama, Qwen, Gemma, Mistral)"
        )
    refuse_rounded("model", model, "pruned", "load it without bits, and prune that")
    if is_fake_rounded(model):
        raise ValueError(
            "model computes as fake_round says; prune first, and then fake_round"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(
            f"model is a {name} with weights on disk; load it without device_map, "
            "into memory"
        )
    return layers


# In a configuration: what counts layers from the first on, and from the last.
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
_LAST_LAYERS = ("num_kv_shared_layers",)
# Attributes that say which of how many a layer is, or how it is used at the moment.
_NO_SETTINGS = (
    "idx",
    "index",
    "layer_id",
    "layer_number",
    "num_hidden_layers",
    "training",
    "checkpointing",
)
# Lists that may be as long as there are layers, and have nothing to do with them.
_NOT_OF_LAYERS = ("architectures", "token", "limit", "multipliers", "mtp_")


def config_of_kept(config: Any, keep: list[int], count: int) -> Any:
    """The configuration of a model with some of its layers, as if read from a file.

    Args:
        config: The config of the whole model.
        keep: Ascending layer indices.
        count: Layers of the whole model.
    """
    text = config.get_text_config()
    values = config.to_dict()
    part = values
    for name in config.sub_configs:
        if getattr(config, name, None) is text:
            part = values[name]
    counts = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    part |= _settings_of_kept(part, keep, count) | {counts: len(keep)}
    found = type(config).from_dict(
        values, attn_implementation=config._attn_implementation
    )
    found.name_or_path = config.name_or_path
    return found


def _settings_of_kept(
    values: Mapping[str, Any], keep: list[int], count: int
) -> dict[str, Any]:
    """Every setting that belongs to a layer, for the layers that are kept."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if any(part in name for part in _NOT_OF_LAYERS):
            continue
        if isinstance(value, (list, tuple)):
            if _is_list_of_layers(name, value, count):
                found[name] = [keep.index(index) for index in value if index in keep]
            elif len(value) == count:
                found[name] = [value[index] for index in keep]
        elif isinstance(value, dict) and "layer" in name:
            if value and all(str(key).isdigit() for key in value):
                of_layer = {int(key): one for key, one in value.items()}
                found[name] = {
                    new: of_layer[old]
                    for new, old in enumerate(keep)
                    if old in of_layer
                }
        elif name in _FIRST_LAYERS and value is not None:
            found[name] = sum(index < value for index in keep)
        elif name in _LAST_LAYERS and value is not None:
            found[name] = sum(index >= count - value for index in keep)
        elif name == "moe_layer_end_index":
            end = value if value >= 0 else count - 1
            found[name] = sum(index <= end for index in keep) - 1
        elif name.endswith("_period") and value and name[:-6] + "offset" in values:
            offset = name[:-6] + "offset"
            marked = [index % value == values[offset] for index in keep]
            found |= dict(zip((name, offset), _period_of(marked), strict=True))
    step = values.get("decoder_sparse_step")
    if step and step > 1 and "mlp_only_layers" in values:
        dense = values["mlp_only_layers"] or []
        found["decoder_sparse_step"] = 1
        found["mlp_only_layers"] = [
            new for new, old in enumerate(keep) if old in dense or (old + 1) % step
        ]
    return found


def _is_list_of_layers(name: str, value: Sequence[Any], count: int) -> bool:
    """Whether a list names layers, as ``mlp_only_layers`` does."""
    if not name.endswith(("layers", "indices", "idxs", "layer_ids")):
        return False
    if any(type(one) is not int or not 0 <= one < count for one in value):
        return False
    ascending = list(value) == sorted(set(value))
    return ascending and (len(value) < count or count > 2)


def _period_of(marked: list[bool]) -> tuple[int, int]:
    """A period and an offset that mark these layers; any, if none do."""
    size = len(marked)
    for period in range(1, size + 2):
        for offset in range(period):
            if marked == [index % period == offset for index in range(size)]:
                return period, offset
    return 1, 0  # another model, as the comparison will say


def _renumbered(
    tensors: Mapping[str, torch.Tensor], prefix: str, keep: list[int]
) -> dict[str, torch.Tensor]:
    """Under the names that they have once only some layers are left."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            old, rest = name.removeprefix(f"{prefix}.").split(".", 1)
            if int(old) not in keep:
                continue
            name = f"{prefix}.{keep.index(int(old))}.{rest}"
        found[name] = tensor
    return found


def _of_kept(
    value: torch.Tensor, shape: torch.Size, keep: list[int], count: int
) -> torch.Tensor:
    """What kept layers have of a tensor in which all have a part (Gemma 3n's)."""
    for dim, (there, wanted) in enumerate(zip(value.shape, shape, strict=False)):
        if there != wanted and there * len(keep) == wanted * count:
            parts = value.unflatten(dim, (count, there // count))
            chosen = torch.tensor(keep, device=value.device)
            return parts.index_select(dim, chosen).flatten(dim, dim + 1)
    return value


def _difference(student: Any, model: Any, keep: list[int]) -> str | None:
    """In what a model differs from the one that it was made of; ``None``: in nothing.

    Settings are compared too, because a few tokens cannot tell a window of 4096.
    """
    ours, theirs = _decoder(student), _decoder(model)
    for new, old in enumerate(keep):
        here, there = _settings(ours.layers[new]), _settings(theirs.layers[old])
        for name in here.keys() | there.keys():
            if here.get(name) != there.get(name):
                return (
                    f"{name} of layer {old} is {there.get(name)!r}, and would be "
                    f"{here.get(name)!r} where it comes to stand"
                )
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(12, device=model.device) * 37 + 5) % size
    inputs = {"input_ids": ids.unsqueeze(0), "use_cache": False}
    gone = [layer for i, layer in enumerate(theirs.layers) if i not in keep]
    # What is no weight (RoPE's frequencies) may be rounded in one and not the other.
    prefix = next(n for n, one in theirs.named_modules() if one is theirs.layers)
    lent = _renumbered(dict(theirs.named_buffers()), prefix, keep)
    own = dict(ours.named_buffers())
    lent = {n: t for n, t in lent.items() if n in own and t.shape == own[n].shape}
    with torch.no_grad(), eval_mode(model):
        hooks = [one.register_forward_hook(_pass_by, with_kwargs=True) for one in gone]
        try:
            right = theirs(**inputs).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        found = torch.func.functional_call(ours, lent, kwargs=inputs)
    near = 1e-4 if right.dtype == torch.float32 else 1e-2
    gap = (found.last_hidden_state - right).abs().max() / right.abs().max()
    if gap <= near:
        return None
    return f"what it says differs by {float(gap):.1%} from the model without the others"


def _trouble_in_writing(student: Any) -> str | None:
    """Why a model cannot write with its cache: some need a layer of a certain kind."""
    from transformers import GenerationConfig

    ids = torch.tensor([[5, 6, 7]], device=student.device)
    plain = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    try:
        student.generate(ids, plain, attention_mask=torch.ones_like(ids))
    except Exception as error:  # whatever a cache makes of such layers
        return f"it cannot write with its cache: {type(error).__name__}: {error}"
    return None


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Kinds and plain attributes of a layer's modules, but not its number."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[f"{name} module".strip()] = type(module).__name__
        for key, value in vars(module).items():
            plain = isinstance(value, (bool, int, float, str, type(None)))
            other = key.startswith("_") or any(word in key for word in _NO_SETTINGS)
            if plain and not other:
                found[f"{name}.{key}".lstrip(".")] = value
    return found


def _pass_by(_: nn.Module, args: Any, options: Any, output: Any) -> Any:
    hidden = args[0] if args else options["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
