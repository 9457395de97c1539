"""Rounded weights: a teacher that takes less memory, a student that learns to bear it.

Two things that share a word. A *rounded* teacher is stored in 8 or 4 bits a number, by
torchao, and only read (``load_model(…, bits=8)``). A *fake-rounded* student keeps its
weights in full and rounds them whenever it computes, so that it learns to be right
where its weights will be rounded (:func:`fake_round`; Jacob et al. 2018,
arXiv:1712.05877, with the straight-through gradient of Bengio et al. 2013,
arXiv:1308.3432). Taught in notebook 09.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers that share a scale in 4 bits; in 8 bits, a row of a matrix shares one.
GROUP = 32


# --- a teacher in 8 or 4 bits -------------------------------------------------------


def rounding_config(bits: int, dtype: torch.dtype, device: str) -> Any:
    """What transformers needs to load a model with its linear layers in 8 or 4 bits.

    torchao rounds the weights alone, so that what a model says of a row depends on no
    other row, and of a token on none behind it. Embeddings and output head stay as
    they are.

    Args:
        bits: 8: a scale for every row, on any device. 4: a scale and an offset for
            every 32 numbers; in bf16 only, and on a GPU from Ampere on.
        dtype: What is computed in.
        device: Where the model will be.

    Raises:
        ValueError: For other bits, for 4 bits where they cannot be had, or without
            torchao.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits={bits!r} must be 8 or 4, or None for the whole weights")
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"bits={bits} needs torchao; run: pip install 'distill-helpers[rounded]'"
        )
    on_gpu = torch.device(device).type == "cuda"
    if bits == 4 and dtype != torch.bfloat16:
        raise ValueError(
            f"bits=4 computes in bf16 alone, and dtype={dtype}; pass "
            "dtype=torch.bfloat16, or bits=8"
        )
    if bits == 4 and on_gpu and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"bits=4 needs a GPU from Ampere on (A100, L4, H100), not a {name}; "
            "pass bits=8"
        )
    from torchao import quantization
    from transformers import TorchAoConfig

    if bits == 8:
        chosen: Any = quantization.Int8WeightOnlyConfig()
    elif on_gpu:
        chosen = quantization.Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format="tile_packed_to_4d"
        )
    else:  # no format has kernels for both
        from torchao.prototype.quantization import int4

        chosen = int4.PrototypeInt4WeightOnlyConfig(group_size=GROUP)
    chosen.set_inductor_config = False  # which would change settings of the process
    return TorchAoConfig(chosen)


def bits_of(model: nn.Module) -> int | None:
    """The bits that ``load_model(…, bits=…)`` has rounded a model to, or ``None``."""
    size = getattr(getattr(model, "hf_quantizer", None), "quantized_element_size", None)
    return None if size is None else int(8 * size)


def rounded_bytes(rows: int, width: int, bits: int) -> int:
    """Bytes of a weight ``[rows, width]`` in 8 or 4 bits, with what belongs to it.

    In 8 bits, four bytes and one for each row's scale and offset; in 4 bits, two and
    two for those of each group.
    """
    return rows * (width + 5) if bits == 8 else rows * (width // 2 + width // GROUP * 4)


def refuse_rounded(who: str, model: nn.Module, what: str, remedy: str) -> None:
    """Raise ``ValueError`` for a model whose weights are rounded, in whatever way.

    Args:
        who: ``"student"``, ``"model"`` or a name, for the message.
        model: Without wrappers.
        what: That cannot be done with it.
        remedy: What to do instead.
    """
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise ValueError(
            f"the {who} is rounded (load_model(…, bits=…), or a quantised file), and "
            f"cannot be {what}; {remedy}"
        )


# --- a student that computes with rounded weights -----------------------------------


def round_groups(weight: torch.Tensor, bits: int = 4, group: int = 32) -> torch.Tensor:
    """Round numbers to a grid: in each group, whole multiples of one step.

    The step is the group's largest number through 2^(bits−1) − 1, so that 4 bits have
    15 values, −7 to 7 steps, with zero among them.

    Args:
        weight: Groups lie along its last dimension, which ``group`` divides.
        bits: The size of one number; the step that its group shares comes on top.
        group: Numbers with a step in common.

    Returns:
        The rounded numbers, in the shape and dtype of ``weight``.
    """
    parts = weight.float().unflatten(-1, (-1, group))
    largest = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    step = largest / (2 ** (bits - 1) - 1)
    return ((parts / step).round() * step).flatten(-2).to(weight.dtype)


class RoundedWeight(nn.Module):
    """Rounds going forward; going back, the gradient passes as if nothing had been.

    Args:
        bits: What :func:`round_groups` takes.
        group: Passed on to it, too.
    """

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.bits, self.group = bits, group

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight; its gradient is the weight's own."""
        fixed = weight.detach()
        return round_groups(fixed, self.bits, self.group) + (weight - fixed)


def fake_round(
    model: PreTrainedModel, bits: int = 4, group: int = 32
) -> PreTrainedModel:
    """Let a model compute with rounded weights, and train the whole ones behind them.

    Linear layers are changed in place, but for the output head, whether it is tied or
    not; embeddings stay as well. Trainers save and resume such a model. Once it is
    trained, :func:`bake` makes the rounded weights its own; before that, a folder that
    ``save_pretrained`` writes can be resumed from, but not loaded.

    Args:
        model: A student; its teacher is a copy that was taken before.
        bits: From 2 to 8; see :func:`round_groups`.
        group: Numbers with a step in common; divides the width of every layer.

    Returns:
        The same model.

    Raises:
        ValueError: For bits out of range, a group that does not divide a layer, or a
            model that is rounded already.

    Taught in notebook 09.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must be from 2 to 8")
    refuse_rounded("model", model, "rounded again", "load it without bits")
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for name, layer in layers.items():
        if is_fake_rounded(layer):
            raise ValueError(f"model has {name} rounded already; bake(model) first")
        if group < 1 or layer.in_features % group:
            raise ValueError(
                f"group={group} does not divide {name}, which is {layer.in_features} "
                "wide; choose a group that does, such as 16, 32 or 64"
            )
    for layer in layers.values():
        parametrize.register_parametrization(
            layer, "weight", RoundedWeight(bits, group)
        )
    return model


def is_fake_rounded(model: nn.Module) -> bool:
    """Whether a model, or one of its layers, computes as :func:`fake_round` says."""
    return any(isinstance(module, RoundedWeight) for module in model.modules())


def bake(model: PreTrainedModel, *, rounded: bool = True) -> PreTrainedModel:
    """End :func:`fake_round`: plain weights again, in place.

    Args:
        model: After its training.
        rounded: Whether the weights are the rounded ones, as the model computes, or
            the whole ones behind them.

    Returns:
        The same model, which saves, loads and exports like any other.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and is_fake_rounded(module):
            parametrize.remove_parametrizations(
                module, "weight", leave_parametrized=rounded
            )
    return model
