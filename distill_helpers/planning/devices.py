"""What a training step runs on: memory, speed and price. Importing it needs no torch.

Used in notebook 13; notebook 11 computes its prices with the same table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from distill_helpers.machine import Profile


@dataclass(frozen=True)
class Device:
    """What a step runs on.

    Attributes:
        name: The name that people use.
        kind: ``"cuda"`` or ``"cpu"``.
        memory_gib: GiB of memory that programs can use.
        half_flops: Operations per second of dense matrix products in ``half``, stated
            by the vendor; on the CPU they are measured.
        full_flops: Operations per second of the same products in fp32.
        half: The half precision to train in, such as ``"bfloat16"`` (or
            ``torch.bfloat16``); ``None`` where it does not pay.
        dollars_per_hour: The price of renting one; ``None`` if it is yours.
        utilisation: The share of these operations that training reaches.
        flash: Whether it has flash attention: every CPU, and GPUs from Ampere on.
    """

    name: str
    kind: str
    memory_gib: float
    half_flops: float
    full_flops: float
    half: str | torch.dtype | None
    dollars_per_hour: float | None
    utilisation: float = 0.3
    flash: bool = True


# Operations: NVIDIA's data sheets, dense. Prices: list prices on demand in 2026 of
# AWS (T4: g4dn.xlarge, L4: g6.xlarge) and the middle of specialised providers (A100,
# H100). They change; `dataclasses.replace(DEVICES["T4"], dollars_per_hour=…)` puts in
# what you pay.
DEVICES = {
    "T4": Device("T4", "cuda", 14.6, 65e12, 8.1e12, "float16", 0.53, flash=False),
    "L4": Device("L4", "cuda", 22.0, 121e12, 30e12, "bfloat16", 0.81),
    "A100": Device("A100 40 GB", "cuda", 39.4, 312e12, 19.5e12, "bfloat16", 1.3),
    "H100": Device("H100", "cuda", 79.1, 989e12, 67e12, "bfloat16", 3.0),
}


def this_cpu() -> Device:
    """Describe this machine's CPU; measuring its speed takes a tenth of a second."""
    import torch

    from distill_helpers.machine import cpu_bf16_pays, matmul_flops, memory_gib

    full = matmul_flops(torch.float32)
    half = torch.bfloat16 if cpu_bf16_pays() else None
    speed = full if half is None else matmul_flops(half)
    memory = memory_gib() or 8.0
    return Device("this CPU", "cpu", memory, speed, full, half, None, utilisation=0.5)


def this_gpu() -> Device:
    """Describe this machine's GPU: from ``DEVICES``, or measured if it is not there."""
    import torch

    from distill_helpers.machine import cuda_dtype, has_flash_attention, matmul_flops

    properties = torch.cuda.get_device_properties(0)
    memory = properties.total_memory / 2**30
    words = re.split(r"[\s-]", properties.name)
    for name, known in DEVICES.items():
        if name in words:  # such as "Tesla T4" or "NVIDIA A100-SXM4-80GB"
            return replace(known, name=properties.name, memory_gib=memory)
    half = cuda_dtype()
    return Device(
        properties.name,
        "cuda",
        memory,
        matmul_flops(half, "cuda"),
        matmul_flops(torch.float32, "cuda"),
        half,
        None,
        flash=has_flash_attention("cuda"),
    )


def device_of(profile: Profile) -> Device:
    """Return what a profile runs on here; ``gpu`` on a machine without one: a T4."""
    import torch

    if profile.name == "gpu" and not torch.cuda.is_available():
        return DEVICES["T4"]
    return this_gpu() if profile.device == "cuda" else this_cpu()
