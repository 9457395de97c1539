"""Bills: what they are made of, and when one is lower than another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distill_helpers.course import prices
from distill_helpers.course.prices import Bill, Project, bill, break_even

PROJECT = Project()


def test_an_answer_costs_two_operations_per_parameter_and_token():
    gpu = PROJECT.gpu
    seconds = 2 * 70e9 * 1000 / (gpu.half_flops * gpu.utilisation * 0.5)
    by_hand = seconds / 3600 * gpu.dollars_per_hour
    assert bill(PROJECT, prices.SERVED).answer == pytest.approx(by_hand)
    assert bill(PROJECT, prices.BOUGHT).answer == pytest.approx(1000 / 1e6)


@pytest.mark.parametrize("way", prices.WAYS)
def test_a_bill_adds_up(way):
    found = bill(PROJECT, way)
    assert found.total(0) == pytest.approx(sum(found.once.values()))
    assert found.total(7) - found.total(5) == pytest.approx(2 * found.answer)
    assert all(cost > 0 for cost in found.once.values())
    made = "student" in way
    assert bool(found.once) is made
    assert ("people" in found.once) is made


def test_a_student_answers_for_its_share_of_the_teacher():
    served, small = (bill(PROJECT, way) for way in (prices.SERVED, prices.SOFT))
    assert small.answer / served.answer == pytest.approx(3 / 70)


def test_nothing_made_is_cheaper_than_the_same_found():
    found = bill(PROJECT, prices.READY_MADE)
    made = bill(PROJECT, prices.API_TEXT)
    assert found.answer == made.answer
    assert break_even(found, made) == math.inf


def test_live_soft_labels_pay_the_teacher_every_epoch_stored_ones_once():
    live, stored = (bill(PROJECT, way).once for way in (prices.SOFT, prices.STORED))
    ratio = live["teacher reads"] / stored["teacher reads"]
    assert ratio == pytest.approx(PROJECT.epochs)
    assert live["student learns"] == pytest.approx(stored["student learns"])


def test_students_share_what_is_made_once():
    alone = bill(PROJECT, prices.STORED).once
    shared = bill(replace(PROJECT, students=4), prices.STORED).once
    for part in ("teacher's text", "teacher reads", "storage"):
        assert shared[part] == pytest.approx(alone[part] / 4)
    for part in ("people", "student learns"):
        assert shared[part] == pytest.approx(alone[part])
    live = bill(replace(PROJECT, students=4), prices.SOFT).once
    assert live["teacher reads"] == bill(PROJECT, prices.SOFT).once["teacher reads"]


def test_break_even_is_where_the_totals_meet():
    bought, made = (bill(PROJECT, way) for way in (prices.BOUGHT, prices.API_TEXT))
    answers = break_even(bought, made)
    assert bought.total(answers) == pytest.approx(made.total(answers))
    assert bought.total(0.5 * answers) < made.total(0.5 * answers)
    assert made.total(2 * answers) < bought.total(2 * answers)


@pytest.mark.parametrize(
    ("first", "second", "answers"),
    [
        (Bill("a", {}, 1.0), Bill("b", {"x": 5.0}, 2.0), math.inf),
        (Bill("a", {}, 1.0), Bill("b", {"x": 5.0}, 1.0), math.inf),
        (Bill("a", {"x": 5.0}, 1.0), Bill("b", {}, 1.0), 0.0),
        (Bill("a", {"x": 5.0}, 2.0), Bill("b", {}, 1.0), 0.0),
        (Bill("a", {}, 3.0), Bill("b", {"x": 5.0, "y": 1.0}, 1.0), 3.0),
    ],
)
def test_break_even_at_the_edges(first, second, answers):
    assert break_even(first, second) == answers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "abacus"}, "device='abacus' has no price"),
        ({"examples": 0}, "examples=0 must be positive"),
        ({"api_dollars": -1.0}, "api_dollars=-1.0 must be 0 or more"),
        ({"student_billions": math.nan}, "student_billions=nan must be positive"),
        ({"work_dollars": math.inf}, "work_dollars=inf must be 0 or more"),
    ],
)
def test_impossible_projects_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Project(**changes)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="way='theft' is unknown"):
        bill(PROJECT, "theft")
