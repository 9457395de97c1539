"""Served teachers: the same soft labels over HTTP as from the model itself."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from asking_rows import OPTIONS, ROWS, K, asked_teacher
from datasets import Dataset
from tiny_models import byte_level_bpe, ragged_rows, tiny
from training_runs import trainer, weights
from vllm_server import MODEL, serving_model

from distill_helpers.data import DataError, collator_for
from distill_helpers.labels import (
    ApiTeacher,
    CacheError,
    LabelError,
    ServedTeacher,
    SoftLabelCache,
    served_rows,
    write_cache,
    write_labels,
)
from distill_helpers.labels.served_tokens import Named, ServerError, TokenMap
from distill_helpers.labels.store import Stored
from distill_helpers.losses import soft_label_loss
from distill_helpers.tasks.teachers import load_tiny_teacher

TESTS = Path(__file__).parents[1]
TEMPLATE = "{{ messages[-1]['content'] }}"
PROMPTS = ["Emma Woodhouse, handsome", "It is a truth", "Mr. Darcy"]


@pytest.fixture(scope="module")
def prose():
    model, tokenizer = load_tiny_teacher("prose")
    tokenizer.chat_template = TEMPLATE
    return model.requires_grad_(False), tokenizer


@pytest.fixture(scope="module")
def bpe():
    found = byte_level_bpe()
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def model(bpe):
    found = tiny(bpe, seed=2).requires_grad_(False)
    found.lm_head.weight.mul_(3)  # sure of something, as a trained teacher is
    return found


@pytest.fixture(scope="module")
def served(model, bpe):
    with serving_model(model, bpe) as server:
        yield server


def write(teacher, rows, path, **options):
    options = {"scheme": "tail_bucket", "top_k": K, "progress": False} | options
    tokenizer = options.pop("tokenizer", getattr(teacher, "tokenizer", None))
    return write_cache(teacher, rows, path, tokenizer=tokenizer, **options)


def ask(teacher, path, **options):
    options = {"max_new_tokens": 12, "progress": False} | options
    return write_labels(teacher, PROMPTS, path, **options)


def batch_of(rows, tokenizer):
    return collator_for(tokenizer)(list(rows))


def stored(cache, batch):
    return cache.lookup(batch["input_ids"], batch["attention_mask"])


def rows_read(server):
    return [tuple(body["prompt"]) for body in server.seen if "prompt" in body]


# --- the same as from the model itself ----------------------------------------------


@pytest.mark.parametrize("scheme", ["top_k", "tail_bucket"])
def test_rows_that_a_server_reads_are_those_that_the_model_reads(
    scheme, served, model, bpe, tmp_path
):
    rows = ragged_rows(12, len(bpe))
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    there = write(teacher, rows, tmp_path / "there", scheme=scheme)
    here = write(model, rows, tmp_path / "here", scheme=scheme, tokenizer=bpe)
    batch = batch_of(rows, bpe)
    counted = batch["attention_mask"].clone()
    counted[:, :-1] *= batch["attention_mask"][:, 1:]
    counted[:, -1] = 0
    places = counted.flatten().bool()
    one, other = (stored(cache, batch).select(places) for cache in (there, here))
    assert torch.equal(one.ids, other.ids)
    # A log-probability of five decimals, and a weight of fp16.
    assert (one.weights / other.weights - 1).abs().max() < 2e-3
    assert there.verify(model, rows, tokenizer=bpe).positions == len(places[places])
    wrong = tiny(bpe, seed=5)
    with pytest.raises(CacheError, match="not of this teacher"):
        there.verify(wrong, rows, tokenizer=bpe)


def test_answers_carry_what_the_model_thought_of_them(served, model, bpe, tmp_path):
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    labels = ask(teacher, tmp_path / "l", samples=2, temperature=1.5)
    rows = served_rows(labels)
    assert len(rows) == 6
    sent = len(served.seen)
    cache = write(teacher, rows, tmp_path / "cache")
    assert len(served.seen) == sent  # nothing is asked twice
    assert SoftLabelCache.open(tmp_path / "cache", tokenizer=bpe, dataset=rows)
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        answer = sum(label != -100 for label in row["labels"])
        assert row["labels"][-answer:] == row["input_ids"][-answer:]
        found = cache.lookup(ids[None]).select(slice(-answer - 1, -1))
        # At T = 1, however it was drawn.
        p = model(ids[None]).logits[0, -answer - 1 : -1].softmax(-1)
        exact = p.gather(-1, found.ids)
        assert (found.weights - exact).abs().max() < 1e-3
        assert (found.tail - (1 - exact.sum(-1))).abs().max() < 1e-3


def test_a_student_learns_of_a_served_teacher_what_it_learns_of_the_model(
    served, model, bpe, tmp_path
):
    """The loss is lower by what the tail hides, and by nothing else (1e-3 nats)."""
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    rows = served_rows(ask(teacher, tmp_path / "l"))
    cache = write(teacher, rows, tmp_path / "cache")
    batch, student = batch_of(rows, bpe), tiny(bpe, seed=1)
    logits = student(batch["input_ids"]).logits.detach()
    theirs = model(batch["input_ids"]).logits
    whole = soft_label_loss(logits, theirs, batch["labels"]).loss
    found = soft_label_loss(logits, stored(cache, batch), batch["labels"]).loss
    assert math.isclose(found, whole - hidden(theirs, logits, batch), abs_tol=1e-3)
    assert whole - found > 0.01  # or nothing would be shown
    run = trainer(
        tmp_path / "run",
        rows=rows,
        teacher=cache,
        steps=1,
        objective={"alpha": 1.0, "temperature": 1.0},
    )
    run.train()
    assert weights(run.model).isfinite().all()  # NaN stands where nothing is learned
    assert math.isclose(run.state.log_history[-1]["train_loss"], found, rel_tol=1e-4)


def hidden(teacher, student, batch):
    """What top-k and a tail hide of a KL: tail times the KL inside of it, by hand."""
    counted = batch["labels"][:, 1:] != -100
    p = teacher[:, :-1][counted].double().softmax(-1)
    q = student[:, :-1][counted].double().softmax(-1)
    top = p.topk(K).indices
    p, q = p.scatter(-1, top, 0.0), q.scatter(-1, top, 0.0)
    tails = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)
    p, q = p / tails[0], q / tails[1]
    inside = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)
    return (tails[0].squeeze(-1) * inside).mean()


def test_a_prompt_of_which_nothing_is_known_is_not_learned(served, bpe, tmp_path):
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    rows = served_rows(ask(teacher, tmp_path / "l"))
    cache = write(teacher, rows, tmp_path / "cache")
    unmasked = rows.remove_columns("labels")
    with pytest.raises(CacheError, match="row 0 of the dataset learns its prompt"):
        SoftLabelCache.open(tmp_path / "cache", dataset=unmasked)
    batch = batch_of(unmasked, bpe)
    logits = tiny(bpe)(batch["input_ids"]).logits
    with pytest.raises(ValueError, match="nothing is known of the teacher there"):
        soft_label_loss(logits, stored(cache, batch), batch["labels"])


# --- llama.cpp ----------------------------------------------------------------------


def test_llama_cpp_in_f16_agrees_with_the_model(prose, bpe, tmp_path):
    """A real server: 0.01 nats, which F16 weights and products leave."""
    pytest.importorskip("xllamacpp")
    from distill_helpers.course.local_server import serve_gguf
    from distill_helpers.export import export_gguf

    model, tokenizer = prose
    file = export_gguf(model, tokenizer, tmp_path / "f16.gguf", precision="f16")
    with serve_gguf(file, threads=1, parallel=2) as url:
        teacher = ServedTeacher("prose", url, tokenizer=tokenizer)
        labels = ask(teacher, tmp_path / "l", samples=3, temperature=1.0)
        rows = served_rows(labels)
        cache = write(teacher, rows, tmp_path / "cache")
        with pytest.raises(LabelError, match="no prompt_logprobs, so it cannot read"):
            write(teacher, rows.select_columns("input_ids"), tmp_path / "rows")
        other = ServedTeacher("prose", url, tokenizer=bpe)
        with pytest.raises(LabelError, match=r"reads a prompt as \d+ tokens, and this"):
            ask(other, tmp_path / "other")
    assert len(rows) > 5  # some have a character of several tokens
    cache.verify(model, rows, tokenizer=tokenizer)
    batch, student = batch_of(rows, tokenizer), tiny(tokenizer, seed=1)
    logits = student(batch["input_ids"]).logits.detach()
    theirs = model(batch["input_ids"]).logits[..., : len(tokenizer)]
    whole = soft_label_loss(logits, theirs, batch["labels"]).loss
    found = soft_label_loss(logits, stored(cache, batch), batch["labels"]).loss
    assert math.isclose(found, whole - hidden(theirs, logits, batch), abs_tol=0.01)


def test_tokens_that_llama_cpp_leaves_out_are_noticed(bpe, tmp_path, caplog):
    """It tells of half characters in no token; a row without them would be another."""
    pytest.importorskip("xllamacpp")
    from distill_helpers.course.local_server import serve_gguf
    from distill_helpers.export import export_gguf

    babbler = tiny(bpe, width=64).eval()
    file = export_gguf(babbler, bpe, tmp_path / "l.gguf", precision="f32")
    with serve_gguf(file, threads=1, parallel=1) as url:
        teacher = ServedTeacher("x", url, tokenizer=bpe)
        labels = ask(teacher, tmp_path / "l", samples=3, temperature=1.0)
    assert len(labels) == 9  # the texts are there
    assert sum(not ids for ids in labels["answer_ids"]) > 4
    told = labels.filter(lambda row: row["answer_ids"])
    for row in told:
        assert row["completion_tokens"] - len(row["answer_ids"]) in (0, 1)
    with pytest.raises(DataError, match="whose tokens cannot be told"):
        served_rows(labels.filter(lambda row: not row["answer_ids"]))


# --- tokens by their texts ----------------------------------------------------------


def test_tokens_without_ids_are_found_by_their_bytes(prose, tmp_path):
    model, tokenizer = prose
    answers = []
    for dialect in ("vllm", "texts"):
        with serving_model(model, tokenizer, dialect=dialect) as server:
            teacher = ServedTeacher(
                MODEL, server.base_url, tokenizer=tokenizer, ask_ids=dialect == "vllm"
            )
            answers.append(ask(teacher, tmp_path / dialect))
    for name in ("prompt_ids", "answer_ids", "top_ids", "top_logprobs", "unmapped"):
        assert answers[0][name][:] == answers[1][name][:], name


def test_what_has_no_token_of_its_own_is_counted_and_left_out(
    model, bpe, tmp_path, caplog
):
    """The tail takes its probability; an answer that holds one gives no row."""
    with serving_model(model, bpe, dialect="texts") as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe, ask_ids=False)
        labels = ask(teacher, tmp_path / "l", samples=8, temperature=0.5)
    # Half characters: to a server of texts they are all alike.
    halves = {i for i, one in enumerate(TokenMap(bpe).spelling) if not is_text(one)}
    assert len(halves) > 100
    for row in labels:
        assert not halves & set(row["answer_ids"])
        assert not halves.intersection(*row["top_ids"] or [[]])
        assert row["unmapped"] > 0 < row["unmapped_mass"]
    untold = sum(not ids for ids in labels["answer_ids"])
    assert 0 < untold < len(labels)
    rows = served_rows(labels, top_k=2)
    assert f"{untold} whose tokens cannot be told" in caplog.text
    assert "% of the probability" in caplog.text
    cache = write(teacher, rows, tmp_path / "cache", top_k=2)
    for row in rows:
        answer = sum(label != -100 for label in row["labels"])
        ids = torch.tensor(row["input_ids"])
        found = cache.lookup(ids[None]).select(slice(-answer - 1, -1))
        p = model(ids[None]).logits[0, -answer - 1 : -1].softmax(-1)
        assert (found.weights - p.gather(-1, found.ids)).abs().max() < 1e-3


def is_text(spelling):
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_spelling_that_two_tokens_share_is_neither(bpe):
    tokens = TokenMap(bpe)
    index = bpe.convert_tokens_to_ids("e")
    assert tokens.find(Named(None, b"e", 0.0)) == index
    tokens.spelling = (*tokens.spelling[:5], b"e", *tokens.spelling[6:])
    del tokens.__dict__["_owners"]
    assert tokens.find(Named(None, b"e", 0.0)) is None
    assert tokens.find(Named(index, b"e", 0.0)) == index  # but an id is an id
    assert tokens.find(Named(None, b"no token", 0.0)) is None
    assert tokens.find(Named(10**6, b"e", 0.0)) is None


def test_a_server_that_names_a_token_twice_is_not_believed(bpe):
    one, other = (bpe.convert_tokens_to_ids(text) for text in "eo")
    named = [
        Named(i, b"", math.log(p)) for i, p in ((one, 0.4), (one, 0.3), (other, 0.2))
    ]
    found = TokenMap(bpe).tops([named], 3)
    assert (found.ids, found.unmapped) == ([[other]], 2)
    assert math.isclose(found.unmapped_mass, 0.7)
    with pytest.raises(ServerError, match="sum to more than 1"):
        TokenMap(bpe).tops([[Named(one, b"", 0.0), Named(other, b"", 0.0)]], 2)


# --- what cannot be -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving", "making", "words"),
    [
        ({"dialect": "bare"}, {}, "no prompt_logprobs, so it cannot read rows"),
        ({"max_logprobs": 5}, {}, "than max allowed: 5; pass a smaller top_k"),
        ({"gives": 5}, {}, r"gives \d+ likeliest tokens.*pass top_k="),
    ],
)
def test_rows_a_server_cannot_read(serving, making, words, model, bpe, tmp_path):
    rows = ragged_rows(4, len(bpe))
    with serving_model(model, bpe, **serving) as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe, **making)
        with pytest.raises(LabelError, match=words):
            write(teacher, rows, tmp_path / "cache")


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"dialect": "bare"}, "gives no logprobs.*ApiTeacher"),
        ({"max_logprobs": 5}, "than max allowed: 5; pass a smaller top_k"),
        ({"gives": 5}, "gives 5 likeliest tokens.*pass top_k=5"),
        ({"dialect": "texts"}, "argument supplied.*pass ask_ids=False"),
    ],
)
def test_answers_without_what_was_asked_for(serving, words, prose, tmp_path):
    model, tokenizer = prose
    with serving_model(model, tokenizer, **serving) as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=tokenizer)
        with pytest.raises(LabelError, match=words):
            ask(teacher, tmp_path / "l")


def test_another_tokenizer_behind_the_server(prose, model, bpe, tmp_path):
    """Seen by texts where a row is read, by ids or counts where a prompt is."""
    wider, tokenizer = prose
    rows = ragged_rows(4, len(bpe))
    with serving_model(wider, tokenizer) as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe)
        with pytest.raises(
            LabelError, match=r"calls token \d+ .* and in this tokenize"
        ):
            write(teacher, rows, tmp_path / "cache")
        with pytest.raises(LabelError, match="which differ: another tokenizer or chat"):
            ask(teacher, tmp_path / "l")
    with serving_model(wider, tokenizer, dialect="texts") as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe, ask_ids=False)
        with pytest.raises(LabelError, match=r"as \d+ tokens, and this tokenizer as"):
            ask(teacher, tmp_path / "m")
    with pytest.raises(ValueError, match=r"pass tokenizer=teacher\.tokenizer"):
        write(teacher, rows, tmp_path / "cache", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "hybrid"}, "'hybrid' needs the teacher's whole distribution"),
        ({"temperature": 2.0}, "temperature=2.0, but a server's probabilities"),
        ({"top_k": 21}, "top_k=21, but the teacher is asked for 20"),
        ({"max_cost": 1.0}, "max_cost=1.0 needs a price"),
    ],
)
def test_options_that_a_server_cannot_follow(options, words, served, bpe, tmp_path):
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    with pytest.raises(ValueError, match=words):
        write(teacher, ragged_rows(2, len(bpe)), tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def test_options_that_are_decided(model, bpe, tmp_path):
    url = "http://127.0.0.1:1/v1"
    with pytest.raises(ValueError, match="'top_logprobs', which top_k=20 decides"):
        ServedTeacher(MODEL, url, tokenizer=bpe, options={"top_logprobs": 3})
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        ServedTeacher(MODEL, url, tokenizer=bpe, top_k=0)
    with pytest.raises(ValueError, match="are for a ServedTeacher"):
        write(model, ragged_rows(2, len(bpe)), tmp_path, tokenizer=bpe, max_cost=1.0)
    plain = Dataset.from_list([{"messages": [], "answer": "x"}])
    with pytest.raises(
        DataError, match="no answer_ids: it was not written by a Served"
    ):
        served_rows(plain)
    assert (
        ApiTeacher(MODEL, url).identity()
        != ServedTeacher(MODEL, url, tokenizer=bpe).identity()
    )


def test_too_few_tokens_at_a_position_are_said_with_their_number(served, bpe, tmp_path):
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe, top_k=3)
    rows = served_rows(ask(teacher, tmp_path / "l"), top_k=3)
    with pytest.raises(DataError, match="3 with fewer than top_k=4 tokens"):
        served_rows(ask(teacher, tmp_path / "l"), top_k=4)
    wider = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    with pytest.raises(CacheError, match=r"has 3 likeliest tokens .* pass top_k=3"):
        write(wider, rows, tmp_path / "cache", top_k=5)


# --- nothing is asked for twice -----------------------------------------------------


def test_a_connection_that_is_lost_costs_nothing(model, bpe, tmp_path):
    rows = ragged_rows(12, len(bpe))
    options = {"max_retries": 0, "concurrency": 1}
    with serving_model(model, bpe, left=5) as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe, **options)
        with pytest.raises(LabelError, match=r"5 answers are stored in .*call again"):
            write(teacher, rows, tmp_path / "cache")
        before = rows_read(server)[:5]
    with serving_model(model, bpe) as server:
        teacher = ServedTeacher(MODEL, server.base_url, tokenizer=bpe, **options)
        cut = write(teacher, rows, tmp_path / "cache")
        after = rows_read(server)
        write(teacher, rows, tmp_path / "cache")  # it is finished
        assert rows_read(server) == after
        whole = write(teacher, rows, tmp_path / "whole")
    assert sorted(before + after) == sorted(map(tuple, rows["input_ids"]))
    assert cut.header == whole.header


def test_a_budget_ends_where_it_says_and_goes_on(model, bpe, tmp_path):
    rows = ragged_rows(12, len(bpe))
    needed = sum(map(len, rows["input_ids"])) + len(rows)
    options = {"shard_bytes": 1, "batch_size": 2}  # six shards
    with serving_model(model, bpe) as server:
        teacher = ServedTeacher(
            MODEL, server.base_url, tokenizer=bpe, price=(1e6, 1e6), concurrency=2
        )
        limits = [{"max_total_tokens": needed // 2}, {"max_cost": needed - 1.0}]
        for limit in limits:
            with pytest.raises(
                CacheError, match="the budget ends there; raise max_tot"
            ):
                write(teacher, rows, tmp_path / "cache", **limit, **options)
            spent = sum(map(len, rows_read(server))) + len(rows_read(server))
            assert spent <= next(iter(limit.values()))
            assert Stored.read(tmp_path / "cache/answers.jsonl").spent().total == spent
        write(teacher, rows, tmp_path / "cache", max_total_tokens=needed, **options)
        assert len(rows_read(server)) == len(rows)
        # From the beginning, everything is asked for again.
        write(teacher, rows, tmp_path / "cache", resume=False, **options)
        assert len(rows_read(server)) == 2 * len(rows)


def test_another_teacher_in_the_same_folder_is_refused(served, model, bpe, tmp_path):
    rows = ragged_rows(4, len(bpe))
    teacher = ServedTeacher(MODEL, served.base_url, tokenizer=bpe)
    write(teacher, rows, tmp_path / "cache")
    more = ServedTeacher(MODEL, served.base_url, tokenizer=bpe, top_k=10)
    for other in (more, model):
        with pytest.raises(CacheError, match="holds a cache with teacher="):
            write(other, rows, tmp_path / "cache", tokenizer=bpe)


@pytest.mark.slow
def test_killed_at_any_moment_no_row_is_read_twice(model, bpe, tmp_path):
    """But for those under way when it was killed."""
    at_once = OPTIONS["concurrency"]
    with serving_model(model, bpe) as server:
        kills = 2
        for number in range(1, kills + 1):
            command = [sys.executable, "-m", "asking_rows", server.base_url]
            process = subprocess.Popen([*command, str(tmp_path / "cut")], cwd=TESTS)
            while len(server.seen) < number * ROWS // (kills + 1):
                assert process.poll() is None, "it was over before it could be killed"
                time.sleep(0.005)  # the server is a thread of this process
            process.send_signal(signal.SIGKILL)
            process.wait()
        teacher, rows = asked_teacher(server.base_url)
        cut = write(teacher, rows, tmp_path / "cut", shard_bytes=1)
        asked = rows_read(server)
        assert set(asked) == set(map(tuple, rows["input_ids"]))
        assert len(asked) - len(set(asked)) <= kills * at_once
        whole = write(teacher, rows, tmp_path / "whole", shard_bytes=1)
    assert len(whole.header["shards"]) > 5
    assert cut.header == whole.header
    assert json.loads((tmp_path / "cut/cache.json").read_text())["complete"]
