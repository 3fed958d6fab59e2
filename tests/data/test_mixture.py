"""Several sources (`data.train` as a list): read each in its own way, held out before they are weighed."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.data.check.counts import KINDS
from tunesmith.data.check.report import as_json, print_report, summary
from tunesmith.data.mixture import part_rows, read_parts
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings, HeldOut, SourceSettings, TemplateFormat
from tunesmith.data.types import Conversation, Judged, Labelled, Preference, Prompt
from tunesmith.errors import DataError
from tunesmith.questions import questions

TOKENIZER = tiny.byte_level(tiny.CHATML)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    made = {
        "pairs": [{"prompt": f"question {i}", "completion": f"answer {i}", "topic": i % 3} for i in range(12)],
        "talks": [
            {
                "conversations": [{"from": "asker", "value": f"talk {i}"}, {"from": "gpt", "value": f"reply {i}"}],
                "topic": i % 3,
            }
            for i in range(8)
        ],
        "texts": [{"text": f"plain {i}", "topic": i % 3} for i in range(5)],
        "columns": [{"q": f"ask {i}", "a": f"tell {i}", "topic": i % 3} for i in range(6)],
    }
    return {name: lines(folder / f"{name}.jsonl", rows) for name, rows in made.items()}


@pytest.fixture(scope="module")
def sources(files):
    return (
        {"path": files["pairs"]},
        {"path": files["talks"], "roles": {"asker": "user"}},
        {"path": files["texts"]},
        {"path": files["columns"], "format": {"prompt": "{{ q }}", "answer": "{{ a }}"}},
    )


def made(train, *, seed=0, takes=None, **keys):
    more = {} if takes is None else {"takes": takes}
    return prepare(DataSettings(train=train, **keys), TOKENIZER, seed=seed, **more)


def places(examples):
    return [(example.origin.source, example.origin.row) for example in examples]


def shown(prepared):
    return [(example.token_ids.tolist(), example.loss_weights.tolist()) for example in prepared.train]


def test_a_mixture_is_its_sources_one_after_the_other(sources):
    alone = [made([source]) for source in sources]
    mixed = made(sources)
    assert shown(mixed) == [row for one in alone for row in shown(one)]
    assert places(mixed.train) == [place for one in alone for place in places(one.train)]
    assert mixed.format == "prompt-completion and messages and text and template"
    assert mixed.fingerprint == made(sources).fingerprint
    assert mixed.fingerprint != made(sources[::-1]).fingerprint


def test_one_source_is_what_its_name_alone_is(files):
    for keys in ({}, {"held_out": 0.3}, {"held_out": {"key": "topic"}}, {"limit": 5}, {"held_out": files["texts"]}):
        named, listed = made(files["pairs"], **keys), made([{"path": files["pairs"]}], **keys)
        assert named.fingerprint == listed.fingerprint
        assert summary(named) == summary(listed)
        assert as_json(named) == as_json(listed)
    said = made(files["columns"], format={"prompt": "{{ q }}", "answer": "{{ a }}"}, limit=4)
    of_source = {"path": files["columns"], "format": {"prompt": "{{ q }}", "answer": "{{ a }}"}, "limit": 4}
    assert made([of_source]).fingerprint == said.fingerprint


def test_a_source_says_otherwise_what_it_says_and_else_is_as_the_section(files):
    columns = {"prompt": "q", "completion": "a"}
    train = [
        {"path": files["columns"], "columns": columns, "format": "prompt-completion"},
        {"path": files["talks"], "roles": {"asker": "user"}, "limit": 3},
    ]
    mixed = made(train, format="messages", limit=2)
    assert [one.train.read for one in mixed.sources] == [2, 3]
    assert [one.format for one in mixed.sources] == ["prompt-completion", "messages"]
    section = DataSettings(train=train, columns={"text": "body"}, split="test", max_length=77)
    assert [one.columns for one in section.sources] == [columns, {"text": "body"}]
    assert {(one.split, one.max_length) for one in section.sources} == {("test", 77)}
    assert section.of_other_files is section
    alone = section.model_copy(update={"train": section.train[:1]})
    assert (alone.of_other_files.columns, alone.of_other_files.format) == (columns, "prompt-completion")


@pytest.mark.parametrize(("weight", "count"), [(1, 12), (2, 24), (0.5, 6), (1.5, 18), (3.25, 39), (0.1, 1)])
def test_a_weight_says_how_often_rows_come_in_a_pass(files, weight, count):
    train = [{"path": files["pairs"], "weight": weight}, {"path": files["talks"], "roles": {"asker": "user"}}]
    mixed = made(train, seed=3)
    times = Counter(place for place in places(mixed.train) if place[0] == files["pairs"])
    assert times.total() == count
    assert set(times.values()) <= {int(weight), int(weight) + 1}
    assert (len(times) == 12) == (weight >= 1)
    assert len(mixed.train) == count + 8
    assert mixed.fingerprint == made(train, seed=3).fingerprint
    [pairs, talks] = mixed.sources
    assert (pairs.train.read, pairs.train.kept, pairs.train.visited) == (12, 12, count)
    assert (talks.train.kept, talks.train.visited) == (8, 8)
    assert mixed.counts.visited == len(mixed.train)
    assert mixed.counts.kept == 20
    assert mixed.counts.tokens == sum(map(len, mixed.train))
    assert mixed.counts.learned == sum(example.num_learned for example in mixed.train)
    drawn = {tuple(sorted(Counter(places(made(train, seed=seed).train)).items())) for seed in range(8)}
    assert (len(drawn) > 1) == (weight != int(weight))


def test_the_sides_of_a_pair_and_the_pieces_of_a_text_stay_together(tmp_path):
    rows = [{"prompt": f"q {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(6)]
    path = lines(tmp_path / "pairs.jsonl", rows)
    other = lines(tmp_path / "more.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    mixed = made([{"path": path, "weight": 1.5}, {"path": other}], takes=(Preference,))
    assert [example.side for example in mixed.train] == ["chosen", "rejected"] * 10
    assert all(a.origin == b.origin for a, b in zip(mixed.train[::2], mixed.train[1::2], strict=True))
    assert (mixed.counts.kept, mixed.counts.visited) == (7, 10)
    long = lines(tmp_path / "long.jsonl", [{"text": f"{i} " + "word " * 30} for i in range(4)])
    cut = made([{"path": long, "weight": 0.5}], overlong="split", max_length=20)
    whole = made(long, overlong="split", max_length=20)
    kept = dict.fromkeys(places(cut.train))
    assert len(kept) == 2
    assert places(cut.train) == [place for place in places(whole.train) if place in kept]
    assert cut.counts.visited == len(cut.train)


@pytest.mark.parametrize("takes", [(Prompt,), (Labelled,), (Judged,)])
def test_every_kind_of_row_is_weighed(tmp_path, takes):
    row = {
        Prompt: {"prompt": "q"},
        Labelled: {"text": "t", "label": "a"},
        Judged: {"prompt": "q", "completion": "c", "label": True},
    }[takes[0]]
    path = lines(tmp_path / "rows.jsonl", [row] * 4)
    mixed = made([{"path": path, "weight": 2.5}], takes=takes)
    assert (len(mixed.train), mixed.counts.kept, mixed.counts.visited) == (10, 4, 10)


@settings(deadline=None, max_examples=25)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.5, 3.0]), min_size=3, max_size=3),
    held_out=st.one_of(st.integers(1, 20), st.floats(0.05, 0.9), st.just(HeldOut(key="topic"))),
    seed=st.integers(0, 5),
)
def test_no_row_is_on_both_sides_and_held_out_rows_come_once_whatever_the_weights(sources, weights, held_out, seed):
    train = [{**source, "weight": weight} for source, weight in zip(sources, weights, strict=False)]
    section = DataSettings(train=train, held_out=held_out)
    try:
        mixed = prepare(section, TOKENIZER, seed=seed)
    except DataError as error:
        assume("weight leaves no row" not in error.what)
        raise
    held, trained = places(mixed.held_out), places(mixed.train)
    assert held
    assert len(set(held)) == len(held)
    assert not set(held) & set(trained)
    assert mixed.held_out_counts["leaked"] == 0
    even = prepare(DataSettings(train=sources[:3], held_out=held_out), TOKENIZER, seed=seed)
    assert places(even.held_out) == held, "weights do not say what is held out"
    assert len(set(places(even.train)) | set(held)) == 25
    assert sum(one.held_out.kept for one in mixed.sources) == len(held)


def test_rows_are_held_out_of_all_sources_together(sources, files):
    section = DataSettings(train=sources, held_out=HeldOut(key="topic"))
    parts = read_parts(section)
    parted = part_rows(parts, section, seed=0)
    trained, held = ({row["topic"] for part in side for _, row in part.raw} for side in (parted.train, parted.held_out))
    assert not trained & held
    assert sum(len(part.raw) for part in parted.train + parted.held_out) == sum(len(part.raw) for part in parts) == 31
    of_a_file = DataSettings(train=sources, held_out=files["pairs"])
    parted = part_rows(read_parts(of_a_file), of_a_file, seed=0)
    assert parted.train == read_parts(of_a_file)
    assert [part.path for part in parted.held_out] == [of_a_file.named]
    assert made(sources, held_out=files["pairs"]).held_out_counts["leaked"] == 12


def test_a_source_whose_rows_are_all_held_out_is_no_error(tmp_path, files):
    other = lines(tmp_path / "other.jsonl", [{"prompt": f"p {i}", "completion": "c", "topic": "own"} for i in range(3)])
    for seed in range(12):
        train = [{"path": files["pairs"]}, {"path": other}]
        mixed = made(train, held_out={"key": "topic", "share": 0.2}, seed=seed)
        if mixed.sources[1].held_out.kept:
            assert mixed.sources[1].train.visited == 0
            assert mixed.sources[1].format == "prompt-completion"
            return
    pytest.fail("no seed holds the other file out")


def test_counts_of_the_sources_add_up_and_are_shown(files):
    long = {"path": files["pairs"], "weight": 2}
    mixed = made([long, {"path": files["talks"], "roles": {"asker": "user"}}], held_out=4)
    found = json.loads(json.dumps(as_json(mixed)))
    assert [one["path"] for one in found["sources"]] == [files["pairs"], files["talks"]]
    for name in ("read", "kept", "visited", "tokens", "learned", *KINDS):
        for side in ("train", "held_out"):
            assert sum(one[side][name] for one in found["sources"]) == found[side][name]
    out = io.StringIO()
    print_report(mixed, TOKENIZER, Console(file=out, width=200), rows=2)
    assert "by source" in out.getvalue()
    rows = [place for one in mixed.sources for place in places(mixed.train[one.first : one.first + 2])]
    assert [out.getvalue().count(f"{path}, row {row} · ") for path, row in rows] == [1] * 4
    assert out.getvalue().count(" tokens, ") == 4
    number = mixed.sources[0].train.visited
    share = mixed.sources[0].train.learned / mixed.counts.learned
    line = f"{files['pairs']}, prompt-completion: {number} rows a pass (weight 2), {share:.0%} of what is learned"
    assert line in summary(mixed)
    assert "sources" not in as_json(made(files["pairs"]))
    assert "by source" not in "\n".join(summary(made(files["pairs"])))


def test_what_is_noticed_of_a_source_is_said_with_its_name(sources):
    notes = [note for note in made(sources[:2]).notes if "not used" in note]
    assert notes == [f"{source['path']}: columns not used: topic" for source in sources[:2]]


def test_all_sources_that_cannot_be_read_are_told_at_once(tmp_path, files):
    gone = [{"path": str(tmp_path / f"gone{i}.jsonl")} for i in range(2)]
    with pytest.raises(DataError, match="2 problems") as caught:
        made([*gone, {"path": files["pairs"]}])
    assert all(source["path"] in str(caught.value) for source in gone)
    broken = [lines(tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": 3}]) for name in "ab"]
    with pytest.raises(DataError, match="2 problems") as caught:
        made([{"path": path} for path in broken])
    assert all(path in str(caught.value) for path in broken)
    pairs = lines(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match="these rows are pairs of a chosen and a rejected answer"):
        made([{"path": pairs, "format": "preference"}, {"path": files["texts"]}])


def test_a_source_that_gives_nothing_is_an_error_that_names_it(tmp_path, files):
    empty = lines(tmp_path / "empty.jsonl", [{"prompt": "q", "completion": ""}])
    with pytest.raises(DataError, match=rf"^{empty}: no row is left to train on"):
        made([{"path": files["pairs"]}, {"path": empty}])
    with pytest.raises(DataError, match=r"^data\.train\[1\]\.weight: its weight leaves no row") as caught:
        made([{"path": files["pairs"]}, {"path": files["texts"], "weight": 0.01}])
    assert caught.value.found == f"0.01 of 5 rows of {files['texts']}"


def test_the_same_file_twice_is_refused_unless_it_is_read_otherwise(files):
    path = files["columns"]
    forms = [TemplateFormat(prompt="{{ q }}", answer="{{ a }}"), TemplateFormat(prompt="{{ a }}", answer="{{ q }}")]
    for more in ({}, {"weight": 2}, {"limit": 1}, {"split": "train"}, {"format": "auto"}):
        with pytest.raises(ValueError, match=r"twice; name it once, and say by its weight"):
            DataSettings(train=[{"path": path}, {"path": path, **more}])
    both = made([{"path": path, "format": form} for form in forms])
    assert len(both.train) == 12
    assert len({example.token_ids.tobytes() for example in both.train}) == 12
    for more in (
        {"split": "test"},
        {"subset": "other"},
        {"columns": {"completion": "other"}},
        {"message_keys": {"role": "speaker"}},
        {"roles": {"asker": "user"}},
        {"template": "chatml"},
    ):
        assert len(DataSettings(train=[{"path": "owner/name"}, {"path": "owner/name", **more}]).sources) == 2
        with pytest.raises(ValueError, match="twice"):
            DataSettings(train=[{"path": "owner/name", **more}, {"path": "owner/name", **more}])


def test_a_key_of_messages_is_looked_for_in_all_sources_that_name_it(tmp_path, files):
    marked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "mine": 1}]
    path = lines(tmp_path / "marked.jsonl", [{"messages": marked}])
    talks = {"path": files["talks"], "roles": {"asker": "user"}}
    assert made([{"path": path}, talks], message_keys={"learn": "mine"}).train
    with pytest.raises(DataError, match="names mine, which no message has"):
        made([{"path": path, "message_keys": {}}, talks], message_keys={"learn": "mine"})


def test_rows_from_python_stand_in_for_all_sources(sources, files):
    rows = [json.loads(line) for line in Path(files["pairs"]).read_text().splitlines()]
    settings = DataSettings(train=sources)
    given = prepare(settings, TOKENIZER, seed=0, rows=rows)
    assert given.fingerprint == made(files["pairs"]).fingerprint
    assert given.sources == ()


def test_rows_are_asked_of_every_source_in_its_own_way(sources):
    settings = DataSettings(train=sources, held_out=9)
    every = questions(settings, 0, True, None, None, "last", lambda text: None)
    assert len(every) == 12 + 8 + 6
    assert {item.gold.split()[0] for item in every} == {"answer", "reply", "tell"}
    held = questions(settings, 0, False, None, None, "last", lambda text: None)
    kept = made(sources, held_out=9)
    assert len(held) == sum(isinstance(row, Conversation) for row in kept.held_out_rows)


def test_weights_are_above_nothing():
    for weight in (0, -1, float("inf"), "x"):
        with pytest.raises(ValueError, match="weight"):
            SourceSettings(path="x", weight=weight)
