"""The files that ship with the course, checked against their manifest."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from distill_helpers.data.base import DataError


def data_root() -> Path:
    """Folder of the bundled data: inside the wheel, or ``data/`` of a clone."""
    return _bundled("_data", "data")


def results_root() -> Path:
    """Folder of the studies' results: inside the wheel, or ``results/`` of a clone."""
    return _bundled("_results", "results")


def _bundled(in_wheel: str, in_clone: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / in_wheel, package.parent / in_clone):
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"the folder {in_clone}/ of distill_helpers is missing; install the package "
        "again, or run from a full clone of the repository"
    )


def data_path(name: str) -> Path:
    """Path of a bundled file, after its bytes have been checked.

    Args:
        name: Relative to the data folder, such as ``"austen/emma.txt"``.

    Raises:
        DataError: If the file is unknown, missing or not the one that was shipped.
    """
    root = data_root()
    manifest = _manifest(root)
    if name not in manifest:
        known = ", ".join(sorted(manifest))
        raise DataError(f"{name!r} is not a bundled file; there are: {known}")
    path = root / name
    if not path.is_file():
        raise DataError(f"{path} is missing; install distill_helpers again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != manifest[name]["sha256"]:
        raise DataError(
            f"{path} is not the file that was shipped: its sha256 is {found[:12]}…, "
            f"expected {manifest[name]['sha256'][:12]}…; restore it with git or "
            "install distill_helpers again"
        )
    return path


def data_folder(name: str) -> Path:
    """Path of a bundled folder, after every file in it has been checked.

    Args:
        name: Relative to the data folder, such as ``"tiny_prose"``.

    Raises:
        DataError: Where :func:`data_path` raises it.
    """
    root = data_root()
    files = [file for file in _manifest(root) if file.startswith(f"{name}/")]
    if not files:
        raise DataError(f"{name!r} is not a bundled folder")
    for file in files:
        data_path(file)
    return root / name


@lru_cache
def _manifest(root: Path) -> dict[str, dict[str, str]]:
    path = root / "MANIFEST.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is missing or damaged; restore it with git or install "
            "distill_helpers again"
        ) from error
