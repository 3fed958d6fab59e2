"""Every name and value of a recipe that cannot be is refused, at its line, with what was meant or would do."""

import json

import pytest

from tunesmith.adapters import METHODS
from tunesmith.data.settings import HeldOut, TemplateFormat
from tunesmith.errors import RecipeError
from tunesmith.notation import write
from tunesmith.recipe import SECTIONS, from_dict, load
from tunesmith.strict import setting_names

SMALLEST = {"model": {"name": "owner/model"}, "data": {"train": "owner/rows", "held_out": 0.1}}


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
    ("train.tokens", 0, "a whole number above 0, or null"),
    ("train.tokens", "2M", "a whole number above 0, or null"),
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
        ({"train": {"tokens": 5, "steps": 1}}, "train.tokens stands beside steps"),
        ({"train": {"tokens": 5, "minutes": 1}}, "is given once, in steps, epochs, tokens or minutes"),
        (
            {"train": {"tokens": 5}, "objective": {"kind": "policy", "rewards": ["length:3"]}},
            "train.tokens counts rows",
        ),
        (
            {"train": {"tokens": 5}, "objective": {"kind": "distill", "teacher": "a/b", "answers": "sampled"}},
            "train.tokens counts rows that are there before the first step",
        ),
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


@pytest.mark.parametrize(("key", "meant"), [("boss", "bos"), ("eos_token", "eos"), ("padd", "pad")])
def test_a_special_token_of_another_name_is_refused(key, meant):
    model = {**SMALLEST["model"], "special_tokens": {key: "</s>", "unk": "<unk>"}}
    with pytest.raises(RecipeError, match=rf"model\.special_tokens\.{key} is not a setting") as caught:
        from_dict({**SMALLEST, "model": model})
    assert caught.value.notes == {"settings": "bos, eos, unk, pad", "did you mean": meant}


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
    ("override", "told"),
    [
        ("train.epochs=two", "a number above 0"),
        ("train.steps=ten", "a whole number above 0"),
        ("train.steps=1.5", "a whole number above 0"),
        ("train.steps=1e3", "write 1000"),
        ("train.tokens=1e6", "write 1000000"),
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
