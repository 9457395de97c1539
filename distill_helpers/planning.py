"""Will it fit, how long will it take, what will it cost: asked before the long cell.

:func:`plan` rehearses the real training step – the package's own objectives, forward,
backward, clipping, optimizer – on *fake* tensors, which have shapes and dtypes but no
memory. What the step would allocate and free is written down; its highest point is
the peak. The operations are counted on the way, and a table of devices turns them into
time and money.

Taught in notebook 06, used in the capstone.
"""

from __future__ import annotations

import copy
import logging
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest.mock import patch

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.weak import WeakIdKeyDictionary
from transformers import TrainingArguments

from distill_helpers import heads
from distill_helpers.codistillation import Partners, mutual_losses
from distill_helpers.losses import SparseTargets
from distill_helpers.losses.fused import working_bytes
from distill_helpers.losses.gradients import block_rows
from distill_helpers.models import attention_for, checkpoint_activations
from distill_helpers.profiles import Profile
from distill_helpers.runtime import (
    cpu_bf16_pays,
    cuda_dtype,
    has_flash_attention,
    matmul_flops,
    memory_gib,
)
from distill_helpers.soft_label_schemes import SCHEMES, scheme_for
from distill_helpers.trainers import HardLabels, Objective, SoftLabels

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Model: TypeAlias = "PreTrainedModel | PreTrainedConfig | str | Path"

METHODS = ("soft", "hard", "stored", "codistillation")
PARTS = (
    "teacher's weights",
    "weights",
    "half-precision copies",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "stored labels",
)
# What there is beside tensors, CUDA's context and kernels, Python and its libraries;
# and what an allocator leaves unused between them.
_CONTEXT_GIB = {"cuda": 0.6, "cpu": 0.5}
_SPARE = 0.1
# Methods in which a teacher is there.
_TAUGHT = ("soft", "codistillation")
# Other temperatures take a buffer more, too small to matter.
_PLAIN_MIX: dict[str, Any] = {"temperature": 1.0, "alpha": 1.0, "scale_by_t2": True}

_SMOLLM2 = {"vocab_size": 49_152, "max_position_embeddings": 8192}
_QWEN2 = {"vocab_size": 151_936, "num_key_value_heads": 2}
# Shapes of the models that the profiles name, so that planning needs no network.
ARCHITECTURES: dict[str, tuple[str, dict[str, int]]] = {
    "packaged": (
        "llama",
        _SMOLLM2
        | {
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
        },
    ),
    "HuggingFaceTB/SmolLM2-360M": (
        "llama",
        _SMOLLM2
        | {
            "hidden_size": 960,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "intermediate_size": 2560,
        },
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (
        "llama",
        _SMOLLM2
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 8192,
        },
    ),
    "Qwen/Qwen2.5-0.5B": (
        "qwen2",
        _QWEN2
        | {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "intermediate_size": 4864,
        },
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        "qwen2",
        _QWEN2
        | {
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "intermediate_size": 8960,
        },
    ),
}
ARCHITECTURES["HuggingFaceTB/SmolLM2-135M"] = ARCHITECTURES["packaged"]


@dataclass(frozen=True)
class Device:
    """What a step runs on.

    Attributes:
        name: As people say it.
        kind: ``"cuda"`` or ``"cpu"``.
        memory_gib: That programs can use.
        half_flops: Operations per second of dense matrix products in ``half``, as the
            vendor states them; of the CPU, measured.
        full_flops: The same in fp32.
        half: The half precision to train in, or ``None`` where it does not pay.
        dollars_per_hour: To rent one; ``None`` if it is yours.
        utilisation: Share of these operations that training reaches.
        flash: Whether it has flash attention: every CPU, and GPUs from Ampere on.
    """

    name: str
    kind: str
    memory_gib: float
    half_flops: float
    full_flops: float
    half: torch.dtype | None
    dollars_per_hour: float | None
    utilisation: float = 0.3
    flash: bool = True


# Operations: NVIDIA's data sheets, dense. Prices: list prices on demand in 2026 of
# AWS (T4: g4dn.xlarge, L4: g6.xlarge) and the middle of specialised providers (A100,
# H100). They change; `dataclasses.replace(DEVICES["T4"], dollars_per_hour=…)` puts in
# what you pay.
DEVICES = {
    "T4": Device("T4", "cuda", 14.6, 65e12, 8.1e12, torch.float16, 0.53, flash=False),
    "L4": Device("L4", "cuda", 22.0, 121e12, 30e12, torch.bfloat16, 0.81),
    "A100": Device("A100 40 GB", "cuda", 39.4, 312e12, 19.5e12, torch.bfloat16, 1.3),
    "H100": Device("H100", "cuda", 79.1, 989e12, 67e12, torch.bfloat16, 3.0),
}


def this_cpu() -> Device:
    """This machine's CPU; its speed is measured, which takes a tenth of a second."""
    full = matmul_flops(torch.float32)
    half = torch.bfloat16 if cpu_bf16_pays() else None
    speed = full if half is None else matmul_flops(half)
    memory = memory_gib() or 8.0
    return Device("this CPU", "cpu", memory, speed, full, half, None, utilisation=0.5)


def this_gpu() -> Device:
    """This machine's GPU: from ``DEVICES``, or measured if it is not there."""
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


@dataclass(frozen=True)
class Step:
    """One optimizer step, as it is rehearsed.

    Attributes:
        student: Shape of the model in training; its weights are fp32.
        teacher: Of its teacher, if it is there. In co-distillation it trains as well.
        method: One of ``METHODS``.
        batch_size: Rows of a micro-batch.
        length: Tokens of a row.
        accumulation: Micro-batches of a step.
        fused: Never hold all logits.
        optimizer: A name of ``TrainingArguments.optim``.
        autocast: The half precision of the step, or ``None``.
        teacher_dtype: Of a frozen teacher.
        checkpointing: Compute activations again in the backward pass.
        packed: Rows hold several examples, as ``pack_examples`` makes them.
    """

    student: PreTrainedConfig
    teacher: PreTrainedConfig | None
    method: str
    batch_size: int
    length: int
    accumulation: int = 1
    fused: bool = True
    optimizer: str = "adamw_torch_fused"
    autocast: torch.dtype | None = None
    teacher_dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Of the whole optimizer step."""
        return self.batch_size * self.length * self.accumulation


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsed step would have needed.

    Attributes:
        parts: Part to bytes, at the moment of the peak.
        flops: Operations of the matrix products, forward and backward.
    """

    parts: Mapping[str, int]
    flops: float

    @property
    def peak(self) -> int:
        """Bytes at the highest point."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """The answer of :func:`plan`; print it.

    Attributes:
        step: What was rehearsed.
        device: Where it is to run.
        steps: How often.
        rehearsal: Memory by part, and operations.
        storage: Scheme to bytes of disk that soft labels of all tokens would take.
        remedy: What to change, if it does not fit.
    """

    step: Step
    device: Device
    steps: int
    rehearsal: Rehearsal
    storage: Mapping[str, int]
    remedy: str | None

    @property
    def memory_gib(self) -> float:
        """The peak, with what the device needs for itself."""
        return self.rehearsal.peak / 2**30 + _CONTEXT_GIB[self.device.kind]

    @property
    def fits(self) -> bool:
        """Whether a tenth of the memory stays free."""
        return self.memory_gib <= (1 - _SPARE) * self.device.memory_gib

    @property
    def seconds_per_step(self) -> float:
        """From operations and what the device usually reaches; an estimate."""
        device = self.device
        speed = device.half_flops if self.step.autocast else device.full_flops
        return self.rehearsal.flops / (speed * device.utilisation)

    @property
    def minutes(self) -> float:
        """Of all steps, without loading, data and evaluation."""
        return self.steps * self.seconds_per_step / 60

    @property
    def dollars(self) -> float | None:
        """At the device's price; ``None`` if it has none."""
        price = self.device.dollars_per_hour
        return None if price is None else price * self.minutes / 60

    def __str__(self) -> str:
        step, device = self.step, self.device
        size = f"{step.batch_size} × {step.length} tokens"
        if step.accumulation > 1:
            size = f"{step.accumulation} × {size}"
        what = step.method + " labels" * (step.method != "codistillation")
        lines = [f"{what}, {size} a step, on {device.name}"]
        for part in PARTS:
            if amount := self.rehearsal.parts.get(part):
                lines.append(f"  {part:22} {amount / 2**30:7.2f} GiB")
        context = _CONTEXT_GIB[device.kind]
        lines.append(f"  {'context and libraries':22} {context:7.2f} GiB")
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines.append(
            f"  {'at the peak':22} {self.memory_gib:7.2f} GiB of "
            f"{device.memory_gib:.1f}: {verdict}"
        )
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
) -> Plan:
    """Memory, time, money and storage of a training run, before it begins.

    Args:
        models: A profile: its teacher and one of its students. Or ``(teacher,
            student)``: models, configs, folders, names of the hub, or ``"packaged"``;
            the teacher may be ``None`` for hard labels.
        batch_size: Rows of a micro-batch.
        length: Tokens of a row.
        steps: Optimizer steps.
        method: ``"soft"``: the teacher reads every batch. ``"hard"``: labels alone.
            ``"stored"``: soft labels from a cache. ``"codistillation"``: teacher and
            student train together.
        device: A name of ``DEVICES``, ``"cpu"``, or a :class:`Device`. Default: where
            the student lies; without one in memory, this machine's GPU or else its
            CPU. The ``gpu`` profile on a machine without a GPU: a T4.
        accumulation: Micro-batches of a step.
        fused: As the trainers have it.
        optimizer: A name of ``TrainingArguments.optim``.
        checkpointing: ``gradient_checkpointing``.
        mixed_precision: ``False`` trains in plain fp32.
        packed: Rows of ``pack_examples``: attention needs a mask.
        student: Which of the profile's students.

    Raises:
        ValueError: For unknown names, or a method that lacks its teacher.

    Taught in notebook 06. Takes seconds; nothing is loaded or downloaded for the
    models that profiles name.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {METHODS}")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("length", length, 2),
        ("steps", steps, 1),
        ("accumulation", accumulation, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    where = _here(models) if device is None else _device(device)
    teacher, learner = _pair(models, student)
    if teacher is None and method != "hard":
        raise ValueError(f"method={method!r} needs a teacher; models has none")
    half, teacher_dtype = _precision(models, where)
    step = Step(
        student=learner,
        teacher=teacher if method in _TAUGHT else None,
        method=method,
        batch_size=batch_size,
        length=length,
        accumulation=accumulation,
        fused=fused,
        optimizer=optimizer,
        autocast=half if mixed_precision else None,
        teacher_dtype=teacher_dtype,
        checkpointing=checkpointing,
        packed=packed,
    )
    storage = {}
    if teacher is not None and method in ("soft", "stored"):
        for scheme in SCHEMES:
            found = scheme_for(scheme, _vocabulary(teacher))
            storage[scheme] = found.bytes_per_position * step.tokens * steps
    found_plan = Plan(step, where, steps, rehearse(step, where), storage, None)
    if found_plan.fits:
        return found_plan
    return replace(found_plan, remedy=_find_remedy(found_plan))


def _find_remedy(too_large: Plan) -> str:
    """The first change of the step after which it fits, cheapest changes first."""
    start = too_large.step
    step = replace(start, fused=True)
    tried = [] if start.fused else [step]
    rows = start.batch_size * start.accumulation
    for batch_size in range(start.batch_size - 1, 0, -1):
        # The step is to read as many rows as before.
        if rows % batch_size == 0:
            step = replace(step, batch_size=batch_size, accumulation=rows // batch_size)
            tried.append(step)
    if not start.checkpointing:
        step = replace(step, checkpointing=True)
        tried.append(step)
    if start.method == "soft":
        step = replace(step, method="stored", teacher=None)
        tried.append(step)
    for other in tried:
        found = replace(
            too_large, step=other, rehearsal=rehearse(other, too_large.device)
        )
        if found.fits:
            return f"{_changes(start, other)}: {found.memory_gib:.2f} GiB"
    return (
        "nothing that was tried helps; what is left: shorter rows, an optimizer with "
        "less state, a smaller student, a larger device"
    )


def _changes(before: Step, after: Step) -> str:
    """What differs, as keywords of :func:`plan`."""
    names = ("fused", "batch_size", "accumulation", "checkpointing", "method")
    changed = [
        f"{name}={getattr(after, name)!r}"
        for name in names
        if getattr(after, name) != getattr(before, name)
    ]
    return f"it fits with {', '.join(changed)}"


def device_of(profile: Profile) -> Device:
    """What a profile runs on here; ``gpu`` on a machine without a GPU: a T4."""
    if profile.name == "gpu" and not torch.cuda.is_available():
        return DEVICES["T4"]
    return this_gpu() if profile.device == "cuda" else this_cpu()


def _here(models: Profile | tuple[Model | None, Model]) -> Device:
    if isinstance(models, Profile):
        return device_of(models)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(models, (tuple, list)) and isinstance(models[-1], nn.Module):
        found = next(models[-1].parameters()).device.type
    return this_gpu() if found == "cuda" else this_cpu()


def _device(given: str | Device) -> Device:
    if isinstance(given, Device):
        return given
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
    if not isinstance(models, Profile):
        if not isinstance(models, (tuple, list)) or len(models) != 2:
            raise ValueError(
                f"models={models!r} must be a profile or (teacher, student)"
            )
        teacher, learner = models
        return (None if teacher is None else config_of(teacher)), config_of(learner)
    return models_of(models, student)


def models_of(
    profile: Profile, student: int = 0
) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """The shapes of a profile's teacher and of one of its students.

    Args:
        profile: From ``get_profile``.
        student: Which, where it has several.
    """
    teacher = config_of(profile.teacher)
    if profile.students:
        if not 0 <= student < len(profile.students):
            raise ValueError(
                f"student={student}: the profile has {len(profile.students)} students"
            )
        return teacher, config_of(profile.students[student])
    # As the lessons prune it: without the middle third of the layers.
    learner = copy.deepcopy(teacher)
    learner.num_hidden_layers -= learner.num_hidden_layers // 3
    return teacher, learner


def _precision(
    models: Profile | tuple[Model | None, Model], device: Device
) -> tuple[torch.dtype | None, torch.dtype]:
    """Of the step, and of a frozen teacher's weights."""
    half = device.half
    if isinstance(models, Profile):
        if models.device == device.kind == "cpu":
            return models.autocast_dtype, models.teacher_dtype
    elif isinstance(models[0], nn.Module):
        return half, next(models[0].parameters()).dtype
    return half, half or torch.float32


def config_of(model: Model) -> PreTrainedConfig:
    """The configuration of a model, or of one that is only named."""
    from transformers import AutoConfig, PreTrainedConfig

    if isinstance(model, nn.Module):
        return model.config
    if isinstance(model, PreTrainedConfig):
        return model
    if str(model) in ARCHITECTURES:
        kind, shape = ARCHITECTURES[str(model)]
        return AutoConfig.for_model(kind, **shape, tie_word_embeddings=True)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"models names {str(model)!r}, which is no folder with a config.json, and "
            "the hub does not answer with one; known without network are "
            f"{', '.join(ARCHITECTURES)}"
        ) from error


def _vocabulary(config: PreTrainedConfig) -> int:
    """Outputs of a model; of one that reads pictures too, its text part says so."""
    return int(config.get_text_config().vocab_size)


def _duration(minutes: float) -> str:
    if minutes < 1.5:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


# --- the rehearsal ------------------------------------------------------------------


def rehearse(step: Step, device: Device | None = None) -> Rehearsal:
    """Run a step twice on fake tensors and note what it would allocate.

    Twice, because the optimizer's state is there only from the second step on; the
    first time with few tokens.

    Args:
        step: What to run.
        device: A GPU works in larger chunks, and an old one attends otherwise. The
            fake tensors are a CPU's in any case. Default: a CPU.

    Raises:
        ValueError: If the model does what cannot be done without content.
    """
    device_type = "cpu" if device is None else device.kind
    flash = device is None or device.flash
    flops = FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS)
    ledger = _Ledger(packed=step.packed)
    with _in_words(step), _taken_for_real(), FakeTensorMode(), ledger:
        model, objective = _build(step, flash, ledger)
        optimizer = _optimizer(step, model, device_type)
        if step.autocast is not None:
            # As accelerate prepares a model for mixed precision.
            model.forward = convert_outputs_to_fp32(model.forward)
        first = replace(step, batch_size=1, length=8, accumulation=1)
        _one_step(first, model, objective, optimizer, ledger)
        # A head is tried out once for a length of rows, which is no part of a step.
        with flops, patch.object(heads, "probed_places", lambda _: []):
            _one_step(step, model, objective, optimizer, ledger)
    extra = _working(step, device_type) - _working(step, "cpu")
    counted = float(flops.get_total_flops())
    return Rehearsal(
        ledger.peak(extra), counted * step.accumulation / _rehearsed_batches(step)
    )


@contextmanager
def _in_words(step: Step) -> Iterator[None]:
    """Say of what cannot be rehearsed that it cannot be planned, and a way on."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled = log.disabled
    log.disabled = True  # it prints what is about to be said
    try:
        yield
    except _OptimizerError:
        raise
    except Exception as error:  # of torch or an architecture
        kinds = {one.model_type for one in (step.student, step.teacher) if one}
        raise ValueError(
            f"models={'/'.join(sorted(kinds))}: a step of them cannot be planned, for "
            f"without content they stop ({type(error).__name__}: {error}); measure a "
            "few real steps instead, or plan with a Llama-like model of the same size"
        ) from error
    finally:
        log.disabled = was_disabled


def _taken_for_real() -> Any:
    """Let transformers go the ways that it goes with tensors that have content.

    It would build attention masks to be safe, where it otherwise finds none needed.
    """
    from transformers.utils import import_utils

    return patch.object(import_utils, "is_fake_tensor", lambda _: False, create=True)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of a mixture's product: every token by the matrix of its expert."""
    if len(right) == 3:
        return int(2 * left[0] * left[1] * right[2])
    return int(2 * left[0] * left[1] * right[1])  # the gradient of the matrices


# What a CPU calls its attention, and mixtures' products, are not in torch's table.
_MORE_FLOPS: dict[Any, Any] = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        _attention_backward_flops
    ),
}


def _rehearsed_batches(step: Step) -> int:
    """The third micro-batch takes what the second did."""
    return min(step.accumulation, 2)


def _one_step(
    step: Step,
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ledger: _Ledger,
) -> None:
    """As Trainer does it: micro-batches, clipping, the optimizer, gradients away."""
    inputs = _batch(step)
    counted = step.accumulation * step.batch_size * (step.length - 1)
    half = step.autocast or torch.bfloat16
    for _ in range(_rehearsed_batches(step)):
        with torch.autocast("cpu", dtype=half, enabled=step.autocast is not None):
            loss = objective(model, inputs, counted)["loss"]
        loss.backward()
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is not None:
            ledger.name(parameter.grad, "gradients")
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                ledger.name(value, "optimizer")
    optimizer.zero_grad(set_to_none=True)


def _build(step: Step, flash: bool, ledger: _Ledger) -> tuple[nn.Module, Objective]:
    """What is trained, and what the trainer of the method minimises."""
    student = _model(step.student, torch.float32, flash)
    ledger.vocabularies.add(_vocabulary(step.student))
    if step.checkpointing:
        checkpoint_activations(student)
    ledger.name_all(student, "weights")
    student.train()
    if step.method == "hard":
        return student, HardLabels(fused=step.fused)
    if step.method == "stored":
        store = _FakeStore(_vocabulary(step.student), ledger)
        return student, SoftLabels(
            store, store.vocabulary, fused=step.fused, **_PLAIN_MIX
        )
    assert step.teacher is not None
    ledger.vocabularies.add(_vocabulary(step.teacher))
    vocabulary = min(_vocabulary(step.student), _vocabulary(step.teacher))
    if step.method == "soft":
        teacher = _model(step.teacher, step.teacher_dtype, flash)
        teacher.requires_grad_(False).eval()
        ledger.name_all(teacher, "teacher's weights")
        return student, SoftLabels(teacher, vocabulary, fused=step.fused, **_PLAIN_MIX)
    teacher = _model(step.teacher, torch.float32, flash)
    if step.checkpointing:
        checkpoint_activations(teacher)
    ledger.name_all(teacher, "teacher's weights")
    both = {"teacher": teacher.train(), "student": student}

    def learn_together(
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        return mutual_losses(
            model(inputs),
            inputs["labels"],
            partners_of={"teacher": (), "student": ("teacher",)},
            alphas={"teacher": 0.0, "student": 0.5},
            vocabulary=vocabulary,
            num_items=num_items,
        )

    return Partners(both, stale=(), fused=step.fused), learn_together


class _OptimizerError(ValueError):
    """An optimizer that cannot be rehearsed."""


class _FakeStore:
    """Stored labels of the default scheme, without content."""

    temperature = 1.0

    def __init__(self, vocabulary: int, ledger: _Ledger) -> None:
        self.vocabulary = vocabulary
        self.ledger = ledger

    def lookup(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SparseTargets:
        scheme = scheme_for("hybrid", self.vocabulary)
        shape = (input_ids.numel(), scheme.top_k + scheme.samples)
        ids = torch.zeros(shape, dtype=torch.int64)
        weights, entropy = torch.zeros(shape), torch.zeros(shape[0])
        for tensor in (ids, weights, entropy):
            self.ledger.name(tensor, "stored labels")
        return SparseTargets(
            ids, weights, None, entropy, self.temperature, checked=True
        )


def _model(
    config: PreTrainedConfig, dtype: torch.dtype, flash: bool
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    # A copy, for transformers notes dtype and attention in the config it is given.
    # Fake weights have no content, and what draws until it likes it would never end.
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=dtype,
            attn_implementation=attention_for(config, flash=flash),
            trust_remote_code=False,
        )
    model.tie_weights()  # part of the initialisation that was left out
    return model


def _optimizer(step: Step, model: nn.Module, device_type: str) -> Any:
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    # The defaults alone: a TrainingArguments that is made in earnest resets what
    # accelerate knows of the processes, under the feet of a trainer that exists.
    arguments: Any = SimpleNamespace(
        **{
            field.name: field.default
            for field in fields(TrainingArguments)
            if field.default is not MISSING
        }
    )
    try:
        arguments.optim = OptimizerNames(step.optimizer)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if device_type == "cuda" and step.optimizer == "adamw_torch":
            options["foreach"] = True  # torch's choice there; it takes more memory
        return kind(model.parameters(), **options)
    except Exception as error:
        raise _OptimizerError(
            f"optimizer={step.optimizer!r} cannot be rehearsed here ({error}); "
            "adamw_torch_fused, adamw_torch, adafactor and sgd can"
        ) from error


def _batch(step: Step) -> dict[str, torch.Tensor]:
    ids = torch.zeros((step.batch_size, step.length), dtype=torch.int64)
    if step.packed:
        return {"input_ids": ids, "position_ids": ids.clone(), "labels": ids}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _working(step: Step, device_type: str) -> int:
    """What the loss holds while it works, by the rules of a kind of device."""
    vocabulary = _vocabulary(step.student)
    if step.teacher is not None:
        vocabulary = min(vocabulary, _vocabulary(step.teacher))
    taught = step.method in _TAUGHT
    if not step.fused:
        # The three blocks of the plain loss; labels alone are torch's own.
        return 3 * 4 * vocabulary * block_rows(vocabulary, device_type) if taught else 0
    return working_bytes(
        step.batch_size * (step.length - 1),
        vocabulary,
        step.autocast or torch.float32,
        device_type,
        teacher=taught,
    )


class _Ledger(TorchDispatchMode):
    """Writes down when which tensor's memory comes and goes.

    Fake tensors cannot say what they hold, so questions about content are answered
    here: every number is 1, every condition is met, every position counts.

    Args:
        packed: Whether rows hold several examples: transformers asks if *all* of them
            hold one, and builds a mask if not.
    """

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self._all: set[int] = set()
        self.vocabularies: set[int] = set()
        self._changes: list[tuple[int, int]] = []
        self._parts: dict[int, str] = {}
        self._keys: Any = WeakIdKeyDictionary()
        self._weights: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if self.packed and self._key(args[0]) in self._all:
                return False
            return _ONE.get(args[0].dtype, 1.0)
        if func is torch.ops.aten.nonzero.default:
            out = torch.zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)
        elif func is torch.ops.aten._grouped_mm.default:
            out = _grouped_product(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default and (
            self._key(args[0]) in self._weights
        )
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor, "half-precision copies" if cast else None)
        if func is torch.ops.aten.all.default:
            self._all.add(self._keys[out.untyped_storage()])
        return out

    def name(self, tensor: torch.Tensor, part: str) -> None:
        """Say what a tensor's memory is for."""
        self._enter(tensor, None)
        self._parts[self._keys[tensor.untyped_storage()]] = part

    def name_all(self, model: nn.Module, part: str) -> None:
        """The same for a model's weights."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self.name(tensor, part)
            self._weights.add(self._keys[tensor.untyped_storage()])

    def peak(self, extra: int) -> dict[str, int]:
        """Bytes of each part at the highest point.

        Args:
            extra: Bytes to add wherever logits are held.
        """
        now: dict[str, int] = dict.fromkeys(PARTS, 0)
        best: dict[str, int] = dict(now)
        highest = -1
        for key, size in self._changes:
            now[self._parts[key]] += size
            total = sum(now.values()) + (extra if now["logits"] else 0)
            if total > highest:
                highest, best = total, dict(now)
        if best["logits"]:
            best["logits"] += extra
        return best

    def _key(self, tensor: Any) -> int | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        found: int | None = self._keys.get(tensor.untyped_storage())
        return found

    def _enter(self, tensor: torch.Tensor, part: str | None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._keys:
            return
        key = len(self._parts)
        self._keys[storage] = key
        if part is None:
            wide = tensor.dim() > 1 and tensor.shape[-1] in self.vocabularies
            part = "logits" if wide else "activations"
        self._parts[key] = part
        size = storage.nbytes()
        self._changes.append((key, size))
        weakref.finalize(storage, self._changes.append, (key, -size))


def _grouped_product(
    left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    """The shape of a mixture's product; torch knows it of bf16 alone."""
    shape = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim() == 2:  # the gradient of the experts' matrices
        shape.insert(0, len(offs))
    return left.new_empty(shape)


# As what a tensor of a dtype gives it; of all others, 1.0.
_ONE: dict[torch.dtype, Any] = {torch.bool: True, torch.int64: 1, torch.int32: 1}
