"""One run of distillation as a dataclass: what the command line and a file fill in.

``distill cache``, ``distill train`` and ``distill evaluate`` take their options from
here, through transformers' ``HfArgumentParser``; a ``--config`` file in JSON or YAML
holds the same names. Taught in notebook 03, used whole in the capstone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers import limits
from distill_helpers.data import (
    DataError,
    austen,
    data_folder,
    load_corpus,
    pack,
    pack_examples,
    read_utf8,
)
from distill_helpers.gloss_task import glosses_of
from distill_helpers.hard_labels import learn_answers
from distill_helpers.heads import isolates_examples
from distill_helpers.models import (
    Loaded,
    ModelError,
    build_student,
    config_of_kept,
    load_model,
    load_teacher,
    load_tiny_teacher,
    prune_layers,
    public_name,
    student_config,
)
from distill_helpers.profiles import get_profile
from distill_helpers.questions import read_questions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from distill_helpers.profiles import Profile
    from distill_helpers.trainers import DistillationTrainer

_RUN = "training_run.json"
_LOGGER = logging.getLogger(__name__)
# Where no learning rate is given. What a pretrained student knows does not survive
# steps that suit a small fresh one.
_FRESH_RATE, _PRETRAINED_RATE = 8e-3, 2e-4
# Other names that begin alike are folders, or names on the hub.
_TINY = {"tiny-prose": "prose", "tiny-sums": "sums"}
# HfArgumentParser hands all metadata on to argparse, so it cannot stand there.
_LEAST = {
    "length": 2,
    "rows": 0,
    "steps": 1,
    "save_steps": 0,
    "learning_rate": 0,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class _Options:
    """Types and ranges of all fields, wherever the values come from."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            is_whole = kind is float and type(value) is int
            if type(value) is not kind and not is_whole:
                raise ValueError(
                    f"{one.name}={value!r} must be of type {kind.__name__}"
                )
            least = _LEAST.get(one.name)
            if least is not None and not value >= least:
                raise ValueError(f"{one.name}={value} must be at least {least}")


@dataclass
class TextOptions(_Options):
    """Which text, and how it becomes rows."""

    text: str = _option(
        "austen", "austen, glosses, or a .txt or .jsonl file of your own"
    )
    split: str = _option("train", "of a bundled text: train, validation or test")
    length: int = _option(64, "tokens of a row")
    rows: int = _option(0, "use so many rows, drawn by the seed; 0 takes all")
    seed: int = _option(0, "of everything that is drawn")
    profile: str = _option("auto", "auto, smoke, cpu or gpu: device and precision")


@dataclass
class TeacherOptions(_Options):
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
    cache: str = _option(
        "",
        "soft labels from this cache instead of a live teacher, who is then needed "
        "only for a fresh or pruned student",
    )
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
    learning_rate: float = _option(
        0.0, "peak; 0: 8e-3 for a fresh student, 2e-4 for any other"
    )
    batch_size: int = _option(16, "rows per step and process")
    gradient_accumulation_steps: int = _option(1, "micro-batches per step")
    weight_decay: float = _option(0.1, "of AdamW")
    optim: str = _option("adamw_torch", "any optimizer of TrainingArguments")
    max_grad_norm: float = _option(1.0, "clip gradients to this; 0 does not clip")
    mixed_precision: bool = _option(True, "where the profile has a half precision")


@dataclass
class EvaluateOptions(TextOptions):
    """distill evaluate: NLL, bits per byte, and how near it is to its teacher."""

    model: str = _option(
        "build/student", "a folder, a name on the hub, or one that --teacher knows"
    )
    split: str = _option("test", "of a bundled text: train, validation or test")
    teacher: str = _option("", "compare distributions with it; see distill train")
    answers: str = _option(
        "",
        "a .jsonl file of prompts with right answers: counts those it gives, instead "
        "of reading a text",
    )


@dataclass
class PlanOptions(_Options):
    """distill plan: memory, time, money and storage, before anything is loaded."""

    profile: str = _option("auto", "auto, smoke, cpu or gpu: its teacher and student")
    teacher: str = _option("", "instead of the profile's; see distill train")
    student: str = _option("", "likewise")
    device: str = _option(
        "",
        "cpu, T4, L4, A100 or H100; default: what the profile runs on here, or a T4 "
        "for gpu",
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
    text = read_utf8(path)
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
    if name in _TINY:
        return load_tiny_teacher(_TINY[name], device=profile.device)
    return _load(name, dtype=profile.teacher_dtype, device=profile.device, frozen=True)


def _load(name: str, **options: Any) -> Loaded:
    try:
        return load_model(name, **options)
    except OSError as error:
        raise ModelError(
            f"{name!r} is no folder with a model and its tokenizer, and the hub gives "
            f"none of that name: {str(error).splitlines()[0]}"
        ) from error


def resolve_student(
    name: str, teacher: Loaded, profile: Profile, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The student that an option names, trainable, with its tokenizer."""
    kind = name.partition(":")[0]
    if kind == "fresh":
        student = build_student(teacher.tokenizer, **_fresh_size(name), seed=seed)
    elif kind == "pruned":
        student = prune_layers(teacher.model, _kept_of(name, teacher.model.config))
    else:
        return _load(name, device=profile.device)
    student.to(profile.device)  # type: ignore[arg-type]
    return student, teacher.tokenizer


def _fresh_size(name: str) -> dict[str, int]:
    layers, _, width = name.partition(":")[2].partition("x")
    if not (layers.isdigit() and width.isdigit()):
        raise ValueError(f"student={name!r} must look like fresh:2x96")
    return {"layers": int(layers), "width": int(width)}


def _kept_of(name: str, teacher: Any) -> list[int]:
    """The layers that ``pruned:20`` keeps: the first and the last ones."""
    size = name.partition(":")[2]
    there = teacher.get_text_config().num_hidden_layers
    if not size.isdigit() or not 2 <= int(size) <= there:
        raise ValueError(
            f"student={name!r} must look like pruned:20, with 2 to {there} layers"
        )
    front = (int(size) + 1) // 2
    return [*range(front), *range(there - int(size) + front, there)]


def planned_models(options: PlanOptions, profile: Profile) -> tuple[Any, Any]:
    """What ``plan`` takes for the teacher and the student that options name.

    Only configurations are read, and no model is loaded. The vocabulary of a fresh
    student is that of the teacher's output head, which may have some rows more than the
    tokenizer has tokens.
    """
    from distill_helpers.planning import config_of, models_of

    teacher, student = models_of(profile)
    if options.teacher in _TINY:
        teacher = config_of(data_folder(f"tiny_{_TINY[options.teacher]}"))
    elif options.teacher not in ("", "packaged"):
        teacher = config_of(options.teacher)
    kind = options.student.partition(":")[0]
    if kind == "pruned":
        kept = _kept_of(options.student, teacher)
        count = teacher.get_text_config().num_hidden_layers
        student = config_of_kept(teacher, kept, count)
    elif kind == "fresh":
        vocabulary = teacher.get_text_config().vocab_size
        student = student_config(vocabulary, **_fresh_size(options.student))
    elif options.student:
        student = config_of(options.student)
    return teacher, student


def load_rows(options: TextOptions, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Packed rows of the text that the options name."""
    if options.text == "austen":
        texts: Any = austen(options.split)
    elif options.text == "glosses":
        texts = [f"{one.word}: {one.gloss}." for one in glosses_of(options.split)]
    elif options.split != type(options).split:
        raise ValueError(
            f"split={options.split!r} is of the bundled texts alone; keep a part of "
            f"{options.text} in a file of its own"
        )
    else:
        texts = load_corpus(options.text)
    return _some(pack(texts, tokenizer, options.length), options, options.text)


def load_answers(
    options: TrainOptions, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel
) -> Dataset:
    """Rows of the answers that the options name, with masked prompts.

    Several to a row where the student can tell them apart, else one.
    """
    labels = read_questions(options.answers)
    rows = learn_answers(labels, tokenizer, max_length=options.length)
    batch = torch.tensor([rows[0]["input_ids"]] * options.batch_size)
    if isolates_examples(student, batch):
        rows = pack_examples(rows, options.length)
    else:
        _LOGGER.warning(
            "%s: answers go one to a row, which takes more padding, for a %s would let "
            "those that share a row read one another",
            options.answers,
            type(student).__name__,
        )
    return _some(rows, options, options.answers)


def _some(rows: Dataset, options: TextOptions, source: str) -> Dataset:
    if not options.rows:
        return rows
    if options.rows > len(rows):
        raise DataError(
            f"rows={options.rows}, but {source} gives {len(rows)} rows of "
            f"{options.length} tokens; ask for fewer, or shorter ones"
        )
    return rows.shuffle(seed=options.seed).select(range(options.rows))


def check_length(options: TextOptions, *models: PreTrainedModel) -> None:
    """Refuse rows that are longer than what a model can tell positions in.

    Also where it computes its positions, which :func:`limits.check_length` lets pass
    with a warning: nobody reads a warning before a run of hours.
    """
    for model in models:
        most = getattr(limits.text_config(model), "max_position_embeddings", None)
        if most is not None and options.length > most:
            raise ValueError(
                f"length={options.length}, but {public_name(model)} has learned no "
                f"more than {most} positions; take shorter rows"
            )


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
    checkpoint in ``options.output``, or starts. ``distill train`` does the same. More
    ``steps`` continue a finished run; another change is another run, and refused.

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
    _take_own_gpu(profile)
    made_of_teacher = options.student.partition(":")[0] in ("fresh", "pruned")
    if (kind == "hard" or options.cache) and not made_of_teacher:
        # What it says is there already: a large teacher need not be loaded.
        student, tokenizer = _load(options.student, device=profile.device)
    else:
        teacher = teacher or resolve_teacher(options.teacher, profile)
        student, tokenizer = resolve_student(
            options.student, teacher, profile, seed=options.seed
        )
    if options.plain_prompts:
        tokenizer = copy.deepcopy(tokenizer)  # the teacher keeps its template
        tokenizer.chat_template = None
    check_length(options, student, *([teacher.model] if teacher else []))
    if options.answers:
        rows = load_answers(options, tokenizer, student)
    else:
        rows = load_rows(options, tokenizer)
    rate = options.learning_rate
    if not rate:
        is_fresh = options.student.startswith("fresh:")
        rate = _FRESH_RATE if is_fresh else _PRETRAINED_RATE
    saving = {"save_steps": options.save_steps} if options.save_steps else {}
    common: dict[str, Any] = {
        "args": training_arguments(
            profile,
            steps=options.steps,
            learning_rate=rate,
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
        "train_dataset": rows,
        "tokenizer": tokenizer,
        "callbacks": list(callbacks),
    }
    named = ["seed", "weight_decay", "optim", "max_grad_norm"]
    if kind == "soft":
        named += ["temperature", "alpha", "divergence"]
    facts = {
        "kind": kind,
        "student": options.student,
        "hash of the rows": _data_hash(rows),
        "learning_rate": rate,
        "rows of a step": options.batch_size * options.gradient_accumulation_steps,
        **{name: getattr(options, name) for name in named},
    }
    if made_of_teacher or (kind == "soft" and not options.cache):
        packaged = options.teacher == "packaged"
        facts["teacher"] = profile.teacher if packaged else options.teacher
    store = None
    if options.cache:
        store = SoftLabelCache.open(options.cache, tokenizer=tokenizer, dataset=rows)
        facts["cache"] = {name: store.header[name] for name in ("teacher", "scheme")}
    _keep_apart(options.output, facts)
    if kind == "hard":
        return HardLabelTrainer(student, **common)
    lesson: Any = store
    if lesson is None:
        assert teacher is not None
        lesson = teacher.model
    return SoftLabelTrainer(
        student,
        teacher=lesson,
        teacher_tokenizer=None if teacher is None else teacher.tokenizer,
        temperature=options.temperature,
        alpha=options.alpha,
        divergence=options.divergence,
        **common,
    )


def _take_own_gpu(profile: Profile) -> None:
    """Where each of several processes has a GPU, let "cuda" mean this process's own.

    The trainer says so too, but only after all have loaded their models onto the first.
    """
    rank = os.environ.get("LOCAL_RANK")
    if profile.device == "cuda" and rank is not None:
        # As accelerate counts them.
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())


def _data_hash(rows: Dataset) -> str:
    """Of what is learned, in order: not of files' names, which may change."""
    digest = hashlib.blake2b(digest_size=8)
    columns = rows.with_format("numpy")
    for name in ("input_ids", "labels"):
        if name in rows.column_names:
            for row in columns[name]:
                digest.update(row.astype("<i8").tobytes())
    return digest.hexdigest()


def _keep_apart(output: str, facts: dict[str, Any]) -> None:
    """Refuse a folder whose checkpoints are of another run; else note whose they are.

    A run of more steps is the same run, and goes on.
    """
    from distill_helpers.trainers import last_complete_checkpoint

    file = Path(output) / _RUN
    facts = json.loads(json.dumps(facts))
    if last_complete_checkpoint(output) is None:
        if os.environ.get("RANK", "0") == "0":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return
    if not file.is_file():  # of somebody's own trainer
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    for name in dict.fromkeys([*facts, *there]):
        if there.get(name) != facts.get(name):
            raise ValueError(
                f"output={output!r} holds a run with {name}={there.get(name)!r}, and "
                f"now it is {facts.get(name)!r}; choose another output, or delete "
                "that folder"
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
