"""The command line: ``distill …`` or ``python -m distill_helpers …``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit status."""
    # Read once, when torch is loaded: threads that wait spin for a moment, then sleep,
    # instead of taking the cores from another program. The studies' workers inherit it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser(given[:1])
    chosen = parser.parse_args(given)
    try:
        if getattr(chosen, "config", None) is not None:
            _apply_config(commands[chosen.command], chosen)
            chosen = parser.parse_args(given)
        status: int = chosen.run(chosen)
    except (ValueError, RuntimeError, OSError) as error:
        # What goes wrong here is said in a sentence that names the remedy.
        print(f"distill {chosen.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"distill {chosen.command}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser(
    asked: Sequence[str],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands.

    Options that are dataclasses need transformers, whose import takes seconds; they
    are added to the command that was asked for alone.
    """
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

    pretrain = commands.add_parser(
        "pretrain-tiny",
        help="train the tiny teachers that ship in data/ again (half an hour)",
    )
    pretrain.add_argument(
        "--only", choices=("prose", "sums"), help="one of the two; default: both"
    )
    pretrain.add_argument(
        "--output",
        type=Path,
        default=Path("build/tiny"),
        help="folder to write to (default: %(default)s)",
    )
    pretrain.add_argument(
        "--steps", type=int, help="instead of the number the shipped ones had"
    )
    pretrain.set_defaults(run=_pretrain)

    label = commands.add_parser(
        "label-glosses",
        help="make data/gloss_labels.jsonl again (a quarter of an hour)",
    )
    label.add_argument(
        "--output",
        type=Path,
        default=Path("build/gloss_labels.jsonl"),
        help="file to write to (default: %(default)s)",
    )
    label.add_argument("--steps", type=int, help="instead of the teacher's own number")
    label.add_argument("--count", type=int, help="glosses of the pool, likewise")
    label.add_argument("--judged", type=int, help="glosses of the test, likewise")
    label.set_defaults(run=_label_glosses)

    for name, run, text in (
        ("cache", _cache, "store a teacher's soft labels on disk"),
        ("train", _train, "train a student on soft or hard labels"),
        ("evaluate", _evaluate, "judge a model on held-out text"),
        ("plan", _plan, "memory, time and cost of a training run, without running it"),
    ):
        parents = [_options(name)] if name in asked else []
        command = commands.add_parser(
            name,
            help=text,
            parents=parents,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == "train":
            command.add_argument(
                "kind", choices=("soft", "hard"), help="what to learn from"
            )
        command.set_defaults(run=run)

    studies = commands.add_parser(
        "studies", help="run the course's studies and publish rows and verdicts"
    )
    studies.add_argument("--only", nargs="+", help="names of studies; default: all")
    studies.add_argument("--workers", type=int, help="processes; default: cores")
    studies.add_argument(
        "--work",
        type=Path,
        default=Path("build/studies"),
        help="where finished runs are kept, so that a second call goes on",
    )
    studies.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="where rows and verdicts are published (default: %(default)s)",
    )
    studies.add_argument(
        "--recheck",
        action="store_true",
        help="publish nothing: run one published seed of every arm anew (about 80 "
        "minutes for all studies on two cores) and fail if a number or a verdict "
        "disagrees",
    )
    studies.set_defaults(run=_studies)
    return parser, commands.choices


def _dataclass(command: str) -> type[Any]:
    from distill_helpers import configs

    kinds: dict[str, type[Any]] = {
        "cache": configs.CacheOptions,
        "train": configs.TrainOptions,
        "evaluate": configs.EvaluateOptions,
        "plan": configs.PlanOptions,
    }
    return kinds[command]


def _options(command: str) -> argparse.ArgumentParser:
    """The fields of a command's dataclass, and ``--config`` for a file of them."""
    from transformers import HfArgumentParser

    kind: Any = _dataclass(command)
    parser: argparse.ArgumentParser = HfArgumentParser(kind, add_help=False)
    parser.add_argument(
        "--config",
        type=Path,
        help="a JSON or YAML file with these names; the command line overrules it",
    )
    return parser


def _apply_config(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Make the values of a config file the parser's defaults."""
    from distill_helpers.configs import read_config

    values = read_config(chosen.config)
    known = {field.name for field in fields(_dataclass(chosen.command))}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"{chosen.config} holds {', '.join(unknown)}, which {chosen.command} does "
            f"not know; it knows {', '.join(sorted(known))}"
        )
    parser.set_defaults(**values)


def _filled(chosen: argparse.Namespace) -> Any:
    kind = _dataclass(chosen.command)
    return kind(**{field.name: getattr(chosen, field.name) for field in fields(kind)})


def _label_glosses(chosen: argparse.Namespace) -> int:
    from distill_helpers import gloss_labels
    from distill_helpers.gloss_task import judge, judge_answers, splits
    from distill_helpers.profiles import get_profile

    teacher = gloss_labels.train_teacher(
        get_profile("cpu"), steps=chosen.steps or gloss_labels.STEPS
    )
    judged = judge(*teacher, splits().test[: chosen.judged])
    labels = gloss_labels.label_pool(
        teacher, chosen.output, count=chosen.count or gloss_labels.POOL
    )
    pool = judge_answers(labels["answer"], splits().pool[: len(labels)])
    report = {"test": asdict(judged), "pool": asdict(pool)}
    chosen.output.with_suffix(".report.json").write_text(
        json.dumps(report, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(report, indent=1))
    return 0


def _cache(chosen: argparse.Namespace) -> int:
    from distill_helpers import configs
    from distill_helpers.profiles import get_profile
    from distill_helpers.soft_label_cache import write_cache

    options = _filled(chosen)
    teacher = configs.resolve_teacher(options.teacher, get_profile(options.profile))
    configs.check_length(options, teacher.model)
    cache = write_cache(
        teacher.model,
        configs.load_rows(options, teacher.tokenizer),
        options.output,
        tokenizer=teacher.tokenizer,
        scheme=options.scheme,
        top_k=options.top_k,
        samples=options.samples,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    positions = cache.header["dataset"]["positions"]
    print(
        f"{cache.path}: {positions:,} distributions, {cache.bytes_per_token:.1f} bytes "
        "each"
    )
    return 0


def _train(chosen: argparse.Namespace) -> int:
    from distill_helpers import configs
    from distill_helpers.trainers import end_processes

    options = _filled(chosen)
    trainer = configs.build_trainer(chosen.kind, options)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(options.output)
    if trainer.is_world_process_zero():
        print(f"the student is in {options.output}")
    end_processes()
    return 0


def _evaluate(chosen: argparse.Namespace) -> int:
    import torch

    from distill_helpers import configs
    from distill_helpers.evaluation import evaluate
    from distill_helpers.models import shared_vocabulary
    from distill_helpers.profiles import get_profile

    options = _filled(chosen)
    if options.answers and options.teacher:
        raise ValueError(
            f"teacher={options.teacher!r} is compared on a text, and answers="
            f"{options.answers!r} counts right answers; leave one of them out"
        )
    profile = get_profile(options.profile)
    # As a teacher is loaded, but in full precision.
    exact = replace(profile, teacher_dtype=torch.float32)
    model, tokenizer = configs.resolve_teacher(options.model, exact)
    if options.answers:
        return _score_answers(options, model, tokenizer)
    configs.check_length(options, model)
    teacher = None
    if options.teacher:
        teacher, theirs = configs.resolve_teacher(options.teacher, profile)
        configs.check_length(options, teacher)
        shared_vocabulary(theirs, tokenizer)
    rows = configs.load_rows(options, tokenizer)
    found = evaluate(model, rows, tokenizer, teacher=teacher)
    print(json.dumps(asdict(found), indent=2))
    return 0


def _score_answers(options: Any, model: Any, tokenizer: Any) -> int:
    from distill_helpers.capstone import score
    from distill_helpers.evaluation import generate
    from distill_helpers.hard_labels import prompt_text
    from distill_helpers.questions import read_questions

    asked = read_questions(options.answers)
    if options.rows:
        drawn = asked.shuffle(seed=options.seed)
        asked = drawn.select(range(min(options.rows, len(asked))))
    prompts = [prompt_text(messages, tokenizer) for messages in asked["messages"]]
    longest = max(map(len, tokenizer(list(asked["answer"]))["input_ids"]))
    texts = generate(
        model, tokenizer, prompts, max_new_tokens=longest + 8, batch_size=64
    )
    found = score(texts, asked["answer"]).interval
    print(json.dumps(asdict(found), indent=2))
    return 0


def _check(_: argparse.Namespace) -> int:
    from distill_helpers.runtime import check_environment

    environment = check_environment()
    print(environment)
    return 0 if environment.ok else 1


def _prepare(chosen: argparse.Namespace) -> int:
    from distill_helpers.models import prepare_packaged_teacher

    print(f"The teacher is ready: {prepare_packaged_teacher(rebuild=chosen.rebuild)}")
    return 0


def _pretrain(chosen: argparse.Namespace) -> int:
    from distill_helpers import pretraining
    from distill_helpers.data import austen, pack
    from distill_helpers.evaluation import evaluate

    report: dict[str, Any] = {}
    steps = {} if chosen.steps is None else {"steps": chosen.steps}
    if chosen.only in (None, "prose"):
        prose = pretraining.pretrain_prose(**steps)
        pretraining.save_tiny(prose, chosen.output / "tiny_prose")
        test = pack(austen("test"), prose.tokenizer, pretraining.LENGTH)
        found = evaluate(prose.model, test, prose.tokenizer)
        report["prose"] = {
            "nll": round(found.nll, 4),
            "bits_per_byte": round(found.bits_per_byte, 4),
            "tokens": found.tokens,
        }
    if chosen.only in (None, "sums"):
        sums = pretraining.pretrain_sums(**steps)
        pretraining.save_tiny(sums, chosen.output / "tiny_sums")
        report["sums"] = {"exact_match": pretraining.sums_accuracy(sums)}
    print(json.dumps(report, indent=2))
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from distill_helpers import configs, planning
    from distill_helpers.profiles import get_profile

    options = _filled(chosen)
    profile = get_profile(options.profile, planned=True)
    models: Any = profile
    if options.teacher or options.student:
        models = configs.planned_models(options, profile)
    found = planning.plan(
        models,
        batch_size=options.batch_size,
        length=options.length,
        steps=options.steps,
        method=options.method,
        device=options.device or planning.device_of(profile),
        accumulation=options.gradient_accumulation_steps,
        fused=options.fused,
        optimizer=options.optim,
        checkpointing=options.gradient_checkpointing,
        mixed_precision=options.mixed_precision,
        packed=options.packed,
    )
    print(found)
    return 0 if found.fits else 1


def _studies(chosen: argparse.Namespace) -> int:
    from tqdm import tqdm

    from distill_helpers import studies

    def progress(runs: Iterable[Any], total: int, title: str) -> Iterable[Any]:
        return tqdm(runs, total=total, desc=title, unit="run")

    if chosen.recheck:
        return _recheck(chosen, progress)
    verdicts = chosen.results / "studies" / "verdicts.json"
    known = []
    if verdicts.is_file():
        known = json.loads(verdicts.read_text(encoding="utf-8"))
    fresh: list[dict[str, Any]] = []
    for name in chosen.only or studies.STUDIES:
        study = studies.load_study(name)
        results = studies.run_study(
            study, chosen.work, workers=chosen.workers, progress=progress
        )
        studies.publish(results, chosen.results / "studies")
        for claim in study.claims:
            print(studies.judge(results, claim))
        fresh += studies.verdict_rows(results)
    ran = {row["study"] for row in fresh}
    merged = [row for row in known if row["study"] not in ran] + fresh
    merged.sort(key=lambda row: studies.STUDIES.index(row["study"]))
    verdicts.write_text(
        json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    before = {(row["study"], row["name"]): row["status"] for row in known}
    changed = [
        f"{row['study']}/{row['name']}: was {before[row['study'], row['name']]}, is "
        f"{row['status']}"
        for row in fresh
        if before.get((row["study"], row["name"]), row["status"]) != row["status"]
    ]
    for line in changed:
        print(f"verdict changed: {line}", file=sys.stderr)
    return 1 if changed else 0


def _recheck(chosen: argparse.Namespace, progress: Any) -> int:
    from distill_helpers import studies

    wrong = []
    for name in chosen.only or studies.STUDIES:
        found, changed = studies.recheck_study(
            studies.load_results(name),
            chosen.work,
            workers=chosen.workers,
            progress=progress,
        )
        for one in found:
            print(one)
        wrong += [str(one) for one in found if one.status == "outside"]
        wrong += [f"verdict changed: {line}" for line in changed]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0
