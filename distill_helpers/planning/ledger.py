"""Writes down what a step on fake tensors would allocate and free."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

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
# What reading a number of that dtype gives; every other dtype gives 1.0.
_ONE: dict[torch.dtype, Any] = {torch.bool: True, torch.int64: 1, torch.int32: 1}


class Ledger(TorchDispatchMode):
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
        # A tensor that is this wide holds logits.
        self.vocabularies: set[int] = set()
        # Every memory has a number, under which its part stands.
        self._numbers: Any = WeakIdKeyDictionary()
        self._parts: list[str] = []
        self._changes: list[tuple[int, int]] = []
        self._begun = 0
        self._weights: set[int] = set()
        self._answers_of_all: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            if self.packed and self._find(args[0]) in self._answers_of_all:
                return False
            return _ONE.get(args[0].dtype, 1.0)
        if func is aten.nonzero.default:
            out = torch.zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)
        elif func is aten._grouped_mm.default:
            out = _grouped_product(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        cast = func is aten._to_copy.default and self._find(args[0]) in self._weights
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor, "half-precision copies" if cast else None)
        if func is aten.all.default:
            self._answers_of_all.add(self._enter(out))
        return out

    def name(self, tensor: torch.Tensor, part: str) -> None:
        """Say what a tensor's memory is for, as one of ``PARTS``."""
        self._parts[self._enter(tensor)] = part

    def name_weights(self, model: nn.Module, part: str) -> None:
        """Say the same of all weights of a model."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self.name(tensor, part)
            self._weights.add(self._enter(tensor))

    def begin(self) -> None:
        """Say that the models are built: what that took is no part of a step."""
        self._begun = len(self._changes)

    def peak(self, extra: int) -> dict[str, int]:
        """Return the bytes of each part at the highest point.

        The optimizer's state counts from the beginning, as in every step but the first.

        Args:
            extra: Bytes to add wherever logits are held.
        """
        now = dict.fromkeys(PARTS, 0)
        changes = [(self._parts[number], size) for number, size in self._changes]
        now["optimizer"] = sum(size for part, size in changes if part == "optimizer")
        best, highest = dict(now), -1
        for number, (part, size) in enumerate(changes):
            if part != "optimizer":
                now[part] += size
            total = sum(now.values()) + (extra if now["logits"] else 0)
            if number >= self._begun and total > highest:
                highest, best = total, dict(now)
        if best["logits"]:
            best["logits"] += extra
        return best

    def _find(self, tensor: torch.Tensor) -> int | None:
        found: int | None = self._numbers.get(tensor.untyped_storage())
        return found

    def _enter(self, tensor: torch.Tensor, part: str | None = None) -> int:
        """Return the number of a tensor's memory; note its coming if it is new."""
        known = self._find(tensor)
        if known is not None:
            return known
        if part is None:
            wide = tensor.dim() > 1 and tensor.shape[-1] in self.vocabularies
            part = "logits" if wide else "activations"
        storage, number = tensor.untyped_storage(), len(self._parts)
        self._numbers[storage] = number
        self._parts.append(part)
        size = storage.nbytes()
        self._changes.append((number, size))
        weakref.finalize(storage, self._changes.append, (number, -size))
        return number


def _grouped_product(
    left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor, *_: Any, **__: Any
) -> torch.Tensor:
    """Return the shape of a mixture's product; torch knows it of bf16 alone."""
    shape = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim() == 2:  # the gradient of the experts' matrices
        shape.insert(0, len(offs))
    return left.new_empty(shape)
