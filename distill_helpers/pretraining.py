"""The old place of :func:`distill_helpers.three_sums.share_right`."""

from distill_helpers.three_sums import share_right as sums_accuracy  # noqa: F401
