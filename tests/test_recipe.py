"""A recipe is read strictly: everything that is wrong with it is said at once, at its line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.adapters import METHODS
from tunesmith.data.settings import HeldOut, TemplateFormat
from tunesmith.errors import RecipeError
from tunesmith.notation import read, write, write_inline
from tunesmith.recipe import SECTIONS, from_dict, json_schema, load
from tunesmith.strict import setting_names

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


def records():
    """(path of the record, its keys), for every record of every section and every method."""
    for section, record in SECTIONS.items():
        if section != "adapter":
            yield section, (section,), {}, setting_names(record)
    for method, module in METHODS.items():
        yield f"adapter-{method}", ("adapter",), {"method": method}, setting_names(module.Settings)
    yield "held_out", ("data", "held_out"), {}, setting_names(HeldOut)
    template = {"prompt": "{{ q }}", "answer": "{{ a }}"}
    yield "template", ("data", "format"), template, setting_names(TemplateFormat)


def misspellings(key: str) -> list[str]:
    """Ways in which a hand slips: a letter twice, two letters swapped, a letter left out."""
    slips = [key + key[-1]]
    if len(key) > 3:
        slips += [key[:1] + key[2] + key[1] + key[3:], key[:-2] + key[-1]]
    return [slip for slip in slips if slip != key]


EVERY_KEY = [
    pytest.param(path, beside, key, keys, id=f"{name}.{key}") for name, path, beside, keys in records() for key in keys
]


@pytest.mark.parametrize(("path", "beside", "key", "keys"), EVERY_KEY)
def test_every_key_misspelt_is_refused_with_the_right_one_named(path, beside, key, keys, tmp_path):
    for slip in misspellings(key):
        if slip in keys:
            continue
        values = json.loads(json.dumps(SMALLEST))
        inner = values
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        given = inner.get(path[-1])
        inner[path[-1]] = {**(given if isinstance(given, dict) else {}), **beside, slip: 1}
        file = tmp_path / "r.yaml"
        file.write_text(write(values))
        line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip() == f"{slip}: 1")
        with pytest.raises(RecipeError) as caught:
            load(file)
        problem = next(part for part in str(caught.value).split(f"{file}, ") if f".{slip} is not a setting of" in part)
        assert problem.startswith(f"line {line}: {'.'.join(path)}.{slip} is not a setting of")
        assert f"did you mean: {key}\n" in problem + "\n"
        assert "settings: " in problem


def test_an_unknown_section_and_a_setting_without_its_section():
    with pytest.raises(RecipeError, match="did you mean: train") as caught:
        from_dict({**SMALLEST, "trian": {}})
    assert "trian is not a setting of a recipe" in str(caught.value)
    with pytest.raises(RecipeError, match=r"did you mean: train\.learning_rate"):
        from_dict({**SMALLEST, "learning_rate": 1e-4})


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("train", "lr", "learning_rate"),
        ("adapter", "rank", "r"),
        ("adapter", "learning_rate", "train.learning_rate"),
        ("train", "num_epochs", "epochs"),
    ],
)
def test_habits_from_elsewhere_are_understood(section, key, meant):
    with pytest.raises(RecipeError) as caught:
        from_dict({**SMALLEST, section: {key: 1}})
    assert caught.value.notes["did you mean"] == meant


def test_the_style_of_an_error(tmp_path):
    file = tmp_path / "sql.yaml"
    file.write_text("model:\n  name: a/b\ndata:\n  train: c/d\nadapter:\n  method: lora\n  alpah: 3\n")
    with pytest.raises(RecipeError) as caught:
        load(file)
    first, settings, meant = str(caught.value).splitlines()
    assert first == f"{file}, line 7: adapter.alpah is not a setting of lora"
    assert settings.startswith("  settings: ")
    assert {"r", "alpha", "dropout", "rank_stabilised", "targets"} <= set(settings[12:].split(", "))
    assert meant == "  did you mean: alpha"


WRONG = [
    ("train.steps", "ten", "a whole number above 0, or null"),
    ("train.steps", True, "a whole number above 0, or null"),
    ("train.steps", 1.5, "a whole number above 0, or null"),
    ("train.steps", 0, "a whole number above 0, or null"),
    ("train.learning_rate", "1e-4", "a number above 0"),
    ("train.learning_rate", 0, "a number above 0"),
    ("train.learning_rate", float("nan"), "a number above 0"),
    ("train.learning_rate", float("inf"), "a number above 0"),
    ("train.schedule", "cosin", "constant, linear or cosine"),
    ("train.recompute", "yes", "true or false"),
    ("train.recompute", 1, "true or false"),
    ("train.betas", [0.9], "a list of 2"),
    ("train.betas[1]", [0.9, 1.0], "a number at least 0 and below 1"),
    ("train.batch_size", [8], "a whole number above 0"),
    ("train.batch_tokens", 1.5, "a whole number above 0, or null"),
    ("train.evaluate_every", 0, "a whole number above 0, text, or null"),
    ("model.special_tokens.eos", {"eos": 2}, "text"),
    ("adapter.r", 0, "a whole number above 0"),
    ("adapter.dropout", 1.0, "a number at least 0 and below 1"),
    ("adapter.targets[1]", ["q_proj", 3], "text"),
    ("adapter.last_blocks", 0, "a whole number above 0, or null"),
    ("model.name", 7, "text"),
    ("model.name", "", "text"),
    ("data.format", "alpacca", "alpaca"),
    ("data.held_out", True, "a number"),
    ("data.held_out.share", {"share": 1.5}, "a number above 0 and below 1, or null"),
    ("data.columns.text", {"text": 3}, "text"),
    ("data.max_length", 1, "a whole number at least 2"),
    ("output.report_to[0]", ["wandbb"], "wandb"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_a_value_of_the_wrong_kind_is_refused_with_what_would_do(key, value, expected):
    path = key.split("[")[0].split(".")[:2]
    values = json.loads(json.dumps(SMALLEST))
    values.setdefault(path[0], {})[path[1]] = value
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    assert f"{key} cannot be " in str(caught.value)
    assert expected in caught.value.expected
    assert str(caught.value).count(" cannot be ") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"steps": 5, "epochs": 1}}, "train.epochs stands beside steps"),
        ({"train": {"minutes": 5, "epochs": 1}}, "train.minutes stands beside epochs"),
        ({"train": {"warmup": 1.5}}, "train.warmup from 1 on counts whole steps"),
        ({"train": {"min_learning_rate": 1}}, "train.min_learning_rate is above learning_rate"),
        ({"adapter": {"targets": "re:(("}}, "adapter.targets holds a broken regular expression"),
        ({"adapter": {"targets": []}}, "adapter.targets is empty"),
        ({"model": {"name": "a/b", "device": "gpu"}}, "model.device is 'gpu'"),
        ({"data": {"train": "a/b", "held_out": 1.0}}, "data.held_out is a share of 1"),
        ({"data": {"train": "a/b", "held_out": 0}}, "data.held_out is 0 rows"),
        ({"data": {"train": "a/b", "held_out": {}}}, "data.held_out says nothing"),
        ({"data": {"train": "a/b", "held_out": {"count": 3, "key": "q"}}}, "data.held_out gives count and key"),
        ({"data": {"train": "a/b"}, "train": {"stop_after_no_gain": 3}}, "train.stop_after_no_gain has nothing"),
        ({"data": {"train": "a/b"}, "train": {"evaluate_every": 3}}, "train.evaluate_every has nothing"),
        ({"data": {"train": "a/b"}, "train": {"evaluate_every": "1 epoch"}}, "train.evaluate_every has nothing"),
        ({"train": {"evaluate_every": "often"}}, "train.evaluate_every is 'often'"),
        ({"train": {"save_every": "0 epochs"}}, "train.save_every is '0 epochs'"),
        ({"train": {"batch_size": 8, "batch_tokens": 4096}}, "train.batch_tokens stands beside batch_size"),
        ({"train": {"batch_tokens": 64}, "objective": {"kind": "preference"}}, "train.batch_size how many"),
        (
            {"train": {"batch_tokens": 64}, "objective": {"kind": "distill", "teacher": "a/b", "answers": "sampled"}},
            "train.batch_tokens is for rows that are learned as they stand",
        ),
        ({"adapter": {"method": "lorra"}}, "there is no method 'lorra'"),
        ({"objective": {"kind": "stf"}}, "there is no objective 'stf'"),
        ({"model": None}, "model.name is missing"),
        ({"train": [1]}, "train is not a mapping"),
    ],
)
def test_contradictions(changes, said):
    with pytest.raises(RecipeError) as caught:
        from_dict({**SMALLEST, **changes})
    assert said in str(caught.value)


def test_a_batch_in_tokens_takes_the_place_of_one_in_rows():
    loaded = from_dict({**SMALLEST, "train": {"batch_tokens": 4096}})
    assert (loaded.recipe.train.batch_size, loaded.recipe.train.batch_tokens) == (None, 4096)
    assert from_dict(loaded.plain).recipe.train == loaded.recipe.train
    assert loaded.recipe.with_changes({"train.seed": 3}).train.batch_size is None
    unset = from_dict({**SMALLEST, "train": {"batch_size": 4}}, ["train.batch_tokens=4096", "train.batch_size="])
    assert unset.recipe.train == loaded.recipe.train
    assert from_dict({**SMALLEST, "train": {"batch_size": None}}).recipe.train.batch_size == 8


@pytest.mark.parametrize(("key", "meant"), [("boss", "bos"), ("eos_token", "eos"), ("padd", "pad")])
def test_a_special_token_of_another_name_is_refused(key, meant):
    model = {**SMALLEST["model"], "special_tokens": {key: "</s>", "unk": "<unk>"}}
    with pytest.raises(RecipeError, match=rf"model\.special_tokens\.{key} is not a setting") as caught:
        from_dict({**SMALLEST, "model": model})
    assert caught.value.notes == {"settings": "bos, eos, unk, pad", "did you mean": meant}


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


@pytest.mark.parametrize("depth", [(), ("model",), ("train",), ("data", "held_out")])
def test_a_file_cannot_consent_to_remote_code(depth):
    values = {**json.loads(json.dumps(SMALLEST)), "train": {}}
    values["data"]["held_out"] = {"share": 0.1}
    inner = values
    for part in depth:
        inner = inner[part]
    inner["trust_remote_code"] = True
    with pytest.raises(RecipeError, match="a file cannot consent") as caught:
        from_dict(values)
    assert "--trust-remote-code" in caught.value.fix


@pytest.mark.parametrize("key", ["token", "hf_token", "api_key", "wandb_api_key", "password"])
def test_there_is_no_place_for_a_secret(key):
    with pytest.raises(RecipeError, match="secrets are never read from a recipe") as caught:
        from_dict({**SMALLEST, "output": {key: "hunter2"}})
    assert "hunter2" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs=two", "a number above 0"),
        ("train.steps=ten", "a whole number above 0"),
        ("train.steps=1.5", "a whole number above 0"),
        ("train.steps=1e3", "write 1000"),
        ("train.learning_rate=2,5", "write 2.5"),
        ("train.learning_rate=1e-4x", "a number above 0"),
        ("adapter.r=eight", "a whole number above 0"),
    ],
)
def test_what_is_no_number_says_which_number_is_wanted(override, told):
    with pytest.raises(RecipeError) as caught:
        from_dict(SMALLEST, [override])
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"command line: {override.partition('=')[0]} cannot be")
