"""What a model can read, and where: which token ids, how many positions, what device.

Torch says "index out of range in self" where an id has no embedding or a position has
none, and a GPU says less. Everything here finds that out before, and says it with both
numbers. Used by the trainers, the yardsticks and the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

_LOGGER = logging.getLogger(__name__)


def unwrapped(model: nn.Module) -> Any:
    """A model without what several processes, a compiler or PEFT wrap around it."""
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    base = getattr(inner, "get_base_model", None)
    return inner if base is None else unwrapped(base())


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text part; of a plain text model, its own.

    Models that read pictures too (Gemma 3 from 4B on, Mistral 3) keep the vocabulary
    and the number of positions there.

    Returns:
        ``None`` for a module without a configuration.
    """
    config = getattr(unwrapped(model), "config", None)
    found = getattr(config, "get_text_config", None)
    return config if found is None else found()


def output_width(model: nn.Module) -> int | None:
    """Outputs of a model's head, padding included; ``None`` if it does not say."""
    # Weights that are spread over processes, or packed by a quantiser, have other
    # shapes; the configuration knows.
    stated = getattr(text_config(model), "vocab_size", None)
    if stated is not None:
        return int(stated)
    head = getattr(unwrapped(model), "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    return None if weight is None or weight.dim() != 2 else int(weight.shape[0])


def input_rows(model: nn.Module) -> int | None:
    """Token ids that a model has an embedding for; ``None`` if it does not say."""
    rows = getattr(_token_embedding(model), "num_embeddings", None)
    if rows is None:
        rows = getattr(text_config(model), "vocab_size", None)
    return None if rows is None else int(rows)


def _token_embedding(model: nn.Module) -> Any:
    return getattr(unwrapped(model), "get_input_embeddings", lambda: None)()


def tabled_positions(model: nn.Module) -> int | None:
    """Positions that a model has in a table, learned (GPT-2, OPT) or not (GPT-J).

    Found by looking for an embedding or a buffer with as many rows as the
    configuration has positions (or a few more: OPT keeps two for itself). ``None`` for
    all others, which can be given any number of positions, if not to their good.
    """
    config = text_config(model)
    if getattr(config, "model_type", None) == "mpt":
        return int(config.max_seq_len)  # it has no table, but a bias of that length
    most = _stated_positions(model)
    if most is None:
        return None
    tokens = _token_embedding(model)
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module is tokens:
            continue
        if 0 <= module.num_embeddings - most <= 8:
            # RoBERTa and its kin count from behind the padding's place.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(most, module.num_embeddings - skipped)
    buffers = [buffer for buffer in model.buffers() if buffer.dim() == 2]
    return most if any(0 <= len(buffer) - most <= 8 for buffer in buffers) else None


def _stated_positions(model: nn.Module) -> int | None:
    most = getattr(text_config(model), "max_position_embeddings", None)
    return int(most) if isinstance(most, int) and most > 0 else None


@dataclass(frozen=True)
class Limits:
    """What one model can read, in numbers, which other processes can be given.

    Attributes:
        who: ``"student"``, ``"teacher"`` or a name, for messages.
        ids: Token ids that have an embedding; ``None`` if the model does not say.
        positions: That the model was made for; ``None`` likewise.
        tabled: Whether there are no more positions than that. A model that computes
            them (RoPE) can go on.
    """

    who: str
    ids: int | None
    positions: int | None
    tabled: bool

    @classmethod
    def of(cls, who: str, model: nn.Module) -> Limits:
        """Read them from a model's configuration and embeddings."""
        tabled = tabled_positions(model)
        positions = _stated_positions(model) if tabled is None else tabled
        return cls(who, input_rows(model), positions, tabled is not None)

    def check_length(self, length: int) -> None:
        """As :func:`check_length`."""
        if self.positions is None or length <= self.positions:
            return
        if self.tabled:
            raise ValueError(
                f"a row has {length} tokens, and the {self.who} has no more than "
                f"{self.positions} positions; take shorter rows (pack(…, length=…), "
                "max_length=…, or fewer max_new_tokens)"
            )
        _LOGGER.warning(
            "a row has %d tokens, and the %s was made for at most %d positions: what "
            "it says behind them may be worthless; take shorter rows, or set "
            "max_position_embeddings if it can tell more",
            length,
            self.who,
            self.positions,
        )

    def check_ids(self, highest: int, what: str = "a row") -> None:
        """As :func:`check_ids`."""
        if self.ids is not None and highest >= self.ids:
            raise ValueError(
                f"{what} has the id {highest}, so there must be {highest + 1} "
                f"embeddings, and the {self.who} has {self.ids}; call "
                f"model.resize_token_embeddings({highest + 1}) after tokens were "
                "added, or use the model's own tokenizer (for padding, "
                "tokenizer.pad_token = tokenizer.eos_token will do)"
            )


def check_length(who: str, model: nn.Module, length: int) -> None:
    """Refuse rows that are longer than a model's table of positions.

    Args:
        who: ``"student"``, ``"teacher"`` or a name, for the message.
        model: Read for its configuration and its embeddings.
        length: Tokens of the longest row, in which prompt and answer both count.

    Raises:
        ValueError: If the model has no position for the last tokens. A model that
            computes its positions (RoPE) can go on; the log warns that it has seen no
            such row in training.
    """
    Limits.of(who, model).check_length(length)


def check_ids(who: str, model: nn.Module, highest: int, what: str = "a row") -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        who: ``"student"``, ``"teacher"`` or a name, for the message.
        model: Read for its embeddings.
        highest: The highest token id.
        what: That has it, such as ``"the tokenizer's pad token"``.

    Raises:
        ValueError: With both numbers and the remedy.
    """
    Limits.of(who, model).check_ids(highest, what)


class Readers:
    """The models that read the same batches, and what each of them can read.

    Holds numbers alone, so that a data loader's processes can have it.

    Args:
        models: Name, for messages, to model.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.limits = [Limits.of(who, model) for who, model in models.items()]
        self._longest = 0
        self._longest_of_teacher = 0

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for ids or positions that one of them does not have."""
        ids = batch.get("input_ids")
        if not torch.is_tensor(ids) or not ids.numel():
            return
        for limits in self.limits:
            limits.check_ids(int(ids.max()))
        # Rows that hold several examples count anew in each.
        places = batch.get("position_ids")
        length = ids.shape[-1] if places is None else int(places.max()) + 1
        self.check_length(length)
        theirs = batch.get("teacher_input_ids")
        if theirs is not None:
            self._check_teacher_rows(theirs)

    def _check_teacher_rows(self, ids: torch.Tensor) -> None:
        """The same for rows that the teacher alone reads."""
        teachers = [one for one in self.limits if one.who.startswith("teacher")]
        for limits in teachers:
            limits.check_ids(int(ids.max()), "the teacher's row")
            if ids.shape[-1] > self._longest_of_teacher:
                limits.check_length(ids.shape[-1])
        self._longest_of_teacher = max(self._longest_of_teacher, ids.shape[-1])

    def check_length(self, length: int) -> None:
        """The same for a row's length; said once, where it is no more than a risk."""
        if length <= self._longest:
            return
        for limits in self.limits:
            limits.check_length(length)
        self._longest = length

    def check_pad(self, pad: int) -> None:
        """The same for the id that batches are padded with."""
        for limits in self.limits:
            limits.check_ids(pad, "the tokenizer's pad token")


# --- where a model is ---------------------------------------------------------------


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate keeps parts of a model on several devices, or on disk.

    Such a model is read where it is: it cannot be moved, and some of its weights are
    there only while they are needed.
    """
    modules = list(model.modules())
    if not any(hasattr(module, "_hf_hook") for module in modules):
        return False
    places = {
        str(place)
        for module in modules
        for place in (getattr(module, "hf_device_map", None) or {}).values()
    }
    return len(places) > 1 or any(weight.is_meta for weight in model.parameters())


def reading_device(model: nn.Module) -> torch.device:
    """Where a model wants its token ids: not always where its first weight is kept."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    # Weights on disk are on the "meta" device, where nothing can be computed.
    places = (one.device for one in model.parameters() if not one.is_meta)
    return next(places, torch.device("cpu"))
