"""Compiles the C files of this folder once for this processor and hands out its functions.

No compiler, a compiler that fails, or a processor other than the CPU: `library()` is None, and every kernel runs in its
plain form. The object lies in the cache, under a name made of source, flags, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tunesmith.machine import cache_folder

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("fused.c", "low_rank.c", "attention.c", "attention_tiles.c"))
HEADER = FOLDER / "portable.h"
# Not -ffast-math: linked into a shared object it would change how the whole process treats tiny numbers.
FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
    "-fopenmp", "-shared", "-fPIC",
)  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; `why_not()` then says why."""
    return _build()[0]


def why_not() -> str | None:
    """Why the kernels run in their plain form, or None where the compiled ones run."""
    return _build()[1]


@functools.cache
def has_tiles() -> bool:
    """Whether bf16 attention may use this processor's matrix tiles (Intel AMX); asks the system for them once."""
    compiled = library()
    return compiled is not None and bool(compiled.has_tiles())


@functools.cache
def _build() -> tuple[ctypes.CDLL | None, str | None]:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "no C compiler (apt-get install gcc)"
    try:
        target = _object_path(compiler)
        if not target.is_file():
            _compile(compiler, target)
        return ctypes.CDLL(str(target)), None
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.decode(errors='replace').strip()[:200]}"
    except OSError as error:
        return None, str(error)


def _object_path(compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    text = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
    key = hashlib.sha256(text + version + " ".join(FLAGS).encode() + _processor().encode())
    return cache_folder() / "kernels" / f"fused-{key.hexdigest()[:20]}.so"


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "fused.so"
        sources = [str(path) for path in SOURCES]
        subprocess.run([compiler, *FLAGS, *sources, "-o", str(made), "-lm"], capture_output=True, check=True)
        made.replace(target)
