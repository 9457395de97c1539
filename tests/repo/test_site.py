"""The course's site: its parts, and, where Sphinx is, the whole of it in a browser.

``make site`` builds it and runs this file. Elsewhere what needs Sphinx, or Chromium, is
skipped. The pages are opened as files, as somebody does who has unpacked them.
"""

import base64
import functools
import http.server
import importlib.util
import io
import shutil
import threading
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import nbformat
import pytest
from course import load_course
from PIL import Image
from site_glossary import Term, first_uses, read_glossary
from site_lessons import described, moving, page_of

from distill_helpers.course.widgets import FRAMES

ROOT = Path(__file__).resolve().parents[2]
COURSE = load_course(ROOT)
LESSONS = [one for one in COURSE.lessons if one.ready]
GLOSSARY = read_glossary(ROOT / "docs" / "glossary.md")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
needs_browser = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]


def frames(name="temperature", values=(0.5, 1, 2)):
    """What ``explore`` stores: here a grey square for each position."""
    pictures = []
    for place in range(len(values)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8), 40 * place).save(buffer, "PNG")
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    return {
        "name": name,
        "values": list(values),
        "start": values[1],
        "alt": 'A "square" & its grey.',
        "png": pictures,
    }


# Parts --------------------------------------------------------------------------------


def test_a_longer_term_wins_and_only_the_first_use_counts():
    kl = Term("KL divergence", ("KL divergence", "KL"), None, "")
    forward = Term("Forward KL", ("Forward KL",), None, "")
    texts = ["no klaxon, no kl", "the forward KL of two", "KL and KL, forward KL"]
    found = list(first_uses(texts, [kl, forward]))
    assert found == [(1, 4, 14, forward), (2, 0, 2, kl)]

    # A line of the source may end within a term.
    assert list(first_uses(["forward\nKL"], [forward])) == [(0, 0, 10, forward)]


def test_a_hyphen_makes_another_word():
    policy = Term("policy", ("policy",), None, "")
    assert list(first_uses(["off-policy"], [policy])) == []
    assert list(first_uses(["off policy."], [policy])) == [(0, 4, 10, policy)]


def test_the_glossary_is_one_sentence_a_word_in_order():
    names = [one.name for one in GLOSSARY]
    wanted = {"Teacher", "Student", "Logit", "Temperature", "Soft label", "Hard label"}
    wanted |= {"Forward KL", "Reverse KL", "Entropy", "Perplexity", "NLL", "Top-k"}
    wanted |= {"Fused loss", "Tail bucket", "Co-distillation", "On-policy", "LoRA"}
    assert wanted | {"Exposure bias"} <= set(names)
    assert [one.lower() for one in names] == sorted(one.lower() for one in names)
    forms = [form.lower() for one in GLOSSARY for form in one.forms]
    shared = {form for form in forms if forms.count(form) > 1}
    assert not shared
    lessons = {one.name for one in LESSONS}
    for one in GLOSSARY:
        assert one.sentence.endswith(".")
        assert one.lesson is None or one.lesson in lessons


def test_a_figure_is_called_what_its_cell_calls_it():
    source = (
        '%matplotlib inline\nax.set_title(f"T = {t:g}")\n'
        'ax.set(xlabel="tokens", ylabel="$p$")\nplt.title(words)'
    )
    told = described(source, "A *furry* pet")
    assert told.startswith("Figure in the section “A furry pet”; T = …; across: tokens")
    assert "upwards: p." in told


def test_a_moving_figure_has_a_label_and_a_picture_without_a_script(tmp_path):
    page = Page(moving(frames(name="<T>"), tmp_path, "fig"))
    tags = dict(page.tags)
    assert tags["label"]["for"] == tags["input"]["id"] == "fig"
    assert tags["input"]["value"] == "1"
    assert tags["input"]["aria-valuetext"] == "1"
    assert tags["img"]["alt"] == 'A "square" & its grey.'
    assert "<T>" in page.text
    assert tags["img"]["src"].endswith("fig-1.png")
    assert len(list(tmp_path.glob("fig-*.png"))) == 3


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
def test_a_page_keeps_what_was_committed(lesson, tmp_path):
    committed = nbformat.read(COURSE.notebook_path(lesson), as_version=4)
    shown = page_of(COURSE, lesson, tmp_path)
    cells = {cell.id: cell for cell in shown.cells}
    for cell in committed.cells:
        if cell.metadata.get("tags") in (["map"], ["footer"]):
            assert cell.id not in cells
        elif cell.cell_type == "code":
            assert cells[cell.id].source == cell.source
            for then, now in zip(cell.outputs, cells[cell.id].outputs, strict=True):
                data = then.get("data", {})
                assert then.get("text") == now.get("text")
                if "image/png" in data:
                    told = "".join(data["text/plain"])
                    words = "Figure in" if told.startswith("<Figure") else told
                    assert f'alt="{escape(words)}' in now.data["text/html"]
                    moves = "<input" in now.data["text/html"]
                    assert moves == (FRAMES in data)
    folded = [
        one for one in shown.cells if "hide-input" in one.metadata.get("tags", [])
    ]
    assert len(folded) == 2


# The whole ----------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page with what stands in them, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def ids(self):
        return {
            facts[key]
            for _, facts in self.tags
            for key in ("id", "name")
            if facts.get(key)
        }


@pytest.fixture(scope="session")
def site():
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("needs what `python3 tools/setup_env.py --site` installs")
    folder = ROOT / "build" / "site"
    if not (folder / "html" / "index.html").exists():
        import build_site

        build_site.build(ROOT, folder)
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site):
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(found)}


def test_every_lesson_and_room_has_a_page(site, pages):
    for lesson in LESSONS:
        assert site / "notebooks" / f"{lesson.name}.html" in pages
    for room in (ROOT / "distill_helpers").glob("*/__init__.py"):
        assert site / "reference" / f"{room.parent.name}.html" in pages
    for name in ("map", "docs/architecture", "docs/what_we_got_wrong", "docs/results"):
        assert site / f"{name}.html" in pages


def test_no_link_is_broken(pages, site):
    ids = {path: page.ids() for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for _, facts in page.tags:
            for address in filter(None, (facts.get("href"), facts.get("src"))):
                if urlparse(address).scheme:
                    continue
                rest, place = urldefrag(address)
                there = (path.parent / unquote(rest.partition("?")[0])).resolve()
                target = there if rest else path
                # The theme's "#" calls its own dialogs.
                if not target.is_file() or (
                    place and target in ids and unquote(place) not in ids[target]
                ):
                    broken.append(f"{path.relative_to(site)}: {address}")
    assert not broken, "\n".join(broken)


def test_nothing_comes_from_elsewhere(pages):
    for path, page in pages.items():
        for tag, facts in page.tags:
            source = facts.get("src") or (facts.get("href") if tag == "link" else None)
            if source and facts.get("rel") != "canonical":
                assert urlparse(source).scheme in ("", "data"), (path, source)


def test_every_picture_is_told_in_words(pages):
    for path, page in pages.items():
        for tag, facts in page.tags:
            if tag == "img":
                assert facts.get("alt"), (path, facts)


@pytest.mark.parametrize("term", GLOSSARY, ids=lambda term: term.name)
def test_the_lesson_that_introduces_a_term_links_to_it(site, pages, term):
    if term.lesson is None:
        pytest.skip("in no lesson")
    page = pages[site / "notebooks" / f"{term.lesson}.html"]
    links = [facts.get("href", "") for tag, facts in page.tags if tag == "a"]
    assert links.count(f"../docs/glossary.html#{term.anchor}") == 1


# In a browser -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """A function that opens a page of some width and scheme, and notes what it says."""
    contexts, said = [], []

    def open_page(address, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda one: one.type == "error" and said.append(one.text))
        page.on("pageerror", lambda one: said.append(str(one)))
        page.on("requestfailed", lambda one: said.append(one.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


def move_every_slider(page):
    figures = page.locator("figure.moving")
    for number in range(figures.count()):
        figure = figures.nth(number)
        picture, slider = figure.locator("img"), figure.locator("input[type=range]")
        assert figure.locator("label").inner_text()
        seen = [picture.get_attribute("src")]
        slider.focus()
        slider.press("Home")
        for _ in range(int(slider.get_attribute("max"))):
            seen.append(picture.get_attribute("src"))
            said = figure.locator("output").inner_text()
            assert slider.get_attribute("aria-valuetext") == said
            assert said in picture.get_attribute("alt")
            slider.press("ArrowRight")
            picture.evaluate("image => image.decode()")
            assert picture.evaluate("image => image.naturalWidth") > 0
        seen.append(picture.get_attribute("src"))
        assert len(set(seen)) == int(slider.get_attribute("max")) + 1
        assert len(set(seen[1:])) == len(seen[1:])
    return figures.count()


class TestBrowser:
    pytestmark = needs_browser

    def test_a_slider_from_a_file(self, opened, tmp_path):
        static = tmp_path / "_static"
        (static / "pictures").mkdir(parents=True)
        (tmp_path / "notebooks").mkdir()
        shutil.copy(ROOT / "docs" / "site" / "static" / "site.js", static)
        figure = moving(frames(), static / "pictures", "fig")
        path = tmp_path / "notebooks" / "page.html"
        path.write_text(
            f"<!doctype html><html lang=en><title>t</title>{figure}"
            "<script src='../_static/site.js'></script>"
        )
        assert move_every_slider(opened(path.as_uri())) == 1

    @pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
    def test_the_sliders_of_a_lesson(self, site, opened, lesson):
        committed = nbformat.read(COURSE.notebook_path(lesson), as_version=4)
        outputs = [one for cell in committed.cells for one in cell.get("outputs", [])]
        wanted = sum(FRAMES in one.get("data", {}) for one in outputs)
        if wanted:
            page = opened((site / "notebooks" / f"{lesson.name}.html").as_uri())
            assert move_every_slider(page) == wanted

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_telephone_scrolls_no_page_sideways(self, pages, opened, scheme):
        page = opened("about:blank", width=360, scheme=scheme)
        for path in pages:
            page.goto(path.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, path
            assert page.locator("html").get_attribute("data-theme") == scheme

    @pytest.mark.timeout(1200)
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(self, pages, opened, scheme):
        axe = Path(importlib.util.find_spec("axe_playwright_python").origin).parent
        script = (axe / "axe.min.js").read_text(encoding="utf-8")
        page = opened("about:blank", scheme=scheme)
        found = []
        for path in pages:
            page.goto(path.as_uri())
            page.evaluate(script)
            for one in page.evaluate(AXE)["violations"]:
                nodes = [" ".join(node["target"]) for node in one["nodes"]]
                found.append(f"{path.name}: {one['id']} {len(nodes)} {nodes[:3]}")
        assert not found, "\n".join(found)

    def test_search_finds_a_lesson(self, site, opened):
        handler = functools.partial(QuietHandler, directory=site)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page = opened(
                f"http://127.0.0.1:{server.server_port}/search.html?q=rejection+sampling"
            )
            found = page.locator("#search-results a[href*='06_reasoning_traces']")
            found.first.wait_for(timeout=60_000)
        finally:
            server.shutdown()
            server.server_close()


AXE = """axe.run(document, {
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
  resultTypes: ["violations"],
  preload: false,
})"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
