"""LitGPT's files: every key has its fate, and what is carried over changes the recipe as it would change their run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from small_run import make_model
from their_files import entry_of, file, mixtures, recipe, survives, with_key
from transformers import AutoTokenizer

from tunesmith import run
from tunesmith.data.formats import convert
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.templating.templates import install
from tunesmith.data.types import Origin
from tunesmith.dialects import litgpt
from tunesmith.dialects.base import Fate
from tunesmith.dialects.litgpt.rows import STYLES
from tunesmith.dialects.read import load_any, recognise
from tunesmith.errors import TunesmithError

JSON = {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "rows.jsonl"}}
BASE: dict[str, Any] = {"checkpoint_dir": "checkpoints/some/model", "lora_r": 4, "data": JSON}
HUB: dict[str, Any] = {"data": {"class_path": "litgpt.data.Alpaca2k"}}
OLD = {"optimizer": {"init_args": {"lr": 1e-4, "weight_decay": 0.1, "betas": [0.9, 0.99]}}}
WANDB = {"logger_name": "wandb"}

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "command": ("finetune_full", {}),
    "checkpoint_dir": ("checkpoints/other/model", {}),
    "precision": ("bf16-true", {}),
    "quantize": ("bnb.nf4-dq", {}),
    "lora_r": (16, {}),
    "lora_alpha": (32, {}),
    "lora_dropout": (0.1, {}),
    "lora_query": (False, {}),
    "lora_key": (True, {}),
    "lora_value": (False, {}),
    "lora_projection": (True, {}),
    "lora_mlp": (True, {}),
    "lora_head": (True, {}),
    "data": ("Alpaca2k", {}),
    "data.class_path": ("litgpt.data.LIMA", HUB),
    "data.init_args.json_path": ("other.json", {}),
    "data.init_args.repo_id": ("other/rows", HUB),
    "data.init_args.mask_prompt": (True, {}),
    "data.init_args.val_split_fraction": (0.1, {}),
    "data.init_args.prompt_style": ("phi-2", {}),
    "train.global_batch_size": (8, {}),
    "train.lr_warmup_steps": (10, {}),
    "train.epochs": (1, {}),
    "train.max_steps": (200, {}),
    "train.max_tokens": (100_000, {}),
    "train.max_time": (600, {}),
    "train.max_seq_length": (512, {}),
    "train.max_norm": (1.0, {}),
    "train.save_interval": (50, {}),
    "eval.interval": (50, {}),
    "optimizer": ("bitsandbytes.optim.AdamW8bit", {}),
    "optimizer.class_path": ("bitsandbytes.optim.PagedAdamW8bit", {}),
    "optimizer.init_args.lr": (2e-4, {}),
    "optimizer.init_args.weight_decay": (0.0, {}),
    "optimizer.init_args.betas": ([0.9, 0.95], {}),
    "optimizer.init_args.eps": (1e-6, {}),
    "train.learning_rate": (2e-4, OLD),
    "train.weight_decay": (0.0, OLD),
    "train.beta1": (0.8, OLD),
    "train.beta2": (0.8, OLD),
    "seed": (7, {}),
    "out_dir": ("elsewhere", {}),
    "logger_name": ("tensorboard", {}),
    "log.project": ("mine", WANDB),
    "log.run": ("this", WANDB),
}
"""A value of each carried key that says something else than the file without it, and what must stand beside it."""
NO_CHANGE = {
    "data.init_args.download_dir": "it must be there: tested with a file",
    "data.init_args.file_name": "it must be there: tested with a file",
}

CARRIED, IDLE, REFUSED = ([key for key, entry in litgpt.KEYS.items() if entry.fate is fate] for fate in Fate)
CASES = {key: with_key({**BASE, **beside}, key, value) for key, (value, beside) in CHANGES.items()}
HUB_FILE = """\
checkpoint_dir: checkpoints/meta-llama/Llama-3.2-1B
out_dir: out/finetune/qlora-llama3.2-1b
precision: bf16-true
quantize: bnb.nf4
devices: 1
num_nodes: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: true
lora_value: true
lora_projection: true
lora_mlp: true
lora_head: false
data:
  class_path: litgpt.data.Alpaca2k
  init_args:
    mask_prompt: false
    val_split_fraction: 0.05
    prompt_style: alpaca
    ignore_index: -100
    seed: 42
    num_workers: 4
    download_dir: data/alpaca2k
train:
  save_interval: 200
  log_interval: 1
  global_batch_size: 8
  micro_batch_size: 2
  lr_warmup_steps: 10
  epochs: 2
  max_tokens:
  max_steps:
  max_seq_length: 512
  tie_embeddings:
  max_norm:
  min_lr: 6.0e-05
eval:
  interval: 100
  max_new_tokens: 100
  max_iters: 100
  initial_validation: false
  final_validation: true
logger_name: csv
seed: 1337
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 0.0002
    weight_decay: 0.0
    betas:
      - 0.9
      - 0.95
"""


@pytest.fixture(autouse=True)
def _beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LitGPT looks for its files from the folder that it is started in."""
    (tmp_path / "other.json").touch()
    monkeypatch.chdir(tmp_path)


def made(tmp_path: Path, values: dict[str, Any]) -> Any:
    return load_any(file(tmp_path, values)).resolved.recipe


def test_every_carried_key_has_its_case() -> None:
    assert [key for key in CARRIED if key not in CHANGES and key not in NO_CHANGE] == []


@pytest.mark.parametrize("key", CHANGES)
def test_a_carried_key_changes_the_recipe(key: str, tmp_path: Path) -> None:
    path = file(tmp_path, CASES[key])
    assert entry_of(load_any(path), key).fate is Fate.CARRIED
    assert recipe(path) != recipe(file(tmp_path, {**BASE, **CHANGES[key][1]}, "without.yaml"))
    survives(path)


@pytest.mark.parametrize("key", IDLE)
def test_an_idle_key_is_named_with_its_reason(key: str, tmp_path: Path) -> None:
    value = 1 if key == "train.micro_batch_size" else "something"
    read = load_any(file(tmp_path, with_key(BASE, key, value)))
    entry = entry_of(read, key)
    assert (entry.fate, entry.text) == (Fate.IDLE, litgpt.KEYS[key].text)
    assert any(entry.key in line and entry.text in line for line in read.resolved.notes)


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_says_what_to_do(key: str, tmp_path: Path) -> None:
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, with_key(BASE, key, "something")))
    assert key.rpartition(".")[2] in str(caught.value)
    assert "to do" in str(caught.value)


def test_sections_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "their.yaml"
    path.write_text("checkpoint_dir: some/model\ndata:\ntrain:\neval:\nlog:\noptimizer:\nresume: false\n")
    assert load_any(path).resolved.recipe.data.train == "yahma/alpaca-cleaned", "LitGPT's default"


def test_no_key_goes_unread(tmp_path: Path) -> None:
    """Whatever stands beside it, each key has its fate, or the file is refused."""
    read = 0
    for values in mixtures(BASE, CHANGES):
        with contextlib.suppress(TunesmithError):
            load_any(file(tmp_path, values))
            read += 1
    assert read > 10


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora_alpa", "lora_alpha"),
        ("train.global_batch_sise", "global_batch_size"),
        ("data.init_args.json_pth", "json_path"),
        ("optimizer.init_args.beta", "betas"),
    ],
)
def test_a_typo_gets_a_suggestion(typed: str, meant: str, tmp_path: Path) -> None:
    name, _, key = typed.rpartition(".")
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, with_key(BASE, typed, 1)))
    assert f"{name}.{key}".removeprefix(".") in str(caught.value)
    assert f"did you mean: {meant}" in str(caught.value)


def test_whose_file_it_is() -> None:
    assert recognise(BASE, "file") == "litgpt"
    assert recognise({"lora_query": True, "train": {}}, "file") == "litgpt"
    assert recognise({"train": {}, "data": JSON}, "file") is None, "our sections alone are ours"
    assert not litgpt.is_mine({"checkpoint_dir": "a/b", "base_model": "a/b"})
    assert not litgpt.is_mine({"checkpoint_dir": "a/b", "model_name_or_path": "a/b"})


# ---- what is trained ------------------------------------------------------------------------------------------------


def test_a_file_of_their_hub(tmp_path: Path) -> None:
    (tmp_path / "qlora.yaml").write_text(HUB_FILE)
    read = load_any(tmp_path / "qlora.yaml")
    recipe: Any = read.resolved.recipe
    assert read.translation is not None
    assert not read.translation.of(Fate.REFUSED)
    assert (recipe.model.name, recipe.model.storage, recipe.model.dtype) == (
        "meta-llama/Llama-3.2-1B",
        "nf4",
        "bfloat16",
    )
    adapter, train, data = recipe.adapter, recipe.train, recipe.data
    assert (adapter.r, adapter.alpha, adapter.dropout, adapter.targets) == (32, 16, 0.05, ("attention", "mlp"))
    assert (train.batch_size, train.epochs, train.learning_rate, train.warmup) == (8, 2, 2e-4, 10)
    assert (train.schedule, train.min_learning_rate, train.weight_decay, train.betas) == ("cosine", 0, 0, (0.9, 0.95))
    assert (train.max_grad_norm, train.seed, train.save_every, train.evaluate_every) == (None, 1337, 200, 100)
    assert (train.publish, train.optimizer) == ("last", "adamw")
    assert (data.train, data.held_out, data.learn) == ("mhenrichsen/alpaca_2k_test", 0.05, "everything")
    assert (data.max_length, data.overlong, recipe.model.template) == (512, "truncate", "alpaca")
    assert any("meta-llama/Llama-3.2-1B of the hub" in line for line in read.resolved.notes)
    survives(tmp_path / "qlora.yaml")


def test_their_defaults(tmp_path: Path) -> None:
    lora = made(tmp_path, BASE)
    assert (lora.adapter.alpha, lora.adapter.dropout, lora.adapter.targets) == (16, 0.05, ("q_proj", "v_proj"))
    assert (lora.train.batch_size, lora.train.epochs, lora.train.warmup) == (16, 5, 100)
    assert (lora.train.learning_rate, lora.train.weight_decay) == (1e-3, 0.01), "those of torch's AdamW"
    assert (lora.train.evaluate_every, lora.train.save_every, lora.output.folder) == (100, 1000, "out/finetune/lora")
    assert (lora.data.held_out, lora.data.learn, lora.model.template) == (0.05, "everything", "alpaca")
    full = made(tmp_path, {**BASE, "lora_r": None})
    assert (full.adapter.method, full.train.evaluate_every, full.output.folder) == ("full", 600, "out/finetune/full")
    assert made(tmp_path, {**BASE, "lora_r": None, "command": "finetune"}).adapter.r == 8
    with pytest.raises(TunesmithError, match="llama-adapter"):
        load_any(file(tmp_path, {**BASE, "command": "finetune_adapter"}))
    with pytest.raises(TunesmithError, match="stands without LoRA"):
        load_any(file(tmp_path, {**BASE, "lora_r": None, "quantize": "bnb.nf4"}))


@pytest.mark.parametrize(
    ("parts", "targets"),
    [
        ({"lora_key": True, "lora_projection": True}, "attention"),
        ({"lora_value": False, "lora_mlp": True}, ("q_proj", "mlp")),
        ({"lora_query": False, "lora_value": False, "lora_mlp": True}, "mlp"),
        ({"lora_head": True}, ("q_proj", "v_proj", "lm_head")),
    ],
)
def test_parts_of_a_block(parts: dict[str, bool], targets: Any, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, **parts}))
    assert read.resolved.recipe.adapter.targets == targets
    is_by_name = any("adapter.targets=attention" in line for line in read.resolved.notes)
    assert is_by_name is any(str(name).endswith("_proj") for name in (targets if isinstance(targets, tuple) else ()))
    with pytest.raises(TunesmithError, match="choose no layer"):
        load_any(file(tmp_path, {**BASE, "lora_query": False, "lora_value": False}))


def test_a_checkpoint_with_the_files_of_hugging_face_is_read_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "some" / "model"
    folder.mkdir(parents=True)
    (folder / "lit_model.pth").touch()
    assert made(tmp_path, BASE).model.name == "some/model"
    (folder / "config.json").touch()
    (folder / "model.safetensors").touch()
    for name in ("checkpoints/some/model", "some/model", str(folder)):
        assert made(tmp_path, {**BASE, "checkpoint_dir": name}).model.name == str(folder)
    (tmp_path / "out" / "final").mkdir(parents=True)
    with pytest.raises(TunesmithError, match="convert_from_litgpt"):
        load_any(file(tmp_path, {**BASE, "checkpoint_dir": "out/final"}))


def test_a_folder_of_json(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").touch()
    (tmp_path / "rows" / "val.json").touch()
    values = with_key(BASE, "data.init_args.json_path", "rows")
    data = made(tmp_path, values).data
    assert (data.train, data.held_out) == (str(tmp_path / "rows/train.jsonl"), str(tmp_path / "rows/val.json"))
    with pytest.raises(TunesmithError, match="val_split_fraction"):
        load_any(file(tmp_path, with_key(values, "data.init_args.val_split_fraction", 0.1)))


def test_a_set_that_litgpt_downloaded(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.json").touch()
    args = {"download_dir": "mine", "file_name": "rows.json"}
    path = file(tmp_path, {**BASE, "data": {"class_path": "Alpaca", "init_args": args}})
    read = load_any(path)
    assert read.resolved.recipe.data.train == str(tmp_path / "mine" / "rows.json")
    for key in NO_CHANGE:
        assert entry_of(read, key).fate is Fate.CARRIED
    (tmp_path / "mine" / "rows.json").unlink()
    assert recipe(path)["data"]["train"] == "yahma/alpaca-cleaned"


def test_sets_of_conversations(tmp_path: Path) -> None:
    deita = made(tmp_path, {**BASE, "data": "litgpt.data.Deita"}).data
    assert (deita.split, deita.held_out) == ("train_sft", "HuggingFaceH4/deita-10k-v0-sft:test_sft")
    assert (deita.format.prompt, deita.format.answer) == ("{{ messages[0].content }}", "{{ messages[1].content }}")
    lima = made(tmp_path, {**BASE, "data": {"class_path": "LIMA", "init_args": {"prompt_style": "phi-2"}}}).data
    assert (lima.held_out, lima.format.prompt) == (0.1, "Instruct: {{ conversations[0] }}\nOutput:")
    for name in ("TextFiles", "FLAN", "mine.Rows"):
        with pytest.raises(TunesmithError, match="is not read here"):
            load_any(file(tmp_path, {**BASE, "data": name}))


def test_a_run_has_one_budget(tmp_path: Path) -> None:
    steps = made(tmp_path, {**BASE, "train": {"max_steps": 20, "epochs": 3, "lr_warmup_steps": 5}}).train
    assert (steps.steps, steps.epochs, steps.warmup) == (20, None, 5)
    assert made(tmp_path, {**BASE, "train": {"max_time": 90}}).train.minutes == 1.5
    tokens = load_any(file(tmp_path, {**BASE, "train": {"max_tokens": 100_000}}))
    assert (tokens.resolved.recipe.train.tokens, tokens.resolved.recipe.train.epochs) == (100_000, None)
    assert "ends with the step that reaches it" in tokens.translation.notes[-1]
    for own, others in (
        ("max_time", ["epochs"]),
        ("max_tokens", ["epochs"]),
        ("max_tokens", ["max_steps", "max_time"]),
    ):
        with pytest.raises(TunesmithError, match=f"{own} stands beside") as caught:
            load_any(file(tmp_path, {**BASE, "train": {own: 200, **dict.fromkeys(others, 200)}}))
        assert " ".join(f"train.{key}=" for key in others) in str(caught.value)
    with pytest.raises(TunesmithError, match=r"set train\.lr_warmup_steps=2"):
        load_any(file(tmp_path, {**BASE, "train": {"max_steps": 20}}))


def test_overrides_in_their_words_and_in_ours(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, **OLD})
    typed = ["checkpoint_dir=my/model", "data.init_args.mask_prompt=true", "train.learning_rate=3e-4", "lora_r=2"]
    recipe: Any = load_any(path, [*typed, "train.schedule=linear", "train.epochs=", "train.steps=200"]).resolved.recipe
    assert (recipe.model.name, recipe.data.learn, recipe.adapter.r) == ("my/model", "answers", 2)
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.steps) == (3e-4, "linear", 200)


def test_all_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    values = {**BASE, "precision": "8-true", "quantize": "bnb.fp4", "lora_rr": 4, "logger_name": "litlogger"}
    path = file(tmp_path, values)
    lines = {line.partition(":")[0]: number for number, line in enumerate(path.read_text().splitlines(), 1)}
    with pytest.raises(TunesmithError) as caught:
        load_any(path)
    for key in ("precision", "quantize", "lora_rr", "logger_name"):
        assert f"line {lines[key]}: {key}" in str(caught.value)


# ---- the words around a question ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_model(tmp_path_factory.mktemp("model")))


def text_of(recipe: Any, tokenizer: Any, row: dict[str, Any]) -> str:
    """What the model sees of a row."""
    install(recipe.model.template, tokenizer)
    form = recipe.data.format
    assert isinstance(form, TemplateFormat)
    assert isinstance(recipe.data, DataSettings)
    (made,) = convert([(Origin("rows", 1), row)], form, {}, learn=recipe.data.learn).rows
    example = Renderer(tokenizer).render(made)  # type: ignore[arg-type]
    return str(tokenizer.decode(example.token_ids)).removeprefix(tokenizer.bos_token)


def test_alpaca_is_worded_as_they_word_it(tokenizer: Any, tmp_path: Path) -> None:
    recipe = made(tmp_path, BASE)
    ended = f"no{tokenizer.eos_token}"
    assert text_of(recipe, tokenizer, {"instruction": "Why?", "output": "no"}) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\nWhy?\n\n### Response:\n{ended}"
    )
    assert text_of(recipe, tokenizer, {"instruction": "Why?", "input": "This.", "output": "no"}) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\nWhy?\n\n### Input:\nThis.\n\n### Response:\n{ended}"
    )


@pytest.mark.parametrize("style", ["phi-2", "litgpt.prompts.Phi2", {"class_path": "litgpt.prompts.Phi2"}])
def test_other_styles_by_name_or_by_class(style: Any, tokenizer: Any, tmp_path: Path) -> None:
    recipe = made(tmp_path, with_key(BASE, "data.init_args.prompt_style", style))
    row = {"instruction": "Why?", "input": "left out", "output": "no"}
    assert text_of(recipe, tokenizer, row) == f"Instruct: Why?\nOutput:no{tokenizer.eos_token}"


@pytest.mark.parametrize("style", STYLES)
def test_every_style_holds_the_question(style: str, tmp_path: Path) -> None:
    recipe = made(tmp_path, with_key(BASE, "data.init_args.prompt_style", style))
    assert recipe.data.format.prompt == STYLES[style].replace("{instruction}", "{{ instruction }}")


def test_a_style_of_their_own_is_refused(tmp_path: Path) -> None:
    for style in ("llama2", "mine.Style", {"class_path": "litgpt.prompts.Phi2", "init_args": {"x": 1}}):
        with pytest.raises(TunesmithError, match="prompt_style"):
            load_any(file(tmp_path, with_key(BASE, "data.init_args.prompt_style", style)))


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_whole_run(tmp_path: Path) -> None:
    make_model(tmp_path / "checkpoints" / "tiny" / "llama")
    rows = [{"instruction": f"{i}?", "input": "", "output": "no"} for i in range(10)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    values = {
        "checkpoint_dir": "tiny/llama",
        "out_dir": str(tmp_path / "run"),
        "precision": "32-true",
        "lora_r": 2,
        "data": {"class_path": "JSON", "init_args": {"json_path": "mine.json", "val_split_fraction": 0.2}},
        "train": {"global_batch_size": 4, "lr_warmup_steps": 1, "epochs": 1, "max_seq_length": 256},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
    }
    run.train(load_any(file(tmp_path, values), ["model.device=cpu"]).resolved, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if line["event"] == "step"] == pytest.approx([0.01, 0.01])
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [2]
