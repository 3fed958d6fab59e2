"""Make the environment that `make` works in, or say in one sentence why it cannot be made.

Needs nothing but Python's own library. Quick when everything is there already: a stamp in the environment remembers
what was asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / os.environ.get("VENV", ".venv")
TORCH = os.environ.get("TORCH", "torch==2.13.0")
TORCH_INDEX = os.environ.get("TORCH_INDEX", "")
GIGABYTES_NEEDED = 4
SYMPTOMS = (
    ("No space left", "the disk is full: free some space and run make again"),
    ("Failed to establish a new connection", "the package registry cannot be reached: check the network and run again"),
    ("Temporary failure in name resolution", "the package registry cannot be reached: check the network and run again"),
    ("Connection refused", "the package registry refuses connections: check the network and run again"),
    ("Read timed out", "the package registry is too slow to answer: run make again"),
    # last, since pip says this too of a registry that it never reached
    ("No matching distribution", "the package registry does not have it (is a proxy or an index set for pip?)"),
)


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 -- this file runs under whatever Python is there
        stop(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12")
    wanted = stamp()
    marker = VENV / ".tunesmith"
    if marker.is_file() and marker.read_text() == wanted:
        return
    python = VENV / "bin" / "python"
    if not python.is_file():
        free = shutil.disk_usage(ROOT).free / 1e9
        if free < GIGABYTES_NEEDED:
            stop(f"the disk has {free:.1f} GB free, and the environment needs {GIGABYTES_NEEDED}: free some space")
        say(f"making the environment {VENV.name}")
        run([sys.executable, "-m", "venv", str(VENV)], "the environment cannot be made")
    say(f"installing {TORCH}" + (f" from {TORCH_INDEX}" if TORCH_INDEX else ""))
    index = ["--index-url", TORCH_INDEX] if TORCH_INDEX else []
    pip([*index, TORCH], TORCH)
    say("installing Tunesmith and what it needs")
    pip(["-c", "constraints.txt", TORCH, "-e", ".[demo,dev]"], "Tunesmith's dependencies")
    marker.write_text(wanted)
    say("ready")


def stamp() -> str:
    """What the environment is made of."""
    digest = hashlib.sha256(f"{TORCH} {TORCH_INDEX} {sys.version}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def pip(arguments: list[str], what: str) -> None:
    quick = ["--quiet", "--disable-pip-version-check"]
    if not sys.dont_write_bytecode:  # compiled when first imported: most of what is installed never is
        quick.append("--no-compile")
    run([str(VENV / "bin" / "python"), "-m", "pip", "install", *quick, *arguments], f"{what} cannot be installed")


def run(command: list[str], failure: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    text = done.stdout + done.stderr
    if "ensurepip" in text:
        stop("Python's venv module is missing: apt-get install python3-venv, then run make again")
    for symptom, remedy in SYMPTOMS:
        if symptom in text:
            stop(f"{failure}: {remedy}")
    log = ROOT / "setup.log"
    log.write_text(text)
    last = text.strip().splitlines()[-1] if text.strip() else f"exit code {done.returncode}"
    stop(f"{failure}: {last} (all of it: {log.name})")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def stop(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
