"""The file of answers, to which every answer is appended as it arrives.

Beside it stands a journal (``….asked``) of what was asked for, so that after a kill it
is known which answers were under way and may have been paid for.

Taught in notebook 05.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.data import DataError
from distill_helpers.labels.files import only_writer
from distill_helpers.labels.teachers import LabelError, Request, Tokens

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Stored:
    """What a file and its journal hold.

    Attributes:
        answers: Rows by their requests' keys, in the order of their arrival.
        doubts: By key the most that each try can have taken of which nothing is known,
            because a run was killed or a connection cut.
    """

    answers: dict[str, dict[str, Any]]
    doubts: dict[str, list[Tokens]]

    @classmethod
    def read(cls, path: Path) -> Stored:
        """Read a file and its journal; either may be missing.

        Raises:
            DataError: If a line of the file is no stored answer.
        """
        answers: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(_lines(path), 1):
            if not _is_row(line):
                raise DataError(
                    f"{path}, line {number} is no stored answer: {line[:60]!r}; mend "
                    "or delete that line, nothing else in the file is lost"
                )
            row = json.loads(line)
            row.setdefault("reasoning", "")  # files of old have none
            answers[row["key"]] = row
        doubts: dict[str, list[Tokens]] = defaultdict(list)
        for line in _lines(_journal(path)):
            key, *worst = line[1:].split()
            if line[0] == "+":
                doubts[key].append(Tokens(int(worst[0]), int(worst[1])))
            elif doubts[key]:
                doubts[key].pop()
        for key in answers:  # the try that was answered is no doubt
            if doubts[key]:
                doubts[key].pop()
        return cls(answers, doubts)

    def spent(self) -> Tokens:
        """Tokens of all answers and, at the most, of the tries in doubt."""
        spent = [
            Tokens(row["prompt_tokens"], row["completion_tokens"])
            for row in self.answers.values()
        ]
        spent += [worst for tries in self.doubts.values() for worst in tries]
        return sum(spent, Tokens())


class LabelFile:
    """An append-only file of answers, with a journal of what was asked for.

    One line of JSON per answer, flushed to the disk before anything else happens. The
    journal has a line for every request before it goes out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored = Stored.read(path)
        self._file = path.open("ab")
        self._journal = _journal(path).open("ab")

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool) -> Iterator[LabelFile]:
        """Open a file to append to it, as the only process that does.

        Raises:
            LabelError: If another process is writing to it.
            DataError: If it holds something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(path, path.with_name(path.name + ".lock"), LabelError):
            _check_ours(path)
            for part in (path, _journal(path)):
                if not resume:
                    part.unlink(missing_ok=True)
                _mend_last_line(part)
            file = cls(path)
            with file._file, file._journal:
                yield file

    def mark(self, request: Request, worst: Tokens) -> None:
        """Note that a request is about to go out, and what it can take."""
        self._write(self._journal, f"+{request.key} {worst.prompt} {worst.completion}")

    def unmark(self, request: Request) -> None:
        """Note that it came to nothing, and cost nothing."""
        self._write(self._journal, f"-{request.key}")

    def append(self, row: dict[str, Any]) -> None:
        """Store an answer."""
        self._write(self._file, json.dumps(row, ensure_ascii=False))
        self.stored.answers[row["key"]] = row

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


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = path.read_bytes()
    # JSON escapes line feeds, and only those end a line here.
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]


def read_labels(path: str | Path) -> Dataset:
    """Every answer of a file that ``write_labels`` wrote, in its order.

    Raises:
        DataError: If there is no such file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; write_labels makes it")
    answers = Stored.read(path).answers
    if not answers:
        raise DataError(f"{path} holds no answer yet; call write_labels")
    return as_dataset(list(answers.values()))


def as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """A dataset whose messages are read as they were asked."""
    from datasets import Dataset, Features  # heavy: not at import

    # from_list takes the first row's columns, and a file may hold several kinds.
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in names} for row in rows]
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
