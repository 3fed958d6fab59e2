"""GGUF files as base models: dequantised once into a plain transformers folder (safetensors, bf16).

The numbers are those of the quantised file: an adapter trained on them belongs to them, not to the original weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.atomic import new_partial
from tunesmith.errors import MachineError, ModelError
from tunesmith.machine import cache_folder

MARKER = "complete.json"

Adjust = Callable[[Any, Any], None]
"""Called with (model, tokenizer) before they are written."""


def dequantised(gguf: Path) -> Path:
    """The folder that `gguf` becomes, from the cache where it is there already."""
    if not gguf.is_file():
        raise ModelError(f"there is no file {gguf}", fix="check the path")
    facts = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_folder() / "gguf" / f"{gguf.stem}-{key}"
    if not (target / MARKER).is_file():
        unpack(gguf, target)
    return target


def already_unpacked() -> list[Path]:
    """The models that lie in the cache, the demo's among them."""
    return sorted(marker.parent for pattern in ("*", "gguf/*") for marker in cache_folder().glob(f"{pattern}/{MARKER}"))


def unpack(gguf: Path, target: Path, adjust: Adjust = lambda model, tokenizer: None) -> None:
    """Dequantise into a folder beside `target`, then rename: a half-written model is never found."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"reading a GGUF file needs packages that are not here: {', '.join(missing)}"
        raise MachineError(what, fix=f"pip install {' '.join(missing)}")
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = new_partial(target.parent)
        _write(gguf, partial, adjust)
        (partial / MARKER).write_text(json.dumps({"file": gguf.name}))
        if target.exists() and not (target / MARKER).is_file():
            shutil.rmtree(target)
        try:
            partial.rename(target)
        except OSError:
            if not (target / MARKER).is_file():  # not merely another process that was faster
                raise
    except OSError as error:
        raise MachineError(
            f"the dequantised model cannot be written: {error.strerror or error}",
            where=str(target),
            fix="free some disk space, or set TUNESMITH_CACHE to a folder on another disk",
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _write(gguf: Path, folder: Path, adjust: Adjust) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from tunesmith.models.load import without_bars
    from tunesmith.models.whole import refuse_partial, without_report

    # The converter draws a bar of its own, whatever transformers is told.
    with without_bars(), without_report(), contextlib.redirect_stderr(io.StringIO()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            auto: Any = AutoModelForCausalLM
            model, told = auto.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            found = str(error).splitlines()[0][:200]
            fix = "fetch it again if it is cut off, or take the model's safetensors"
            raise ModelError("this GGUF file cannot be read", where=str(gguf), found=found, fix=fix) from error
        refuse_partial(model, told, gguf.name, say=warnings.warn)
        adjust(model, tokenizer)
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
