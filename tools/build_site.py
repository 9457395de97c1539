"""Builds the course's site: ``make site`` puts it into ``build/site/html``.

Nothing is executed and nothing fetched. The source of the site is put together in
``build/site/source``: the documents of ``docs/``, the lessons with their committed
outputs, and pages from ``course.toml``, the results and the docstrings. Sphinx makes
pages of it, and a warning fails the build. It needs what ``setup_env.py --site``
installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import nbformat
from course import Course, Lesson, load_course
from site_lessons import PICTURES, page_of, picture
from site_reference import write_reference
from site_results import results_page

# Documents in the order of the menu; those that are not there are left out.
ABOUT = ("docs/results.md", "docs/what_we_got_wrong.md", "docs/glossary.md")
USE = (
    "docs/running.md",
    "docs/toolkit.md",
    "docs/cluster.md",
    "reference/index.rst",
)
CHANGE = ("docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md")
LINK = re.compile(
    r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<place>#[^)]*)?\)"
)
FENCED = re.compile(r"(?s)(```.+?```)")


def build(root: Path, folder: Path) -> None:
    """Build the whole site.

    Args:
        root: The project's folder.
        folder: Where to; ``source`` and ``html`` in it are made anew.

    Raises:
        subprocess.CalledProcessError: If Sphinx fails or warns.
    """
    source, static = folder / "source", folder / "static"
    for old in (source, static, folder / "html"):
        shutil.rmtree(old, ignore_errors=True)
    stage(load_course(root), source, static)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2"]
    command += ["-b", "html", "-c", str(root / "docs" / "site")]
    command += ["-D", f"html_static_path={static}", "-d", str(folder / "doctrees")]
    subprocess.run(
        [*command, str(source), str(folder / "html")],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    )


def stage(course: Course, source: Path, static: Path) -> None:
    """Put together what Sphinx reads.

    Args:
        course: The map.
        source: The folder of pages, which is made.
        static: The folder of all that is copied as it is, which is made, too.
    """
    pictures = static / PICTURES
    pictures.mkdir(parents=True)
    (static / "notebooks").mkdir()
    for file in (course.root / "docs" / "site" / "static").iterdir():
        shutil.copy(file, static)
    (source / "notebooks").mkdir(parents=True)
    lessons = [lesson for lesson in course.lessons if lesson.ready]
    for lesson in lessons:
        page = page_of(course, lesson, pictures)
        nbformat.write(page, source / "notebooks" / f"{lesson.name}.ipynb")
        shutil.copy(course.notebook_path(lesson), static / "notebooks")
    write_reference(source / "reference")
    pages = {path.relative_to(course.root): path for path in _documents(course.root)}
    texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
    texts[Path("docs/results.md")] = results_page(course.root, pictures)
    for name, text in texts.items():
        (source / name).parent.mkdir(exist_ok=True)
        text = _with_targets(text, name, course, set(texts), static)
        (source / name).write_text(text, encoding="utf-8")
    (source / "map.md").write_text(map_page(course, pictures), encoding="utf-8")
    text = (course.root / "docs" / "site" / "index.md").read_text(encoding="utf-8")
    first = _diagram(lessons[0], pictures)
    text = text.replace("{{first_picture}}", first) + menu(lessons, set(texts))
    (source / "index.md").write_text(text, encoding="utf-8")


def _documents(root: Path) -> list[Path]:
    named = [root / name for name in CHANGE if (root / name).exists()]
    return [*sorted((root / "docs").glob("*.md")), *named]


def menu(lessons: list[Lesson], pages: set[Path]) -> str:
    """The trees of contents that make the menu, as hidden parts of the first page."""
    there = {path.as_posix() for path in pages} | {"map.md", "reference/index.rst"}
    parts = {
        "The lessons": ["map.md", *(f"notebooks/{one.name}" for one in lessons)],
        "What came out": [one for one in ABOUT if one in there],
        "For your own project": [one for one in USE if one in there],
        "For those who change it": [one for one in CHANGE if one in there],
    }
    known = {name for names in parts.values() for name in names}
    parts["What came out"] += sorted(one for one in there - known if "docs/" in one)
    trees = [
        "```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names)
        for caption, names in parts.items()
    ]
    return "\n" + "".join(f"\n{tree}\n```\n" for tree in trees)


def map_page(course: Course, pictures: Path) -> str:
    """All lessons: what they are about, for how long, and their diagrams."""
    parts = ["# The map", "Take the lessons in order; each says what it builds on."]
    for lesson in course.lessons:
        name = f"{lesson.number} · {lesson.title}"
        if lesson.ready:
            name = f"[{name}](notebooks/{lesson.name}.ipynb)"
        parts.append(f"## {name}" if lesson.ready else f"## {name} (planned)")
        parts.append(lesson.summary)
        parts.append(
            f"About {lesson.work} minutes to work through, of which its cells take "
            f"{lesson.minutes['cpu']:g} on a laptop. Before it: {lesson.prerequisites}"
        )
        if lesson.ready:
            parts.append("\n".join(f"* {goal}" for goal in lesson.goals))
            parts.append(_diagram(lesson, pictures))
    return "\n\n".join(filter(None, parts)) + "\n"


def _diagram(lesson: Lesson, pictures: Path) -> str:
    """The lesson's diagram, if it has one; its words are in the picture's title."""
    for path in sorted(pictures.glob(f"{lesson.name}-*.svg")):
        title = re.search(r"(?s)<title>(.+?)</title>", path.read_text(encoding="utf-8"))
        words = unescape(title[1]) if title else lesson.summary
        return picture(path.name, words, static="_static")
    return ""


# Links --------------------------------------------------------------------------------


def _with_targets(
    text: str, page: Path, course: Course, pages: set[Path], static: Path
) -> str:
    """Links of a document that also lead somewhere on the site.

    A lesson or a document is a page. Another file of the project is copied, to be
    downloaded. What is neither, such as a folder, keeps its words alone.
    """
    lessons = {f"notebooks/{one.name}.ipynb" for one in course.lessons if one.ready}
    known = {path.as_posix() for path in pages} | lessons

    def follow(match: re.Match[str]) -> str:
        target = os.path.normpath(page.parent / match["target"])
        if target in known:
            return match[0]
        if target == "README.md":
            return f"[{match['words']}]({os.path.relpath('index.md', page.parent)})"
        file = course.root / target
        if not file.is_file():
            return match["words"]
        copied = static / "files" / target
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)
        address = os.path.relpath(f"_static/files/{target}", page.parent)
        return f'<a href="{address}">{match["words"]}</a>'

    parts = FENCED.split(text)
    return "".join(
        part if part.startswith("```") else LINK.sub(follow, part) for part in parts
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    start = time.monotonic()
    try:
        build(root, root / "build" / "site")
    except subprocess.CalledProcessError as error:
        print(f"The site was not built: Sphinx ended with {error.returncode}.")
        return 1
    page = root / "build" / "site" / "html" / "index.html"
    print(f"{page.relative_to(root)}: built in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
