"""A cell is known again by all that decides its weights, and by nothing else; names are what people make of them."""

from __future__ import annotations

import json
import shutil

import pytest
import studies

import tunesmith
from tunesmith.compare import settings
from tunesmith.compare.process import Outcome
from tunesmith.compare.study import run_cells
from tunesmith.compare.table import escaped, markdown
from tunesmith.errors import MachineError, RecipeError
from tunesmith.progress import Progress

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    return studies.make(tmp_path)


def asked_for(values):
    """The name of every cell that is not there yet: fingerprints stand in them."""
    names = []

    def runner(order, tell, stop):
        names.append(order.name)
        return Outcome(failed="not today")

    with pytest.raises(MachineError, match="every cell of the study failed"):
        tunesmith.compare(values, runner=runner, quiet=True)
    return names


def test_another_text_in_the_template_s_file_makes_other_cells(folder):
    values = studies.values(folder, prompting=[0], seeds=[0])
    values["recipe"]["model"]["template"] = str(folder / "own.jinja")
    (folder / "own.jinja").write_text(TEMPLATE)
    before = asked_for(values)
    assert asked_for(values) == before
    (folder / "own.jinja").write_text(TEMPLATE.replace(": ", " says "))
    after = asked_for(values)
    assert len(after) == len(before) == 3
    assert not set(before) & set(after)


def test_other_rows_of_training_make_other_examples_but_leave_the_base_alone(folder):
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps({"prompt": f"who is {i}", "completion": "it"}) + "\n" for i in range(5)))
    values = studies.values(folder, prompting=[0, 2], seeds=[0])
    values["test"]["rows"] = str(test)
    before = asked_for(values)
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text().replace("it is what it is", "so be it"))
    after = asked_for(values)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]
    assert before[0].startswith("base-0-shot")


def test_a_name_longer_than_a_file_s_may_be_has_a_folder_of_its_own(folder):
    names = [f"{'very ' * 80}long {end}" for end in ("one", "two")]
    values = studies.values(
        folder, prompting=[], seeds=[0], arms={name: {"adapter.r": n} for n, name in enumerate(names, 1)}
    )
    made = asked_for(values)
    assert len(set(made)) == 2
    assert all(len(name) < 150 for name in made)


def test_an_arm_is_not_called_as_the_base_s_row_is(folder):
    values = studies.values(folder, arms={"no tuning, zero-shot": {}, "b": {"adapter.r": 4}})
    with pytest.raises(RecipeError, match="so is the row of the base"):
        tunesmith.compare(values, runner=studies.here, quiet=True)


def test_a_name_neither_ends_a_cell_of_the_table_nor_begins_a_tag(folder):
    assert escaped("re:.*(q|v)_proj <b>x</b>\nand") == r"re:.*(q\|v)_proj &lt;b>x&lt;/b> and"
    arms = {"q|v": {"adapter.targets": ["re:.*(q|v)_proj"]}, "<b>all</b>": {}}
    values = studies.values(folder, prompting=[], seeds=[0], arms=arms, forget=None)
    found = tunesmith.compare(values, runner=studies.here, quiet=True)
    text = markdown(found.results, {})
    assert "<b>" not in text
    tables = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    columns = [line.count("|") for line in tables]
    first = columns[:4]  # head, rule, two arms
    assert len(set(first)) == 1
    assert len(set(columns[4:])) == 1


def test_each_model_that_answers_in_words_has_a_row_of_its_own(folder):
    shutil.copytree(folder / "model", folder / "other")
    held = bytearray((folder / "other" / "model.safetensors").read_bytes())
    held[-2:] = b"\0\0"
    (folder / "other" / "model.safetensors").write_bytes(bytes(held))
    shutil.copytree(folder / "model", folder / "copy")
    arms = {"first": {}, "second": {"model.name": str(folder / "other")}, "third": {"model.name": str(folder / "copy")}}
    values = studies.values(folder, arms=arms, prompting=[0], seeds=[0], forget=None, baseline="second")
    done = []

    def runner(order, tell, stop):
        done.append((order.name, order.recipe["model"]["name"]))
        return studies.here(order, tell, stop)

    found = tunesmith.compare(values, runner=runner, quiet=True).results["arms"]
    assert list(found) == [*arms, *(f"no tuning, zero-shot, {name}" for name in ("other", "model"))]
    asked = [model for name, model in done if name.startswith("base-")]
    assert asked == [str(folder / name) for name in ("other", "model")]
    figures = [found[f"no tuning, zero-shot, {name}"]["figures"]["loss"]["value"] for name in ("other", "model")]
    assert figures[0] != figures[1]
    alone = tunesmith.compare({**values, "arms": {"a": {}, "third": arms["third"]}, "baseline": "a"}, runner=runner)
    assert list(alone.results["arms"])[2:] == ["no tuning, zero-shot"]


def test_the_base_s_record_says_which_model_it_is_of(folder):
    values = studies.values(folder, prompting=[0], seeds=[0], folder=str(folder / "of"))
    ran = run_cells(settings.from_dict(values), runner=lambda *_: Outcome(failed="no"), progress=Progress(quiet=True))
    assert [done.model for done in ran.done] == ["model", None, None]
