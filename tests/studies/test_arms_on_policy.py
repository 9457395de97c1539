"""Whose text the arms of ``on_policy`` read, who judges it, and for how long."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache, partial
from types import SimpleNamespace

import pytest
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import on_policy, reasoning_traces, tiny
from distill_helpers.tasks import three_sums
from distill_helpers.trainers import DistillationTrainer, OnPolicyTrainer

WARM, TRACES = "warm start", "traces"
FIXED = ("soft labels", "soft labels, equal time")
NEW = "soft labels, new text"
# Arm: the divergence at each token, and the share of rows that a student writes.
OWN = {
    "own text, reverse KL": ("reverse_kl", 1.0),
    "own text, JSD": ("jsd", 1.0),
    "own text, forward KL": ("forward_kl", 1.0),
    "half own text, reverse KL": ("reverse_kl", 0.5),
}
FEW = 64
STEPS = dict.fromkeys(on_policy.STUDY.arms, 400) | {
    WARM: 1500,
    "soft labels, equal time": 1000,
}


@pytest.fixture(scope="module")
def ran():
    """Two steps of each training of an arm, with fewer questions, and its row.

    Also how often new answers would have been sampled to every question. A step takes
    a second, writing its text ten, and a look at the validation a thousand.
    """
    asked = []
    clock = [0.0]

    def taking(seconds, work):
        """Work that takes so long by a clock that nothing else moves."""

        def timed(*given, **options):
            clock[0] += seconds
            return work(*given, **options)

        return timed

    def wrong_judge(count):
        return taking(1000, reasoning_traces.wrong_judge(count))

    def sampled_rows(seed, questions, rounds):
        asked.append((seed, questions, rounds))
        return real_sampled(seed, questions, 2)

    real_sampled, real_start, real_on, real_exposure = (
        *(on_policy.sampled_rows, on_policy.warm_start, on_policy.go_on),
        on_policy.exposure,
    )

    @lru_cache
    def run(arm):
        asked.clear()
        real_start.cache_clear()
        few = {"questions": FEW, "validation": 2}
        with pytest.MonkeyPatch.context() as patch, watching(2) as trainings:
            patch.setattr(on_policy, "warm_start", partial(real_start, **few))
            patch.setattr(on_policy, "go_on", partial(real_on, **few))
            patch.setattr(on_policy, "exposure", partial(real_exposure, count=4))
            patch.setattr(on_policy, "sampled_rows", sampled_rows)
            patch.setattr(on_policy, "score", lambda *_: 0.0)
            patch.setattr(on_policy, "wrong_judge", wrong_judge)
            patch.setattr(tiny, "time", SimpleNamespace(process_time=lambda: clock[0]))
            for trainer, name, seconds in (
                (DistillationTrainer, "training_step", 1),
                (OnPolicyTrainer, "_write", 10),
            ):
                patch.setattr(trainer, name, taking(seconds, getattr(trainer, name)))
            row = on_policy.STUDY.run(run_of(arm, "1500"))
        real_start.cache_clear()
        return trainings, row, [*asked]

    return run


@pytest.fixture(scope="module")
def greedy(teacher):
    """The teacher's likeliest answers to the questions of seed 3."""
    problems = three_sums.problems(FEW, seed=5000 + 3)
    texts = reasoning_traces.generate(
        *teacher, three_sums.prompts(problems), max_new_tokens=26, batch_size=FEW
    )
    prompts = [problem.prompt for problem in problems]
    return reasoning_traces.mask_prompts(prompts, texts, teacher.tokenizer)


def test_every_arm_of_the_table_is_held_here():
    assert {WARM, TRACES, NEW, *FIXED, *OWN} == {*on_policy.STUDY.arms}
    assert on_policy.STUDY.settings == ("1500",)
    assert on_policy.QUESTIONS == 1500


@pytest.mark.parametrize("arm", on_policy.STUDY.arms)
def test_every_arm_goes_on_from_the_same_warm_start(arm, ran, teacher, greedy):
    warm, *others = ran(arm)[0]
    assert len(others) == (arm != WARM)
    assert warm.kind == "HardLabelTrainer"
    fresh = build_student(teacher.tokenizer, layers=2, width=96, seed=3)
    assert warm.begins == weights_hash(fresh)
    assert same_rows(warm.rows, greedy)
    # Its rate does not depend on the arm's, nor its weight decay.
    assert warm.settings == (1500, 64, 3, 2e-3, 0.1, 0.99)
    for training in others:
        assert training.begins == weights_hash(warm.trainer.model)
        assert training.begins != warm.begins
        expected = settings_of(STEPS[arm], 64, adam_beta2=0.99)
        assert training.settings == expected


@pytest.mark.parametrize("arm", [arm for arm in on_policy.STUDY.arms if arm != WARM])
def test_who_judges_which_text(arm, ran, teacher, greedy):
    trainings, _, asked = ran(arm)
    training = trainings[-1]
    if arm == TRACES:
        assert training.kind == "HardLabelTrainer"
    else:
        assert training.teacher == weights_hash(teacher.model)
    if arm in (*FIXED, NEW):
        assert training.kind == "SoftLabelTrainer"
        assert training.options == PLAIN
    if arm in OWN:
        assert training.kind == "OnPolicyTrainer"
        divergence, share = OWN[arm]
        assert training.options == PLAIN | {"divergence": divergence}
        assert training.trainer.on_policy_share == share
        assert training.trainer.sampling_temperature == 1.0
        assert training.trainer.max_new_tokens == three_sums.MAX_ANSWER_TOKENS
    assert same_rows(training.rows, greedy) == (arm != NEW)
    # Every reading of a question has an answer of its own: 400 steps of 64 rows.
    assert asked == ([(3, FEW, 400 * 64 // FEW)] if arm == NEW else [])


def test_new_text_is_sampled_anew_each_time(teacher):
    """Ten answers to each question: right or wrong, now and then another one."""
    rows = on_policy.sampled_rows(3, 8, 10)
    assert len(rows) == 80
    questions = [problem.prompt for problem in three_sums.problems(8, seed=5003)]
    read = [teacher.tokenizer.decode(ids) for ids in rows["input_ids"]]
    begins = [text.partition("=")[0] + "=" for text in read]
    assert Counter(begins) == dict.fromkeys(questions, 10)
    assert len(set(read)) > 8
    assert begins[:8] == begins[8:16]  # a question comes again when all have come


@pytest.mark.parametrize("arm", on_policy.STUDY.arms)
def test_seconds_are_those_of_the_last_training_with_its_writing(arm, ran):
    """By the clock of :func:`ran`; looking at the validation is not training."""
    assert ran(arm)[1]["training_seconds"] == 2 * 1 + 2 * 10 * (arm in OWN)
