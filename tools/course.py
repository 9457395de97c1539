"""Reads ``notebooks/course.toml``: what the lessons are called, need and promise."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

# Until the repository is published, its address leads nowhere.
PLACEHOLDER = "https://github.com/distill-course/distill-course"


@dataclass(frozen=True)
class Lesson:
    """One notebook's entry in the map."""

    number: str
    name: str
    title: str
    summary: str
    minutes: dict[str, float]
    work: int
    memory_gb: dict[str, float]
    pair: str
    prerequisites: str
    goals: list[str]
    ready: bool
    # Written by the rules of the second edition, and held to those for its prose.
    second_edition: bool = False


@dataclass(frozen=True)
class Course:
    """The whole map, and the folder of the project that it belongs to.

    ``tag`` is the version's, which stands in ``distill_helpers/__init__.py`` alone.
    """

    root: Path
    title: str
    repository: str
    tag: str
    licence: str
    lessons: tuple[Lesson, ...]

    @property
    def published(self) -> bool:
        """Whether ``repository`` is an address that leads somewhere."""
        return self.repository != PLACEHOLDER

    def source_path(self, lesson: Lesson) -> Path:
        """The only form of a lesson that a person edits."""
        return self.root / "notebooks" / "source" / f"{lesson.name}.py"

    def notebook_path(self, lesson: Lesson) -> Path:
        """The built notebook, which is committed."""
        return self.root / "notebooks" / f"{lesson.name}.ipynb"

    def solved_path(self, lesson: Lesson) -> Path:
        """Where the variant with the solutions filled in goes."""
        return self.root / "build" / "solved" / f"{lesson.name}.ipynb"

    def select(self, only: list[str]) -> list[Lesson]:
        """The finished lessons; narrowed by number or name where ``only`` asks."""
        known = {key: one for one in self.lessons for key in (one.number, one.name)}
        if unknown := [key for key in only if key not in known]:
            numbers = " ".join(one.number for one in self.lessons)
            raise ValueError(f"no lesson {' '.join(unknown)}; there are {numbers}")
        if planned := [key for key in only if not known[key].ready]:
            raise ValueError(f"{' '.join(planned)}: not written yet (course.toml)")
        wanted = [known[key] for key in only] or self.lessons
        return [one for one in self.lessons if one.ready and one in wanted]


def load_course(root: Path) -> Course:
    path = root / "notebooks" / "course.toml"
    facts = tomllib.loads(path.read_text(encoding="utf-8"))
    lessons = tuple(Lesson(**entry) for entry in facts.pop("lesson"))
    package = (root / "distill_helpers" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    if version is None:
        raise ValueError(f"{root}: distill_helpers/__init__.py has no __version__")
    return Course(root=root, lessons=lessons, tag=f"v{version[1]}", **facts)
