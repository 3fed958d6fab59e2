"""Function calls in an answer, read in the notations that models write, and compared with what was wanted.

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      JSON bare, fenced, in a list, in OpenAI's nesting
    f(a=1, b="x")        [f(a=1), g(b=2)]                     Python

The comparison is that of the Berkeley Function-Calling Leaderboard (AST match): the same functions, every required
argument, none unknown, each value among its alternatives; "" among them means that it may be left out. Text is compared
without case, spaces and the punctuation `,./-_*^`; 5 is a number where 5.0 is wanted, "5" is not.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError

_TAGGED = re.compile(r"<(tool_call|function_call|functioncall|tool_calls)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```[ \t]*\w*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_MARKERS = re.compile(r"<\|python_tag\|>|\[TOOL_CALLS\]|<\|[a-z_]+\|>")
_CALL_START = re.compile(r"[A-Za-z_][\w.]*\(")
_LOOSE = re.compile(r"[ ,./\-_*^]")
_NAMES = {"true": True, "false": False, "null": None, "none": None}
LONGEST = 20_000
"""Characters of an answer that are read."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()


def parse_calls(text: str) -> list[Call]:
    """Every call found in `text`, in order; empty if there is none."""
    text = text[:LONGEST]
    for pieces in ([m.group(2) for m in _TAGGED.finditer(text)], _FENCED.findall(text), [text]):
        calls = [call for piece in pieces for call in _read(_MARKERS.sub(" ", piece).strip())]
        if calls:
            return calls
    return []


def _read(text: str) -> list[Call]:
    return _from_python(text) or _from_json(text) or _from_talk(text)


def _from_json(text: str) -> list[Call]:
    """Calls in the JSON values that stand in `text`, talk between them skipped."""
    decoder, calls, at = json.JSONDecoder(), [], 0
    while match := re.compile(r"[\[{]").search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.start() + 1
            continue
        calls += _calls_in(value)
    return calls


def _calls_in(value: Any) -> list[Call]:
    """`value` in one of the shapes that stand for calls."""
    if isinstance(value, list):
        return [call for item in value for call in _calls_in(item)]
    if not isinstance(value, dict):
        return []
    if "tool_calls" in value:
        return _calls_in(value["tool_calls"])
    if isinstance(value.get("function"), dict):
        return _calls_in(value["function"])
    name = value.get("name", value.get("function"))
    if isinstance(name, str):
        given: Any = next((value[key] for key in ("arguments", "parameters", "args") if key in value), {})
        arguments = _loads(given) if isinstance(given, str) else given
        return [Call(name, arguments)] if isinstance(arguments, dict) else []
    if len(value) == 1:
        name, arguments = next(iter(value.items()))
        return [Call(name, arguments)] if isinstance(arguments, dict) else []
    return []


def _loads(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _from_python(text: str) -> list[Call]:
    """A call, or a list of calls, that is the whole of `text`; or one dict as Python writes it."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
    calls = [_call_of(item) for item in nodes]
    if nodes and all(calls):
        return [call for call in calls if call]
    return _calls_in(_loads(text)) if isinstance(node, ast.Dict | ast.List) else []


def _call_of(node: ast.AST) -> Call | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        return None
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return Call(ast.unparse(node.func), arguments, tuple(_value(item) for item in node.args))


def _value(node: ast.AST) -> Any:
    """What a literal means; anything else as it is written."""
    if isinstance(node, ast.Name) and node.id.lower() in _NAMES:
        return _NAMES[node.id.lower()]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return ast.unparse(node)


def _from_talk(text: str) -> list[Call]:
    """Python calls inside a sentence; one inside another's arguments is no call of its own."""
    calls, at = [], 0
    while match := _CALL_START.search(text, at):
        at = match.end()
        for end in _closings(text, match.end()):
            if found := _from_python(text[match.start() : end]):
                calls += found
                at = end
                break
    return calls


def _closings(text: str, start: int, most: int = 20) -> Iterator[int]:
    """Where a closing bracket may end what began at `start`."""
    for _ in range(most):
        at = text.find(")", start)
        if at < 0:
            return
        start = at + 1
        yield start


@dataclass(frozen=True)
class _Wanted:
    """`listed`: each argument has its alternatives, "" among them where it may be left out."""

    name: str
    arguments: dict[str, Any]
    listed: bool


def calls_match(calls: Sequence[Call], truth: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Each wanted call is made once, in any order, and no other.

    truth   BFCL's `{name: {argument: [alternatives]}}`, or plain `{"name": …, "arguments": {…}}`
    """
    wanted = [_wanted(item) for item in truth]
    if len(calls) != len(wanted):
        return False
    left = list(calls)
    for one in wanted:
        found = next((call for call in left if _same_call(call, one, tools)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _wanted(item: Any) -> _Wanted:
    call = item["function"] if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping) else item
    if isinstance(call, Mapping) and isinstance(call.get("name"), str):
        given = call.get("arguments") or {}
        arguments = _loads(given) if isinstance(given, str) else given
        if isinstance(arguments, Mapping):
            return _Wanted(call["name"], dict(arguments), listed=False)
    elif isinstance(call, Mapping) and len(call) == 1:
        name, arguments = next(iter(call.items()))
        if isinstance(arguments, Mapping) and all(isinstance(values, list) for values in arguments.values()):
            return _Wanted(name, dict(arguments), listed=True)
    raise DataError(
        "the right answer is no function call",
        found=str(item)[:80],
        expected='{"name": …, "arguments": {…}}, or {name: {argument: [alternatives]}}',
    )


def _schema(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The parameters of the tool called `name`: {} where it is not described."""
    for tool in tools:
        described = tool.get("function") or tool
        if isinstance(described, Mapping) and _plain_name(str(described.get("name", ""))) == _plain_name(name):
            parameters = described.get("parameters")
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def _plain_name(name: str) -> str:
    # many models cannot write a dot in a name, and their tools are given to them with underscores
    return name.replace(".", "_")


def _same_call(call: Call, wanted: _Wanted, tools: Sequence[Mapping[str, Any]]) -> bool:
    if _plain_name(call.name) != _plain_name(wanted.name):
        return False
    schema = _schema(wanted.name, tools)
    properties = schema.get("properties") or {}
    order = list(properties) or list(wanted.arguments)
    if len(call.positional) > len(order) or set(order[: len(call.positional)]) & set(call.arguments):
        return False
    arguments = dict(zip(order, call.positional, strict=False)) | call.arguments
    if any(key not in wanted.arguments for key in arguments):
        return False
    if any(key not in arguments for key in schema.get("required") or ()):
        return False
    for key, value in wanted.arguments.items():
        options = value if wanted.listed else [value]
        if key not in arguments:
            if wanted.listed and "" in options:
                continue
            return False
        described = properties.get(key)
        kind = described.get("type") if isinstance(described, Mapping) else None
        if not any(same_value(arguments[key], option, kind, listed=wanted.listed) for option in options):
            return False
    return True


def same_value(found: Any, wanted: Any, kind: str | None = None, *, listed: bool = True) -> bool:
    """Whether an argument is the one wanted; `kind` is its type in the tool's description. `listed`: the values of an
    object may be lists of alternatives."""
    if isinstance(wanted, bool) or isinstance(found, bool) or wanted is None or found is None:
        return found is wanted
    if isinstance(wanted, str) and isinstance(found, str):
        return _loose(found) == _loose(wanted)
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return found == wanted and not (kind == "integer" and isinstance(found, float))
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(same_value(a, b, listed=listed) for a, b in pairs)
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return _same_mapping(found, wanted, listed=listed)
    return False


def _same_mapping(found: Mapping[str, Any], wanted: Mapping[str, Any], *, listed: bool) -> bool:
    """BFCL lists alternatives inside an object too; a plain value is its own one alternative."""
    if not listed:
        same_keys = found.keys() == wanted.keys()
        return same_keys and all(same_value(found[key], value, listed=False) for key, value in wanted.items())
    options = {key: value if isinstance(value, list) else [value] for key, value in wanted.items()}
    if any(key not in options for key in found):
        return False
    return all(
        any(same_value(found[key], option) for option in [*values, wanted[key]]) if key in found else "" in values
        for key, values in options.items()
    )


def _loose(text: str) -> str:
    return _LOOSE.sub("", text).lower().replace("'", '"')


def tool_call(prediction: str, gold: Any, tools: Any = ()) -> float:
    """1 if the calls in the answer are those of `gold`: a list of calls, or text as a model writes them (none in it:
    no call is wanted). `tools` may be JSON text."""
    described = _described(tools)
    if isinstance(gold, str):
        truth = [{"name": call.name, "arguments": _named(call, described)} for call in parse_calls(gold)]
    elif isinstance(gold, list | tuple):
        truth = list(gold)
    else:
        raise DataError(
            "the right answer is no list of function calls",
            found=f"{type(gold).__name__} {str(gold)[:80]}",
            expected='[{"name": "f", "arguments": {"x": 1}}], or BFCL\'s form',
        )
    for item in truth:
        _wanted(item)  # refused, if it is no call, whatever the answer
    return float(calls_match(parse_calls(prediction), truth, described))


def _named(call: Call, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    order = list(_schema(call.name, tools).get("properties") or {})
    if len(call.positional) > len(order):
        raise DataError(
            "the right answer's call does not name its arguments, and no tool describes them",
            found=str(call)[:80],
            fix="name the arguments, or give the row the column tools",
        )
    return dict(zip(order, call.positional, strict=False)) | call.arguments


def _described(tools: Any) -> list[Mapping[str, Any]]:
    tools = _loads(tools) if isinstance(tools, str) else tools
    given = [_loads(tool) if isinstance(tool, str) else tool for tool in tools or ()]
    return [tool for tool in given if isinstance(tool, Mapping)]
