"""What answers cost, and how far the money reaches.

Taught in notebook 04.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distill_helpers.labels.store import Doubts, LabelFile
from distill_helpers.labels.teachers import Answer, Failure, Request, Teacher


def tokens_spent(rows: Iterable[Mapping[str, Any]], doubts: Doubts) -> tuple[int, int]:
    """Prompt and answer tokens of stored answers, and at the most of those in doubt."""
    spent = [(row["prompt_tokens"], row["completion_tokens"]) for row in rows]
    spent += [worst for tries in doubts.values() for worst in tries]
    return sum(one for one, _ in spent), sum(two for _, two in spent)


def cost_of(teacher: Teacher, tokens: tuple[int, int]) -> float | None:
    if teacher.price is None:
        return None
    return sum(n * price for n, price in zip(tokens, teacher.price, strict=True)) / 1e6


class Budget:
    """Counts what is spent, and reserves the worst of what is under way."""

    def __init__(
        self,
        teacher: Teacher,
        file: LabelFile,
        max_total_tokens: int | None,
        max_cost: float | None,
    ) -> None:
        self.teacher = teacher
        self.max_tokens = max_total_tokens
        self.max_cost = max_cost
        self.ended = False
        # What a killed run had under way may have been paid for, and is asked for
        # again: it counts twice.
        self._spent = tokens_spent(file.answers.values(), file.doubts)
        self._reserved = (0, 0)
        self._known: dict[str, tuple[int, int]] = {}

    def admits(self, request: Request) -> bool:
        """Whether the budget holds even if this and all under way are at their worst.

        It may hold later, when those under way turn out cheaper.
        """
        total = _sum(_sum(self._spent, self._reserved), self.worst(request))
        over = self.max_tokens is not None and sum(total) > self.max_tokens
        cost = cost_of(self.teacher, total)
        if self.max_cost is not None and cost is not None:
            over = over or cost > self.max_cost
        self.ended = over
        return not over

    def reserve(self, request: Request) -> None:
        """Set the worst case aside."""
        self._reserved = _sum(self._reserved, self.worst(request))

    def settle(self, request: Request, result: Answer | Failure) -> None:
        """Replace the worst case by what it was."""
        worst = self.worst(request)
        self._reserved = (
            self._reserved[0] - worst[0],
            self._reserved[1] - worst[1],
        )
        if isinstance(result, Answer):
            worst = (result.prompt_tokens, result.completion_tokens)
        elif not result.paid:
            return
        self._spent = _sum(self._spent, worst)

    def words(self) -> str:
        """For the progress bar."""
        cost = cost_of(self.teacher, self._spent)
        tokens = f"{sum(self._spent):,} tokens"
        return tokens if cost is None else f"{tokens}, cost {cost:.4f}"

    def worst(self, request: Request) -> tuple[int, int]:
        """The most tokens that a request can take, of its prompt and its answer."""
        if request.key not in self._known:
            prompt = self.teacher.prompt_tokens(request.messages)
            self._known[request.key] = (prompt, request.max_new_tokens)
        return self._known[request.key]


def _sum(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    return one[0] + two[0], one[1] + two[1]
