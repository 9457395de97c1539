"""What a teacher wrote is text: markup in it never becomes part of a page."""

import base64
import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from html.parser import HTMLParser
from pathlib import Path

import pytest

import distill_helpers
from distill_helpers.course import checks, widgets

PACKAGE = Path(distill_helpers.__file__).parent
MARKUP = "<script>alert('x')</script> <img src=x onerror=\"y\"> <b>bold</b> & &lt;"
SHOWS_ITSELF = ("_repr_html_", "_repr_mimebundle_")


def package_classes():
    for found in pkgutil.walk_packages(distill_helpers.__path__, "distill_helpers."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__:
                yield one


# Our own words, which nobody else writes into: a table, and drawings (whose words are
# escaped all the same, see test_diagrams).
OUR_WORDS = ("bugs", "diagrams")
SHOWN = [
    one
    for one in package_classes()
    if any(hasattr(one, m) for m in SHOWS_ITSELF)
    and not one.__module__.endswith(OUR_WORDS)
]


def filled(kind):
    """A value of this type with markup wherever there is text."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: filled(hints[f.name]) for f in dataclasses.fields(kind)})
    if typing.get_origin(kind) is tuple:
        return (filled(typing.get_args(kind)[0]),)
    if typing.get_args(kind):  # X | None
        return filled(typing.get_args(kind)[0])
    return MARKUP if kind is str else kind(1)


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


def assert_harmless(page):
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} <= {"div", "p", "b"}, page
    assert not [attrs for _, attrs in parsed.tags if attrs], page
    assert MARKUP in parsed.text


def test_the_classes_that_show_themselves_are_found():
    names = {one.__name__ for one in SHOWN}
    assert {"CheckResult", "Verdict", "LiveCheck", "StudentVerdict"} <= names


@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__name__)
def test_records_escape_what_they_hold(kind):
    record = filled(kind)
    if kind is checks.CheckResult:
        record = dataclasses.replace(record, status=checks.FAILED)
    for method in SHOWS_ITSELF:
        if hasattr(record, method):
            shown = getattr(record, method)()
            assert_harmless(shown["text/html"] if isinstance(shown, dict) else shown)


def test_a_check_of_what_a_teacher_wrote():
    def repeats_it(answer, result):
        raise ValueError(MARKUP)

    def prints_it(answer, result):
        print(MARKUP)
        return False

    for fn in (repeats_it, prints_it):
        bundle = checks.exact_checker(fn)._repr_mimebundle_()
        # The first line of what was printed is cut off at 80 characters.
        assert "<script>" not in bundle["text/html"]
        assert "&lt;script&gt;" in bundle["text/html"]


def test_no_other_place_in_the_package_writes_html():
    for path in PACKAGE.rglob("*.py"):
        if path.stem in OUR_WORDS:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"text/html|text/markdown|HTML\(|Markdown\(|Latex\(", line):
                assert "escape(" in line, f"{path.name}: {line}"


def test_a_slider_publishes_pictures_and_plain_text(monkeypatch):
    published = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data",
        lambda data, metadata=None: published.append(data),
    )
    widgets.explore(
        lambda ax, value: ax.set_title(f"x = {value}"),
        name=MARKUP,
        values=[1, 2],
        start=1,
        still=[1, 2],
        alt=MARKUP,
    )
    for data in published:
        assert "text/html" not in data
        assert data["text/plain"] == MARKUP
        assert data["image/png"].startswith(b"\x89PNG")
    moved, still = published  # what the slider shows first, and the whole cell
    frames = still[widgets.FRAMES]
    assert (frames["name"], frames["alt"]) == (MARKUP, MARKUP)
    assert (frames["values"], frames["start"]) == ([1, 2], 1)
    first, second = (base64.b64decode(one) for one in frames["png"])
    assert first == moved["image/png"] != second
    assert second.startswith(b"\x89PNG")


def test_the_report_of_a_run():
    run_notebooks = pytest.importorskip("run_notebooks")
    import run_report

    finding = {"kind": "check", "name": MARKUP, "status": MARKUP, "message": MARKUP}
    result = run_notebooks.Result(
        MARKUP, failures=[MARKUP], warnings=[MARKUP], findings=[finding]
    )
    tags = {tag for tag, _ in Page(run_report._row(result)).tags}
    assert not tags & {"script", "img", "b"}
