"""The command line, run as a learner runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from distill_helpers.cli import main
from distill_helpers.configs import TrainOptions, write_config
from distill_helpers.data import data_folder
from distill_helpers.questions import write_questions

TINY = ["--teacher", "tiny-prose", "--rows", "48", "--length", "24"]
FRESH = ["--student", "fresh:1x16", "--profile", "smoke"]
# What cannot be seen under AdamW is seen under plain SGD.
SGD = ["--optim", "sgd", "--max-grad-norm", "0", "--learning-rate", "0.5"]


def train(*arguments):
    return main(["train", *arguments])


@pytest.mark.parametrize("command", ["cache", "train", "evaluate", "plan"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config" in shown
    if command == "plan":
        assert "cpu, T4, L4, A100 or H100" in shown
    else:
        assert "austen, glosses, or a .txt or .jsonl file of your own" in shown


def test_cache_train_evaluate(tmp_path, capsys):
    cache, out = str(tmp_path / "cache"), str(tmp_path / "student")
    assert main(["cache", *TINY, "--profile", "smoke", "--output", cache]) == 0
    assert "1,104 distributions" in capsys.readouterr().out
    options = ["--steps", "4", "--batch-size", "4", "--output", out]
    assert train("soft", *TINY, *FRESH, *options, "--cache", cache) == 0
    trained = load_file(tmp_path / "student" / "model.safetensors")
    # A second call finds the run finished and changes nothing.
    assert train("soft", *TINY, *FRESH, *options, "--cache", cache) == 0
    again = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    capsys.readouterr()
    where = ["--model", out, "--teacher", "tiny-prose", "--profile", "smoke"]
    assert main(["evaluate", *where, "--rows", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 8 * 63
    assert 0 < found["kl_to_teacher"] < 10


def test_the_line_overrules_the_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        "teacher: tiny-prose\nrows: 8\nlength: 12\nsamples: 3\nprofile: smoke\n"
        f"output: {tmp_path / 'cache'}\n"
    )
    assert main(["cache", "--config", str(file), "--samples", "5"]) == 0
    header = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert header["scheme"]["samples"] == 5
    assert header["dataset"]["rows"] == 8


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"samplings": 3}', "samplings, which cache does not know"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "- 1", "must hold names and values"),
        ("a.toml", "", "must end in"),
    ],
)
def test_a_bad_config_is_said(name, text, message, tmp_path, capsys):
    file = tmp_path / name
    file.write_text(text)
    assert main(["cache", "--config", str(file)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "fresh:large"], "must look like fresh:2x96"),
        (["--student", "pruned:99"], "must look like pruned:20"),
        (["--rows", "9999999"], "ask for fewer"),
        (["--text", "nowhere.txt"], "does not exist"),
        (["--cache", "nowhere"], "holds no soft-label cache"),
    ],
)
def test_errors_are_sentences(arguments, message, tmp_path, capsys):
    options = ["--output", str(tmp_path), "--steps", "1"]
    assert train("soft", *TINY, *FRESH, *options, *arguments) == 1
    assert message in capsys.readouterr().err


def test_answers_are_learned_and_judged(tmp_path, capsys):
    questions = tmp_path / "learn.jsonl"
    write_questions(questions, ["one?", "two?", "three?"] * 8, ["yes"] * 24)
    out = str(tmp_path / "student")
    config = write_config(
        TrainOptions(
            teacher="tiny-prose",
            student="fresh:1x32",
            answers=str(questions),
            plain_prompts=True,
            profile="smoke",
            length=24,
            batch_size=4,
            steps=30,
            save_steps=30,
            learning_rate=2e-2,
            output=out,
        ),
        tmp_path / "run.json",
    )
    assert train("hard", "--config", str(config)) == 0
    # Options as written: `save_steps` decides how many checkpoints there are.
    assert [path.name for path in (tmp_path / "student").glob("checkpoint-*")] == [
        "checkpoint-30"
    ]
    capsys.readouterr()
    judge = ["evaluate", "--model", out, "--answers", str(questions)]
    assert main([*judge, "--profile", "smoke", "--rows", "6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == 1.0
    assert found["n"] == 6
    assert train("soft", "--config", str(config)) == 1
    assert "use: distill train hard" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    """`accelerate launch` over gloo: half the rows in each process, one result."""
    options = [*TINY, *FRESH, *SGD, "--steps", "4", "--alpha", "0.6"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train("soft", *options, "--batch-size", "8", "--output", str(one)) == 0
    half = ["--batch-size", "4", "--output", str(two)]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",  # accelerate's word for "several processes", also without one
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
        "-m",
        "distill_helpers",
    ]
    subprocess.run(
        [sys.executable, *launch, "train", "soft", *options, *half],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ours = load_file(one / "model.safetensors")
    theirs = load_file(two / "model.safetensors")
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-4)
    logs = [
        [e["loss"] for e in json.loads(path.read_text())["log_history"] if "loss" in e]
        for path in (
            one / "checkpoint-4" / "trainer_state.json",
            two / "checkpoint-4" / "trainer_state.json",
        )
    ]
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


@pytest.mark.slow
def test_label_glosses_writes_a_file_that_goes_on(tmp_path, capsys):
    output = tmp_path / "labels.jsonl"
    options = ["--output", str(output), "--steps", "1", "--judged", "3"]
    assert main(["label-glosses", *options, "--count", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "labels.report.json").read_text())
    assert [report[name]["count"] for name in ("test", "pool")] == [3, 2]
    first = output.read_text().splitlines()
    assert len(first) == 2
    assert main(["label-glosses", *options, "--count", "4"]) == 0
    # The same seed gives the same teacher, whose answers are not asked for again.
    assert output.read_text().splitlines()[:2] == first


def test_plan_says_what_fits(tmp_path, capsys):
    common = ["--batch-size", "1", "--length", "8", "--steps", "10"]
    tiny = ["--teacher", str(data_folder("tiny_prose"))]
    tiny += ["--student", str(data_folder("tiny_prose"))]
    assert main(["plan", *tiny, *common, "--device", "T4", "--profile", "gpu"]) == 0
    assert "of 14.6: fits" in capsys.readouterr().out
    assert main(["plan", *tiny, "--device", "T4", "--length", "1"]) == 1
    assert "length=1" in capsys.readouterr().err
    assert main(["plan", *tiny, *common, "--device", "TPU"]) == 1
    assert "device='TPU'" in capsys.readouterr().err
