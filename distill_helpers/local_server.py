"""Moved to :mod:`distill_helpers.course.local_server`."""

from distill_helpers.course.local_server import *  # noqa: F403
