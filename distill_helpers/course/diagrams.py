"""Diagrams of who gives what to whom: boxes and arrows, the same in every notebook.

A diagram shows itself as SVG and as PNG, so that JupyterLab, GitHub and a web page each
find a form that they can draw, and says in words what it shows. It has a ground of its
own, so that it can be read on a dark page, too. Used in notebooks 00, 02 and 04 to 11.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from distill_helpers.course.plots import STUDENT, TEACHER, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a box or an arrow stands for, and its colour; the same roles as in every figure.
ROLES = {"teacher": TEACHER, "student": STUDENT, "text": TEXT, "plain": "#5A5A5A"}
# A unit of the drawing, in inches.
_UNIT = 0.5
_INK = "#222222"


@dataclass(frozen=True)
class Box:
    """A thing: a model, a text, a loss.

    Attributes:
        name: What arrows call it.
        words: What stands in it; lines are broken where it says so.
        at: Its centre, in units; y grows downwards.
        role: One of ``ROLES``: a filled box for models, a pale one for everything else.
        size: Width and height, in units.
        filled: White words on the role's colour; default: for models.
    """

    name: str
    words: str
    at: tuple[float, float]
    role: str = "plain"
    size: tuple[float, float] = (2.6, 1.1)
    filled: bool | None = None


@dataclass(frozen=True)
class Arrow:
    """Something that goes from one box to another.

    Attributes:
        start: The name of a box.
        end: The name of another.
        words: What goes there, beside the arrow.
        role: One of ``ROLES``.
        bend: Curvature; 0 is straight, negative bends the other way.
        dashed: For what happens now and then, or only at first.
        shift: Where the words stand, in units from the middle of the way.
    """

    start: str
    end: str
    words: str = ""
    role: str = "plain"
    bend: float = 0.0
    dashed: bool = False
    shift: tuple[float, float] = (0.0, -0.3)


@dataclass(frozen=True)
class Diagram:
    """Boxes and arrows that show themselves in a notebook.

    Attributes:
        boxes: What there is.
        arrows: What goes from where to where.
        alt: The same in words, for those who cannot see the drawing; one sentence or
            two, which must name everything that it shows.
        titles: Further words, with their places.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    alt: str
    titles: tuple[tuple[str, tuple[float, float]], ...] = ()

    def __post_init__(self) -> None:
        names = [box.name for box in self.boxes]
        if len(set(names)) < len(names):
            raise ValueError(f"boxes={names}: two have the same name")
        for arrow in self.arrows:
            for end in (arrow.start, arrow.end):
                if end not in names:
                    raise ValueError(f"an arrow's {end!r} is no box; there are {names}")
        roles = [box.role for box in self.boxes] + [one.role for one in self.arrows]
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"role={role!r} is not one of {[*ROLES]}")
        if not self.alt.strip():
            raise ValueError("alt is empty; say in words what the diagram shows")

    @cached_property
    def svg(self) -> str:
        """The drawing as SVG, with the words for screen readers."""
        import matplotlib as mpl

        buffer = io.StringIO()
        # Fixed, so that the same diagram gives the same bytes.
        with mpl.rc_context({"svg.hashsalt": "diagram"}):
            self._figure().savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue()
        start = text.index("<svg ")
        end = text.index(">", start)
        # Without a width of its own it takes the page's, and is never cut off.
        root = re.sub(r' (?:width|height)="[^"]*"', "", text[start:end])
        width = re.search(r'viewBox="0 0 ([\d.]+)', root)[1]  # type: ignore[index]
        fit = f'role="img" style="width: 100%; max-width: {width}pt"'
        title = f"<title>{escape(self.alt)}</title>"
        return f"{root} {fit}>{title}{text[end + 1 :]}"

    @cached_property
    def png(self) -> bytes:
        """The drawing as PNG, twice as fine as a screen asks for."""
        buffer = io.BytesIO()
        self._figure().savefig(
            buffer, format="png", dpi=192, metadata={"Software": None}
        )
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from base64 import b64encode

        return {
            "image/svg+xml": self.svg,
            "image/png": b64encode(self.png).decode(),
            "text/plain": self.alt,
        }

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        lows, highs = _extent(self)
        width, height = highs[0] - lows[0], highs[1] - lows[1]
        figure = Figure(figsize=(_UNIT * width, _UNIT * height), facecolor="white")
        # The course's style asks for a layout that would move these axes.
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(lows[0], highs[0])
        ax.set_ylim(highs[1], lows[1])
        ax.axis("off")
        places = {box.name: box for box in self.boxes}
        for arrow in self.arrows:
            _draw_arrow(ax, arrow, places[arrow.start], places[arrow.end])
        for box in self.boxes:
            _draw_box(ax, box)
        for words, at in self.titles:
            ax.text(*at, words, ha="center", va="center", weight="bold", color=_INK)
        return figure


def _extent(diagram: Diagram) -> tuple[tuple[float, float], tuple[float, float]]:
    """Upper left and lower right corner, with some air."""
    points = [at for _, at in diagram.titles]
    for box in diagram.boxes:
        x, y = box.at
        wide, high = box.size[0] / 2, box.size[1] / 2
        points += [(x - wide, y - high), (x + wide, y + high)]
    xs, ys = zip(*points, strict=True)
    return (min(xs) - 0.4, min(ys) - 0.5), (max(xs) + 0.4, max(ys) + 0.5)


def _draw_box(ax: Axes, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    color = ROLES[box.role]
    filled = box.role in ("teacher", "student") if box.filled is None else box.filled
    (x, y), (wide, high) = box.at, box.size
    ax.add_patch(
        FancyBboxPatch(
            (x - wide / 2, y - high / 2),
            wide,
            high,
            boxstyle="round,pad=0,rounding_size=0.22",
            facecolor=color if filled else "white",
            edgecolor=color,
            linewidth=1.6,
        )
    )
    ax.text(
        *(x, y, box.words),
        ha="center",
        va="center",
        color="white" if filled else _INK,
        fontsize=10,
        linespacing=1.25,
    )


def _draw_arrow(ax: Axes, arrow: Arrow, start: Box, end: Box) -> None:
    color = ROLES[arrow.role]
    from_, to = _edge(start, end.at), _edge(end, start.at)
    ax.annotate(
        "",
        xy=to,
        xytext=from_,
        arrowprops={
            "arrowstyle": "-|>,head_width=0.25,head_length=0.5",
            "color": color,
            "linewidth": 1.8,
            "linestyle": (0, (4, 3)) if arrow.dashed else "-",
            "connectionstyle": f"arc3,rad={arrow.bend}",
            "shrinkA": 2,
            "shrinkB": 2,
        },
    )
    if arrow.words:
        x, y = ((a + b) / 2 for a, b in zip(from_, to, strict=True))
        ax.text(
            x + arrow.shift[0],
            y + arrow.shift[1],
            arrow.words,
            ha="center",
            va="center",
            color=color,
            fontsize=9,
            linespacing=1.2,
        )


def _edge(box: Box, towards: tuple[float, float]) -> tuple[float, float]:
    """Where a line from the box's centre to a point leaves the box."""
    (x, y), (wide, high) = box.at, box.size
    dx, dy = towards[0] - x, towards[1] - y
    reach = min(
        (wide / 2 / abs(dx)) if dx else float("inf"),
        (high / 2 / abs(dy)) if dy else float("inf"),
    )
    return x + reach * dx, y + reach * dy


# The diagrams of the lessons --------------------------------------------------------


def three_techniques() -> Diagram:
    """Soft labels, hard labels and co-distillation, side by side (lesson 00)."""
    soft, hard, both = 0.0, 5.2, 10.6
    top, middle, bottom = 1.2, 3.6, 6.0
    every = "cat 70 %\ndog 20 %\nanimal 10 %"
    return Diagram(
        boxes=(
            Box("teacher", "teacher,\nfinished", (soft, top), "teacher"),
            Box("student", "student", (soft, bottom), "student"),
            Box("read", "text", (soft - 2.3, middle), "text", (1.5, 0.9)),
            Box("writer", "teacher,\nfinished", (hard, top), "teacher"),
            Box(
                *(
                    "written",
                    "“a small furry pet\nis a cat”",
                    (hard, middle),
                    "teacher",
                ),
                size=(3.4, 1.1),
                filled=False,
            ),
            Box("reader", "student", (hard, bottom), "student"),
            Box("grown", "teacher,\nstill learning", (both, top), "teacher"),
            Box("partner", "student", (both, bottom), "student"),
            Box("text", "text", (both + 2.3, middle), "text", (1.5, 0.9)),
        ),
        arrows=(
            Arrow("teacher", "student", every, "teacher", shift=(1.15, 0.0)),
            Arrow("read", "teacher", role="text", bend=-0.15, dashed=True),
            Arrow("read", "student", role="text", bend=0.15, dashed=True),
            Arrow("writer", "written", role="teacher"),
            Arrow("written", "reader", role="teacher"),
            Arrow("grown", "partner", every, "teacher", shift=(-1.15, 0.0)),
            Arrow("text", "grown", role="text", bend=0.15),
            Arrow("text", "partner", role="text", bend=-0.15),
        ),
        alt=(
            "Three pairs of a teacher and a student. Soft labels: both read a text, "
            "and the finished teacher gives the student a probability for every token, "
            "such as cat 70 %, dog 20 %, animal 10 %. Hard labels: a finished teacher "
            "writes a text, such as “a small furry pet is a cat”, and the student "
            "learns that text. Co-distillation: a teacher that is still learning from "
            "text gives the student its probabilities, and the student learns from "
            "the text, too."
        ),
        titles=(
            ("soft labels", (soft, 0.0)),
            ("hard labels", (hard, 0.0)),
            ("co-distillation", (both, 0.0)),
        ),
    )


def soft_labels() -> Diagram:
    """One text, two readers, two distributions, one loss (lesson 02)."""
    left, middle, right = 0.0, 4.2, 8.4
    return Diagram(
        boxes=(
            Box("text", "“a small\nfurry pet is a”", (left, 2.0), "text", (3.0, 1.2)),
            Box("teacher", "teacher,\nfinished", (middle, 0.6), "teacher"),
            Box("student", "student,\nlearning", (middle, 3.4), "student"),
            Box(
                "p",
                "cat 70 %\ndog 20 %\nanimal 10 %",
                (right, 0.6),
                "teacher",
                (2.6, 1.6),
                filled=False,
            ),
            Box(
                "q",
                "cat 40 %\ndog 25 %\nanimal 35 %",
                (right, 3.4),
                "student",
                (2.6, 1.6),
                filled=False,
            ),
            Box("loss", "KL(p ‖ q)", (right + 4.0, 2.0), "plain", (2.2, 1.0)),
            Box("gradient", "gradient q − p", (right, 5.5), "plain", (2.9, 0.9)),
        ),
        arrows=(
            Arrow("text", "teacher", role="text", dashed=True),
            Arrow("text", "student", role="text", dashed=True),
            Arrow("teacher", "p", "p", "teacher", shift=(0.0, -0.35)),
            Arrow("student", "q", "q", "student", shift=(0.0, -0.35)),
            Arrow("p", "loss", role="teacher"),
            Arrow("q", "loss", role="student"),
            Arrow("loss", "gradient"),
            Arrow("gradient", "student"),
        ),
        alt=(
            "A text goes to a finished teacher and to a student that is learning; both "
            "only read it. The teacher answers with a distribution p, cat 70 %, dog "
            "20 %, animal 10 %, the student with another one, q, cat 40 %, dog 25 %, "
            "animal 35 %. The loss is the KL divergence of the two, and its gradient, "
            "q minus p, goes back to the student alone."
        ),
        titles=(),
    )


def stored_labels() -> Diagram:
    """The teacher reads once, and many students learn from the file (lesson 04)."""
    return Diagram(
        boxes=(
            Box("text", "text", (0.0, 0.0), "text", (1.8, 1.0)),
            Box("teacher", "teacher,\nfinished", (3.9, 0.0), "teacher"),
            Box(
                *("cache", "8 likeliest,\n24 drawn", (8.6, 0.0), "teacher"),
                size=(2.7, 1.2),
                filled=False,
            ),
            Box("first", "student, epoch 1", (13.2, -1.4), "student", (3.1, 1.0)),
            Box("second", "student, epoch 2", (13.2, 0.0), "student", (3.1, 1.0)),
            Box("third", "another student", (13.2, 1.4), "student", (3.1, 1.0)),
        ),
        arrows=(
            Arrow("text", "teacher", "once", "text"),
            Arrow("teacher", "cache", "a file", "teacher"),
            Arrow("cache", "first", role="teacher"),
            Arrow("cache", "second", role="teacher"),
            Arrow("cache", "third", role="teacher"),
        ),
        alt=(
            "A finished teacher reads a text once and writes a file: of every position "
            "the 8 likeliest tokens and 24 drawn ones. From this file a student "
            "learns, in its next epoch once more, and so does the next student, "
            "without the teacher."
        ),
    )


def hard_labels() -> Diagram:
    """Questions, a teacher that writes, a file, filters, a student (lesson 05)."""
    return Diagram(
        boxes=(
            Box("questions", "questions", (0.0, 0.0), "text", (2.2, 1.0)),
            Box(
                "teacher", "teacher:\nan API will do", (3.9, 0.0), "teacher", (3.0, 1.2)
            ),
            Box(
                *("file", "a file of\nanswers", (8.3, 0.0), "teacher"),
                size=(2.4, 1.2),
                filled=False,
            ),
            Box("filters", "look,\nfilter", (12.0, 0.0), "plain", (2.0, 1.2)),
            Box("student", "student", (16.2, 0.0), "student"),
            Box("bin", "thrown away", (12.0, 2.4), "plain", (2.5, 0.9)),
        ),
        arrows=(
            Arrow("questions", "teacher", "ask", "text"),
            Arrow("teacher", "file", "write", "teacher"),
            Arrow("file", "filters", role="teacher"),
            Arrow("filters", "student", "fine-tune", "teacher"),
            Arrow("filters", "bin", role="plain", dashed=True),
        ),
        alt=(
            "Questions are put to a teacher, for which an API will do. It writes "
            "answers into a file. Look at them and filter: some are thrown away, and "
            "on the others a student is fine-tuned."
        ),
    )


def reasoning_traces() -> Diagram:
    """A teacher writes traces, a checker keeps some, a student learns (lesson 06)."""
    return Diagram(
        boxes=(
            Box("question", "27+58+46=", (0.0, 0.0), "text", (2.4, 1.0)),
            Box("teacher", "teacher,\nfinished", (3.7, 0.0), "teacher"),
            Box(
                *("trace", "27+58=85,\n85+46=131;131", (8.0, 0.0), "teacher"),
                size=(3.3, 1.2),
                filled=False,
            ),
            Box("checker", "checker:\nis it 131?", (12.2, 0.0), "plain", (2.5, 1.2)),
            Box("student", "student", (16.6, 0.0), "student"),
            Box("bin", "thrown away", (12.2, 2.4), "plain", (2.5, 0.9)),
        ),
        arrows=(
            Arrow("question", "teacher", role="text"),
            Arrow("teacher", "trace", role="teacher"),
            Arrow("trace", "checker", role="teacher"),
            Arrow("checker", "student", "right", "teacher"),
            Arrow("checker", "bin", "wrong", "plain", dashed=True, shift=(0.8, 0.0)),
        ),
        alt=(
            "A question, 27+58+46=, goes to a finished teacher, which writes a trace, "
            "27+58=85, 85+46=131; 131. A checker asks whether the result is 131. "
            "Right traces go to the student, wrong ones are thrown away."
        ),
    )


def co_distillation() -> Diagram:
    """Teacher and student learn from one batch; nothing flows back (lesson 07)."""
    left, middle, right = 0.0, 4.4, 9.8
    top, bottom = 0.0, 3.6
    return Diagram(
        boxes=(
            Box("text", "one batch\nof text", (left, 1.8), "text", (2.4, 1.2)),
            Box("teacher", "teacher,\nlearning", (middle, top), "teacher"),
            Box("student", "student,\nlearning", (middle, bottom), "student"),
            Box("one", "CE with the text", (right, top), "plain", (3.2, 1.0)),
            Box(
                "two",
                "(1 − α) · CE with the text\n+ α · KL(teacher ‖ student)",
                at=(right, bottom),
                size=(5.2, 1.3),
            ),
        ),
        arrows=(
            Arrow("text", "teacher", role="text"),
            Arrow("text", "student", role="text"),
            Arrow("one", "teacher", "gradient", shift=(0.0, -0.3)),
            Arrow("two", "student", "gradient", shift=(0.0, -0.3)),
            Arrow(
                *("teacher", "two", "p, detached:\nnothing flows back", "teacher"),
                shift=(2.3, -0.2),
            ),
        ),
        alt=(
            "One batch of text goes to a teacher and to a student, and both are "
            "learning. The teacher's loss is the cross-entropy with the text, and its "
            "gradient goes to the teacher. The student's loss is 1 minus alpha times "
            "the cross-entropy with the text plus alpha times KL of teacher and "
            "student, and its gradient goes to the student. The teacher gives its "
            "distribution p to the student's loss, detached: nothing flows back."
        ),
    )


def on_policy() -> Diagram:
    """The student writes, the teacher marks every token (lesson 08)."""
    top, bottom = 0.0, 3.4
    return Diagram(
        boxes=(
            Box("prompt", "27+58+46=", (0.0, top), "text", (2.4, 1.0)),
            Box("student", "student,\nlearning", (3.9, top), "student"),
            Box(
                *("written", "27+58=75,\n75+46=121;121", (8.6, top), "student"),
                size=(3.5, 1.2),
                filled=False,
            ),
            Box("teacher", "teacher,\nfinished", (13.4, top), "teacher"),
            Box(
                *("marks", "a distribution\nfor every token", (13.4, bottom)),
                *("teacher", (3.4, 1.2)),
                filled=False,
            ),
            Box(
                *("loss", "divergence from the\nstudent's, per token", (6.6, bottom)),
                *("plain", (4.2, 1.2)),
            ),
        ),
        arrows=(
            Arrow("prompt", "student", role="text"),
            Arrow("student", "written", "writes", "student"),
            Arrow("written", "teacher", "reads along", "student", shift=(0.0, -0.4)),
            Arrow("teacher", "marks", role="teacher"),
            Arrow("marks", "loss", role="teacher"),
            Arrow("loss", "student", "gradient", shift=(-1.15, 0.0)),
        ),
        alt=(
            "A prompt, 27+58+46=, goes to a student that is learning. It writes "
            "27+58=75, 75+46=121; 121, with a wrong first sum. A finished teacher "
            "reads along and gives a distribution for every token. The loss is its "
            "divergence from the student's own, at every written token, and the "
            "gradient goes back to the student."
        ),
    )


def self_distillation() -> Diagram:
    """A model teaches itself what it does with something more (lesson 09)."""
    more = ("a prompt", "full precision", "a finished training")
    fewer = ("no prompt", "rounded weights", "fresh weights")
    boxes, arrows = [], []
    for row, (one, other) in enumerate(zip(more, fewer, strict=True)):
        y = 1.9 * row
        boxes += [
            Box(f"more{row}", one, (-0.3, y), "text", (3.8, 1.0)),
            Box(f"teacher{row}", "the model", (4.4, y), "teacher"),
            Box(f"student{row}", "the same model", (10.4, y), "student", (3.4, 1.1)),
            Box(f"less{row}", other, (14.9, y), "plain", (3.4, 1.0)),
        ]
        words = "soft labels" if row == 0 else ""
        arrows += [
            Arrow(f"more{row}", f"teacher{row}", role="text"),
            Arrow(f"teacher{row}", f"student{row}", words, "teacher"),
            Arrow(f"less{row}", f"student{row}"),
        ]
    return Diagram(
        boxes=tuple(boxes),
        arrows=tuple(arrows),
        alt=(
            "Three times the same model gives soft labels to itself. With a prompt it "
            "teaches itself without one, in full precision it teaches itself with "
            "rounded weights, and after a finished training it teaches itself from "
            "fresh weights."
        ),
    )


def other_tokenizers() -> Diagram:
    """Two models read one text in their own tokens (lesson 10)."""
    top, bottom = 0.0, 3.4
    return Diagram(
        boxes=(
            Box("text", "one text:\nbytes", (0.0, 1.7), "text", (2.4, 1.2)),
            Box(
                *("theirs", "␣wonderful", (4.6, top), "teacher", (3.4, 1.0)),
                filled=False,
            ),
            Box(
                *("ours", "␣wonder | ful", (4.6, bottom), "student", (3.4, 1.0)),
                filled=False,
            ),
            Box("teacher", "teacher,\nfinished", (9.2, top), "teacher"),
            Box("student", "student,\nlearning", (9.2, bottom), "student"),
            Box(
                *("loss", "loss at places\nwhere both have cut", (14.2, 1.7)),
                *("plain", (4.2, 1.3)),
            ),
        ),
        arrows=(
            Arrow("text", "theirs", "teacher's cuts", "text", shift=(-0.9, -0.35)),
            Arrow("text", "ours", "student's cuts", "text", shift=(-0.9, 0.4)),
            Arrow("theirs", "teacher", role="teacher"),
            Arrow("ours", "student", role="student"),
            Arrow("teacher", "loss", "p", "teacher", shift=(0.3, -0.35)),
            Arrow("loss", "student", "gradient", shift=(0.6, 0.4)),
        ),
        alt=(
            "One text, which is bytes, is cut in two ways: the teacher's tokenizer has "
            "one token for wonderful, the student's has two, wonder and ful. The "
            "finished teacher and the learning student each read their own tokens. A "
            "loss compares them at places where both have a cut, and its gradient goes "
            "to the student."
        ),
    )
