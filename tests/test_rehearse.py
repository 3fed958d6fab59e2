"""A rehearsal goes the whole way, and says which stretch of it failed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import make_model, make_rows, recipe
from typer.testing import CliRunner

from tunesmith import cli, inference, run
from tunesmith import rehearse as rehearsal
from tunesmith.adapters import METHODS
from tunesmith.errors import AdapterError, CheckpointError, Interrupted, RecipeError
from tunesmith.progress import Progress
from tunesmith.recipe import from_dict


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rehearsal")
    return make_model(folder / "model"), make_rows(folder / "rows.jsonl", 12)


def values(place: tuple[Path, Path], tmp_path: Path, **adapter: Any) -> dict[str, Any]:
    made = recipe(*place, tmp_path / "run")
    return {**made, "adapter": {**made["adapter"], **adapter}} if adapter else made


def test_the_whole_way_and_nothing_is_left(place: tuple[Path, Path], tmp_path: Path) -> None:
    said: list[str] = []
    made = rehearsal.rehearse(from_dict(values(place, tmp_path)), say=said.append)
    assert made.ok, made
    assert [phase.result for phase in made.phases] == ["ok"] * 4
    assert "the same loss to the last bit" in made.phases[1].text
    assert "merged = adapted" in made.phases[2].text
    assert "the merged model says the same" in made.phases[3].text
    assert "tokens a second" in made.forecast[0]
    assert "10 steps" in made.forecast[1], "of 9 rows in batches of 2, two passes"
    assert not (tmp_path / "run").exists()
    assert len(said) == 6


@pytest.mark.slow
def test_a_method_that_cannot_be_merged_is_asked_without(place: tuple[Path, Path], tmp_path: Path) -> None:
    made = values(place, tmp_path)
    made["adapter"] = {"method": "prompt", "num_tokens": 4}
    result = rehearsal.rehearse(from_dict(made))
    assert result.ok, result
    assert result.phases[2].result == "skipped"
    assert "virtual tokens" in result.phases[2].text


def test_what_fails_is_a_sentence_and_an_exit_code(place: tuple[Path, Path], tmp_path: Path) -> None:
    made = values(place, tmp_path)
    made["train"]["learning_rate"] = 1e30
    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    done = CliRunner().invoke(cli.app, ["rehearse", str(tmp_path / "recipe.yaml"), "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"], told["phases"][0]["result"]) == (4, False, "failed")
    assert "not a finite number" in told["phases"][0]["text"]
    assert "the rehearsal failed" in done.stderr


def test_the_longest_rows_are_chosen_and_pairs_stay_together(place: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "what", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 13)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = recipe(place[0], pairs, tmp_path / "run", batch_size=1)
    made |= {"objective": {"kind": "preference"}, "adapter": {"r": 2}}
    made["data"]["held_out"] = None
    made["train"]["evaluate_every"] = None
    resolved = from_dict(made)
    with Progress(quiet=True) as progress:
        prepared = run.read_rows(resolved.recipe, False, progress)[1]
    chosen = rehearsal.longest(prepared, resolved).train
    assert [example.origin.row for example in chosen] == [11, 11, 12, 12]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_rehearsed(place: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    made = recipe(*place, tmp_path / "run") | {"adapter": {"method": method}}
    short = rehearsal.shortened(from_dict(made), tmp_path / "short").recipe
    assert short.train.steps == rehearsal.STEPS
    if method == "relora":
        assert short.adapter.rewarm < short.adapter.restart_every < rehearsal.STEPS


def test_the_rows_of_a_rehearsal_are_those_of_the_run(place: tuple[Path, Path], tmp_path: Path) -> None:
    """A count of rows that are held out, and the longest of all, are known only when all of them are read."""
    made = values(place, tmp_path)
    made["data"]["held_out"] = 50_000
    resolved = from_dict(made)
    assert rehearsal.shortened(resolved, tmp_path / "short").recipe.data == resolved.recipe.data


def test_a_rehearsal_takes_its_few_steps_whatever_the_budget(place: tuple[Path, Path], tmp_path: Path) -> None:
    for budget in ({"epochs": 2}, {"steps": 500}, {"minutes": 3}, {"tokens": 10**6}):
        made = values(place, tmp_path)
        made["train"] = {name: value for name, value in made["train"].items() if name != "epochs"} | budget
        short = rehearsal.shortened(from_dict(made), tmp_path / "short").recipe.train
        assert (short.steps, short.epochs, short.tokens, short.minutes) == (rehearsal.STEPS, None, None, None)


WHOLE = {
    "relora": {"adapter": {"method": "relora", "r": 2}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "a template of the recipe": {"model": {"template": "plain"}},
    "classes": {"objective": {"kind": "classify"}, "rows": {"label": "a"}},
    "classes at once": {"objective": {"kind": "classify", "way": "features"}, "rows": {"label": "a"}},
    "preference": {"objective": {"kind": "preference"}, "rows": {"chosen": "yes", "rejected": "no"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_way_of(place: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    made = values(place, tmp_path)
    for section, more in WHOLE[name].items():
        if section != "rows":
            made[section] = {**made.get(section, {}), **more}
    if more := WHOLE[name].get("rows"):
        rows = [{"prompt": f"what is {i}", **more} for i in range(12)]
        if "label" in more:
            rows = [{"text": row["prompt"], "label": "ab"[i % 2]} for i, row in enumerate(rows)]
        made["data"]["train"] = str(tmp_path / "rows.jsonl")
        Path(made["data"]["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "way" in made.get("objective", {}):
        made["adapter"] = {"method": "full", "targets": "none"}
    result = rehearsal.rehearse(from_dict(made))
    assert result.ok, result
    assert "failed" not in [phase.result for phase in result.phases]


@pytest.mark.slow
def test_plain_text_of_a_base_without_a_template_is_gone_on_with(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    (model / "chat_template.jinja").unlink()
    rows.write_text("".join(json.dumps({"text": f"the quick brown fox {i}"}) + "\n" for i in range(12)))
    result = rehearsal.rehearse(from_dict(recipe(model, rows, tmp_path / "run")))
    assert [phase.result for phase in result.phases] == ["ok"] * 4, result


@pytest.mark.slow
def test_a_merged_model_that_says_something_else_fails(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_merge = inference.merge

    def spoilt(source: Path, out: Path, **options: Any) -> str:
        said = true_merge(source, out, **options)
        file = out / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith("q_proj.weight"))
        tensors[name] = -3 * tensors[name]
        save_file(tensors, file, {"format": "pt"})
        return said

    monkeypatch.setattr(inference, "merge", spoilt)
    result = rehearsal.rehearse(from_dict(values(place, tmp_path)))
    assert [phase.result for phase in result.phases] == ["ok"] * 3 + ["failed"]
    assert "does not say what the adapted one does" in result.phases[3].text
    assert not result.forecast


def heard(*logits: float, is_rounded: bool = False) -> rehearsal.Heard:
    return rehearsal.Heard([[1, 2]], "yes", [torch.tensor(logits)], is_rounded)


@pytest.mark.parametrize(("off", "is_rounded", "passes"), [
    (0.005, False, True), (0.05, False, False), (0.05, True, True), (1.0, True, False), (float("nan"), True, False),
])  # fmt: skip
def test_how_far_logits_may_be_apart_depends_on_the_dtype(off: float, is_rounded: bool, passes: bool) -> None:
    mine, theirs = heard(10.0, -3.0), heard(10.0, -3.0 + off, is_rounded=is_rounded)
    if passes:
        assert rehearsal.same_model(mine, theirs) == pytest.approx(off / 10, rel=1e-3)
    else:
        with pytest.raises(AdapterError, match="does not say what the adapted one does"):
            rehearsal.same_model(mine, theirs)


def test_a_merged_model_that_is_asked_otherwise_fails() -> None:
    with pytest.raises(AdapterError, match="asked in other tokens"):
        rehearsal.same_model(heard(1.0), replace(heard(1.0), prompts=[[1, 3]]))


def test_a_step_that_is_taken_again_has_the_same_loss() -> None:
    assert "to the last bit" in rehearsal.taken_again(2.5, 2.5, exact=True)
    assert "to the last bit" in rehearsal.taken_again(2.5, 2.5, exact=False)
    assert "as a GPU rounds" in rehearsal.taken_again(2.5001, 2.5, exact=False)
    for again, exact in ((2.5000001, True), (2.51, False), (float("nan"), False)):
        with pytest.raises(CheckpointError, match="came out otherwise"):
            rehearsal.taken_again(again, 2.5, exact=exact)


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("CUDA out of memory. Tried\nmore"), "out of memory: CUDA out of memory. Tried"),
    (MemoryError(), "out of memory"),
    (ValueError("no such thing"), "ValueError: no such thing"),
    (RecipeError("a sentence", fix="mend it"), "a sentence\n  to do: mend it"),
])  # fmt: skip
def test_whatever_goes_wrong_in_a_phase_is_what_it_says(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "shortened", fail)
        (phase,) = rehearsal.rehearse(from_dict(values(place, tmp_path))).phases
    assert (phase.result, phase.text) == ("failed", said)

    resolved = from_dict(values(place, tmp_path))
    script = {"recipe": resolved.recipe.explicit(), "folder": str(tmp_path), "trust": False}
    (tmp_path / "script.json").write_text(json.dumps(script))
    monkeypatch.setattr(run, "train", fail)
    with pytest.raises(SystemExit):
        rehearsal.child(tmp_path / "script.json")
    assert (tmp_path / "error.txt").read_text() == said


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by a signal", signal_number=15)])
def test_a_person_s_wish_to_stop_is_no_failure(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def interrupted(*_: Any) -> Any:
        raise stop

    monkeypatch.setattr(rehearsal, "shortened", interrupted)
    with pytest.raises(type(stop)):
        rehearsal.rehearse(from_dict(values(place, tmp_path)))


@pytest.mark.parametrize(("code", "said"), [
    (0, "training ended after step 1"), (-9, "by signal 9"), (3, "exit code 3\n  found: Traceback"),
])  # fmt: skip
def test_a_training_that_ends_otherwise_says_how(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def ended(command: list[str], **_: Any) -> Any:
        (Path(command[-1]).parent / "steps.jsonl").write_text(json.dumps([1, (2.5).hex()]) + "\n")
        return SimpleNamespace(returncode=code, stderr="Traceback")

    monkeypatch.setattr(rehearsal.subprocess, "run", ended)
    (phase,) = rehearsal.rehearse(from_dict(values(place, tmp_path))).phases
    assert phase.result == "failed"
    assert said in phase.text
