"""The page of results: the published tables, and every claim drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from readme_tables import SHOWN
from site_lessons import picture

from distill_helpers.course.plots import forest, use_style
from distill_helpers.studies import UNITS
from distill_helpers.studies.results import Verdict, judge, load_results

MARKED = re.compile(r"(?s)<!-- begin: results -->\n(.+?)<!-- end: results -->")


def results_page(root: Path, pictures: Path) -> str:
    """The text of ``docs/results.md`` with a figure under the heading of every study.

    Args:
        root: The project's folder. Without ``docs/results.md`` the marked block of
            README.md stands in for it.
        pictures: The folder into which the figures are written.
    """
    own = root / "docs" / "results.md"
    if own.exists():
        text = own.read_text(encoding="utf-8")
    else:
        found = MARKED.search((root / "README.md").read_text(encoding="utf-8"))
        if not found:
            raise ValueError("docs/results.md is missing, and README.md has no results")
        text = "# Results\n\n" + re.sub(r"(?m)^#(#+ )", r"\1", found[1])
    use_style()
    mpl.rcParams["svg.hashsalt"] = "distill_helpers"
    for name, shown in SHOWN.items():
        heading = re.compile(rf"(?m)^#+ {re.escape(shown.heading)}$")
        if heading.search(text):
            # No backslash stands in them that could be taken for a group's.
            figures = "\n".join(_forests(name, pictures))
            text = heading.sub(rf"\g<0>\n\n{figures}", text)
    return text


def _forests(study: str, pictures: Path) -> list[str]:
    """One figure for each unit that the claims of a study are measured in."""
    groups: dict[str, list[Verdict]] = {}
    for one in judge(load_results(study)):
        unit = UNITS.get(one.claim.metric, one.claim.metric)
        groups.setdefault(unit, []).append(one)
    shown = []
    for number, verdicts in enumerate(groups.values()):
        figure = Figure(figsize=(8.4, 0.9 + 0.52 * len(verdicts)), layout="constrained")
        forest(figure.subplots(), verdicts)
        file = pictures / f"forest-{study}-{number}.svg"
        metadata: dict[str, Any] = {"Date": None}
        figure.savefig(file, format="svg", metadata=metadata)
        shown.append(picture(file.name, _in_words(verdicts)))
    return shown


def _in_words(verdicts: list[Verdict]) -> str:
    told = "; ".join(f"{one.claim.text}: {one.status}" for one in verdicts)
    return f"Gains and intervals of the claims in the table below. {told}."
