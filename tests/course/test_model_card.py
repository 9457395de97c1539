"""Model cards: complete, and safe to show."""

import ast
import html
import json
import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from distill_helpers.course.model_card import ModelCard, card_text, escape, write_card
from distill_helpers.evaluation import generate
from distill_helpers.tasks.teachers import load_tiny_teacher

CARD = ModelCard(
    name="small one",
    summary="Says yes or no.",
    teacher="owner/large",
    licence="apache-2.0",
    licences={"teacher": "Apache-2.0", "data": "CC0"},
    origins={"teacher": "owner/large", "more": "my desk"},
    method="Hard labels.",
    options={"steps": 3},
    results={"right": "12 of 20"},
    limits=["English only."],
    examples=[("ask\nme", "<script>|`x`")],
    versions={"torch": "2.9"},
    base="owner/medium",
)


def test_a_card_says_it_all(tmp_path):
    text = write_card(CARD, tmp_path).read_text(encoding="utf-8")
    assert text == (tmp_path / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "owner/medium"
    assert header["license"] == "apache-2.0"
    for line in (
        r"| teacher | Apache-2.0 | owner/large |",
        "| data | CC0 | not stated |",
        "| more | not stated | my desk |",
        "| steps | 3 |",
        "| right | 12 of 20 |",
        r"* English only.",
        r"| ask me | &lt;script&gt;\|\`x\` |",
        r"torch 2.9",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    "name", ["summary", "method", "licences", "origins", "results", "limits"]
)
def test_a_card_leaves_nothing_out(name):
    with pytest.raises(ValueError, match=f"{name} is empty"):
        card_text(replace(CARD, **{name: type(getattr(CARD, name))()}))


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "# heading",
        "a | b",
        "&lt;b&gt;",
        "`code` **bold** ~~no~~ ![i](u)",
        "http://x.example www.x.example me@x.example",
        "---\nlicense: mit\n---",
    ],
)
def test_foreign_text_is_shown_and_not_obeyed(text):
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = reader.render(f"x {escape(text)}")
    inside = shown.removeprefix("<p>").removesuffix("</p>\n")
    assert "<" not in inside
    assert html.unescape(inside) == "x " + " ".join(text.split())
    # The hub's reader also makes links of bare addresses; these are none any more.
    for link in ("http://", "www.", "me@x"):
        assert link not in escape(text)


def test_long_and_odd_text():
    assert len(escape("a" * 1000)) == 300
    assert escape("a\x1b[31m\u202eb") == r"a\[31mb"
    assert escape(3.5) == "3.5"
    hostile = replace(CARD, licence='x"\n---\n<script>', name="# <b>")
    header = card_text(hostile).split("\n---\n")[0]
    assert yaml.safe_load(header.removeprefix("---\n"))["license"] == hostile.licence


@pytest.mark.parametrize(
    "base", ["", "packaged", "api:m@http://x/v1", 'a/b"\n---', "a/b/c"]
)
def test_what_is_no_name_of_the_hub_is_no_base(base):
    text = card_text(replace(CARD, base=base))
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


PROMPT = 'poodle: a "dog" 🐩 that\'s `curly` ```\nKind: '


def test_a_card_says_how_to_ask(tmp_path):
    text = card_text(replace(CARD, prompt=PROMPT, answer_tokens=6))
    fences = [one for one in MarkdownIt().parse(text) if one.type == "fence"]
    code = {fence.info: fence.content for fence in fences}
    assert set(code) == {"python", "sh", "text"}
    (line,) = [x for x in code["python"].splitlines() if x.startswith("prompt = ")]
    assert ast.literal_eval(line.removeprefix("prompt = ")) == PROMPT
    (body,) = re.findall(r"-d '(.*)'$", code["sh"], re.MULTILINE)
    assert json.loads(body) == {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    assert "## How to use it" not in card_text(CARD)


TALK = [
    {"role": "system", "content": "It's `short`"},
    {"role": "user", "content": "27+58+46="},
]


def test_a_card_says_how_to_ask_in_conversations(tmp_path, capsys):
    teacher = load_tiny_teacher("sums")
    teacher.tokenizer.chat_template = "{{ messages[-1].content }}"
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    text = card_text(replace(CARD, prompt=TALK, answer_tokens=8))
    assert "Ask it as a chat model" in text
    assert "without a chat template" not in text
    code = {one.info: one.content for one in MarkdownIt().parse(text) if one.info}
    (body,) = re.findall(r"-d '(.*)'$", code["sh"], re.MULTILINE)
    assert json.loads(body) == {"messages": TALK, "max_tokens": 8, "temperature": 0}
    assert "/v1/chat/completions " in code["sh"]
    assert "{{ .Prompt }}" not in code["text"]
    exec(code["python"].replace("FOLDER OR NAME", str(tmp_path)), {})
    (said,) = generate(*teacher, ["27+58+46="], max_new_tokens=8)
    assert capsys.readouterr().out.strip() == said


def test_the_lines_of_a_card_run(tmp_path, capsys):
    """As somebody would paste them, with the folder's name put in."""
    teacher = load_tiny_teacher("sums")
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    text = card_text(replace(CARD, prompt="27+58+46=", answer_tokens=8))
    (code,) = [x.content for x in MarkdownIt().parse(text) if x.info == "python"]
    exec(code.replace("FOLDER OR NAME", str(tmp_path)), {})
    (said,) = generate(*teacher, ["27+58+46="], max_new_tokens=8)
    assert capsys.readouterr().out.strip() == said
