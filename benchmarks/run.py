"""``make bench``: measure, write ``results.md`` and ``reference.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_cache
import bench_losses
import bench_trainers
import torch
from peers import BETA, LOSSES, make_inputs

HERE = Path(__file__).resolve().parent
VERSIONS = ("torch", "transformers", "trl", "liger-kernel")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        cpu = found[1] if found else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def reference_values() -> list[dict[str, Any]]:
    """Loss and gradients of the libraries on small inputs, for ``make test``."""
    shape = (24, 16, 101)
    rows = []
    for name in ("TRL static", "TRL chunked", "Liger"):
        for divergence in BETA:
            tensors = make_inputs(*shape)
            loss = LOSSES[name](*tensors, divergence=divergence)
            loss.backward()
            rows.append(
                {
                    "library": name,
                    "shape": shape,
                    "divergence": divergence,
                    "loss": float(loss.detach()),
                    "hidden_gradient": _fingerprint(tensors[0].grad),
                    "head_gradient": _fingerprint(tensors[1].grad),
                }
            )
    return rows


def _fingerprint(gradient: torch.Tensor | None) -> list[float]:
    """The norm, and the first few numbers."""
    assert gradient is not None
    return [gradient.norm().item(), *gradient.flatten()[:6].tolist()]


def tables(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    about = found["machine"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; every number comes from one run of it. Ratios are "
        "what to compare, seconds belong to this machine: "
        + ", ".join(f"{name} {value}" for name, value in about.items())
        + ".",
        "",
        "## Soft-label losses, forward and backward, fp32, 25 % of labels ignored",
        "",
        "Seconds, then as a multiple of the four matrix products that nobody can do "
        "without; MiB beyond inputs and gradients.",
    ]
    for row in found["losses"]:
        floor = row["seconds"][bench_losses.FLOOR]
        lines += [
            "",
            f"### N, H, V = {', '.join(f'{n:,}' for n in row['shape'])}: "
            f"{row['divergence']}",
            "",
            "| implementation | s | × products | MiB |",
            "|---|--:|--:|--:|",
        ]
        for name in LOSSES:
            seconds = row["seconds"][name]
            lines.append(
                f"| {name} | {seconds:.3f} | {seconds / floor:.2f} | "
                f"{row['mib'][name]:.0f} |"
            )
    lines += [
        "",
        "## Ours with more and more tokens (H = 256, V = 32,000, forward KL)",
        "",
        "| tokens | s | s per 1,000 tokens | MiB |",
        "|--:|--:|--:|--:|",
    ]
    for row in found["growth"]:
        per = 1000 * row["seconds"] / row["tokens"]
        lines.append(
            f"| {row['tokens']:,} | {row['seconds']:.3f} | {per:.3f} | "
            f"{row['mib']:.0f} |"
        )
    lines += [
        "",
        "## Training steps: SmolLM2 teaches its 20-layer self, 4 × 512 tokens",
        "",
        "| trainer | precision | tokens/s | MiB above the weights | losses |",
        "|---|---|--:|--:|---|",
    ]
    for row in found["trainers"]:
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        lines.append(
            f"| {row['trainer']} | {row['precision']} | "
            f"{row['tokens_per_second']:.0f} | {row['mib']:.0f} | {losses} |"
        )
    lines += [
        "",
        "## A cache of the real teacher's soft labels",
        "",
        "| what | value |",
        "|---|--:|",
    ]
    lines += [f"| {name} | {value:.3g} |" for name, value in found["cache"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure everything and write it down."""
    found: dict[str, Any] = {"machine": machine()}
    found |= bench_losses.run()
    found["cache"] = bench_cache.run()
    found["trainers"] = bench_trainers.run()
    (HERE / "results.md").write_text(tables(found), encoding="utf-8")
    reference = {"machine": found["machine"], "values": reference_values()}
    (HERE / "reference.json").write_text(
        json.dumps(reference, indent=1) + "\n", encoding="utf-8"
    )
    (HERE / "results.json").write_text(
        json.dumps(found, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
