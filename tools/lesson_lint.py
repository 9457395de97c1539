"""The rules a lesson's source keeps; each finding is one sentence for its author."""

from __future__ import annotations

import ast
import re
from statistics import median

from lesson_source import first_line, tags
from nbformat import NotebookNode

MOST_LINES = 30
MEDIAN_LINES = 8
LINE_LENGTH = 79
FEWEST_EXERCISES = 2
FEWEST_HINTS = 2

KNOWN_TAGS = {
    "exercise",
    "solution",
    "hint",
    "published",
    "given",
    "nbval-check-output",
    "nbval-ignore-output",
    "nbval-skip",
    "raises-exception",
}

# Where a decimal is not a measured one: code, mathematics, links and addresses.
NOT_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\[[^\]]*\]\([^)]*\)|<?https?://\S+",
    re.DOTALL,
)
# 3.66 or 39 %; not Qwen2.5, 1.5B, GPT-3.5, a version such as 1.2.3, or an arXiv number.
MEASURED = re.compile(
    r"(?<![\w.])(?<![A-Za-z0-9]-)(?!\d{4}\.\d{5}\b)"
    r"(?:\d+\.\d+(?!\.?\d|[BMK]\b)(?:\s?%)?|\d+\s?%)"
)
PREDICT = re.compile(r"\*\*Predict|^#+ .*Predict", re.MULTILINE)


def measured_decimals(text: str) -> list[str]:
    """Numbers that look measured in a piece of Markdown."""
    return MEASURED.findall(NOT_PROSE.sub(" ", text))


def _lint_markdown(cell: NotebookNode) -> list[str]:
    if {"published", "given"} & set(tags(cell)):
        return []
    return [
        f"the number {number} is typed into Markdown: print it from a cell, or tag "
        "the cell `published` (a paper's figure, with its source) or `given` (an "
        "example's own number)"
        for number in measured_decimals(cell.source)
    ]


def _lint_code(cell: NotebookNode) -> list[str]:
    lines = cell.source.splitlines()
    findings = [
        f"a line of {len(line)} characters, {LINE_LENGTH} are allowed: {line[:40]}…"
        for line in lines
        if len(line) > LINE_LENGTH
    ]
    if len(lines) > MOST_LINES:
        findings.append(f"{len(lines)} lines of code, {MOST_LINES} are allowed")
    return findings


def _lint_exercises(cells: list[NotebookNode]) -> list[str]:
    findings = []
    marked = [cell for cell in cells if {"exercise", "solution"} & set(tags(cell))]
    for cell in marked:
        if cell.cell_type != "code":
            findings.append(f"exercises and solutions are code: {first_line(cell)!r}")
    kinds = ["exercise" if "exercise" in tags(cell) else "solution" for cell in marked]
    if kinds != ["exercise", "solution"] * (len(kinds) // 2):
        findings.append(
            "every exercise needs its solution after it, before the next "
            f"exercise; found: {', '.join(kinds)}"
        )
    if kinds.count("exercise") < FEWEST_EXERCISES:
        findings.append(f"fewer than {FEWEST_EXERCISES} cells tagged `exercise`")
    hints = 0
    for cell in cells:
        if "exercise" in tags(cell):
            hints = 0
        elif "hint" in tags(cell):
            hints += 1
        elif "solution" in tags(cell) and hints < FEWEST_HINTS:
            findings.append(
                f"{hints} hints before the solution {first_line(cell)!r}: a first one "
                "to begin with, and one for a symptom"
            )
    return findings


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


def _lint_sliders(cells: list[NotebookNode]) -> list[str]:
    """A slider draws anew when the whole notebook has run: with the names of then."""
    trees = [
        ast.parse(cell.source)
        for cell in cells
        if cell.cell_type == "code" and "solution" not in tags(cell)
    ]
    functions = {
        node.name: node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    findings = []
    for number, tree in enumerate(trees):
        drawn = {
            functions[call.args[0].id]
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and getattr(call.func, "id", "") == "explore"
            and call.args
            and isinstance(call.args[0], ast.Name)
            and call.args[0].id in functions
        }
        for function in drawn:
            own = _names(function, ast.Store)
            own |= {
                node.arg for node in ast.walk(function) if isinstance(node, ast.arg)
            }
            read = _names(function, ast.Load) - own
            later = set[str]().union(
                *(_names(t, ast.Store) for t in trees[number + 1 :])
            )
            findings += [
                f"a later cell gives {name!r} another meaning, and the slider of "
                f"{function.name!r} draws with that: use another name there"
                for name in sorted(read & later)
            ]
    return findings


def lint(cells: list[NotebookNode]) -> list[str]:
    """All findings for the cells of one lesson's source."""
    findings = []
    for number, cell in enumerate(cells, start=1):
        where = f"cell {number} ({first_line(cell)[:40]!r})"
        found = (_lint_code if cell.cell_type == "code" else _lint_markdown)(cell)
        if unknown := set(tags(cell)) - KNOWN_TAGS:
            found.append(f"unknown tag {', '.join(sorted(unknown))}")
        findings += [f"{where}: {finding}" for finding in found]

    lengths = [
        len(cell.source.splitlines())
        for cell in cells
        if cell.cell_type == "code" and "solution" not in tags(cell)
    ]
    if lengths and median(lengths) > MEDIAN_LINES:
        findings.append(
            f"half of the code cells are longer than {MEDIAN_LINES} lines: "
            f"{median(lengths):g}"
        )
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if not PREDICT.search(prose):
        findings.append("no **Predict** before a run")
    return findings + _lint_exercises(cells) + _lint_sliders(cells)
