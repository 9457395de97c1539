"""Is this student worth having? Score, speed and bytes beside its teacher's.

The questions come from :mod:`distill_helpers.tasks.questions`, the student from
:func:`distill_helpers.cli.runs.build_trainer`; what came out goes into
:mod:`distill_helpers.course.model_card`. What else a project needs is in
:mod:`distill_helpers.course.project`.

Taught in notebook 13.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from distill_helpers.labels import Prompt
from distill_helpers.models import (
    Loaded,
    eval_mode,
    generate_batch,
    parameter_count,
    reading_device,
)
from distill_helpers.studies import MIME, Interval, t_interval
from distill_helpers.tasks.questions import as_texts, unfenced

# What a student has to reach; the capstone's own bar, to be changed for your own.
MIN_SCORE, MIN_SPEED, MAX_BYTES = 0.95, 2.0, 0.5
_NORMAL_95 = 1.96
_DRAWS = 2000

Answering = Callable[[str], Hashable]


# --- scores -------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Which questions were answered rightly.

    Attributes:
        hits: Whether the answer was right, for each question, in order.
    """

    hits: tuple[bool, ...]

    @property
    def share(self) -> float:
        """The share of right answers, in [0, 1]."""
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
        answers: Answers as they were written.
        right: The right answer to each question.
        read: Returns what counts of an answer. Where that is ``None``, the answer is
            wrong. Default: the text without the blanks around it.

    Returns:
        Which answers are right, judged by what counts of both.

    Raises:
        ValueError: For no questions, or answers that do not pair up.

    Taught in notebook 13.
    """
    if len(answers) != len(right) or not right:
        raise ValueError(
            f"{len(answers)} answers and {len(right)} right ones: one for each, and "
            "at least one"
        )
    found = [(read(a), read(b)) for a, b in zip(answers, right, strict=True)]
    return Score(tuple(a is not None and a == b for a, b in found))


# A sign behind a letter, a digit or a point is a dash.
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+])?(?:\d[\d,]*(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d+)?"
)


def reader_of(form: str) -> Answering:
    """Return the function that reads what counts out of an answer.

    Args:
        form: ``"exact"``: the whole text without the blanks around it. ``"number"``:
            the last number, so that 1,000 and 1000.0 are equal. ``"json:NAME"``: a
            field of the JSON object that the answer is; a code fence around it does
            not count.

    Returns:
        The function, for :func:`score`; it gives ``None`` where there is no such thing.

    Raises:
        ValueError: For another form.

    Taught in notebook 13.
    """
    if form == "exact":
        return str.strip
    if form == "number":
        return _last_number
    kind, _, name = form.partition(":")
    if kind == "json" and name:
        return partial(_json_field, name=name)
    raise ValueError(
        f"form={form!r} must be 'exact', 'number' or 'json:NAME'; a function of your "
        "own can be given to score as it is"
    )


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _json_field(text: str, name: str) -> str | None:
    try:
        value = json.loads(unfenced(text))[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return json.dumps(value, sort_keys=True)


def score_ratio(student: Score, teacher: Score, *, seed: int = 0) -> Interval:
    """Return the student's score as a share of the teacher's, with a 95 % interval.

    A paired bootstrap: questions are drawn anew, each with both its answers, so that
    what is hard for both does not count as noise.

    Where both are right on the same questions and wrong on the others, every draw
    gives 1, even from ten questions. How far off the ratio may be all the same follows
    from how often the two would differ on other questions: after none of n, Wilson's
    interval for that rate ends at d = z² / (n + z²). If the teacher is right with the
    rate p, the student is with one between p − d and p + d, and the ratio lies between
    1 − d / p and 1 + d / p; for p stands the teacher's share. Ten questions with right
    answers alone give 72 % to 128 %, and 300 give 98.7 % to 101.3 %.

    Args:
        student: The student's score.
        teacher: The teacher's, on the same questions.
        seed: Seed of the draws.

    Raises:
        ValueError: If the questions do not pair up, or the teacher has none right.

    Taught in notebook 13.
    """
    ours, theirs = np.array(student.hits), np.array(teacher.hits)
    if len(ours) != len(theirs):
        raise ValueError(
            f"student has {len(ours)} questions and teacher {len(theirs)}; score both "
            "on the same ones"
        )
    if not theirs.any():
        raise ValueError("teacher has nothing right; there is no share of nothing")
    differing = Score(tuple((ours != theirs).tolist()))
    if not any(differing.hits):
        unseen = differing.interval.high / float(theirs.mean())
        return Interval(1.0, max(0.0, 1 - unseen), 1 + unseen, len(ours))
    draws = np.random.default_rng(seed).integers(len(ours), size=(_DRAWS, len(ours)))
    ratios = ours[draws].mean(1) / np.maximum(theirs[draws].mean(1), 1 / len(ours))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(
        float(ours.mean() / theirs.mean()), float(low), float(high), len(ours)
    )


class WordCounts:
    """A baseline without a network: naive Bayes on the words of a question.

    Args:
        prompts: Questions to learn from.
        answers: The answer to each.

    Raises:
        ValueError: For no prompts, or answers that do not pair up.

    Taught in notebook 13.
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
        """Return the answer that the words of a question make likeliest."""
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
        parameters: Number of parameters; a tied matrix is counted once.
        weights: Bytes of the weights.
        cache: Bytes of keys and values for one token of one text.
        state: Bytes that are kept of a text of any length, as models with linear
            attention (Mamba, Qwen3-Next) do.
    """

    parameters: int
    weights: int
    cache: int
    state: int = 0

    def memory(self, *, texts: int, tokens: int) -> int:
        """Return the bytes of weights and cache.

        Args:
            texts: Texts that are answered at a time.
            tokens: Tokens of each text, question and answer.
        """
        return self.weights + texts * (tokens * self.cache + self.state)


def footprint(model: Any, *, dtype: torch.dtype | None = None) -> Footprint:
    """Count the bytes of a model in its tensors.

    Args:
        model: A causal model; it reads two tokens, then three. What it keeps of them
            and grows with the text is its cache, the rest its state.
        dtype: The precision to count in; ``None`` is the model's own.

    Raises:
        ValueError: If the model keeps nothing of what it has read.

    Taught in notebook 13.
    """
    size = (dtype or model.dtype).itemsize
    short, long = (_numbers_kept(model, tokens) for tokens in (2, 3))
    count, grown = parameter_count(model), long - short
    return Footprint(count, count * size, grown * size, (short - 2 * grown) * size)


def _numbers_kept(model: Any, tokens: int) -> int:
    """How many numbers a model keeps after so many tokens."""
    ids = torch.zeros((1, tokens), dtype=torch.long, device=reading_device(model))
    with eval_mode(model), torch.inference_mode():
        output = model(input_ids=ids, use_cache=True)
    # As attention calls it, Mamba, and RWKV.
    for name in ("past_key_values", "cache_params", "state"):
        kept = getattr(output, name, None)
        if kept is not None:
            return sum(tensor.numel() for tensor in _tensors(kept))
    raise ValueError(
        f"model is a {type(model).__name__}, which has no cache of what it has read; "
        "count its bytes with models.parameter_count"
    )


def _tensors(kept: Any) -> Iterator[torch.Tensor]:
    """All numbers in a cache, however it is built."""
    if isinstance(kept, torch.Tensor):
        if kept.is_floating_point():
            yield kept
        return
    if type(kept).__module__.startswith("transformers."):  # caches and their layers
        kept = vars(kept)
    if isinstance(kept, dict):
        kept = list(kept.values())
    if isinstance(kept, (list, tuple)):
        for part in kept:
            yield from _tensors(part)


@dataclass(frozen=True)
class Speed:
    """How fast two models answer the same questions, in turns.

    Attributes:
        student: The student's answers per second, round by round.
        teacher: The teacher's, in the same rounds.
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
    prompts: Sequence[Prompt],
    *,
    new_tokens: int = 4,
    rounds: int = 4,
    batch_size: int = 32,
) -> Speed:
    """Let both answer the same questions with the same number of tokens, in turns.

    In turns, because a machine that slows down then slows both. A first round is not
    counted.

    Args:
        student: The student's model and tokenizer, in the precision of the teacher.
        teacher: The teacher's model and tokenizer.
        prompts: Texts, which both read as they are; or conversations, which each
            reads in its own chat template.
        new_tokens: Tokens of every answer, even where a text would end before.
        rounds: Number of rounds that count, at least two.
        batch_size: Questions at a time.

    Raises:
        ValueError: If the precisions differ, or for fewer than two rounds.

    Taught in notebook 13.
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
    loaded: Loaded, prompts: Sequence[Prompt], new_tokens: int, batch_size: int
) -> float:
    model, tokenizer = loaded
    texts = as_texts(prompts, tokenizer)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    encoded.sort(key=len)
    _wait_for(model.device)
    began = time.perf_counter()
    for start in range(0, len(encoded), batch_size):
        generate_batch(
            model,
            tokenizer,
            encoded[start : start + batch_size],
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
        )
    _wait_for(model.device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- the verdict --------------------------------------------------------------------


@dataclass(frozen=True)
class StudentVerdict:
    """Whether a student is worth having; shows itself as one line in a notebook.

    Attributes:
        task: What was asked, in a few words.
        score: The student's score as a share of the teacher's.
        speed: How many times as fast as the teacher it is.
        size: Its bytes as a share of the teacher's, at equal precision.
        status: ``"worth having"``, ``"not worth having"`` or ``"undecided"``.
        short_of: The parts of the bar that it falls short of, or may fall short of:
            ``"score"``, ``"speed"``, ``"bytes"``.
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


def judge_student(
    task: str,
    *,
    score: Interval,
    speed: Interval,
    size: float,
    min_score: float = MIN_SCORE,
    min_speed: float = MIN_SPEED,
    max_bytes: float = MAX_BYTES,
) -> StudentVerdict:
    """Judge a student by all three measures at once.

    It is worth having if both intervals lie beyond the bar and it is small enough; not
    worth having if one lies below it, or it is too large; else that is undecided.

    Args:
        task: What was asked, in a few words.
        score: What :func:`score_ratio` returns.
        speed: What :attr:`Speed.ratio` is.
        size: The student's bytes by the teacher's, at equal precision.
        min_score: The least share of the teacher's score.
        min_speed: The least multiple of the teacher's speed.
        max_bytes: The largest share of the teacher's bytes.

    Returns:
        The verdict, with what it rests on.

    Taught in notebook 13.
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
    return StudentVerdict(
        task,
        score,
        speed,
        size,
        status,
        tuple(n for n, is_so in short.items() if is_so),
    )
