"""A language model's output head, separated from its other layers.

What is multiplied into logits chunk by chunk (:mod:`distill_helpers.losses.fused`,
:mod:`distill_helpers.labels.cache`) needs two things from a model: the hidden
states that go into its head, and the head. Together they are a
:class:`~distill_helpers.losses.Hidden`. Used in notebook 04.

This module tests the model itself instead of trusting a list of names:

* the head alone gives the model's logits, infinities included: compared with what the
  model says, once for every kind of call (:class:`HeadReader`);
* the model is causal: a later token must not change an earlier output
  (:func:`check_causal`);
* examples that share a row do not see one another (:func:`isolates_examples`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from distill_helpers.losses import Head, Hidden
from distill_helpers.models.base import eval_mode
from distill_helpers.models.limits import (
    input_rows,
    is_dispatched,
    reading_device,
    unwrapped,
)

_LOGGER = logging.getLogger(__name__)


class HeadReader:
    """Gives a model's hidden states if its head is plain, otherwise its logits.

    The head is tried out: at three positions of two rows it has to turn the hidden
    states into the logits that the model itself computes there, ruled-out tokens
    (−inf) included. That happens once for every kind of call: training or not, with
    or without gradients, autocast, names and shape of the inputs, and hooks, any of
    which may change what a model says. A model that fails once gives logits from then
    on, and the log says why.

    Args:
        who: ``"student"`` or ``"teacher"``, for messages.
        fused: ``False`` always gives logits.
    """

    def __init__(self, who: str, *, fused: bool) -> None:
        self.who = who
        self.fused = fused
        self._tried: set[tuple[Any, ...]] = set()
        self._packs: dict[bool, bool] = {}
        self._seen: _Look | None = None

    def read(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | Hidden:
        """Call the model, and return its hidden states with the head, or its logits.

        Args:
            model: With or without its wrappers.
            inputs: A batch ``[rows, positions]``.

        Raises:
            TypeError: If the model has no head, or is not causal.
            ValueError: For rows of several examples that would see one another.
        """
        look = self._look_at(model)
        ids = inputs["input_ids"]
        kind = _kind_of_call(model, look, inputs)
        if "position_ids" in inputs:
            self._check_packed(look.causal, inputs)
        if look.reason or not self.fused:
            if self.fused:
                self._fall_back(look.reason)
            return self._logits(model, inputs)
        # An index, for a slice of hidden states is slow to multiply; after the first
        # call of a kind an empty one, unless that means to compile anew.
        compiled = _is_compiled(model)
        tried = kind in self._tried
        places = [] if tried and not compiled else probed_places(ids.shape[1])
        at = torch.tensor(places, dtype=torch.long).to(ids.device)
        before = [] if tried else _random_states(ids.device)
        # The wrapped model is called whole, as several processes need it.
        if compiled:  # its graph sees no later hooks
            outputs = _call(model, inputs, logits_to_keep=at, output_hidden_states=True)
            states = getattr(outputs, "hidden_states", None)
            hidden = states[-1] if states else None
        else:
            outputs, hidden = _call_hooked(model, look.trunk, inputs, at)
        reason, head = "", look.head or _gathered_head(look.causal)
        if hidden is None:
            reason = "uses hidden states that the model does not return"
        elif head is None:
            reason = "is spread over processes also behind the model's own call"
        elif not tried and not _agrees(hidden, head, outputs.logits, at):
            reason = "does more than multiply by its weights"
        if reason or hidden is None or head is None:
            self._fall_back(reason)
            # As if the model had not been called: its first outputs hold all
            # activations, and dropout has drawn from the random states.
            del outputs, hidden
            _set_random_states(before, ids.device)
            return self._logits(model, inputs)
        self._tried.add(kind)
        if look.head is None:
            # FSDP 2 notices a backward pass by the outputs of the modules that it was
            # given, and shares no gradient otherwise. This adds nothing, in a sum of
            # no numbers, and leads there.
            hidden = hidden + outputs.logits[:, :0].sum()
        return Hidden(hidden, head)

    @staticmethod
    def _logits(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = _call(model, inputs).logits
        return logits

    def _look_at(self, model: nn.Module) -> _Look:
        """The model without its wrappers, and its head; once, not at every step."""
        if self._seen is None or not self._seen.still_holds(model):
            causal = unwrapped(model)
            check_head(self.who, causal)
            check_causal(self.who, causal)
            self._seen = _Look.of(model, causal)
            self._tried.clear()
            self._packs.clear()
        return self._seen

    def _check_packed(self, causal: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """Refuse rows of several examples that the model would read as one text."""
        ids = inputs["input_ids"]
        one_row = len(ids) == 1
        if one_row not in self._packs:
            if _spread_weights(causal):
                _LOGGER.warning(
                    "rows of pack_examples: the %s's weights are spread over processes "
                    "or devices, where it cannot be tried out whether examples see "
                    "each other; try it in one process first",
                    self.who,
                )
            self._packs[one_row] = _spread_weights(causal) or isolates_examples(
                causal, ids
            )
        if self._packs[one_row] or not _holds_several(inputs):
            return
        config = getattr(causal, "config", None)
        attention = getattr(config, "_attn_implementation", None)
        raise ValueError(
            f"rows of pack_examples: in the {self.who}, a {type(causal).__name__} with "
            f"attn_implementation={attention!r}, examples would see each other, for it "
            "does not tell from position_ids where one begins; train on the examples "
            "one to a row (without pack_examples), or, with flash attention, on "
            "batches of one row or with 'sdpa'"
        )

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


@dataclass(frozen=True)
class _Look:
    """What a reader has found out about a model.

    Attributes:
        model: The model with its wrappers, which is what gets called.
        causal: The same model without its wrappers.
        trunk: What gives the hidden states; ``None`` if that is unknown.
        linear: The output head's module.
        head: Its weights, if it is plain and whole.
        reason: Why it is not plain.
    """

    model: nn.Module
    causal: Any
    trunk: nn.Module | None
    linear: nn.Module | None
    head: Head | None
    reason: str

    @classmethod
    def of(cls, model: nn.Module, causal: Any) -> _Look:
        reason = why_not_plain(causal, sharded=True)
        whole = not (reason or _spread_weights(causal))
        head = _head_of(causal) if whole else None
        return cls(model, causal, _trunk(causal), _linear(causal), head, reason)

    def still_holds(self, model: nn.Module) -> bool:
        """Whether the model is the same, and nobody has given it another head."""
        if model is not self.model:
            return False
        linear = _linear(self.causal)
        if linear is not self.linear:
            return False
        return self.head is None or self.head.weight is getattr(linear, "weight", None)


def _linear(model: nn.Module) -> Any:
    """The module of a model's output head; ``None`` if it has none, or does not say."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def _kind_of_call(
    model: nn.Module, look: _Look, inputs: Mapping[str, torch.Tensor]
) -> tuple[Any, ...]:
    """What may decide which way a call takes through a model."""
    ids = inputs["input_ids"]
    device = ids.device.type
    modules = (model, look.causal, look.linear)
    hooks = [
        id(hook)
        for module in modules
        if module is not None
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        )
    ]
    autocast = torch.is_autocast_enabled(device)
    return (
        model.training,
        torch.is_grad_enabled(),
        torch.get_autocast_dtype(device) if autocast else None,
        tuple(ids.shape),
        *sorted(inputs),
        *hooks,
    )


def probed_places(length: int) -> list[int]:
    """Where a head is tried out: the first, the middle and the last position."""
    return sorted({0, length // 2, length - 1})


def _is_compiled(model: nn.Module) -> bool:
    """By ``torch.compile(model)``, or in place by ``model.compile()``."""
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    return in_place or hasattr(model, "_orig_mod")


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """What a model draws from: the CPU's random state and that of its own GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_states(states: list[torch.Tensor], device: torch.device) -> None:
    if not states:
        return
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _call_hooked(
    model: nn.Module,
    trunk: nn.Module | None,
    inputs: Mapping[str, torch.Tensor],
    at: torch.Tensor,
) -> tuple[Any, torch.Tensor | None]:
    """A model's outputs at some positions, and its last hidden states at every one."""
    kept: list[torch.Tensor | None] = []
    assert trunk is not None
    hook = trunk.register_forward_hook(
        lambda _module, _inputs, outputs: kept.append(
            getattr(outputs, "last_hidden_state", None)
        )
    )
    try:
        outputs = _call(model, inputs, logits_to_keep=at)
    finally:
        hook.remove()
    return outputs, kept[-1] if kept else None


@torch.no_grad()
def _agrees(
    hidden: torch.Tensor, head: Head, logits: torch.Tensor, at: torch.Tensor
) -> bool:
    """Whether the head gives the model's logits ``[rows, places, vocabulary]``.

    Of the first and the last row; the others go the same way.
    """
    if logits.shape[:2] != (len(hidden), len(at)):
        return False  # a model that does not leave its logits out
    if hidden.shape[-1] != head.weight.shape[1]:
        return False  # with a layer between (ELECTRA)
    rows = sorted({0, len(hidden) - 1})
    return _same(head.logits(hidden[rows][:, at]), logits[rows])


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors differ by rounding alone, and have the same infinities."""
    if one.shape != two.shape:
        return False
    device = one.device.type
    dtypes = {one.dtype, two.dtype}
    if torch.is_autocast_enabled(device):  # what comes out may be fp32 all the same
        dtypes.add(torch.get_autocast_dtype(device))
    precision = max(torch.finfo(dtype).eps for dtype in dtypes)
    if not one.numel():
        return True
    # TF32 keeps ten bits of a factor.
    tolerance = max(3 * precision, 1e-3 if device == "cuda" else 1e-5)
    one, two = one.float(), two.float()
    finite = two.isfinite()
    rest_one, rest_two = one.masked_fill(finite, 0.0), two.masked_fill(finite, 0.0)
    alike = (rest_one.nan_to_num() == rest_two.nan_to_num()).all()
    alike &= (finite == one.isfinite()).all()
    one, two = one.masked_fill(~finite, 0.0), two.masked_fill(~finite, 0.0)
    near = (one - two).abs().max() <= tolerance * two.abs().max()
    return bool(alike & near)  # one question: each makes a GPU wait


# --- what a model is ----------------------------------------------------------------

_PROBED = 4  # tokens of an example that is made up to try a model out


def check_head(who: str, model: nn.Module) -> None:
    """Refuse a model that gives no logits for the next token of a text.

    Nothing is computed. Only models of ``transformers`` are judged.

    Args:
        who: ``"student"`` or ``"teacher"``, for the message.
        model: With or without its wrappers.

    Raises:
        TypeError: For an encoder–decoder, or a trunk without an output head (as
            ``AutoModel`` loads it).
    """
    base = unwrapped(model)
    if not isinstance(base, PreTrainedModel):
        return
    name = type(base).__name__
    if base.config.is_encoder_decoder:
        raise TypeError(
            f"the {who}, a {name}, is an encoder-decoder: it reads one text and writes "
            "another, and a row here is one text; use a causal (decoder-only) model, "
            "or learn from this one's answers as text (own_labels)"
        )
    if base.get_output_embeddings() is None:
        raise TypeError(
            f"the {who}, a {name}, has no output head and gives no logits over a "
            "vocabulary; load it with AutoModelForCausalLM"
        )


def check_causal(who: str, model: nn.Module) -> None:
    """Refuse a model that sees the tokens that it is to predict.

    That is tried out where the model is, on two short texts that differ in their second
    half: what comes out for the first half must be the same. So BERT is refused, and
    the same weights with ``is_decoder=True`` are not. Only models of ``transformers``
    are judged, and weights that are spread over processes are not.

    Args:
        who: ``"student"`` or ``"teacher"``, for the message.
        model: With or without its wrappers; on the device that it will work on.

    Raises:
        TypeError: If the model is not causal.
    """
    base = unwrapped(model)
    if not isinstance(base, PreTrainedModel) or _spread_weights(base):
        return
    if not _is_causal(base):
        raise TypeError(
            f"the {who}, a {type(base).__name__}, is no causal language model: what it "
            "says of a "
            "token changes with the tokens behind it, so it would be trained on what "
            "it sees; use AutoModelForCausalLM (and, for BERT's kin, is_decoder=True)"
        )


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether the outputs of a text's first half keep still when the second changes."""
    ids = _made_up(model, torch.arange(_PROBED))
    rows = torch.stack([torch.cat([ids[0], ids[1]]), torch.cat([ids[0], ids[2]])])
    one, two = _outputs(model, {"input_ids": rows})[:, :_PROBED]
    return _same(one, two)


def _outputs(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Hidden states where a head only multiplies them, which is most of the work."""
    with eval_mode(model), torch.no_grad():
        if not why_not_plain(model):
            nothing = torch.empty(
                0, dtype=torch.long, device=inputs["input_ids"].device
            )
            _, hidden = _call_hooked(model, _trunk(model), inputs, nothing)
            if hidden is not None:
                return hidden
        logits: torch.Tensor = _call(model, inputs).logits
        return logits


def isolates_examples(model: PreTrainedModel, ids: torch.Tensor) -> bool:
    """Whether examples that share a row are told apart by their ``position_ids``.

    The model itself is asked, with three short rows: an example behind one text,
    behind another, and in front. If its outputs differ, so would the loss of packed
    examples from that of the same examples one by one. Where attention knows where an
    example begins, they do not; where positions stand in an ALiBi bias, or a state is
    carried on (Mamba, linear attention), they do.

    Args:
        model: A causal model, without wrappers (:func:`~limits.unwrapped`).
        ids: A batch ``[rows, length]``, from which the tokens are taken. With one
            row, the model is asked row by row, for some kinds of attention tell
            examples apart only there.

    Returns:
        ``False`` also for a model that takes no ``position_ids``.
    """
    example, one, other = _made_up(model, ids.flatten()[:_PROBED])
    rows = torch.stack(
        [torch.cat(pair) for pair in ((one, example), (other, example), (example, one))]
    )
    positions = torch.arange(_PROBED, device=rows.device).repeat(2).expand_as(rows)
    parts = rows.split(1 if len(ids) == 1 else len(rows))
    found = []
    for part in parts:
        given = {"input_ids": part, "position_ids": positions[: len(part)]}
        try:
            found.append(_outputs(model, given))
        except TypeError as error:
            if "position_ids" not in str(error):
                raise
            return False
    behind_one, behind_other, in_front = torch.cat(found)
    alone = in_front[:_PROBED]
    return all(_same(x[_PROBED:], alone) for x in (behind_one, behind_other))


def _made_up(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Three different texts ``[3, 4]``: of these tokens, and of the next ones.

    Args:
        model: Says which tokens there are, and where it wants them.
        tokens: Four or fewer.
    """
    tokens = tokens.to(reading_device(model)).repeat(_PROBED)[:_PROBED]
    others = torch.arange(3, device=tokens.device).unsqueeze(-1)
    return (tokens + others * len(tokens)) % (input_rows(model) or 3 * _PROBED)


def _holds_several(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether positions begin more than once in a row, padding left aside."""
    begins = inputs["position_ids"] == 0
    mask = inputs.get("attention_mask")
    if mask is not None:
        begins = begins & mask.bool()
    return bool((begins.sum(1) > 1).any())


def why_not_plain(model: nn.Module, *, sharded: bool = False) -> str:
    """Why a causal model's head cannot be read apart from it; empty if it can.

    The reason goes behind "the student's head". It is an adapter on the head, a model
    that cannot leave its logits out, a module that is no ``transformers`` model, or
    weights that are spread over processes (FSDP, ZeRO-3) or devices and whole only
    inside the model's own call.

    Args:
        model: Without wrappers.
        sharded: Let FSDP 2 pass, which may leave a head whole behind the call.
    """
    if not isinstance(model, PreTrainedModel):
        return "is inside a module that is no transformers model"
    linear: Any = model.get_output_embeddings()
    kind = type(linear)
    shards = sharded and hasattr(linear, "unshard")
    if shards:  # FSDP 2 gives a module a class of its own, and hooks
        kind = kind.__bases__[-1]
    if kind is not nn.Linear:
        return f"is not a plain linear layer but {kind.__name__}"
    if linear._forward_hooks and not shards:
        return "has a forward hook"
    if _spread_weights(model) and not (sharded and _is_distributed(linear.weight)):
        return "is spread over processes or devices"
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return "cannot be left out (the model takes no logits_to_keep)"
    return "" if _trunk(model) is not None else "stands on no trunk that is known"


def _gathered_head(model: PreTrainedModel) -> Head | None:
    """The head behind the model's call, if it is whole there.

    FSDP 2 gathers a head for the call and, where it stands in the model's last group,
    as accelerate puts it, leaves it until the backward pass has reached it. Gradients
    of what is multiplied by it meanwhile are shared like all others.
    """
    linear: Any = _linear(model)
    return None if _is_distributed(linear.weight) else _head_of(model)


def _is_distributed(weight: torch.Tensor) -> bool:
    """Whether a weight is a DTensor: each process holds a part of it."""
    return hasattr(weight, "device_mesh")


def _head_of(model: PreTrainedModel) -> Head:
    """Logit scales and soft-caps are read from configurations that have them."""
    linear: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    # Not every model has Gemma 2's name for it. Small logits are hardly capped, so
    # that a first batch would not tell.
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        cap = getattr(config, "logits_soft_cap", None)
    return Head(linear.weight, linear.bias, scale / divisor, cap)


def _trunk(model: nn.Module) -> nn.Module | None:
    """What gives a model's last hidden states: a decoder, which OPT calls directly."""
    found = getattr(model, "get_decoder", lambda: None)()
    if found is None or found is model:
        found = getattr(model, "base_model", model)
    # Llama 4 knows neither by these names.
    return getattr(model, "model", None) if found is model else found


def _spread_weights(model: nn.Module) -> bool:
    """Whether the head's weights are whole only inside the model's own call."""
    weight = getattr(_linear(model), "weight", None)
    if not torch.is_tensor(weight):  # of torch's dynamic quantisation, a method
        return False
    # FSDP 2 has a mesh of devices, ZeRO-3 a name of its own; FSDP 1 leaves a flat
    # piece, nothing, or a shape without memory. Every process has to say the same.
    # What accelerate has put elsewhere comes when it is needed.
    if _is_distributed(weight) or hasattr(weight, "ds_id"):
        return True
    if weight.is_meta or weight.dim() != 2 or weight.numel() == 0:
        return True
    return weight.untyped_storage().nbytes() == 0 or is_dispatched(model)


def _call(model: nn.Module, inputs: Mapping[str, torch.Tensor], **options: Any) -> Any:
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if positions is not None:
        options["position_ids"] = positions
    # Only without a mask does transformers read from the positions where an example
    # begins. With padding on the left, they say what the mask says, which is needed.
    if positions is None:
        options["attention_mask"] = mask
    elif mask is not None and not bool(mask[:, 0].all()):
        if _holds_several(inputs):
            raise ValueError(
                "rows hold several examples (position_ids begin anew) and padding on "
                "the left, and a model can be told one of them only; pad on the right"
            )
        options["attention_mask"] = mask
    return model(input_ids=inputs["input_ids"], use_cache=False, **options)
