"""Make the environment that `make` works in, or say in one sentence why it cannot be made.

Needs nothing but Python's own library. Two files in the environment say how it stands:

    .tunesmith        what is installed, once all of it is; "unfinished" while pip is at work
    .tunesmith-made   this program made the environment, and may make it anew; no other is ever taken away

Quick when everything is there already. Struck down at any moment, it makes good next time what it left half-made.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / (os.environ.get("VENV") or ".venv")
TORCH = os.environ.get("TORCH") or "torch==2.13.0"
TORCH_INDEX = os.environ.get("TORCH_INDEX", "")
GIGABYTES_NEEDED = 4
STATE, MADE, UNFINISHED = ".tunesmith", ".tunesmith-made", "unfinished"
NO_VENV = "Python's venv module is missing: apt-get install python3-venv, then run make again"
SYMPTOMS = (
    ("No space left", "the disk is full: free some space and run make again"),
    ("Disk quota exceeded", "the disk is full: free some space and run make again"),
    ("Connection refused", "the package registry refuses connections: check the network and run again"),
    ("Cannot connect to proxy", "the proxy that is set for pip does not answer: check it and run again"),
    ("CERTIFICATE_VERIFY_FAILED", "the package registry's certificate is not trusted here (pip's setting is `cert`)"),
    ("Temporary failure in name resolution", "the package registry cannot be reached: check the network and run again"),
    ("Name or service not known", "the package registry cannot be reached: check the network and run again"),
    ("Failed to establish a new connection", "the package registry cannot be reached: check the network and run again"),
    ("ConnectTimeoutError", "the package registry does not answer: check the network and run again"),
    ("Read timed out", "the package registry is too slow to answer: run make again"),
    # last, since pip says this too of a registry that it never reached
    ("No matching distribution", "the package registry does not have it (is a proxy or an index set for pip?)"),
)


class Stopped(BaseException):
    """A signal asked this program to stop."""


def main(arguments: list[str]) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 -- this file runs under whatever Python is there
        stop(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stopped)
    try:
        remove() if arguments == ["--remove"] else ensure()
    except Stopped as signalled:
        number = signalled.args[0]
        stop("interrupted; make goes on from here when it is run again", 128 + number)
    except OSError as error:
        remedy = next((remedy for symptom, remedy in SYMPTOMS if symptom in str(error)), None)
        stop(f"{error.filename or VENV}: {remedy or error.strerror or error}")


def _stopped(number: int, frame: Any) -> None:
    raise Stopped(number)


def ensure() -> None:
    """The environment with everything in it."""
    wanted = stamp()
    if installed() == wanted and python().is_file():
        return
    with alone():
        if installed() != wanted or not python().is_file():  # else the make that was waited for has done it
            install(wanted)


def install(wanted: str) -> None:
    prepare()
    (VENV / STATE).write_text(UNFINISHED)
    say(f"installing {TORCH}" + (f" from {TORCH_INDEX}" if TORCH_INDEX else ""))
    index = ["--index-url", TORCH_INDEX] if TORCH_INDEX else []
    pip([*index, TORCH], TORCH)
    say("installing Tunesmith and what it needs")
    pip(["-c", "constraints.txt", TORCH, "-e", ".[demo,dev]"], "Tunesmith's dependencies")
    (VENV / STATE).write_text(wanted)
    say("ready")


def remove() -> None:
    """For `make clean`. An environment that this program did not make stays."""
    if VENV.is_symlink():
        VENV.unlink()
    elif is_ours() or (VENV / STATE).is_file():
        (VENV / MADE).touch()
        empty()
        (VENV / MADE).unlink()
        VENV.rmdir()
    elif VENV.exists():
        say(f"{VENV} stays: make has not made it")


def stamp() -> str:
    """What the environment is made of."""
    digest = hashlib.sha256(f"{TORCH} {TORCH_INDEX} {sys.version}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def installed() -> str:
    """The stamp of what was installed last, UNFINISHED, or nothing."""
    return (VENV / STATE).read_text() if (VENV / STATE).is_file() else ""


def python() -> Path:
    return VENV / "bin" / "python"


def is_ours() -> bool:
    return not VENV.is_symlink() and (VENV / MADE).is_file()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two at work in one environment would tear it. The lock is held by this program, and by a pip that outlives it."""
    handle = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(handle, True)
    try:
        with contextlib.suppress(OSError):  # a file system that knows no locks is no reason to refuse
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another make, which sets this up already")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def prepare() -> None:
    """Leaves a Python with a pip that works in VENV."""
    if VENV.exists() and not is_ours() and any(path.is_file() for path in VENV.rglob("*")):
        adopt()
        return
    if is_ours():
        problem = whats_wrong()
        if problem is None:
            return
        say(f"the environment {VENV.name} {problem}: making it anew")
        empty()
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES_NEEDED:
        stop(f"the disk has {free:.1f} GB free, and the environment needs {GIGABYTES_NEEDED}: free some space")
    say(f"making the environment {VENV.name}")
    VENV.mkdir(parents=True, exist_ok=True)
    (VENV / MADE).touch()
    # Without pip, which comes next: Debian's venv would stop half-way where its package python3-venv is missing.
    run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], "the environment cannot be made")
    get_pip()


def empty() -> None:
    """Takes everything away but our mark: without it, what a kill leaves here would not be ours to mend."""
    for entry in VENV.iterdir():
        if entry.name != MADE:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def adopt() -> None:
    """An environment that somebody else made: what it lacks is added, and nothing is taken away."""
    elsewhere = "remove it yourself, or name another place: make VENV=.venv-2"
    if not (VENV / "pyvenv.cfg").is_file():
        stop(f"{VENV} is not a virtual environment, and holds files: {elsewhere}")
    if not attempt([str(python()), "-c", ""])[0]:
        run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], f"{VENV} has no Python that works")
    if not pip_works():
        get_pip()
        if not pip_works():
            stop(f"the environment {VENV} has no Python with a pip that works, and make has not made it: {elsewhere}")
    if installed() == UNFINISHED and (half := torn()):
        stop(f"in the environment {VENV}, which make has not made, {half[0]} is installed by half: {elsewhere}")


def whats_wrong() -> str | None:
    """Why the environment that we made is no good, or None."""
    version = "{}.{}".format(*sys.version_info[:2])
    ran, text = attempt([str(python()), "-c", "import sys; print('{}.{}'.format(*sys.version_info[:2]))"])
    if not ran:
        return "has no Python that works"
    if text.strip() != version:
        return f"is of Python {text.strip()}, not {version}"
    if not pip_works():
        return "is half-made"
    if installed() in ("", UNFINISHED) and (half := torn()):
        return f"has {half[0]} installed by half"
    return None


def torn() -> list[str]:
    """Packages that a pip which was struck down has left by half: files that their own lists name are not there."""
    names = []
    for site in VENV.glob("lib/python*/site-packages"):
        names += [left.name for left in site.glob("~*")]  # set aside while another version was put in their place
        for info in site.glob("*.dist-info"):
            record = info / "RECORD"
            if not record.is_file() or not _all_there(site, record):
                names.append(info.name.split("-")[0])
    return names


def _all_there(site: Path, record: Path) -> bool:
    with record.open(newline="", encoding="utf-8") as file:
        for path, _, size in csv.reader(file):
            full = site / path
            if path.endswith(".pyc"):
                continue
            if not full.is_file() or (size and full.stat().st_size != int(size)):
                return False
    return True


def pip_works() -> bool:
    """Asked for the help of `install`, it imports nearly all of itself."""
    return attempt([str(python()), "-m", "pip", "install", "--help"])[0]


def get_pip() -> None:
    """Python's own copy of pip into VENV; where Debian left that out, the copy of the Python that runs this."""
    for site in VENV.glob("lib/python*/site-packages"):  # one that is broken would count as there
        for left in (site / "pip", *site.glob("pip-*.dist-info")):
            shutil.rmtree(left, ignore_errors=True)
    done, text = attempt([str(python()), "-Im", "ensurepip", "--upgrade", "--default-pip"])
    if done:
        return
    if "No module named ensurepip" not in text:
        explain(text, "pip cannot be put into the environment")
    done, text = attempt([sys.executable, "-m", "pip", "--python", str(python()), "install", "--quiet", "pip"])
    if not done:  # there is no pip, or one from before 22.3
        missing = "No module named pip" in text or "no such option" in text
        stop(NO_VENV) if missing else explain(text, "pip cannot be put into the environment")


def pip(arguments: list[str], what: str) -> None:
    quick = ["--quiet", "--disable-pip-version-check"]
    if not sys.dont_write_bytecode:  # compiled when first imported: most of what is installed never is
        quick.append("--no-compile")
    run([str(python()), "-m", "pip", "install", *quick, *arguments], f"{what} cannot be installed")


def attempt(command: list[str]) -> tuple[bool, str]:
    """Whether `command` did what it should, and all that it said."""
    try:  # the lock is the one file that children inherit
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, close_fds=False)
    except OSError as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def run(command: list[str], failure: str) -> None:
    done, text = attempt(command)
    if not done:
        explain(text, failure)


def explain(text: str, failure: str) -> None:
    """Ends with one sentence on what a command said when it failed."""
    if "No module named venv" in text:
        stop(NO_VENV)
    for symptom, remedy in SYMPTOMS:
        if symptom in text:
            stop(f"{failure}: {remedy}")
    log = ROOT / "setup.log"
    log.write_text(text)
    last = text.splitlines()[-1] if text else "it said nothing"
    stop(f"{failure}: {last} (all of it: {log.name})")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def stop(text: str, code: int = 1) -> None:
    print(f"setup: {text}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
