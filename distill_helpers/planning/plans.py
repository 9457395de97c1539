"""The question, :func:`plan`, and its answer, :class:`Plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill_helpers.labels import SCHEMES, scheme_for
from distill_helpers.machine import Profile
from distill_helpers.models import bits_of
from distill_helpers.planning.devices import (
    DEVICES,
    Device,
    device_of,
    this_cpu,
    this_gpu,
)
from distill_helpers.planning.ledger import PARTS
from distill_helpers.planning.rehearsal import (
    METHODS,
    TAUGHT,
    Rehearsal,
    Step,
    rehearse,
)
from distill_helpers.planning.shapes import (
    Model,
    config_of,
    models_of,
    vocabulary_of,
    weight_bytes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What there is beside tensors, CUDA's context and kernels, Python and its libraries;
# and what an allocator leaves unused between them.
_CONTEXT_GIB = {"cuda": 0.6, "cpu": 0.5}
_SPARE = 0.1


@dataclass(frozen=True)
class Plan:
    """The answer of :func:`plan`; print it.

    Attributes:
        step: What was rehearsed.
        device: Where it is to run.
        steps: How many optimizer steps it takes.
        rehearsal: Memory by part, and operations.
        storage: Each scheme with the bytes of disk that soft labels of all tokens
            would take.
        resident: Bytes of models that only lie there.
        remedy: What to change, if it does not fit.
    """

    step: Step
    device: Device
    steps: int
    rehearsal: Rehearsal
    storage: Mapping[str, int]
    remedy: str | None
    resident: int = 0

    @property
    def memory_gib(self) -> float:
        """The peak in GiB, with what the device needs for itself."""
        tensors = self.rehearsal.peak + self.resident
        return tensors / 2**30 + _CONTEXT_GIB[self.device.kind]

    @property
    def fits(self) -> bool:
        """Whether a tenth of the memory stays free."""
        return self.memory_gib <= (1 - _SPARE) * self.device.memory_gib

    @property
    def seconds_per_step(self) -> float:
        """An estimate, from operations and what the device usually reaches."""
        device = self.device
        speed = device.half_flops if self.step.autocast else device.full_flops
        return self.rehearsal.flops / (speed * device.utilisation)

    @property
    def minutes(self) -> float:
        """Minutes of all steps, without loading, data and evaluation."""
        return self.steps * self.seconds_per_step / 60

    @property
    def dollars(self) -> float | None:
        """The cost at the device's price; ``None`` if it has none."""
        price = self.device.dollars_per_hour
        return None if price is None else price * self.minutes / 60

    def __str__(self) -> str:
        step, device = self.step, self.device
        size = f"{step.batch_size} × {step.length} tokens"
        if step.accumulation > 1:
            size = f"{step.accumulation} × {size}"
        what = step.method
        if what == "adapters_off":
            what = "soft labels of the student with its adapters off"
        elif what != "codistillation":
            what += " labels"
        lines = [f"{what}, {size} a step, on {device.name}"]
        if step.adapters:
            trained = f"{self.rehearsal.trained:,} parameters"
            lines.append(f"  adapters of rank {step.adapters}: {trained} learn")
        amounts = {
            part: self.rehearsal.parts[part] / 2**30
            for part in PARTS
            if self.rehearsal.parts.get(part)
        }
        if self.resident:
            amounts["models that only stay"] = self.resident / 2**30
        amounts["context and libraries"] = _CONTEXT_GIB[device.kind]
        amounts["at the peak"] = self.memory_gib
        lines += [f"  {part:22} {amount:7.2f} GiB" for part, amount in amounts.items()]
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines[-1] += f" of {device.memory_gib:.1f}: {verdict}"
        took = f"  about {_duration(self.minutes)} for {self.steps:,} steps"
        if self.dollars is not None:
            took += f", {self.dollars:.2f} dollars"
        if step.method in ("hard", "stored"):
            took += "; writing the labels is not counted"
        lines.append(took)
        if self.storage:
            sizes = (f"{name} {_bytes(size)}" for name, size in self.storage.items())
            lines.append(f"  on disk, if no row comes twice: {', '.join(sizes)}")
        if self.remedy is not None:
            lines.append(f"  {self.remedy}")
        return "\n".join(lines)


def plan(
    models: Profile | tuple[Model | None, Model],
    *,
    batch_size: int,
    length: int,
    steps: int = 1000,
    method: str = "soft",
    device: str | Device | None = None,
    accumulation: int = 1,
    fused: bool = True,
    optimizer: str = "adamw_torch_fused",
    checkpointing: bool = False,
    mixed_precision: bool = True,
    packed: bool = False,
    student: int = 0,
    resident: Sequence[Model] = (),
    adapters: int = 0,
    bits: int | None = None,
) -> Plan:
    """Plan a training run before it begins: memory, time, money and storage.

    Args:
        models: A profile: its teacher and one of its students. Or ``(teacher,
            student)``: models, configs, folders, names of the hub, or ``"packaged"``;
            the teacher may be ``None`` for hard labels and ``"adapters_off"``.
        batch_size: Rows of a micro-batch.
        length: Tokens of a row.
        steps: Optimizer steps.
        method: ``"soft"``: the teacher reads every batch. ``"hard"``: labels alone.
            ``"stored"``: soft labels from a cache. ``"codistillation"``: teacher and
            student train together. ``"adapters_off"``: the student's own, without its
            adapters (``AdaptersOff``).
        device: A name of ``DEVICES``, ``"cpu"``, or a :class:`Device`. Default: where
            the student lies; without one in memory, this machine's GPU or else its
            CPU. The ``gpu`` profile on a machine without a GPU: a T4.
        accumulation: Micro-batches of a step.
        fused: Whether the loss never holds all logits, which is the trainers' default.
        optimizer: A name of ``TrainingArguments.optim``.
        checkpointing: Whether activations are computed again in the backward pass
            (``gradient_checkpointing``).
        mixed_precision: ``False`` trains in plain fp32.
        packed: Whether rows hold several examples, as ``pack_examples`` makes them:
            attention needs a mask.
        student: The index of the profile's student.
        resident: Models that lie on the device meanwhile and have no part in the step,
            such as a teacher that is needed again later. Models in memory count as
            they are, others in the precision of a frozen teacher.
        adapters: The rank of the student's adapters (``add_adapters``), which then are
            all of it that learns; 0: it learns whole.
        bits: 8 or 4 for a teacher that is loaded with ``bits``; one that is passed as
            a model says so itself.

    Returns:
        The plan. Takes seconds; nothing is loaded or downloaded for the models that
        profiles name.

    Raises:
        ValueError: For unknown names, a method that lacks its teacher, or one that
            would train a rounded teacher.

    Used in notebooks 11 and 13.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {METHODS}")
    if adapters < 0:
        raise ValueError(f"adapters={adapters} is a rank; 0 or more")
    if method == "adapters_off" and not adapters:
        raise ValueError(
            "method='adapters_off' needs a student with adapters; give their rank: "
            "adapters=16"
        )
    sizes = {"batch_size": batch_size, "length": length}
    sizes |= {"steps": steps, "accumulation": accumulation}
    for name, value in sizes.items():
        least = 2 if name == "length" else 1
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    where = _device(device, models)
    teacher, learner = _pair(models, student)
    if teacher is None and method not in ("hard", "adapters_off"):
        raise ValueError(f"method={method!r} needs a teacher; models has none")
    half, teacher_dtype = _precision(models, where)
    if bits is None and not isinstance(models, Profile):
        bits = bits_of(models[0]) if isinstance(models[0], nn.Module) else None
    if bits not in (None, 4, 8):
        raise ValueError(f"bits={bits!r} must be 8 or 4, or None for whole weights")
    if bits is not None and method == "codistillation":
        raise ValueError(
            f"bits={bits}: in co-distillation the teacher is trained, and a rounded "
            "model cannot be; leave bits out"
        )
    step = Step(
        student=learner,
        teacher=teacher if method in TAUGHT else None,
        method=method,
        batch_size=batch_size,
        length=length,
        accumulation=accumulation,
        fused=fused,
        optimizer=optimizer,
        autocast=half if mixed_precision else None,
        teacher_dtype=teacher_dtype,
        teacher_bits=bits,
        checkpointing=checkpointing,
        packed=packed,
        adapters=adapters,
    )
    storage = {}
    if teacher is not None and method in ("soft", "stored"):
        for name in SCHEMES:
            scheme = scheme_for(name, vocabulary_of(teacher))
            storage[name] = scheme.bytes_per_position * step.tokens * steps
    if isinstance(resident, (str, nn.Module)):
        raise ValueError(f"resident={resident!r:.80} must be a list of models")
    stay = sum(weight_bytes(model, teacher_dtype) for model in resident)
    found = Plan(step, where, steps, rehearse(step, where), storage, None, stay)
    return found if found.fits else replace(found, remedy=_find_remedy(found))


def _find_remedy(too_large: Plan) -> str:
    """Return the first change after which the step fits, cheapest changes first."""
    start = step = too_large.step
    rows = start.batch_size * start.accumulation
    remedies: list[dict[str, Any]] = [
        {"fused": True},
        # The step is to read as many rows as before.
        *(
            {"batch_size": size, "accumulation": rows // size}
            for size in range(start.batch_size - 1, 0, -1)
            if rows % size == 0
        ),
        {"checkpointing": True},
    ]
    if start.method == "soft":
        if start.teacher_bits is None:
            remedies.append({"teacher_bits": 8})
        remedies.append({"method": "stored", "teacher": None, "teacher_bits": None})
    changed: dict[str, Any] = {}
    for remedy in remedies:
        if all(getattr(step, name) == value for name, value in remedy.items()):
            continue
        step = replace(step, **remedy)
        changed |= remedy
        other = replace(
            too_large, step=step, rehearsal=rehearse(step, too_large.device)
        )
        if other.fits:
            options = ", ".join(
                f"{'bits' if name == 'teacher_bits' else name}={value!r}"
                for name, value in changed.items()
                if value is not None
            )
            return f"it fits with {options}: {other.memory_gib:.2f} GiB"
    if too_large.resident:
        other = replace(too_large, resident=0)
        if other.fits:
            return (
                f"it fits without the models that only stay: {other.memory_gib:.2f} GiB"
            )
    return (
        "nothing that was tried helps; what is left: shorter rows, an optimizer with "
        "less state, a smaller student, a larger device"
    )


def _device(
    given: str | Device | None, models: Profile | tuple[Model | None, Model]
) -> Device:
    """Return the device that is meant, or else the one where the models are."""
    if isinstance(given, Device):
        return given
    if given is None and isinstance(models, Profile):
        return device_of(models)
    if given is None:
        given = "cuda" if torch.cuda.is_available() else "cpu"
        if isinstance(models, (tuple, list)) and isinstance(models[-1], nn.Module):
            given = next(models[-1].parameters()).device.type
        return this_gpu() if given == "cuda" else this_cpu()
    if given == "cpu":
        return this_cpu()
    if given not in DEVICES:
        known = ", ".join(("cpu", *DEVICES))
        raise ValueError(
            f"device={given!r} is unknown; choose one of {known}, or pass a Device"
        )
    return DEVICES[given]


def _pair(
    models: Profile | tuple[Model | None, Model], student: int
) -> tuple[PreTrainedConfig | None, PreTrainedConfig]:
    if isinstance(models, Profile):
        return models_of(models, student)
    if not isinstance(models, (tuple, list)) or len(models) != 2:
        raise ValueError(f"models={models!r} must be a profile or (teacher, student)")
    teacher, learner = models
    return (None if teacher is None else config_of(teacher)), config_of(learner)


def _precision(
    models: Profile | tuple[Model | None, Model], device: Device
) -> tuple[torch.dtype | None, torch.dtype]:
    """Return the half precision of the step, and the dtype of a frozen teacher."""
    half = device.half
    if isinstance(half, str):
        half = getattr(torch, half)
    if isinstance(models, Profile):
        if models.device == device.kind == "cpu":
            return models.autocast_dtype, models.teacher_dtype
    elif isinstance(models[0], nn.Module):
        return half, next(models[0].parameters()).dtype
    return half, half or torch.float32


def _duration(minutes: float) -> str:
    if minutes < 1.5:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _bytes(size: float) -> str:
    units = ["TB", "GB", "MB", "KB", "B"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop()
    return f"{size:.0f} {units[-1]}" if size >= 10 else f"{size:.1f} {units[-1]}"
