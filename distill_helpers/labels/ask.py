"""Labels that a teacher writes: asked for, paid for, and never lost.

:func:`write_labels` asks a teacher (:mod:`distill_helpers.labels.teachers`) for what is
missing, appends every answer to a file as it arrives, and stops before a budget is
exceeded. A second call, also after a kill, goes on where the first was cut off. What to
keep of the answers is decided by :mod:`distill_helpers.labels.filters`;
:func:`~distill_helpers.labels.rows.learn_answers` turns them into rows for
:class:`~distill_helpers.trainers.HardLabelTrainer`.

Taught in notebook 05. Paper: Kim and Rush 2016 (sequence-level distillation,
arXiv:1606.07947).
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import whole_characters
from distill_helpers.labels.budget import Budget
from distill_helpers.labels.messages import Prompt, asked_messages
from distill_helpers.labels.store import LabelFile, Stored, as_dataset
from distill_helpers.labels.teachers import (
    Action,
    Answer,
    Failure,
    LabelError,
    Request,
    Teacher,
    Tokens,
)
from distill_helpers.machine import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset

_LOGGER = logging.getLogger(__name__)
# How often a request is asked whose failures may have been paid for; a teacher repeats
# those that cost nothing by itself.
_TRIES = 6


@dataclass(frozen=True)
class LabelPlan:
    """What a call of :func:`write_labels` would do, or has left to do.

    Attributes:
        wanted: Answers asked for.
        stored: Those of them that are in the file already.
        missing: Those of them that are still to be asked for.
        in_doubt: Missing answers that were asked for once and never stored, because a
            run was killed; they may have been paid for, and will be asked again.
        tokens_spent: Tokens of all answers in the file, prompts included, and the most
            that those in doubt can have taken.
        tokens_ahead: Most tokens that the missing answers can take.
        tokens_expected: The likely number, if the answers are as long as those that
            are stored; without any, the most.
        cost_spent: The cost of those tokens in the currency of the teacher's price;
            ``None`` without one.
        cost_ahead: Most that the missing answers can cost.
        cost_expected: The likely cost.
    """

    wanted: int
    stored: int
    missing: int
    in_doubt: int
    tokens_spent: int
    tokens_ahead: int
    tokens_expected: int
    cost_spent: float | None
    cost_ahead: float | None
    cost_expected: float | None


def write_labels(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    path: str | Path,
    *,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    max_total_tokens: int | None = None,
    max_cost: float | None = None,
    concurrency: int | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Dataset:
    """Ask a teacher for answers, and store each one as it arrives.

    Args:
        teacher: The teacher that is asked.
        prompts: Strings (a user's turn each), or conversations as lists of
            ``{"role": …, "content": …}`` that end with the user's turn or a tool's
            result. Whatever else a message holds (``tool_calls``, ``name``, …) is
            asked too; but fields of ``None``, which ``datasets`` adds, count as
            missing, and half an emoji becomes U+FFFD.
        path: A ``.jsonl`` file. It may hold answers to other prompts too, which are
            left alone. What was asked for stands beside it in ``….asked``.
        samples: Answers per prompt; more than one needs a ``temperature``.
        max_new_tokens: Where an answer is cut off.
        temperature: The temperature of sampling; 0 is greedy.
        seed: Fixes what is sampled. Every answer has a seed of its own that follows
            from it.
        max_total_tokens: Ask for nothing that could bring the file's answers, prompts
            included, above this. Answers under way, and those that a killed run may
            have paid for, are counted at their worst.
        max_cost: The most money to spend, in the currency of the teacher's price.
        concurrency: Requests under way at a time; a local teacher's batch. ``None``
            is the teacher's own default.
        resume: ``False`` deletes the file first.
        progress: Show a bar with tokens, cost and time left.

    Returns:
        The stored answers to these prompts, in their order, one row for prompts that
        are the same: ``key``, ``messages``,
        ``sample``, ``answer``, ``reasoning`` (thoughts that a server tells apart from
        the answer; ``""`` if none), ``finish_reason``, ``prompt_tokens``,
        ``completion_tokens``, ``teacher``, ``temperature``, ``max_new_tokens``,
        ``seed``, ``licence``. Fewer than asked for if the budget ended or requests
        failed; the log says so, and another call asks for the rest.

    Raises:
        LabelError: If the teacher refuses everything (a wrong key or model name), or
            nothing has come through for a while. What was answered is stored.
        KeyboardInterrupt: After an interruption, once what is under way has arrived
            and is stored. A second interruption leaves at once.
        ValueError: For arguments out of range.

    Taught in notebook 05.
    """
    requests = _requests(teacher, prompts, samples, max_new_tokens, temperature, seed)
    at_once = teacher.concurrency if concurrency is None else concurrency
    if at_once < 1:
        raise ValueError(f"concurrency={at_once} must be at least 1")
    budget = Budget(teacher, max_total_tokens, max_cost)
    with LabelFile.open(Path(path), resume=resume) as file:
        work = _Work(requests, file.stored)
        missing = work.missing()
        # What a killed run had under way counts twice: it may have been paid for, and
        # is asked for again.
        budget.spend(file.stored.spent())
        if work.in_doubt():
            _LOGGER.warning(
                "%s: %d answers were under way when an earlier run ended; they may "
                "have been paid for, and are asked for again",
                path,
                work.in_doubt(),
            )
        bar = progress_bar(
            total=len(requests),
            initial=len(requests) - len(missing),
            unit="answer",
            desc=teacher.name,
            show=progress,
        )

        def show() -> None:
            # Shown with the bar's next redraw: one for each answer takes longer than
            # a small model's answers.
            bar.set_postfix_str(budget.words(), refresh=False)
            bar.update()

        with bar:
            failures = ask_all(
                teacher, missing, file, budget, at_once, lambda _: show()
            )
        found = work.found()
    if len(found) < len(requests):
        why = "requests failed; call again for the rest"
        if budget.ended:
            why = "the budget ends there; raise max_total_tokens or max_cost"
        if failures:
            why = f"{why}; the last failure: {failures[-1].reason}"
        _LOGGER.warning(
            "%s: %d of the answers asked for are missing: %s",
            path,
            len(requests) - len(found),
            why,
        )
    return as_dataset(found)


def plan_labels(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    path: str | Path,
    *,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> LabelPlan:
    """Estimate what :func:`write_labels` would ask for, without asking.

    Args:
        teacher: The teacher that would be asked; all else is the same as in
            :func:`write_labels`.
        prompts: Strings or conversations.
        path: The file, which need not exist.
        samples: Answers per prompt.
        max_new_tokens: Where an answer is cut off.
        temperature: The temperature of sampling; 0 is greedy.
        seed: Fixes what is sampled.

    Taught in notebook 05.
    """
    requests = _requests(teacher, prompts, samples, max_new_tokens, temperature, seed)
    work = _Work(requests, Stored.read(Path(path)))
    missing, seen = work.missing(), work.found()
    most = [
        Tokens(teacher.prompt_tokens(r.messages), r.max_new_tokens) for r in missing
    ]
    worst = likely = sum(most, Tokens())
    if seen:
        share = len(missing) / len(seen)
        likely = Tokens(
            round(sum(row["prompt_tokens"] for row in seen) * share),
            round(sum(row["completion_tokens"] for row in seen) * share),
        )
    spent = work.stored.spent()
    return LabelPlan(
        wanted=len(requests),
        stored=len(seen),
        missing=len(missing),
        in_doubt=work.in_doubt(),
        tokens_spent=spent.total,
        tokens_ahead=worst.total,
        tokens_expected=likely.total,
        cost_spent=spent.cost(teacher.price),
        cost_ahead=worst.cost(teacher.price),
        cost_expected=likely.cost(teacher.price),
    )


@dataclass(frozen=True)
class _Work:
    """What is asked for, by key, and what a file holds of it."""

    requests: dict[str, Request]
    stored: Stored

    def missing(self) -> list[Request]:
        return [r for key, r in self.requests.items() if key not in self.stored.answers]

    def found(self) -> list[dict[str, Any]]:
        answers = self.stored.answers
        return [answers[key] for key in self.requests if key in answers]

    def in_doubt(self) -> int:
        return sum(bool(self.stored.doubts.get(r.key)) for r in self.missing())


def _requests(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> dict[str, Request]:
    """Requests by key; a prompt that comes twice is asked once."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; pass a list of prompts")
    if samples < 1 or max_new_tokens < 1:
        raise ValueError(
            f"samples={samples} and max_new_tokens={max_new_tokens} must be at least 1"
        )
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must not be negative; 0 is greedy")
    if samples > 1 and temperature == 0:
        raise ValueError(
            f"samples={samples} with temperature=0 would be the same answer "
            f"{samples} times; choose a temperature, such as 0.7"
        )
    identity = teacher.identity()
    found = {}
    for number, prompt in enumerate(prompts):
        messages = asked_messages(prompt, number)
        for sample in range(samples):
            facts = {
                "teacher": identity,
                "messages": messages,
                "sample": sample,
                "max_new_tokens": max_new_tokens,
                "temperature": float(temperature),
                # Greedy answers do not depend on it.
                "seed": seed if temperature else 0,
            }
            text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
            key = hashlib.sha256(text.encode()).hexdigest()[:32]
            found[key] = Request(
                key=key,
                messages=messages,
                sample=sample,
                max_new_tokens=max_new_tokens,
                temperature=float(temperature),
                seed=int(key[:8], 16) >> 1,  # servers take 31 bits
            )
    return found


def ask_all(
    teacher: Teacher,
    missing: list[Request],
    file: LabelFile,
    budget: Budget,
    concurrency: int,
    stored: Callable[[Request], None],
) -> list[Failure]:
    """Ask for all that is missing and affordable; returns what failed for good.

    Args:
        teacher: Who is asked.
        missing: What is not in the file.
        file: Takes the answers, and notes what is asked for.
        budget: Nothing is asked for that could bring it above its limits.
        concurrency: Requests under way at a time.
        stored: Called after each answer.

    Raises:
        LabelError: If the teacher refuses everything, or nothing has come through for
            a while. What was answered is stored.
        KeyboardInterrupt: After an interruption, once what is under way is stored.
    """
    for request in missing:
        budget.worst(request)  # refuses what cannot be written, before any is asked
    waiting = teacher.order(missing)[::-1]
    tries: Counter[str] = Counter()
    failures: list[Failure] = []
    silent = skipped = 0
    stop: Failure | None = None

    def take() -> Request | None:
        if not waiting or stop is not None or interrupted.is_set():
            return None
        if not budget.admits(waiting[-1]):
            return None
        request = waiting.pop()
        if teacher.charges:
            file.mark(request, budget.worst(request))
        budget.reserve(request)
        return request

    with (
        _until_second_interrupt() as interrupted,
        closing(teacher.answers(take, concurrency)) as results,
    ):
        for request, result in results:
            budget.settle(request, result)
            if isinstance(result, Answer):
                silent = skipped = 0
                file.append(_row(teacher, request, result))
                stored(request)
                continue
            if teacher.charges and not result.paid:
                file.unmark(request)
            tries[request.key] += 1
            again = result.paid and result.action is Action.RETRY
            if again and tries[request.key] < _TRIES:
                waiting.append(request)
            else:
                failures.append(result)
            if result.action is Action.SKIP:
                skipped += 1
            else:
                silent += 1
            none_comes = silent >= max(8, 2 * concurrency) or skipped >= 100
            if result.action is Action.STOP or none_comes:
                stop = stop or result
    if interrupted.is_set():
        raise KeyboardInterrupt
    if stop is not None:
        raise LabelError(
            f"{teacher.name}: {stop.reason}. {len(file.stored.answers)} answers are "
            f"stored in {file.path}; call again to go on"
        )
    return failures


@contextmanager
def _until_second_interrupt() -> Iterator[threading.Event]:
    """Turn a first Ctrl-C into a flag, so that nothing under way is lost."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals go elsewhere
        return

    def note(*_: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        _LOGGER.warning(
            "interrupted: waiting for the answers under way; interrupt again to leave "
            "them behind"
        )

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _row(teacher: Teacher, request: Request, answer: Answer) -> dict[str, Any]:
    facts = asdict(request) | asdict(answer)
    # A cut-off answer may end in half a character, which no file can hold.
    facts["answer"] = whole_characters(facts.pop("text"))
    facts["reasoning"] = whole_characters(facts["reasoning"])
    facts["messages"] = list(facts["messages"])
    facts |= facts.pop("more")
    return facts | {"teacher": teacher.name, "licence": teacher.licence}
