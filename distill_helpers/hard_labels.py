"""Moved to ``distill_helpers.labels``."""

from distill_helpers.labels import teachers
from distill_helpers.labels.ask import LabelPlan, plan_labels, write_labels  # noqa: F401
from distill_helpers.labels.messages import Message, Prompt  # noqa: F401
from distill_helpers.labels.rows import learn_answers, own_labels  # noqa: F401
from distill_helpers.labels.store import read_labels  # noqa: F401
from distill_helpers.labels.teachers import (  # noqa: F401
    Action,
    Answer,
    LabelError,
    LocalTeacher,
    Request,
    Teacher,
)
from distill_helpers.labels.templates import prompt_ids, prompt_text  # noqa: F401


def Failure(
    reason: str, *, fatal: bool = False, paid: bool = False, alone: bool = False
) -> teachers.Failure:
    """Make a failure as tests/test_questions.py still does."""
    action = Action.STOP if fatal else Action.SKIP if alone else Action.RETRY
    return teachers.Failure(reason, action, paid)
