"""``make bench``: measure, write ``results.md`` and ``reference.json``.

``make bench ONLY="cache cross"`` measures these sections and leaves the others as they
stand. ``run.py --look --only cache`` is one round, for which nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import bench_aligning
import bench_cache
import bench_losses
import bench_processes
import bench_steps
import bench_trainers
import bench_waiting
import bench_writing
import rollouts
import torch
from peers import BETA, LOSSES, make_inputs

HERE = Path(__file__).resolve().parent
LIBRARIES = ("TRL static", "TRL chunked", "Liger")
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
        **_state(),
    }


def _state() -> dict[str, str]:
    """The commit and the day of the measurement; a changed tree says so."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "..", ":!*results.*")
    commit = git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    return {"commit": commit, "day": date.today().isoformat()}


def reference_values() -> list[dict[str, Any]]:
    """Loss and gradients of the libraries on small inputs, for ``make test``."""
    shape = (24, 16, 101)
    rows = []
    for name in LIBRARIES:
        for divergence in BETA:
            tensors = make_inputs(*shape)
            loss = LOSSES[name].call(*tensors, divergence=divergence)
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
    """The measurements as Markdown, section by section."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios are what to compare; seconds belong to the "
        "machine. What is compared in a table took turns in one run. Medians; behind "
        "them, the least and the most of the rounds.",
    ]
    for name, show in SHOWN.items():
        if name in found:
            lines += show(found[name]["found"])
            about = found[name]["machine"].items()
            lines += [
                "",
                f"*On {', '.join(f'{key} {value}' for key, value in about)}.*",
            ]
    return "\n".join(lines) + "\n"


def _losses(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Soft-label losses, forward and backward, fp32, 25 % of labels ignored",
        "",
        "Seconds, then as a multiple of those that the plain way's four matrix "
        "products take on the rows that count: both logits, and the gradients of "
        "hidden states and head. A way that does them in blocks can be faster than "
        "they are in one piece. MiB beyond inputs and gradients. *Onto a gradient*: "
        "the gradients are there already, as in accumulation. Otherwise ours lets the "
        "head's gradient lend its memory while it grows; there it cannot.",
        "",
        "| implementation | how it is run | rows multiplied with the heads |",
        "|---|---|---|",
        *(f"| {name} | {one.mode} | {one.rows} |" for name, one in LOSSES.items()),
    ]
    for row in found["losses"]:
        products = median(row["seconds"][bench_losses.PRODUCTS])
        lines += [
            "",
            f"### N, H, V = {', '.join(f'{n:,}' for n in row['shape'])}: "
            f"{row['divergence']}",
            "",
            "| implementation | s | least to most | × products | MiB |",
            "|---|--:|--:|--:|--:|",
        ]
        # A way that came later has no figures until it is measured.
        for name in (one for one in LOSSES if one in row["seconds"]):
            seconds = row["seconds"][name]
            middle = median(seconds)
            lines.append(
                f"| {name} | {middle:.3f} | {_range(seconds, 3)} | "
                f"{middle / products:.2f} | {row['mib'][name]:.0f} |"
            )
    lines += [
        "",
        "### Ours with more and more tokens (H = 256, V = 32,000, forward KL)",
        "",
        "| tokens | s | least to most | s per 1,000 tokens | MiB |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in found["growth"]:
        middle = median(row["seconds"])
        per = 1000 * middle / row["tokens"]
        lines.append(
            f"| {row['tokens']:,} | {middle:.3f} | {_range(row['seconds'], 3)} | "
            f"{per:.3f} | {row['mib']:.0f} |"
        )
    return lines


def _range(values: Sequence[float], digits: int = 0) -> str:
    if len(values) < 2:
        return ""  # of the first edition, which kept the medians alone
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"


def _trainers(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Training steps: SmolLM2 teaches its 20-layer self, 4 × 512 tokens",
        "",
        "| trainer | precision | tokens/s | least to most | MiB above the weights "
        "| losses |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in found:
        losses = ", ".join(f"{loss:.4f}" for loss in row["losses"])
        lines.append(
            f"| {row['trainer']} | {row['precision']} | "
            f"{median(row['tokens_per_second']):.0f} | "
            f"{_range(row['tokens_per_second'])} | {median(row['mib']):.0f} | "
            f"{losses} |"
        )
    return lines


def _steps(title: str, about: str, found: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"## {title}", "", about, ""]
    lines += [
        "| step | precision | s | least to most | × the base's | least to most "
        "| numbers that learn | MiB above the weights |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        base = row["step"] == row["base"]
        ratio = "base" if base else f"{median(row['ratio']):.2f}"
        lines.append(
            f"| {row['step']} | {row['precision']} | {median(row['seconds']):.3f} | "
            f"{_range(row['seconds'], 3)} | {ratio} | "
            f"{'' if base else _range(row['ratio'], 2)} | {row['trained']:,} | "
            f"{median(row['mib']):.0f} |"
        )
    return lines


def _values(
    title: str, found: Mapping[str, float | list[float]], about: str = ""
) -> list[str]:
    lines = ["", f"## {title}", "", *([about, ""] if about else [])]
    lines += ["| what | value | least to most |", "|---|--:|--:|"]
    for name, given in found.items():
        # The first edition kept the medians alone.
        values = given if isinstance(given, list) else [given]
        digits = 0 if min(values) >= 100 else 2
        shown = f"{median(values):,.{digits}f}"
        lines.append(f"| {name} | {shown} | {_range(values, digits)} |")
    return lines


def _waiting(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## A training step beside others on two cores, 2 × 128 tokens",
        "",
        "Threads that wait asleep (`OMP_WAIT_POLICY=passive`) against OpenMP's own "
        "way; medians of the rounds, and of the rounds' ratios.",
        "",
        "| other jobs | s, default | s, passive | ratio | from | to |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        figures = [row[name] for name in ("default", "passive")]
        figures += [row[name] for name in ("ratio", "least", "most")]
        shown = " | ".join(f"{figure:.2f}" for figure in figures)
        lines.append(f"| {row['others']} | {shown} |")
    return lines


SHOWN: dict[str, Callable[[Any], list[str]]] = {
    "losses": _losses,
    "trainers": _trainers,
    "adapters": partial(
        _steps,
        "Adapters or all weights: SmolLM2's 20-layer self, 2 × 128 tokens",
        f"Adapters of rank {bench_steps.RANK}, AdamW, from the text's labels and from "
        "SmolLM2's distributions. Ratios to the step of all weights, round by round.",
    ),
    "cross": partial(
        _steps,
        "What `cross=` costs: SmolLM2 teaches its 20-layer self, 2 × 128 tokens",
        "The teacher's tokenizer is the student's own, so that teacher, student and "
        "rows are those of the plain step, and every token is a chunk. With other "
        "tokenizers there are fewer chunks, and less to compare. Ratios round by "
        "round.",
    ),
    "aligning": partial(
        _values,
        "Aligning a text with another tokenizer's, on one core",
        about="`Alignment.align` row by row, and `align_rows` on a dataset. Tokens are "
        "the student's: SmolLM2's 49,152, or the prose student's 2,048.",
    ),
    "cache": partial(_values, "A cache of the real teacher's soft labels"),
    "processes": partial(
        _values,
        "The same cache, written by one process and by two",
        about=f"On {bench_processes.CORES} cores, in fp32; each process computes with "
        "its share of them. All ways wrote the same bytes.",
    ),
    "writing": partial(_values, "The real teacher writes: batches"),
    "waiting": _waiting,
}


SECTIONS: dict[str, Callable[..., Any]] = {
    "losses": bench_losses.run,
    "cache": bench_cache.run,
    "processes": bench_processes.run,
    "trainers": bench_trainers.run,
    "adapters": partial(bench_steps.run, bench_steps.ADAPTERS),
    "aligning": bench_aligning.run,
    "cross": partial(bench_steps.run, bench_steps.CROSS),
    "writing": bench_writing.run,
    "waiting": bench_waiting.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all sections, or those asked for, and write each down as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=SECTIONS, default=[], metavar="SECTION"
    )
    parser.add_argument("--look", action="store_true", help="one round, not written")
    options = parser.parse_args(arguments)
    asked = options.only or list(SECTIONS)
    if options.look:
        for name in asked:
            print("\n".join(SHOWN[name](SECTIONS[name](rounds=1))), flush=True)
        return 0
    stored = HERE / "results.json"
    found: dict[str, Any] = {}
    if stored.is_file():
        found = json.loads(stored.read_text(encoding="utf-8"))
    for name in asked:
        found[name] = {"machine": machine(), "found": SECTIONS[name]()}
        _write("results.json", json.dumps(found, indent=1))
        _write("results.md", tables(found).rstrip())
    write_reference()
    return 0


def write_reference() -> None:
    """What the libraries compute, for ``make test`` to compare with."""
    reference = {
        "machine": machine(),
        "values": reference_values(),
        "rollouts": rollouts.judge_with_trl(),
    }
    _write("reference.json", json.dumps(reference, indent=1))


def _write(name: str, text: str) -> None:
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
