"""The reference of the package: a page for each room, from its docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import GenericAlias

import distill_helpers

# In the order of docs/architecture.md.
ROOMS = ["losses", "machine", "data", "models", "evaluation", "labels", "trainers"]
ROOMS += ["planning", "export", "tasks", "studies", "course", "cli"]


def write_reference(folder: Path) -> None:
    """Write ``index.rst`` and one page a room.

    Args:
        folder: Where to; it need not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        page = room_page(room)
        (folder / f"{room}.rst").write_text(page, encoding="utf-8")
    (folder / "index.rst").write_text(index_page(), encoding="utf-8")


def room_page(room: str) -> str:
    """What a room is for, what it offers, and what each of its files holds."""
    name = f"distill_helpers.{room}"
    module = importlib.import_module(name)
    parts = [_titled(room, "="), f".. automodule:: {name}"]
    parts.append(f".. py:currentmodule:: {name}")
    offered = getattr(module, "__all__", None) or _front_door(room)
    if offered:
        parts.append(_titled("What it offers", "-"))
        parts += [_documented(name, one) for one in sorted(offered, key=str.lower)]
    if hasattr(module, "__path__"):
        parts.append(_titled("Its files", "-"))
        parts += [_file_section(path) for path in _files(module)]
    return "\n\n".join(parts) + "\n"


def index_page() -> str:
    """The public names, and the rooms."""
    rows = []
    for name in distill_helpers.__all__:
        value = getattr(distill_helpers, name)
        room = value.__module__.split(".")[1]
        rows.append(
            (f":py:obj:`~distill_helpers.{room}.{name}`", _first_sentence(value))
        )
    pages = "\n".join(f"   {room}" for room in ROOMS)
    return "\n\n".join(
        [
            _titled("Reference", "="),
            "What most projects need comes straight from ``distill_helpers``, and "
            "everything else from its room: ``from distill_helpers.losses import …``.",
            _titled("The public names", "-"),
            _table(("name", "what it is for"), rows),
            _titled("The rooms", "-"),
            f".. toctree::\n   :maxdepth: 1\n\n{pages}",
        ]
    )


def _front_door(room: str) -> list[str]:
    """The public names that come from a room which is a single file."""
    found = [getattr(distill_helpers, name) for name in distill_helpers.__all__]
    home = f"distill_helpers.{room}"
    return [one.__name__ for one in found if one.__module__ == home]


def _titled(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


def _documented(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    path = f"{module}.{name}"
    # ``list[int]`` calls itself a class, too.
    if inspect.isclass(value) and not isinstance(value, GenericAlias):
        kind = "exception" if issubclass(value, Exception) else "class"
        # Members of its own: a trainer's hundred others are transformers' to explain.
        return f".. auto{kind}:: {path}\n   :members:\n   :show-inheritance:"
    if inspect.isfunction(value):
        return f".. autofunction:: {path}"
    return f".. py:data:: {name}\n\n   {_said_of(value, name)}"


def _said_of(value: object, name: str) -> str:
    shown = repr(value)
    return f"``{shown}``" if len(shown) <= 70 else f"See ``{name}`` in the source."


def _files(module: object) -> list[Path]:
    folder = Path(str(inspect.getfile(module))).parent  # type: ignore[arg-type]
    paths = sorted({*folder.glob("*.py"), *folder.glob("*/__init__.py")})
    return [path for path in paths if path != folder / "__init__.py"]


def _file_section(path: Path) -> str:
    """A file in one sentence, and what it defines for others to use."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.parent.name if path.name == "__init__.py" else path.stem
    rows = [
        (f"``{node.name}``", _sentence(ast.get_docstring(node) or ""))
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]
    parts = [_titled(name, "~"), _sentence(ast.get_docstring(tree) or "")]
    if rows:
        parts.append(_table(("name", "what it is for"), rows))
    return "\n\n".join(parts)


def _first_sentence(value: object) -> str:
    return _sentence(inspect.getdoc(value) or "")


def _sentence(words: str) -> str:
    """The first paragraph of a docstring, without links."""
    first = " ".join(words.split("\n\n")[0].split())
    first = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"``\1``", first)
    # A paragraph that leads to an example.
    return re.sub(r"::$", ":", first)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 35 65", ""]
    for name, words in (head, *rows):
        lines += [f"   * - {name}", f"     - {words}"]
    return "\n".join(lines)
