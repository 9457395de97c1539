"""Moved to :mod:`distill_helpers.course.bugs`."""

from distill_helpers.course.bugs import *  # noqa: F403
from distill_helpers.course.bugs import LossFunction  # noqa: F401
