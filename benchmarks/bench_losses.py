"""Time and memory of soft-label losses, side by side, in fp32 on the CPU.

Time: all implementations take turns in one process. Memory: each in a process of its
own; the highest resident memory during forward and backward, less what was there before
and less the gradients, which every way has to leave behind.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import BETA, LOSSES, make_inputs, matrix_products

SHAPES = ((512, 256, 32_000), (1024, 576, 49_152), (512, 896, 151_936))
GROWTH = (512, 1024, 2048, 4096, 8192)
PRODUCTS = "four matrix products"


def time_losses(
    shape: tuple[int, int, int], divergence: str, rounds: int
) -> dict[str, list[float]]:
    """Seconds of forward and backward, one a round; values must agree."""
    tensors = make_inputs(*shape)
    seconds: dict[str, list[float]] = {name: [] for name in (*LOSSES, PRODUCTS)}
    values = {}
    for turn in range(rounds + 1):
        for name in seconds:
            filled = name != PRODUCTS and LOSSES[name].filled
            for tensor in tensors[:2]:
                tensor.grad = torch.zeros_like(tensor) if filled else None
            start = time.perf_counter()
            if name == PRODUCTS:
                matrix_products(*tensors)
            else:
                loss = LOSSES[name].call(*tensors, divergence=divergence)
                loss.backward()
                values[name] = (float(loss.detach()), tensors[1].grad.norm().item())
                del loss
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    for value, norm in values.values():
        ours = values["ours"]
        assert abs(value - ours[0]) < 1e-4 * ours[0], values
        assert abs(norm - ours[1]) < 1e-4 * ours[1], values
    return seconds


def measure_memory(name: str, shape: tuple[int, int, int], divergence: str) -> float:
    """Extra MiB of one implementation, from a fresh process."""
    arguments = [name, *map(str, shape), divergence]
    done = subprocess.run(
        [sys.executable, __file__, "memory", *arguments],
        # MKL otherwise keeps, in one process out of four, a buffer of 32 MiB more.
        env=os.environ | {"MKL_DISABLE_FAST_MM": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _memory(name: str, tokens: str, width: str, vocabulary: str, kind: str) -> float:
    one = LOSSES[name]
    # Libraries and thread pools allocate at their first use, and what compiles itself
    # does so anew for every shape.
    first = (tokens, width, vocabulary) if one.compiled else (64, width, 1000)
    one.call(*make_inputs(*map(int, first)), divergence=kind).backward()
    tensors = make_inputs(int(tokens), int(width), int(vocabulary))
    if one.filled:
        for tensor in tensors[:2]:
            tensor.grad = torch.zeros_like(tensor).add_(0.0)  # touched, so resident
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    before = status_bytes("VmRSS")
    one.call(*tensors, divergence=kind).backward()
    gradients = sum(t.grad.numel() * t.grad.element_size() for t in tensors[:2])
    if one.filled:
        gradients = 0  # they were there before
    return (status_bytes("VmHWM") - before - gradients) / 2**20


def status_bytes(field: str) -> int:
    """A memory figure of this process, such as ``"VmRSS"``; Linux only."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def measure_growth(rounds: int) -> list[dict[str, Any]]:
    """Ours, with more and more tokens at the smallest vocabulary."""
    rows = []
    for tokens in GROWTH:
        shape = (tokens, *SHAPES[0][1:])
        tensors = make_inputs(*shape)
        seconds = []
        for _ in range(rounds + 1):
            for tensor in tensors[:2]:
                tensor.grad = None
            start = time.perf_counter()
            LOSSES["ours"].call(*tensors, divergence="forward_kl").backward()
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "tokens": tokens,
                "seconds": seconds[1:],
                "mib": measure_memory("ours", shape, "forward_kl"),
            }
        )
    return rows


def run(rounds: int = 5, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure everything; a dictionary that goes into ``reference.json``."""
    found: dict[str, Any] = {"losses": []}
    for shape in SHAPES:
        for divergence in BETA:
            seconds = time_losses(shape, divergence, rounds)
            memory = {n: measure_memory(n, shape, divergence) for n in LOSSES}
            found["losses"].append(
                {
                    "shape": shape,
                    "divergence": divergence,
                    "seconds": seconds,
                    "mib": memory,
                }
            )
            say(f"{shape} {divergence}: " + _line(seconds, memory))
    found["growth"] = measure_growth(rounds)
    for row in found["growth"]:
        middle = statistics.median(row["seconds"])
        say(f"{row['tokens']} tokens: {middle:.3f} s, {row['mib']:.0f} MiB")
    return found


def _line(seconds: dict[str, list[float]], memory: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {statistics.median(found):.3f} s"
        + (f" {memory[name]:.0f} MiB" if name in memory else "")
        for name, found in seconds.items()
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(_memory(*sys.argv[2:]))
    else:
        torch.manual_seed(0)
        run()
