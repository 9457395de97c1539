"""The packaged teacher behind an HTTP API on this machine.

``xllamacpp`` (llama.cpp with Python bindings) serves the teacher's own GGUF file on a
free port of the loopback, and speaks the protocol of commercial APIs. Used in notebook
05, where it plays the black box.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distill_helpers.tasks.teachers import packaged_teacher_file

MODEL = "smollm2-135m-instruct"


@contextmanager
def serve_packaged_teacher(
    *, threads: int = 2, parallel: int = 4, context: int = 1024
) -> Iterator[str]:
    """Serve the packaged teacher; yields the ``base_url`` for an ``ApiTeacher``.

    Args:
        threads: The server's threads.
        parallel: Requests that it works on at a time.
        context: The most tokens of a request, prompt and answer together.

    Raises:
        ImportError: If ``xllamacpp`` is missing.
    """
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        raise ImportError(
            "serving a model on this machine needs the xllamacpp package; run: pip "
            "install xllamacpp"
        ) from None
    parameters = CommonParams()
    parameters.model.path = str(packaged_teacher_file())
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
