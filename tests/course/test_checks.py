"""Checks name the mistake, never refuse a correct function, and never raise."""

import contextlib
import inspect
import io
import itertools
import json
import math
import re
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernels import KERNEL_NAME, use_this_python
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from distill_helpers.course import checks
from distill_helpers.course.bugs import KNOWN_BUGS
from distill_helpers.course.checks.engine import judge
from distill_helpers.course.checks.soft_labels import loss_exercise, loss_probes
from distill_helpers.losses import hard_label_loss, soft_label_loss
from distill_helpers.trainers import MixSchedule

NO_LABEL = -100

# --- The loss: correct implementations in many styles. ---


def keep_and_targets(labels):
    targets = labels[:, 1:]
    return targets != NO_LABEL, targets


def style_rows(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    s, t = student[:, :-1][keep], teacher[:, :-1][keep].detach()
    log_s, log_t = (s / T).log_softmax(-1), (t / T).log_softmax(-1)
    kl = (log_t.exp() * (log_t - log_s)).sum(-1)
    ce = F.cross_entropy(s, targets[keep], reduction="none")
    return ((1 - alpha) * ce + alpha * T**2 * kl).sum() / keep.sum().clamp(min=1)


def style_batchmean(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    if not keep.any():
        return student.sum() * 0
    s, t = student[:, :-1][keep], teacher[:, :-1][keep].detach()
    kl = F.kl_div(
        F.log_softmax(s / T, dim=-1), F.softmax(t / T, dim=-1), reduction="batchmean"
    )
    return (1 - alpha) * F.cross_entropy(s, targets[keep]) + alpha * kl * T * T


def style_log_target(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    n = max(int(keep.sum()), 1)
    with torch.no_grad():
        log_t = F.log_softmax(teacher[:, :-1][keep] / T, dim=1)
    s = student[:, :-1][keep]
    soft = F.kl_div(
        F.log_softmax(s / T, dim=1), log_t, log_target=True, reduction="sum"
    )
    hard = F.nll_loss(s.log_softmax(1), targets[keep], reduction="sum")
    return alpha * T**2 * soft / n + (1 - alpha) * hard / n


def style_cross_minus_entropy(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    s, t = student[:, :-1][keep], teacher[:, :-1][keep].detach()
    p = (t / T).softmax(-1)
    cross = F.cross_entropy(s / T, p, reduction="sum")
    entropy = -torch.xlogy(p, p).sum()
    hard = F.cross_entropy(s, targets[keep], reduction="sum")
    n = keep.sum().clamp_min(1)
    return (1 - alpha) * hard / n + alpha * T**2 * (cross - entropy) / n


def style_loops(student, teacher, labels, T, alpha):
    total, count = student[0, 0, 0] * 0, 0
    for b in range(student.shape[0]):
        for i in range(student.shape[1] - 1):
            label = int(labels[b, i + 1])
            if label == NO_LABEL:
                continue
            s, t = student[b, i], teacher[b, i].detach()
            p, q = torch.softmax(t / T, 0), torch.softmax(s / T, 0)
            total = total + alpha * T**2 * torch.sum(p * torch.log(p / q))
            total = total - (1 - alpha) * torch.log_softmax(s, 0)[label]
            count += 1
    return total / max(count, 1)


def style_fill_first(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    s, t = student[:, :-1], teacher[:, :-1].detach()
    t = t.masked_fill(~keep.unsqueeze(-1), 0.0)
    kl = F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="none").sum(
        -1
    )
    ce = F.cross_entropy(
        s.transpose(1, 2), targets, ignore_index=NO_LABEL, reduction="none"
    )
    mixed = (1 - alpha) * ce + alpha * kl * T**2
    return (mixed * keep).sum() / keep.sum().clamp_min(1)


def style_distributions(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    if not keep.any():
        return (student * 0).mean()
    s, t = student[:, :-1][keep], teacher[:, :-1][keep].detach()
    Categorical = torch.distributions.Categorical
    kl = torch.distributions.kl_divergence(
        Categorical(logits=t / T), Categorical(logits=s / T)
    )
    ce = -Categorical(logits=s).log_prob(targets[keep])
    loss = (1 - alpha) * ce + alpha * T**2 * kl
    return loss.sum() / max(len(loss), 1)


def style_einsum(student, teacher, labels, T, alpha):
    keep, targets = keep_and_targets(labels)
    s, t = student[:, :-1][keep], teacher[:, :-1][keep].detach()
    log_s = s / T - torch.logsumexp(s / T, -1, keepdim=True)
    log_t = t / T - torch.logsumexp(t / T, -1, keepdim=True)
    kl = torch.einsum("nv,nv->", log_t.exp(), log_t - log_s)
    picked = s.gather(1, targets[keep].unsqueeze(1)).squeeze(1)
    ce = (torch.logsumexp(s, 1) - picked).sum()
    return torch.lerp(ce, kl * T**2, alpha) / keep.sum().clamp_min(1)


def style_index(student, teacher, labels, T, alpha):
    shifted = labels.new_full(labels.shape, NO_LABEL)
    shifted[:, :-1] = labels[:, 1:]
    index = (shifted.reshape(-1) != NO_LABEL).nonzero().squeeze(1)
    vocabulary = student.size(-1)
    s = student.reshape(-1, vocabulary)[index]
    t = teacher.reshape(-1, vocabulary)[index].detach()
    n = max(index.numel(), 1)
    probs = torch.exp(s / T - (s / T).max(-1, keepdim=True).values)
    probs = probs / probs.sum(-1, keepdim=True)
    p = (t / T).softmax(-1)
    kl = (p * (p.log() - probs.log())).sum()
    ce = F.cross_entropy(s, shifted.reshape(-1)[index], reduction="sum")
    return (1 - alpha) * (ce / n) + alpha * (T**2 * kl / n)


def style_per_sequence(student, teacher, labels, T, alpha):
    parts, count = [], 0
    for s, t, y in zip(student, teacher, labels, strict=True):
        rows = [i for i in range(len(y) - 1) if y[i + 1] != NO_LABEL]
        p = F.softmax(t[rows].detach() / T, -1)
        kl = (p * (p.log() - F.log_softmax(s[rows] / T, -1))).sum()
        ce = F.cross_entropy(s[rows], y[1:][rows], reduction="sum") if rows else 0.0
        parts.append((1 - alpha) * ce + alpha * T**2 * kl)
        count += len(rows)
    return torch.stack(parts).sum() / (count or 1)


STYLES = [
    value for name, value in sorted(globals().items()) if name.startswith("style_")
]


def at_dtype(style, dtype):
    def fn(student, teacher, labels, T, alpha):
        return style(student.to(dtype), teacher.to(dtype), labels, T, alpha)

    return fn


SHAPES = [(3, 8, 12), (2, 5, 4), (5, 9, 33), (4, 16, 100), (2, 3, 7)]


def test_two_hundred_correct_functions_pass():
    count = 0
    for shape_number, shape in enumerate(SHAPES):
        for input_dtype in (torch.float32, torch.float64):
            exercise = loss_exercise(loss_probes(shape_number, *shape, input_dtype))
            for style in STYLES:
                for dtype in (torch.float32, torch.float64):
                    result = judge(exercise, at_dtype(style, dtype))
                    assert result.passed, (style.__name__, shape, dtype, str(result))
                    count += 1
    assert count >= 200


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_every_style_passes_the_public_check(style):
    result = checks.soft_label_loss(style)
    assert (result.status, result.bug) == ("passed", None)


# --- The loss: mistakes. ---


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        pytest.param(bug.name, mutant, id=f"{bug.name}-{number}")
        for bug in KNOWN_BUGS
        for number, mutant in enumerate(bug.mutants)
    ],
)
def test_every_mutant_is_named(name, mutant):
    result = checks.soft_label_loss(mutant)
    assert result.status == "failed"
    assert result.bug == name
    bug = next(bug for bug in KNOWN_BUGS if bug.name == name)
    assert bug.title in result.message
    assert bug.taught_in in result.message
    assert bug.remedy not in result.message


# The loss's rows in the list of fingerprints that the course teaches, in its order.
FINGERPRINTS = """t2_missing mean_reduction batchmean not_log_probabilities
log_target_missing wrong_dimension one_sided_temperature soft_cross_entropy reversed_kl
padding_counted mask_not_shifted labels_not_shifted temperature_on_hard teacher_dropout
teacher_attached student_detached mean_of_means zero_over_zero mask_after_exp
top_k_renormalised off_by_one_cache padded_vocabulary different_ids alpha_on_both
swapped teacher_against_itself half_by_accident clamped"""


def test_every_fingerprint_has_a_mutant():
    tested = {bug.name for bug in KNOWN_BUGS if bug.mutants}
    assert set(FINGERPRINTS.split()) <= tested


def test_a_second_mistake_at_the_edges_does_not_hide_the_first():
    # T² is missing, the mask comes after the softmax, 0/0, the teacher is attached.
    def fn(student, teacher, labels, T, alpha):
        keep, targets = keep_and_targets(labels)
        s, t = student[:, :-1], teacher[:, :-1]
        kl = F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="none")
        soft = (kl.sum(-1) * keep).sum() / keep.sum()
        hard = F.cross_entropy(s.flatten(0, 1), targets.flatten())
        return (1 - alpha) * hard + alpha * soft

    assert checks.soft_label_loss(fn).bug == "t2_missing"


def test_the_edges_are_named_when_the_rest_is_right():
    def fn(student, teacher, labels, T, alpha):
        keep, _ = keep_and_targets(labels)
        if not keep.any():
            return student.sum() * math.nan
        return style_rows(student, teacher, labels, T, alpha)

    assert checks.soft_label_loss(fn).bug == "zero_over_zero"


def mistakes_at_once():
    """Pairs of mistakes: T² missing or too much of it, with something else wrong."""
    others = ("reversed_kl", "temperature_on_hard", "mean_reduction", "alpha_on_both")
    for name in others:
        mutant = next(bug for bug in KNOWN_BUGS if bug.name == name).mutants[0]

        def twice(s, t, y, T, alpha, mutant=mutant):
            return 3 * mutant(s, t, y, T, alpha)

        def shifted(s, t, y, T, alpha, mutant=mutant):
            return mutant(s.roll(1, 1), t.roll(1, 1), y, T, alpha)

        yield pytest.param(twice, id=f"{name}-tripled")
        yield pytest.param(shifted, id=f"{name}-shifted")


@pytest.mark.parametrize("fn", list(mistakes_at_once()))
def test_two_mistakes_are_still_wrong(fn):
    result = checks.soft_label_loss(fn)
    assert result.status == "failed"
    assert result.bug is None
    assert "may be more than one" in result.message


def test_hints_when_no_mistake_fits():
    def fn(student, teacher, labels, T, alpha):
        right = style_rows(student, teacher, labels, T, 0.0)
        return (1 - alpha) * right + alpha * (student[:, :-1] ** 2).mean() * T

    message = checks.soft_label_loss(fn).message
    assert "The hard term is right by itself" in message
    assert "the soft term is not" in message.lower()
    assert "times what it should be" in message
    assert "should be 0" in message
    assert "changes with the logits at ignored positions" in message

    def tripled_above_one(student, teacher, labels, T, alpha):
        factor = 1 if T == 1 else 3
        hard = style_rows(student, teacher, labels, T, 0.0)
        soft = style_rows(student, teacher, labels, T, 1.0)
        return (1 - alpha) * hard + alpha * factor * soft

    message = checks.soft_label_loss(tripled_above_one).message
    assert "look at the temperature" in message
    assert "value is 3 times and its gradient 3 times" in message

    def mixed_oddly(student, teacher, labels, T, alpha):
        hard = style_rows(student, teacher, labels, T, 0.0)
        soft = style_rows(student, teacher, labels, T, 1.0)
        return (1 - alpha**2) * hard + alpha**2 * soft

    assert "how they are mixed" in checks.soft_label_loss(mixed_oddly).message


def test_zero_without_a_graph():
    def fn(student, teacher, labels, T, alpha):
        keep, _ = keep_and_targets(labels)
        if not keep.any():
            return torch.tensor(0.0)
        return style_rows(student, teacher, labels, T, alpha)

    result = checks.soft_label_loss(fn)
    assert result.status == "failed"
    assert "when every label is −100" in result.message
    assert "one with a gradient (possibly zero), came one without" in result.message
    assert "Everywhere else" in result.message


@pytest.mark.parametrize(
    ("change", "bug", "words"),
    [
        (lambda loss: loss.item(), "student_detached", "no gradient"),
        (lambda loss: loss.detach(), "student_detached", "no gradient"),
        (lambda loss: loss.detach().numpy(), "student_detached", "no gradient"),
        (lambda loss: torch.tensor(loss.item()), "student_detached", "no gradient"),
        (lambda loss: loss.reshape(1), None, "the shape [1]"),
        (lambda loss: loss.expand(3, 7), None, "the shape [3, 7]"),
        (lambda loss: (loss, loss), None, "type tuple"),
        (lambda loss: {"loss": loss}, None, "type dict"),
        (lambda loss: "0.3", None, "type str"),
        (lambda loss: loss * math.nan, "log_target_missing", "came nan"),
    ],
)
def test_wrong_results_are_put_into_words(change, bug, words):
    result = checks.soft_label_loss(lambda *x: change(style_rows(*x)))
    assert result.status == "failed"
    assert result.bug == bug
    assert words in result.message


def test_record_with_a_loss():
    from distill_helpers import losses

    result = checks.soft_label_loss(
        lambda s, t, y, T, a: losses.soft_label_loss(s, t, y, temperature=T, alpha=a)
    )
    assert result.status == "failed"
    assert "the loss alone" in result.message


# --- Functions that misbehave. ---


def raises(error):
    def fn(*_):
        raise error

    return fn


@pytest.mark.parametrize(
    "fn",
    [
        None,
        ...,
        lambda *_: None,
        lambda *_: ...,
        raises(NotImplementedError),
        lambda *_: ... * 2,
        lambda *_: torch.softmax(..., -1),
        lambda *_: (...).sum(),
    ],
)
@pytest.mark.parametrize("check", [checks.soft_label_loss, checks.softmax])
def test_not_attempted(check, fn):
    result = check(fn)
    assert result.status == "not attempted"
    assert not result.passed
    assert result.bug is None
    assert "not attempted yet" in result.message


@pytest.mark.parametrize(
    "error", [ValueError("<b>x</b>"), KeyError(3), RecursionError()]
)
def test_an_exception_is_put_into_words(error):
    result = checks.soft_label_loss(raises(error))
    assert result.status == "failed"
    assert type(error).__name__ in result.message
    assert "at T = 1, α = 1" in result.message


def test_wrong_signature_and_what_is_no_function():
    assert "TypeError" in checks.soft_label_loss(lambda x: x).message
    result = checks.soft_label_loss(torch.ones(3))
    assert result.status == "failed"
    assert "the function itself" in result.message


@pytest.mark.parametrize("argument", [1, 2, 3])
def test_changing_an_argument_in_place(argument):
    def fn(student, teacher, labels, T, alpha):
        loss = style_rows(student, teacher, labels, T, alpha)
        changed = (student, teacher, labels)[argument - 1]
        with torch.no_grad():
            changed[0, 0] += 1
        return loss

    result = checks.soft_label_loss(fn)
    assert result.status == "failed"
    assert result.bug == "changes_inputs"
    assert f"argument number {argument} in place" in result.message


def test_dividing_the_logits_in_place():
    def fn(logits, temperature):
        logits /= temperature
        return logits.softmax(-1)

    assert checks.softmax(fn).bug == "changes_inputs"


def test_calling_backward_oneself():
    def fn(*inputs):
        loss = style_rows(*inputs)
        loss.backward()
        return loss

    result = checks.soft_label_loss(fn)
    assert result.status == "failed"
    assert "cannot be computed" in result.message


def test_printing_is_caught_and_reported():
    def fn(*inputs):
        print("shape", tuple(inputs[0].shape))
        print("as a progress bar does", file=sys.stderr)
        return style_rows(*inputs)

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        result = checks.soft_label_loss(fn)
    assert out.getvalue() == ""
    assert result.passed
    assert "shape (3, 8, 12)" in result.message


def test_warnings_stay_inside():
    # kl_div warns about its default reduction; warnings are errors in these tests.
    def fn(student, teacher, labels, T, alpha):
        return F.kl_div(student.log_softmax(-1), teacher.softmax(-1))

    assert checks.soft_label_loss(fn).status == "failed"


def test_global_state_is_left_alone():
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def fn(*inputs):
        torch.manual_seed(1)
        return style_rows(*inputs) + torch.rand(())

    with torch.no_grad():
        checks.soft_label_loss(fn)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_works_without_grad_mode():
    with torch.no_grad():
        assert checks.soft_label_loss(style_rows).passed


def test_takes_less_than_a_second():
    def odd(student, teacher, labels, T, alpha):
        return (student.softmax(1) * teacher).sum() * T * alpha

    checks.soft_label_loss(odd)
    for fn in (odd, style_rows):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            checks.soft_label_loss(fn)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 1


# --- Functions that do not come back. ---


@pytest.fixture
def little_time(monkeypatch):
    monkeypatch.setattr(checks, "TIME_LIMIT", 0.3)


def busy(*_):
    while True:
        pass


def asleep(*_):
    time.sleep(60)


def swallows_exceptions(*_):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def swallows_everything(*_):
    while True:
        try:
            sum(range(1000))
        except BaseException:
            continue


def prints_for_ever(*_):
    while True:
        print("still at it")


def asks(*_):
    return threading.Event().wait()


HANGING = [busy, asleep, swallows_exceptions, prints_for_ever, asks]


@pytest.mark.parametrize(
    "fn", [*HANGING, swallows_everything], ids=lambda fn: fn.__name__
)
@pytest.mark.parametrize("check", [checks.soft_label_loss, checks.pass_at_k])
def test_a_function_that_hangs_is_stopped(check, fn, little_time):
    start = time.monotonic()
    result = check(fn)
    assert time.monotonic() - start < 10
    assert (result.status, result.bug) == ("failed", "out_of_time")
    assert "did not return within 0.3 s" in result.message
    assert "Likely mistake: a loop" in result.message
    assert "\n" not in str(result)


def test_the_line_that_hangs_is_named(little_time):
    assert "It was in line" in checks.softmax(asleep).message
    assert checks.softmax(asleep).message.count("time.sleep(60)") == 1


@pytest.mark.parametrize("fn", HANGING, ids=lambda fn: fn.__name__)
def test_outside_of_the_main_thread_as_well(fn, little_time):
    # Here, and on Windows, there is no alarm.
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(checks.perplexity, fn).result(timeout=30)
        assert result.bug == "out_of_time"


def test_outside_of_the_main_thread_right_is_right():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(checks.soft_label_loss, style_rows).result(timeout=30).passed
        result = pool.submit(checks.softmax, raises(ValueError("x"))).result(timeout=30)
        assert "came ValueError: x" in result.message


def test_the_limit_holds_for_all_calls_together(little_time):
    def slow(z, T):
        time.sleep(0.2)
        return torch.softmax(z / T, -1)

    assert checks.softmax(slow).bug == "out_of_time"


def test_alarms_of_others_go_on(little_time):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.6)
    try:
        start = time.monotonic()
        assert checks.softmax(busy).bug == "out_of_time"
        while not rung and time.monotonic() < start + 10:
            time.sleep(0.01)
        assert rung[0] - start >= 0.55
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_alarm_is_off_afterwards(little_time):
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        handler = signal.getsignal(signal.SIGALRM)
        for fn in (busy, math.exp):
            checks.perplexity(fn)
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
            assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)


HANGING_CELL = """
from distill_helpers.course import checks
checks.TIME_LIMIT = 0.3
def softmax(z, T):
    while z is not None:
        pass
checks.softmax(softmax)
"""


def test_in_a_kernel(monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "")
    use_this_python()
    cells = [new_code_cell(HANGING_CELL.strip()), new_code_cell("print('alive')")]
    notebook = new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name=KERNEL_NAME, timeout=120).execute()
    (result,), (printed,) = (cell.outputs for cell in notebook.cells)
    message = result.data["text/plain"]
    assert "did not return within 0.3 s" in message
    assert re.search(r"in line [45] of its cell: (while z is not None:|pass) ", message)
    assert printed.text == "alive\n"


@pytest.mark.parametrize("code", [None, 0, "bye"])
def test_sys_exit_is_caught(code):
    result = checks.soft_label_loss(lambda *_: sys.exit(code))
    assert result.status == "failed"
    assert "came SystemExit" in result.message


def test_ctrl_c_still_interrupts():
    def fn(*_):
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        checks.soft_label_loss(fn)
    assert checks.perplexity(math.exp).passed


# --- Odd results. ---


class Rude:
    """Fails at whatever it is asked."""

    def fail(self, *_):
        raise RuntimeError("rude")

    __getattr__ = __len__ = __iter__ = __bool__ = __eq__ = __repr__ = fail
    __hash__ = None


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("rude")


ODD = {
    "huge": lambda *_: 10**400,
    "endless": lambda *_: itertools.count(),
    "rude": lambda *_: Rude(),
    "rude pairs": lambda *_: [(Rude(), Rude())] * 3,
    "no data": lambda *_: torch.ones((), device="meta"),
    "complex": lambda *_: torch.ones((), dtype=torch.complex64),
    "sparse": lambda *_: torch.eye(3).to_sparse(),
    "empty": lambda *_: torch.empty(0),
    "ragged": lambda *_: [[1], [2, 3]],
    "objects": lambda *_: np.array([object()]),
    "a class": lambda *_: int,
    "generator exit": raises(GeneratorExit()),
    "mute error": raises(SilentError()),
    "lines": raises(ValueError("two\nlines")),
}
EVERY_CHECK = [
    function
    for name, function in vars(checks).items()
    if inspect.isfunction(function)
    and list(inspect.signature(function).parameters) == ["fn", "fallback"]
    and not name.startswith("_")
]


@pytest.mark.parametrize("check", EVERY_CHECK, ids=lambda check: check.__name__)
def test_no_result_makes_a_check_raise(check):
    seconds = []
    for name, fn in ODD.items():
        start = time.process_time()
        result = check(fn)
        seconds.append(time.process_time() - start)
        assert not result.passed, name
        assert "\n" not in str(result), name
        json.dumps(result._repr_mimebundle_())
    # The first call may import something.
    assert sorted(seconds)[-2] < 1


def test_every_check_is_among_them():
    assert len(EVERY_CHECK) >= 32


# --- How a result shows itself. ---


def test_mime_bundle():
    result = checks.soft_label_loss(
        raises(ValueError("<script>alert(1)</script> & '\""))
    )
    bundle = result._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == str(result)
    page = bundle["text/html"]
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\n" not in page
    record = bundle["application/vnd.distill-helpers+json"]
    assert record == {
        "kind": "check",
        "name": "soft_label_loss",
        "status": "failed",
        "ok": True,
        "message": result.message,
    }
    json.dumps(record)


@pytest.mark.parametrize(
    ("fn", "status"),
    [(style_rows, "passed"), (None, "not attempted"), (lambda *_: 1.0, "failed")],
)
def test_status_agrees_with_passed(fn, status):
    result = checks.soft_label_loss(fn)
    assert result.status == status
    assert result.passed == (status == "passed")
    assert status in str(result)
    assert str(result).count(status) == 1
    record = result._repr_mimebundle_()[checks.MIME_TYPE]
    assert record["status"] == status
    assert record["ok"] is True


# --- The smaller checks. ---


def words_by(key):
    def fn(logits, words, k):
        pairs = zip(words, logits.softmax(0).tolist(), strict=True)
        return sorted(pairs, key=key)[:k]

    return fn


def stable_softmax(z, T):
    z = np.asarray(z) / T
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def draw_by_hand(logits, generator):
    edges = logits.softmax(-1).cumsum(-1)
    u = torch.rand(len(logits), 1, generator=generator)
    return (u > edges).sum(-1).clamp(max=logits.shape[-1] - 1)


def gumbel(logits, generator):
    u = torch.rand(logits.shape, generator=generator)
    return (logits - torch.log(-torch.log(u))).argmax(-1)


def gain_by_hand(ours, theirs, t, power=0.5):
    gains = [float(b - a) for a, b in zip(ours, theirs, strict=True)]
    mean = sum(gains) / len(gains)
    square = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return torch.tensor([mean, t * square**0.5 / len(gains) ** power])


def temperature_on_a_grid(logits, labels, count, sign=1):
    grid = [0.25 * 16 ** (i / (count - 1)) for i in range(count)]
    return min(grid, key=lambda T: sign * F.cross_entropy(logits / T, labels).item())


def best_by_steps(logits, labels):
    """By gradient descent on the logarithm, as Guo et al. do."""
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_t.detach().exp().squeeze()


@pytest.mark.parametrize(
    ("check", "fn"),
    [
        ("softmax", lambda z, T: torch.softmax(z / T, -1)),
        ("softmax", stable_softmax),
        ("softmax", lambda z, T: (z.double() / T).log_softmax(-1).exp()),
        ("entropy", lambda p: torch.special.entr(p).sum(-1)),
        ("entropy", lambda p: -(p * (p + 1e-9).log()).sum(-1)),
        ("entropy", lambda p: -(p * p.clamp_min(1e-12).log()).sum(-1)),
        ("entropy", lambda p: torch.distributions.Categorical(p).entropy()),
        ("forward_kl", lambda p, q: F.kl_div(q.log(), p, reduction="none").sum(-1)),
        ("forward_kl", lambda p, q: (p * ((p + 1e-9) / q).log()).sum(-1)),
        ("perplexity", lambda nll: torch.exp(nll)),
        ("perplexity", lambda nll: math.exp(nll)),
        ("perplexity", lambda nll: np.exp(nll)),
        ("perplexity", lambda nll: 2 ** (nll / math.log(2))),
        ("gain_interval", lambda a, b, t: gain_by_hand(a, b, t)),
        ("gain_interval", lambda a, b, t: [float(x) for x in gain_by_hand(a, b, t)]),
        ("fitted_temperature", lambda z, y: temperature_on_a_grid(z, y, 100)),
        ("fitted_temperature", lambda z, y: float(temperature_on_a_grid(z, y, 999))),
        ("bits_per_byte", lambda nll, n, b: nll * n / (b * math.log(2))),
        ("bits_per_byte", lambda nll, n, b: float(nll) / math.log(2) * n / b),
        ("sampled_labels", lambda z, g: draw_by_hand(z, g)),
        ("sampled_labels", gumbel),
        (
            "sampled_labels",
            lambda z, g: torch.multinomial(z.softmax(1), 1, generator=g)[:, 0],
        ),
        ("top_choices", words_by(lambda pair: -pair[1])),
        (
            "top_choices",
            lambda z, words, k: [
                (words[i], round(float(p), 3))
                for p, i in zip(*z.softmax(0).topk(k), strict=True)
            ],
        ),
    ],
)
def test_small_checks_pass(check, fn):
    result = getattr(checks, check)(fn)
    assert result.passed, str(result)


@pytest.mark.parametrize(
    ("check", "bug", "fn"),
    [
        ("softmax", "temperature_multiplied", lambda z, T: (z * T).softmax(-1)),
        ("softmax", "temperature_missing", lambda z, T: z.softmax(-1)),
        ("softmax", "temperature_on_probabilities", lambda z, T: z.softmax(-1) / T),
        ("softmax", "wrong_dimension", lambda z, T: (z / T).softmax(0)),
        (
            "softmax",
            "overflow",
            lambda z, T: (z / T).exp() / (z / T).exp().sum(-1, True),
        ),
        (
            "softmax",
            "temperature_multiplied",
            lambda z, T: (z * T).exp() / (z * T).exp().sum(-1, True),
        ),
        ("softmax", "wrong_dimension", lambda z, T: stable_flat(z / T)),
        ("softmax", "not_normalised", lambda z, T: (z / T).exp()),
        ("entropy", "log2", lambda p: -torch.xlogy(p, p).sum(-1) / math.log(2)),
        ("entropy", "log2", lambda p: -(p * p.log2()).sum(-1)),
        ("entropy", "minus_missing", lambda p: (p * p.log()).sum(-1)),
        ("entropy", "zero_times_log", lambda p: -(p * p.log()).sum(-1)),
        ("entropy", "mean_not_sum", lambda p: -(p * p.log()).mean(-1)),
        ("forward_kl", "reversed", lambda p, q: (q * (q / p).log()).sum(-1)),
        ("forward_kl", "cross_entropy", lambda p, q: -(p * q.log()).sum(-1)),
        ("forward_kl", "log2", lambda p, q: (p * (p / q).log2()).sum(-1)),
        ("forward_kl", "zero_times_log", lambda p, q: (p * (p / q).log()).sum(-1)),
        ("forward_kl", "sign", lambda p, q: (p * (q / p).log()).sum(-1)),
        ("perplexity", "base_2", lambda nll: 2**nll),
        ("perplexity", "sign", lambda nll: math.exp(-nll)),
        ("perplexity", "unchanged", lambda nll: nll),
        ("perplexity", "bits", lambda nll: nll / math.log(2)),
        ("gain_interval", "sign", lambda a, b, t: gain_by_hand(b, a, t)),
        ("gain_interval", "t_missing", lambda a, b, t: gain_by_hand(a, b, 1)),
        (
            "gain_interval",
            "unpaired",
            lambda a, b, t: (
                (b - a).mean(),
                t * ((a.std() ** 2 + b.std() ** 2) / len(a)) ** 0.5,
            ),
        ),
        ("gain_interval", "of_one_run", lambda a, b, t: gain_by_hand(a, b, t, 0)),
        ("gain_interval", "divided_by_n", lambda a, b, t: gain_by_hand(a, b, t, 1)),
        (
            "gain_interval",
            "divided_by_all",
            lambda a, b, t: gain_by_hand(a, b, t * (1 - 1 / len(a)) ** 0.5),
        ),
        ("fitted_temperature", "one", lambda z, y: 1),
        ("fitted_temperature", "inverted", lambda z, y: 1 / best_by_steps(z, y)),
        (
            "fitted_temperature",
            "flattest",
            lambda z, y: temperature_on_a_grid(z, z.argmax(-1), 100),
        ),
        (
            "fitted_temperature",
            "highest",
            lambda z, y: temperature_on_a_grid(z, y, 100, sign=-1),
        ),
        ("bits_per_byte", "nats", lambda nll, n, b: nll * n / b),
        ("bits_per_byte", "nats", lambda nll, n, b: nll * n / b * math.log(2)),
        ("bits_per_byte", "inverted", lambda nll, n, b: nll * b / n / math.log(2)),
        ("bits_per_byte", "per_token", lambda nll, n, b: nll / math.log(2)),
        ("bits_per_byte", "not_totalled", lambda nll, n, b: nll / b / math.log(2)),
        ("sampled_labels", "argmax", lambda z, g: z.argmax(-1)),
        (
            "sampled_labels",
            "uniform",
            lambda z, g: torch.randint(z.shape[1], (len(z),), generator=g),
        ),
        (
            "sampled_labels",
            "generator_ignored",
            lambda z, g: torch.multinomial(z.softmax(-1), 1).squeeze(1),
        ),
        ("top_choices", "ascending", words_by(lambda pair: pair[1])),
        ("top_choices", "unsorted", words_by(lambda pair: 0)),
        (
            "top_choices",
            "raw_logits",
            lambda z, words, k: [
                (words[i], float(x)) for x, i in zip(*z.topk(k), strict=True)
            ],
        ),
    ],
)
def test_small_checks_name_the_mistake(check, bug, fn):
    result = getattr(checks, check)(fn)
    assert result.status == "failed"
    assert result.bug == bug, str(result)
    assert "Likely mistake" in result.message
    assert "notebook 0" in result.message


def stable_flat(z):
    e = (z - z.max()).exp()
    return e / e.sum()


@pytest.mark.parametrize(
    ("check", "fn", "words"),
    [
        (
            "entropy",
            lambda p: torch.special.entr(p).sum(),
            "a single number (shape [])",
        ),
        ("softmax", lambda z, T: z.softmax(-1).sum(), "a single number"),
        ("softmax", lambda z, T: (z / T).softmax(-1) ** 1.1, "expected"),
        ("sampled_labels", lambda z, g: z.softmax(-1), "integer token ids"),
        ("sampled_labels", lambda z, g: [1, 2], "integer token ids, came list"),
        ("sampled_labels", lambda z, g: z.argmax(-1, True), "[6000, 1]"),
        ("sampled_labels", lambda z, g: z.argmax(-1) + 5, "ids from 0 to 4"),
        ("top_choices", lambda z, words, k: z.topk(k), "list of pairs"),
        ("top_choices", lambda z, words, k: "cat", "list of pairs"),
        ("top_choices", lambda z, words, k: [("cat", 0.5)], "3 pairs"),
        ("top_choices", lambda z, words, k: [("cow", 0.5)] * k, "'cow'"),
        ("top_choices", lambda z, words, k: [("cat", "x")] * k, "a number beside"),
        ("top_choices", lambda z, words, k: words.sort() or [], "argument number 2"),
        ("perplexity", lambda nll: "9", "type str"),
        ("perplexity", lambda nll: True, "type bool"),
    ],
)
def test_small_checks_put_other_mistakes_into_words(check, fn, words):
    result = getattr(checks, check)(fn)
    assert result.status == "failed"
    assert words in result.message, str(result)


# --- Exercises of notebooks 04 and 05: right answers pass, wrong ones are named. ---


def bucket(student_logits, ids, weights, *, rest="bucket", reverse=False):
    q = student_logits.softmax(-1).gather(-1, ids)
    if rest == "scaled":
        weights, q = weights / weights.sum(-1, True), q / q.sum(-1, True)
    p = weights
    if rest == "bucket":
        p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
        q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
    if reverse:
        p, q = q, p
    return (p * (p / q).log()).sum(-1)


def shares(draws, vocabulary, *, divide=True, once=False):
    counts = torch.zeros(len(draws), vocabulary)
    for row, ids in enumerate(draws.tolist()):
        for token in set(ids) if once else ids:
            counts[row, token] += 1
    return counts / counts.sum(-1, keepdim=True) if divide else counts


def shift_of(cached, recomputed, *, sign=1):
    return sign * max(
        range(-2, 3), key=lambda s: int((torch.roll(recomputed, s) == cached).sum())
    )


def masked_labels(prompt, answer, end, *, end_label=None, keep_prompt=False):
    start = prompt if keep_prompt else [NO_LABEL] * len(prompt)
    return [*start, *answer, end if end_label is None else end_label]


def runs_of(text, n):
    words = text.lower().split()
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def kept_places(samples, right):
    good = {sample: place for place, sample in reversed([*enumerate(samples)])}
    return [p for p, s in enumerate(samples) if right[p] and good[s] == p]


def top_and_draws(p, generator, k, draws, again=False):
    """Draws by inverting the distribution function of what is left."""
    kept = p.topk(k).indices
    if again:
        generator.seed()
    points = torch.rand(len(p), draws, generator=generator, dtype=p.dtype)
    left = p.scatter(-1, kept, 0).cumsum(-1)
    return kept, torch.searchsorted(left, points * left[:, -1:])


def ways_to_write(prompt):
    """Every right way to write a sum of three numbers out, the usual one first."""
    found = []
    for x, y, z in itertools.permutations(map(int, prompt.rstrip("=").split("+"))):
        first, result = x + y, x + y + z
        for second in (f"{first}+{z}", f"{z}+{first}"):
            found.append(f"{x}+{y}={first},{second}={result};{result}")
    return found


def ends_well(prompt, answer):
    wanted = sum(map(int, prompt.rstrip("=").split("+")))
    return answer.partition(";")[2] == str(wanted)


def each_sum_true(prompt, answer):
    sums = [step.partition("=") for step in answer.partition(";")[0].split(",")]
    return ends_well(prompt, answer) and all(
        equals and sum(map(int, left.split("+"))) == int(right)
        for left, equals, right in sums
    )


def most_shared(known, text):
    """The kind whose texts hold most of the words, each as often as it stands there."""
    kinds = list(dict.fromkeys(kind for _, kind in known))
    held = {kind: " ".join(t for t, k in known if k == kind).split() for kind in kinds}
    return max(kinds, key=lambda kind: sum(held[kind].count(w) for w in text.split()))


def nearest_text(known, texts):
    """The kind of the known text that shares most, rare words counting more."""
    spread = Counter(word for text, _ in known for word in set(text.split()))

    def shared(one, other):
        return sum(spread[w] ** -2.0 for w in set(one.split()) & set(other.split()))

    return [max(known, key=lambda pair: shared(pair[0], text))[1] for text in texts]


def share_of_sets(drawn, right, k):
    none = 1.0
    for already in range(k):
        none *= max(0, drawn - right - already) / (drawn - already)
    return np.float64(1 - none)


def risen(progress, alpha, warm_up, ramp):
    return MixSchedule(alpha, warm_up, ramp).weight(progress)


def together(teacher, student, ids, alpha, *, detach=True, own=1, shift=True):
    """By the package's losses, where they can be asked for it."""
    theirs = teacher.detach() if detach else teacher
    if shift:
        teacher, theirs, student = teacher[:, :-1], theirs[:, :-1], student[:, :-1]
        ids = ids[:, 1:]
    p, q = theirs.log_softmax(-1), student.log_softmax(-1)
    soft = F.kl_div(q, p, log_target=True, reduction="sum") / ids.numel()
    hard, learned = (
        -x.log_softmax(-1).gather(-1, ids[..., None]).mean() for x in (student, teacher)
    )
    return own * learned + (1 - alpha) * hard + alpha * soft


def both_grow(teacher, student, batches, weight, rate, *, detach=True, kept=False):
    """Two losses, two backward passes, AdamW without decay; logged as tensors."""
    first, second = (
        torch.optim.AdamW(one.parameters(), lr=rate, weight_decay=0.0)
        for one in (teacher, student)
    )
    seen = []
    for done, ids in enumerate(batches):
        theirs = teacher(input_ids=ids).logits
        ours = student(input_ids=ids).logits
        share = weight(done / len(batches))
        if not kept:
            first.zero_grad()
            second.zero_grad()
        hard_label_loss(theirs, ids).backward(retain_graph=not detach)
        if detach:
            soft_label_loss(ours, theirs, ids, alpha=share).loss.backward()
        else:
            together(theirs, ours, ids, share, detach=False, own=0).backward()
        seen.append(
            [hard_label_loss(theirs, ids).detach(), hard_label_loss(ours, ids).detach()]
        )
        first.step()
        second.step()
    return seen


def marked_step(
    student, teacher, prompts, write, divergence, optimizer, *, prompt=False
):
    """Row by row and token by token, over the drawn texts."""
    ids, written = write(student, prompts)
    ours, theirs = student(input_ids=ids).logits, teacher(input_ids=ids).logits
    marks = [
        divergence(ours[row, place - 1], theirs[row, place - 1].detach())
        for row in range(len(ids))
        for place in range(1, ids.shape[1])
        if prompt or written[row, place]
    ]
    loss = sum(marks) / len(marks)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def drawn_ratio(student, teacher, drawn):
    return F.nll_loss(teacher.log_softmax(-1), drawn) - F.cross_entropy(student, drawn)


def jsd(student, teacher, beta, mixed=None):
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    share = beta if mixed is None else mixed
    log_m = torch.logaddexp(log_q + math.log(1 - share), log_p + math.log(share))
    to_p = F.kl_div(log_m, log_p, log_target=True, reduction="batchmean")
    to_q = F.kl_div(log_m, log_q, log_target=True, reduction="batchmean")
    return beta * to_p + (1 - beta) * to_q


def excess(own, his, counts):
    own, his, counts = (torch.tensor(x[1:], dtype=float) for x in (own, his, counts))
    return torch.dot(own - his, counts) / counts.sum()


def cut_together(ours, theirs, *, by="bytes"):
    """Two counters that walk along both lists; whoever is behind takes a token."""
    pairs, mine, others, ahead = [], [0, 0], [0, 0], 0
    pieces = [iter(ours), iter(theirs)]
    for _ in range(len(ours) + len(theirs)):
        side = 0 if ahead <= 0 and mine[0] < len(ours) else 1
        piece = next(pieces[side])
        mine[side] += 1
        ahead += (1 - 2 * side) * (len(piece) if by == "bytes" else 1)
        if ahead == 0:
            pairs.append(tuple(np.subtract(mine, others)))
            others = list(mine)
    return pairs


def chunk_sums(log_p, chunk, *, last=False):
    """Chunk by chunk."""
    numbers = range(int(chunk.max()) + 1)
    found = [log_p[chunk == number].sum() for number in numbers]
    if last:
        found[-1] = found[-1] + log_p[chunk < 0].sum()
    return torch.stack(found)


def by_matrix(p, to_student, size):
    """A matrix of zeros and ones in place of a map."""
    return p @ F.one_hot(to_student + 1, size + 1)[:, 1:].to(p.dtype)


class Straight(torch.autograd.Function):
    """Rounds; its gradient is that of what it was given."""

    @staticmethod
    def forward(ctx, weight, bits):
        most = torch.tensor(2.0).pow(bits - 1) - 1
        step = torch.linalg.vector_norm(weight, float("inf"), 1, keepdim=True) / most
        return torch.round(weight / step).clamp(-most, most) * step

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def affordable(budget, once, per_step):
    steps = 0
    while once + (steps + 1) * per_step <= budget:
        steps += 1
    return steps


def unbeaten(costs, scores, *, both=False):
    kept = []
    for i, (cost, score) in enumerate(zip(costs, scores, strict=True)):
        others = list(zip(costs, scores, strict=True))
        if both:
            beaten = any(c < cost and s > score for c, s in others)
        else:
            beaten = any(
                (c <= cost and s > score) or (c < cost and s >= score)
                for c, s in others
            )
        if not beaten:
            kept.append(i)
    return kept


def shuffled_floor(z, how=None):
    p = z.softmax(-1)
    m = z.mean(0).softmax(-1) if how == "logits" else p.mean(0)
    if how == "reverse":
        p, m = m.expand_as(p), p
    return torch.xlogy(p, p / m).sum(-1).mean()


def adds_up(loss, s, t, y, *, shift=1, weigh=True, close=1e-4, divide=True):
    kept = [i for i in range(len(y)) if (y[i, 1:] != NO_LABEL).any()]
    n = torch.tensor([float((y[i, shift:] != NO_LABEL).sum()) for i in kept])
    each = torch.stack([loss(s[[i]], t[[i]], y[[i]]) for i in kept])
    n = n if weigh else torch.ones(len(kept))
    mean = (each * n).sum() / (n.sum() if divide else 1)
    return torch.isclose(mean, loss(s, t, y), rtol=close, atol=0)


def is_silent(loss, s, t, y, *, shift=1, hole=-math.inf, student=True, grad=True):
    quiet = torch.ones_like(y, dtype=torch.bool)
    quiet[:, : y.shape[1] - shift] = y[:, shift:] == NO_LABEL
    leaf = s.clone().requires_grad_()
    loss(leaf, t, y).backward()
    other = s.clone()
    if student:
        other[quiet] = -2.5
    other.requires_grad_()
    theirs = t.clone()
    theirs[quiet] = hole
    value = loss(other, theirs, y)
    value.backward()
    same = [torch.allclose(value, loss(s, t, y))]
    if grad:
        same.append(torch.allclose(leaf.grad, other.grad, atol=1e-6))
    return all(same)


def paid_back(once, teacher, student):
    saved = teacher - student
    return once / saved if saved > 0 else float("inf")


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ("tail_bucket", bucket),
        ("sampled_estimate", shares),
        ("sampled_estimate", lambda d, v: F.one_hot(d, v).float().mean(1)),
        ("cache_shift", shift_of),
        ("cache_shift", lambda a, b: torch.tensor(shift_of(a, b))),
        ("answer_labels", masked_labels),
        ("answer_labels", lambda p, a, e: torch.tensor(masked_labels(p, a, e))),
        ("shares_run", lambda a, b, n: any(r in runs_of(b, n) for r in runs_of(a, n))),
        ("own_scheme", lambda p, g: top_and_draws(p, g, 2, 18)),
        ("own_scheme", lambda p, g: top_and_draws(p, g, 0, 22)),
        ("second_opinion", nearest_text),
        ("second_opinion", lambda k, t: tuple(nearest_text(k, t))),
        ("exact_checker", lambda a, r: ";" in a and a.split(";")[-1].strip() == f"{r}"),
        ("steps_hold", lambda p, a: a in ways_to_write(p)),
        ("keep_right", kept_places),
        ("keep_right", lambda s, r: torch.tensor(kept_places(s, r)).long()),
        ("pass_at_k", lambda n, c, k: 1 - math.comb(n - c, k) / math.comb(n, k)),
        ("pass_at_k", share_of_sets),
        ("mix_weight", risen),
        ("learn_together", together),
        ("co_distil", both_grow),
        ("lone_steps", lambda n, s, t: affordable(n * (s + t) + 1e-9, 0, s)),
        ("on_policy_step", marked_step),
        ("drawn_reverse_kl", drawn_ratio),
        ("generalised_jsd", jsd),
        ("excess_kl", excess),
        ("excess_kl", lambda *a: excess(*a).item()),
        ("answer_places", lambda p, a: [p + i - 1 for i in range(a)]),
        ("answer_places", lambda p, a: torch.arange(p + a - 1)[-a:]),
        ("adapter_size", lambda s, r: r * int(np.sum(s))),
        ("fake_round", Straight.apply),
        ("align", cut_together),
        ("align", lambda a, b: [list(pair) for pair in cut_together(a, b)]),
        ("chunk_log_p", chunk_sums),
        ("project", by_matrix),
        ("plateau", shuffled_floor),
        (
            "plateau",
            lambda z: F.kl_div(
                z.softmax(-1).mean(0).log().expand_as(z),
                z.log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            ),
        ),
        ("plateau", lambda z: shuffled_floor(z.double()).item()),
        ("pieces_add_up", adds_up),
        ("pieces_add_up", lambda *a: bool(adds_up(*a))),
        ("pieces_add_up", lambda *a: np.bool_(adds_up(*a))),
        ("padding_is_silent", is_silent),
        ("padding_is_silent", lambda *a: torch.tensor(is_silent(*a))),
        ("resume_step", lambda c: max([0, *(s for s, done in c if done)])),
        (
            "resume_step",
            lambda c: torch.tensor(max([0, *(s * d for s, d in c)])),
        ),
        ("reaches", lambda low, high, bar: (low >= bar) - (high < bar)),
        ("break_even", paid_back),
        ("break_even", lambda *given: np.float64(paid_back(*given))),
        ("steps_for", affordable),
        ("steps_for", lambda b, o, s: max(0.0, (b - o) // s)),
        ("frontier", unbeaten),
        ("frontier", lambda c, s: torch.tensor(unbeaten(c, s)[::-1])),
    ],
)
def test_later_exercises_pass_the_right_answers(check, answer):
    result = getattr(checks, check)(answer)
    assert result.status == checks.PASSED, result


@pytest.mark.parametrize(
    ("check", "answer", "bug"),
    [
        ("tail_bucket", lambda *a: bucket(*a, rest="scaled"), "both_renormalised"),
        ("tail_bucket", lambda *a: bucket(*a, rest="none"), "tail_missing"),
        ("tail_bucket", lambda *a: bucket(*a, reverse=True), "reverse"),
        ("sampled_estimate", lambda *a: shares(*a, divide=False), "not_divided"),
        ("sampled_estimate", lambda *a: shares(*a, once=True), "repetitions_lost"),
        ("cache_shift", lambda *a: shift_of(*a, sign=-1), "sign"),
        ("cache_shift", lambda a, b: 0, "always_zero"),
        (
            "answer_labels",
            lambda *a: masked_labels(*a, end_label=NO_LABEL),
            "end_not_learned",
        ),
        (
            "answer_labels",
            lambda *a: masked_labels(*a, keep_prompt=True),
            "prompt_learned",
        ),
        (
            "answer_labels",
            lambda p, a, e: [NO_LABEL if t == e else t for t in masked_labels(p, a, e)],
            "masked_by_id",
        ),
        (
            "shares_run",
            lambda a, b, n: len({*a.lower().split()} & {*b.lower().split()}) >= n,
            "bag_of_words",
        ),
        ("shares_run", lambda a, b, n: a.lower() in b.lower(), "substring"),
        ("own_scheme", lambda p, g: p.topk(17).indices.split([4, 13], -1), "next_best"),
        (
            "own_scheme",
            lambda p, g: (
                p.topk(4).indices,
                torch.multinomial(p, 13, replacement=True, generator=g),
            ),
            "kept_again",
        ),
        (
            "own_scheme",
            lambda p, g: top_and_draws(p, torch.Generator(), 4, 13, again=True),
            "generator_ignored",
        ),
        ("second_opinion", lambda k, t: [k[0][1]] * len(t), "one_kind"),
        (
            "second_opinion",
            lambda k, t: [most_shared(k, text) for text in t],
            "common_words_decide",
        ),
        ("steps_hold", ends_well, "result_only"),
        ("steps_hold", each_sum_true, "true_sums_alone"),
        ("steps_hold", lambda p, a: a == ways_to_write(p)[0], "one_order_only"),
        ("keep_right", lambda s, r: [i for i, x in enumerate(r) if x], "repeats_kept"),
        ("keep_right", lambda s, r: kept_places(s, [True] * len(s)), "wrong_kept"),
        ("pass_at_k", lambda n, c, k: 1 - (1 - c / n) ** k, "plugged_in"),
        ("pass_at_k", lambda n, c, k: c / n, "share_right"),
        ("mix_weight", lambda t, a, w, r: a * (t >= w), "all_at_once"),
        (
            "mix_weight",
            lambda t, a, w, r: a * min(1, (t - w) / r) if r else a * (t >= w),
            "below_zero",
        ),
        ("learn_together", lambda *a: together(*a, detach=False), "partner_attached"),
        ("learn_together", lambda *a: together(*a, own=0), "teacher_does_not_learn"),
        (
            "learn_together",
            lambda t, *a: together(t.detach(), *a),
            "teacher_frozen",
        ),
        ("learn_together", lambda *a: together(*a, shift=False), "not_shifted"),
        ("lone_steps", lambda n, s, t: n * t // s, "teacher_alone"),
        ("lone_steps", lambda n, s, t: n + n * t / s, "not_whole"),
        ("co_distil", lambda *a: both_grow(*a, detach=False), "partner_attached"),
        ("co_distil", lambda *a: both_grow(*a, kept=True), "gradients_kept"),
        (
            "co_distil",
            lambda t, s, b, w, r: both_grow(t, s, b, lambda done: w(done * len(b)), r),
            "weight_of_step",
        ),
        (
            "co_distil",
            lambda t, s, b, w, r: both_grow(t, s, b, lambda done: w(0.0), r),
            "weight_of_start",
        ),
        ("on_policy_step", lambda *a: marked_step(*a, prompt=True), "prompt_marked"),
        (
            "on_policy_step",
            lambda s, t, p, w, d, o: marked_step(s, t, p, w, lambda a, b: d(b, a), o),
            "swapped",
        ),
        (
            "on_policy_step",
            lambda s, t, p, w, d, o: marked_step(s, t, p, lambda _, x: w(t, x), d, o),
            "teacher_writes",
        ),
        ("drawn_reverse_kl", lambda *a: -drawn_ratio(*a), "sign"),
        (
            "drawn_reverse_kl",
            lambda s, t, d: F.kl_div(
                t.log_softmax(-1),
                s.log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            ),
            "exact",
        ),
        ("generalised_jsd", lambda s, t, b: jsd(s, t, 1 - b), "beta_reversed"),
        ("generalised_jsd", lambda s, t, b: jsd(s, t, b, mixed=0.5), "always_half"),
        ("generalised_jsd", lambda s, t, b: jsd(s, t, b, mixed=1 - b), "mixture_"),
        ("generalised_jsd", lambda s, t, b: jsd(t, s, b), "beta_reversed"),
        (
            "excess_kl",
            lambda o, h, c: np.average(np.subtract(o, h), weights=c),
            "first_",
        ),
        ("excess_kl", lambda o, h, c: np.mean(np.subtract(o, h)[1:]), "unweighted"),
        ("answer_places", lambda p, a: range(p, p + a), "places_of_the_answer"),
        ("answer_places", lambda p, a: range(p - 1, p + a), "end_predicted"),
        ("answer_places", lambda p, a: range(p - 1, p + a - 2), "last_lost"),
        ("answer_places", lambda p, a: range(p + a), "whole_row"),
        ("answer_places", lambda p, a: range(a), "from_the_answer_alone"),
        ("adapter_size", lambda s, r: int(np.prod(s, 1).sum()), "whole_matrices"),
        ("adapter_size", lambda s, r: r * int(np.sum(s, 0)[1]), "one_of_the_two"),
        ("adapter_size", lambda s, r: int(np.sum(s)), "rank_forgotten"),
        ("adapter_size", lambda s, r: r * sum(s[0]), "first_matrix_alone"),
        ("adapter_size", lambda s, r: r * int(np.prod(s, 1).sum()), "product_"),
        ("fake_round", lambda w, b: Straight.apply(w, b).detach(), "no_slope"),
        ("fake_round", lambda w, b: Straight.apply(w, b + 1), ""),
        (
            "fake_round",
            lambda w, b: Straight.apply(w.view(1, -1), b).view_as(w),
            "one_",
        ),
        ("fake_round", lambda w, b: w + 0, "not_rounded"),
        ("align", lambda a, b: cut_together(a, b)[:-1], "last_lost"),
        ("align", lambda a, b: cut_together(b, a), "sides_swapped"),
        ("align", lambda a, b: [(len(a), len(b))], "whole_text"),
        ("align", lambda a, b: [(1, 1)] * min(len(a), len(b)), "token_by_token"),
        ("chunk_log_p", lambda p, c: chunk_sums(p, c).exp(), "probability"),
        ("chunk_log_p", lambda p, c: chunk_sums(p.detach(), c), "detached"),
        ("chunk_log_p", lambda p, c: chunk_sums(p, c, last=True), "outsiders_in_the_l"),
        (
            "chunk_log_p",
            lambda p, c: torch.stack([p[c == n].mean() for n in c.unique() if n >= 0]),
            "mean",
        ),
        (
            "chunk_log_p",
            lambda p, c: torch.stack([p[c == n][0] for n in c.unique() if n >= 0]),
            "first_token_alone",
        ),
        ("project", lambda p, m, n: F.normalize(by_matrix(p, m, n), 1, -1), "scaled"),
        (
            "project",
            lambda p, m, n: by_matrix(p, torch.where(m < 0, n - 1, m), n),
            "outsiders_in_the_last",
        ),
        ("plateau", lambda z: shuffled_floor(z, "reverse"), "reversed_kl"),
        ("plateau", lambda z: shuffled_floor(z, "logits"), "mean_of_logits"),
        ("plateau", lambda z: len(z) * shuffled_floor(z), "summed"),
        (
            "plateau",
            lambda z: torch.special.entr(z.softmax(-1).mean(0)).sum(),
            "entropy_of_mean",
        ),
        ("plateau", lambda z: shuffled_floor(z) / z.shape[1], "over_vocabulary"),
        (
            "plateau",
            lambda z: (z.softmax(1) * (z.softmax(1) * z.shape[1]).log()).sum(1).mean(),
            "wrong_dimension",
        ),
        ("pieces_add_up", lambda *a: True, "always_true"),
        ("pieces_add_up", lambda *a: adds_up(*a, divide=False), "not_divided"),
        ("pieces_add_up", lambda *a: adds_up(*a, weigh=False), "unweighted"),
        ("pieces_add_up", lambda *a: adds_up(*a, shift=0), "labels_not_shifted"),
        ("pieces_add_up", lambda *a: adds_up(*a, close=0.2), "too_loose"),
        ("pieces_add_up", lambda *a: not adds_up(*a), "turned_round"),
        ("padding_is_silent", lambda *a: True, "always_true"),
        ("padding_is_silent", lambda *a: is_silent(*a, grad=False), "value_only"),
        ("padding_is_silent", lambda *a: is_silent(*a, hole=1.0), "finite_only"),
        ("padding_is_silent", lambda *a: is_silent(*a, student=False), "teacher_only"),
        ("padding_is_silent", lambda *a: is_silent(*a, shift=0), "not_shifted"),
        ("padding_is_silent", lambda *a: not is_silent(*a), "turned_round"),
        ("resume_step", lambda c: max((s for s, _ in c), default=0), "incomplete"),
        (
            "resume_step",
            lambda c: [0, *(s for s, done in c if done)][-1],
            "last_in_list",
        ),
        (
            "resume_step",
            lambda c: int(max(["0", *(str(s) for s, done in c if done)])),
            "as_text",
        ),
        ("reaches", lambda a, b, bar: 1 if a + b >= 2 * bar else -1, "middle_decides"),
        ("reaches", lambda a, b, bar: 1 if b >= bar else -1, "best_end"),
        ("reaches", lambda a, b, bar: 1 if a >= bar else -1, "never_undecided"),
        ("reaches", lambda a, b, bar: (a > bar) - (b < bar), "bar_itself_missed"),
        ("reaches", lambda a, b, bar: (b < bar) - (a >= bar), "signs_swapped"),
        ("break_even", lambda once, t, s: once / t, "student_is_free"),
        (
            "break_even",
            lambda once, t, s: once / (t - s) if t != s else math.inf,
            "negative",
        ),
        ("break_even", lambda once, t, s: once / (t + s), "costs_added"),
        ("break_even", lambda *given: np.ceil(paid_back(*given)), "rounded"),
        ("steps_for", lambda b, o, s: int(b / s), "once_forgotten"),
        ("steps_for", lambda b, o, s: max(0, -int((o - b) // s)), "rounded_up"),
        ("steps_for", lambda b, o, s: max(0, (b - o) / s), "fractions"),
        ("steps_for", lambda b, o, s: int((b - o) // s), "negative"),
        ("steps_for", lambda b, o, s: int(b // (s + o)), "once_per_step"),
        ("frontier", lambda c, s: [int(np.argmax(s))], "best_score_only"),
        ("frontier", lambda c, s: [c.index(min(c))], "cheapest_only"),
        ("frontier", lambda c, s: unbeaten(c, [-x for x in s]), "score_minimised"),
        ("frontier", lambda c, s: unbeaten(c, s, both=True), "better_in_both"),
        (
            "frontier",
            lambda c, s: [
                i
                for i in range(len(c))
                if not any(a <= c[i] and b >= s[i] for a, b in zip(c, s, strict=True))
            ],
            "beaten_by_its_equal",
        ),
        ("frontier", lambda c, s: [int(np.argmax(np.divide(s, c)))], "best_ratio"),
    ],
)
def test_later_exercises_name_the_mistake(check, answer, bug):
    result = getattr(checks, check)(answer)
    assert result.status == checks.FAILED
    assert bug in (result.bug or ""), result


@pytest.mark.parametrize(
    "check",
    [
        "tail_bucket",
        "sampled_estimate",
        "cache_shift",
        "answer_labels",
        "shares_run",
        "own_scheme",
        "second_opinion",
        "exact_checker",
        "steps_hold",
        "keep_right",
        "pass_at_k",
        "mix_weight",
        "learn_together",
        "co_distil",
        "lone_steps",
        "on_policy_step",
        "drawn_reverse_kl",
        "generalised_jsd",
        "excess_kl",
        "answer_places",
        "adapter_size",
        "fake_round",
        "align",
        "chunk_log_p",
        "project",
        "plateau",
        "pieces_add_up",
        "padding_is_silent",
        "resume_step",
        "reaches",
        "break_even",
        "steps_for",
        "frontier",
    ],
)
def test_later_exercises_know_when_nothing_was_tried(check):
    assert getattr(checks, check)(lambda *_: None).status == checks.NOT_ATTEMPTED


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ("plateau", lambda z: 3 * shuffled_floor(z, "reverse")),
        ("plateau", lambda z: shuffled_floor(z.T)),
        ("pieces_add_up", lambda *a: adds_up(*a, shift=0, weigh=False, close=0.2)),
        ("pieces_add_up", lambda *a: adds_up(*a, weigh=False, close=0.5)),
        ("padding_is_silent", lambda *a: is_silent(*a, hole=1.0, student=False)),
        ("padding_is_silent", lambda *a: is_silent(*a, grad=False, student=False)),
        ("padding_is_silent", lambda *a: not is_silent(*a, grad=False)),
    ],
)
def test_two_mistakes_in_a_clinics_exercise_never_pass(check, answer):
    assert getattr(checks, check)(answer).status == checks.FAILED


def test_a_test_that_allows_for_no_rounding_hears_of_it():
    message = checks.pieces_add_up(lambda *a: adds_up(*a, close=0.0)).message
    assert "rounding" in message


# A function to go on with -------------------------------------------------------------


def test_a_lesson_goes_on_with_a_learner_s_function_only_if_it_passes(capsys):
    def right(nll, tokens, size):
        return nll * tokens / size / math.log(2)

    assert checks.bits_per_byte(right, fallback=True) is right
    assert "passed" in capsys.readouterr().out

    own = checks.bits_per_byte(lambda nll, tokens, size: nll, fallback=True)
    said = capsys.readouterr().out
    assert "failed" in said
    assert "goes on with its own" in said
    assert own(torch.tensor(3.5), 100, 420) == pytest.approx(
        right(torch.tensor(3.5), 100, 420)
    )


def test_without_a_fallback_a_check_returns_what_it_found(capsys):
    result = checks.bits_per_byte(None)
    assert result.status == checks.NOT_ATTEMPTED
    assert "goes on" not in result.message
    assert not capsys.readouterr().out
