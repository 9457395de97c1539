"""Who begins where, learns from whom and costs what in ``sums_from_bases``."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.models import RememberingTeacher, weights_hash
from distill_helpers.studies import shared_task
from distill_helpers.studies import sums_from_bases as study
from distill_helpers.studies.codistillation import AFTER, MIX, PEERS
from distill_helpers.studies.shared_task import worked
from distill_helpers.studies.side_by_side import models
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

LABELS, SOFT = "labels", "soft labels"
PAIRS = study.STUDY.pairs()
TOGETHER = {MIX: ("partner",), PEERS: ("partner",)}


@lru_cache
def base(shape, seed):
    """A base of one step, as good as any to see which one is taken."""
    return models.pretrained(shape, seed, 1)


@pytest.fixture(scope="module")
def ran():
    """One step of every training of an arm, and its row."""
    for number in range(3):  # now, since their training is not an arm's
        base((2, 96), number)
        base((4, 128), 1000 + number)
    task = shared_task.load_task()
    few = replace(
        task,
        remembering=RememberingTeacher(task.teacher.model),
        validation=task.validation.select(range(64)),
    )

    @lru_cache
    def run(arm, setting):
        with pytest.MonkeyPatch.context() as patch, watching() as trainings:
            patch.setattr(study, "_base", base)
            patch.setattr(study, "load_task", lambda: few)
            patch.setattr(study, "score", lambda *_: 50.0)
            patch.setattr(shared_task.Task, "validation_nll", lambda *_: 1.0)
            row = study.STUDY.run(run_of(arm, setting))
        return trainings, row

    return run


def begins(shape, seed):
    return weights_hash(base(shape, seed))


@pytest.mark.parametrize(("arm", "setting"), PAIRS)
def test_who_begins_where_and_learns_from_whom(arm, setting, ran):
    *before, last = ran(arm, setting)[0]
    # Seed 3 takes the first base of each size; its peer another one.
    student, teacher = begins((2, 96), 0), begins((4, 128), 1000)
    assert [one.begins for one in before] == ([teacher] if arm == AFTER else [])
    if arm in TOGETHER:
        other = begins((2, 96), 2) if arm == PEERS else teacher
        assert last.kind == "CoDistillationTrainer"
        assert last.begins == {"partner": other, "student": student}
        assert last.trainer.partners_of["student"] == ("partner",)
        assert bool(last.trainer.partners_of["partner"]) == (arm == PEERS)
        return
    assert last.begins == student
    taught = {
        SOFT: weights_hash(load_tiny_teacher("sums").model),
        AFTER: weights_hash(before[0].trainer.model) if before else None,
    }.get(arm)
    assert last.teacher == taught
    assert last.kind == ("SoftLabelTrainer" if taught else "HardLabelTrainer")
    if taught:
        assert last.options == PLAIN


def test_three_bases_take_turns():
    firsts = [study.begun_task("2000", seed).student for seed in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_base", base)
        found = [weights_hash(make(seed)) for seed, make in enumerate(firsts)]
    assert found[0] == found[3]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("arm", "setting"), PAIRS)
def test_rows_steps_and_recipe(arm, setting, ran):
    trainings, row = ran(arm, setting)
    count = int(setting.split(",")[0])
    problems = three_sums.problems(count, seed=3)
    rows = worked(problems, load_tiny_teacher("sums").tokenizer)
    steps = study.STEPS
    if "equal operations" in setting:
        paid = ran(MIX, "2000")[1]["tflops"]
        assert row["tflops"] == pytest.approx(paid, rel=0.01)
        steps = row["steps"]
        assert steps > 2 * study.STEPS
    assert row["steps"] == steps
    for training in trainings:
        assert same_rows(training.rows, rows)
        assert training.settings == settings_of(steps, 64, adam_beta2=0.99)


def test_what_an_arm_costs(ran):
    spent = {arm: ran(arm, "2000")[1]["tflops"] for arm in study.ARMS}
    assert spent[PEERS] == pytest.approx(2 * spent[LABELS])
    assert spent[LABELS] < spent[SOFT] < spent[MIX] < spent[AFTER]
    # The packaged teacher has the partner's shape, and only reads: a third of a step.
    growing = spent[MIX] - spent[LABELS]
    assert spent[SOFT] - spent[LABELS] == pytest.approx(growing / 3, rel=0.1)


def test_a_partner_s_score_is_there_where_there_is_one(ran):
    for arm in study.ARMS:
        row = ran(arm, "2000")[1]
        assert math.isnan(row["partner_exact_match"]) == (arm in (LABELS, SOFT))
        assert row["nll"] > 0
