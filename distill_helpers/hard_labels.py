"""Moved to ``distill_helpers.labels``."""

from distill_helpers.labels.ask import LabelPlan, plan_labels, write_labels  # noqa: F401
from distill_helpers.labels.messages import Message, Prompt  # noqa: F401
from distill_helpers.labels.rows import learn_answers, own_labels  # noqa: F401
from distill_helpers.labels.store import read_labels  # noqa: F401
from distill_helpers.labels.teachers import (  # noqa: F401
    Answer,
    Failure,
    LabelError,
    LocalTeacher,
    Request,
    Teacher,
)
from distill_helpers.labels.templates import prompt_ids, prompt_text  # noqa: F401
