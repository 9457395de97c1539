"""Interactive figures that also read well on a page.

In JupyterLab and Colab a slider moves the figure; on GitHub, or in a notebook that
nobody is running, the same cell shows a still picture with several slider positions
side by side. All positions are drawn once and stored with the cell's output, so that
the course's site can move the figure without Python. Core ipywidgets only, versions 7
and 8.

Used in notebooks 01, 04 and 08.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

# Only the site reads this form of an output; everything else shows the picture.
FRAMES = "application/vnd.distill-helpers.frames+json"


def explore(
    draw: Callable[[Any, float], None],
    *,
    name: str,
    values: Sequence[float],
    start: float,
    still: Sequence[float],
    alt: str,
    size: tuple[float, float] = (6.4, 3.2),
) -> None:
    """Show a figure with one slider, and a still strip of it for the page.

    Every position is drawn when the cell runs; the slider then only shows it.

    Args:
        draw: Draws one picture; called with a matplotlib ``Axes`` and the slider's
            value.
        name: The slider's name, with its unit.
        values: Positions of the slider.
        start: The position that it starts at; one of ``values``.
        still: Three or four positions for the still picture.
        alt: The picture in words, for those who cannot see it.
        size: Width and height of the interactive figure, in inches.

    Raises:
        ValueError: If ``start`` is not one of ``values``.
    """
    if start not in values:
        raise ValueError(f"start={start} must be one of values={list(values)}")
    import ipywidgets
    from IPython.display import publish_display_data

    # Figures are drawn without pyplot, so none is left open to be shown twice.
    slider = ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in values],
        value=start,
        description=name,
        continuous_update=True,
        style={"description_width": "initial"},
        layout=ipywidgets.Layout(width="420px"),
    )

    # All of them at once, so that a slider's picture follows without delay.
    pictures: dict[float, bytes] = {}
    places: list[Any] = []
    for value in values:
        pictures[value], places = _png(draw, [value], size, places)

    def show(value: float) -> None:
        # Not IPython's Image: the version that Colab has knows no alt text.
        publish_display_data(
            {"image/png": pictures[value], "text/plain": alt},
            metadata={"image/png": {"alt": alt}},
        )

    output = ipywidgets.interactive_output(show, {"value": slider})
    box = ipywidgets.VBox([slider, output])
    strip, _ = _png(draw, still, (3.3 * len(still), 3.0))
    publish_display_data(
        {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": box.model_id,
            },
            FRAMES: {
                "name": name,
                "values": list(values),
                "start": start,
                "alt": alt,
                "png": [base64.b64encode(one).decode() for one in pictures.values()],
            },
            "image/png": strip,
            "text/plain": alt,
        }
    )


def _png(
    draw: Callable[[Any, float], None],
    values: Sequence[float],
    size: tuple[float, float],
    places: Sequence[Any] = (),
) -> tuple[bytes, list[Any]]:
    """Draw a figure; with ``places``, its axes stand where they stood before.

    To find their places takes half of the time, and a slider's picture would jump.

    Returns:
        The picture, and the places of its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib's own

    figure = Figure(figsize=size, dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(values), sharex=True, squeeze=False)[0]
    for ax, value in zip(axes, values, strict=True):
        draw(ax, value)
    known = len(places) == len(figure.axes)
    figure.set_layout_engine("none" if known else "constrained")
    if known:
        for ax, place in zip(figure.axes, places, strict=True):
            ax.set_position(place)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    # Bars and lines have few colours: a third of the bytes, for every position.
    small = io.BytesIO()
    few = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True)
    return small.getvalue(), [ax.get_position() for ax in figure.axes]
