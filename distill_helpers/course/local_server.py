"""A model behind an HTTP API on this machine.

``xllamacpp`` (llama.cpp with Python bindings) serves a GGUF file on a free port of the
loopback, and speaks the protocol of commercial APIs. In notebook 05 the packaged
teacher plays the black box; in notebook 13 the exported student is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from distill_helpers.labels import Prompt
from distill_helpers.tasks.teachers import packaged_teacher_file

MODEL = "smollm2-135m-instruct"


@contextmanager
def serve_gguf(
    file: str | Path, *, threads: int = 2, parallel: int = 4, context: int = 1024
) -> Iterator[str]:
    """Serve a GGUF file; yields the ``base_url`` for an ``ApiTeacher``.

    Args:
        file: From :func:`~distill_helpers.export.export_gguf`, or anybody's.
        threads: The server's threads.
        parallel: Requests that it works on at a time.
        context: The most tokens of a request, prompt and answer together.

    Raises:
        ImportError: If ``xllamacpp`` is missing.
        ValueError: If there is no such file.

    Taught in notebook 13.
    """
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        raise ImportError(
            "serving a model on this machine needs the xllamacpp package; run: pip "
            "install xllamacpp"
        ) from None
    if not Path(file).is_file():
        raise ValueError(f"file={str(file)!r} is not there; export the model first")
    parameters = CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = context * parallel
    parameters.n_parallel = parallel
    parameters.cpuparams.n_threads = threads
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.verbosity = 0
    server = Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server


def serve_packaged_teacher(
    *, threads: int = 2, parallel: int = 4, context: int = 1024
) -> AbstractContextManager[str]:
    """Serve the packaged teacher; yields the ``base_url`` for an ``ApiTeacher``.

    Args:
        threads: The server's threads.
        parallel: Requests that it works on at a time.
        context: The most tokens of a request, prompt and answer together.

    Raises:
        ImportError: If ``xllamacpp`` is missing.
    """
    file = packaged_teacher_file()
    return serve_gguf(file, threads=threads, parallel=parallel, context=context)


def complete(
    base_url: str, prompts: Sequence[Prompt], *, max_new_tokens: int
) -> list[str]:
    """Let a served model answer greedily; one answer for each prompt.

    A student that reads its prompts as they are has no chat template, so it is asked
    for completions; one that learned from conversations is asked as a chat model.

    Args:
        base_url: What :func:`serve_gguf` yields.
        prompts: Texts, read as they are, or conversations, which the server writes in
            the chat template of the file.
        max_new_tokens: Where an answer is cut off.

    Taught in notebook 13.
    """
    import openai

    # Without a key of one's own, which a server on this machine does not ask for.
    client: Any = openai.OpenAI(base_url=base_url, api_key="none")
    options = {"model": MODEL, "max_tokens": max_new_tokens, "temperature": 0.0}

    def answer(prompt: Prompt) -> str:
        if isinstance(prompt, str):
            found = client.completions.create(prompt=prompt, **options).choices[0]
            return str(found.text)
        found = client.chat.completions.create(messages=prompt, **options).choices[0]
        return found.message.content or ""

    return [answer(prompt) for prompt in prompts]
