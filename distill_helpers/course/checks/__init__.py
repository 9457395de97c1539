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
* ``start_here`` (notebook 00) to ``capstone`` (10) hold the exercises of a notebook.

Used in every notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

from distill_helpers.course.checks import (
    bug_clinic,
    capstone,
    choosing_a_method,
    co_distillation,
    hard_labels,
    on_policy,
    reasoning_traces,
    soft_labels,
    start_here,
    storing_soft_labels,
    temperature,
)
from distill_helpers.course.checks.answers import FAILED as FAILED
from distill_helpers.course.checks.answers import NOT_ATTEMPTED as NOT_ATTEMPTED
from distill_helpers.course.checks.answers import PASSED as PASSED
from distill_helpers.course.checks.engine import MIME_TYPE as MIME_TYPE
from distill_helpers.course.checks.engine import CheckResult, Exercise, judge
from distill_helpers.course.checks.words import say, words_of

# Seconds for all calls of one check together; they take a small part of one.
TIME_LIMIT = 5.0


class Check:
    """A check: called with a learner's function, it says what is wrong with it."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.__name__ = self.__qualname__ = exercise.name
        self.__doc__ = words_of(exercise.name).help

    @overload
    def __call__(self, fn: Any, *, fallback: Literal[False] = False) -> CheckResult: ...

    @overload
    def __call__(self, fn: Any, *, fallback: Literal[True]) -> Callable[..., Any]: ...

    def __call__(self, fn: Any, *, fallback: bool = False) -> Any:
        """Compare a function with the exercise.

        Args:
            fn: The learner's function.
            fallback: Show what came of it, and return the function to go on with:
                the learner's if it passes, the course's own if not.
        """
        result = judge(self.exercise, fn, TIME_LIMIT)
        if not fallback:
            return result
        from IPython.display import display

        if not result.passed:
            result = replace(result, message=f"{result.message} {say('fallback')}")
        display(result)
        return fn if result.passed else self.exercise.reference


bits_per_byte = Check(start_here.BITS_PER_BYTE)
top_choices = Check(start_here.TOP_CHOICES)

softmax = Check(temperature.SOFTMAX)
entropy = Check(temperature.ENTROPY)
forward_kl = Check(temperature.FORWARD_KL)
perplexity = Check(temperature.PERPLEXITY)

soft_label_loss = Check(soft_labels.SOFT_LABEL_LOSS)
sampled_labels = Check(soft_labels.SAMPLED_LABELS)

tail_bucket = Check(storing_soft_labels.TAIL_BUCKET)
sampled_estimate = Check(storing_soft_labels.SAMPLED_ESTIMATE)
cache_shift = Check(storing_soft_labels.CACHE_SHIFT)

answer_labels = Check(hard_labels.ANSWER_LABELS)
shares_run = Check(hard_labels.SHARES_RUN)
may_ask = Check(hard_labels.MAY_ASK)

exact_checker = Check(reasoning_traces.EXACT_CHECKER)
keep_right = Check(reasoning_traces.KEEP_RIGHT)
pass_at_k = Check(reasoning_traces.PASS_AT_K)

mix_weight = Check(co_distillation.MIX_WEIGHT)
learn_together = Check(co_distillation.LEARN_TOGETHER)
ensemble_nll = Check(co_distillation.ENSEMBLE_NLL)

drawn_reverse_kl = Check(on_policy.DRAWN_REVERSE_KL)
generalised_jsd = Check(on_policy.GENERALISED_JSD)
excess_kl = Check(on_policy.EXCESS_KL)

steps_for = Check(choosing_a_method.STEPS_FOR)
frontier = Check(choosing_a_method.FRONTIER)

plateau = Check(bug_clinic.PLATEAU)
pieces_add_up = Check(bug_clinic.PIECES_ADD_UP)
padding_is_silent = Check(bug_clinic.PADDING_IS_SILENT)

resume_step = Check(capstone.RESUME_STEP)
reaches = Check(capstone.REACHES)
break_even = Check(capstone.BREAK_EVEN)
