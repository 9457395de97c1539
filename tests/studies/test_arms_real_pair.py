"""What the two arms of ``real_pair`` learn, in the smallest of the real sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from watched_training import PLAIN, run_of, same_rows, watching

from distill_helpers.machine import get_profile
from distill_helpers.models import weights_hash
from distill_helpers.studies import real_pair

# The real teacher takes long to load.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair():
    return real_pair.load_pair(get_profile("smoke"), 2)


@pytest.fixture(scope="module")
def ran(pair):
    """One step of both arms: their only trainings, by arm, and their rows."""
    profile = get_profile("smoke")
    found = {}
    for arm in real_pair.STUDY.arms:
        with pytest.MonkeyPatch.context() as patch, watching() as trainings:
            patch.setattr(real_pair, "get_profile", lambda _: profile)
            patch.setattr(real_pair, "load_pair", lambda _: pair)
            row = real_pair.STUDY.run(run_of(arm, "20 steps"))
        (training,) = trainings
        found[arm] = training, row
    return found


def test_both_students_begin_alike_and_read_the_same_rows(ran, pair):
    labels, soft = (ran[arm][0] for arm in ("labels", "soft"))
    assert labels.begins == soft.begins
    assert labels.settings == soft.settings
    assert labels.settings[0] == 20
    assert labels.settings[2:5] == (3, 0.003, 0.07)
    chosen = pair.train.shuffle(seed=3).select(range(20))  # one row a step in smoke
    assert same_rows(labels.rows, chosen)
    assert same_rows(soft.rows, chosen)
    assert set(ran) == {*real_pair.STUDY.arms}


def test_one_learns_labels_and_one_the_whole_teacher_s_distribution(ran, pair):
    assert ran["labels"][0].kind == "HardLabelTrainer"
    soft = ran["soft"][0]
    assert soft.kind == "SoftLabelTrainer"
    assert soft.options == PLAIN
    assert soft.teacher == weights_hash(pair.teacher.model)
    assert soft.begins != soft.teacher


def test_the_yardsticks_measure_against_that_teacher(ran, pair):
    """A student that nobody trained is far from its teacher; the teacher is not."""
    itself = real_pair.judge_student(pair, pair.teacher.model)
    assert itself.agreement == 1
    for _, row in ran.values():
        assert row["kl_to_teacher"] > 0.5
        assert row["agreement"] < 100 * itself.agreement


def test_ten_middle_layers_go_and_four_rows_make_a_step(pair, monkeypatch):
    monkeypatch.setattr(real_pair, "prune_layers", lambda _, kept: kept)
    profile = replace(get_profile("smoke"), name="cpu")
    kept = real_pair.start_student(pair, profile)
    assert kept == [*range(10), *range(20, 30)]
    assert (real_pair.BATCH_SIZE, real_pair.STEPS, real_pair.LENGTH) == (4, 20, 128)
    assert real_pair.STUDY.settings == ("20 steps",)
