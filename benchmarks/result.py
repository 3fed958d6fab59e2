"""The shape of every benchmark's result file, and the facts about machine and moment that each must carry.

    benchmark, subject    what was measured, on what                 machine, load_average   where, how busy
    settings              all that was chosen                        contenders              name -> numbers, raw runs
    ratios                rival -> how many times better ours is     measures                what else was measured

`ratios` is always "ours is so many times better", so above 1 is good for us. No host name, path or user is written.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUSY = 0.5
"""Load average above which a machine is not idle enough for a number to be published."""


def _first(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def num_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    flags = _first("/proc/cpuinfo", "flags").split()
    memory = _first("/proc/meminfo", "MemTotal").split()
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_vendor_family_model": [_first("/proc/cpuinfo", k) for k in ("vendor_id", "cpu family", "model\t")],
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "cores": num_cores(),
        "memory_bytes": int(memory[0]) * 1024 if memory else 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def load_average() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def warn_if_busy() -> list[float]:
    now = load_average()
    if now[0] > BUSY:
        print(
            f"warning: load average {now[0]} is above {BUSY}: something else runs here, ratios will be noisy",
            flush=True,
        )
    return now


def commit() -> str | None:
    """The commit that was measured, with "+" where tracked files differ from it."""
    try:
        git = ["git", "-C", str(HERE)]
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if dirty.stdout.strip() else "")


@dataclass
class Result:
    benchmark: str
    subject: str
    settings: dict[str, Any]
    load_average: dict[str, list[float]]
    contenders: dict[str, dict[str, Any]]
    ratios: dict[str, float]
    measures: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)
    commit: str | None = field(default_factory=commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, folder: Path = HERE / "results") -> Path:
        """Write `<date>-<benchmark>-<subject>.json`; a second run on one day gets a number, nothing is overwritten."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = "-".join(part for part in (self.date[:10], self.benchmark, self.subject) if part)
        path, number = folder / f"{stem}.json", 2
        while path.exists():
            path, number = folder / f"{stem}-{number}.json", number + 1
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path
