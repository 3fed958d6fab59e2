"""Write the pages of docs/ that are made from the code: settings.md, and one page for each adapter method.

python scripts/make_docs.py            writes them
python scripts/make_docs.py --check    fails where a page is not what it would write
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.adapters import METHODS
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.settings import HeldOut, TemplateFormat
from tunesmith.recipe import SECTIONS
from tunesmith.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- made by scripts/make_docs.py from the code; change it there -->\n"
RECORDS = {"TemplateFormat": "{prompt, answer, system}", "HeldOut": "{share, count, file, key}"}
"""Records inside a setting, as their keys."""


def pages() -> dict[str, str]:
    """The text of every made page, by file name."""
    methods = {f"{name}.md": method_page(name, module) for name, module in METHODS.items()}
    return {"settings.md": settings_page(), **methods}


def settings_page() -> str:
    parts = [
        f"# Settings\n\n{MADE}",
        "Every key of a recipe, by section. On the command line: `section.key=value`, and `section.key=` for null. "
        "What is not here is refused, with the line and what was probably meant.\n",
    ]
    for section, record in SECTIONS.items():
        if section == "adapter":
            parts.append(f"## {section}\n\nThese, and those of the method:\n\n{table(record)}")
            for name, module in METHODS.items():
                parts.append(f"### adapter, method: {name}\n\n{own_table(module)}")
        else:
            parts.append(f"## {section}\n\n{table(record)}")
        if section == "data":
            parts.append(f"### data.format, over any columns\n\n{table(TemplateFormat)}")
            parts.append(f"### data.held_out, written out\n\n{table(HeldOut)}")
    return "\n".join(parts)


def method_page(name: str, module: ModuleType) -> str:
    header = (module.__doc__ or "").strip()
    title, _, body = header.partition("\n")
    fields = ", ".join(f"`{field}`" for field in module.to_peft(module.Settings()))
    return "\n".join(
        [
            f"# {title.rstrip('.')}\n\n{MADE}",
            f"```text\n{body.strip()}\n```\n",
            "## In a recipe\n",
            f"```yaml\n{example(name, module)}```\n",
            f"{own_table(module)}",
            *placed(module),
            "## In PEFT's files\n",
            f"The maths stands in {fields} of `adapter_config.json`; see [adapters](adapters.md).\n",
        ]
    )


def placed(module: ModuleType) -> list[str]:
    """How to choose where it stands, of a method that stands beside layers."""
    if issubclass(module.Settings, VirtualSettings):
        return []
    return ["Which layers, and what else is trained, is chosen as for every method:\n", table(AdapterSettings)]


def example(name: str, module: ModuleType) -> str:
    """The adapter section with the method's own settings at their defaults."""
    lines = ["adapter:", f"  method: {name}"]
    for key, field in module.Settings.model_fields.items():
        if key not in AdapterSettings.model_fields and key != "method":
            lines.append(f"  {key}: {json.dumps(field.default)}")
    return "\n".join(lines) + "\n"


def own_table(module: ModuleType) -> str:
    own = {k: v for k, v in module.Settings.model_fields.items() if k not in AdapterSettings.model_fields}
    return table(module.Settings, own)


def table(record: type[Settings], fields: Mapping[str, Any] | None = None) -> str:
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, field in (fields or record.model_fields).items():
        default = (
            "*needed*" if field.is_required() else f"`{json.dumps(plain(field.get_default()), ensure_ascii=False)}`"
        )
        text = " ".join((field.description or "").split())
        kind = cell(type_of(record, key))
        lines.append(f"| `{key}` | {kind} | {default} | {cell(text)} |")
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def type_of(record: type[Settings], key: str) -> str:
    """The type in words, from the JSON schema: it knows the bounds."""
    schema = record.model_json_schema()
    return words(schema["properties"][key], schema.get("$defs", {}))


def words(schema: Mapping[str, Any], records: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(words(part, records) for part in schema["anyOf"]))
    if "$ref" in schema:
        return RECORDS[schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        return " \\| ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items")
        return f"list of {words(items, records)}" if items else "two numbers"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false"}
    names |= {"object": "mapping", "null": "null"}
    return names[kind] + bounds(schema)


def bounds(schema: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    said = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " " + ", ".join(said) if said else ""


def cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def main() -> None:
    made = pages()
    if "--check" in sys.argv[1:]:
        stale = [
            name for name, text in made.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text
        ]
        if stale:
            raise SystemExit(f"not up to date: {', '.join(stale)}; run python scripts/make_docs.py")
        return
    for name, text in made.items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
