"""Who teaches in ``teacher_domain``: the stranger, or the one that was corrected."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import teacher_domain
from distill_helpers.tasks.prose import glosses
from distill_helpers.tasks.teachers import load_tiny_teacher

CORRECTED = "soft, teacher corrected"
# Arm: the weight of the teacher's distribution.
ALPHA = {
    "labels": None,
    "soft, teacher as it is": 1.0,
    "mix, teacher as it is": 0.5,
    CORRECTED: 1.0,
}


@pytest.fixture(scope="module")
def pair():
    few = range(4)
    whole = teacher_domain.load_pair()
    return replace(
        whole, validation=whole.validation.select(few), test=whole.test.select(few)
    )


@pytest.fixture(scope="module")
def stranger():
    return weights_hash(load_tiny_teacher("prose").model)


@pytest.fixture(scope="module")
def ran(pair):
    """Two steps of each training of an arm: the trainings, and its row."""

    @lru_cache
    def run(arm):
        teacher_domain._corrected.cache_clear()
        with pytest.MonkeyPatch.context() as patch, watching(2) as trainings:
            patch.setattr(teacher_domain, "load_pair", lambda: pair)
            row = teacher_domain.STUDY.run(run_of(arm, "800"))
        teacher_domain._corrected.cache_clear()
        return trainings, row

    return run


@pytest.mark.parametrize("arm", teacher_domain.STUDY.arms)
def test_every_student_reads_the_same_glosses(arm, ran, pair):
    training = ran(arm)[0][-1]
    assert training.settings == settings_of(300, 16)
    assert same_rows(training.rows, pair.train.shuffle(seed=3).select(range(800)))
    student = build_student(pair.tokenizer, layers=2, width=96, seed=3)
    assert training.begins == weights_hash(student)


@pytest.mark.parametrize("arm", teacher_domain.STUDY.arms)
def test_who_teaches_is_what_the_arm_says(arm, ran, stranger):
    *before, training = ran(arm)[0]
    assert len(before) == (arm == CORRECTED)
    if ALPHA[arm] is None:
        assert training.kind == "HardLabelTrainer"
        return
    assert training.kind == "SoftLabelTrainer"
    assert training.options == PLAIN | {"alpha": ALPHA[arm]}
    assert (training.teacher == stranger) == (arm != CORRECTED)
    if arm == CORRECTED:
        assert training.teacher == weights_hash(before[0].trainer.model)


def test_the_teacher_is_corrected_on_the_rows_of_its_student(ran, stranger):
    correction, training = ran(CORRECTED)[0]
    assert correction.kind == "HardLabelTrainer"
    assert correction.begins == stranger
    assert same_rows(correction.rows, training.rows)
    steps, rows, seed, rate, *_ = correction.settings
    assert (steps, rows, seed, rate) == (150, 16, 3, 1e-3)


def test_the_row_names_the_nll_of_the_teacher_that_taught(ran):
    strange = {ran(arm)[1]["teacher_nll"] for arm in ALPHA if arm != CORRECTED}
    assert len(strange) == 1
    # After one step that counts already; the stranger is at sea.
    assert ran(CORRECTED)[1]["teacher_nll"] < strange.pop()


def test_no_gloss_is_in_two_parts(pair):
    whole = teacher_domain.load_pair()
    first = [f"{row['word']}: {row['gloss']}." for row in glosses().select(range(3))]
    start = pair.tokenizer.decode(whole.train[0]["input_ids"])
    assert start.startswith(first[0])
    train = {tuple(ids) for ids in whole.train["input_ids"]}
    held_out = [*whole.validation["input_ids"], *whole.test["input_ids"]]
    assert not train & {tuple(ids) for ids in held_out}
