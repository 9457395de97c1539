"""Who learns beside whom in ``codistillation`` and ``codistilled_sums``, at what cost.

The arms are trained for two steps with every operation counted: what a study says an
arm costs is what training it took.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.evaluation import Ensemble
from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import (
    codistillation,
    codistilled_few,
    codistilled_late,
    codistilled_sums,
)
from distill_helpers.studies.shared_task import worked
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

ALONE, TWO, AFTER = "alone", "two averaged", "teacher first"
SOFT, MIX, RAMP = "soft from the start", "mix from the start", "ramp"
HEAD_START, PEERS = "head start", "two peers"
CONSTANT, SILENT = "constant of the ramp's mean", "beside a silent teacher"
LATE = "late ramp"
# Arm: whom the student learns from while both grow; the weight of the partner's word
# at its highest, the share of the steps without it, the share over which it rises.
TOGETHER = {
    SOFT: ("partner", 1.0, 0.0, 0.0),
    MIX: ("partner", 0.5, 0.0, 0.0),
    RAMP: ("partner", 0.7, 0.25, 0.5),
    HEAD_START: ("partner", 0.5, 0.0, 0.0),
    PEERS: (None, 0.5, 0.25, 0.5),
    LATE: ("partner", 0.7, 0.5, 0.25),
    # The ramp's mean: nothing for a quarter, 0.35 on average for a half, then 0.7.
    CONSTANT: ("partner", 0.35, 0.0, 0.0),
    SILENT: ("partner", 0.0, 0.0, 0.0),
}
MANY, SAME_STEPS = "3000", "2000"
# With 800 rows as with 3,000, but for how many there are: one arm says so.
PROSE = [
    (codistillation, arm, setting)
    for arm, setting in codistillation.STUDY.pairs()
    if setting != "800" or arm == PEERS
]
PROSE += [
    (study, *pair)
    for study in (codistilled_few, codistilled_late)
    for pair in study.STUDY.pairs()
]
STEPS = {codistilled_late: 2000}
SUMS = [(codistilled_sums, *pair) for pair in codistilled_sums.STUDY.pairs()]
NAMES = [f"{study.STUDY.name}-{arm}-{setting}" for study, arm, setting in PROSE + SUMS]


@pytest.fixture(scope="module")
def ran(pair):
    """One step of every training of an arm, by study, arm and setting; and its row."""

    @lru_cache
    def run(study, arm, setting):
        with pytest.MonkeyPatch.context() as patch, watching() as trainings:
            if study is not codistilled_sums:
                patch.setattr(study, "load_pair", lambda: pair)
            else:
                real = study.sums_task
                patch.setattr(study, "score", lambda *_: 50.0)
                patch.setattr(
                    study,
                    "sums_task",
                    lambda *given: replace(real(*given), judge=lambda _: 1.0),
                )
            row = study.STUDY.run(run_of(arm, setting))
        return trainings, row

    return run


def model_of(study, shape, seed):
    kind = "sums" if study is codistilled_sums else "prose"
    tokenizer = load_tiny_teacher(kind).tokenizer
    layers, width = shape
    return weights_hash(build_student(tokenizer, layers=layers, width=width, seed=seed))


def shapes(study):
    """Hashes of a run's fresh student, its peer and its teacher."""
    large = (4, 128) if study is codistilled_sums else (4, 192)
    return (
        model_of(study, (2, 96), 3),
        model_of(study, (2, 96), 503),
        model_of(study, large, 1003),
    )


def test_every_arm_of_the_tables_is_held_here():
    every = {ALONE, TWO, AFTER, *TOGETHER}
    assert every - {LATE} == {*codistillation.STUDY.arms, *codistilled_few.STUDY.arms}
    assert every - {CONSTANT, SILENT, LATE} == {*codistillation.STUDY.arms}
    assert {ALONE, RAMP, LATE, AFTER} == {*codistilled_late.STUDY.arms}
    assert {ALONE, MIX, PEERS, AFTER} == {*codistilled_sums.STUDY.arms}


@pytest.mark.parametrize(("study", "arm", "setting"), PROSE + SUMS, ids=NAMES)
def test_who_begins_with_what_and_learns_from_whom(study, arm, setting, ran):
    *before, last = ran(study, arm, setting)[0]
    student, peer, teacher = shapes(study)
    first = {TWO: peer, AFTER: teacher, HEAD_START: teacher}
    assert [(one.kind, one.begins) for one in before] == (
        [("HardLabelTrainer", first[arm])] if arm in first else []
    )
    if arm in (ALONE, TWO):
        assert (last.kind, last.begins) == ("HardLabelTrainer", student)
    elif arm == AFTER:
        assert (last.kind, last.begins) == ("SoftLabelTrainer", student)
        assert last.options == PLAIN
        # Its own teacher of a moment ago, not the one that ships.
        assert last.teacher == weights_hash(before[0].trainer.model)
    else:
        assert last.kind == "CoDistillationTrainer"
        beside = peer if arm == PEERS else teacher
        if arm == HEAD_START:
            beside = weights_hash(before[0].trainer.model)
        assert last.begins == {"partner": beside, "student": student}


@pytest.mark.parametrize(("study", "arm", "setting"), PROSE + SUMS, ids=NAMES)
def test_how_much_a_partner_counts_and_when(study, arm, setting, ran):
    if arm not in TOGETHER:
        return
    trainer = ran(study, arm, setting)[0][-1].trainer
    teacher, alpha, warm_up, ramp = TOGETHER[arm]
    learns = {"student": ("partner",), "partner": ()}
    if teacher is None:
        learns["partner"] = ("student",)
    assert trainer.partners_of == learns
    assert trainer.exchange_every == 0
    assert trainer.mix == {name: PLAIN[name] for name in trainer.mix}
    assert not trainer.schedule.confidence
    for tenth in range(11):
        progress = tenth / 10
        rise = 1.0 if not ramp else min(1.0, max(0.0, (progress - warm_up) / ramp))
        weight = trainer.schedule.weight(progress)
        assert weight == pytest.approx(alpha * rise)


def test_the_constant_counts_as_much_as_the_ramp_over_the_whole_run():
    ramp, constant = (codistillation.SCHEDULES[arm].weight for arm in (RAMP, CONSTANT))
    steps = [step / 300 for step in range(300)]
    assert sum(map(constant, steps)) == pytest.approx(sum(map(ramp, steps)), rel=0.01)


@pytest.mark.parametrize(("study", "arm", "setting"), PROSE + SUMS, ids=NAMES)
def test_rows_and_steps_are_equal_or_paid_by_the_same_operations(
    study, arm, setting, ran, pair
):
    trainings, row = ran(study, arm, setting)
    count = int(setting.split(",")[0])
    if study is not codistilled_sums:
        steps, batch_size, beta, together = STEPS.get(study, 300), 16, 0.95, RAMP
        rows = pair.train.shuffle(seed=3).select(range(count))
    else:
        steps, batch_size, beta, together = 1000, 64, 0.99, MIX
        problems = three_sums.problems(count, seed=3)
        rows = worked(problems, load_tiny_teacher("sums").tokenizer)
    for training in trainings:
        assert same_rows(training.rows, rows)
    if "equal FLOPs" in setting:
        paid = ran(study, together, setting.split(",")[0])[1]["tflops"]
        assert row["tflops"] == pytest.approx(paid, rel=0.01)
        assert row["tflops"] <= paid * (1 + 1 / steps)
        steps = row["steps"]
    assert row["steps"] == steps
    taken = [training.settings for training in trainings]
    expected = settings_of(steps, batch_size, adam_beta2=beta)
    assert taken[-1] == expected
    ahead = settings_of(steps // 2, batch_size, adam_beta2=beta)
    assert taken[:-1] == {HEAD_START: [ahead], TWO: [expected], AFTER: [expected]}.get(
        arm, []
    )


@pytest.mark.parametrize(("study", "arm", "setting"), PROSE + SUMS, ids=NAMES)
def test_a_partner_s_numbers_are_there_where_there_is_one(study, arm, setting, ran):
    row = ran(study, arm, setting)[1]
    name = "partner_exact_match" if study is codistilled_sums else "partner_nll"
    assert math.isnan(row[name]) == (arm == ALONE)
    if study in (codistilled_few, codistilled_late) and arm != ALONE:
        assert row["gap"] == row["nll"] - row["partner_nll"]


def test_what_is_judged_is_the_mean_only_where_two_are_averaged(ran, monkeypatch, pair):
    judged = []
    real = codistillation.evaluate

    def evaluate(model, *rest, **options):
        judged.append(model)
        return real(model, *rest, **options)

    monkeypatch.setattr(codistillation, "evaluate", evaluate)
    monkeypatch.setattr(codistillation, "load_pair", lambda: pair)
    for arm in (TWO, PEERS):  # both have two students at the end
        judged.clear()
        with watching() as trainings:
            codistillation.STUDY.run(run_of(arm, MANY))
        best = judged[0]
        assert isinstance(best, Ensemble) == (arm == TWO)
        last = trainings[-1].trainer.model
        if arm == TWO:
            assert {*best.models} == {last, trainings[0].trainer.model}
        else:
            assert best is last.models["student"]


@pytest.fixture(scope="module")
def small_tasks(pair):
    """Tasks of two steps, by study, whose judge costs nothing."""
    prose = codistillation.prose_task(pair, "64", 3, steps=2)
    sums = codistilled_sums.sums_task("64", 3, steps=2)
    found = {
        "codistillation": replace(prose, judge=lambda _: 1.0, batch_size=4),
        "codistilled_sums": replace(sums, judge=lambda _: 1.0, batch_size=16),
    }
    return {
        name: (task, codistillation.count_cost(task)) for name, task in found.items()
    }


@pytest.mark.parametrize(
    ("name", "arm"),
    [("codistillation", arm) for arm in (*codistillation.STUDY.arms, SILENT)]
    + [("codistilled_sums", arm) for arm in (MIX, AFTER)],
)
def test_an_arm_costs_the_operations_that_it_takes(name, arm, small_tasks):
    task, cost = small_tasks[name]
    with watching(2, count=True) as trainings:
        codistillation.grow(task, arm, seed=3, learning_rate=1e-3)
    counted = sum(training.tflops for training in trainings)
    said = cost.of(arm, 2, task.head_start)
    # A fused loss multiplies by the heads once more, which is not counted.
    assert counted == pytest.approx(said, rel=0.1)


def test_the_studies_count_such_batches(ran):
    """One step of a student alone, times its steps."""
    for study, setting in ((codistillation, MANY), (codistilled_sums, SAME_STEPS)):
        alone = ran(study, ALONE, setting)[1]
        peers = ran(study, PEERS, setting)[1]
        assert peers["tflops"] == pytest.approx(2 * alone["tflops"])
        together = ran(study, MIX, setting)[1]
        after = ran(study, AFTER, setting)[1]
        assert alone["tflops"] < peers["tflops"] < together["tflops"] < after["tflops"]
