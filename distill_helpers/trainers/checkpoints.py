"""Checkpoints that are either complete or not used at all.

Used by every trainer; a run that was killed goes on from the last complete one.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_LOGGER = logging.getLogger(__name__)

# A file of this name says that a checkpoint is complete.
_SEAL = "COMPLETE"


def refuse_shared(
    who: str, model: nn.Module, whose: str, other: nn.Module, remedy: str
) -> None:
    """Raise ``ValueError`` where another model has a weight that this one learns.

    By identity, and by the memory that it lies in. What is frozen may be shared.

    Args:
        who: Name of ``model``, for the message, and so is ``whose``.
        model: To be trained.
        whose: Name of ``other``.
        other: That would change, or be frozen, with it.
        remedy: What to do about it.
    """
    theirs = {_memory(tensor) for tensor in (*other.parameters(), *other.buffers())}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _memory(parameter) in theirs:
            raise ValueError(
                f"the {who} and the {whose} share {name}, which the {who} is to learn: "
                f"one could not change without the other; {remedy}"
            )


def refuse_unsaved(who: str, model: nn.Module) -> None:
    """Raise ``ValueError`` for weights that a checkpoint of adapters leaves out.

    PEFT saves adapters and what ``modules_to_save`` names. A resumed run would have
    everything else as it was in the beginning.

    Args:
        who: ``"student"``, or a name, for the message.
        model: To be trained and saved.
    """
    adapters = getattr(model, "peft_config", None) or {}
    # Of learned prompts, PEFT saves what it makes of them, and can go on from that.
    if not adapters or any(one.is_prompt_learning for one in adapters.values()):
        return
    from peft import get_peft_model_state_dict

    saved = {
        _memory(tensor)
        for name in adapters
        for tensor in get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        ).values()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _memory(parameter) not in saved:
            raise ValueError(
                f"the {who} learns {name}, which is not part of its adapters and is "
                "not saved with them, so that no run could go on from a checkpoint; "
                "name its module in modules_to_save, freeze it, or save nothing "
                "(output_dir=None, or save_strategy='no')"
            )


def load_adapters(model: Any, folder: Path) -> None:
    """Load the adapters that ``save_pretrained`` wrote into those that a model has."""
    from peft import load_peft_weights, set_peft_model_state_dict

    for name in model.peft_config:
        own = folder if name == "default" else folder / name
        weights = load_peft_weights(str(own), device="cpu")
        set_peft_model_state_dict(model, weights, adapter_name=name)


def _memory(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie; its identity, if they are in no memory or many."""
    if tensor.is_meta or type(tensor) not in (torch.Tensor, nn.Parameter):
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)


def refuse_without(checkpoint: Path, *names: str) -> None:
    """Raise ``ValueError`` for a checkpoint without the files to go on from.

    Args:
        checkpoint: The folder of a complete checkpoint.
        names: Files that a resumed run needs.
    """
    missing = [name for name in names if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} has no {' and no '.join(missing)}, as save_only_model=True "
            "leaves it: nobody could go on from there, only begin a new schedule with "
            "its weights. Train with save_only_model=False to resume; or load the "
            "weights with from_pretrained and train into another output folder"
        )


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint folder was written to its end."""
    return (checkpoint / _SEAL).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint with the highest step, or ``None``."""
    found = _complete_checkpoints(Path(output_dir))
    return found[-1] if found else None


def _complete_checkpoints(folder: Path) -> list[Path]:
    # Not a copy that somebody has given another name.
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and is_complete(path)
    ]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def warn_of_an_earlier_run(folder: Path) -> None:
    """Warn where a run starts anew beside complete checkpoints of another."""
    found = _complete_checkpoints(folder)
    if found:
        _LOGGER.warning(
            "output_dir=%r holds %s of an earlier run, and this one starts anew: cut "
            "off early, it would be resumed from there; choose another folder, delete "
            "them, or go on from the last with resume_from_checkpoint=True",
            str(folder),
            ", ".join(path.name for path in found),
        )


class SealCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete once all of it is written, then removes old ones.

    ``Trainer`` writes in place and deletes old checkpoints at once. Here the marker
    comes last, and nothing is deleted before it stands.

    Args:
        keep: How many complete checkpoints stay, the best one in any case; ``None``
            keeps all.
    """

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._folder: Path | None = None

    def begin(self, folder: Path, args: TrainingArguments) -> None:
        """Note that ``folder`` is about to be written, and so is not complete."""
        self._folder = folder
        if args.should_save:
            (folder / _SEAL).unlink(missing_ok=True)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Seal the checkpoint that every process has now written."""
        PartialState().wait_for_everyone()
        folder = self._folder
        if folder is None or not args.should_save:
            return
        (folder / _SEAL).touch()
        best = state.best_model_checkpoint
        # By name: an earlier process may have written the folder otherwise.
        kept = {folder, folder.with_name(Path(best or folder).name)}
        _remove_oldest(folder.parent, self._keep, protected=kept)


def _remove_oldest(folder: Path, limit: int | None, protected: set[Path]) -> None:
    # Trainer's own rotation counts half-written checkpoints too: one with a high
    # number, left by a killed run, would be kept in place of a complete one.
    complete = _complete_checkpoints(folder)
    excess = len(complete) - limit if limit else 0
    removable = [path for path in complete if path not in protected]
    # By time, since an earlier run may have left higher numbers; at equal times, as
    # copying may leave them, the order by number stays.
    removable.sort(key=lambda path: (path / _SEAL).stat().st_mtime_ns)
    for path in removable[: max(0, excess)]:
        (path / _SEAL).unlink()
        shutil.rmtree(path, ignore_errors=True)
