"""Several teachers, of which each row names its own.

Taught in notebook 02, as a variant of the loop with one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill_helpers.data import DataError
from distill_helpers.losses import IGNORE_INDEX, Hidden

if TYPE_CHECKING:
    from distill_helpers.trainers.soft_hard import SoftLabels

# What a batch says of each row: the place of its teacher among the teachers.
ROUTE = "teacher_place"


def each_teacher(
    teacher: Any, tokenizer: Any, column: str | None
) -> dict[Any, tuple[Any, Any]]:
    """Teachers and their tokenizers by name; of a lone teacher, by ``None``.

    Args:
        teacher: A teacher, or a mapping from names to teachers.
        tokenizer: The tokenizer of all, or a mapping likewise; ``None`` where none is
            known.
        column: The column in which rows name their teachers; ``None`` with one.

    Raises:
        ValueError: If one of teachers, tokenizers and column lacks the others.
    """
    if not isinstance(teacher, Mapping):
        if column is not None:
            raise ValueError(
                f"teacher_column={column!r} chooses among several teachers, and there "
                'is one; pass teacher={"name": model, …}, or leave the column out'
            )
        return {None: (teacher, tokenizer)}
    if not teacher or column is None:
        raise ValueError(
            f"teacher holds {len(teacher)} teachers by name, and teacher_column is "
            f"{column!r}; pass at least one, and the column in which each row names "
            "its own"
        )
    if not isinstance(tokenizer, Mapping):
        tokenizer = dict.fromkeys(teacher, tokenizer)
    if tokenizer.keys() != teacher.keys():
        raise ValueError(
            f"teacher_tokenizer names {_listed(tokenizer)}, and the teachers are "
            f"{_listed(teacher)}; give each its own, or one for all"
        )
    return {name: (teacher[name], tokenizer[name]) for name in teacher}


@dataclass(frozen=True)
class RoutedCollator:
    """Makes a batch that says which teacher each row has.

    Attributes:
        collate: Makes the batch of all else.
        column: The column in which rows name their teachers.
        names: The names of the teachers, in the order of their places.
    """

    collate: Callable[[list[Any]], Any]
    column: str
    names: tuple[Any, ...]

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Return the batch with one place for each row, ``[rows]``."""
        # Rows that the student has written anew hold the place itself.
        places = [row[ROUTE] if ROUTE in row else self._place(row) for row in rows]
        return {**self.collate(rows), ROUTE: torch.tensor(places)}

    def _place(self, row: Mapping[str, Any]) -> int:
        who = row.get(self.column)
        if who not in self.names:
            raise DataError(self._unknown("a row", who))
        return self.names.index(who)

    def check(self, name: str, rows: Any) -> None:
        """Refuse a dataset with a row that names no teacher; a stream is not read.

        Args:
            name: What the dataset is called, for the message.
            rows: The dataset; or several, by name.

        Raises:
            DataError: With the first such row, and the names that are known.
        """
        if isinstance(rows, dict):
            for key, part in rows.items():
                self.check(f"{name}[{key!r}]", part)
            return
        columns = getattr(rows, "column_names", None)
        if columns is None:
            return
        if self.column not in columns:
            raise DataError(
                f"{name} has the columns {columns}, and not "
                f"teacher_column={self.column!r}, in which each row names its teacher; "
                "learn_answers and pack_examples leave it out, so make the rows of "
                'each teacher apart, rows.add_column("…", [name] * len(rows)), and '
                "join them with datasets.concatenate_datasets"
            )
        for number, who in enumerate(rows[self.column]):
            if who not in self.names:
                raise DataError(self._unknown(f"row {number} of {name}", who))

    def _unknown(self, row: str, who: Any) -> str:
        return (
            f"{row} has {who!r} in the column {self.column!r}, and the teachers are "
            f"{_listed(self.names)}; add that teacher, or leave the row out"
        )


class RoutedLabels:
    """Soft labels of several teachers, each for its own rows.

    The loss is the sum over all positions, whoever teaches them, divided by their
    number: that of each teacher's rows, weighted by their positions. A teacher reads
    its rows alone; the student reads the batch once.

    Args:
        parts: The objectives with one teacher each, in the order of their places.
    """

    def __init__(self, parts: tuple[SoftLabels, ...]) -> None:
        self.parts = parts

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its two parts; see :class:`Objective`."""
        places = inputs[ROUTE]
        inputs = {name: value for name, value in inputs.items() if name != ROUTE}
        if num_items is None:
            num_items = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        said = []
        for place, part in enumerate(self.parts):
            rows = (places == place).nonzero().flatten()
            if len(rows):
                own = {name: value[rows] for name, value in inputs.items()}
                said.append((part, rows, own["labels"], part.teacher.read(own)))
        student = self.parts[0].student.read(model, inputs)
        losses = [
            part.compare(_of_rows(student, rows), teacher, labels, num_items)
            for part, rows, labels, teacher in said
        ]
        return {
            name: torch.stack([x[name] for x in losses]).sum() for name in losses[0]
        }


def _of_rows(
    student: torch.Tensor | Hidden, rows: torch.Tensor
) -> torch.Tensor | Hidden:
    if isinstance(student, Hidden):
        return replace(student, states=student.states[rows])
    return student[rows]


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))
