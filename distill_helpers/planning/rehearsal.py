"""Runs a training step on fake tensors: what it allocates, and how much it computes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker
from transformers import TrainingArguments

from distill_helpers.labels import scheme_for
from distill_helpers.losses import SparseTargets
from distill_helpers.losses.fused import working_bytes
from distill_helpers.losses.gradients import block_rows
from distill_helpers.models import (
    AdaptersOff,
    add_adapters,
    attention_for,
    checkpoint_activations,
    heads,
    parameter_count,
    rounded_bytes,
)
from distill_helpers.planning.devices import Device
from distill_helpers.planning.ledger import Ledger
from distill_helpers.planning.shapes import vocabulary_of
from distill_helpers.trainers import (
    HardLabels,
    Objective,
    Partners,
    SoftLabels,
    mutual_losses,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

METHODS = ("soft", "hard", "stored", "codistillation", "adapters_off")
# Methods in which a teacher with weights of its own is there.
TAUGHT = ("soft", "codistillation")


@dataclass(frozen=True)
class Step:
    """One optimizer step, as it is rehearsed.

    ``batch_size``, ``length``, ``accumulation``, ``fused``, ``optimizer``,
    ``checkpointing``, ``packed`` and ``adapters`` mean what they mean in
    :func:`~distill_helpers.planning.plan`.

    Attributes:
        student: The shape of the model in training; its weights are fp32.
        teacher: The shape of its teacher, if it is there. In co-distillation it trains
            as well.
        method: One of ``METHODS``.
        autocast: The half precision of the step, or ``None``.
        teacher_dtype: The dtype of a frozen teacher's weights.
        teacher_bits: 8 or 4 if its linear layers are rounded to that.
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
    teacher_bits: int | None = None
    checkpointing: bool = False
    packed: bool = False
    adapters: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the whole optimizer step."""
        return self.batch_size * self.length * self.accumulation

    @property
    def vocabulary(self) -> int:
        """Outputs that the student shares with its teacher, if it has one."""
        models = filter(None, (self.student, self.teacher))
        return min(vocabulary_of(config) for config in models)


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsed step would have needed.

    Attributes:
        parts: Each of ``PARTS`` with its bytes at the moment of the peak.
        flops: Operations of the matrix products, forward and backward.
        trained: Parameters that learn: all of the student's, or its adapters; in
            co-distillation, the teacher's too.
    """

    parts: Mapping[str, int]
    flops: float
    trained: int

    @property
    def peak(self) -> int:
        """Bytes at the highest point."""
        return sum(self.parts.values())


def rehearse(step: Step, device: Device | None = None) -> Rehearsal:
    """Run a step on fake tensors and note what it would allocate.

    What is rehearsed is a later step than the first: the optimizer's state is there
    from the beginning, and the models have been tried out.

    Args:
        step: What to run.
        device: A GPU works in larger chunks, and an old one attends otherwise. The
            fake tensors are a CPU's in any case. Default: a CPU.

    Raises:
        ValueError: If the model does what cannot be done without content, or the
            optimizer cannot be rehearsed.
    """
    device_type = "cpu" if device is None else device.kind
    flash = device is None or device.flash
    flops = FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS)
    flops.mod_tracker = _NoModules()
    ledger = Ledger(packed=step.packed)
    with _refusing_in_words(step), _taken_for_real(), FakeTensorMode(), ledger:
        model, objective = _build(step, flash, ledger)
        optimizer = _optimizer(step, model, device_type)
        if step.autocast is not None:
            # As accelerate prepares a model for mixed precision.
            model.forward = convert_outputs_to_fp32(model.forward)
        ledger.begin()
        with flops, _tried_out():
            run_step(step, model, objective, optimizer, ledger)
    extra = _working_bytes(step, device_type) - _working_bytes(step, "cpu")
    share = step.accumulation / _rehearsed_batches(step)
    # They are there all the time, and so no less at the peak.
    parts = ledger.peak(extra)
    if step.teacher_bits is not None:
        parts["teacher's weights"] -= _spared_bytes(step)
    operations = float(flops.get_total_flops()) * share
    return Rehearsal(parts, operations, parameter_count(model, trained=True))


class _NoModules(ModuleTracker):
    """Counts nothing by module: torch's hooks keep the outputs of modules alive.

    They would be freed whenever Python collects its garbage, before or after the peak.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing, for there are no hooks to remove."""


def _spared_bytes(step: Step) -> int:
    """Count what rounding a teacher's linear layers takes off its weights."""
    if step.teacher is None or step.teacher_bits is None:
        return 0
    with FakeTensorMode():
        teacher = _model(step.teacher, step.teacher_dtype, flash=True)
    return sum(
        layer.weight.nbytes
        - rounded_bytes(layer.out_features, layer.in_features, step.teacher_bits)
        for layer in teacher.modules()
        if isinstance(layer, nn.Linear) and layer is not teacher.get_output_embeddings()
    )


# --- the step -----------------------------------------------------------------------


def run_step(
    step: Step,
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ledger: Ledger,
) -> None:
    """Do what Trainer does: micro-batches, clipping, the optimizer, gradients away."""
    ids = torch.zeros((step.batch_size, step.length), dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if step.packed:
        del inputs["attention_mask"]
        inputs["position_ids"] = ids.clone()
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


def _rehearsed_batches(step: Step) -> int:
    """Count the micro-batches to run: the third takes what the second did."""
    return min(step.accumulation, 2)


def _build(step: Step, flash: bool, ledger: Ledger) -> tuple[nn.Module, Objective]:
    """Return what is trained, and what the trainer of the method minimises."""
    student = _model(step.student, torch.float32, flash)
    if step.adapters:
        # They are moved to where they are already, which fake weights refuse.
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            student = add_adapters(student, rank=step.adapters)
    _enter_model(student, "weights", step, ledger)
    if step.method == "hard":
        return student, HardLabels(fused=step.fused)
    # Other temperatures take a buffer more, too small to matter.
    mix: dict[str, Any] = {"temperature": 1.0, "alpha": 1.0, "scale_by_t2": True}
    if step.method == "stored":
        store = _FakeStore(step.vocabulary, ledger)
        return student, SoftLabels(store, step.vocabulary, fused=step.fused, **mix)
    if step.method == "adapters_off":
        teacher_off = AdaptersOff(student)
        return student, SoftLabels(
            teacher_off, step.vocabulary, fused=step.fused, **mix
        )
    assert step.teacher is not None
    trains = step.method == "codistillation"
    dtype = torch.float32 if trains else step.teacher_dtype
    teacher = _model(step.teacher, dtype, flash)
    _enter_model(teacher, "teacher's weights", step, ledger, trains=trains)
    if not trains:
        return student, SoftLabels(teacher, step.vocabulary, fused=step.fused, **mix)
    both = {"teacher": teacher, "student": student}
    objective = partial(_learn_together, vocabulary=step.vocabulary)
    return Partners(both, stale=(), fused=step.fused), objective


def _learn_together(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    num_items: torch.Tensor | int | None,
    *,
    vocabulary: int,
) -> dict[str, torch.Tensor]:
    return mutual_losses(
        model(inputs),
        inputs["labels"],
        partners_of={"teacher": (), "student": ("teacher",)},
        alphas={"teacher": 0.0, "student": 0.5},
        vocabulary=vocabulary,
        num_items=num_items,
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


def _enter_model(
    model: PreTrainedModel,
    part: str,
    step: Step,
    ledger: Ledger,
    *,
    trains: bool = True,
) -> None:
    """Prepare a model for its part in the step, and tell the ledger what it is."""
    ledger.vocabularies.add(vocabulary_of(model.config))
    ledger.name_weights(model, part)
    model.train(trains)
    if not trains:
        model.requires_grad_(False)
    elif step.checkpointing:
        checkpoint_activations(model)


class _FakeStore:
    """Stored labels of the default scheme, without content."""

    temperature = 1.0

    def __init__(self, vocabulary: int, ledger: Ledger) -> None:
        self.vocabulary = vocabulary
        self.scheme = scheme_for("hybrid", vocabulary)
        self.ledger = ledger

    def lookup(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SparseTargets:
        shape = (input_ids.numel(), self.scheme.top_k + self.scheme.samples)
        ids = torch.zeros(shape, dtype=torch.int64)
        weights, entropy = torch.zeros(shape), torch.zeros(shape[0])
        for tensor in (ids, weights, entropy):
            self.ledger.name(tensor, "stored labels")
        return SparseTargets(
            ids, weights, None, entropy, self.temperature, checked=True
        )


class _OptimizerError(ValueError):
    """An optimizer that cannot be rehearsed."""


def _optimizer(step: Step, model: nn.Module, device_type: str) -> Any:
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    # The defaults alone: a TrainingArguments that is made in earnest resets what
    # accelerate knows of the processes, under the feet of a trainer that exists.
    given = (one for one in fields(TrainingArguments) if one.default is not MISSING)
    arguments: Any = SimpleNamespace(**{one.name: one.default for one in given})
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


def _working_bytes(step: Step, device_type: str) -> int:
    """Compute what the loss holds while it works, by the rules of a kind of device."""
    vocabulary, taught = step.vocabulary, step.method in (*TAUGHT, "adapters_off")
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


# --- fake tensors instead of real ones ----------------------------------------------


@contextmanager
def _refusing_in_words(step: Step) -> Iterator[None]:
    """Say of what cannot be rehearsed that it cannot be planned, and a way on."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled = log.disabled
    log.disabled = True  # it prints what is about to be said
    try:
        yield
    except (_OptimizerError, ImportError):
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


@contextmanager
def _tried_out() -> Iterator[None]:
    """Leave out what is asked of a model once, which is no part of a later step."""
    with (
        patch.object(heads, "probed_places", lambda _: []),
        patch.object(heads, "check_causal", lambda *_: None),
        patch.object(heads, "isolates_examples", lambda *_: True),
    ):
        yield


def _taken_for_real() -> Any:
    """Let transformers go the ways that it goes with tensors that have content.

    It would build attention masks to be safe, where it otherwise finds none needed.
    """
    from transformers.utils import import_utils

    return patch.object(import_utils, "is_fake_tensor", lambda _: False, create=True)


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Count a mixture's product: every token by the matrix of its expert."""
    if len(right) == 3:
        return int(2 * left[0] * left[1] * right[2])
    return int(2 * left[0] * left[1] * right[1])  # the gradient of the matrices


# What a CPU calls its attention, and mixtures' products, are not in torch's table.
_MORE_FLOPS: dict[Any, Any] = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
