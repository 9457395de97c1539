"""What holds for every test: offline, one thread per worker, no window, no network."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = ROOT / "tests" / "offline"

# Before anything is imported that reads them; child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Two workers with one thread each are faster on two cores than one with two.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")])
)
sys.path[:0] = [str(OFFLINE), str(ROOT / "tools")]

import loopback_only  # noqa: E402

loopback_only.install()
