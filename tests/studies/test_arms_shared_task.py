"""What the two arms of ``shared_task`` learn, and what they cost."""

from __future__ import annotations

from functools import lru_cache

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.data import mask_prompts
from distill_helpers.models import RememberingTeacher, build_student, weights_hash
from distill_helpers.studies import shared_task
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher


@pytest.fixture(scope="module")
def ran():
    """One step of an arm: its only training, and its row."""
    task = shared_task.load_task()
    forgetful = shared_task.Task(
        task.teacher, RememberingTeacher(task.teacher.model), task.validation
    )

    @lru_cache
    def run(arm, setting):
        with pytest.MonkeyPatch.context() as patch, watching(count=True) as trainings:
            patch.setattr(shared_task, "load_task", lambda: forgetful)
            patch.setattr(shared_task.Task, "validation_nll", lambda *_: 1.0)
            patch.setattr(shared_task, "score", lambda *_: 0.0)
            row = shared_task.STUDY.run(run_of(arm, setting))
        (training,) = trainings
        return training, row

    return run


@pytest.mark.parametrize(
    ("arm", "setting"), [("labels", "2000"), ("soft", "2000"), ("labels", "8000")]
)
def test_both_arms_read_the_same_right_answers(arm, setting, ran):
    training, _ = ran(arm, setting)
    tokenizer = load_tiny_teacher("sums").tokenizer
    assert training.settings == settings_of(1200, 64)
    problems = three_sums.problems(int(setting), seed=3)
    right = mask_prompts(
        [problem.prompt for problem in problems],
        [problem.answer for problem in problems],
        tokenizer,
    )
    assert same_rows(training.rows, right)
    student = build_student(tokenizer, layers=2, width=96, seed=3)
    assert training.begins == weights_hash(student)


def test_one_learns_labels_and_one_the_teacher_s_distribution(ran):
    assert {"labels", "soft"} == {*shared_task.STUDY.arms}
    assert ran("labels", "2000")[0].kind == "HardLabelTrainer"
    training, _ = ran("soft", "2000")
    assert training.kind == "SoftLabelTrainer"
    assert training.options == PLAIN
    assert training.teacher == weights_hash(load_tiny_teacher("sums").model)


@pytest.mark.parametrize("arm", shared_task.STUDY.arms)
def test_operations_are_those_of_1200_such_steps(arm, ran):
    training, row = ran(arm, "2000")
    whole = row["student_tflops"] + row["teacher_tflops"]
    assert whole == pytest.approx(1200 * training.tflops, rel=0.02)
    student = ran("labels", "2000")[1]["student_tflops"]
    assert row["student_tflops"] == student
    assert bool(row["teacher_tflops"]) == (arm == "soft")


def test_other_problems_choose_the_checkpoint_than_are_learned_or_tested():
    task = shared_task.load_task()
    chosen = {tuple(ids) for ids in task.validation["input_ids"]}
    assert len(chosen) == 500
    test = shared_task.worked([*three_sums.test_problems()], task.teacher.tokenizer)
    assert not chosen & {tuple(ids) for ids in test["input_ids"]}
    # The teacher knows the task, a fresh student nothing: the judge sees it.
    student = build_student(task.teacher.tokenizer, layers=2, width=96)
    assert task.validation_nll(task.teacher.model) < 0.1
    assert task.validation_nll(student) > 2
