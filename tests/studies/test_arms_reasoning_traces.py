"""What the arms of ``reasoning_traces`` read of what the teacher wrote."""

from __future__ import annotations

from functools import lru_cache

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.data import mask_prompts
from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import reasoning_traces
from distill_helpers.tasks import three_sums

TEACHER, AGAIN = "the teacher", "the teacher, retrained"
TRACES, AS_MANY = "all traces", "all traces, as many"
ANSWERS, RIGHT, SOFT = "answers only", "right traces", "right traces, soft"
# Fewer questions than any setting has; all but the teacher's own arm are trained.
FEW = 96
TRAINED = (AGAIN, ANSWERS, TRACES, AS_MANY, RIGHT, SOFT)


@pytest.fixture(scope="module")
def ran():
    """One step of an arm: its trainings, its row, and who was scored, how."""
    real = reasoning_traces.share_right
    asked = []

    def share_right(model, tokenizer, chosen, *, results_only=False):
        asked.append((weights_hash(model), len(chosen), results_only))
        return real(model, tokenizer, chosen[:4], results_only=results_only)

    @lru_cache
    def run(arm):
        asked.clear()
        count = arm in (AGAIN, RIGHT)
        with pytest.MonkeyPatch.context() as patch, watching(count=count) as trainings:
            patch.setattr(reasoning_traces, "share_right", share_right)
            patch.setattr(reasoning_traces, "VALIDATION_SIZE", 4)
            row = reasoning_traces.STUDY.run(run_of(arm, str(FEW)))
        return trainings, row, [*asked]

    return run


@pytest.fixture(scope="module")
def traces(teacher):
    """What the teacher answers, written here anew: problem, text, right or not."""
    problems = three_sums.problems(FEW, seed=5000 + 3)
    texts = reasoning_traces.generate(
        *teacher, three_sums.prompts(problems), max_new_tokens=26, batch_size=FEW
    )
    found = [
        (problem, text, text.rpartition(";")[2] == str(problem.result))
        for problem, text in zip(problems, texts, strict=True)
    ]
    assert 0.6 < sum(right for *_, right in found) / FEW < 0.95
    return found


def rows_from(pairs, tokenizer):
    prompts = [problem.prompt for problem, _ in pairs]
    return mask_prompts(prompts, [text for _, text in pairs], tokenizer)


def test_every_arm_of_the_table_is_held_here():
    assert {TEACHER, *TRAINED} == {*reasoning_traces.STUDY.arms}


def test_arms_read_what_their_names_say(ran, traces, teacher):
    every = [(problem, text) for problem, text, _ in traces]
    right = [(problem, text) for problem, text, good in traces if good]
    results = [(problem, text.rpartition(";")[2]) for problem, text in every]
    expected = {TRACES: every, ANSWERS: results}
    expected |= dict.fromkeys((RIGHT, SOFT, AGAIN), right)
    for arm, pairs in expected.items():
        (training,), row, _ = ran(arm)
        assert same_rows(training.rows, rows_from(pairs, teacher.tokenizer)), arm
        assert row["rows"] == len(pairs)


def test_as_many_is_a_draw_from_all_of_them(ran, traces, teacher):
    """As many as are right, but right and wrong alike."""
    (training,), _, _ = ran(AS_MANY)
    every = rows_from([pair[:2] for pair in traces], teacher.tokenizer)
    good = rows_from([pair[:2] for pair in traces if pair[2]], teacher.tokenizer)
    right = {tuple(ids) for ids in good["input_ids"]}
    drawn = {tuple(ids) for ids in training.rows["input_ids"]}
    assert len(training.rows) == len(drawn) == len(right)
    assert drawn < {tuple(ids) for ids in every["input_ids"]}
    assert drawn - right


@pytest.mark.parametrize("arm", TRAINED)
def test_arms_learn_from_the_text_or_from_the_distribution(arm, ran, teacher):
    (training,), _, _ = ran(arm)
    if arm == SOFT:
        assert training.kind == "SoftLabelTrainer"
        assert training.options == PLAIN
        assert training.teacher == weights_hash(teacher.model)
    else:
        assert training.kind == "HardLabelTrainer"
    fresh = build_student(teacher.tokenizer, layers=2, width=96, seed=3)
    begins = teacher.model if arm == AGAIN else fresh
    assert training.begins == weights_hash(begins)


@pytest.mark.parametrize("arm", TRAINED)
def test_students_read_equally_many_tokens_and_the_teacher_computes_as_much(arm, ran):
    (training,), row, _ = ran(arm)
    equal = ran(TRACES)[1]["trained_tokens"]
    steps, batch_size = training.settings[:2]
    lengths = [len(ids) for ids in training.rows["input_ids"]]
    read = steps * batch_size * sum(lengths) / len(lengths)
    assert row["trained_tokens"] == round(read)
    expected = settings_of(steps, batch_size, adam_beta2=0.99)
    assert training.settings == expected
    if arm == AGAIN:
        ours, theirs = ran(RIGHT)[0][0], training
        looks = ours.tflops, theirs.tflops
        assert steps * looks[1] == pytest.approx(1200 * looks[0], rel=0.1)
        assert batch_size == 64
        assert steps < 1200 / 2
    else:
        assert steps == 1200
        assert (batch_size == 64) == (arm != ANSWERS)
        assert row["trained_tokens"] == pytest.approx(equal, rel=0.01)


def test_the_teacher_is_scored_as_it_is(ran, teacher):
    trainings, row, asked = ran(TEACHER)
    assert not trainings
    assert asked == [(weights_hash(teacher.model), 2000, False)]
    assert row["rows"] == row["trained_tokens"] == 0


@pytest.mark.parametrize("arm", TRAINED)
def test_only_students_of_results_may_write_no_steps(arm, ran):
    """Both where a checkpoint is chosen and where the test is scored."""
    (training,), _, asked = ran(arm)
    assert {results_only for *_, results_only in asked} == {arm == ANSWERS}
    model, count, _ = asked[-1]
    assert model == weights_hash(training.trainer.model)
    assert count == 2000


def test_the_judge_counts_wrong_results_on_problems_of_its_own(teacher):
    """It chooses every checkpoint of three studies: a constant would choose none."""
    problems = three_sums.problems(24, seed=777)
    texts = reasoning_traces.generate(
        *teacher, three_sums.prompts(problems), max_new_tokens=26, batch_size=24
    )
    wrong = [
        text.rpartition(";")[2] != str(problem.result)
        for problem, text in zip(problems, texts, strict=True)
    ]
    share = reasoning_traces.wrong_judge(24)(teacher.model)
    assert 0 < share < 1
    assert share == pytest.approx(sum(wrong) / 24)
    fresh = build_student(teacher.tokenizer, layers=2, width=96)
    assert reasoning_traces.wrong_judge(24)(fresh) == 1
