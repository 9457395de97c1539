"""The old place of some names of :mod:`distill_helpers.gloss_task`."""

from distill_helpers.gloss_task import POOL, learned_rows, pool_labels  # noqa: F401
