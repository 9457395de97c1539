"""Intervals, verdicts, resuming, publishing; and the declared studies."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import t, ttest_1samp

from distill_helpers import studies
from distill_helpers.studies import (
    Claim,
    Interval,
    Results,
    Run,
    Study,
    intervals,
    runner,
)
from distill_helpers.studies import results as reading
from distill_helpers.studies.study import CONFIRM_SEEDS, DECLARED, EXPLORE_SEEDS
from distill_helpers.tasks.bundled import results_root


def demo_run(run: Run) -> dict[str, float]:
    """A study that needs no training: the arm decides, the seed adds noise."""
    base = {"good": 1.0, "bad": 2.0}[run.arm]
    noise = ((run.seed * 7919) % 13) / 100
    return {"score": base + noise + abs(run.option("rate") - 0.2), "count": 10}


def make_study(**changes) -> Study:
    claim = Claim(
        *("better", "good beats bad", "good", "bad"),
        metric="score",
        setting="s",
        margin=0.5,
    )
    study = Study(
        name="soft_labels",  # a real module, so that worker processes can import it
        question="?",
        arms=("good", "bad"),
        settings=("s",),
        grid=((("rate", 0.1),), (("rate", 0.2),)),
        run=demo_run,
        select="score",
        claims=(claim,),
    )
    return replace(study, **changes)


@pytest.fixture
def in_process(monkeypatch):
    """Runs the demo in this process: what is under test is the book-keeping."""
    calls = []

    class Pool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def submit(self, _work, _name, run):
            calls.append(run)
            future = Future()
            future.set_result(demo_run(run))
            return future

    monkeypatch.setattr(runner, "ProcessPoolExecutor", Pool)
    return calls


def test_a_failed_run_ends_a_study_soon(tmp_path, monkeypatch):
    """What is left would run for hours, and nobody would write it down."""
    begun = []

    def work(_name, run):
        begun.append(run)
        if len(begun) == 2:
            raise RuntimeError("the second run fails")
        time.sleep(0.05)
        return demo_run(run)

    monkeypatch.setattr(
        runner, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
    )
    monkeypatch.setattr(runner, "_work", work)
    study = make_study()
    with pytest.raises(RuntimeError, match="the second run fails"):
        studies.run_study(study, tmp_path)
    assert len(begun) < len(study.arms) * len(study.grid) * len(study.explore_seeds)
    (kept,) = (tmp_path / "soft_labels.jsonl").read_text().splitlines()
    assert json.loads(kept)["row"]["phase"] == "explore"


def rows_with(values: dict[str, list[float]]) -> Results:
    rows = [
        {
            "phase": "confirm",
            "arm": arm,
            "setting": "s",
            "seed": seed,
            "rate": 0.2,
            "score": value,
        }
        for arm, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    return Results(make_study(), tuple(rows))


def judged_alone(results, *claims):
    """The verdict on the first of the claims that a study makes."""
    study = replace(results.study, claims=claims)
    return studies.judge(replace(results, study=study))[0]


def test_t_interval_by_hand():
    # mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.7764
    interval = studies.t_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.high - interval.mean == pytest.approx(2.7764 * 0.5**0.5, rel=1e-4)
    wider = studies.t_interval([1, 2, 3, 4, 5], prediction=True)
    assert wider.high - 3 == pytest.approx(2.7764 * (2.5 * 1.2) ** 0.5, rel=1e-4)


def test_the_interval_of_what_was_not_measured_is_not_a_number():
    interval = studies.t_interval([1.0, math.nan, 2.0])
    assert interval.n == 3
    assert all(map(math.isnan, (interval.mean, interval.low, interval.high)))


def test_t_interval_needs_two():
    with pytest.raises(ValueError, match="at least two seeds"):
        studies.t_interval([1.0])


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ([2.0, 2.01, 1.99, 2.02, 2.0], "holds"),
        ([1.2, 1.21, 1.19, 1.22, 1.2], "fails"),
        ([1.1, 2.1, 1.5, 1.0, 2.0], "undecided"),
        # The mean is beyond the margin and the interval beyond zero: not enough.
        ([1.4, 1.8, 1.6, 1.5, 1.7], "undecided"),
        # The mean falls short of the margin, and some of the interval does not.
        ([1.5, 1.3, 1.4, 1.6, 1.2], "undecided"),
        ([0.1, 0.1, 0.11, 0.1, 0.1], "fails"),
    ],
)
def test_verdicts(bad, status):
    results = rows_with({"good": [1.0, 1.0, 1.01, 1.0, 1.0], "bad": bad})
    assert results.verdict("better").status == status


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ([1.02, 0.98, 1.01, 0.99, 1.0], "equivalent"),
        # The mean is small, and the interval reaches beyond the claim.
        ([1.2, 0.8, 1.15, 0.85, 1.0], "undecided"),
        ([1.1, 1.09, 1.11, 1.1, 1.1], "undecided"),
        ([1.5, 1.51, 1.49, 1.5, 1.5], "fails"),
        ([0.5, 0.51, 0.49, 0.5, 0.5], "fails"),
    ],
)
def test_a_claim_that_two_are_equal(bad, status):
    results = rows_with({"good": [1.0] * 5, "bad": bad})
    claim = replace(results.study.claims[0], within=0.1)
    verdict = judged_alone(results, claim)
    assert verdict.status == status
    assert "claimed: within ±0.1" in str(verdict)


def test_a_p_value_is_that_of_a_paired_t_test():
    values = [0.3, 0.5, 0.1, 0.7, 0.2]
    expected = ttest_1samp(values, 0.1).pvalue
    assert intervals.p_value(values, fmean(values) - 0.1) == pytest.approx(expected)
    assert intervals.p_value([1.0, 1.0, 1.0], 0.5) == 0.0
    assert intervals.p_value([1.0, 1.0, 1.0], 0.0) == 1.0
    assert intervals.p_value([1.0, math.nan, 1.0], 0.5) == 1.0


def test_holm_by_hand():
    # 0.005 < 0.05 / 4, 0.01 < 0.05 / 3, 0.03 > 0.05 / 2: it and the rest are open.
    found = intervals.holm_confidences([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([1 - 0.05 / 3, 0.975, 0.975, 1 - 0.05 / 4])
    # The last one stands alone, at 5 %.
    assert intervals.holm_confidences([0.04, 0.01]) == pytest.approx([0.95, 0.975])
    assert intervals.holm_confidences([]) == []


@pytest.mark.parametrize("within", [None, 0.25])
def test_an_interval_reaches_its_bound_exactly_where_holm_is_not_sure(within):
    draw = random.Random(0)
    outcomes = set()
    for _ in range(200):
        means = [draw.choice((-0.6, 0.1, 0.7)) for _ in range(4)]
        gains = [[draw.gauss(mean, 0.2) for _ in range(5)] for mean in means]
        arms = {f"arm {i}": [-gain for gain in some] for i, some in enumerate(gains)}
        results = rows_with({"bad": [0.0] * 5, **arms})
        first = replace(results.study.claims[0], margin=0.1, within=within)
        claims = [replace(first, name=arm, arm=arm) for arm in arms]
        study = replace(results.study, arms=("bad", *arms), claims=tuple(claims))
        found = studies.judge(Results(study, results.rows))
        wrong = [ttest_bound(some, within) for some in gains]
        for verdict, expected in zip(found, holm_rejects(wrong), strict=True):
            assert (verdict.status != "undecided") == expected
            outcomes.add(verdict.status)
    assert len(outcomes) == 3, "not every outcome was met"


def ttest_bound(values, within):
    """The p-value against the nearest bound, by scipy."""
    bounds = [0.1] if within is None else [-within, within]
    return max(ttest_1samp(values, one).pvalue for one in bounds)


def holm_rejects(p_values):
    """Holm's procedure, as the paper has it."""
    left = sorted(p_values)
    sure = 0
    while left and left[0] <= 0.05 / len(left):
        left.pop(0)
        sure += 1
    limit = sorted(p_values)[sure - 1] if sure else -1.0
    return [p <= limit for p in p_values]


def test_a_claim_needs_more_beside_others():
    arms = {"good": [1.0] * 5, "bad": [2.0, 1.8, 1.5, 2.1, 2.2]}
    results = rows_with(arms)
    claim = results.study.claims[0]
    alone = judged_alone(results, claim)
    assert alone.status == "holds"
    assert "95 % interval" in str(alone)
    others = [replace(claim, name=f"other {i}", margin=0.89) for i in range(9)]
    together = judged_alone(results, claim, *others)
    assert together.status == "undecided"
    assert "99.5 % interval" in str(together)
    assert together.gain.mean == alone.gain.mean


def test_so_many_seeds_decide_four_times_in_five():
    """By drawing such studies, again and again."""
    draw = random.Random(1)
    found = studies.t_interval([draw.gauss(0.5, 1.0) for _ in range(12)])
    seeds = intervals.seeds_to_decide(found, found.mean)
    sd = (found.high - found.low) / 2 / t.isf(0.025, 11) * 12**0.5
    decided = [
        studies.t_interval([draw.gauss(found.mean, sd) for _ in range(seeds)]).low > 0
        for _ in range(2000)
    ]
    assert 0.77 < fmean(decided) < 0.83
    # Surer of itself, and nearer to the bound: more seeds.
    sure = replace(found, confidence=0.99)
    assert intervals.seeds_to_decide(found, found.mean / 2) > seeds
    assert intervals.seeds_to_decide(found, found.mean, power=0.9) > seeds
    assert intervals.seeds_to_decide(sure, found.mean) > 2
    assert intervals.seeds_to_decide(found, 1e-4) is None


def test_an_undecided_claim_says_what_would_decide_it():
    results = rows_with({"good": [1.0] * 5, "bad": [2.0, 1.2, 1.5, 2.1, 1.4]})
    claim = results.study.claims[0]
    assert "seeds would decide a gain of this size)" in str(
        judged_alone(results, claim)
    )
    close = replace(claim, margin=0.6401)
    assert "too close to the claim for 1,000 seeds)" in str(
        judged_alone(results, close)
    )
    decided = replace(claim, margin=9.0)
    assert "would" not in str(judged_alone(results, decided))


def test_equal_to_the_last_digit_cannot_be_claimed():
    with pytest.raises(ValueError, match=r"within=0\.0 must be positive"):
        replace(make_study().claims[0], within=0.0)


def test_direction_is_turned_where_higher_is_better():
    results = rows_with({"good": [3.0, 3.1, 3.0], "bad": [1.0, 1.1, 1.05]})
    claim = replace(results.study.claims[0], higher_is_better=True)
    verdict = judged_alone(results, claim)
    assert verdict.status == "holds"
    assert verdict.gain.mean == pytest.approx(1.983, abs=1e-3)
    assert verdict.gain.low < verdict.gain.mean < verdict.gain.high


def test_differences_are_paired_by_seed():
    # Seeds differ wildly, the arm's gain does not.
    results = rows_with({"good": [0.0, 5.0, 9.0], "bad": [1.0, 6.0, 10.0]})
    assert results.verdict("better").gain == Interval(1.0, 1.0, 1.0, 3)


def test_smoke_is_not_judged():
    results = rows_with({"good": [1.0, 1.1], "bad": [2.0, 2.1]})
    assert results.verdict("better", judged=False).status == "not judged"
    live = results.check_live("score", "good", "s", 99.0, judged=False)
    assert live.status == "not judged"
    assert live._repr_mimebundle_()[studies.MIME]["ok"] is True


def test_a_live_number_outside_the_prediction_is_said_to_be():
    results = rows_with({"good": [1.0, 1.1, 0.9, 1.0, 1.05], "bad": [2.0] * 5})
    assert results.check_live("score", "good", "s", 1.1).status == "inside"
    live = results.check_live("score", "good", "s", 2.0)
    assert live.status == "outside"
    assert live._repr_mimebundle_()[studies.MIME]["ok"] is False


def test_unknown_names_are_named():
    results = rows_with({"good": [1.0, 1.1], "bad": [2.0, 2.1]})
    with pytest.raises(ValueError, match=r"'ugly'.*good, bad"):
        results.values("score", "ugly", "s")
    with pytest.raises(ValueError, match=r"'worse'.*better"):
        results.verdict("worse")
    with pytest.raises(ValueError, match="no_such_study"):
        studies.load_study("no_such_study")


def test_text_in_a_verdict_is_escaped():
    results = rows_with({"good": [1.0, 1.1], "bad": [2.0, 2.1]})
    claim = replace(results.study.claims[0], text="<b>bold</b>")
    html = judged_alone(results, claim)._repr_mimebundle_()["text/html"]
    assert "<b>" not in html


def test_a_study_explores_chooses_and_confirms(tmp_path, in_process):
    results = studies.run_study(make_study(), tmp_path)
    confirmed = [row for row in results.rows if row["phase"] == "confirm"]
    assert len(results.rows) == 2 * 2 + 2 * 5
    assert {row["rate"] for row in confirmed} == {0.2}
    assert {row["seed"] for row in confirmed} == set(CONFIRM_SEEDS)
    assert results.verdict("better").status == "holds"


@pytest.mark.parametrize(("higher", "best"), [(False, 0.2), (True, 0.1)])
def test_the_cell_is_chosen_by_its_mean_over_the_exploring_seeds(higher, best):
    """The lower, the better, unless the study says otherwise; one seed may be lucky."""
    scores = {0.1: [1.0, 9.0, 9.0], 0.2: [5.0, 5.0, 5.0]}
    rows = [
        {"phase": "explore", "arm": "good", "setting": "s", "seed": seed, "rate": rate}
        | {"score": score}
        for rate, values in scores.items()
        for seed, score in enumerate(values)
    ]
    study = make_study(higher_is_better=higher, explore_seeds=EXPLORE_SEEDS)
    # Neither another arm's rows count, nor those of confirming seeds.
    rows += [row | {"arm": "bad", "score": 10 - row["score"]} for row in rows]
    rows += [row | {"phase": "confirm", "score": 10 - row["score"]} for row in rows]
    assert runner._best(study, rows, "good", "s") == (("rate", best),)
    alone = [row for row in rows if row["seed"] == 0]
    lucky = {0.2: 0.1, 0.1: 0.2}[best]
    assert runner._best(study, alone, "good", "s") == (("rate", lucky),)


def test_every_exploring_seed_is_run(tmp_path, in_process):
    study = make_study(explore_seeds=EXPLORE_SEEDS)
    results = studies.run_study(study, tmp_path)
    explored = [row for row in results.rows if row["phase"] == "explore"]
    assert {(row["seed"], row["rate"]) for row in explored} == {
        (seed, rate) for seed in EXPLORE_SEEDS for rate in (0.1, 0.2)
    }


def test_a_second_call_runs_nothing_and_a_torn_line_is_run_again(tmp_path, in_process):
    study = make_study()
    first = studies.run_study(study, tmp_path)
    ran = len(in_process)
    assert studies.run_study(study, tmp_path) == first
    assert len(in_process) == ran
    log = tmp_path / "soft_labels.jsonl"
    text = log.read_text()
    log.write_text(text[: text.rindex('"row"')])  # killed while writing
    assert studies.run_study(study, tmp_path) == first
    assert len(in_process) == ran + 1


def test_changed_code_runs_again(tmp_path, in_process, monkeypatch):
    study = make_study()
    studies.run_study(study, tmp_path)
    ran = len(in_process)
    monkeypatch.setattr(runner, "source_digest", lambda: "other")
    studies.run_study(study, tmp_path)
    assert len(in_process) == 2 * ran


ORPHAN = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from distill_helpers.studies.runner import leave_with

if __name__ == "__main__":
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), leave_with, (os.getpid(),)
    )
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(studies.__file__).parents[2])},
    ) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
        parent.wait()
        # The pipe closes when the last process that holds it has ended.
        started = time.monotonic()
        parent.stdout.read()
    assert time.monotonic() - started < 10


def test_a_pair_that_is_left_out_is_not_run(tmp_path, in_process, monkeypatch):
    study = make_study(settings=("s", "t"), left_out=(("bad", "t"),))
    results = studies.run_study(study, tmp_path / "work")
    assert {(run.arm, run.setting) for run in in_process} == {*study.pairs()}
    assert study.pairs() == [("good", "s"), ("bad", "s"), ("good", "t")]
    assert "bad" not in results.table(("score",), "t")
    assert "bad" in results.table(("score",), "s")
    with pytest.raises(ValueError, match="no rows for arm='bad', setting='t'"):
        results.mean("score", "bad", "t")
    studies.publish(results, tmp_path / "studies")
    monkeypatch.setattr(reading, "results_root", lambda: tmp_path)
    monkeypatch.setattr(reading, "load_study", lambda _: study)
    assert len(studies.load_results("soft_labels").rows) == 3 * (2 + 5)


def test_what_is_published_reads_back(tmp_path, in_process, monkeypatch):
    results = studies.run_study(make_study(), tmp_path / "work")
    studies.publish(results, tmp_path / "studies")
    monkeypatch.setattr(reading, "results_root", lambda: tmp_path)
    monkeypatch.setattr(reading, "load_study", lambda _: results.study)
    again = studies.load_results("soft_labels")
    assert again.verdict("better") == results.verdict("better")
    assert again.options("good", "s") == (("rate", 0.2),)
    assert [row["setting"] for row in again.rows] == ["s"] * len(results.rows)
    (row,) = studies.verdict_rows(again)
    assert json.loads(json.dumps(row))["status"] == "holds"


def test_any_source_file_of_the_package_can_be_the_change(tmp_path, monkeypatch):
    """Else a recheck after a change could call rows of the code before it the same."""
    for name in ("losses/plain.py", "studies/runner.py", "trainers.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "studies" / "runner.py"))
    digests = {runner.source_digest()}
    (tmp_path / "notes.txt").write_text("not code")
    assert {runner.source_digest()} == digests
    for change in (
        lambda: (tmp_path / "losses/plain.py").write_text("x = 2\n"),
        lambda: (tmp_path / "trainers.py").rename(tmp_path / "trained.py"),
        lambda: (tmp_path / "losses/fused.py").write_text(""),
    ):
        change()
        digests.add(runner.source_digest())
    assert len(digests) == 4


def test_rows_with_the_fingerprint_of_old_code_are_read(tmp_path, monkeypatch):
    """Published files keep that column; digits alone must not become a number."""
    results = rows_with({"good": [1.0, 1.1], "bad": [2.0, 2.1]})
    rows = tuple(row | {"fingerprint": "123456789012"} for row in results.rows)
    studies.publish(Results(results.study, rows), tmp_path / "studies")
    monkeypatch.setattr(reading, "results_root", lambda: tmp_path)
    monkeypatch.setattr(reading, "load_study", lambda _: results.study)
    again = studies.load_results("soft_labels")
    assert again.verdict("better") == results.verdict("better")
    assert {row["fingerprint"] for row in again.rows} == {"123456789012"}


@pytest.mark.parametrize("name", [*studies.STUDIES, *DECLARED])
def test_declared_studies_are_sound(name):
    study = studies.load_study(name)
    assert study.name == name
    assert len({claim.name for claim in study.claims}) == len(study.claims)
    for claim in study.claims:
        assert (claim.arm, claim.setting) in study.pairs()
        other = claim.baseline_setting or claim.setting
        assert (claim.baseline, other) in study.pairs()
    every = {(arm, setting) for arm in study.arms for setting in study.settings}
    assert set(study.left_out) < every
    assert set(study.explore_seeds) <= set(EXPLORE_SEEDS)
    assert not set(EXPLORE_SEEDS) & set(study.confirm_seeds)
    assert len(study.confirm_seeds) >= 5
    # Losses and shares of wrong answers; a score would need the other direction.
    assert study.higher_is_better is not any(
        word in study.select for word in ("nll", "wrong")
    )


@pytest.mark.parametrize("name", studies.STUDIES)
def test_published_rows_are_complete(name):
    results = studies.load_results(name)
    study = results.study
    for pair in study.pairs():
        rows = [row for row in results.rows if (row["arm"], row["setting"]) == pair]
        confirm = [row for row in rows if row["phase"] == "confirm"]
        assert {row["seed"] for row in confirm} == set(study.confirm_seeds)
        for seed in study.explore_seeds:
            explored = {
                tuple((option, row[option]) for option, _ in study.grid[0])
                for row in rows
                if row["phase"] == "explore" and row["seed"] == seed
            }
            assert explored == set(study.grid)


def test_published_verdicts_are_what_the_rows_say():
    """So no gain, margin or text of them can be typed by hand."""
    path = results_root() / "studies" / "verdicts.json"
    published = json.loads(path.read_text(encoding="utf-8"))
    fresh = [
        row
        for name in studies.STUDIES
        for row in studies.verdict_rows(studies.load_results(name))
    ]
    assert [without_gain(row) for row in published] == [
        without_gain(row) for row in fresh
    ]
    for old, new in zip(published, fresh, strict=True):
        assert old["gain"] == pytest.approx(new["gain"], rel=1e-9), old["name"]


def without_gain(row):
    return {name: value for name, value in row.items() if name != "gain"}


def test_exploring_runs_with_the_chosen_options_widen_the_prediction():
    found = rows_with({"good": [1.0, 1.01, 0.99, 1.0, 1.0]})
    assert found.check_live("score", "good", "s", 1.1).status == "outside"
    explored = [
        found.rows[0] | {"phase": "explore", "rate": rate, "score": score}
        for rate, score in ((0.2, 1.1), (0.1, 5.0))
    ]
    wider = Results(found.study, (*found.rows, *explored))
    check = wider.check_live("score", "good", "s", 1.1)
    assert check.status == "inside"
    assert check.high < 2, "a run with other options was counted"


def test_a_range_that_no_run_could_miss_is_not_judged():
    """Where seeds leap, the range of one more run covers all that a score can be."""
    leaping = {"good": [0.0, 1.0, 2.0, 0.5, 1.5], "bad": [0.2, 1.2, 1.8, 0.4, 1.6]}
    check = rows_with(leaping).check_live("score", "good", "s", 1.0)
    assert check.status == "not judged"
    assert check._repr_mimebundle_()[studies.MIME]["ok"] is True
    # What no run came near is outside all the same.
    assert rows_with(leaping).check_live("score", "good", "s", 9.0).status == "outside"
    # Had one run of another arm been elsewhere, the range would tell them apart.
    leaping["bad"][0] = 9.0
    assert rows_with(leaping).check_live("score", "good", "s", 1.0).status == "inside"


def test_a_share_of_another_arm_s_gain():
    found = rows_with(
        {"good": [1.0, 2.0, 3.1], "bad": [2.0, 3.0, 4.0], "best": [0.9, 1.9, 3.0]}
    )
    kept = found.gain("score", "good", "bad", "s", reference="best", share=0.9)
    assert kept.mean == pytest.approx(-0.96667 + 0.9 * 1.0667, abs=1e-3)
    claim = replace(
        found.study.claims[0],
        metric="score",
        arm="good",
        baseline="bad",
        setting="s",
        reference="best",
        share=0.5,
        higher_is_better=False,
        margin=0.0,
    )
    assert judged_alone(found, claim).status == "holds"


@pytest.fixture
def published(tmp_path, in_process, monkeypatch):
    """The demo study, published and read back."""
    study = make_study()
    studies.publish(studies.run_study(study, tmp_path / "first"), tmp_path / "studies")
    monkeypatch.setattr(reading, "results_root", lambda: tmp_path)
    monkeypatch.setattr(reading, "load_study", lambda _: study)
    in_process.clear()
    return studies.load_results("soft_labels")


def test_a_recheck_runs_one_seed_with_the_chosen_options(
    published, tmp_path, in_process
):
    found, changed = studies.recheck_study(published, tmp_path / "again")
    assert [run.seed for run in in_process] == [CONFIRM_SEEDS[0]] * 2
    assert {dict(run.options)["rate"] for run in in_process} == {0.2}
    assert [one.status for one in found] == ["same", "same"]
    assert changed == []
    # Interrupted or finished, a second call goes on from the rows that are there.
    assert studies.recheck_study(published, tmp_path / "again") == (found, changed)
    assert len(in_process) == 2


@pytest.mark.parametrize(
    ("shift", "status"), [(0.0, "same"), (0.05, "inside"), (9.0, "outside")]
)
def test_a_recheck_says_what_disagrees(published, tmp_path, monkeypatch, shift, status):
    real = demo_run

    def elsewhere(run):
        row = real(run)
        return row | {"score": row["score"] + (run.arm == "good") * shift}

    monkeypatch.setitem(globals(), "demo_run", elsewhere)
    found, changed = studies.recheck_study(published, tmp_path / "again")
    assert [one.status for one in found] == [status, "same"]
    assert str(found[0]).endswith(status)
    # "good" at 10 beats nobody: the verdict would change.
    assert bool(changed) == (status == "outside")
    assert all("soft_labels/better: was holds" in line for line in changed)


@pytest.mark.parametrize(
    ("again", "status"),
    [(6.0, "same"), (6.05, "inside"), (1.0, "outside"), (9.0, "outside")],
)
def test_a_recheck_holds_a_seed_that_stands_apart_to_its_own_number(
    published, tmp_path, monkeypatch, again, status
):
    """Neither is it held to the others', nor may it fall back among them unseen."""
    first = CONFIRM_SEEDS[0]
    rows = [
        row | {"score": 6.0} if (row["arm"], row["seed"]) == ("good", first) else row
        for row in published.rows
    ]
    apart = studies.Results(published.study, tuple(rows))
    real = demo_run

    def elsewhere(run):
        return real(run) | ({"score": again} if run.arm == "good" else {})

    monkeypatch.setitem(globals(), "demo_run", elsewhere)
    found, _ = studies.recheck_study(apart, tmp_path / "again")
    assert [one.status for one in found] == [status, "same"]


def test_a_recheck_leaves_out_what_an_arm_does_not_measure(
    published, tmp_path, monkeypatch
):
    """As a finished model has no gradient: no column in a run, none in the file."""
    real = demo_run
    steady = replace(published.study.claims[0], name="steady", metric="spread")
    steady = replace(steady, baseline="good")
    study = replace(published.study, claims=(*published.study.claims, steady))
    rows = [
        row | {"spread": float(row["seed"]) if row["arm"] == "good" else ""}
        for row in published.rows
    ]

    def measured(run):
        return real(run) | ({"spread": float(run.seed)} if run.arm == "good" else {})

    monkeypatch.setitem(globals(), "demo_run", measured)
    found, changed = studies.recheck_study(Results(study, tuple(rows)), tmp_path / "b")
    assert [one.name.split(", ")[2] for one in found] == ["score", "spread", "score"]
    assert {one.status for one in found} == {"same"}
    assert changed == []
