"""The shared task: its generator, its exact checker, its frozen test set."""

import itertools

import pytest

from distill_helpers.tasks import bundled, three_sums
from distill_helpers.tasks.three_sums import Problem


def test_same_seed_same_problems():
    assert three_sums.problems(300, seed=3) == three_sums.problems(300, seed=3)
    assert three_sums.problems(300, seed=3) != three_sums.problems(300, seed=4)


def test_a_larger_count_only_adds():
    assert three_sums.problems(500, seed=1)[:200] == three_sums.problems(200, seed=1)


def test_problems_are_different_and_not_in_the_test_set():
    drawn = three_sums.problems(20_000, seed=0)
    assert len(set(drawn)) == 20_000
    assert not set(drawn) & set(three_sums.test_problems())


@pytest.mark.parametrize("count", [0, -1, 90**3 - 2000 + 1])
def test_impossible_counts_are_refused(count):
    with pytest.raises(
        ValueError, match=f"count={count} must lie between 1 and 727000"
    ):
        three_sums.problems(count, seed=0)


def test_the_frozen_file_is_what_the_generator_makes():
    frozen = bundled.data_path("three_sums_test.jsonl").read_text(encoding="utf-8")
    assert frozen == three_sums.make_frozen_test()


def test_the_frozen_test_set():
    test = three_sums.test_problems()
    assert len(test) == len(set(test)) == three_sums.TEST_SIZE >= 2000
    numbers = {number for p in test for number in (p.a, p.b, p.c)}
    assert numbers == set(range(10, 100))


def test_prompt_and_answer():
    problem = Problem(27, 58, 46)
    assert problem.prompt == "27+58+46="
    assert problem.answer == "27+58=85,85+46=131;131"
    assert problem.result == 131


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("27+58=85,85+46=131;131", True),
        (";131", True),  # wrong or missing steps: only the result is judged
        ("27+58=86,86+46=132;131", True),
        ("27+58=85,85+46=131;131 \n", True),
        ("1;2;131", True),  # the last semicolon counts
        ("27+58=85,85+46=131;132", False),
        ("27+58=85,85+46=131", False),  # no semicolon
        ("131", False),
        ("", False),
        (";", False),
        ("131;", False),
        (";0131", False),
        (";+131", False),
        (";131.0", False),
        (";131,", False),
        (";131=", False),
        (";13 1", False),
        (";1311", False),
        (";١٣١", False),  # other scripts' digits
        (";131;", False),
        (";131;7", False),
    ],
)
def test_the_checker_is_exact(text, right):
    assert three_sums.is_right(Problem(27, 58, 46), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("27+58=85,85+46=131;131", True),
        ("27+58=86,86+46=132;131", False),
        ("85+46=131,27+58=85;131", False),  # out of order
        (";131", False),
    ],
)
def test_steps_are_judged_apart(text, right):
    assert three_sums.steps_are_right(Problem(27, 58, 46), text) is right


def test_every_perfect_answer_passes():
    for problem in three_sums.test_problems():
        assert three_sums.is_right(problem, problem.answer)
        assert three_sums.steps_are_right(problem, problem.answer)


def test_tokenizer_round_trip_one_token_per_character():
    tokenizer = three_sums.build_tokenizer()
    assert len(tokenizer) == 16
    for problem in three_sums.test_problems()[:50]:
        text = problem.prompt + problem.answer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_tokenizer_drops_the_end_when_decoding():
    tokenizer = three_sums.build_tokenizer()
    end = tokenizer.eos_token_id
    ids = [*tokenizer(";131", add_special_tokens=False)["input_ids"], end]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ";131"


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = three_sums.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    text = Problem(10, 99, 55).prompt
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert again.eos_token_id == tokenizer.eos_token_id


def test_there_is_room_for_every_answer_and_its_end():
    tokenizer = three_sums.build_tokenizer()
    longest = max(
        len(tokenizer(Problem(*numbers).answer)["input_ids"]) + 1
        for numbers in itertools.product((10, 50, 99), repeat=3)
    )
    assert longest <= three_sums.MAX_ANSWER_TOKENS <= longest + 2


def test_prompts_in_order():
    chosen = three_sums.problems(3, seed=0)
    assert three_sums.prompts(chosen) == [problem.prompt for problem in chosen]
