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

# Roles, the same in every figure: the teacher and what it gives, the student, the
# text's own labels, what is there for comparison.
TEACHER = "#0072B2"
STUDENT = "#D55E00"
TEXT = "#009E73"
PALE = "#B8B8B8"
THIRD = TEXT
PALETTE = (STUDENT, TEACHER, THIRD, "#CC79A7", "#E69F00", "#56B4E9", "#222222")


def use_style() -> None:
    """Set matplotlib's defaults for the course; a notebook calls this once."""
    import matplotlib as mpl
    from cycler import cycler

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
    ax.barh(places, probabilities, color=color)
    ax.set_yticks(list(places), list(tokens))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    top = max(probabilities)
    for place, probability in zip(places, probabilities, strict=True):
        percent = 100 * probability
        text = f"{percent:.3g} %" if percent >= 0.01 else "< 0.01 %"
        ax.text(probability + 0.015 * top, place, text, va="center", fontsize=8.5)
    ax.set_xlim(0, 1.22 * top)
    ax.set_xlabel("probability")
    ax.set_title(title)


def compare_arms(
    ax: Axes,
    results: Results,
    metric: str,
    setting: str,
    *,
    live: dict[str, float] | None = None,
    soft: Collection[str] | None = None,
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
    """
    arms = [arm for arm, other in results.study.pairs() if other == setting]
    if soft is None:
        soft = [arm for arm in arms if "soft" in arm or arm.startswith("mix")]
    for place, arm in enumerate(arms):
        found = results.mean(metric, arm, setting)
        color = TEACHER if arm in soft else STUDENT
        ax.plot([found.low, found.high], [place, place], color=color, lw=3)
        ax.plot(found.mean, place, "o", color=color, ms=7)
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


def seeds_by_setting(ax: Axes, results: Results, metric: str) -> None:
    """Draw one point per seed, the arms side by side within each setting.

    This shows outcomes that a mean hides, such as a task that is learned or not.

    Args:
        ax: The axes to draw into.
        results: What ``studies.load_results`` returns.
        metric: A column of the study.
    """
    settings, arms = results.study.settings, results.study.arms
    pairs = results.study.pairs()
    width = 0.3 / max(1, len(arms) - 1)
    for number, (arm, marker) in enumerate(zip(arms, "osD^vPX", strict=False)):
        points = [
            (place - 0.15 + number * width, value)
            for place, setting in enumerate(settings)
            if (arm, setting) in pairs
            for value in results.values(metric, arm, setting)
        ]
        x, y = zip(*points, strict=True)
        ax.plot(x, y, marker, label=arm, alpha=0.8)
    ax.set_xticks(range(len(settings)), list(settings))
    ax.set_xlim(-0.5, len(settings) - 0.5)


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
