"""Moved to :mod:`distill_helpers.course.prices`."""

from distill_helpers.course.prices import *  # noqa: F403
