"""`distill cache` in several processes and in parts: one cache, the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distill_helpers.cli import main
from distill_helpers.tasks.bundled import data_path

ROWS = ["--teacher", "tiny-prose", "--length", "64", "--profile", "smoke"]
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",  # accelerate's word for "several processes", also without one
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
    "--num_processes=2",
    "-m",
    "distill_helpers",
    "cache",
]


def cache(output, *options):
    return main(["cache", *ROWS, "--output", str(output), *options])


def text_of(folder, characters):
    """Options for a short text, which is packed at once."""
    text = data_path("austen/emma.txt").read_text(encoding="utf-8")
    file = folder / "emma.txt"
    file.write_text(text[10_000 : 10_000 + characters], encoding="utf-8")
    return ["--text", str(file)]


def content(path: Path) -> dict[str, bytes]:
    """Every file below a folder, except for locks."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def test_parts_of_a_job_array_are_merged(tmp_path, capsys):
    """As Slurm starts them: each task knows its number and how many there are."""
    one, parts = tmp_path / "one", tmp_path / "parts"
    some = [*text_of(tmp_path, 12_000), "--rows", "100", "--length", "24"]
    assert cache(one, *some) == 0
    for task in (2, 0):
        assert cache(parts, *some, "--part", f"{task}/3") == 0
    assert "part-0-of-3 is written" in capsys.readouterr().out
    # A cache of so few rows has one shard; the part without any has nothing to do.
    assert main(["cache", "--merge", "--output", str(parts)]) == 0
    assert "2,300 distributions" in capsys.readouterr().out
    assert content(parts) == content(one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part=3"], "part='3' must look like 3/16"),
        (["--part=3/3"], "part='3/3' must look like 3/16, and parts are counted"),
        (["--part=-1/3"], "must look like 3/16"),
        (["--merge"], "holds no soft-label cache"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path, capsys):
    assert cache(tmp_path / "cache", *arguments) == 1
    assert message in capsys.readouterr().err


def test_processes_divide_the_part_of_a_task(tmp_path, monkeypatch):
    """An array of 2 tasks with 2 processes each: 4 parts, which nobody waits for."""
    monkeypatch.setattr("distill_helpers.cli.caching._meet", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    some = [*text_of(tmp_path, 2_000), "--rows", "8", "--length", "8"]
    for task in (0, 1):
        for rank in (0, 1):
            monkeypatch.setenv("RANK", str(rank))
            assert cache(tmp_path / "parts", *some, "--part", f"{task}/2") == 0
    found = sorted(path.name for path in (tmp_path / "parts").glob("part-*"))
    assert found == [f"part-{index}-of-4" for index in range(4)]


@pytest.mark.slow
def test_two_processes_write_what_one_writes_killed_or_not(tmp_path):
    """`accelerate launch`; one of the two is killed with SIGKILL in the middle."""
    one, two, alone = (tmp_path / name for name in ("one", "two", "alone"))
    some = [*text_of(tmp_path, 120_000), "--rows", "400"]
    assert cache(one, *some) == 0
    wanted = content(one)
    assert len(wanted) == 10  # nine shards and the header
    command = [*LAUNCH, *ROWS, *some, "--output", str(two)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as launched:
        while len(list(two.glob("part-1-of-2/shard-*.safetensors"))) < 2:
            assert launched.poll() is None, "it was over before it could be killed"
            time.sleep(0.05)
        (second,) = (
            child
            for child in psutil.Process(launched.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        )
        second.kill()
        assert launched.wait() != 0
    assert not (two / "cache.json").exists()
    shutil.copytree(two, alone)
    subprocess.run(command, env=environment, check=True)
    assert content(two) == wanted
    # With another count of processes what is there counts as well.
    assert cache(alone, *some) == 0
    assert content(alone) == wanted
