"""The lessons, made ready for the site: outputs as committed, nothing is executed.

Set-up cells are folded (hints and solutions are so in the notebooks already); the map
and the links at the end go, because the site has its own; pictures become files with
a text for those who cannot see them; and a figure with a slider, whose positions the
output holds, becomes a picture with a real ``<input type="range">``.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from course import Course, Lesson
from lesson_source import tags
from nbformat import NotebookNode
from nbformat.v4 import new_output

from distill_helpers.course.widgets import FRAMES

PNG, SVG = "image/png", "image/svg+xml"
# Where the pages look for the pictures; one folder for all of them.
PICTURES = "pictures"
BADGE = re.compile(r"\[!\[(?P<words>[^\]]*)\]\([^)]*\)\]\((?P<target>[^)]*)\)")
# What stands on the lid of a folded cell.
FOLDED = {"setup": "Set-up", "parameters": "The profile"}
DRAWS = ("title", "suptitle", "set_title", "set_xlabel", "set_ylabel", "set")
WORDS = ("title", "xlabel", "ylabel")


def page_of(course: Course, lesson: Lesson, pictures: Path) -> NotebookNode:
    """A lesson as the site shows it.

    Args:
        course: The map.
        lesson: A finished lesson.
        pictures: The folder into which its pictures are written.

    Raises:
        FileNotFoundError: If it has not been built; ``make notebooks`` builds it.
    """
    notebook = nbformat.read(course.notebook_path(lesson), as_version=4)
    shown = []
    heading = lesson.title
    for number, cell in enumerate(notebook.cells):
        if {"map", "footer"} & set(tags(cell)):
            continue
        if cell.cell_type == "markdown":
            found = re.findall(r"(?m)^#+ (.+)$", cell.source)
            heading = found[-1] if found else heading
            if "title" in tags(cell):
                cell.source = _with_links(cell.source, lesson)
        else:
            for tag in set(FOLDED) & set(tags(cell)):
                cell.metadata["tags"] = [*tags(cell), "hide-input"]
                prompts = {"code_prompt_show": FOLDED[tag]}
                cell.metadata["mystnb"] = prompts | {"code_prompt_hide": FOLDED[tag]}
            name = f"{lesson.name}-{number}"
            told = described(cell.source, heading)
            cell.outputs = [
                _shown(output, pictures, f"{name}-{place}", told)
                for place, output in enumerate(cell.outputs)
            ]
        shown.append(cell)
    notebook.cells = shown
    return notebook


def _with_links(source: str, lesson: Lesson) -> str:
    """A link in words in place of the badge, whose picture lies on another server."""
    download = f'<a href="../_static/notebooks/{lesson.name}.ipynb" download>'
    download += "Download this notebook</a>"
    if not BADGE.search(source):
        title, _, rest = source.partition("\n")
        return f"{title}\n\n{download}\n{rest}"
    return BADGE.sub(rf"[\g<words>](\g<target>) · {download}", source, count=1)


# Pictures -----------------------------------------------------------------------------


def _shown(output: NotebookNode, pictures: Path, name: str, told: str) -> NotebookNode:
    data = output.get("data", {})
    if FRAMES in data:
        return _html(moving(data[FRAMES], pictures, name))
    if SVG not in data and PNG not in data:
        # Verdicts are also there for programs, under a name that no page knows.
        for kind in [one for one in data if one.endswith("+json")]:
            del data[kind]
        return output
    plain = str(data.get("text/plain", ""))
    words = told if plain.startswith(("<Figure", "<matplotlib")) else plain
    if SVG in data:
        file = pictures / f"{name}.svg"
        file.write_text(data[SVG], encoding="utf-8")
    else:
        file = pictures / f"{name}.png"
        file.write_bytes(base64.b64decode(data[PNG]))
    return _html(picture(file.name, words))


def _html(page: str) -> NotebookNode:
    return new_output("display_data", data={"text/html": page, "text/plain": ""})


def picture(file: str, words: str, static: str = "../_static") -> str:
    """One picture of a page.

    Args:
        file: Its name in the folder of pictures.
        words: What it shows.
        static: The way from the page to the folder of all that is copied.
    """
    source = f"{static}/{PICTURES}/{file}"
    return (
        f'<div class="picture"><img class="figure" src="{source}" '
        f'alt="{escape(words)}"></div>'
    )


def moving(frames: dict[str, Any], pictures: Path, name: str) -> str:
    """A picture, and the slider that moves it.

    Args:
        frames: What ``explore`` stored: ``name``, ``values``, ``start``, ``alt`` and
            ``png``, one picture a value.
        pictures: The folder into which the pictures are written.
        name: The beginning of their names.

    Returns:
        HTML, complete without a script but for the moving.
    """
    for place, content in enumerate(frames["png"]):
        (pictures / f"{name}-{place}.png").write_bytes(base64.b64decode(content))
    values = [f"{value:g}" for value in frames["values"]]
    start = frames["values"].index(frames["start"])
    files = [
        f"../_static/{PICTURES}/{name}-{place}.png" for place in range(len(values))
    ]
    facts = escape(json.dumps({"values": values, "files": files}))
    label = escape(frames["name"])
    return (
        f'<figure class="moving" data-frames="{facts}">'
        f"{picture(Path(files[start]).name, frames['alt'])}"
        f'<div class="control"><label for="{name}">{label}</label>'
        f'<input id="{name}" type="range" min="0" max="{len(values) - 1}" step="1" '
        f'value="{start}" aria-valuetext="{values[start]}">'
        f'<output for="{name}">{values[start]}</output></div></figure>'
    )


def described(source: str, heading: str) -> str:
    """What a figure shows, from its cell: its titles and the names of its axes.

    A figure of matplotlib stores nothing in words. The lesson says around it what is to
    be seen; this says which figure it is.

    Args:
        source: The cell's code.
        heading: The heading that it stands under.
    """
    found: dict[str, list[str]] = {word: [] for word in WORDS}
    for node in ast.walk(ast.parse(re.sub(r"(?m)^( *)[%!].*", r"\1pass", source))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in DRAWS and node.args:
            word = called.removeprefix("set_").removeprefix("sup")
            found.get(word, []).append(_words(node.args[0]))
        for one in node.keywords:
            if one.arg in WORDS:
                found[one.arg].append(_words(one.value))
    said = {word: ", ".join(filter(None, texts)) for word, texts in found.items()}
    parts = [f"Figure in the section “{_plain(heading)}”"]
    parts += [said["title"]] if said["title"] else []
    parts += [f"across: {said['xlabel']}"] if said["xlabel"] else []
    parts += [f"upwards: {said['ylabel']}"] if said["ylabel"] else []
    return "; ".join(parts) + ". The text around it says what to see."


def _words(node: ast.expr) -> str:
    """The text of a string or an f-string, without what is filled in."""
    if isinstance(node, ast.JoinedStr):
        texts = [getattr(one, "value", "…") for one in node.values]
        return _plain("".join(one if isinstance(one, str) else "…" for one in texts))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _plain(node.value)
    return ""


def _plain(text: str) -> str:
    return re.sub(r"[$`*\\]", "", text).replace("\n", " ").strip()
