"""Plain words: the rules of a lesson's prose in the second edition.

Readers whose first language is another lose a long sentence, a second bracket, a word
that is used in a rare sense. Each finding is one sentence for the lesson's author.
"""

from __future__ import annotations

import re

from lesson_source import first_line, tags
from nbformat import NotebookNode

MOST_WORDS = 2300
SENTENCE = 30
VERDICTS = 6
# What the studies call a training, wherever a lesson got it from.
_TRAINS = re.compile(r"\b(?:train_(?:student|arm|tiny|pair)|grow|repair)\(")
BANNED = ("beside", "dear", "dearer", "mend", "mended", "whoever", "whomever")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Not read as sentences: code, formulas, the address behind a link's words.
_CODE = re.compile(r"```.*?```|\$\$.*?\$\$", re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`|\$[^$\n]+\$")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_BREAK = re.compile(r"^## Break$", re.MULTILINE)
_BRACKET = re.compile(r"\([^()]*\)")


def paragraphs(text: str) -> list[str]:
    """What is read as running text, one string a paragraph or a list's item."""
    text = _LINK.sub(r"\1", _CODE.sub("\n\n", text))
    lines = []
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith(("|", "#", "<", "---")):
            lines.append("")
        elif re.match(r"(?:[*-]|\d+\.) ", bare):
            lines += ["", bare.split(" ", 1)[1]]
        else:
            lines.append(bare)
    parts = re.split(r"\n{2,}", "\n".join(lines))
    return [part.replace("\n", " ").strip() for part in parts if part.strip()]


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; a colon or a semicolon ends none."""
    return [one for one in re.split(r"(?<=[.!?])[*_”\"')]*\s+", paragraph) if one]


def words(text: str) -> list[str]:
    """Words, a code span or a formula counting as one."""
    return _WORD.findall(_SPAN.sub(" code ", text))


def lint_prose(cells: list[NotebookNode]) -> list[str]:
    """All findings for the cells of one lesson's source."""
    findings = []
    # A break makes two sittings of a long lesson, each with its own measure.
    totals = [0]
    for number, cell in enumerate(cells, start=1):
        where = f"cell {number} ({first_line(cell)[:40]!r})"
        if cell.cell_type == "code":
            continue
        parts = paragraphs(cell.source)
        if _BREAK.search(cell.source):
            totals.append(0)
        totals[-1] += sum(len(words(part)) for part in parts)
        for part in parts:
            # A published fact may need its source behind it.
            brackets = _BRACKET.findall(_SPAN.sub(" code ", part))
            if len(brackets) > 1 and "published" not in tags(cell):
                findings.append(f"{where}: two brackets in one paragraph: {part[:40]}…")
            for sentence in sentences(part):
                count = len(words(sentence))
                if count > SENTENCE:
                    findings.append(
                        f"{where}: a sentence of {count} words, {SENTENCE} are "
                        f"allowed: {sentence[:40]}…"
                    )
            used = {word.lower() for word in words(part)}
            findings += [
                f"{where}: the word {word!r}; say it more plainly"
                for word in BANNED
                if word in used
            ]
    findings += [
        f"{total:,} words of prose, {MOST_WORDS:,} are allowed"
        for total in totals
        if total > MOST_WORDS
    ]
    return findings + _lint_code(cells) + _hidden_training(cells)


def _lint_code(cells: list[NotebookNode]) -> list[str]:
    """What of the course's own machinery stands in the reader's way."""
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    findings = []
    if sum("profile.pick(" in source for source in code) > 1:
        findings.append("`profile.pick` in several cells: put the sizes into one")
    if any("judged=" in source for source in code):
        findings.append("`judged=` is for the course to find out, not for the reader")
    shown = sum(source.count(".verdict(") for source in code)
    if shown > VERDICTS:
        findings.append(f"{shown} verdicts are shown, {VERDICTS} are allowed")
    return findings


def _hidden_training(cells: list[NotebookNode]) -> list[str]:
    """Trainings of `studies` that a reader cannot know yet.

    The lesson has written a loop of its own by then, or says which loop it is: in the
    code, or in the words above it.
    """
    findings = []
    known, said = False, ""
    for number, cell in enumerate(cells, start=1):
        if cell.cell_type != "code":
            said = cell.source
            continue
        call = _TRAINS.search(cell.source)
        if call and "loop" in said + cell.source:
            known = True
        if call and not known:
            findings.append(
                f"cell {number}: {call[0]}…) trains before the lesson has shown its "
                "loop; show it, or say whose loop it is"
            )
        known = known or ".backward()" in cell.source
    return findings
