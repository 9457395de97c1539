"""The words of the checks and the exercises belong together, one to one."""

import inspect
import re
import string
from pathlib import Path

import pytest

from distill_helpers.course import checks
from distill_helpers.course.checks.engine import Exercise
from distill_helpers.course.checks.words import read_texts, words_of

ROOM = Path(checks.__file__).parent
EXERCISES = {
    value.name: value
    for module in vars(checks).values()
    if inspect.ismodule(module)
    for value in vars(module).values()
    if isinstance(value, Exercise)
}


def test_every_exercise_has_words_and_a_check():
    assert set(EXERCISES) == set(read_texts()) - {"messages"}
    for name in EXERCISES:
        check = getattr(checks, name)
        assert check.__name__ == name
        assert list(inspect.signature(check).parameters) == ["fn", "fallback"]
        assert "Args:\n    fn: ``fn(" in check.__doc__
        assert f"Exercise of {words_of(name).lesson}." in check.__doc__


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
def test_every_input_and_every_mistake_has_words(exercise):
    assert len(exercise.probes()) == len(words_of(exercise.name).inputs)
    known = {**words_of(exercise.name).wrong, **exercise.mistakes}
    assert list(known) == list(exercise.wrong)
    assert set(exercise.edges) <= set(known)


def test_every_message_is_said_and_every_word_said_is_a_message():
    code = "".join(path.read_text(encoding="utf-8") for path in ROOM.glob("*.py"))
    assert set(re.findall(r"""\bsay\(\s*["'](\w+)""", code)) == set(
        read_texts()["messages"]
    )


def test_only_named_braces_are_filled_in():
    for text in read_texts()["messages"].values():
        for _, name, *_ in string.Formatter().parse(text):
            assert name is None or name.isidentifier(), text
