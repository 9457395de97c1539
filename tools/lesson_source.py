"""Turns a lesson's source, ``notebooks/source/NN_name.py``, into notebooks.

The source is jupytext's percent format. Tags say what a cell is:

* ``exercise`` (code): a stub for the learner to fill in;
* ``solution`` (code): what belongs into the nearest ``exercise`` before it. Learners
  see it folded away; in the solved variant it stands in the stub's place;
* ``hint`` (Markdown): folded away; the cell's title, if any, names the symptom;
* ``published``, ``given`` (Markdown): may hold decimals (see ``lesson_lint``).
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter

import jupytext
import template
from course import Course, Lesson
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


class LessonError(ValueError):
    """A lesson's source breaks a rule; the message says which and where."""


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def first_line(cell: NotebookNode) -> str:
    """What a person recognises a cell by."""
    return next((line for line in cell.source.splitlines() if line.strip()), "")


def read_cells(course: Course, lesson: Lesson) -> list[NotebookNode]:
    """The lesson's own cells, as a person wrote them."""
    path = course.source_path(lesson)
    if not path.exists():
        raise LessonError(f"{path.name} is missing, but course.toml calls it ready")
    cells = jupytext.read(path, fmt="py:percent").cells
    # Neither jupytext's own header nor an empty first line is a cell of the lesson.
    kinds = ("code", "markdown")
    return [cell for cell in cells if cell.cell_type in kinds and cell.source.strip()]


def _folded(summary: str, content: str) -> str:
    # The empty lines make Markdown of what is inside the HTML.
    return f"<details>\n<summary>{summary}</summary>\n\n{content.strip()}\n\n</details>"


def _find_exercise(cells: list[NotebookNode], solution: NotebookNode) -> NotebookNode:
    for cell in reversed(cells):
        if "solution" in tags(cell):
            break
        if "exercise" in tags(cell):
            return cell
    raise LessonError(f"a solution without an exercise: {first_line(solution)!r}")


def _lesson_cells(written: list[NotebookNode], *, solved: bool) -> list[NotebookNode]:
    cells: list[NotebookNode] = []
    for cell in written:
        metadata = {"tags": tags(cell)} if tags(cell) else {}
        if "solution" in tags(cell):
            exercise = _find_exercise(cells, cell)
            if solved:
                exercise.source = cell.source
                exercise.metadata["tags"].append("solution")
            else:
                folded = _folded("Solution", f"```python\n{cell.source}\n```")
                cells.append(new_markdown_cell(folded, metadata=metadata))
        elif "hint" in tags(cell):
            symptom = cell.metadata.get("title")
            summary = f"Hint: {symptom}" if symptom else "Hint"
            folded = _folded(summary, cell.source)
            cells.append(new_markdown_cell(folded, metadata=metadata))
        elif cell.cell_type == "code":
            cells.append(new_code_cell(cell.source, metadata=metadata))
        else:
            cells.append(new_markdown_cell(cell.source, metadata=metadata))
    return cells


def _set_ids(cells: list[NotebookNode]) -> None:
    """Ids from content, so that a rebuild or a moved cell keeps them."""
    seen: Counter[str] = Counter()
    for cell in cells:
        text = f"{cell.cell_type}\n{cell.source}"
        short = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[short] += 1
        cell.id = short if seen[short] == 1 else f"{short}-{seen[short]}"


def render(course: Course, lesson: Lesson, *, solved: bool = False) -> NotebookNode:
    """The learner's notebook, or the solved one, without outputs."""
    cells = [
        *template.opening(course, lesson),
        *_lesson_cells(read_cells(course, lesson), solved=solved),
        *template.closing(course, lesson),
    ]
    _set_ids(cells)
    notebook = new_notebook(cells=cells, metadata=copy.deepcopy(template.METADATA))
    notebook.nbformat_minor = 5
    return notebook
