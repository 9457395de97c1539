"""Figures in words: what is drawn is told, value by value, under its own name."""

import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from distill_helpers.course import plots
from distill_helpers.course.figure_words import describe
from distill_helpers.studies import judge, load_results


@pytest.fixture
def drawn():
    """A figure and its axes; no pyplot, so nothing stays open."""
    figure = Figure()
    return figure, figure.subplots()


def test_titles_axes_and_a_short_line(drawn):
    figure, ax = drawn
    figure.suptitle("Two\nruns")
    ax.set(title="$T = 2$", xlabel="step", ylabel="loss (nats)", yscale="log")
    ax.plot([1, 2], [3.14159, 2500], label="student")
    ax.axhline(0.5, label="the best")
    assert describe(figure) == (
        "Two runs. T = 2, across: step, upwards: loss (nats) (logarithmic). "
        "student: 3.14 at 1, 2,500 at 2; the best: horizontal line at 0.5."
    )


def test_a_long_line_is_told_by_its_ends_and_extremes(drawn):
    figure, ax = drawn
    heights = [5.0, 4.0, -1.0, 7.0, *[3.0] * 20, float("nan")]
    ax.plot(range(25), heights)
    assert describe(figure) == (
        "a line: begins with 5 at 0, ends with 3 at 23, lowest −1 at 2, highest 7 at 3."
    )


@pytest.mark.parametrize("upright", [True, False])
def test_bars_are_told_by_their_names(drawn, upright):
    figure, ax = drawn
    draw = ax.bar if upright else ax.barh
    draw(["cat", "dog"], [0.75, 0.25])
    ax.text(0, 0, "75 %")
    assert describe(figure) == "cat: 0.75; dog: 0.25."


def test_bars_on_top_of_each_other_keep_their_own_heights(drawn):
    figure, ax = drawn
    ax.bar(["a", "b"], [3, 5], label="text")
    ax.bar(["a", "b"], [1, 2], bottom=[3, 5], label="labels")
    assert describe(figure) == "a: text 3, labels 1; b: text 5, labels 2."


def test_bars_without_names_stand_at_numbers(drawn):
    figure, ax = drawn
    ax.bar([10, 20], [1, 2])
    assert describe(figure) == "bars: 1 at 10, 2 at 20."


def test_settings_that_are_numbers_are_names(drawn):
    figure, ax = drawn
    ax.plot([0, 1], [5.5, 5.0], label="labels")
    ax.set_xticks([0, 1], ["800", "3000"])
    assert describe(figure) == "labels: 5.5 at 800, 5 at 3000."


def test_a_forest_tells_every_claim_with_its_verdict(drawn):
    figure, ax = drawn
    verdicts = judge(load_results("soft_labels"))[:2]
    plots.forest(ax, verdicts)
    told = describe(figure)
    for verdict in verdicts:
        (row,) = (one for one in told.split("; ") if verdict.claim.text in one)
        assert f"{verdict.gain.low:.3g} to {verdict.gain.high:.3g}" in row
        assert f"{verdict.gain.mean:+.2f}: {verdict.status}" in row


def test_marks_of_a_table_are_told_by_row_and_column(drawn):
    figure, ax = drawn
    ax.plot([0, 1, 0], [0, 0, 1], "x")
    ax.set_xticks([0, 1], ["sum", "mask"])
    ax.set_yticks([0, 1], ["first", "second"])
    ax.text(0, 0, "1")
    assert describe(figure) == "first: sum, mask; second: sum."


def test_a_shaded_text_can_be_read(drawn):
    figure, ax = drawn
    plots.shaded_text(ax, ["The", " cat"], [1.0, 2.0], notes={1: "dog 3%"}, unit="nats")
    assert describe(figure) == "written in it: “The cat1”, “1 dog 3%”."


def test_nothing_drawn_is_said(drawn):
    assert describe(Figure()) == "An empty figure."
    assert describe(drawn[0]) == "An empty figure."


NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from distill_helpers.course.plots import use_style
use_style()
import matplotlib.pyplot as plt
for height in (3, 4):
    figure, ax = plt.subplots()
    ax.bar(["a"], [height])
    print(shell.display_formatter.format(figure)[0]["text/plain"])
    plt.close(figure)
"""


@pytest.mark.slow
def test_a_notebook_keeps_the_words_of_every_figure(tmp_path):
    # The backend of notebooks, which is loaded with the first figure.
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    home = {"IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        env={**os.environ, **backend, **home},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["a: 3.", "a: 4."], done.stderr
