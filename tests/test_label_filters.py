import pytest
from datasets import Dataset

from distill_helpers.label_filters import (
    contaminated,
    duplicate,
    empty,
    filter_labels,
    near_duplicate,
    refused,
    truncated,
    wrong,
)


def labels(*answers, prompts=None, reasons=None):
    prompts = prompts or [f"question {number}" for number in range(len(answers))]
    return Dataset.from_list(
        [
            {
                "messages": [{"role": "user", "content": prompt}],
                "answer": answer,
                "finish_reason": reason,
            }
            for prompt, answer, reason in zip(
                prompts, answers, reasons or ["stop"] * len(answers), strict=True
            )
        ]
    )


def test_truncated_is_whatever_did_not_stop():
    rows = labels("a", "b", "c", reasons=["stop", "length", "content_filter"])
    assert truncated(rows) == [False, True, True]


def test_truncated_knows_what_other_servers_call_the_end():
    reasons = ["eos", "eos_token", "end_turn", "stop_sequence", "max_tokens", "None"]
    rows = labels(*"abcdef", reasons=reasons)
    assert truncated(rows) == [False] * 4 + [True] * 2


def test_empty_has_no_letter():
    assert empty(labels("", " \n", "…!", "ok", "7")) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t help with that.", True),
        ("As an AI language model, I have no opinions.", True),
        ("I cannot provide medical advice.", True),
        ("It is a kind of fish.", False),
        ("He can't help it, she said.", False),
        ("A story. " * 30 + "'I am sorry,' said Anne.", False),
    ],
)
def test_refused(answer, found):
    assert refused(labels(answer)) == [found]


def test_duplicate_needs_the_same_prompt():
    rows = labels("animal", "Animal ", "animal", prompts=["cat", "Cat", "dog"])
    assert duplicate(rows) == [False, True, False]


def test_signs_tell_duplicates_apart():
    rows = labels("5", "5", prompts=["abs(-5)", "abs(5)"])
    assert duplicate(rows) == [False, False]


def test_near_duplicate_finds_small_changes_and_spares_others():
    text = " ".join(f"word{number}" for number in range(60))
    rows = labels(
        text, text + " more", "quite another answer", prompts=["same", "same", "same"]
    )
    assert near_duplicate()(rows) == [False, True, False]
    with pytest.raises(ValueError, match="threshold=2"):
        near_duplicate(2)


def test_contaminated_finds_runs_and_whole_short_texts():
    find = contaminated(
        ["the quick brown fox jumps over the lazy dog today", "five short words of it"],
        words=8,
    )
    rows = labels(
        "He wrote: the quick brown fox jumps over the lazy cat.",
        "the quick brown fox",
        "these are FIVE short words, of it.",
        "clean",
    )
    assert find(rows) == [True, False, True, False]


def test_contaminated_does_not_look_for_single_words():
    assert contaminated(["animal"])(labels("an animal")) == [False]


def test_wrong_asks_the_checker():
    find = wrong(lambda row: row["answer"] == "4")
    assert find(labels("4", "5")) == [False, True]


def test_filters_come_one_after_another_and_keep_account():
    rows = labels("", "", "ok", "ok", prompts=["a", "a", "b", "b"])
    made = filter_labels(rows, {"empty": empty, "duplicate": duplicate})
    assert made.kept["answer"] == ["ok"]
    assert made.counts == {"empty": 2, "duplicate": 1}
    assert made.dropped["dropped_by"] == ["empty", "empty", "duplicate"]
    assert repr(made) == "1 kept, 2 empty, 1 duplicate"


def test_a_filter_that_judges_too_few_is_named():
    with pytest.raises(ValueError, match="'short' judged 1 of 2"):
        filter_labels(labels("a", "b"), {"short": lambda _: [True]})


def test_what_was_dropped_can_be_filtered_again():
    first = filter_labels(labels("", "ok"), {"empty": empty})
    again = filter_labels(first.dropped, {"empty too": empty})
    assert again.dropped["dropped_by"] == ["empty too"]


def test_nothing_dropped_is_fine():
    made = filter_labels(labels("a"), {"empty": empty})
    assert (len(made.kept), len(made.dropped)) == (1, 0)


@pytest.mark.parametrize("answers", [("yes", "no"), ("", "no"), ("", "")])
def test_rows_with_a_column_of_ones_own(answers):
    rows = labels(*answers).add_column("licence", ["mine", "theirs"])
    found = filter_labels(rows, {"empty": empty})
    assert len(found.kept) + len(found.dropped) == 2
    assert sorted([*found.kept["licence"], *found.dropped["licence"]]) == [
        "mine",
        "theirs",
    ]
    assert found.dropped["dropped_by"][:] == ["empty"] * answers.count("")
    assert "dropped_by" not in found.kept.column_names
