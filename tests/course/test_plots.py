"""What the course's figures show: numbers at the marks, verdicts by shape."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Rectangle

from distill_helpers.course import plots
from distill_helpers.studies import judge, load_results


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(scope="module")
def verdicts():
    return judge(load_results("soft_labels"))


def words_in(ax):
    return [text.get_text() for text in ax.texts]


def test_a_forest_has_a_row_a_claim_with_gain_and_verdict(ax, verdicts):
    plots.forest(ax, verdicts)
    labels = [one.get_text().replace("\n", " ") for one in ax.get_yticklabels()]
    assert labels == [one.claim.text for one in verdicts]
    for verdict, words in zip(verdicts, words_in(ax), strict=True):
        sign = "−" if verdict.gain.mean < 0 else "+"
        assert words.startswith(f"{sign}{abs(verdict.gain.mean):.2f}")
        assert words.endswith(verdict.status)
    assert "nats" in ax.get_xlabel()


def test_a_forest_can_call_the_claims_by_a_page_s_own_words(ax, verdicts):
    words = [f"claim {place}" for place in range(len(verdicts))]
    plots.forest(ax, verdicts, words=words)
    assert [one.get_text() for one in ax.get_yticklabels()] == words


def test_a_figure_of_arms_shows_those_that_are_asked_for_with_their_means(ax):
    results = load_results("soft_labels")
    arms = ["soft T=1", "labels"]
    plots.compare_arms(ax, results, "nll", "800", arms=arms, told=True)
    assert [one.get_text() for one in ax.get_yticklabels()] == arms
    means = [results.mean("nll", arm, "800").mean for arm in arms]
    assert words_in(ax) == [f"{mean:.2f}" for mean in means]


def test_without_being_asked_a_figure_of_arms_shows_all_and_writes_nothing(ax):
    results = load_results("soft_labels")
    plots.compare_arms(ax, results, "nll", "800")
    drawn = [one.get_text() for one in ax.get_yticklabels()]
    assert drawn == [arm for arm, other in results.study.pairs() if other == "800"]
    assert words_in(ax) == []


def test_verdicts_differ_in_shape_and_not_in_colour_alone(ax, verdicts):
    statuses = ["holds", "fails", "equivalent", "undecided"]
    plots.forest(ax, [replace(verdicts[0], status=one) for one in statuses])
    marks = [
        (line.get_marker(), line.get_markerfacecolor())
        for line in ax.lines
        if line.get_marker() != "None"
    ]
    assert len({*marks}) == len(statuses)


def test_the_margin_and_the_band_of_equality_are_drawn(ax, verdicts):
    claim = replace(verdicts[0].claim, within=0.25)
    plots.forest(ax, [verdicts[0], replace(verdicts[0], claim=claim)])
    (band,) = ax.collections
    xs = band.get_paths()[0].vertices[:, 0]
    assert (xs.min(), xs.max()) == (-0.25, 0.25)
    margin = verdicts[0].claim.margin
    assert margin
    assert any({*line.get_xdata()} == {margin} for line in ax.lines)


def test_units_do_not_share_an_axis(ax, verdicts):
    points = judge(load_results("on_policy"))[0]
    with pytest.raises(ValueError, match="nats and points cannot share"):
        plots.forest(ax, [verdicts[0], points])


def test_bars_are_in_percent(ax):
    plots.token_bars(ax, ["a", "b", "c"], [0.7, 0.2999, 0.0001])
    assert words_in(ax) == ["70.0 %", "30.0 %", "< 0.1 %"]
    assert "percent" in ax.get_xlabel()
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([70, 29.99, 0.01])


def test_a_text_is_shaded_by_its_numbers_and_breaks_its_lines(ax):
    tokens = ["Some", " words", " of", " a", " page"]
    plots.shaded_text(ax, tokens, [0.0, 1.0, 2.0, 4.0, 0.5], width=11, notes={3: "x"})
    boxes = [patch for patch in ax.patches if type(patch) is Rectangle]
    assert [box.get_y() + 0.5 for box in boxes] == [0, 0, 1, 1, 1]
    assert [box.get_x() for box in boxes] == [0, 4, 0, 3, 5]
    lightness = [sum(box.get_facecolor()[:3]) for box in boxes]
    order = sorted(range(5), key=lightness.__getitem__)
    assert order == [3, 2, 1, 4, 0]
    assert "1  x" in words_in(ax)
    assert "1" in words_in(ax)


def test_two_cuts_stand_above_each_other_byte_by_byte(ax):
    ours = [b" wonder", b"ful", b" ", b"\xc3", b"\xa9"]
    theirs = [b" wonderful", b" ", "é".encode()]
    plots.two_cuts(ax, ours, theirs, [(2, 1), (1, 1), (2, 1)])
    boxes = [patch for patch in ax.patches if type(patch) is Rectangle]
    pieces, chunks = boxes[:8], boxes[8:]
    # As wide as their bytes, but for a gap, and one behind the other.
    widths = [len(piece) for piece in ours + theirs]
    assert [box.get_width() + 0.12 for box in pieces] == pytest.approx(widths)
    starts = [0, 7, 10, 11, 12, 0, 10, 11]
    assert [box.get_x() - 0.06 for box in pieces] == pytest.approx(starts)
    assert len({box.get_facecolor() for box in pieces[:5]}) == 1
    assert pieces[0].get_facecolor() != pieces[5].get_facecolor()
    # A chunk spans both rows, with a gap to the next; several tokens have a frame.
    assert [box.get_x() - 0.1 for box in chunks] == pytest.approx([0, 10, 11])
    assert [box.get_width() + 0.2 for box in chunks] == pytest.approx([10, 1, 2])
    framed = [box.get_edgecolor()[3] > 0 for box in chunks]
    assert framed == [True, False, True]
    assert words_in(ax) == [
        *("␣wonder", "ful", "␣", "c3", "a9"),
        *("␣wonderful", "␣", "é"),
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "teacher",
        "student",
    ]
