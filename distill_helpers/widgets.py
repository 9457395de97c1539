"""Moved to :mod:`distill_helpers.course.widgets`."""

from distill_helpers.course.widgets import *  # noqa: F403
