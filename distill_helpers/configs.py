"""The old place of :mod:`distill_helpers.cli.configs` and ``.runs``."""

from distill_helpers.cli.configs import *  # noqa: F403
from distill_helpers.cli.runs import *  # noqa: F403
