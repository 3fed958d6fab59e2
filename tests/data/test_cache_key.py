"""Everything that changes a token of prepared rows, or what is said of them, changes the name they are kept by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
from every_kind import ROWS, TEXT, TOKENIZER, lines

from tunesmith.data.cache import cache_key, kept
from tunesmith.data.settings import DataSettings


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {"pairs": lines(tmp_path_factory.mktemp("rows") / "pairs.jsonl", ROWS["pairs"])}


OTHERWISE = {
    "train": None,  # its content: below
    "split": "other",
    "subset": "other",
    "format": "prompt-completion",
    "columns": {"prompt": "completion", "completion": "prompt"},
    "message_keys": {"content": "said"},
    "roles": {"asker": "user"},
    "learn": "everything",
    "learn_ends": "last",
    "held_out": 3,
    "max_length": 30,
    "overlong": "truncate",
    "system_turn": "into-user",
    "limit": 5,
    "shuffle": False,
    "group_by": "topic",
}


def name_of(said, tokenizer=TOKENIZER, *, seed=0, most_tokens=None, made_for=None, takes=TEXT, replaced=None):
    task = kept.Task.of(said, seed, most_tokens, made_for, takes, replaced)
    worded = kept.renderers(tokenizer, said, said.templates, replaced)
    return cache_key.key_of(task, worded, cache_key.contents(said))


def test_every_setting_is_in_the_name(files):
    assert set(OTHERWISE) == set(DataSettings.model_fields)
    base = DataSettings(train=files["pairs"])
    names = [name_of(base)]
    names += [name_of(base.model_copy(update={key: value})) for key, value in OTHERWISE.items() if value is not None]
    names += [name_of(DataSettings(train=files["pairs"], max_length=40))]  # the model's own limit is said otherwise
    names += [
        name_of(base, seed=1),
        name_of(base, most_tokens=40),
        name_of(base, made_for=40),
        name_of(base, takes=TEXT[:1]),
        name_of(base, replaced=tiny.LLAMA2),
    ]
    names += [name_of(DataSettings(train=({"path": files["pairs"], "weight": weight},))) for weight in (1, 2)]
    assert len(set(names)) == len(names)
    assert name_of(base) == name_of(base.model_copy(), tiny.byte_level(tiny.CHATML)) == names[0]


def test_the_content_of_every_source_is_in_the_name(files, tmp_path):
    path, other = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    folder = tmp_path / "folder"
    folder.mkdir()
    for said, different in (
        (DataSettings(train=str(path), held_out=str(other)), 3),
        (DataSettings(train=str(folder), held_out=f"{folder}:train"), 4),
        (DataSettings(train=({"path": str(path)}, {"path": str(other)})), 3),
    ):
        names = []
        for file in (path, other, folder / "a.jsonl", folder / "b.jsonl"):
            file.write_text('{"text": "one"}\n')
            os.utime(file, ns=(1, 1))
        names.append(name_of(said))
        for file in (path, other, folder / "a.jsonl", folder / "b.jsonl"):
            file.write_text('{"text": "two"}\n')  # as long as before, and of the same time
            os.utime(file, ns=(1, 1))
            names.append(name_of(said))
        (folder / "b.jsonl").rename(folder / "c.jsonl")
        names.append(name_of(said))
        assert len(set(names)) == different


def test_of_a_folder_only_what_is_read_is_in_the_name(tmp_path):
    said = DataSettings(train=str(tmp_path))
    (tmp_path / ".hidden").mkdir()
    names = []
    for name in ("train.jsonl", "test.jsonl", "notes.md", ".hidden/train.jsonl", "train.csv"):
        (tmp_path / name).write_text('{"text": "one"}\n')
        names.append(name_of(said))
    assert names[0] == names[1] == names[2] == names[3] != names[4]


def test_the_tokenizer_is_in_the_name(files):
    said = DataSettings(train=files["pairs"])
    added, special, ending = (tiny.byte_level(tiny.CHATML) for _ in range(3))
    added.add_tokens(["brown"])
    special.add_special_tokens({"bos_token": "<|end|>"})
    ending.add_tokens(["brown"], special_tokens=True)
    others = [tiny.byte_level(tiny.LLAMA2), tiny.word_mark(tiny.CHATML), tiny.byte_level(tiny.CHATML, adds_bos=True)]
    names = [name_of(said, one) for one in (TOKENIZER, added, special, ending, *others)]
    assert len(set(names)) == len(names)


def test_our_code_and_the_versions_of_others_are_in_the_name(files, tmp_path, monkeypatch):
    said = DataSettings(train=files["pairs"])
    names = [name_of(said)]
    for package in cache_key.PACKAGES:
        with monkeypatch.context() as patched:
            found = cache_key.versions(cache_key.PACKAGES)
            patched.setattr(cache_key, "versions", lambda _, found=found, package=package: found | {package: "0"})
            names.append(name_of(said))
    data = Path(cache_key.__file__).parents[1]
    for path in data.rglob("*.py"):
        copy = tmp_path / path.relative_to(data)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert cache_key.code_of(tmp_path) == cache_key.CODE
    mask = tmp_path / "masking" / "mask.py"
    assert mask.exists()
    mask.write_text("# another mask\n")
    monkeypatch.setattr(cache_key, "CODE", cache_key.code_of(tmp_path))
    names.append(name_of(said))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if strftime_now is defined %}{{ strftime_now ( '%Y' ) }}{% endif %}",
        "{% set f = strftime_now %}{{ f('%d') }}",
        "{{ strftime_now('%d' ~ '%Y') }}",
        "{{ strftime_now(format='%Y') }}",
        "{% set form = '%Y' %}{{ strftime_now(form) }}",
        "{{ {'f': strftime_now}['f']('%Y') }}",
    ],
)
def test_a_template_that_writes_the_date_is_another_on_another_day(files, monkeypatch, template):
    tokenizer = tiny.byte_level(template + tiny.CHATML)
    said = DataSettings(train=files["pairs"])

    class Tomorrow(cache_key.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 2, 3)

    today = name_of(said, tokenizer), name_of(said)
    monkeypatch.setattr(cache_key, "datetime", Tomorrow)
    assert name_of(said, tokenizer) != today[0]
    assert name_of(said) == today[1]


def test_only_a_date_that_is_written_by_calls_alone_is_the_same_all_day(files):
    said = DataSettings(train=files["pairs"])
    for template, is_same in (
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", True),
        ("{{ strftime_now('%Y') }}{% set f = strftime_now %}{{ f('%S') }}", False),
    ):
        tokenizer = tiny.byte_level(template + tiny.CHATML)
        assert (name_of(said, tokenizer) == name_of(said, tokenizer)) == is_same
