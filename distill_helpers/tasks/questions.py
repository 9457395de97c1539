"""Questions with answers: one's own files, and the capstone's default project.

A project is a file of a teacher's answers to learn from, and an :class:`Exam` whose
questions are not among them.

Taught in notebook 13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError, jsonl_rows, whole_characters
from distill_helpers.labels import (
    Message,
    Prompt,
    Teacher,
    own_labels,
    prompt_text,
    truncated,
    write_labels,
)
from distill_helpers.labels.messages import asked_messages
from distill_helpers.tasks.glosses import (
    MAX_ANSWER_TOKENS,
    Gloss,
    kinds,
    pool_labels,
    read_answer,
    splits,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# What the gloss task's kinds come down to where only life is asked for.
LIVING = frozenset({"animal", "person", "plant"})


def read_questions(path: str | Path, *, answered: bool = True) -> Dataset:
    """Questions from a file of one's own.

    Args:
        path: A ``.jsonl`` file, an object a line: ``prompt`` and ``answer``, both
            texts; or a conversation under ``messages``. What is asked there is all up
            to the user's last turn; the answer is the assistant's turn behind it, or
            stands under ``answer``, as in files of
            :func:`~distill_helpers.labels.write_labels`. Half a character, such as an
            emoji that was cut in two, is read as ``U+FFFD``.
        answered: Whether every line needs an answer that is not empty.

    Returns:
        A ``datasets.Dataset`` with the columns ``messages`` and ``answer`` (empty
        where there is none).

    Raises:
        DataError: If the file is missing or empty, or a line cannot be used; the
            message names file and line.

    Taught in notebook 13.
    """
    return own_labels(*_read(path, answered))


def _read(path: str | Path, answered: bool) -> tuple[list[Prompt], list[str]]:
    """Prompts, each in the form that its line has, and answers."""
    path = Path(path)
    prompts: list[Prompt] = []
    answers = []
    for number, row in jsonl_rows(path):
        row = row if isinstance(row, dict) else {}
        row = {name: value for name, value in row.items() if value is not None}
        prompt, answer = row.get("prompt", row.get("messages")), row.get("answer", "")
        if "answer" not in row and isinstance(prompt, list) and _is_answer(prompt[-1:]):
            *prompt, last = prompt
            answer = last.get("content") or ""
        where = f"{path}, line {number}"
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(
                f'{where} has no text under "prompt", and no conversation under '
                '"messages"'
            )
        if not isinstance(answer, str) or (answered and not answer.strip()):
            raise DataError(
                f'{where} has no text under "answer", or in a last turn of the '
                "assistant's"
            )
        if row.get("tools"):
            raise DataError(
                f"{where} has tools, and nobody would be told of them; leave it out"
            )
        try:
            asked_messages(prompt, len(prompts))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        prompts.append(prompt)
        answers.append(answer)
    if not prompts:
        raise DataError(f"{path} holds no questions")
    return prompts, answers


def _is_answer(last: list[Any]) -> bool:
    return any(isinstance(m, dict) and m.get("role") == "assistant" for m in last)


def write_questions(
    path: str | Path, prompts: Sequence[Prompt], answers: Sequence[str] | None = None
) -> Path:
    """Write what :func:`read_questions` reads; return the path.

    Args:
        path: A ``.jsonl`` file; its folder is made.
        prompts: Texts, or conversations as lists of messages. Half a character is
            written as ``U+FFFD``.
        answers: One for each; ``None`` leaves them out.

    Taught in notebook 13.
    """
    rows: list[dict[str, Any]] = [
        {"prompt" if isinstance(prompt, str) else "messages": prompt}
        for prompt in prompts
    ]
    if answers is not None:
        if len(prompts) != len(answers):
            raise ValueError(
                f"{len(prompts)} prompts and {len(answers)} answers: one answer per "
                "prompt"
            )
        for row, answer in zip(rows, answers, strict=True):
            row["answer"] = answer
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [whole_characters(json.dumps(row, ensure_ascii=False)) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def as_texts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[str]:
    """Prompts as a model reads them, or as people and word counts do.

    Args:
        prompts: Texts, which stay as they are, and conversations.
        tokenizer: Writes conversations in its chat template, up to where the answer
            begins. ``None`` writes a line for each message: who says what.

    Raises:
        ValueError: If the tokenizer has no chat template for a conversation, or the
            template cannot write it.

    Taught in notebook 13.
    """
    return [
        prompt if isinstance(prompt, str) else _as_text(prompt, tokenizer)
        for prompt in prompts
    ]


def _as_text(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase | None
) -> str:
    if tokenizer is None:
        said = [f"{one['role']}: {one.get('content', '')}" for one in messages]
        return "\n".join(said)
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, and conversations need one; use that "
            "of a chat model, or ask with prompts that are texts"
        )
    return prompt_text(messages, tokenizer)


def short_prompt(gloss: Gloss) -> str:
    r"""A gloss as a question without ceremony: ``"poodle: a dog …\nKind:"``."""
    return f"{gloss.word}: {gloss.gloss}\nKind:"


@dataclass(frozen=True)
class Exam:
    """Questions that nobody learned from, with what the teacher says to each.

    Attributes:
        prompts: For the student: texts, or conversations as lists of messages.
        right: Right answers.
        teacher: The teacher's answers.
        told: What the teacher reads of each question.
    """

    prompts: tuple[Prompt, ...]
    right: tuple[str, ...]
    teacher: tuple[str, ...]
    told: tuple[Prompt, ...]


def gloss_project(
    folder: str | Path, *, learn: int, test: int, teacher: Teacher | None = None
) -> tuple[Path, Exam]:
    """The capstone's default: sort glosses into twelve kinds, as the teacher does.

    Args:
        folder: Where files are written.
        learn: Questions to learn from, the last of the shipped ones.
        test: Questions of the exam, the first of them.
        teacher: Is told the twelve kinds and asked. ``None`` takes the answers that
            ship with the course.

    Returns:
        A file for :func:`read_questions`, and the exam.

    Raises:
        DataError: If the teacher left a question of the exam unanswered.
        ValueError: For sizes out of range.

    Taught in notebook 13.
    """
    shipped = pool_labels()
    if learn < 1 or test < 1 or learn + test > len(shipped):
        raise ValueError(
            f"learn={learn} and test={test} must be positive, and together at most "
            f"{len(shipped)}: so many answers ship with the course"
        )
    places = [*range(len(shipped) - learn, len(shipped)), *range(test)]
    glosses = [splits().pool[place] for place in places]
    told = [gloss.instruction for gloss in glosses]
    if teacher is None:
        texts = shipped.select(places)["answer"]
    else:
        limits = {"max_new_tokens": MAX_ANSWER_TOKENS}
        labels = _ask(teacher, told, folder, told[learn:], "the exam", **limits)
        found = _by_prompt(labels)
        texts = [found.get(_key(prompt), "") for prompt in told]
    named = named_kinds(texts)
    prompts = [short_prompt(gloss) for gloss in glosses]
    answers = [f" {kind}" for kind in named[:learn]]
    return _write_learned(folder, prompts[:learn], answers), Exam(
        prompts=tuple(prompts[learn:]),
        right=tuple(gloss.kind for gloss in glosses[learn:]),
        teacher=tuple(named[learn:]),
        told=tuple(told[learn:]),
    )


def own_project(
    folder: str | Path,
    *,
    questions: str | Path,
    exam: str | Path,
    teacher: Teacher,
    right: str | Path | None = None,
    tell: str = "",
    max_new_tokens: int = 64,
    **limits: Any,
) -> tuple[Path, Exam]:
    """A project of one's own: the teacher answers all questions, and takes the exam.

    Args:
        folder: Where files are written. A second call asks only for what is missing.
        questions: A file for :func:`read_questions`; answers in it are ignored.
        exam: A file with right answers: a few hundred, checked by a person, none of
            them among the questions. As ``questions``, it holds texts, or
            conversations; the teacher then reads them in its chat template.
        teacher: Who is asked.
        right: A file like ``exam``, for a student that never met the teacher. It is
            only checked, before the teacher costs anything.
        tell: What the teacher reads before each prompt; of a conversation, at the
            beginning of its system prompt. The student never does: what it says goes
            into its weights.
        max_new_tokens: Where an answer is cut off. What is cut off is not learned; in
            the exam it counts as it stands, like a student's.
        limits: ``max_cost`` and further keywords of
            :func:`~distill_helpers.labels.write_labels`.

    Returns:
        A file for :func:`read_questions`, and the exam. Next to the file stands
        ``told.jsonl``: the same answers behind what the teacher read.

    Raises:
        DataError: If some rows have messages and others a prompt, a question also
            stands in the exam, the teacher left one of the exam unanswered (a budget
            may have ended; another call asks for the rest), or no answer is left to
            learn from.

    Taught in notebook 13.
    """
    asked, _ = _read(questions, answered=False)
    judged, answers = _read(exam, answered=True)
    people, _ = _read(right, answered=True) if right else ([], [])
    if len({isinstance(prompt, str) for prompt in [*asked, *judged, *people]}) > 1:
        raise DataError(
            f"of {questions}, {exam} and {right or 'no third file'}, some rows have "
            "messages and others a prompt, and a student reads one form; give messages "
            "to all, or to none"
        )
    learned = {_key(prompt) for prompt in [*asked, *people]}
    shared = {_key(prompt): prompt for prompt in judged if _key(prompt) in learned}
    if shared:
        raise DataError(
            f"{exam} holds {len(shared)} of the questions to learn from, such as "
            f"{as_texts(list(shared.values()))[0][:60]!r}; take them out, or the exam "
            "proves nothing"
        )
    told = [_told(prompt, tell) for prompt in [*asked, *judged]]
    in_exam = told[len(asked) :]
    limits["max_new_tokens"] = max_new_tokens
    labels = _ask(teacher, told, folder, in_exam, exam, **limits)
    ended = [n for n, is_cut in enumerate(truncated(labels)) if not is_cut]
    whole = _by_prompt(labels.select(ended))
    texts = [whole.get(_key(prompt), "") for prompt in told[: len(asked)]]
    if not any(text.strip() for text in texts):
        raise DataError(
            f"the teacher gave no whole answer to {questions}; raise "
            f"max_new_tokens={max_new_tokens}, or tell it to be brief"
        )
    found = _by_prompt(labels)
    _write_learned(folder, told[: len(asked)], texts, name="told.jsonl")
    return _write_learned(folder, asked, texts), Exam(
        prompts=tuple(judged),
        right=tuple(answers),
        teacher=tuple(found[_key(prompt)].strip() for prompt in in_exam),
        told=tuple(in_exam),
    )


def _ask(
    teacher: Teacher,
    told: Sequence[Prompt],
    folder: str | Path,
    in_exam: Sequence[Prompt],
    exam: str | Path,
    **limits: Any,
) -> Dataset:
    """Ask the teacher what is missing, and refuse an exam that it did not end.

    Args:
        teacher: Who is asked.
        told: All that it is asked, the exam included.
        folder: Where its answers are kept.
        in_exam: What it is asked in the exam.
        exam: The exam as people know it.
        limits: Keywords of :func:`~distill_helpers.labels.write_labels`.
    """
    labels = write_labels(teacher, told, Path(folder) / "asked.jsonl", **limits)
    answered = _by_prompt(labels)
    missing = sum(_key(prompt) not in answered for prompt in in_exam)
    if missing:
        # Counted as wrong, they would make any student look better.
        raise DataError(
            f"the teacher has not answered {missing} of the {len(in_exam)} questions "
            f"of {exam}; call again, with a larger max_cost or max_total_tokens if the "
            "budget ended there (what is paid for is kept), or take out of the exam "
            "what the teacher refuses"
        )
    return labels


def _write_learned(
    folder: str | Path,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    name: str = "learn.jsonl",
) -> Path:
    """Write what the student learns: questions whose answers are not empty."""
    pairs = zip(prompts, answers, strict=True)
    known = [(prompt, answer) for prompt, answer in pairs if answer.strip()]
    path = Path(folder) / name
    return write_questions(path, [p for p, _ in known], [a for _, a in known])


def _told(prompt: Prompt, tell: str) -> Prompt:
    """What the teacher reads of a question."""
    if isinstance(prompt, str):
        return tell + prompt
    if not tell:
        return prompt
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": tell}, *prompt]
    content = prompt[0]["content"]
    if isinstance(content, str):
        content = f"{tell}\n\n{content}"
    else:
        content = [{"type": "text", "text": tell}, *content]
    return [{**prompt[0], "content": content}, *prompt[1:]]


def _key(prompt: Prompt) -> str:
    """The same for what is the same question, whatever ``datasets`` added to it."""
    return json.dumps(asked_messages(prompt, 0), sort_keys=True)


def _by_prompt(labels: Dataset) -> dict[str, str]:
    """Key of a prompt to answer; without answers the Dataset has no columns either."""
    return {_key(row["messages"]): row["answer"] for row in labels}


def named_kinds(answers: Sequence[str]) -> list[str]:
    """The kinds that JSON answers to glosses name; empty where one names none.

    Args:
        answers: What a teacher wrote, also in a Markdown code fence.

    Taught in notebook 13.
    """
    return [read_answer(unfenced(text)) or "" for text in answers]


def mentioned_kinds(answers: Sequence[str]) -> list[str]:
    """The kind that each text names first, in whatever form; empty if it names none.

    For a model that was only told what is wanted, and not trained to write JSON.

    Args:
        answers: What it wrote.

    Taught in notebook 13.
    """
    kind = re.compile("|".join(rf"\b{re.escape(one)}\b" for one in kinds()), re.I)
    found = [kind.search(text) for text in answers]
    return [one.group().lower() if one else "" for one in found]


def right_answers(folder: str | Path, *, learn: int, count: int) -> Path:
    """Right kinds of some glosses that :func:`gloss_project` learns from.

    For a rival of the distilled student: one that never met the teacher.

    Args:
        folder: Where the file is written.
        learn: How many questions :func:`gloss_project` learns from.
        count: How many of these, at most ``learn``.

    Returns:
        A file for :func:`read_questions`.

    Taught in notebook 13.
    """
    if not 1 <= count <= learn:
        raise ValueError(f"count={count} must be between 1 and learn={learn}")
    last = len(pool_labels())
    glosses = splits().pool[last - learn : last][:count]
    prompts = [short_prompt(gloss) for gloss in glosses]
    path = Path(folder) / "right.jsonl"
    return write_questions(path, prompts, [f" {gloss.kind}" for gloss in glosses])


def unfenced(text: str) -> str:
    """The text without the Markdown fence that chat models like to put around JSON."""
    return text.strip().removeprefix("```json").strip("`\n ")


def is_living(answer: str) -> bool | None:
    """What an application reads out of a kind; ``None`` if it is no kind at all.

    Taught in notebook 13.
    """
    kind = read_answer(json.dumps({"kind": answer.strip()}))
    return None if kind is None else kind in LIVING
