"""The file of answers, to which every answer is appended as it arrives.

Taught in notebook 04.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distill_helpers.data import DataError
from distill_helpers.labels.teachers import LabelError, Request

if TYPE_CHECKING:
    from datasets import Dataset


class LabelFile:
    """An append-only file of answers, with a journal of what was asked for.

    One line of JSON per answer, flushed to the disk before anything else happens. The
    journal has a line for every request before it goes out, so that after a kill it is
    known which answers were under way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers, self.doubts = read_answers(path)
        self._file = path.open("ab")
        self._journal = _journal(path).open("ab")

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool) -> Iterator[LabelFile]:
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


def read_answers(path: Path) -> tuple[dict[str, dict[str, Any]], Doubts]:
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


def read_labels(path: str | Path) -> Dataset:
    """Every answer of a file that :func:`write_labels` wrote, in its order.

    Raises:
        DataError: If there is no such file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; write_labels makes it")
    answers, _ = read_answers(path)
    if not answers:
        raise DataError(f"{path} holds no answer yet; call write_labels")
    return as_dataset(list(answers.values()))


def as_dataset(rows: list[dict[str, Any]]) -> Dataset:
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
