"""docs/dialects.md: every key of other tools' files that is known, and its fate."""

from __future__ import annotations

from page_parts import MADE, cell

from tunesmith.dialects import DIALECTS
from tunesmith.dialects.axolotl.types import INSTRUCT, JUDGED, PAIRS, REWARDED, Rows
from tunesmith.dialects.base import Dialect, Fate

HEAD = """\
A file of another tool runs as it stands, and nothing in it is passed over in silence.

<!-- not run: the file is yours -->
```sh
tunesmith train their.yml                                         # as it is
tunesmith train their.yml base_model=my/model datasets[0].path=rows.jsonl max_steps=20    # in its words
tunesmith train their.yml adapter.r=4 train.minutes=10            # in ours
tunesmith convert their.yml > recipe.yaml                         # a recipe of ours, and what became of each key
tunesmith train their.yml --strict                                # refuse what has no effect here
```

Which tool a file belongs to is seen from its keys. Each of them is

- **carried over**: a setting of ours says the same; the resolved recipe in the run folder names the line it came from;
- **without effect here**: nothing that is learned depends on it, and the report says why. `--strict` refuses it;
- **refused**: it would change what is learned in a way that does not exist here. The error says what to do, for all
  such keys at once, before anything is loaded.

A key that is empty, or whose feature is off, is named as such. A key that nobody knows is refused with what was
probably meant. Where the other tool has a default that differs from ours, the recipe holds it, marked as its default.
"""


def dialects_page() -> str:
    parts = [f"# Other tools' files\n\n{MADE}", HEAD]
    for name, dialect in DIALECTS.items():
        parts.append(_section(dialect))
        if name == "axolotl":
            parts.append(_types())
    return "\n".join(parts)


def _section(dialect: Dialect) -> str:
    counts = ", ".join(f"{sum(key.fate is fate for key in dialect.KEYS.values())} {fate.value}" for fate in Fate)
    about = " ".join(line.strip() for line in (dialect.__doc__ or "").strip().split("\n\n")[0].splitlines())
    lines = [f"## {dialect.CALLED}\n", f"{about} {len(dialect.KEYS)} keys: {counts}.\n"]
    for fate, title in ((Fate.CARRIED, "as"), (Fate.IDLE, "why"), (Fate.REFUSED, "what to do")):
        by_text: dict[str, list[str]] = {}
        for key, entry in dialect.KEYS.items():
            if entry.fate is fate:
                by_text.setdefault(entry.text, []).append(key)
        if not by_text:
            continue
        lines += [f"### {dialect.CALLED}, {fate.value}\n", f"| key | {title} |", "|---|---|"]
        lines += [f"| {', '.join(f'`{key}`' for key in keys)} | {cell(text)} |" for text, keys in by_text.items()]
        lines.append("")
    return "\n".join(lines)


def _types() -> str:
    lines = [
        "### Axolotl, types of rows\n",
        "Types that word their rows are written here by Jinja over the same columns (`data.format`) under a chat "
        "template; a type that is not here can be worded with `type: {format: …}`.\n",
        "| type | read as | chat template |",
        "|---|---|---|",
        "| `chat_template` and its variants, `sharegpt` | messages | the file's, or the model's own |",
    ]
    tables = (INSTRUCT, PAIRS, JUDGED, REWARDED)
    lines += [_row(name, rows) for table in tables for name, rows in table.items()]
    lines += ["| a mapping | its own words | `plain` |", ""]
    return "\n".join(lines)


def _row(name: str, rows: Rows) -> str:
    form = rows.format if isinstance(rows.format, str) else "its own words: " + ", ".join(rows.format)
    template = "the file's, or the model's own" if rows.template is None else rows.template
    return f"| `{name}` | {form} | {'a template of its own' if '{' in template else template} |"
