"""What this machine is: the facts that a result depends on, and nothing that names a person or a secret.

No environment variable is read here, and neither torch nor transformers is imported: versions come from the
installed packages' own metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "tunesmith",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "peft",
    "bitsandbytes",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions; packages that are not installed are absent."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """Of the instruction sets that matter here, those that the processor has (Linux; empty elsewhere)."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return tuple(flag for flag in CPU_FLAGS if flag in flags)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of this machine, or of the container if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def memory_free_bytes() -> int | None:
    """What could be taken now without swapping, of the machine or of the container if that is less (Linux; None
    elsewhere)."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = (line.split() for line in path.read_text().splitlines())
    free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
    left = _left_in_container(Path("/sys/fs/cgroup"))
    return free if left is None or free is None else min(free, left)


def _left_in_container(group: Path) -> int | None:
    """What a control group may still take, files that can be let go counted as free; None: as much as there is."""
    try:
        limit = (group / "memory.max").read_text().strip()
        current = int((group / "memory.current").read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - current + int(told.get("inactive_file", 0)))


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "+changes" if files differ; None when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe() -> dict[str, Any]:
    """Everything above as one JSON-able record, with what torch says of itself where it is loaded already."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": cpu_name(),
        "cpu_flags": list(cpu_flags()),
        "cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "versions": versions(),
        "commit": commit(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def cache_folder() -> Path:
    """$TUNESMITH_CACHE, or ~/.cache/tunesmith: what can be made again."""
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith")
