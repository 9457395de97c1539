"""A teacher behind an OpenAI-compatible API.

The client is the ``openai`` package, imported when a teacher is made. Any server that
speaks its protocol will do: a company's, or one on this machine.

Taught in notebook 04.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from distill_helpers.hard_labels import Answer, Failure, Message, Request
from distill_helpers.runtime import in_colab

_KEY = "OPENAI_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ApiTeacher:
    """A chat model behind an OpenAI-compatible API.

    A request that fails for a passing reason (429 with or without ``Retry-After``, a
    server error, no connection, a time-out, a connection cut mid-answer, an answer
    that is none) is tried again with growing pauses. A wrong key or model name ends
    the run at once.

    Args:
        model: Its name on the server.
        base_url: ``None`` for the client's default, or the server's address up to and
            including ``/v1``.
        api_key: ``None`` takes the environment's ``OPENAI_API_KEY``, then Colab's
            store of that name, then asks if somebody is there. A server on this
            machine needs none. It is kept in the client alone, and never shown.
        price: Per million prompt tokens and per million answer tokens.
        licence: What the provider's terms allow for the answers, in your words;
            stored with each.
        timeout: Seconds for one try.
        max_retries: Further tries of a request.
        concurrency: Requests under way at a time.
        options: Further parameters of every request, such as ``top_p``; ``None``
            leaves one out that a server does not take, such as ``seed``.
    """

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
        self.name = model
        self.base_url = base_url
        self.price = price
        self.licence = licence
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.options = dict(options or {})
        self._client = openai.OpenAI(
            api_key=api_key or find_api_key(base_url),
            base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
        )

    def __repr__(self) -> str:
        where = self.base_url or "the default server"
        return f"ApiTeacher({self.name!r} at {where})"

    def identity(self) -> dict[str, Any]:
        """Model name and options: the same model elsewhere is the same teacher."""
        return {"name": self.name, "options": self.options}

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """At the most: no tokenizer makes more tokens than there are bytes."""
        size = sum(len(m["content"].encode()) + len(m["role"]) + 8 for m in messages)
        return size + 32  # what a template adds

    def order(self, requests: list[Request]) -> list[Request]:
        """As they are."""
        return requests

    def answers(
        self, take: Callable[[], Request | None], concurrency: int
    ) -> Iterator[tuple[Request, Answer | Failure]]:
        """Ask, several at a time; see ``hard_labels.Teacher``.

        An interruption asks for nothing new and waits for what is under way; a second
        one leaves at once.
        """
        interrupted: KeyboardInterrupt | None = None
        running: dict[Future[Answer | Failure], Request] = {}
        pool = ThreadPoolExecutor(concurrency)
        try:
            while True:
                while interrupted is None and len(running) < concurrency:
                    request = take()
                    if request is None:
                        break
                    running[pool.submit(self._ask, request)] = request
                if not running:
                    break
                try:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt as stop:
                    if interrupted is not None:
                        raise
                    interrupted = stop
                    continue
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if interrupted is not None:
            raise interrupted

    def _ask(self, request: Request) -> Answer | Failure:
        import openai

        result: Answer | Failure = Failure("nothing was tried")
        parameters: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        } | self.options
        parameters = {k: v for k, v in parameters.items() if v is not None}
        for attempt in range(self.max_retries + 1):
            if attempt:
                time.sleep(min(8.0, 0.25 * 2**attempt))
            try:
                # The client itself tries again after 429, 5xx and broken connections.
                completion = self._client.chat.completions.create(**parameters)
            except openai.APITimeoutError:
                return Failure(f"no answer within {self._client.timeout} s", paid=True)
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                refused = type(cause).__name__ == "ConnectError"
                return Failure(f"no connection ({cause})", paid=not refused)
            except openai.APIStatusError as error:
                return _refused(error, self.name)
            except (json.JSONDecodeError, openai.APIError) as error:
                result = Failure(f"not an answer ({error})", paid=True)
                continue
            result = _answer(completion)
            if isinstance(result, Answer):
                return result
        return result


def _refused(error: Any, model: str) -> Failure:
    code = error.status_code
    if code in (401, 403):
        # The server's own words may quote the key.
        return Failure(f"the server refused the key ({code}); check {_KEY}", fatal=True)
    if code == 404:
        return Failure(
            f"the server knows no model {model!r}, or base_url lacks its /v1 ({code})",
            fatal=True,
        )
    if code in (400, 422):
        return Failure(f"the server refused the request ({code}): {error.message}")
    return Failure(f"the server answered {code}")


def _answer(completion: Any) -> Answer | Failure:
    choices = getattr(completion, "choices", None) or [None]
    message = getattr(choices[0], "message", None)
    usage = getattr(completion, "usage", None)
    if message is None:
        return Failure("the server's answer held no choice", paid=True)
    text = getattr(message, "content", None)
    if not isinstance(text, str) or usage is None:
        return Failure("the server's answer held no text, or no usage", paid=True)
    return Answer(
        text=text,
        finish_reason=str(choices[0].finish_reason),
        prompt_tokens=int(usage.prompt_tokens),
        completion_tokens=int(usage.completion_tokens),
    )


def find_api_key(base_url: str | None = None) -> str:
    """The key for a server: environment, then Colab's store, then a question.

    Raises:
        ValueError: If there is none, and nobody to ask.
    """
    found = os.environ.get(_KEY) or _from_colab()
    if found:
        return found
    if base_url is not None and urlsplit(base_url).hostname in _LOOPBACK:
        return "none needed"
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
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return None
    return found
