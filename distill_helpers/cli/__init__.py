"""The command line: ``distill …`` or ``python -m distill_helpers …``.

``commands`` has the subcommands, ``configs`` their options as dataclasses, which a
``--config`` file fills in as well, ``runs`` makes models, rows and trainers of the
options, and ``caching`` divides a cache among processes. Importing this room loads no
torch, and neither does ``--help``.

Taught in notebook 04, used whole in the capstone.
"""

from distill_helpers.cli.commands import main

__all__ = ["main"]
