"""An Axolotl file runs as it stands, with its model and data named on the command line and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer
from typer.testing import CliRunner

from tunesmith import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from tiny_tokenizers import CHATML, CORPUS, byte_level

EXAMPLE = Path(__file__).resolve().parents[3] / "shared" / "examples" / "axolotl_lora_codellama.yml"
pytestmark = [
    pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not beside the checkout"),
    pytest.mark.filterwarnings("ignore"),
]


def llama_tokenizer() -> LlamaTokenizer:
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | {"▁"})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "▁th", "▁the"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    return LlamaTokenizer(vocab=vocabulary, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("axolotl")
    torch.manual_seed(0)
    for name, tokenizer in (("llama", llama_tokenizer()), ("bytes", byte_level(CHATML))):
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
        )
        LlamaForCausalLM(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"instruction": f"say {i}", "input": "" if i % 2 else "now", "output": f"it is {i}"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def overrides(place: Path, model: str) -> list[str]:
    return [str(EXAMPLE), f"base_model={place / model}", f"datasets[0].path={place / 'rows.jsonl'}"]


def test_the_file_runs_and_its_run_is_asked(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["train", *overrides(place, "llama")])
    assert done.exit_code == 0, done.output
    assert "32 keys carried over, 6 without effect here, 18 empty" in done.output
    assert "longer than the budget of 4 steps" in done.output, "10 steps of warm-up, and rows for one step a pass"
    folder = tmp_path / "outputs" / "lora-out"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (32, 16, 0.05)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["base_storage"], summary["rows"], summary["held_out_rows"]) == ("int8", 38, 2)
    resolved = (folder / "recipe.yaml").read_text()
    assert "axolotl_lora_codellama.yml, line 22 (lora_r)" in resolved
    asked = CliRunner().invoke(cli.app, ["generate", str(folder), "say 3", "--max-new-tokens", "4"])
    assert asked.exit_code == 0, asked.output
    again = CliRunner().invoke(cli.app, ["train", *overrides(place, "llama"), "--resume"])
    assert again.exit_code == 0, again.output


def test_a_tokenizer_that_does_not_fit_is_refused_with_its_remedy(place: Path, tmp_path: Path) -> None:
    where = f"output_dir={tmp_path / 'run'}"
    clash = CliRunner().invoke(cli.app, ["train", *overrides(place, "bytes"), where])
    assert clash.exit_code == 2
    for text in ("tokenizer of another class", "line 3 (tokenizer_type)", "to do: leave model.tokenizer_class out"):
        assert text in clash.stderr
    unnamed = CliRunner().invoke(cli.app, ["check", *overrides(place, "bytes"), where, "tokenizer_type="])
    assert unnamed.exit_code == 0, "its special tokens are among this tokenizer's"
    other = [*overrides(place, "bytes"), where, "tokenizer_type=", "special_tokens.eos_token=<|endoftext|>"]
    missing = CliRunner().invoke(cli.app, ["train", *other])
    assert missing.exit_code == 2
    assert "the tokenizer has no token '<|endoftext|>'" in missing.stderr
    assert "leave special_tokens.eos out" in missing.stderr


def test_what_has_no_effect_is_refused_where_one_is_strict(place: Path, tmp_path: Path) -> None:
    where = f"output_dir={tmp_path / 'run'}"
    done = CliRunner().invoke(cli.app, ["train", *overrides(place, "llama"), where, "--strict"])
    assert done.exit_code == 2
    assert "24 problems" in done.stderr
    assert "flash_attention has no effect here" in done.stderr


def test_converted_it_is_a_recipe(place: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["convert", *overrides(place, "llama")])
    assert done.exit_code == 0, done.output
    (tmp_path / "recipe.yaml").write_text(done.stdout)
    checked = CliRunner().invoke(cli.app, ["check", str(tmp_path / "recipe.yaml"), "--rows", "0"])
    assert checked.exit_code == 0, checked.output
    assert "carried over (32)" in done.stderr
    twice = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "recipe.yaml")])
    assert twice.exit_code == 2
    assert "a recipe already" in twice.stderr
