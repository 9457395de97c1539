"""One run of distillation as a dataclass: what the command line and a file fill in.

``distill cache``, ``distill train`` and ``distill evaluate`` take their options from
here, through transformers' ``HfArgumentParser``; a ``--config`` file in JSON or YAML
holds the same names. Taught in notebook 03, used whole in the capstone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import (
    DataError,
    austen,
    glosses,
    load_corpus,
    pack,
    pack_examples,
)
from distill_helpers.hard_labels import learn_answers
from distill_helpers.models import (
    Loaded,
    build_student,
    load_model,
    load_teacher,
    load_tiny_teacher,
    prune_layers,
)
from distill_helpers.profiles import get_profile
from distill_helpers.questions import read_questions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from distill_helpers.profiles import Profile
    from distill_helpers.trainers import DistillationTrainer


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
    answers: str = _option(
        "",
        "a .jsonl file of prompts with a teacher's answers, learned instead of a text "
        "(train hard); several are packed into rows of this length",
    )
    plain_prompts: bool = _option(
        False, "the student reads prompts as they are, without a chat template"
    )
    output: str = _option("build/student", "folder of checkpoints and the model")
    alpha: float = _option(1.0, "weight of the soft term; the rest goes to the labels")
    divergence: str = _option("forward_kl", "forward_kl, reverse_kl or jsd")
    steps: int = _option(300, "optimizer steps")
    save_steps: int = _option(0, "steps between checkpoints; 0: a fifth of them")
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
    answers: str = _option(
        "", "a .jsonl file of prompts with right answers: counts those it gives"
    )


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
    return _some(pack(texts, tokenizer, options.length), options, options.text)


def load_answers(options: TrainOptions, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Packed rows of the answers that the options name, with masked prompts."""
    labels = read_questions(options.answers)
    rows = learn_answers(labels, tokenizer, max_length=options.length)
    return _some(pack_examples(rows, options.length), options, options.answers)


def _some(rows: Dataset, options: TextOptions, source: str) -> Dataset:
    if not options.rows:
        return rows
    if options.rows > len(rows):
        raise DataError(
            f"rows={options.rows}, but {source} gives {len(rows)} rows of "
            f"{options.length} tokens; ask for fewer, or shorter ones"
        )
    return rows.shuffle(seed=options.seed).select(range(options.rows))


def build_trainer(
    kind: str,
    options: TrainOptions,
    *,
    teacher: Loaded | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **overrides: Any,
) -> DistillationTrainer:
    """The run that the options describe, ready for ``train``.

    ``trainer.train(resume_from_checkpoint=True)`` goes on from the last complete
    checkpoint in ``options.output``, or starts. ``distill train`` does the same.

    Args:
        kind: ``"soft"`` or ``"hard"``.
        options: Names teacher, student, data and numbers.
        teacher: The one that the options name, if it is loaded already.
        callbacks: Of the trainer.
        overrides: Further fields of ``TrainingArguments``.

    Raises:
        ValueError: For options that do not go together, each with its remedy.

    Taught in notebook 10.
    """
    from distill_helpers.soft_label_cache import SoftLabelCache
    from distill_helpers.trainers import (
        HardLabelTrainer,
        SoftLabelTrainer,
        training_arguments,
    )

    if kind not in ("soft", "hard"):
        raise ValueError(f"kind={kind!r} must be 'soft' or 'hard'")
    if kind == "hard" and options.cache:
        raise ValueError("cache=… holds soft labels; use: distill train soft")
    if kind == "soft" and options.answers:
        raise ValueError("answers=… are hard labels; use: distill train hard")
    profile = get_profile(options.profile)
    made_of_teacher = options.student.partition(":")[0] in ("fresh", "pruned")
    if kind == "hard" and not made_of_teacher:
        # Its answers are there already: a large teacher need not be loaded.
        student, tokenizer = load_model(options.student, device=profile.device)
    else:
        teacher = teacher or resolve_teacher(options.teacher, profile)
        student, tokenizer = resolve_student(
            options.student, teacher, profile, seed=options.seed
        )
    if options.plain_prompts:
        tokenizer = copy.deepcopy(tokenizer)  # the teacher keeps its template
        tokenizer.chat_template = None
    load = load_answers if options.answers else load_rows
    saving = {"save_steps": options.save_steps} if options.save_steps else {}
    common: dict[str, Any] = {
        "args": training_arguments(
            profile,
            steps=options.steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            output_dir=options.output,
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            weight_decay=options.weight_decay,
            optim=options.optim,
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            **(saving | overrides),
        ),
        "train_dataset": load(options, tokenizer),
        "tokenizer": tokenizer,
        "callbacks": list(callbacks),
    }
    if kind == "hard":
        return HardLabelTrainer(student, **common)
    assert teacher is not None
    store = None
    if options.cache:
        store = SoftLabelCache.open(
            options.cache, tokenizer=tokenizer, dataset=common["train_dataset"]
        )
    return SoftLabelTrainer(
        student,
        teacher=teacher.model if store is None else store,
        teacher_tokenizer=teacher.tokenizer,
        temperature=options.temperature,
        alpha=options.alpha,
        divergence=options.divergence,
        **common,
    )


def write_config(options: Any, path: str | Path) -> Path:
    """Write options as a JSON file that ``--config`` reads; return its path.

    Args:
        options: One of the dataclasses above.
        path: Ends in ``.json``.

    Taught in notebook 10.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"path={str(path)!r} must end in .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(options), indent=2) + "\n", encoding="utf-8")
    return path
