"""Runs the course's studies and publishes rows and verdicts: ``make studies-anew``.

With ``--recheck`` (``make studies``) it publishes nothing: it runs one published seed
of every arm anew and fails if a number or a verdict disagrees. With ``--judge`` it runs
nothing: it judges the published rows again, after a change of claims or of the rule.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill_helpers.cli.commands import exit_status, wait_asleep


def _progress(runs: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(runs, total=total, desc=title, unit="run")


def publish(
    only: Sequence[str] | None, work: Path, results: Path, workers: int | None
) -> int:
    """Run studies, publish their rows, and put their verdicts to the known ones.

    Args:
        only: Names of studies; ``None`` runs all.
        work: The folder of finished runs.
        results: The folder where rows and verdicts are published.
        workers: Processes; ``None`` takes one for every core.

    Returns:
        1 if a verdict changed, else 0.
    """
    from distill_helpers import studies

    fresh: list[dict[str, Any]] = []
    for name in only or studies.STUDIES:
        study = studies.load_study(name)
        found = studies.run_study(study, work, workers=workers, progress=_progress)
        studies.publish(found, results / "studies")
        for verdict in studies.judge(found):
            print(verdict)
        fresh += studies.verdict_rows(found)
    return write_verdicts(fresh, results)


def write_verdicts(fresh: Sequence[dict[str, Any]], results: Path) -> int:
    """Put the verdicts on some studies in the place of the known ones.

    Args:
        fresh: From :func:`~distill_helpers.studies.verdict_rows`.
        results: The folder of rows and verdicts.

    Returns:
        1 if a verdict changed, else 0.
    """
    from distill_helpers.studies.study import DECLARED, STUDIES

    path = results / "studies" / "verdicts.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    ran = {row["study"] for row in fresh}
    merged = [row for row in known if row["study"] not in ran] + [*fresh]
    merged.sort(key=lambda row: (*STUDIES, *DECLARED).index(row["study"]))
    path.write_text(
        json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    before = {(row["study"], row["name"]): row["status"] for row in known}
    changed = False
    for row in fresh:
        was = before.get((row["study"], row["name"]), row["status"])
        if was != row["status"]:
            changed = True
            print(
                f"verdict changed: {row['study']}/{row['name']}: was {was}, is "
                f"{row['status']}",
                file=sys.stderr,
            )
    return 1 if changed else 0


def judge_again(only: Sequence[str] | None, results: Path) -> int:
    """Judge the published rows again, and write what comes out; run nothing.

    Args:
        only: Names of studies; ``None`` judges all.
        results: Same as in :func:`write_verdicts`.

    Returns:
        1 if a verdict changed, else 0.
    """
    from distill_helpers import studies

    fresh: list[dict[str, Any]] = []
    for name in only or studies.STUDIES:
        fresh += studies.verdict_rows(studies.load_results(name))
    return write_verdicts(fresh, results)


def recheck(only: Sequence[str] | None, work: Path, workers: int | None) -> int:
    """Run one published seed of every arm anew, and compare; publish nothing.

    Args:
        only: Names of studies; ``None`` runs all.
        work: The folder of finished runs.
        workers: Processes; ``None`` takes one for every core.

    Returns:
        1 if a number or a verdict disagrees, else 0.
    """
    from distill_helpers import studies

    wrong = []
    statuses: Counter[str] = Counter()
    for name in only or studies.STUDIES:
        found, changed = studies.recheck_study(
            studies.load_results(name), work, workers=workers, progress=_progress
        )
        for one in found:
            print(one)
        statuses.update(one.status for one in found)
        wrong += [str(one) for one in found if one.status == "outside"]
        wrong += [f"verdict changed: {line}" for line in changed]
    print(", ".join(f"{count} {status}" for status, count in statuses.most_common()))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    wait_asleep()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of studies; default: all")
    parser.add_argument("--workers", type=int, help="processes; default: cores")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/studies"),
        help="where finished runs are kept, so that a second call goes on",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="where rows and verdicts are published (default: %(default)s)",
    )
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="publish nothing: run one published seed of every arm anew (about 80 "
        "minutes for all studies on two cores) and fail if a number or a verdict "
        "disagrees",
    )
    parser.add_argument(
        "--judge",
        action="store_true",
        help="run nothing: judge the published rows again, and fail if that changes a "
        "verdict",
    )
    chosen = parser.parse_args(arguments)

    def run() -> int:
        if chosen.judge:
            return judge_again(chosen.only, chosen.results)
        if chosen.recheck:
            return recheck(chosen.only, chosen.work, chosen.workers)
        return publish(chosen.only, chosen.work, chosen.results, chosen.workers)

    return exit_status(parser.prog, run)


if __name__ == "__main__":
    sys.exit(main())
