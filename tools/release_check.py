"""Everything a release needs that a machine can check: ``make release-check``.

The changelog has the version, with its date, on top. Sdist and wheel are built, the
wheel from the sdist, into ``dist/``; the wheel holds the package, data, results and
licences, and nothing else. It is installed into an empty environment, ``build/fresh``,
which borrows this one's libraries, and the loop of lesson 02 runs from there. Nothing
is fetched. Sets no tag.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import try_wheel

import distill_helpers

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"(?m)^## (\S+) – (.+)$")


def check_changelog(text: str, version: str) -> None:
    """Refuse a changelog whose newest section is not this version's, with its date.

    Raises:
        ValueError: With what to write.
    """
    newest = SECTION.search(text)
    if newest is None or newest[1] != version:
        raise ValueError(
            f"CHANGELOG.md begins with {newest[0] if newest else 'no section'!r}; its "
            f"first section must be '## {version} – {datetime.date.today()}'"
        )
    try:
        datetime.date.fromisoformat(newest[2])
    except ValueError:
        raise ValueError(
            f"CHANGELOG.md dates {version} {newest[2]!r}; write the day of the "
            f"release, such as {datetime.date.today()}"
        ) from None


def check_wheel(wheel: Path, version: str) -> None:
    """Refuse a wheel of another version, or one that misses or adds something.

    Raises:
        ValueError: With the files that are missing, or too many.
    """
    facts = f"distill_helpers-{version}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in _files("distill_helpers")}
    data = {
        f"distill_helpers/_{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in ("data", "results")
        for path in _files(folder)
    }
    licences = {f"{facts}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    if missing := sorted((package | data | licences) - names):
        raise ValueError(f"{wheel.name} lacks {missing[:5]}")
    known = package | data
    if strays := sorted(n for n in names - known if not n.startswith(f"{facts}/")):
        raise ValueError(f"{wheel.name} also holds {strays[:5]}, unknown to git")


def _files(folder: str) -> list[Path]:
    """What git knows of a folder."""
    command = ["git", "ls-files", "-z", "--", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name]


def build(folder: Path) -> Path:
    """Build sdist and wheel with what is installed; returns the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, venv: Path) -> Path:
    """Install the wheel into a new environment; returns that environment's Python."""
    shutil.rmtree(venv, ignore_errors=True)
    command = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(command, check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    # Its own packages come first, so the wheel hides the repository.
    (own,) = venv.glob("lib/python*/site-packages")
    shared = sysconfig.get_path("purelib")
    line = f"import site; site.addsitedir({shared!r})\n"
    (own / "borrowed.pth").write_text(line, encoding="utf-8")
    return python


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    version = distill_helpers.__version__
    try:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        check_changelog(changelog, version)
        print(f"the changelog begins with {version}", flush=True)
        wheel = build(ROOT / "dist")
        check_wheel(wheel, version)
        print(f"{wheel.relative_to(ROOT)} holds what it must", flush=True)
        python = install(wheel, ROOT / "build" / "fresh")
        help_text = [str(python.parent / "distill"), "--help"]
        subprocess.run(help_text, check=True, stdout=subprocess.DEVNULL)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return try_wheel.main([str(python)])


if __name__ == "__main__":
    sys.exit(main())
