"""What the arms of ``soft_labels`` and ``longer_training`` learn, and for how long."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.models import (
    RememberingTeacher,
    build_student,
    parameter_count,
    weights_hash,
)
from distill_helpers.studies import longer_training, soft_labels
from distill_helpers.tasks.teachers import load_tiny_teacher

# Arm: weight of the soft labels and their temperature, named as in docs/results.md.
SOFT = {
    "soft T=1": (1.0, 1.0),
    "soft T=2": (1.0, 2.0),
    "soft T=4": (1.0, 4.0),
    "mix": (0.5, 1.0),
}
HARD = ("labels", "argmax", "sampled")
# Fewer sequences than any setting: the teacher has less to label.
FEW = "48"


@pytest.fixture(scope="module")
def ran(pair):
    """One step of a run, by study, arm and setting: its only training, its row."""

    @lru_cache
    def run(study, arm, setting):
        count, given = study is longer_training, pair
        if count:  # what a teacher remembers costs nothing
            given = replace(pair, teacher=RememberingTeacher(pair.teacher.teacher))
        with pytest.MonkeyPatch.context() as patch, watching(count=count) as trainings:
            patch.setattr(study, "load_pair", lambda: given)
            row = study.STUDY.run(run_of(arm, setting))
        (training,) = trainings
        return training, row

    return run


@pytest.fixture(scope="module")
def probabilities(pair):
    """What the teacher says of the first rows that seed 3 draws: rows, log p."""
    rows = pair.train.shuffle(seed=3).select(range(32))
    ids = torch.tensor(rows["input_ids"][:])
    logits = load_tiny_teacher("prose").model(input_ids=ids).logits[:, :-1]
    return ids, logits.log_softmax(-1)


def test_every_arm_of_the_table_is_held_here():
    assert {*SOFT, *HARD} == {*soft_labels.STUDY.arms}
    assert set(longer_training.STUDY.arms) == {"labels", "soft T=1"}


@pytest.mark.parametrize("arm", soft_labels.STUDY.arms)
def test_only_the_target_changes_from_arm_to_arm(arm, ran, pair):
    training, _ = ran(soft_labels, arm, FEW)
    assert training.settings == settings_of(300, 16)
    student = build_student(pair.tokenizer, layers=2, width=96, seed=3)
    assert training.begins == weights_hash(student)
    text = pair.train.shuffle(seed=3).select(range(int(FEW)))
    assert training.rows["input_ids"][:] == text["input_ids"][:]
    relabelled = "labels" in training.rows.column_names
    assert relabelled == (arm in ("argmax", "sampled"))


@pytest.mark.parametrize("arm", SOFT)
def test_soft_arms_have_the_weight_and_the_temperature_of_their_names(arm, ran):
    training, _ = ran(soft_labels, arm, FEW)
    assert training.kind == "SoftLabelTrainer"
    alpha, temperature = SOFT[arm]
    assert training.options == PLAIN | {"alpha": alpha, "temperature": temperature}
    assert training.teacher == weights_hash(load_tiny_teacher("prose").model)


@pytest.mark.parametrize("arm", HARD)
def test_hard_arms_have_no_teacher_in_training(arm, ran):
    training, _ = ran(soft_labels, arm, FEW)
    assert training.kind == "HardLabelTrainer"


def test_argmax_is_the_teacher_s_likeliest_token_everywhere(ran, probabilities):
    training, _ = ran(soft_labels, "argmax", FEW)
    _, log_p = probabilities
    labels = torch.tensor(training.rows["labels"][:32])[:, 1:]
    assert (labels == log_p.argmax(-1)).float().mean() > 0.99  # fp16 has ties


def test_sampled_labels_are_drawn_from_the_whole_distribution(ran, probabilities):
    training, _ = ran(soft_labels, "sampled", FEW)
    ids, log_p = probabilities
    labels = torch.tensor(training.rows["labels"][:32])[:, 1:]
    surprise = -log_p.gather(-1, labels.unsqueeze(-1)).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    assert surprise == pytest.approx(float(entropy), abs=0.2)
    # Neither its likeliest tokens nor the text's own.
    assert (labels == log_p.argmax(-1)).float().mean() < 0.8
    assert (labels == ids[:, 1:]).float().mean() < 0.8


@pytest.mark.parametrize(
    ("setting", "count"), [("800", 800), ("3000", 3000), ("all", 4800)]
)
def test_there_are_as_many_as_the_setting_says(setting, count, ran, pair):
    training, _ = ran(soft_labels, "labels", setting)
    assert same_rows(training.rows, pair.train.shuffle(seed=3).select(range(count)))
    assert training.settings == settings_of(300, 16)
    assert len({tuple(ids) for ids in training.rows["input_ids"]}) > 0.999 * count


@pytest.mark.parametrize("setting", longer_training.STUDY.settings)
@pytest.mark.parametrize("arm", longer_training.STUDY.arms)
def test_longer_runs_read_the_whole_corpus(arm, setting, ran, pair):
    training, _ = ran(longer_training, arm, setting)
    assert training.settings == settings_of(int(setting), 16)
    assert same_rows(training.rows, pair.train.shuffle(seed=3))
    student = build_student(pair.tokenizer, layers=2, width=96, seed=3)
    assert training.begins == weights_hash(student)
    if arm == "labels":
        assert training.kind == "HardLabelTrainer"
    else:
        assert training.kind == "SoftLabelTrainer"
        assert training.options == PLAIN
        assert training.teacher == weights_hash(load_tiny_teacher("prose").model)


@pytest.mark.parametrize("setting", longer_training.STUDY.settings)
@pytest.mark.parametrize("arm", longer_training.STUDY.arms)
def test_operations_of_a_longer_run_are_those_of_its_steps(arm, setting, ran):
    training, row = ran(longer_training, arm, setting)
    assert bool(row["teacher_tflops"]) == (arm != "labels")
    # The step itself was counted; it looked at 4 rows of validation, too.
    look = 4 * 64 * 2 * parameter_count(training.trainer.model) / 1e12
    counted = int(setting) * (training.tflops - look)
    whole = row["student_tflops"] + row["teacher_tflops"]
    assert whole == pytest.approx(counted, rel=0.03)
    # A step with soft labels costs the teacher's pass, more than the student's work.
    if arm != "labels":
        assert row["teacher_tflops"] > row["student_tflops"]
