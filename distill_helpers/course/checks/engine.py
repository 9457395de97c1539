"""The engine of the checks: compares a learner's function with an exercise.

:func:`judge` runs the function on the exercise's inputs, compares value and gradient
with the reference, and if they differ looks for a known mistake that gives the same
numbers. It never raises for a wrong answer, prints nothing and leaves the random state
as it was. A function that does not come back is stopped, unless it hangs in one call
of a compiled function, which nothing can stop.
"""

from __future__ import annotations

import contextlib
import copy
import html
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distill_helpers.course.checks.answers import (
    FAILED,
    NOT_ATTEMPTED,
    PASSED,
    UnusableError,
    as_tensor,
    kind,
    shape,
    show,
)
from distill_helpers.course.checks.time_limits import OutOfTime, call_within
from distill_helpers.course.checks.words import Mistake, say, words_of

MIME_TYPE = "application/vnd.distill-helpers+json"
_SYMBOLS = {PASSED: "✓", FAILED: "✗", NOT_ATTEMPTED: "…"}

# Characters that are kept of what a function prints.
_MOST_PRINTED = 1000

# A difference is relative to the expected size, or to these where that is nearly 0.
_VALUE_FLOOR, _GRADIENT_FLOOR = 0.05, 0.01

Tensor = torch.Tensor
Inputs = tuple[Any, ...]
Function = Callable[..., Any]


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: The check.
        passed: Whether the function does what the exercise asks for.
        status: ``"passed"``, ``"failed"`` or ``"not attempted"``.
        bug: The mistake it behaves like, or ``None``; for the loss, a name in
            :data:`distill_helpers.course.bugs.KNOWN_BUGS`. ``"changes_inputs"`` if the
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


@dataclass(frozen=True)
class Outcome:
    """What a function gave on one input: its value and gradients, in float64."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()
    attached: bool = True


@dataclass(frozen=True)
class Probe:
    """One call: its arguments, when that is, and the mistake to name at an edge."""

    when: str
    inputs: Inputs
    edge: str | None


@dataclass(frozen=True)
class Exercise:
    """What :func:`judge` needs to know; the words are in ``words.toml``.

    Attributes:
        name: The name of the check, and of its table in ``words.toml``.
        reference: The correct function.
        inputs: The arguments of each call, simple ones first, the most telling last;
            tensors are copied for every call.
        wrong: Wrong functions by the name of the mistake, likeliest first; several for
            a mistake that can be made in several ways.
        edges: Further inputs, each by the mistake to name if nothing but this input
            comes out not finite.
        differentiate: How many leading arguments get a gradient. The exercise is about
            the first one's; the others are constants.
        play: Makes of the function the one that is called on the inputs, for instance
            one that takes several steps with it; default: the function itself.
        adapt: Turns what the function returned into a tensor to compare; see
            :mod:`distill_helpers.course.checks.answers`.
        hint: Puts into words what can be seen when no known mistake fits.
        random_bug: The name of the mistake if two equal calls differ.
        tolerance: The largest relative difference.
        show: Puts a value into words; by default, its first numbers.
        mistakes: Words for mistakes that ``words.toml`` does not hold.
    """

    name: str
    reference: Function
    inputs: Sequence[Inputs]
    wrong: Mapping[str, Function | tuple[Function, ...]]
    edges: Mapping[str, Inputs] = field(default_factory=dict)
    differentiate: int = 0
    play: Callable[[Function], Function] | None = None
    adapt: Callable[[Any, Inputs], Tensor] | None = None
    hint: Callable[[Sequence[Outcome], Sequence[Outcome]], str] | None = None
    random_bug: str = "random"
    tolerance: float = 2e-3
    show: Callable[[Tensor], str] = show
    mistakes: Mapping[str, Mistake] = field(default_factory=dict)

    def probes(self) -> tuple[Probe, ...]:
        """Every input with its words, edges last."""
        calls = [(None, inputs) for inputs in self.inputs] + [*self.edges.items()]
        words = words_of(self.name).inputs
        return tuple(
            Probe(when, inputs, edge)
            for when, (edge, inputs) in zip(words, calls, strict=True)
        )

    def suspects(self) -> Iterator[tuple[str, Function]]:
        """Every wrong function with the name of its mistake."""
        for name, ways in self.wrong.items():
            for function in ways if isinstance(ways, tuple) else (ways,):
                yield name, function

    def mistake(self, name: str | None) -> Mistake | None:
        """The words for a mistake, if there are any."""
        known = {**words_of(self.name).wrong, **self.mistakes}
        return known.get(name) if name is not None else None


def judge(exercise: Exercise, fn: Any, seconds: float = 5.0) -> CheckResult:
    """Compare a learner's function with an exercise.

    Args:
        exercise: What was asked for.
        fn: The function, or whatever else the learner handed in.
        seconds: The limit for all calls together.
    """
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
            status, bug, message = call_within(seconds, lambda: _diagnose(exercise, fn))
        except UnusableError as problem:
            status, bug, message = problem.status, problem.bug, str(problem)
        except OutOfTime as stopped:
            status, bug = FAILED, "out_of_time"
            message = _words_for_no_answer(fn, stopped, seconds)
        except Exception as error:
            # Say, a number too large for a float, or a tensor without data.
            status, bug = FAILED, None
            message = say("incomparable", error=_in_words(error))
    if status == FAILED:
        known = exercise.mistake(bug)
        lesson = known.lesson if known is not None else ""
        place = lesson or words_of(exercise.name).lesson
        message += f" {say('lesson', lesson=place)}"
    first_line = printed.getvalue().strip().partition("\n")[0][:80]
    if first_line:
        message += f" {say('printed', line=first_line)}"
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


def _diagnose(exercise: Exercise, fn: Any) -> tuple[str, str | None, str]:
    """Status, name of the mistake, message."""
    if fn is None or fn is ...:
        raise UnusableError(say("not_attempted"), status=NOT_ATTEMPTED)
    if not callable(fn):
        raise UnusableError(say("no_function", came=kind(fn)))
    probes = exercise.probes()
    expected = [_run(exercise, exercise.reference, probe) for probe in probes]
    came = []
    for probe, wanted in zip(probes, expected, strict=True):
        outcome = _run(exercise, fn, probe)
        if outcome.value.shape != wanted.value.shape:
            wanted_shape, shape_came = shape(wanted.value), shape(outcome.value)
            raise UnusableError(
                say(
                    "wrong_shape", wanted=wanted_shape, when=probe.when, came=shape_came
                )
            )
        came.append(outcome)
    again = _run(exercise, fn, probes[0])
    if not same(again, came[0], 1e-4, strict=True):
        words = _words_for(exercise, exercise.random_bug)
        return FAILED, exercise.random_bug, say("not_repeatable", mistake=words)

    def right(index: int, *, strict: bool = True) -> bool:
        attached = came[index].attached or not strict
        return attached and same(
            came[index], expected[index], exercise.tolerance, strict=strict
        )

    wrong = [i for i in range(len(probes)) if not right(i)]
    if not wrong:
        return PASSED, None, say("passed", count=len(probes))
    first = wrong[0]
    what = _difference(exercise, probes[first].when, expected[first], came[first])

    def fitting(chosen: Sequence[int], *, strict: bool) -> str | None:
        for name, function in exercise.suspects():
            if all(
                _behaves_like(exercise, function, probes[i], came[i], strict=strict)
                for i in chosen
            ):
                return name
        return None

    # First the whole behaviour; then, since a second mistake often shows only at the
    # edges (nothing to count, -inf at padding), the ordinary inputs alone.
    # The last ordinary probe tells most.
    ordinary = [*reversed(range(len(exercise.inputs)))]
    edges = [*range(len(exercise.inputs), len(probes))]
    bug = fitting([*ordinary, *edges], strict=True)
    if bug is None:
        if all(right(i, strict=False) for i in ordinary):
            bug = next((probes[i].edge for i in wrong if broken(came[i])), None)
        else:
            bug = fitting(ordinary, strict=False)
    if bug is not None:
        return FAILED, bug, f"{what} {_words_for(exercise, bug)}"
    hint = exercise.hint(expected, came) if exercise.hint else ""
    return FAILED, None, f"{what} {hint}".strip()


def _behaves_like(
    exercise: Exercise, suspect: Function, probe: Probe, came: Outcome, *, strict: bool
) -> bool:
    try:
        value, leaves = _call(exercise, suspect, probe)
        # Most suspects are ruled out by their value, which spares the gradient.
        if not _close(
            came.value, value.detach().double(), exercise.tolerance, _VALUE_FLOOR
        ):
            return False
        outcome = _differentiate(value, leaves)
    except UnusableError:
        return False
    return same(came, outcome, exercise.tolerance, strict=strict)


def _run(exercise: Exercise, fn: Function, probe: Probe) -> Outcome:
    return _differentiate(*_call(exercise, fn, probe))


def _call(
    exercise: Exercise, fn: Function, probe: Probe
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
    played = exercise.play(fn) if exercise.play is not None else fn
    try:
        result = played(*given)
    except NotImplementedError:
        raise UnusableError(say("not_attempted"), status=NOT_ATTEMPTED) from None
    except (KeyboardInterrupt, OutOfTime):
        raise
    except BaseException as error:  # sys.exit() is no reason to end the notebook
        words = _in_words(error)
        if "ellipsis" in words.lower():
            raise UnusableError(say("ellipsis_left"), status=NOT_ATTEMPTED) from None
        raise UnusableError(say("raised", when=probe.when, error=words)) from None
    if result is None or result is ...:
        raise UnusableError(say("returns_nothing"), status=NOT_ATTEMPTED)
    for position, (before, after) in enumerate(zip(probe.inputs, given, strict=True)):
        if not _unchanged(before, after):
            words = say("changes_inputs", number=position + 1)
            raise UnusableError(words, bug="changes_inputs")
    if exercise.adapt is not None:
        result = exercise.adapt(result, probe.inputs)
    return as_tensor(result, differentiate=bool(leaves)), leaves


def _differentiate(value: Tensor, leaves: list[Tensor]) -> Outcome:
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if leaves and value.requires_grad:
        # Of several numbers each counts differently, so that none stands for another.
        share = torch.linspace(1.0, 2.0, max(1, value.numel()), dtype=value.dtype)
        total = (value * share.view_as(value)).sum()
        try:
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        except RuntimeError as error:
            words = say("no_derivative", error=_in_words(error))
            raise UnusableError(words) from None
    filled = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return Outcome(
        value.detach().double(),
        tuple(gradient.double() for gradient in filled),
        attached=not leaves or value.requires_grad,
    )


def same(a: Outcome, b: Outcome, tolerance: float, *, strict: bool) -> bool:
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


def broken(outcome: Outcome) -> bool:
    """Whether a value or gradient is not finite."""
    parts = (outcome.value, *outcome.gradients)
    return not all(bool(part.isfinite().all()) for part in parts)


def _copy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    if isinstance(x, torch.Generator):
        return torch.Generator().set_state(x.get_state())
    if isinstance(x, torch.nn.Module):
        return copy.deepcopy(x)
    return [_copy(one) for one in x] if isinstance(x, list) else x


def _unchanged(before: Any, after: Any) -> bool:
    # To draw from a generator and to train a model is what they are for.
    if isinstance(before, torch.Generator | torch.nn.Module):
        return True
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_unchanged, before, after))
    return bool(before == after)


# --- Words. ---


def _words_for(exercise: Exercise, bug: str) -> str:
    known = exercise.mistake(bug)
    if known is None:
        return say("something_random")
    return say("mistake", mistake=known.mistake, symptom=known.symptom)


def _in_words(error: BaseException) -> str:
    """Type and message on one line; a learner's own error may fail at that, too."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    return f"{type(error).__name__}: {message[:300]}"


def _words_for_no_answer(fn: Any, stopped: OutOfTime, seconds: float) -> str:
    words = [say("out_of_time", seconds=seconds)]
    file = getattr(getattr(fn, "__code__", None), "co_filename", None)
    own = [frame for frame in stopped.stack if frame.filename == file and frame.line]
    if own:
        words.append(say("out_of_time_line", number=own[-1].lineno, line=own[-1].line))
    return " ".join([*words, say("out_of_time_mistake")])


def _difference(exercise: Exercise, when: str, wanted: Outcome, came: Outcome) -> str:
    if not _close(came.value, wanted.value, exercise.tolerance, _VALUE_FLOOR):
        right, wrong = exercise.show(wanted.value), exercise.show(came.value)
        return say("value", wanted=right, when=when, came=wrong)
    if not came.attached:
        return say("detached", when=when)
    for whose, a, b in zip(
        ("student", "teacher"), wanted.gradients, came.gradients, strict=False
    ):
        if not _close(b, a, exercise.tolerance, _GRADIENT_FLOOR):
            lengths = {"wanted": float(a.norm()), "came": float(b.norm())}
            return say("gradient", when=when, whose=whose, **lengths)
    return say("differs", when=when)
