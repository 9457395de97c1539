"""A teacher behind an OpenAI-compatible API.

The client is the ``openai`` package, imported when a teacher is made. Any server that
speaks its protocol will do: a company's, or one on this machine.

Taught in notebook 05.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from distill_helpers.labels.api_content import read_message
from distill_helpers.labels.messages import Message
from distill_helpers.labels.teachers import Action, Answer, Failure, Request
from distill_helpers.machine import in_colab

# How an option names a model behind an API: ``api:MODEL@URL``.
API = "api:"
_KEY = "OPENAI_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What write_labels decides and writes down; an option would go round it.
_DECIDED = ("model", "messages", "n", "stream", "max_tokens", "max_completion_tokens")
# Nothing was done for these, so they may be tried again at once.
_NO_CONNECTION = ("ConnectError", "ConnectTimeout")
# A gateway gave up waiting, or could not read what came: the model behind it may have
# answered, and be paid. 521 and 523 say that it was not reached, 502 and 503 that it
# failed.
_GATEWAY_GAVE_UP = (408, 504, 520, 522, 524)
_LONGEST_PAUSE = 60.0


class ApiTeacher:
    """A chat model behind an OpenAI-compatible API.

    A request that came to nothing for a passing reason (429 with or without
    ``Retry-After``, a server error, no connection) is tried again with growing pauses.
    One that may have been paid for (a time-out, here or at a gateway on the way, a
    connection cut mid-answer, an answer that is none) goes back to ``write_labels``,
    whose budget counts every try. A wrong key or model name ends the run at once.

    An answer's text may come as a string or as a list of parts. Thoughts that a server
    tells apart, in parts or in a field such as ``reasoning_content``, are stored as
    ``reasoning``. What is no whole answer is told by its ``finish_reason``: besides
    those of the server, ``"tool_calls"`` if it calls a tool, ``"refusal"`` if it only
    holds a refusal, ``"no_content"`` if it holds nothing at all, and ``"unreadable"``
    if there are parts beside the text that are not known here. An answer of such parts
    alone is none.

    Args:
        model: Its name on the server.
        base_url: ``None`` for the client's default, or the server's address up to and
            including ``/v1``.
        api_key: ``None`` takes the environment's ``OPENAI_API_KEY``, then Colab's
            store of that name, then asks if somebody is there. A server on this
            machine needs none, and is sent none. It is kept in the client alone, and
            never shown.
        price: Per million prompt tokens and per million answer tokens.
        licence: What the provider's terms allow for the answers, in your words;
            stored with each.
        timeout: Seconds without a byte from the server.
        max_retries: Further tries of a request that cost nothing.
        concurrency: Requests under way at a time.
        token_limit: What the server calls the most tokens of an answer; reasoning
            models of some providers want ``"max_completion_tokens"``.
        options: Further parameters of every request, such as ``top_p``; ``None``
            leaves one out that a server does not take, such as ``seed``.
    """

    charges = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        price: tuple[float, float] | None = None,
        licence: str = "",
        timeout: float = 120.0,
        max_retries: int = 6,
        concurrency: int = 8,
        token_limit: str = "max_tokens",
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError(
                "ApiTeacher needs the openai package; run: pip install openai"
            ) from None
        if timeout <= 0 or max_retries < 0:
            raise ValueError(
                f"timeout={timeout} must be positive and max_retries={max_retries} "
                "not negative"
            )
        if price is not None and len(price) != 2:
            raise ValueError(
                f"price={price} must be two numbers: per million prompt tokens, and "
                "per million answer tokens"
            )
        self.name = model
        self.base_url = base_url
        self.price = price
        self.licence = licence
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.token_limit = token_limit
        self.options = dict(options or {})
        for name in (*_DECIDED, token_limit):
            if name in self.options:
                raise ValueError(
                    f"options holds {name!r}, which write_labels decides and stores; "
                    "leave it out (see max_new_tokens, samples and token_limit)"
                )
        if self.options.get("temperature") is not None:
            raise ValueError(
                "options holds a temperature; pass it to write_labels, which stores it"
            )
        self._client = openai.OpenAI(
            api_key=_usable_key(api_key or find_api_key(base_url)),
            base_url=base_url,
            timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
            max_retries=0,  # every try is counted
        )

    def __repr__(self) -> str:
        where = self.base_url or "the default server"
        return f"ApiTeacher({self.name!r} at {where})"

    def identity(self) -> dict[str, Any]:
        """Model name and options: the same model elsewhere is the same teacher."""
        return {"name": self.name, "options": self.options}

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """At the most: hardly a tokenizer makes more tokens than there are bytes."""
        size = 0
        for message in messages:
            rest = dict(message)
            if isinstance(message.get("content"), str):
                size += len(rest.pop("content").encode())
            size += len(rest.pop("role")) + 8
            # Tool calls and parts of a content: escaped, as the longest that it gets.
            size += len(json.dumps(rest)) if rest else 0
        # What a template adds, and tools or a response format in the options.
        return size + 256 + len(json.dumps(self.options, default=str).encode())

    def order(self, requests: list[Request]) -> list[Request]:
        """The requests as they are."""
        return requests

    def answers(
        self, take: Callable[[], Request | None], concurrency: int
    ) -> Generator[tuple[Request, Answer | Failure], None, None]:
        """Ask, several at a time; the arguments are those of ``Teacher.answers``.

        If the caller leaves early, what is under way ends within one time-out.
        """
        leaving = threading.Event()
        running: dict[Future[Answer | Failure], Request] = {}
        pool = ThreadPoolExecutor(concurrency)
        try:
            while True:
                while len(running) < concurrency and (request := take()) is not None:
                    running[pool.submit(self._ask, request, leaving)] = request
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            leaving.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def parameters(self, request: Request) -> dict[str, Any]:
        """What is sent for a request; with a ``prompt``, it is a completion's."""
        parameters: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            self.token_limit: request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        } | self.options
        return {k: v for k, v in parameters.items() if v is not None}

    def _ask(self, request: Request, leaving: threading.Event) -> Answer | Failure:
        """One answer, with as many tries as come to nothing and cost nothing."""
        parameters = self.parameters(request)
        for attempt in range(self.max_retries + 1):
            result, pause = self._try(parameters, request)
            if pause is None or attempt == self.max_retries:
                break
            if leaving.wait(pause or _backoff(attempt)):
                break
        return result

    def _try(
        self, parameters: dict[str, Any], request: Request
    ) -> tuple[Answer | Failure, float | None]:
        """What came of one try; and, if it may be repeated, after how many seconds.

        0 seconds leave the pause to the caller.
        """
        import openai

        api: Any = self._client if "prompt" in parameters else self._client.chat
        try:
            completion = api.completions.create(**parameters)
        except openai.APIConnectionError as error:  # time-outs too
            # Only the kind: a cause may quote what was sent, and so the key.
            kind = type(error.__cause__ or error).__name__
            unsent = kind in _NO_CONNECTION
            words = "no connection" if unsent else "no whole answer"
            return Failure(
                f"{words} ({kind})", paid=not unsent
            ), 0.0 if unsent else None
        except openai.APIStatusError as error:
            failure = self.refused(error)
            passing = error.status_code in (409, 429) or error.status_code >= 500
            again = passing and failure.action is Action.RETRY and not failure.paid
            return failure, wanted_pause(error.response.headers) if again else None
        except TypeError as error:
            return Failure(f"options: {error}", Action.STOP), None
        except Exception as error:
            # What a server sends is untrusted, and may break any parser.
            kind = type(error).__name__
            return Failure(f"not an answer ({kind})", paid=True), None
        try:
            return self.read(completion, request), None
        except Exception as error:
            kind = type(error).__name__
            return Failure(f"not an answer ({kind})", paid=True), None

    def refused(self, error: Any) -> Failure:
        """What a status other than success means: the client's error, as a failure."""
        code = error.status_code
        # A server's own words may quote the key.
        words = str(error.message).replace(self._client.api_key, "…")[:200]
        if code == 401:
            return Failure(
                f"the server refused the key (401); check {_KEY}", Action.STOP
            )
        if code == 404:
            return Failure(
                f"the server knows no model {self.name!r}, or base_url lacks its /v1 "
                "(404)",
                Action.STOP,
            )
        if code == 402 or error.code == "insufficient_quota":
            return Failure(f"the account is used up ({code}): {words}", Action.STOP)
        if code in (400, 403, 413, 422):
            return Failure(
                f"the server refused a request ({code}): {words}", Action.SKIP
            )
        return Failure(
            f"the server answered {code}: {words}", paid=code in _GATEWAY_GAVE_UP
        )

    def read(self, completion: Any, request: Request) -> Answer | Failure:
        """What a completion holds; whatever this raises is an answer that is none."""
        if not getattr(completion, "choices", None):
            return Failure("the server's answer held no choice", paid=True)
        choice, usage = completion.choices[0], getattr(completion, "usage", None)
        content = read_message(choice.message)
        reason = content.ending(str(choice.finish_reason))
        if reason is None:
            return Failure(
                "the server's answer is no text, but parts of a kind unknown here: "
                f"{', '.join(content.unknown)[:100]!r}",
                paid=True,
            )

        def counted(name: str, most: int) -> int:
            found = getattr(usage, name, None)
            return int(found) if isinstance(found, int) else most

        return Answer(
            text=content.text or content.refusal,
            finish_reason=reason,
            prompt_tokens=counted(
                "prompt_tokens", self.prompt_tokens(request.messages)
            ),
            completion_tokens=counted("completion_tokens", request.max_new_tokens),
            reasoning=content.thoughts,
        )


def _backoff(attempt: int) -> float:
    return min(8.0, 0.5 * 2**attempt) * random.uniform(0.75, 1.25)


def wanted_pause(headers: Any) -> float:
    """Seconds that a server asks to wait, up to a minute; 0 if it does not say."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name)) / unit
        except (TypeError, ValueError):
            continue
        if seconds > 0:
            return min(seconds, _LONGEST_PAUSE)
    later = _date(headers.get("retry-after"))
    if later is None:
        return 0.0
    # By the server's own clock, which may not be ours.
    now = _date(headers.get("date")) or datetime.now(UTC)
    return min(max(0.0, (later - now).total_seconds()), _LONGEST_PAUSE)


def _date(text: str | None) -> datetime | None:
    """A date of HTTP's; ``None`` for what is none."""
    try:
        found = parsedate_to_datetime(text or "")
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _usable_key(key: str) -> str:
    """Without the spaces and line feeds that come along when a key is pasted."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the API key holds characters that no key has; copy it again")
    return key


def find_api_key(base_url: str | None = None) -> str:
    """The key for a server: environment, then Colab's store, then a question.

    A server on this machine needs none.

    Raises:
        ValueError: If there is none, and nobody to ask.
    """
    if base_url is not None and urlsplit(base_url).hostname in _LOOPBACK:
        return "none-needed"
    found = os.environ.get(_KEY) or _from_colab()
    if found:
        return found
    if _somebody_is_there():
        return getpass.getpass(f"{_KEY} (not shown): ")
    raise ValueError(
        f"no API key: set the environment variable {_KEY}, or pass api_key="
    )


def _somebody_is_there() -> bool:
    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    kernel = getattr(ipython, "kernel", None)
    if kernel is not None:
        return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdin is not None and sys.stdin.isatty()


def _from_colab() -> str | None:
    if not in_colab():
        return None
    from google.colab import userdata

    try:
        found: str | None = userdata.get(_KEY)
    except (
        userdata.SecretNotFoundError,
        userdata.NotebookAccessError,
        userdata.TimeoutException,  # no page of Colab's is open that could answer
    ):
        return None
    return found
