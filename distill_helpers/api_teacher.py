"""Moved to ``distill_helpers.labels.api``."""

from distill_helpers.labels.api import ApiTeacher, find_api_key  # noqa: F401
