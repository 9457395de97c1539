"""What a teacher is, what it is asked and what it answers.

Taught in notebook 04.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from distill_helpers.generation import write_batch
from distill_helpers.labels.messages import Message
from distill_helpers.labels.templates import prompt_ids
from distill_helpers.models import public_name, weights_hash

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
