"""Moved to :mod:`distill_helpers.course.plots`."""

from distill_helpers.course.plots import *  # noqa: F403
