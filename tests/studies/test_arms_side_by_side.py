"""What every way of ``side_by_side`` learns from, from whom, how long, at what cost.

Each arm runs as in the study, for a few steps on 64 labels and 64 questions, with every
operation counted: what the study says it costs is what it took.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from torch.utils.flop_counter import FlopCounterMode
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import prune_layers, weights_hash
from distill_helpers.studies import side_by_side as study
from distill_helpers.studies.reasoning_traces import wrong_judge
from distill_helpers.studies.side_by_side import models, training, ways
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

FEW = 64
# Own text comes in the last quarter.
STEPS = dict.fromkeys(study.STUDENTS, 2) | {"own text": 4}
# Arm: its rows, its last trainer, whose distribution, the weight of that.
ARMS = {
    "labels": ("labelled", "HardLabelTrainer", None, None),
    "smoothed labels": ("labelled", "SoftLabelTrainer", "nobody", 0.1),
    "self-distillation": ("labelled", "SoftLabelTrainer", "itself", 0.5),
    "soft labels, labelled rows": ("labelled", "SoftLabelTrainer", "teacher", 1.0),
    "co-distillation": ("labelled", "CoDistillationTrainer", "partner", 0.5),
    "teacher's text": ("text", "HardLabelTrainer", None, None),
    "checked text": ("checked", "HardLabelTrainer", None, None),
    "labels and text": ("both", "HardLabelTrainer", None, None),
    "soft labels": ("text", "SoftLabelTrainer", "teacher", 1.0),
    "stored soft labels": ("text", "SoftLabelTrainer", "stored", 1.0),
    "labels and soft labels": ("both", "SoftLabelTrainer", "teacher", 0.5),
    "own text": ("text", "OnPolicyTrainer", "teacher", 1.0),
    "half the teacher, soft labels": ("text", "SoftLabelTrainer", "teacher", 1.0),
}


@pytest.fixture(scope="module")
def partner():
    return study.base_partner(steps=1)


@pytest.fixture(scope="module")
def task():
    """A small task, and the operations in which the teacher wrote its text."""
    with FlopCounterMode(display=False) as counter:
        whole = study.load_task(3, labelled=FEW, questions=FEW)
    right = [*range(len(whole.checked))]
    # As many as a batch takes, so that costs are those of whole batches.
    filled = whole.checked.select((right * 2)[:FEW])
    return replace(whole, checked=filled), counter.get_total_flops() / 1e12


@pytest.fixture(scope="module")
def ran(task, base, partner):
    """A whole arm in small: its trainings, its row, and what its training took."""
    taken = []

    def train_arm(*given, **options):
        with FlopCounterMode(display=False) as counter:
            taught = real(*given, **options)
        taken.append(counter.get_total_flops() / 1e12)
        return taught

    real = study.train_arm

    @lru_cache
    def run(arm):
        taken.clear()
        with pytest.MonkeyPatch.context() as patch, watching(STEPS[arm]) as trainings:
            patch.setattr(ways, "load_task", lambda _: task[0])
            patch.setattr(ways, "STEPS", STEPS[arm])
            patch.setattr(ways, "QUESTIONS", FEW)
            patch.setattr(models, "base_student", lambda: base)
            patch.setattr(models, "base_partner", lambda: partner)
            patch.setattr(models, "quality", lambda _: {})
            patch.setattr(training, "gradient_cosine", lambda *_, **__: 0.5)
            patch.setattr(training, "wrong_judge", lambda _: lambda _: 1.0)
            patch.setattr(training, "train_arm", train_arm)
            row = study.STUDY.run(run_of(arm, "equal steps"))
        (tflops,) = taken
        return trainings, row, tflops

    return run


def test_every_arm_of_the_table_is_held_here():
    assert set(ARMS) == {*study.STUDENTS}
    assert {*study.STUDENTS, *study.MODELS} == {*study.STUDY.arms}
    assert (study.LABELLED, study.QUESTIONS, study.STEPS) == (500, 2000, 600)


@pytest.mark.parametrize("arm", ARMS)
def test_rows_are_what_the_arm_says(arm, ran, task, teacher):
    last = ran(arm)[0][-1]
    rows = {name: getattr(task[0], name) for name in ("labelled", "text", "checked")}
    named = ARMS[arm][0]
    if named == "both":
        assert len(last.rows) == 2 * FEW
        assert same_rows(last.rows.select(range(FEW)), rows["labelled"])
        assert same_rows(last.rows.select(range(FEW, 2 * FEW)), rows["text"])
    else:
        assert same_rows(last.rows, rows[named])


def test_labels_are_right_and_text_is_the_teacher_s(task, teacher):
    def right(rows):
        texts = [teacher.tokenizer.decode(ids[:-1]) for ids in rows["input_ids"]]
        parts = [text.replace(" ", "").partition("=") for text in texts]
        return [
            three_sums.is_right(three_sums.Problem(*map(int, asked.split("+"))), answer)
            for asked, _, answer in parts
        ]

    assert all(right(task[0].labelled))
    assert 0.6 * FEW < sum(right(task[0].text)) < FEW
    assert all(right(task[0].checked))


@pytest.mark.parametrize("arm", ARMS)
def test_the_last_training_has_the_target_of_the_arm(arm, ran, base, partner, teacher):
    *before, last = ran(arm)[0]
    _, kind, who, alpha = ARMS[arm]
    assert last.kind == kind
    if kind == "CoDistillationTrainer":
        trainer = last.trainer
        assert trainer.partners_of == {"partner": (), "student": ("partner",)}
        assert {trainer.schedule.weight(tenth / 10) for tenth in range(11)} == {alpha}
        assert trainer.mix == {name: PLAIN[name] for name in trainer.mix}
        assert last.begins["partner"] == weights_hash(partner)
        return
    if who is None:
        return
    divergence = "reverse_kl" if arm == "own text" else "forward_kl"
    assert last.options == PLAIN | {"alpha": alpha, "divergence": divergence}
    if who == "stored":
        header = last.store.header
        assert (header["scheme"]["name"], header["scheme"]["top_k"]) == ("hybrid", 2)
        assert header["scheme"]["samples"] == 4
        assert header["teacher"]["weights"] == weights_hash(teacher.model)
        return
    known = {"teacher": weights_hash(teacher.model), "nobody": "Uniform"}
    if who == "itself":
        assert [one.kind for one in before] == ["HardLabelTrainer"]
        known["itself"] = weights_hash(before[0].trainer.model)
    assert last.teacher == known[who]


@pytest.mark.parametrize("arm", ARMS)
def test_every_student_begins_at_the_base_and_takes_its_steps(
    arm, ran, base, task, teacher
):
    *before, last = ran(arm)[0]
    steps, start = STEPS[arm], base
    begun = (before or [last])[0]
    if arm == "half the teacher, soft labels":
        start = prune_layers(teacher.model, (0, 1))
    begins = begun.begins
    if arm == "co-distillation":
        begins = begins["student"]
    assert begins == weights_hash(start)
    assert len(before) == (arm in ("self-distillation", "own text"))
    if arm == "self-distillation":
        # A generation of its own, then a second from the base.
        assert before[0].settings == settings_of(STEPS[arm], 64, adam_beta2=0.99)
        assert same_rows(before[0].rows, task[0].labelled)
        assert last.begins == weights_hash(base)
    if arm == "own text":
        # Three quarters of the steps on the teacher's text; it goes on from there.
        assert before[0].kind == "HardLabelTrainer"
        assert before[0].settings == settings_of(3, 64, adam_beta2=0.99)
        assert same_rows(before[0].rows, task[0].text)
        assert last.begins == weights_hash(before[0].trainer.model)
        assert last.trainer.on_policy_share == 1.0
        steps = 1
    assert last.settings == settings_of(steps, 64, adam_beta2=0.99)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_costs_the_operations_that_it_takes(arm, ran, task):
    _, row, taken = ran(arm)
    _, writing = task
    if ARMS[arm][0] != "labelled":
        taken += writing
    # Rows differ in length from those that are counted, by little.
    assert row["tflops"] == pytest.approx(taken, rel=0.03)
    assert row["steps"] == STEPS[arm]


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_stored_and_read_is_what_the_row_says(arm, ran, task):
    trainings, row, _ = ran(arm)
    rows = trainings[-1].rows
    lengths = [len(ids) for ids in rows["input_ids"]]
    read = STEPS[arm] * 64 * sum(lengths) / len(lengths)
    assert row["trained_tokens"] == pytest.approx(read, abs=1)
    learned = [label for labels in task[0].text["labels"] for label in labels]
    text = sum(label != IGNORE_INDEX for label in learned)
    expected = 0 if ARMS[arm][0] == "labelled" else text
    if arm == "stored soft labels":
        # Two exact tokens and four draws of sixteen, and an entropy, per position.
        positions = sum(lengths) - len(lengths)
        assert row["stored_bytes"] == pytest.approx(
            expected + positions * (1 + 2 + 2 * 2 + 4), rel=0.1
        )
    else:
        assert row["stored_bytes"] == expected


@pytest.mark.parametrize("arm", study.MODELS)
def test_finished_models_are_those_of_the_table(arm, base, teacher, monkeypatch):
    monkeypatch.setattr(models, "base_student", lambda: base)
    expected = {
        "teacher": teacher.model,
        "teacher in 4 bits": study.in_few_bits(teacher.model, 4),
        "half the teacher": prune_layers(teacher.model, (0, 1)),
        "base student": base,
    }
    found = models.finished_model(arm)
    assert weights_hash(found) == weights_hash(expected[arm])


def test_longer_arms_may_spend_what_live_soft_labels_do():
    """Said of the published sizes; that costs are real is said above."""
    costs = study.count_costs()
    budget = costs.of("soft labels", 600)
    longer = {"labels", "teacher's text", "labels and text", "stored soft labels"}
    assert set(study.LONGER) == longer
    for arm in longer:
        steps = study.steps_of(arm, "equal operations")
        assert steps > 600
        assert costs.of(arm, steps) == pytest.approx(budget, abs=costs.learning)
    assert study.STUDY.pairs()[-4:] == [
        (arm, "equal operations") for arm in study.ARMS if arm in longer
    ]


def test_checkpoints_are_chosen_by_the_share_of_wrong_results(base, task):
    """The score of a student is its own, by a judge that knows right from wrong."""
    taught = study.train_arm(
        *("labels", base, task[0]), seed=3, steps=1, learning_rate=1e-3, validation=4
    )
    assert taught.validation == wrong_judge(4)(taught.model) == 1
    finished = load_tiny_teacher("sums").model.requires_grad_(True)
    taught = study.train_arm(
        *("labels", finished, task[0]), seed=3, steps=1, learning_rate=0, validation=12
    )
    assert 0 < taught.validation == wrong_judge(12)(taught.model) < 1
