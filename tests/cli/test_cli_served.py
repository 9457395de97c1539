"""``distill cache --server``: rows read by a served teacher, learned by a student."""

import pytest
from vllm_server import MODEL, serving_model

from distill_helpers.cli import main
from distill_helpers.labels import SoftLabelCache
from distill_helpers.tasks.teachers import load_tiny_teacher

TINY = ["--teacher", "tiny-prose", "--rows", "12", "--length", "16"]
TINY += ["--profile", "smoke"]


@pytest.fixture(scope="module")
def prose():
    return load_tiny_teacher("prose")


def test_rows_are_read_by_a_server_and_learned(prose, tmp_path, capsys):
    cache, out = str(tmp_path / "cache"), str(tmp_path / "student")
    with serving_model(*prose) as server:
        where = ["--server", server.base_url, "--served-name", MODEL]
        line = ["cache", *TINY, *where, "--output", cache]
        assert main([*line, "--scheme", "hybrid"]) == 1
        assert "pass scheme='tail_bucket'" in capsys.readouterr().err
        assert main([*line, "--max-total-tokens", "100"]) == 1
        assert "the budget ends there" in capsys.readouterr().err
        assert main(line) == 0
        assert "180 distributions" in capsys.readouterr().out
        assert len(server.seen) == 12
    found = SoftLabelCache.open(cache)
    assert found.header["teacher"]["name"] == MODEL
    assert found.scheme.top_k == 8
    student = ["--student", "fresh:1x16", "--steps", "2", "--batch-size", "4"]
    line = ["train", "soft", *TINY, *student, "--cache", cache, "--output", out]
    assert main(line) == 0


def test_a_teacher_without_a_tokenizer_is_named(tmp_path, capsys):
    where = ["--server", "http://127.0.0.1:1/v1", "--output", str(tmp_path)]
    assert main(["cache", "--teacher", "nowhere", *where]) == 1
    assert "teacher='nowhere' is no folder with a token" in capsys.readouterr().err
