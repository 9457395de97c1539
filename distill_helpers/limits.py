"""What a model can read: which token ids, and how many positions.

Torch says "index out of range in self" where an id has no embedding or a position has
none, and a GPU says less. Everything here finds that out before, and says it with both
numbers. Used by the trainers, the yardsticks and the command line.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

_LOGGER = logging.getLogger(__name__)


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text part; of a plain text model, its own.

    Models that read pictures too (Gemma 3 from 4B on, Mistral 3) keep the vocabulary
    and the number of positions there. Wrappers (PEFT) hand on to the model inside.

    Returns:
        ``None`` for a module without a configuration.
    """
    config = getattr(model, "config", None)
    found = getattr(config, "get_text_config", None)
    return config if found is None else found()


def output_width(model: nn.Module) -> int | None:
    """Outputs of a model's head, padding included; ``None`` if it does not say."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    # Weights that are spread over processes, or packed by a quantiser, have other
    # shapes; the configuration knows.
    stated = getattr(text_config(model), "vocab_size", None)
    if stated is not None:
        return int(stated)
    return None if weight is None or weight.dim() != 2 else int(weight.shape[0])


def input_rows(model: nn.Module) -> int | None:
    """Token ids that a model has an embedding for; ``None`` if it does not say."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embedding, "num_embeddings", None)
    if rows is None:
        rows = getattr(text_config(model), "vocab_size", None)
    return None if rows is None else int(rows)


def tabled_positions(model: nn.Module) -> int | None:
    """Positions that a model has in a table, learned (GPT-2, OPT) or not (GPT-J).

    Found by looking for an embedding or a buffer with as many rows as the
    configuration has positions (or a few more: OPT keeps two for itself). ``None`` for
    all others, which can be given any number of positions, if not to their good.
    """
    most = _stated_positions(model)
    if most is None:
        return None
    tokens = getattr(model, "get_input_embeddings", lambda: None)()
    tables = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not tokens
    ]
    tables += [buffer for buffer in model.buffers() if buffer.dim() == 2]
    return most if any(0 <= len(table) - most <= 8 for table in tables) else None


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
    most = _stated_positions(model)
    if most is None or length <= most:
        return
    if tabled_positions(model) is not None:
        raise ValueError(
            f"a row has {length} tokens, and the {who} has no more than {most} "
            "positions; take shorter rows (pack(…, length=…), max_length=…, or fewer "
            "max_new_tokens)"
        )
    _LOGGER.warning(
        "a row has %d tokens, and the %s was made for at most %d positions: what it "
        "says behind them may be worthless; take shorter rows, or set "
        "max_position_embeddings if it can tell more",
        length,
        who,
        most,
    )


def check_ids(who: str, model: nn.Module, highest: int, what: str = "a row") -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        who: ``"student"``, ``"teacher"`` or a name, for the message.
        model: Read for its embeddings.
        highest: The highest token id.
        what: That holds it, such as ``"the tokenizer's pad token"``.

    Raises:
        ValueError: With both numbers and the remedy.
    """
    rows = input_rows(model)
    if rows is not None and highest >= rows:
        raise ValueError(
            f"{what} is token {highest}, so there must be {highest + 1} embeddings, "
            f"and the {who} has {rows}; call model.resize_token_embeddings(len("
            "tokenizer)) after tokens were added, or use the model's own tokenizer"
        )


def _stated_positions(model: nn.Module) -> int | None:
    most = getattr(text_config(model), "max_position_embeddings", None)
    return int(most) if isinstance(most, int) and most > 0 else None
