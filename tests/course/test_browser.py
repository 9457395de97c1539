"""The sliders, in a real JupyterLab and a real browser: Run All, then the keyboard.

Needs Chromium. Without it everything here is skipped; on Debian and Ubuntu,
``apt-get install chromium`` brings it. After a failure, a picture of the page and the
notebook with its outputs lie in ``build/browser/``.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from build_notebooks import render, write_notebook
from course import load_course
from kernels import kernel_environment, use_this_python
from nbformat.v4 import new_code_cell
from template import METADATA

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT / "build" / "browser"
COURSE = load_course(ROOT)


def count_sliders(lesson):
    source = COURSE.source_path(lesson).read_text(encoding="utf-8")
    return sum(line.startswith("explore(") for line in source.splitlines())


LESSONS = [one for one in COURSE.lessons if one.ready and count_sliders(one)]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="needs Chromium; on Debian and Ubuntu: apt-get install chromium",
    ),
]

# It is there to draw a page of this machine, and to ask nobody for anything.
BROWSER_OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SERVER_OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.password=",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]
# Seconds: generous, for two cores that others are using, too.
PATIENCE, RUN_PATIENCE = 90, 240

# Written by the kernel: processor seconds of every picture drawn. A busy machine does
# not slow them down, and drawing waits for nothing.
TIME_DRAWING = """
import time
from pathlib import Path

from distill_helpers.course import widgets

_png = widgets._png


def timed(*arguments):
    start = time.thread_time()
    picture = _png(*arguments)
    with Path("drawn.txt").open("a") as file:
        print(time.thread_time() - start, file=file)
    return picture


widgets._png = timed
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own: no settings, kernels and sessions of whoever runs it."""
    folder = tmp_path_factory.mktemp("lab")
    before = os.environ.get("JUPYTER_PATH")
    use_this_python()
    environment = kernel_environment("smoke")
    if before is None:
        del os.environ["JUPYTER_PATH"]
    else:
        os.environ["JUPYTER_PATH"] = before
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        environment[name] = str(folder / name.lower())
    environment["IPYTHONDIR"] = str(folder / "ipython")
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    # Otherwise cells out of sight are no part of the page.
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    whole = {"windowingMode": "none"}
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(whole))
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    port, token = free_port(), secrets.token_hex()
    address = f"http://127.0.0.1:{port}"
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", *SERVER_OPTIONS),
                f"--port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={notebooks}",
            ],
            cwd=notebooks,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for_server(server, f"{address}/api?token={token}", folder / "log.txt")
            yield SimpleNamespace(address=address, token=token, notebooks=notebooks)
        finally:
            # Its kernels end with it.
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for_server(server, address, log):
    deadline = time.monotonic() + PATIENCE
    while True:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=BROWSER_OPTIONS
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)
    yield page
    page.close()


def cells_of(page):
    """The notebook as JupyterLab holds it, with the outputs so far."""
    notebook = "jupyterapp.shell.currentWidget.content.model.toJSON()"
    return nbformat.from_dict(page.evaluate(notebook)).cells


def run_all(page):
    """Run every cell, as the menu does; fails at the first error that is shown."""
    page.wait_for_selector("#jp-main-statusbar >> text=/Idle/")
    # Not awaited: an error would leave it waiting.
    page.evaluate("{ jupyterapp.commands.execute('notebook:run-all-cells') }")
    deadline = time.monotonic() + RUN_PATIENCE
    while True:
        code = [cell for cell in cells_of(page) if cell.cell_type == "code"]
        outputs = [output for cell in code for output in cell.outputs]
        errors = [one for one in outputs if one.output_type == "error"]
        assert not errors, "\n".join(errors[0].traceback)
        if all(cell.execution_count for cell in code if cell.source.strip()):
            return
        assert page.locator(".jp-Stdin").count() == 0, "a cell asks for something"
        assert time.monotonic() < deadline, "not all cells have run"
        page.wait_for_timeout(500)


def move(page, box, key):
    """Move the slider by one; returns the new picture once it is there."""
    picture = box.locator("img")
    before = picture.get_attribute("src")
    handle = box.locator(".noUi-handle")
    handle.focus()
    handle.press(key)
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(Exception):
            now = picture.get_attribute("src", timeout=2000)
            if now != before:
                return now
        assert time.monotonic() < deadline, "the picture did not change"
        page.wait_for_timeout(100)


def move_every_slider(page, wanted):
    slider = page.locator(".widget-slider")
    boxes = page.locator(".widget-vbox").filter(has=slider)
    assert boxes.count() == wanted
    for number in range(wanted):
        box = boxes.nth(number)
        box.scroll_into_view_if_needed()
        first = box.locator("img").get_attribute("src")
        readout = box.locator(".widget-readout")
        said = readout.inner_text()
        second = move(page, box, "ArrowRight")
        assert readout.inner_text() != said
        third = move(page, box, "ArrowLeft")
        # Data, not the address of a file: the bytes themselves.
        assert first.startswith("data:image/png;base64,")
        assert first == third != second


def save_traces(page, name):
    TRACES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=TRACES / f"{name}.png")
    notebook = nbformat.v4.new_notebook(cells=cells_of(page))
    nbformat.write(notebook, TRACES / f"{name}.ipynb")


def check_in_lab(lab, page, notebook, name, sliders):
    (folder := lab.notebooks / name).mkdir()
    notebook.cells.insert(0, new_code_cell(TIME_DRAWING.strip()))
    write_notebook(notebook, folder / f"{name}.ipynb")
    page.goto(f"{lab.address}/lab/tree/{name}/{name}.ipynb?reset&token={lab.token}")
    try:
        run_all(page)
        assert "/lab" in page.url
        assert page.locator("input[type=password]").count() == 0
        drawn = (folder / "drawn.txt").read_text().split()
        move_every_slider(page, sliders)
        # A slider shows what is drawn already.
        assert (folder / "drawn.txt").read_text().split() == drawn
        # The first picture of a figure looks for the places of its axes, the last is
        # its strip; between them they are as quick as a reader who waits for the cell.
        assert statistics.median(map(float, drawn)) <= 0.3, drawn
        cells = cells_of(page)
        outputs = [one for cell in cells for one in cell.get("outputs", [])]
        assert not [one for one in outputs if one.output_type == "error"]
    except BaseException:
        # The traces must not hide what went wrong.
        with contextlib.suppress(Exception):
            save_traces(page, name)
        raise
    finally:
        with contextlib.suppress(Exception):
            page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")


SMALL = """
from distill_helpers.course.widgets import explore


def draw(ax, height):
    ax.bar(["a", "b"], [1, height])


explore(
    draw, name="height", values=[1, 2, 3], start=1, still=[1, 3], alt="Two bars."
)
"""


def test_a_slider_alone(lab, page):
    cell = new_code_cell(SMALL.strip())
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=METADATA)
    check_in_lab(lab, page, notebook, "small", 1)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
def test_run_all_then_the_keyboard(lab, page, lesson):
    notebook = render(COURSE, lesson)
    check_in_lab(lab, page, notebook, lesson.name, count_sliders(lesson))
