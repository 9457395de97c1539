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


def imports(path: Path) -> list[tuple[str, str | None]]:
    """Module and name of every import in a file, inside functions too."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def own(path: Path) -> list[tuple[str, str | None]]:
    return [(m, n) for m, n in imports(path) if m.split(".")[0] == "distill_helpers"]


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_run_downwards(path):
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    for module, name in own(path):
        room = module.split(".")[1] if "." in module else name
        if room == "__version__":
            continue
        assert room in allowed, f"{ids(path)} imports {name} from {module}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_file_borrows_a_private_name(path):
    private = [
        f"{module}.{name}"
        for module, name in own(path)
        if name is not None and name.startswith("_") and name != "__version__"
    ]
    assert not private


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_the_losses_need_torch_alone():
    for path in (PACKAGE / "losses").glob("*.py"):
        foreign = {module.split(".")[0] for module, _ in imports(path)}
        standard = {"__future__", "collections", "contextlib", "dataclasses"}
        standard |= {"enum", "functools", "math", "typing"}
        assert foreign <= standard | {"torch", "distill_helpers"}, path


def test_every_room_has_its_place_in_the_order():
    assert {room_of(path) for path in FILES} <= set(ROOMS)


def test_every_room_says_what_it_is_for():
    for path in PACKAGE.glob("*/__init__.py"):
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert words, path
        for file in path.parent.glob("*.py"):
            if file.name != "__init__.py" and path.parent.name not in ("studies",):
                assert f"``{file.stem}``" in words, f"{path} does not name {file.name}"
