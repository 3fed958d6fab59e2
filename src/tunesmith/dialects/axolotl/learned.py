"""Of an Axolotl file: which tokens of its rows are learned.

Rows of messages (chat_template) learn the contents of the turns whose role or whose own flag says so, and the ends of
these; `train_on_inputs` makes that all turns. Rows that their type words (alpaca) learn the answer and its end, or with
`train_on_inputs` every token. Plain text and rows that mark their pieces ask nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.dialects.axolotl.roles import roles_to_train
from tunesmith.dialects.axolotl.types import Rows
from tunesmith.dialects.base import Said, left_over
from tunesmith.recipe_rules import BARE

OF_TURNS = ("roles_to_train", "train_on_eos", "train_on_eot")
_ENDS = ("turn", "last", "none", "all")
_ALL_ROLES = ["system", "user", "assistant", "tool"]
_FLAGS = ("message_field_training", "message_field_training_detail")


def learned(said: Said, entries: Sequence[Said], rows: Sequence[Rows]) -> None:
    """Puts `data.learn` and `data.learn_ends`, which hold for all entries. `rows`: what each entry's type says."""
    formats = {str(each.format) for each in rows}
    if formats and formats <= set(BARE):
        why = "text is learned whole" if "text" in formats else "the rows say themselves what is learned"
        said.raw("train_on_inputs")
        said.idle("train_on_inputs", why)
        for entry in entries:
            left_over(entry, f"the rows have no turns: {why}", *OF_TURNS)
        return
    everything = said.take("train_on_inputs", bool, False)
    if said.has("rl") or said.take("reward_model", bool, False):
        why = "the objective learns the answers"
        said.idle("train_on_inputs", why)
        for entry in entries:
            left_over(entry, why, *OF_TURNS)
        return
    talks, worded = list[Said](), list[Said]()
    for entry, each in zip(entries, rows, strict=True):
        if each.format == "messages" and each.template is None:
            talks.append(entry)
            continue
        why = "the rows have no turns"
        if each.format not in BARE:
            worded.append(entry)
            why = "rows that their type words learn the answers, with their ends"
        left_over(entry, why, *OF_TURNS)
    if everything and talks and worded:
        fix = "give all rows one type, or train on the two kinds in runs of their own"
        what = "is true: of rows of messages that learns what the turns say, and of the others every token"
        said.refuse("train_on_inputs", what, fix)
    elif everything and worded:
        said.put("data.learn", "everything", "train_on_inputs")
    elif talks:
        _of_messages(said, talks, bool(worded), everything=everything)


def _of_messages(said: Said, entries: Sequence[Said], beside_others: bool, *, everything: bool) -> None:
    """`beside_others`: there are rows too that their type words."""
    roles, ends = [roles_to_train(entry) for entry in entries], [_ends(entry) for entry in entries]
    for name, values, usual in (("roles_to_train", roles, ["assistant"]), ("train_on_eos", ends, "turn")):
        if any(value != values[0] for value in values):
            entries[-1].refuse(name, "differs between data sets", "say the same of all of them")
        elif beside_others and values[0] != usual:
            fix = "take it out, or train on the two kinds of rows in runs of their own"
            entries[0].refuse(name, "would hold for the rows of the other types too", fix)
    flags = any(entry.has(*_FLAGS) for entry in entries)
    if everything:
        said.put("data.learn", _ALL_ROLES, "train_on_inputs")
        for entry in entries:
            entry.idle("roles_to_train", "train_on_inputs is true")
    elif roles[0] != ["assistant"]:
        entries[0].put("data.learn", roles[0] or "marked", "roles_to_train")
    which = ends[0]
    if which == "turn" and (everything or flags or roles[0] != ["assistant"]):
        which = "learned"
    if which != "turn":
        entries[0].put("data.learn_ends", which, "train_on_eos", "train_on_eot")


def _ends(entry: Said) -> str:
    ends = entry.choose("train_on_eos", _ENDS, "turn")
    other = entry.choose("train_on_eot", _ENDS, ends)
    if other != ends:
        what = f"is {other}, and train_on_eos {ends}: what ends a turn here is the token that ends it in the template"
        fix = f"set train_on_eos to {other} too where that is one of eot_tokens; else take train_on_eot out"
        entry.refuse("train_on_eot", what, fix)
    return ends
