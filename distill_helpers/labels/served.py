"""A teacher behind an OpenAI-compatible API that tells its probabilities too.

:class:`ServedTeacher` writes answers, as an ``ApiTeacher`` does, and with every token
of an answer comes what the teacher thought of the likeliest tokens there;
:func:`served_rows` makes rows of them. On vLLM it also reads rows of token ids. Either
way :func:`~distill_helpers.labels.cache_writer.write_cache` stores the soft labels.

Taught in notebook 05.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError, join_row
from distill_helpers.labels.api import ApiTeacher
from distill_helpers.labels.messages import Message
from distill_helpers.labels.served_tokens import Named, ServerError, TokenMap
from distill_helpers.labels.teachers import Action, Answer, Failure, Request
from distill_helpers.labels.templates import prompt_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_LOGGER = logging.getLogger(__name__)
_DECIDED = ("logprobs", "top_logprobs", "prompt_logprobs")


class ServedTeacher(ApiTeacher):
    """A model behind an OpenAI-compatible API that gives logprobs: soft labels by HTTP.

    It can be asked in two ways, within the same budgets:

    * ``write_labels`` stores, beside each answer, its tokens and the ``top_k``
      likeliest at each (chat completions with ``top_logprobs``: llama.cpp, vLLM, some
      companies); :func:`served_rows` and ``write_cache`` make soft labels of them;
    * ``write_cache`` lets it read rows of token ids (vLLM's ``prompt_logprobs``).

    The probabilities are those of T = 1, at whatever temperature an answer was drawn.
    Tokens are taken by their ids where the server tells them. Elsewhere a token's bytes
    are looked up; those of no token here, or of two, are left out and counted, and an
    answer whose own tokens cannot all be found gives no soft labels.

    Where the tokenizer shows to be another than the server's (an id has another text,
    a prompt another number of tokens or other ids), where there are no logprobs, or
    fewer than ``top_k``, the run ends with what to do about it.

    Args:
        model: Its name on the server.
        base_url: ``None`` for the client's default, or the server's address up to and
            including ``/v1``.
        tokenizer: The student's, which must be that of the served model, with the same
            chat template.
        top_k: Likeliest tokens asked for at each position. 20 is the most that OpenAI
            gives, and vLLM unless told otherwise.
        ask_ids: Send the parameters with which vLLM tells token ids, which llama.cpp
            ignores; ``False`` for servers that refuse what they do not know.
        options: Same as in :class:`~distill_helpers.labels.api.ApiTeacher`, like all
            further arguments. ``extra_body={"chat_template_kwargs": …}`` in it sets
            variables of the chat template, on the server and here.

    Raises:
        ValueError: For options out of range.

    Taught in notebook 05.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        top_k: int = 20,
        ask_ids: bool = True,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(model, base_url, options=options, **more)
        for name in _DECIDED:
            if name in self.options:
                raise ValueError(
                    f"options holds {name!r}, which top_k={top_k} decides; leave it out"
                )
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        self.tokenizer = tokenizer
        self.top_k = top_k
        self.ask_ids = ask_ids

    def identity(self) -> dict[str, Any]:
        """Those of an ``ApiTeacher``, and how many likeliest tokens are asked for."""
        return super().identity() | {"top_logprobs": self.top_k}

    @cached_property
    def tokens(self) -> TokenMap:
        """Finds the ids of what the server names."""
        return TokenMap(self.tokenizer)

    @property
    def template_options(self) -> Mapping[str, Any]:
        """Variables of the chat template, as the server gets them."""
        body = self.options.get("extra_body") or {}
        found: Mapping[str, Any] = body.get("chat_template_kwargs") or {}
        return found

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, or of a row that is read; exactly."""
        return len(self._ids(messages))

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        row = _row_ids(messages)
        if row is not None:
            return row
        return prompt_ids(messages, self.tokenizer, self.template_options)

    def parameters(self, request: Request) -> dict[str, Any]:
        """What is sent for a request: a chat completion, or a row to be read."""
        row = _row_ids(request.messages)
        body: dict[str, Any] = {"return_token_ids": True} if self.ask_ids else {}
        if row is not None:
            body["prompt_logprobs"] = self.top_k
            return {
                "model": self.name,
                "prompt": row,
                "max_tokens": 1,
                "temperature": 0.0,
                "extra_body": body,
            }
        if self.ask_ids:
            body["return_tokens_as_token_ids"] = True
        found = super().parameters(request)
        body |= found.get("extra_body") or {}
        return found | {
            "logprobs": True,
            "top_logprobs": self.top_k,
            "extra_body": body,
        }

    def refused(self, error: Any) -> Failure:
        """As for any API; but a server that refuses logprobs refuses them always."""
        failure = super().refused(error)
        remedies = {
            "return_token": "pass ask_ids=False to ServedTeacher",
            "logprobs": "pass a smaller top_k to ServedTeacher, let the server give "
            "more (vLLM: --max-logprobs), or take a server that gives logprobs",
        }
        for word, remedy in remedies.items():
            if failure.action is Action.SKIP and word in str(error.message):
                return Failure(f"{failure.reason}; {remedy}", Action.STOP)
        return failure

    def read(self, completion: Any, request: Request) -> Answer | Failure:
        """An answer with its tokens and the likeliest at each, or what a row's are."""
        try:
            row = _row_ids(request.messages)
            if row is not None:
                return self._read_row(completion, row)
            answer = super().read(completion, request)
            if isinstance(answer, Failure):
                return answer
            return replace(answer, more=self._chat_columns(completion, request, answer))
        except ServerError as error:
            return Failure(str(error), Action.STOP, paid=True)

    def _read_row(self, completion: Any, row: list[int]) -> Answer:
        choice = completion.choices[0]
        told = getattr(choice, "prompt_logprobs", None)
        if not told:
            raise ServerError(
                "the server gives no prompt_logprobs, so it cannot read rows (vLLM "
                "can); let the teacher write answers instead (write_labels, then "
                "served_rows), or load the model here"
            )
        self._check_prompt(row, completion, choice)
        if len(told) != len(row):
            raise ServerError(
                f"the server gives {len(told)} prompt_logprobs of a row of {len(row)} "
                "tokens; another tokenizer may be behind it: pass the served model's"
            )
        for token, entries in zip(row[1:], told[1:], strict=True):
            if str(token) not in (entries or ()):
                raise ServerError(
                    f"the server's prompt_logprobs lack the row's own token {token}: "
                    "it reads another text, or leaves out what it has read before "
                    "(older vLLM: --no-enable-prefix-caching)"
                )
        tops = self.tokens.tops(
            (
                [Named.of_prompt(index, entry) for index, entry in entries.items()]
                for entries in told[1:]
            ),
            self.top_k,
        )
        return Answer("", "read", len(row), 1, more=tops.columns())

    def _chat_columns(
        self, completion: Any, request: Request, answer: Answer
    ) -> dict[str, Any]:
        choice = completion.choices[0]
        content = getattr(getattr(choice, "logprobs", None), "content", None)
        if not content and answer.text:
            raise ServerError(
                "the server gives no logprobs; serve the model with one that does "
                "(llama.cpp, vLLM), or ask for text alone (ApiTeacher)"
            )
        content = content or []
        prompt = self._ids(request.messages)
        self._check_prompt(prompt, completion, completion)
        tops = self.tokens.tops(
            [[Named.of_chat(top) for top in one.top_logprobs] for one in content],
            self.top_k,
        )
        ids = self._answer_ids(completion, content, answer)
        if not ids:  # nothing to align the probabilities with
            tops = replace(tops, ids=[], logprobs=[])
        return {"prompt_ids": prompt, "answer_ids": ids, **tops.columns()}

    def _answer_ids(
        self, completion: Any, content: Sequence[Any], answer: Answer
    ) -> list[int]:
        """The answer's tokens; none if they cannot all be told."""
        told = getattr(completion.choices[0], "token_ids", None)
        named = [Named.of_chat(one) for one in content]
        if told:
            named = [Named(index, b"", 0.0) for index in told]
        found = [self.tokens.find(one) for one in named]
        known = [one for one in found if one is not None]
        if not len(known) == len(found) == len(content):
            return []
        if told:
            return known
        # The end may be counted and not told. More is hidden thoughts, or lost tokens:
        # llama.cpp leaves those out in which a character begins and does not end.
        usage = getattr(completion, "usage", None)
        counted = getattr(usage, "completion_tokens", None)
        if counted is not None and counted - len(known) not in (0, 1):
            return []
        # Put together, the tokens must be the text: neither trimmed nor with gaps.
        text = self.tokens.text(known)
        parts = (answer.text.strip(), answer.reasoning.strip())
        return known if all(part in text for part in parts) else []

    def _check_prompt(self, prompt: list[int], completion: Any, place: Any) -> None:
        """Refuse another tokenizer, or template, by the server's own count and ids."""
        told = getattr(place, "prompt_token_ids", None)
        usage = getattr(completion, "usage", None)
        count = getattr(usage, "prompt_tokens", None) if told is None else len(told)
        if (told is None or list(told) == prompt) and count in (None, len(prompt)):
            return
        raise ServerError(
            f"the server reads a prompt as {count} tokens, and this tokenizer as "
            f"{len(prompt)}{'' if told is None else ', which differ'}: another "
            "tokenizer or chat template is behind the server; pass those of the model "
            "that is served, and the variables of its template in options "
            '(extra_body={"chat_template_kwargs": …})'
        )


def row_request(key: str, ids: Sequence[int]) -> Request:
    """A request that lets a :class:`ServedTeacher` read a row of token ids."""
    messages = ({"input_ids": [int(one) for one in ids]},)
    return Request(key, messages, 0, 1, 0.0, 0)


def _row_ids(messages: Sequence[Message]) -> list[int] | None:
    return messages[0].get("input_ids")


def served_rows(
    labels: Dataset, *, top_k: int = 8, max_length: int | None = None
) -> Dataset:
    """Rows of a served teacher's answers, with what it thought at every token.

    The prompt is labelled ``-100``; of its tokens a server tells nothing. The answer
    consists of the server's own tokens, with the one that ends it if the server tells
    it (llama.cpp and vLLM do).

    Args:
        labels: From ``write_labels`` with a :class:`ServedTeacher`, filtered or not.
        top_k: The likeliest tokens that every position must have: as many as
            ``write_cache`` is to keep.
        max_length: Rows with more tokens are left out; ``None`` keeps all.

    Returns:
        ``input_ids`` and ``labels`` (unshifted), and for each token of the answer
        ``top_ids`` and ``top_logprobs``. ``write_cache`` asks for nothing then. The log
        says what was left out, and which share of the probability has no token here.

    Raises:
        DataError: If labels are of another teacher, or nothing is left.

    Taught in notebook 05.
    """
    from datasets import Dataset

    if "answer_ids" not in labels.column_names:
        raise DataError(
            f"labels has the columns {labels.column_names} and no answer_ids: it was "
            "not written by a ServedTeacher; ask one with write_labels"
        )
    rows = []
    untold = short = long = positions = unmapped = 0
    mass = 0.0
    for label in labels:
        prompt, answer = label["prompt_ids"], label["answer_ids"]
        if not answer:
            untold += 1
        elif min(map(len, label["top_ids"])) < top_k:
            short += 1
        elif max_length is not None and len(prompt) + len(answer) > max_length:
            long += 1
        else:
            positions += len(answer)
            unmapped += label["unmapped"]
            mass += label["unmapped_mass"]
            tops = {name: label[name] for name in ("top_ids", "top_logprobs")}
            rows.append(join_row(prompt, answer) | tops)
    left_out = (
        f"{untold} whose tokens cannot be told, {short} with fewer than top_k={top_k} "
        f"tokens at a position, {long} longer than max_length={max_length}"
    )
    if len(rows) < len(labels):
        _LOGGER.warning(
            "%d of %d answers are left out: %s",
            len(labels) - len(rows),
            len(labels),
            left_out,
        )
    if unmapped:
        _LOGGER.warning(
            "%d likeliest tokens of %d positions are no single token of this "
            "tokenizer, and are left out; they hold %.2f %% of the probability",
            unmapped,
            positions,
            100 * mass / positions,
        )
    if not rows:
        raise DataError(
            f"no answer of {len(labels)} is left ({left_out}); pass a smaller top_k, "
            "or take a server that tells token ids"
        )
    return Dataset.from_list(rows)
