"""Write the pages of docs/ that are made from the code: settings.md, storages.md, methods.md, one for each method.

python scripts/make_docs.py            writes them
python scripts/make_docs.py --check    fails where a page is not what it would write
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from dialects_page import dialects_page
from memory_section import memory_section
from methods_page import methods_page
from page_parts import DOCS, MADE, cell, line_of, read
from storage_pairs import pairs_section

from tunesmith.adapters import METHODS
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.compare.settings import ForgetSettings, StudySettings, TestSettings
from tunesmith.data.settings import HeldOut, SourceSettings, TemplateFormat
from tunesmith.objectives import OBJECTIVES
from tunesmith.quant import QUANTISED
from tunesmith.recipe import SECTIONS
from tunesmith.search.settings import SearchSettings
from tunesmith.search.space import Range
from tunesmith.settings import Settings

RECORDS = {"TestSettings": "[test](#test)", "ForgetSettings": "[forget](#forget)"}
RECORDS |= {"Range": "[{low, high, log}](#space-a-range)"}
RECORDS |= {"TemplateFormat": "{prompt, answer, system, …}", "HeldOut": "{share, count, file, key}"}
RECORDS |= {"SourceSettings": "{path, format, weight, …}"}
"""Records inside a setting, as their keys."""
MEASURED = {"lora-fa": memory_section}
"""What was measured of a single method, for its page."""


def pages() -> dict[str, str]:
    """The text of every made page, by file name."""
    methods = {f"{name}.md": method_page(name, module) for name, module in METHODS.items()}
    made = {"settings.md": settings_page(), "storages.md": storages_page(), "methods.md": methods_page()}
    made["dialects.md"] = dialects_page()
    return made | methods


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
        elif section == "objective":
            parts.append(f"## {section}\n\nBy `objective.kind`, sft where nothing is said:\n")
            parts += [f"### objective, kind: {name}\n\n{own_table(module)}" for name, module in OBJECTIVES.items()]
        else:
            parts.append(f"## {section}\n\n{table(record)}")
        if section == "data":
            parts.append(f"### data.train, a source of several\n\n{table(SourceSettings)}")
            parts.append(f"### data.format, over any columns\n\n{table(TemplateFormat)}")
            parts.append(f"### data.held_out, written out\n\n{table(HeldOut)}")
    parts.append(f"## A study\n\nOf `tunesmith compare`: [comparing](compare.md).\n\n{table(StudySettings)}")
    parts.append(f"### test\n\n{table(TestSettings)}")
    parts.append(f"### forget\n\n{table(ForgetSettings)}")
    parts.append(f"## A search\n\nOf `tunesmith search`: [searching](search.md).\n\n{table(SearchSettings)}")
    parts.append(f"### space, a range\n\n{table(Range)}")
    return "\n".join(parts)


def method_page(name: str, module: ModuleType) -> str:
    header = (module.__doc__ or "").strip()
    title, _, body = header.partition("\n")
    chosen = {key: module.Settings.model_fields[key] for key in AdapterSettings.model_fields}
    return "\n".join(
        [
            f"# {title.rstrip('.')}\n\n{MADE}",
            f"```text\n{body.strip()}\n```\n",
            "## In a recipe\n",
            f"```yaml\n{example(name, module)}```\n",
            f"{own_table(module)}",
            *placed(module, chosen),
            "## In PEFT's files\n",
            in_peft(module),
            *([MEASURED[name]()] if name in MEASURED else []),
        ]
    )


def placed(module: ModuleType, chosen: Mapping[str, Any]) -> list[str]:
    """How to choose where it stands, of a method that stands beside layers."""
    if issubclass(module.Settings, VirtualSettings):
        return []
    return ["Which layers, and what else is trained, is chosen as for every method:\n", table(module.Settings, chosen)]


def in_peft(module: ModuleType) -> str:
    config = module.to_peft(module.Settings())
    if config["peft_type"].startswith("TUNESMITH"):
        unmerged = getattr(module, "UNMERGEABLE", None)
        others = "For other programs, [merge](adapters.md#merging)." if unmerged is None else f"No merging: {unmerged}."
        return (
            f"PEFT has no such method: the folder is of the type `{config['peft_type']}`, which PEFT refuses. "
            f"Tunesmith reads it. {others}\n"
        )
    fields = ", ".join(f"`{field}`" for field in config)
    return f"The maths stands in {fields} of `adapter_config.json`; see [adapters](adapters.md).\n"


STORAGES_HEAD = """\
The base of an adapter never changes, so it may be held in fewer bits than it is multiplied in. Every storage is
asked for its numbers through one door: an adapter sees the dequantised weight, makes its product with it in
`model.dtype`, and drops it; the backward pass asks again. So a row's result depends on that row alone, whatever
shares its batch.

```yaml
model:
  name: HuggingFaceTB/SmolLM2-135M-Instruct
  storage: nf4-double
data:
  train: recipes/data/marketing_mail.jsonl
  columns: {prompt: description, completion: mail}
```

`auto` holds the base as its files do; `plain` in `model.dtype`, files in few bits being dequantised once, for good.
The others quantise a plain checkpoint while it is read, one matrix at a time, from the numbers in its files; they
need `pip install 'tunesmith[bitsandbytes]'`. Only the linear layers of the blocks are held so. Embeddings, head,
norms, biases and stacks of experts stay as they are.

People who know QLoRA elsewhere: `load_in_4bit` with `bnb_4bit_quant_type: nf4` is `nf4`; with
`bnb_4bit_use_double_quant` it is `nf4-double`; `load_in_8bit` is `int8`.
"""

STORAGES_TAIL = """## What is read

- **Plain** safetensors in 16 or 32 bits.
- Checkpoints that **bitsandbytes** quantised (NF4, FP4, with or without double quantisation, int8), as they are.
- **GPTQ** checkpoints of 2, 4 or 8 bits, in either format, with any group size and order. They are read in torch;
  neither gptqmodel nor optimum is needed. It is a plain path: dequantising takes several passes over the matrix.
- **GGUF** files: dequantised once into a plain folder in the cache (needs `pip install gguf accelerate`). Nothing
  is saved in memory; with `model.storage` the folder may be quantised again while it is read.
- AWQ, HQQ, FP8 and all others are refused by name before any weight is read.

An architecture whose linear layers are of a class of its own (Falcon) cannot be quantised while it is read, and is
refused.

## An adapter and its storage

An adapter remembers its base by name, revision, storage and a fingerprint. On the same base in the same storage it
is recognised by the stored integers and scales. On the same base **held otherwise** (an adapter of an NF4 base
served on the 16-bit one, as is often done) it is loaded, and that is said: the weights differ by what the rounding
cost, and so do answers. There only embeddings, head, norms and biases can be compared. `chat`, `generate`,
`evaluate` and `merge` take the run's own storage; `--storage plain` is the other choice.

Merging goes to plain weights of the dtype in the base's files, from the dequantised weights that the adapter saw.
The merged model is as large as the original; quantised anew, its rounding is another than the one that the adapter
learned on.
"""


def storages_page() -> str:
    headers = {name: (module.__doc__ or "").strip() for name, module in QUANTISED.items()}
    rows = [
        f"| `{name}` | {cell(header.partition(chr(10))[0].rstrip('.'))} | {cell(line_of(header, 'Bits'))} |"
        for name, header in headers.items()
    ]
    sources = dict.fromkeys(headers.values())
    return "\n".join(
        [
            f"# Storages\n\n{MADE}",
            STORAGES_HEAD,
            "## Which there are\n\n| storage | what it is | bits |\n|---|---|---|\n" + "\n".join(rows) + "\n",
            pairs_section(),
            measured(),
            STORAGES_TAIL,
            "## As the files say it\n",
            *[f"```text\n{header}\n```\n" for header in sources],
        ]
    )


def measured() -> str:
    """The newest result of benchmarks/storages.py for each size."""
    newest: dict[str, dict[str, Any]] = {}
    for result in read("*-storages-*.json").values():
        newest[result["subject"]] = result
    if not newest:
        return ""
    lines = [
        "## What they cost and save here\n",
        "LoRA of rank 8 on all linear layers, one micro-step of 4,096 learned tokens, each storage in a process of its "
        "own (`benchmarks/storages.py`). Memory is all that is resident in the process, the libraries included.\n",
        "| model | storage | matrices | most while reading | most while training | s a step | of plain's time |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, result in sorted(newest.items()):
        for name, one in result["contenders"].items():
            figures = [
                f"{one[key] / 1e6:,.0f} MB" for key in ("matrix_bytes", "peak_bytes_loading", "peak_bytes_training")
            ]
            times = f"{one['median_seconds']:.2f} | {1 / result['ratios'][name]:.2f}"
            lines.append(f"| {size} | {name} | {' | '.join(figures)} | {times} |")
    made = sorted(
        {(result["date"][:10], result["machine"]["cpu"], result["machine"]["cores"]) for result in newest.values()}
    )
    kinds = sorted({one["dtype"] for result in newest.values() for one in result["contenders"].values()})
    where = "; ".join(f"{date}, {cpu}, {cores} cores" for date, cpu, cores in made)
    lines.append(f"\nMeasured {where}, products in {', '.join(kinds)}.\n")
    return "\n".join(lines)


def example(name: str, module: ModuleType) -> str:
    """The adapter section with the method's own settings at their defaults."""
    lines = ["adapter:", f"  method: {name}"]
    for key, field in own_fields(module).items():
        if key != "method":
            lines.append(f"  {key}: {json.dumps(field.default)}")
    return "\n".join(lines) + "\n"


def own_table(module: ModuleType) -> str:
    return table(module.Settings, own_fields(module))


def own_fields(module: ModuleType) -> dict[str, Any]:
    """The method's own settings, and those of every method where it has another default."""
    every = AdapterSettings.model_fields
    return {k: v for k, v in module.Settings.model_fields.items() if k not in every or v.default != every[k].default}


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
