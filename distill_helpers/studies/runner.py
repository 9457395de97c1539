"""Running studies, checking what is published, publishing: for maintainers.

Every run has a process of its own, and every finished row goes into a log at once: an
interrupted study goes on where it was. Taught nowhere; CONTRIBUTING.md says how a claim
is made.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from distill_helpers.studies.results import LiveCheck, Results, Row, judge, number
from distill_helpers.studies.study import Options, Run, Study, load_study

# Wraps an iterator, such as tqdm, given its length and a title.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def run_study(
    study: Study,
    work: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run what is missing of a study.

    Args:
        study: What to run.
        work: Folder for finished rows; a second call goes on where the first was
            interrupted, unless a source file of the package changed.
        workers: Processes. Default: as many as fit the cores.
        progress: Wraps an iterator, such as tqdm, given its length and a title.

    Returns:
        Every row, exploring ones included.
    """
    log = work / f"{study.name}.jsonl"
    explore = [
        Run(arm, setting, seed, options)
        # Arms of a seed stand together, for they may share a start or a task.
        for setting in study.settings
        for seed in study.explore_seeds
        for arm in study.arms
        if (arm, setting) not in study.left_out
        for options in study.grid
    ]
    rows = _run_all(study, explore, "explore", log, workers, progress)
    best = {pair: _best(study, rows, *pair) for pair in study.pairs()}
    confirm = [
        Run(arm, setting, seed, best[arm, setting])
        for setting in study.settings
        for seed in study.confirm_seeds
        for arm in study.arms
        if (arm, setting) in best
    ]
    rows += _run_all(study, confirm, "confirm", log, workers, progress)
    return Results(study, tuple(rows))


def recheck_study(
    published: Results,
    work: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[LiveCheck], list[str]]:
    """Run the first confirming seed of a study anew, every arm with its options.

    Args:
        published: From :func:`~distill_helpers.studies.results.load_results`.
        work: Same as in :func:`run_study`, and so are the others.
        workers: Same as there.
        progress: Same as there.

    Returns:
        A check for each arm, setting, and metric that decides something: ``"same"``
        as published, to one part in a thousand; ``"inside"``, no further from its own
        published number than the other seeds let a run stray from their mean, as on
        another machine, where rounding differs; ``"not judged"``, where that is so far
        that no run of the study could miss it; or ``"outside"``. And a line for every
        verdict that would change if these rows stood in the old ones' place.
    """
    study = published.study
    seed = study.confirm_seeds[0]
    runs = [Run(*pair, seed, published.options(*pair)) for pair in study.pairs()]
    log = work / f"{study.name}.recheck.jsonl"
    rows = _run_all(study, runs, "confirm", log, workers, progress)
    metrics = dict.fromkeys([study.select, *(claim.metric for claim in study.claims)])
    # A seed has its own data and its own luck, so that a rerun is held to the number
    # that this seed gave. How far it may stray is what the other seeds say: the
    # published number itself must not widen that.
    kept = [
        row
        for row in published.rows
        if (row["phase"], row["seed"]) != ("confirm", seed)
    ]
    others = Results(study, tuple(kept))
    found = []
    for row in rows:
        (old,) = (
            one
            for one in published.select("confirm", row["arm"], row["setting"])
            if one["seed"] == seed
        )
        for metric in metrics:
            again, before = number(row, metric), number(old, metric)
            if math.isnan(again) and math.isnan(before):
                continue
            check = others.check_live(metric, row["arm"], row["setting"], again)
            stray = (check.high - check.low) / 2
            if math.isclose(again, before, rel_tol=1e-3, abs_tol=1e-9):
                status = "same"
            else:
                ends = before - stray, before + stray
                status = published.status_of(metric, again, *ends)
            name = f"{study.name}: {check.name}, seed {seed}, published {before:.3f}"
            found.append(LiveCheck(name, again, before - stray, before + stray, status))
    anew = Results(study, (*kept, *rows))
    changed = [
        f"{study.name}/{now.claim.name}: was {was.status}, would be {now.status} "
        f"({now})"
        for was, now in zip(judge(published), judge(anew), strict=True)
        if was.status != now.status
    ]
    return found, changed


def _best(study: Study, rows: list[Row], arm: str, setting: str) -> Options:
    """The cell with the best mean over the exploring seeds; the first, of equals."""
    mine = Results(study, tuple(rows)).select("explore", arm, setting)
    scores: dict[Options, list[float]] = {}
    for row in mine:
        cell = tuple((name, row[name]) for name, _ in study.grid[0])
        scores.setdefault(cell, []).append(row[study.select])
    sign = -1 if study.higher_is_better else 1
    return min(scores, key=lambda cell: sign * fmean(scores[cell]))


def _run_all(
    study: Study,
    runs: list[Run],
    phase: str,
    log: Path,
    workers: int | None,
    progress: Progress | None,
) -> list[Row]:
    log.parent.mkdir(parents=True, exist_ok=True)
    source = source_digest()
    done = _finished(log, source)
    missing = [run for run in runs if _key(run) not in done]
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(
        workers or max(1, (os.cpu_count() or 1) // study.threads),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=leave_with,
        initargs=(os.getpid(),),
    ) as pool:
        futures = {pool.submit(_work, study.name, run): run for run in missing}
        finished: Iterable[Any] = as_completed(futures)
        if progress is not None and missing:
            finished = progress(finished, len(missing), f"{study.name}: {phase}")
        try:
            with log.open("a", encoding="utf-8") as file:
                for future in finished:
                    run = futures[future]
                    row = {
                        "study": study.name,
                        "phase": phase,
                        "arm": run.arm,
                        "setting": run.setting,
                        **run.recipe,
                        **future.result(),
                    }
                    entry = {"key": _key(run), "source": source, "row": row}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    done[_key(run)] = row
        finally:
            for future in futures:  # after an error nobody would log what they find
                future.cancel()
    return [done[_key(run)] for run in runs]


def leave_with(parent: int) -> None:
    """Let a worker end soon after its parent, which may be killed without a word."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(name: str, run: Run) -> dict[str, Any]:
    """One run in a worker process."""
    import torch
    import transformers

    study = load_study(name)
    torch.set_num_threads(study.threads)
    start = time.perf_counter()
    metrics = study.run(run)
    return {
        **metrics,
        "seconds": round(time.perf_counter() - start, 1),
        "profile": "cpu",
        "device": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def _key(run: Run) -> str:
    return json.dumps(asdict(run), sort_keys=True)


def _finished(log: Path, source: str) -> dict[str, Row]:
    """Rows of an interrupted run, by run; those of other source files do not count."""
    done = {}
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if entry.get("source") == source:
                done[entry["key"]] = entry["row"]
    return done


def source_digest() -> str:
    """Hash of the package's source files.

    Without it, a recheck after a change would call the rows of the code before it the
    same. Any file counts, whichever a study uses: that is always right, and all it
    costs is that an interrupted run begins anew.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def publish(results: Results, folder: Path) -> None:
    """Write a study's rows as CSV, in an order that does not depend on the run."""
    folder.mkdir(parents=True, exist_ok=True)
    study = results.study

    def order(row: Row) -> tuple[Any, ...]:
        return (
            row["phase"] == "confirm",
            study.settings.index(row["setting"]),
            study.arms.index(row["arm"]),
            row["seed"],
            *(row[name] for name, _ in study.grid[0]),
        )

    rows = sorted(results.rows, key=order)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path = folder / f"{study.name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _rounded(row.get(name)) for name in columns})


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def verdict_rows(results: Results) -> list[Row]:
    """Every claim of a study as a flat record, for ``verdicts.json``.

    Gains are not rounded here: whoever prints one rounds it once.
    """
    return [
        {
            "study": verdict.study,
            **asdict(verdict.claim),
            "gain": asdict(verdict.gain),
            "status": verdict.status,
        }
        for verdict in judge(results)
    ]
