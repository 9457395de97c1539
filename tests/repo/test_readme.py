"""README.md and its neighbours say what is so: tables, links, targets, code."""

import csv
import json
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import api_server
import matplotlib
import pytest
import readme_tables
import torch
import yaml
from course import load_course
from scipy import stats
from tiny_models import TEXTS, byte_level_bpe

import distill_helpers
from distill_helpers.course.diagrams import three_techniques
from distill_helpers.models import build_student, load_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "RELEASING.md", "CHANGELOG.md")
PAGES += ("docs/results.md", "docs/running.md", "docs/toolkit.md", "docs/cluster.md")
PAGES += ("docs/what_we_got_wrong.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
DATA_PAGE = "data/README.md"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# --- the generated blocks -----------------------------------------------------------


def test_the_blocks_are_up_to_date(capsys):
    assert readme_tables.main(["--check"]) == 0, capsys.readouterr().err


def test_every_lesson_is_on_the_map():
    course = load_course(ROOT)
    block = readme_tables.map_block(course)
    for lesson in course.lessons:
        (row,) = [line for line in block.splitlines() if lesson.title in line]
        assert (f"notebooks/{lesson.name}.ipynb" in row) == lesson.ready
        assert f"| {lesson.minutes['cpu']:g} |" in row


@pytest.fixture
def project(tmp_path):
    """A small project whose pages can go out of date."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "course.toml").write_text(read("notebooks/course.toml"))
    package = tmp_path / "distill_helpers" / "__init__.py"
    package.parent.mkdir()
    package.write_text('__version__ = "9"\n', encoding="utf-8")
    (tmp_path / "docs").mkdir()
    blocks = {
        name: f"<!-- begin: {name} -->\n<!-- end: {name} -->"
        for name in ("figure", "map", "headlines", "results")
    }
    results = f"above\n\n{blocks.pop('results')}\n\nbelow\n"
    (tmp_path / "docs" / "results.md").write_text(results, encoding="utf-8")
    text = "\n\nbetween\n\n".join(["before", *blocks.values(), "after\n"])
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return tmp_path


VERDICT = {
    "study": "soft_labels",
    "name": "few_data",
    "text": "Soft labels win",
    "metric": "nll",
    "arm": "soft T=1",
    "baseline": "labels",
    "setting": "800",
    "margin": 0.3,
    "higher_is_better": False,
    "gain": {"mean": 0.5, "low": 0.4321, "high": 0.6, "n": 3},
    "status": "holds",
}


def publish(project, rows, verdicts=()):
    folder = project / "results" / "studies"
    folder.mkdir(parents=True)
    with (folder / "soft_labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "phase", "arm", "setting", "seed", "nll"])
        writer.writerows(["soft_labels", *row] for row in rows)
    (folder / "verdicts.json").write_text(json.dumps(list(verdicts)), encoding="utf-8")


def run(project, *options):
    return readme_tables.main([*options, "--root", str(project)])


def page(project, name="docs/results.md"):
    return (project / name).read_text(encoding="utf-8")


def pages(project):
    return {name: page(project, name) for name in readme_tables.PAGES}


def test_check_changes_nothing_and_a_second_run_neither(project, capsys):
    empty = pages(project)
    assert run(project, "--check") == 1
    stale = capsys.readouterr().err
    assert all(f"{name} is out of date: `make readme`" in stale for name in empty)
    assert pages(project) == empty

    assert run(project) == 0
    filled = pages(project)
    readme, results = filled["README.md"], filled["docs/results.md"]
    assert readme.startswith("before\n")
    assert readme.count("\nbetween\n") == 4
    assert readme.endswith("\nafter\n")
    assert results.startswith("above\n")
    assert results.endswith("\nbelow\n")
    assert all("have not been run" in text for text in (readme, results))
    assert run(project, "--check") == 0
    assert run(project) == 0
    assert pages(project) == filled


def test_means_come_from_the_confirming_rows_with_their_interval(project):
    values = [5.0, 5.2, 5.1]
    rows = [["explore", "labels", "800", 0, 9.0]]
    rows += [
        ["confirm", "labels", "800", 100 + i, value] for i, value in enumerate(values)
    ]
    rows += [["confirm", "soft T=1", "3000", 100, 4.5]]
    publish(project, rows, [VERDICT])
    assert run(project) == 0
    text = page(project)
    low, high = stats.t.interval(
        0.95, 2, loc=stats.tmean(values), scale=stats.sem(values)
    )
    half = (high - low) / 2
    assert f"| labels | {stats.tmean(values):.3f} ± {half:.3f} | – |" in text
    assert "| soft T=1 | – | 4.500 |" in text
    assert "| target | 800 | 3000 |" in text
    gain = "+0.500 | +0.432 to +0.600"
    assert f"| Soft labels win | {gain} | more than 0.3 nats | **holds** |" in text
    assert "have not been run" not in text
    readme = page(project, "README.md")
    assert "| +0.500 nats (+0.432 to +0.600) | **holds** |" in readme
    assert "All 1 claims: holds 1." in readme

    # New results make it stale.
    path = project / "results" / "studies" / "verdicts.json"
    path.write_text(json.dumps([{**VERDICT, "status": "fails"}]), encoding="utf-8")
    assert run(project, "--check") == 1
    assert run(project) == 0
    for name in readme_tables.PAGES:
        assert "**fails**" in page(project, name)
        assert "**holds**" not in page(project, name)


def test_a_share_is_not_called_a_gain():
    kept = {**VERDICT, "reference": "full", "share": 0.9}
    line = readme_tables.claims_table([kept]).splitlines()[-1]
    assert "| +0.500 beyond 90 % of the gain of *full* | +0.432 to" in line


def test_a_claim_of_equality_says_within_what():
    equal = {**VERDICT, "within": 0.02, "status": "equivalent"}
    line = readme_tables.claims_table([equal]).splitlines()[-1]
    assert line.endswith("| within ±0.02 nats | **equivalent** |")


def test_what_is_printed_is_rounded_once():
    """Two steps, from 0.0644996 to 0.0645 to 0.065, would round it up."""
    exact = {**VERDICT, "gain": {"mean": 0.0644996, "low": 0.0, "high": 1.0, "n": 5}}
    assert "+0.064" in readme_tables.claims_table([exact])


def test_costs_stand_beside_the_metric():
    shown = readme_tables.Shown("", "score", digits=1, costs=(("TFLOPs", "flops"),))
    rows = [
        {"arm": "soft", "setting": setting, "seed": "100", "score": "7", "flops": flops}
        for setting, flops in (("few", "1.5"), ("many", "2.5"))
    ]
    assert readme_tables.metric_table(rows, shown).splitlines() == [
        "| target | few | many | TFLOPs |",
        "|---|--:|--:|--:|",
        "| soft | 7.0 | 7.0 | 2.0 |",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<!-- end: map -->", ""),
        lambda text: text.replace("<!-- begin: map -->", ""),
        lambda text: text + "<!-- begin: map -->\n<!-- end: map -->\n",
        lambda text: "<!-- end: map -->\n" + text.replace("<!-- end: map -->", ""),
    ],
    ids=["no end", "no beginning", "twice", "turned round"],
)
def test_a_damaged_marker_loses_no_text(project, damage, capsys):
    path = project / "README.md"
    path.write_text(damage(page(project, "README.md")), encoding="utf-8")
    before = pages(project)
    assert run(project) == 2
    assert "README.md needs one line `<!-- begin: map" in capsys.readouterr().err
    assert pages(project) == before


def test_every_headline_is_a_claim_of_its_lesson():
    """A question must not be about another claim than the numbers next to it."""
    verdicts = readme_tables.load_verdicts(ROOT)
    known = {(one["study"], one["name"]) for one in verdicts}
    lessons = {one.number: one for one in load_course(ROOT).lessons if one.ready}
    assert len(readme_tables.HEADLINES) == 6
    for study, claim, number, question in readme_tables.HEADLINES:
        assert (study, claim) in known
        source = load_course(ROOT).source_path(lessons[number])
        assert study in source.read_text(encoding="utf-8")
        assert question.endswith("?")


def test_the_headlines_count_every_verdict():
    counted = Counter(one["status"] for one in readme_tables.load_verdicts(ROOT))
    lines = readme_tables.headlines_block(ROOT).splitlines()
    (last,) = [line for line in lines if line.startswith("All ")]
    found = {word: int(n) for word, n in re.findall(r"(\w+) (\d+)[,.]", last)}
    assert found == counted
    assert last.startswith(f"All {counted.total()} claims: ")


def test_the_figure_is_the_lessons_first_diagram():
    drawn = read(readme_tables.FIGURE)
    diagram = three_techniques()
    assert f"<title>{diagram.alt}</title>" in drawn
    # Another matplotlib draws other bytes.
    if f"Matplotlib v{matplotlib.__version__}," in drawn:
        assert drawn == diagram.svg


# --- what the pages say -------------------------------------------------------------


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("name", [*PAGES, DATA_PAGE])
def test_relative_links_lead_somewhere(name):
    page = ROOT / name
    course = load_course(ROOT)
    ready = [lesson for lesson in course.lessons if lesson.ready]
    sources = {course.notebook_path(one): course.source_path(one) for one in ready}
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if re.match(r"\w+://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        # Whether a notebook is built is for `make notebooks-check` to say.
        assert sources.get(path, path).exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


def targets():
    return set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_exists(name):
    text = read(name)
    # In code spans, and at the start of a line of a shell block.
    called = re.findall(r"(?:`|^)make ((?:[A-Z]+=\S+ )*)([a-z][\w-]*)", text, re.M)
    assert {target for _, target in called} <= targets()
    needed = {"README.md": {"run", "test", "lab"}, "CONTRIBUTING.md": {"notebooks"}}
    assert needed.get(name, set()) <= {target for _, target in called}


def test_make_help_knows_every_target():
    listed = set(re.findall(r'@echo "make ([\w-]+)', read("Makefile")))
    assert listed == targets() - {"help", "setup"}


@pytest.mark.parametrize("name", [*PAGES, DATA_PAGE])
def test_named_files_exist(name):
    """Code spans that look like a file of the repository are one."""
    page = ROOT / name
    looks_like_a_file = re.compile(r"`([\w./-]+\.(?:py|toml|txt|yml|md|cff|jsonl))`")
    # And those that a command writes.
    made_up = {"notebooks/source/NN_name.py", "build/gloss_labels.jsonl", "told.jsonl"}
    for file in set(looks_like_a_file.findall(read(name))) - made_up:
        places = [ROOT / file, page.parent / file, ROOT / "notebooks" / file]
        assert any(path.exists() for path in places), file


def test_a_newcomer_gets_through_the_readme():
    lines = read("README.md").splitlines()
    assert len(lines) <= 200
    # The first link of all leads to the first lesson, before any heading but the title.
    first = load_course(ROOT).lessons[0]
    (at,) = [i for i, line in enumerate(lines) if "Begin here" in line]
    assert f"(notebooks/{first.name}.ipynb)" in lines[at]
    assert not any("](" in line for line in lines[:at])
    assert sum(line.startswith("#") for line in lines[:at]) == 1


def test_the_readme_leads_to_every_page_of_docs():
    linked = set(re.findall(r"\]\((docs/[\w.]+)", read("README.md")))
    assert {name for name in PAGES if name.startswith("docs/")} <= linked


def test_the_version_stands_in_one_place():
    version = distill_helpers.__version__
    settings = tomllib.loads(read("pyproject.toml"))
    assert "version" not in settings["project"]
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == "distill_helpers/__init__.py"
    assert "version" not in yaml.safe_load(read("CITATION.cff"))
    assert load_course(ROOT).tag == f"v{version}"
    # The one other mention is history.
    assert f"## {version}" in read("CHANGELOG.md")


def test_the_citation_names_no_person():
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["authors"] == project["authors"]
    assert citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0"


def test_licences_are_whole():
    licence = read("LICENSE")
    assert licence.lstrip().startswith("Apache License\n")
    assert "END OF TERMS AND CONDITIONS" in licence
    notice = read("NOTICE")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    for name in ("LICENSE.wordnet", "LICENSE.janeaustenr"):
        assert f"data/{name}" in notice
        assert "AS IS" in read(f"data/{name}")


# --- nothing of our machines, no index's address ------------------------------------

# Put together here, so that this file passes its own test.
HOSTS = ["py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org"]
HOSTS += ["conda.ana" + "conda.org", "test.py" + "pi"]
FOLDERS = ["ho" + "me", "ro" + "ot", "Us" + "ers", "wo" + "rk", "t" + "mp", "m" + "nt"]
FORBIDDEN = re.compile(
    "|".join(map(re.escape, HOSTS)) + rf"|(?<![\w.<\-}}/])/(?:{'|'.join(FOLDERS)})/\w"
)


def our_text_files():
    """What git tracks or would track, outside data/."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    for name in sorted(set(done.stdout.decode().split("\0")) - {""}):
        path = ROOT / name
        if name.startswith("data/") or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def test_no_index_host_and_no_path_of_a_machine():
    found = [
        f"{name}: {match.group()}"
        for name, text in our_text_files()
        for match in FORBIDDEN.finditer(text)
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "is_forbidden"),
    [
        ("https://" + HOSTS[0] + "/simple", True),
        ("open('/ho" + "me/me/x')", True),
        ("see /wo" + "rk/main", True),
        ("https://example.org/wo" + "rk/1", False),
        ("a home/work balance", False),
        ("../home/x", False),
    ],
)
def test_the_pattern_tells_paths_from_prose(text, is_forbidden):
    assert bool(FORBIDDEN.search(text)) == is_forbidden


# --- the code on the pages ----------------------------------------------------------

WITH_CODE = ("README.md", "docs/toolkit.md")


@pytest.fixture
def learners_folder(tmp_path, monkeypatch):
    """What the example assumes: two models that share a tokenizer, and a text."""
    tokenizer = byte_level_bpe()
    for name, width in (("my-teacher", 64), ("my-student", 32)):
        build_student(tokenizer, layers=1, width=width).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    text = "\n\n".join(TEXTS * 30)
    (tmp_path / "my-text.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_PROFILE", "cpu")
    return tmp_path


def code_blocks(name):
    return re.findall(r"^```python\n(.*?)^```", read(name), re.M | re.S)


def executed(blocks):
    """The names that every block leaves, run against a server of our own."""
    spaces = []
    with api_server.serving() as server:
        there = f'"{server.base_url}", api_key="{api_server.KEY}"'
        for block in blocks:
            here = block.replace('"https://api.example.com/v1"', there)
            here = here.replace("their-model", api_server.MODEL)
            space = {}
            exec(compile(here, "a page", "exec"), space)
            spaces.append(space)
    return spaces


def test_the_code_in_the_readme_runs():
    (block,) = code_blocks("README.md")
    (space,) = executed([block])
    assert space["student_logits"].grad.abs().sum() > 0
    # The page on the toolkit repeats it; "ten lines" is what README promises.
    assert block in code_blocks("docs/toolkit.md")
    assert len(block.splitlines()) <= 10


def test_the_code_for_practitioners_runs(learners_folder, capsys):
    blocks = code_blocks("docs/toolkit.md")
    assert len(blocks) == 6
    spaces = executed(blocks)
    assert "Evaluation(nll=" in capsys.readouterr().out
    assert (learners_folder / "my-distilled-student" / "model.safetensors").is_file()
    assert spaces[0]["trainer"].state.global_step == 100
    assert spaces[1]["student_logits"].grad.abs().sum() > 0
    assert len(spaces[3]["rows"]) == 2
    # What was learned is in the weights of an ordinary model.
    before = load_model("my-student").model.state_dict()
    after = spaces[4]["plain"].state_dict()
    for name in ("together", "own_text"):
        assert spaces[5][name].state.global_step == 2
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("block", [b for name in WITH_CODE for b in code_blocks(name)])
def test_the_code_on_the_pages_fits_the_page(block):
    assert max(len(line) for line in block.splitlines()) <= 88
