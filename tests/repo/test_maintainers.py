"""The commands that maintainers run to make what ships with the course."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import label_glosses
import make_tiny_teachers
import pytest
import run_studies

from distill_helpers import studies

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["make_tiny_teachers", "label_glosses", "run_studies"])
def test_help_loads_no_torch(name):
    code = f"""
import sys, {name}
try:
    {name}.main(["--help"])
except SystemExit:
    assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    paths = [str(ROOT), str(ROOT / "tools"), os.environ["PYTHONPATH"]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_errors_are_sentences(tmp_path, capsys):
    work = ["--work", str(tmp_path), "--results", str(tmp_path)]
    assert run_studies.main(["--only", "nothing", *work]) == 1
    assert "'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "changed", "code"),
    [("as published", [], 0), ("outside", [], 1), ("as published", ["a claim"], 1)],
)
def test_a_recheck_fails_where_something_disagrees(
    status, changed, code, monkeypatch, capsys
):
    one = SimpleNamespace(status=status)
    monkeypatch.setattr(studies, "load_results", lambda name: name)
    monkeypatch.setattr(studies, "recheck_study", lambda *_, **__: ([one], changed))
    assert run_studies.main(["--recheck", "--only", "soft_labels"]) == code
    assert bool(capsys.readouterr().err) == bool(code)


def test_the_tiny_teachers_are_written_with_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(make_tiny_teachers, "SUMS_PROBLEMS", 64)
    options = ["--only", "sums", "--steps", "1", "--output", str(tmp_path)]
    assert make_tiny_teachers.main(options) == 0
    assert json.loads(capsys.readouterr().out) == {"sums": {"exact_match": 0.0}}
    names = {path.name for path in (tmp_path / "tiny_sums").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.slow
def test_gloss_labels_are_a_file_that_goes_on(tmp_path, capsys):
    output = tmp_path / "labels.jsonl"
    options = ["--output", str(output), "--steps", "1", "--judged", "3"]
    assert label_glosses.main([*options, "--count", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "labels.report.json").read_text())
    assert [report[name]["count"] for name in ("test", "pool")] == [3, 2]
    first = output.read_text().splitlines()
    assert len(first) == 2
    assert label_glosses.main([*options, "--count", "4"]) == 0
    # The same seed gives the same teacher, whose answers are not asked for again.
    assert output.read_text().splitlines()[:2] == first


def test_judging_again_finds_a_verdict_that_was_typed(tmp_path, capsys):
    folder = tmp_path / "studies"
    folder.mkdir()
    rows = studies.verdict_rows(studies.load_results("longer_training"))
    assert rows[0]["status"] != "equivalent"
    typed = [rows[0] | {"status": "equivalent"}, *rows[1:]]
    (folder / "verdicts.json").write_text(json.dumps(typed), encoding="utf-8")
    options = ["--judge", "--only", "longer_training", "--results", str(tmp_path)]
    assert run_studies.main(options) == 1
    assert "was equivalent" in capsys.readouterr().err
    assert run_studies.main(options) == 0
    assert json.loads((folder / "verdicts.json").read_text(encoding="utf-8")) == rows
