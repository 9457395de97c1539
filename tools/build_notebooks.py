"""Builds, checks and solves the notebooks from ``notebooks/source/``.

* ``build``: executes each lesson in the ``cpu`` profile and writes
  ``notebooks/NN_name.ipynb`` with its outputs. Where only text changed, the outputs are
  kept and nothing runs (``--force`` runs everything). Helpers that changed run a
  notebook anew, too, unless ``--text-only`` says that nothing may run: then outputs
  stay with the record of the helpers that they came from, and ``check`` goes on
  naming what has changed since.
* ``check``: fails if a notebook is not what its source gives; executes nothing.
* ``solve``: writes the solved variants under ``build/solved/``, not executed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from course import Course, Lesson, load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from lesson_lint import lint
from lesson_source import LessonError, read_cells, render, tags
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from prose_lint import lint_prose

PROFILE = "cpu"
WIDGET = "application/vnd.jupyter.widget-view+json"
# What is done, or the time that it took; some bars do not know how much is left.
PROGRESS_BAR = re.compile(r"\d+%\||\[\d+:\d\d(:\d\d)?[<,]")
# How a bar that stands below another moves the cursor.
CURSOR = re.compile(r"\x1b\[[ABK]")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


# What a notebook is made from ------------------------------------------------------


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(value: object) -> str:
    return _sha256(json.dumps(value, sort_keys=True).encode())


def contents(notebook: NotebookNode) -> list[tuple[str, str, str, list[str]]]:
    """What the source decides: everything but outputs and notebook metadata."""
    return [(c.id, c.cell_type, c.source, tags(c)) for c in notebook.cells]


def manifest_hash(course: Course) -> str:
    return _sha256((course.root / "data" / "MANIFEST.json").read_bytes())


def fingerprint(course: Course, notebook: NotebookNode) -> str:
    """Of the source, the template, course.toml and the data, as far as they show."""
    return _digest([contents(notebook), manifest_hash(course)])


def code_fingerprint(course: Course, notebook: NotebookNode) -> str:
    """Of what the outputs depend on: the code cells in their order, and the data.

    Not on the set-up cell: at home it installs nothing, and its output is not kept.
    """
    code = [
        _what_runs(cell.source)
        for cell in _code_cells(notebook)
        if "setup" not in tags(cell)
    ]
    manifest = json.loads((course.root / "data" / "MANIFEST.json").read_text("utf-8"))
    data = [
        (name, facts["sha256"])
        for name, facts in manifest["files"].items()
        if not name.endswith(".md")  # no lesson reads what is written about the data
    ]
    return _digest([code, data])


def _what_runs(source: str) -> list[str]:
    """The lines of a cell without its imports from the package, and without smoke.

    Imports say in which room a name lives, not what it does: helpers may move. And
    what ``profile.pick`` takes in ``smoke`` is not what a notebook is built with. In
    both cases the outputs are still the cell's.
    """
    # A magic is no Python.
    tree = ast.parse(re.sub(r"(?m)^( *)[%!].*", r"\1pass", source))
    lines = source.splitlines()
    imports, picks = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if str(node.module).split(".")[0] == "distill_helpers":
                imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Call) and _called(node) == "pick":
            picks += [one.value for one in node.keywords if one.arg == "smoke"]
    # From the end, so that the places of the others still hold.
    for pick in sorted(picks, key=lambda one: (one.lineno, one.col_offset))[::-1]:
        _blank(lines, pick)
    numbered = enumerate(lines, 1)
    return [line for at, line in numbered if line.strip() and at not in imports]


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _blank(lines: list[str], node: ast.expr) -> None:
    """Take a value out of a cell's lines."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    # Python counts columns in bytes.
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    lines[first : last + 1] = [before + after, *[""] * (last - first)]


def helper_hashes(course: Course) -> dict[str, str]:
    """Of the modules and study results a notebook may use: reported, not enforced."""
    files = [
        *course.root.glob("distill_helpers/**/*.py"),
        *course.root.glob("distill_helpers/**/*.toml"),
        *course.root.glob("results/**/*.csv"),
    ]
    return {
        path.relative_to(course.root).as_posix(): _sha256(path.read_bytes())[:12]
        for path in sorted(files)
    }


def output_hash(notebook: NotebookNode) -> str:
    return _digest([cell.get("outputs") for cell in notebook.cells])


# Outputs fit to be committed --------------------------------------------------------


def _clean_text(text: str, *, drop_progress: bool) -> str:
    # A terminal shows only what follows the last carriage return.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    if drop_progress:
        lines = [line for line in lines if not PROGRESS_BAR.search(line)]
        lines = [CURSOR.sub("", line) for line in lines]
    return ADDRESS.sub("at 0x…", "\n".join(lines))


def _clean_bundle(output: NotebookNode) -> NotebookNode | None:
    """Without the live widget, which says nothing on a page; its picture stays."""
    was_widget = output.data.pop(WIDGET, None) is not None
    if was_widget and not set(output.data) - {"text/plain"}:
        return None
    if "text/plain" in output.data:
        output.data["text/plain"] = ADDRESS.sub("at 0x…", output.data["text/plain"])
    return output


def clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Strips what differs from run to run: progress bars, addresses, live widgets."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            # How a stream is cut into messages is a matter of timing.
            last.text += output.text
        else:
            merged.append(output)
    cleaned = []
    for output in merged:
        if output.output_type == "stream":
            is_stderr = output.name == "stderr"
            output.text = _clean_text(output.text, drop_progress=is_stderr)
            if output.text.strip():
                cleaned.append(output)
        elif "data" not in output or _clean_bundle(output):
            cleaned.append(output)
    return cleaned


def execute(notebook: NotebookNode, lesson: Lesson) -> None:
    """Run all cells in an empty folder, so that nothing depends on where it lies."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name=KERNEL_NAME,
            # Only against a cell that hangs; `make run` watches the minutes.
            timeout=max(600, int(lesson.minutes[PROFILE] * 60 * 4)),
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=kernel_environment(PROFILE))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Versions and devices of whoever built it are of no use to the reader.
            is_setup = "setup" in tags(cell)
            cell.outputs = [] if is_setup else clean_outputs(cell.outputs)


# Build, check, solve ----------------------------------------------------------------


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Validated, and in one piece or not at all."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, draft)
    draft.replace(path)


def _read_committed(path: Path) -> NotebookNode | None:
    try:
        return nbformat.read(path, as_version=4) if path.exists() else None
    except nbformat.reader.NotJSONError as error:
        raise LessonError(f"{path.name} is no notebook: {str(error)[:80]}") from error


def _keep_outputs(
    course: Course,
    fresh: NotebookNode,
    old: NotebookNode | None,
    helpers: dict[str, str],
) -> bool:
    """Take over the outputs of an unedited build from the same code and helpers."""
    stamp = old.metadata.get("distill", {}) if old else {}
    if (
        old is None
        or stamp.get("code") != code_fingerprint(course, fresh)
        or stamp.get("code") != code_fingerprint(course, old)
        or stamp.get("helpers") != helpers
        or stamp.get("outputs") != output_hash(old)
    ):
        return False
    pairs = zip(_code_cells(fresh), _code_cells(old), strict=True)
    for new_cell, old_cell in pairs:
        new_cell.outputs = old_cell.outputs
        new_cell.execution_count = old_cell.execution_count
    return True


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def build(
    course: Course, lesson: Lesson, *, force: bool = False, text_only: bool = False
) -> str:
    """Write one notebook; returns what was done, in two words."""
    notebook = render(course, lesson)
    path = course.notebook_path(lesson)
    old = _read_committed(path)
    helpers = helper_hashes(course)
    if text_only and old is not None:
        helpers = dict(old.metadata.get("distill", {}).get("helpers", {}))
    stamp = {
        "fingerprint": fingerprint(course, notebook),
        "code": code_fingerprint(course, notebook),
        "helpers": helpers,
    }
    kept = not force and _keep_outputs(course, notebook, old, helpers)
    if not kept and text_only:
        raise LessonError("its code or data changed, too: build it without --text-only")
    if not kept:
        execute(notebook, lesson)
    stamp["outputs"] = output_hash(notebook)
    # Execution has put the kernel's version and the widgets' state here.
    notebook.metadata = nbformat.from_dict(render(course, lesson).metadata)
    notebook.metadata["distill"] = stamp
    write_notebook(notebook, path)
    return "outputs kept" if kept else "executed"


def find_problems(course: Course, lesson: Lesson) -> list[str]:
    """Everything that keeps a notebook from being committed as it is."""
    try:
        cells = read_cells(course, lesson)
        problems = lint(cells)
        if lesson.second_edition:
            problems += lint_prose(cells)
        fresh = render(course, lesson)
        found = _read_committed(course.notebook_path(lesson))
    except LessonError as error:
        return [str(error)]
    if found is None:
        return [*problems, "not built yet"]

    stamp = dict(found.metadata.pop("distill", {}))
    is_current = stamp.get("fingerprint") == fingerprint(course, fresh)
    if contents(found) != contents(fresh):
        problems.append(
            "edited by hand: change its source instead, then build"
            if is_current
            else "not built since its source, the template or course.toml changed"
        )
    elif not is_current:
        problems.append("not built since the data changed")
    if found.metadata != fresh.metadata:
        problems.append("its metadata are not the template's")
    if any(cell.execution_count is None for cell in _code_cells(found)):
        problems.append("has code cells that never ran")
    if stamp.get("outputs") != output_hash(found):
        problems.append("its outputs are not those of the build")
    return problems


def changed_helpers(course: Course, lesson: Lesson) -> list[str]:
    """Modules and study results that changed since the notebook was built."""
    found = _read_committed(course.notebook_path(lesson))
    then = dict(found.metadata.get("distill", {}).get("helpers", {})) if found else {}
    now = helper_hashes(course)
    if not then:
        return []
    return sorted(name for name in now | then if now.get(name) != then.get(name))


def solve(course: Course, lesson: Lesson) -> Path:
    """Write the variant in which the solutions replace the stubs."""
    path = course.solved_path(lesson)
    write_notebook(render(course, lesson, solved=True), path)
    return path


# The command line -------------------------------------------------------------------


def build_all(
    course: Course, lessons: list[Lesson], *, force: bool, text_only: bool
) -> int:
    failed = []
    for lesson in lessons:
        print(f"{lesson.name} …", end="", flush=True)
        start = time.monotonic()
        try:
            done = build(course, lesson, force=force, text_only=text_only)
        except (LessonError, CellControlSignal, DeadKernelError) as error:
            failed.append(lesson.number)
            print(f" FAILED, the old notebook stays\n\n{error}\n", flush=True)
            continue
        print(f" {done}, {time.monotonic() - start:.1f} s", flush=True)
        for finding in find_problems(course, lesson):
            print(f"    {finding}")
    if failed:
        print(f"Not built: {' '.join(failed)}")
    return 1 if failed else 0


def check_all(course: Course, lessons: list[Lesson]) -> int:
    bad = 0
    for lesson in lessons:
        problems = find_problems(course, lesson)
        bad += bool(problems)
        print(f"{lesson.name}: {'NOT OK' if problems else 'ok'}")
        for problem in problems:
            print(f"    {problem}")
        if not problems and (changed := changed_helpers(course, lesson)):
            print(f"    (for your information) changed since: {', '.join(changed)}")
    expected = {course.notebook_path(one) for one in course.lessons if one.ready}
    for stray in sorted(set((course.root / "notebooks").glob("*.ipynb")) - expected):
        bad += 1
        print(
            f"{stray.stem}: NOT OK\n    no lesson in course.toml is ready by that name"
        )
    if bad:
        print("`make notebooks` builds them anew.")
    return 1 if bad else 0


def solve_all(course: Course, lessons: list[Lesson]) -> int:
    for lesson in lessons:
        print(solve(course, lesson).relative_to(course.root))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["build", "check", "solve"])
    parser.add_argument("--only", nargs="*", default=[], metavar="NN")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--force", action="store_true", help="execute everything")
    how.add_argument("--text-only", action="store_true", help="execute nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    try:
        course = load_course(options.root.resolve())
        lessons = course.select(options.only)
        if options.action == "build":
            use_this_python()
            return build_all(
                course, lessons, force=options.force, text_only=options.text_only
            )
        if options.action == "check":
            return check_all(course, lessons)
        return solve_all(course, lessons)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
