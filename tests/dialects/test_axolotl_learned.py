"""Which tokens of its rows a file of Axolotl learns, and which of its keys say so together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_axolotl_types import ALPACA, prepared
from their_files import AXOLOTL as BASE
from their_files import entry_of, file, recipe, refusal

from tunesmith.data.masking.answering import learned_runs
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any

END = "<|im_end|>"
TALK = [
    {"role": "system", "content": "Be."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "Hey"},
    {"role": "assistant", "content": "Hu"},
]
FLAG = {"message_field_training": "train"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("answers", {}, {}, [f"Ho{END}", f"Hu{END}"]),
    ("both sides", {"roles_to_train": ["user", "assistant"]}, {}, [f"Hi{END}", f"Ho{END}", f"Hey{END}", f"Hu{END}"]),
    ("the other side", {"roles_to_train": ["human"], "train_on_eos": "none"}, {}, ["Hi", "Hey"]),
    ("all turns", {}, {"train_on_inputs": True}, [f"{turn['content']}{END}" for turn in TALK]),
    ("all turns, no ends", {"train_on_eos": "none"}, {"train_on_inputs": True}, [turn["content"] for turn in TALK]),
    ("all ends", {"train_on_eos": "all"}, {}, [END, END, f"Ho{END}", END, f"Hu{END}"]),
    ("no ends, of either kind", {"train_on_eos": "none", "train_on_eot": "none"}, {}, ["Ho", "Hu"]),
    ("by a usual name", {"roles_to_train": ["model"]}, {}, [f"Ho{END}", f"Hu{END}"]),
    ("the last end, of either kind", {"train_on_eos": "last", "train_on_eot": "last"}, {}, ["Ho", f"Hu{END}"]),
]


def runs(made: Any, tokenizer: Any) -> list[str]:
    example = made.train[0]
    return [tokenizer.decode(example.token_ids[start:end]) for start, end in learned_runs(example)]


@pytest.mark.parametrize(("entry", "more", "learned"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_contents_and_ends_are_learned_and_no_header(
    entry: dict[str, Any], more: dict[str, Any], learned: list[str], tmp_path: Path
) -> None:
    row = {"messages": TALK}
    assert runs(*prepared("chat_template", [row], tmp_path, entry=entry, chat_template="chatml", **more)) == learned


def test_whose_turns_are_learned_may_be_said_in_the_rows_own_names(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "visitor", "content": "Hi"}, {"role": "answerer", "content": "Ho"}]}]
    named = {"roles": {"user": ["visitor"], "assistant": ["answerer"]}}
    for learned, ends in (["answerer"], [f"Ho{END}"]), (["visitor", "assistant"], [f"Hi{END}", f"Ho{END}"]):
        entry = {**named, "roles_to_train": learned}
        assert runs(*prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")) == ends


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"roles_to_train": ["narrator"]}, "say whose name it is: roles: {assistant: [narrator]}"),
        ({"roles": {"narrator": ["gpt"]}}, "roles: {user: [human], assistant: [gpt]}"),
        ({"roles": {"input": ["human"]}}, "roles: {user: [human], assistant: [gpt]}"),
    ],
)
def test_a_speaker_that_is_none_here_is_refused_with_what_to_write(
    entry: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values = {**BASE, "datasets": [{"path": "a/b", "type": "chat_template", **entry}]}
    assert said in refusal(file(tmp_path, values))


def test_the_sides_of_sharegpt_are_roles(tmp_path: Path) -> None:
    roles = {"input": ["asker", "system", "tool", "human"], "output": ["answerer", "gpt"]}
    entry = {"path": "a/b", "type": "sharegpt", "roles": roles}
    made = load_any(file(tmp_path, {**BASE, "datasets": [entry]})).resolved.recipe.data.roles
    assert made == {"asker": "user", "answerer": "assistant"}


@pytest.mark.parametrize(
    ("talk", "learned"),
    [
        (TALK, ["Hi", "Ho", "Hey", f"Hu{END}"]),
        (TALK[:4], ["Hi", "Ho", f"Hey{END}"]),
        (TALK[:2] + TALK[3:4], ["Hi", f"Hey{END}"]),
        ([*TALK, {"role": "system", "content": "Bye."}], ["Hi", "Ho", "Hey", f"Hu{END}"]),
    ],
)
def test_the_last_end_is_that_of_the_last_learned_turn(
    talk: list[dict[str, Any]], learned: list[str], tmp_path: Path
) -> None:
    entry = {"roles_to_train": ["user", "assistant"], "train_on_eos": "last"}
    rows = [{"messages": talk}]
    assert runs(*prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")) == learned


def test_a_flag_goes_before_train_on_inputs(tmp_path: Path) -> None:
    row = {"messages": [{**turn, "train": place != 1} for place, turn in enumerate(TALK)]}
    made = prepared("chat_template", [row], tmp_path, entry=FLAG, chat_template="chatml", train_on_inputs=True)
    assert runs(*made) == [f"Be.{END}", f"Ho{END}", f"Hey{END}", f"Hu{END}"]


def test_a_flagged_question_is_learned_with_its_end(tmp_path: Path) -> None:
    row = {"messages": [{**turn, "train": place == 1} for place, turn in enumerate(TALK)]}
    assert runs(*prepared("chat_template", [row], tmp_path, entry=FLAG, chat_template="chatml")) == [f"Hi{END}"]


@pytest.mark.parametrize(("eot", "eos"), [("none", None), ("last", "none"), ("turn", "all")])
def test_ends_of_two_kinds_that_are_learned_apart_are_refused(eot: str, eos: str | None, tmp_path: Path) -> None:
    entry = {"path": "a/b", "type": "chat_template", "train_on_eot": eot, **({"train_on_eos": eos} if eos else {})}
    said = refusal(file(tmp_path, {**BASE, "datasets": [entry]}))
    assert "datasets[0].train_on_eot" in said
    assert f"set train_on_eos to {eot} too" in said


def test_rows_that_their_type_words_are_not_asked_for_roles_and_ends(tmp_path: Path) -> None:
    entry = {"roles_to_train": ["user"], "train_on_eos": "none", "train_on_eot": "last"}
    read = load_any(file(tmp_path, {**BASE, "datasets": [{"path": "a/b", "type": "alpaca", **entry}]}))
    assert {entry_of(read, f"datasets[].{key}").fate for key in entry} == {Fate.IDLE}
    assert (read.resolved.recipe.data.learn, read.resolved.recipe.data.learn_ends) == ("answers", "turn")
    made, _ = prepared("alpaca", [ALPACA], tmp_path, train_on_inputs=True)
    assert made.train[0].num_learned == len(made.train[0]) - 1


@pytest.mark.parametrize(
    ("entry", "more", "key"),
    [
        ({}, {"train_on_inputs": True}, "train_on_inputs"),
        ({"roles_to_train": ["user", "assistant"]}, {}, "datasets[0].roles_to_train"),
        ({"train_on_eos": "none"}, {}, "datasets[0].train_on_eos"),
    ],
)
def test_what_would_reach_rows_of_another_type_is_refused(
    entry: dict[str, Any], more: dict[str, Any], key: str, tmp_path: Path
) -> None:
    sources = [{"path": "a/b", "type": "chat_template", **entry}, {"path": "c/d", "type": "alpaca"}]
    said = refusal(file(tmp_path, {**BASE, "datasets": sources, **more}))
    assert key in said
    assert "in runs of their own" in said


def test_of_pairs_nobody_asks_which_turns_are_learned(tmp_path: Path) -> None:
    entry = {"path": "a/b", "type": "chat_template.default", "roles_to_train": ["user"], "train_on_eos": "none"}
    values = {**BASE, "rl": "dpo", "datasets": [entry]}
    assert recipe(file(tmp_path, values))["data"]["learn"] == "answers"


@pytest.mark.parametrize("how", ["truncate", "raise"])
def test_plain_text_beside_other_rows_is_cut_and_what_would_cut_them_too_is_refused(how: str, tmp_path: Path) -> None:
    text, talk = {"path": "a/b", "type": "completion"}, {"path": "c/d", "type": "chat_template"}
    values = {**BASE, "excess_length_strategy": how}
    assert "excess_length_strategy" in refusal(file(tmp_path, {**values, "datasets": [text, talk]}))
    assert recipe(file(tmp_path, {**values, "datasets": [text]}))["data"]["overlong"] == "split"
