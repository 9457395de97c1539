"""The course's figures: one style, and functions that draw into ``ax=``.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; arms that a
figure compares also differ in marker or position, never in colour alone.

Used in all notebooks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from distill_helpers.studies import Results
    from distill_helpers.studies.results import Verdict

# Roles, the same in every figure: the teacher and what it gives, the student, the
# text's own labels, what is there for comparison.
TEACHER = "#0072B2"
STUDENT = "#D55E00"
TEXT = "#009E73"
PALE = "#B8B8B8"
PALETTE = (STUDENT, TEACHER, TEXT, "#CC79A7", "#E69F00", "#56B4E9", "#222222")


def use_style() -> None:
    """Set matplotlib's defaults for the course; a notebook calls this once.

    From then on, a notebook keeps every figure's words beside its picture
    (:mod:`distill_helpers.course.figure_words`).
    """
    import matplotlib as mpl
    from cycler import cycler

    from distill_helpers.course.figure_words import tell_figures

    tell_figures()
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.4),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.prop_cycle": cycler(color=PALETTE),
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def token_bars(
    ax: Axes,
    tokens: Sequence[str],
    probabilities: Sequence[float],
    *,
    color: str = TEACHER,
    title: str = "",
) -> None:
    """Draw horizontal bars of a next-token distribution, the first one on top.

    Args:
        ax: The axes to draw into.
        tokens: The bars' labels.
        probabilities: One number in [0, 1] for each token.
        color: The colour of the bars.
        title: The title of the axes.
    """
    places = range(len(tokens))
    percents = [100 * probability for probability in probabilities]
    bars = ax.barh(places, percents, color=color)
    ax.set_yticks(list(places), list(tokens))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    texts = [f"{one:.1f} %" if one >= 0.05 else "< 0.1 %" for one in percents]
    ax.bar_label(bars, texts, padding=4, fontsize=8.5)
    ax.set_xlim(0, 1.22 * max(percents))
    ax.set_xlabel("probability (percent)")
    ax.set_title(title)


def compare_arms(
    ax: Axes,
    results: Results,
    metric: str,
    setting: str,
    *,
    live: dict[str, float] | None = None,
    soft: Collection[str] | None = None,
    arms: Sequence[str] | None = None,
    told: bool = False,
) -> None:
    """Draw a study's arms, one row each: mean, 95 % interval, and a live run beside it.

    Args:
        ax: The axes to draw into.
        results: What ``studies.load_results`` returns.
        metric: A column of the study.
        setting: A setting of the study, the same for all arms.
        live: Arm to the number of the run in front of the reader.
        soft: Arms that learn from soft labels, drawn in the teacher's colour; default:
            those whose names say so.
        arms: Those to draw, from top to bottom; default: all, in the study's order.
        told: Write every mean above its mark.
    """
    if arms is None:
        arms = [arm for arm, other in results.study.pairs() if other == setting]
    if soft is None:
        soft = [arm for arm in arms if "soft" in arm or arm.startswith("mix")]
    for place, arm in enumerate(arms):
        found = results.mean(metric, arm, setting)
        color = TEACHER if arm in soft else STUDENT
        ax.plot([found.low, found.high], [place, place], color=color, lw=3)
        ax.plot(found.mean, place, "o", color=color, ms=7)
        if told:
            digits = 2 if found.mean < 10 else 0
            ax.annotate(
                f"{found.mean:.{digits}f}",
                (found.mean, place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
    if live:
        shown = [arm for arm in arms if arm in live]
        ax.plot(
            [live[arm] for arm in shown],
            [arms.index(arm) for arm in shown],
            "D",
            mfc="white",
            mec="#222222",
            label="your live run",
        )
        ax.legend()
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def over_settings(ax: Axes, results: Results, metric: str, arms: Sequence[str]) -> None:
    """Draw some arms of a study over its settings: means and 95 % bands.

    Args:
        ax: The axes to draw into.
        results: What ``studies.load_results`` returns.
        metric: A column of the study.
        arms: The arms to draw, at most seven.
    """
    settings, pairs = results.study.settings, results.study.pairs()
    for arm, marker in zip(arms, "osD^vPX", strict=False):
        places = [i for i, setting in enumerate(settings) if (arm, setting) in pairs]
        means = [results.mean(metric, arm, settings[place]) for place in places]
        ax.plot(places, [m.mean for m in means], marker=marker, label=arm)
        lows, highs = [m.low for m in means], [m.high for m in means]
        ax.fill_between(places, lows, highs, alpha=0.2)
    ax.set_xticks(range(len(settings)), list(settings))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(arms))


def lines(
    ax: Axes,
    curves: dict[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    **options: Any,
) -> None:
    """Draw named curves of ``(x, y)`` points with a legend.

    Args:
        ax: The axes to draw into.
        curves: Name to points.
        xlabel: What x is, with its unit.
        ylabel: What y is, with its unit.
        title: The title of the axes.
        options: Keywords of ``ax.plot``, the same for all curves.
    """
    markers = "osD^vPX"
    for index, (name, points) in enumerate(curves.items()):
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, label=name, marker=markers[index % 7], ms=4, **options)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    ax.legend()


def two_cuts(
    ax: Axes,
    ours: Sequence[bytes],
    theirs: Sequence[bytes],
    pairs: Sequence[tuple[int, int]] = (),
    *,
    names: tuple[str, str] = ("student", "teacher"),
) -> None:
    """Draw the pieces of one text by two tokenizers, one row above the other.

    Args:
        ax: The axes to draw into.
        ours: The bytes of the student's tokens.
        theirs: Those of the teacher's.
        pairs: How many tokens of either side each chunk has; every other chunk is
            shaded, and one of several tokens has a frame.
        names: What the two rows are called.

    Taught in notebook 10.
    """
    from itertools import accumulate

    from matplotlib.patches import Rectangle

    ends = []
    for y, pieces, color in ((1.0, ours, STUDENT), (0.0, theirs, TEACHER)):
        x = 0
        for piece in pieces:
            corner, size = (x + 0.06, y + 0.1), (len(piece) - 0.12, 0.7)
            ax.add_patch(Rectangle(corner, *size, facecolor=color, alpha=0.85))
            word = piece.decode(errors="backslashreplace")
            word = word.replace(" ", "␣").replace("\\x", "")
            narrow = len(word) > len(piece)
            ax.text(
                x + len(piece) / 2,
                y + 0.45,
                word,
                ha="center",
                va="center",
                color="white",
                fontsize=6 if narrow else 8,
                family="monospace",
            )
            x += len(piece)
        ends.append([0, *accumulate(map(len, pieces))])
    i = j = 0
    for number, (k, m) in enumerate(pairs):
        start, end = ends[0][i], ends[0][i + k]
        frame = {"edgecolor": "0.2", "lw": 1.4} if k + m > 2 else {"edgecolor": "none"}
        face = "0.88" if number % 2 else "0.96"
        ax.add_patch(
            Rectangle(
                *((start + 0.1, -0.1), end - start - 0.2, 2.1),
                **frame,
                facecolor=face,
                zorder=0,
            )
        )
        i, j = i + k, j + m
    ax.set_xlim(-0.1, max(ends[0][-1], ends[1][-1]) + 0.1)
    ax.set_ylim(-0.15, 2.05)
    ax.set_yticks([0.45, 1.45], names[::-1])
    ax.set_xlabel("bytes of the text")
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(left=False)


def shaded_text(
    ax: Axes,
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    notes: dict[int, str] | None = None,
    width: int = 64,
    color: str = TEACHER,
    unit: str = "",
) -> None:
    """Draw a text whose tokens are shaded by a number each, notes in the margin.

    Args:
        ax: The axes to draw into; they are turned off.
        tokens: Pieces of the text, each with its own space.
        values: One number a token; the largest gets the full colour.
        notes: Place of a token to what is said of it, on the right; the token gets a
            frame and a number.
        width: Characters of a line.
        color: The colour of the largest value.
        unit: What the numbers are, for the scale below; without it there is none.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    full = LinearSegmentedColormap.from_list("full", ["white", color])
    shades = LinearSegmentedColormap.from_list("shades", [full(0.0), full(0.75)])
    highest = max(values) or 1.0
    # In characters and lines; a token that does not fit begins the next line.
    column = line = 0
    numbers = {place: n for n, place in enumerate(sorted(notes or {}), start=1)}
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        shown = token.replace("\n", "¶")
        if column + len(shown) > width:
            column, line = 0, line + 1
        share = max(0.0, value) / highest
        ax.add_patch(
            Rectangle(
                (column, line - 0.5),
                len(shown),
                1,
                facecolor=shades(share),
                edgecolor="#222222" if place in numbers else "white",
                linewidth=1.4 if place in numbers else 0.6,
                zorder=2 if place in numbers else 1,
            )
        )
        for offset, character in enumerate(shown):
            at = (column + offset + 0.5, line + 0.02)
            ax.text(*at, character, ha="center", va="center", family="monospace")
        if place in numbers:
            ax.text(
                *(column, line - 0.5, str(numbers[place])),
                ha="center",
                va="center",
                fontsize=8,
                weight="bold",
                color=STUDENT,
                bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": STUDENT},
                zorder=4,
            )
        column += len(shown)
    for number, words in enumerate((notes or {})[one] for one in numbers):
        at = (width + 2, number * (line + 1) / max(1, len(numbers)))
        ax.text(*at, f"{number + 1}  {words}", va="center", fontsize=9)
    ax.set_xlim(-1.5, width * (1.75 if notes else 1.02))
    ax.set_ylim(line + 0.7, -0.9)
    ax.axis("off")
    if unit:
        scale = ScalarMappable(Normalize(0, highest), shades)
        ax.figure.colorbar(
            scale, ax=ax, location="bottom", shrink=0.3, aspect=30, label=unit
        )


# How a verdict is drawn: a marker and its filling, never colour alone.
_VERDICTS = {
    "holds": ("o", "#222222", "#222222"),
    "equivalent": ("D", "#222222", "#222222"),
    "fails": ("X", "#222222", "#222222"),
    "undecided": ("o", "white", "#6B6B6B"),
    "not judged": ("o", "white", "#A0A0A0"),
}


def forest(
    ax: Axes,
    verdicts: Sequence[Verdict],
    *,
    width: int = 44,
    told: bool = True,
    words: Sequence[str] | None = None,
) -> None:
    """Draw claims, one row each: the gain, its interval, what was claimed, the verdict.

    A short line marks the margin that the gain had to exceed, a band the margins
    within which two had to be equal; right of the zero line is better.

    Args:
        ax: The axes to draw into.
        verdicts: Those of one unit, from ``Results.verdict`` or ``studies.judge``.
        width: Characters of a line of the claims' words.
        told: Write gain and verdict at the mark; else all marks are alike.
        words: What to call the claims where a page has its own words for the arms;
            default: as they were declared.

    Raises:
        ValueError: If the claims are measured in different units.
    """
    from textwrap import fill

    from distill_helpers.studies.study import UNITS

    units = {UNITS.get(one.claim.metric, one.claim.metric) for one in verdicts}
    if len(units) > 1:
        raise ValueError(
            f"verdicts in {' and '.join(sorted(units))} cannot share an axis; draw a "
            "forest for each unit"
        )
    ax.axvline(0, color="#222222", lw=1)
    for place, verdict in enumerate(verdicts):
        gain, claim = verdict.gain, verdict.claim
        marker, face, ink = _VERDICTS[verdict.status if told else "holds"]
        if claim.within is not None:
            ends = ([place - 0.3] * 2, [place + 0.3] * 2)
            ax.fill_between([-claim.within, claim.within], *ends, color=PALE, alpha=0.5)
        elif claim.margin:
            ax.plot([claim.margin] * 2, [place - 0.3, place + 0.3], color=STUDENT, lw=2)
        ax.plot([gain.low, gain.high], [place, place], color=ink, lw=2)
        ax.plot(gain.mean, place, marker, ms=8, mfc=face, mec=ink)
        if not told:
            continue
        digits = 1 if "points" in units else 2
        # Rounded first, so that nothing is "minus zero".
        mean = f"{round(gain.mean, digits) + 0.0:+.{digits}f}".replace("-", "−")
        ax.annotate(
            f"{mean}: {verdict.status}",
            (gain.mean, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=ink,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )
    called = words or [one.claim.text for one in verdicts]
    labels = [fill(text, width) for text in called]
    ax.set_yticks(range(len(labels)), labels, fontsize=8.5)
    ax.set_ylim(len(labels) - 0.45, -0.65)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    ax.set_xlabel(f"gain ({units.pop()}); right of zero is better")


def explained_gain(ax: Axes, verdict: Verdict) -> None:
    """Draw one claim without its verdict, and say what each mark is (notebook 03).

    Args:
        ax: The axes to draw into.
        verdict: A verdict on a claim that has a margin.
    """
    forest(ax, [verdict], told=False)
    gain, margin = verdict.gain, verdict.claim.margin
    right = 1.25 * gain.high
    marks = (
        ("zero: no difference", (0.0, -0.25), (0.04, -0.45)),
        ("the margin that\nwas claimed", (margin, 0.3), (0.52 * margin, 0.5)),
        ("the mean gain", (gain.mean, 0.05), (0.85 * gain.mean, 0.5)),
        ("one end of\nits interval", (gain.high, 0.02), (1.04 * gain.high, 0.35)),
    )
    for words, at, where in marks:
        arrow = {"arrowstyle": "->", "color": "#6B6B6B"}
        ax.annotate(words, at, where, fontsize=8.5, arrowprops=arrow)
    ax.set_xlim(-0.1 * right, right)
