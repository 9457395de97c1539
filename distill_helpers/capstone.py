"""Moved to ``distill_helpers.course``: ``verdict`` and ``project``."""

from distill_helpers.course.project import *  # noqa: F403
from distill_helpers.course.verdict import *  # noqa: F403
from distill_helpers.course.verdict import StudentVerdict as Worth  # noqa: F401
from distill_helpers.course.verdict import judge_student as weigh  # noqa: F401
