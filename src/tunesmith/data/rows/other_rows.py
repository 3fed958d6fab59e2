"""Rows as other tools write them.

input-output   {"input": …, "output": …}, with or without a system turn                     Lamini
openpipe       {"messages": [… answer], "rejected_message": {…}, "split": "TRAIN"}          OpenPipe
nemo           {"context": […], "completions": [{"rank": 0, "completion": […]}, …]}         NeMo RL
nectar         {"prompt": …, "answers": [{"answer": …, "rank": 1}, …]}                      Nectar
verl           {"data_source", "prompt": […], "reward_model": {"ground_truth": …}, …}       verl
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.rows.beside import tools_of, with_system
from tunesmith.data.rows.messages import Names, Unreadable, need, parsed, read_messages, read_tools, text_of
from tunesmith.data.rows.preferences import pair, preference
from tunesmith.data.types import Conversation, Message, Origin, Preference, Prompt

RawColumns = Mapping[str, Any]


def input_output(row: RawColumns, origin: Origin, names: Names) -> Conversation:
    turns = with_system((Message("user", text_of(row, "input")), Message("assistant", text_of(row, "output"))), row)
    return Conversation(turns, origin, num_asked=len(turns) - 1)


def openpipe(row: RawColumns, origin: Origin, names: Names) -> Preference:
    """A row that is kept for testing is refused: it would be trained on."""
    if row.get("split") not in (None, "", "TRAIN"):
        raise Unreadable(
            "the row's column 'split' keeps it from training",
            found=shown(row["split"], 40),
            fix="put such rows into a file of their own, and name it in data.held_out; there, or where the column "
            "means something else, have it not read: data.columns={split: null}",
        )
    turns = read_messages(need(row, "messages"), "messages", names)
    if not turns or turns[-1].role != "assistant":
        raise Unreadable("'messages' must end in the chosen answer", found=turns[-1].role if turns else "no turn")
    rejected = parsed(need(row, "rejected_message"), "'rejected_message'")
    rejected = rejected if isinstance(rejected, list) else [rejected]
    return pair(turns[:-1], turns[-1:], read_messages(rejected, "rejected_message", names), origin, tools_of(row))


def nemo(row: RawColumns, origin: Origin, names: Names) -> Preference:
    """Two ranked completions; the lower rank is preferred."""
    given = parsed(need(row, "completions"), "'completions'")
    ranked = given if isinstance(given, list) and all(isinstance(one, Mapping) for one in given) else []
    if len(ranked) != 2 or not all(type(one.get("rank")) in (int, float) for one in ranked):
        raise Unreadable("the column 'completions' must hold two, each with its rank", found=shown(given, 60))
    better, worse = sorted(ranked, key=lambda one: float(one["rank"]))
    if better["rank"] == worse["rank"]:
        raise Unreadable("both completions have the same rank: neither is preferred", found=f"rank {better['rank']}")
    chosen, rejected = (read_messages(need(one, "completion"), "completion", names) for one in (better, worse))
    return pair(read_messages(need(row, "context"), "context", names), chosen, rejected, origin, tools_of(row))


def nectar(row: RawColumns, origin: Origin, names: Names) -> Preference:
    """Ranked answers, of which the best is chosen and the worst rejected: rank 1 is the best."""
    given = parsed(need(row, "answers"), "'answers'")
    ranked = given if isinstance(given, list) and all(isinstance(one, Mapping) for one in given) else []
    if len(ranked) < 2 or not all(type(one.get("rank")) in (int, float) for one in ranked):
        raise Unreadable("the column 'answers' must hold at least two, each with its rank", found=shown(given, 60))
    best, worst = (pick(ranked, key=lambda one: float(one["rank"])) for pick in (min, max))
    if best["rank"] == worst["rank"]:
        raise Unreadable("all answers have the same rank: none is preferred", found=f"rank {best['rank']}")
    return preference({**row, "chosen": best.get("answer"), "rejected": worst.get("answer")}, origin, names)


def verl(row: RawColumns, origin: Origin, names: Names) -> Prompt:
    """A prompt whose right answer is `reward_model.ground_truth`; rewards find it as the column `answer` too."""
    given = parsed(need(row, "prompt"), "'prompt'") if not isinstance(row.get("prompt"), str) else row["prompt"]
    turns = (Message("user", given),) if isinstance(given, str) else read_messages(given, "prompt", names)
    judged = parsed(need(row, "reward_model"), "'reward_model'")
    if not isinstance(judged, Mapping) or judged.get("ground_truth") is None:
        raise Unreadable("the column 'reward_model' must be an object with a ground_truth", found=shown(judged, 40))
    columns = {key: value for key, value in row.items() if key != "prompt"}
    said = given if isinstance(given, str) else [{"role": turn.role, "content": turn.content} for turn in turns]
    return Prompt(turns, said, {"answer": judged["ground_truth"], **columns}, origin, read_tools(row.get("tools")))
