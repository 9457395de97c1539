"""A script in two gloo processes, in which accelerate spreads weights if it is told so.

accelerate does that only where it sees GPUs. With ``tell = True`` it is told that it
does; all that follows is its own, on CPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
BEGIN = """
import json, shutil, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from distill_helpers.trainers import end_processes

folder, tell, found = Path(sys.argv[1]), False, {}
real = AcceleratorState.__init__
def begin(self, *args, **options):
    if tell and not AcceleratorState._shared_state:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    real(self, *args, **options)
AcceleratorState.__init__ = begin
"""
END = """
if rank == 0:
    (folder / "found.json").write_text(json.dumps(found))
end_processes()
"""


def run_in_two(script: str, folder: Path, *arguments: str) -> Any:
    """What ``found`` holds when both have run the script.

    Args:
        script: Sets ``rank``, and fills ``found``; it may import what tests import.
        folder: Where everything is written; the script knows it by this name.
        arguments: ``sys.argv[2:]`` of the script.
    """
    worker = folder / "worker.py"
    worker.write_text(BEGIN + script + END)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(TESTS), str(TESTS / "trainers")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    ended = subprocess.run(
        [*launch, "--nproc_per_node=2", worker, folder, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())
