"""What was done, round by round: who declared what when, and which rows came of it.

The facts stand in ``results/studies/records.toml``. Tests hold them to the rows and to
the history of the repository; docs/results.md prints them. Taught nowhere;
CONTRIBUTING.md says how a claim is made.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_helpers.studies.study import STUDIES
from distill_helpers.tasks.bundled import results_root


@dataclass(frozen=True)
class Round:
    """One round of a study: its declaration, its seeds, its rows.

    Attributes:
        study: The name of the study.
        number: From 1, in the order of the rounds.
        seeds: The seeds that it was confirmed on.
        rows: The file of its rows, in ``results``; empty where a later round has
            overwritten them.
        declared_at: The commit in which claims, arms and seeds were declared.
        rows_at: The commit in which the rows came.
        broken_off: Why it is not the published round; empty if it is.
        at_edge: Why a cell at the edge of the grid was taken; empty if none was.
        reused: Why its seeds had been confirmed on before; empty if they were fresh.
        not_shown: What the history does not show of the declaration's coming first;
            empty if it shows all of it.
    """

    study: str
    number: int
    seeds: tuple[int, ...]
    rows: str
    declared_at: str
    rows_at: str
    broken_off: str = ""
    at_edge: str = ""
    reused: str = ""
    not_shown: str = ""


def load_rounds(path: Path | None = None) -> tuple[Round, ...]:
    """Every round of every study, in the order of the studies.

    Args:
        path: The file of records. Default: the published one.

    Raises:
        ValueError: If the file names an unknown study or field.
    """
    path = path or results_root() / "studies" / "records.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["round"]
    rounds: dict[str, list[Round]] = {name: [] for name in STUDIES}
    for entry in entries:
        rounds[_study_of(entry)].append(_round(entry, rounds))
    return tuple(one for name in STUDIES for one in rounds[name])


def _study_of(entry: dict[str, Any]) -> str:
    name = str(entry.get("study"))
    if name not in STUDIES:
        raise ValueError(f"records.toml: study={name!r} is not one of {STUDIES}")
    return name


def _round(entry: dict[str, Any], rounds: dict[str, list[Round]]) -> Round:
    name = entry["study"]
    try:
        facts = {**entry, "seeds": tuple(entry["seeds"])}
        return Round(number=len(rounds[name]) + 1, **facts)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"records.toml: a round of {name} is not complete, or says too much "
            f"({error}); its fields are those of Round"
        ) from error
