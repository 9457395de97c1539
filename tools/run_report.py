"""What a run leaves to read: a page per notebook, an index, a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from course import Course
from nbformat import NotebookNode

SLOWEST = 5

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: run in {profile}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e;
        --slow: #9a6700 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --good: #4ac26b; --bad: #ff7b72; --slow: #d4a72c }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 3rem auto;
       padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .5rem .75rem; vertical-align: top;
         border-bottom: 1px solid var(--line) }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums;
            white-space: nowrap }}
.good {{ color: var(--good) }} .bad {{ color: var(--bad) }}
.slow {{ color: var(--slow) }}
ul {{ margin: .25rem 0 0; padding-left: 1.1rem; font-size: .9rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; margin: 0 }}
small {{ opacity: .7 }}
</style>
<h1>{title}</h1>
<p>{count} notebooks in the <code>{profile}</code> profile, {passed} without a failure,
{seconds:.0f} s in all.</p>
<table>
<thead><tr><th>notebook<th>seconds<th>status<th>checks and verdicts</tr></thead>
<tbody>
{rows}
</tbody>
</table>
"""

ROW = """\
<tr><td><a href="{name}.html">{name}</a><br><small><a href="{name}.ipynb">.ipynb</a>\
</small>
<td class="number">{seconds:.1f}
<td><span class="{status_class}">{status}</span>
<td>{verdicts}{details}</tr>"""


@dataclass
class Result:
    """What came of one notebook."""

    name: str
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    # Seconds and first line of every cell.
    cells: list[tuple[float, str]] = field(default_factory=list)
    # Of all that it came from; the same inputs need no second run.
    inputs: str = ""

    @property
    def ok(self) -> bool:
        """Whether the run may count this notebook as passed."""
        return not self.failures

    @property
    def verdicts(self) -> str:
        """Its checks and verdicts, counted by status."""
        counts = Counter(f"{one['kind']} {one['status']}" for one in self.findings)
        return ", ".join(f"{count} × {what}" for what, count in counts.items()) or "–"


def write_page(notebook: NotebookNode, path: Path) -> None:
    """One executed notebook as HTML."""
    from nbconvert import HTMLExporter

    metadata = {"metadata": {"name": path.stem}}
    body, _ = HTMLExporter().from_notebook_node(notebook, resources=metadata)
    path.write_text(body, encoding="utf-8")


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{line}' for line in lines)}</ul>" if lines else ""


def _row(result: Result) -> str:
    lines = [f'<pre class="bad">{escape(text)}</pre>' for text in result.failures]
    lines += [f'<span class="slow">{escape(text)}</span>' for text in result.warnings]
    lines += [
        f"{escape(one['name'])}: <strong>{escape(one['status'])}</strong>. "
        f"{escape(one['message'])}"
        for one in result.findings
    ]
    return ROW.format(
        name=escape(result.name),
        seconds=result.seconds,
        status="ok" if result.ok else "failed",
        status_class="good" if result.ok else "bad",
        verdicts=escape(result.verdicts),
        details=_items(lines),
    )


def write_index(
    course: Course, results: Sequence[Result], profile: str, path: Path
) -> None:
    """The page to open after a run."""
    page = PAGE.format(
        title=escape(course.title),
        profile=profile,
        count=len(results),
        passed=sum(result.ok for result in results),
        seconds=sum(result.seconds for result in results),
        rows="\n".join(_row(result) for result in results),
    )
    path.write_text(page, encoding="utf-8")


def table(results: Sequence[Result]) -> str:
    """The same for the terminal."""
    width = max([8, *(len(result.name) for result in results)])
    lines = [f"{'notebook':<{width}}  seconds  status  verdicts"]
    for result in results:
        status = "ok" if result.ok else "FAILED"
        head = f"{result.name:<{width}}  {result.seconds:7.1f}  {status:<6}"
        lines.append(f"{head}  {result.verdicts}")
        lines += [
            f"{'':<{width}}    {one['name']}: {one['status']}. {one['message']}"
            for one in result.findings
            if one["kind"] != "check"
        ]
    return "\n".join(lines)


def slowest(results: Sequence[Result]) -> str:
    """The cells that took longest, of all notebooks; empty if none was timed."""
    cells = [(*cell, result.name) for result in results for cell in result.cells]
    if not cells:
        return ""
    lines = ["slowest cells"]
    for seconds, label, name in sorted(cells, reverse=True)[:SLOWEST]:
        lines.append(f"{seconds:7.1f} s  {name}: {label}")
    return "\n".join(lines)
