"""Turns what a learner's function returned into a tensor that can be compared.

An exercise names one of these functions as its ``adapt``. Each takes the result and the
inputs of the call, and raises :class:`UnusableError` in words for the learner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distill_helpers.course.checks.words import say

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"

Tensor = torch.Tensor


class UnusableError(Exception):
    """The function gave nothing that could be compared."""

    def __init__(self, words: str, *, status: str = FAILED, bug: str | None = None):
        super().__init__(words)
        self.status = status
        self.bug = bug


def as_tensor(result: Any, *, differentiate: bool) -> Tensor:
    """Return a tensor or a number as a tensor.

    Args:
        result: What the function returned.
        differentiate: Whether a gradient is asked for, which a number has not.
    """
    if isinstance(result, Tensor):
        return result
    if isinstance(getattr(result, "loss", None), Tensor):
        raise UnusableError(say("record"))
    numeric = isinstance(result, (int, float, np.generic, np.ndarray))
    if isinstance(result, bool) or not (numeric or isinstance(result, (list, tuple))):
        raise UnusableError(say("no_number", came=kind(result)))
    if differentiate and not numeric:
        raise UnusableError(say("no_tensor", came=kind(result)))
    if differentiate:
        words = say("no_gradient", came=kind(result))
        raise UnusableError(words, bug="student_detached")
    try:
        return torch.as_tensor(result, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UnusableError(say("no_number", came=kind(result))) from None


def yes_or_no(result: Any, _: tuple[Any, ...]) -> Tensor:
    """Return a bool of Python, NumPy or torch as 0 or 1."""
    if isinstance(result, Tensor) and result.dtype == torch.bool and result.dim() == 0:
        return result.float()
    if not isinstance(result, (bool, np.bool_)):
        raise UnusableError(say("no_bool", came=kind(result)))
    return torch.tensor(float(result))


def places(result: Any, inputs: tuple[Any, ...]) -> Tensor:
    """Return which entries of the first input were chosen, as zeros and ones."""
    chosen = as_tensor(result, differentiate=False).flatten()
    count = len(inputs[0])
    if any(place not in range(count) for place in chosen.tolist()):
        raise UnusableError(say("no_places", last=count - 1, came=show(chosen)))
    return torch.zeros(count).index_add_(0, chosen.long(), torch.ones(len(chosen)))


def show(value: Tensor) -> str:
    """Put a value into words: its first numbers."""
    # Adding zero turns -0 into 0.
    numbers = [f"{x + 0.0:.4g}" for x in value.flatten().tolist()]
    if value.dim() == 0:
        return numbers[0]
    return f"[{', '.join(numbers[:6])}{', …' if len(numbers) > 6 else ''}]"


def shape(value: Tensor) -> str:
    """Put a shape into words."""
    if value.dim() == 0:
        return say("scalar_shape")
    return say("shape", shape=list(value.shape))


def kind(x: Any) -> str:
    """Put a type into words."""
    return say("type", type=type(x).__name__)
