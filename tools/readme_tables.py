"""Fills the marked blocks of README.md and docs/results.md: map, headlines, results.

The map comes from ``notebooks/course.toml``, the results from ``results/studies``: the
confirming rows of every study and the verdicts on its claims. No number and no verdict
in a block is typed by hand. ``--check`` changes nothing and fails if a block is out of
date. README's figure is the first diagram of lesson 00, written with the blocks.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course import Course, load_course

from distill_helpers.course.diagrams import three_techniques
from distill_helpers.studies import UNITS, Interval, t_interval
from distill_helpers.studies.records import Round, load_rounds
from distill_helpers.studies.results import what_would_decide
from distill_helpers.studies.study import claimed

PAGES = ("README.md", "docs/results.md")
FIGURE = "docs/three_techniques.svg"
NO_RESULTS = (
    "*The studies have not been run yet.* `make studies-anew` runs them and fills this "
    "in."
)


@dataclass(frozen=True)
class Shown:
    """How a study is shown.

    Attributes:
        heading: Of its section.
        metric: Of its table; empty where the claims say it all.
        title: Of the table.
        digits: Behind the decimal point.
        costs: Further columns, ``(title, column of the rows)``.
    """

    heading: str
    metric: str = ""
    title: str = ""
    digits: int = 3
    costs: tuple[tuple[str, str], ...] = ()


# In the order of the page. A study that is not named here shows its claims alone.
SHOWN = {
    "soft_labels": Shown(
        "Soft labels: the tiny pair on prose",
        "nll",
        "NLL on the held-out novel (nats per token, lower is better), by target and "
        "number of training sequences",
    ),
    "longer_training": Shown(
        "Soft labels, and labels, for longer",
        "nll",
        "NLL on the held-out novel (nats per token, lower is better), by target and "
        "number of steps",
    ),
    "stored_labels": Shown(
        "Stored soft labels: how much survives, for how many bytes",
        "nll",
        "NLL on the held-out novel (nats per token, lower is better), 800 sequences",
        costs=(("bytes a token at V = 49,152", "bytes_per_token_real"),),
    ),
    "reused_draws": Shown(
        "Stored draws, read again and again",
        "nll",
        "NLL on the held-out novel (nats per token, lower is better), 4,800 sequences "
        "read once or 400 read twelve times",
    ),
    "teacher_domain": Shown(
        "A teacher away from home: dictionary glosses",
        "nll",
        "NLL on held-out glosses (nats per token, lower is better), 800 sequences",
    ),
    "shared_task": Shown(
        "The shared task: sums of three numbers",
        "exact_match",
        "Exact match on the frozen test (percent, higher is better), by target and "
        "number of worked problems",
        digits=1,
        costs=(
            ("student TFLOPs", "student_tflops"),
            ("teacher TFLOPs", "teacher_tflops"),
        ),
    ),
    "hard_labels": Shown(
        "A large teacher's writing, a small student",
        "accuracy",
        "Right kinds on the 2,000 test glosses (share, higher is better), by training "
        "labels and number of the pool's",
    ),
    "reasoning_traces": Shown(
        "Reasoning traces: a teacher that is right four times in five",
        "exact_match",
        "Exact match on the frozen test (percent, higher is better), by what was read "
        "and number of questions asked",
        digits=1,
    ),
    "codistillation": Shown(
        "Co-distillation: teacher and student from scratch, together",
        "nll",
        "Held-out loss of the student (nats per token, lower is better), by how it "
        "learned and number of training rows; for 800 rows the grid ended too early, "
        "and `codistilled_few` counts",
    ),
    "codistilled_few": Shown(
        "Co-distillation with few rows, tried again",
        "nll",
        "Held-out loss of the student (nats per token, lower is better), 800 rows, by "
        "how it learned",
        costs=(("TFLOPs", "tflops"),),
    ),
    "codistilled_sums": Shown(
        "Co-distillation on the shared task",
        "exact_match",
        "Exact match on the frozen test (percent, higher is better), 2,000 worked "
        "problems, by how the student learned, at equal steps and equal operations",
        digits=1,
    ),
    "on_policy": Shown(
        "On-policy distillation: the student's own text",
        "exact_match",
        "Exact match on the frozen test (percent, higher is better) after a warm start "
        "on 1,500 of the teacher's answers, by how the student went on",
        digits=1,
        costs=(("seconds of training", "training_seconds"),),
    ),
    "side_by_side": Shown(
        "Every technique side by side",
        "exact_match",
        "Exact match on the frozen test (percent, higher is better): 500 labels, "
        "2,000 questions, one base student, 600 steps or as many operations as soft "
        "labels spend in them",
        digits=1,
    ),
    "real_pair": Shown("The real teacher: a pruned SmolLM2, repaired"),
}


# One question for every technique: study, claim, lesson, and the question, which does
# not say what the answer is.
HEADLINES = (
    (
        *("soft_labels", "few_data", "03"),
        "Does a student of soft labels predict text better than one of the text alone?",
    ),
    (
        *("stored_labels", "default_keeps", "04"),
        "Do 8 stored tokens and 24 drawn ones keep 90 % of that gain?",
    ),
    (
        *("hard_labels", "teacher_helps", "05"),
        "With only 600 labels, do a teacher's answers raise the share of right ones?",
    ),
    (
        *("reasoning_traces", "passes_retrained", "06"),
        "Does a student of the teacher's right traces beat a teacher that learned "
        "them, too?",
    ),
    (
        *("codistillation", "pays_many", "07"),
        "With 3,000 rows, does learning next to a young teacher beat learning alone?",
    ),
    (
        *("on_policy", "own_beats_soft", "08"),
        "Does learning from its own text beat soft labels on the teacher's traces?",
    ),
)


class ReadmeError(ValueError):
    """A page or the results cannot be used; the message says what to do."""


# The map ----------------------------------------------------------------------------


def map_block(course: Course) -> str:
    """One row for every lesson, finished or planned."""
    lines = [
        "| lesson | what it is about | to work through | `smoke` | `cpu` | `gpu` "
        "| status |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for lesson in course.lessons:
        name = f"{lesson.number} · {lesson.title}"
        if lesson.ready:
            name = f"[{name}](notebooks/{lesson.name}.ipynb)"
        minutes = (f"{lesson.minutes[key]:g}" for key in ("smoke", "cpu", "gpu"))
        status = "ready" if lesson.ready else "planned"
        lines.append(
            f"| {name} | {lesson.summary} | {lesson.work} | {' | '.join(minutes)} "
            f"| {status} |"
        )
    return "\n".join(lines)


# The results ------------------------------------------------------------------------


def read_rows(path: Path, phase: str) -> list[dict[str, str]]:
    """The rows of one study and one phase, ``"explore"`` or ``"confirm"``."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["phase"] == phase]


def _cell(values: Sequence[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "–"
    found = t_interval(values)
    return f"{found.mean:.{digits}f} ± {found.high - found.mean:.{digits}f}"


def metric_table(rows: Sequence[dict[str, str]], shown: Shown) -> str:
    """Arms by settings, in the order in which the study published them."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    columns = [*settings, *(title for title, _ in shown.costs)]
    lines = [f"| target | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        cells = []
        for setting in settings:
            there = [row for row in mine if row["setting"] == setting]
            values = [float(row[shown.metric]) for row in there]
            cells.append(_cell(values, shown.digits))
        for _, column in shown.costs:
            mean = sum(float(row[column]) for row in mine) / len(mine)
            cells.append(f"{mean:,.0f}" if mean >= 100 else f"{mean:.1f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _unit(verdict: dict[str, Any]) -> str:
    return UNITS.get(verdict["metric"], verdict["metric"])


def _interval(verdict: dict[str, Any]) -> str:
    return f"{verdict['gain']['low']:+.3f} to {verdict['gain']['high']:+.3f}"


def headlines_block(root: Path) -> str:
    """One question for every technique and its verdict, then a count of them all."""
    verdicts = load_verdicts(root)
    found = {(one["study"], one["name"]): one for one in verdicts}
    chosen = [(one, found[one[:2]]) for one in HEADLINES if one[:2] in found]
    if not chosen:
        return NO_RESULTS
    lines = ["| lesson | question | measured gain | verdict |", "|---|---|--:|---|"]
    for (_, _, lesson, question), one in chosen:
        over = f" over {100 * one['share']:g} %" if one.get("reference") else ""
        share = one["metric"] == "accuracy"
        scale, unit = (100, "points") if share else (1, _unit(one))
        digits = 1 if unit == "points" else 3
        mean, low, high = (
            f"{scale * one['gain'][part]:+.{digits}f}"
            for part in ("mean", "low", "high")
        )
        lines.append(
            f"| {lesson} | {question} | {mean} {unit}{over} ({low} to {high}) "
            f"| **{one['status']}** |"
        )
    counts = Counter(one["status"] for one in verdicts)
    said = ", ".join(f"{status} {count}" for status, count in counts.most_common())
    lines += ["", f"All {len(verdicts)} claims: {said}."]
    records = root / "results" / "studies" / "records.toml"
    if records.is_file():
        last = {one.study: one for one in load_rounds(records)}
        shown = sum(not one.not_shown for one in last.values())
        lines += [
            "",
            f"Of {len(last)} studies, the history of {shown} shows that claims came "
            "before results. [The record](docs/results.md#how-they-were-run) says "
            "what is missing for the others.",
        ]
    return "\n".join(lines)


def claims_table(verdicts: Sequence[dict[str, Any]]) -> str:
    """What was claimed, what came of it."""
    lines = [
        "| claim | gain | interval | claimed | verdict |",
        "|---|--:|--:|--:|---|",
    ]
    for one in verdicts:
        gain = one["gain"]
        mean = f"{gain['mean']:+.3f}"
        if one.get("reference"):
            # No gain, but what is left of one when a share of another is taken away.
            mean += (
                f" beyond {100 * one['share']:g} % of the gain of *{one['reference']}*"
            )
        status = f"**{one['status']}**"
        if one["status"] == "undecided":
            asked = Interval(**gain), one["margin"], one.get("within")
            status += f": {what_would_decide(*asked)}"
        lines.append(
            f"| {one['text']} | {mean} | {_interval(one)} "
            f"| {claimed(one['margin'], one.get('within'))} {_unit(one)} | {status} |"
        )
    return "\n".join(lines)


def _seeds(rows: Sequence[dict[str, str]]) -> str:
    count = len({row["seed"] for row in rows})
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _study_section(
    name: str, rows: Sequence[dict[str, str]], verdicts: Sequence[dict[str, Any]]
) -> str:
    shown = SHOWN.get(name)
    parts = [f"## {shown.heading if shown else name}"]
    if verdicts:
        parts.append(claims_table(verdicts))
    if shown and shown.metric and rows:
        parts.append(f"{shown.title}; mean of {_seeds(rows)} ± 95 % interval:")
        parts.append(metric_table(rows, shown))
    return "\n\n".join(parts)


def load_verdicts(root: Path) -> list[dict[str, Any]]:
    """What the studies decided; nothing if none has been run."""
    path = root / "results" / "studies" / "verdicts.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def results_block(root: Path) -> str:
    """A section for every study that has been run."""
    folder = root / "results" / "studies"
    verdicts = load_verdicts(root)
    rows = {one.stem: read_rows(one, "confirm") for one in sorted(folder.glob("*.csv"))}
    found = {*rows, *(one["study"] for one in verdicts)}
    if not found:
        return NO_RESULTS
    names = [name for name in SHOWN if name in found]
    names += sorted(found - set(SHOWN))
    sections = [
        _study_section(
            name,
            rows.get(name, []),
            [one for one in verdicts if one["study"] == name],
        )
        for name in names
    ]
    if (folder / "records.toml").is_file():
        sections.append(record_section(load_rounds(folder / "records.toml"), root))
    return "\n\n".join(sections)


# How they were run ------------------------------------------------------------------


def record_section(rounds: Sequence[Round], root: Path) -> str:
    """What was tried, on which seeds, in how many rounds, and what is not shown."""
    last = {one.study: one for one in rounds}
    lines = [
        "| study | learning rates | weight decay | seeds: explored; confirmed | rounds "
        "| declared before its rows |",
        "|---|---|---|---|--:|---|",
    ]
    for name, one in last.items():
        tried = read_rows(root / "results" / one.rows, "explore")
        cells = [
            ", ".join(sorted({row[option] for row in tried}, key=float))
            for option in ("learning_rate", "weight_decay")
        ]
        explored = ", ".join(dict.fromkeys(row["seed"] for row in tried))
        count = sum(other.study == name for other in rounds)
        shown = f"not shown: {one.not_shown}" if one.not_shown else "yes"
        lines.append(
            f"| {name} | {' | '.join(cells)} | {explored}; {_range(one.seeds)} "
            f"| {count} | {shown} |"
        )
    remarks = [
        f"* {one.study}, round {one.number}: {'; '.join(found)}."
        for one in rounds
        if (found := _remarks(one))
    ]
    return "\n\n".join(
        [
            "## How they were run",
            "\n".join(lines),
            "<details><summary>What a careful reader should know of each round"
            "</summary>",
            "\n".join(remarks),
            "</details>",
        ]
    )


def _range(seeds: Sequence[int]) -> str:
    return f"{min(seeds)} to {max(seeds)}" if seeds else "none"


def _remarks(one: Round) -> list[str]:
    texts = {
        "at the edge of the grid": one.at_edge,
        "not the published one": one.broken_off,
        "seeds": one.reused,
    }
    return [f"{what}: {text}" for what, text in texts.items() if text]


# The pages --------------------------------------------------------------------------


def fill(page: str, text: str, blocks: dict[str, str]) -> str:
    """Put every block between its markers."""
    for name, body in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found or begin in rest or end in before + after:
            raise ReadmeError(
                f"{page} needs one line `{begin}` and, after it, one `{end}`"
            )
        text = f"{before}{begin}\n\n{body}\n\n{end}{after}"
    return text


def render(root: Path) -> dict[str, str]:
    """The pages as they should be, by name."""
    figure = f"![{three_techniques().alt}]({FIGURE})"
    readme = {"figure": figure, "map": map_block(load_course(root))}
    blocks = (
        readme | {"headlines": headlines_block(root)},
        {"results": results_block(root)},
    )
    return {
        page: fill(page, (root / page).read_text(encoding="utf-8"), mine)
        for page, mine in zip(PAGES, blocks, strict=True)
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    try:
        fresh = render(root)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    stale = [
        page
        for page, text in fresh.items()
        if text != (root / page).read_text(encoding="utf-8")
    ]
    if options.check:
        for page in stale:
            print(f"{page} is out of date: `make readme` fills it.", file=sys.stderr)
        return 1 if stale else 0
    (root / FIGURE).write_text(three_techniques().svg, encoding="utf-8")
    for page in stale:
        draft = root / f"{page}.part"
        draft.write_text(fresh[page], encoding="utf-8")
        draft.replace(root / page)
        print(f"{page} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
