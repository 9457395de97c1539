"""The rules of plain words, each broken once."""

from __future__ import annotations

from pathlib import Path

import pytest
from course import load_course
from lesson_source import read_cells
from nbformat.v4 import new_code_cell, new_markdown_cell
from prose_lint import MOST_WORDS, SENTENCE, lint_prose, paragraphs, sentences, words

ROOT = Path(__file__).resolve().parents[2]


def found(text, *code, tags=()):
    cells = [new_markdown_cell(text, metadata={"tags": [*tags]})]
    return lint_prose(cells + [new_code_cell(one) for one in code])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A short one. " + "word " * (SENTENCE + 1) + ".", "a sentence of 31 words"),
        ("In two: " + "word " * SENTENCE + ".", "a sentence of 32 words"),
        ("One (bracket) and (another).", "two brackets"),
        ("It stands beside the other.", "'beside'"),
        ("Whoever reads this.", "'whoever'"),
        ("short words. " * (MOST_WORDS // 2 + 1), "words of prose"),
    ],
)
def test_a_broken_rule_is_named(text, word):
    (finding,) = found(text)
    assert word in finding


@pytest.mark.parametrize(
    "text",
    [
        "word " * SENTENCE + ".",
        "One (bracket) here.\n\nAnd (another) there.",
        "* one (bracket)\n* another (bracket)",
        "A span `f(x)` and `g(y)` and a [link](a/b) (and a bracket).",
        "| " + "cell " * 50 + " | (a) (b) |",
        "```\n" + "word " * 50 + "\n```",
        "The formula $f(x) = g(y)$ (in words).",
    ],
)
def test_what_is_allowed(text):
    assert found(text) == []


def test_a_published_fact_may_have_its_source_behind_it():
    text = "A fact (one source) and another (its source)."
    assert found(text)
    assert found(text, tags=["published"]) == []


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (["a = profile.pick(smoke=1)", "b = profile.pick(smoke=2)"], "several cells"),
        (["results.verdict(name, judged=judged)"], "judged="),
        (["results.verdict(name)\n" * 7], "7 verdicts"),
    ],
)
def test_machinery_in_the_reader_s_way(code, word):
    (finding,) = found("Words.", *code)
    assert word in finding


def test_a_training_that_nobody_has_shown():
    call = "study.train_student(rows, seed=1)"
    (finding,) = found("Now train.", call)
    assert "train_student(" in finding
    assert found("Lesson 02's loop, once more.", call) == []
    assert found("Now train.", "loss.backward()", call) == []
    assert found("Now train.", call, "loss.backward()") != []
    assert found("It is not called.", "from studies import train_student") == []


def test_how_text_is_read():
    assert paragraphs("One\nline.\n\n* a\n  b\n* c") == ["One line.", "a b", "c"]
    assert sentences("One. Two! Three: four?") == ["One.", "Two!", "Three: four?"]
    assert words("a `b c` and $d + e$, don't") == ["a", "code", "and", "code", "don't"]


def test_lessons_of_the_second_edition_keep_them():
    course = load_course(ROOT)
    rewritten = [one for one in course.lessons if one.second_edition]
    assert rewritten
    for lesson in rewritten:
        assert lint_prose(read_cells(course, lesson)) == [], lesson.name
