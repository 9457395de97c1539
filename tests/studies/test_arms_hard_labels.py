"""Whose answers the arms of ``hard_labels`` learn, and how many."""

from __future__ import annotations

from functools import lru_cache

import pytest
from watched_training import run_of, same_rows, settings_of, watching

from distill_helpers.labels import read_labels
from distill_helpers.models import weights_hash
from distill_helpers.studies import hard_labels
from distill_helpers.tasks.bundled import data_path
from distill_helpers.tasks.glosses import learned_rows, read_answer, splits
from distill_helpers.tasks.teachers import load_tiny_teacher

ALONE, TAUGHT, RIGHT = "600 labelled", "and the teacher's", "and the true ones"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tiny_teacher("prose").tokenizer


@pytest.fixture(scope="module")
def ran():
    """One step of an arm: its only training, and the rows that chose a checkpoint."""

    @lru_cache
    def run(arm, setting):
        chosen_by = []

        def look(_, rows, __):
            chosen_by.append(rows)
            return 1.0

        real = hard_labels.judge_student
        with pytest.MonkeyPatch.context() as patch, watching() as trainings:
            patch.setattr(hard_labels, "held_out_nll", look)
            patch.setattr(hard_labels, "judge_student", lambda one: real(one, 4))
            hard_labels.STUDY.run(run_of(arm, setting))
        (training,) = trainings
        return training, chosen_by

    return run


@pytest.fixture(scope="module")
def written():
    """What the teacher wrote, by the gloss that it was asked about."""
    labels = read_labels(data_path("gloss_labels.jsonl"))
    return {
        messages[0]["content"]: answer
        for messages, answer in zip(labels["messages"], labels["answer"], strict=True)
    }


def answers(rows, tokenizer):
    """Rows as pairs of what is read and what is learned."""
    pairs = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        learned = [label for label in labels if label != -100]
        prompt = ids[: len(ids) - len(learned)]
        pairs.append(
            (
                tokenizer.decode(prompt),
                tokenizer.decode(learned, skip_special_tokens=True).strip(),
            )
        )
    return pairs


def test_every_pair_of_the_table_is_held_here():
    assert hard_labels.STUDY.pairs() == [
        *[(ALONE, "0"), (TAUGHT, "1000"), (RIGHT, "1000")],
        *[(TAUGHT, "4000"), (RIGHT, "4000")],
    ]


@pytest.mark.parametrize(("arm", "setting"), hard_labels.STUDY.pairs())
def test_every_student_begins_alike_and_learns_text(arm, setting, ran, tokenizer):
    training, chosen_by = ran(arm, setting)
    assert training.kind == "HardLabelTrainer"
    assert training.settings == settings_of(300, 16)
    assert training.begins == weights_hash(load_tiny_teacher("prose").model)
    labelled = learned_rows(splits().labelled, tokenizer)
    assert same_rows(training.rows.select(range(600)), labelled)
    assert same_rows(chosen_by[0], learned_rows(splits().validation, tokenizer))


def test_alone_has_nothing_but_its_600(ran):
    assert len(ran(ALONE, "0")[0].rows) == 600


@pytest.mark.parametrize("setting", ["1000", "4000"])
def test_the_teacher_s_answers_are_what_it_wrote_of_the_pool(
    setting, ran, tokenizer, written
):
    rows = ran(TAUGHT, setting)[0].rows
    asked = splits().pool[: int(setting)]
    valid = [gloss for gloss in asked if read_answer(written[gloss.prompt]) is not None]
    assert len(rows) == 600 + len(valid)
    some = range(0, len(valid), 97)
    learned = answers(rows.select([600 + place for place in some]), tokenizer)
    for place, (prompt, answer) in zip(some, learned, strict=True):
        assert valid[place].prompt in prompt
        assert read_answer(answer) == read_answer(written[valid[place].prompt])
    # A teacher errs, or nothing here would tell its answers from the true ones.
    errs = [read_answer(written[gloss.prompt]) != gloss.kind for gloss in valid]
    assert 0.05 < sum(errs) / len(errs) < 0.6
    right = learned_rows(valid, tokenizer)
    assert not same_rows(rows.select(range(600, len(rows))), right)


@pytest.mark.parametrize("setting", ["1000", "4000"])
def test_the_true_ones_are_the_dictionary_s(setting, ran, tokenizer):
    rows = ran(RIGHT, setting)[0].rows
    right = learned_rows(splits().pool[: int(setting)], tokenizer)
    assert same_rows(rows.select(range(600, len(rows))), right)
