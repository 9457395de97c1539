"""What answers cost, by every way of getting them: buying, serving, distilling.

Rough on purpose: a model of P parameters takes 2·P operations to read or write a token
and 6·P to learn from one (Kaplan et al. 2020, arXiv:2001.08361), and a rented GPU
reaches a share of what its vendor states. That is enough to see which way is cheaper by
a factor, and to see what the answer hangs on; :func:`~distill_helpers.planning.plan`
knows more about a single training run.

Taught in notebook 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from distill_helpers.labels import scheme_for
from distill_helpers.planning import DEVICES, Device

# Ways that need no student, and ways to make one.
BOUGHT, SERVED, SERVED_4_BITS = "API", "teacher", "teacher in 4 bits"
READY_MADE = "small model of others"
API_TEXT, TEXT = "student of the API's text", "student of the teacher's text"
SOFT, STORED = "student of soft labels", "student of stored soft labels"
OWN, TOGETHER = "student of its own text", "co-distilled student"
WAYS = (
    *(BOUGHT, SERVED, SERVED_4_BITS, READY_MADE),
    *(API_TEXT, TEXT, SOFT, STORED, OWN, TOGETHER),
)


@dataclass(frozen=True)
class Project:
    """A learner's own numbers; the defaults are an example, not advice.

    Attributes:
        teacher_billions: Parameters of the teacher, in 10⁹.
        student_billions: Parameters of the student, in 10⁹.
        vocabulary: Tokens of the teacher's head.
        examples: Answers that the student learns from.
        tokens_per_example: Tokens read and written for one of them, and for one
            answer that is served.
        epochs: The number of times that the student reads them.
        students: Students that are trained on the same labels; they share what the
            teacher did.
        work_dollars: Cost of people: data, evaluation, deployment. Spent on every
            student, and on nothing that is bought.
        api_dollars: Price of 10⁶ tokens, read or written.
        storage_dollars: Price of a GB and month; soft labels are kept for one month.
        device: A name of ``planning.DEVICES``.
        writing_share: The share of the training utilisation that writing reaches:
            every token waits for the one before it.
    """

    teacher_billions: float = 70.0
    student_billions: float = 3.0
    vocabulary: int = 128_000
    examples: int = 50_000
    tokens_per_example: int = 1_000
    epochs: int = 3
    students: int = 1
    work_dollars: float = 5_000.0
    api_dollars: float = 1.0
    storage_dollars: float = 0.02
    device: str = "H100"
    writing_share: float = 0.5

    def __post_init__(self) -> None:
        if self.device not in DEVICES or DEVICES[self.device].dollars_per_hour is None:
            raise ValueError(
                f"device={self.device!r} has no price here; choose one of "
                f"{', '.join(DEVICES)}"
            )
        free = ("work_dollars", "api_dollars", "storage_dollars")
        for name in (field.name for field in fields(self) if field.name != "device"):
            value = getattr(self, name)
            if not (value >= 0 if name in free else value > 0) or value == math.inf:
                least = "0 or more" if name in free else "positive"
                raise ValueError(f"{name}={value} must be {least}")

    @property
    def gpu(self) -> Device:
        """The GPU that is rented."""
        return DEVICES[self.device]

    def compute(self, operations: float, *, writing: bool = False) -> float:
        """Return the dollars that operations cost on the rented GPU.

        Args:
            operations: Floating-point operations.
            writing: Whether tokens are written, which is slower than reading.
        """
        gpu = self.gpu
        speed = gpu.half_flops * gpu.utilisation
        seconds = operations / (speed * (self.writing_share if writing else 1.0))
        return seconds / 3600 * float(gpu.dollars_per_hour or 0.0)


@dataclass(frozen=True)
class Bill:
    """What one way costs, in dollars.

    Attributes:
        way: One of ``WAYS``.
        once: Part to dollars, before the first answer is served.
        answer: Dollars for one answer.
    """

    way: str
    once: Mapping[str, float]
    answer: float

    def total(self, answers: float) -> float:
        """Return the dollars for a number of answers."""
        return sum(self.once.values()) + answers * self.answer


def bill(project: Project, way: str) -> Bill:
    """Return what a way of getting answers costs.

    Args:
        project: Your numbers.
        way: One of ``WAYS``.

    Raises:
        ValueError: If the way is unknown.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} is unknown; choose one of {WAYS}")
    size = project.tokens_per_example
    teacher, student = 1e9 * project.teacher_billions, 1e9 * project.student_billions
    if way == BOUGHT:
        return Bill(way, MappingProxyType({}), size * project.api_dollars / 1e6)
    if way in (SERVED, SERVED_4_BITS):
        # Writing waits for the memory, and a quarter of the bytes come four times as
        # fast. Larger batches shrink the gain; it is then less than this.
        faster = 4.0 if way == SERVED_4_BITS else 1.0
        cost = project.compute(2 * teacher * size, writing=True) / faster
        return Bill(way, MappingProxyType({}), cost)
    served = project.compute(2 * student * size, writing=True)
    if way == READY_MADE:  # of the student's size
        return Bill(way, MappingProxyType({}), served)
    once = _making(project, way, teacher, student)
    return Bill(way, MappingProxyType(once), served)


def _making(
    project: Project, way: str, teacher: float, student: float
) -> dict[str, float]:
    """What a student costs before it serves."""
    read_once = project.examples * project.tokens_per_example
    read = read_once * project.epochs
    parts = {"people": project.work_dollars}
    if way == API_TEXT:
        parts["teacher's text"] = read_once * project.api_dollars / 1e6
    elif way != TOGETHER:
        parts["teacher's text"] = project.compute(2 * teacher * read_once, writing=True)
    if way in (SOFT, OWN):
        parts["teacher reads"] = project.compute(2 * teacher * read)
    if way == STORED:
        scheme = scheme_for("hybrid", project.vocabulary)
        stored = scheme.bytes_per_position * read_once / 1e9
        parts["teacher reads"] = project.compute(2 * teacher * read_once)
        parts["storage"] = stored * project.storage_dollars
    if way == OWN:
        parts["student writes"] = project.compute(2 * student * read, writing=True)
    if way == TOGETHER:
        parts["teacher learns"] = project.compute(6 * teacher * read)
    parts["student learns"] = project.compute(6 * student * read)
    # Live teachers read for all students at once only where these train in step, as
    # in co-distillation; else each student has its own reading.
    shared = {"teacher's text", "storage", "teacher learns"}
    if way == STORED:
        shared.add("teacher reads")
    return {
        name: cost / project.students if name in shared else cost
        for name, cost in parts.items()
    }


def break_even(first: Bill, second: Bill) -> float:
    """Return the answers from which on the second bill is lower; infinity if never.

    Args:
        first: The bill to compare with, such as that of buying.
        second: Another bill, such as that of distilling.
    """
    once = sum(second.once.values()) - sum(first.once.values())
    saved = first.answer - second.answer
    if saved <= 0:
        return math.inf if once > 0 else 0.0
    return max(0.0, once / saved)
