"""Colab, simulated: secrets, Drive, the setup cell, a runtime that is lost.

``tests/colab`` stands in for Colab's package. ``make test-colab`` runs this among
Colab's published versions, and then every notebook.
"""

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import template
import torch
from course import PLACEHOLDER, load_course
from setup_env import read_pins
from training_runs import trainer
from transformers import TrainerCallback

from distill_helpers import machine
from distill_helpers.labels import LocalTeacher, find_api_key
from distill_helpers.tasks.questions import own_project, write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "tests" / "colab"
KEY, SECRET = "OPENAI_API_KEY", "sk-of-somebody"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A runtime of Colab, and the person's Drive beside it."""
    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260801")
    monkeypatch.setenv("COLAB_GPU", "1")
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr("sys.stdin", None)
    importlib.invalidate_caches()
    drive = importlib.import_module("google.colab.drive")
    storage, place = tmp_path / "storage", tmp_path / "content" / "drive" / "MyDrive"
    storage.mkdir()
    drive.STORAGE[:], drive.APPEARS[:], drive.ALLOWED[:] = [storage], [place], [True]
    monkeypatch.setattr(machine, "_MY_DRIVE", place)
    yield importlib.import_module("google.colab")
    drive.STORAGE.clear()
    drive.APPEARS.clear()
    for name in [one for one in sys.modules if one.startswith("google.colab")]:
        del sys.modules[name]


@pytest.fixture
def userdata(colab):
    return importlib.import_module("google.colab.userdata")


# Secrets


def test_a_secret_is_used_and_not_shown(userdata, capsys):
    userdata.STORED[KEY] = SECRET
    userdata.ACCESS.add(KEY)
    assert find_api_key() == SECRET
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err


def test_the_environment_comes_first(userdata, monkeypatch):
    userdata.PAGE_IS_OPEN[0] = False
    monkeypatch.setenv(KEY, SECRET)
    assert find_api_key() == SECRET


@pytest.mark.parametrize("problem", ["not stored", "no access", "no page"])
def test_no_secret_is_said_in_our_words(userdata, problem):
    if problem != "not stored":
        userdata.STORED[KEY] = SECRET
    userdata.PAGE_IS_OPEN[0] = problem != "no page"
    with pytest.raises(ValueError, match=f"no API key: .*{KEY}") as error:
        find_api_key("https://api.example.com/v1")
    assert SECRET not in str(error.value)


# Drive, and a runtime that is lost


class Disconnect(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise ConnectionError("the runtime is gone")


def weights(model):
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def test_a_run_goes_on_in_a_new_runtime(colab, tmp_path):
    options = {"steps": 5, "save_steps": 2, "logging_steps": 1}
    whole = trainer(str(tmp_path / "whole"), **options)
    whole.train()

    folder = machine.drive_folder("course/run")
    lost = trainer(str(folder), callbacks=[Disconnect()], **options)
    with pytest.raises(ConnectionError):
        lost.train()
    # Nobody flushed or unmounted: the machine is simply not there any more.
    (place,) = colab.drive.APPEARS
    place.unlink()
    assert not folder.exists()

    folder = machine.drive_folder("course/run")
    resumed = trainer(str(folder), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert torch.equal(weights(resumed.model), weights(whole.model))
    machine.flush_drive()
    assert not place.exists()
    assert list((colab.drive.STORAGE[0] / "course" / "run").glob("checkpoint-4"))


class Counting(LocalTeacher):
    """Counts its answers; the runtime is lost before number ``last``."""

    def __init__(self, *, last=None):
        super().__init__(*load_tiny_teacher("sums"))
        self.last, self.given = last, 0

    def answers(self, take, concurrency):
        for pair in super().answers(take, concurrency):
            if self.given == self.last:
                raise ConnectionError("the runtime is gone")
            self.given += 1
            yield pair


def test_no_answer_is_asked_for_again_in_a_new_runtime(colab, tmp_path):
    sums = ["12+30+41=", "25+25+17=", "50+11+20="]
    given = {
        "questions": write_questions(tmp_path / "questions.jsonl", sums),
        "exam": write_questions(tmp_path / "exam.jsonl", ["40+31+22="], ["93"]),
        "max_new_tokens": 32,
        "concurrency": 1,
        "progress": False,
    }
    undisturbed = own_project(tmp_path / "whole", teacher=Counting(), **given)

    with pytest.raises(ConnectionError):
        own_project(machine.drive_folder("mine"), teacher=Counting(last=2), **given)
    (place,) = colab.drive.APPEARS
    place.unlink()

    teacher = Counting()
    found = own_project(machine.drive_folder("mine"), teacher=teacher, **given)
    assert teacher.given == 2
    assert found[0].read_text() == undisturbed[0].read_text()
    assert found[1] == undisturbed[1]


def test_drive_is_asked_for_once_and_a_refusal_is_an_error(colab, capsys):
    machine.drive_folder("a")
    machine.drive_folder("b")
    assert "already mounted" in capsys.readouterr().out
    machine.flush_drive()
    colab.drive.ALLOWED[0] = False
    with pytest.raises(ValueError, match="mount failed"):
        machine.drive_folder("c")
    machine.flush_drive()  # nothing to do is no error


# The setup cell


def setup_cell(path):
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if "setup" in c.metadata.get("tags", [])]
    (cell,) = tagged
    return cell.source


def test_the_setup_cell_is_the_same_everywhere():
    assert len(NOTEBOOKS) == sum(one.ready for one in load_course(ROOT).lessons)
    assert len({setup_cell(path) for path in NOTEBOOKS}) == 1


def test_the_notebooks_ask_colab_for_a_gpu():
    for path in NOTEBOOKS:
        metadata = nbformat.read(path, as_version=4).metadata
        assert metadata.accelerator == "GPU"
        assert metadata.colab.gpuType == "T4"


# Colab's IPython runs the cell; its pip is recorded, since there is no network here.
# As on Colab, the package is missing until something has been installed.
RUN_SETUP = """
import importlib.util, sys
from IPython.core.interactiveshell import InteractiveShell

missing = sys.argv[2] == "missing"
shell = InteractiveShell.instance()
find_spec = importlib.util.find_spec
installed = []

def pip(line):
    installed.append(line)
    print("PIP", line)

shell.register_magic_function(pip, "line", "pip")
importlib.util.find_spec = lambda name, *more: (
    None if missing and name == "distill_helpers" and not installed
    else find_spec(name, *more)
)
shell.run_cell(open(sys.argv[1]).read()).raise_error()
"""


PUBLISHED = "https://github.com/some/where"
WHEEL = "distill_helpers-9.9-py3-none-any.whl"


def run_setup(folder, state, *, repository=PUBLISHED, policy=None):
    """Run the setup cell in a folder, as the template writes it for an address."""
    course = replace(load_course(ROOT), repository=repository)
    _, _, setup, _ = template.opening(course, course.lessons[0])
    cell = folder / "cell.txt"
    cell.write_text(setup.source)
    environment = {
        **os.environ,
        "COLAB_RELEASE_TAG": "release-colab-20260801",
        "IPYTHONDIR": str(folder),
        "OMP_DISPLAY_ENV": "true",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
    }
    environment.pop("OMP_WAIT_POLICY", None)
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    return subprocess.run(
        [sys.executable, "-c", RUN_SETUP, str(cell), state],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def installed(done):
    return [line for line in done.stdout.splitlines() if line.startswith("PIP")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "policy"),
    [("missing", None), ("installed", None), ("installed", "active")],
)
def test_the_setup_cell_runs(state, policy, tmp_path):
    done = run_setup(tmp_path, state, policy=policy)
    assert done.returncode == 0, done.stderr
    # OpenMP says what it found when torch was loaded: the cell comes first.
    found = re.findall(r"OMP_WAIT_POLICY *= *'(\w+)'", done.stderr)
    assert {one.lower() for one in found} == {policy or "passive"}
    lines = installed(done)
    if state == "installed":
        assert lines == []
    else:
        # Nothing that Colab ships may be changed, and all else has its version.
        course, *others = lines
        assert course.startswith(f"PIP install -q --no-deps git+{PUBLISHED}@v")
        for line in others:
            options, packages = line.split(" --no-deps ")
            assert options == "PIP install -q"
            assert all("==" in package for package in packages.split())
    assert "Everything the course needs is here." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("repository", [PUBLISHED, PLACEHOLDER])
def test_an_uploaded_wheel_comes_first(repository, tmp_path):
    # What a browser calls a second download, pip would refuse.
    for name in (WHEEL, WHEEL.replace(".whl", " (1).whl")):
        (tmp_path / name).touch()
    done = run_setup(tmp_path, "missing", repository=repository)
    assert done.returncode == 0, done.stderr
    assert installed(done)[0] == f"PIP install -q --no-deps {WHEEL}"


@pytest.mark.slow
def test_before_publication_the_cell_asks_for_the_wheel(tmp_path):
    done = run_setup(tmp_path, "missing", repository=PLACEHOLDER)
    assert done.returncode != 0
    assert "upload the course's wheel" in done.stderr
    assert installed(done) == []


# What Run All must never do: wait for somebody


ASKING = {"input", "raw_input", "getpass", "login", "notebook_login"}
ASKING |= {"interpreter_login", "upload", "authenticate_user"}


def calls_of(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            yield getattr(function, "id", getattr(function, "attr", None))


def code_of(path):
    """A notebook's code, the solutions that are folded away included."""
    for cell in nbformat.read(path, as_version=4).cells:
        text = cell.source
        if cell.cell_type == "markdown":
            parts = text.split("```python\n")[1:] if "<summary>Sol" in text else []
            yield from (part.split("\n```")[0] for part in parts)
        else:
            # Magics are IPython's own; the setup cell has some.
            lines = text.splitlines()
            yield "\n".join(
                line.replace("%pip", "pass  # %pip") if "%pip" in line else line
                for line in lines
            )


def test_no_cell_asks_for_a_login():
    for path in NOTEBOOKS:
        for code in code_of(path):
            assert not ASKING & set(calls_of(code)), f"{path.name}: {code}"


def test_the_package_asks_in_one_place_only():
    found = {
        (path.name, name)
        for path in (ROOT / "distill_helpers").rglob("*.py")
        for name in ASKING & set(calls_of(path.read_text(encoding="utf-8")))
    }
    # For the key of a server that is not on this machine, where somebody is there.
    assert found == {("api.py", "getpass")}


# The copy of Colab that ``make test-colab`` makes


def test_nothing_that_colab_ships_was_upgraded():
    if Path(sys.prefix).name != ".venv-colab":
        pytest.skip("only in the environment of `make test-colab`")
    pins = read_pins(ROOT / "constraints-colab.txt")
    del pins["torch"]  # setup_env.py takes the build for this machine
    found = {name: importlib.metadata.version(name) for name in pins}
    assert found == pins
    package = Path(machine.__file__)
    assert package.is_relative_to(sys.prefix), f"not the wheel, but {package}"
