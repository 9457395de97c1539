"""The parts of the study that sets all techniques side by side."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from distill_helpers.data import collator_for
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import parameter_count
from distill_helpers.studies import side_by_side as study
from distill_helpers.studies import tiny_arguments
from distill_helpers.tasks import three_sums


@pytest.fixture(scope="module")
def task():
    return study.load_task(0, labelled=70, questions=90)


def test_smoothed_labels_have_the_gradient_of_label_smoothing(base, task, teacher):
    student = copy.deepcopy(base)
    rows = study.rows_of(study.SMOOTHED, task).select(range(8))
    trainer = study.trainer_of(study.SMOOTHED)(
        student,
        train_dataset=rows,
        tokenizer=teacher.tokenizer,
        args=tiny_arguments(steps=1, batch_size=64, learning_rate=1e-3),
    )
    batch = collator_for(teacher.tokenizer)([rows[place] for place in range(8)])
    items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    trainer.compute_loss(student, dict(batch), num_items_in_batch=items).backward()
    mine = study.flat_gradient(student)
    student.zero_grad()
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        label_smoothing=0.1,
    ).backward()
    torch.testing.assert_close(mine, study.flat_gradient(student), rtol=1e-3, atol=1e-6)


def test_fewer_bits_mean_fewer_levels_and_larger_errors(teacher):
    errors = []
    for bits in (2, 4, 8):
        rounded = study.in_few_bits(teacher.model, bits)
        name, weight = next(
            (name, weight)
            for name, weight in rounded.named_parameters()
            if weight.dim() == 2
        )
        groups = weight.view(-1, 32)
        assert max(len(group.unique()) for group in groups) <= 2**bits
        exact = dict(teacher.model.named_parameters())[name].view(-1, 32)
        torch.testing.assert_close(groups.amin(1), exact.amin(1))
        torch.testing.assert_close(groups.amax(1), exact.amax(1))
        errors.append(float((groups - exact).abs().max()))
    assert errors == sorted(errors, reverse=True)
    norms = [p for p in rounded.parameters() if p.dim() == 1]
    untouched = [p for p in teacher.model.parameters() if p.dim() == 1]
    assert all(map(torch.equal, norms, untouched))


def test_four_bits_take_five_with_what_their_groups_share(teacher):
    size = study.model_bytes(study.FOUR_BITS, teacher.model)
    assert size == parameter_count(teacher.model) * 5 / 8


def test_the_easy_sums_are_easy_and_not_of_the_test():
    easy = study.easy_problems(500, seed=3)
    assert max(max(vars(problem).values()) for problem in easy) <= study.EASY
    assert not set(easy) & set(three_sums.test_problems())


def test_every_way_reads_the_rows_that_it_may(task):
    right, wrong = set(), set()
    labelled = {tuple(ids) for ids in task.labelled["input_ids"]}
    text = {tuple(ids) for ids in task.text["input_ids"]}
    for arm in study.STUDENTS:
        rows = study.rows_of(arm, task)
        (right if len(rows) == 70 else wrong).add(arm)
        read = {tuple(ids) for ids in rows["input_ids"]}
        assert read <= labelled | text
    assert right == {
        *(study.LABELS, study.SMOOTHED, study.SELF, study.SOFT_FEW, study.TOGETHER)
    }
    assert len(task.checked) < len(task.text) == 90
    assert len(study.rows_of(study.BOTH, task)) == 160


@pytest.mark.parametrize("arm", study.STUDENTS)
def test_every_way_trains_and_leaves_the_base_alone(arm, base, task):
    before = copy.deepcopy(base.state_dict())
    partner = study.base_partner(steps=1) if arm == study.TOGETHER else None
    trained = study.train_arm(
        arm,
        base,
        task,
        seed=0,
        steps=24,  # several looks: the first step's learning rate is nearly 0
        learning_rate=1e-3,
        partner=partner,
        validation=4,
    )
    after = base.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(
        not torch.equal(before[name], weight)
        for name, weight in trained.model.state_dict().items()
    )
    assert trained.seconds > 0
    assert bool(trained.labelling_seconds) == (
        study.rows_of(arm, task) is not task.labelled
    )
    storing = trained.stored_bytes > study.text_bytes(task.text)
    assert storing == (arm == study.STORED)


def test_a_batch_agrees_perfectly_with_a_copy_of_itself(base, task):
    rows = task.labelled.select([0] * 128)
    alike = study.Task(rows, rows, rows, 0.0)
    assert study.gradient_cosine(study.LABELS, base, alike, seed=0) == pytest.approx(
        1.0, abs=1e-4
    )
    assert 0 < study.gradient_cosine(study.LABELS, base, task, seed=0) < 1


def test_operations_are_those_of_what_runs():
    costs = study.count_costs()
    assert costs.learning == pytest.approx(3 * costs.reading, rel=0.01)
    assert costs.growing == pytest.approx(3 * costs.teaching, rel=0.01)
    once = study.QUESTIONS / study.BATCH_SIZE * costs.teaching
    for arm in study.MODELS:
        assert costs.of(arm, 600) == 0
    assert costs.of(study.TEXT, 0) == pytest.approx(once)
    live, stored = costs.of(study.SOFT, 600), costs.of(study.STORED, 600)
    assert live - stored == pytest.approx(600 * costs.teaching - once)


@pytest.mark.parametrize("arm", study.LONGER)
def test_equal_operations_are_equal(arm):
    costs = study.count_costs()
    budget = costs.of(study.SOFT, study.STEPS)
    steps = study.steps_of(arm, study.EQUAL)
    assert costs.of(arm, steps) == pytest.approx(budget, rel=1e-3)
    assert study.steps_of(arm, study.SAME_STEPS) == study.STEPS


def test_the_teacher_agrees_with_itself(teacher):
    found = study.quality(teacher.model, 60)
    assert found["agreement"] == 1
    assert found["kl_to_teacher"] == pytest.approx(0, abs=1e-5)
