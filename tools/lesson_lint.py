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
# What a list or a dictionary does not survive unchanged. `add`, `update`, `discard` and
# `sort` are not here: done twice, they leave what they leave when done once.
USES_UP = {"append", "extend", "insert", "pop", "popitem", "popleft", "remove"}
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


# A second run of a cell --------------------------------------------------------------


class _Reader(ast.NodeVisitor):
    """Follows a cell from top to bottom, and knows what it took from elsewhere.

    Bodies of functions and classes are left out: they run when they are called, and
    a name that they change is theirs.
    """

    def __init__(self) -> None:
        self.own: set[str] = set()
        self.taken: set[str] = set()
        self.findings: list[str] = []

    def _find(self, name: str, what: str) -> None:
        if name not in self.own:
            self.findings.append(
                f"{what}, and {name!r} is another cell's: run a second time, this cell "
                "fails or gives another result. Make it here, or change it where it "
                "is made"
            )

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            if node.id not in self.own:
                self.taken.add(node.id)
        elif isinstance(node.ctx, ast.Store):
            if node.id in self.taken and node.id not in self.own:
                self._find(node.id, f"{node.id} is read and then given another value")
            self.own.add(node.id)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                if target.id not in self.own:
                    self.findings.append(
                        f"`del {target.id}`: a second run finds no such name. "
                        f"`{target.id} = None` frees the memory as well, in a cell "
                        "that does not need it"
                    )
                self.own.discard(target.id)
            elif name := _root(target):
                self._find(name, f"`{ast.unparse(node)}`")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        # `a |= b` and `a &= b` give the same however often.
        if not isinstance(node.op, ast.BitOr | ast.BitAnd) and (
            name := _root(node.target)
        ):
            self._find(name, f"`{ast.unparse(node)[:40]}`")

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def _visit_comprehension(self, node: ast.AST) -> None:
        # Its variables are its own, and gone at its end.
        inner = _names(node, ast.Store)
        inner |= {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
        self.taken |= _names(node, ast.Load) - inner - self.own
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                self._visit_call(part, inner)

    visit_ListComp = visit_SetComp = visit_DictComp = _visit_comprehension
    visit_GeneratorExp = visit_Lambda = _visit_comprehension

    def _visit_definition(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.own.add(node.name)

    visit_FunctionDef = visit_ClassDef = _visit_definition

    def _visit_import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.own |= {(one.asname or one.name).split(".")[0] for one in node.names}

    visit_Import = visit_ImportFrom = _visit_import

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        self._visit_call(node, set())

    def _visit_call(self, node: ast.Call, inner: set[str]) -> None:
        if not isinstance(node.func, ast.Attribute):
            return
        what = node.func.attr
        if what in {"mkdir", "makedirs"} and not any(
            one.arg == "exist_ok" for one in node.keywords
        ):
            self.findings.append(
                f"`{what}` without `exist_ok=True`: a second run finds the folder there"
            )
        name = _root(node.func.value)
        if what in USES_UP and name and name not in inner:
            self._find(name, f"`{ast.unparse(node)[:40]}`")


def _root(node: ast.AST) -> str:
    """The name that an attribute or an item belongs to, or an empty string."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _lint_second_run(cell: NotebookNode) -> list[str]:
    """What would keep a learner from running the cell again; they do, by accident."""
    tree = ast.parse(cell.source)
    reader = _Reader()
    reader.visit(tree)
    attributes = [one for one in ast.walk(tree) if isinstance(one, ast.Attribute)]
    used = {one.attr for one in attributes}
    if {"grad", "zero_grad"} <= used and "backward" not in used:
        reader.findings.append(
            "the gradients are read and then set to zero: a second run finds none. "
            "Call `zero_grad` before `backward`, in that cell"
        )
    return reader.findings


def lint(cells: list[NotebookNode]) -> list[str]:
    """All findings for the cells of one lesson's source."""
    findings = []
    for number, cell in enumerate(cells, start=1):
        where = f"cell {number} ({first_line(cell)[:40]!r})"
        found = (_lint_code if cell.cell_type == "code" else _lint_markdown)(cell)
        if cell.cell_type == "code":
            found += _lint_second_run(cell)
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
