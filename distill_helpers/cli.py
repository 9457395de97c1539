"""The command line: ``distill …`` or ``python -m distill_helpers …``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except (ValueError, RuntimeError) as error:
        # What goes wrong here is said in a sentence that names the remedy.
        print(f"distill {chosen.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"distill {chosen.command}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
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
    studies.set_defaults(run=_studies)
    return parser


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


def _studies(chosen: argparse.Namespace) -> int:
    from tqdm import tqdm

    from distill_helpers import studies

    def progress(runs: Iterable[Any], total: int, title: str) -> Iterable[Any]:
        return tqdm(runs, total=total, desc=title, unit="run")

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
