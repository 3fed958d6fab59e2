"""Whatever of another tool's file is refused says what to write instead, in that tool's own words."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL, FACTORY, TRL, file, refusal

import tunesmith.dialects
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError

LITGPT: dict[str, Any] = {
    "checkpoint_dir": "checkpoints/some/model",
    "lora_r": 4,
    "data": {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "rows.jsonl"}},
}
TRL_ALONE: dict[str, Any] = {"model_name_or_path": "some/model", "trainer": "sft"}
FREEZE = {"finetuning_type": "freeze"}
DORA = {"peft_use_dora": True, "peft_init_lora_weights": "pissa"}
NO_ROWS: dict[str, Any] = {"data": {"class_path": "litgpt.data.JSON", "init_args": {"mask_prompt": True}}}


def of_rows(**values: Any) -> dict[str, Any]:
    return {"datasets": [{"path": "some/rows", "type": "chat_template", **values}]}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    # A value of the wrong kind.
    (AXOLOTL, {"lora_r": "many"}, "lora_r", "write it so: lora_r: 8; or take it out"),
    (AXOLOTL, {"bf16": True, "load_in_8bit": "perhaps"}, "load_in_8bit", "write it so: load_in_8bit: false"),
    (FACTORY, {"max_steps": "all"}, "max_steps", "write it so: max_steps: 8"),
    (FACTORY, {"warmup_ratio": "some"}, "warmup_ratio", "write it so: warmup_ratio: 0"),
    (FACTORY, {"output_dir": ["a", "b"]}, "output_dir", "write it so: output_dir: a word"),
    (TRL, {"lora_target_modules": [["q_proj"]], "use_peft": True}, "lora_target_modules", "[one, two]"),
    (TRL, {"loss_weights": ["much"], "trainer": "dpo"}, "loss_weights", "write it so: loss_weights: [0.9, 0.99]"),
    (TRL, {"lr_scheduler_kwargs": "power"}, "lr_scheduler_kwargs", "write it so: lr_scheduler_kwargs: {name: value}"),
    (AXOLOTL, {"datasets": ["some/rows"]}, "datasets", "datasets: [{path: rows.jsonl}]"),
    (TRL_ALONE, {"datasets": "some/rows"}, "datasets", "datasets: [{path: rows.jsonl}]"),
    # A word that is none of those known: the one that was meant, or the usual one.
    (TRL, {"optim": "adamw_torh"}, "optim", "write it so: optim: adamw_torch; or another of these"),
    (TRL, {"optim": "lion"}, "optim", "write it so: optim: adamw_torch_fused"),
    (TRL, {"lr_scheduler_type": "Cosin"}, "lr_scheduler_type", "write it so: lr_scheduler_type: cosine"),
    (TRL, {"eval_strategy": "epochs"}, "eval_strategy", "write it so: eval_strategy: epoch"),
    (FACTORY, {"stage": "sftt"}, "stage", "write it so: stage: sft"),
    (FACTORY, {"report_to": ["neptune", "wandb"]}, "report_to", "take neptune out"),
    (TRL, {"trainer": "dpoo"}, "trainer", "write it so: trainer: dpo"),
    (TRL, {"dtype": "bf16"}, "dtype", "write it so: dtype: bfloat16"),
    (TRL, {"trainer": "dpo", "loss_type": "sigmod"}, "loss_type", "write it so: loss_type: sigmoid"),
    (TRL, {"trainer": "cpo", "loss_type": ["simpo", "hinge"]}, "loss_type", "take one of them: loss_type: simpo"),
    (LITGPT, {"command": "finetune_lorra"}, "command", "write it so: command: finetune_lora"),
    (LITGPT, {"precision": "bf16-tru"}, "precision", "write it so: precision: bf16-true"),
    (LITGPT, {"quantize": "bnb.nf5"}, "quantize", "write it so: quantize: bnb.nf4"),
    (LITGPT, {"optimizer": "SGD"}, "optimizer", "write it so: optimizer: torch.optim.AdamW"),
    (LITGPT, {"logger_name": "wandbb"}, "logger_name", "write it so: logger_name: wandb"),
    (AXOLOTL, {"rl": "dpoo"}, "rl", "write it so: rl: dpo"),
    (AXOLOTL, {"lr_scheduler": "cosin"}, "lr_scheduler", "write it so: lr_scheduler: cosine"),
    (AXOLOTL, {"optimizer": "lion"}, "optimizer", "write it so: optimizer: adamw_torch"),
    (AXOLOTL, {"save_strategy": "epochs"}, "save_strategy", "write it so: save_strategy: epoch"),
    (AXOLOTL, {"wandb_mode": "dry", "wandb_project": "mine"}, "wandb_mode", "write it so: wandb_mode: online"),
    (AXOLOTL, {"adapter": "ia3"}, "adapter", "take it out, and all weights are trained"),
    (AXOLOTL, {"peft_init_lora_weights": "eva"}, "peft_init_lora_weights", "peft_init_lora_weights: pissa"),
    (AXOLOTL, DORA, "peft_init_lora_weights", "this file trains dora"),
    (AXOLOTL, {"relora": True}, "relora", "jagged_restart_steps: 500"),
    # A number or a name that cannot be.
    (FACTORY, {"quantization_bit": 3}, "quantization_bit", "write it so: quantization_bit: 4"),
    (FACTORY, {"quantization_bit": 16}, "quantization_bit", "write it so: quantization_bit: 8; or take it out"),
    (FACTORY, {"val_size": 1.5}, "val_size", "val_size: 0.1 for a tenth of the rows"),
    (FACTORY, {**FREEZE, "freeze_trainable_modules": "mpl"}, "freeze_trainable_modules", "_modules: mlp"),
    (TRL_ALONE, {"datasets": [{"path": "a", "columns": ["question"]}]}, "columns", "columns: [completion, prompt]"),
    # What Axolotl's data sets say.
    (AXOLOTL, {"datasets": [{"type": "alpaca"}]}, "path", "name the rows: path: rows.jsonl"),
    (AXOLOTL, of_rows(type={"fromat": "{instruction}"}), "fromat", "write format in place of fromat"),
    (AXOLOTL, of_rows(type={"zzz": "{instruction}"}), "zzz", "take zzz out, or write its text into format"),
    (AXOLOTL, of_rows(type={"format": "{question}"}), "format", 'write it so: format: "{instruction}'),
    (AXOLOTL, {"rl": "dpo", **of_rows(type={"chosen_format": "{x}"})}, "chosen_format", 'chosen_format: "{chosen}"'),
    (AXOLOTL, of_rows(type="sharegpt", conversation="vicuna"), "conversation", "conversation: vicuna_v1.1"),
    (AXOLOTL, of_rows(type="sharegpt", roles=["human"]), "roles", "roles: {user: [human], assistant: [gpt]}"),
    (AXOLOTL, of_rows(message_property_mappings="from"), "message_property", "{role: from, content: value}"),
    (AXOLOTL, of_rows(type="reflection"), "a page of Axolotl's own", "{{ reflection }} … {{ corrected }}"),
    (AXOLOTL, of_rows(type="creative_acr.load_revise"), "a page of Axolotl's own", '"{{ revision }}"'),
    (AXOLOTL, of_rows(type="stepwise_supervised"), "a reward for each step", "type: bradley_terry.chat_template"),
    # Something is missing.
    (AXOLOTL, {"base_model": ""}, "base_model", "base_model: OWNER/NAME"),
    (FACTORY, {"model_name_or_path": ""}, "model_name_or_path", "model_name_or_path: OWNER/NAME"),
    (TRL_ALONE, {"datasets": [{"split": "train"}]}, "path", "path: rows.jsonl"),
    (LITGPT, NO_ROWS, "json_path", "json_path: rows.json"),
]  # fmt: skip


def says_what_to_do(said: str) -> bool:
    """Each of its problems does."""
    first = said.splitlines()[0]
    count = int(first.split()[0]) if first.endswith(" problems") else 1
    return said.count("to do: ") == count


@pytest.fixture(autouse=True)
def a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))


@pytest.mark.parametrize(("base", "values", "key", "to_do"), REFUSED)
def test_a_refusal_says_what_to_write_instead(
    base: dict[str, Any], values: dict[str, Any], key: str, to_do: str, tmp_path: Path
) -> None:
    said = refusal(file(tmp_path, {**base, **values}))
    assert key in said
    assert to_do in said
    assert says_what_to_do(said)


@pytest.mark.parametrize(
    ("info", "problem", "to_do"),
    [
        ('{"rows": {"file_name": "rows.jsonl",}}', "not JSON", "no comma behind the last entry"),
        ("[]", "holds no data sets by name", "put the entries in braces"),
        (b"\xff\xfe\x00rows", "cannot be read", "a text in UTF-8"),
        ('{"rows": "rows.jsonl"}', "cannot be", '"rows": {"file_name": "rows.json"}'),
        ('{"rows": {"file_name": "rows.jsonl", "formatting": "chatml"}}', "formatting", "take sharegpt or openai"),
        ('{"rows": {"file_name": "rows.jsonl", "columns": ["prompt"]}}', "columns", 'columns: {"prompt": "question"}'),
        ('{"rows": {"file_name": "rows.jsonl", "tags": {"role_tag": 1}}}', "tags", 'tags: {"role_tag": "from"}'),
        ('{"rows": {}}', "neither file nor hub id", '"file_name": a file beside dataset_info.json'),
        ('{"rows": {"file_name": "row.jsonl"}}', "there is no", "correct file_name"),
        ('{"row": {"file_name": "rows.jsonl"}}', "names rows", "did you mean row?"),
    ],
)
def test_a_catalogue_that_cannot_be_read_so(info: str | bytes, problem: str, to_do: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_bytes(info if isinstance(info, bytes) else info.encode())
    said = refusal(file(tmp_path, FACTORY))
    assert problem in said
    assert to_do in said
    assert says_what_to_do(said)


def test_an_override_says_which_entry_is_meant(tmp_path: Path) -> None:
    two = [{"path": "some/rows", "type": "alpaca"}, {"path": "other/rows", "type": "alpaca"}]
    path = file(tmp_path, {**AXOLOTL, "datasets": two})
    assert "number the entry, from 0 on: datasets[0].path=…" in refusal(path, ("datasets.path=x/y",))
    assert "count from 0: the last is datasets[1]" in refusal(path, ("datasets[2].path=x/y",))


def test_a_file_of_two_trainers_is_asked_for_the_one(tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**TRL, "trainer": None, "cpo_alpha": 0.5, "packing": True}))
    assert "say which: trainer=" in said
    assert " or trainer=" in said


def test_what_nobody_reads_has_a_remedy_too(tmp_path: Path) -> None:
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, {**TRL, "learning_rat": 1e-4}))
    assert caught.value.fix == "correct it, or take it out"


def _calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


FILES = sorted(Path(tunesmith.dialects.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_error_of_a_dialect_is_made_without_a_remedy(path: Path) -> None:
    """What `Said.refuse` is not told it makes up; an error that is made by hand is told."""
    made = [call for call in _calls(path) if isinstance(call.func, ast.Name) and call.func.id == "RecipeError"]
    assert all("fix" in {keyword.arg for keyword in call.keywords} for call in made)
