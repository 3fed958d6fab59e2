"""Rows that are kept are those that would be prepared: laid flat, taken from a folder, and never of anything else."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
from datasets import Dataset
from every_kind import PAIRS, ROWS, TAKES, TEXT, TOKENIZER, lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.cache import kept, large
from tunesmith.data.cache.kept import HEADER, prepare_once
from tunesmith.data.cache.laid import LAID
from tunesmith.data.check.findings import findings
from tunesmith.data.check.report import as_json
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import (
    Answer,
    Asked,
    Classified,
    Example,
)
from tunesmith.errors import TunesmithError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    made = {name: lines(folder / f"{name}.jsonl", rows) for name, rows in ROWS.items()}
    made["packed"] = str(folder / "packed.jsonl.gz")
    Path(made["packed"]).write_bytes(gzip.compress(Path(made["pairs"]).read_bytes()))
    made["marked"] = str(folder / "marked.jsonl")
    Path(made["marked"]).write_bytes(b"\xef\xbb\xbf\n\n" + Path(made["pairs"]).read_bytes().replace(b"\n", b"\r\n\n"))
    made["table"] = str(folder / "table.csv")
    with Path(made["table"]).open("w", newline="") as file:
        table = csv.DictWriter(file, ROWS["pairs"][0])
        table.writeheader()
        table.writerows(ROWS["pairs"])
    for name, between in (("lines", "\n"), ("paragraphs", "\n\n \r\n")):
        made[name] = str(folder / f"{name}.txt")
        Path(made[name]).write_bytes(between.join(f"the {i}. fox\u2028jumps" for i in range(19)).encode())
    made["list"] = str(folder / "list.json")
    Path(made["list"]).write_text(json.dumps(ROWS["pairs"]))
    for name in ("pairs", "talks"):
        rows = Dataset.from_list(ROWS[name])
        rows.to_parquet(folder / f"{name}.parquet")
        rows.save_to_disk(folder / f"saved-{name}")
        made |= {f"{name}.parquet": str(folder / f"{name}.parquet"), f"saved-{name}": str(folder / f"saved-{name}")}
    many = folder / "many"
    many.mkdir()
    for name in ("train-1", "train-2", "test"):
        lines(many / f"{name}.jsonl", [{**row, "of": name} for row in ROWS["pairs"][:7]])
    mixed = folder / "mixed"
    mixed.mkdir()
    Path(made["table"]).rename(mixed / "a.csv")
    (mixed / "b.jsonl").symlink_to(made["pairs"])
    (mixed / "c.json").symlink_to(made["list"])
    made["table"] = str(mixed / "a.csv")
    return made | {"folder": str(many), "mixed": str(mixed)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Everything is large here, and comes in pieces of a few rows."""
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)
    monkeypatch.setattr(large, "PIECE", 4)


def fields(example: Example):
    kind = next((of for of in (Answer, Classified, Asked) if isinstance(example, of)), Example)
    rest = [getattr(example, name) for name in kind.__dataclass_fields__ if name not in ("token_ids", "loss_weights")]
    arrays = (example.token_ids, example.loss_weights)
    return kind, [(array.dtype, array.tobytes()) for array in arrays], rest, len(example), example.num_learned


def everything(prepared: Prepared):
    """All that a preparation says, in the order in which it says it."""
    return {
        "train": [fields(example) for example in prepared.train],
        "held out": [fields(example) for example in prepared.held_out],
        "copies": [next(i for i, one in enumerate(prepared.train) if one is example) for example in prepared.train],
        "meanings": list(prepared.held_out_rows),
        "counts": [prepared.counts, prepared.held_out_counts, prepared.sources],
        "shapes": [(path, list(shapes.items())) for path, shapes in prepared.shapes.items()],
        "told": (prepared.format, prepared.notes, prepared.fingerprint),
        "findings": findings(prepared),
        "report": json.dumps(as_json(prepared)),
    }


def kept_alike(root, said, tokenizer=TOKENIZER, *, seed=0, is_kept=True, reads_whole=False, **other):
    """Prepared as ever, for the first time and again: all of it is the same, or the same error."""
    whole, error = None, None
    try:
        whole = everything(prepare(said, tokenizer, seed=seed, **other))
    except TunesmithError as raised:
        error = raised
    if error is not None:
        with pytest.MonkeyPatch.context() as patched:
            if not reads_whole:
                patched.setattr(kept, "prepare", lambda *_, **__: pytest.fail("read whole"))
            with pytest.raises(type(error)) as told:
                prepare_once(said, tokenizer, seed=seed, root=root, say=pytest.fail, **other)
        assert str(told.value) == str(error)
        return None
    for is_there in (False, True):
        heard = []
        found = prepare_once(said, tokenizer, seed=seed, root=root, say=heard.append, **other)
        assert everything(found) == whole
        assert [line.split(":")[0] for line in heard] == ["rows as prepared before"] * (is_there and is_kept)
        assert all(type(example) in LAID.values() for example in found.train) == is_kept
    return found


@pytest.mark.parametrize(
    "name",
    [
        *ROWS,
        *("packed", "marked", "list", "pairs.parquet", "talks.parquet", "saved-pairs", "folder"),
        *("table", "lines", "paragraphs", "mixed"),
    ],
)
@pytest.mark.parametrize("held_out", [None, 3, {"key": "topic"}])
def test_rows_of_every_kind_are_kept_as_they_are(files, tmp_path, name, held_out):
    held_out = 4 if name in ("lines", "paragraphs") and isinstance(held_out, dict) else held_out
    said = DataSettings(train=files[name], held_out=held_out, limit=30 if name == "mixed" and held_out else None)
    kept_alike(tmp_path, said, takes=TAKES.get(name, TEXT), is_kept=name != "asked")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_are_the_same_whatever_is_said_of_them(files, tmp_path_factory, data):
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    name = pick("pairs", "talks", "alpaca", "texts", "segments", "choices")
    keys = {
        "held_out": pick(None, 0.2, 2, {"key": "topic"}, files[name]),
        "learn": pick("answers", "everything", "completions", ("user", "assistant")),
        "learn_ends": pick("turn", "turn", "last", "none", "all"),
        "max_length": pick(2048, 40, 25),
        "overlong": pick("drop", "truncate", "split", "error"),
        "system_turn": pick("keep", "into-user"),
        "limit": pick(None, 5),
        "group_by": pick(None, "topic"),
    }
    try:
        said = DataSettings(train=files[name], **keys)
    except ValueError:
        return
    template = pick(tiny.CHATML, tiny.LLAMA2, tiny.NO_SYSTEM, tiny.NEVER_ENDS, tiny.DROPS_SYSTEM)
    tokenizer = pick(tiny.byte_level, tiny.word_mark)(template, adds_bos=pick(True, False))
    kept_alike(
        tmp_path_factory.mktemp("cache"),
        said,
        tokenizer,
        seed=pick(0, 1),
        takes=TAKES.get(name, TEXT),
        made_for=pick(None, 20),
        most_tokens=pick(None, 60),
    )


@pytest.mark.parametrize("held_out", [None, 0.2, {"key": "topic"}])
@pytest.mark.parametrize("weight", [1, 2.5])
def test_several_sources(files, tmp_path, held_out, weight):
    sources = (
        {"path": files["pairs"], "weight": weight},
        {"path": files["talks"], "template": tiny.NEVER_ENDS},
        {"path": files["list"], "format": {"prompt": "{{ prompt }}", "answer": "{{ completion }}."}, "weight": 0.5},
        {"path": files["saved-pairs"], "columns": {"prompt": "completion", "completion": "prompt"}, "limit": 9},
    )
    found = kept_alike(tmp_path, DataSettings(train=sources, held_out=held_out))
    assert len(found.sources) == 4


@pytest.mark.parametrize("learn", ["answers", "everything"])
def test_what_a_template_changes_is_said_alike(files, tmp_path, learn):
    sources = [
        {"path": files["talks"], "template": tiny.NEVER_ENDS},
        {"path": files["talks"], "template": tiny.LLAMA2, "limit": 5},
    ]
    dated = "{{ strftime_now('%H:%M:%S:%f') }}" + tiny.LLAMA2
    found = kept_alike(tmp_path, DataSettings(train=sources, held_out=2, learn=learn), replaced=dated)
    for place in (0, 1):
        assert any(note.startswith(f"data.train[{place}].template words ") for note in found.notes)


def turn(role, **more):
    return {"role": role, "content": "a word", **more}


MIXED = {
    "columns": [{"text": "a"}, {"text": "b", "labels": 1}, *[{"text": "c", "messages": None, "b": 1, "a": 2}] * 9],
    "format begins otherwise": [{"text": "a"}] * 4 + [{"prompt": "a", "completion": "b"}] * 9,
    "format of most": [{"input": "a", "output": "b"}] * 4 + [{"instruction": "c", "input": "a", "output": "b"}] * 9,
    "keys of messages": [{"messages": [turn("user", **{key: 1}), turn("assistant")]} for key in "yxz"] * 3,
    "passed over": [{"prompt": "p", "question": "q" * (i > 5), "chosen": "a", "rejected": "b"} for i in range(12)],
    "broken": [{"text": "a"}] * 6 + [{"text": 3}, {"txt": "b"}] * 3,
    "no text": [{"text": " "}] * 9,
    "text repeats": [{"instruction": f"do {i}", "output": "b", "text": f"> do {i} < b"} for i in range(12)],
    "text repeats but once": [{"instruction": f"do {i}", "output": "b", "text": f"do {i % 9} b"} for i in range(12)],
}  # fmt: skip


@pytest.mark.parametrize("held_out", [None, 2])
@pytest.mark.parametrize("name", MIXED)
def test_what_is_said_of_all_rows_is_said_of_those_in_pieces(tmp_path, name, held_out):
    path = lines(tmp_path / "rows.jsonl", MIXED[name])
    takes = PAIRS if name == "passed over" else TEXT
    kept_alike(
        tmp_path / "cache", DataSettings(train=path, held_out=held_out), takes=takes, is_kept="otherwise" not in name
    )


BROKEN = {
    **{
        f"a.jsonl {bad[:9]}": (f"{{}}{bad}\n{{}}{bad}\n{{}}", '{"text": "some words"}\n' * 9)
        for bad in (
            "{",
            "[1]",
            '{"text": NaN}',
            '{"text": "a", "text": "b"}',
            '{"text": "\\ud800"}',
            "\x00",
            '{"txt": ""}',
        )
    },
    "a.jsonl blank": ("\n\n", ""),
    "a.csv a field too many": ("text,topic\n{}1,2,3\n{}4\n{}", "some words,1\n" * 9),
    "a.csv a quote": ('text\n{}"x"y\n{}', "some words\n" * 9),
    "a.csv a quote that stays open": ('text\n{}"x\n{}', "some words\n" * 9),
    "a.csv a first column that is no index": (",text\n0,a\n{}", "7,some words\n" * 9),
    "a.csv no column that any format has": ("word,other\n{}", "some,words\n" * 9),
    "a.txt no UTF-8": ("{}\udcff\n{}\n\udcfe{}", "some words\n" * 9),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_as_ever_and_not_read_whole(tmp_path, name, packed):
    form, rows = BROKEN[name]
    content = form.replace("{}", rows).encode(errors="surrogateescape")
    path = tmp_path / (name.split()[0] + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert kept_alike(tmp_path / "cache", DataSettings(train=str(path))) is None


def test_what_a_csv_s_index_and_names_of_roles_have_said_of_them_is_said_of_pieces_too(files, tmp_path):
    (tmp_path / "a.csv").write_text(",text\n" + "".join(f"{i},word {i}\n" for i in range(12)))
    found = kept_alike(tmp_path / "cache", DataSettings(train=str(tmp_path / "a.csv"), held_out=2))
    assert "numbers the rows" in " ".join(found.notes)
    for named, is_said in (("bard", True), ("user", False)):
        said = DataSettings(train=files["talks"], roles={named: "user"}, held_out=2)
        notes = " ".join(kept_alike(tmp_path / "cache", said).notes)
        assert (f"data.roles names {named}, which no message has" in notes) is is_said


def test_what_is_wrong_is_told_in_the_order_of_the_way(files, tmp_path):
    """Reading before parting before meaning before words, whatever the order of the rows."""
    words = [{"text": "some words", "topic": i % 2} for i in range(9)]
    broken = {
        "no column": lines(tmp_path / "no_column.jsonl", [*words, {"txt": "b", "topic": 1}, {"text": 3, "topic": 1}]),
        "no topic": lines(tmp_path / "no_topic.jsonl", [*words, {"text": 3}, *words, {"text": "a"}]),
        "too long": lines(tmp_path / "long.jsonl", [*words, {"text": "a" * 99, "topic": 1}] * 3),
    }
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9])
    cache, by_key, folder = tmp_path / "cache", {"key": "topic"}, tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text("text,topic\n" + "word,1\n" * 9 + "word\n")
    both = ({"path": broken["no column"]}, {"path": broken["too long"]})
    for said in (
        *(DataSettings(train=path, overlong="error", max_length=40) for path in broken.values()),
        *(DataSettings(train=path, held_out=by_key) for path in broken.values() if path != broken["too long"]),
        *(DataSettings(train=path, columns={"text": "txt"}) for path in broken.values()),
        DataSettings(train=broken["too long"], group_by="none"),
        DataSettings(train=broken["too long"], overlong="error", max_length=40, held_out=by_key),
        DataSettings(train=broken["too long"], overlong="error", max_length=40, held_out=broken["no column"]),
        DataSettings(train=both, overlong="error", max_length=40),
        DataSettings(train=({"path": str(folder)}, *both), overlong="error", max_length=40),
        DataSettings(train=str(folder)),
        DataSettings(train=str(tmp_path / "cut.jsonl.gz")),
        DataSettings(train=files["talks"], message_keys={"content": "said"}),
        DataSettings(train=broken["too long"], max_length=3),
    ):
        assert kept_alike(cache, said) is None
    missing = ({"path": str(tmp_path / "none.jsonl")}, *both)
    for said in (DataSettings(train=str(tmp_path / "none.jsonl")), DataSettings(train=missing)):
        assert kept_alike(cache, said, reads_whole=True) is None


def test_a_hub_data_set_is_known_by_its_fingerprint(tmp_path, monkeypatch):
    """The hub is not reached from here: `datasets` gives rows of ours in its place."""
    there = {"owner/one": Dataset.from_list(ROWS["pairs"]), "owner/two": Dataset.from_list(ROWS["pairs"][1:])}

    def load(name, *_, **__):
        if name not in there:
            raise ConnectionError("offline")
        return there[name]

    monkeypatch.setattr("tunesmith.data.reading.hub.hub_answers", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load)
    for name in there:
        kept_alike(tmp_path, DataSettings(train=name, subset="some", held_out=2))
    assert len(list(tmp_path.iterdir())) == 2
    there["owner/one"] = there["owner/two"]
    kept_alike(tmp_path, DataSettings(train="owner/one", subset="some", held_out=2))
    assert kept_alike(tmp_path, DataSettings(train="owner/none"), reads_whole=True) is None


# --- the folder ----------------------------------------------------------------------------------------------------


def once(root, path, **keys):
    heard = []
    return prepare_once(DataSettings(train=path, **keys), TOKENIZER, seed=0, root=root, say=heard.append), heard


def test_findings_are_looked_for_once(tmp_path, monkeypatch):
    path = lines(tmp_path / "rows.jsonl", ROWS["pairs"] * 2)
    found = findings(once(tmp_path / "cache", path)[0])
    monkeypatch.setattr("tunesmith.data.check.findings._Walk.look", lambda *_: pytest.fail("looked for again"))
    again, heard = once(tmp_path / "cache", path)
    assert heard
    assert found
    assert findings(again) == found


def harm(path, how):
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1])
    else:
        at = max((i for i, byte in enumerate(content) if chr(byte).isdigit()), default=0)  # of JSON, another number
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_damaged_folder_is_made_anew(files, tmp_path, how):
    keys = {"learn": ("user", "assistant"), "held_out": 3, "group_by": "topic"}
    right = everything(once(tmp_path, files["talks"], **keys)[0])
    (folder,) = tmp_path.iterdir()
    harmed = [file for file in folder.iterdir() if file.stat().st_size > 1]
    assert len(harmed) == len(list(folder.iterdir()))
    assert harmed
    for file in harmed:
        harm(file, how)
        found, heard = once(tmp_path, files["talks"], **keys)
        assert not heard, file.name
        assert everything(found) == right
        found, heard = once(tmp_path, files["talks"], **keys)
        assert everything(found) == right
        assert heard
    assert list(tmp_path.iterdir()) == [folder]


def test_what_dies_on_the_way_leaves_nothing_that_is_read(files, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kept, "joined", dies)
        with pytest.raises(KeyboardInterrupt):
            once(tmp_path, files["pairs"])
    assert not list(tmp_path.iterdir())
    left = tmp_path / ".left.behind"
    left.mkdir()
    once(tmp_path, files["pairs"])
    assert left.exists()
    os.utime(left, (1, 1))
    once(tmp_path, files["texts"])
    assert not left.exists()


def test_rows_of_a_file_that_changes_meanwhile_are_not_kept(tmp_path, monkeypatch):
    path, lay = tmp_path / "rows.jsonl", kept.lay
    lines(path, ROWS["pairs"])

    def changing(*given):
        laid = lay(*given)
        lines(path, ROWS["pairs"][:-1])
        return laid

    monkeypatch.setattr(kept, "lay", changing)
    found, _ = once(tmp_path / "cache", str(path))
    assert found.counts.read == 23
    assert [len(example.token_ids) for example in found.train]
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_said(files, tmp_path):
    (tmp_path / "file").write_text("")
    found, heard = once(tmp_path / "file", files["pairs"])
    assert found.counts.read == 23
    assert "cannot be kept" in heard[0]


def test_old_folders_go(files, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MOST_FOLDERS", 2)
    folders = {}
    for age, name in enumerate(("pairs", "talks"), start=1):
        once(tmp_path, files[name])
        (folders[name],) = set(tmp_path.iterdir()) - set(folders.values())
        os.utime(folders[name] / HEADER, (age, age))
    assert once(tmp_path, files["pairs"])[1]  # used again, and so the younger one
    once(tmp_path, files["texts"])
    assert folders["pairs"].exists()
    assert not folders["talks"].exists()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(kept, "MOST_BYTES", 1)
    once(tmp_path, files["alpaca"])
    assert len(list(tmp_path.iterdir())) == 1


def test_two_processes_that_make_the_same_folder(files, tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tiny_tokenizers as tiny; from pathlib import Path\n"
        "from tunesmith.data.cache import kept; from tunesmith.data.settings import DataSettings\n"
        "kept.LEAST_BYTES = 0; tokenizer = tiny.byte_level(tiny.CHATML); print('ready', flush=True); input()\n"
        "said = DataSettings(train=sys.argv[2])\n"
        "made = kept.prepare_once(said, tokenizer, seed=0, root=Path(sys.argv[3]), say=lambda line: None)\n"
        "print(made.fingerprint, sum(int(row.token_ids.sum()) for row in made.train))"
    )
    many = lines(tmp_path / "many.jsonl", ROWS["pairs"] * 20)
    call = [sys.executable, "-c", script, str(Path(__file__).parent), many, str(tmp_path / "cache")]
    running = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1
    assert all(process.returncode == 0 for process in running)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert once(tmp_path / "cache", many)[1]


def test_small_files_and_rows_from_python_are_not_kept(files, tmp_path, monkeypatch):
    rows = [{"text": "some words"}] * 3
    said = DataSettings(train="rows")
    prepare_once(said, TOKENIZER, seed=0, root=tmp_path, say=pytest.fail, rows=rows)
    monkeypatch.setattr(kept, "LEAST_BYTES", 1 << 20)
    assert type(once(tmp_path, files["pairs"])[0].train[0]) is Example
    assert not list(tmp_path.iterdir())
