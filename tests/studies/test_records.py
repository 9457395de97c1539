"""What was done: the record against the rows, the seeds, the grids and the history."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import subprocess
from pathlib import Path

import pytest

from distill_helpers import studies
from distill_helpers.studies import records
from distill_helpers.studies.study import DECLARED, EXPLORE_SEEDS
from distill_helpers.tasks.bundled import results_root

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = records.load_rounds()
FIRST_STUDIES = (
    *("soft_labels", "longer_training", "stored_labels", "reused_draws"),
    *("teacher_domain", "shared_task", "real_pair", "hard_labels", "reasoning_traces"),
    *("codistillation", "codistilled_sums", "on_policy", "side_by_side"),
)
# Rounds before the rules that the tests below hold. No later one may be added.
FIRST_EDITION = {
    *((name, 1) for name in FIRST_STUDIES),
    *(("shared_task", 2), ("shared_task", 3), ("real_pair", 2)),
    *(("reasoning_traces", 2), ("reasoning_traces", 3), ("codistilled_sums", 2)),
    *(("on_policy", 2), ("side_by_side", 2)),
}
# The same runs in two studies, seed by seed: (study, arm, setting).
SAME_RUNS = [
    (("soft_labels", "labels", "800"), ("stored_labels", "labels", "800")),
    (("soft_labels", "soft T=1", "800"), ("stored_labels", "full", "800")),
    (("soft_labels", "labels", "3000"), ("codistillation", "alone", "3000")),
]
# Those that should be, and why they are not.
DIFFERENT_RUNS = {
    (("soft_labels", "labels", "800"), ("codistillation", "alone", "800")): (
        "the second study's grid ends below the rate that the first one chose"
    )
}


def named(one: records.Round) -> str:
    return f"{one.study}_{one.number}"


def confirmed(text: str) -> set[int]:
    rows = csv.DictReader(io.StringIO(text))
    return {int(row["seed"]) for row in rows if row["phase"] == "confirm"}


def published(name: str) -> records.Round:
    return [one for one in ROUNDS if one.study == name][-1]


@pytest.mark.parametrize("one", ROUNDS, ids=named)
def test_a_round_has_the_rows_and_seeds_that_it_says(one):
    last = one is published(one.study)
    assert bool(one.broken_off) != last, "all but the published one say why"
    if last:
        assert one.rows == f"studies/{one.study}.csv"
        assert one.seeds == studies.load_study(one.study).confirm_seeds
    if one.rows:
        text = (results_root() / one.rows).read_text(encoding="utf-8")
        assert confirmed(text) == set(one.seeds)
    else:
        assert (one.study, one.number) in FIRST_EDITION, "rows of rounds are kept"


def test_every_file_of_rows_belongs_to_a_round():
    files = [*results_root().glob("studies/*.csv"), *results_root().glob("rounds/*")]
    # One run that was made later, to look at a single number.
    files.remove(results_root() / "rounds" / "shared_task_1.csv")
    kept = {results_root() / one.rows for one in ROUNDS if one.rows}
    assert set(files) == kept


def test_seeds_that_were_confirmed_on_are_never_fresh_again():
    seen: dict[int, list[str]] = {}
    for one in ROUNDS:
        assert not set(one.seeds) & set(EXPLORE_SEEDS), named(one)
        used = sorted({name for seed in one.seeds for name in seen.get(seed, [])})
        if used:
            assert one.reused, f"{named(one)} was confirmed on the seeds of {used}"
            assert (one.study, one.number) in FIRST_EDITION
        else:
            assert not one.reused, f"{named(one)}: these seeds are fresh"
        for seed in one.seeds:
            seen.setdefault(seed, []).append(named(one))


@pytest.mark.parametrize("one", ROUNDS, ids=named)
def test_what_is_not_shown_belongs_to_the_first_edition(one):
    if one.not_shown:
        assert (one.study, one.number) in FIRST_EDITION


@pytest.mark.parametrize("name", DECLARED)
def test_a_declared_study_has_fresh_seeds_and_is_not_published(name):
    seeds = set(studies.load_study(name).confirm_seeds)
    assert not seeds & {seed for one in ROUNDS for seed in one.seeds}
    assert name not in studies.STUDIES


@pytest.mark.parametrize("name", [*studies.STUDIES, *DECLARED])
def test_a_margin_of_zero_has_a_reason(name):
    for claim in studies.load_study(name).claims:
        if claim.margin != 0 or claim.within is not None:
            assert not claim.why_zero, claim.name
        elif name in DECLARED or (name, published(name).number) not in FIRST_EDITION:
            assert claim.why_zero, claim.name


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_choice_at_the_edge_of_a_grid_has_a_reason(name):
    results, one = studies.load_results(name), published(name)
    grid = results.study.grid
    edges = []
    for option in dict(grid[0]):
        tried = {dict(cell)[option] for cell in grid}
        chosen = {
            dict(results.options(*pair))[option] for pair in results.study.pairs()
        }
        if option == "learning_rate" or len(tried) > 1:
            edges += [value for value in chosen if value in (min(tried), max(tried))]
    assert bool(edges) == bool(one.at_edge), (edges, one.at_edge)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('study = "none"', "study='none' is not one of"),
        ('study = "on_policy"\nseeds = []', "on_policy is not complete"),
        (
            'study = "on_policy"\nseeds = []\nrows = ""\ndeclared_at = ""\n'
            'rows_at = ""\nmood = "good"',
            "says too much.*mood",
        ),
    ],
)
def test_a_record_that_cannot_be_read_says_why(tmp_path, entry, message):
    path = tmp_path / "records.toml"
    path.write_text(f"[[round]]\n{entry}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        records.load_rounds(path)


# The history ------------------------------------------------------------------------


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""


needs_history = pytest.mark.skipif(
    not git("rev-parse", "--verify", f"{ROUNDS[0].declared_at}^{{commit}}"),
    reason="the history is not here",
)


def source_at(commit: str, name: str) -> str:
    places = (f"{name}.py", f"{name}/__init__.py")
    found = [git("show", f"{commit}:distill_helpers/studies/{one}") for one in places]
    return "".join(found)


def rows_at(commit: str, one: records.Round) -> str:
    """The rows of a round; files have been moved since."""
    files = git("ls-tree", "-r", "--name-only", commit, "results").splitlines()
    mine = [name for name in files if one.study in name and name.endswith(".csv")]
    texts = [git("show", f"{commit}:{name}") for name in mine]
    return next((text for text in texts if confirmed(text) >= set(one.seeds)), "")


def claims_in(source: str) -> dict[str, tuple[str, str]]:
    """Name to text and margin, as they stand in a study's source."""
    claims = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        values = {key.arg: key.value for key in node.keywords}
        first = [values.get("name"), values.get("text"), *node.args][:4]
        words = [
            one.value
            for one in first
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        if len(words) > 1 and words[0].isidentifier() and " " in words[1]:
            margin = values.get("margin")
            claims[words[0]] = (words[1], ast.unparse(margin) if margin else "")
    return claims


@needs_history
@pytest.mark.parametrize("one", ROUNDS, ids=named)
def test_a_study_is_declared_before_its_rows(one):
    assert git("merge-base", one.declared_at, "HEAD"), "no commit of this history"
    if one.rows:
        text = rows_at(one.rows_at, one)
        assert confirmed(text) == set(one.seeds), "the rows came in another commit"
    if one.not_shown:
        return
    before = git("rev-list", "--count", f"{one.declared_at}..{one.rows_at}").strip()
    assert int(before) > 0, "declared and run in one commit, or the other way round"
    assert not one.rows or not rows_at(one.declared_at, one) or one.reused
    declared = claims_in(source_at(one.declared_at, one.study))
    assert declared, "no claims were declared"
    if not one.broken_off:
        assert declared == claims_in(source_at(one.rows_at, one.study))


@needs_history
def test_claims_are_found_in_a_source():
    """Else the test above would compare nothing with nothing."""
    for name in studies.STUDIES:
        found = claims_in(source_at(published(name).rows_at, name))
        now = {claim.name for claim in studies.load_study(name).claims}
        assert set(found) >= now, name


# Equal arms -------------------------------------------------------------------------


def values_of(place: tuple[str, str, str]) -> list[float]:
    name, arm, setting = place
    return studies.load_results(name).values("nll", arm, setting)


@pytest.mark.parametrize(("one", "other"), SAME_RUNS)
def test_equal_arms_of_two_studies_are_equal(one, other):
    assert values_of(one) == pytest.approx(values_of(other), rel=2e-3)


@pytest.mark.parametrize("pair", DIFFERENT_RUNS)
def test_what_is_called_different_is(pair):
    one, other = map(values_of, pair)
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    assert max(gaps) > 0.01, "list them among the same runs"


def test_lists_of_equal_and_different_runs_do_not_overlap():
    assert not set(SAME_RUNS) & set(DIFFERENT_RUNS)
    for place in itertools.chain(*SAME_RUNS, *DIFFERENT_RUNS):
        assert place[1] in studies.load_study(place[0]).arms
