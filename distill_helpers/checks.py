"""Checks for the exercises: they say what is wrong, and never give the answer.

A check runs the learner's function on a few fixed inputs (probes), compares value and
gradient with the reference, and if they differ looks for a known mistake that gives the
same numbers. The mistakes of the loss come from :mod:`distill_helpers.known_bugs`; the
smaller exercises list theirs here.

A check never raises for a wrong answer, prints nothing and leaves the random state as
it was. A function that does not come back is stopped after :data:`TIME_LIMIT` seconds,
unless it hangs in one call of a compiled function, which nothing can stop.

Used in every notebook.
"""

from __future__ import annotations

import contextlib
import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distill_helpers import losses
from distill_helpers.known_bugs import KNOWN_BUGS, find_bug, plain_loss
from distill_helpers.time_limits import OutOfTime, call_within

MIME_TYPE = "application/vnd.distill-helpers+json"
PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"
_SYMBOLS = {PASSED: "✓", FAILED: "✗", NOT_ATTEMPTED: "…"}

# Seconds for all calls of one check together; they take a small part of one.
TIME_LIMIT = 5.0
# Characters that are kept of what a function prints.
_MOST_PRINTED = 1000

# A difference is relative to the expected size, or to these where that is nearly 0.
_VALUE_FLOOR, _GRADIENT_FLOOR = 0.05, 0.01

Tensor = torch.Tensor


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: The check.
        passed: Whether the function does what the exercise asks for.
        status: ``"passed"``, ``"failed"`` or ``"not attempted"``.
        bug: The mistake it behaves like, or ``None``; for the loss, a name in
            :data:`distill_helpers.known_bugs.KNOWN_BUGS`. ``"changes_inputs"`` if the
            function writes into its arguments, ``"out_of_time"`` if it was stopped.
        message: What was expected, what came, and where to read on.
    """

    name: str
    passed: bool
    status: str
    bug: str | None
    message: str

    def __str__(self) -> str:
        return f"{self._title()} {self.message}"

    def _title(self) -> str:
        # "Not attempted yet" is what the message says already.
        status = "" if self.status == NOT_ATTEMPTED else f", {self.status}"
        return f"{_SYMBOLS[self.status]} {self.name}{status}:"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        title = html.escape(self._title())
        return {
            "text/plain": str(self),
            "text/html": f"<div><b>{title}</b> {html.escape(self.message)}</div>",
            # A wrong answer is the learner's business and must not fail a run of the
            # notebook, so "ok" is always true; the solved run asks for the status.
            MIME_TYPE: {
                "kind": "check",
                "name": self.name,
                "status": self.status,
                "ok": True,
                "message": self.message,
            },
        }


# --- The engine. ---


@dataclass(frozen=True)
class _Probe:
    """One set of inputs.

    Attributes:
        title: Says when, for a message: ``"at T = 4"``.
        inputs: Arguments of the function; tensors are copied for every call.
        edge: The mistake to name if nothing but this probe comes out not finite.
    """

    title: str
    inputs: tuple[Any, ...]
    edge: str | None = None


@dataclass(frozen=True)
class _Suspect:
    """A function with one mistake, and how to speak of it."""

    name: str
    mistake: str
    symptom: str
    function: Callable[..., Any]
    taught_in: str = ""


@dataclass(frozen=True)
class _Outcome:
    """What a function gave on one probe: its value and gradients, in float64."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()
    attached: bool = True


@dataclass(frozen=True)
class _Exercise:
    """What :func:`_judge` needs to know.

    Attributes:
        name: Name of the check.
        probes: Inputs, simple ones first.
        reference: The correct function.
        suspects: Wrong ones, likeliest first.
        taught_in: Notebook.
        differentiate: So many leading arguments get a gradient. It is the first one's
            that the exercise is about; the others are constants.
        adapt: Turns what the function returned into a tensor to compare; raises
            :class:`_UnusableError` if it cannot.
        hint: Puts into words what can be seen when no suspect fits.
        random_bug: Name of the mistake if two equal calls differ.
        tolerance: Largest relative difference.
        show: Puts a value into words; by default, its first numbers.
    """

    name: str
    probes: tuple[_Probe, ...]
    reference: Callable[..., Any]
    suspects: tuple[_Suspect, ...]
    taught_in: str
    differentiate: int = 0
    adapt: Callable[[Any, tuple[Any, ...]], Tensor] | None = None
    hint: Callable[[Sequence[_Outcome], Sequence[_Outcome]], str] | None = None
    random_bug: str = "random"
    tolerance: float = 2e-3
    show: Callable[[Tensor], str] | None = None


class _UnusableError(Exception):
    """The function gave nothing that could be compared."""

    def __init__(self, words: str, *, status: str = FAILED, bug: str | None = None):
        super().__init__(words)
        self.status = status
        self.bug = bug


def _judge(exercise: _Exercise, fn: Any) -> CheckResult:
    printed = _Printed()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        _one_thread(),
    ):
        warnings.simplefilter("ignore")
        try:
            status, bug, message = call_within(
                TIME_LIMIT, lambda: _diagnose(exercise, fn)
            )
        except _UnusableError as problem:
            status, bug, message = problem.status, problem.bug, str(problem)
        except OutOfTime as stopped:
            status, bug = FAILED, "out_of_time"
            message = _words_for_no_answer(fn, stopped)
        except Exception as error:
            # Say, a number too large for a float, or a tensor without data.
            status, bug = FAILED, None
            message = f"the result cannot be compared: {_in_words(error)}."
    if status == FAILED:
        message += f" See {_place(exercise, bug)}."
    first_line = printed.getvalue().strip().partition("\n")[0][:80]
    if first_line:
        message += f" The function also printed; the first line was: {first_line}"
    return CheckResult(exercise.name, status == PASSED, status, bug, message)


class _Printed(io.StringIO):
    """Keeps the beginning, since a loop that never ends may print all the time."""

    def write(self, text: str) -> int:
        super().write(text[: max(_MOST_PRINTED - self.tell(), 0)])
        return len(text)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small only lose time when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _diagnose(exercise: _Exercise, fn: Any) -> tuple[str, str | None, str]:
    """Status, name of the bug, message."""
    if fn is None or fn is ...:
        raise _UnusableError("not attempted yet.", status=NOT_ATTEMPTED)
    if not callable(fn):
        raise _UnusableError(
            f"the check takes the function itself; what came is {_kind(fn)}."
        )
    probes = exercise.probes
    expected = [_run(exercise, exercise.reference, probe) for probe in probes]
    came = []
    for probe, wanted in zip(probes, expected, strict=True):
        outcome = _run(exercise, fn, probe)
        if outcome.value.shape != wanted.value.shape:
            raise _UnusableError(
                f"expected {_shape(wanted.value)} {probe.title}, came "
                f"{_shape(outcome.value)}."
            )
        came.append(outcome)
    again = _run(exercise, fn, probes[0])
    if not _same(again, came[0], 1e-4, strict=True):
        mistake = _words_for(exercise, exercise.random_bug)
        return FAILED, exercise.random_bug, f"two equal calls differ. {mistake}"

    def right(index: int, *, strict: bool = True) -> bool:
        attached = came[index].attached or not strict
        return attached and _same(
            came[index], expected[index], exercise.tolerance, strict=strict
        )

    wrong = [i for i in range(len(probes)) if not right(i)]
    if not wrong:
        return PASSED, None, f"as expected on all {len(probes)} inputs."
    ordinary = [i for i in range(len(probes)) if probes[i].edge is None]
    what = _difference(exercise, wrong[0], expected, came)

    def fits(suspect: _Suspect, chosen: Sequence[int], strict: bool) -> bool:
        return all(
            _behaves_like(exercise, suspect, probes[i], came[i], strict=strict)
            for i in chosen
        )

    # First the whole behaviour; then, since a second mistake often shows only at the
    # edges (nothing to count, -inf at padding), the ordinary inputs alone.
    # The last ordinary probe tells most.
    ordinary.reverse()
    everything = [*ordinary, *(i for i in range(len(probes)) if probes[i].edge)]
    bug = next((s.name for s in exercise.suspects if fits(s, everything, True)), None)
    if bug is None:
        if all(right(i, strict=False) for i in ordinary):
            bug = next((probes[i].edge for i in wrong if _broken(came[i])), None)
        else:
            bug = next(
                (s.name for s in exercise.suspects if fits(s, ordinary, False)), None
            )
    if bug is not None:
        return FAILED, bug, f"{what} {_words_for(exercise, bug)}"
    hint = exercise.hint(expected, came) if exercise.hint else ""
    return FAILED, None, f"{what} {hint}".strip()


def _behaves_like(
    exercise: _Exercise,
    suspect: _Suspect,
    probe: _Probe,
    came: _Outcome,
    *,
    strict: bool,
) -> bool:
    try:
        value, leaves = _call(exercise, suspect.function, probe)
        # Most suspects are ruled out by their value, which spares the gradient.
        if not _close(
            came.value, value.detach().double(), exercise.tolerance, _VALUE_FLOOR
        ):
            return False
        outcome = _differentiate(value, leaves)
    except _UnusableError:
        return False
    return _same(came, outcome, exercise.tolerance, strict=strict)


def _run(exercise: _Exercise, fn: Callable[..., Any], probe: _Probe) -> _Outcome:
    return _differentiate(*_call(exercise, fn, probe))


def _call(
    exercise: _Exercise, fn: Callable[..., Any], probe: _Probe
) -> tuple[Tensor, list[Tensor]]:
    """The function's value on a probe, and the leaves to differentiate it by."""
    leaves = [
        x.detach().clone().requires_grad_()
        for x in probe.inputs[: exercise.differentiate]
    ]
    # Copies of the leaves, since a leaf may not be changed in place and the learner
    # should hear about that in our words.
    given = tuple(leaf.clone() for leaf in leaves) + tuple(
        _copy(x) for x in probe.inputs[exercise.differentiate :]
    )
    try:
        result = fn(*given)
    except NotImplementedError:
        raise _UnusableError("not attempted yet.", status=NOT_ATTEMPTED) from None
    except (KeyboardInterrupt, OutOfTime):
        raise
    except BaseException as error:  # sys.exit() is no reason to end the notebook
        if "ellipsis" in _in_words(error).lower():
            raise _UnusableError(
                "not attempted yet: a `...` is still there.", status=NOT_ATTEMPTED
            ) from None
        raise _UnusableError(
            f"expected a result {probe.title}, came {_in_words(error)}."
        ) from None
    if result is None or result is ...:
        raise _UnusableError(
            "not attempted yet: the function returns nothing.", status=NOT_ATTEMPTED
        )
    for position, (before, after) in enumerate(zip(probe.inputs, given, strict=True)):
        if not _unchanged(before, after):
            raise _UnusableError(
                f"the function changes its argument number {position + 1} in place; "
                "whoever calls it still needs the old values.",
                bug="changes_inputs",
            )
    if exercise.adapt is not None:
        result = exercise.adapt(result, probe.inputs)
    return _as_tensor(result, differentiate=bool(leaves)), leaves


def _differentiate(value: Tensor, leaves: list[Tensor]) -> _Outcome:
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if leaves and value.requires_grad and value.dim() == 0:
        try:
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        except RuntimeError as error:
            raise _UnusableError(
                f"the gradient of the result cannot be computed: {_in_words(error)}."
            ) from None
    filled = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return _Outcome(
        value.detach().double(),
        tuple(gradient.double() for gradient in filled),
        attached=not leaves or value.requires_grad,
    )


def _as_tensor(result: Any, *, differentiate: bool) -> Tensor:
    if isinstance(result, Tensor):
        return result
    if isinstance(getattr(result, "loss", None), Tensor):
        raise _UnusableError("expected the loss alone, came a record that holds it.")
    numeric = isinstance(result, (int, float, np.generic, np.ndarray))
    if isinstance(result, bool) or not (numeric or isinstance(result, (list, tuple))):
        raise _UnusableError(f"expected a tensor or a number, came {_kind(result)}.")
    if differentiate and not numeric:
        raise _UnusableError(f"expected one tensor, came {_kind(result)}.")
    if differentiate:
        raise _UnusableError(
            f"expected a tensor, came {_kind(result)}: a plain number has no gradient, "
            "so nothing could be trained with it.",
            bug="student_detached",
        )
    try:
        return torch.as_tensor(result, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise _UnusableError(
            f"expected a tensor or a number, came {_kind(result)}."
        ) from None


def _same(a: _Outcome, b: _Outcome, tolerance: float, *, strict: bool) -> bool:
    """Whether two outcomes agree; not strict, the first gradient alone counts."""
    if not _close(a.value, b.value, tolerance, _VALUE_FLOOR):
        return False
    if not bool(a.value.isfinite().all()):
        # The value gives it away; what its gradient then holds is a matter of style.
        return True
    until = None if strict else 1
    return all(
        _close(x, y, tolerance, _GRADIENT_FLOOR)
        for x, y in zip(a.gradients[:until], b.gradients[:until], strict=True)
    )


def _close(a: Tensor, b: Tensor, tolerance: float, floor: float) -> bool:
    if a.shape != b.shape:
        return False
    # Where one is not finite, the other must be the same NaN or infinity.
    odd = ~(a.isfinite() & b.isfinite())
    if not torch.equal(a[odd].nan_to_num(nan=0.5), b[odd].nan_to_num(nan=0.5)):
        return False
    gap = (a[~odd] - b[~odd]).norm()
    return bool(gap <= tolerance * max(float(b[~odd].norm()), floor))


def _broken(outcome: _Outcome) -> bool:
    parts = (outcome.value, *outcome.gradients)
    return not all(bool(part.isfinite().all()) for part in parts)


def _copy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    if isinstance(x, torch.Generator):
        return torch.Generator().set_state(x.get_state())
    return list(x) if isinstance(x, list) else x


def _unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before, after)
    # Drawing from a generator is what it is for.
    return isinstance(before, torch.Generator) or bool(before == after)


# --- Words. ---


def _words_for(exercise: _Exercise, bug: str) -> str:
    for suspect in exercise.suspects:
        if suspect.name == bug:
            return f"Likely mistake: {suspect.mistake}. {suspect.symptom}"
    return "Something random is at work."


def _in_words(error: BaseException) -> str:
    """Type and message on one line; a learner's own error may fail at that, too."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    return f"{type(error).__name__}: {message[:300]}"


def _words_for_no_answer(fn: Any, stopped: OutOfTime) -> str:
    words = f"your function did not return within {TIME_LIMIT:g} s, so it was stopped."
    file = getattr(getattr(fn, "__code__", None), "co_filename", None)
    own = [frame for frame in stopped.stack if frame.filename == file and frame.line]
    if own:
        words += f" It was in line {own[-1].lineno} of its cell: {own[-1].line}"
    return (
        f"{words} Likely mistake: a loop whose condition stays true, or something "
        "that waits."
    )


def _place(exercise: _Exercise, bug: str | None) -> str:
    for suspect in exercise.suspects:
        if suspect.name == bug and suspect.taught_in:
            return suspect.taught_in
    return exercise.taught_in


def _difference(
    exercise: _Exercise,
    index: int,
    expected: Sequence[_Outcome],
    came: Sequence[_Outcome],
) -> str:
    title, wanted, got = exercise.probes[index].title, expected[index], came[index]
    tolerance, show = exercise.tolerance, exercise.show or _show
    if not _close(got.value, wanted.value, tolerance, _VALUE_FLOOR):
        return f"expected {show(wanted.value)} {title}, came {show(got.value)}."
    if not got.attached:
        return (
            f"the value is right {title}, but expected one with a gradient (possibly "
            "zero), came one without."
        )
    for name, right, wrong in zip(
        ("student", "teacher"), wanted.gradients, got.gradients, strict=False
    ):
        if not _close(wrong, right, tolerance, _GRADIENT_FLOOR):
            return (
                f"the value is right {title}, but of the gradient with respect to the "
                f"{name}'s logits expected the length {float(right.norm()):.4g}, came "
                f"{float(wrong.norm()):.4g}."
            )
    return f"the result differs {title}."


def _show(value: Tensor) -> str:
    # Adding zero turns -0 into 0.
    numbers = [f"{x + 0.0:.4g}" for x in value.flatten().tolist()]
    if value.dim() == 0:
        return numbers[0]
    return f"[{', '.join(numbers[:6])}{', …' if len(numbers) > 6 else ''}]"


def _shape(value: Tensor) -> str:
    if value.dim() == 0:
        return "a single number (shape [])"
    return f"the shape {list(value.shape)}"


def _kind(x: Any) -> str:
    return f"a value of type {type(x).__name__}"


# --- The loss of notebook 02. ---


def soft_label_loss(fn: Any) -> CheckResult:
    """Check a loss that mixes cross-entropy with soft labels.

    Args:
        fn: ``fn(student_logits, teacher_logits, labels, temperature, alpha)`` → scalar
            tensor that can be differentiated. Logits ``[batch, positions,
            vocabulary]`` fp32, labels ``[batch, positions]`` unshifted with ``-100``
            ignored; forward KL at temperature T, T² included; mean over the positions
            that count; the teacher is a constant; no position, a zero that keeps its
            graph; -inf in the teacher's ignored rows must do no harm.

    Returns:
        A :class:`CheckResult`; ``bug`` names the entry of ``known_bugs`` that behaves
        the same. Takes less than a second.

    Exercise of notebook 02.
    """
    return _judge(_loss_exercise(_loss_probes()), fn)


def _loss_exercise(probes: tuple[_Probe, ...]) -> _Exercise:
    return _Exercise(
        name="soft_label_loss",
        probes=probes,
        reference=_reference_loss,
        suspects=tuple(
            _Suspect(bug.name, bug.title, bug.symptom, mutant, bug.taught_in)
            for bug in KNOWN_BUGS
            for mutant in bug.mutants
        ),
        taught_in="notebook 02",
        differentiate=2,
        hint=_loss_hint,
        random_bug="teacher_dropout",
    )


def _reference_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    return losses.soft_label_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha
    ).loss


# Places in what _loss_probes returns, for the hints.
_T1, _SOFT, _HARD, _MIX, _EQUAL, _OTHER_PADS, _ORDINARY = 0, 1, 2, 3, 4, 5, 7


def _loss_probes(
    seed: int = 0,
    batch: int = 3,
    positions: int = 8,
    vocabulary: int = 12,
    dtype: torch.dtype = torch.float32,
) -> tuple[_Probe, ...]:
    generator = torch.Generator().manual_seed(seed)

    def logits() -> Tensor:
        shape = (batch, positions, vocabulary)
        return (2 * torch.randn(shape, generator=generator)).to(dtype)

    student, teacher, second_student, second_teacher = (logits() for _ in range(4))
    labels = torch.randint(vocabulary, (batch, positions), generator=generator)
    # Ragged prompts and ragged padding; the first row has neither, so that the first
    # and the last position matter.
    for row in range(1, batch):
        labels[row, : 1 + row % 3] = losses.IGNORE_INDEX
        labels[row, positions - row % 3 :] = losses.IGNORE_INDEX
    one_row_masked = labels.clone()
    one_row_masked[batch - 1] = losses.IGNORE_INDEX
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=losses.IGNORE_INDEX)
    ignored = (targets == losses.IGNORE_INDEX).unsqueeze(-1)
    even = (torch.arange(positions) % 2 == 0).unsqueeze(-1)
    hostile = torch.where(ignored & even, -math.inf, teacher)
    hostile = torch.where(ignored & ~even, 1000 * teacher, hostile)
    other_pads = (
        torch.where(ignored, second_student, student),
        torch.where(ignored, second_teacher, teacher),
    )
    nothing = torch.full_like(labels, losses.IGNORE_INDEX)
    return (
        _Probe("at T = 1, α = 1", (student, teacher, labels, 1.0, 1.0)),
        _Probe("at T = 4, α = 1", (student, teacher, labels, 4.0, 1.0)),
        _Probe("at T = 4, α = 0", (student, teacher, labels, 4.0, 0.0)),
        _Probe("at T = 4, α = 0.5", (student, teacher, labels, 4.0, 0.5)),
        _Probe(
            "at T = 2, α = 1 when teacher and student agree",
            (teacher, teacher, labels, 2.0, 1.0),
        ),
        _Probe(
            "at T = 4, α = 1 with other logits at ignored positions",
            (*other_pads, labels, 4.0, 1.0),
        ),
        # Nearly every mistake shows here, so suspects are tried on this one first.
        _Probe(
            "at T = 2, α = 0.3 with one sequence masked",
            (second_student, second_teacher, one_row_masked, 2.0, 0.3),
        ),
        _Probe(
            "with −inf in the teacher's logits at ignored positions",
            (student, hostile, labels, 4.0, 0.5),
            edge="mask_after_exp",
        ),
        _Probe(
            "when every label is −100",
            (student, teacher, nothing, 2.0, 0.5),
            edge="zero_over_zero",
        ),
    )


def _loss_hint(expected: Sequence[_Outcome], came: Sequence[_Outcome]) -> str:
    """What can be said of a loss that behaves like no single known mistake."""

    def right(index: int) -> bool:
        return _same(came[index], expected[index], 2e-3, strict=False)

    if all(right(i) for i in range(_ORDINARY)):
        return "Everywhere else value and gradient are right."
    hints = ["It behaves like no single known mistake; there may be more than one."]
    hard, soft = right(_HARD), right(_SOFT)
    if hard != soft:
        good, bad = ("hard", "soft") if hard else ("soft", "hard")
        hints.append(f"The {good} term is right by itself, the {bad} term is not.")
    elif hard and not right(_MIX):
        hints.append("Each term is right by itself: look at how they are mixed.")
    if not soft:
        if right(_T1):
            hints.append("At T = 1 the soft term is right: look at the temperature.")
        hints.append(_ratio(expected[_SOFT], came[_SOFT], "soft"))
    if not hard:
        hints.append(_ratio(expected[_HARD], came[_HARD], "hard"))
    if not right(_EQUAL):
        hints.append(
            "When teacher and student agree the soft term should be 0 and is "
            f"{_show(came[_EQUAL].value)}."
        )
    if not _same(came[_SOFT], came[_OTHER_PADS], 1e-4, strict=False):
        hints.append("It changes with the logits at ignored positions.")
    return " ".join(hint for hint in hints if hint)


def _ratio(expected: _Outcome, came: _Outcome, term: str) -> str:
    if _broken(came):
        return ""
    wanted, got = expected.gradients[0].flatten(), came.gradients[0].flatten()
    if not float(got.norm()):
        return f"No gradient of the {term} term reaches the student."
    cosine = float(torch.dot(wanted, got) / (wanted.norm() * got.norm()))
    value_ratio = float(came.value / expected.value)
    length_ratio = float(got.norm() / wanted.norm())
    return (
        f"At T = 4 the {term} term's value is {value_ratio:.3g} times and its gradient "
        f"{length_ratio:.3g} times what it should be (cosine between the gradients "
        f"{cosine:.3f})."
    )


# --- The smaller exercises of notebook 01. ---


def _row(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def softmax(fn: Any) -> CheckResult:
    """Check a softmax with temperature.

    Args:
        fn: ``fn(logits, temperature)`` for logits ``[..., vocabulary]`` →
            probabilities of the same shape. Logits of 1,000 must not overflow.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 01.
    """
    one = _row(2.0, 0.5, -1.0, 0.0, 1.2)
    many = torch.randn((2, 3, 5), generator=torch.Generator().manual_seed(0))
    return _judge(
        _Exercise(
            name="softmax",
            probes=(
                _Probe("for five logits at T = 1", (one, 1.0)),
                _Probe("for five logits at T = 2", (one, 2.0)),
                _Probe("for five logits at T = 0.5", (one, 0.5)),
                _Probe("for logits [2, 3, 5] at T = 3", (many, 3.0)),
                _Probe("for logits around 1,000", (500 * one, 1.0), edge="overflow"),
            ),
            reference=lambda z, T: (z / T).softmax(-1),
            suspects=(
                _Suspect(
                    "temperature_multiplied",
                    "the logits are multiplied by the temperature",
                    "A high temperature sharpens the distribution, where it should "
                    "flatten it.",
                    lambda z, T: (z * T).softmax(-1),
                ),
                _Suspect(
                    "temperature_missing",
                    "the temperature is not used",
                    "The result is the same at every temperature.",
                    lambda z, T: z.softmax(-1),
                ),
                _Suspect(
                    "temperature_on_probabilities",
                    "the temperature is applied to the probabilities, not the logits",
                    "The numbers do not sum to 1, or their order of size is all that "
                    "is left.",
                    lambda z, T: z.softmax(-1) / T,
                ),
                _Suspect(
                    "wrong_dimension",
                    "the sum runs over the wrong dimension",
                    "One row is right; of several rows, each should sum to 1.",
                    lambda z, T: (z / T).softmax(0),
                ),
                _Suspect(
                    "wrong_dimension",
                    "the sum runs over the wrong dimension",
                    "One row is right; of several rows, each should sum to 1.",
                    lambda z, T: (z / T).flatten().softmax(0).view_as(z),
                ),
                _Suspect(
                    "log_probabilities",
                    "these are log-probabilities",
                    "The numbers are negative, where they should sum to 1.",
                    lambda z, T: (z / T).log_softmax(-1),
                ),
                _Suspect(
                    "not_normalised",
                    "the exponentials are not divided by their sum",
                    "The numbers do not sum to 1.",
                    lambda z, T: (z / T).exp(),
                ),
                _Suspect(
                    "overflow",
                    "the exponential of a large logit overflows",
                    "exp(1000) is infinite and ∞/∞ is NaN; the result depends only on "
                    "differences between logits, which leaves you free to shift them.",
                    lambda z, T: (z / T).exp() / (z / T).exp().sum(-1, keepdim=True),
                ),
            ),
            taught_in="notebook 01",
        ),
        fn,
    )


_P = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
_Q = torch.tensor([[0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
_P_WITH_ZERO = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def entropy(fn: Any) -> CheckResult:
    """Check an entropy in nats.

    Args:
        fn: ``fn(p)`` for probabilities ``[..., vocabulary]`` → ``[...]`` in nats; a
            probability of zero contributes nothing.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 01.
    """
    return _judge(
        _Exercise(
            name="entropy",
            probes=(
                _Probe("for (0.7, 0.2, 0.1)", (_P[0],)),
                _Probe("for two rows", (_P,)),
                _Probe(
                    "where a probability is 0", (_P_WITH_ZERO,), edge="zero_times_log"
                ),
            ),
            reference=_entropy,
            suspects=(
                _Suspect(
                    "log2",
                    "the logarithm has base 2",
                    "The result is in bits; nats were asked for, and it is 1/ln 2 = "
                    "1.44 times as large.",
                    lambda p: _entropy(p) / math.log(2),
                ),
                _Suspect(
                    "minus_missing",
                    "the sign is missing",
                    "Logarithms of probabilities are negative; an entropy is not.",
                    lambda p: -_entropy(p),
                ),
                _Suspect(
                    "mean_not_sum",
                    "the mean is taken over the vocabulary, not the sum",
                    "The result is 1/V of what it should be.",
                    lambda p: _entropy(p) / p.shape[-1],
                ),
                _Suspect(
                    "probabilities_missing",
                    "the logarithms are not weighted with the probabilities",
                    "Unlikely tokens count most, where they should hardly count.",
                    lambda p: -p.log().sum(-1),
                ),
                _zero_times_log(lambda p: -(p * p.log()).sum(-1)),
            ),
            taught_in="notebook 01",
        ),
        fn,
    )


def _zero_times_log(function: Callable[..., Any]) -> _Suspect:
    return _Suspect(
        "zero_times_log",
        "0 · log 0 is computed as it stands",
        "log 0 is −∞ and 0 · ∞ is NaN; a token that cannot occur should contribute "
        "nothing.",
        function,
    )


def forward_kl(fn: Any) -> CheckResult:
    """Check KL(p ‖ q) in nats.

    Args:
        fn: ``fn(p, q)`` for probabilities ``[..., vocabulary]`` → ``[...]`` in nats; a
            token with p = 0 contributes nothing.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 01.
    """
    return _judge(
        _Exercise(
            name="forward_kl",
            probes=(
                _Probe("for p = (0.7, 0.2, 0.1), q = (0.3, 0.3, 0.4)", (_P[0], _Q[0])),
                _Probe("for two rows", (_P, _Q)),
                _Probe("where p = q", (_Q, _Q)),
                _Probe("where p is 0", (_P_WITH_ZERO, _Q), edge="zero_times_log"),
            ),
            reference=_kl,
            suspects=(
                _Suspect(
                    "reversed",
                    "the divergence runs from q to p",
                    "It is 0 where p = q, so it looks right there; the two directions "
                    "differ everywhere else.",
                    lambda p, q: _kl(q, p),
                ),
                _Suspect(
                    "cross_entropy",
                    "this is the cross-entropy, and the entropy of p is still in it",
                    "Where p = q it gives the entropy of p, not 0.",
                    lambda p, q: -torch.xlogy(p, q).sum(-1),
                ),
                _Suspect(
                    "log2",
                    "the logarithm has base 2",
                    "The result is in bits, 1/ln 2 = 1.44 times as large as in nats.",
                    lambda p, q: _kl(p, q) / math.log(2),
                ),
                _Suspect(
                    "sign",
                    "the fraction in the logarithm is upside down",
                    "The result is negative; a divergence is not.",
                    lambda p, q: -_kl(p, q),
                ),
                _Suspect(
                    "mean_not_sum",
                    "the mean is taken over the vocabulary, not the sum",
                    "The result is 1/V of what it should be.",
                    lambda p, q: _kl(p, q) / p.shape[-1],
                ),
                _Suspect(
                    "probabilities_missing",
                    "the log-ratios are not weighted with the probabilities",
                    "Every token counts alike, however unlikely it is.",
                    lambda p, q: (p / q).log().sum(-1),
                ),
                _zero_times_log(lambda p, q: (p * (p / q).log()).sum(-1)),
            ),
            taught_in="notebook 01",
        ),
        fn,
    )


def perplexity(fn: Any) -> CheckResult:
    """Check a perplexity.

    Args:
        fn: ``fn(nll)`` for the mean negative log-likelihood in nats per token, a
            scalar tensor → perplexity, a number or a scalar tensor.

    Returns:
        A :class:`CheckResult`.

    For an exercise of any notebook that reports a loss.
    """
    return _judge(
        _Exercise(
            name="perplexity",
            probes=tuple(
                _Probe(f"for {nll} nats per token", (torch.tensor(nll).double(),))
                for nll in (3.2, 0.7, 0.0)
            ),
            reference=lambda nll: nll.exp(),
            suspects=(
                _Suspect(
                    "base_2",
                    "2 is raised to the power of nats",
                    "The bases do not belong together: nats go with e, bits with 2.",
                    lambda nll: 2**nll,
                ),
                _Suspect(
                    "sign",
                    "this is the probability per token, not its inverse",
                    "The result is below 1, and a perplexity is at least 1.",
                    lambda nll: (-nll).exp(),
                ),
                _Suspect(
                    "bits",
                    "this is the loss in bits per token",
                    "It is proportional to the loss, where a perplexity grows "
                    "exponentially with it.",
                    lambda nll: nll / math.log(2),
                ),
                _Suspect(
                    "unchanged",
                    "this is the loss itself",
                    "A perplexity grows exponentially with the loss.",
                    lambda nll: nll,
                ),
            ),
            taught_in="notebook 01",
        ),
        fn,
    )


def bits_per_byte(fn: Any) -> CheckResult:
    """Check a conversion from nats per token to bits per byte.

    Args:
        fn: ``fn(nll_per_token, tokens, bytes)`` for the mean negative log-likelihood
            in nats per token (scalar tensor), the number of tokens and the number of
            bytes they stand for → bits per byte, a number or a scalar tensor.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 00.
    """
    ln2 = math.log(2)
    return _judge(
        _Exercise(
            name="bits_per_byte",
            probes=tuple(
                _Probe(
                    f"for {nll} nats per token, {tokens} tokens, {size} bytes",
                    (torch.tensor(nll).double(), tokens, size),
                )
                for nll, tokens, size in ((3.5, 100, 420), (1.2, 1000, 3100))
            ),
            reference=lambda nll, tokens, size: nll * tokens / size / ln2,
            suspects=(
                _Suspect(
                    "nats",
                    "this is nats per byte",
                    "It is 0.69 (= ln 2) times what it should be.",
                    lambda nll, tokens, size: nll * tokens / size,
                ),
                _Suspect(
                    "nats",
                    "the step from nats to bits goes the wrong way",
                    "A bit is 0.69 nats, so the number of bits is the larger one.",
                    lambda nll, tokens, size: nll * tokens / size * ln2,
                ),
                _Suspect(
                    "inverted",
                    "tokens and bytes are swapped",
                    "A token stands for several bytes, so bits per byte are fewer than "
                    "bits per token.",
                    lambda nll, tokens, size: nll * size / tokens / ln2,
                ),
                _Suspect(
                    "per_token",
                    "this is bits per token",
                    "It does not depend on the number of bytes, so tokenizers cannot "
                    "be compared with it.",
                    lambda nll, tokens, size: nll / ln2,
                ),
                _Suspect(
                    "not_totalled",
                    "the loss of one token is divided by the bytes of all",
                    "The result shrinks as the text grows.",
                    lambda nll, tokens, size: nll / size / ln2,
                ),
            ),
            taught_in="notebook 00",
        ),
        fn,
    )


def sampled_labels(fn: Any) -> CheckResult:
    """Check labels that are drawn from the teacher's distribution.

    Args:
        fn: ``fn(teacher_logits, generator)`` for logits ``[positions, vocabulary]``
            and a ``torch.Generator`` → token ids ``[positions]``, one draw each.

    Returns:
        A :class:`CheckResult`. It counts 6,000 draws and has a wide margin.

    Exercise of notebook 02.
    """
    distributions = torch.tensor([[2.0, 1.0, 0.0, 0.5, -1.0], [0.0, -1.0, 1.0, 2.0, 2]])
    teacher = distributions.repeat(3000, 1)
    return _judge(
        _Exercise(
            name="sampled_labels",
            probes=(
                _Probe(
                    "as frequencies of the ids in many draws",
                    (teacher, torch.Generator().manual_seed(0)),
                ),
            ),
            reference=lambda logits, generator: torch.multinomial(
                logits.softmax(-1), 1, generator=generator
            ).squeeze(-1),
            suspects=(
                _Suspect(
                    "generator_ignored",
                    "the draws do not come from the generator",
                    "With the same seed they should be the same.",
                    lambda logits, generator: torch.multinomial(
                        logits.softmax(-1), 1
                    ).squeeze(-1),
                ),
                _Suspect(
                    "argmax",
                    "the likeliest token is taken, nothing is drawn",
                    "The second choices never occur, so the labels lose what the "
                    "teacher knows beyond its first answer.",
                    lambda logits, generator: logits.argmax(-1),
                ),
                _Suspect(
                    "uniform",
                    "all tokens are equally likely to be drawn",
                    "The labels tell nothing about the teacher.",
                    lambda logits, generator: torch.randint(
                        logits.shape[-1], logits.shape[:-1], generator=generator
                    ),
                ),
            ),
            taught_in="notebook 02",
            adapt=_frequencies,
            random_bug="generator_ignored",
            tolerance=0.15,
        ),
        fn,
    )


def _frequencies(ids: Any, inputs: tuple[Any, ...]) -> Tensor:
    """How often each id came, ``[2, vocabulary]``: even and odd positions apart."""
    positions, vocabulary = inputs[0].shape
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex():
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise _UnusableError(f"expected a tensor of integer token ids, came {kind}.")
    if ids.shape != (positions,):
        raise _UnusableError(
            f"expected one id per position, shape [{positions}], came "
            f"{list(ids.shape)}."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise _UnusableError(
            f"expected ids from 0 to {vocabulary - 1}, came {int(ids.min())} to "
            f"{int(ids.max())}."
        )
    hits = torch.nn.functional.one_hot(ids.long(), vocabulary).double()
    return hits.view(-1, 2, vocabulary).mean(0)


def top_choices(fn: Any) -> CheckResult:
    """Check a list of the likeliest words.

    Args:
        fn: ``fn(logits, words, k)`` for logits ``[vocabulary]``, the word of every id
            and a count → list of k pairs (word, probability), likeliest first.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 00.
    """
    words = ["dog", "cat", "sofa", "animal", "tree", "hamster"]
    logits = _row(1.6, 2.9, -1.0, 1.0, -2.0, 0.3)

    def pairs(
        values: Tensor, order: Tensor, words: list[str], k: int
    ) -> list[tuple[str, float]]:
        return [(words[i], float(values[i])) for i in order.tolist()[:k]]

    def ranked(z: Tensor) -> Tensor:
        return z.argsort(descending=True)

    return _judge(
        _Exercise(
            name="top_choices",
            probes=(
                _Probe("for k = 3", (logits, words, 3)),
                _Probe("for k = 6", (logits, words, 6)),
                _Probe("for k = 1", (-logits, words, 1)),
            ),
            reference=lambda z, words, k: pairs(z.softmax(-1), ranked(z), words, k),
            suspects=(
                _Suspect(
                    "raw_logits",
                    "these are logits, not probabilities",
                    "Some are negative or above 1.",
                    lambda z, words, k: pairs(z, ranked(z), words, k),
                ),
                _Suspect(
                    "ascending",
                    "the order runs from the least likely word",
                    "The first word should have the highest probability.",
                    lambda z, words, k: pairs(z.softmax(-1), z.argsort(), words, k),
                ),
                _Suspect(
                    "ascending",
                    "the right words are there, but the likeliest comes last",
                    "The first word should have the highest probability.",
                    lambda z, words, k: pairs(z.softmax(-1), ranked(z), words, k)[::-1],
                ),
                _Suspect(
                    "unsorted",
                    "the words are in the order of the vocabulary",
                    "The first word should have the highest probability.",
                    lambda z, words, k: pairs(
                        z.softmax(-1), torch.arange(len(z)), words, k
                    ),
                ),
                _Suspect(
                    "renormalised",
                    "the probabilities are rescaled to the words that are shown",
                    "They sum to 1, although other words could have come too.",
                    lambda z, words, k: pairs(
                        z.softmax(-1) / z.softmax(-1).topk(k).values.sum(),
                        ranked(z),
                        words,
                        k,
                    ),
                ),
                _Suspect(
                    "log_probabilities",
                    "these are log-probabilities",
                    "They are negative.",
                    lambda z, words, k: pairs(z.log_softmax(-1), ranked(z), words, k),
                ),
            ),
            taught_in="notebook 00",
            adapt=_choice_table,
            tolerance=1e-2,
            show=lambda table: _show_choices(table, words),
        ),
        fn,
    )


def _choice_table(choices: Any, inputs: tuple[Any, ...]) -> Tensor:
    """One row per choice, ``[k, vocabulary]``, with its probability at its word."""
    _, words, k = inputs
    if not isinstance(choices, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in choices
    ):
        raise _UnusableError(
            "expected a list of pairs (word, probability), came "
            f"{_kind(choices)} of another make."
        )
    if len(choices) != k:
        raise _UnusableError(f"expected {k} pairs for k = {k}, came {len(choices)}.")
    table = torch.zeros(k, len(words), dtype=torch.float64)
    for place, (word, probability) in enumerate(choices):
        if word not in words:
            raise _UnusableError(f"expected words of the vocabulary, came {word!r}.")
        try:
            table[place, words.index(word)] = float(probability)
        except (TypeError, ValueError, RuntimeError):
            raise _UnusableError(
                f"expected a number beside {word!r}, came {_kind(probability)}."
            ) from None
    return table


def _show_choices(table: Tensor, words: list[str]) -> str:
    best = table.abs().argmax(-1).tolist()
    return ", ".join(
        f"{words[i]} {float(row[i]):.3g}" for i, row in zip(best, table, strict=True)
    )


# --- storing soft labels ------------------------------------------------------------


def _kept(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    weights, ids = logits.softmax(-1).topk(k)
    return ids, weights


def _bucket_loss(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """KL over the kept tokens and one class for all the others."""
    q = student.softmax(-1).gather(-1, ids)
    p_rest, q_rest = 1 - weights.sum(-1), 1 - q.sum(-1)
    kept = (weights * (weights / q).log()).sum(-1)
    return kept + p_rest * (p_rest / q_rest).log()


def _renormalised_loss(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    p = weights / weights.sum(-1, keepdim=True)
    log_q = student.log_softmax(-1).gather(-1, ids)
    return (p * (p.log() - log_q)).sum(-1)


def tail_bucket(fn: Any) -> CheckResult:
    """Check a forward KL with a tail bucket.

    Args:
        fn: ``fn(student_logits, ids, weights)`` for logits ``[positions, vocabulary]``
            and the teacher's k likeliest tokens with their probabilities, both
            ``[positions, k]`` → KL over k + 1 classes ``[positions]`` in nats.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 03.
    """
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        2 * torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    ).unbind()
    by_hand = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).double().log()
    known = torch.tensor([[0, 1]]), torch.tensor([[0.4, 0.4]]).double()
    return _judge(
        _Exercise(
            name="tail_bucket",
            probes=(
                _Probe("for the example", (by_hand, *known)),
                _Probe("for four positions", (student, *_kept(teacher, 3))),
                _Probe("where both agree", (teacher, *_kept(teacher, 3))),
            ),
            reference=_bucket_loss,
            suspects=(
                _Suspect(
                    "top_k_renormalised",
                    "the kept tokens are renormalised, and the rest is forgotten",
                    "Where both models agree it is not 0, and it teaches the student "
                    "that nothing else ever comes.",
                    _renormalised_loss,
                ),
                _Suspect(
                    "tail_missing",
                    "the last class is missing",
                    "Where the teacher is less sure than the student it is negative; "
                    "a divergence is not.",
                    lambda s, ids, w: (
                        w * (w.log() - s.log_softmax(-1).gather(-1, ids))
                    ).sum(-1),
                ),
                _Suspect(
                    "both_renormalised",
                    "both sides are scaled to sum to 1 on the kept tokens",
                    "Only proportions among them are compared; how much is left for "
                    "all other tokens is not learned.",
                    lambda s, ids, w: _renormalised_loss(
                        s.gather(-1, ids), torch.arange(w.shape[-1]).expand_as(ids), w
                    ),
                ),
                _Suspect(
                    "student_renormalised",
                    "the student's kept tokens are renormalised",
                    "What the student gives to all other tokens costs nothing.",
                    lambda s, ids, w: (
                        w * (w.log() - s.gather(-1, ids).log_softmax(-1))
                    ).sum(-1),
                ),
                _Suspect(
                    "reversed",
                    "the divergence runs from the student to the teacher",
                    "It is 0 where both agree, so it looks right there.",
                    _reversed_bucket_loss,
                ),
                _Suspect(
                    "cross_entropy",
                    "this is the cross-entropy; the entropy of what is kept is in it",
                    "Where both models agree it is not 0.",
                    _bucket_cross_entropy,
                ),
            ),
            taught_in="notebook 03",
            differentiate=1,
        ),
        fn,
    )


def _reversed_bucket_loss(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    q = student.softmax(-1).gather(-1, ids)
    p_rest, q_rest = 1 - weights.sum(-1), 1 - q.sum(-1)
    return (q * (q / weights).log()).sum(-1) + q_rest * (q_rest / p_rest).log()


def _bucket_cross_entropy(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    q = student.softmax(-1).gather(-1, ids)
    p_rest, q_rest = 1 - weights.sum(-1), 1 - q.sum(-1)
    return -(weights * q.log()).sum(-1) - p_rest * q_rest.log()


def sampled_estimate(fn: Any) -> CheckResult:
    """Check an estimate of a distribution from draws.

    Args:
        fn: ``fn(draws, vocabulary)`` for token ids ``[positions, draws]`` and the size
            of the vocabulary → probabilities ``[positions, vocabulary]``.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 03.
    """

    def counts(draws: Tensor, vocabulary: int) -> Tensor:
        return torch.nn.functional.one_hot(draws, vocabulary).double().sum(1)

    def presence(draws: Tensor, vocabulary: int) -> Tensor:
        return (counts(draws, vocabulary) > 0).double()

    return _judge(
        _Exercise(
            name="sampled_estimate",
            probes=(
                _Probe("for draws 2, 0, 2, 1", (torch.tensor([[2, 0, 2, 1]]), 4)),
                _Probe(
                    "for two positions",
                    (torch.tensor([[0, 0, 0, 5, 1], [4, 3, 4, 3, 3]]), 6),
                ),
            ),
            reference=lambda draws, size: counts(draws, size) / draws.shape[1],
            suspects=(
                _Suspect(
                    "counts_not_divided",
                    "these are counts, not probabilities",
                    "A row sums to the number of draws instead of 1.",
                    counts,
                ),
                _Suspect(
                    "repetitions_lost",
                    "a token that was drawn twice counts once",
                    "Every drawn token looks equally likely; the estimate is biased "
                    "towards rare tokens.",
                    lambda draws, size: (
                        presence(draws, size)
                        / presence(draws, size).sum(-1, keepdim=True)
                    ),
                ),
                _Suspect(
                    "repetitions_lost",
                    "a token that was drawn twice counts once",
                    "A row sums to less than 1.",
                    lambda draws, size: presence(draws, size) / draws.shape[1],
                ),
                _Suspect(
                    "divided_by_vocabulary",
                    "the counts are divided by the size of the vocabulary",
                    "A row does not sum to 1.",
                    lambda draws, size: counts(draws, size) / size,
                ),
                _Suspect(
                    "divided_by_positions",
                    "the counts are divided by the number of positions",
                    "The result changes with the size of the batch.",
                    lambda draws, size: counts(draws, size) / draws.shape[0],
                ),
            ),
            taught_in="notebook 03",
        ),
        fn,
    )


def cache_shift(fn: Any) -> CheckResult:
    """Check a search for the shift of a misaligned cache.

    Args:
        fn: ``fn(cached, recomputed)`` for the likeliest token at every position
            ``[positions]``, from the cache and from the teacher → by how many
            positions the cache is late: an int from -2 to 2, so that
            ``cached[t] == recomputed[t - shift]``.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 03.
    """
    generator = torch.Generator().manual_seed(4)
    right = torch.randint(50, (40,), generator=generator)

    def moved(shift: int) -> Tensor:
        ids = torch.roll(right, shift)
        ids[7] = 0  # a tie that fell the other way
        return ids

    def agreement(cached: Tensor, recomputed: Tensor, shift: int) -> int:
        n = len(cached)
        left = cached[max(0, shift) : n + min(0, shift)]
        other = recomputed[max(0, -shift) : n - max(0, shift)]
        return int((left == other).sum())

    def search(cached: Tensor, recomputed: Tensor) -> Tensor:
        best = max(range(-2, 3), key=lambda s: agreement(cached, recomputed, s))
        return torch.tensor(float(best))

    return _judge(
        _Exercise(
            name="cache_shift",
            probes=tuple(
                _Probe(f"for a cache that is {words}", (moved(shift), right))
                for shift, words in (
                    (0, "in place"),
                    (1, "one position late"),
                    (-1, "one position early"),
                    (2, "two positions late"),
                )
            ),
            reference=search,
            suspects=(
                _Suspect(
                    "sign",
                    "the sign is the wrong way round",
                    "A late cache is called early.",
                    lambda cached, recomputed: -search(cached, recomputed),
                ),
                _Suspect(
                    "always_zero",
                    "it finds every cache in place",
                    "Compare the agreement of all shifts, not only of none.",
                    lambda cached, recomputed: torch.tensor(0.0),
                ),
                _Suspect(
                    "size_only",
                    "the size is right, the direction is lost",
                    "Early and late must come out differently.",
                    lambda cached, recomputed: search(cached, recomputed).abs(),
                ),
            ),
            taught_in="notebook 03",
        ),
        fn,
    )


def answer_labels(fn: Any) -> CheckResult:
    """Check the labels of a row in which only the answer is learned.

    Args:
        fn: ``fn(prompt, answer, end)`` for token ids of a prompt and of an answer
            (lists) and the id of the end-of-text token → labels of the row
            ``prompt + answer + [end]``, unshifted: a list.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 04.
    """

    def labels(prompt: list[int], answer: list[int], end: int) -> list[int]:
        return [losses.IGNORE_INDEX] * len(prompt) + [*answer, end]

    return _judge(
        _Exercise(
            name="answer_labels",
            probes=(
                _Probe("for a prompt of 2 and an answer of 3", ([5, 6], [7, 8, 9], 0)),
                _Probe("for a prompt of 3 and an answer of 1", ([4, 4, 4], [9], 2)),
                # As a separator, say between two steps.
                _Probe("for an answer that holds it too", ([5], [6, 2, 7], 2)),
            ),
            reference=labels,
            suspects=(
                _Suspect(
                    "end_not_learned",
                    "the end-of-text token is masked",
                    "The student writes on and on: nothing taught it to stop.",
                    lambda prompt, answer, end: (
                        [*labels(prompt, answer, end)[:-1], losses.IGNORE_INDEX]
                    ),
                ),
                _Suspect(
                    "prompt_learned",
                    "the prompt is learned too",
                    "The student spends its capacity on questions that it will be "
                    "given anyway.",
                    lambda prompt, answer, end: [*prompt, *answer, end],
                ),
                _Suspect(
                    "shifted_twice",
                    "the labels are shifted; the loss will shift them again",
                    "Every token learns the one after the next.",
                    lambda prompt, answer, end: (
                        [*labels(prompt, answer, end)[1:], losses.IGNORE_INDEX]
                    ),
                ),
                _Suspect(
                    "masked_by_id",
                    "every end token is masked by its id",
                    "Mask by position: the same id may be padding, a separator, and "
                    "the very thing to learn.",
                    lambda prompt, answer, end: [
                        losses.IGNORE_INDEX if token == end else token
                        for token in labels(prompt, answer, end)
                    ],
                ),
            ),
            taught_in="notebook 04",
        ),
        fn,
    )


def _yes_or_no(result: Any, _: tuple[Any, ...]) -> Tensor:
    if isinstance(result, Tensor) and result.dtype == torch.bool and result.dim() == 0:
        return result.float()
    if not isinstance(result, (bool, np.bool_)):
        raise _UnusableError(f"expected True or False, came {_kind(result)}.")
    return torch.tensor(float(result))


def shares_run(fn: Any) -> CheckResult:
    """Check a search for runs of words that two texts share.

    Args:
        fn: ``fn(text, held_out, n)`` for two texts → whether some ``n`` words that
            stand side by side in one also do in the other, whatever their case.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 04.
    """

    def runs(text: str, n: int) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    test = "a small animal that lives in trees"
    return _judge(
        _Exercise(
            name="shares_run",
            probes=(
                _Probe("for a copy", ("It is a small animal that lives", test, 4)),
                _Probe("for nothing in common", ("an old ship", test, 2)),
                _Probe("for capitals", ("A SMALL ANIMAL", test, 3)),
                _Probe("for scattered words", ("trees lives that small", test, 2)),
                _Probe("for parts of words", ("mall anima", test, 2)),
                _Probe("for a text that is too short", ("a small", test, 3)),
                _Probe("for a run at the very end", ("lives in trees", test, 3)),
            ),
            reference=lambda text, held_out, n: bool(runs(text, n) & runs(held_out, n)),
            suspects=(
                _Suspect(
                    "bag_of_words",
                    "it counts common words, wherever they stand",
                    "Common words are in every text; a run of them is not.",
                    lambda text, held_out, n: (
                        len(set(text.lower().split()) & set(held_out.lower().split()))
                        >= n
                    ),
                ),
                _Suspect(
                    "case_matters",
                    "capitals make it miss a copy",
                    "Compare in lower case.",
                    lambda text, held_out, n: any(
                        tuple(text.split()[i : i + n])
                        == tuple(held_out.split()[j : j + n])
                        for i in range(len(text.split()) - n + 1)
                        for j in range(len(held_out.split()) - n + 1)
                    ),
                ),
                _Suspect(
                    "last_run_missed",
                    "the last run of a text is not looked at",
                    "A text of L words has L - n + 1 runs.",
                    lambda text, held_out, n: any(
                        tuple(text.lower().split()[i : i + n]) in runs(held_out, n)
                        for i in range(len(text.split()) - n)
                    ),
                ),
                _Suspect(
                    "substring",
                    "it finds parts of words",
                    "Split into words before you compare.",
                    lambda text, held_out, n: text.lower() in held_out.lower(),
                ),
            ),
            taught_in="notebook 04",
            adapt=_yes_or_no,
        ),
        fn,
    )


def may_ask(fn: Any) -> CheckResult:
    """Check a budget that is never exceeded.

    Args:
        fn: ``fn(spent, under_way, worst, budget)`` for the tokens of the answers that
            have come, a list with the worst case of each request under way, the worst
            case of the next one, and the budget → whether the next may go out.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 04.
    """
    return _judge(
        _Exercise(
            name="may_ask",
            probes=(
                _Probe("with nothing spent", (0, [], 50, 100)),
                _Probe("with nearly all spent", (70, [], 50, 100)),
                _Probe("with two under way", (10, [40, 40], 50, 100)),
                _Probe("with one under way", (10, [40], 50, 100)),
                _Probe("with a little too much", (11, [40], 50, 100)),
                _Probe("with the budget gone", (100, [], 1, 100)),
            ),
            reference=lambda spent, under_way, worst, budget: (
                spent + sum(under_way) + worst <= budget
            ),
            suspects=(
                _Suspect(
                    "under_way_forgotten",
                    "requests under way are not counted",
                    "Eight at a time can overshoot by eight answers.",
                    lambda spent, under_way, worst, budget: spent + worst <= budget,
                ),
                _Suspect(
                    "asked_too_late",
                    "it stops only when the budget is gone",
                    "The answer that exceeds it has been paid for by then.",
                    lambda spent, under_way, worst, budget: spent < budget,
                ),
                _Suspect(
                    "next_forgotten",
                    "the next request itself is not counted",
                    "It may take all that is left, and more.",
                    lambda spent, under_way, worst, budget: (
                        spent + sum(under_way) <= budget
                    ),
                ),
                _Suspect(
                    "last_one_refused",
                    "a request that just fits is refused",
                    "Reaching the budget is not exceeding it.",
                    lambda spent, under_way, worst, budget: (
                        spent + sum(under_way) + worst < budget
                    ),
                ),
            ),
            taught_in="notebook 04",
            adapt=_yes_or_no,
        ),
        fn,
    )


def exact_checker(fn: Any) -> CheckResult:
    """Check a checker of written-out sums.

    Args:
        fn: ``fn(answer, result)`` for a text such as ``"27+58=85,85+46=131;131"`` and
            the right result, an ``int`` → whether what stands behind the last
            semicolon is that number and nothing else, spaces apart.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 05.
    """

    def is_right(answer: str, result: int) -> bool:
        _, semicolon, last = answer.rpartition(";")
        return bool(semicolon) and last.strip() == str(result)

    worked = "27+58=85,85+46=131"
    return _judge(
        _Exercise(
            name="exact_checker",
            probes=(
                _Probe("for a right answer", (f"{worked};131", 131)),
                _Probe("for a wrong result", (f"{worked};121", 131)),
                _Probe("for a result that stops early", (f"{worked};13", 131)),
                _Probe("for a digit too many", (f"{worked};1131", 131)),
                _Probe("for spaces around it", (f"{worked}; 131 ", 131)),
                _Probe("for words after it", (f"{worked};131 or so", 131)),
                _Probe("for an answer without its end", (worked, 131)),
                _Probe("for second thoughts", (f"{worked};131;121", 131)),
                _Probe("for no number at all", (f"{worked};", 131)),
            ),
            reference=is_right,
            suspects=(
                _Suspect(
                    "found_anywhere",
                    "it finds the number anywhere in the answer",
                    "The steps may hold the right number and the result another.",
                    lambda answer, result: str(result) in answer,
                ),
                _Suspect(
                    "ends_with",
                    "it looks only at how the answer ends",
                    "1131 ends in 131 too, and what was cut off may end well.",
                    lambda answer, result: answer.strip().endswith(str(result)),
                ),
                _Suspect(
                    "begins_with",
                    "it accepts what only begins with the number",
                    "Nothing but spaces may follow the result.",
                    lambda answer, result: (
                        ";" in answer
                        and answer.rpartition(";")[2].strip().startswith(str(result))
                    ),
                ),
                _Suspect(
                    "first_semicolon",
                    "it takes what follows the first semicolon",
                    "A model may think again; its last word counts.",
                    lambda answer, result: (
                        (answer.split(";")[1:2] or [""])[0].strip() == str(result)
                    ),
                ),
                _Suspect(
                    "end_not_needed",
                    "it accepts an answer that never came to its result",
                    "Without the semicolon there is no result, only a step.",
                    lambda answer, result: (
                        re.split("[;=]", answer)[-1].strip() == str(result)
                    ),
                ),
            ),
            taught_in="notebook 05",
            adapt=_yes_or_no,
        ),
        fn,
    )


def keep_right(fn: Any) -> CheckResult:
    """Check the choice that rejection sampling makes.

    Args:
        fn: ``fn(samples, right)`` for a list of ``(question, answer)`` and a list of
            bools → the places, in order, of the samples that are right, each answer
            to a question once.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 05.
    """

    def keep(
        samples: list[tuple[str, str]],
        right: list[bool],
        same: Callable[[tuple[str, str]], Any] = lambda sample: sample,
    ) -> list[int]:
        seen: set[Any] = set()
        kept = []
        for place, (sample, is_right) in enumerate(zip(samples, right, strict=True)):
            if is_right and same(sample) not in seen:
                seen.add(same(sample))
                kept.append(place)
        return kept

    samples = [("1+2", "3"), ("1+2", "4"), ("2+1", "3"), ("1+2", "3"), ("1+2", "2+1;3")]
    right = [True, False, True, True, True]
    return _judge(
        _Exercise(
            name="keep_right",
            probes=(
                _Probe("for two samples, one of them wrong", (samples[:2], right[:2])),
                _Probe("for one answer to two questions", (samples[:3], right[:3])),
                _Probe("for a sample that comes again", (samples[:4], right[:4])),
                _Probe("for two ways to one result", (samples, right)),
                _Probe("for nothing right", (samples[1:2], right[1:2])),
            ),
            reference=keep,
            suspects=(
                _Suspect(
                    "repeats_kept",
                    "a sample that was drawn twice is kept twice",
                    "Easy questions give the same answer again and again, and crowd "
                    "out the rest.",
                    lambda samples, right: [
                        place for place, good in enumerate(right) if good
                    ],
                ),
                _Suspect(
                    "wrong_kept",
                    "wrong answers are kept",
                    "The student learns the teacher's mistakes.",
                    lambda samples, right: keep(samples, [True] * len(samples)),
                ),
                _Suspect(
                    "answers_alone_compared",
                    "an answer is dropped because another question had the same",
                    "Compare question and answer together.",
                    lambda samples, right: keep(samples, right, lambda s: s[1]),
                ),
                _Suspect(
                    "one_per_question",
                    "a question's second way to its result is dropped",
                    "Another way is not a repetition: it is what makes several draws "
                    "worth their price.",
                    lambda samples, right: keep(samples, right, lambda s: s[0]),
                ),
                _Suspect(
                    "wrong_ones_block",
                    "a question that was answered wrongly first is lost",
                    "Forget wrong samples; the next may be right.",
                    lambda samples, right: [
                        place
                        for place in keep(
                            samples, [True] * len(samples), lambda s: s[0]
                        )
                        if right[place]
                    ],
                ),
            ),
            taught_in="notebook 05",
            adapt=_places,
            show=lambda kept: f"the places {kept.nonzero().flatten().tolist()}",
        ),
        fn,
    )


def _places(result: Any, inputs: tuple[Any, ...]) -> Tensor:
    """Which of the samples were chosen, as zeros and ones."""
    chosen = _as_tensor(result, differentiate=False).flatten()
    count = len(inputs[0])
    if any(place not in range(count) for place in chosen.tolist()):
        raise _UnusableError(
            f"expected places from 0 to {count - 1}, came {_show(chosen)}."
        )
    return torch.zeros(count).index_add_(0, chosen.long(), torch.ones(len(chosen)))


def pass_at_k(fn: Any) -> CheckResult:
    """Check an unbiased estimate: is at least one of ``k`` draws right?

    Args:
        fn: ``fn(drawn, right, k)`` for the number of answers drawn to a question, how
            many of these were right, and ``k`` ≤ ``drawn`` → the share of all sets of
            ``k`` among the drawn ones that hold a right one.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 05. Paper: Chen et al. 2021 (arXiv:2107.03374).
    """

    def estimate(drawn: int, right: int, k: int) -> float:
        return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)

    return _judge(
        _Exercise(
            name="pass_at_k",
            probes=(
                _Probe("for one draw of four", (4, 1, 1)),
                _Probe("for two draws of four", (4, 1, 2)),
                _Probe("for five of ten, three right", (10, 3, 5)),
                _Probe("for nothing right", (4, 0, 2)),
                _Probe("for more draws than wrong answers", (4, 3, 2)),
                _Probe("for all of them", (8, 1, 8)),
            ),
            reference=estimate,
            suspects=(
                _Suspect(
                    "plugged_in",
                    "it draws from the sample with replacement",
                    "1 - (1 - right / drawn)^k is too low: the same wrong answer may "
                    "be taken twice.",
                    lambda drawn, right, k: 1 - (1 - right / drawn) ** k,
                ),
                _Suspect(
                    "share_right",
                    "it is the share of right answers, whatever k",
                    "More draws have more chances.",
                    lambda drawn, right, k: right / drawn,
                ),
                _Suspect(
                    "chances_added",
                    "the chances of the k draws are added up",
                    "Draws can be right together, so the sum comes out too high.",
                    lambda drawn, right, k: min(1.0, k * right / drawn),
                ),
                _Suspect(
                    "none_right",
                    "it is the share of sets in which none is right",
                    "One minus that.",
                    lambda drawn, right, k: 1 - estimate(drawn, right, k),
                ),
                _Suspect(
                    "all_right",
                    "it asks for all k to be right",
                    "One right answer is enough; the checker finds it.",
                    lambda drawn, right, k: math.comb(right, k) / math.comb(drawn, k),
                ),
            ),
            taught_in="notebook 05",
        ),
        fn,
    )


# --- notebook 06 --------------------------------------------------------------------


def mix_weight(fn: Any) -> CheckResult:
    """Check a schedule for the weight of a partner's word.

    Args:
        fn: ``fn(progress, alpha, warm_up, ramp)``, shares of the run in [0, 1] → 0
            until ``warm_up``, then a straight line up to ``alpha`` at ``warm_up +
            ramp``, then ``alpha``. ``ramp`` may be 0.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 06.
    """

    def weight(progress: float, alpha: float, warm_up: float, ramp: float) -> float:
        if progress < warm_up:
            return 0.0
        return alpha * min(1.0, (progress - warm_up) / ramp) if ramp else alpha

    return _judge(
        _Exercise(
            name="mix_weight",
            probes=(
                _Probe("during the warm-up", (0.1, 0.8, 0.2, 0.4)),
                _Probe("half-way up", (0.4, 0.8, 0.2, 0.4)),
                _Probe("a quarter of the way up", (0.3, 0.8, 0.2, 0.4)),
                _Probe("after the ramp", (0.9, 0.8, 0.2, 0.4)),
                _Probe("without a ramp", (0.5, 0.8, 0.2, 0.0)),
                _Probe("without a warm-up", (0.1, 0.8, 0.0, 0.4)),
                _Probe("at the very start", (0.0, 0.6, 0.0, 0.0)),
            ),
            reference=weight,
            suspects=(
                _Suspect(
                    "never_stops",
                    "the weight rises beyond alpha",
                    "After the ramp it stays where it is.",
                    lambda progress, alpha, warm_up, ramp: (
                        alpha * max(0.0, progress - warm_up) / ramp
                        if ramp
                        else alpha * (progress >= warm_up)
                    ),
                ),
                _Suspect(
                    "below_zero",
                    "the weight is negative during the warm-up",
                    "The student would learn to be unlike its partner.",
                    lambda progress, alpha, warm_up, ramp: (
                        alpha * min(1.0, (progress - warm_up) / ramp)
                        if ramp
                        else alpha * (progress >= warm_up)
                    ),
                ),
                _Suspect(
                    "from_the_start",
                    "the ramp begins at step 0",
                    "It begins when the warm-up ends.",
                    lambda progress, alpha, warm_up, ramp: (
                        0.0
                        if progress < warm_up
                        else alpha * min(1.0, progress / (warm_up + ramp or 1.0))
                        if ramp
                        else alpha
                    ),
                ),
                _Suspect(
                    "ramp_is_its_end",
                    "the ramp is over when progress reaches ramp",
                    "Its length is counted from the end of the warm-up.",
                    lambda progress, alpha, warm_up, ramp: (
                        0.0
                        if progress < warm_up
                        else alpha
                        * min(1.0, (progress - warm_up) / max(ramp - warm_up, 1e-9))
                        if ramp
                        else alpha
                    ),
                ),
                _Suspect(
                    "all_at_once",
                    "the weight jumps to alpha when the warm-up ends",
                    "It should rise in a straight line over the ramp.",
                    lambda progress, alpha, warm_up, ramp: (
                        alpha * float(progress >= warm_up)
                    ),
                ),
            ),
            taught_in="notebook 06",
        ),
        fn,
    )


def learn_together(fn: Any) -> CheckResult:
    """Check the loss of one step of co-distillation.

    Args:
        fn: ``fn(teacher_logits, student_logits, labels, alpha)`` for logits ``[rows,
            vocabulary]`` and labels ``[rows]``, aligned → the teacher's cross-entropy,
            plus ``1 - alpha`` times the student's, plus ``alpha`` times KL(teacher ‖
            student) at temperature 1; means over the rows. The student's part must not
            move the teacher.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 06.
    """
    draw = torch.Generator().manual_seed(6)
    teacher, student = (2 * torch.randn(5, 7, generator=draw) for _ in "ts")
    labels = torch.tensor([0, 3, 6, 2, 2])

    def loss(
        teacher: Tensor,
        student: Tensor,
        labels: Tensor,
        alpha: float,
        *,
        detach: bool = True,
        own: float = 1.0,
        swapped: bool = False,
        frozen: bool = False,
    ) -> Tensor:
        partner = teacher.detach() if detach else teacher
        p, q = partner.softmax(-1), student.softmax(-1)
        soft = _kl(q, p) if swapped else _kl(p, q)
        cross_entropy = torch.nn.functional.cross_entropy
        hard = cross_entropy(student, labels)
        theirs = cross_entropy(teacher.detach() if frozen else teacher, labels)
        return own * theirs + (1 - alpha) * hard + alpha * soft.mean()

    def suspect(name: str, mistake: str, symptom: str, **options: Any) -> _Suspect:
        return _Suspect(name, mistake, symptom, lambda *a: loss(*a, **options))

    return _judge(
        _Exercise(
            name="learn_together",
            probes=(
                _Probe("for labels alone", (teacher, student, labels, 0.0)),
                _Probe("for soft labels alone", (teacher, student, labels, 1.0)),
                _Probe("for two that agree", (teacher, teacher.clone(), labels, 0.3)),
                _Probe("for a mix", (teacher, student, labels, 0.3)),
            ),
            reference=loss,
            suspects=(
                suspect(
                    "partner_attached",
                    "the student's loss moves the teacher",
                    "The teacher learns to be easy to imitate. Detach its logits.",
                    detach=False,
                ),
                suspect(
                    "teacher_does_not_learn",
                    "the teacher has no loss of its own",
                    "That is distillation from a teacher that stays a beginner.",
                    own=0.0,
                ),
                suspect(
                    "teacher_frozen",
                    "the teacher's own loss does not reach it",
                    "Detach its logits for the student's part only.",
                    frozen=True,
                ),
                suspect(
                    "reverse",
                    "it is KL(student ‖ teacher)",
                    "The teacher's probabilities are the weights of the sum.",
                    swapped=True,
                ),
                _Suspect(
                    "alpha_swapped",
                    "alpha weighs the labels",
                    "It is the weight of the soft term.",
                    lambda t, s, labels, alpha: loss(t, s, labels, 1 - alpha),
                ),
            ),
            taught_in="notebook 06",
            differentiate=2,
        ),
        fn,
    )


def ensemble_nll(fn: Any) -> CheckResult:
    """Check the loss of several models that answer together.

    Args:
        fn: ``fn(logits, labels)`` for logits ``[models, rows, vocabulary]`` and labels
            ``[rows]`` → mean negative log-likelihood, in nats, of the mean of their
            probabilities.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 06.
    """
    draw = torch.Generator().manual_seed(7)
    logits, labels = 3 * torch.randn(3, 6, 5, generator=draw), torch.arange(6) % 5
    far = torch.tensor([[[400.0, 0.0]], [[0.0, 400.0]]])

    def picked(log_p: Tensor, labels: Tensor) -> Tensor:
        return -log_p.gather(-1, labels.unsqueeze(-1)).mean()

    def nll(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
        return picked(log_p, labels)

    return _judge(
        _Exercise(
            name="ensemble_nll",
            probes=(
                _Probe("for one model", (logits[:1], labels)),
                _Probe("for twins", (logits[:1].repeat(2, 1, 1), labels)),
                _Probe("for two sure of opposite things", (far, torch.tensor([0]))),
                _Probe("for three models", (logits, labels)),
            ),
            reference=nll,
            suspects=(
                _Suspect(
                    "mean_of_losses",
                    "it is the mean of the models' own losses",
                    "An ensemble is better than that: its members err in different "
                    "places. Average the probabilities first.",
                    lambda logits, labels: torch.stack(
                        [picked(one.log_softmax(-1), labels) for one in logits]
                    ).mean(),
                ),
                _Suspect(
                    "mean_of_logits",
                    "the logits are averaged, not the probabilities",
                    "That multiplies the models' opinions: one that is sure overrules "
                    "the others.",
                    lambda logits, labels: picked(
                        logits.mean(0).log_softmax(-1), labels
                    ),
                ),
                _Suspect(
                    "sum_of_probabilities",
                    "the probabilities are added up and never divided",
                    "They no longer sum to one, so the loss comes out too low.",
                    lambda logits, labels: picked(
                        logits.log_softmax(-1).logsumexp(0), labels
                    ),
                ),
                _Suspect(
                    "likelihood",
                    "the logarithm comes after the mean over rows",
                    "Each row has its own negative log-likelihood.",
                    lambda logits, labels: (
                        -logits.softmax(-1)
                        .mean(0)
                        .gather(-1, labels.unsqueeze(-1))
                        .mean()
                        .log()
                    ),
                ),
            ),
            taught_in="notebook 06",
        ),
        fn,
    )


def drawn_reverse_kl(fn: Any) -> CheckResult:
    """Check the estimate of reverse KL from tokens that the student drew.

    Args:
        fn: ``fn(student_logits, teacher_logits, drawn)`` for logits ``[rows,
            vocabulary]`` and token ids ``[rows]`` → mean of log p_S − log p_T at the
            drawn tokens, in nats.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 07.
    """
    draw = torch.Generator().manual_seed(8)
    student, teacher = (2 * torch.randn(6, 5, generator=draw) for _ in "st")
    drawn = torch.tensor([0, 4, 1, 1, 3, 2])
    even = torch.zeros(2, 2)
    far = torch.tensor([[0.0, -200.0]])

    def ratio(student: Tensor, teacher: Tensor) -> Tensor:
        return student.log_softmax(-1) - teacher.log_softmax(-1)

    def picked(values: Tensor, drawn: Tensor) -> Tensor:
        return values.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)

    return _judge(
        _Exercise(
            name="drawn_reverse_kl",
            probes=(
                _Probe(
                    "for the example worked by hand",
                    (even, torch.tensor([[3.0, 1.0]] * 2).log(), torch.tensor([0, 1])),
                ),
                _Probe("for two that agree", (student, student.clone(), drawn)),
                _Probe("for six drawn tokens", (student, teacher, drawn)),
                _Probe("for one token", (student[:1], teacher[:1], drawn[:1])),
                _Probe("for a very unlikely token", (far, even[:1], torch.tensor([1]))),
            ),
            reference=lambda s, t, drawn: picked(ratio(s, t), drawn).mean(),
            suspects=(
                _Suspect(
                    "sign",
                    "it is log p_T − log p_S",
                    "That is a reward, of which more is better. A divergence is the "
                    "smaller the closer the two are.",
                    lambda s, t, drawn: picked(ratio(t, s), drawn).mean(),
                ),
                _Suspect(
                    "exact",
                    "it is the exact divergence, summed over the vocabulary",
                    "Only the drawn tokens are to be looked at.",
                    lambda s, t, drawn: _kl(s.softmax(-1), t.softmax(-1)).mean(),
                ),
                _Suspect(
                    "weighted",
                    "the drawn tokens are weighted by their probability once more",
                    "They were drawn with it; that has weighted them.",
                    lambda s, t, drawn: picked(
                        s.softmax(-1) * ratio(s, t), drawn
                    ).mean(),
                ),
                _Suspect(
                    "logits",
                    "logits are subtracted, not log-probabilities",
                    "A constant added to a row of logits changes nothing in a model, "
                    "but it would change this.",
                    lambda s, t, drawn: picked(s - t, drawn).mean(),
                ),
                _Suspect(
                    "summed",
                    "it is a sum over the rows",
                    "The exercise asks for the mean.",
                    lambda s, t, drawn: picked(ratio(s, t), drawn).sum(),
                ),
                _Suspect(
                    "only_teacher",
                    "it is the teacher's negative log-likelihood",
                    "Loops are likely, too. The student's own part is missing.",
                    lambda s, t, drawn: -picked(t.log_softmax(-1), drawn).mean(),
                ),
            ),
            taught_in="notebook 07",
        ),
        fn,
    )


def generalised_jsd(fn: Any) -> CheckResult:
    """Check the divergence between forward and reverse KL.

    Args:
        fn: ``fn(student_logits, teacher_logits, beta)`` for logits ``[rows,
            vocabulary]`` and ``0 < beta < 1`` → with m = (1 − β)·p_S + β·p_T, the mean
            over rows of β·KL(p_T ‖ m) + (1 − β)·KL(p_S ‖ m), in nats.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 07.
    """
    draw = torch.Generator().manual_seed(9)
    student, teacher = (2 * torch.randn(5, 7, generator=draw) for _ in "st")
    sure = torch.tensor([[0.0, -300.0]])

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    def naive(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
        q, p = student.softmax(-1), teacher.softmax(-1)
        m = (1 - beta) * q + beta * p
        to_p, to_q = p * (p.log() - m.log()), q * (q.log() - m.log())
        return (beta * to_p + (1 - beta) * to_q).sum(-1).mean()

    def jsd(
        student: Tensor,
        teacher: Tensor,
        beta: float,
        *,
        mixed: float | None = None,
        weight: float | None = None,
        turned: bool = False,
    ) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        share = beta if mixed is None else mixed
        log_m = torch.logaddexp(log_q + math.log(1 - share), log_p + math.log(share))
        part = beta if weight is None else weight
        if turned:
            both = part * kl(log_m, log_p) + (1 - part) * kl(log_m, log_q)
        else:
            both = part * kl(log_p, log_m) + (1 - part) * kl(log_q, log_m)
        return both.mean()

    return _judge(
        _Exercise(
            name="generalised_jsd",
            probes=(
                _Probe("for two that agree", (student, student.clone(), 0.3)),
                _Probe("for β = ½", (student, teacher, 0.5)),
                _Probe("for β = 0.2", (student, teacher, 0.2)),
                _Probe("for β = 0.9", (student, teacher, 0.9)),
                _Probe(
                    "for a student that is sure",
                    (sure, torch.zeros(1, 2), 0.5),
                    edge="zero_times_log",
                ),
            ),
            reference=jsd,
            suspects=(
                _Suspect(
                    "beta_reversed",
                    "β and 1 − β have changed places",
                    "It is DistiLLM's λ: forward KL where reverse was meant.",
                    lambda s, t, beta: jsd(s, t, 1 - beta),
                ),
                _Suspect(
                    "mixture_swapped",
                    "in m, β is the student's share",
                    "So it was in TRL before March 2025: towards β = 0 it is reverse "
                    "KL.",
                    lambda s, t, beta: jsd(s, t, beta, mixed=1 - beta),
                ),
                _Suspect(
                    "always_half",
                    "m is always the middle",
                    "β mixes the two distributions as well as the two divergences.",
                    lambda s, t, beta: jsd(s, t, beta, mixed=0.5),
                ),
                _Suspect(
                    "weights_half",
                    "both divergences weigh one half",
                    "β weighs the teacher's, 1 − β the student's.",
                    lambda s, t, beta: jsd(s, t, beta, weight=0.5),
                ),
                _Suspect(
                    "weights_swapped",
                    "m is right, but the two divergences have each other's weight",
                    "β belongs to KL(p_T ‖ m).",
                    lambda s, t, beta: jsd(s, t, beta, weight=1 - beta),
                ),
                _Suspect(
                    "from_the_middle",
                    "it is KL(m ‖ p_T) and KL(m ‖ p_S)",
                    "Turned round it is not bounded any more: m stands behind the ‖.",
                    lambda s, t, beta: jsd(s, t, beta, turned=True),
                ),
                _Suspect(
                    "mixed_logits",
                    "the logits are mixed, not the probabilities",
                    "m is a mean of distributions.",
                    lambda s, t, beta: (
                        beta
                        * _kl(
                            t.softmax(-1), ((1 - beta) * s + beta * t).softmax(-1)
                        ).mean()
                        + (1 - beta)
                        * _kl(
                            s.softmax(-1), ((1 - beta) * s + beta * t).softmax(-1)
                        ).mean()
                    ),
                ),
                _Suspect(
                    "summed",
                    "it is a sum over the rows",
                    "The exercise asks for the mean.",
                    lambda s, t, beta: len(s) * jsd(s, t, beta),
                ),
                _zero_times_log(naive),
            ),
            taught_in="notebook 07",
            differentiate=1,
        ),
        fn,
    )


def excess_kl(fn: Any) -> CheckResult:
    """Check the measure of exposure bias.

    Args:
        fn: ``fn(student_prefix, teacher_prefix, counts)`` for three lists, one entry
            per place of a text → mean of their difference from the second place on,
            weighted by the counts.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 07.
    """

    def excess(
        own: list[float], his: list[float], counts: list[int], *, first: int = 1
    ) -> float:
        kept = list(zip(own, his, counts, strict=True))[first:]
        total = sum(count for *_, count in kept)
        return sum(count * (a - b) for a, b, count in kept) / total

    hand = ([0.1, 0.4, 0.6], [0.1, 0.2, 0.2], [9, 6, 2])
    return _judge(
        _Exercise(
            name="excess_kl",
            probes=(
                _Probe("for the example worked by hand", hand),
                _Probe("for texts of one length", ([0.2, 0.5], [0.2, 0.1], [4, 4])),
                _Probe(
                    "where the first place differs",
                    ([0.5, 0.3, 0.3, 0.9], [0.1, 0.3, 0.1, 0.2], [8, 8, 5, 1]),
                ),
                _Probe(
                    "where the student is better behind its own words",
                    ([0.0, 0.1, 0.1], [0.0, 0.3, 0.2], [3, 3, 1]),
                ),
            ),
            reference=excess,
            suspects=(
                _Suspect(
                    "first_counts",
                    "the first place counts, too",
                    "Both have read the prompt alone there.",
                    lambda *a: excess(*a, first=0),
                ),
                _Suspect(
                    "unweighted",
                    "every place weighs alike",
                    "Few texts reach the late places; weigh by the counts.",
                    lambda own, his, counts: excess(own, his, [1] * len(counts)),
                ),
                _Suspect(
                    "ratio",
                    "it is a ratio of the two means",
                    "The excess is a difference, in nats.",
                    lambda own, his, counts: (
                        excess(own, [0.0] * len(own), counts)
                        / excess(his, [0.0] * len(his), counts)
                    ),
                ),
                _Suspect(
                    "sign",
                    "the student's is taken from the teacher's",
                    "Positive means: worse behind its own words.",
                    lambda own, his, counts: -excess(own, his, counts),
                ),
                _Suspect(
                    "all_counts",
                    "it is divided by all counts, the first place's included",
                    "Divide by the counts that the sum is made of.",
                    lambda own, his, counts: (
                        excess(own, his, counts) * sum(counts[1:]) / sum(counts)
                    ),
                ),
                _Suspect(
                    "absolute",
                    "differences count without their sign",
                    "A student may be nearer behind its own words; that counts, too.",
                    lambda own, his, counts: excess(
                        [abs(a - b) for a, b in zip(own, his, strict=True)],
                        [0.0] * len(own),
                        counts,
                    ),
                ),
            ),
            taught_in="notebook 07",
        ),
        fn,
    )


def plateau(fn: Any) -> CheckResult:
    """Check where a student stops whose teacher's rows are shuffled.

    Args:
        fn: ``fn(teacher_logits)``, logits ``[rows, vocabulary]`` → mean over the rows
            of KL(p ‖ m), in nats; p is a row's softmax, m the mean of all rows' p.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 09.
    """
    draw = torch.Generator().manual_seed(10)
    many = 2 * torch.randn((7, 5), generator=draw)

    def mean(logits: Tensor) -> Tensor:
        return logits.softmax(-1).mean(0)

    return _judge(
        _Exercise(
            name="plateau",
            probes=(
                _Probe(
                    "for the example worked by hand",
                    (torch.tensor([[40.0, 0.0], [0.0, 40.0]]),),
                ),
                _Probe("for equal rows", (many[:1].expand(4, -1).clone(),)),
                _Probe("for seven rows", (many,)),
                _Probe("for logits that are 3 higher", (many + 3,)),
            ),
            reference=lambda z: _kl(z.softmax(-1), mean(z)).mean(),
            suspects=(
                _Suspect(
                    "reversed_kl",
                    "the divergence runs the other way: from the mean to the rows",
                    "The student says m and is taught p: KL(p ‖ m).",
                    lambda z: _kl(mean(z).expand_as(z), z.softmax(-1)).mean(),
                ),
                _Suspect(
                    "mean_of_logits",
                    "the logits are averaged, not the probabilities",
                    "A softmax of mean logits is not the mean of the distributions.",
                    lambda z: _kl(z.softmax(-1), z.mean(0).softmax(-1)).mean(),
                ),
                _Suspect(
                    "entropy_of_mean",
                    "it is the entropy of the mean distribution",
                    "Each row's own entropy has to be taken off; for equal rows the "
                    "plateau is 0.",
                    lambda z: _entropy(mean(z)),
                ),
                _Suspect(
                    "summed",
                    "it is a sum over the rows",
                    "The exercise asks for the mean.",
                    lambda z: _kl(z.softmax(-1), mean(z)).sum(),
                ),
                _Suspect(
                    "mean_over_vocabulary",
                    "the mean is taken over the vocabulary as well",
                    "A divergence is a sum over the vocabulary.",
                    lambda z: _kl(z.softmax(-1), mean(z)).mean() / z.shape[-1],
                ),
                _Suspect(
                    "wrong_dimension",
                    "the mean runs over the vocabulary, not over the rows",
                    "m has one probability for each token.",
                    lambda z: _kl(
                        z.softmax(-1), z.softmax(-1).mean(-1, keepdim=True)
                    ).mean(),
                ),
            ),
            taught_in="notebook 09",
        ),
        fn,
    )


_ThreeLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _somebodys(loss: Callable[..., Tensor]) -> _ThreeLoss:
    return lambda student, teacher, labels: loss(student, teacher, labels, 2.0, 0.5)


def _bug(name: str, number: int = 0) -> _ThreeLoss:
    return _somebodys(find_bug(name).mutants[number])


def _clinic_batch() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(11)
    student, teacher = (2 * torch.randn((4, 9, 7), generator=draw) for _ in "st")
    labels = torch.randint(7, (4, 9), generator=draw)
    for row in range(1, 4):
        labels[row, : 1 + row] = losses.IGNORE_INDEX
        labels[row, 9 - row :] = losses.IGNORE_INDEX
    return student, teacher, labels


def pieces_add_up(fn: Any) -> CheckResult:
    """Check a test that catches means of means.

    Args:
        fn: ``fn(loss, student, teacher, labels)`` → whether the losses of the batch's
            rows, each weighted by its counted positions, add up to that of the whole.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 09.
    """
    healthy = _somebodys(plain_loss)
    batch = _clinic_batch()
    student, teacher, labels = batch
    with_empty = labels.clone()
    with_empty[3] = losses.IGNORE_INDEX
    nearly_even = torch.randint(
        7, labels.shape, generator=torch.Generator().manual_seed(1)
    )
    nearly_even[0, -1] = losses.IGNORE_INDEX

    def asks(
        loss: _ThreeLoss,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        *,
        shift: int = 1,
        even: bool = False,
        divide: bool = True,
        tolerance: float = 1e-4,
    ) -> bool:
        whole = float(loss(student, teacher, labels))
        total = count = 0.0
        for row in range(len(labels)):
            piece = slice(row, row + 1)
            n = int((labels[row, shift:] != losses.IGNORE_INDEX).sum())
            if n:
                value = float(loss(student[piece], teacher[piece], labels[piece]))
                total += value if even else n * value
                count += 1 if even else n
        return abs(total / (count if divide else 1) - whole) <= tolerance * abs(whole)

    return _judge(
        _Exercise(
            name="pieces_add_up",
            probes=(
                _Probe("for a healthy loss", (healthy, *batch)),
                _Probe("for patient 5", (_bug("mean_of_means"), *batch)),
                _Probe(
                    "for patient 5 with rows of nearly one length",
                    (_bug("mean_of_means"), student, teacher, nearly_even),
                ),
                _Probe("for a loss that is a sum", (_bug("sum_not_mean"), *batch)),
                _Probe(
                    "for a healthy loss and a row in which nothing counts",
                    (healthy, student, teacher, with_empty),
                ),
                _Probe(
                    "for a healthy loss and a batch of one row",
                    (healthy, student[:1], teacher[:1], labels[:1]),
                ),
            ),
            reference=asks,
            suspects=(
                _Suspect(
                    "always_true",
                    "it never says `False`",
                    "A test that nothing can fail tests nothing.",
                    lambda *_: True,
                ),
                _Suspect(
                    "unweighted",
                    "every row weighs alike",
                    "So it asks for the very mistake that it should find.",
                    lambda *a: asks(*a, even=True),
                ),
                _Suspect(
                    "labels_not_shifted",
                    "the first label of a row is counted, too",
                    "Nothing predicts it, so it does not count in the loss.",
                    lambda *a: asks(*a, shift=0),
                ),
                _Suspect(
                    "too_strict",
                    "it allows for no rounding",
                    "Adding in another order changes the last digits.",
                    lambda *a: asks(*a, tolerance=0.0),
                ),
                _Suspect(
                    "too_loose",
                    "it allows for too much",
                    "Where the rows are nearly of one length, a mean of means is off "
                    "by little.",
                    lambda *a: asks(*a, tolerance=0.1),
                ),
                _Suspect(
                    "not_divided",
                    "the weighted losses are added but not divided by the counts",
                    "The loss is a mean.",
                    lambda *a: asks(*a, divide=False),
                ),
                _Suspect(
                    "turned_round",
                    "`True` and `False` have changed places",
                    "`True` means that the pieces add up.",
                    lambda *a: not asks(*a),
                ),
            ),
            taught_in="notebook 09",
            adapt=_yes_or_no,
            hint=lambda *_: (
                "Print the two numbers that you compare: if only their last digits "
                "differ, allow for rounding."
            ),
        ),
        fn,
    )


def padding_is_silent(fn: Any) -> CheckResult:
    """Check a test that catches what reads ignored positions.

    Args:
        fn: ``fn(loss, student, teacher, labels)`` → whether neither the loss nor its
            gradient changes if, where nothing counts, the teacher's logits are −inf
            and the student's are others.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 09.
    """
    batch = _clinic_batch()

    def pulls_everywhere(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        right = plain_loss(student, teacher, labels, 2.0, 0.5)
        return right + 0.01 * student.square().mean()

    def asks(
        loss: _ThreeLoss,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        *,
        shifted: bool = True,
        gradient: bool = True,
        hole: float = -math.inf,
        move_student: bool = True,
    ) -> bool:
        targets = labels
        if shifted:
            targets = torch.nn.functional.pad(
                labels[:, 1:], (0, 1), value=losses.IGNORE_INDEX
            )
        ignored = (targets == losses.IGNORE_INDEX).unsqueeze(-1)

        def ask(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            student = student.detach().requires_grad_()
            value = loss(student, teacher, labels)
            return value.detach(), torch.autograd.grad(value, student)[0]

        before = ask(student, teacher)
        other = student.flip(-1) + 1 if move_student else student
        after = ask(
            torch.where(ignored, other, student), teacher.masked_fill(ignored, hole)
        )
        pairs = list(zip(before, after, strict=True))[: 2 if gradient else 1]
        return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)

    return _judge(
        _Exercise(
            name="padding_is_silent",
            probes=(
                _Probe("for a healthy loss", (_somebodys(plain_loss), *batch)),
                _Probe("for patient 7", (_bug("padding_counted"), *batch)),
                _Probe("for patient 6", (_bug("mask_after_exp"), *batch)),
                _Probe(
                    "for a loss that multiplies by the mask",
                    (_bug("mask_after_exp", 2), *batch),
                ),
                _Probe(
                    "for a loss that pulls at all of the student's logits",
                    (pulls_everywhere, *batch),
                ),
                _Probe(
                    "for a loss that is too small, but reads nothing it should not",
                    (_bug("mean_over_all"), *batch),
                ),
            ),
            reference=asks,
            suspects=(
                _Suspect(
                    "always_true",
                    "it never says `False`",
                    "A test that nothing can fail tests nothing.",
                    lambda *_: True,
                ),
                _Suspect(
                    "value_only",
                    "it compares the losses and not the gradients",
                    "Patient 6 has a right loss and a gradient that is NaN.",
                    lambda *a: asks(*a, gradient=False),
                ),
                _Suspect(
                    "finite_only",
                    "the teacher's logits are changed, but stay finite",
                    "A mask after the exponential stands anything but −∞.",
                    lambda *a: asks(*a, hole=3.0),
                ),
                _Suspect(
                    "teacher_only",
                    "the student's logits are left as they are",
                    "A loss may read those at ignored positions, too.",
                    lambda *a: asks(*a, move_student=False),
                ),
                _Suspect(
                    "labels_not_shifted",
                    "the positions are those whose own label is −100",
                    "A position counts if the *next* label does. Healthy losses read "
                    "the last position of a prompt.",
                    lambda *a: asks(*a, shifted=False),
                ),
                _Suspect(
                    "turned_round",
                    "`True` and `False` have changed places",
                    "`True` means that nothing changes.",
                    lambda *a: not asks(*a),
                ),
            ),
            taught_in="notebook 09",
            adapt=_yes_or_no,
        ),
        fn,
    )


def resume_step(fn: Any) -> CheckResult:
    """Check the choice of the checkpoint to go on from.

    Args:
        fn: ``fn(checkpoints)`` for a list of ``(step, complete)`` in any order → the
            highest complete step, or 0 if there is none.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 10.
    """

    def step(checkpoints: list[tuple[int, bool]]) -> int:
        return max((step for step, complete in checkpoints if complete), default=0)

    return _judge(
        _Exercise(
            name="resume_step",
            probes=(
                _Probe("for one checkpoint", ([(100, True)],)),
                _Probe("without any", ([],)),
                _Probe("when none is complete", ([(100, False)],)),
                _Probe("in order", ([(90, True), (100, True)],)),
                _Probe("out of order", ([(90, True), (100, True), (80, True)],)),
                _Probe(
                    "when the newest is not complete",
                    ([(200, True), (300, False), (1000, True), (2000, False)][::-1],),
                ),
            ),
            reference=step,
            suspects=(
                _Suspect(
                    "incomplete_taken",
                    "it takes a checkpoint that was never finished",
                    "Its files may end in the middle.",
                    lambda c: max((step for step, _ in c), default=0),
                ),
                _Suspect(
                    "last_in_list",
                    "it takes the last one in the list",
                    "A folder lists its files in any order.",
                    lambda c: next((s for s, done in reversed(c) if done), 0),
                ),
                _Suspect(
                    "as_text",
                    "it compares the steps as text",
                    "Then 90 comes after 100.",
                    lambda c: int(max((str(s) for s, done in c if done), default="0")),
                ),
            ),
            taught_in="notebook 10",
        ),
        fn,
    )


def reaches(fn: Any) -> CheckResult:
    """Check a verdict on an interval.

    Args:
        fn: ``fn(low, high, bar)`` → 1 if the whole interval is at the bar or above, -1
            if it is below, and 0 if that is undecided.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 10.
    """

    def verdict(low: float, high: float, bar: float) -> int:
        if low >= bar:
            return 1
        return -1 if high < bar else 0

    return _judge(
        _Exercise(
            name="reaches",
            probes=(
                _Probe("for an interval above the bar", (0.96, 0.99, 0.95)),
                _Probe("for an interval below it", (0.90, 0.94, 0.95)),
                _Probe("for one that begins at it", (2.0, 3.0, 2.0)),
                _Probe("for one that ends at it", (1.0, 2.0, 2.0)),
                _Probe("for one across it, mostly below", (1.0, 2.2, 2.0)),
                _Probe("for one across it, mostly above", (0.94, 0.99, 0.95)),
            ),
            reference=verdict,
            suspects=(
                _Suspect(
                    "middle_decides",
                    "the middle of the interval decides",
                    "Then nothing is ever undecided.",
                    lambda low, high, bar: 1 if (low + high) / 2 >= bar else -1,
                ),
                _Suspect(
                    "best_end",
                    "the better end is enough",
                    "It may be so good; it need not.",
                    lambda low, high, bar: 1 if high >= bar else -1,
                ),
                _Suspect(
                    "never_undecided",
                    "an interval across the bar is called a miss",
                    "It shows neither: ask more questions.",
                    lambda low, high, bar: 1 if low >= bar else -1,
                ),
                _Suspect(
                    "bar_itself_missed",
                    "an interval that begins at the bar does not reach it",
                    "At least is not more than.",
                    lambda low, high, bar: 1 if low > bar else -1 if high < bar else 0,
                ),
                _Suspect(
                    "signs_swapped",
                    "1 and -1 are swapped",
                    "1 stands for a bar that is reached.",
                    lambda low, high, bar: -verdict(low, high, bar),
                ),
            ),
            taught_in="notebook 10",
        ),
        fn,
    )


def break_even(fn: Any) -> CheckResult:
    """Check after how many answers a student has paid for itself.

    Args:
        fn: ``fn(once, teacher, student)`` for the cost of distilling and of one answer
            of each → ``once / (teacher - student)``, not rounded; infinity if an
            answer of the student costs as much as one of the teacher, or more.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 10.
    """

    def answers(once: float, teacher: float, student: float) -> float:
        # Infinity is compared as -1, which no number of answers is.
        return once / (teacher - student) if student < teacher else -1.0

    def finite(result: Any, inputs: tuple[Any, ...]) -> Tensor:
        try:
            number = float(result)
        except (TypeError, ValueError):
            raise _UnusableError(
                f"expected a number of answers, came {_kind(result)}."
            ) from None
        if number == -1.0:
            number = -2.0
        return torch.tensor(-1.0 if number == math.inf else number)

    def show(value: Tensor) -> str:
        number = float(value)
        return "infinity" if number == -1.0 else f"{number:g}"

    return _judge(
        _Exercise(
            name="break_even",
            probes=(
                _Probe("for a student at a third", (100.0, 3.0, 1.0)),
                _Probe("for half an answer", (1.0, 3.0, 1.0)),
                _Probe("for a student as dear as its teacher", (100.0, 2.0, 2.0)),
                _Probe("for a dearer student", (100.0, 1.0, 3.0)),
                _Probe("for a student at nine tenths", (90.0, 1.0, 0.9)),
            ),
            reference=lambda *given: (
                answers(*given) if given[2] < given[1] else math.inf
            ),
            suspects=(
                _Suspect(
                    "student_is_free",
                    "the student's answers cost nothing",
                    "They are cheaper, not free.",
                    lambda once, teacher, student: once / teacher,
                ),
                _Suspect(
                    "negative",
                    "a dearer student pays after less than no answers",
                    "It never does.",
                    lambda once, teacher, student: (
                        once / (teacher - student) if teacher != student else math.inf
                    ),
                ),
                _Suspect(
                    "costs_added",
                    "the two costs are added",
                    "What an answer saves is their difference.",
                    lambda once, teacher, student: once / (teacher + student),
                ),
                _Suspect(
                    "rounded",
                    "the number is rounded",
                    "Leave that to whoever reads it.",
                    lambda once, teacher, student: (
                        math.ceil(once / (teacher - student))
                        if student < teacher
                        else math.inf
                    ),
                ),
            ),
            taught_in="notebook 10",
            adapt=finite,
            show=show,
        ),
        fn,
    )


def steps_for(fn: Any) -> CheckResult:
    """Check how many steps a budget buys.

    Args:
        fn: ``fn(budget, once, per_step)`` → the largest whole number of steps whose
            cost, on top of what is spent once, stays within the budget; 0 if that
            alone is too much.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 08.
    """

    def steps(budget: float, once: float, per_step: float) -> int:
        return max(0, math.floor((budget - once) / per_step))

    return _judge(
        _Exercise(
            name="steps_for",
            probes=(
                _Probe("with nothing spent before", (12.0, 0.0, 4.0)),
                _Probe("with 2 of 12 spent before", (12.0, 2.0, 5.0)),
                _Probe("with a step that does not fit any more", (12.0, 1.0, 4.0)),
                _Probe("with all of it spent before", (3.0, 3.0, 1.0)),
                _Probe("with more spent than there is", (3.0, 8.0, 1.0)),
            ),
            reference=steps,
            suspects=(
                _Suspect(
                    "once_forgotten",
                    "what is spent once comes on top",
                    "The teacher wants to be paid before the first step.",
                    lambda budget, once, per_step: math.floor(budget / per_step),
                ),
                _Suspect(
                    "rounded_up",
                    "a last step is counted that is only partly paid",
                    "A started step has to be paid in full.",
                    lambda budget, once, per_step: max(
                        0, math.ceil((budget - once) / per_step)
                    ),
                ),
                _Suspect(
                    "fractions",
                    "parts of a step are counted",
                    "Steps are whole.",
                    lambda budget, once, per_step: max(0.0, (budget - once) / per_step),
                ),
                _Suspect(
                    "negative",
                    "fewer than no steps come out",
                    "Without money there is no step.",
                    lambda budget, once, per_step: math.floor(
                        (budget - once) / per_step
                    ),
                ),
                _Suspect(
                    "once_per_step",
                    "what is spent once is spent at every step",
                    "Text that was written once is not written again.",
                    lambda budget, once, per_step: math.floor(
                        budget / (per_step + once)
                    ),
                ),
            ),
            taught_in="notebook 08",
        ),
        fn,
    )


def frontier(fn: Any) -> CheckResult:
    """Check which of several ways nobody beats.

    Args:
        fn: ``fn(costs, scores)`` for lists of equal length → the places of the ways
            that no other one beats; another one beats a way if it costs no more, scores
            no less, and is better in one of the two. In any order.

    Returns:
        A :class:`CheckResult`.

    Exercise of notebook 08.
    """

    def unbeaten(
        costs: Sequence[float],
        scores: Sequence[float],
        beats: Callable[[float, float, float, float], bool],
    ) -> list[int]:
        ways = list(zip(costs, scores, strict=True))
        return [
            place
            for place, (cost, score) in enumerate(ways)
            if not any(beats(c, s, cost, score) for c, s in ways)
        ]

    def really(c: float, s: float, cost: float, score: float) -> bool:
        return c <= cost and s >= score and (c, s) != (cost, score)

    return _judge(
        _Exercise(
            name="frontier",
            probes=(
                _Probe("with one way dearer and worse", ([1, 2, 3], [10, 30, 20])),
                _Probe("with none beaten", ([3, 1, 2], [9, 5, 7])),
                _Probe("with two of one cost", ([1, 1, 2], [4, 6, 8])),
                _Probe("with two of one score", ([1, 2, 3], [5, 5, 7])),
                _Probe("with two exactly alike", ([2, 2, 1], [8, 8, 3])),
                _Probe("with a cheap one that beats all", ([4, 1, 2], [5, 9, 6])),
            ),
            reference=lambda costs, scores: unbeaten(costs, scores, really),
            suspects=(
                _Suspect(
                    "best_score_only",
                    "only the best score is kept",
                    "The cheapest way is unbeaten too: nobody costs less.",
                    lambda costs, scores: [scores.index(max(scores))],
                ),
                _Suspect(
                    "cheapest_only",
                    "only the lowest cost is kept",
                    "A better score may be worth its price.",
                    lambda costs, scores: [costs.index(min(costs))],
                ),
                _Suspect(
                    "score_minimised",
                    "low scores are taken for good ones",
                    "Costs should be low, scores high.",
                    lambda costs, scores: unbeaten(
                        costs,
                        scores,
                        lambda c, s, cost, score: (
                            c <= cost and s <= score and (c, s) != (cost, score)
                        ),
                    ),
                ),
                _Suspect(
                    "better_in_both",
                    "a way counts as beaten only if another is better in both",
                    "Better in one and equal in the other is enough.",
                    lambda costs, scores: unbeaten(
                        costs,
                        scores,
                        lambda c, s, cost, score: c < cost and s > score,
                    ),
                ),
                _Suspect(
                    "beaten_by_its_equal",
                    "a way is beaten by itself, or by one exactly like it",
                    "To beat it, another one has to be better in something.",
                    lambda costs, scores: unbeaten(
                        costs,
                        scores,
                        lambda c, s, cost, score: c <= cost and s >= score,
                    ),
                ),
                _Suspect(
                    "best_ratio",
                    "the best score per cost is kept",
                    "Which exchange is fair is for others to say.",
                    lambda costs, scores: [
                        max(
                            range(len(costs)),
                            key=lambda place: scores[place] / costs[place],
                        )
                    ],
                ),
            ),
            taught_in="notebook 08",
            adapt=_places,
        ),
        fn,
    )
