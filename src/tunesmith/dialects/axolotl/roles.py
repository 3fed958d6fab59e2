"""Of an Axolotl file: what its rows call the speakers, and whose turns are learned."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.rows.messages import ROLES
from tunesmith.dialects.base import Said
from tunesmith.notation import write_inline

_OURS = ("system", "user", "assistant", "tool")
_SIDES = {"input": "user", "output": "assistant"}
"""What the roles of `type: sharegpt` are called: names on the side of the questions, and on that of the answers."""
_EXAMPLE = "write it so: roles: {user: [human], assistant: [gpt]}"


def roles(entry: Said) -> dict[str, str]:
    """{theirs: ours}, less the names that are known without."""
    given = entry.raw("roles")
    if given is not None and not isinstance(given, dict):
        expected = "a mapping of roles to lists of names"
        entry.refuse("roles", f"cannot be {write_inline(given)}", _EXAMPLE, expected=expected)
    named = dict(_named(entry))
    odd = list(dict.fromkeys(ours for ours in named.values() if ours not in _OURS))
    if odd:
        entry.refuse("roles", f"names {', '.join(odd)}, which is no speaker here", _EXAMPLE, expected=", ".join(_OURS))
        return {}
    for key in ("field_human", "field_model"):
        entry.raw(key)
    same = {"human": "user", "gpt": "assistant"}
    return {theirs: ours for theirs, ours in named.items() if theirs != ours and same.get(theirs) != ours}


def roles_to_train(entry: Said) -> list[str]:
    """In our words, by the entry's own names and then by the usual ones. An empty list is not the default: it leaves
    all to the flags of the messages."""
    if entry.values.get("roles_to_train") == []:
        entry.raw("roles_to_train")
        return []
    named, given = dict(_named(entry)), entry.items("roles_to_train", str)
    made = [named.get(role, ROLES.get(role, role)) for role in given]
    odd = [role for role, ours in zip(given, made, strict=True) if ours not in _OURS]
    if odd:
        fix = f"name one of these, or say whose name it is: roles: {{assistant: [{odd[0]}]}}"
        what = f"names {', '.join(odd)}, which is no speaker here"
        entry.refuse("roles_to_train", what, fix, expected=", ".join(_OURS))
        return ["assistant"]
    return list(dict.fromkeys(made)) or ["assistant"]


def _named(entry: Said) -> Iterator[tuple[str, str]]:
    """(theirs, ours) for every name that the entry gives."""
    given = entry.values.get("roles")
    is_shared = str(entry.values.get("type")).startswith("sharegpt")
    for said, names in given.items() if isinstance(given, dict) else ():
        side = _SIDES.get(str(said)) if is_shared else None
        for name in names if isinstance(names, list) else [names]:
            if name is None or (side == "user" and ROLES.get(str(name)) in ("system", "tool")):
                continue
            yield str(name), side or ROLES.get(str(said), str(said))
    for key, ours in (("field_human", "user"), ("field_model", "assistant")):
        if entry.has(key):
            yield str(entry.values[key]), ours
