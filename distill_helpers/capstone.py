"""From questions to a verdict: is this student worth having?

Reads questions with answers, scores two models on the same ones, measures speed and
bytes, and weighs all three. Trained is elsewhere
(:func:`distill_helpers.configs.build_trainer`), described in
:mod:`distill_helpers.model_card`.

Taught in notebook 10.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from distill_helpers.data import DataError, data_path
from distill_helpers.generation import eval_mode
from distill_helpers.gloss_labels import pool_labels
from distill_helpers.gloss_task import MAX_ANSWER_TOKENS, Gloss, read_answer, splits
from distill_helpers.hard_labels import Teacher, own_labels, write_labels
from distill_helpers.models import Loaded, parameter_count
from distill_helpers.studies import MIME, Interval, t_interval

if TYPE_CHECKING:
    from datasets import Dataset

    from distill_helpers.profiles import Profile

# What a student has to reach; the capstone's own bar, to be changed for your own.
MIN_SCORE, MIN_SPEED, MAX_BYTES = 0.95, 2.0, 0.5
# What the gloss task's kinds come down to where only life is asked for.
LIVING = frozenset({"animal", "person", "plant"})
_NORMAL_95 = 1.96
_DRAWS = 2000

Answering = Callable[[str], Hashable]


# --- questions ----------------------------------------------------------------------


def read_questions(path: str | Path, *, answered: bool = True) -> Dataset:
    """Questions from a file of one's own.

    Args:
        path: A ``.jsonl`` file, an object a line: ``prompt`` and ``answer``, both
            texts. Files of :func:`~distill_helpers.hard_labels.write_labels` hold
            ``messages`` for ``prompt``, and can be read as well.
        answered: Whether every line needs an answer that is not empty.

    Returns:
        A ``datasets.Dataset`` with the columns ``messages`` and ``answer`` (empty
        where there is none).

    Raises:
        DataError: If the file is missing or empty, or a line cannot be used; the
            message names file and line.

    Taught in notebook 10.
    """
    path = Path(path)
    if path.suffix != ".jsonl" or not path.is_file():
        raise DataError(f"{path} is no .jsonl file; check the path and the ending")
    prompts: list[Any] = []
    answers = []
    # JSON escapes line feeds, and only those end a line.
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no JSON: {error}") from None
        prompt = row.get("prompt", row.get("messages")) if _is_object(row) else None
        answer = row.get("answer", "") if _is_object(row) else None
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(f'{path}, line {number} has no text under "prompt"')
        if not isinstance(answer, str) or (answered and not answer.strip()):
            raise DataError(f'{path}, line {number} has no text under "answer"')
        prompts.append(prompt)
        answers.append(answer)
    if not prompts:
        raise DataError(f"{path} holds no questions")
    return own_labels(prompts, answers)


def _is_object(row: Any) -> bool:
    return isinstance(row, dict)


def write_questions(
    path: str | Path, prompts: Sequence[str], answers: Sequence[str] | None = None
) -> Path:
    """Write what :func:`read_questions` reads; return the path.

    Args:
        path: A ``.jsonl`` file; its folder is made.
        prompts: Texts.
        answers: One for each; ``None`` leaves them out.

    Taught in notebook 10.
    """
    rows = [{"prompt": prompt} for prompt in prompts]
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
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def short_prompt(gloss: Gloss) -> str:
    r"""A gloss as a question without ceremony: ``"poodle: a dog …\nKind:"``."""
    return f"{gloss.word}: {gloss.gloss}\nKind:"


@dataclass(frozen=True)
class Exam:
    """Questions that nobody learned from, with what the teacher says to each.

    Attributes:
        prompts: For the student.
        right: Right answers.
        teacher: The teacher's answers.
    """

    prompts: tuple[str, ...]
    right: tuple[str, ...]
    teacher: tuple[str, ...]


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

    Taught in notebook 10.
    """
    shipped = pool_labels()
    if learn < 1 or test < 1 or learn + test > len(shipped):
        raise ValueError(
            f"learn={learn} and test={test} must be positive, and together at most "
            f"{len(shipped)}: so many answers ship with the course"
        )
    places = [*range(len(shipped) - learn, len(shipped)), *range(test)]
    glosses = [splits().pool[place] for place in places]
    if teacher is None:
        texts = shipped.select(places)["answer"]
    else:
        told = [gloss.instruction for gloss in glosses]
        path = Path(folder) / "asked.jsonl"
        labels = write_labels(teacher, told, path, max_new_tokens=MAX_ANSWER_TOKENS)
        texts = _in_order(labels, told)
    kinds = [read_answer(_unfenced(text)) or "" for text in texts]
    pairs = [
        (short_prompt(g), f" {kind}") for g, kind in zip(glosses, kinds, strict=True)
    ]
    known = [pair for pair in pairs[:learn] if pair[1].strip()]
    return (
        write_questions(
            Path(folder) / "learn.jsonl", [p for p, _ in known], [a for _, a in known]
        ),
        Exam(
            prompts=tuple(prompt for prompt, _ in pairs[learn:]),
            right=tuple(gloss.kind for gloss in glosses[learn:]),
            teacher=tuple(kinds[learn:]),
        ),
    )


def own_project(
    folder: str | Path,
    *,
    questions: str | Path,
    exam: str | Path,
    teacher: Teacher,
    tell: str = "",
    max_new_tokens: int = 64,
    **limits: Any,
) -> tuple[Path, Exam]:
    """A project of one's own: the teacher answers all questions, and takes the exam.

    Args:
        folder: Where files are written. A second call asks only for what is missing.
        questions: A file for :func:`read_questions`; answers in it are ignored.
        exam: A file with right answers: a few hundred, checked by a person, none of
            them among the questions.
        teacher: Who is asked.
        tell: What the teacher reads before each prompt. The student never does:
            what it says goes into its weights.
        max_new_tokens: Where an answer is cut off; what is cut off is not learned.
        limits: ``max_cost`` and further keywords of
            :func:`~distill_helpers.hard_labels.write_labels`.

    Returns:
        As :func:`gloss_project`.

    Raises:
        DataError: If a question also stands in the exam, or no answer is left.

    Taught in notebook 10.
    """
    asked, judged = read_questions(questions, answered=False), read_questions(exam)
    prompts = [
        _text(messages) for messages in [*asked["messages"], *judged["messages"]]
    ]
    shared = set(prompts[: len(asked)]) & set(prompts[len(asked) :])
    if shared:
        raise DataError(
            f"{exam} holds {len(shared)} of the questions to learn from, such as "
            f"{min(shared)[:60]!r}; take them out, or the exam proves nothing"
        )
    told = [tell + prompt for prompt in prompts]
    path = Path(folder) / "asked.jsonl"
    labels = write_labels(teacher, told, path, max_new_tokens=max_new_tokens, **limits)
    cut = set(labels.filter(lambda row: row["finish_reason"] != "stop")["key"])
    whole = labels.filter(lambda row: row["key"] not in cut)
    texts = _in_order(whole, told)
    known = [
        (prompt, text)
        for prompt, text in zip(prompts[: len(asked)], texts, strict=False)
        if text.strip()
    ]
    if not known:
        raise DataError(
            f"the teacher gave no whole answer to {questions}; raise "
            f"max_new_tokens={max_new_tokens}, or tell it to be brief"
        )
    learn = write_questions(
        Path(folder) / "learn.jsonl", [p for p, _ in known], [a for _, a in known]
    )
    return learn, Exam(
        prompts=tuple(prompts[len(asked) :]),
        right=tuple(judged["answer"]),
        teacher=tuple(text.strip() for text in texts[len(asked) :]),
    )


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    if len(messages) != 1:
        raise DataError(
            f"a question is a conversation of {len(messages)} turns; the capstone "
            "takes single ones"
        )
    return messages[0]["content"]


def _in_order(labels: Dataset, prompts: Sequence[str]) -> list[str]:
    """Answers in the order of their prompts; empty where there is none."""
    found = {
        messages[-1]["content"]: answer
        for messages, answer in zip(labels["messages"], labels["answer"], strict=True)
    }
    return [found.get(prompt, "") for prompt in prompts]


def _unfenced(text: str) -> str:
    """Chat models like to wrap JSON in a Markdown code fence."""
    return text.strip().removeprefix("```json").strip("`\n ")


def is_living(answer: str) -> bool | None:
    """What an application reads out of a kind; ``None`` if it is no kind at all.

    Taught in notebook 10.
    """
    kind = read_answer(json.dumps({"kind": answer.strip()}))
    return None if kind is None else kind in LIVING


# --- scores -------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Which questions were answered rightly.

    Attributes:
        hits: One for each question, in order.
    """

    hits: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Of right answers, in [0, 1]."""
        return sum(self.hits) / len(self.hits)

    @property
    def interval(self) -> Interval:
        """The share with Wilson's 95 % interval, which is sound near 0 and 1."""
        n, p, z = len(self.hits), self.share, _NORMAL_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return Interval(p, max(0.0, middle - half), min(1.0, middle + half), n)

    def __str__(self) -> str:
        found = self.interval
        return f"{found.mean:6.1%} ({found.low:.1%} to {found.high:.1%}) of {found.n:,}"


def score(
    answers: Sequence[str],
    right: Sequence[str],
    *,
    read: Answering = str.strip,
) -> Score:
    """Compare answers with the right ones.

    Args:
        answers: As they were written.
        right: One for each.
        read: What counts of an answer. Where it gives ``None``, the answer is wrong.

    Raises:
        ValueError: For no questions, or answers that do not pair up.

    Taught in notebook 10.
    """
    if len(answers) != len(right) or not right:
        raise ValueError(
            f"{len(answers)} answers and {len(right)} right ones: one for each, and "
            "at least one"
        )
    found = [(read(a), read(b)) for a, b in zip(answers, right, strict=True)]
    return Score(tuple(a is not None and a == b for a, b in found))


def score_ratio(student: Score, teacher: Score, *, seed: int = 0) -> Interval:
    """The student's score as a share of the teacher's, with a 95 % interval.

    A paired bootstrap: questions are drawn anew, each with both its answers, so that
    what is hard for both does not count as noise.

    Args:
        student: Of the student.
        teacher: On the same questions.
        seed: Of the draws.

    Raises:
        ValueError: If the questions do not pair up, or the teacher has none right.

    Taught in notebook 10.
    """
    ours, theirs = np.array(student.hits), np.array(teacher.hits)
    if len(ours) != len(theirs):
        raise ValueError(
            f"student has {len(ours)} questions and teacher {len(theirs)}; score both "
            "on the same ones"
        )
    if not theirs.any():
        raise ValueError("teacher has nothing right; there is no share of nothing")
    draws = np.random.default_rng(seed).integers(len(ours), size=(_DRAWS, len(ours)))
    ratios = ours[draws].mean(1) / np.maximum(theirs[draws].mean(1), 1 / len(ours))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(
        float(ours.mean() / theirs.mean()), float(low), float(high), len(ours)
    )


class WordCounts:
    """A baseline without a network: naive Bayes on the words of a question.

    Args:
        prompts: To learn from.
        answers: One for each.

    Taught in notebook 10.
    """

    def __init__(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        if len(prompts) != len(answers) or not prompts:
            raise ValueError(
                f"{len(prompts)} prompts and {len(answers)} answers: one for each, "
                "and at least one"
            )
        self.times = Counter(answers)
        self.words: dict[str, Counter[str]] = {one: Counter() for one in self.times}
        for prompt, answer in zip(prompts, answers, strict=True):
            self.words[answer].update(_words(prompt))

    def answer(self, prompt: str) -> str:
        """The answer that the words of a question make likeliest."""
        words = _words(prompt)

        def likelihood(answer: str) -> float:
            count, times = self.words[answer], self.times[answer]
            return math.log(times) + sum(
                math.log((count[word] + 0.5) / (times + 1)) for word in words
            )

        return max(self.times, key=likelihood)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


# --- speed and bytes ----------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What a model takes while it answers.

    Attributes:
        parameters: A tied matrix counted once.
        weights: Bytes of the weights.
        cache: Bytes of keys and values for one token of one text.
    """

    parameters: int
    weights: int
    cache: int

    def memory(self, *, texts: int, tokens: int) -> int:
        """Bytes of weights and cache.

        Args:
            texts: Answered at a time.
            tokens: Of each, question and answer.
        """
        return self.weights + texts * tokens * self.cache


def footprint(model: Any, *, dtype: torch.dtype | None = None) -> Footprint:
    """Bytes of a model, counted in its tensors.

    Args:
        model: Causal; reads two tokens.
        dtype: As if it were in this precision; ``None`` is its own.

    Taught in notebook 10.
    """
    size = (dtype or model.dtype).itemsize
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    with eval_mode(model), torch.inference_mode():
        kept = model(input_ids=ids, use_cache=True).past_key_values
    numbers = sum(
        layer.keys.numel() + layer.values.numel()
        for layer in kept.layers
        if layer.keys is not None
    )
    count = parameter_count(model)
    return Footprint(count, count * size, numbers // 2 * size)


@dataclass(frozen=True)
class Speed:
    """How fast two models answer the same questions, in turns.

    Attributes:
        student: Answers a second, round by round.
        teacher: Likewise.
    """

    student: tuple[float, ...]
    teacher: tuple[float, ...]

    @property
    def ratio(self) -> Interval:
        """How many times as fast the student is; 95 % t-interval over rounds."""
        pairs = zip(self.student, self.teacher, strict=True)
        return t_interval([ours / theirs for ours, theirs in pairs])


def compare_speed(
    student: Loaded,
    teacher: Loaded,
    prompts: Sequence[str],
    *,
    new_tokens: int = 4,
    rounds: int = 4,
    batch_size: int = 32,
) -> Speed:
    """Let both answer the same questions with the same number of tokens, in turns.

    Turns, because a machine that slows down then slows both. A first round is not
    counted.

    Args:
        student: Model and tokenizer, in the precision of the teacher.
        teacher: Likewise.
        prompts: What both read, as it is.
        new_tokens: What both write, no matter what they say.
        rounds: Counted ones, at least two.
        batch_size: Questions at a time.

    Raises:
        ValueError: If the precisions differ, or for fewer than two rounds.

    Taught in notebook 10.
    """
    if rounds < 2:
        raise ValueError(f"rounds={rounds} gives no interval; take at least 2")
    if student.model.dtype != teacher.model.dtype:
        raise ValueError(
            f"student is {student.model.dtype} and teacher {teacher.model.dtype}; "
            "load both with one dtype, or the comparison is one of precisions"
        )
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for model, found in zip((student, teacher), speeds, strict=True):
            took = _answering_seconds(model, prompts, new_tokens, batch_size)
            if number:
                found.append(len(prompts) / took)
    return Speed(tuple(speeds[0]), tuple(speeds[1]))


def _answering_seconds(
    loaded: Loaded, prompts: Sequence[str], new_tokens: int, batch_size: int
) -> float:
    model: Any = loaded.model
    pad = loaded.tokenizer.pad_token_id
    pad = loaded.tokenizer.eos_token_id if pad is None else pad
    encoded = loaded.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    encoded.sort(key=len)
    batches = []
    for start in range(0, len(encoded), batch_size):
        chunk = encoded[start : start + batch_size]
        width = len(chunk[-1])
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in chunk])
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in chunk]
        )
        batches.append((ids.to(model.device), mask.to(model.device)))
    _wait_for(model.device)
    with eval_mode(model), torch.inference_mode():
        start_time = time.perf_counter()
        for ids, mask in batches:
            _write(model, ids, mask, new_tokens)
        _wait_for(model.device)
        return time.perf_counter() - start_time


def _write(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int
) -> torch.Tensor:
    """Greedy tokens, with nothing but the model's own work in them."""
    kept = None
    written = []
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
        )
        kept = output.past_key_values
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        written.append(ids)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return torch.cat(written, 1)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- the verdict --------------------------------------------------------------------


@dataclass(frozen=True)
class Worth:
    """Whether a student is worth having; shows itself as one line in a notebook.

    Attributes:
        task: What was asked, in a few words.
        score: Share of the teacher's score.
        speed: Times the teacher's speed.
        size: Share of the teacher's bytes, at equal precision.
        status: ``"worth having"``, ``"not worth having"``, ``"undecided"``, or ``"not
            judged"`` where a run is too short to tell.
        short_of: What it falls short of, or may fall short of.
    """

    task: str
    score: Interval
    speed: Interval
    size: float
    status: str
    short_of: tuple[str, ...]

    def __str__(self) -> str:
        because = f" ({', '.join(self.short_of)})" if self.short_of else ""
        return (
            f"{self.task}: {self.status.upper()}{because}. "
            f"Score {self.score.mean:.1%} of the teacher's "
            f"({self.score.low:.1%} to {self.score.high:.1%}); "
            f"{self.speed.mean:.1f} × its speed "
            f"({self.speed.low:.1f} to {self.speed.high:.1f}); "
            f"{self.size:.0%} of its bytes"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {
            "text/plain": str(self),
            "text/html": f"<p>{html.escape(str(self))}</p>",
            # A student that is not worth having is a result, too.
            MIME: {
                "kind": "verdict",
                "name": self.task,
                "status": self.status,
                "ok": True,
                "message": str(self),
            },
        }


def weigh(
    task: str,
    *,
    score: Interval,
    speed: Interval,
    size: float,
    judged: bool = True,
    min_score: float = MIN_SCORE,
    min_speed: float = MIN_SPEED,
    max_bytes: float = MAX_BYTES,
) -> Worth:
    """Judge a student by all three measures at once.

    It is worth having if both intervals lie beyond the bar and it is small enough; not
    worth having if one lies below it, or it is too large; else that is undecided.

    Args:
        task: What was asked, in a few words.
        score: From :func:`score_ratio`.
        speed: From :attr:`Speed.ratio`.
        size: The student's bytes by the teacher's, at equal precision.
        judged: ``False`` (the smoke profile) says "not judged".
        min_score: Share of the teacher's score that is asked for.
        min_speed: Times the teacher's speed.
        max_bytes: Share of the teacher's bytes.

    Taught in notebook 10.
    """
    missed = {
        "score": score.high < min_score,
        "speed": speed.high < min_speed,
        "bytes": size > max_bytes,
    }
    open_ones = {
        "score": score.low < min_score,
        "speed": speed.low < min_speed,
        "bytes": False,
    }
    if any(missed.values()):
        status, short = "not worth having", missed
    elif any(open_ones.values()):
        status, short = "undecided", open_ones
    else:
        status, short = "worth having", {}
    if not judged:
        status, short = "not judged", {}
    return Worth(
        task,
        score,
        speed,
        size,
        status,
        tuple(n for n, is_so in short.items() if is_so),
    )


# --- accidents and archives ---------------------------------------------------------


class StopAfter(TrainerCallback):
    """Ends a run early, as a lost connection would, once its checkpoint is there.

    Args:
        steps: Optimizer steps that it gets; at the end of one with a checkpoint.

    Taught in notebook 10.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint and the end."""
        if state.global_step >= self.steps:
            control.should_save = True
            control.should_training_stop = True
        return control


def push_folder(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a saved student to the model hub; return its address.

    Args:
        folder: With ``README.md``, ``config.json`` and weights.
        repository: Such as ``"your-name/your-student"``. The token comes from
            ``huggingface_hub``: ``HF_TOKEN``, Colab's secrets, or ``hf auth login``.
        private: Whether only you can see it.

    Raises:
        ValueError: If the folder is not complete, or the name has no owner.

    Taught in notebook 10.
    """
    folder = Path(folder)
    for name in ("README.md", "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"folder={str(folder)!r} has no {name}; save the student and its "
                "card there first"
            )
    if repository.count("/") != 1:
        raise ValueError(f"repository={repository!r} must look like owner/name")
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    # Checkpoints hold optimizer states: large, and nobody else's business.
    answer = api.upload_folder(
        repo_id=repository, folder_path=folder, ignore_patterns=["checkpoint-*"]
    )
    return str(getattr(answer, "repo_url", answer))


def teacher_name(option: str, profile: Profile) -> str:
    """What others know a teacher as that an option names.

    Args:
        option: ``"packaged"``, ``"tiny-prose"``, a folder or a name on the hub.
        profile: ``"packaged"`` is its own.
    """
    if option == "packaged":
        own = profile.teacher
        return "HuggingFaceTB/SmolLM2-135M-Instruct" if own == "packaged" else own
    # Of a folder only the last part: cards travel.
    return Path(option).name if Path(option).is_dir() else option


def origins(names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Bundled files with licence and origin, as ``data/MANIFEST.json`` has them.

    Args:
        names: Such as ``"gloss_labels.jsonl"``; their bytes are checked.

    Returns:
        Name to licence and origin.

    Taught in notebook 10.
    """
    wanted = list(names)
    paths = [data_path(name) for name in wanted]
    root = paths[0].parents[wanted[0].count("/")]
    files = json.loads((root / "MANIFEST.json").read_text("utf-8"))["files"]
    return {name: (files[name]["licence"], files[name]["origin"]) for name in wanted}
