"""A rehearsal goes the whole way, and says which stretch of it failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import make_model, make_rows, recipe
from typer.testing import CliRunner

from tunesmith import cli
from tunesmith import rehearse as rehearsal
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
    assert "tokens a second" in made.forecast[0]
    assert "10 steps" in made.forecast[1], "of 9 rows in batches of 2, two passes"
    assert not (tmp_path / "run").exists()
    assert len(said) == 6


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
    from tunesmith.progress import Progress
    from tunesmith.run import read_rows

    resolved = from_dict(made)
    with Progress(quiet=True) as progress:
        prepared = read_rows(resolved.recipe, False, progress)[1]
    chosen = rehearsal.longest(prepared, resolved).train
    assert [example.origin.row for example in chosen] == [11, 11, 12, 12]
