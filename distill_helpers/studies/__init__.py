"""Comparisons over seeds, with claims that are declared before they are confirmed.

A :class:`Study` lists its arms (what is compared), its settings (how much data) and a
grid of learning rates and weight decays that is the same for every arm. It runs in two
phases:

* *explore*: the whole grid on seed 0; the best cell of each arm, by the validation
  metric, is kept. Seeds 0 to 2 are for exploring, also by hand and in notebooks;
* *confirm* once, on five fresh seeds, with the cell that exploring chose.

Claims are judged on the confirming seeds alone, by the t-interval of the paired
difference. A claim may hold, fail or stay undecided; all three are results. Every row,
exploring ones included, is published in ``results/studies``.

``distill studies`` runs them all, which takes hours; ``distill studies --recheck`` (or
``make studies``) runs one published seed of each anew and compares. Read in notebook
02.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import results_root

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainingArguments

EXPLORE_SEEDS = (0, 1, 2)
CONFIRM_SEEDS = (100, 101, 102, 103, 104)
CONFIDENCE = 0.95
# A live run is one more draw; wide enough that a course of many of them rarely cries
# wolf, narrow enough to notice a different result.
LIVE_CONFIDENCE = 0.99
MIME = "application/vnd.distill-helpers+json"
STUDIES = (
    "soft_labels",
    "longer_training",
    "stored_labels",
    "reused_draws",
    "teacher_domain",
    "shared_task",
    "real_pair",
    "hard_labels",
    "reasoning_traces",
    "codistillation",
    "codistilled_sums",
    "on_policy",
    "side_by_side",
)

# What a gain is measured in, by metric.
UNITS = {
    "nll": "nats",
    "nll_calibrated": "nats",
    "kl_to_teacher": "nats",
    "agreement": "points",
    "accuracy": "of 1",
    "exact_match": "points",
    "excess_kl": "nats",
    "gradient_cosine": "of 1",
    "ece": "of 1",
}

Options = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Claim:
    """A statement that can turn out false, declared in the study's source.

    Attributes:
        name: Short, unique in the study.
        text: What is claimed, in words.
        metric: Column it is judged by.
        arm: What should be better.
        baseline: What it is compared with, seed by seed.
        setting: Of both arms.
        baseline_setting: Of the baseline, where it is another one.
        reference: Another arm, if the claim is that ``arm`` keeps a ``share`` of the
            gain that the reference has over the baseline.
        share: Of the reference's gain.
        margin: The gain must exceed this, in the metric's units.
        higher_is_better: Direction of the metric.
    """

    name: str
    text: str
    metric: str
    arm: str
    baseline: str
    setting: str
    margin: float = 0.0
    higher_is_better: bool = False
    baseline_setting: str | None = None
    reference: str | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Run:
    """One run of one arm; a study's function turns it into metrics."""

    arm: str
    setting: str
    seed: int
    options: Options

    def option(self, name: str) -> float:
        """The value of one grid option."""
        return dict(self.options)[name]


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        name: Of the module in ``distill_helpers.studies`` and of its results.
        question: What the study is to answer.
        arms: What is compared.
        settings: Amounts of data, or the like.
        grid: Cells tried for every arm alike.
        run: Turns a :class:`Run` into metrics.
        select: The validation metric that chooses the cell.
        higher_is_better: Direction of ``select``.
        claims: Judged on the confirming seeds.
        threads: Threads of one run; as many runs go on at once as fit the cores.
        confirm_seeds: At least five that no exploring has seen.
        left_out: Pairs of arm and setting that are not run, say because an arm has
            no use for what the setting varies.
    """

    name: str
    question: str
    arms: tuple[str, ...]
    settings: tuple[str, ...]
    grid: tuple[Options, ...]
    run: Callable[[Run], dict[str, float]]
    select: str
    claims: tuple[Claim, ...]
    higher_is_better: bool = False
    threads: int = 1
    confirm_seeds: tuple[int, ...] = CONFIRM_SEEDS
    left_out: tuple[tuple[str, str], ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """Arms with settings; setting first: neighbouring runs share their data."""
        every = [(arm, setting) for setting in self.settings for arm in self.arms]
        return [pair for pair in every if pair not in self.left_out]


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Verdict:
    """How a claim came out; shows itself as one line in a notebook.

    Attributes:
        study: Name of the study.
        claim: What was claimed.
        gain: Paired gain of the arm over its baseline, positive is better.
        status: ``"holds"``, ``"fails"``, ``"undecided"``, or ``"not judged"`` where a
            run is too short to tell.
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
        return (
            f"{claim.text}: {self.status.upper()} ({what} {gain.mean:+.3f} {unit}, "
            f"95 % interval {gain.low:+.3f} to {gain.high:+.3f}, {gain.n} seeds; "
            f"claimed: more than {claim.margin:g})"
        )

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
        status: ``"inside"``, ``"outside"`` or ``"not judged"``; ``"same"`` where a
            published run was run again.
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


def _bundle(kind: str, name: str, status: str, ok: bool, text: str) -> dict[str, Any]:
    facts = {"kind": kind, "name": name, "status": status, "ok": ok, "message": text}
    return {"text/plain": text, "text/html": f"<p>{escape(text)}</p>", MIME: facts}


# --- what studies share -------------------------------------------------------------


def tiny_arguments(*, progress: bool = False, **options: Any) -> TrainingArguments:
    """Training arguments of models this small: plain fp32, on a CPU.

    Args:
        progress: Show a bar.
        options: As for :func:`~distill_helpers.trainers.training_arguments`.
    """
    from distill_helpers.profiles import get_profile
    from distill_helpers.trainers import training_arguments

    return training_arguments(
        get_profile("cpu"),
        mixed_precision=False,
        disable_tqdm=not progress,
        **options,
    )


def count_tflops(
    model: nn.Module, inputs: Mapping[str, Tensor], *, backward: bool
) -> float:
    """What a pass through a model costs, in 10¹² operations.

    Args:
        model: Causal.
        inputs: Keywords that it is called with.
        backward: Count the backward pass, too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs).logits
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops()) / 1e12


# --- reading results ----------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """The published rows of a study."""

    study: Study
    rows: tuple[dict[str, Any], ...]

    def values(self, metric: str, arm: str, setting: str) -> list[float]:
        """One number per confirming seed, in the order of the seeds."""
        found = {
            row["seed"]: row[metric]
            for row in self.rows
            if row["phase"] == "confirm"
            and row["arm"] == arm
            and row["setting"] == setting
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
        self,
        metric: str,
        arm: str,
        baseline: str,
        setting: str,
        *,
        baseline_setting: str | None = None,
        reference: str | None = None,
        share: float = 1.0,
    ) -> Interval:
        """Paired difference, arm minus baseline, with its 95 % interval.

        With a reference: less ``share`` times the reference's own difference.
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
        return t_interval(gains)

    def table(self, metrics: Sequence[str], setting: str, *, digits: int = 3) -> str:
        """Arms by metrics, mean ± half the 95 % interval, as text to print."""
        arms = [arm for arm, other in self.study.pairs() if other == setting]
        table = [["", *metrics]]
        for arm in arms:
            cells = [self.mean(metric, arm, setting) for metric in metrics]
            table.append(
                [arm]
                + [f"{c.mean:.{digits}f} ± {c.high - c.mean:.{digits}f}" for c in cells]
            )
        widths = [
            max(18, 2 + max(map(len, column))) for column in zip(*table, strict=True)
        ]
        first = max(map(len, arms))
        return "\n".join(
            f"{name:{first}}"
            + "".join(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
            for name, *cells in table
        )

    def options(self, arm: str, setting: str) -> Options:
        """The learning rate and weight decay that exploring chose."""
        names = [name for name, _ in self.study.grid[0]]
        for row in self.rows:
            if (row["phase"], row["arm"], row["setting"]) == ("confirm", arm, setting):
                return tuple((name, row[name]) for name in names)
        raise ValueError(f"no confirmed row for arm={arm!r}, setting={setting!r}")

    def verdict(self, claim_name: str, *, judged: bool = True) -> Verdict:
        """Judge a claim; ``judged=False`` (the smoke profile) says "not judged"."""
        for claim in self.study.claims:
            if claim.name == claim_name:
                verdict = judge(self, claim)
                if judged:
                    return verdict
                return Verdict(verdict.study, claim, verdict.gain, "not judged")
        known = ", ".join(claim.name for claim in self.study.claims)
        raise ValueError(
            f"claim_name={claim_name!r} is not declared; there are: {known}"
        )

    def check_live(
        self,
        metric: str,
        arm: str,
        setting: str,
        value: float,
        *,
        judged: bool = True,
    ) -> LiveCheck:
        """Whether a live run falls into the study's 99 % prediction interval.

        It rests on every run of the study with the same options, exploring ones
        included: five seeds may lie close together by chance.
        """
        values = self.values(metric, arm, setting)
        chosen = dict(self.options(arm, setting))
        values += [
            row[metric]
            for row in self.rows
            if (row["phase"], row["arm"], row["setting"]) == ("explore", arm, setting)
            and all(row[name] == value for name, value in chosen.items())
        ]
        interval = t_interval(values, LIVE_CONFIDENCE, prediction=True)
        if not judged:
            status = "not judged"
        elif interval.low <= value <= interval.high:
            status = "inside"
        else:
            status = "outside"
        name = f"{arm}, {setting}, {metric}"
        return LiveCheck(name, value, interval.low, interval.high, status)


def load_study(name: str) -> Study:
    """A study by name, such as ``"soft_labels"``."""
    if name not in STUDIES:
        raise ValueError(f"name={name!r} is not a study; there are: {STUDIES}")
    study: Study = importlib.import_module(f"distill_helpers.studies.{name}").STUDY
    return study


def load_results(name: str) -> Results:
    """The published rows of a study; they come with the package."""
    study = load_study(name)
    path = results_root() / "studies" / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing; run: distill studies --only {name}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = tuple(
            {name: _parsed(name, text) for name, text in row.items()}
            for row in csv.DictReader(file)
        )
    return Results(study, rows)


# Columns of names and versions; "800" is the name of a setting. Older rows also carry
# a fingerprint of the code that made them; nothing reads it any more.
_TEXT_COLUMNS = (
    "study",
    "phase",
    "arm",
    "setting",
    "fingerprint",
    "profile",
    "device",
    "python",
    "torch",
    "transformers",
)


def _parsed(column: str, text: str) -> Any:
    if column in _TEXT_COLUMNS:
        return text
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text else value


# --- judging ------------------------------------------------------------------------


def t_interval(
    values: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    prediction: bool = False,
) -> Interval:
    """Student's t-interval of a mean, or of one more draw.

    Args:
        values: At least two independent numbers.
        confidence: Coverage, in (0, 1).
        prediction: Where one further value should fall, instead of the mean.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values give no interval; run at least two seeds")
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    factor = math.sqrt(1 + 1 / n) if prediction else math.sqrt(1 / n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation * factor
    return Interval(mean, mean - half, mean + half, n)


def judge(results: Results, claim: Claim) -> Verdict:
    """Compare the paired gain's interval with the declared margin."""
    gain = results.gain(
        claim.metric,
        claim.arm,
        claim.baseline,
        claim.setting,
        baseline_setting=claim.baseline_setting,
        reference=claim.reference,
        share=claim.share,
    )
    if not claim.higher_is_better:
        gain = Interval(-gain.mean, -gain.high, -gain.low, gain.n)
    if gain.low > claim.margin:
        status = "holds"
    elif gain.high < claim.margin:
        status = "fails"
    else:
        status = "undecided"
    return Verdict(results.study.name, claim, gain, status)


# --- running ------------------------------------------------------------------------


def run_study(
    study: Study,
    work: Path,
    *,
    workers: int | None = None,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None,
) -> Results:
    """Run what is missing of a study.

    Args:
        study: What to run.
        work: Folder for finished rows; a second call goes on where the first was
            interrupted, unless a source file of the package changed.
        workers: Processes. Default: as many as fit the cores.
        progress: Wraps an iterator, such as tqdm, given its length and a title.

    Returns:
        Every row, exploring ones included.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{study.name}.jsonl"
    workers = workers or max(1, (os.cpu_count() or 1) // study.threads)

    def finish(runs: list[Run], phase: str) -> list[dict[str, Any]]:
        return _run_all(study, runs, phase, log, workers, progress)

    rows = finish(
        [
            Run(arm, setting, EXPLORE_SEEDS[0], options)
            for arm, setting in study.pairs()
            for options in study.grid
        ],
        "explore",
    )
    best = {pair: _best(study, rows, *pair) for pair in study.pairs()}
    rows += finish(
        [
            Run(arm, setting, seed, best[arm, setting])
            for setting in study.settings
            for seed in study.confirm_seeds
            for arm in study.arms
            if (arm, setting) in best
        ],
        "confirm",
    )
    return Results(study, tuple(rows))


def recheck_study(
    published: Results,
    work: Path,
    *,
    workers: int | None = None,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None,
) -> tuple[list[LiveCheck], list[str]]:
    """Run the first confirming seed of a study anew, every arm with its options.

    Args:
        published: From :func:`load_results`.
        work: Folder for finished rows, as in :func:`run_study`.
        workers: Processes. Default: as many as fit the cores.
        progress: As in :func:`run_study`.

    Returns:
        A check for each arm, setting, and metric that decides something: ``"same"``
        as published, to one part in a thousand; ``"inside"``, no further from its own
        published number than the other seeds let a run stray from their mean, as on
        another machine, where rounding differs; or ``"outside"``. And a line for every
        verdict that would change if these rows stood in the old ones' place.
    """
    study = published.study
    work.mkdir(parents=True, exist_ok=True)
    workers = workers or max(1, (os.cpu_count() or 1) // study.threads)
    seed = study.confirm_seeds[0]
    runs = [
        Run(arm, setting, seed, published.options(arm, setting))
        for arm, setting in study.pairs()
    ]
    log = work / f"{study.name}.recheck.jsonl"
    rows = _run_all(study, runs, "confirm", log, workers, progress)
    metrics = dict.fromkeys([study.select, *(claim.metric for claim in study.claims)])
    kept = [
        one for one in published.rows if not any(_is_same_run(one, row) for row in rows)
    ]
    # A seed has its own data and its own luck, so that a rerun is held to the number
    # that this seed gave. How far it may stray is what the other seeds say: the
    # published number itself must not widen that.
    others = Results(study, tuple(kept))
    found = []
    for row in rows:
        (old,) = [one for one in published.rows if _is_same_run(one, row)]
        for metric in metrics:
            again, before = _number(row, metric), _number(old, metric)
            if math.isnan(again) and math.isnan(before):
                continue
            check = others.check_live(metric, row["arm"], row["setting"], again)
            stray = (check.high - check.low) / 2
            if math.isclose(again, before, rel_tol=1e-3, abs_tol=1e-9):
                status = "same"
            else:
                status = "inside" if abs(again - before) <= stray else "outside"
            name = f"{study.name}: {check.name}, seed {seed}, published {before:.3f}"
            found.append(LiveCheck(name, again, before - stray, before + stray, status))
    anew = Results(study, (*kept, *rows))
    verdicts = [(c, judge(published, c).status, judge(anew, c)) for c in study.claims]
    changed = [
        f"{study.name}/{claim.name}: was {was}, would be {now.status} ({now})"
        for claim, was, now in verdicts
        if was != now.status
    ]
    return found, changed


def _number(row: Mapping[str, Any], metric: str) -> float:
    """NaN where an arm has no such metric: no column, or nothing in a file's."""
    value = row.get(metric, "")
    return math.nan if value == "" else float(value)


def _is_same_run(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a[name] == b[name] for name in ("phase", "arm", "setting", "seed"))


def _best(study: Study, rows: list[dict[str, Any]], arm: str, setting: str) -> Options:
    mine = [row for row in rows if (row["arm"], row["setting"]) == (arm, setting)]
    sign = -1 if study.higher_is_better else 1
    row = min(mine, key=lambda row: sign * row[study.select])
    return tuple((name, row[name]) for name, _ in study.grid[0])


def _run_all(
    study: Study,
    runs: list[Run],
    phase: str,
    log: Path,
    workers: int,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None,
) -> list[dict[str, Any]]:
    source = _source_digest()
    done = _finished(log, source)
    missing = [run for run in runs if _key(run) not in done]
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_leave_with, initargs=(os.getpid(),)
    ) as pool:
        futures: dict[Future[dict[str, Any]], Run] = {
            pool.submit(_work, study.name, run): run for run in missing
        }
        finished: Iterable[Any] = as_completed(futures)
        if progress is not None and missing:
            finished = progress(finished, len(missing), f"{study.name}: {phase}")
        with log.open("a", encoding="utf-8") as file:
            for future in finished:
                run = futures[future]
                row = {
                    "study": study.name,
                    "phase": phase,
                    "arm": run.arm,
                    "setting": run.setting,
                    "seed": run.seed,
                    **dict(run.options),
                    **future.result(),
                }
                entry = {"key": _key(run), "source": source, "row": row}
                file.write(json.dumps(entry) + "\n")
                file.flush()
                done[_key(run)] = row
    return [done[_key(run)] for run in runs]


def _leave_with(parent: int) -> None:
    """Let a worker end soon after its parent, which may be killed without a word."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(name: str, run: Run) -> dict[str, Any]:
    """One run in a worker process."""
    import torch
    import transformers

    study = load_study(name)
    torch.set_num_threads(study.threads)
    start = time.perf_counter()
    metrics = study.run(run)
    return {
        **metrics,
        "seconds": round(time.perf_counter() - start, 1),
        "profile": "cpu",
        "device": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def _key(run: Run) -> str:
    return json.dumps(asdict(run), sort_keys=True)


def _finished(log: Path, source: str) -> dict[str, dict[str, Any]]:
    """Rows of an interrupted run, by run; those of other source files do not count."""
    done = {}
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if entry.get("source") == source:
                done[entry["key"]] = entry["row"]
    return done


def _source_digest() -> str:
    """Hash of the package's source files.

    Without it, a recheck after a change would call the rows of the code before it the
    same. Any file counts, whichever a study uses: that is always right, and all it
    costs is that an interrupted run begins anew.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- publishing ---------------------------------------------------------------------


def publish(results: Results, folder: Path) -> None:
    """Write a study's rows as CSV, in an order that does not depend on the run."""
    folder.mkdir(parents=True, exist_ok=True)
    study = results.study

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return (
            row["phase"] == "confirm",
            study.settings.index(row["setting"]),
            study.arms.index(row["arm"]),
            row["seed"],
            *(row[name] for name, _ in study.grid[0]),
        )

    rows = sorted(results.rows, key=order)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path = folder / f"{study.name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _rounded(row.get(name)) for name in columns})


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def verdict_rows(results: Results) -> list[dict[str, Any]]:
    """Every claim of a study as a flat record, for ``verdicts.json``."""
    rows = []
    for claim in results.study.claims:
        verdict = judge(results, claim)
        gain = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(verdict.gain).items()
        }
        rows.append(
            {
                "study": results.study.name,
                **asdict(claim),
                "gain": gain,
                "status": verdict.status,
            }
        )
    return rows
