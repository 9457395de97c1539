import json
import operator
import re

import pytest

from distill_helpers.tasks import word_problems
from distill_helpers.tasks.word_problems import (
    WordProblem,
    is_right,
    load,
    problems,
    read_result,
)

OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


def calculate(line):
    left, _, right = line.partition(" = ")
    first, *rest = left.split()
    value = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        assert sign != "/" or value % int(number) == 0, line
        value = OPERATIONS[sign](value, int(number))
    return value, int(right)


@pytest.fixture(scope="module")
def drawn():
    return problems(1400, seed=3)


def test_every_step_is_right_and_the_last_one_is_the_result(drawn):
    for problem in drawn:
        lines = problem.steps.splitlines()
        assert 2 <= len(lines) <= 4
        for line in lines:
            calculated, written = calculate(line)
            assert calculated == written > 0, problem
        assert written == problem.result


def test_the_question_gives_every_number_that_the_steps_start_from(drawn):
    for problem in drawn:
        known = {int(n) for n in re.findall(r"\d+", problem.question)} | {2}
        for line in problem.steps.splitlines():
            left, _, right = line.partition(" = ")
            assert {int(n) for n in re.findall(r"\d+", left)} <= known, problem
            known.add(int(right))


def test_templates_come_equally_often(drawn):
    assert len(word_problems.TEMPLATES) >= 12
    counts = [
        sum(problem.template == name for problem in drawn)
        for name in word_problems.TEMPLATES
    ]
    assert max(counts) - min(counts) <= 1


def test_a_seed_is_a_seed_and_more_only_adds(drawn):
    assert problems(40, seed=3) == drawn[:40]
    assert problems(40, seed=4) != drawn[:40]
    assert len({problem.question for problem in drawn}) == len(drawn)


def test_the_frozen_test_is_as_the_generator_made_it_and_kept_apart(drawn):
    frozen = word_problems.test_problems()
    assert len(frozen) == word_problems.TEST_SIZE == 1000
    made = word_problems.make_frozen_test().splitlines()
    assert [vars(problem) for problem in frozen] == [json.loads(line) for line in made]
    asked = {problem.question for problem in frozen}
    assert not asked & {problem.question for problem in drawn}


def test_count_is_checked():
    with pytest.raises(ValueError, match="count=0"):
        problems(0, seed=0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 * 4 = 12\n#### 12", 12),
        ("#### 1,250", 1250),
        ("#### $1,250.", 1250),
        ("#### 12.00\n", 12),
        ("####-3", -3),
        ("#### 5\nNo, wait.\n#### 6", 6),
        (r"so the answer is \boxed{42}.", 42),
        ("the answer is 12", None),
        ("#### 12 dollars", None),
        ("#### 12.5", None),
        ("#### 12 or 13", None),
        ("#### 5\nNo, wait.", None),
        ("#### 12,5", None),
        ("#### " + "9" * 5000, None),
        ("", None),
    ],
)
def test_read_result(text, number):
    assert read_result(text) == number


def test_a_worked_answer_is_right_and_another_number_is_not(drawn):
    for problem in drawn[:20]:
        assert is_right(problem, problem.answer)
        assert is_right(problem, problem.short_answer)
        assert not is_right(problem, f"{problem.steps}\n#### {problem.result + 1}")
        assert problem.question in problem.prompt


def gsm8k_copy(folder, *rows):
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def test_gsm8k_is_read_from_a_folder(tmp_path):
    folder = gsm8k_copy(
        tmp_path,
        ("How many?", "2+3=<<2+3=5>>5\n#### 5"),
        ("And now?", "It is 1,000.\n#### 1,000"),
    )
    found = load(folder, "train", 10)
    assert found[0] == WordProblem("How many?", "2+3=5", 5, "gsm8k")
    assert found[1].result == 1000
    assert is_right(found[1], found[1].answer)
    assert load(folder, "train", 1) == found[:1]


def test_a_row_of_gsm8k_without_a_result_is_refused(tmp_path):
    folder = gsm8k_copy(tmp_path, ("How many?", "Many."))
    with pytest.raises(ValueError, match="no result"):
        load(folder, "train", 1)


def test_our_own_are_loaded_by_name():
    assert load("templates", "train", 3) == problems(3, seed=0)
    assert load("templates", "test", 3) == list(word_problems.test_problems()[:3])
    with pytest.raises(ValueError, match="split='dev'"):
        load("templates", "dev", 3)
