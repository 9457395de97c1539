"""The command line, run as a learner runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import load_file
from tiny_models import byte_level_bpe

from distill_helpers.cli import main
from distill_helpers.cli.configs import TrainOptions, write_config
from distill_helpers.cli.runs import build_trainer, resolve_writer
from distill_helpers.evaluation import generate
from distill_helpers.labels import ApiTeacher, LocalTeacher
from distill_helpers.machine import get_profile
from distill_helpers.models import build_student, load_model
from distill_helpers.tasks.bundled import data_folder, data_path
from distill_helpers.tasks.questions import write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher

TINY = ["--teacher", "tiny-prose", "--rows", "48", "--length", "24"]
FRESH = ["--student", "fresh:1x16", "--profile", "smoke"]
OWN_TEXT = str(data_path("austen/emma.txt"))
# What cannot be seen under AdamW is seen under plain SGD.
SGD = ["--optim", "sgd", "--max-grad-norm", "0", "--learning-rate", "0.5"]


def train(*arguments):
    return main(["train", *arguments])


@pytest.mark.parametrize("command", ["cache", "train", "evaluate", "export", "plan"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config" in shown
    words = {
        "plan": "cpu, T4, L4, A100 or H100",
        "export": "f16, q8_0 (about half of it) or f32",
    }
    text = "austen, glosses, or a .txt or .jsonl file of your own"
    assert words.get(command, text) in shown


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


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_adapters_are_trained_and_the_output_is_merged(kind, tmp_path, capsys):
    out = tmp_path / "student"
    options = ["--steps", "4", "--batch-size", "4", "--output", str(out)]
    student = ["--student", str(data_folder("tiny_prose")), "--profile", "smoke"]
    config = tmp_path / "run.json"
    config.write_text('{"adapters": 3}')
    # At first it is its teacher, of whom it has nothing to learn.
    mix = ["--alpha", "0.5"] if kind == "soft" else []
    line = [*TINY, *student, *options, *mix, "--config", str(config)]
    assert train(kind, *line) == 0
    (adapter,) = (out / "checkpoint-4").glob("*.safetensors")
    assert adapter.name == "adapter_model.safetensors"
    assert json.loads((out / "checkpoint-4/adapter_config.json").read_text())["r"] == 3
    assert sorted(one.name for one in out.glob("*.safetensors")) == [
        "model.safetensors"
    ]
    trained = load_file(out / "model.safetensors")
    start = load_file(data_folder("tiny_prose") / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert changed == {name for name in start if "_proj" in name}
    # A second call finds the run finished and changes nothing.
    assert train(kind, *line) == 0
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    assert train(kind, *line, "--adapters", "4") == 1
    assert "adapters=3, and now it is 4" in capsys.readouterr().err
    where = ["--model", str(out), "--profile", "smoke", "--rows", "4"]
    assert main(["evaluate", *where]) == 0
    assert main(["export", "--model", str(out), "--output", f"{out}.gguf"]) == 0


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
        ("a.json", '{"rows": 5.5}', "rows=5.5 must be of type int"),
        ("a.json", '{"batch_size": null}', "batch_size=None must be of type int"),
        ("a.yaml", "teacher: [x]", "teacher=['x'] must be of type str"),
        ("a.json", '{"top_k": true}', "top_k=True must be of type int"),
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
        (["--teacher", "nowhere"], "'nowhere' is no folder with a model"),
        (["--student", "nowhere"], "'nowhere' is no folder with a model"),
        (["--steps", "-4"], "steps=-4 must be at least 1"),
        (["--rows", "-3"], "rows=-3 must be at least 0"),
        (["--gradient-accumulation-steps", "0"], "must be at least 1"),
        (["--weight-decay", "-1"], "weight_decay=-1.0 must be at least 0"),
        (["--length", "2000"], "has learned no more than 512 positions"),
        (["--text", OWN_TEXT, "--split", "test"], "is of the bundled texts alone"),
        (["--text", "glosses", "--split", "tset"], "must be 'train', 'validation'"),
        (["--teacher", "tiny-sums"], "the tokenizer cannot read this text"),
    ],
)
def test_errors_are_sentences(arguments, message, tmp_path, capsys):
    options = ["--output", str(tmp_path), "--steps", "1"]
    assert train("soft", *TINY, *FRESH, *options, *arguments) == 1
    assert message in capsys.readouterr().err


def steps_in(folder):
    return sorted(int(one.name.split("-")[1]) for one in folder.glob("checkpoint-*"))


def test_a_folder_holds_one_run(tmp_path, capsys):
    out = tmp_path / "student"
    options = [*FRESH, "--batch-size", "4", "--output", str(out)]
    once = [*TINY, *options, "--steps", "4"]
    assert train("hard", *once) == 0
    for kind, more, name in (
        ("soft", [], "kind='hard'"),
        ("hard", ["--learning-rate", "1e-5"], "learning_rate=0.008"),
        ("hard", ["--text", "glosses"], "hash of the rows="),
        ("hard", ["--student", "fresh:1x32"], "student='fresh:1x16'"),
        ("hard", ["--steps", "3"], "max_steps=3, but"),
    ):
        assert train(kind, *once, *more) == 1, name
        assert name in capsys.readouterr().err
    assert steps_in(out)[-1] == 4
    # The same again adds nothing; more steps go on.
    assert train("hard", *once) == 0
    assert steps_in(out)[-1] == 4
    assert train("hard", *once, "--steps", "6") == 0
    assert steps_in(out)[-1] == 6


@pytest.mark.parametrize(
    ("student", "rate", "adapters"),
    [("fresh:1x16", 8e-3, 0), ("pruned:2", 2e-4, 0), ("pruned:2", 1e-3, 4)],
)
def test_the_learning_rate_suits_the_student(student, rate, adapters, tmp_path):
    options = TrainOptions(
        teacher="tiny-prose",
        student=student,
        rows=8,
        steps=1,
        profile="smoke",
        output=str(tmp_path),
        adapters=adapters,
    )
    assert build_trainer("hard", options).args.learning_rate == rate


def test_a_cache_needs_no_teacher(tmp_path):
    """Its labels are there, and the student is there."""
    cache = str(tmp_path / "cache")
    assert main(["cache", *TINY, "--profile", "smoke", "--output", cache]) == 0
    options = ["--profile", "smoke", "--steps", "1", "--output", str(tmp_path / "s")]
    student = ["--student", str(data_folder("tiny_prose"))]
    line = [*TINY, "--teacher", "nowhere", *student, *options, "--cache", cache]
    assert train("soft", *line) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "'nowhere' is no folder with a model"),
        (["--model", "tiny-prose", "--teacher", "tiny-sums"], "different tokenizers"),
        (["--model", "tiny-prose", "--length", "600"], "no more than 512 positions"),
        (["--model", "tiny-prose", "--answers", "latin.jsonl"], "is not UTF-8 text"),
        (["--model", "tiny-prose", "--config", "latin.json"], "is not UTF-8 text"),
        (
            ["--model", "nowhere", "--teacher", "tiny-prose", "--answers", "a.jsonl"],
            "teacher='tiny-prose' is compared on a text",
        ),
    ],
)
def test_what_evaluate_refuses(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("latin.jsonl", "latin.json"):
        (tmp_path / name).write_bytes('{"prompt": "é", "answer": "x"}'.encode("latin1"))
    assert main(["evaluate", *arguments, "--profile", "smoke", "--rows", "4"]) == 1
    assert message in capsys.readouterr().err


def test_export_writes_a_file_that_is_read_again(tmp_path, capsys):
    file = tmp_path / "deep" / "sums.gguf"
    line = ["export", "--model", "tiny-prose", "--output", str(file)]
    assert main([*line, "--precision", "q8_0", "--name", "Austen"]) == 0
    assert "MiB, q8_0" in capsys.readouterr().out
    reader = GGUFReader(file)
    assert reader.get_field("general.name").contents() == "Austen"
    assert main([*line, "--precision", "int2"]) == 1
    assert "precision='int2' must be one of" in capsys.readouterr().err


def test_a_teacher_s_own_score(capsys):
    """The first number to know: the one that a student should come near."""
    where = ["--model", "tiny-prose", "--teacher", "tiny-prose", "--profile", "smoke"]
    assert main(["evaluate", *where, "--rows", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["kl_to_teacher"] < 1e-5


@pytest.mark.parametrize(
    "names",
    [
        ["--teacher", "packaged", "--student", "pruned:20"],
        ["--teacher", "tiny-prose", "--student", "fresh:2x96"],
    ],
)
def test_plan_knows_the_names_of_train(names, capsys):
    line = ["plan", *names, "--device", "cpu", "--length", "64", "--steps", "10"]
    assert main(line) == 0
    assert "soft labels, 4 × 64 tokens a step" in capsys.readouterr().out
    assert main([*line, "--method", "adapters_off", "--adapters", "8"]) == 0
    assert "adapters of rank 8" in capsys.readouterr().out
    assert main(["plan", "--teacher", "packaged", "--student", "pruned:99"]) == 1
    assert "must look like pruned:20" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--profile", "gpu", "--student", "fresh:2x96"], "T4"),
        (["--profile", "gpu", "--student", "pruned:4"], "T4"),
        (["--profile", "gpu", "--teacher", "tiny-prose"], "T4"),
        (["--profile", "gpu", "--student", "fresh:2x96", "--device", "L4"], "L4"),
        (["--profile", "smoke", "--student", "fresh:2x96"], "this CPU"),
    ],
)
def test_plan_loads_nothing_and_keeps_to_the_profile(arguments, where, capsys):
    """No model of the hub is here, and no GPU that one could be loaded onto."""
    line = ["plan", "--method", "hard", "--batch-size", "1", "--length", "8"]
    assert main([*line, *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"hard labels, 1 × 8 tokens a step, on {where}\n" in shown


def test_some_answers_are_drawn_by_the_seed(tmp_path, capsys):
    teacher = load_tiny_teacher("sums")
    (right,) = generate(*teacher, ["12+30+41="], max_new_tokens=32)
    # Whoever takes the first ones finds none right.
    write_questions(
        tmp_path / "exam.jsonl", ["12+30+41="] * 16, ["0"] * 4 + [right] * 12
    )
    exam = ["--answers", str(tmp_path / "exam.jsonl"), "--profile", "smoke"]
    assert main(["evaluate", "--model", "tiny-sums", *exam, "--rows", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 4
    assert found["mean"] > 0


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


def test_conversations_are_learned_by_both_kinds_of_labels(tmp_path, capsys):
    """Only the assistant's turns: the student says them, and not the user's."""
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    student = build_student(tokenizer, layers=1, width=32)
    for part in (student, tokenizer):
        part.save_pretrained(tmp_path / "student")
    turns = [("user", "one?"), ("assistant", "yes"), ("user", "so?")]
    turns.append(("assistant", "no"))
    talk = {"messages": [{"role": role, "content": text} for role, text in turns]}
    data = tmp_path / "talks.jsonl"
    data.write_text((json.dumps(talk) + "\n") * 6)
    out = str(tmp_path / "out")
    options = ["--student", str(tmp_path / "student"), "--data", str(data)]
    options += ["--profile", "smoke", "--length", "64", "--batch-size", "2"]
    hard = [*options, "--steps", "40", "--learning-rate", "2e-2", "--output", out]
    assert train("hard", *hard) == 0
    model, tokenizer = load_model(out)
    prompts = ["u:one?<end>a:", "u:one?<end>a:yes<end>u:so?<end>a:"]
    assert generate(model, tokenizer, prompts, max_new_tokens=8) == ["yes", "no"]
    # A teacher's distributions at the same tokens, without its weights changed.
    soft = [*options, "--teacher", out, "--steps", "1"]
    assert train("soft", *soft, "--output", str(tmp_path / "soft")) == 0
    for more, words in (
        (["--answers", str(data)], "leave one out"),
        (["--cache", "x"], "leave one out"),
        (["--plain-prompts"], "leave plain_prompts out"),
        (["--data", str(tmp_path / "none.jsonl")], "no .jsonl file"),
    ):
        kind = "soft" if "--cache" in more else "hard"
        assert train(kind, *hard, *more) == 1
        assert words in capsys.readouterr().err


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


@pytest.mark.parametrize("kind", ["Llama", "Bloom"])
def test_answers_share_rows_only_where_a_student_tells_them_apart(
    tmp_path, caplog, kind
):
    """BLOOM would let them see each other, and learns from one to a row."""
    tokenizer = byte_level_bpe()
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), num_attention_heads=2, **settings
    )
    torch.manual_seed(0)
    student = transformers.AutoModelForCausalLM.from_config(config)
    for part in (student, tokenizer):
        part.save_pretrained(tmp_path / "student")
    questions = tmp_path / "learn.jsonl"
    write_questions(questions, ["one?", "two?", "three?"] * 2, ["yes"] * 6)
    options = TrainOptions(
        student=str(tmp_path / "student"),
        answers=str(questions),
        length=40,
        batch_size=2,
        steps=1,
        profile="smoke",
        output=str(tmp_path / "out"),
    )
    trainer = build_trainer("hard", options)
    packed = kind == "Llama"
    assert ("position_ids" in trainer.train_dataset.column_names) == packed
    assert (len(trainer.train_dataset) < 6) == packed
    assert ("one to a row" in caplog.text) != packed
    assert trainer.train().training_loss > 0


def test_who_answers_is_a_model_or_an_api():
    smoke = get_profile("smoke")
    local = resolve_writer("tiny-sums", smoke, licence="ours")
    assert isinstance(local, LocalTeacher)
    url = "http://127.0.0.1:8080/v1"
    api = resolve_writer(f"api:small@{url}", smoke, licence="mine")
    assert isinstance(api, ApiTeacher)
    assert (api.name, api.base_url, api.licence) == ("small", url, "mine")
    with pytest.raises(ValueError, match="must look like api:MODEL@URL"):
        resolve_writer(f"api:@{url}", smoke)
