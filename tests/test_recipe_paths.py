"""The sources of a mixture in a recipe: their files, their lines, and what is wrong with them."""

from __future__ import annotations

import pytest

from tunesmith.errors import RecipeError
from tunesmith.notation import write
from tunesmith.recipe import from_dict, load

SMALLEST = {"model": {"name": "owner/model"}, "data": {"train": "owner/rows"}}


def recipe(train, **keys):
    return {**SMALLEST, "data": {"train": train, **keys}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    return tmp_path


def test_every_source_is_found_from_the_recipe_s_folder_and_hub_ids_stay(folder):
    file = folder / "sub" / "r.yaml"
    file.parent.mkdir()
    file.write_text(write(recipe([{"path": "../a.jsonl", "weight": 2}, {"path": "owner/rows"}, {"path": "b.jsonl"}])))
    sources = load(file).recipe.data.train
    assert [source.path for source in sources] == [str(folder / "a.jsonl"), "owner/rows", str(folder / "b.jsonl")]
    assert [source.weight for source in sources] == [2, 1, 1]


def test_every_source_that_is_not_there_is_told_with_its_line(folder):
    file = folder / "r.yaml"
    sources = "  - path: gone.jsonl\n  - path: a.jsonl\n  - path: gone.csv\n    weight: 2\n"
    file.write_text(f"model:\n  name: a/b\ndata:\n  train:\n{sources}")
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert f"{file}, line 5: data.train[0].path: there is no gone.jsonl" in str(caught.value)
    assert f"{file}, line 7: data.train[2].path: there is no gone.csv" in str(caught.value)


def test_the_same_file_by_two_names_is_refused(folder):
    with pytest.raises(RecipeError, match=r"data\.train names \./a\.jsonl twice\n  to do: name it once"):
        from_dict(recipe([{"path": "a.jsonl"}, {"path": "./a.jsonl"}]))
    with pytest.raises(RecipeError, match=r"data\.train\[1\]\.path names .*a\.jsonl, which stands in the list already"):
        from_dict(recipe([{"path": "a.jsonl"}, {"path": str(folder / "a.jsonl")}]))
    both = [{"path": "a.jsonl"}, {"path": str(folder / "a.jsonl"), "format": "text"}]
    assert len(from_dict(recipe(both)).recipe.data.sources) == 2


def test_a_name_on_the_command_line_replaces_the_list(folder):
    listed = recipe([{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 3}])
    resolved = from_dict(listed, ["data.train=b.jsonl"])
    assert resolved.recipe.data.train == str(folder / "b.jsonl")
    assert resolved.provenance["data.train"] == "command line"
    again = from_dict(SMALLEST, ["data.train=[{path: a.jsonl}, {path: b.jsonl, weight: 3}]"])
    assert again.recipe.data.train == from_dict(listed).recipe.data.train


def test_a_mixture_that_is_written_reads_back_as_the_same_recipe(folder):
    train = [
        {"path": "a.jsonl", "format": {"prompt": "{{ q }}", "answer": "{{ a }}"}, "weight": 1.5},
        {"path": "b.jsonl", "message_keys": {"role": "from"}, "roles": {"narrator": "system"}},
    ]
    resolved = from_dict(recipe(train, learn=["user", "assistant"], learn_ends="last"))
    file = folder / "written.yaml"
    file.write_text(resolved.yaml)
    assert load(file).recipe.data == resolved.recipe.data
    assert from_dict(resolved.recipe.explicit()).recipe.data == resolved.recipe.data


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"train": [{"path": "a.jsonl", "wieght": 2}]}, r"data\.train\[0\]\.wieght is not a setting of train\[0\]"),
        ({"train": [{"path": "a.jsonl", "wieght": 2}]}, "did you mean: weight"),
        ({"train": [{"path": "a.jsonl", "format": {"pormpt": "x"}}]}, r"data\.train\[0\]\.format\.pormpt is not"),
        ({"train": [{"path": "a.jsonl", "format": "alpacca"}]}, "did you mean: alpaca"),
        ({"train": [{"path": "a.jsonl", "weight": 0}]}, r"data\.train\[0\]\.weight cannot be 0\n  expected: a number"),
        ({"train": [{"weight": 2}]}, r"data\.train\[0\]\.path is missing"),
        ({"train": ["a.jsonl"]}, r"data\.train\[0\] cannot be \"a\.jsonl\"\n  expected: a mapping with path"),
        ({"train": []}, r"data\.train cannot be \[\]"),
        ({"learn": ["asistant"]}, r"(?s)data\.learn\[0\] cannot be \"asistant\".*did you mean: assistant"),
        ({"learn": "everythin"}, r"(?s)data\.learn cannot be \"everythin\".*did you mean: everything"),
        ({"learn": []}, r"data\.learn names no role"),
        ({"learn_ends": "lst"}, r"(?s)data\.learn_ends cannot be \"lst\".*did you mean: last"),
        (
            {"learn": "everything", "learn_ends": "none"},
            r"data\.learn_ends is none beside learn: everything, which learns every end token\n  to do: take one",
        ),
        ({"message_keys": {"rol": "from"}}, r"(?s)data\.message_keys\.rol is not .*did you mean: role"),
        ({"train": [{"path": "a.jsonl", "message_keys": {"rol": "from"}}]}, r"data\.train\[0\]\.message_keys\.rol"),
        ({"roles": {"narrator": "sytem"}}, r"(?s)data\.roles\.narrator cannot be \"sytem\".*did you mean: system"),
        ({"roles": {"narrator": "teacher"}}, "expected: system, user, assistant or tool"),
    ],
)
def test_what_is_refused_and_how(folder, keys, said):
    with pytest.raises(RecipeError, match=said) as caught:
        from_dict({**SMALLEST, "data": {"train": "a.jsonl", **keys}})
    assert "problems" not in str(caught.value)
