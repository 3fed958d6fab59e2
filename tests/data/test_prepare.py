"""Split, packing, counts and the report: nothing is lost without being counted."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from tunesmith.data.check.counts import KINDS
from tunesmith.data.check.report import as_json, print_report, seen, summary
from tunesmith.data.pack import collate, micro_batches
from tunesmith.data.prepare import fingerprint, prepare
from tunesmith.data.settings import DataSettings, HeldOut, TemplateFormat
from tunesmith.data.split import split
from tunesmith.data.types import Example, Labelled, Origin, Preference, Prompt
from tunesmith.errors import DataError

TOKENIZER = tiny.byte_level(tiny.CHATML)
RAW = [(Origin("f", i), {"text": f"row {i}", "topic": i % 7}) for i in range(1, 101)]


def example(length: int, learned: int = 1, row: int = 1) -> Example:
    weights = np.zeros(length, dtype=np.float32)
    weights[length - learned :] = 1
    return Example(np.arange(length, dtype=np.int64), weights, Origin("f", row))


def data(**keys) -> DataSettings:
    return DataSettings(train="rows", **keys)


# --- split ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    held_out=st.one_of(st.integers(1, 99), st.floats(0.01, 0.98), st.just(HeldOut(key="topic"))), seed=st.integers(0, 9)
)
def test_every_row_is_on_one_side_and_the_seed_decides(held_out, seed):
    parted = split(RAW, data(held_out=held_out), seed=seed)
    assert sorted(parted.train + parted.held_out, key=lambda row: row[0].row) == RAW
    assert parted.held_out
    assert parted == split(RAW, data(held_out=held_out), seed=seed)
    if isinstance(held_out, int):
        assert len(parted.held_out) == held_out
    if isinstance(held_out, HeldOut):
        assert not {row["topic"] for _, row in parted.train} & {row["topic"] for _, row in parted.held_out}


def test_another_seed_gives_another_split():
    assert split(RAW, data(held_out=10), seed=0).held_out != split(RAW, data(held_out=10), seed=1).held_out


@pytest.mark.parametrize("seed", range(6))
def test_a_group_far_larger_than_the_share_stays_in_training(seed):
    rows = [(Origin("f", i), {"topic": "most" if i <= 90 else i % 3}) for i in range(1, 101)]
    parted = split(rows, data(held_out=HeldOut(key="topic")), seed=seed)
    assert 0 < len(parted.held_out) <= 20
    two = [(at, {"topic": at.row <= 70}) for at, _ in rows]
    assert len(split(two, data(held_out=HeldOut(key="topic")), seed=seed).held_out) == 30


def test_held_out_rows_of_a_folder_name_their_split(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    for held_out, found in ((f"{tmp_path}:test", "test"), (f"{tmp_path}", "train"), (f"{tmp_path}/test.jsonl", "test")):
        for way in (held_out, HeldOut(file=held_out)):
            assert [row["text"] for _, row in split(RAW, data(held_out=way), seed=0).held_out] == [found]
    assert len(split(RAW, data(held_out=str(tmp_path), split="test"), seed=0).held_out) == 1
    with pytest.raises(DataError, match="a file has no splits"):
        split(RAW, data(held_out=f"{tmp_path}/test.jsonl:test"), seed=0)
    with pytest.raises(DataError, match="no file for the split 'dev'"):
        split(RAW, data(held_out=f"{tmp_path}:dev"), seed=0)
    (tmp_path / "a:b.jsonl").write_text('{"text": "colon"}\n')
    assert len(split(RAW, data(held_out=f"{tmp_path}/a:b.jsonl"), seed=0).held_out) == 1


def test_a_held_out_file_is_read_and_wrong_splits_are_refused(tmp_path):
    (tmp_path / "valid.jsonl").write_text('{"text": "v"}\n')
    parted = split(RAW, data(held_out=str(tmp_path / "valid.jsonl")), seed=0)
    assert (len(parted.train), [row for _, row in parted.held_out]) == (100, [{"text": "v"}])
    for held_out in (100, HeldOut(key="nope"), str(tmp_path / "gone.jsonl")):
        with pytest.raises(DataError):
            split(RAW, data(held_out=held_out), seed=0)
    with pytest.raises(DataError, match="one group"):
        split([(at, {"topic": 1}) for at, _ in RAW], data(held_out=HeldOut(key="topic")), seed=0)
    for wrong in ({"share": 0.1, "count": 3}, {}, {"share": 1.5}):
        with pytest.raises(ValidationError):
            HeldOut(**wrong)


# --- packing -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), max_tokens=st.integers(5, 60))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, max_tokens):
    rows = [example(length, row=i) for i, length in enumerate(lengths)]
    batches = micro_batches(rows, max_tokens)
    assert sorted(origin.row for batch in batches for origin in batch.origins) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) <= max_tokens or len(batch.segments) == 1
        assert [len(s) for s in batch.segments] == sorted(len(s) for s in batch.segments)
        assert batch.segments[0].start == 0
        assert all(a.end == b.start for a, b in zip(batch.segments, batch.segments[1:], strict=False))
        assert batch.segments[-1].end == len(batch)
        for segment, origin in zip(batch.segments, batch.origins, strict=True):
            row, at = rows[origin.row], slice(segment.start, segment.end)
            assert batch.token_ids[at].tolist() == row.token_ids.tolist()
            assert batch.loss_weights[at].tolist() == row.loss_weights.tolist()
            assert batch.positions[at].tolist() == list(range(len(row)))
    room: list[int] = []  # first fit, longest first
    for length in sorted((length for length in lengths if length <= max_tokens), reverse=True):
        at = next((i for i, free in enumerate(room) if free >= length), None)
        room = [*room, max_tokens - length] if at is None else [*room[:at], room[at] - length, *room[at + 1 :]]
    assert len([batch for batch in batches if len(batch) <= max_tokens]) <= len(room)
    assert [b.origins for b in micro_batches(rows, max_tokens)] == [b.origins for b in batches]


def test_micro_batches_are_few_and_even():
    batches = micro_batches([example(length) for length in (10, 10, 10, 10, 30, 30)], 50)
    assert [len(batch) for batch in batches] == [50, 50]


def test_the_first_token_of_a_document_is_never_a_target():
    rows = [example(3, learned=3), example(4, learned=2), example(1, learned=1)]
    batch = collate(rows)
    assert batch.num_learned == sum(row.num_learned for row in rows) == 4


# --- prepare -------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]


def test_every_row_is_kept_or_counted():
    long = {"prompt": "q", "completion": "word " * 200}
    rows = [*ROWS, long, {"prompt": "q", "completion": "  "}, ROWS[0]]
    prepared = prepare(data(max_length=60, held_out=4), TOKENIZER, seed=1, rows=rows)
    for counts, examples in ((prepared.counts, prepared.train), (prepared.held_out_counts, prepared.held_out)):
        dropped = sum(counts[kind] for kind in ("overlong", "empty", "unlearnable"))
        assert counts.read == counts.kept + dropped
        assert counts.kept == len(examples)
        assert counts.tokens == sum(map(len, examples))
        assert counts.learned == sum(e.num_learned for e in examples)
    assert prepared.counts["overlong"] + prepared.held_out_counts["overlong"] == 1
    assert prepared.counts["empty"] + prepared.held_out_counts["empty"] == 1
    assert prepared.format == "prompt-completion"


def test_overlong_rows_are_dropped_cut_split_or_refused():
    rows = [{"text": "word " * 100}, {"text": "short"}]
    assert len(prepare(data(max_length=20), TOKENIZER, seed=0, rows=rows).train) == 1
    cut = prepare(data(max_length=20, overlong="truncate"), TOKENIZER, seed=0, rows=rows)
    assert (len(cut.train[0]), cut.counts["truncated"]) == (20, 1)
    pieces = prepare(data(max_length=20, overlong="split"), TOKENIZER, seed=0, rows=rows).train
    whole = prepare(data(max_length=10_000), TOKENIZER, seed=0, rows=rows).train
    *long, short = pieces
    assert np.array_equal(short.token_ids, whole[1].token_ids)
    joined = np.concatenate([long[0].token_ids, *(piece.token_ids[1:] for piece in long[1:])])
    assert np.array_equal(joined, whole[0].token_ids)
    assert sum(piece.num_learned for piece in pieces) == sum(row.num_learned for row in whole)
    assert all(len(piece) <= 20 and piece.loss_weights[0] == 0 for piece in pieces)
    with pytest.raises(DataError, match=r"max_length"):
        prepare(data(max_length=20, overlong="error"), TOKENIZER, seed=0, rows=rows)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_lengths_before_cutting_say_which_max_length_would_do(overlong):
    rows = [{"prompt": "q", "completion": "word " * n} for n in (1, 20, 60)]
    whole = prepare(data(), TOKENIZER, seed=0, rows=rows)
    assert not whole.counts.is_cut
    assert "before cutting" not in printed(whole)
    assert "length_percentiles_before_cutting" not in as_json(whole)["train"]
    made = prepare(data(max_length=60, overlong=overlong), TOKENIZER, seed=0, rows=rows)
    assert list(made.counts.lengths) == list(map(len, whole.train))
    shown = as_json(made)["train"]
    assert shown["length_percentiles_before_cutting"] == as_json(whole)["train"]["length_percentiles"]
    assert shown["length_percentiles"]["100"] <= 60
    kind = "overlong" if overlong == "drop" else "truncated"
    assert shown["shares"] == {"overlong": 0.0, "truncated": 0.0} | {kind: round(made.counts[kind] / 3, 4)}
    assert f"{made.counts[kind]} ({made.counts.share(kind):.1%})" in printed(made)
    assert f"({made.counts.share(kind):.1%}) " in "\n".join(summary(made))
    assert "before cutting" in printed(made)


@pytest.mark.parametrize(("takes", "overlong"), [(Labelled, "drop"), (Labelled, "truncate"), (Prompt, "drop")])
def test_lengths_before_cutting_of_rows_of_which_no_token_is_learned(takes, overlong):
    key = "text" if takes is Labelled else "prompt"
    rows = [{key: "word " * n, "label": "a"} for n in (1, 20, 60, 61)]
    whole, made = (
        prepare(data(max_length=limit, overlong=overlong), TOKENIZER, seed=0, rows=rows, takes=(takes,))
        for limit in (1000, 70)
    )
    assert list(made.counts.lengths) == list(whole.counts.lengths) == list(map(len, whole.train))
    assert made.counts.is_cut


def test_pairs_that_differ_only_beyond_the_cut_are_told_from_those_that_never_did():
    start = "the same beginning " * 40
    rows = [("yes", "no"), ("same", "same"), (start + "a", start + "b"), (start, start)]
    made = prepare(
        data(max_length=90, overlong="truncate"),
        TOKENIZER,
        seed=0,
        rows=[{"prompt": "q", "chosen": chosen, "rejected": rejected} for chosen, rejected in rows],
        takes=(Preference,),
    )
    assert (made.counts["identical"], made.counts["cut_alike"], made.counts.kept) == (2, 1, 1)
    assert made.counts.kinds["cut_alike"].first == [Origin("rows", 3)]
    assert "cut alike" in printed(made)
    with pytest.raises(DataError, match=r"raise data\.max_length: the answers differ behind it"):
        prepare(
            data(max_length=90, overlong="truncate"),
            TOKENIZER,
            seed=0,
            rows=[{"prompt": "q", "chosen": start + "a", "rejected": start + "b"}],
            takes=(Preference,),
        )


def test_a_model_s_table_of_positions_bounds_the_rows():
    rows = [{"prompt": "q", "completion": "word " * n} for n in (1, 60)]
    assert prepare(data(), TOKENIZER, seed=0, rows=rows).counts.kept == 2
    bound = prepare(data(), TOKENIZER, seed=0, rows=rows, most_tokens=40)
    assert (bound.counts.kept, bound.counts["overlong"]) == (1, 1)
    assert "the model has 40 positions" in "\n".join(summary(bound))
    cut = prepare(data(overlong="truncate"), TOKENIZER, seed=0, rows=rows, most_tokens=40)
    assert max(map(len, cut.train)) == 40
    assert prepare(data(), TOKENIZER, seed=0, rows=rows, most_tokens=4000).notes == ("nothing is held out",)


def test_where_a_table_of_positions_binds_nobody_is_told_to_raise_max_length():
    rows = [{"prompt": "q", "completion": "word " * 60}]
    for overlong in ("drop", "error"):
        with pytest.raises(DataError) as caught:
            prepare(data(overlong=overlong), TOKENIZER, seed=0, rows=rows, most_tokens=40)
        assert "raise" not in str(caught.value)
        assert "model with more positions" in caught.value.fix
        with pytest.raises(DataError, match=r"raise data\.max_length"):
            prepare(data(overlong=overlong, max_length=40), TOKENIZER, seed=0, rows=rows, most_tokens=400)


def test_rows_longer_than_the_model_was_made_for_are_kept_and_counted_in_one_note():
    rows = [{"prompt": "q", "completion": "word " * n} for n in (1, 50, 60)]
    made = prepare(data(), TOKENIZER, seed=0, rows=rows, made_for=40)
    assert made.counts.kept == 3
    notes = [note for note in made.notes if "made for 40" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"2 rows of up to {max(map(len, made.train))} tokens")
    assert prepare(data(), TOKENIZER, seed=0, rows=rows, made_for=4000).notes == ("nothing is held out",)


def test_nothing_left_to_train_is_an_error_that_says_why():
    with pytest.raises(DataError, match=r"(?s)no row is left.*2 rows with nothing to learn.*rows: row 1, 2"):
        prepare(data(format="messages"), TOKENIZER, seed=0, rows=[{"messages": [{"role": "user", "content": "q"}]}] * 2)


@pytest.mark.parametrize(
    ("rows", "keys", "advice"),
    [
        ([{"prompt": "q", "completion": "word " * 200}], {"max_length": 20}, "raise data.max_length"),
        ([{"messages": [{"role": "user", "content": "q"}]}], {}, "assistant"),
        ([{"text": " "}], {}, "empty"),
    ],
)
def test_the_advice_is_about_what_happened(rows, keys, advice):
    with pytest.raises(DataError) as caught:
        prepare(data(**keys), TOKENIZER, seed=0, rows=rows)
    assert advice in (caught.value.fix or "")
    assert ("max_length" in (caught.value.fix or "")) == ("max_length" in keys)


def test_rows_on_both_sides_are_counted():
    prepared = prepare(data(held_out=5), TOKENIZER, seed=0, rows=[ROWS[0]] * 10)
    assert prepared.held_out_counts["leaked"] == 5


def test_the_fingerprint_changes_with_whatever_changes_a_token():
    def print_of(tokenizer=TOKENIZER, rows=ROWS, seed=0, **keys):
        return prepare(data(**{"held_out": 3, **keys}), tokenizer, seed=seed, rows=rows).fingerprint

    variants = [
        print_of(),
        print_of(tiny.byte_level(tiny.CHATML, adds_bos=True)),
        print_of(tiny.byte_level(tiny.LLAMA2)),
        print_of(rows=ROWS[:-1]),
        print_of(rows=ROWS[::-1]),
        print_of(seed=1),
        print_of(held_out=4),
        print_of(max_length=max(map(len, prepare(data(), TOKENIZER, seed=0, rows=ROWS).train)) - 1),
        print_of(format=TemplateFormat(prompt="{{ prompt }}!", answer="{{ completion }}")),
    ]
    assert len(set(variants)) == len(variants)
    assert print_of() == variants[0]
    row = prepare(data(), TOKENIZER, seed=0, rows=ROWS[:1]).train[0]
    assert fingerprint([row]) != fingerprint([replace(row, loss_weights=row.loss_weights * 0.5)])


TEXT = st.text(alphabet=st.characters(), max_size=12)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(
        st.one_of(
            st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
            st.fixed_dictionaries(
                {
                    "messages": st.lists(
                        st.fixed_dictionaries(
                            {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT}
                        ),
                        max_size=4,
                    )
                }
            ),
            st.dictionaries(
                st.sampled_from(["prompt", "completion", "text"]), TEXT | st.none() | st.integers(), max_size=3
            ),
        ),
        max_size=5,
    ),
    template=st.sampled_from(["CHATML", "LLAMA2", "NO_SYSTEM", "NEVER_ENDS", "REWRITES", "EMPTY_THOUGHT_LAST"]),
)
def test_no_rows_give_anything_but_examples_or_a_data_error(rows, template):
    try:
        prepared = prepare(data(), TOKENIZERS[template], seed=0, rows=rows)
    except DataError:
        return
    assert prepared.train
    assert all(e.num_learned and len(e.token_ids) == len(e.loss_weights) for e in prepared.train)


TOKENIZERS = {
    name: tiny.byte_level(getattr(tiny, name))
    for name in ("CHATML", "LLAMA2", "NO_SYSTEM", "NEVER_ENDS", "REWRITES", "EMPTY_THOUGHT_LAST")
}


# --- report --------------------------------------------------------------------------------------------------------


def printed(prepared, **console) -> str:
    out = io.StringIO()
    print_report(prepared, TOKENIZER, Console(file=out, width=120, **console), rows=2)
    return out.getvalue()


def test_the_report_shows_counts_rows_and_marks():
    prepared = prepare(data(held_out=3), TOKENIZER, seed=0, rows=[*ROWS, {"prompt": "", "completion": ""}])
    plain = printed(prepared)
    assert "⟦answer 0<|im_end|>⟧" in plain
    assert "<|im_start|>user\nquestion 0<|im_end|>" in plain
    assert f"{prepared.counts.tokens:,}" in plain
    assert "1 row empty" in plain
    assert "row 21" in plain
    coloured = printed(prepared, force_terminal=True, color_system="standard", no_color=False)
    assert "⟦" not in coloured
    assert "\x1b[1;32manswer 0" in coloured


def test_the_short_form_and_the_json_agree_with_the_counts():
    prepared = prepare(data(held_out=3), TOKENIZER, seed=0, rows=ROWS)
    lines = "\n".join(summary(prepared))
    assert "17 to train on" in lines
    assert "3 held out" in lines
    found = json.loads(json.dumps(as_json(prepared)))
    assert found["train"]["tokens"] == prepared.counts.tokens
    assert set(KINDS) <= set(found["train"])
    assert found["fingerprint"] == prepared.fingerprint


def test_one_of_a_kind_is_told_in_the_singular():
    prepared = prepare(data(held_out=1), TOKENIZER, seed=0, rows=ROWS[:2])
    assert "held out: 1 row by" in "\n".join(summary(prepared))
    assert summary(prepared)[0].startswith("1 row read as prompt-completion: 1 to train on, ")
    with pytest.raises(DataError, match="1 row to hold out of 1"):
        prepare(data(held_out=1), TOKENIZER, seed=0, rows=ROWS[:1])
    with pytest.raises(DataError) as caught:
        prepare(data(), TOKENIZER, seed=0, rows=[{"prompt": "", "completion": ""}])
    assert str(caught.value.found).startswith("1 row: 1 row empty")


def test_the_spaces_of_a_row_are_shown_where_a_decoder_strips_the_first_of_a_text():
    from tokenizers import decoders

    tokenizer = tiny.word_mark(tiny.LLAMA2, adds_bos=True)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    row = prepare(data(), tokenizer, seed=0, rows=[{"prompt": "é 🙂 q", "completion": " the fox "}]).train[0]
    assert seen(row, tokenizer, in_colour=False).plain.replace("⟦", "").replace("⟧", "") == tokenizer.decode(
        row.token_ids.tolist()
    )


def test_control_characters_of_the_data_never_reach_the_terminal():
    prepared = prepare(data(), TOKENIZER, seed=0, rows=[{"prompt": "\x1b[31mred\u202e", "completion": "\x07"}])
    shown = seen(prepared.train[0], TOKENIZER, in_colour=False).plain
    assert "\x1b" not in shown
    assert r"\x1b" in shown
    assert r"\u202e" in shown
