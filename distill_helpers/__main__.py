"""``python -m distill_helpers``."""

import sys

from distill_helpers.cli import main

sys.exit(main())
