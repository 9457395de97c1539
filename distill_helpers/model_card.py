"""Moved to :mod:`distill_helpers.course.model_card`."""

from distill_helpers.course.model_card import *  # noqa: F403
