"""Will it fit, how long will it take, what will it cost: asked before the long cell.

:func:`plan` rehearses the real training step – the package's own objectives, forward,
backward, clipping, optimizer – on *fake* tensors, which have shapes and dtypes but no
memory. What the step would allocate and free is written down; its highest point is
the peak. The operations are counted on the way, and a table of devices turns them into
time and money.

``devices`` holds the table of devices, ``shapes`` the sizes of the models that planning
knows without a network, ``rehearsal`` runs the step, ``ledger`` notes what it
allocates, and ``plans`` has the question and its answer. The devices need no torch;
everything else is loaded when it is first asked for.

Used in notebook 11 and the capstone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill_helpers.planning.devices import (
    DEVICES,
    Device,
    device_of,
    this_cpu,
    this_gpu,
)

if TYPE_CHECKING:
    from distill_helpers.planning.ledger import PARTS
    from distill_helpers.planning.plans import Plan, plan
    from distill_helpers.planning.rehearsal import METHODS, Rehearsal, Step, rehearse
    from distill_helpers.planning.shapes import ARCHITECTURES, config_of, models_of

__all__ = [
    "ARCHITECTURES",
    "DEVICES",
    "METHODS",
    "PARTS",
    "Device",
    "Plan",
    "Rehearsal",
    "Step",
    "config_of",
    "device_of",
    "models_of",
    "plan",
    "rehearse",
    "this_cpu",
    "this_gpu",
]

_LATER = {
    "ledger": ("PARTS",),
    "plans": ("Plan", "plan"),
    "rehearsal": ("METHODS", "Rehearsal", "Step", "rehearse"),
    "shapes": ("ARCHITECTURES", "config_of", "models_of"),
}


def __getattr__(name: str) -> Any:
    """Load a name's module when the name is first asked for."""
    for file, names in _LATER.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
