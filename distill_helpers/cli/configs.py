"""One run of distillation as a dataclass: what the command line and a file fill in.

``distill cache``, ``train``, ``evaluate`` and ``plan`` take their options from here; a
``--config`` file in JSON or YAML holds the same names.

Taught in notebook 04, used whole in the capstone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


def _option(default: Any, text: str, *, least: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "least": least})


@dataclass
class Options:
    """Checks types and ranges of all fields, wherever the values come from."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            is_whole = kind is float and type(value) is int
            if type(value) is not kind and not is_whole:
                raise ValueError(
                    f"{one.name}={value!r} must be of type {kind.__name__}"
                )
            least = one.metadata["least"]
            if least is not None and not value >= least:
                raise ValueError(f"{one.name}={value} must be at least {least}")


@dataclass
class TextOptions(Options):
    """Which text, and how it becomes rows."""

    text: str = _option(
        "austen", "austen, glosses, or a .txt or .jsonl file of your own"
    )
    split: str = _option("train", "of a bundled text: train, validation or test")
    length: int = _option(64, "tokens of a row", least=2)
    rows: int = _option(0, "use so many rows, drawn by the seed; 0 takes all", least=0)
    seed: int = _option(0, "of everything that is drawn")
    profile: str = _option("auto", "auto, smoke, cpu or gpu: device and precision")


@dataclass
class TeacherOptions(Options):
    """Who teaches."""

    teacher: str = _option(
        "packaged",
        "packaged (SmolLM2; on a GPU the profile's own), tiny-prose, tiny-sums, a "
        "folder or a name on the hub",
    )
    temperature: float = _option(1.0, "of the softmax in the soft labels")
    bits: int = _option(0, "round a teacher that is only read to 8 or 4; 0: whole")


@dataclass
class CacheOptions(TextOptions, TeacherOptions):
    """distill cache: store a teacher's soft labels once, train from them often."""

    output: str = _option("build/cache", "folder of the cache; a second call resumes")
    scheme: str = _option(
        "",
        "full, top_k, tail_bucket, sampled or hybrid; empty: hybrid (under 100 bytes a "
        "token), or tail_bucket from a server",
    )
    top_k: int = _option(8, "likeliest tokens kept exactly")
    samples: int = _option(24, "tokens drawn from the rest")
    batch_size: int = _option(8, "rows per forward pass", least=1)
    server: str = _option(
        "",
        "let a served teacher read the rows: address of a server that gives "
        "prompt_logprobs (vLLM), up to /v1; --teacher then names its tokenizer",
    )
    served_name: str = _option(
        "", "the model's name on the server; empty: that of --teacher"
    )
    max_total_tokens: int = _option(
        0, "the most tokens that a served teacher may read; 0 sets no limit", least=0
    )
    part: str = _option(
        "",
        "write one part of several, such as 3/16 (0/16 to 15/16), to be merged later; "
        "processes of accelerate launch divide the rows by themselves",
    )
    merge: bool = _option(
        False, "write nothing: check the parts in the folder, and join them"
    )


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
    told: str = _option(
        "",
        "a .jsonl file with the same --answers, line by line, behind the prompts that "
        "the teacher reads: soft labels of answers (train soft), in pieces unless "
        "--cross says otherwise; one to a row",
    )
    data: str = _option(
        "",
        "a .jsonl file of conversations (messages), of which the assistant's turns are "
        "learned instead of a text; several are packed into rows of this length",
    )
    split_turns: bool = _option(
        False,
        "of --data: a row of its own for a turn that cannot share one with those "
        "before it, as where a chat template drops earlier thoughts",
    )
    adapters: int = _option(
        0,
        "rank of adapters (LoRA), which then learn in place of the student's own "
        "weights; checkpoints hold them alone, the output the merged model; 0: none",
        least=0,
    )
    plain_prompts: bool = _option(
        False, "the student reads prompts as they are, without a chat template"
    )
    output: str = _option("build/student", "folder of checkpoints and the model")
    alpha: float = _option(1.0, "weight of the soft term; the rest goes to the labels")
    divergence: str = _option("forward_kl", "forward_kl, reverse_kl or jsd")
    cross: str = _option(
        "",
        "shared, pieces, chunks, words, mapped or sorted: learn from a teacher with "
        "another tokenizer than the student's (train soft); with chunks and words, "
        "take a temperature of 10 to 100",
    )
    steps: int = _option(300, "optimizer steps", least=1)
    save_steps: int = _option(
        0, "steps between checkpoints; 0: a fifth of them", least=0
    )
    learning_rate: float = _option(
        0.0,
        "peak; 0: 8e-3 for a fresh student, 2e-4 for any other, 1e-3 for adapters",
        least=0,
    )
    batch_size: int = _option(16, "rows per step and process", least=1)
    gradient_accumulation_steps: int = _option(1, "micro-batches per step", least=1)
    weight_decay: float = _option(0.1, "of AdamW", least=0)
    optim: str = _option("adamw_torch", "any optimizer of TrainingArguments")
    max_grad_norm: float = _option(
        1.0, "clip gradients to this; 0 does not clip", least=0
    )
    mixed_precision: bool = _option(True, "where the profile has a half precision")


@dataclass
class EvaluateOptions(TextOptions):
    """distill evaluate: NLL, bits per byte, and how near it is to its teacher."""

    model: str = _option(
        "build/student", "a folder, a name on the hub, or one that --teacher knows"
    )
    split: str = _option("test", "of a bundled text: train, validation or test")
    bits: int = _option(0, "judge the model rounded to 8 or 4; 0: whole")
    teacher: str = _option("", "compare distributions with it; see distill train")
    answers: str = _option(
        "",
        "a .jsonl file of prompts with right answers: counts those it gives, instead "
        "of reading a text",
    )


@dataclass
class ExportOptions(Options):
    """distill export: one GGUF file that llama.cpp, Ollama and LM Studio serve."""

    model: str = _option(
        "build/student", "a folder, a name on the hub, or one that --teacher knows"
    )
    output: str = _option("build/student.gguf", "the file; one of that name goes")
    precision: str = _option("f16", "f16, q8_0 (about half of it) or f32")
    name: str = _option("", "what programs call the model; default: the file's name")


@dataclass
class PlanOptions(Options):
    """distill plan: memory, time, money and storage, before anything is loaded."""

    profile: str = _option("auto", "auto, smoke, cpu or gpu: its teacher and student")
    teacher: str = _option("", "instead of the profile's; see distill train")
    student: str = _option("", "likewise")
    bits: int = _option(0, "of a teacher that is rounded to 8 or 4; 0: whole")
    device: str = _option(
        "",
        "cpu, T4, L4, A100 or H100; default: what the profile runs on here, or a T4 "
        "for gpu",
    )
    method: str = _option(
        "soft", "soft, hard, stored, codistillation or adapters_off (with --adapters)"
    )
    adapters: int = _option(
        0, "rank of the student's adapters, which alone learn; 0: none", least=0
    )
    batch_size: int = _option(4, "rows of a micro-batch", least=1)
    length: int = _option(512, "tokens of a row", least=2)
    steps: int = _option(1000, "optimizer steps", least=1)
    gradient_accumulation_steps: int = _option(1, "micro-batches per step", least=1)
    fused: bool = _option(True, "never hold all logits")
    optim: str = _option("adamw_torch_fused", "any optimizer of TrainingArguments")
    gradient_checkpointing: bool = _option(False, "compute activations twice")
    mixed_precision: bool = _option(True, "where the device has a half precision")
    packed: bool = _option(False, "rows hold several examples")


def read_config(path: Path, kind: type[Options]) -> dict[str, Any]:
    """Read the options in a JSON or YAML file.

    Args:
        path: The file; it ends in ``.json``, ``.yaml`` or ``.yml``.
        kind: The dataclass that they are for.

    Raises:
        ValueError: If the file cannot be read, or holds a name that ``kind`` lacks.
    """
    import yaml

    from distill_helpers.data import read_utf8

    if not path.is_file():
        raise ValueError(f"config={str(path)!r} does not exist")
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        ".json": ("JSON", json.loads),
        ".yaml": ("YAML", yaml.safe_load),
        ".yml": ("YAML", yaml.safe_load),
    }
    if path.suffix not in readers:
        raise ValueError(f"config={str(path)!r} must end in .json, .yaml or .yml")
    language, read = readers[path.suffix]
    try:
        found = read(read_utf8(path))
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {language}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold names and values")
    known = {one.name for one in fields(kind)}
    if unknown := sorted(found.keys() - known):
        command = kind.__name__.removesuffix("Options").lower()
        raise ValueError(
            f"{path} holds {', '.join(unknown)}, which {command} does not know; it "
            f"knows {', '.join(sorted(known))}"
        )
    return found


def write_config(options: Options, path: str | Path) -> Path:
    """Write options as a JSON file that ``--config`` reads; return its path.

    Args:
        options: One of the dataclasses above.
        path: The file, which ends in ``.json``.

    Taught in notebook 13.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"path={str(path)!r} must end in .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(options), indent=2) + "\n", encoding="utf-8")
    return path
