"""A language model's output head, apart from the rest of it.

What is multiplied into logits chunk by chunk (:mod:`distill_helpers.fused_losses`,
:mod:`distill_helpers.soft_label_cache`) needs two things from a model: the hidden
states that go into its head, and the head. Used in notebook 03.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: ``cap(scale * (h @ weight.T + bias))``.

    Attributes:
        weight: ``[vocabulary, width]``.
        bias: ``[vocabulary]``.
        scale: Factor on the logits (Cohere's ``logit_scale``; 1 / Granite's
            ``logits_scaling``).
        soft_cap: ``cap * tanh(logits / cap)`` (Gemma 2's ``final_logit_softcapping``,
            RecurrentGemma's ``logits_soft_cap``); ``None`` leaves them.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(
        self, hidden: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logits ``[..., vocabulary]``, in full.

        Args:
            hidden: ``[..., width]``.
            out: Where to write them, at least as many rows as ``hidden`` ``[rows,
                width]`` has, of its dtype: without gradients, but no new memory.
        """
        weight = self.weight.to(hidden.dtype)
        if out is None:
            logits = F.linear(hidden, weight, self.bias)
            if self.scale != 1:
                logits = logits * self.scale
            if self.soft_cap is None:
                return logits
            return self.soft_cap * torch.tanh(logits / self.soft_cap)
        logits = torch.mm(hidden, weight.T, out=out[: len(hidden)])
        if self.bias is not None:
            logits.add_(self.bias)
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits

    def cut(self, vocabulary: int) -> Head:
        """Without the outputs that only pad the head."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)


class HeadReader:
    """Gives a model's hidden states if its head is plain, otherwise its logits.

    On the first batch the head is tried out: it has to turn the hidden states of each
    row's last position into the logits that the model itself computes there.

    Args:
        who: ``"student"`` or ``"teacher"``, for messages.
        fused: ``False`` always gives logits.
    """

    def __init__(self, who: str, *, fused: bool) -> None:
        self.who = who
        self.fused = fused
        self.tried = False
        self._seen: tuple[nn.Module, Any, Head | None] | None = None

    def read(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Head | None]:
        """Hidden states with their head, or logits and ``None``."""
        causal, head = self._look_at(model)
        if head is None:
            if self.fused:
                self._fall_back("is not a plain linear layer")
            return _call(model, inputs).logits, None
        # An index, for a slice of hidden states is slow to multiply; after the first
        # batch an empty one, unless that means to compile anew.
        ids = inputs["input_ids"]
        compiled = hasattr(model, "_orig_mod")
        kept = 1 if compiled or not self.tried else 0
        before = [] if self.tried else _random_states(ids.device)
        last = torch.full((kept,), ids.shape[1] - 1).to(ids.device)
        # The wrapped model is called whole, as several processes need it.
        if compiled:  # its graph sees no later hooks
            outputs = _call(
                model, inputs, logits_to_keep=last, output_hidden_states=True
            )
            states = getattr(outputs, "hidden_states", None)
            hidden = states[-1] if states else None
        else:
            outputs, hidden = _call_hooked(model, causal, inputs, last)
        if not self.tried:
            self.tried = True
            if hidden is None or not _agrees(hidden[:, -1:], head, outputs.logits):
                self._fall_back("does more than multiply by its weights")
                # As if the model had not been called: its first outputs hold all
                # activations, and dropout has drawn from the random states.
                del outputs, hidden
                _set_random_states(before, ids.device)
                return _call(model, inputs).logits, None
        assert hidden is not None
        return hidden, head

    def _look_at(self, model: nn.Module) -> tuple[Any, Head | None]:
        """The model without its wrappers, and its head; once, not at every step."""
        if self._seen is None or self._seen[0] is not model:
            causal = extract_model_from_parallel(model, keep_torch_compile=False)
            check_head(self.who, causal)
            self._seen = (model, causal, plain_head(causal))
        _, causal, head = self._seen
        return causal, head if self.fused else None

    def _fall_back(self, reason: str) -> None:
        self.fused = False
        # A teacher that remembers its logits has no head at all, by design.
        if self.who == "student":
            _LOGGER.warning(
                "the %s's head %s: logits are held in full, which takes more memory "
                "and time (fused=False says so from the start)",
                self.who,
                reason,
            )


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """What a model draws from: the CPU's random state and that of its own GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_states(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _call_hooked(
    model: nn.Module, causal: Any, inputs: Mapping[str, torch.Tensor], at: torch.Tensor
) -> tuple[Any, torch.Tensor | None]:
    """A model's outputs at some positions, and its last hidden states at all."""
    kept: list[torch.Tensor | None] = []
    hook = causal.base_model.register_forward_hook(
        lambda _module, _inputs, outputs: kept.append(
            getattr(outputs, "last_hidden_state", None)
        )
    )
    try:
        outputs = _call(model, inputs, logits_to_keep=at)
    finally:
        hook.remove()
    return outputs, kept[-1] if kept else None


def _agrees(hidden: torch.Tensor, head: Head, logits: torch.Tensor) -> bool:
    scale = float(logits.detach().abs().max())
    if not math.isfinite(scale):
        return True  # a diverged model: the loss will say so
    with torch.no_grad():
        ours = head.logits(hidden)
    return bool((ours - logits).abs().max() < 0.02 * scale)


def check_head(who: str, model: nn.Module) -> None:
    """Raise ``TypeError`` for a bare trunk, as ``AutoModel`` loads it.

    Args:
        who: ``"student"`` or ``"teacher"``, for the message.
        model: Without its wrappers.
    """
    if isinstance(model, PreTrainedModel) and model.base_model is model:
        raise TypeError(
            f"the {who}, a {type(model).__name__}, has no output head and gives no "
            "logits; load it with AutoModelForCausalLM"
        )


def plain_head(model: nn.Module) -> Head | None:
    """The output head of a causal model, if it is a plain linear layer.

    Logit scales and soft-caps are read from the configurations that are known to have
    them. ``None`` for anything else: an adapter on the head, a model that cannot
    leave its logits out, a module that is no ``transformers`` model, weights that are
    spread over processes (FSDP, ZeRO-3) and whole only inside the model's own call.
    """
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return None
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear or linear._forward_hooks:
        return None
    # FSDP 2 has a mesh of devices, ZeRO-3 a name of its own, FSDP 1 nothing left.
    spread = any(hasattr(linear.weight, name) for name in ("device_mesh", "ds_id"))
    if spread or linear.weight.numel() == 0:
        return None
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    # Not every model has Gemma 2's name for it. Small logits are hardly capped, so
    # that a first batch would not tell.
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        cap = getattr(config, "logits_soft_cap", None)
    return Head(linear.weight, linear.bias, scale / divisor, cap)


def _call(model: nn.Module, inputs: Mapping[str, torch.Tensor], **options: Any) -> Any:
    if "position_ids" in inputs:
        # Rows that hold several examples: only without a mask does transformers read
        # from the positions where one begins.
        causal = extract_model_from_parallel(model, keep_torch_compile=False)
        config = getattr(causal, "config", None)
        attention = str(getattr(config, "_attn_implementation", ""))
        if "flash" in attention and len(inputs["input_ids"]) > 1:
            raise ValueError(
                f"rows of pack_examples with attn_implementation={attention!r}: "
                "examples would see each other; use 'sdpa', or batches of one row"
            )
        options["position_ids"] = inputs["position_ids"]
    else:
        options["attention_mask"] = inputs.get("attention_mask")
    return model(input_ids=inputs["input_ids"], use_cache=False, **options)
