"""The capstone with files of one's own, a teacher behind a real server, and killed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from build_notebooks import render
from course import load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from run_notebooks import collect_findings
from tiny_models import byte_level_bpe, tiny

from distill_helpers.cli import main
from distill_helpers.course.local_server import MODEL, serve_packaged_teacher
from distill_helpers.labels import learn_answers, own_labels
from distill_helpers.machine import get_profile
from distill_helpers.models import load_model
from distill_helpers.tasks.questions import write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import HardLabelTrainer, training_arguments

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


TELL = "Answer in one word. "
# Two chat templates that have nothing in common but the end of a turn.
TEACHER_FORM, STUDENT_FORM = (
    "{% for m in messages %}{{ BEGIN m['role'] END + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ BEGIN 'assistant' END }}{% endif %}"
    .replace("BEGIN", begin).replace("END", end)
    for begin, end in (("", "+ ': '"), ("'[' +", "+ ']\\n'"))
)  # fmt: skip


def talk(country: str, tell: str = "") -> list[dict[str, str]]:
    """A conversation whose last turn asks; one has no system prompt of its own."""
    system = [tell, "" if country == "France" else "You know the world."]
    turns = [
        ("system", "\n\n".join(filter(None, system))),
        ("user", "May I ask you something?"),
        ("assistant", "Yes."),
        ("user", f"The capital of {country}?"),
    ]
    return [{"role": role, "content": text} for role, text in turns if text]


def questions(folder: Path, name: str, countries: list[str], chat: bool) -> str:
    answers = [CITIES[country] for country in countries]
    if not chat:
        prompts = [f"The capital of {country}?" for country in countries]
        return str(write_questions(folder / name, prompts, answers))
    talks = [
        {"messages": [*talk(country), {"role": "assistant", "content": answer}]}
        for country, answer in zip(countries, answers, strict=True)
    ]
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in talks))
    return str(path)


def run(
    folder: Path, teacher: str, *, chat: bool = False, learn_from: str = "text"
) -> list[dict[str, str]]:
    """Run the notebook with a filled-in form; what its checks and outputs say."""
    (lesson,) = COURSE.select(["13"])
    notebook = render(COURSE, lesson, solved=True)
    (form,) = [cell for cell in notebook.cells if cell.source.startswith(FORM)]
    learned, asked = list(CITIES)[:4], list(CITIES)[4:]
    form.source = "\n".join(
        [
            f"QUESTIONS = {questions(folder, 'q.jsonl', learned, chat)!r}",
            f"EXAM = {questions(folder, 'exam.jsonl', asked, chat)!r}",
            f"RIGHT = {questions(folder, 'right.jsonl', learned, chat)!r}",
            f"TELL = {TELL!r}",
            f"TEACHER, STUDENT = {teacher!r}, {str(folder / 'small')!r}",
            f"READY_MADE, LEARN_FROM = '', {learn_from!r}",
            "ANSWER_TOKENS, LENGTH, LEARNING_RATE = 24, 96, 0.0",
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


def write_small(folder: Path, template: str) -> None:
    small = load_tiny_teacher("prose")
    small.tokenizer.chat_template = template
    small.model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)


def write_chat_teacher(folder: Path, *, chat: bool = True) -> None:
    """A tiny chat model that knows the capitals, if it is told to answer briefly."""
    write_small(folder, TEACHER_FORM)
    model, tokenizer = load_model(folder)
    told = [
        talk(country, TELL) if chat else f"{TELL}The capital of {country}?"
        for country in CITIES
    ]
    HardLabelTrainer(
        model,
        args=training_arguments(
            get_profile("smoke"),
            steps=60,
            learning_rate=3e-3,
            batch_size=6,
            disable_tqdm=True,
        ),
        train_dataset=learn_answers(own_labels(told, list(CITIES.values())), tokenizer),
        tokenizer=tokenizer,
    ).train()
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("is_local", [True, False], ids=["local", "api"])
def test_it_runs_on_conversations(is_local, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUPYTER_PATH", "")
    write_small(tmp_path / "small", STUDENT_FORM)
    if is_local:
        write_chat_teacher(tmp_path / "teacher")
        findings = run(tmp_path, str(tmp_path / "teacher"), chat=True)
    else:
        with serve_packaged_teacher(threads=1, parallel=2) as url:
            findings = run(tmp_path, f"api:{MODEL}@{url}", chat=True)
    checks = [one["status"] for one in findings if one["kind"] == "check"]
    assert checks == ["passed"] * 3
    home = tmp_path / "home"
    learned, asked = (
        [json.loads(line) for line in (home / name).read_text().splitlines()]
        for name in ("learn.jsonl", "asked.jsonl")
    )
    # The teacher is told in its system prompt; the student is not.
    countries = list(CITIES)
    told = [talk(country, TELL) for country in countries]
    assert {json.dumps(row["messages"]) for row in asked} == {
        json.dumps(one) for one in told
    }
    assert [row["messages"] for row in learned] == [talk(one) for one in countries[:4]]
    if is_local:
        assert [row["answer"] for row in learned] == list(CITIES.values())[:4]
    shipped = home / "student"
    assert (shipped / "chat_template.jinja").read_text() == STUDENT_FORM
    card = (shipped / "README.md").read_text(encoding="utf-8")
    assert "It reads conversations in the chat template" in card
    assert "right, right answers alone" in card
    # What the server answers to messages is what was judged, template and all.
    assert re.search(r"\| served, f16 \| .+; 2 of 2 answers the same \|", card)
    config = json.loads((home / "run.json").read_text())
    assert config["plain_prompts"] is False
    # The command line asks in the template that was shipped.
    judge = ["evaluate", "--model", str(shipped), "--profile", "smoke"]
    capsys.readouterr()
    assert main([*judge, "--answers", str(home / "judged.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False], ids=["own tokenizer", "other"])
def test_it_learns_from_soft_labels(chat, tmp_path, monkeypatch):
    """In conversations with the teacher's tokenizer; in plain prompts with another."""
    monkeypatch.setenv("JUPYTER_PATH", "")
    write_chat_teacher(tmp_path / "teacher", chat=chat)
    if chat:
        write_small(tmp_path / "small", STUDENT_FORM)
    else:
        tokenizer = byte_level_bpe()
        for part in (tiny(tokenizer), tokenizer):
            part.save_pretrained(tmp_path / "small")
    findings = run(tmp_path, str(tmp_path / "teacher"), chat=chat, learn_from="soft")
    checks = [one["status"] for one in findings if one["kind"] == "check"]
    assert checks == ["passed"] * 3
    home = tmp_path / "home"
    run_facts = json.loads((home / "run" / "training_run.json").read_text())
    assert (run_facts["kind"], run_facts["cross"]) == ("soft", "pieces")
    alone = json.loads((home / "run_right" / "training_run.json").read_text())
    assert alone["kind"] == "hard"
    states = list((home / "run").glob("checkpoint-*/trainer_state.json"))
    logged = json.loads(max(states).read_text())["log_history"]
    compared = [one["compared"] for one in logged if "compared" in one]
    # With one tokenizer all is compared; with another, where tokens begin together.
    assert 0 < min(compared) <= 1
    assert (min(compared) == 1) == chat
    assert all(one["unaligned"] == 0 for one in logged if "unaligned" in one)
    card = (home / "student" / "README.md").read_text(encoding="utf-8")
    assert "Labels: soft." in card


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
