"""The one shared task of the course: add three numbers, writing out the steps.

A problem reads ``27+58+46=`` and a full answer ``27+58=85,85+46=131;131``: the steps,
then the result after the semicolon. Anyone can generate problems, check an answer
exactly, and see why a model was wrong. Notebooks 06, 07 and 08 each add a
technique's row on it; notebook 11 reads them side by side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from distill_helpers.evaluation import exact_match
from distill_helpers.tasks.bundled import data_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_helpers.models import Loaded

SMALLEST, LARGEST = 10, 99
TEST_SIZE = 2000
_TEST_SEED = 20_260
# The longest answer, "99+99=198,198+99=297;297" and end of text, is 25 tokens.
MAX_ANSWER_TOKENS = 26


@dataclass(frozen=True)
class Problem:
    """Three numbers to add."""

    a: int
    b: int
    c: int

    @property
    def prompt(self) -> str:
        """What a model is given."""
        return f"{self.a}+{self.b}+{self.c}="

    @property
    def result(self) -> int:
        """The right sum."""
        return self.a + self.b + self.c

    @property
    def answer(self) -> str:
        """The steps and the result, as a perfect pupil writes them."""
        first = self.a + self.b
        return f"{self.a}+{self.b}={first},{first}+{self.c}={self.result};{self.result}"


def problems(count: int, *, seed: int) -> list[Problem]:
    """Draw different problems, none of them in the frozen test set.

    Args:
        count: How many.
        seed: Same seed, same problems; a larger count only adds to them.
    """
    available = (LARGEST - SMALLEST + 1) ** 3 - TEST_SIZE
    if not 0 < count <= available:
        raise ValueError(f"count={count} must lie between 1 and {available}")
    return _draw(count, seed, exclude=frozenset(test_problems()))


@lru_cache
def test_problems() -> tuple[Problem, ...]:
    """The frozen 2,000 problems that every technique is judged on."""
    lines = data_path("three_sums_test.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Problem(*json.loads(line)) for line in lines)


def make_frozen_test() -> str:
    """The content of ``data/three_sums_test.jsonl``."""
    drawn = _draw(TEST_SIZE, _TEST_SEED, exclude=frozenset())
    return "".join(f"[{p.a}, {p.b}, {p.c}]\n" for p in drawn)


def _draw(count: int, seed: int, exclude: frozenset[Problem]) -> list[Problem]:
    generator = random.Random(seed)
    seen = set(exclude)
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = Problem(*(generator.randint(SMALLEST, LARGEST) for _ in range(3)))
        if problem not in seen:
            seen.add(problem)
            drawn.append(problem)
    return drawn


def is_right(problem: Problem, text: str) -> bool:
    """Whether a written answer ends in the right result.

    Only what follows the last semicolon counts: the number alone, no sign, no
    leading zero, nothing after it but spaces.
    """
    _, semicolon, result = text.rpartition(";")
    return bool(semicolon) and result.strip() == str(problem.result)


def steps_are_right(problem: Problem, text: str) -> bool:
    """Whether every written step is right too, and in order."""
    return text.strip() == problem.answer


def build_tokenizer() -> PreTrainedTokenizerBase:
    """One token per character, and one to end the text; 16 tokens in all."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<end>", "<pad>", *"0123456789+=,;"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>"
    )


def prompts(chosen: Sequence[Problem]) -> list[str]:
    """The problems as a model reads them."""
    return [problem.prompt for problem in chosen]


def share_right(loaded: Loaded, chosen: Sequence[Problem] | None = None) -> float:
    """Return the share of problems whose result a model gets right.

    Args:
        loaded: The model with its tokenizer.
        chosen: What it is asked. Default: the frozen test set.
    """
    asked = test_problems() if chosen is None else chosen
    share, _ = exact_match(
        loaded.model,
        loaded.tokenizer,
        prompts(asked),
        lambda index, text: is_right(asked[index], text),
        max_new_tokens=MAX_ANSWER_TOKENS,
        batch_size=500,
    )
    return share
