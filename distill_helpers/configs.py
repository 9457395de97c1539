"""One run of distillation as a dataclass: what the command line and a file fill in.

``distill cache``, ``distill train`` and ``distill evaluate`` take their options from
here, through transformers' ``HfArgumentParser``; a ``--config`` file in JSON or YAML
holds the same names. Taught in notebook 03, used whole in the capstone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError, austen, glosses, load_corpus, pack
from distill_helpers.models import (
    Loaded,
    build_student,
    load_model,
    load_teacher,
    load_tiny_teacher,
    prune_layers,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill_helpers.profiles import Profile


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TextOptions:
    """Which text, and how it becomes rows."""

    text: str = _option(
        "austen", "austen, glosses, or a .txt or .jsonl file of your own"
    )
    split: str = _option("train", "of the austen text: train, validation or test")
    length: int = _option(64, "tokens of a row")
    rows: int = _option(0, "use so many rows, drawn by the seed; 0 takes all")
    seed: int = _option(0, "of everything that is drawn")
    profile: str = _option("auto", "auto, smoke, cpu or gpu: device and precision")


@dataclass
class TeacherOptions:
    """Who teaches."""

    teacher: str = _option(
        "packaged",
        "packaged (SmolLM2; on a GPU the profile's own), tiny-prose, tiny-sums, a "
        "folder or a name on the hub",
    )
    temperature: float = _option(1.0, "of the softmax in the soft labels")


@dataclass
class CacheOptions(TextOptions, TeacherOptions):
    """distill cache: store a teacher's soft labels once, train from them often."""

    output: str = _option("build/cache", "folder of the cache; a second call resumes")
    scheme: str = _option(
        "hybrid",
        "full, top_k, tail_bucket, sampled or hybrid (under 100 bytes a token)",
    )
    top_k: int = _option(8, "likeliest tokens kept exactly")
    samples: int = _option(24, "tokens drawn from the rest")
    batch_size: int = _option(8, "rows per forward pass")


@dataclass
class TrainOptions(TextOptions, TeacherOptions):
    """distill train soft|hard: train a student; a second call resumes."""

    student: str = _option(
        "fresh:2x96",
        "fresh:LAYERSxWIDTH, pruned:LAYERS (the teacher without its middle), a folder "
        "or a name on the hub",
    )
    cache: str = _option("", "soft labels from this cache instead of a live teacher")
    output: str = _option("build/student", "folder of checkpoints and the model")
    alpha: float = _option(1.0, "weight of the soft term; the rest goes to the labels")
    divergence: str = _option("forward_kl", "forward_kl, reverse_kl or jsd")
    steps: int = _option(300, "optimizer steps")
    learning_rate: float = _option(8e-3, "peak; large for fresh tiny models")
    batch_size: int = _option(16, "rows per step and process")
    gradient_accumulation_steps: int = _option(1, "micro-batches per step")
    weight_decay: float = _option(0.1, "of AdamW")
    optim: str = _option("adamw_torch", "any optimizer of TrainingArguments")
    max_grad_norm: float = _option(1.0, "clip gradients to this; 0 does not clip")
    mixed_precision: bool = _option(True, "where the profile has a half precision")


@dataclass
class EvaluateOptions(TextOptions):
    """distill evaluate: NLL, bits per byte, and how near it is to its teacher."""

    model: str = _option("build/student", "a folder or a name on the hub")
    split: str = _option("test", "of the austen text: train, validation or test")
    teacher: str = _option("", "compare distributions with it; see distill train")


@dataclass
class PlanOptions:
    """distill plan: memory, time, money and storage, before anything is loaded."""

    profile: str = _option("auto", "auto, smoke, cpu or gpu: its teacher and student")
    teacher: str = _option("", "instead of the profile's: a folder or a hub name")
    student: str = _option("", "likewise")
    device: str = _option(
        "", "cpu, T4, L4, A100 or H100; default: this machine, or a T4 for gpu"
    )
    method: str = _option("soft", "soft, hard, stored or codistillation")
    batch_size: int = _option(4, "rows of a micro-batch")
    length: int = _option(512, "tokens of a row")
    steps: int = _option(1000, "optimizer steps")
    gradient_accumulation_steps: int = _option(1, "micro-batches per step")
    fused: bool = _option(True, "never hold all logits")
    optim: str = _option("adamw_torch_fused", "any optimizer of TrainingArguments")
    gradient_checkpointing: bool = _option(False, "compute activations twice")
    mixed_precision: bool = _option(True, "where the device has a half precision")
    packed: bool = _option(False, "rows hold several examples")


def read_config(path: Path) -> dict[str, Any]:
    """The options in a JSON or YAML file."""
    if not path.is_file():
        raise ValueError(f"config={str(path)!r} does not exist")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from None
    else:
        raise ValueError(f"config={str(path)!r} must end in .json, .yaml or .yml")
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold names and values")
    return found


def resolve_teacher(name: str, profile: Profile) -> Loaded:
    """The teacher that an option names, frozen, on the profile's device."""
    if name == "packaged":
        return load_teacher(profile)
    if name.startswith("tiny-"):
        return load_tiny_teacher(name.removeprefix("tiny-"), device=profile.device)
    return load_model(
        name, dtype=profile.teacher_dtype, device=profile.device, frozen=True
    )


def resolve_student(
    name: str, teacher: Loaded, profile: Profile, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The student that an option names, trainable, with its tokenizer."""
    kind, _, size = name.partition(":")
    if kind == "fresh":
        layers, _, width = size.partition("x")
        if not (layers.isdigit() and width.isdigit()):
            raise ValueError(f"student={name!r} must look like fresh:2x96")
        student = build_student(
            teacher.tokenizer, layers=int(layers), width=int(width), seed=seed
        )
    elif kind == "pruned":
        there = teacher.model.config.num_hidden_layers
        if not size.isdigit() or not 2 <= int(size) <= there:
            raise ValueError(
                f"student={name!r} must look like pruned:20, with 2 to {there} layers"
            )
        front = (int(size) + 1) // 2
        back = there - (int(size) - front)
        student = prune_layers(teacher.model, [*range(front), *range(back, there)])
    else:
        return load_model(name, device=profile.device)
    student.to(profile.device)  # type: ignore[arg-type]
    return student, teacher.tokenizer


def load_rows(options: TextOptions, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Packed rows of the text that the options name."""
    if options.text == "austen":
        texts: Any = austen(options.split)
    elif options.text == "glosses":
        texts = [f"{row['word']}: {row['gloss']}." for row in glosses()]
    else:
        texts = load_corpus(options.text)
    rows = pack(texts, tokenizer, options.length)
    if not options.rows:
        return rows
    if options.rows > len(rows):
        raise DataError(
            f"rows={options.rows}, but {options.text} gives {len(rows)} rows of "
            f"{options.length} tokens; ask for fewer, or shorter ones"
        )
    return rows.shuffle(seed=options.seed).select(range(options.rows))
