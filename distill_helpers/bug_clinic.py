"""Moved to :mod:`distill_helpers.course.clinic`."""

from distill_helpers.course.clinic import *  # noqa: F403
