"""A model card: what a student is, where it comes from, what it cannot do.

Taught in notebook 13. Paper: Mitchell et al. 2019 (arXiv:1810.03993).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill_helpers.labels import Prompt

_MARKUP = "\\`*_[]|~#!$@"
_LONGEST = 300
# What a card says of the prompt's form, and how Ollama is told of it.
_FORM_OF_TEXTS = (
    "It reads a question as it is, without a chat template, and it was trained on this "
    "form alone. Ask for a completion, not for a chat.",
)
_FORM_OF_CHATS = (
    "It reads conversations in the chat template that comes with its tokenizer and "
    "stands in the GGUF file, and it was trained on this form alone. Ask it as a chat "
    "model; the last turn is the user's.",
)
_OLLAMA_TEXTS = (
    "Ollama adds no template either, if the Modelfile says so:",
    "",
    "```text",
    "FROM ./student-q8_0.gguf",
    'TEMPLATE "{{ .Prompt }}"',
    "PARAMETER temperature 0",
    "```",
)
_OLLAMA_CHATS = (
    "Ollama knows the templates of common families, and no others. Compare what "
    "`ollama show --modelfile` says with the student's `chat_template.jinja`; where "
    "they differ, write a TEMPLATE into the Modelfile:",
    "",
    "```text",
    "FROM ./student-q8_0.gguf",
    "PARAMETER temperature 0",
    "```",
)


@dataclass(frozen=True)
class ModelCard:
    """The facts of a card; :func:`card_text` puts them into Markdown.

    Attributes:
        name: The student's name.
        summary: What it is for, in a sentence or two.
        teacher: The teacher's name, as the hub knows it.
        licences: Whatever went in, and its licence: the teacher, the data.
        licence: The licence that the student is passed on under, as the hub
            abbreviates it.
        origins: Whatever went in, and where it came from.
        method: How it was trained, in a sentence or two.
        options: The run's options and their values.
        results: Measures, in words, and what they came to.
        limits: What it cannot do, a sentence each.
        examples: Questions with what the student wrote.
        versions: Package to version.
        prompt: A question as the student reads it, to the last blank, or as a
            conversation, which it reads in its chat template; shown with what to run.
            Empty leaves that out.
        answer_tokens: The most tokens of an answer.
        base: The model whose weights the student began with, as the hub knows it; what
            is no ``owner/name`` there is left out of the card's header.
    """

    name: str
    summary: str
    teacher: str
    licences: Mapping[str, str]
    licence: str
    origins: Mapping[str, str]
    method: str
    options: Mapping[str, object]
    results: Mapping[str, str]
    limits: Sequence[str]
    examples: Sequence[tuple[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt: Prompt = ""
    answer_tokens: int = 16
    base: str = ""


def escape(text: object) -> str:
    """Put foreign text into one line of Markdown: no markup, no HTML, no links.

    Models write what they have read. A card is shown in browsers.

    Args:
        text: What to show, as it is; a longer one is cut after 300 characters.

    Taught in notebook 13.
    """
    line = " ".join(str(text).split())
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    found = []
    for character in line:
        if character in named:
            found.append(named[character])
        elif character in _MARKUP:
            found.append("\\" + character)
        elif character.isprintable():
            found.append(character)
    # The hub makes links of bare addresses; these are none any more.
    return "".join(found).replace("://", "\\://").replace("www.", "www\\.")


def card_text(card: ModelCard) -> str:
    """Return the card in Markdown, with the header that the model hub reads.

    Args:
        card: The facts.

    Raises:
        ValueError: Without licences, origins, results or limits: a card that leaves
            these out is no card.

    Taught in notebook 13.
    """
    for name in ("summary", "method", "licences", "origins", "results", "limits"):
        if not getattr(card, name):
            raise ValueError(f"{name} is empty; a card has to say it")
    header: dict[str, object] = {"license": card.licence}
    # The hub refuses a card whose base it cannot know.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base):
        header["base_model"] = card.base
    header |= {"library_name": "transformers", "tags": ["distillation"]}
    # JSON strings are YAML strings, whatever is in them.
    facts = {
        key: json.dumps(value, ensure_ascii=False) for key, value in header.items()
    }
    lines = ["---", *(f"{key}: {value}" for key, value in facts.items())]
    lines += ["---", "", f"# {escape(card.name)}", "", escape(card.summary)]
    lines += ["", "## How it was made", "", escape(card.method), ""]
    lines += _table("option", "value", card.options)
    lines += ["", "## What went in", ""]
    lines += ["| what | licence | origin |", "|---|---|---|"]
    for what in dict.fromkeys([*card.licences, *card.origins]):
        licence = card.licences.get(what, "not stated")
        origin = card.origins.get(what, "not stated")
        lines.append(f"| {escape(what)} | {escape(licence)} | {escape(origin)} |")
    lines += ["", "## What was measured", ""]
    lines += _table("measure", "result", card.results)
    lines += ["", "## What it cannot do", ""]
    lines += [f"* {escape(limit)}" for limit in card.limits]
    if card.prompt:
        lines += ["", *_how_to_use(card)]
    if card.examples:
        lines += ["", "## Answers of its own", ""]
        lines += ["| question | answer |", "|---|---|"]
        lines += [f"| {escape(q)} | {escape(a)} |" for q, a in card.examples]
    if card.versions:
        lines += ["", "## Versions", ""]
        lines += [
            ", ".join(f"{escape(k)} {escape(v)}" for k, v in card.versions.items())
        ]
    return "\n".join(lines) + "\n"


def _how_to_use(card: ModelCard) -> list[str]:
    """The prompt's format, and lines to run for three programs."""
    is_chat = not isinstance(card.prompt, str)
    name, path = ("messages", "chat/") if is_chat else ("prompt", "")
    # ASCII and no backtick, so that nothing in it can end a line or a fence.
    prompt = ascii(card.prompt).replace("`", "\\x60")
    body = {name: card.prompt, "max_tokens": card.answer_tokens, "temperature": 0}
    asked = json.dumps(body).replace("`", "\\u0060").replace("'", "\\u0027")
    return [
        "## How to use it",
        "",
        *(_FORM_OF_CHATS if is_chat else _FORM_OF_TEXTS),
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'write = pipeline("text-generation", model="FOLDER OR NAME")',
        f"{name} = {prompt}",
        f"print(write({name}, max_new_tokens={card.answer_tokens}, do_sample=False,",
        '            return_full_text=False)[0]["generated_text"])',
        "```",
        "",
        "llama.cpp, with the GGUF file next to this card, or vLLM:",
        "",
        "```sh",
        "llama-server --model student-q8_0.gguf --port 8000",
        "vllm serve FOLDER_OR_NAME --port 8000",
        f"curl http://localhost:8000/v1/{path}completions \\",
        "  -H 'Content-Type: application/json' \\",
        f"  -d '{asked}'",
        "```",
        "",
        *(_OLLAMA_CHATS if is_chat else _OLLAMA_TEXTS),
    ]


def _table(one: str, two: str, rows: Mapping[str, object]) -> list[str]:
    found = [f"| {one} | {two} |", "|---|---|"]
    return found + [f"| {escape(k)} | {escape(v)} |" for k, v in rows.items()]


def write_card(card: ModelCard, folder: str | Path) -> Path:
    """Write ``README.md`` into the folder of a saved student; return its path.

    Args:
        card: The facts.
        folder: The student's folder; a ``README.md`` there is replaced.

    Raises:
        ValueError: If the card leaves out what it has to say.

    Taught in notebook 13.
    """
    path = Path(folder) / "README.md"
    path.write_text(card_text(card), encoding="utf-8")
    return path
