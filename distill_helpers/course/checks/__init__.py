"""Checks for the exercises: they say what is wrong, and never give the answer.

Each takes a learner's function, calls it on a few inputs, and returns a
:class:`CheckResult`, which shows itself in a notebook. It never raises for a wrong
answer, prints nothing and leaves the random state as it was; a function that does not
come back is stopped after ``TIME_LIMIT`` seconds. With ``fallback=True`` it returns a
function to go on with, so that a lesson uses what its reader wrote.

An exercise is a value: a reference, inputs, and wrong answers by the name of their
mistake. To teach a check another mistake, add a wrong answer to its exercise, and its
two texts under the same name to ``words.toml``.

* ``words.toml`` holds every sentence, and ``words`` reads it;
* ``engine`` compares, and names the mistake;
* ``answers`` reads what a function returned;
* ``time_limits`` stops what does not come back;
* ``small_models`` is what a check trains;
* ``start_here`` (notebook 00) to ``capstone`` (13) hold the exercises of a notebook.

Used in every notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distill_helpers.course.checks import (
    bug_clinic,
    capstone,
    choosing_a_method,
    co_distillation,
    hard_labels,
    on_policy,
    other_tokenizers,
    reasoning_traces,
    self_distillation,
    soft_labels,
    start_here,
    storing_soft_labels,
    temperature,
    when_soft_labels_pay,
)
from distill_helpers.course.checks.answers import FAILED as FAILED
from distill_helpers.course.checks.answers import NOT_ATTEMPTED as NOT_ATTEMPTED
from distill_helpers.course.checks.answers import PASSED as PASSED
from distill_helpers.course.checks.engine import MIME_TYPE as MIME_TYPE
from distill_helpers.course.checks.engine import CheckResult as CheckResult
from distill_helpers.course.checks.engine import Exercise, judge
from distill_helpers.course.checks.words import say, words_of

# Seconds for all calls of one check together; they take a small part of one.
TIME_LIMIT = 5.0


def _check(exercise: Exercise) -> Callable[..., Any]:
    def check(fn: Any, *, fallback: bool = False) -> Any:
        result = judge(exercise, fn, TIME_LIMIT)
        if not fallback:
            return result
        from IPython.display import display

        if not result.passed:
            result = replace(result, message=f"{result.message} {say('fallback')}")
        display(result)
        return fn if result.passed else exercise.reference

    check.__name__ = check.__qualname__ = exercise.name
    check.__doc__ = words_of(exercise.name).help
    return check


bits_per_byte = _check(start_here.BITS_PER_BYTE)
top_choices = _check(start_here.TOP_CHOICES)

softmax = _check(temperature.SOFTMAX)
entropy = _check(temperature.ENTROPY)
forward_kl = _check(temperature.FORWARD_KL)
perplexity = _check(temperature.PERPLEXITY)

soft_label_loss = _check(soft_labels.SOFT_LABEL_LOSS)
sampled_labels = _check(soft_labels.SAMPLED_LABELS)

gain_interval = _check(when_soft_labels_pay.GAIN_INTERVAL)
fitted_temperature = _check(when_soft_labels_pay.FITTED_TEMPERATURE)

tail_bucket = _check(storing_soft_labels.TAIL_BUCKET)
sampled_estimate = _check(storing_soft_labels.SAMPLED_ESTIMATE)
own_scheme = _check(storing_soft_labels.OWN_SCHEME)
cache_shift = _check(storing_soft_labels.CACHE_SHIFT)

answer_labels = _check(hard_labels.ANSWER_LABELS)
shares_run = _check(hard_labels.SHARES_RUN)
second_opinion = _check(hard_labels.SECOND_OPINION)

exact_checker = _check(reasoning_traces.EXACT_CHECKER)
steps_hold = _check(reasoning_traces.STEPS_HOLD)
keep_right = _check(reasoning_traces.KEEP_RIGHT)
pass_at_k = _check(reasoning_traces.PASS_AT_K)

mix_weight = _check(co_distillation.MIX_WEIGHT)
learn_together = _check(co_distillation.LEARN_TOGETHER)
co_distil = _check(co_distillation.CO_DISTIL)
lone_steps = _check(co_distillation.LONE_STEPS)

on_policy_step = _check(on_policy.ON_POLICY_STEP)
drawn_reverse_kl = _check(on_policy.DRAWN_REVERSE_KL)
generalised_jsd = _check(on_policy.GENERALISED_JSD)
excess_kl = _check(on_policy.EXCESS_KL)

answer_places = _check(self_distillation.ANSWER_PLACES)
adapter_size = _check(self_distillation.ADAPTER_SIZE)
fake_round = _check(self_distillation.FAKE_ROUND)

align = _check(other_tokenizers.ALIGN)
chunk_log_p = _check(other_tokenizers.CHUNK_LOG_P)
project = _check(other_tokenizers.PROJECT)

steps_for = _check(choosing_a_method.STEPS_FOR)
frontier = _check(choosing_a_method.FRONTIER)

plateau = _check(bug_clinic.PLATEAU)
pieces_add_up = _check(bug_clinic.PIECES_ADD_UP)
padding_is_silent = _check(bug_clinic.PADDING_IS_SILENT)
cured_divergence = _check(bug_clinic.CURED_DIVERGENCE)
cured_axis = _check(bug_clinic.CURED_AXIS)

resume_step = _check(capstone.RESUME_STEP)
reaches = _check(capstone.REACHES)
break_even = _check(capstone.BREAK_EVEN)
