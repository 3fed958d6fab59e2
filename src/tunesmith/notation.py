"""YAML as recipes write it: every value with its line, no key twice, and scalars as YAML 1.2 reads them.

PyYAML follows YAML 1.1, where `1e-4` is text, `no` is false and a date is an object. Here `1e-4` is a number, only true
and false are booleans, and everything else that is no number or null is text. `read` and `write` agree on this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from tunesmith.errors import RecipeError, TunesmithError

Path = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""

MOST_NODES, MOST_DEPTH = 20_000, 24


@dataclass
class Lined:
    """A YAML text's value, the line of every key and list item, and what was wrong with it."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    errors: list[TunesmithError] = field(default_factory=list)


def _core_schema(kind: Any) -> None:
    """`kind` (a loader or dumper) with YAML 1.2 scalars; integers may group their digits: 1_000."""
    kind.yaml_implicit_resolvers = {}
    number = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    for tag, pattern, first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("int", r"^(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$", "-+0123456789"),
        ("float", f"^(?:{number})$", "-+.0123456789"),
        ("merge", r"^<<$", "<"),
    ):
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_core_schema(_Loader)
_core_schema(_Dumper)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return int(text, 8) if text.startswith("0o") else int(text, 16) if text.startswith("0x") else int(text)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Unprintable characters are escaped: PyYAML folds some of them as line breaks otherwise."""
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read(text: str, source: str) -> Lined:
    """The value of one YAML document. What is wrong with it is collected, not raised."""
    lined = Lined()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            lined.value = _Walk(loader, source, lined).value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        lined.errors.append(RecipeError(f"this is not YAML: {problem}", where=where))
    except ValueError as error:
        lined.errors.append(RecipeError(f"this is not YAML: {error}", where=source))
    finally:
        if loader is not None:
            loader.dispose()
    return lined


class _Walk:
    """Turns nodes into values and keeps their lines; stops at texts built to explode."""

    def __init__(self, loader: _Loader, source: str, lined: Lined) -> None:
        self.loader, self.source, self.lined, self.num_nodes = loader, source, lined, 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MOST_NODES or len(path) > MOST_DEPTH:
            raise ValueError("it is nested or repeated beyond any recipe")
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, item in enumerate(node.value):
                self.lined.lines[(*path, index)] = item.start_mark.line + 1
                values.append(self.value(item, (*path, index)))
            return values
        value = self.loader.construct_object(node)
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError(f"line {node.start_mark.line + 1} holds a {type(value).__name__}, which no setting can be")
        return value

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        first_line: dict[str, int] = {}
        own = len(node.value)
        merged = [pair for pair in node.value if pair[0].tag == "tag:yaml.org,2002:merge"]
        if merged:
            self.loader.flatten_mapping(node)
            own = len(node.value) - (own - len(merged))  # merged pairs stand in front; own keys may repeat those
        for index, (key_node, value_node) in enumerate(node.value):
            line = key_node.start_mark.line + 1
            key = self.value(key_node, path)
            if not isinstance(key, str):
                self.lined.errors.append(
                    RecipeError(
                        "a setting's name must be text",
                        where=f"{self.source}, line {line}",
                        found=repr(key),
                        fix='put quotes around Jinja: "{{ column }}"' if isinstance(key, dict) else None,
                    )
                )
                continue
            if not (merged and index < own):
                if key in first_line:
                    name = dotted((*path, key))
                    self.lined.errors.append(
                        RecipeError(
                            f"{name} is given twice",
                            where=f"{self.source}, line {line}",
                            found=f"the first is in line {first_line[key]}",
                            fix="keep one of them",
                        )
                    )
                    continue
                first_line[key] = line
            self.lined.lines[(*path, key)] = line
            yield key, self.value(value_node, (*path, key))


def read_scalar(text: str) -> Any:
    """A value as typed on the command line: YAML; nothing at all is null. Bare Jinja is text."""
    start = text.lstrip()
    is_jinja = start.startswith(("{{", "{%")) or not start.startswith(("{", "[", '"', "'"))
    if is_jinja and ("{{" in text or "{%" in text):
        return text
    lined = read(text, "command line")
    if lined.errors:
        raise lined.errors[0]
    return lined.value


def write(value: Any) -> str:
    """`value` as YAML that `read` gives back unchanged."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def write_inline(value: Any) -> str:
    """`value` on one line, as JSON where YAML would take several (every JSON text is YAML)."""
    if isinstance(value, dict | list) or (isinstance(value, str) and not value.isprintable()):
        text = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    return write(value).removesuffix("\n").removesuffix("\n...").strip()


def dotted(path: Path) -> str:
    """("data", "columns", "text", 0) -> data.columns.text[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def read_size(text: str, where: str) -> int:
    """Bytes of "24GB", "16 GiB", "800M", "77B": powers of ten, or of two with an i. A number alone says no unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]i?)b?|(b)|)\s*", text, re.I)
    if match is not None and match[2] is match[3] is None:
        meant = f"did you mean {match[1]}GB? For bytes, write {match[1]}B"
        raise RecipeError("is a number without a unit", where=where, found=text, fix=meant)
    if match is None:
        raise RecipeError("is not a size", where=where, found=text, fix="give one such as 24GB, 16GiB or 800MB")
    return round(float(match[1]) * _UNITS[(match[2] or "").lower()])
