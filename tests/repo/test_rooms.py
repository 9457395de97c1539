"""The rule of the house: rooms with one purpose, and imports that run downwards."""

import ast
from pathlib import Path

import pytest

import distill_helpers

PACKAGE = Path(distill_helpers.__file__).parent
# From the ground up: a room imports only from rooms before it, and from itself.
ROOMS = (
    "losses",
    "machine",
    "data",
    "models",
    "evaluation",
    "labels",
    "trainers",
    "planning",
    "export",
    "tasks",
    "studies",
    "course",
    "cli",
    "__main__",
)
TOOLKIT = ROOMS[: ROOMS.index("tasks")]
FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if "_data" not in path.parts and path != PACKAGE / "__init__.py"
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(source: str) -> list[tuple[str, str | None]]:
    """Module and name of every import in a source, inside functions too."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def own(source: str) -> list[tuple[str, str | None]]:
    return [(m, n) for m, n in imports(source) if m.split(".")[0] == "distill_helpers"]


def upward(source: str, room: str) -> list[str]:
    """The rooms that a source imports from and must not, if it stands in ``room``."""
    allowed = ROOMS[: ROOMS.index(room) + 1]
    rooms = [
        module.split(".")[1] if "." in module else str(name)
        for module, name in own(source)
    ]
    return [one for one in rooms if one not in (*allowed, "__version__")]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_run_downwards(path):
    assert upward(text(path), room_of(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from distill_helpers.course import plots",
        "import distill_helpers.course.plots",
        "from distill_helpers import course",
        "def late():\n    from distill_helpers.course.plots import use_style",
        "if False:\n    from distill_helpers.course import plots",
    ],
)
def test_an_import_that_runs_upwards_is_seen(source):
    assert upward(source, "losses") == ["course"]
    assert upward(source, "planning") == ["course"]
    assert upward(source, "course") == upward(source, "cli") == []


def test_the_front_door_is_for_those_outside():
    """Through it a room could reach any other."""
    assert upward("from distill_helpers import plan", "cli") == ["plan"]


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_file_borrows_a_private_name(path):
    private = [
        f"{module}.{name}"
        for module, name in own(text(path))
        if name is not None and name.startswith("_") and name != "__version__"
    ]
    assert not private


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(text(path).splitlines()) <= 600


def test_the_losses_need_torch_alone():
    for path in (PACKAGE / "losses").glob("*.py"):
        foreign = {module.split(".")[0] for module, _ in imports(text(path))}
        standard = {"__future__", "collections", "contextlib", "dataclasses"}
        standard |= {"enum", "functools", "math", "typing"}
        assert foreign <= standard | {"torch", "distill_helpers"}, path


def test_every_room_has_its_place_in_the_order():
    assert {room_of(path) for path in FILES} <= set(ROOMS)


def test_every_room_says_what_it_is_for():
    for path in PACKAGE.glob("*/__init__.py"):
        words = ast.get_docstring(ast.parse(text(path)))
        assert words, path
        for file in path.parent.glob("*.py"):
            if file.name != "__init__.py" and path.parent.name not in ("studies",):
                assert f"``{file.stem}``" in words, f"{path} does not name {file.name}"
