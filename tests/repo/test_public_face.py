"""The names that users import: few, lazy, documented, and changed only on purpose.

``python tests/repo/test_public_face.py`` writes ``public_face.txt`` anew.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import distill_helpers

SNAPSHOT = Path(__file__).with_name("public_face.txt")
HEAVY = ("torch", "transformers", "datasets", "numpy", "matplotlib")


def face() -> str:
    """Every public name with its signature, a line each."""
    lines = []
    for name in distill_helpers.__all__:
        lines.append(f"{name}{inspect.signature(getattr(distill_helpers, name))}")
    return "\n".join(lines) + "\n"


def test_the_face_is_the_one_that_was_agreed_on():
    assert face() == SNAPSHOT.read_text(encoding="utf-8"), (
        "a public name or signature changed; if that is wanted, run "
        "`python tests/repo/test_public_face.py`, look at the difference, and say so "
        "in CHANGELOG.md"
    )


def test_there_are_at_most_thirty_names_in_order():
    assert len(distill_helpers.__all__) <= 30
    assert distill_helpers.__all__ == sorted(distill_helpers.__all__)
    assert set(distill_helpers.__all__) <= set(dir(distill_helpers))


@pytest.mark.parametrize("name", distill_helpers.__all__)
def test_every_public_name_says_what_it_is_and_who_teaches_it(name):
    made = getattr(distill_helpers, name)
    words = inspect.getdoc(made)
    room = inspect.getdoc(sys.modules[made.__module__])
    assert len(words.splitlines()[0]) > 20
    assert "notebook" in words + room


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(distill_helpers.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in typed.body
        for alias in node.names  # type: ignore[attr-defined]
    }
    rooms = {
        name: f"distill_helpers.{room}"
        for name, room in distill_helpers._ROOM_OF.items()
    }
    assert seen == rooms
    assert sorted(seen) == distill_helpers.__all__


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, distill_helpers\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "distill_helpers.get_profile\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True False"]


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="no attribute 'soft_labels_loss'"):
        distill_helpers.soft_labels_loss  # noqa: B018


if __name__ == "__main__":
    SNAPSHOT.write_text(face(), encoding="utf-8")
