"""What another tool passes over in its rows is passed over here: columns, and keys of messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from their_files import AXOLOTL, FACTORY, PAIR_COLUMNS, TRL, factory_file, file
from tiny_tokenizers import byte_level

from tunesmith.data.cache.large import Survey
from tunesmith.data.prepare import Task, prepare
from tunesmith.data.templating.templates import install
from tunesmith.data.types import Origin
from tunesmith.dialects.read import load_any

ASKED = [{"role": "user", "content": "Hi"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Ho"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
OTHER = [{"role": "user", "content": "Other"}, {"role": "assistant", "content": "Else"}]
PAIR = {"chosen": "Yes", "rejected": "No"}
WHOLE = {"chosen": [*ASKED, {"role": "assistant", "content": "Yes"}], "rejected": ANSWERED}
TURNS = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
RANKED = {"formatting": "sharegpt", "ranking": True, "columns": PAIR_COLUMNS}
HISTORY = {"columns": {"prompt": "instruction", "response": "output", "history": "history"}}
OPINION = {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}}
PLAIN_OPINION = {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"}}


def axolotl(type_: Any, **more: Any) -> dict[str, Any]:
    entry = {"path": "some/rows", "type": type_, **more.pop("entry", {})}
    return {**AXOLOTL, "datasets": [entry], "chat_template": "chatml", **more}


def factory(entry: dict[str, Any], stage: str = "sft") -> dict[str, Any]:
    return {**FACTORY, "dataset": "own", "stage": stage, "template": "qwen", "own": {"hf_hub_url": "o/n", **entry}}


def trl(trainer: str, **more: Any) -> dict[str, Any]:
    return {
        **TRL,
        "trainer": trainer,
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        **more,
    }


CONVERSATIONS = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a column of messages that is named": (
        axolotl("chat_template", entry=CONVERSATIONS),
        {"conversations": SHARED},
        {"messages": OTHER},
    ),
    "a column of messages of its own name": (
        axolotl("chat_template", entry={"field_messages": "dialog"}),
        {"dialog": ANSWERED},
        {"conversations": OTHER},
    ),
    "a prompt beside the messages of pairs": (
        axolotl("chat_template.default", rl="dpo", entry={"field_messages": "messages"}),
        {"messages": ASKED, **PAIR},
        {"prompt": "Else", "question": "Who?", "system": "Be."},
    ),
    "a prompt beside the messages of pairs, by default": (
        axolotl("chat_template", rl="dpo"),
        {"messages": ASKED, **PAIR},
        {"prompt": "Else", "conversations": OTHER[:1]},
    ),
    "a system turn beside whole answers": (axolotl("chat_template.argilla_chat", rl="dpo"), WHOLE, {"system": "Be."}),
    "an instruction beside the input of a reward": (
        axolotl("bradley_terry.chat_template", reward_model=True),
        {"input": "Hi", **PAIR},
        {"instruction": "Do", "prompt": "Else"},
    ),
    "messages beside judged answers": (
        axolotl("chatml.prompt_pairs", rl="kto"),
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {"messages": OTHER},
    ),
    "a system turn beside judged answers in one's own words": (
        axolotl({"field_prompt": "q", "field_system": "system", "prompt_format": "{prompt}"}, rl="kto"),
        {"q": "Hi", "completion": "Ho", "label": True},
        {"system": "Be."},
    ),
    "system and tools of turns": (
        factory(TURNS),
        {"conversations": SHARED},
        {"system": "Be.", "tools": '[{"name": "f", "parameters": {}}]', "messages": OTHER},
    ),
    "system and input beside a history": (
        factory(HISTORY),
        {"instruction": "Hi", "output": "Ho", "history": [["A", "B"]]},
        {"system": "Be.", "input": "more"},
    ),
    "a prompt beside ranked turns": (
        factory(RANKED, "dpo"),
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {**SHARED[1], "value": "Hu"}},
        {"prompt": "Else", "system": "Be.", "tools": "[]", "margin": 3},
    ),
    "system beside judged turns": (
        factory(OPINION, "kto"),
        {"conversations": SHARED, "label": True},
        {"system": "Be."},
    ),
    "system beside judged answers": (
        factory(PLAIN_OPINION, "kto"),
        {"instruction": "Hi", "output": "Ho", "label": False},
        {"system": "Be.", "messages": OTHER},
    ),
    "system and functions of messages": (
        trl("sft"),
        {"messages": ANSWERED},
        {"system": "Be.", "system_prompt": "Be so.", "functions": [{"name": "f"}]},
    ),
    "system of a completion": (trl("sft"), {"prompt": "Hi", "completion": "Ho"}, {"system_prompt": "Be."}),
    "system and question of pairs": (trl("dpo"), {"prompt": "Hi", **PAIR}, {"system": "Be.", "question": "Who?"}),
    "a question beside whole answers": (trl("reward"), WHOLE, {"question": "Hi", "input": "Else"}),
    "system and messages of judged answers": (
        trl("kto"),
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {"system": "Be.", "messages": OTHER},
    ),
    "what a selection of columns leaves out": (
        trl("sft", dataset_name=None, datasets=[{"path": "some/rows", "columns": ["prompt", "completion"]}]),
        {"prompt": ASKED, "completion": ANSWERED[1:]},
        {"tools": '[{"name": "f", "parameters": {}}]'},
    ),
}
"""A file, a row, and columns that its tool would pass over in it."""
FLAGS: dict[str, tuple[dict[str, Any], str]] = {
    "Axolotl": (axolotl("chat_template"), "messages"),
    "Axolotl, whole": (axolotl("chat_template", train_on_inputs=True), "messages"),
    "LLaMA-Factory": (factory({"formatting": "openai", "columns": {"messages": "messages"}}), "messages"),
    "TRL": (trl("sft", assistant_only_loss=True), "messages"),
    "TRL, whole": (trl("sft"), "messages"),
}


def tokens(values: dict[str, Any], row: dict[str, Any], folder: Path) -> list[tuple[list[int], list[float]]]:
    """What of a row the model sees, and what of it is learned."""
    own = {"own": values["own"]} if "own" in values else {}
    written = {key: value for key, value in values.items() if key != "own"}
    recipe = load_any(factory_file(folder, written, **own) if own else file(folder, written)).resolved.recipe
    tokenizer = byte_level("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    install(recipe.model.template or "chatml", tokenizer)
    made = prepare(recipe.data, tokenizer, seed=0, rows=[row], takes=recipe.takes)
    return [(example.token_ids.tolist(), example.loss_weights.tolist()) for example in made.train]


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_that_the_tool_passes_over_changes_no_token(case: str, tmp_path: Path) -> None:
    values, row, more = COLUMNS[case]
    assert tokens(values, {**row, **more}, tmp_path) == tokens(values, row, tmp_path)


@pytest.mark.parametrize("case", FLAGS)
def test_a_key_of_a_message_that_the_tool_passes_over_changes_no_token(case: str, tmp_path: Path) -> None:
    values, column = FLAGS[case]
    marked = [{**turn, "weight": 1 - place, "train": bool(place)} for place, turn in enumerate(ANSWERED)]
    flagged = [{**turn, "weight": place} for place, turn in enumerate(reversed(ANSWERED))][::-1]
    without = tokens(values, {column: ANSWERED}, tmp_path)
    assert tokens(values, {column: marked}, tmp_path) == without
    assert tokens(values, {column: flagged}, tmp_path) == without


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    recipe = load_any(file(tmp_path, trl("sft"))).resolved.recipe
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    install("chatml", tokenizer)
    rows = [{"messages": [{**turn, "weight": 1} for turn in ANSWERED], "system": "Be."}]
    made = prepare(recipe.data, tokenizer, seed=0, rows=rows)
    assert {"columns not used: system", "message keys not used: weight"} <= set(made.notes)


def test_the_keys_that_a_file_names_go_before_others_of_a_message(tmp_path: Path) -> None:
    both = [{"role": "system", "content": "Else", **turn} for turn in SHARED]
    values = axolotl("chat_template", entry=CONVERSATIONS)
    assert tokens(values, {"conversations": both}, tmp_path) == tokens(values, {"conversations": SHARED}, tmp_path)


def test_rows_that_are_not_held_at_once_are_recognised_without_what_is_passed_over(tmp_path: Path) -> None:
    recipe = load_any(file(tmp_path, trl("sft"))).resolved.recipe
    survey = Survey(recipe.data.model_copy(update={"columns": {"messages": None}}))
    survey.look([(Origin("rows", 1), {"messages": OTHER, "prompt": "Hi", "completion": "Ho"})])
    assert survey.recognised(Task.of(recipe.data, 0, None, None, recipe.takes)) == "prompt-completion"
