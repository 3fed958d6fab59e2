"""A folder like a checkout, a tiny model where the documents name a real one, and commands run in this process."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared"
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M")
SHORT = ("train.epochs=", "train.minutes=", "train.steps=2", "train.batch_size=2", "data.max_length=4096")
"""What a run is cut down to."""


def make(folder: Path) -> Path:
    """`folder`/checkout: the recipes and a tiny model under each of `MODELS`; shared data beside it if there is."""
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "recipes", checkout / "recipes")
    for name in MODELS:
        make_model(checkout / name, template=name.endswith("Instruct"))
    if SHARED.is_dir():
        (folder / "shared").symlink_to(SHARED)
    return checkout


def make_model(folder: Path, *, template: bool) -> None:
    """A Llama of two blocks whose tokens are bytes and a few words."""
    from transformers import AutoModelForCausalLM

    sys.path.insert(0, str(ROOT / "tests" / "data"))
    try:
        from tiny_tokenizers import CHATML, byte_level
    finally:
        sys.path.pop(0)
    from tunesmith.models.tiny import config, randomise

    tokenizer = byte_level(CHATML if template else None)
    shape = config("llama")
    shape.vocab_size, shape.max_position_embeddings = len(tokenizer), 4096
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def module(path: str) -> ModuleType:
    """A script of the repository, imported under its own name without running it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def run(line: str, checkout: Path) -> str:
    """What a command line of a document prints, run in the current folder. It must end with 0."""
    words = shlex.split(line, comments=True)
    if words[0] != "tunesmith":
        words[0] = sys.executable if words[0] == "python" else words[0]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout
    from tunesmith import cli

    result = CliRunner().invoke(cli.app, shortened(words[1:]), input="hello\n", catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


def shortened(words: list[str]) -> list[str]:
    """A training of two steps in place of the real one; a run that resumes has its length in its recipe."""
    if words[0] != "train" or "--resume" in words:
        return words
    given = {word.partition("=")[0] for word in words}
    cut = [word for word in SHORT if word.partition("=")[0] not in given]
    if {"train.steps", "train.epochs"} & given:
        cut = [word for word in cut if not word.startswith(("train.steps", "train.epochs"))]
    return [*words, *cut]
