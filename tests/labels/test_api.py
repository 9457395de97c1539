import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from api_server import KEY, MODEL, serving
from labelling import CONCURRENCY, PROMPTS, ask
from versions import NEEDS_JSON

from distill_helpers.labels.api import ApiTeacher, find_api_key, wanted_pause
from distill_helpers.labels.ask import plan_labels, write_labels
from distill_helpers.labels.filters import truncated
from distill_helpers.labels.store import read_labels
from distill_helpers.labels.teachers import LabelError

TESTS = Path(__file__).parents[1]


def teacher(server, **options):
    return ApiTeacher(MODEL, server.base_url, **{"api_key": KEY} | options)


def write(server, prompts, path, *, concurrency=2, **options):
    made = teacher(server, **options)
    # Or its connections are left to the garbage collector, which may complain.
    with closing(made._client):
        return write_labels(
            made, prompts, path, concurrency=concurrency, progress=False
        )


def test_answers_carry_their_provenance(tmp_path):
    with serving() as server:
        made = teacher(server, licence="free for all", options={"top_p": 0.9})
        rows = write_labels(
            made,
            ["one", [{"role": "system", "content": "be brief"}, user("two")]],
            tmp_path / "labels.jsonl",
            samples=2,
            temperature=0.7,
            max_new_tokens=9,
            progress=False,
        )
    assert rows["answer"] == ["echo one", "echo one", "echo two", "echo two"]
    assert rows["sample"] == [0, 1, 0, 1]
    first = rows[0]
    assert first["messages"] == [user("one")]
    assert first["teacher"] == MODEL
    assert first["licence"] == "free for all"
    assert first["finish_reason"] == "stop"
    assert (first["prompt_tokens"], first["completion_tokens"]) == (7, 2)
    assert (first["temperature"], first["max_new_tokens"]) == (0.7, 9)
    sent = server.seen[0]
    assert sent["top_p"] == 0.9
    assert sent["temperature"] == 0.7
    assert sent["max_tokens"] == 9
    assert len({body["seed"] for body in server.seen}) == 4


def user(text):
    return {"role": "user", "content": text}


def test_an_option_of_none_is_not_sent(tmp_path):
    with serving() as server:
        write(server, ["one"], tmp_path / "l.jsonl", options={"seed": None})
    assert "seed" not in server.seen[0]


@pytest.mark.parametrize(
    "fault",
    [
        "busy_briefly",
        "broken",
        "away",
        "cut",
        "malformed",
        "no_choice",
        "odd_numbers",
        "half_a_letter",
        504,
    ],
)
def test_a_passing_fault_is_passed_over(fault, tmp_path):
    with serving([fault, fault]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["answer"] == ["echo one"]
    assert len(server.seen) == 3


def test_retry_after_is_obeyed(tmp_path):
    with serving(["busy"]) as server:
        began = time.monotonic()
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["answer"] == ["echo one"]
    assert time.monotonic() - began >= 1


def test_a_server_that_hangs_is_left(tmp_path):
    with serving(["hang"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl", timeout=0.5)
    assert rows["answer"] == ["echo one"]


@pytest.mark.parametrize("status", [408, 504, 520, 522, 524])
def test_a_gateway_that_gives_up_may_have_been_paid(status, tmp_path):
    with serving([status] * 20) as server:
        made = teacher(server)
        worst = made.prompt_tokens([user("one")]) + 20
        options = {"max_new_tokens": 20, "max_total_tokens": 2 * worst}
        path = tmp_path / "l.jsonl"
        rows = write_labels(made, ["one"], path, progress=False, **options)
        plan = plan_labels(made, ["one"], path, max_new_tokens=20)
    assert len(rows) == 0
    # Each try takes its share of the budget, and the next call knows of both.
    assert len(server.seen) == 2
    assert (plan.in_doubt, plan.tokens_spent) == (1, 2 * worst)


def test_whole_answers_have_one_name(tmp_path):
    with serving(["ended_otherwise"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["finish_reason"] == ["stop"]


def test_a_cut_off_answer_is_stored_as_one(tmp_path):
    with serving(["too_long"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["finish_reason"] == ["length"]


def test_an_answer_without_counts_is_counted_at_its_worst(tmp_path):
    with serving(["no_usage"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
        assert rows["answer"] == ["quiet"]
        assert rows["completion_tokens"] == [256]
        assert rows["prompt_tokens"] == [teacher(server).prompt_tokens([user("one")])]


def test_a_filtered_answer_is_an_empty_one(tmp_path):
    with serving(["no_content"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert (rows["answer"], rows["finish_reason"]) == ([""], ["content_filter"])
    assert len(server.seen) == 1


def test_half_an_emoji_can_be_stored(tmp_path):
    with serving(["half_an_emoji"]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
        assert rows["answer"] == ["cut \ufffd"]
        assert write(server, ["one"], tmp_path / "l.jsonl")["answer"] == rows["answer"]
    assert len(server.seen) == 1


def test_a_used_up_account_stops_at_once(tmp_path):
    with (
        serving(["used_up"] * 9) as server,
        pytest.raises(LabelError, match=r"used up \(429\): .*quota gone"),
    ):
        write(server, PROMPTS, tmp_path / "l.jsonl")
    assert len(server.seen) <= 4


def test_requests_that_are_refused_one_by_one_do_not_stop_the_run(tmp_path, caplog):
    with serving(["refuse"] * 30) as server:
        rows = write(server, PROMPTS[:60], tmp_path / "l.jsonl")
    assert len(rows) == 30
    assert KEY not in caplog.text


def test_refusals_among_answers_never_end_a_run(tmp_path, caplog):
    prompts = [f"prompt {number}" for number in range(220)]
    with serving(["refuse", None] * 110) as server:
        rows = write(server, prompts, tmp_path / "l.jsonl", concurrency=1)
    assert len(rows) == 110


def test_the_budget_counts_every_try_that_may_be_paid(tmp_path):
    """Whatever goes wrong, the server never bills more than the budget."""
    prompts = [f"prompt {number}" for number in range(60)]
    kinds = ("cut", "malformed", "no_choice", "broken", "half_a_letter", 408, 504)
    with serving(failing=0.5, kinds=kinds) as server:
        for _ in range(2):  # and a second run knows what the first left in doubt
            rows = write_labels(
                teacher(server),
                prompts,
                tmp_path / "l.jsonl",
                max_new_tokens=20,
                max_total_tokens=4000,
                concurrency=4,
                progress=False,
            )
    assert 3 < len(rows) < 60
    assert server.billed <= 4000


def test_a_refused_request_spares_the_others(tmp_path, caplog):
    with serving(["refuse"]) as server:
        rows = write(server, ["one", "two", "three"], tmp_path / "l.jsonl")
        assert len(rows) == 2
        assert "1 of the answers asked for are missing" in caplog.text
        assert "too many tokens" in caplog.text
        # It cost nothing, so it leaves no doubt behind, and is asked for again.
        rows = write(server, ["one", "two", "three"], tmp_path / "l.jsonl")
    assert len(rows) == 3
    assert len(server.seen) == 4


@pytest.mark.parametrize("wrong", ["key", "model"])
def test_what_is_wrong_for_all_stops_at_once(wrong, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with serving() as server:
        key, model = ("sk-secret-wrong", MODEL) if wrong == "key" else (KEY, "owl")
        made = ApiTeacher(model, server.base_url, api_key=key)
        words = "refused the key" if wrong == "key" else "no model 'owl'"
        with pytest.raises(LabelError, match=words) as error:
            write_labels(
                made,
                PROMPTS,
                tmp_path / "l.jsonl",
                concurrency=2,
                progress=False,
            )
    assert len(server.seen) <= 4
    written = "".join(p.read_text() for p in tmp_path.iterdir())
    for text in (str(error.value), repr(made), caplog.text, written):
        assert key not in text


def test_nobody_there_ends_after_a_while(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = ApiTeacher(MODEL, f"http://127.0.0.1:{port}/v1", max_retries=0)
    with pytest.raises(LabelError, match="no connection"):
        write_labels(made, PROMPTS, tmp_path / "l.jsonl", progress=False)
    plan = plan_labels(made, PROMPTS, tmp_path / "l.jsonl")
    assert (plan.missing, plan.in_doubt) == (len(PROMPTS), 0)


def test_a_third_of_requests_fail_and_every_prompt_is_answered_once(tmp_path):
    prompts = [f"prompt {number}" for number in range(200)]
    kinds = ("busy_briefly", "broken", "away", "cut", "malformed", "no_choice")
    with serving(failing=0.3, kinds=kinds) as server:
        rows = write(server, prompts, tmp_path / "l.jsonl", concurrency=16)
    assert rows["answer"] == [f"echo {prompt}" for prompt in prompts]
    assert server.answered == dict.fromkeys(prompts, 1)
    assert len(server.seen) > 240


@pytest.mark.slow
def test_a_killed_run_loses_nothing_and_repeats_little(tmp_path, caplog, request):
    path = tmp_path / "labels.jsonl"
    chance = random.Random(0)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        )
    }
    with serving(pause=0.1) as server:
        command = [sys.executable, str(TESTS / "labelling.py"), server.base_url]
        stored: set[str] = set()
        for _ in range(5):
            running = subprocess.Popen([*command, str(path)], env=environment)
            request.addfinalizer(running.kill)
            before = len(server.seen)
            while len(server.seen) < before + 2:
                assert running.poll() is None
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.6))
            running.send_signal(signal.SIGKILL)
            running.wait()
            keys = {
                json.loads(line)["key"]
                for line in path.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            }
            assert stored <= keys
            stored = keys
            plan = plan_labels(teacher(server), PROMPTS, path)
            assert plan.in_doubt <= CONCURRENCY
        rows = ask(server.base_url, path)
    assert rows["answer"] == [f"echo {prompt}" for prompt in PROMPTS]
    assert "were under way when an earlier run ended" in caplog.text
    # Nothing that was stored was asked for again; of each kill at most what was
    # under way.
    assert len(server.seen) <= len(PROMPTS) + 5 * CONCURRENCY
    assert len(path.read_text().splitlines()) == len(PROMPTS)


@pytest.mark.slow
def test_an_interruption_stores_what_is_under_way(tmp_path, request):
    """Ctrl-C: nothing new is asked for, and what was asked for arrives."""
    path = tmp_path / "labels.jsonl"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        )
    }
    with serving(pause=0.5) as server:
        command = [sys.executable, str(TESTS / "labelling.py"), server.base_url]
        running = subprocess.Popen(
            [*command, str(path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        request.addfinalizer(running.kill)
        while len(server.seen) < CONCURRENCY:
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert "interrupt again" in running.communicate(timeout=30)[1]
        assert running.returncode != 0
        plan = plan_labels(teacher(server), PROMPTS, path)
        assert plan.in_doubt == 0
        assert plan.stored == len(server.seen) == CONCURRENCY


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-there")
    assert find_api_key() == "sk-there"
    assert find_api_key("http://localhost:8080/v1") == "none-needed"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert find_api_key("http://127.0.0.1:8080/v1") == "none-needed"
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        find_api_key("https://api.example.com/v1")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_retries": -1}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ApiTeacher(MODEL, "http://127.0.0.1:1/v1", **options)


def test_a_pasted_key_loses_its_line_feed_and_an_odd_one_is_refused(tmp_path):
    with serving() as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl", api_key=KEY + "\r\n")
    assert len(rows) == 1
    for key in ("sk-“curly”", "sk\n-broken"):
        with pytest.raises(ValueError, match="no key has") as error:
            ApiTeacher(MODEL, "http://127.0.0.1:1/v1", api_key=key)
        assert key not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"n": 4}, {"stream": True}, {"max_tokens": None}, {"temperature": 0.9}],
)
def test_options_do_not_go_round_the_budget_or_the_record(options):
    with pytest.raises(ValueError, match=f"options holds .*{next(iter(options))}"):
        ApiTeacher(MODEL, "http://127.0.0.1:1/v1", options=options)


def test_an_option_that_nobody_knows_stops_at_once(tmp_path):
    with serving() as server, pytest.raises(LabelError, match=r"options: .*typo"):
        write(server, PROMPTS, tmp_path / "l.jsonl", options={"typo": 1})
    assert not server.seen


def test_a_price_is_two_numbers():
    with pytest.raises(ValueError, match=r"price=\(1, 2, 3\)"):
        ApiTeacher(MODEL, "http://127.0.0.1:1/v1", price=(1, 2, 3))


def test_the_token_limit_can_have_another_name(tmp_path):
    with serving() as server:
        write(
            server, ["one"], tmp_path / "l.jsonl", token_limit="max_completion_tokens"
        )
    assert server.seen[0]["max_completion_tokens"] == 256
    assert "max_tokens" not in server.seen[0]


# --- answers in other shapes --------------------------------------------------------

TEXT = {"type": "text", "text": "It is 4."}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "2 and 2"}]}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"content": [TEXT]}, ""),
        ({"content": [{**TEXT, "text": "It "}, {**TEXT, "text": "is 4."}]}, ""),
        ({"content": ["It is ", "4."]}, ""),
        ({"content": TEXT}, ""),
        ({"content": [{"text": "It is 4."}, None]}, ""),
        ({"content": [{"type": "output_text", "text": "It is 4."}]}, ""),
        ({"content": [{"type": "text", "text": {"value": "It is 4."}}]}, ""),
        ({"content": [TEXT, {"type": "reference", "reference_ids": [1]}]}, ""),
        ({"content": [THOUGHT, TEXT]}, "2 and 2"),
        ({"content": [{"type": "reasoning", "text": "2 and 2"}, TEXT]}, "2 and 2"),
        ({"content": "It is 4.", "reasoning_content": "2 and 2"}, "2 and 2"),
        ({"content": "It is 4.", "reasoning": "2 and 2"}, "2 and 2"),
        ({"content": "It is 4.", "reasoning": {"content": "2 and 2"}}, "2 and 2"),
        ({"content": "It is 4.", "thinking_blocks": [THOUGHT]}, "2 and 2"),
        (
            {
                "content": "It is 4.",
                "reasoning": None,
                "reasoning_details": [{"type": "reasoning.text", "text": "2 and 2"}],
            },
            "2 and 2",
        ),
        ({"content": "It is 4.", "reasoning_content": ["2", 7, " and 2"]}, "2 and 2"),
        ({"content": "It is 4.", "refusal": None, "tool_calls": []}, ""),
    ],
)
def test_an_answer_arrives_in_whatever_shape(message, reasoning, tmp_path):
    with serving([message]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
        again = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["answer"] == again["answer"] == ["It is 4."]
    assert rows["reasoning"] == again["reasoning"] == [reasoning]
    assert rows["finish_reason"] == ["stop"]
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("message", "answer", "reason"),
    [
        ({"content": None, "finish_reason": "length"}, "", "length"),
        ({"content": [THOUGHT], "finish_reason": "length"}, "", "length"),
        ({"content": None, "finish_reason": "content_filter"}, "", "content_filter"),
        ({"content": None, "tool_calls": [CALL]}, "", "tool_calls"),
        ({"content": "Let me see.", "tool_calls": [CALL]}, "Let me see.", "tool_calls"),
        ({"content": None, "function_call": CALL["function"]}, "", "tool_calls"),
        (
            {"content": [{"type": "tool_use"}], "finish_reason": "tool_calls"},
            "",
            "tool_calls",
        ),
        ({"content": None, "refusal": "I will not."}, "I will not.", "refusal"),
        (
            {"content": [{"type": "refusal", "refusal": "I will not."}]},
            "I will not.",
            "refusal",
        ),
        ({"content": None}, "", "no_content"),
        ({"content": []}, "", "no_content"),
        ({"content": [THOUGHT]}, "", "no_content"),
        ({"content": "", "reasoning_content": "2 and 2"}, "", "no_content"),
        ({"content": [TEXT, {"type": "formula"}]}, "It is 4.", "unreadable"),
        ({"content": [TEXT, 7]}, "It is 4.", "unreadable"),
        ({"content": [TEXT, {"type": ["odd"], "text": 1}]}, "It is 4.", "unreadable"),
    ],
)
def test_what_is_no_whole_answer_is_told(message, answer, reason, tmp_path):
    with serving([message]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert (rows["answer"], rows["finish_reason"]) == ([answer], [reason])
    assert truncated(rows) == [True]
    assert len(server.seen) == 1


def test_an_empty_string_is_an_answer_that_ended(tmp_path):
    with serving([{"content": ""}]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert (rows["answer"], rows["finish_reason"]) == ([""], ["stop"])


@pytest.mark.parametrize(
    "content", [[{"type": "formula", "latex": "4"}], 7, {"a": 1}, [[["deep"]]], True]
)
def test_an_answer_that_cannot_be_read_is_none(content, tmp_path, caplog):
    """It is paid, so it counts; and a server that always does so is left soon."""
    prompts = [f"prompt {number}" for number in range(50)]
    with serving([{"content": content}] * 99) as server:
        with pytest.raises(LabelError, match=r"is no text, but parts of a kind"):
            write(server, prompts, tmp_path / "l.jsonl")
        plan = plan_labels(teacher(server), prompts, tmp_path / "l.jsonl")
    assert len(server.seen) < 20
    assert plan.stored == 0
    assert plan.tokens_spent > 0


def test_half_an_emoji_in_thoughts_can_be_stored(tmp_path):
    with serving([{"content": "x", "reasoning": "cut \ud83d"}]) as server:
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["reasoning"] == ["cut \ufffd"]


def test_files_without_thoughts_are_gone_on_with(tmp_path):
    """As they were before the column was: nothing is asked twice."""
    path = tmp_path / "l.jsonl"
    with serving() as server:
        write(server, ["one", "two"], path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[0].pop("reasoning") == ""
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert write(server, ["one", "two"], path)["reasoning"] == ["", ""]
        # In the order of their arrival.
        assert sorted(read_labels(path)["answer"]) == ["echo one", "echo two"]
    assert len(server.seen) == 2


# --- waiting ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "least"),
    [
        ((3, 0), 2),
        ((3, -86400), 2),  # the server's clock is a day behind
        ((3, 7200, "+0000"), 2),
        ((3, None), 1.9),  # and one that tells no time
        ((-600, 0), 0),
    ],
)
def test_a_date_is_waited_for(fault, least, tmp_path):
    with serving([fault]) as server:
        began = time.monotonic()
        rows = write(server, ["one"], tmp_path / "l.jsonl")
    assert rows["answer"] == ["echo one"]
    # Less than the longest pause, which a clock taken for ours would mean.
    assert least <= time.monotonic() - began < 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, 60),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:20 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            20,
        ),
        (
            {  # no zone at all, and an old way of writing
                "retry-after": "Wed Oct 21 07:28:20 2015",
                "date": "Wednesday, 21-Oct-15 07:28:00 GMT",
            },
            20,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:20 GMT"}, 0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:20 GMT"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "9" * 400}, 60),
        ({"retry-after": ""}, 0),
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "500", "retry-after": "3"}, 0.5),
        ({}, 0),
    ],
)
def test_what_a_server_asks_for(headers, seconds):
    assert wanted_pause(headers) == seconds


# --- conversations with tools -------------------------------------------------------

TALK = [
    {"role": "user", "content": "Shall I take a coat?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "rain " * 50},
]


@NEEDS_JSON
def test_a_conversation_is_sent_as_it_was_given(tmp_path):
    parts = [{"role": "system", "content": "be brief"}, user([TEXT, TEXT])]
    with serving() as server:
        rows = write(server, [TALK, parts], tmp_path / "l.jsonl", concurrency=1)
        again = write(server, rows["messages"], tmp_path / "l.jsonl")
    given = [TALK[0], {"role": "assistant", "tool_calls": [CALL]}, TALK[2]]
    assert server.seen[0]["messages"] == rows[0]["messages"] == given
    assert server.seen[1]["messages"] == rows[1]["messages"] == parts
    # And what came back is the same request.
    assert len(server.seen) == 2
    assert again["key"] == rows["key"]
    assert again["messages"] == [given, parts]


def test_tokens_of_calls_and_parts_are_counted():
    made = ApiTeacher(MODEL, "http://127.0.0.1:1/v1")
    plain = made.prompt_tokens([user("é")])
    assert plain == 2 + 4 + 8 + 256 + 2
    call = {"role": "assistant", "tool_calls": [{"arguments": "x" * 500}]}
    assert made.prompt_tokens([user("é"), call]) > plain + 500
    parts = [{"type": "text", "text": "高" * 500}]
    assert made.prompt_tokens([user(parts)]) > 1500
