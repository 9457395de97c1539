"""The capstone with files of one's own, a teacher behind a real server, and killed."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from build_notebooks import render
from course import load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
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
    execute(notebook, folder)
    return collect_findings(notebook)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    use_this_python()
    NotebookClient(
        notebook,
        kernel_name=KERNEL_NAME,
        timeout=240,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=kernel_environment("smoke"))


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


def run_until(folder: Path, line: str) -> nbformat.NotebookNode:
    """Run our own project in a folder; the kernel dies after the cell with a line."""
    (lesson,) = COURSE.select(["13"])
    notebook = render(COURSE, lesson, solved=True)
    (form,) = [cell for cell in notebook.cells if cell.source.startswith(FORM)]
    form.source += f"\nFOLDER = {str(folder / 'home')!r}"
    if not line:
        execute(notebook, folder)
        return notebook
    places = [place for place, cell in enumerate(notebook.cells) if line in cell.source]
    assert len(places) == 1, line
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(kill))
    with pytest.raises(DeadKernelError):
        execute(notebook, folder)
    return notebook


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_many_places_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "")
    home = tmp_path / "home"
    run_until(tmp_path, "resolve_student(STUDENT, teacher, profile, seed=0)")
    learned = (home / "learn.jsonl").read_bytes()
    run_until(tmp_path, "trainer = None  # its memory is free again")
    assert not (home / "student").exists()
    run_until(tmp_path, "trained.save_pretrained(shipped)")
    student = (home / "student" / "model.safetensors").read_bytes()
    run_until(tmp_path, "rival.train(resume_from_checkpoint=True)")
    run_until(tmp_path, "export_gguf(*student, file, precision=precision)")
    notebook = run_until(tmp_path, "")
    # Nothing was asked or learned twice, and nothing was lost.
    assert (home / "learn.jsonl").read_bytes() == learned
    assert (home / "student" / "model.safetensors").read_bytes() == student
    findings = collect_findings(notebook)
    checks = [one["status"] for one in findings if one["kind"] == "check"]
    assert checks == ["passed"] * 3
    card = (home / "student" / "README.md").read_text(encoding="utf-8")
    assert "right, right answers alone" in card
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run_until(undisturbed, "export_gguf(*student, file, precision=precision)")
    again = undisturbed / "home" / "student" / "model.safetensors"
    assert again.read_bytes() == student
