"""The sizes of models, read from whatever names them; no weights are loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from distill_helpers.machine import Profile

Model: TypeAlias = "PreTrainedModel | PreTrainedConfig | str | Path"

# Shapes of the models that the profiles name, so that planning needs no network.
_SHAPES = Path(__file__).with_name("shapes.json")
ARCHITECTURES: dict[str, tuple[str, dict[str, int]]] = {
    name: (kind, sizes)
    for name, (kind, sizes) in json.loads(_SHAPES.read_text("utf-8")).items()
}


def config_of(model: Model) -> PreTrainedConfig:
    """Return the configuration of a model, or of one that is only named.

    Args:
        model: A model, its configuration, a name in ``ARCHITECTURES``, a folder, or a
            name on the hub.

    Raises:
        ValueError: If neither a folder nor the hub has a configuration of that name.
    """
    from transformers import AutoConfig, PreTrainedConfig

    if isinstance(model, nn.Module):
        return model.config
    if isinstance(model, PreTrainedConfig):
        return model
    if str(model) in ARCHITECTURES:
        kind, sizes = ARCHITECTURES[str(model)]
        return AutoConfig.for_model(kind, **sizes, tie_word_embeddings=True)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"models names {str(model)!r}, which is no folder with a config.json, and "
            "the hub does not answer with one; known without network are "
            f"{', '.join(ARCHITECTURES)}"
        ) from error


def models_of(
    profile: Profile, student: int = 0
) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Return the shapes of a profile's teacher and of one of its students.

    Args:
        profile: A profile from ``get_profile``.
        student: The index of the student, where the profile has several.

    Raises:
        ValueError: If the profile has no student of that index.
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


def weight_bytes(model: Model, dtype: torch.dtype) -> int:
    """Count the bytes of a model's weights; tied ones count once.

    Args:
        model: Same as in :func:`config_of`. A model in memory is counted as it is.
        dtype: The precision of one that is only named.
    """
    from transformers import AutoModelForCausalLM

    found: nn.Module
    if isinstance(model, nn.Module):
        found = model
    else:
        with torch.device("meta"):
            # A copy, for transformers notes the dtype in the config it is given.
            config = copy.deepcopy(config_of(model))
            found = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(map(_stored_bytes, found.parameters()))


def _stored_bytes(tensor: torch.Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):  # torchao's, which are made of parts
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def vocabulary_of(config: PreTrainedConfig) -> int:
    """Count a model's outputs; one that reads pictures too says so in its text part."""
    return int(config.get_text_config().vocab_size)
