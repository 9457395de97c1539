"""What happens beside the steps: a progress bar, and the best weights kept."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    TrainerCallback,
)

from distill_helpers.machine import progress_bar

_LOGGER = logging.getLogger(__name__)


class ProgressBar(TrainerCallback):
    """One line on stderr with the step, the time left and the latest loss.

    Training that is over within three seconds shows none.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where training starts or resumes."""
        if state.is_world_process_zero:
            self._bar = progress_bar(
                total=state.max_steps, initial=state.global_step, unit="step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Show the loss."""
        if self._bar is not None and logs and "loss" in logs:
            # With the next redraw: at once, it would be shown of short training, too.
            loss = f"{float(logs['loss']):.3f}"
            self._bar.set_postfix(loss=loss, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class KeepBest(TrainerCallback):
    """Keep the weights with the lowest score in memory; for small models.

    No checkpoint holds them: a run that is resumed in another process keeps the best
    of the steps that are left, and warns.

    Args:
        score: Called with the model, returns a number to minimise (held-out NLL).
        every: Steps between two looks; the last step is always looked at.

    Attributes:
        best: The lowest score.
        step: The step it was reached at.
        curve: ``(step, score)`` of every look.
    """

    def __init__(self, score: Callable[[nn.Module], float], every: int) -> None:
        self.score = score
        self.every = every
        self.best = float("inf")
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Warn if a run goes on whose first looks were taken elsewhere."""
        missed = state.global_step >= self.every and not self.curve
        if missed and state.is_world_process_zero:
            _LOGGER.warning(
                "KeepBest keeps weights in memory alone, and this run goes on from "
                "step %s: the best of the steps before is lost; train without "
                "resuming, or score the checkpoints (save_total_limit=None keeps all)",
                state.global_step,
            )

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Look, and remember the weights if they are the best so far."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        value = self.score(model)
        self.curve.append((state.global_step, value))
        if value < self.best:
            self.best, self.step = value, state.global_step
            self._weights = copy.deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Load the best weights back into the model.

        Raises:
            RuntimeError: If no step was looked at, or every score was NaN.
        """
        if not self._weights:
            raise RuntimeError(
                "nothing was kept: train with this callback first, and with a score "
                "that is a number; a finished run that is resumed takes no step, so "
                "train it anew, or score its checkpoints"
            )
        model.load_state_dict(self._weights)
