"""The capstone with files of one's own, and a teacher behind a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build_notebooks import render
from course import load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from nbclient import NotebookClient
from run_notebooks import collect_findings

from distill_helpers.course.local_server import MODEL, serve_packaged_teacher
from distill_helpers.tasks.questions import write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher

pytest.importorskip("xllamacpp")

COURSE = load_course(Path(__file__).resolve().parents[2])
FORM = 'QUESTIONS, EXAM, RIGHT, TELL = "", "", "", ""'
CITIES = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
}


def questions(folder: Path, name: str, countries: list[str]) -> str:
    prompts = [f"The capital of {country}?" for country in countries]
    answers = [CITIES[country] for country in countries]
    return str(write_questions(folder / name, prompts, answers))


def run(folder: Path, teacher: str) -> list[dict[str, str]]:
    """Run the notebook with a filled-in form; what its checks and outputs say."""
    (lesson,) = COURSE.select(["13"])
    notebook = render(COURSE, lesson, solved=True)
    (form,) = [cell for cell in notebook.cells if cell.source.startswith(FORM)]
    learned, asked = list(CITIES)[:4], list(CITIES)[4:]
    form.source = "\n".join(
        [
            f"QUESTIONS = {questions(folder, 'q.jsonl', learned)!r}",
            f"EXAM = {questions(folder, 'exam.jsonl', asked)!r}",
            f"RIGHT = {questions(folder, 'right.jsonl', learned)!r}",
            "TELL = 'Answer in one word. '",
            f"TEACHER, STUDENT = {teacher!r}, {str(folder / 'small')!r}",
            "READY_MADE = ''",
            "ANSWER_TOKENS, LENGTH, LEARNING_RATE = 24, 64, 0.0",
            # It learns next to nothing here, so nothing would be exactly right.
            "SCORE_BY = lambda text: len(text) > 0",
            "BAR = {'min_score': 0.9, 'min_speed': 2.0, 'max_bytes': 0.5}",
            f"LICENCE, FOLDER = 'mit', {str(folder / 'home')!r}",
            "DRIVE, PUSH_TO = '', ''",
        ]
    )
    use_this_python()
    NotebookClient(
        notebook,
        kernel_name=KERNEL_NAME,
        timeout=240,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=kernel_environment("smoke"))
    return collect_findings(notebook)


@pytest.mark.slow
def test_it_runs_with_an_api_as_teacher_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "")
    small = load_tiny_teacher("prose")
    small.model.save_pretrained(tmp_path / "small")
    small.tokenizer.save_pretrained(tmp_path / "small")
    with serve_packaged_teacher(threads=1, parallel=2) as url:
        findings = run(tmp_path, f"api:{MODEL}@{url}")
    checks = [one["status"] for one in findings if one["kind"] == "check"]
    assert checks == ["passed"] * 3
    home = tmp_path / "home"
    lines = (home / "learn.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert all(json.loads(line)["answer"].strip() for line in lines)
    card = (home / "student" / "README.md").read_text(encoding="utf-8")
    assert 'license: "mit"' in card
    assert "right, right answers alone" in card
    assert (home / "student" / "student-q8_0.gguf").stat().st_size > 10_000
    # The server is gone: what it said and what was trained is there, and is used.
    again = run(tmp_path, f"api:{MODEL}@{url}")
    assert [one["status"] for one in again if one["kind"] == "check"] == checks
