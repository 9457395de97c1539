"""The lessons' ``gpu`` paths, with small models in the place of the hub's."""

import os
from pathlib import Path

import pytest
from build_notebooks import render
from course import load_course
from kernels import KERNEL_NAME, kernel_environment, use_this_python
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from run_notebooks import collect_findings
from small_hub import write_hub

HERE = Path(__file__).resolve().parents[1]
COURSE = load_course(HERE.parent)
READY = [lesson.number for lesson in COURSE.lessons if lesson.ready]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", READY)
def test_the_gpu_path_runs(hub, number, monkeypatch):
    (lesson,) = COURSE.select([number])
    notebook = render(COURSE, lesson, solved=True)
    use_small = "from small_hub import use_small_gpu\n\nuse_small_gpu()"
    notebook.cells.insert(0, new_code_cell(use_small))
    # The kernel is found through the environment, which other tests look at.
    monkeypatch.setenv("JUPYTER_PATH", "")
    use_this_python()
    environment = kernel_environment("gpu")
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
    NotebookClient(
        notebook,
        kernel_name=KERNEL_NAME,
        timeout=240,
        resources={"metadata": {"path": str(hub)}},
    ).execute(env=environment)
    checks = [one for one in collect_findings(notebook) if one["kind"] == "check"]
    assert {one["status"] for one in checks} == {"passed"}
