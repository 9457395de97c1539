"""Small models that several studies' tests begin with; each file gets its own."""

import pytest

from distill_helpers.studies import side_by_side, soft_labels
from distill_helpers.tasks.teachers import load_tiny_teacher


@pytest.fixture(scope="module")
def teacher():
    """Knows sums."""
    return load_tiny_teacher("sums")


@pytest.fixture(scope="module")
def base():
    """The student that side_by_side's arms start from, two steps old."""
    return side_by_side.base_student(steps=2)


@pytest.fixture(scope="module")
def pair():
    """The prose teacher and its texts, with four rows to validate and to test on."""
    return soft_labels.load_pair(4, 4)
