"""Labels that a teacher writes: asked for, paid for, and never lost.

A *teacher* answers prompts: :class:`LocalTeacher` is a model in this process,
:class:`~distill_helpers.api_teacher.ApiTeacher` any OpenAI-compatible server.
:func:`write_labels` asks it for what is missing, appends every answer to a file as it
arrives, and stops before a budget is exceeded. A second call, also after a kill, goes
on where the first was cut off. What to keep of the answers is decided by
:mod:`distill_helpers.label_filters`; :func:`learn_answers` turns them into rows for
:class:`~distill_helpers.trainers.HardLabelTrainer`.

Taught in notebook 04. Paper: Kim and Rush 2016 (sequence-level distillation,
arXiv:1606.07947).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tqdm import tqdm

from distill_helpers.data import DataError, encode_answers, whole_characters
from distill_helpers.generation import closing_tokens, write_batch
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import public_name, weights_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOGGER = logging.getLogger(__name__)
# Of a request whose failures may have been paid for; others are the teacher's affair.
_TRIES = 6

Message: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | Sequence[Message]

# Who may speak last in a prompt: an answer to them is what is asked for.
_ASKING = ("user", "tool", "function")
# Types of parts of a content, by their beginning.
_MEDIA = ("image", "audio", "video", "file")
_STAND_IN = "An-answer-that-nobody-gives"
# Variables of chat templates that switch the thoughts of reasoning models off.
_NO_THOUGHTS: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False},
    {"thinking": False},
)


class LabelError(RuntimeError):
    """The teacher cannot be asked; the message says why. Answers so far are stored."""


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    Attributes:
        key: Hash of everything below and of the teacher's identity.
        messages: The conversation so far, with all that its messages hold; the last
            turn is the user's, or a tool's result.
        sample: Number of the answer among those to one prompt.
        max_new_tokens: Where an answer is cut off.
        temperature: 0 is greedy.
        seed: Of this answer alone.
    """

    key: str
    messages: tuple[Message, ...]
    sample: int
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: Without special tokens.
        finish_reason: ``"stop"`` if the teacher ended by itself; ``"length"`` if it
            was cut off.
        prompt_tokens: As the teacher counts.
        completion_tokens: As the teacher counts.
        reasoning: What a server tells of the thoughts before the answer, apart from
            it; ``""`` if nothing.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    Attributes:
        reason: A sentence.
        fatal: Whether every other request would fail alike.
        paid: Whether the teacher may have worked for it all the same. Such a request
            is asked again a few times, if the budget admits it once more.
        alone: Whether the fault lies with this request, and others may well succeed.
    """

    reason: str
    fatal: bool = False
    paid: bool = False
    alone: bool = False


class Teacher(Protocol):
    """Something that answers; see :class:`LocalTeacher`."""

    name: str
    licence: str
    price: tuple[float, float] | None
    charges: bool
    concurrency: int

    def identity(self) -> dict[str, Any]:
        """What makes its answers other than another teacher's."""

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, at the most."""

    def order(self, requests: list[Request]) -> list[Request]:
        """The requests in the order that suits the teacher."""

    def answers(
        self, take: Callable[[], Request | None], concurrency: int
    ) -> Generator[tuple[Request, Answer | Failure], None, None]:
        """Take requests and answer them, in any order.

        Args:
            take: Gives the next request, or ``None`` if there is none that may be
                asked now; to be called again after each answer.
            concurrency: Requests under way at a time.
        """


@dataclass(frozen=True)
class LabelPlan:
    """What a call of :func:`write_labels` would do, or has left to do.

    Attributes:
        wanted: Answers asked for.
        stored: Of these, already in the file.
        missing: Of these, still to be asked for.
        in_doubt: Asked for once and never stored, because a run was killed; they may
            have been paid for, and will be asked again.
        tokens_spent: Of all answers in the file, prompts included, and the most that
            those in doubt can have taken.
        tokens_ahead: Most tokens that the missing answers can take.
        tokens_expected: The likely number, if the answers are as long as those that
            are stored; without any, the most.
        cost_spent: In the currency of the teacher's price; ``None`` without one.
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


class LocalTeacher:
    """A causal language model in this process.

    Args:
        model: Where it is; answers are read in eval mode.
        tokenizer: Of the model. With a chat template, prompts are put into it;
            without one, a prompt is a string that the model goes on from.
        licence: Of the answers, in your words; stored with each.
        concurrency: Prompts per batch.
        template_options: Further variables of the chat template, such as
            ``{"enable_thinking": False}``.
    """

    price: tuple[float, float] | None = None
    charges = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        licence: str = "",
        concurrency: int = 32,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = public_name(model) or type(model).__name__
        self.licence = licence
        self.concurrency = concurrency
        self.template_options = dict(template_options or {})

    def identity(self) -> dict[str, Any]:
        """Its weights and chat template."""
        return {
            "name": self.name,
            "weights": weights_hash(self.model),
            "chat_template": str(self.tokenizer.chat_template or ""),
            "template_options": self.template_options,
        }

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, exactly."""
        return len(self._ids(messages))

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        return prompt_ids(messages, self.tokenizer, self.template_options)

    def order(self, requests: list[Request]) -> list[Request]:
        """Longest first: batches need little padding, and memory fails early."""
        return sorted(requests, key=lambda r: -self.prompt_tokens(r.messages))

    def answers(
        self, take: Callable[[], Request | None], concurrency: int
    ) -> Generator[tuple[Request, Answer | Failure], None, None]:
        """Answer in batches; see :class:`Teacher`."""
        while True:
            batch: list[Request] = []
            while len(batch) < concurrency and (request := take()) is not None:
                batch.append(request)
            if not batch:
                return
            prompts = [self._ids(request.messages) for request in batch]
            written = write_batch(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=batch[0].max_new_tokens,
                temperature=batch[0].temperature,
                seeds=[request.seed for request in batch],
            )
            for request, prompt, found in zip(batch, prompts, written, strict=True):
                text = str(self.tokenizer.decode(found.ids, skip_special_tokens=True))
                reason = "stop" if found.ended else "length"
                yield request, Answer(text, reason, len(prompt), len(found.ids))


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """A prompt's token ids, up to where the answer begins.

    In the tokenizer's chat template; without one, one user's turn as it is.
    """
    text = prompt_text(messages, tokenizer, template_options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError("a prompt is empty; a model cannot go on from nothing")
    return ids


def prompt_text(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """A prompt as the model reads it, up to where the answer begins.

    Raises:
        ValueError: If the tokenizer's chat template cannot write the conversation, or
            leaves out or garbles what is in it: tool calls, contents in parts.
    """
    asked = _cleaned(messages)
    options = template_options or {}
    if tokenizer.chat_template:
        text = _rendered(asked, tokenizer, options, add_generation_prompt=True)
        _check_nothing_is_lost(asked, text, tokenizer, options)
        return text
    if len(asked) > 1:
        raise ValueError(
            f"the tokenizer has no chat template, and a prompt has {len(asked)} "
            "messages; use a chat model, or prompts that are strings"
        )
    content = asked[0].get("content")
    if not isinstance(content, str):
        raise ValueError(
            f"the tokenizer has no chat template, and a prompt's content is no string: "
            f"{content!r:.80}; use a chat model, or prompts that are strings"
        )
    return content


def _rendered(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    **more: Any,
) -> str:
    from jinja2 import TemplateError

    try:
        text: Any = tokenizer.apply_chat_template(
            list(messages), tokenize=False, **more, **options
        )
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"the chat template cannot write a conversation of the turns "
            f"{[message['role'] for message in messages]} ({error}); it may not know "
            "tool calls or contents in parts: change the messages, the template or "
            "template_options"
        ) from None
    return whole_characters(str(text))


def _check_nothing_is_lost(
    messages: tuple[Message, ...],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> None:
    """Refuse what a template drops in silence, or writes as Python writes it."""
    for place, message in enumerate(messages):
        content = message.get("content", "")
        others: list[tuple[str, Any]] = [
            (name, _changed(message[name], key))
            for name in ("tool_calls", "function_call")
            for key in ("name", "arguments")
            if name in message
        ]
        if message["role"] in ("tool", "function") and isinstance(content, str):
            others.append(("content", f"{content} 1"))
        for name, other in others:
            turns = list(messages)
            turns[place] = message | {name: other}
            if turns[place] != message and text == _rendered(
                turns, tokenizer, options, add_generation_prompt=True
            ):
                raise ValueError(
                    f"the chat template leaves {name} of the {message['role']}'s turn "
                    f"out of a prompt, at least in part ({message[name]!r:.80}), so "
                    "the model would not see it; use a model whose template knows "
                    "tools, or prompts without tool_calls and their results"
                )
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"a message's content has the part {part!r:.80}, which is no text; "
                    "a model of text cannot read it, so leave it out"
                )
            raw = str(part) in text or json.dumps(part, ensure_ascii=False) in text
            if raw or part["text"].strip() not in text:
                raise ValueError(
                    "the chat template does not know a content that is a list of "
                    "parts; join the parts' texts to one string"
                )


def _changed(calls: Any, key: str) -> Any:
    """Tool calls with another value wherever one has the key."""
    if isinstance(calls, list):
        return [_changed(call, key) for call in calls]
    if not isinstance(calls, dict):
        return calls
    other = {"name": "another", "arguments": {"another": 1}}[key]
    return {
        name: (json.dumps(other) if key != "name" and isinstance(value, str) else other)
        if name == key
        else _changed(value, key)
        for name, value in calls.items()
    }


# --- writing ------------------------------------------------------------------------


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
        teacher: Whom to ask.
        prompts: Strings (a user's turn each), or conversations as lists of
            ``{"role": …, "content": …}`` that end with the user's turn or a tool's
            result. Whatever else a message holds (``tool_calls``, ``name``, …) is
            asked too; but fields of ``None``, which ``datasets`` adds, count as
            missing, and half an emoji becomes U+FFFD.
        path: A ``.jsonl`` file. It may hold answers to other prompts too, which are
            left alone. What was asked for stands beside it in ``….asked``.
        samples: Answers per prompt; more than one needs a ``temperature``.
        max_new_tokens: Where an answer is cut off.
        temperature: 0 is greedy.
        seed: Of sampling. Every answer has a seed of its own that follows from it.
        max_total_tokens: Ask for nothing that could bring the file's answers, prompts
            included, above this. Answers under way, and those that a killed run may
            have paid for, are counted at their worst.
        max_cost: The same for money; needs a teacher with a price.
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

    Taught in notebook 04.
    """
    requests = _requests(teacher, prompts, samples, max_new_tokens, temperature, seed)
    at_once = teacher.concurrency if concurrency is None else concurrency
    _check_budget(teacher, max_total_tokens, max_cost, at_once)
    with _LabelFile.open(Path(path), resume=resume) as file:
        missing = [r for r in requests.values() if r.key not in file.answers]
        budget = _Budget(teacher, file, max_total_tokens, max_cost)
        again = sum(bool(file.doubts.get(request.key)) for request in missing)
        if again:
            _LOGGER.warning(
                "%s: %d answers were under way when an earlier run ended; they may "
                "have been paid for, and are asked for again",
                path,
                again,
            )
        bar = tqdm(
            total=len(requests),
            initial=len(requests) - len(missing),
            unit="answer",
            desc=teacher.name,
            disable=not progress,
        )
        with bar:
            failures = _ask(teacher, missing, file, budget, at_once, bar)
        found = [file.answers[key] for key in requests if key in file.answers]
    _report(path, len(requests) - len(found), failures, budget)
    return _as_dataset(found)


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
        teacher: As there, and so are the others.
        prompts: See there.
        path: See there; need not exist.
        samples: See there.
        max_new_tokens: See there.
        temperature: See there.
        seed: See there.
    """
    requests = _requests(teacher, prompts, samples, max_new_tokens, temperature, seed)
    answers, doubts = _read(Path(path))
    missing = [r for r in requests.values() if r.key not in answers]
    most = [(teacher.prompt_tokens(r.messages), r.max_new_tokens) for r in missing]
    worst = (sum(a for a, _ in most), sum(b for _, b in most))
    seen = [answers[key] for key in requests if key in answers]
    likely = worst
    if seen:
        share = len(missing) / len(seen)
        likely = (
            round(sum(row["prompt_tokens"] for row in seen) * share),
            round(sum(row["completion_tokens"] for row in seen) * share),
        )
    spent = _spent(answers.values(), doubts)
    return LabelPlan(
        wanted=len(requests),
        stored=len(seen),
        missing=len(missing),
        in_doubt=sum(bool(doubts.get(request.key)) for request in missing),
        tokens_spent=sum(spent),
        tokens_ahead=sum(worst),
        tokens_expected=sum(likely),
        cost_spent=_cost(teacher, spent),
        cost_ahead=_cost(teacher, worst),
        cost_expected=_cost(teacher, likely),
    )


def read_labels(path: str | Path) -> Dataset:
    """Every answer of a file that :func:`write_labels` wrote, in its order.

    Raises:
        DataError: If there is no such file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; write_labels makes it")
    answers, _ = _read(path)
    if not answers:
        raise DataError(f"{path} holds no answer yet; call write_labels")
    return _as_dataset(list(answers.values()))


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
        messages = _messages(prompt, number)
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


def _messages(prompt: Prompt, number: int) -> tuple[Message, ...]:
    """What is asked, key for key; ``number`` is the prompt's, for what is refused."""
    if isinstance(prompt, str):
        return ({"role": "user", "content": whole_characters(prompt)},)
    try:
        messages = _cleaned(prompt)
    except ValueError as error:
        raise ValueError(f"prompts[{number}]: {error}") from None
    last = messages[-1]["role"] if messages else "nobody"
    if last not in _ASKING:
        raise ValueError(
            f"prompts[{number}] has the messages {messages!r:.300}, and {last} speaks "
            "last; the last one must be the user's, or a tool's result. An answer that "
            "goes on from words of the assistant's (a prefill) cannot be asked for: "
            "leave its turn out"
        )
    return messages


def _cleaned(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages as they are asked: of JSON's kinds, without ``None``, whole characters.

    ``datasets`` gives every message all fields of all messages, ``None`` where there
    was none; what was asked then must be the same conversation still.
    """
    found = tuple(_json(message) for message in messages)
    for message in found:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"the message {message!r:.80} must be a dictionary whose role is a "
                "string"
            )
        content = message.get("content", "")
        speaks = "content" in message or message["role"] == "assistant"
        if not speaks or len(message) == 1:
            raise ValueError(
                f"the message {message!r:.80} has no content; leave it out, or write "
                '"" for a result that is empty'
            )
        for part in content if isinstance(content, list) else ():
            kind = str(part.get("type", "")) if isinstance(part, dict) else ""
            if kind.removeprefix("input_").startswith(_MEDIA):
                raise ValueError(
                    f"a message's content has a part of type {kind!r}, which no "
                    "student of text can read, and whose tokens no budget can bound; "
                    "leave it out"
                )
        if not isinstance(content, str | list):
            raise ValueError(
                f"the {message['role']}'s message has the content {content!r:.80}; it "
                "must be a string, or a list of parts"
            )
    return found


def _json(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            whole_characters(str(key)): _json(one)
            for key, one in value.items()
            if one is not None
        }
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    raise ValueError(
        f"a message holds {value!r:.80} of type {type(value).__name__}, which JSON has "
        "no words for; write it as text"
    )


def _check_budget(
    teacher: Teacher,
    max_total_tokens: int | None,
    max_cost: float | None,
    concurrency: int,
) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be at least 1")
    for name, value in (("max_total_tokens", max_total_tokens), ("max_cost", max_cost)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value} must be positive, or None for no limit")
    if max_cost is not None and teacher.price is None:
        raise ValueError(
            f"max_cost={max_cost} needs a price: pass price=(per million prompt "
            "tokens, per million answer tokens) to the teacher, or use "
            "max_total_tokens"
        )


def _ask(
    teacher: Teacher,
    missing: list[Request],
    file: _LabelFile,
    budget: _Budget,
    concurrency: int,
    bar: tqdm[Any],
) -> list[Failure]:
    """Ask for all that is missing and affordable; what failed for good."""
    waiting = teacher.order(missing)[::-1]
    tries: Counter[str] = Counter()
    failures: list[Failure] = []
    silent = alone = 0
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
                silent = 0
                file.append(_row(teacher, request, result))
                bar.update()
                bar.set_postfix_str(budget.words())
                continue
            if teacher.charges and not result.paid:
                file.unmark(request)
            tries[request.key] += 1
            if result.paid and tries[request.key] < _TRIES:
                waiting.append(request)
            else:
                failures.append(result)
            silent += not result.alone
            alone += result.alone
            if result.fatal or silent >= max(8, 2 * concurrency) or alone >= 100:
                stop = stop or result
    if interrupted.is_set():
        raise KeyboardInterrupt
    if stop is not None:
        raise LabelError(
            f"{teacher.name}: {stop.reason}. {len(file.answers)} answers are stored in "
            f"{file.path}; call again to go on"
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
    return facts | {"teacher": teacher.name, "licence": teacher.licence}


def _report(
    path: str | Path, unanswered: int, failures: list[Failure], budget: _Budget
) -> None:
    if unanswered:
        why = "requests failed; call again for the rest"
        if budget.ended:
            why = "the budget ends there; raise max_total_tokens or max_cost"
        if failures:
            why = f"{why}; the last failure: {failures[-1].reason}"
        _LOGGER.warning(
            "%s: %d of the answers asked for are missing: %s", path, unanswered, why
        )


def _as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """A dataset whose messages are read as they were asked."""
    from datasets import Dataset, Features  # heavy: not at import

    plain = {"role": str, "content": str}
    if all(
        {k: type(v) for k, v in m.items()} == plain for r in rows for m in r["messages"]
    ):
        return Dataset.from_list(rows)
    try:
        from datasets import Json, List
    except ImportError:
        raise ValueError(
            "messages with tool calls or contents in parts need a newer datasets "
            "package; run: pip install -U datasets"
        ) from None
    # Else every message would get the fields of all, and contents one type.
    others = [{k: v for k, v in row.items() if k != "messages"} for row in rows]
    known = Dataset.from_list(others).features | {"messages": List(Json())}
    return Dataset.from_list(rows, features=Features({k: known[k] for k in rows[0]}))


# --- learning -----------------------------------------------------------------------


def own_labels(prompts: Sequence[Prompt], answers: Sequence[str]) -> Dataset:
    """Answers that you have already, in the columns that :func:`learn_answers` reads.

    Args:
        prompts: As in :func:`write_labels`.
        answers: One for each; half an emoji in it becomes U+FFFD.
    """
    if isinstance(prompts, str) or isinstance(answers, str):
        raise ValueError("prompts and answers are lists, one answer per prompt")
    if len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: one answer per prompt"
        )
    for number, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise ValueError(
                f"answers[{number}] is {answer!r:.80}, no string; leave it out, with "
                "its prompt"
            )
    return _as_dataset(
        [
            {
                "messages": list(_messages(prompt, number)),
                "answer": whole_characters(answer),
            }
            for number, (prompt, answer) in enumerate(
                zip(prompts, answers, strict=True)
            )
        ]
    )


def learn_answers(
    labels: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Rows in which a student learns the answers, and nothing else.

    The prompt stands in the *student's* chat template and is labelled ``-100``. The
    answer and the token that ends the turn are learned, or the student would never
    stop. What a template puts behind that token is left out.

    So that a student learns what it will write, the prompt's ids are those of
    :func:`prompt_ids`, and the answer goes on from them as
    :func:`~distill_helpers.data.encode_answers` says, whatever the tokenizer puts
    before a text. Where the answer begins in a chat template, and what ends it, is
    found out row by row: the conversation is written with and without the answer, and
    the one must begin with the other and go on, but for white space, with the answer as
    given or without the white space around it. A template that does otherwise is
    refused, with what it did; but thoughts up to ``</think>`` in an answer, which
    templates of reasoning models rewrite or take out, are learned as given if the
    prompt or the answer opens them. Thoughts in the column ``reasoning`` are not
    learned; write them into the answers for that.

    Of an answer that is empty, or white space that the template trims, the end alone
    is learned, and the log says how often: the student learns to say nothing there.
    :func:`~distill_helpers.label_filters.empty` leaves such rows out.

    Args:
        labels: With ``messages`` and ``answer``, such as :func:`write_labels` returns.
        tokenizer: Of the student.
        max_length: Rows with more tokens are left out, and the log says how many: a
            cut-off answer would teach to stop anywhere. ``None`` keeps all.
        template_options: Further variables of the chat template, such as
            ``{"enable_thinking": False}``; to be the same at inference.

    Returns:
        ``input_ids`` and ``labels`` (unshifted), for
        :class:`~distill_helpers.trainers.HardLabelTrainer`, in the given order.

    Raises:
        DataError: If nothing is left.
        ValueError: If a row cannot be written, with its number and the reason.
    """
    from datasets import Dataset

    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token: the student could not learn to "
            "stop; set tokenizer.eos_token"
        )
    turns = []
    for number, row in enumerate(labels):
        try:
            turns.append(
                _turn(row["messages"], row["answer"], tokenizer, template_options or {})
            )
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    empty = sum(not turn.answer for turn in turns)
    if empty:
        _LOGGER.warning(
            "%d of %d answers are empty, and the student learns to end at once there; "
            "label_filters.empty leaves them out",
            empty,
            len(turns),
        )
    parts = encode_answers(
        [turn.prompt for turn in turns], [turn.answer for turn in turns], tokenizer
    )
    rows = []
    for (prompt, answer), turn in zip(parts, turns, strict=True):
        learned = answer + turn.closing
        if max_length is None or len(prompt) + len(learned) <= max_length:
            rows.append(
                {
                    "input_ids": prompt + learned,
                    "labels": [IGNORE_INDEX] * len(prompt) + learned,
                }
            )
    left_out = len(labels) - len(rows)
    if left_out:
        _LOGGER.warning(
            "%d of %d answers are longer than max_length=%s with their prompts, and "
            "are left out",
            left_out,
            len(labels),
            max_length,
        )
    if not rows:
        raise DataError(
            f"labels holds {len(labels)} answers and none is left to learn; "
            f"max_length={max_length} may be too small"
        )
    return Dataset.from_list(rows)


@dataclass(frozen=True)
class _Turn:
    """An answer where a model will write it.

    Attributes:
        prompt: Text up to where the model begins.
        answer: Text that it writes, with what the template puts around it.
        closing: Ids that end its turn.
    """

    prompt: str
    answer: str
    closing: list[int]


def _turn(
    messages: Sequence[Message],
    answer: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> _Turn:
    if not isinstance(answer, str):
        raise ValueError(
            f"the answer {answer!r:.80} is no string; leave the row out, with a filter "
            "of your own or label_filters.empty"
        )
    answer = whole_characters(answer)
    asked = _cleaned(messages)
    prompt = prompt_text(asked, tokenizer, options)
    if not tokenizer.chat_template:
        return _Turn(prompt, answer, [tokenizer.eos_token_id])
    found = _behind(asked, prompt, answer, tokenizer, options)
    if found is None and "</think>" in answer:
        found = _with_thoughts(asked, prompt, answer, tokenizer, options)
    if found is None:
        raise ValueError(_otherwise(asked, prompt, answer, tokenizer, options))
    text, after = found
    between, closing = _parted(after, tokenizer)
    if not text:  # the end alone
        return _Turn(prompt, "", closing[-1:])
    return _Turn(prompt, text + between, closing)


def _behind(
    messages: tuple[Message, ...],
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> tuple[str, str] | None:
    """What a template writes behind a prompt: the answer's text, and what follows.

    ``None`` if that is another prompt or another answer.
    """
    # An empty text is everywhere, so another one shows the place.
    told = answer if answer.strip() else "."
    whole = _with_answer(messages, told, tokenizer, options)
    if not whole.startswith(prompt):
        return None
    rest = whole.removeprefix(prompt)
    told = told if told in rest else told.strip()  # as many templates do
    before, found, after = rest.partition(told)
    if not found or before.strip():
        return None
    return (before + told if answer.strip() else ""), after


def _with_answer(
    messages: tuple[Message, ...],
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> str:
    turn = {"role": "assistant", "content": answer}
    return _rendered([*messages, turn], tokenizer, options)


def _with_thoughts(
    messages: tuple[Message, ...],
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> tuple[str, str] | None:
    """The same for thoughts and an answer, of which the template shows the answer."""
    opened = prompt.rstrip().endswith("<think>")
    if opened == answer.lstrip().startswith("<think>"):
        return None  # opened twice, or by nobody
    thoughts, mark, said = answer.rpartition("</think>")
    if not said.strip():
        return None
    # In another answer's place the end is told from what the answer says.
    other = thoughts + mark + said.replace(said.strip(), _STAND_IN)
    before, found, after = _with_answer(messages, other, tokenizer, options).rpartition(
        _STAND_IN
    )
    whole = _with_answer(messages, answer, tokenizer, options)
    shared = prompt.rstrip().removesuffix("<think>")
    if not found or not before.startswith(shared):
        return None
    if whole != before + said.strip() + after:
        return None
    return answer.rstrip(), after  # which begins with the space that is kept


def _parted(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """What follows an answer: text that belongs to its turn, and the ids that end it.

    The text, such as a space, continues the answer and is encoded with it.
    """
    closing = closing_tokens(after, tokenizer) or [tokenizer.eos_token_id]
    between, end, _ = after.partition(str(tokenizer.decode(closing[-1:])))
    return (between, closing[-1:]) if end and len(closing) > 1 else ("", closing)


def _otherwise(
    messages: tuple[Message, ...],
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> str:
    """Why a row is refused: what the template did, and what would help."""
    whole = _with_answer(messages, answer, tokenizer, options)
    same = len(prompt)
    while not whole.startswith(prompt[:same]):
        same -= 1
    did = f"goes on with {_quoted(whole[same:])}, and not with the answer as given"
    if same < len(prompt):
        did = f"writes {_quoted(whole[same:])} in the place of {_quoted(prompt[same:])}"
    helps = "use a template that only appends (template_options may help)"
    for off in _NO_THOUGHTS:
        without = {**options, **off}
        try:
            shut = prompt_text(messages, tokenizer, without)
            found = _behind(messages, shut, answer, tokenizer, without)
        except ValueError:
            continue
        if found is not None:
            helps = (
                f"pass template_options={off!r}, here and at inference, for answers "
                "without thoughts"
            )
            break
    if "<think>" in prompt[-20:] + whole[same:]:
        opened = prompt.rstrip().endswith("<think>")
        thoughts = "…</think>" if opened else "<think>…</think>"
        helps += f"; or keep the thoughts, in answers that are {thoughts!r} + answer"
    return (
        "the chat template writes a prompt or an answer differently once both are "
        f"there, so where the answer begins cannot be told: behind "
        f"{_quoted(prompt[:same][-40:])} it {did}; {helps}"
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")


# --- the file and the budget --------------------------------------------------------


class _LabelFile:
    """An append-only file of answers, with a journal of what was asked for.

    One line of JSON per answer, flushed to the disk before anything else happens. The
    journal has a line for every request before it goes out, so that after a kill it is
    known which answers were under way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers, self.doubts = _read(path)
        self._file = path.open("ab")
        self._journal = _journal(path).open("ab")

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool) -> Iterator[_LabelFile]:
        from filelock import FileLock, Timeout

        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise LabelError(
                f"another process is writing to {path}; wait for it, or choose "
                "another path"
            ) from None
        with held:
            _check_ours(path)
            for part in (path, _journal(path)):
                if not resume:
                    part.unlink(missing_ok=True)
                _mend_last_line(part)
            file = cls(path)
            with file._file, file._journal:
                yield file

    def mark(self, request: Request, worst: tuple[int, int]) -> None:
        """Note that a request is about to go out, and what it can cost."""
        self._write(self._journal, f"+{request.key} {worst[0]} {worst[1]}")

    def unmark(self, request: Request) -> None:
        """Note that it came to nothing, and cost nothing."""
        self._write(self._journal, f"-{request.key}")

    def append(self, row: dict[str, Any]) -> None:
        """Store an answer."""
        self._write(self._file, json.dumps(row, ensure_ascii=False))
        self.answers[row["key"]] = row

    def _write(self, file: Any, line: str) -> None:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".asked")


def _check_ours(path: Path) -> None:
    if path.is_file() and path.stat().st_size and not _journal(path).is_file():
        raise DataError(
            f"{path} was not written by write_labels ({_journal(path).name} is not "
            "beside it); choose another path"
        )


def _mend_last_line(path: Path) -> None:
    """End the last line if it is whole, and drop what a kill left of one."""
    if not path.is_file():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return
    with path.open("r+b") as file:
        if _is_row(data[end:]):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(end)


def _is_row(line: bytes | str) -> bool:
    try:
        return "key" in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


Doubts: TypeAlias = dict[str, list[tuple[int, int]]]


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], Doubts]:
    """Stored answers by key; and per key the worst of what was asked for in vain."""
    answers = {}
    if path.is_file():
        for number, line in enumerate(_lines(path), 1):
            if not _is_row(line):
                raise DataError(
                    f"{path}, line {number} is no stored answer: {line[:60]!r}; mend "
                    "or delete that line, nothing else in the file is lost"
                )
            row = json.loads(line)
            row.setdefault("reasoning", "")  # files of old have none
            answers[row["key"]] = row
    doubts: Doubts = defaultdict(list)
    if _journal(path).is_file():
        for line in _lines(_journal(path)):
            key, *worst = line[1:].split()
            if line[0] == "+":
                doubts[key].append((int(worst[0]), int(worst[1])))
            elif doubts[key]:
                doubts[key].pop()
    for key in answers:  # the try that was answered is no doubt
        if doubts[key]:
            doubts[key].pop()
    return answers, doubts


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    # JSON escapes line feeds, and only those end a line here.
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]


def _spent(rows: Iterable[Mapping[str, Any]], doubts: Doubts) -> tuple[int, int]:
    """Prompt and answer tokens of stored answers, and at the most of those in doubt."""
    spent = [(row["prompt_tokens"], row["completion_tokens"]) for row in rows]
    spent += [worst for tries in doubts.values() for worst in tries]
    return sum(one for one, _ in spent), sum(two for _, two in spent)


def _cost(teacher: Teacher, tokens: tuple[int, int]) -> float | None:
    if teacher.price is None:
        return None
    return sum(n * price for n, price in zip(tokens, teacher.price, strict=True)) / 1e6


class _Budget:
    """Counts what is spent, and reserves the worst of what is under way."""

    def __init__(
        self,
        teacher: Teacher,
        file: _LabelFile,
        max_total_tokens: int | None,
        max_cost: float | None,
    ) -> None:
        self.teacher = teacher
        self.max_tokens = max_total_tokens
        self.max_cost = max_cost
        self.ended = False
        # What a killed run had under way may have been paid for, and is asked for
        # again: it counts twice.
        self._spent = _spent(file.answers.values(), file.doubts)
        self._reserved = (0, 0)
        self._known: dict[str, tuple[int, int]] = {}

    def admits(self, request: Request) -> bool:
        """Whether the budget holds even if this and all under way are at their worst.

        It may hold later, when those under way turn out cheaper.
        """
        total = _sum(_sum(self._spent, self._reserved), self.worst(request))
        over = self.max_tokens is not None and sum(total) > self.max_tokens
        cost = _cost(self.teacher, total)
        if self.max_cost is not None and cost is not None:
            over = over or cost > self.max_cost
        self.ended = over
        return not over

    def reserve(self, request: Request) -> None:
        """Set the worst case aside."""
        self._reserved = _sum(self._reserved, self.worst(request))

    def settle(self, request: Request, result: Answer | Failure) -> None:
        """Replace the worst case by what it was."""
        worst = self.worst(request)
        self._reserved = (
            self._reserved[0] - worst[0],
            self._reserved[1] - worst[1],
        )
        if isinstance(result, Answer):
            worst = (result.prompt_tokens, result.completion_tokens)
        elif not result.paid:
            return
        self._spent = _sum(self._spent, worst)

    def words(self) -> str:
        """For the progress bar."""
        cost = _cost(self.teacher, self._spent)
        tokens = f"{sum(self._spent):,} tokens"
        return tokens if cost is None else f"{tokens}, cost {cost:.4f}"

    def worst(self, request: Request) -> tuple[int, int]:
        """The most tokens that a request can take, of its prompt and its answer."""
        if request.key not in self._known:
            prompt = self.teacher.prompt_tokens(request.messages)
            self._known[request.key] = (prompt, request.max_new_tokens)
        return self._known[request.key]


def _sum(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    return one[0] + two[0], one[1] + two[1]
