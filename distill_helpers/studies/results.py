"""Reading what the studies found: tables, verdicts on claims, checks of live runs.

Taught in notebook 03; every later lesson reads its studies in the same way.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from statistics import fmean
from typing import Any

from distill_helpers.studies.intervals import (
    Interval,
    holm_confidences,
    p_value,
    seeds_to_decide,
    t_interval,
)
from distill_helpers.studies.study import (
    UNITS,
    Claim,
    Options,
    Study,
    claimed,
    load_study,
)
from distill_helpers.tasks.bundled import results_root

# A live run is one more draw; wide enough that a course of many of them rarely cries
# wolf, narrow enough to notice a different result.
LIVE_CONFIDENCE = 0.99
MIME = "application/vnd.distill-helpers+json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """How a claim came out; shows itself as one line in a notebook.

    Attributes:
        study: The name of the study.
        claim: What was claimed.
        gain: Paired gain of the arm over its baseline, positive is better. The more
            claims a study makes, the more confident its interval.
        status: ``"holds"``, ``"equivalent"`` (a claim that two are equal holds),
            ``"fails"``, ``"undecided"``, or ``"not judged"`` where a run is too short
            to tell.
    """

    study: str
    claim: Claim
    gain: Interval
    status: str

    def __str__(self) -> str:
        gain, claim = self.gain, self.claim
        unit = UNITS.get(claim.metric, claim.metric)
        what = "gain"
        if claim.reference is not None:
            what = f"beyond {claim.share:.0%} of the gain of {claim.reference}"
        text = (
            f"{claim.text}: {self.status.upper()} ({what} {gain.mean:+.3f} {unit}, "
            f"{percent(gain.confidence)} interval {gain.low:+.3f} to {gain.high:+.3f}, "
            f"{gain.n} seeds; "
            f"claimed: {claimed(claim.margin, claim.within)}"
        )
        if self.status == "undecided":
            text += f"; {what_would_decide(gain, claim.margin, claim.within)}"
        return text + ")"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return _bundle("verdict", self.claim.name, self.status, True, str(self))


@dataclass(frozen=True)
class LiveCheck:
    """Whether one live run falls where the study says one more run should.

    Attributes:
        name: What was run.
        value: The live number.
        low: Lower end of the 99 % prediction interval.
        high: Upper end.
        status: ``"inside"`` or ``"outside"``; ``"same"`` where a published run was run
            again; ``"not judged"`` where a run is too short to tell, or where its range
            holds every run of the study, so that none could miss it.
    """

    name: str
    value: float
    low: float
    high: float
    status: str

    def __str__(self) -> str:
        return (
            f"{self.name}: live {self.value:.3f}, the study predicts {self.low:.3f} to "
            f"{self.high:.3f}: {self.status}"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        ok = self.status != "outside"
        return _bundle("live", self.name, self.status, ok, str(self))


def what_would_decide(gain: Interval, margin: float, within: float | None) -> str:
    """How many seeds a claim is short of, in words.

    Args:
        gain: The interval of an undecided claim.
        margin: Same as in :class:`~distill_helpers.studies.study.Claim`.
        within: Same as there.
    """
    seeds = seeds_to_decide(gain, _distance(gain.mean, margin, within))
    if seeds is None:
        return "a gain of this size is too close to the claim for 1,000 seeds"
    return f"about {seeds} seeds would decide a gain of this size"


def percent(confidence: float) -> str:
    """A coverage in words: ``"95 %"``, ``"99.4 %"``."""
    return f"{100 * confidence:.3g} %"


def _bundle(kind: str, name: str, status: str, ok: bool, text: str) -> dict[str, Any]:
    facts = {"kind": kind, "name": name, "status": status, "ok": ok, "message": text}
    return {"text/plain": text, "text/html": f"<p>{escape(text)}</p>", MIME: facts}


@dataclass(frozen=True)
class Results:
    """The published rows of a study."""

    study: Study
    rows: tuple[Row, ...]

    def select(self, phase: str, arm: str, setting: str) -> list[Row]:
        """The rows of one phase (``"explore"`` or ``"confirm"``), arm and setting."""
        wanted = (phase, arm, setting)
        return [
            row
            for row in self.rows
            if (row["phase"], row["arm"], row["setting"]) == wanted
        ]

    def values(self, metric: str, arm: str, setting: str) -> list[float]:
        """One number per confirming seed, in the order of the seeds."""
        found = {
            row["seed"]: row[metric] for row in self.select("confirm", arm, setting)
        }
        if not found:
            raise ValueError(
                f"the study {self.study.name!r} has no rows for arm={arm!r}, "
                f"setting={setting!r}; its arms are {', '.join(self.study.arms)}, its "
                f"settings {', '.join(self.study.settings)}"
            )
        return [found[seed] for seed in sorted(found)]

    def mean(self, metric: str, arm: str, setting: str) -> Interval:
        """Mean over the confirming seeds with its 95 % interval."""
        return t_interval(self.values(metric, arm, setting))

    def gain(
        self, metric: str, arm: str, baseline: str, setting: str, **options: Any
    ) -> Interval:
        """Paired difference, arm minus baseline, with its 95 % interval.

        Args:
            metric: Same as in :meth:`differences`, and so are the others.
            arm: Same as there.
            baseline: Same as there.
            setting: Same as there.
            options: Same as there.
        """
        return t_interval(self.differences(metric, arm, baseline, setting, **options))

    def differences(
        self,
        metric: str,
        arm: str,
        baseline: str,
        setting: str,
        *,
        baseline_setting: str | None = None,
        reference: str | None = None,
        share: float = 1.0,
    ) -> list[float]:
        """Paired differences, arm minus baseline, one per confirming seed.

        Args:
            metric: A column of the rows.
            arm: What is compared.
            baseline: With what.
            setting: The setting of both.
            baseline_setting: The baseline's setting, where it is another one.
            reference: Another arm; its own difference, ``share`` times, is taken away.
            share: How much of that.
        """
        mine = self.values(metric, arm, setting)
        base = self.values(metric, baseline, baseline_setting or setting)
        gains = [a - b for a, b in zip(mine, base, strict=True)]
        if reference is not None:
            best = self.values(metric, reference, setting)
            gains = [
                gain - share * (r - b)
                for gain, r, b in zip(gains, best, base, strict=True)
            ]
        return gains

    def table(self, metrics: Sequence[str], setting: str, *, digits: int = 3) -> str:
        """Arms by metrics, mean ± half the 95 % interval, as text to print."""
        arms = [arm for arm, other in self.study.pairs() if other == setting]
        table = [["", *metrics]]
        for arm in arms:
            means = [self.mean(metric, arm, setting) for metric in metrics]
            table.append(
                [arm]
                + [f"{c.mean:.{digits}f} ± {c.high - c.mean:.{digits}f}" for c in means]
            )
        widths = [
            max(18, 2 + max(map(len, column))) for column in zip(*table, strict=True)
        ]
        first = max(map(len, arms))
        return "\n".join(
            f"{name:{first}}"
            + "".join(f"{c:>{w}}" for c, w in zip(row, widths[1:], strict=True))
            for name, *row in table
        )

    def options(self, arm: str, setting: str) -> Options:
        """The learning rate and weight decay that exploring chose."""
        for row in self.select("confirm", arm, setting):
            return tuple((name, row[name]) for name, _ in self.study.grid[0])
        raise ValueError(f"no confirmed row for arm={arm!r}, setting={setting!r}")

    def verdict(self, claim_name: str, *, judged: bool = True) -> Verdict:
        """Judge a claim; ``judged=False`` (the smoke profile) says "not judged"."""
        for verdict in judge(self):
            if verdict.claim.name == claim_name:
                return verdict if judged else replace(verdict, status="not judged")
        known = ", ".join(claim.name for claim in self.study.claims)
        raise ValueError(
            f"claim_name={claim_name!r} is not declared; there are: {known}"
        )

    def check_live(
        self, metric: str, arm: str, setting: str, value: float, *, judged: bool = True
    ) -> LiveCheck:
        """Whether a live run falls into the study's 99 % prediction interval.

        It rests on every run of the study with the same options, exploring ones
        included: five seeds may lie close together by chance. Where seeds scatter so
        far that the interval holds every run of the study, of whatever arm and options,
        being inside says nothing, and is not judged.
        """
        values = self.values(metric, arm, setting)
        chosen = self.options(arm, setting)
        values += [
            row[metric]
            for row in self.select("explore", arm, setting)
            if all(row[name] == option for name, option in chosen)
        ]
        interval = t_interval(values, LIVE_CONFIDENCE, prediction=True)
        status = self.status_of(metric, value, interval.low, interval.high)
        if not judged:
            status = "not judged"
        name = f"{arm}, {setting}, {metric}"
        return LiveCheck(name, value, interval.low, interval.high, status)

    def status_of(self, metric: str, value: float, low: float, high: float) -> str:
        """``"inside"`` or ``"outside"``, or ``"not judged"`` where all runs are inside.

        Args:
            metric: A column of the rows.
            value: What is checked.
            low: Lower end of the range.
            high: Upper end.
        """
        if not low <= value <= high:
            return "outside"
        published = [number(row, metric) for row in self.rows]
        missed = any(one < low or one > high for one in published)
        return "inside" if missed else "not judged"


def number(row: Row, metric: str) -> float:
    """NaN where an arm has no such metric: no column, or nothing in a file's."""
    value = row.get(metric, "")
    return math.nan if value == "" else float(value)


def judge(results: Results) -> list[Verdict]:
    """Compare the paired gain of every claim with what was claimed.

    A claim of a gain holds if the gain's whole interval lies above the margin, and
    fails if it lies below. A claim of equality holds (``"equivalent"``) if the whole
    interval lies within ±``within``, which is stricter than two one-sided tests, and
    fails if it lies outside. What the interval leaves open is undecided.

    The intervals of a study are 95 % for all of its claims together: see
    :func:`~distill_helpers.studies.intervals.holm_confidences`.

    Returns:
        One verdict a claim, in the order of the claims.
    """
    claims = results.study.claims
    gains = [_gains(results, claim) for claim in claims]
    wrong = [
        p_value(values, _distance(fmean(values), claim.margin, claim.within))
        for claim, values in zip(claims, gains, strict=True)
    ]
    found = []
    for claim, values, confidence in zip(
        claims, gains, holm_confidences(wrong), strict=True
    ):
        gain = t_interval(values, confidence)
        status = _status(claim, gain)
        found.append(Verdict(results.study.name, claim, gain, status))
    return found


def _gains(results: Results, claim: Claim) -> list[float]:
    """One gain for each confirming seed, positive is better."""
    differences = results.differences(
        claim.metric,
        claim.arm,
        claim.baseline,
        claim.setting,
        baseline_setting=claim.baseline_setting,
        reference=claim.reference,
        share=claim.share,
    )
    return [one if claim.higher_is_better else -one for one in differences]


def _distance(mean: float, margin: float, within: float | None) -> float:
    """From a mean gain to the nearest bound that its interval must not reach."""
    return abs(mean - margin) if within is None else abs(abs(mean) - within)


def _status(claim: Claim, gain: Interval) -> str:
    if claim.within is None:
        holds, fails = gain.low > claim.margin, gain.high < claim.margin
    else:
        holds = -claim.within < gain.low and gain.high < claim.within
        fails = gain.low > claim.within or gain.high < -claim.within
    if holds:
        return "holds" if claim.within is None else "equivalent"
    return "fails" if fails else "undecided"


def load_results(name: str) -> Results:
    """The published rows of a study; they come with the package."""
    study = load_study(name)
    path = results_root() / "studies" / f"{name}.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; in a clone, run: "
            f"python tools/run_studies.py --only {name}"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = tuple(
            {name: _parsed(name, text) for name, text in row.items()}
            for row in csv.DictReader(file)
        )
    return Results(study, rows)


# Columns of names and versions; "800" is the name of a setting. Older rows also carry
# a fingerprint of the code that made them; nothing reads it any more.
_TEXT_COLUMNS = {
    *("study", "phase", "arm", "setting", "fingerprint"),
    *("profile", "device", "python", "torch", "transformers"),
}


def _parsed(column: str, text: str) -> Any:
    if column in _TEXT_COLUMNS:
        return text
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text else value
