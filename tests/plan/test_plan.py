"""A plan says what a run will hold, whether it fits, and what would; a run that cannot fit does not begin."""

from __future__ import annotations

import importlib.util
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_run import make_model, make_rows, recipe
from typer.testing import CliRunner

from tunesmith import cli, run
from tunesmith.adapters import METHODS
from tunesmith.errors import MachineError, ModelError, RecipeError
from tunesmith.notation import read_size
from tunesmith.plan import advice
from tunesmith.plan import main as planning
from tunesmith.plan import methods as beside
from tunesmith.plan.advice import Change, changed, that_fits
from tunesmith.plan.memory import FITTED, Memory, needed
from tunesmith.plan.planner import Planner
from tunesmith.plan.report import lines
from tunesmith.plan.step import Parts, try_step
from tunesmith.progress import Progress
from tunesmith.quant import four_bit
from tunesmith.recipe import Resolved, from_dict

FEW = ("lora", "prefix", "full")
"""Methods that are tried here; test_ghost.py has them all."""
PLENTY = Memory("cpu", 10**12, 10**12, 10**8)


def values(place: tuple[Path, Path], tmp_path: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    made = recipe(*place, tmp_path / "run")
    return {name: made.get(name, {}) | sections.get(name, {}) for name in (*made, *sections)}


def planner_of(resolved: Resolved, memory: Memory = PLENTY) -> Planner:
    with Progress(quiet=True) as progress:
        tokenizer, prepared = run.read_rows(resolved.recipe, False, progress)
    return Planner(resolved.recipe, tokenizer, prepared, run.built(resolved.recipe, prepared), memory)


def plan_of(resolved: Resolved, **more: Any) -> Any:
    with Progress(quiet=True) as progress:
        tokenizer, prepared = run.read_rows(resolved.recipe, False, progress)
        objective = run.built(resolved.recipe, prepared)
        return planning.plan(resolved, tokenizer, prepared, objective, progress, **more)


@pytest.mark.slow
def test_no_weight_is_read_and_every_part_is_there(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "METHODS", {name: METHODS[name] for name in FEW})
    made = plan_of(from_dict(values(place, tmp_path)), price=2.0)
    parts, counts = made.need.trial.parts, made.need.trial.counts
    assert parts.adapter == 4 * counts.trained == parts.gradients
    assert parts.optimizer == 8 * counts.trained
    assert parts.weights == pytest.approx(4 * counts.total, rel=0.01), "fp32"
    assert parts.activations > 0
    assert parts.peak >= parts.lasting - parts.gradients + parts.activations
    assert made.fits
    assert [one.method for one in made.methods] == list(FEW)
    assert all(one.need is not None for one in made.methods), [one.reason for one in made.methods]
    text = "\n".join(lines(made))
    for word in (
        "peak of training",
        "fits into",
        "merging",
        "tokens a second",
        "at 2 an hour",
        "side by side",
        "QLoRA",
    ):
        assert word in text
    assert json.loads(json.dumps(made.as_json()))["fits"] is True


def test_a_deep_model_is_known_from_two_shallow_ones(place: tuple[Path, Path], tmp_path: Path) -> None:
    planner = planner_of(from_dict(values(place, tmp_path)))
    assert planner.num_blocks == 7
    settings = [METHODS[method].Settings() for method in FEW]
    for adapter in (*settings, METHODS["lora"].Settings(last_blocks=3)):
        made = planner.recipe.model_copy(update={"adapter": adapter})
        whole, quick = planner.trial(made), planner.trial(made, quick=True)
        assert quick.counts == whole.counts
        for name in vars(whole.parts):
            assert getattr(quick.parts, name) == pytest.approx(getattr(whole.parts, name), rel=0.02, abs=200), name
        assert quick.work.flops == pytest.approx(whole.work.flops, rel=0.02)


def test_a_budget_in_tokens_is_forecast_in_steps(place: tuple[Path, Path], tmp_path: Path) -> None:
    told = values(place, tmp_path)
    del told["train"]["epochs"]
    resolved = from_dict(told, ["train.tokens=1500"])
    made = plan_of(resolved, methods=False, remedies=False)
    with Progress(quiet=True) as progress:
        objective = run.built(resolved.recipe, run.read_rows(resolved.recipe, False, progress)[1])
    read = [sum(map(len, step.examples)) for step in islice(objective.steps(None), made.need.num_steps)]
    assert sum(read) >= 1500 > sum(read[:-1])
    assert made.need.num_steps > objective.steps_per_epoch, "rows come again"
    assert f"{made.need.num_steps} steps: " in "\n".join(lines(made))
    assert "the clock" not in "\n".join(lines(made))


@pytest.mark.slow
def test_each_change_takes_less_and_is_what_a_recipe_may_say(place: tuple[Path, Path], tmp_path: Path) -> None:
    told = values(place, tmp_path, train={"batch_size": 8})
    made = plan_of(from_dict(told), methods=False)
    assert {"train.recompute", "adapter.last_blocks"} <= {key for one in made.changes for key in one.settings}
    for change in made.changes:
        assert change.memory < made.need.memory, change.typed
        tree = json.loads(json.dumps(told))
        for key, value in change.settings.items():
            section, _, name = key.partition(".")
            tree[section][name] = value
        again = plan_of(from_dict(tree), methods=False, remedies=False)
        assert again.need.memory == pytest.approx(change.memory, rel=0.05), change.typed


@pytest.mark.slow
def test_what_does_not_fit_gets_the_cheapest_change_that_does(place: tuple[Path, Path], tmp_path: Path) -> None:
    planner = planner_of(from_dict(values(place, tmp_path, train={"batch_size": 8})))
    need = planner.need(planner.recipe)
    found = planning.changes(planner, need)
    first, least = found[0], min(one.memory for one in found)
    assert that_fits(planner, found, need.memory) == first
    both = that_fits(planner, found, least - 1)
    assert both is None or (both.memory < least and len(both.settings) > 1)
    assert that_fits(planner, found, 10) is None


def test_together_are_those_alone_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    saves = {"micro": 10, "recompute": 5, "moments": 5, "nf4": 40}

    def needs(planner: Any, settings: dict[str, Any]) -> Any:
        return SimpleNamespace(memory=100 - sum(saves[name] for name in settings))

    monkeypatch.setattr(advice, "_with", needs)
    found = [Change({name: True}, f"costs {name}", 100 - saved) for name, saved in saves.items()]
    best = that_fits(cast(Planner, None), found, 52)
    assert best == Change({"micro": True, "nf4": True}, "costs micro; costs nf4", 50)
    assert that_fits(cast(Planner, None), found, 47) == Change(
        {"micro": True, "recompute": True, "nf4": True}, "costs micro; costs recompute; costs nf4", 45
    )
    assert that_fits(cast(Planner, None), found, 39) is None


@pytest.mark.parametrize("is_there", [True, False])
def test_storages_and_moments_of_few_bits_are_forecast_where_their_package_is_missing_too(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    if is_there:
        pytest.importorskip("bitsandbytes")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
        monkeypatch.setattr(four_bit, "bitsandbytes", lambda: pytest.fail("asked for the package"))
    planner = planner_of(from_dict(values(place, tmp_path)))
    need = planner.need(planner.recipe)
    offered = {next(iter(one.settings.values())): one for one in advice._candidates(planner, need)}
    for name in ("nf4", "adamw-8bit"):
        assert ("pip install 'tunesmith[bitsandbytes]'" in offered[name].cost) is not is_there
        after = advice._with(planner, offered[name].settings)
        assert after is not None
        assert (after.trial.parts.weights < need.trial.parts.weights) is (name == "nf4")
        assert after.trial.work.flops == pytest.approx(need.trial.work.flops, rel=0.01)


SMALL = Memory("cpu", 3 * 10**8, 10**6, 2 * 10**8)


def test_a_run_that_cannot_fit_is_refused_before_any_weight(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "memory_of", lambda device, given=None: SMALL)
    monkeypatch.setattr(planning, "changes", lambda *_: [])
    with pytest.raises(MachineError, match="more memory than there is") as caught:
        run.train(from_dict(values(place, tmp_path)), quiet=True)
    assert "train.memory_forecast=tell" in str(caught.value)
    for word in ("tell", "off"):  # both go on, to the weights that are not there
        with pytest.raises(ModelError, match="cannot be loaded"):
            run.train(from_dict(values(place, tmp_path / word, train={"memory_forecast": word})), quiet=True)


@pytest.mark.slow
def test_micro_batches_that_are_left_open_become_smaller(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = from_dict(values(place, tmp_path, train={"batch_size": 16}))
    planner = planner_of(resolved)
    usual = planner.need(planner.recipe, quick=True).memory
    least = planner.need(changed(planner.recipe, {"train.micro_batch_tokens": planner.longest}), quick=True).memory
    assert least < usual
    room = Memory("cpu", (usual + least) // 2, None, PLENTY.held, given=True)
    monkeypatch.setattr(planning, "memory_of", lambda device, given=None: room)
    monkeypatch.setattr(planning, "_is_far_below", lambda *_: False)
    with Progress(quiet=True) as progress:
        tokenizer, prepared = run.read_rows(resolved.recipe, False, progress)
        objective = run.built(resolved.recipe, prepared)
        fits = planning.what_fits(resolved.recipe, tokenizer, prepared, objective, progress)
        assert fits is not None
        assert planner.longest <= fits < planner.micro_tokens(planner.recipe)
        given = changed(resolved.recipe, {"train.micro_batch_tokens": 1024})
        with pytest.raises(MachineError, match="more memory"):
            planning.what_fits(given, tokenizer, prepared, objective, progress)


def test_a_forecast_that_fails_stops_nobody(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "memory_of", lambda device, given=None: SMALL)
    monkeypatch.setattr(Planner, "need", lambda *a, **k: 1 / 0)
    with pytest.raises(ModelError, match="cannot be loaded"):
        run.train(from_dict(values(place, tmp_path)), quiet=True)


def test_the_longest_row_counts_wherever_it_stands(place: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"prompt": "what", "completion": "yes"} for _ in range(400)]
    rows[371] = {"prompt": "what", "completion": "yes " * 300}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = values((place[0], tmp_path / "rows.jsonl"), tmp_path)
    told["data"]["held_out"] = None
    told["train"]["evaluate_every"] = None
    assert plan_of(from_dict(told), methods=False, remedies=False).need.trial.longest > 300


def test_an_adapter_that_goes_on_is_planned_as_it_is(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", 12)
    first = recipe(model, rows, tmp_path / "first", steps=1)
    first["train"].pop("epochs")
    first["adapter"]["r"] = 7
    run.train(from_dict(first), quiet=True)
    again = recipe(model, rows, tmp_path / "again")
    again.pop("adapter")
    again["model"]["adapter"] = str(tmp_path / "first")
    made = plan_of(from_dict(again))
    fresh = plan_of(from_dict(first), methods=False, remedies=False)
    assert made.need.trial.counts == fresh.need.trial.counts
    assert not made.methods
    assert all("last_blocks" not in change.typed for change in made.changes)


def test_small_runs_are_not_looked_at_closer(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "memory_of", lambda device, given=None: PLENTY)
    monkeypatch.setattr(Planner, "need", lambda *a, **k: pytest.fail("it was"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        run.train(from_dict(values(place, tmp_path)), quiet=True)


@pytest.mark.parametrize(
    ("more", "counted"),
    [
        ({"objective": {"kind": "preference"}}, "9 pairs; 2 pairs a step"),
        ({"objective": {"kind": "preference", "loss": "kto"}}, "18 rows; 2 rows a step"),
        ({"objective": {"kind": "reward"}}, "9 pairs; 2 pairs a step"),
        ({"objective": {"kind": "preference", "loss": "orpo"}}, "9 pairs; 2 pairs a step"),
    ],
)
def test_pairs_too(place: tuple[Path, Path], tmp_path: Path, more: dict[str, Any], counted: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "what", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 13)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = values((place[0], pairs), tmp_path, adapter={"dropout": 0.0}, **more)
    told["train"].pop("learning_rate")
    made = plan_of(from_dict(told), methods=False, remedies=False)
    assert made.need.trial.parts.peak > made.need.trial.parts.lasting
    assert made.pace.factor != 1, "a part of the model was timed"
    assert counted in "\n".join(lines(made))
    if made.elsewhere:
        at_once = 4 if "pairs" in counted else 2
        assert made.elsewhere_at.startswith(f"bf16, {counted.split('; ')[1].removesuffix(' a step')} at once")
        shape, longest = planning.plain.shape_of(planner_of(from_dict(told)).bench.bare), made.need.trial.longest
        asked = {"batch": at_once, "length": longest, "dtype_bytes": 2, "recompute": False}
        full = planning.plain.forecast(shape, way="full", trained=shape.parameters, **asked)
        assert made.elsewhere["full, AdamW"] == full


def test_classes_and_answers_that_are_sampled(place: tuple[Path, Path], tmp_path: Path) -> None:
    rows = tmp_path / "classes.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20)))
    told = values((place[0], rows), tmp_path, objective={"kind": "classify"})
    made = plan_of(from_dict(told), methods=False, remedies=False)
    assert made.need.trial.counts.trained > 0
    assert made.pace.factor != 1, "a part of the model was timed"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {n}", "answer": "4"}) + "\n" for n in range(20)))
    policy = {"kind": "policy", "rewards": ["exact"], "num_generations": 2, "max_completion_length": 40}
    told = values((place[0], prompts), tmp_path, objective=policy, adapter={"dropout": 0.0})
    told["train"] |= {"batch_size": 4}
    told["train"].pop("learning_rate")
    made = plan_of(from_dict(told), methods=False, remedies=False)
    assert made.need.trial.longest >= 40
    more = {**told, "objective": {**policy, "num_generations": 8}}
    assert plan_of(from_dict(more), methods=False, remedies=False).need.step_tokens == pytest.approx(
        4 * made.need.step_tokens
    )
    assert any("answers are written while training" in note for note in made.notes)
    assert made.pace.factor != 1, "a part of the model was timed"


def test_a_student_is_planned_with_its_teacher(place: tuple[Path, Path], tmp_path: Path) -> None:
    told = values(place, tmp_path, objective={"kind": "distill", "teacher": str(place[0])}, adapter={"dropout": 0.0})
    told["train"].pop("learning_rate")
    made = plan_of(from_dict(told), methods=False, remedies=False)
    need, parts = made.need, made.need.trial.parts
    assert need.teacher >= parts.weights, "student and teacher are one model"
    bare = needed(parts, "cpu", made.memory.held)
    assert need.memory == bare + need.teacher
    assert any("the teacher, and what it holds" in line for line in lines(made))
    assert made.pace.factor != 1, "a part of the model was timed"
    quick = {**told, "objective": {**told["objective"], "answers": "sampled", "max_completion_length": 30}}
    quick["train"] = {**told["train"], "batch_size": 2}
    sampled = plan_of(from_dict(quick), methods=False, remedies=False)
    assert sampled.need.teacher >= parts.weights
    for kind in ("cpu", "cuda", "mps"):
        alone = needed(parts, kind, 0)
        assert needed(parts, kind, 0, beside=10**9) == alone + 10**9


def test_answers_that_are_written_count_where_they_hold_the_most(place: tuple[Path, Path], tmp_path: Path) -> None:
    """Keys and values of all completions of a step, at most what generation lets them take."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {n}", "answer": "4"}) + "\n" for n in range(20)))
    policy = {"kind": "policy", "rewards": ["exact"], "num_generations": 16, "max_completion_length": 60}
    told = values((place[0], prompts), tmp_path, objective=policy, adapter={"dropout": 0.0})
    told["train"] |= {"batch_size": 4}
    told["train"].pop("learning_rate")
    here = planner_of(from_dict(told))
    config = here.bench.bare.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert here.written == 64 * here.longest * each
    elsewhere = {**told, "objective": {**policy, "sampler": "http://localhost:8000"}}
    assert planner_of(from_dict(elsewhere)).written == 0
    need = here.need(here.recipe)
    parts = need.trial.parts
    for kind, base in (("cpu", 10**6), ("cuda", 0)):
        known = FITTED[kind]
        most = parts.lasting - parts.gradients + 10 * parts.peak
        wanted = (known.spread if kind == "cuda" else 1) * most + known.fixed + base
        assert needed(parts, kind, base, written=10 * parts.peak) == pytest.approx(wanted, abs=2)
    here.__dict__["written"] = 10 * parts.peak
    assert here.need(here.recipe).memory > need.memory
    assert here.need(here.recipe).serving == need.serving
    assert here.need(here.recipe, quick=True).memory == pytest.approx(here.need(here.recipe).memory, rel=0.02)


def test_an_own_memory_and_the_exit_code(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "changes", lambda *_: [])
    (tmp_path / "recipe.yaml").write_text(json.dumps(values(place, tmp_path)))
    command = ["plan", str(tmp_path / "recipe.yaml"), "--no-methods"]
    fits = CliRunner().invoke(cli.app, [*command, "--memory", "80GB"])
    assert (fits.exit_code, "fits into the 80.0 GB given" in fits.stdout) == (0, True), fits.output
    not_so = CliRunner().invoke(cli.app, [*command, "--memory", "1MB", "--json"])
    told = json.loads(not_so.stdout)
    assert (not_so.exit_code, told["fits"], told["room"]) == (4, False, 10**6)
    odd = CliRunner().invoke(cli.app, [*command, "--memory", "much"])
    assert odd.exit_code == 2
    assert "is not a size" in odd.stderr
    assert "24GB" in odd.stderr


def test_sizes() -> None:
    assert [read_size(text, "") for text in ("24GB", "1.5 g", "16GiB", "800M", "77B")] == [
        24 * 10**9, 15 * 10**8, 16 * 2**30, 8 * 10**8, 77,
    ]  # fmt: skip
    with pytest.raises(RecipeError):
        read_size("-3GB", "--memory")
    for text in ("24", " 1.5 "):
        with pytest.raises(RecipeError, match=f"did you mean {text.strip()}GB"):
            read_size(text, "--memory")


def test_bytes_of_a_processor_and_of_a_gpu() -> None:
    parts = Parts(100, 20, 20, 40, 300, 50, 600, 150)
    assert (parts.lasting, parts.passing) == (180, 420)
    cpu, cuda = FITTED["cpu"], FITTED["cuda"]
    assert needed(parts, "cpu", 1000) == round(1000 + 180 + cpu.spread * 420 + cpu.fixed)
    written = Parts(100, 400, 400, 800, 10, 5, 1710, 500)
    assert written.saving == 100 + 400 + 800 + 2 * 400 + 800
    assert needed(written, "cpu", 0) == round(2900 + cpu.fixed)
    assert needed(parts, "cuda", 0) == round(cuda.spread * 600 + cuda.fixed)


def test_a_changed_recipe_reads_no_file_again(place: tuple[Path, Path], tmp_path: Path) -> None:
    made = from_dict(values(place, tmp_path)).recipe
    again = changed(made, {"train.recompute": True, "adapter.last_blocks": 1})
    assert (again.train.recompute, again.adapter.last_blocks, again.data) == (True, 1, made.data)


@pytest.mark.parametrize("storage", ["nf4", "nf4-double", "int8"])
def test_a_hollow_storage_holds_what_a_real_one_holds(storage: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from tunesmith.ghost import Meter
    from tunesmith.models.hollow import hollow_model
    from tunesmith.models.load import load_model, load_tokenizer
    from tunesmith.models.settings import ModelSettings

    settings = ModelSettings(name=str(make_model(tmp_path / "model")), dtype="float32", device="cpu", storage=storage)
    tokenizer = load_tokenizer(settings)
    loaded = load_model(settings, tokenizer).model
    real = sum({t.data_ptr(): t.nbytes for t in (*loaded.parameters(), *loaded.buffers()) if t.numel()}.values())
    with Meter(torch.device("cpu")).on() as meter:
        hollow = hollow_model(settings, tokenizer, meter)
        assert meter.bytes == pytest.approx(real, rel=0.02)
    kinds = [[type(module).__name__ for module in model.modules()] for model in (loaded, hollow)]
    assert kinds[0] == kinds[1]


def test_a_planned_step_leaves_the_objective_as_it_was(place: tuple[Path, Path], tmp_path: Path) -> None:
    planner = planner_of(from_dict(values(place, tmp_path)))
    before = planner.objective.state_dict()
    trial = try_step(planner.recipe, planner.bench, 64)
    assert planner.objective.state_dict() == before
    assert trial.tokens <= 64 or trial.rows == 1
