"""Executes the notebooks headlessly and reports: ``make run``.

One after another, each in a child process, so that a crash or an interruption takes
nothing else along. Everything lands in ``build/run/``: the executed notebooks, their
HTML, ``results.json`` and ``index.html``. What a notebook found out reaches us through
outputs of the type ``application/vnd.distill-helpers+json``. ``--resume`` keeps what an
earlier run finished without a failure, as long as notebook, profile, package and data
are the same.

``--twice`` runs every code cell a second time right after the first, as learners do
by accident, in notebooks made from the sources (``build/run-twice/``). No cell may fail
then, and what the tests compare must be printed again. Other outputs that differ are
listed for a person to read: times may differ, claims may not.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import run_report
from build_notebooks import (
    PROGRESS_BAR,
    WIDGET,
    clean_outputs,
    helper_hashes,
    solve,
    write_notebook,
)
from course import Course, Lesson, load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from lesson_source import first_line, render, tags
from nbformat import NotebookNode
from run_report import Result

FINDING = "application/vnd.distill-helpers+json"
PROFILES = ("smoke", "cpu", "gpu")
# A smoke run is for CI: seconds, whatever a lesson's other minutes are.
SMOKE_WARNING, SMOKE_LIMIT = 25.0, 40.0
# The second run of a cell, under ``--twice``.
AGAIN = "again"
# What a terminal takes for "nothing from here to the end of the line".
ERASE = "\x1b[K"


# In the child: one notebook ---------------------------------------------------------


def _end_with_parent() -> None:
    """A runner that was killed leaves no kernel behind."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class CellLine:
    """One line a cell: its first line, then its seconds; the kernel's stderr goes here.

    While a cell runs, a terminal shows in the same line what its progress bar says.

    Args:
        total: Number of cells.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self.start = 0.0
        self.label = ""

    def begin(self, cell: NotebookNode, **_: object) -> None:
        """A cell starts."""
        self.number += 1
        self.start = time.monotonic()
        self.label = f"  {self.number:>3}/{self.total}  {first_line(cell)[:60]:<60}"
        print(self.label, end=" ", flush=True)

    def write(self, text: str) -> None:
        """The kernel says something on stderr."""
        bars = [one for one in re.split(r"[\r\n]", text) if PROGRESS_BAR.search(one)]
        if bars and sys.stdout.isatty():
            line = f"  {self.number:>3}/{self.total}  {bars[-1]}"
            # A line that wraps could not be written over.
            room = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:room]}{ERASE}", end="", flush=True)

    def flush(self) -> None:
        """What a file has: every line is shown as it comes."""

    def end(self, **_: object) -> None:
        """The cell has ended."""
        again = f"\r{self.label} " if sys.stdout.isatty() else ""
        print(f"{again}{time.monotonic() - self.start:7.1f} s", flush=True)


def _execute(
    source: Path, target: Path, profile: str, cell_limit: int, errors: Connection
) -> None:
    import papermill

    # Ctrl-C reaches the parent alone, which ends us in good order.
    os.setsid()
    _end_with_parent()
    use_this_python()
    environment = kernel_environment(profile)
    os.environ.clear()
    os.environ.update(environment)
    cells = nbformat.read(source, as_version=4).cells
    # Papermill adds one cell with the parameters' values.
    total = 1 + sum(c.cell_type == "code" and bool(c.source.strip()) for c in cells)
    shown = CellLine(total)
    try:
        with tempfile.TemporaryDirectory() as folder:
            papermill.execute_notebook(
                source,
                target,
                parameters={"PROFILE": profile},
                kernel_name=KERNEL_NAME,
                cwd=folder,
                progress_bar=False,
                # Writing it twice a cell takes a tenth of a smoke run. A long one is
                # worth that: whatever stops it, what came before is there.
                request_save_on_cell_execute=profile != "smoke",
                execution_timeout=cell_limit,
                stderr_file=shown,
                on_cell_execute=shown.begin,
                on_cell_executed=shown.end,
            )
    # Whatever stops one notebook must not stop the others.
    except Exception as error:
        # Papermill rules its messages with lines of dashes.
        lines = [line for line in str(error).splitlines() if line.strip("- ")]
        errors.send("\n".join([f"{type(error).__name__}:", *lines]))
    else:
        errors.send("")


# In the parent ----------------------------------------------------------------------


def _execute_in_child(source: Path, target: Path, profile: str, cell_limit: int) -> str:
    """Returns why the notebook stopped, or an empty string."""
    # Papermill is imported once for all notebooks, in the server of the children.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "papermill"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_execute, args=(source, target, profile, cell_limit, sender)
    )
    child.start()
    sender.close()
    try:
        return str(receiver.recv())
    except EOFError:
        return "the process that ran it died (out of memory?)"
    finally:
        # After an interruption the child is still at work: let it end its kernel.
        child.join(1)
        if child.is_alive():
            child.terminate()
            child.join(15)
            child.kill()
            child.join()


def collect_findings(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The checks, verdicts and live numbers that the cells put out."""
    return [
        output.data[FINDING]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if FINDING in output.get("data", {})
    ]


def judge(result: Result, notebook: NotebookNode, *, solved: bool) -> None:
    """Add to ``result`` what the executed notebook says about itself."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        if seconds := cell.metadata.get("papermill", {}).get("duration"):
            result.cells.append((round(seconds, 1), first_line(cell)[:60]))
    if code and all(cell.execution_count is None for cell in code):
        result.failures.append("has code cells but ran none of them")
    result.findings = collect_findings(notebook)
    for one in result.findings:
        unsolved = solved and one["kind"] == "check" and one["status"] != "passed"
        if not one["ok"] or unsolved:
            result.failures.append(
                f"{one['kind']} {one['name']}: {one['status']}. {one['message']}"
            )
    if solved and not any(one["kind"] == "check" for one in result.findings):
        result.failures.append("no check was made, so its solutions were not tested")


def judge_time(result: Result, lesson: Lesson, profile: str, *, enforce: bool) -> None:
    """Compare the seconds with the notebook's limit in this profile."""
    limit = SMOKE_LIMIT if profile == "smoke" else lesson.minutes[profile] * 60
    watch = SMOKE_WARNING if profile == "smoke" else limit
    if result.seconds > limit and enforce:
        result.failures.append(f"took {result.seconds:.0f} s, the limit is {limit:g} s")
    elif result.seconds > watch:
        result.warnings.append(f"took {result.seconds:.0f} s, meant are {watch:g} s")


# Every cell twice -------------------------------------------------------------------


def double_cells(notebook: NotebookNode) -> None:
    """Put a copy behind every code cell, which may fail without ending the run."""
    doubled = []
    for cell in notebook.cells:
        doubled.append(cell)
        # Papermill writes PROFILE behind the parameters, and a copy would undo that.
        if cell.cell_type == "code" and "parameters" not in tags(cell):
            again = copy.deepcopy(cell)
            again.id = f"{AGAIN}-{cell.id}"
            again.metadata["tags"] = [*tags(cell), AGAIN, "raises-exception"]
            doubled.append(again)
    notebook.cells = doubled


def double(course: Course, lesson: Lesson, *, solved: bool) -> Path:
    """Write the lesson with every cell twice; from its source, built or not."""
    notebook = render(course, lesson, solved=solved)
    double_cells(notebook)
    path = course.root / "build" / "twice" / f"{lesson.name}.ipynb"
    write_notebook(notebook, path)
    return path


def _text(cell: NotebookNode) -> str:
    """What a reader reads of a cell's outputs; pictures and errors are left out."""
    parts = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", [])
        # A progress bar is a stream of errors, or a widget.
        if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
    ]
    return "".join(parts)


def judge_again(result: Result, notebook: NotebookNode) -> None:
    """Add to ``result`` what went otherwise when a cell ran a second time."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for first, second in pairwise(code):
        if AGAIN not in tags(second):
            continue
        what = f"{first_line(first)[:60]!r}"
        errors = [one for one in second.outputs if one.output_type == "error"]
        if errors and "raises-exception" not in tags(first):
            error = f"{errors[0].ename}: {errors[0].evalue}"[:200]
            result.failures.append(f"a second run of {what} fails: {error}")
        elif _text(first) != _text(second):
            if "nbval-check-output" in tags(first):
                result.failures.append(f"a second run of {what} prints otherwise")
            else:
                result.changes.append(what)


# Going on ---------------------------------------------------------------------------


def inputs(course: Course, source: Path, profile: str) -> str:
    """A fingerprint of the notebook and of all that its run depends on here."""
    manifest = course.root / "data" / "MANIFEST.json"
    digest = hashlib.sha256(f"{profile}{helper_hashes(course)}".encode())
    for path in (source, manifest):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def finished(folder: Path) -> dict[str, Result]:
    """What an earlier run left without a failure, by the notebook's name."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    records = [Result(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    return {one.name: one for one in records if one.ok and one.inputs}


def run_one(
    course: Course,
    lesson: Lesson,
    folder: Path,
    profile: str,
    *,
    solved: bool,
    enforce: bool,
    twice: bool = False,
    kept: Result | None = None,
) -> Result:
    """Execute and judge one notebook; or return ``kept``, if it came from the same."""
    result = Result(lesson.name)
    if twice:
        source = double(course, lesson, solved=solved)
    else:
        source = solve(course, lesson) if solved else course.notebook_path(lesson)
    if not source.exists():
        result.failures.append("not built yet: make notebooks")
        return result
    result.inputs = inputs(course, source, profile)
    if kept is not None and kept.inputs == result.inputs:
        return kept
    target = folder / f"{lesson.name}.ipynb"
    # Only against a cell that hangs; slow machines are judged by judge_time.
    cell_limit = 300 if profile == "smoke" else int(lesson.minutes[profile] * 240 + 600)
    start = time.monotonic()
    failure = _execute_in_child(source, target, profile, cell_limit)
    result.seconds = round(time.monotonic() - start, 1)
    if failure:
        result.failures.append(failure)
    if target.exists():
        executed = nbformat.read(target, as_version=4)
        judge(result, executed, solved=solved)
        if twice:
            judge_again(result, executed)
        # A page would show every state of a progress bar, one below the other.
        for cell in executed.cells:
            if cell.cell_type == "code":
                cell.outputs = clean_outputs(cell.outputs)
        run_report.write_page(executed, target.with_suffix(".html"))
    if not twice:
        judge_time(result, lesson, profile, enforce=enforce)
    return result


def run_all(
    course: Course,
    lessons: list[Lesson],
    profile: str,
    *,
    solved: bool = False,
    enforce: bool = False,
    twice: bool = False,
    resume: bool = False,
) -> list[Result]:
    """Run the notebooks into a folder, made anew unless ``resume`` asks to go on."""
    kind = "run-twice" if twice else "run-solved" if solved else "run"
    folder = course.root / "build" / kind
    kept = finished(folder) if resume else {}
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for number, lesson in enumerate(lessons, start=1):
        print(f"[{number}/{len(lessons)}] {lesson.name} ({profile})", flush=True)
        options = {"solved": solved, "enforce": enforce, "twice": twice}
        before = kept.pop(lesson.name, None)
        result = run_one(course, lesson, folder, profile, kept=before, **options)
        results.append(result)
        if result is before:
            print("  kept from an earlier run", flush=True)
        for failure in result.failures:
            print(f"  FAILED: {failure}")
        for warning in result.warnings:
            print(f"  slow: {warning}")
        for change in result.changes:
            print(f"  prints otherwise the second time: {change}")
        status = "ok" if result.ok else "FAILED"
        print(f"  {status}, {result.seconds:.1f} s\n", flush=True)
        # What an earlier run finished stays on record until its turn comes.
        there = [*results, *kept.values()]
        records = json.dumps([asdict(one) for one in there], indent=1)
        (folder / "results.json").write_text(records, encoding="utf-8")
        run_report.write_index(course, results, profile, folder / "index.html")
    print(run_report.table(results))
    if slowest := run_report.slowest(results):
        print(f"\n{slowest}")
    print(f"\nTo read: {(folder / 'index.html').relative_to(course.root)}")
    return results


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--only", nargs="*", default=[], metavar="NN")
    parser.add_argument("--solved", action="store_true", help="with the solutions")
    parser.add_argument("--enforce", action="store_true", help="too slow is a failure")
    parser.add_argument("--twice", action="store_true", help="every cell twice")
    parser.add_argument("--resume", action="store_true", help="keep what is finished")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    # `kill` ends a run as Ctrl-C does: kernel first.
    signal.signal(signal.SIGTERM, _stop)
    try:
        course = load_course(options.root.resolve())
        results = run_all(
            course,
            course.select(options.only),
            options.profile,
            solved=options.solved,
            enforce=options.enforce,
            twice=options.twice,
            resume=options.resume,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nInterrupted. With RESUME=1 (--resume) the next run keeps what is "
            "finished; without, it starts from a clean folder."
        )
        return 130
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
