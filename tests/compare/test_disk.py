"""What a study holds on disk: little once a cell is done, whenever it is killed, and never more than there is room."""

from __future__ import annotations

import json
import shutil

import pytest
import studies

import tunesmith
from tunesmith.compare import disk, settings
from tunesmith.compare import study as study_module
from tunesmith.compare.checks import plan
from tunesmith.compare.study import _Grid
from tunesmith.errors import MachineError, RecipeError
from tunesmith.recipe import from_dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("studies"))


def values(home, name, **changes):
    made = studies.values(home, folder=str(home / name), prompting=[], forget=None, test={"rows": 10})
    return {**made, "arms": {"lora": {}, "full": {"adapter": {"method": "full"}}}, "seeds": [0], **changes}


def compare(asked, given):
    def runner(order, tell, stop):
        asked.append(order.name)
        return studies.here(order, tell, stop)

    return tunesmith.compare(given, runner=runner, quiet=True)


def names(cell):
    return {path.name for path in cell.iterdir()}


def test_of_a_cell_the_adapter_stays_and_of_a_trial_words_and_numbers(folder):
    given = values(folder, "kept", learning_rates=[1e-2, 3e-2])
    asked = []
    found = compare(asked, given)
    cells = [folder / "kept" / "cells" / name for name in asked]
    assert len(cells) == 6
    for cell in cells:
        assert "checkpoints" not in names(cell)
        assert {"summary.json", "metrics.jsonl", "recipe.yaml", "provenance.json"} <= names(cell)
        assert ("adapter" in names(cell)) == ("measures.json" in names(cell)) == ("-trial-" not in cell.name)
        assert not (("-trial-" in cell.name) and list(cell.rglob("*.safetensors")))
    before = dict(found.results["arms"]["full"]["figures"])
    assert found.results["arms"]["full"]["adapter_bytes"] > 0
    asked.clear()
    again = compare(asked, given)
    assert asked == []
    assert again.results["arms"]["full"]["figures"] == before
    assert [one["loss"] for one in again.results["arms"]["lora"]["trials"]] == [
        one["loss"] for one in found.results["arms"]["lora"]["trials"]
    ]
    shutil.copytree(cells[-1] / "adapter", cells[-1] / "checkpoints" / "step-000004")  # of a study before this was so
    stale = folder / "kept" / "cells" / "gone-trial-0.01-round1-seed1000-0123456789"
    shutil.copytree(cells[-1], stale)
    (stale / "measures.json").unlink()
    compare(asked, given)
    assert asked == []
    assert not list((folder / "kept").rglob("checkpoints"))
    assert not (stale / "adapter").exists()


@pytest.mark.parametrize(
    "struck", ["amid", *(pytest.param(when, marks=pytest.mark.slow) for when in ("before", "after"))]
)
def test_a_study_that_is_killed_while_it_tidies_redoes_nothing(folder, monkeypatch, struck):
    given = values(folder, f"killed-{struck}", learning_rates=[1e-2, 3e-2], arms={"lora": {}})
    original, count = disk.tidy, [0]

    class Killed(BaseException):
        pass

    def tidy(cell, *, is_trial):
        count[0] += 1
        if count[0] not in (1, 3):
            return original(cell, is_trial=is_trial)
        if struck == "amid":
            next((cell / "checkpoints").glob("*/state.json")).unlink()
        elif struck == "after":
            original(cell, is_trial=is_trial)
        raise Killed

    monkeypatch.setattr(study_module, "tidy", tidy)
    asked = []
    for _ in range(2):
        with pytest.raises(Killed):
            compare(asked, given)
    found = compare(asked, given)
    assert len(asked) == len(set(asked)) == 3
    assert found.results["arms"]["lora"]["failed"] == {}
    assert not list((folder / f"killed-{struck}").rglob("checkpoints"))


def test_a_cell_that_is_not_measured_yet_keeps_its_checkpoints(folder, monkeypatch):
    given = values(folder, "unmeasured", arms={"lora": {}})
    monkeypatch.setattr(_Grid, "_is_done", lambda self, order: False)
    asked = []
    compare(asked, given)
    (cell,) = (folder / "unmeasured" / "cells").iterdir()
    (cell / "measures.json").unlink()
    disk.tidy_all(cell.parent)
    assert list((cell / "checkpoints").glob("step-*"))


def test_sizes_are_those_of_the_files(folder):
    """Reckoned from shapes, and weighed: adapters in full, and of one checkpoint its tensors."""
    for adapter in ({"r": 4}, {"method": "full"}, {"r": 2, "train_in_full": ["embeddings", "norms"]}):
        recipe = {
            "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(folder / "rows.jsonl")},
            "adapter": adapter,
            "train": {"steps": 2},
            "output": {"folder": str(folder / "weighed" / adapter.get("method", str(len(adapter))))},
        }
        resolved = from_dict(recipe)
        told = disk.sizes(resolved.recipe, None, trust_remote_code=False)
        tunesmith.train(resolved, quiet=True)
        published = sum(path.stat().st_size for path in (resolved.folder / "adapter").glob("*.safetensors"))
        checkpoint = sum(path.stat().st_size for path in resolved.folder.glob("checkpoints/step-000002/*.safetensors"))
        assert told.adapter <= published <= told.adapter * 1.05 + 20_000
        assert told.checkpoint <= checkpoint <= told.checkpoint * 1.05 + 60_000


def test_a_disk_that_is_too_small_is_said_before_any_model_loads(folder, monkeypatch):
    monkeypatch.setattr("tunesmith.assemble.load_model", None)
    study = settings.from_dict(values(folder, "large", seeds=[0, 1, 2]))
    recipes = {name: values(folder, "large")["recipe"] | arm for name, arm in (("lora", {}), ("full", {}))}
    recipes["full"]["adapter"] = {"method": "full"}
    lora, full = (disk.sizes(from_dict(one).recipe, None, trust_remote_code=False) for one in recipes.values())
    needed = 3 * (lora.adapter + full.adapter) + 4 * full.checkpoint
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed)
    plan(study)
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed - 1)
    with pytest.raises(MachineError) as no:
        plan(study)
    assert "shared.train.keep_checkpoints=1" in str(no.value)
    assert "folder=" in str(no.value)
    plan(settings.from_dict(values(folder, "large", seeds=[0, 1, 2], shared={"train.keep_checkpoints": 1})))


def test_a_study_that_is_done_wants_no_room_and_one_of_other_settings_wants_all_of_it(folder, monkeypatch):
    given = values(folder, "settled", arms={"lora": {}, "full": {"adapter": {"method": "full"}}})
    compare([], given)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 0)
    plan(settings.from_dict(given))
    asked = []
    compare(asked, given)
    assert asked == []
    wider = {**given, "arms": {"lora": {}, "full": {"adapter": {"method": "full"}, "train.learning_rate": 0.02}}}
    with pytest.raises(MachineError, match="no room"):
        plan(settings.from_dict(wider))


def test_a_cell_that_was_tidied_is_not_begun_anew_by_hand(folder):
    """Its checkpoints are gone: to resume it would throw away what it made."""
    given = values(folder, "by-hand", arms={"lora": {}})
    compare([], given)
    (cell,) = (folder / "by-hand" / "cells").iterdir()
    before = {path.name: path.read_bytes() for path in cell.iterdir() if path.is_file() and path.name != "lock"}
    with pytest.raises(RecipeError, match="finished"):
        tunesmith.train(tunesmith.load(str(cell)), resume=True, quiet=True)
    after = {path.name: path.read_bytes() for path in cell.iterdir() if path.is_file() and path.name != "lock"}
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    assert json.loads(after["summary.json"])["status"] == "finished"
