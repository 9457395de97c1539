"""Moved to ``distill_helpers.labels.schemes``."""

from distill_helpers.labels.schemes import *  # noqa: F403
