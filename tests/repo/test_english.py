"""Docstrings are sentences: what an argument is, not what it belongs to.

Every argument has its sentence, or stands once behind "Same as in".
"""

import ast
import re
from pathlib import Path

import pytest

import distill_helpers

PACKAGE = Path(distill_helpers.__file__).parent
# "Of the drawing" leaves the reader to guess what the argument is.
TELEGRAMS = re.compile(r"(\w+|\*\*\w+|\w+, \w+): (Of|As|See|Likewise|Ditto)\b")
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "_data" not in p.parts)


def argument_lines(words: str) -> list[str]:
    """The lines of a docstring that begin the text of an argument or attribute."""
    found, inside = [], False
    for line in words.splitlines():
        if re.fullmatch(r"(Args|Attributes|Arguments):", line):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and re.match(r" {4}\S", line):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_argument_is_a_telegram(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            words = ast.get_docstring(node) or ""
            found += [
                f"{node.name}: {line}"
                for line in argument_lines(words)
                if TELEGRAMS.match(line)
            ]
    assert not found, "\n".join(found)


def unexplained(function: ast.FunctionDef, words: str) -> list[str]:
    """Arguments of a documented public function that its docstring does not name."""
    if "\nArgs:" not in words:
        return []
    asked = function.args
    names = [one.arg for one in (*asked.posonlyargs, *asked.args, *asked.kwonlyargs)]
    names += [one.arg for one in (asked.vararg, asked.kwarg) if one is not None]
    said = {re.split(r"[^\w]", line.lstrip("*"))[0] for line in argument_lines(words)}
    if same := re.search(r"Same as in(.|\n)*", words):
        said |= set(re.findall(r"``(\w+)``", same.group()))
    return [n for n in names if n not in {"self", "cls", *said} and n[0] != "_"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_argument_is_explained(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            words = ast.get_docstring(node) or ""
            found += [f"{node.name}: {name}" for name in unexplained(node, words)]
    assert not found


def test_an_argument_left_out_is_found():
    (function,) = ast.parse("def f(rows, *, seed=0, **_): ...").body
    assert unexplained(function, "Sum.\n\nArgs:\n    rows: What to read.") == ["seed"]
    same = "Sum.\n\nArgs:\n    rows: What to read.\n\nSame as in g: ``seed``."
    assert unexplained(function, same) == []


def test_the_rule_finds_a_telegram():
    words = "Sum.\n\nArgs:\n    seed: Of the draws.\n    rows: What to read.\n"
    assert [bool(TELEGRAMS.match(x)) for x in argument_lines(words)] == [True, False]
