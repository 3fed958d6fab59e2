"""Messages that a table wrote into a cell: a CSV has nothing but text, and a list in it is the JSON of the list.

The text is taken for messages where hardly anything else can be meant: it is wholly the JSON of a message, or of a list
of messages, each with a role that is known and a content. Text that begins so and is no JSON (pandas writes Python's
lists) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.strict_json import strict_value
from tunesmith.data.rows.messages import ROLES, Names, Unreadable

_BEGINS = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])([^'"]*)\1\s*:""")
_KEYS = {"role": ("role", "from"), "content": ("content", "value", "tool_calls", "function_call")}
_FIX = (
    "write such cells as JSON: in pandas, frame[column] = frame[column].map(json.dumps) before to_csv; where the text "
    'is meant as it stands, word it by a template: data.format={prompt: "{{ prompt }}", …}'
)


def turns_in(value: Any, key: str, names: Names | None = None) -> Any:
    """`value`, or the list of messages that its text is the JSON of; of a single message, a list of one."""
    begins = _BEGINS.match(value) if isinstance(value, str) else None
    if begins is None:
        return value
    own = {our: their for our, their in names.keys.items() if their} if names else {}
    roles, contents = ({*known, *(own[our] for our in own if our == word)} for word, known in _KEYS.items())
    known = ROLES.keys() | (names.roles if names else {})
    try:
        found = strict_value(value)
    except (ValueError, RecursionError) as error:
        said = re.findall(rf"""['"](?:{"|".join(map(re.escape, roles))})['"]\s*:\s*['"]([^'"]*)['"]""", value)
        if begins[2] not in roles | contents or known.isdisjoint(said):
            return value
        what = f"the column {key!r} begins like messages, and is no JSON: {error}"
        raise Unreadable(what, found=shown(value), fix=_FIX) from None

    def is_turn(item: Any) -> bool:
        said = {item[name] for name in roles if isinstance(item.get(name), str)} if isinstance(item, Mapping) else set()
        return bool(said) and said <= known and not contents.isdisjoint(item)

    items = found if isinstance(found, list) else [found]
    return items if all(map(is_turn, items)) else value
