"""Of an Axolotl file: what the type of a data set says of its rows, be it a name or words of the user's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.dialects.axolotl.types import ASKED, INSTRUCT, JUDGED, PAIRS, REWARDED, UNWORDED, Rows, given_by, jinja
from tunesmith.dialects.base import Said
from tunesmith.dialects.columns import unnamed


def known_types(said: Said) -> dict[str, Rows]:
    """The types that the file's objective reads."""
    rl = said.take("rl", str)
    if said.take("reward_model", bool, False):
        return REWARDED
    if rl == "grpo":
        return ASKED
    return JUDGED if rl == "kto" else PAIRS if rl in ("dpo", "ipo", "orpo", "simpo") else INSTRUCT


def rows_of(entry: Said, known: dict[str, Rows]) -> Rows:
    raw = entry.raw("type")
    if isinstance(raw, dict):
        return _user_defined(entry, raw, known)
    if raw is None and entry.prefix[0] == "pretraining_dataset":
        return INSTRUCT["pretrain"]
    if raw is None and known is not INSTRUCT:
        return Rows("auto")
    if raw is None:
        entry.carry("type", "empty: rows of token ids")
        return Rows("tokens")
    name = str(raw).removesuffix(".load")
    family = name.partition(".")[0].partition(":")[0]
    if known in (INSTRUCT, ASKED) and family in ("chat_template", "sharegpt"):
        return Rows("messages" if known is INSTRUCT else "auto")
    if known is ASKED:
        fix = "leave the type out, and have the prompt in the column prompt; or word it by data.format={prompt: …}"
        entry.refuse("type", f"is {name}: code that makes rows into prompts is not called here", fix)
        return Rows("auto")
    if name in known:
        return known[name]
    if known is not INSTRUCT and name == "user_defined":
        return Rows("auto")
    if (plain := name.partition(":")[0]) in UNWORDED:
        what, fix = UNWORDED[plain]
        entry.refuse("type", f"is {name}: {what}", fix)
        return Rows("auto")
    fix = "name another, or word the rows yourself: type: {format: …, field_instruction: …, field_output: …}"
    entry.refuse("type", f"is {name}, which is not read here", fix, expected=", ".join(known))
    return Rows("auto")


_FIELDS = ("field_system", "field_instruction", "field_input", "field_output")
_OF_PAIRS = ("field_system", "field_prompt", "field_chosen", "field_rejected", "field_completion", "field_label")


_WORDS = {"format": "{instruction} {input} ", "no_input_format": "{instruction} ", "system_format": "{system}"}
"""How Axolotl words the rows of a type of the user's that does not say it."""
_BRACES = 'write it so: {}: "{}"; a brace that is to stand in the text is written twice'


def _meant(odd: str, names: Sequence[str]) -> str:
    """What to do about a key that no type has."""
    meant = difflib.get_close_matches(odd, names, n=1)
    return f"write {meant[0]} in place of {odd}" if meant else f"take {odd} out, or write its text into format"


def _user_defined(entry: Said, given: dict[str, Any], known: dict[str, Rows]) -> Rows:
    """`type: {…}`: the words are the user's, with {instruction}, {input}, {system} to be filled."""
    formats = ("system_format", "format", "no_input_format", "prompt_format", "chosen_format", "rejected_format")
    names = (*_FIELDS, *_OF_PAIRS, *formats, "system_prompt", "completion_format")
    odd = [name for name in given if name not in names]
    if odd:
        fix = _meant(odd[0], names)
        expected = ", ".join(dict.fromkeys(names))
        entry.refuse("type", f"holds {', '.join(odd)}, which is not known", fix, expected=expected)
        return Rows("auto")
    if known is JUDGED:
        return _user_defined_judged(entry, given)
    if known is not INSTRUCT:
        return _user_defined_pair(entry, given)
    theirs = {name: str(given.get(f"field_{name}") or name) for name in ("instruction", "input", "system", "output")}
    hard = unnamed(theirs)
    columns = {name: name if name in hard else column for name, column in theirs.items()}
    try:
        prompt = _opening(given, columns["system"]) + _turn(given, columns)
    except (KeyError, ValueError, IndexError) as error:
        fix = _BRACES.format("format", "{instruction}\\n{input}")
        expected = "{instruction} in all but system_format, {input} in format, {system} in system_format"
        entry.refuse("type", f"has a format that cannot be filled: {error}", fix, expected=expected)
        return Rows("auto")
    note = None
    if given.get("format") is not None and given.get("no_input_format") is None:
        note = (
            f"type: {{format: …}} has no no_input_format: rows without an input are worded "
            f'"{_WORDS["no_input_format"]}", as Axolotl words them; give no_input_format for other words'
        )
    return Rows({"prompt": prompt, "answer": f"{{{{ {columns['output']} }}}}"}, "plain", hard, note=note)


def _said(given: Mapping[str, Any], name: str) -> str:
    return _WORDS[name] if given.get(name) is None else str(given[name])


def _turn(given: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Jinja of a row's instruction, with its input where it has one."""
    asked = {name: columns[name] for name in ("instruction", "input")}
    whole = jinja(_said(given, "format"), asked)
    bare = jinja(_said(given, "no_input_format"), {"instruction": columns["instruction"]})
    return f"{{% if {given_by(columns['input'])} %}}{whole}{{% else %}}{bare}{{% endif %}}"


def _opening(given: Mapping[str, Any], column: str) -> str:
    """Jinja of what a row says in its system column; of rows without the column, of the type's own system_prompt."""
    form, usual = _said(given, "system_format"), str(given.get("system_prompt") or "")
    own = jinja(form, {"system": column})
    if not usual:
        return f"{{% if {given_by(column)} %}}{own}{{% endif %}}"
    words = jinja(form, {}, {"system": usual})
    return f"{{% if {column} is not defined %}}{words}{{% elif {column} %}}{own}{{% endif %}}"


def _user_defined_judged(entry: Said, given: dict[str, Any]) -> Rows:
    """Answers that are wanted or not are read as they stand."""
    plain = {"prompt_format": "{prompt}", "completion_format": "{completion}"}
    worded = [name for name, form in plain.items() if given.get(name) not in (None, "", form)]
    if worded:
        fix = "write the words into the rows, or leave them to a chat template: type: chatml.ultra"
        entry.refuse("type", f"words its rows by {', '.join(worded)}, which is not done for kto", fix)
    names = {ours: str(given.get(f"field_{ours}") or ours) for ours in ("prompt", "completion", "label")}
    renamed = {ours: yours for ours, yours in names.items() if ours != yours}
    return Rows("unpaired", "plain", renamed, reads=tuple(names))


def _user_defined_pair(entry: Said, given: dict[str, Any]) -> Rows:
    names = ("prompt", "chosen", "rejected")
    theirs = {name: str(given.get(f"field_{name}") or name) for name in (*names, "system")}
    hard = unnamed(theirs)
    columns = {name: name if name in hard else column for name, column in theirs.items()}
    made = {}
    for name in names:
        try:
            made[name] = jinja(
                given.get(f"{name}_format") or f"{{{name}}}", {key: columns[key] for key in (name, "system")}
            )
        except (KeyError, ValueError, IndexError) as error:
            what = f"has a {name}_format that cannot be filled: {error}"
            fix = _BRACES.format(f"{name}_format", f"{{{name}}}")
            entry.refuse("type", what, fix, expected=f"{{{name}}}, {{system}}")
    return Rows(made or "auto", "plain", hard)
