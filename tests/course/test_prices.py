"""Bills: what they are made of, and when one is lower than another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distill_helpers.course import prices
from distill_helpers.course.prices import Bill, Project, bill, break_even
from distill_helpers.planning import DEVICES

PROJECT = Project()

# --- every factor, by numbers on paper ----------------------------------------------

# On an A100, 10¹⁶ operations take 10¹⁶ / (0.3 · 312·10¹²) = 106.83761 s, which are
# 0.029677113 h of 1.30 $.
UNIT = 0.0385802469
SMALL = Project(
    teacher_billions=10.0,
    student_billions=1.0,
    vocabulary=32_768,
    examples=500,
    tokens_per_example=2_000,  # 10⁶ tokens in all
    epochs=3,
    work_dollars=100.0,
    api_dollars=2.0,
    storage_dollars=0.05,
    device="A100",
    writing_share=0.25,  # what is written costs four times as much as what is read
)
PEOPLE = {"people": 100.0}
# Two operations for each of 10¹⁰ parameters and 10⁶ tokens: 2·10¹⁶; written: 4 times.
TEXT = {"teacher's text": 8 * UNIT}
# Six for each of 10⁹ parameters and 3·10⁶ tokens: 1.8·10¹⁶.
LEARNS = {"student learns": 1.8 * UNIT}
# Two for each of the teacher's parameters and 3·10⁶ tokens.
READS = {"teacher reads": 6 * UNIT}
ON_PAPER = {
    prices.BOUGHT: {},
    prices.SERVED: {},
    prices.SERVED_4_BITS: {},
    prices.READY_MADE: {},
    # 10⁶ tokens at 2 $.
    prices.API_TEXT: PEOPLE | {"teacher's text": 2.0} | LEARNS,
    prices.TEXT: PEOPLE | TEXT | LEARNS,
    prices.SOFT: PEOPLE | TEXT | READS | LEARNS,
    # Read once. A position: 8 ids of 15 bits and 24 more are 15 + 45 bytes; 8
    # probabilities in fp16 are 16, the entropy 4: 80 bytes, of 10⁶ 0.08 GB at 0.05 $.
    prices.STORED: PEOPLE
    | TEXT
    | {"teacher reads": 2 * UNIT, "storage": 0.004}
    | LEARNS,
    # The student writes 3·10⁶ tokens with 10⁹ parameters: 0.6·10¹⁶, 4 times.
    prices.OWN: PEOPLE | TEXT | READS | {"student writes": 2.4 * UNIT} | LEARNS,
    # Six operations for each of 10¹⁰ parameters and 3·10⁶ tokens: 18·10¹⁶.
    prices.TOGETHER: PEOPLE | {"teacher learns": 18 * UNIT} | LEARNS,
}
ANSWERS = {
    prices.BOUGHT: 0.004,  # 2,000 tokens at 2 $ for 10⁶
    # Two operations for each of 10¹⁰ parameters and 2,000 tokens: 0.004·10¹⁶, 4 times.
    prices.SERVED: 0.016 * UNIT,
    prices.SERVED_4_BITS: 0.004 * UNIT,  # a quarter of the bytes
}
# A tenth of the teacher's parameters.
SMALL_ANSWER = 0.0016 * UNIT


@pytest.mark.parametrize("way", prices.WAYS)
def test_bills_on_paper(way):
    found = bill(SMALL, way)
    assert dict(found.once) == pytest.approx(ON_PAPER[way], rel=1e-6)
    assert found.answer == pytest.approx(ANSWERS.get(way, SMALL_ANSWER), rel=1e-6)


# What five students of one teacher pay a fifth of: what is made once, for all.
SHARED = {
    prices.API_TEXT: {"teacher's text": 0.4},
    prices.TEXT: {"teacher's text": 1.6 * UNIT},
    prices.SOFT: {"teacher's text": 1.6 * UNIT},
    prices.STORED: {
        "teacher's text": 1.6 * UNIT,
        "teacher reads": 0.4 * UNIT,
        "storage": 0.0008,
    },
    prices.OWN: {"teacher's text": 1.6 * UNIT},
    prices.TOGETHER: {"teacher learns": 3.6 * UNIT},
}


@pytest.mark.parametrize("way", prices.WAYS)
def test_bills_of_five_students_on_paper(way):
    found = bill(replace(SMALL, students=5), way)
    by_hand = ON_PAPER[way] | SHARED.get(way, {})
    assert dict(found.once) == pytest.approx(by_hand, rel=1e-6)
    assert found.answer == pytest.approx(ANSWERS.get(way, SMALL_ANSWER), rel=1e-6)


@pytest.mark.parametrize(
    ("device", "dollars"),
    [
        # Seconds for 10¹⁸ operations at 0.3 of what the vendor states, dense and in
        # half precision; then hours of the price. A change of either changes the
        # prices of notebook 11 and must be meant.
        ("T4", 7.549858),  # 10¹⁸ / (0.3 · 65·10¹²) = 51,282.05 s = 14.24501 h of 0.53 $
        ("L4", 6.198347),  # 10¹⁸ / (0.3 · 121·10¹²) = 27,548.21 s = 7.652280 h, 0.81 $
        ("A100", 3.858025),  # 10¹⁸ / (0.3 · 312·10¹²) = 10,683.76 s = 2.967711 h, 1.3 $
        ("H100", 2.808673),  # 10¹⁸ / (0.3 · 989·10¹²) = 3,370.408 s = 0.936224 h, 3 $
    ],
)
def test_a_rented_hour_on_paper(device, dollars):
    project = replace(SMALL, device=device)
    assert project.compute(1e18) == pytest.approx(dollars, rel=1e-6)
    # At a quarter of the speed.
    assert project.compute(1e18, writing=True) == pytest.approx(4 * dollars, rel=1e-6)


def test_every_device_and_every_way_is_on_paper():
    assert set(ON_PAPER) == set(prices.WAYS)
    assert set(DEVICES) == {"T4", "L4", "A100", "H100"}


def test_the_example_on_paper():
    """The defaults, whose numbers the course prints: a student of 3 of 70 billion."""
    # An H100's dollars for 10¹⁸ operations, as above.
    h100 = 2.808673
    found = bill(PROJECT, prices.STORED)
    # 50,000 answers of 1,000 tokens are 5·10⁷ tokens; 3 epochs 1.5·10⁸.
    assert dict(found.once) == pytest.approx(
        {
            "people": 5_000.0,
            # 2 · 7·10¹⁰ · 5·10⁷ = 7·10¹⁸, written at half the speed.
            "teacher's text": 14 * h100,
            "teacher reads": 7 * h100,
            # 32 ids of 17 bits: 8 in 17 bytes, 24 in 51; 16 + 4 more: 88 bytes of
            # 5·10⁷ positions are 4.4 GB at 0.02 $.
            "storage": 0.088,
            # 6 · 3·10⁹ · 1.5·10⁸ = 2.7·10¹⁸.
            "student learns": 2.7 * h100,
        },
        rel=1e-6,
    )
    # 2 · 3·10⁹ · 1,000 = 6·10¹², written at half the speed.
    assert found.answer == pytest.approx(12e-6 * h100, rel=1e-6)
    assert bill(PROJECT, prices.BOUGHT).answer == pytest.approx(0.001)


def test_a_break_even_on_paper():
    """The API against a student of its text."""
    bought, made = (bill(SMALL, way) for way in (prices.BOUGHT, prices.API_TEXT))
    # Spent once: 100 + 2 + 1.8 · 0.03858025 = 102.06944 $; saved by an answer:
    # 0.004 − 0.0016 · 0.03858025 = 0.0039382716 $.
    assert break_even(bought, made) == pytest.approx(25_917.317, rel=1e-6)


# --- relations ----------------------------------------------------------------------


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
