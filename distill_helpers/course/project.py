"""What a project needs around its student: accidents, archives, names, origins.

Whether the student is worth having is judged in :mod:`distill_helpers.course.verdict`.

Taught in notebook 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from distill_helpers.labels.api import API
from distill_helpers.tasks.bundled import data_path, data_root

if TYPE_CHECKING:
    from distill_helpers.machine import Profile


class StopAfter(TrainerCallback):
    """End a run early, as a lost connection would: nothing more is saved.

    Args:
        steps: Optimizer steps that the run gets. Those behind the last checkpoint are
            lost.

    Taught in notebook 13.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for the end."""
        if state.global_step >= self.steps:
            control.should_training_stop = True
        return control


def push_folder(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a saved student to the model hub; return its address.

    Args:
        folder: The student's folder, with ``README.md``, ``config.json`` and weights.
        repository: Owner and name, such as ``"your-name/your-student"``. The token
            comes from ``huggingface_hub``: ``HF_TOKEN``, Colab's secrets, or
            ``hf auth login``.
        private: Whether only you can see it.

    Returns:
        The address of the repository.

    Raises:
        ValueError: If the folder is not complete, the name has no owner, or a
            repository that should be private is there already and is not.

    Taught in notebook 13.
    """
    folder = Path(folder)
    for name in ("README.md", "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"folder={str(folder)!r} has no {name}; save the student and its "
                "card there first"
            )
    if repository.count("/") != 1:
        raise ValueError(f"repository={repository!r} must look like owner/name")
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    # One that was there before stays as it was, whatever is asked for.
    if private and not api.repo_info(repository).private:
        raise ValueError(
            f"repository={repository!r} was there before and is not private, so "
            "nothing was uploaded; make it private in its settings, choose another "
            "name, or pass private=False"
        )
    # Checkpoints hold optimizer states: large, and nobody else's business.
    answer = api.upload_folder(
        repo_id=repository, folder_path=folder, ignore_patterns=["checkpoint-*"]
    )
    return str(getattr(answer, "repo_url", answer))


def teacher_name(option: str, profile: Profile) -> str:
    """Return the name that others know a teacher by.

    Args:
        option: The teacher as an option names it: ``"packaged"``, ``"tiny-prose"``, a
            folder, a name on the hub, or ``"api:MODEL@URL"``, whose address stays here.
        profile: The profile, whose own teacher ``"packaged"`` is.

    Taught in notebook 13.
    """
    if option == "packaged":
        own = profile.teacher
        return "HuggingFaceTB/SmolLM2-135M-Instruct" if own == "packaged" else own
    # Of a folder only the last part, and of a server no address: cards travel.
    if option.startswith(API):
        return option.removeprefix(API).partition("@")[0]
    return Path(option).name if Path(option).is_dir() else option


def origins(names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Return licence and origin of bundled files, as ``data/MANIFEST.json`` has them.

    Args:
        names: Paths in ``data/``, such as ``"gloss_labels.jsonl"``; the files' bytes
            are checked.

    Returns:
        Name to licence and origin.

    Raises:
        DataError: If a file is not a bundled one, or is damaged.

    Taught in notebook 13.
    """
    wanted = list(names)
    for name in wanted:
        data_path(name)  # checks its bytes
    files = json.loads((data_root() / "MANIFEST.json").read_text("utf-8"))["files"]
    return {name: (files[name]["licence"], files[name]["origin"]) for name in wanted}
