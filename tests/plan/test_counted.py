"""What a plan counts where it is easily counted wrongly: heads of encoders, shared prompts, unlike blocks, merges."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_bytes import Counter
from small_run import make_model, make_rows, recipe
from test_plan import PLENTY, plan_of, planner_of
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.adapters import METHODS
from tunesmith.adapters import merge as merge_module
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.merge import merge_to_folder
from tunesmith.data.types import Answer, Example, Origin
from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.hollow import are_alike
from tunesmith.models.load import load_tokenizer
from tunesmith.models.policy import probe
from tunesmith.models.settings import ModelSettings
from tunesmith.models.tiny import randomise, tiny
from tunesmith.models.twin import ways
from tunesmith.objectives.foreseen import written
from tunesmith.plan import bench as benches
from tunesmith.plan import step as steps
from tunesmith.plan.advice import _shorter, _with, changed
from tunesmith.plan.bench import Bench, Cut
from tunesmith.plan.main import _notes
from tunesmith.plan.memory import Memory
from tunesmith.plan.merging import merging
from tunesmith.plan.step import try_step
from tunesmith.recipe import from_dict
from tunesmith.settings import Contradiction


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("counted")
    return make_model(folder / "model"), make_rows(folder / "rows.jsonl", 24)


def rows_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_config(model: Path, to: Path, **values: Any) -> Path:
    """A copy of `model` without weights, whose config says otherwise."""
    to.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text()) | values
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_one_hollow_model_and_one_batch_serve_all_trials(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    make, choose = benches.hollow_model, benches.largest
    monkeypatch.setattr(benches, "hollow_model", lambda *a, **k: built.append("model") or make(*a, **k))
    monkeypatch.setattr(benches, "largest", lambda *a, **k: built.append("batch") or choose(*a, **k))
    planner = planner_of(from_dict(recipe(*place, tmp_path / "run")))
    first = planner.trial(planner.recipe)
    again = planner.trial(planner.recipe)
    other = planner.trial(planner.recipe.model_copy(update={"adapter": METHODS["full"].Settings()}))
    assert built == ["model", "batch"]
    assert again == first, "nothing of a trial is left in the model"
    assert other.counts.trained > first.counts.trained


def test_an_encoder_keeps_activations(place: tuple[Path, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    encoder = in_config(place[0], tmp_path / "encoder")
    tokens = len(load_tokenizer(ModelSettings(name=str(place[0]))))
    config = AutoConfig.for_model("bert", vocab_size=tokens, architectures=["BertForMaskedLM"], **sizes)
    config.save_pretrained(encoder)
    rows = rows_of(tmp_path / "rows.jsonl", [{"text": f"w {n}", "label": "ab"[n % 2]} for n in range(20)])
    told = recipe(encoder, rows, tmp_path / "run") | {"objective": {"kind": "classify"}}
    told["data"]["held_out"] = 3
    parts = plan_of(from_dict(told), methods=False, remedies=False).need.trial.parts
    assert parts.activations > parts.loss >= 0


LONG = "please say in a few words what the answer to this question is, and why"


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_a_prompt_that_a_pair_shares_is_counted_once(place: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": LONG, "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)]
    told = recipe(place[0], rows_of(tmp_path / "rows.jsonl", rows), tmp_path / "run")
    told |= {"objective": {"kind": kind}, "adapter": {"r": 2}}
    told["train"].pop("learning_rate")
    planner = planner_of(from_dict(told))
    trial = planner.trial(planner.recipe)
    assert trial.flat
    assert trial.rows == 4
    assert trial.tokens < 0.75 * trial.rows * trial.longest
    assert trial.longest == max(len(row) for row in planner.prepared.train), "a row is as long as both of its parts"
    assert planner.need(planner.recipe).step_tokens < 0.75 * planner.step_tokens
    assert not planner.objective.share, "the objective itself stays as it was"


def example(length: int, learned: int, kind: type[Example] = Example, origin: int = 0) -> Any:
    weights = np.zeros(length, dtype=np.float32)
    weights[length - learned :] = 1.0
    return kind(np.arange(length), weights, Origin("rows", origin))


def test_answers_that_are_not_there_yet_share_their_prompt() -> None:
    prompts = [example(40, 0, origin=n) for n in range(3)]
    made = {share: written(prompts, 20, num_each=4, batch_size=2, seed=0, share=share) for share in (True, False)}
    tokens = {}
    for share, foreseen in made.items():
        assert not foreseen.is_own
        step = next(foreseen.objective.steps(None))
        assert len(step.examples) == 8
        tokens[share] = sum(map(len, foreseen.objective.micro_batches(step, 10_000)))
    assert tokens[False] == 8 * 60
    assert tokens[True] <= 2 * 40 + 8 * 20


def test_shorter_rows_are_left_out_or_cut_and_pairs_stay_pairs() -> None:
    rows = [example(10, 2), example(6, 5)]
    assert [len(row) for row in Cut(8, False).of(rows)] == [6]
    assert [len(row) for row in Cut(8, True).of(rows)] == [6], "nothing learned is left of the other"
    assert [len(row) for row in Cut(9, True).of(rows)] == [9, 6]
    pair = [example(10, 2, Answer, 1), example(6, 5, Answer, 1), example(5, 2, Answer, 2), example(6, 2, Answer, 2)]
    assert [row.origin.row for row in Cut(8, False).of(pair)] == [2, 2]


def test_rows_that_are_all_as_long_can_be_cut(place: tuple[Path, Path], tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.jsonl", [{"prompt": "what", "completion": "yes " * 160} for _ in range(12)])
    planner = planner_of(from_dict(recipe(place[0], rows, tmp_path / "run")))
    need = planner.need(planner.recipe)
    (change,) = _shorter(planner, need.trial.longest // 2)
    assert change.settings == {"data.max_length": need.trial.longest // 2, "data.overlong": "truncate"}
    after = _with(planner, change.settings)
    assert after is not None
    assert after.trial.longest == need.trial.longest // 2
    assert after.trial.parts.peak < need.trial.parts.peak


def test_what_the_recipe_forbids_is_not_offered(place: tuple[Path, Path], tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.jsonl", [{"text": f"w {n}", "label": "ab"[n % 2]} for n in range(20)])
    told = recipe(place[0], rows, tmp_path / "run") | {"adapter": {}, "objective": {"kind": "classify", "way": "head"}}
    planner = planner_of(from_dict(told))
    assert _with(planner, {"adapter.method": "lora"}) is None
    assert _with(planner, {"train.micro_batch_tokens": -3}) is None
    with pytest.raises(Contradiction):
        changed(planner.recipe, {"objective.way": "all"})


def test_blocks_that_differ_are_all_looked_at(place: tuple[Path, Path], tmp_path: Path) -> None:
    assert are_alike(tiny("llama"))
    uneven = tiny("llama")
    uneven.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 8)
    assert not are_alike(uneven)
    assert not are_alike(tiny("gemma3")), "a window here and none there"
    model = in_config(place[0], tmp_path / "odd", num_hidden_layers=7)
    planner = planner_of(from_dict(recipe(model, place[1], tmp_path / "run")))
    planner.bench.blocks_are_alike = False
    asked = []
    planner.bench.model = lambda settings, blocks=None: asked.append(blocks) or Bench.model(planner.bench, settings)
    planner.trial(planner.recipe, quick=True)
    assert asked == [None]


SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("kind", ["nemotron", "cohere2", "gpt_oss", "mpt"])
def test_a_plan_runs_a_model_as_loading_it_will(kind: str) -> None:
    more = {"head_dim": 16, "num_local_experts": 4} if kind == "gpt_oss" else {}
    config = AutoConfig.for_model(kind, **SIZES, **more)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, 0)
    attention.register()
    attends = attention.install(model)
    found = ways(bare)
    assert (found.attends, found.flat) == (attends, probe(model, Switch())[0].flat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_merge_holds_what_is_forecast(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(place[0])))
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 700, "vocab_size": len(tokenizer)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).to(getattr(torch, dtype))
    adapter_set = add(model, Switch(), METHODS[method].Settings(), name="a", seed=0)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    forecast = merging(model, adapter_set, tokenizer)
    counter = Counter(floating=False)

    def take(holder: torch.nn.Module) -> None:
        for tensor in (*holder.parameters(), *holder.buffers()):
            counter.take(tensor.detach())

    same = merge_module._same_numbers  # what is read is seen by no operation
    monkeypatch.setattr(merge_module, "_same_numbers", lambda read, *rest: take(read) or same(read, *rest))
    take(model)
    with counter:
        merge_to_folder(model, adapter_set, tmp_path / "merged", tokenizer)
    assert forecast == pytest.approx(counter.peak, rel=0.05)


def test_what_cannot_be_told_is_said_with_its_reason(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = planner_of(from_dict(recipe(*place, tmp_path / "run")))
    monkeypatch.setattr(steps, "_answering", lambda policy, *_: policy.head().weight[policy.head().weight > 0])
    with pytest.raises(ModelError, match="hangs on the numbers") as caught:
        try_step(planner.recipe, planner.bench, 64)
    for word in (planner.recipe.model.name, "tunesmith rehearse", "mask"):
        assert re.search(re.escape(word), str(caught.value))


def test_an_apple_gpu_is_said_to_be_planned_as_a_processor(place: tuple[Path, Path], tmp_path: Path) -> None:
    resolved = from_dict(recipe(*place, tmp_path / "run"))
    assert any("Apple" in note for note in _notes(planner_of(resolved, Memory("mps", 10**12, 10**12))))
    assert not any("Apple" in note for note in _notes(planner_of(resolved, PLENTY)))
