"""The subcommands of ``distill``, their parser, and how they end."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from distill_helpers.cli.configs import (
    CacheOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PlanOptions,
    TrainOptions,
    read_config,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit status.

    Args:
        arguments: The command line without the program's name. Default: that of this
            process.
    """
    wait_asleep()
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser()
    first = parser.parse_args(given)

    def run() -> int:
        chosen = first
        if getattr(chosen, "config", None) is not None:
            # Its values become defaults, which the command line overrules.
            values = read_config(chosen.config, chosen.options)
            commands[chosen.command].set_defaults(**values)
            chosen = parser.parse_args(given)
        status: int = chosen.run(chosen)
        return status

    return exit_status(f"distill {first.command}", run)


def wait_asleep() -> None:
    """Let threads that wait for work spin for a moment, and then sleep.

    They would take the cores from another program. OpenMP reads this once, when torch
    is loaded, and child processes inherit it; what the user has set, stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def exit_status(name: str, run: Callable[[], int]) -> int:
    """Run a command; return its exit status, and say in a sentence what went wrong.

    Args:
        name: The name of the command, which stands before the sentence.
        run: What to do; returns the status of a run without an error.
    """
    try:
        return run()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        # What goes wrong here is said in a sentence that names the remedy.
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


# --- the parser ---------------------------------------------------------------------


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Build the parser, and return those of its commands beside it."""
    parser = argparse.ArgumentParser(
        prog="distill", description="Tools of the course on LLM distillation."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="look whether the course can run here")
    check.set_defaults(run=_check)

    prepare = commands.add_parser(
        "prepare", help="convert the packaged teacher once, so that it loads fast"
    )
    prepare.add_argument(
        "--rebuild", action="store_true", help="convert again, even if it was done"
    )
    prepare.set_defaults(run=_prepare)

    kinds: dict[str, tuple[type[Options], Callable[..., int], str]] = {
        "cache": (CacheOptions, _cache, "store a teacher's soft labels on disk"),
        "train": (TrainOptions, _train, "train a student on soft or hard labels"),
        "evaluate": (EvaluateOptions, _evaluate, "judge a model on held-out text"),
        "export": (ExportOptions, _export, "write a model as a GGUF file"),
        "plan": (
            PlanOptions,
            _plan,
            "memory, time and cost of a training run, without running it",
        ),
    }
    for name, (options, run, text) in kinds.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        _add_options(command, options)
        if name == "train":
            # Behind a switch without a value, the kind would be taken for it.
            command.usage = "%(prog)s {soft,hard} [options]"
            command.add_argument(
                "kind", choices=("soft", "hard"), help="what to learn from"
            )
        command.set_defaults(run=run, options=options)
    return parser, commands.choices


def _add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add the fields of a dataclass, and ``--config`` for a file of them.

    An option with several words may be written with ``_`` or with ``-``; a switch takes
    ``true`` or ``false``, means true without a value, and has a ``--no-…``.
    """
    for one in fields(options):
        names = dict.fromkeys(["--" + one.name, "--" + one.name.replace("_", "-")])
        common = {"dest": one.name, "help": one.metadata["help"]}
        if isinstance(one.default, bool):
            parser.add_argument(
                *names,
                **common,
                type=_truth,
                default=one.default,
                nargs="?",
                const=True,
            )
        else:
            kind = type(one.default)
            parser.add_argument(*names, **common, type=kind, default=one.default)
        if one.default is True:
            negated = [f"--no_{one.name}", f"--no-{one.name.replace('_', '-')}"]
            parser.add_argument(*negated, **common, action="store_false", default=False)
    parser.add_argument(
        "--config",
        type=Path,
        help="a JSON or YAML file with these names; the command line overrules it",
    )


def _truth(text: str) -> bool:
    known = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    known |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _filled(chosen: argparse.Namespace) -> Any:
    kind = chosen.options
    return kind(**{one.name: getattr(chosen, one.name) for one in fields(kind)})


# --- the commands -------------------------------------------------------------------


def _check(_: argparse.Namespace) -> int:
    from distill_helpers.machine import check_environment

    environment = check_environment()
    print(environment)
    return 0 if environment.ok else 1


def _prepare(chosen: argparse.Namespace) -> int:
    from distill_helpers.tasks.teachers import prepare_packaged_teacher

    print(f"The teacher is ready: {prepare_packaged_teacher(rebuild=chosen.rebuild)}")
    return 0


def _cache(chosen: argparse.Namespace) -> int:
    from distill_helpers.cli.caching import write_part_or_whole
    from distill_helpers.labels import SoftLabelCache, merge_cache
    from distill_helpers.trainers import end_processes

    options = _filled(chosen)
    if options.merge:
        found: Path | SoftLabelCache | None = merge_cache(options.output)
    else:
        found = write_part_or_whole(options)
    if isinstance(found, SoftLabelCache):
        positions = found.header["dataset"]["positions"]
        print(
            f"{found.path}: {positions:,} distributions, {found.bytes_per_token:.1f} "
            "bytes each"
        )
    elif found is not None:
        print(f"{found} is written; when all parts are: distill cache --merge")
    end_processes()
    return 0


def _train(chosen: argparse.Namespace) -> int:
    from distill_helpers.cli import runs
    from distill_helpers.models import merge_adapters
    from distill_helpers.trainers import end_processes

    options = _filled(chosen)
    trainer = runs.build_trainer(chosen.kind, options)
    trainer.train(resume_from_checkpoint=True)
    if options.adapters:
        # Whole, so that every program reads it; the checkpoints have the adapters.
        trainer.model = merge_adapters(trainer.model)
    trainer.save_model(options.output)
    if trainer.is_world_process_zero():
        print(f"the student is in {options.output}")
    end_processes()
    return 0


def _export(chosen: argparse.Namespace) -> int:
    import torch

    from distill_helpers.cli import runs
    from distill_helpers.export import export_gguf
    from distill_helpers.machine import get_profile

    options = _filled(chosen)
    # Read as it is stored, on the processor: the file gets its own precision.
    exact = replace(get_profile("cpu"), teacher_dtype=torch.float32)
    model, tokenizer = runs.resolve_teacher(options.model, exact)
    path = export_gguf(
        model,
        tokenizer,
        options.output,
        precision=options.precision,
        name=options.name or None,
    )
    print(f"{path}: {path.stat().st_size / 2**20:,.1f} MiB, {options.precision}")
    return 0


def _evaluate(chosen: argparse.Namespace) -> int:
    import torch

    from distill_helpers.cli import runs
    from distill_helpers.evaluation import evaluate
    from distill_helpers.machine import get_profile
    from distill_helpers.models import shared_vocabulary

    options = _filled(chosen)
    if options.answers and options.teacher:
        raise ValueError(
            f"teacher={options.teacher!r} is compared on a text, and answers="
            f"{options.answers!r} counts right answers; leave one of them out"
        )
    profile = get_profile(options.profile)
    # As a teacher is loaded, but in full precision.
    exact = replace(profile, teacher_dtype=torch.float32)
    model, tokenizer = runs.resolve_teacher(options.model, exact, bits=options.bits)
    if options.answers:
        found = _score_answers(options, model, tokenizer)
    else:
        runs.check_length(options, model)
        teacher = None
        if options.teacher:
            teacher, theirs = runs.resolve_teacher(options.teacher, profile)
            runs.check_length(options, teacher)
            shared_vocabulary(theirs, tokenizer)
        rows = runs.load_rows(options, tokenizer)
        found = evaluate(model, rows, tokenizer, teacher=teacher)
    print(json.dumps(asdict(found), indent=2))
    return 0


def _score_answers(options: EvaluateOptions, model: Any, tokenizer: Any) -> Any:
    from distill_helpers.course.verdict import score
    from distill_helpers.evaluation import generate
    from distill_helpers.labels import prompt_text
    from distill_helpers.tasks.questions import read_questions

    asked = read_questions(options.answers)
    if options.rows:
        drawn = asked.shuffle(seed=options.seed)
        asked = drawn.select(range(min(options.rows, len(asked))))
    prompts = [prompt_text(messages, tokenizer) for messages in asked["messages"]]
    longest = max(map(len, tokenizer(list(asked["answer"]))["input_ids"]))
    texts = generate(
        model, tokenizer, prompts, max_new_tokens=longest + 8, batch_size=64
    )
    return score(texts, asked["answer"]).interval


def _plan(chosen: argparse.Namespace) -> int:
    from distill_helpers.cli.runs import planned_models
    from distill_helpers.machine import get_profile
    from distill_helpers.planning import device_of, plan

    options = _filled(chosen)
    profile = get_profile(options.profile, planned=True)
    models: Any = profile
    if options.teacher or options.student:
        models = planned_models(options, profile)
    found = plan(
        models,
        batch_size=options.batch_size,
        length=options.length,
        steps=options.steps,
        method=options.method,
        device=options.device or device_of(profile),
        accumulation=options.gradient_accumulation_steps,
        fused=options.fused,
        optimizer=options.optim,
        checkpointing=options.gradient_checkpointing,
        mixed_precision=options.mixed_precision,
        packed=options.packed,
        adapters=options.adapters,
        bits=options.bits or None,
    )
    print(found)
    return 0 if found.fits else 1
