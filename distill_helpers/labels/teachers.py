"""Teachers, what they are asked, and what comes back.

A *teacher* answers requests: :class:`LocalTeacher` is a model in this process,
:class:`~distill_helpers.labels.api.ApiTeacher` any OpenAI-compatible server, and
whatever has the methods of :class:`Teacher` may take their place.

Taught in notebook 05.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from distill_helpers.labels.messages import Message
from distill_helpers.labels.templates import prompt_ids
from distill_helpers.models import generate_batch, public_name, weights_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        temperature: The temperature of sampling; 0 is greedy.
        seed: The seed of this answer alone.
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
        text: The answer, without special tokens.
        finish_reason: ``"stop"`` if the teacher ended by itself; ``"length"`` if it
            was cut off.
        prompt_tokens: Tokens of the prompt, as the teacher counts.
        completion_tokens: Tokens of the answer, as the teacher counts.
        reasoning: The thoughts before the answer, where a server tells them apart from
            it; ``""`` if it tells none.
        more: Further columns of its row, such as a served teacher's probabilities.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


class Action(Enum):
    """What to do after a failure.

    Attributes:
        RETRY: The cause may pass, so the request may be asked again; but many such
            failures in a row end the run.
        SKIP: The fault lies with this request; others may well succeed.
        STOP: Every other request would fail alike, so nothing more is asked.
    """

    RETRY = "retry"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    Attributes:
        reason: A sentence.
        action: What to do about it.
        paid: Whether the teacher may have worked for it all the same. Such a request
            stays on the bill and, with ``RETRY``, is asked again a few times in the
            same run, if the budget admits it once more. One that cost nothing is left
            to the next run: the teacher itself has tried as often as it likes.
    """

    reason: str
    action: Action = Action.RETRY
    paid: bool = False


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens, of prompts and of answers apart, for they differ in price."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.prompt + self.completion

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    def cost(self, price: tuple[float, float] | None) -> float | None:
        """In the price's currency, or ``None`` without a price.

        Args:
            price: The price of a million prompt tokens, and of a million answer tokens.
        """
        if price is None:
            return None
        return (self.prompt * price[0] + self.completion * price[1]) / 1e6


class Teacher(Protocol):
    """Something that answers, such as a :class:`LocalTeacher`.

    Attributes:
        name: Stored with each answer.
        licence: What may be done with the answers; stored with each.
        price: Per million prompt tokens and per million answer tokens; ``None`` if
            there is none.
        charges: Whether a request that was cut off may have to be paid for.
        concurrency: Requests under way at a time, unless a call says otherwise.
    """

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


class LocalTeacher:
    """A causal language model in this process.

    Args:
        model: The model, which stays where it is; answers are read in eval mode.
        tokenizer: The model's tokenizer. With a chat template, prompts are put into it;
            without one, a prompt is a string that the model goes on from.
        licence: The licence of the answers, in your words; stored with each.
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
        """Answer in batches; the arguments are those of :meth:`Teacher.answers`."""
        while True:
            batch: list[Request] = []
            while len(batch) < concurrency and (request := take()) is not None:
                batch.append(request)
            if not batch:
                return
            prompts = [self._ids(request.messages) for request in batch]
            written = generate_batch(
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
