"""From the options of a run to its models, rows and trainer.

Taught in notebook 13.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_helpers.cli.configs import (
    CacheOptions,
    PlanOptions,
    TextOptions,
    TrainOptions,
)
from distill_helpers.data import (
    DataError,
    align_rows,
    align_tokenizers,
    load_corpus,
    pack,
    pack_examples,
)
from distill_helpers.labels import (
    ApiTeacher,
    LocalTeacher,
    ServedTeacher,
    SoftLabelCache,
    learn_answers,
    learn_conversations,
    read_conversations,
)
from distill_helpers.labels.api import API
from distill_helpers.machine import get_profile
from distill_helpers.models import (
    Loaded,
    ModelError,
    add_adapters,
    build_student,
    config_of_kept,
    isolates_examples,
    limits,
    load_model,
    prune_layers,
    public_name,
    student_config,
)
from distill_helpers.planning import config_of, models_of
from distill_helpers.tasks.bundled import data_folder
from distill_helpers.tasks.glosses import glosses_of
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.questions import read_questions
from distill_helpers.tasks.teachers import (
    load_teacher,
    load_tiny_teacher,
    prepare_packaged_teacher,
)
from distill_helpers.trainers import (
    HardLabelTrainer,
    SoftLabelTrainer,
    last_complete_checkpoint,
    training_arguments,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from distill_helpers.labels import Teacher
    from distill_helpers.machine import Profile
    from distill_helpers.trainers import DistillationTrainer

_RUN = "training_run.json"
_LOGGER = logging.getLogger(__name__)
# Where no learning rate is given. What a pretrained student knows does not survive
# steps that suit a small fresh one.
_FRESH_RATE, _PRETRAINED_RATE = 8e-3, 2e-4
_ADAPTERS_RATE = 1e-3
# Other names that begin alike are folders, or names on the hub.
_TINY = {"tiny-prose": "prose", "tiny-sums": "sums"}


def resolve_teacher(name: str, profile: Profile, *, bits: int = 0) -> Loaded:
    """Load the teacher that an option names, frozen, onto the profile's device.

    Args:
        name: ``packaged``, ``tiny-prose``, ``tiny-sums``, a folder, or a name on the
            hub.
        profile: Its device and dtype; it also says what ``packaged`` means.
        bits: 8 or 4 rounds it, see :func:`~distill_helpers.models.load_model`; in 4
            bits, it computes in bf16. 0 does not.

    Raises:
        ModelError: If there is no model of that name.
        ValueError: If the machine cannot do the bits.
    """
    if bits:
        dtype = torch.bfloat16 if bits == 4 else profile.teacher_dtype
        where = {"dtype": dtype, "device": profile.device}
        return _load(_source(name, profile), bits=bits, frozen=True, **where)
    if name == "packaged":
        return load_teacher(profile)
    if name in _TINY:
        return load_tiny_teacher(_TINY[name], device=profile.device)
    return _load(name, dtype=profile.teacher_dtype, device=profile.device, frozen=True)


def _source(name: str, profile: Profile) -> str:
    """The folder, or the name on the hub, that a teacher's name stands for."""
    if name == "packaged":
        packaged = profile.teacher == "packaged"
        return str(prepare_packaged_teacher()) if packaged else profile.teacher
    return str(data_folder(f"tiny_{_TINY[name]}")) if name in _TINY else name


def resolve_writer(
    name: str, profile: Profile, *, licence: str = "", loaded: Loaded | None = None
) -> Teacher:
    """Make of a teacher's name somebody who answers, for ``write_labels``.

    Args:
        name: What :func:`resolve_teacher` takes, or ``api:MODEL@URL``: a chat model
            behind an OpenAI-compatible API, such as
            ``api:small@http://127.0.0.1:8080/v1``. Without ``@URL`` it is the
            client's default. The key comes from the environment.
        profile: Where a model is loaded.
        licence: What may be done with the answers, in your words; stored with each.
        loaded: The teacher that the name names, if it is loaded already.

    Raises:
        ModelError: If there is no model of that name.
        ValueError: If nothing stands between ``api:`` and ``@``.

    Taught in notebook 13.
    """
    if not name.startswith(API):
        return LocalTeacher(
            *(loaded or resolve_teacher(name, profile)), licence=licence
        )
    model, _, url = name.removeprefix(API).partition("@")
    if not model:
        raise ValueError(f"teacher={name!r} must look like api:MODEL@URL")
    return ApiTeacher(model, url or None, licence=licence)


def resolve_served(options: CacheOptions) -> ServedTeacher:
    """Make a teacher of the server that options name, with its tokenizer.

    Only the tokenizer is loaded here; the key comes from the environment.

    Raises:
        ModelError: If there is no tokenizer of the teacher's name.
    """
    from transformers import AutoTokenizer

    name = options.teacher
    source = _source(name, get_profile(options.profile))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"teacher={name!r} is no folder with a tokenizer, and the hub gives "
            f"none of that name: {str(error).splitlines()[0]}; name the served "
            "model's tokenizer, and in served_name what the server calls it"
        ) from error
    return ServedTeacher(
        options.served_name or name,
        options.server,
        tokenizer=tokenizer,
        top_k=options.top_k,
    )


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
    """Load or make the student that an option names, trainable, with its tokenizer.

    Args:
        name: ``fresh:LAYERSxWIDTH``, ``pruned:LAYERS``, a folder, or a name on the hub.
        teacher: What a pruned student is made of; a fresh one takes its tokenizer.
        profile: Where the student is put.
        seed: Draws the weights of a fresh student.

    Raises:
        ValueError: If the name has not that form, or the teacher too few layers.
    """
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
    """Return what ``plan`` takes for the teacher and the student that options name.

    Only configurations are read, and no model is loaded. The vocabulary of a fresh
    student is that of the teacher's output head, which may have some rows more than the
    tokenizer has tokens.
    """
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
    """Pack the text that the options name into rows."""
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
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase,
    *readers: PreTrainedModel,
) -> Dataset:
    """Make rows of the answers or the conversations that the options name.

    Several to a row where all ``readers`` can tell them apart, else one; and one for a
    teacher with another tokenizer, whose rows are aligned.
    """
    if options.data:
        rows = learn_conversations(
            read_conversations(options.data),
            tokenizer,
            max_length=options.length,
            split_turns=options.split_turns,
        )
    else:
        labels = read_questions(options.answers)
        rows = learn_answers(labels, tokenizer, max_length=options.length)
    source = options.data or options.answers
    if options.cross:
        return _some(rows, options, source)
    batch = torch.tensor([rows[0]["input_ids"]] * options.batch_size)
    mixing = [model for model in readers if not isolates_examples(model, batch)]
    if not mixing:
        rows = pack_examples(rows, options.length)
    else:
        _LOGGER.warning(
            "%s: answers go one to a row, which takes more padding, for a %s would let "
            "those that share a row read one another",
            source,
            type(mixing[0]).__name__,
        )
    return _some(rows, options, source)


def load_told(
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Make rows of answers, each also behind the prompt that the teacher reads.

    Raises:
        DataError: If the two files hold other answers, or no row is short enough.
    """
    labels, told = read_questions(options.answers), read_questions(options.told)
    if labels["answer"][:] != told["answer"][:]:
        raise DataError(
            f"told={options.told!r} must hold the answers of {options.answers}, line "
            "by line; only the prompts may differ"
        )
    whole = align_rows(
        learn_answers(labels, tokenizer),
        align_tokenizers(tokenizer, teacher_tokenizer),
        learn_answers(told, teacher_tokenizer),
    )
    rows = whole.filter(lambda row: len(row["input_ids"]) <= options.length)
    if len(rows) < len(whole):
        _LOGGER.warning(
            "%d of %d answers are longer than length=%d with their prompts, and are "
            "left out",
            len(whole) - len(rows),
            len(whole),
            options.length,
        )
    if not len(rows):
        raise DataError(f"length={options.length} is too small for {options.answers}")
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
        most = _positions(model)
        if most is not None and options.length > most:
            raise ValueError(
                f"length={options.length}, but {public_name(model)} has learned no "
                f"more than {most} positions; take shorter rows"
            )


def _positions(model: PreTrainedModel) -> int | None:
    found: int | None = getattr(
        limits.text_config(model), "max_position_embeddings", None
    )
    return found


def build_trainer(
    kind: str,
    options: TrainOptions,
    *,
    teacher: Loaded | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **overrides: Any,
) -> DistillationTrainer:
    """Make the run that the options describe, ready for ``train``.

    ``trainer.train(resume_from_checkpoint=True)`` goes on from the last complete
    checkpoint in ``options.output``, or starts. ``distill train`` does the same. More
    ``steps`` continue a finished run; another change is another run, and refused.

    Args:
        kind: ``"soft"`` or ``"hard"``.
        options: Names teacher, student, data and numbers.
        teacher: The teacher that the options name, if it is loaded already.
        callbacks: Callbacks that the trainer calls.
        overrides: Further fields of ``TrainingArguments``.

    Raises:
        ValueError: For options that do not go together, each with its remedy.

    Taught in notebook 13.
    """
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind={kind!r} must be 'soft' or 'hard'")
    if kind == "hard" and options.cache:
        raise ValueError("cache=… holds soft labels; use: distill train soft")
    if kind == "soft" and options.answers and not options.told:
        raise ValueError(
            "answers=… are hard labels; use: distill train hard. For soft labels of "
            "them, told=… holds the same answers behind the prompts that the teacher "
            "reads"
        )
    if options.told and (kind == "hard" or options.cache or not options.answers):
        raise ValueError(
            "told=… is for a live teacher's soft labels of answers=…; use: distill "
            "train soft, without cache=…"
        )
    if options.data and (options.answers or options.cache):
        raise ValueError(
            "data=… holds conversations, which are learned instead of answers=…, and "
            "no cache=… holds soft labels of them; leave one out"
        )
    if options.data and options.plain_prompts:
        raise ValueError(
            "conversations need the student's chat template; leave plain_prompts out"
        )
    if options.cross and (kind == "hard" or options.cache):
        raise ValueError(
            f"cross={options.cross!r} is for a live teacher's soft labels; use: "
            "distill train soft, without cache=…"
        )
    profile = get_profile(options.profile)
    take_own_gpu(profile)
    made_of_teacher = options.student.partition(":")[0] in ("fresh", "pruned")
    if (kind == "hard" or options.cache) and not made_of_teacher:
        # What it says is there already: a large teacher need not be loaded.
        student, tokenizer = _load(options.student, device=profile.device)
    else:
        teacher = teacher or resolve_teacher(
            options.teacher, profile, bits=options.bits
        )
        student, tokenizer = resolve_student(
            options.student, teacher, profile, seed=options.seed
        )
    if options.plain_prompts:
        tokenizer = copy.deepcopy(tokenizer)  # the teacher keeps its template
        tokenizer.chat_template = None
    check_length(options, student, *([teacher.model] if teacher else []))
    cross = options.cross
    if options.told:
        assert teacher is not None
        rows = load_told(options, tokenizer, teacher.tokenizer)
        longest = max(map(len, rows["teacher_input_ids"]))
        most = _positions(teacher.model)
        if most is not None and longest > most:
            raise ValueError(
                f"told={options.told!r} has a row of {longest} tokens for the teacher, "
                f"and {public_name(teacher.model)} has learned no more than {most} "
                "positions; tell it less, or leave long prompts out of both files"
            )
        cross = cross or "pieces"
    elif options.answers or options.data:
        readers = [teacher.model] if kind == "soft" and teacher else []
        rows = load_answers(options, tokenizer, student, *readers)
    else:
        rows = load_rows(options, tokenizer)
    if options.adapters:
        student = add_adapters(student, rank=options.adapters, seed=options.seed)
    rate = options.learning_rate
    if not rate:
        is_fresh = options.student.startswith("fresh:")
        rate = _FRESH_RATE if is_fresh else _PRETRAINED_RATE
        if options.adapters:
            rate = _ADAPTERS_RATE
    optimizing = _chosen(options, "seed", "weight_decay", "optim", "max_grad_norm")
    mixing = {}
    if kind == "soft":
        mixing = _chosen(options, "temperature", "alpha", "divergence")
    if cross:
        mixing["cross"] = cross
    saving = {"save_steps": options.save_steps} if options.save_steps else {}
    size = _chosen(options, "steps", "batch_size", "gradient_accumulation_steps")
    common: dict[str, Any] = {
        "args": training_arguments(
            profile,
            learning_rate=rate,
            output_dir=options.output,
            mixed_precision=options.mixed_precision,
            **size,
            **optimizing,
            **(saving | overrides),
        ),
        "train_dataset": rows,
        "tokenizer": tokenizer,
        "callbacks": list(callbacks),
    }
    facts = {
        "kind": kind,
        "student": options.student,
        "hash of the rows": _data_hash(rows),
        "learning_rate": rate,
        "rows of a step": options.batch_size * options.gradient_accumulation_steps,
        **optimizing,
        **mixing,
    }
    if options.adapters:
        facts["adapters"] = options.adapters
    if made_of_teacher or (kind == "soft" and not options.cache):
        packaged = options.teacher == "packaged"
        facts["teacher"] = profile.teacher if packaged else options.teacher
        if options.bits:
            facts["bits"] = options.bits
    store = None
    if options.cache:
        store = SoftLabelCache.open(options.cache, tokenizer=tokenizer, dataset=rows)
        facts["cache"] = {name: store.header[name] for name in ("teacher", "scheme")}
    _refuse_other_run(options.output, facts)
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
        **mixing,
        **common,
    )


def _chosen(options: TrainOptions, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def take_own_gpu(profile: Profile) -> None:
    """Where each of several processes has a GPU, let "cuda" mean this process's own.

    The trainer says so too, but only after all have loaded their models onto the first.
    """
    rank = os.environ.get("LOCAL_RANK")
    if profile.device == "cuda" and rank is not None:
        # As accelerate counts them.
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())


def _data_hash(rows: Dataset) -> str:
    """Hash what is learned, in order: not files' names, which may change."""
    digest = hashlib.blake2b(digest_size=8)
    columns = rows.with_format("numpy")
    for name in ("input_ids", "labels", "teacher_input_ids"):
        if name in rows.column_names:
            for row in columns[name]:
                digest.update(row.astype("<i8").tobytes())
    return digest.hexdigest()


def _refuse_other_run(output: str, facts: dict[str, Any]) -> None:
    """Refuse a folder whose checkpoints are of another run; else note whose they are.

    A run of more steps is the same run, and goes on.
    """
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
