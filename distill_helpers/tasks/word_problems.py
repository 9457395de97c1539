"""Word problems with worked steps: any number of them, and an exact checker.

Fourteen templates, each with names, things and numbers of its own, two to four steps
of whole numbers. An answer is a line per step and then ``#### 42``, the way of GSM8K
(Cobbe et al. 2021, arXiv:2110.14168), so one checker serves both. For models that read
English; the tiny models of the course add numbers, in ``three_sums``.

Taught in notebook 06.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from distill_helpers.data import DataError
from distill_helpers.tasks.bundled import data_path

TEST_SIZE = 1000
_TEST_SEED = 20_261
MAX_ANSWER_TOKENS = 256

_NAMES = (
    *("Amara", "Bilal", "Chen", "Daria", "Elif", "Femi", "Greta", "Hugo", "Ines"),
    *("Jonas", "Kavya", "Liam", "Mei", "Nadia", "Omar", "Priya", "Rosa", "Samir"),
)
# After the marker: a whole number, perhaps with a currency, commas or a point.
_NUMBER = r"\$?\s*(-?\d{1,3}(?:,\d{3})+|-?\d+)(?:\.0+)?"
_MARKED = re.compile(rf"####\s*{_NUMBER}\s*\.?\s*$")
_BOXED = re.compile(rf"\\boxed{{\s*{_NUMBER}\s*}}")


@dataclass(frozen=True)
class WordProblem:
    """One problem with its worked answer.

    Attributes:
        question: The text that is asked.
        steps: The way to the result, a line each.
        result: A whole number.
        template: Where it comes from.
    """

    question: str
    steps: str
    result: int
    template: str

    @property
    def prompt(self) -> str:
        """What a chat model is told."""
        return (
            f"{self.question}\nSolve it step by step, one short line per step. End "
            "with a line of #### and the number alone."
        )

    @property
    def answer(self) -> str:
        """The steps, then the result behind its marker."""
        return f"{self.steps}\n#### {self.result}"

    @property
    def short_answer(self) -> str:
        """The result alone."""
        return f"#### {self.result}"


def read_result(text: str) -> int | None:
    r"""The whole number that an answer ends in, or ``None``.

    It stands behind the last ``####`` with nothing after it, or, as some models
    insist, in the last ``\boxed{}``.
    """
    found = _MARKED.search(text)
    number = found.group(1) if found else None
    if number is None and "####" not in text:
        boxed = _BOXED.findall(text)
        number = boxed[-1] if boxed else None
    if number is None or len(number) > 18:
        return None
    return int(number.replace(",", ""))


def is_right(problem: WordProblem, text: str) -> bool:
    """Whether an answer ends in the right number; how it got there is not judged."""
    return read_result(text) == problem.result


def problems(count: int, *, seed: int) -> list[WordProblem]:
    """Draw different problems, none of them in the frozen test set.

    Args:
        count: How many; at least 1.
        seed: Same seed, same problems; a larger count only adds to them.
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    asked = frozenset(problem.question for problem in test_problems())
    return _draw(count, seed, exclude=asked)


@lru_cache
def test_problems() -> tuple[WordProblem, ...]:
    """The frozen 1,000."""
    path = data_path("word_problems_test.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(WordProblem(**json.loads(line)) for line in lines)


def make_frozen_test() -> str:
    """The content of ``data/word_problems_test.jsonl``."""
    drawn = _draw(TEST_SIZE, _TEST_SEED, exclude=frozenset())
    return "".join(json.dumps(vars(p), ensure_ascii=False) + "\n" for p in drawn)


def load(source: str | Path, split: str, count: int) -> list[WordProblem]:
    """Problems of our own, or those of GSM8K in the same form.

    Args:
        source: ``"templates"``; or GSM8K's repository on the hub, ``"openai/gsm8k"``
            (MIT licence), or a folder that holds a copy.
        split: ``"train"`` or ``"test"``.
        count: So many at most, the first ones.

    Raises:
        DataError: If an answer of GSM8K does not end in a whole number.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be 'train' or 'test'")
    if source == "templates":
        return (
            list(test_problems()[:count])
            if split == "test"
            else problems(count, seed=0)
        )
    from datasets import load_dataset

    name = None if Path(source).is_dir() else "main"
    rows = load_dataset(str(source), name, split=split)
    found = []
    for row in rows.select(range(min(count, len(rows)))):
        # Its calculator notes, <<2+3=5>>, are no part of the way.
        worked = re.sub(r"<<[^>]*>>", "", row["answer"])
        result = read_result(worked)
        if result is None:
            raise DataError(f"a row of {source} has no result: {row['answer']!r}")
        steps, _, _ = worked.rpartition("\n####")
        found.append(WordProblem(row["question"], steps, result, "gsm8k"))
    return found


def _draw(count: int, seed: int, exclude: frozenset[str]) -> list[WordProblem]:
    generator = random.Random(seed)
    names = list(TEMPLATES)
    seen = set(exclude)
    drawn: list[WordProblem] = []
    misses = 0
    while len(drawn) < count:
        # In turn, so that every template is there equally often.
        template = names[len(drawn) % len(names)]
        question, steps, result = TEMPLATES[template](_Draw(generator))
        misses = misses + 1 if question in seen else 0
        if misses > 10_000:
            raise ValueError(
                f"count={count}: the template {template!r} has hardly a new problem "
                f"left after {len(drawn)} in all; ask for fewer"
            )
        if not misses:
            seen.add(question)
            drawn.append(WordProblem(question, "\n".join(steps), result, template))
    return drawn


# --- templates ----------------------------------------------------------------------


class _Draw:
    """Names, things and numbers for one problem."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator

    def number(self, low: int, high: int) -> int:
        return self.generator.randint(low, high)

    def one(self, choices: Sequence[str]) -> str:
        return self.generator.choice(choices)

    def names(self, count: int = 1) -> list[str]:
        return self.generator.sample(_NAMES, count)


Drawn = tuple[str, list[str], int]


def _change(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    thing = draw.one(("notebooks", "apples", "postcards", "candles", "tickets"))
    count, price, paid_on_top = (
        draw.number(3, 9),
        draw.number(2, 15),
        draw.number(1, 20),
    )
    cost = count * price
    paid = cost + paid_on_top
    return (
        f"{name} buys {count} {thing} at {price} dollars each and pays with {paid} "
        "dollars. How many dollars does the shop give back?",
        [f"{count} * {price} = {cost}", f"{paid} - {cost} = {paid_on_top}"],
        paid_on_top,
    )


def _two_goods(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    first, second = draw.one(("pens", "plums")), draw.one(("rulers", "melons"))
    a, b = draw.number(4, 15), draw.number(2, 9)
    p, q = draw.number(2, 9), draw.number(5, 18)
    return (
        f"{name} buys {a} {first} for {p} dollars each and {b} {second} for {q} "
        "dollars each. How many dollars is that in all?",
        [
            f"{a} * {p} = {a * p}",
            f"{b} * {q} = {b * q}",
            f"{a * p} + {b * q} = {a * p + b * q}",
        ],
        a * p + b * q,
    )


def _share_out(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    thing = draw.one(("stickers", "marbles", "walnuts", "seeds"))
    friends, each, kept = draw.number(3, 9), draw.number(4, 20), draw.number(2, 25)
    total = friends * each + kept
    return (
        f"{name} has {total} {thing}, keeps {kept} of them and shares the rest "
        f"equally among {friends} friends. How many {thing} does each friend get?",
        [
            f"{total} - {kept} = {total - kept}",
            f"{total - kept} / {friends} = {each}",
        ],
        each,
    )


def _ages(draw: _Draw) -> Drawn:
    old, young = draw.names(2)
    age, gap, years = draw.number(5, 30), draw.number(2, 25), draw.number(3, 20)
    now, later = age + gap, age + gap + years
    return (
        f"{young} is {age} years old. {old} is {gap} years older than {young}. How "
        f"old will {old} be in {years} years?",
        [f"{age} + {gap} = {now}", f"{now} + {years} = {later}"],
        later,
    )


def _journey(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    vehicle = draw.one(("bus", "train", "ferry"))
    hours, speed = draw.number(2, 6), 10 * draw.number(3, 11)
    more_hours, more_speed = draw.number(2, 5), draw.number(4, 18)
    one, two = hours * speed, more_hours * more_speed
    return (
        f"{name} rides a {vehicle} for {hours} hours at {speed} kilometres an hour "
        f"and then cycles for {more_hours} hours at {more_speed} kilometres an hour. "
        "How many kilometres is that altogether?",
        [
            f"{hours} * {speed} = {one}",
            f"{more_hours} * {more_speed} = {two}",
            f"{one} + {two} = {one + two}",
        ],
        one + two,
    )


def _wages(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    days, hours, pay = draw.number(3, 6), draw.number(3, 8), draw.number(9, 24)
    total = days * hours
    spent = draw.number(10, 60)
    earned = total * pay
    return (
        f"{name} works {hours} hours a day on {days} days, for {pay} dollars an hour, "
        f"and then spends {spent} dollars on a coat. How many dollars are left?",
        [
            f"{days} * {hours} = {total}",
            f"{total} * {pay} = {earned}",
            f"{earned} - {spent} = {earned - spent}",
        ],
        earned - spent,
    )


def _boxes(draw: _Draw) -> Drawn:
    place = draw.one(("bakery", "factory", "farm"))
    thing = draw.one(("eggs", "rolls", "jars"))
    boxes, size, broken = draw.number(5, 18), draw.number(6, 24), draw.number(2, 25)
    total = boxes * size
    return (
        f"A {place} fills {boxes} boxes with {size} {thing} each. On the way, {broken} "
        f"{thing} break. How many {thing} arrive whole?",
        [f"{boxes} * {size} = {total}", f"{total} - {broken} = {total - broken}"],
        total - broken,
    )


def _savings(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    start, week, weeks = draw.number(5, 60), draw.number(4, 20), draw.number(4, 15)
    saved = week * weeks
    goal = start + saved + draw.number(5, 90)
    have = start + saved
    return (
        f"{name} has {start} dollars and saves {week} dollars a week for {weeks} "
        f"weeks. A bicycle costs {goal} dollars. How many dollars are still missing?",
        [
            f"{week} * {weeks} = {saved}",
            f"{start} + {saved} = {have}",
            f"{goal} - {have} = {goal - have}",
        ],
        goal - have,
    )


def _rows_of_seats(draw: _Draw) -> Drawn:
    place = draw.one(("cinema", "theatre", "hall"))
    rows, seats = draw.number(6, 20), draw.number(8, 25)
    total = rows * seats
    taken = draw.number(20, total - 10)
    price = draw.number(3, 12)
    free = total - taken
    return (
        f"A {place} has {rows} rows of {seats} seats, and {taken} seats are sold. "
        f"The rest are sold at the door for {price} dollars each. How many dollars "
        "come in at the door?",
        [
            f"{rows} * {seats} = {total}",
            f"{total} - {taken} = {free}",
            f"{free} * {price} = {free * price}",
        ],
        free * price,
    )


def _times_as_many(draw: _Draw) -> Drawn:
    one, two, three = draw.names(3)
    thing = draw.one(("books", "shells", "stamps", "coins"))
    count, times, more = draw.number(4, 25), draw.number(2, 6), draw.number(3, 30)
    second = count * times
    third = second + more
    total = count + second + third
    return (
        f"{one} has {count} {thing}. {two} has {times} times as many, and {three} has "
        f"{more} more than {two}. How many {thing} do the three have together?",
        [
            f"{count} * {times} = {second}",
            f"{second} + {more} = {third}",
            f"{count} + {second} + {third} = {total}",
        ],
        total,
    )


def _reading(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    a, b, days = draw.number(8, 40), draw.number(5, 30), draw.number(2, 8)
    rest = draw.number(3, 60)
    read = a + b * days
    return (
        f"{name} reads {a} pages of a book on Monday and {b} pages on each of the "
        f"next {days} days. The book has {read + rest} pages. How many are left?",
        [
            f"{b} * {days} = {b * days}",
            f"{a} + {b * days} = {read}",
            f"{read + rest} - {read} = {rest}",
        ],
        rest,
    )


def _half_sold(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    thing = draw.one(("pies", "lamps", "baskets"))
    half, price, fee = draw.number(6, 30), draw.number(3, 14), draw.number(2, 15)
    count, earned = 2 * half, half * price
    return (
        f"{name} takes {count} {thing} to the market and sells half of them for "
        f"{price} dollars each. The stall costs {fee} dollars. How many dollars does "
        f"{name} take home?",
        [
            f"{count} / 2 = {half}",
            f"{half} * {price} = {earned}",
            f"{earned} - {fee} = {earned - fee}",
        ],
        earned - fee,
    )


def _garden(draw: _Draw) -> Drawn:
    (name,) = draw.names()
    length, width, price = draw.number(6, 30), draw.number(3, 20), draw.number(2, 9)
    side = length + width
    fence = 2 * side
    return (
        f"{name} puts a fence around a garden {length} metres long and {width} metres "
        f"wide. A metre of fence costs {price} dollars. How many dollars does the "
        "fence cost?",
        [
            f"{length} + {width} = {side}",
            f"2 * {side} = {fence}",
            f"{fence} * {price} = {fence * price}",
        ],
        fence * price,
    )


def _bus_stops(draw: _Draw) -> Drawn:
    start, off, on = draw.number(20, 60), draw.number(3, 18), draw.number(2, 20)
    more_off = draw.number(1, start - off + on - 1)
    one, two = start - off, start - off + on
    last = two - more_off
    return (
        f"A bus leaves with {start} people. At the first stop {off} get off and {on} "
        f"get on. At the second stop {more_off} get off. How many people are on the "
        "bus now?",
        [
            f"{start} - {off} = {one}",
            f"{one} + {on} = {two}",
            f"{two} - {more_off} = {last}",
        ],
        last,
    )


TEMPLATES: dict[str, Callable[[_Draw], Drawn]] = {
    "change": _change,
    "two goods": _two_goods,
    "share out": _share_out,
    "ages": _ages,
    "journey": _journey,
    "wages": _wages,
    "boxes": _boxes,
    "savings": _savings,
    "rows of seats": _rows_of_seats,
    "times as many": _times_as_many,
    "reading": _reading,
    "half sold": _half_sold,
    "garden": _garden,
    "bus stops": _bus_stops,
}
