"""A figure in words, for those who cannot see it.

:func:`~distill_helpers.course.plots.use_style` makes notebooks keep these words beside
every picture; the course's site shows them as the picture's alternative text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# More than so many bars or points are told by their ends and extremes.
_MOST = 8
# What is written, if not just a number.
_WORD = re.compile(r"[^\W\d_]{2}")
# How far from its tick a mark still belongs to the row.
_NEAR = 0.45


def describe(figure: Figure) -> str:
    """Titles, axes, bars, lines and written words of a figure.

    Values are rounded to three digits. A row or column that has a name is told as one
    thing: its bar or its interval, and what is written at it.

    Args:
        figure: Any figure of matplotlib; bands and patches are left out.
    """
    title = figure.get_suptitle()
    told = [_axes(ax) for ax in figure.axes if ax.get_label() != "<colorbar>"]
    parts = [f"{_plain(title)}."] if title else []
    return " ".join([*parts, *filter(None, told)]) or "An empty figure."


def tell_figures() -> None:
    """Let the running notebook, if there is one, keep every figure's words."""
    from IPython import get_ipython
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    shell = get_ipython()
    if shell is not None:
        # A notebook's backend, once it is loaded, forgets what was said of figures.
        pyplot.switch_backend(pyplot.get_backend())
        plain = shell.display_formatter.formatters["text/plain"]
        plain.for_type(Figure, lambda figure, page, _: page.text(describe(figure)))


def _axes(ax: Axes) -> str:
    rows: dict[str, list[str]] = {}
    series = [*_bars(ax, rows), *_lines(ax, rows)]
    words = _written(ax, rows)
    series += [f"{name}: {', '.join(found)}" for name, found in rows.items()]
    series += [f"written in it: {words}"] if words else []
    head = [_plain(ax.get_title(place)) for place in ("left", "center", "right")]
    if ax.axison:
        head += [_axis("across", ax.xaxis), _axis("upwards", ax.yaxis)]
    head = [one for one in head if one]
    return " ".join(f"{part}." for part in (", ".join(head), "; ".join(series)) if part)


def _axis(way: str, axis: Axis) -> str:
    label = _plain(axis.get_label_text())
    scale = " (logarithmic)" if axis.get_scale() == "log" else ""
    return f"{way}: {label}{scale}" if label else ""


def _names(axis: Axis) -> dict[float, str]:
    """Place to name, of the ticks that do not just say where they stand."""
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    found = {float(place): label.get_text() for place, label in ticks}
    return {
        place: _plain(name)
        for place, name in found.items()
        if name and "mathdefault" not in name and not _is_number(name, place)
    }


def _is_number(name: str, place: float) -> bool:
    try:
        return abs(float(name.replace("−", "-").replace(",", "")) - place) < 1e-6
    except ValueError:
        return False


def _name_at(place: float, names: dict[float, str]) -> str | None:
    near = min(names, key=lambda one: abs(one - place), default=None)
    return names[near] if near is not None and abs(near - place) < _NEAR else None


def _bars(ax: Axes, rows: dict[str, list[str]]) -> Iterable[str]:
    from matplotlib.container import BarContainer

    for bars in ax.containers:
        if not isinstance(bars, BarContainer):
            continue
        upright = bars.orientation == "vertical"
        names = _names(ax.xaxis if upright else ax.yaxis)
        label = _label(bars)
        points = []
        for bar in bars:
            low = bar.get_x() if upright else bar.get_y()
            size = bar.get_width() if upright else bar.get_height()
            value = bar.get_height() if upright else bar.get_width()
            points.append((low + size / 2, float(value)))
        if names:
            for place, value in points:
                name = _name_at(place, names) or _number(place)
                rows.setdefault(name, []).append(f"{label} {_number(value)}".strip())
        else:
            yield f"{label or 'bars'}: {_curve(points, {})}"


def _lines(ax: Axes, rows: dict[str, list[str]]) -> Iterable[str]:
    across, upwards = _names(ax.xaxis), _names(ax.yaxis)
    for line in ax.get_lines():
        places: list[list[float]] = np.asarray(line.get_xydata()).tolist()
        points = [(x, y) for x, y in places]
        label = _label(line)
        if not points:
            continue
        if line.get_transform() != ax.transData:  # through the whole picture
            upright = len({x for x, _ in points}) == 1
            where = f"{'vertical' if upright else 'horizontal'} line"
            value = _number(points[0][0 if upright else 1])
            yield f"{label}: {where} at {value}" if label else f"{where} at {value}"
        elif upwards:
            between = ", " if line.get_linestyle() == "None" else " to "
            _add_to_rows(rows, points, (across, upwards), label, between)
        else:
            yield f"{label or 'a line'}: {_curve(points, across)}"


def _add_to_rows(
    rows: dict[str, list[str]],
    points: list[tuple[float, float]],
    names: tuple[dict[float, str], dict[float, str]],
    label: str,
    between: str,
) -> None:
    """Marks and intervals of named rows."""
    across, upwards = names
    places = {y for _, y in points}
    if len(places) > 1 and len({x for x, _ in points}) == 1:  # a short upright line
        middle = (min(places) + max(places)) / 2
        points, label = [(points[0][0], middle)], label or "short line at"
    for place in dict.fromkeys(y for _, y in points):
        name = _name_at(place, upwards)
        if name is not None:
            found = [_name_at(x, across) or _number(x) for x, y in points if y == place]
            told = f"{label} {between.join(dict.fromkeys(found))}"
            rows.setdefault(name, []).append(told.strip())


def _written(ax: Axes, rows: dict[str, list[str]]) -> str:
    """What is written in the picture; numbers at a bar are not told twice."""
    names = _names(ax.yaxis)
    free: list[str] = []
    letters = ""
    for text in ax.texts:
        words = text.get_text()
        if len(words) == 1:  # of a text that is drawn letter by letter
            letters += words
            continue
        words = _plain(words)
        if not _WORD.search(words):
            continue
        place = getattr(text, "xy", text.get_position())[1]
        name = None if text.get_transform() == ax.transAxes else _name_at(place, names)
        if name is None:
            free.append(f"“{words}”")
        else:
            rows.setdefault(name, []).append(f"“{words}”")
    whole = [f"“{_plain(letters)}”"] if _WORD.search(letters) else []
    return ", ".join([*whole, *free])


def _curve(points: list[tuple[float, float]], names: dict[float, str]) -> str:
    def where(x: float) -> str:
        return _name_at(x, names) or _number(x)

    def at(point: tuple[float, float]) -> str:
        return f"{_number(point[1])} at {where(point[0])}"

    points = [point for point in points if point[1] == point[1]]  # without nan
    if len(points) <= _MOST:
        return ", ".join(map(at, points))
    told = {"begins with": points[0], "ends with": points[-1]}
    told["lowest"] = min(points, key=lambda point: point[1])
    told["highest"] = max(points, key=lambda point: point[1])
    ends = (points[0][1], points[-1][1])
    return ", ".join(
        f"{words} {at(point)}"
        for words, point in told.items()
        if words.endswith("with") or point[1] not in ends
    )


def _label(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else _plain(label)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:,.0f}"


def _plain(text: str) -> str:
    """Without the signs of formulas and the ends of lines."""
    return " ".join(re.sub(r"[$\\{}]", "", text).split())
