"""How far a budget reaches while answers are under way.

Taught in notebook 05.
"""

from __future__ import annotations

from distill_helpers.labels.teachers import Answer, Failure, Request, Teacher, Tokens


class Budget:
    """Counts what is spent, and reserves the worst of what is under way.

    Args:
        teacher: The teacher, for its price and its count of a prompt's tokens.
        max_total_tokens: The most tokens of all answers, prompts included.
        max_cost: The most that they may cost, in the currency of the teacher's price.

    Raises:
        ValueError: For a limit that is not positive, or one of money without a price.
    """

    def __init__(
        self,
        teacher: Teacher,
        max_total_tokens: int | None,
        max_cost: float | None,
    ) -> None:
        for name, value in (
            ("max_total_tokens", max_total_tokens),
            ("max_cost", max_cost),
        ):
            if value is not None and value <= 0:
                raise ValueError(
                    f"{name}={value} must be positive, or None for no limit"
                )
        if max_cost is not None and teacher.price is None:
            raise ValueError(
                f"max_cost={max_cost} needs a price: pass price=(per million prompt "
                "tokens, per million answer tokens) to the teacher, or use "
                "max_total_tokens"
            )
        self.teacher = teacher
        self.max_tokens = max_total_tokens
        self.max_cost = max_cost
        self.ended = False
        self._spent = Tokens()
        self._reserved = Tokens()
        self._worst: dict[str, Tokens] = {}

    def spend(self, tokens: Tokens) -> None:
        """Count what was spent before."""
        self._spent += tokens

    def admits(self, request: Request) -> bool:
        """Whether the budget holds even if this and all under way are at their worst.

        It may hold later, when those under way turn out cheaper.
        """
        total = self._spent + self._reserved + self.worst(request)
        cost = total.cost(self.teacher.price)
        self.ended = (
            self.max_tokens is not None and total.total > self.max_tokens
        ) or (self.max_cost is not None and cost is not None and cost > self.max_cost)
        return not self.ended

    def reserve(self, request: Request) -> None:
        """Set the worst case aside."""
        self._reserved += self.worst(request)

    def settle(self, request: Request, result: Answer | Failure) -> None:
        """Replace the worst case by what it was."""
        worst = self.worst(request)
        self._reserved -= worst
        if isinstance(result, Answer):
            self._spent += Tokens(result.prompt_tokens, result.completion_tokens)
        elif result.paid:
            self._spent += worst

    def words(self) -> str:
        """What is spent, for the progress bar."""
        cost = self._spent.cost(self.teacher.price)
        tokens = f"{self._spent.total:,} tokens"
        return tokens if cost is None else f"{tokens}, cost {cost:.4f}"

    def worst(self, request: Request) -> Tokens:
        """The most tokens that a request can take, of its prompt and its answer."""
        if request.key not in self._worst:
            prompt = self.teacher.prompt_tokens(request.messages)
            self._worst[request.key] = Tokens(prompt, request.max_new_tokens)
        return self._worst[request.key]
