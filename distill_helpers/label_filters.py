"""Moved to ``distill_helpers.labels.filters``."""

from distill_helpers.labels.filters import *  # noqa: F403
