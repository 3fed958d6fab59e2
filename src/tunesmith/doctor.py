"""`tunesmith doctor`: what this machine has, how fast it multiplies, and what to do about what is missing.

Nothing is sent anywhere and no secret is read; the network is tried only when asked.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith import machine

EXTRAS = {"bitsandbytes": "bitsandbytes", "gguf": "demo", "wandb": "wandb", "trackio": "trackio"} | {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
}
"""Module -> the extra that brings it."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where it is not good."""

    name: str
    found: str
    verdict: Literal["good", "note", "bad"] = "good"
    fix: str = ""


def examine(online: bool = False) -> list[Finding]:
    """Every finding, in the order in which they are shown."""
    findings = [*_software(), *_processor(), *_accelerators(), *_memory(), *_disks(), _compiler(), *_extras()]
    return [*findings, _hub()] if online else findings


def show(online: bool = False, as_json: bool = False) -> int:
    """Prints the findings; the exit code is 4 when something stands in the way, else 0."""
    from rich.console import Console
    from rich.text import Text

    findings = examine(online)
    failed = any(finding.verdict == "bad" for finding in findings)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "ready": not failed}, indent=2))
        return 4 if failed else 0
    console = Console(highlight=False)
    marks = {"good": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("bad ", "bold red")}
    for finding in findings:
        mark, style = marks[finding.verdict]
        console.print(Text.assemble((mark, style), f"  {finding.name:<16} {finding.found}"), soft_wrap=True)
        if finding.fix:
            console.print(Text(f"{'':<23}{finding.fix}", style="dim"), soft_wrap=True)
    console.print()
    console.print(
        "Something stands in the way, see above." if failed else "Ready: tunesmith demo, or tunesmith train RECIPE"
    )
    return 4 if failed else 0


def product_rate(dtype: Any, device: str = "cpu", rows: int = 512, wide: int = 576, out: int = 1536) -> float:
    """Operations per second (a multiply and an add are two) of x [rows, wide] @ W[out, wide].T: the best of 0.3 s."""
    import torch

    x = torch.randn(rows, wide, device=device).to(dtype)
    weight = torch.randn(out, wide, device=device).to(dtype)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    x @ weight.T
    wait()
    best, until = float("inf"), time.perf_counter() + 0.3
    while time.perf_counter() < until:
        begun = time.perf_counter()
        x @ weight.T
        wait()
        best = min(best, time.perf_counter() - begun)
    return 2.0 * rows * wide * out / best


def _software() -> list[Finding]:
    import torch

    facts = machine.describe()
    versions = facts["versions"]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    rest = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("tunesmith", "torch"))
    return [
        Finding(
            "tunesmith",
            versions.get("tunesmith", "not installed") + (f" ({facts['commit'][:9]})" if facts["commit"] else ""),
        ),
        Finding("python", f"{facts['python']} on {facts['platform']}"),
        Finding("torch", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"),
        Finding("packages", rest),
    ]


def _processor() -> list[Finding]:
    import torch

    flags = machine.cpu_flags()
    native = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    name = f"{machine.cpu_name()}, {machine.num_cores()} cores" + (f" ({', '.join(flags)})" if flags else "")
    full, half = product_rate(torch.float32), product_rate(torch.bfloat16)
    rates = f"float32 {full / 1e9:,.0f}, bfloat16 {half / 1e9:,.0f} GFLOP/s ({half / full:.1f} times)"
    if half > 1.25 * full:
        verdict = Finding("products", rates + "; weights are held in bfloat16")
    elif half > 0.5 * full:
        verdict = Finding("products", rates + "; bfloat16 saves memory here, not time", "note")
    else:
        verdict = Finding("products", rates, "note", "bfloat16 is slow on this processor: model.dtype=float32, or auto")
    kind = Finding("processor", name) if native else Finding("processor", name + "; no bfloat16 instructions", "note")
    return [kind, verdict]


def _accelerators() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            rate = product_rate(torch.bfloat16, f"cuda:{index}", 4096, 4096, 4096)
            half = "" if torch.cuda.is_bf16_supported() else "; no bfloat16: model.dtype=float16"
            text = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, bfloat16 {rate / 1e12:,.0f} TFLOP/s{half}"
            found.append(Finding(f"gpu {index}", text))
        return found
    if torch.backends.mps.is_available():
        return [Finding("gpu", "Apple MPS (the same code runs there, without promises)", "note")]
    if shutil.which("nvidia-smi"):
        return [
            Finding(
                "gpu",
                "there is an NVIDIA driver, but this torch cannot use it",
                "note",
                "install a CUDA build of torch",
            )
        ]
    return [Finding("gpu", "none; training runs on the processor")]


def _memory() -> list[Finding]:
    total, free = machine.memory_bytes(), machine.memory_free_bytes()
    if total is None:
        return []
    text = f"{total / 1e9:.1f} GB" + (f", {min(free, total) / 1e9:.1f} GB free" if free is not None else "")
    if free is not None and free < 1.5e9:
        return [Finding("memory", text, "note", "close something: a model of 135M parameters wants about 1.5 GB")]
    return [Finding("memory", text)]


def _disks() -> list[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for name, path in (("disk here", Path.cwd()), ("disk of cache", Path(HF_HUB_CACHE))):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        text = f"{free / 1e9:,.0f} GB free in {path}"
        low = free < 2e9
        found.append(
            Finding(name, text, "bad" if free < 2e8 else "note" if low else "good", "make room" if low else "")
        )
    return found


def _compiler() -> Finding:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        return Finding("C compiler", compiler)
    return Finding("C compiler", "none", "note", "apt install build-essential, for packages that are built on install")


def _extras() -> list[Finding]:
    there = [name for name in EXTRAS if importlib.util.find_spec(name)]
    missing = sorted({extra for name, extra in EXTRAS.items() if name not in there})
    text = (", ".join(there) or "none") + (f"; not installed: {', '.join(missing)}" if missing else "")
    fix = f"where wanted: pip install 'tunesmith[{missing[0]}]'" if missing else ""
    return [Finding("extras", text, "good", fix)]


def _hub() -> Finding:
    from huggingface_hub.constants import ENDPOINT

    host = ENDPOINT.split("//")[-1].split("/")[0].split("@")[-1]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=5):
            return Finding("hub", f"{name} answers")
    except OSError as error:
        return Finding(
            "hub", f"{name} cannot be reached: {error}", "note", "local folders and tunesmith demo work offline"
        )
