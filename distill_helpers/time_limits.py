"""The old name of :mod:`distill_helpers.course.checks.time_limits`."""

from distill_helpers.course.checks.time_limits import (  # noqa: F401
    OutOfTime,
    call_within,
)
