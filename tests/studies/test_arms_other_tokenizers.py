"""What the arms of ``other_tokenizers`` learn, from whom, and what it costs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from watched_training import run_of, settings_of, watching

from distill_helpers.evaluation import evaluate, fit_temperature
from distill_helpers.machine import get_profile
from distill_helpers.models import (
    build_student,
    generate_batch,
    parameter_count,
    weights_hash,
)
from distill_helpers.studies import other_tokenizers as study
from distill_helpers.studies.tiny import tiny_arguments
from distill_helpers.tasks.teachers import load_teacher, load_tiny_teacher
from distill_helpers.trainers import SoftLabelTrainer

SMALLER, LARGER = "from 49,152 to 2,048", "from 2,048 to 8,192"
# Arm: the loss, the weight of the teacher, the temperature.
BRIDGES = {
    "ranks + text": ("sorted", 0.5, 1.0),
    "twins + text": ("mapped", 0.5, 1.0),
    "chunks": ("chunks", 1.0, 10.0),
    "chunks + text": ("chunks", 0.5, 10.0),
    "first pieces": ("pieces", 1.0, 1.0),
    "pieces + text": ("pieces", 0.5, 1.0),
    "shared beginnings": ("shared", 1.0, 1.0),
}
LABELS, WRITTEN = "text labels", "teacher's text"
BANK = 20
# SmolLM2 takes long to load.
SETTINGS = [LARGER, pytest.param(SMALLER, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def task_of():
    """A task of few rows, by setting; the tiny teacher's is ready at once."""
    return lru_cache(lambda setting: study.load_task.__wrapped__(setting, BANK, 4, 4))


@pytest.fixture(scope="module")
def ran(task_of):
    """One step of an arm: its only training, its row."""

    @lru_cache
    def run(arm, setting, count=False):
        with pytest.MonkeyPatch.context() as patch, watching(count=count) as trainings:
            patch.setattr(study, "load_task", task_of)
            row = study.STUDY.run(run_of(arm, setting))
        (training,) = trainings
        return training, row

    return run


def arms_of(setting):
    return [arm for arm, where in study.STUDY.pairs() if where == setting]


def test_every_arm_of_the_table_is_held_here():
    assert set(study.STUDY.arms) == {*BRIDGES, LABELS, WRITTEN}
    assert study.STUDY.settings == (SMALLER, LARGER)


# The teacher that has read ----------------------------------------------------------


def gradient(student):
    return torch.cat([one.grad.flatten() for one in student.parameters()])


def begins_otherwise(task, row):
    """How many chunks begin with tokens of unequal beginnings."""
    ours, theirs = task.alignment.beginnings
    return sum(
        int(ours[row.student_ids[chunk.student.start]])
        != int(theirs[row.teacher_ids[chunk.teacher.start]])
        for chunk in row.chunks
        if chunk.student.start and chunk.teacher.start
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("arm", BRIDGES)
def test_a_replayed_teacher_teaches_what_the_real_one_does(arm, setting, task_of):
    """Loss, its parts and gradient are those of the trainer that users call."""
    task = task_of(setting)
    kind, alpha, temperature = BRIDGES[arm]
    student = build_student(task.tokenizer, layers=2, width=96, seed=3)
    # The rarest case is among them: the text does not begin alike in both.
    some = sorted(task.bank, key=partial(begins_otherwise, task))[-4:]
    assert begins_otherwise(task, some[-1]) or setting == LARGER
    made = SoftLabelTrainer(
        student,
        teacher=task.teacher.model,
        tokenizer=task.tokenizer,
        teacher_tokenizer=task.teacher.tokenizer,
        **{"cross": kind, "alpha": alpha, "temperature": temperature, "fused": False},
        args=tiny_arguments(steps=1, batch_size=4, learning_rate=1e-3),
        train_dataset=Dataset.from_list(
            [{"input_ids": one.student_ids} for one in some]
        ),
    )
    replayed = study.replay(task.teacher, some, task.alignment, [kind])
    ours = study.bridge(task, arm, replayed)
    found = []
    for objective, collate, given in (
        (made.objective, made.data_collator, list(made.train_dataset)),
        (ours["objective"], ours["data_collator"], list(replayed[kind].rows)),
    ):
        student.zero_grad()
        parts = objective(student, collate(given), None)
        parts["loss"].backward()
        gradient = [one.grad.flatten() for one in student.parameters()]
        found.append((parts, torch.cat(gradient)))
    (full, whole), (parts, gradient) = found
    assert parts.keys() == full.keys()
    for name in full:
        assert parts[name].item() == pytest.approx(full[name].item(), rel=1e-5), name
    assert (gradient - whole).norm() < 1e-5 * whole.norm()
    assert whole.norm() > 1e-2


@pytest.mark.parametrize("kind", study.KINDS)
def test_rows_are_told_by_their_numbers(kind, task_of):
    task = task_of(LARGER)
    rows, replayed = task.read[kind].rows, task.read
    collate = study.bridge(task, "chunks", replayed)["data_collator"]

    def read(numbers):
        batch = collate([rows[number] for number in numbers])
        return replayed[kind].read({"input_ids": batch["teacher_input_ids"]})

    several = read([7, 2, 19]).softmax(-1)
    for place, number in enumerate([7, 2, 19]):
        chunks = len(rows[number]["teacher_input_ids"]) - 1
        alone = read([number])[0].softmax(-1)
        width = min(alone.shape[1], 2048)  # how many share a tail depends on a batch
        torch.testing.assert_close(
            several[place, :chunks, :width], alone[:chunks, :width]
        )
    assert not torch.equal(read([7])[0, :5], read([2])[0, :5])


# The arms ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_the_target_changes_from_arm_to_arm(setting, ran, task_of):
    task = task_of(setting)
    student = build_student(task.tokenizer, layers=2, width=96, seed=3)
    order = [list(one.student_ids) for one in task.bank]
    order = Dataset.from_dict({"input_ids": order}).shuffle(seed=3)["input_ids"][:]
    for arm in arms_of(setting):
        training, row = ran(arm, setting)
        assert training.settings == settings_of(study.STEPS, 16), arm
        assert training.begins == weights_hash(student), arm
        ids = training.rows["input_ids"][:]
        if arm != WRITTEN:
            assert ids == order, arm
        if arm in BRIDGES:
            kind, alpha, temperature = BRIDGES[arm]
            objective = training.trainer.objective
            assert training.kind == "DistillationTrainer"
            assert objective.teacher is task.read[kind]
            assert objective.kind == kind
            assert (objective.alpha, objective.temperature) == (alpha, temperature)
            assert objective.scale
        else:
            assert training.kind == "HardLabelTrainer"
            assert "labels" not in training.rows.column_names
        assert row["student_tflops"] == ran(LABELS, setting)[1]["student_tflops"]


def test_the_teachers_and_vocabularies_are_those_of_the_names(task_of):
    task = task_of(LARGER)
    tiny = load_tiny_teacher("prose")
    assert weights_hash(task.teacher.model) == weights_hash(tiny.model)
    assert (len(tiny.tokenizer), len(task.tokenizer)) == (2048, 8192)
    # One training text and one rule: the merges of the small one come first.
    small, large = (
        json.loads(one.backend_tokenizer.to_str())["model"]
        for one in (tiny.tokenizer, task.tokenizer)
    )
    assert large["merges"][: len(small["merges"])] == small["merges"]
    assert bool((task.alignment.twins >= 0).sum() == 2048)
    again = study.train_tokenizer(study.VOCABULARY)
    assert again.get_vocab() == task.tokenizer.get_vocab()


@pytest.mark.slow
def test_the_large_teacher_is_the_packaged_one(task_of):
    task = task_of(SMALLER)
    packaged = load_teacher(get_profile("cpu"))
    assert weights_hash(task.teacher.model) == weights_hash(packaged.model)
    assert len(task.teacher.tokenizer) == 49152
    assert (
        task.tokenizer.get_vocab() == load_tiny_teacher("prose").tokenizer.get_vocab()
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_teacher_writes_behind_the_beginning_of_every_row(setting, task_of):
    task = task_of(setting)
    written = task.written["input_ids"][:]
    assert len(written) == BANK
    begins = task.alignment.student
    for row, ids in zip(task.bank, written, strict=True):
        prompt = begins.spelled(row.student_ids[:16])
        assert begins.spelled(ids).startswith(prompt)
        assert not begins.spelled(row.student_ids).startswith(begins.spelled(ids))
    assert 60 < sum(map(len, written)) / BANK <= 64
    # Drawn from the teacher itself, row by row.
    prompt = task.alignment.teacher_row(task.bank[5].student_ids[:16])
    tokens = sum(len(row.teacher_ids) for row in task.bank) / BANK
    (one,) = generate_batch(
        *(*task.teacher, [prompt]), temperature=1.0, seeds=[5],
        max_new_tokens=math.ceil(tokens * 48 / 64),
        min_new_tokens=math.ceil(tokens * 48 / 64),
    )  # fmt: skip
    text = task.teacher.tokenizer.decode([*prompt, *one.ids])
    first = text[: len(text) // 2]  # rounding may part two draws, and not at once
    assert task.tokenizer.decode(written[5]).startswith(first)


def test_a_seed_draws_its_rows_of_the_bank():
    assert (study.BANK, study.ROWS, study.LENGTH, study.PROMPT) == (1000, 800, 64, 16)
    assert (study.VALIDATION_ROWS, study.TEST_ROWS) == (80, 200)


def test_no_more_rows_are_learned_than_a_seed_draws(task_of, monkeypatch):
    monkeypatch.setattr(study, "ROWS", 8)
    for arm in ("first pieces", WRITTEN, LABELS):
        chosen = {}
        for seed in (3, 4):
            with watching() as trainings:
                study.learn(task_of(LARGER), arm, seed=seed, learning_rate=1e-3)
            chosen[seed] = {tuple(ids) for ids in trainings[0].rows["input_ids"]}
            assert len(chosen[seed]) == 8
        assert chosen[3] != chosen[4]


# What it costs, and how it is judged ------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_reading_and_writing_are_counted(setting, ran, task_of):
    """Operations of the teacher on the bank, as counted while it reads and writes."""
    task = task_of(setting)
    fresh = replace(task)  # nothing is remembered
    with FlopCounterMode(display=False) as counter:
        study.replay(task.teacher, task.bank, task.alignment)
    # Rows of a batch are padded to the longest.
    read = counter.get_total_flops() / 1e12 / BANK * 800
    with FlopCounterMode(display=False) as counter:
        assert len(fresh.written) == BANK
    written = counter.get_total_flops() / 1e12 / BANK * 800
    for arm in arms_of(setting):
        cost = ran(arm, setting)[1]["teacher_tflops"]
        if arm == LABELS:
            assert cost == 0
        elif arm == WRITTEN:
            assert cost == pytest.approx(written, rel=0.3)
        else:
            assert cost == pytest.approx(read, rel=0.3)


def test_a_student_s_steps_are_counted(ran):
    training, row = ran(LABELS, LARGER, count=True)
    # It looked at 4 rows of validation, too.
    look = 4 * 64 * 2 * parameter_count(training.trainer.model) / 1e12
    counted = study.STEPS * (training.tflops - look)
    assert row["student_tflops"] == pytest.approx(counted, rel=0.03)


def test_bits_are_judged_as_they_are_and_with_one_temperature(ran, task_of):
    task = task_of(LARGER)
    training, row = ran("first pieces", LARGER)
    judge = partial(evaluate, training.trainer.model, task.test, task.tokenizer)
    assert row["bits_per_byte"] == pytest.approx(judge().bits_per_byte)
    fitted = judge(temperature=row["fitted_temperature"])
    assert row["bits_calibrated"] == pytest.approx(fitted.bits_per_byte)
    assert row["fitted_temperature"] == pytest.approx(
        fit_temperature(training.trainer.model, task.validation, task.tokenizer)
    )
    assert row["test_bytes"] == fitted.bytes
