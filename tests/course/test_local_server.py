"""The real black box: the packaged teacher behind an HTTP API, asked by our client."""

import pytest

from distill_helpers.course.local_server import (
    MODEL,
    complete,
    serve_gguf,
    serve_packaged_teacher,
)
from distill_helpers.labels import ApiTeacher, LabelError, prompt_text, write_labels
from distill_helpers.machine import get_profile
from distill_helpers.tasks.teachers import load_teacher

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def base_url():
    with serve_packaged_teacher(threads=1, parallel=2) as url:
        yield url


def test_it_answers_and_counts(base_url, tmp_path):
    teacher = ApiTeacher(MODEL, base_url)
    prompts = ["What is the capital of France?", "Name a fruit."]
    rows = write_labels(
        teacher, prompts, tmp_path / "l.jsonl", max_new_tokens=32, progress=False
    )
    for row in rows:
        assert row["answer"].strip()
        assert row["finish_reason"] in ("stop", "length")
        assert 0 < row["completion_tokens"] <= 32
        # What the budget sets aside is never too little.
        assert row["prompt_tokens"] <= teacher.prompt_tokens(row["messages"])


def test_a_short_answer_is_cut_off_and_says_so(base_url, tmp_path):
    rows = write_labels(
        ApiTeacher(MODEL, base_url),
        ["Tell me a long story."],
        tmp_path / "l.jsonl",
        max_new_tokens=4,
        progress=False,
    )
    assert rows["finish_reason"] == ["length"]
    assert rows["completion_tokens"] == [4]


def test_seeds_repeat_and_samples_differ(base_url, tmp_path):
    no_cache = {"cache_prompt": False}

    def ask(name, seed):
        return write_labels(
            # A cached prompt is computed otherwise, and may round otherwise.
            ApiTeacher(MODEL, base_url, options={"extra_body": no_cache}),
            ["Tell me something."],
            tmp_path / name,
            samples=2,
            temperature=1.0,
            max_new_tokens=16,
            seed=seed,
            concurrency=1,
            progress=False,
        )["answer"]

    one, again, other = ask("1", 0), ask("2", 0), ask("3", 1)
    assert one == again
    assert one[0] != one[1]
    assert one != other


def test_a_server_that_is_gone_is_reported(tmp_path):
    with serve_packaged_teacher(threads=1, parallel=1) as url:
        teacher = ApiTeacher(MODEL, url, max_retries=0, timeout=5)
    with pytest.raises(LabelError, match="no connection"):
        write_labels(
            teacher,
            [f"question {number}" for number in range(40)],
            tmp_path / "l.jsonl",
            concurrency=2,
            progress=False,
        )


def test_a_file_that_is_not_there_is_named():
    with (
        pytest.raises(ValueError, match=r"nothing\.gguf.* is not there"),
        serve_gguf("nothing.gguf"),
    ):
        pass


def test_a_completion_goes_on_with_the_text_as_it_is(base_url):
    plain = ["The capital of France is", "One, two, three,"]
    paris, four = complete(base_url, plain, max_new_tokens=4)
    assert "Paris" in paris
    assert "four" in four


def test_a_conversation_is_read_in_the_chat_template(base_url):
    turns = [("system", "Answer in one word."), ("user", "May I ask you something?")]
    turns += [("assistant", "Yes."), ("user", "What is the capital of France?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    text = prompt_text(talk, load_teacher(get_profile("smoke")).tokenizer)
    chat, plain = complete(base_url, [talk, text], max_new_tokens=8)
    assert "Paris" in chat
    assert chat == plain
