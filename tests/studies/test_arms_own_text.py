"""Where the arms of ``own_text`` begin; what they then do is ``on_policy``'s."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
from watched_training import run_of, watching

from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import on_policy, own_text

WARM, TRACES, REVERSE = "warm start", "traces", "own text, reverse KL"


@pytest.fixture(autouse=True)
def forget():
    own_text.start.cache_clear()
    yield
    own_text.start.cache_clear()


def starts(validations, monkeypatch):
    """Warm starts that are wrong so often, by their steps; and which were asked for."""
    asked = []

    def warm_start(seed, steps, judged=True):
        # Who is seldom right is not chosen by how often that is.
        assert judged == (steps != own_text.WEAK_STEPS)
        asked.append((seed, steps))
        return SimpleNamespace(validation=validations[steps], model=None)

    monkeypatch.setattr(own_text, "warm_start", warm_start)
    return asked


@pytest.mark.parametrize(
    ("wrong", "tried"),
    [
        ({1500: 0.6}, [1500]),
        ({1500: 0.61, 2500: 0.3}, [1500, 2500]),
        ({1500: 0.9, 2500: 0.7, 3500: 0.65}, [1500, 2500, 3500]),
    ],
)
def test_a_warm_start_goes_on_until_it_has_begun(wrong, tried, monkeypatch):
    asked = starts(wrong, monkeypatch)
    found = own_text.start("has begun", 3)
    assert asked == [(3, steps) for steps in tried]
    assert found.validation == wrong[tried[-1]]


def test_a_worse_writer_is_stopped_early(monkeypatch):
    asked = starts({250: 0.99}, monkeypatch)
    own_text.start("a worse writer", 3)
    assert asked == [(3, 250)]


def test_the_arms_are_those_of_on_policy():
    told = [arm for arm in on_policy.ARMS if "JSD" not in arm and "half" not in arm]
    assert list(own_text.STUDY.arms) == told
    weak = {arm for arm, where in own_text.STUDY.pairs() if where == "a worse writer"}
    assert weak == {WARM, TRACES, REVERSE}


@pytest.mark.parametrize("setting", own_text.STUDY.settings)
@pytest.mark.parametrize("arm", [WARM, TRACES, REVERSE])
def test_an_arm_goes_on_from_its_seed_s_start(arm, setting, teacher, monkeypatch):
    student = build_student(teacher.tokenizer, layers=2, width=96, seed=3)
    warm = SimpleNamespace(validation=0.25, model=student, seconds=1.0)
    measured = []

    def exposure(model, **options):
        measured.append((weights_hash(model), options))
        return on_policy.exposure(model, 2, **options)

    monkeypatch.setattr(
        own_text, "start", lambda *given: given == (setting, 3) and warm
    )
    monkeypatch.setattr(
        own_text, "go_on", partial(on_policy.go_on, questions=64, validation=2)
    )
    monkeypatch.setattr(own_text, "exposure", exposure)
    monkeypatch.setattr(on_policy, "score", lambda *_: 0.0)
    with watching(2) as trainings:
        row = own_text.STUDY.run(run_of(arm, setting))
    assert [one.begins for one in trainings] == (
        [] if arm == WARM else [weights_hash(student)]
    )
    kinds = {TRACES: ["HardLabelTrainer"], REVERSE: ["OnPolicyTrainer"]}
    assert [one.kind for one in trainings] == kinds.get(arm, [])
    assert row["begun_at"] == 0.75
    trained = trainings[-1].trainer.model if trainings else student
    assert measured == [(weights_hash(trained), {"texts": 4})]


def test_exposure_draws_several_texts_a_prompt(teacher, monkeypatch):
    seen = []

    def measure(*given, **options):
        seen.append(given[3])
        return SimpleNamespace()

    monkeypatch.setattr(on_policy, "measure_exposure", measure)
    on_policy.exposure(teacher.model, 3, texts=4)
    (prompts,) = seen
    assert len(prompts) == 12
    assert prompts[:3] * 4 == prompts
