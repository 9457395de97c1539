"""The glossary, and the first use of its words in each lesson, which leads there.

A part of the site's build (a Sphinx transform), so that no lesson carries these links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"(?ms)^## (?P<name>.+?)$(?P<body>.+?)(?=^## |\Z)")
ALSO = re.compile(r"<!-- also: (?P<forms>[^>]+) -->")
LESSON = re.compile(
    r"Introduced in \[[^\]]+\]\(\.\./notebooks/(?P<lesson>\w+)\.ipynb\)"
)
PAGE = "docs/glossary"


@dataclass(frozen=True)
class Term:
    """A word of the glossary.

    Attributes:
        name: The heading of its entry.
        forms: All that lessons may write for it, the longest first.
        lesson: The name of the lesson that introduces it, if one does.
        sentence: What it means.
    """

    name: str
    forms: tuple[str, ...]
    lesson: str | None
    sentence: str

    @property
    def anchor(self) -> str:
        """Where its entry stands on the page."""
        kept = re.sub(r"[^\w\s-]", "", self.name.lower())
        return re.sub(r"\s+", "-", kept)


def read_glossary(path: Path) -> list[Term]:
    """The entries of ``docs/glossary.md``, in their order."""
    found = []
    for entry in ENTRY.finditer(path.read_text(encoding="utf-8")):
        body = entry["body"]
        also = ALSO.search(body)
        forms = [entry["name"], *(also["forms"].split(", ") if also else [])]
        lesson = LESSON.search(body)
        paragraphs = [one for one in ALSO.sub("", body).split("\n\n") if one.strip()]
        found.append(
            Term(
                entry["name"],
                tuple(sorted(forms, key=len, reverse=True)),
                lesson["lesson"] if lesson else None,
                " ".join(paragraphs[0].split()),
            )
        )
    return found


def first_uses(
    texts: list[str], terms: list[Term]
) -> Iterator[tuple[int, int, int, Term]]:
    """Where each term is first used.

    A longer form wins over a shorter one at the same place: "forward KL" is no use of
    "KL". Upper and lower case are one, but for words all in capitals.

    Args:
        texts: Pieces of running text, in the order of the page.
        terms: What to look for.

    Yields:
        The piece, where in it the use begins and ends, and the term.
    """
    form_of = {_key(form): (form, term) for term in terms for form in term.forms}
    forms = sorted((form for form, _ in form_of.values()), key=len, reverse=True)
    # A line may end within a form.
    any_form = "|".join(r"\s".join(map(re.escape, one.split())) for one in forms)
    pattern = re.compile(rf"(?<![\w-])(?:{any_form})(?![\w-])", re.IGNORECASE)
    seen = set()
    for piece, text in enumerate(texts):
        for match in pattern.finditer(text):
            form, term = form_of[_key(match[0])]
            wrong_case = form.isupper() and match[0] != form
            if term.name not in seen and not wrong_case:
                seen.add(term.name)
                yield piece, match.start(), match.end(), term


def _key(form: str) -> str:
    return " ".join(form.lower().split())


# The transform ------------------------------------------------------------------------


def link_first_uses(app: Any, doctree: Any, page: str) -> None:
    """Make the first use of a term in a lesson a link to the glossary."""
    from docutils import nodes

    if not page.startswith("notebooks/"):
        return
    everything = list(doctree.findall())
    # What every lesson begins with ends with its first cell of code.
    code = [n for n, node in enumerate(everything) if _is_cell(node)]
    pieces = [node for node in everything[min(code, default=0) :] if _is_running(node)]
    terms = read_glossary(Path(app.srcdir) / f"{PAGE}.md")
    address = app.builder.get_relative_uri(page, PAGE)
    texts = [node.astext() for node in pieces]
    places: dict[int, list[tuple[int, int, Term]]] = {}
    for piece, start, stop, term in first_uses(texts, terms):
        places.setdefault(piece, []).append((start, stop, term))
    for piece, found in places.items():
        text, parts, end = texts[piece], [], 0
        for start, stop, term in found:
            link = nodes.reference(
                "",
                text[start:stop],
                internal=True,
                refuri=f"{address}#{term.anchor}",
                reftitle=term.sentence,
                classes=["glossary"],
            )
            parts += [nodes.Text(text[end:start]), link]
            end = stop
        parts.append(nodes.Text(text[end:]))
        pieces[piece].parent.replace(pieces[piece], parts)


def _is_cell(node: Any) -> bool:
    from docutils import nodes

    return isinstance(node, nodes.container) and "cell" in node["classes"]


def _is_running(node: Any) -> bool:
    """Whether it is text that a link may stand in."""
    from docutils import nodes

    closed = (
        *(nodes.title, nodes.reference, nodes.literal, nodes.literal_block),
        *(nodes.math, nodes.math_block, nodes.raw, nodes.comment),
    )
    if not isinstance(node, nodes.Text):
        return False
    while node := node.parent:
        if isinstance(node, closed):
            return False
    return True
