"""Helpers for distilling language models, and for the course that teaches it.

The names below are the public face: ``from distill_helpers import soft_label_loss``.
Everything else is reached by its room, such as ``distill_helpers.losses``; which room
holds what is told in ``docs/architecture.md``. Importing the package downloads nothing
and loads neither torch nor transformers: a name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_helpers.data import align_tokenizers, load_corpus, pack
    from distill_helpers.evaluation import evaluate, generate
    from distill_helpers.export import export_gguf
    from distill_helpers.labels import (
        ApiTeacher,
        LocalTeacher,
        ServedTeacher,
        SoftLabelCache,
        filter_labels,
        learn_answers,
        learn_conversations,
        write_cache,
        write_labels,
    )
    from distill_helpers.losses import Hidden, hard_label_loss, soft_label_loss
    from distill_helpers.machine import get_profile
    from distill_helpers.models import (
        add_adapters,
        build_student,
        load_model,
        prune_layers,
    )
    from distill_helpers.planning import plan
    from distill_helpers.trainers import (
        CoDistillationTrainer,
        HardLabelTrainer,
        MixSchedule,
        OnPolicyTrainer,
        SoftLabelTrainer,
        training_arguments,
    )

__version__ = "0.2.0"

__all__ = [
    "ApiTeacher",
    "CoDistillationTrainer",
    "HardLabelTrainer",
    "Hidden",
    "LocalTeacher",
    "MixSchedule",
    "OnPolicyTrainer",
    "ServedTeacher",
    "SoftLabelCache",
    "SoftLabelTrainer",
    "add_adapters",
    "align_tokenizers",
    "build_student",
    "evaluate",
    "export_gguf",
    "filter_labels",
    "generate",
    "get_profile",
    "hard_label_loss",
    "learn_answers",
    "learn_conversations",
    "load_corpus",
    "load_model",
    "pack",
    "plan",
    "prune_layers",
    "soft_label_loss",
    "training_arguments",
    "write_cache",
    "write_labels",
]

_ROOMS = {
    "data": ("align_tokenizers", "load_corpus", "pack"),
    "evaluation": ("evaluate", "generate"),
    "export": ("export_gguf",),
    "labels": (
        "ApiTeacher",
        "LocalTeacher",
        "ServedTeacher",
        "SoftLabelCache",
        "filter_labels",
        "learn_answers",
        "learn_conversations",
        "write_cache",
        "write_labels",
    ),
    "losses": ("Hidden", "hard_label_loss", "soft_label_loss"),
    "machine": ("get_profile",),
    "models": ("add_adapters", "build_student", "load_model", "prune_layers"),
    "planning": ("plan",),
    "trainers": (
        "CoDistillationTrainer",
        "HardLabelTrainer",
        "MixSchedule",
        "OnPolicyTrainer",
        "SoftLabelTrainer",
        "training_arguments",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name from its room."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value  # the next time, it is simply there
    return value


def __dir__() -> list[str]:
    """The public names, and what Python adds."""
    return sorted({*globals(), *__all__})
