"""Diagrams: the same everywhere, in every form, and in words."""

from __future__ import annotations

import base64
import inspect
from xml.etree import ElementTree

import pytest

from distill_helpers.course import diagrams
from distill_helpers.course.diagrams import Arrow, Box, Diagram

# Those of the lessons: functions without arguments that return one.
LESSONS = [
    make
    for name, make in inspect.getmembers(diagrams, inspect.isfunction)
    if make.__module__ == diagrams.__name__ and not name.startswith("_")
]
PAIR = (Box("teacher", "teacher", (0, 0), "teacher"), Box("b", "b", (0, 4)))


def test_there_are_lessons_with_diagrams():
    assert diagrams.three_techniques in LESSONS


@pytest.mark.parametrize("make", LESSONS, ids=lambda make: make.__name__)
def test_every_form_is_there_and_says_what_is_shown(make):
    diagram = make()
    forms = diagram._repr_mimebundle_()
    assert {*forms} == {"image/svg+xml", "image/png", "text/plain"}
    assert base64.b64decode(forms["image/png"]).startswith(b"\x89PNG")
    drawing = ElementTree.fromstring(forms["image/svg+xml"])
    (title,) = drawing.findall("{http://www.w3.org/2000/svg}title")
    assert title.text == diagram.alt == forms["text/plain"]
    assert drawing.get("role") == "img"
    # With a width of its own it was cut off at the right of a narrow window.
    assert drawing.get("width") is None
    assert "max-width" in drawing.get("style")
    assert drawing.get("viewBox")


@pytest.mark.parametrize("make", LESSONS, ids=lambda make: make.__name__)
def test_a_notebook_built_twice_has_the_same_bytes(make):
    assert make()._repr_mimebundle_() == make()._repr_mimebundle_()


@pytest.mark.parametrize("make", LESSONS, ids=lambda make: make.__name__)
def test_no_word_leaves_its_box_and_no_label_lies_on_one(make):
    diagram = make()
    figure = diagram._figure()
    figure.canvas.draw()
    ax = figure.axes[0]
    extents = [text.get_window_extent() for text in ax.texts if text.get_text()]
    boxes = [patch.get_window_extent() for patch in ax.patches if _is_box(patch)]
    assert len(boxes) == len(diagram.boxes)
    for words in extents:
        touched = [box for box in boxes if box.overlaps(words)]
        inside = [
            box
            for box in touched
            if box.x0 <= words.x0
            and words.x1 <= box.x1
            and box.y0 <= words.y0
            and words.y1 <= box.y1
        ]
        assert touched == inside
    for place, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[:place])


def _is_box(patch):
    return type(patch).__name__ == "FancyBboxPatch"


def test_a_line_leaves_a_box_at_its_edge():
    box = Box("b", "b", (1.0, 1.0), size=(2.0, 1.0))
    assert diagrams._edge(box, (9.0, 1.0)) == (2.0, 1.0)
    assert diagrams._edge(box, (1.0, -5.0)) == (1.0, 0.5)
    assert diagrams._edge(box, (3.0, 2.0)) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("boxes", "arrows", "alt", "message"),
    [
        (PAIR, (Arrow("teacher", "c"),), "words", "'c' is no box"),
        ((*PAIR, PAIR[0]), (), "words", "two have the same name"),
        (PAIR, (Arrow("teacher", "b", role="red"),), "words", "role='red'"),
        ((Box("a", "a", (0, 0), "blue"),), (), "words", "role='blue'"),
        (PAIR, (), " ", "alt is empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(boxes, arrows, alt, message):
    with pytest.raises(ValueError, match=message):
        Diagram(boxes, arrows, alt)


def test_words_never_become_markup():
    markup = "<script>alert('x')</script> & <b>bold</b>"
    diagram = Diagram((Box("a", markup, (0, 0)),), (), markup)
    assert "<script" not in diagram.svg
    assert "<b>" not in diagram.svg
    drawing = ElementTree.fromstring(diagram.svg)
    assert drawing.find("{http://www.w3.org/2000/svg}title").text == markup
