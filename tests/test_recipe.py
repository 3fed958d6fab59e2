"""A recipe from files, overrides and changes: everything that is wrong with it is said at once, at its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.settings import HeldOut
from tunesmith.errors import RecipeError
from tunesmith.notation import read, write, write_inline
from tunesmith.recipe import SECTIONS, from_dict, json_schema, load

SMALLEST = {"model": {"name": "owner/model"}, "data": {"train": "owner/rows", "held_out": 0.1}}


def test_a_home_folder_is_meant_where_one_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    resolved = from_dict(SMALLEST, ["output.folder=~/runs/x"])
    assert resolved.folder == tmp_path / "runs" / "x"
    assert resolved.plain["output"]["folder"] == str(tmp_path / "runs" / "x")


def test_a_revision_beside_a_folder_is_refused_and_one_of_a_hub_id_is_not(tmp_path):
    assert from_dict(SMALLEST, ["model.revision=main"]).recipe.model.revision == "main"
    with pytest.raises(RecipeError, match=r"^command line: model.revision 'main' has no meaning beside a folder"):
        from_dict(SMALLEST, [f"model.name={tmp_path}", "model.revision=main"])
    with pytest.raises(RecipeError, match=r"^command line: model.name: there is no "):
        from_dict(SMALLEST, [f"model.name={tmp_path}/none", "model.revision=main"])


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(RecipeError, match=r"train.seed cannot be"):
        from_dict(SMALLEST, [f"train.seed={seed}"])
    assert from_dict(SMALLEST, [f"train.seed={2**63 - 1}"]).recipe.train.seed == 2**63 - 1


def test_a_run_folder_that_was_moved_is_the_run_where_it_lies(tmp_path):
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    old.mkdir()
    resolved = from_dict(SMALLEST, [f"output.folder={old}"])
    (old / "recipe.yaml").write_text(resolved.yaml)
    (old / "provenance.json").write_text("{}")
    assert load(old).folder == old
    assert load(old).provenance["output.folder"].startswith(f"{old}/recipe.yaml, line")
    new.parent.mkdir()
    old.rename(new)
    for path in (new, new / "recipe.yaml"):
        assert load(path).folder == new
        assert load(path).provenance["output.folder"] == "where the run lies"
    assert load(new, ["output.folder=/x/y"]).folder == Path("/x/y")
    (new / "provenance.json").unlink()
    assert load(new).folder == old, "a recipe of that name that is no run's says itself where it goes"


def test_an_override_below_a_setting_is_an_error_of_the_command_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(write({**SMALLEST, "train": {"steps": 3}}))
    for override in ("train.steps.foo=3", "train.seed.foo=3"):
        with pytest.raises(RecipeError, match=r"^command line: train.(steps|seed) cannot be"):
            load(file, [override])
    with pytest.raises(RecipeError, match=r"'train' does not name a setting\n  expected: train.key$"):
        load(file, ["train=3"])


def test_a_batch_in_tokens_takes_the_place_of_one_in_rows():
    loaded = from_dict({**SMALLEST, "train": {"batch_tokens": 4096}})
    assert (loaded.recipe.train.batch_size, loaded.recipe.train.batch_tokens) == (None, 4096)
    assert from_dict(loaded.plain).recipe.train == loaded.recipe.train
    assert loaded.recipe.with_changes({"train.seed": 3}).train.batch_size is None
    unset = from_dict({**SMALLEST, "train": {"batch_size": 4}}, ["train.batch_tokens=4096", "train.batch_size="])
    assert unset.recipe.train == loaded.recipe.train
    assert from_dict({**SMALLEST, "train": {"batch_size": None}}).recipe.train.batch_size == 8


def test_a_budget_in_tokens_is_a_budget_of_its_own():
    loaded = from_dict({**SMALLEST, "train": {"epochs": 2}}, ["train.tokens=2_000_000", "train.epochs="])
    assert (loaded.recipe.train.tokens, loaded.recipe.train.epochs) == (2_000_000, None)
    assert from_dict(loaded.plain).recipe.train == loaded.recipe.train
    assert from_dict({**SMALLEST, "train": {"tokens": None}}).recipe.train.epochs == 3


def test_all_problems_at_once_and_each_once(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "model:\n  nmae: a/b\ndata:\n  train: c/d\n  held_out: {shar: 0.1}\nadapter:\n  alpah: 1\n"
        "train:\n  steps: ten\n  recompute: maybe\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(file, ["train.seed=-1", "oops"])
    text = str(caught.value)
    assert text.startswith("7 problems\n")
    for where in ("line 2: model.nmae", "line 5: data.held_out.shar", "line 7: adapter.alpah", "line 9: train.steps",
                  "line 10: train.recompute", "command line: train.seed", "command line: 'oops'"):  # fmt: skip
        assert text.count(where) == 1


@pytest.mark.parametrize("section", [None, "train"])
def test_a_duplicate_key(section, tmp_path):
    file = tmp_path / "r.yaml"
    body = "model:\n  name: a/b\ndata:\n  train: c/d\n"
    file.write_text(body + ("data:\n  train: e/f\n" if section is None else "train:\n  seed: 1\n  seed: 2\n"))
    with pytest.raises(RecipeError, match="is given twice") as caught:
        load(file)
    assert f"line {5 if section is None else 7}: {'data' if section is None else 'train.seed'} " in str(caught.value)
    assert f"the first is in line {3 if section is None else 6}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["- a\n- b\n", "just text", "model: [", "a: &a [*a]", "\tx: 1", "a: 1\n---\nb: 2", "1: 2", "a: \x01", "", "model:",
     "a: !!python/object:os.system {}", "a: !!binary aGk="],
)  # fmt: skip
def test_what_is_no_recipe_is_an_error_with_the_file_named(text, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        load(file)


def test_a_text_built_to_explode_is_refused(tmp_path):
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(rows))
    with pytest.raises(RecipeError, match="nested or repeated"):
        load(file)


def test_files_that_are_missing_or_not_text(tmp_path):
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"there is no recipe .*\n.*there\.yaml"):
        load(tmp_path / "here.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\xfe\xe9")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        load(tmp_path / "latin.yaml")


def test_overrides_win_and_are_checked_alike(tmp_path):
    file = tmp_path / "sql.yaml"
    file.write_text("model:\n  name: a/b\ndata:\n  train: c/d\ntrain:\n  epochs: 2\n  learning_rate: 1e-4\n")
    overrides = ["train.epochs=", "train.steps=60", "data.held_out.count=5", "adapter.targets=[q_proj, v_proj]"]
    resolved = load(file, [*overrides, "train.learning_rate=3e-4", "data.columns.text=body"])
    recipe = resolved.recipe
    assert (recipe.train.steps, recipe.train.epochs, recipe.train.learning_rate) == (60, None, 3e-4)
    assert recipe.data.held_out == HeldOut(count=5)
    assert recipe.adapter.targets == ("q_proj", "v_proj")
    assert recipe.data.columns == {"text": "body"}
    assert resolved.provenance["train.learning_rate"] == "command line"
    with pytest.raises(RecipeError, match=r"command line: train\.stepz is not a setting of train"):
        load(file, ["train.stepz=3"])


@pytest.mark.parametrize("text", ["steps", "steps=3", "=3", "train.=3", ".steps=3", "train.steps=[", "train..steps=1"])
def test_what_is_no_override(text):
    with pytest.raises(RecipeError, match="command line"):
        from_dict(SMALLEST, [text])


def test_none_given_means_three_epochs_and_is_a_default():
    resolved = from_dict(SMALLEST)
    assert resolved.recipe.train.epochs == 3.0
    assert resolved.provenance["train.epochs"] == "default"
    assert "train" not in resolved.recipe.explicit()


def test_provenance_of_every_setting(tmp_path):
    file = tmp_path / "sql.yaml"
    file.write_text("model:\n  name: a/b\n\ndata:\n  train: c/d\n  columns:\n    text: body\n")
    resolved = load(file, ["data.columns.other=x", "train.seed=4"])
    assert set(resolved.provenance) == {f"{s}.{k}" for s, keys in resolved.plain.items() for k in keys}
    assert resolved.provenance["model.name"] == f"{file}, line 2"
    assert resolved.provenance["data.train"] == f"{file}, line 5"
    assert resolved.provenance["data.columns"] == f"{file}, line 6; {file}, line 7; command line"
    assert resolved.provenance["train.seed"] == "command line"
    assert resolved.provenance["train.steps"] == "default"
    for key, source in resolved.provenance.items():
        line = next(
            text for text in resolved.yaml.partition(f"{key.split('.')[0]}:\n")[2].splitlines()
            if text.startswith(f"  {key.split('.')[1]}: ")
        )  # fmt: skip
        assert line.endswith(f"# {source}")


def test_what_is_written_reads_back_as_the_same_recipe(tmp_path):
    values = {
        **SMALLEST,
        "data": {
            "train": "a/b",
            "format": {"prompt": "Context: {{ c }}\nQ: {{ q }} # not a comment", "answer": "1e5"},
            "held_out": {"key": "no", "share": 0.2},
            "columns": {"yes": "~"},
        },
        "adapter": {"targets": ["re:.*[qv]_proj"], "r": 4},
        "train": {"minutes": 2, "learning_rate": 1e-5, "betas": [0.9, 0.95]},
        "output": {"folder": str(tmp_path / "x")},
    }
    resolved = from_dict(values)
    (tmp_path / "recipe.yaml").write_text(resolved.yaml)
    again = load(tmp_path)
    assert again.recipe == resolved.recipe
    assert again.plain == resolved.plain
    assert again.folder == resolved.folder


def test_a_recipe_with_changes():
    recipe = from_dict({**SMALLEST, "train": {"epochs": 2}}).recipe
    changed = recipe.with_changes({"train.learning_rate": 1e-3, "adapter.r": 32, "data.held_out.share": 0.5})
    assert (changed.train.learning_rate, changed.adapter.r, changed.train.epochs) == (1e-3, 32, 2)
    assert changed.data.held_out == HeldOut(share=0.5)
    assert recipe.adapter.r == 8
    assert recipe.with_changes({}) == recipe
    assert from_dict(SMALLEST).recipe.with_changes({"train.steps": 5}).train.epochs is None
    with pytest.raises(RecipeError, match=r"changes: train\.lr is not a setting"):
        recipe.with_changes({"train.lr": 1})


def test_files_are_looked_for_beside_the_recipe_then_here(tmp_path, monkeypatch):
    beside, here = tmp_path / "recipes", tmp_path / "here"
    beside.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    for folder, name in ((beside, "both.jsonl"), (here, "both.jsonl"), (here, "only.csv"), (beside, "chat.jinja")):
        (folder / name).write_text("{}")
    file = beside / "r.yaml"
    text = "model: {{name: a/b, template: chat.jinja}}\ndata: {{train: both.jsonl, held_out: {}}}\n"
    file.write_text(text.format("only.csv"))
    recipe = load(file).recipe
    assert recipe.data.train == str(beside / "both.jsonl")
    assert recipe.data.held_out == str(here / "only.csv")
    assert recipe.model.template == str(beside / "chat.jinja")
    assert recipe.model.name == "a/b"
    file.write_text(text.format("{file: gone.jsonl}"))
    with pytest.raises(RecipeError, match=r"line 2: data\.held_out\.file: there is no gone\.jsonl") as caught:
        load(file)
    assert str(beside / "gone.jsonl") in str(caught.value)
    assert str(here / "gone.jsonl") in str(caught.value)


def test_the_run_folder_and_name(tmp_path):
    file = tmp_path / "sql.yaml"
    file.write_text("model:\n  name: a/b\ndata:\n  train: c/d\n")
    assert load(file).folder == Path("runs/sql")
    assert load(file, ["output.name=trial"]).folder == Path("runs/trial")
    assert load(file, ["output.folder=/x/y"]).folder == Path("/x/y")


def test_the_schema_knows_every_setting_with_its_help():
    schema = json_schema()
    assert set(schema["properties"]) == set(SECTIONS)
    lora = next(record for record in schema["$defs"].values() if "rank_stabilised" in record["properties"])
    assert lora["additionalProperties"] is False
    assert "Rank" in lora["properties"]["r"]["description"]
    assert schema["$defs"]["TrainSettings"]["properties"]["keep_checkpoints"]["exclusiveMinimum"] == 0


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain_values)
def test_notation_reads_what_it_writes(value):
    assert read(write({"k": value}), "x").value == {"k": value}
    assert read(f"k: {write_inline(value)}", "x").value == {"k": value}


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text):
    lined = read(text, "x")
    assert lined.errors or lined.value is None or isinstance(lined.value, dict | list | str | int | float)


def test_jinja_on_the_command_line_is_text(tmp_path):
    asked = ["data.format.prompt=Q: {{ question }}", "data.format.answer={{ answer }}"]
    loaded = from_dict({"model": {"name": "o/m"}, "data": {"train": "o/d"}}, asked).recipe.data.format
    assert (loaded.prompt, loaded.answer) == ("Q: {{ question }}", "{{ answer }}")
    (tmp_path / "r.yaml").write_text(
        "model: {name: o/m}\ndata:\n  train: o/d\n  format: {prompt: p, answer: {{ a }}}\n"
    )
    with pytest.raises(RecipeError, match="put quotes around Jinja"):
        load(tmp_path / "r.yaml")
