"""What a study says where something went wrong in it, or where its arms cannot be compared by a figure."""

from __future__ import annotations

import json

import pytest
import studies

import tunesmith
from tunesmith.compare.process import Outcome
from tunesmith.errors import MachineError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("studies"))


def values(home, name, **changes):
    """Two arms, two seeds, losses alone."""
    plain = {"forget": None, "prompting": [], "test": {"rows": 10}}
    return studies.values(home, **{**plain, **changes}, folder=str(home / name))


def failing(*names):
    """A runner in which the orders fail whose names begin so; and the names of all that it was asked for."""
    asked = []

    def runner(order, tell, stop):
        asked.append(order.name)
        if order.name.startswith(names):
            return Outcome(failed=f"no memory for {order.name[:4]}\n  found: none")
        return studies.here(order, tell, stop)

    return runner, asked


def test_a_loss_that_is_not_finite_fails_its_cell_and_the_study_goes_on(folder):
    made = values(folder, "torn", seeds=[0])
    del made["recipe"]["data"]["held_out"], made["recipe"]["train"]["evaluate_every"]
    torn = {"train.learning_rate": 1e30, "train.max_grad_norm": None, "train.schedule": "constant", "train.steps": 1}
    made["arms"]["torn"] = torn
    for _ in range(2):  # the second time nothing but the failed cell is tried again
        runner, asked = failing("none")
        found = tunesmith.compare(made, runner=runner, quiet=True).results
        why = found["arms"]["torn"]["failed"]["0"]
        assert "the loss of test row 1 is not finite" in why
        for part in ("found: ", "expected: a finite number", "to do: train with a lower train.learning_rate"):
            assert part in why
        assert {one["arm"] for one in found["comparisons"]} == {"dora"}
        assert any(note.startswith("torn, seed 0, failed") for note in found["notes"])
    assert [name[:4] for name in asked] == ["torn"]


def test_a_null_in_older_measures_is_measured_again_or_is_a_failed_cell(folder):
    made = values(folder, "older", forget={"text": str(folder / "text.txt")})
    first = tunesmith.compare(made, runner=studies.here, quiet=True)
    row = first.results["arms"]["dora"]
    older = first.folder / row["folders"]["1"] / "measures.json"
    kept = json.loads(older.read_text())
    kept["loss"]["sum"][0] = None
    older.write_text(json.dumps(kept))
    runner, asked = failing("dora")
    found = tunesmith.compare(made, runner=runner, quiet=True).results
    assert [name[:10] for name in asked] == ["dora-seed1"]
    assert found["arms"]["dora"]["seeds"] == [0]
    assert found["arms"]["dora"]["failed"] == {"1": "no memory for dora\n  found: none"}
    again = tunesmith.compare(made, runner=studies.here, quiet=True).results
    assert again["arms"]["dora"]["figures"] == row["figures"]
    assert again["arms"]["dora"]["forgetting"] == row["forgetting"]


def test_where_every_arm_fails_that_is_an_error_though_the_base_was_measured(folder):
    made = values(folder, "bare", prompting=[0])
    runner, _ = failing("lora", "dora")
    with pytest.raises(MachineError, match="every cell of every arm failed") as raised:
        tunesmith.compare(made, runner=runner, quiet=True)
    assert "lora: no memory for lora; dora: no memory for dora" in str(raised.value)
    told = json.loads((folder / "bare" / "results.json").read_text())
    assert told["arms"]["no tuning, zero-shot"]["figures"]["loss"]["value"] > 0
    assert told["notes"][0].startswith("Nothing was compared with lora, the baseline")


def test_where_the_baseline_fails_it_is_said_why_nothing_was_compared(folder):
    runner, _ = failing("lora")
    found = tunesmith.compare(values(folder, "alone"), runner=runner, quiet=True)
    why = "Nothing was compared with lora, the baseline: it failed on every seed (no memory for lora)."
    assert found.results["comparisons"] == []
    assert why in found.results["notes"]
    assert why in found.files["markdown"].read_text()
    assert why in found.files["html"].read_text()


def test_an_arm_that_shares_no_seed_with_the_baseline_is_named(folder):
    runner, _ = failing("lora-seed0", "dora-seed1")
    found = tunesmith.compare(values(folder, "crossed"), runner=runner, quiet=True).results
    assert found["comparisons"] == []
    assert "dora was not compared with lora, the baseline: no seed was finished of both." in found["notes"]


def test_losses_of_two_templates_are_shown_and_not_compared(folder):
    from tiny_tokenizers import LLAMA2

    (folder / "other.jinja").write_text(LLAMA2)
    other = {"model.template": str(folder / "other.jinja")}
    three = {"lora": {}, "other": other, "dora": {"adapter.method": "dora"}}
    made = values(folder, "templates", arms=three, seeds=[0])
    found = tunesmith.compare(made, runner=studies.here, quiet=True)
    arms = found.results["arms"]
    assert all(set(row["figures"]) == {"loss", "held_out_loss"} for row in arms.values())
    assert {(one["arm"], one["measure"]) for one in found.results["comparisons"]} == {
        ("dora", "loss"),
        ("dora", "held_out_loss"),
    }
    assert found.results["apart"] == {"loss": ["other"], "held_out_loss": ["other"]}
    assert found.results["best"] == "No winner by test loss: that of some arms is in another unit."
    for title in ("test loss", "held-out loss"):
        said = f"No verdict by {title} between lora and other: the same rows do not become as many learned tokens"
        assert any(note.startswith(said) for note in found.results["notes"])
        assert said in found.files["markdown"].read_text()


@pytest.fixture(scope="module")
def second_model(folder):
    """Another shape, another tokenizer, another vocabulary."""
    from tiny_tokenizers import LLAMA2, word_mark
    from transformers import AutoModelForCausalLM

    from tunesmith.models.tiny import config, randomise

    tokenizer = word_mark(LLAMA2)
    shape = config("llama")
    shape.vocab_size = len(tokenizer)
    shape.num_hidden_layers = 1
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 1)
    model.save_pretrained(folder / "second")
    tokenizer.save_pretrained(folder / "second")
    return folder / "second"


def test_two_models_are_compared_by_what_they_answer(folder, second_model):
    """A small model tuned in full beside another one with LoRA."""
    full = {"model.name": str(second_model), "adapter": {"method": "full"}}
    made = values(folder, "models", arms={"lora": {}, "full": full}, prompting=[0], seeds=[0])
    made["test"] = {"rows": 10, "score": "f1", "max_new_tokens": 4}
    made["forget"] = {"text": str(folder / "text.txt")}
    found = tunesmith.compare(made, runner=studies.here, quiet=True)
    arms = found.results["arms"]
    bases = [name for name, row in arms.items() if not row["tuned"]]
    assert len(bases) == 2
    for base, model in zip(bases, ("model", "second"), strict=True):
        assert base.startswith("no tuning, zero-shot")
        assert model in base
    for name, row in arms.items():
        assert row["failed"] == {}, name
        assert {"f1", "loss"} <= set(row["figures"]), name
    assert arms["lora"]["forgetting"]["before"] != arms["full"]["forgetting"]["before"]
    told = {(one["arm"], one["measure"]) for one in found.results["comparisons"]}
    assert {("full", "f1"), (bases[0], "f1"), (bases[1], "f1"), (bases[0], "loss")} <= told
    assert not {("full", "loss"), ("full", "held_out_loss"), (bases[1], "loss")} & told
    assert found.results["apart"]["loss"] == ["full", bases[1]]
    assert "model.name" in found.results["differences"]
    page = found.files["html"].read_text()
    for name in (*bases, "No verdict by test loss between lora and full"):
        assert name in page
