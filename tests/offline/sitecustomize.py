"""Python imports this at its start when the folder is on PYTHONPATH."""

import loopback_only

loopback_only.install()
