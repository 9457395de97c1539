"""The capstone's parts: scores, speed, bytes, the verdict, a run that resumes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tiny_models import byte_level_bpe, tiny

from distill_helpers.cli.configs import TrainOptions, write_config
from distill_helpers.cli.runs import build_trainer
from distill_helpers.course import project, verdict
from distill_helpers.course.verdict import Score
from distill_helpers.data import DataError
from distill_helpers.models import Loaded, generate_batch, prune_layers
from distill_helpers.studies import Interval
from distill_helpers.tasks.questions import write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import last_complete_checkpoint


@pytest.mark.parametrize(
    ("form", "answer", "right", "same"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "yes.", "yes", False),
        ("number", "So it is 1,000.", "1000.0", True),
        ("number", "first 12, then -3", "-3", True),
        ("number", "about 10-20", "20", True),
        ("number", ".5", "0.5", True),
        ("number", ".5", "5", False),
        ("number", "1e-5", "0.00001", True),
        ("number", "1e-5", "2e-5", False),
        ("number", "It is...5", "5", True),
        ("number", "none at all", "none at all", False),
        (
            "json:kind",
            '```json\n{"kind": "food", "why": 1}\n```',
            '{"kind": "food"}',
            1,
        ),
        ("json:kind", '{"kind": "Food"}', '{"kind": "food"}', False),
        ("json:kind", '{"sort": "food"}', '{"sort": "food"}', False),
        ("json:kind", "[1]", "[1]", False),
    ],
)
def test_what_counts_of_an_answer(form, answer, right, same):
    found = verdict.score([answer], [right], read=verdict.reader_of(form))
    assert found.hits == (bool(same),)


@pytest.mark.parametrize("form", ["exactly", "json:", ""])
def test_another_form_is_refused(form):
    with pytest.raises(ValueError, match=r"must be 'exact', 'number' or 'json:NAME'"):
        verdict.reader_of(form)


def test_scores_and_their_intervals():
    found = verdict.score([" a", "b", "x"], ["a", "c", "y"])
    assert found.hits == (True, False, False)
    # What cannot be read is wrong, even if the right answer cannot be read either.
    unread = verdict.score(
        ["?", "a"], ["?", "a"], read=lambda t: t if t > "@" else None
    )
    assert unread.hits == (False, True)
    # Wilson's interval for 0 of 10 ends at z² / (n + z²).
    none = Score((False,) * 10).interval
    assert none.low == 0
    assert none.high == pytest.approx(1.96**2 / (10 + 1.96**2))
    for wrong in ([], ["a"]):
        with pytest.raises(ValueError, match="one for each"):
            verdict.score(wrong, [])


def test_the_ratio_is_paired():
    draw = np.random.default_rng(0)
    teacher = draw.random(400) < 0.9
    # Wrong where the teacher is, and at a few more places; or anywhere.
    near = teacher & (draw.random(400) < 0.97)
    far = draw.permutation(near)
    same, other = (
        verdict.score_ratio(Score(tuple(s.tolist())), Score(tuple(teacher.tolist())))
        for s in (near, far)
    )
    assert same.mean == other.mean == pytest.approx(near.sum() / teacher.sum())
    assert same.low < same.mean < same.high
    assert same.high - same.low < 0.8 * (other.high - other.low)
    # The textbook's error of a paired ratio.
    residual = near - same.mean * teacher
    error = residual.std() / np.sqrt(400) / teacher.mean()
    assert (same.high - same.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


@pytest.mark.parametrize(
    ("questions", "right", "status"),
    [
        (10, 10, "undecided"),
        (60, 60, "undecided"),
        (300, 300, "worth having"),
        (300, 60, "undecided"),
        (800, 700, "worth having"),
    ],
)
def test_agreeing_on_every_question_proves_what_their_number_does(
    questions, right, status
):
    same = Score((True,) * right + (False,) * (questions - right))
    found = verdict.score_ratio(same, same)
    # As often as that, they may differ on questions that were not asked.
    unseen = 1.96**2 / (questions + 1.96**2)
    expected = unseen * questions / right
    assert (found.mean, found.n) == (1, questions)
    assert found.low == pytest.approx(1 - expected)
    assert found.high == pytest.approx(1 + expected)
    assert (
        verdict.judge_student("sorting", **(GOOD | {"score": found})).status == status
    )


def test_a_share_is_never_less_than_nothing():
    same = Score((True,) + (False,) * 9)
    assert verdict.score_ratio(same, same).low == 0


def test_a_ratio_needs_equal_questions_and_a_teacher():
    with pytest.raises(ValueError, match="same ones"):
        verdict.score_ratio(Score((True,)), Score((True, True)))
    with pytest.raises(ValueError, match="nothing right"):
        verdict.score_ratio(Score((True,)), Score((False,)))


def test_word_counts_are_naive_bayes():
    found = verdict.WordCounts(["a b", "a c", "d"], ["x", "x", "y"])
    assert found.answer("A, b!") == "x"
    assert found.answer("d") == "y"
    assert found.answer("unknown") == "x"  # the commoner one
    with pytest.raises(ValueError, match="at least one"):
        verdict.WordCounts([], [])


def pair(layers=(3, 1)):
    tokenizer = byte_level_bpe()
    return [Loaded(tiny(tokenizer, layers=n), tokenizer) for n in layers]


def test_footprint_counts_tensors():
    teacher, student = (loaded.model for loaded in pair())
    found = verdict.footprint(teacher)
    assert found.weights == 4 * sum(p.numel() for p in teacher.parameters())
    # Keys and values: layers × width, fp32.
    assert found.cache == 2 * 3 * 32 * 4
    assert found.memory(texts=5, tokens=7) == found.weights + 35 * found.cache
    half = verdict.footprint(student, dtype=torch.bfloat16)
    assert half.cache == 2 * 1 * 32 * 2
    assert half.weights == 2 * half.parameters


def test_footprint_tells_states_from_keys_and_values():
    common = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4}
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(**common, state_size=8, conv_kernel=4)
    )
    found = verdict.footprint(mamba)
    # A layer keeps 8 states and 4 columns of each of 2 × 32 channels, fp32.
    assert (found.cache, found.state) == (0, 4 * 64 * (8 + 4) * 4)
    assert found.memory(texts=5, tokens=7) == found.weights + 5 * found.state
    hybrid = transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(
            **common,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            layer_types=["conv", "full_attention", "conv", "conv"],
            conv_L_cache=3,
        )
    )
    found = verdict.footprint(hybrid, dtype=torch.bfloat16)
    # Keys and values of the one layer: 2 heads of 8; columns of the other three.
    assert (found.cache, found.state) == (2 * 2 * 8 * 2, 3 * 32 * 3 * 2)
    assert found.memory(texts=2, tokens=7) == (
        found.weights + 2 * (7 * found.cache + found.state)
    )


def test_a_model_that_keeps_nothing_has_no_footprint():
    model = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match=r"OpenAIGPTLMHeadModel, which has no cache"):
        verdict.footprint(model)


def test_what_is_timed_writes_on_where_a_text_would_end(monkeypatch):
    teacher = load_tiny_teacher("sums")
    (ids,) = teacher.tokenizer(["12+30+41="], add_special_tokens=False)["input_ids"]
    (ended,) = generate_batch(*teacher, [ids], max_new_tokens=26)
    assert ended.ended
    written = []

    def write(*given, **options):
        written.extend(generate_batch(*given, **options))

    monkeypatch.setattr(verdict, "generate_batch", write)
    verdict._answering_seconds(teacher, ["12+30+41=", "9+9+9="], 26, 1)
    assert [len(text.ids) for text in written] == [26, 26]
    assert not any(text.ended for text in written)
    # Up to its end, the same text.
    assert written[1].ids[: len(ended.ids) - 1] == ended.ids[:-1]


def test_speed_is_taken_in_turns(monkeypatch):
    teacher, student = pair()
    turns = []

    def took(loaded, prompts, *_):
        turns.append(loaded)
        # A machine that slows down; the first round is slower still.
        slowness = 10 if len(turns) <= 2 else len(turns)
        return slowness * (3 if loaded is teacher else 1)

    monkeypatch.setattr(verdict, "_answering_seconds", took)
    found = verdict.compare_speed(student, teacher, ["a"] * 8, rounds=3)
    assert [one is student for one in turns] == [True, False] * 4
    assert len(found.student) == len(found.teacher) == 3
    assert found.student[0] == 8 / 3
    assert 3 < found.ratio.mean < 4.1


def test_each_model_is_timed_on_its_own_template(monkeypatch):
    loaded = load_tiny_teacher("sums")
    loaded.tokenizer.chat_template = "{{ messages[-1].content }}"
    read = []

    def write(model, tokenizer, prompts, **options):
        read.extend(tokenizer.decode(ids) for ids in prompts)

    monkeypatch.setattr(verdict, "generate_batch", write)
    talk = [{"role": "system", "content": "1"}, {"role": "user", "content": "2+3="}]
    verdict._answering_seconds(loaded, ["1+1=", talk], 4, 8)
    assert read == ["1+1=", "2+3="]


def test_speed_runs_for_real_and_refuses_nonsense():
    teacher, student = pair()
    found = verdict.compare_speed(student, teacher, ["abc", "It is"], rounds=2)
    assert min(*found.student, *found.teacher) > 0
    with pytest.raises(ValueError, match="rounds=1"):
        verdict.compare_speed(student, teacher, ["a"], rounds=1)
    teacher.model.bfloat16()
    with pytest.raises(ValueError, match="one of precisions"):
        verdict.compare_speed(student, teacher, ["a"])


GOOD = {
    "score": Interval(0.97, 0.96, 0.98, 800),
    "speed": Interval(3.0, 2.9, 3.1, 4),
    "size": 0.3,
}


@pytest.mark.parametrize(
    ("change", "status", "short_of"),
    [
        ({}, "worth having", ()),
        ({"score": Interval(0.95, 0.94, 0.96, 9)}, "undecided", ("score",)),
        ({"score": Interval(0.93, 0.92, 0.94, 9)}, "not worth having", ("score",)),
        ({"speed": Interval(2.0, 1.9, 2.1, 4)}, "undecided", ("speed",)),
        ({"speed": Interval(1.5, 1.4, 1.6, 4)}, "not worth having", ("speed",)),
        ({"size": 0.51}, "not worth having", ("bytes",)),
        ({"size": 0.5}, "worth having", ()),
        ({"size": 0.9, "max_bytes": 0.95}, "worth having", ()),
    ],
)
def test_the_verdict(change, status, short_of):
    found = verdict.judge_student("sorting", **(GOOD | change))
    assert (found.status, found.short_of) == (status, short_of)
    shown = found._repr_mimebundle_()["application/vnd.distill-helpers+json"]
    assert (shown["kind"], shown["status"], shown["ok"]) == ("verdict", status, True)
    assert status.upper() in str(found)


def test_a_missed_part_outweighs_an_open_one():
    mixed = GOOD | {"score": Interval(0.95, 0.94, 0.96, 9), "size": 0.8}
    found = verdict.judge_student("sorting", **mixed)
    assert (found.status, found.short_of) == ("not worth having", ("bytes",))


def options(tmp_path, **changes):
    answers = tmp_path / "learn.jsonl"
    write_questions(answers, [f"{n}?" for n in range(40)], ["yes"] * 40)
    return TrainOptions(
        teacher="tiny-prose",
        student="fresh:1x16",
        answers=str(answers),
        length=32,
        steps=6,
        save_steps=2,
        batch_size=2,
        profile="smoke",
        output=str(tmp_path / "run"),
        **changes,
    )


def test_a_stopped_run_ends_like_an_undisturbed_one(tmp_path):
    given = options(tmp_path)
    whole = build_trainer(
        "hard", replace(given, output=str(tmp_path / "whole")), disable_tqdm=True
    )
    whole.train()
    stop = project.StopAfter(3)
    stopped = build_trainer("hard", given, callbacks=[stop], disable_tqdm=True)
    stopped.train(resume_from_checkpoint=True)
    assert stopped.state.global_step == 3
    # Torn off, it has no checkpoint but the one of its last regular save.
    last = last_complete_checkpoint(tmp_path / "run")
    assert last is not None
    assert last.name == "checkpoint-2"
    resumed = build_trainer("hard", given, disable_tqdm=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    for ours, theirs in zip(
        resumed.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_conversations_are_learned_in_the_students_template(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    for part in (tiny(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "small")
    turns = [("system", "be"), ("user", "one?"), ("assistant", "no"), ("user", "so?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    path = write_questions(tmp_path / "talk.jsonl", [talk], ["yes"])
    names = {"student": str(tmp_path / "small"), "answers": str(path)}
    given = replace(options(tmp_path), **names | {"length": 64})
    trainer = build_trainer("hard", given, disable_tqdm=True)
    (row,) = trainer.train_dataset
    learned = [token for token in row["labels"] if token >= 0]
    assert tokenizer.decode(learned) == "yes<end>"
    read = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(read) == "s:be<end>u:one?<end>a:no<end>u:so?<end>a:"


def test_options_that_do_not_go_together(tmp_path):
    given = options(tmp_path)
    with pytest.raises(ValueError, match="use: distill train hard"):
        build_trainer("soft", given)
    with pytest.raises(ValueError, match="use: distill train soft"):
        build_trainer("hard", replace(given, cache="somewhere"))
    with pytest.raises(ValueError, match="kind='both'"):
        build_trainer("both", given)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        write_config(given, tmp_path / "run.yaml")


def test_a_student_of_its_own_needs_no_teacher(tmp_path):
    loaded = load_tiny_teacher("prose")
    student = prune_layers(loaded.model, [0, 3])
    student.save_pretrained(tmp_path / "small")
    loaded.tokenizer.save_pretrained(tmp_path / "small")
    given = replace(
        options(tmp_path), student=str(tmp_path / "small"), teacher="nowhere/at-all"
    )
    trainer = build_trainer("hard", given, disable_tqdm=True)
    assert trainer.model.config.num_hidden_layers == 2
    assert "position_ids" in trainer.train_dataset.column_names


@pytest.mark.parametrize("is_private", [True, False])
def test_push_sends_the_folder_and_no_checkpoint(is_private, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def repo_info(self, name):
            assert name == "me/student"
            return SimpleNamespace(private=is_private)

        def upload_folder(self, **options):
            calls.append(options)
            return SimpleNamespace(repo_url="https://hub.example/me/student")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ValueError, match=r"has no README\.md"):
        project.push_folder(tmp_path, "me/student")
    for name in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="must look like owner/name"):
        project.push_folder(tmp_path, "student")
    assert not calls
    private = {"private": is_private}
    found = project.push_folder(tmp_path, "me/student", **private)
    assert found == "https://hub.example/me/student"
    assert calls[0] == ("me/student", private | {"exist_ok": True})
    assert calls[1]["ignore_patterns"] == ["checkpoint-*"]
    if not is_private:
        # It was there before, open to all, and creating it again did not change that.
        with pytest.raises(ValueError, match="is not private, so nothing was uploaded"):
            project.push_folder(tmp_path, "me/student")
        assert len(calls) == 3


def test_origins_come_from_the_manifest():
    found = project.origins(["gloss_labels.jsonl", "austen/emma.txt"])
    assert "Apache-2.0" in found["gloss_labels.jsonl"][0]
    assert "r-cran-janeaustenr" in found["austen/emma.txt"][1]
    with pytest.raises(DataError, match="not a bundled file"):
        project.origins(["nothing.txt"])


def test_teachers_have_public_names(tmp_path):
    profile = SimpleNamespace(teacher="packaged")
    assert project.teacher_name("packaged", profile).startswith("HuggingFaceTB/")
    assert project.teacher_name(str(tmp_path), profile) == tmp_path.name
    assert project.teacher_name("api:small@http://mine:80/v1", profile) == "small"
    assert project.teacher_name("Qwen/Qwen2.5-0.5B", profile) == "Qwen/Qwen2.5-0.5B"
