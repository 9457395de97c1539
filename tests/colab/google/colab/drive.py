"""Drive: a folder that outlives the runtime, once the person has allowed it."""

from pathlib import Path

# Where the files really are, where they are to appear, and what the person says.
STORAGE: list[Path] = []
APPEARS: list[Path] = []
ALLOWED = [True]


def mount(mountpoint: str, force_remount: bool = False, **_: object) -> None:
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    place = APPEARS[0]
    if place.is_dir() and not force_remount:
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
            f'call drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    if not ALLOWED[0]:
        raise ValueError("mount failed")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(STORAGE[0], target_is_directory=True)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms: int = 24 * 60 * 60 * 1000) -> None:
    if not APPEARS or not APPEARS[0].is_symlink():
        print("Drive not mounted, so nothing to flush and unmount.")
        return
    APPEARS[0].unlink()
