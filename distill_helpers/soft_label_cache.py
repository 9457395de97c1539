"""Moved to ``distill_helpers.labels``."""

from distill_helpers.labels.cache import SoftLabelCache, Verification  # noqa: F401
from distill_helpers.labels.cache_files import CacheError  # noqa: F401
from distill_helpers.labels.cache_rows import row_key  # noqa: F401
from distill_helpers.labels.cache_writer import write_cache  # noqa: F401
