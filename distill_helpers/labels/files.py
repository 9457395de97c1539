"""Files that two processes must not write at once, and that a kill must not cut short.

Used for caches of soft labels (notebook 04) and for files of answers (notebook 05).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_writer(
    path: Path, lock: Path, error: type[Exception] = RuntimeError
) -> Iterator[None]:
    """Be the only process that writes to a path, or refuse at once.

    Args:
        path: What is written, for the message.
        lock: The file that is locked meanwhile.
        error: The exception that is raised if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise error(
            f"another process is writing to {path}; wait for it, or choose another path"
        ) from None
    with held:
        yield


def replace_file(path: Path, data: bytes) -> None:
    """Write a file aside and then put it in place: all of it or nothing.

    That holds also when the power fails.
    """
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
