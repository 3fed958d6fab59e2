"""docs/dialects.md: every key of other tools' files that is known, and its fate."""

from __future__ import annotations

from page_parts import MADE, cell

from tunesmith.dialects import DIALECTS
from tunesmith.dialects.axolotl.types import INSTRUCT, JUDGED, PAIRS, REWARDED, Rows
from tunesmith.dialects.base import Dialect, Fate

HEAD = """\
A file of another tool can be given in place of a recipe. Nothing in it is passed over in silence: if it asks for
something that does not exist here it is refused, with all such keys at once; otherwise it runs.

<!-- not run: the file is yours -->
```sh
tunesmith train their.yml                                         # as it is
tunesmith train their.yml base_model=my/model "datasets[0].path=rows.jsonl" max_steps=20    # in its words
tunesmith train their.yml adapter.r=4 train.minutes=10            # in ours
tunesmith convert their.yml > mine.yaml                           # the recipe; the keys' fates go to the terminal
tunesmith train their.yml --strict                                # refuse what has no effect here
```

`train`, `check`, `plan`, `rehearse`, `search`, `evaluate --recipe`, the `recipe:` of a study, and in Python
`tunesmith.load(path)` take such files. Which tool a file belongs to is seen from its keys: Axolotl has `base_model`;
LLaMA-Factory `model_name_or_path` with one of `stage`, `finetuning_type`, `template`, `cutoff_len`, `dataset_dir`, or,
without `dataset_name`, of `dataset`, `lora_rank`, `lora_target`, `quantization_bit`; TRL `model_name_or_path` alone;
LitGPT `checkpoint_dir` or a `lora_` key.

What is typed in the other tool's words changes its file before it is read; an entry that stands alone in its list
needs no number (`datasets.path=rows.jsonl`). What is typed in ours takes the place of what the file says: a budget of
all its budgets, another method or objective of the settings that it does not have. A dotted key that both know is the
other tool's.

Each key of the file is

- **carried over**: a setting of ours says the same; the resolved recipe in the run folder names the line it came
  from. A value can still be one that is refused (`optimizer: lion`);
- **without effect here**: this program has nothing that the key could change, and the report says why. `--strict`
  refuses it, empty keys too. (On several devices the other tool's batch was larger by their number: multiply
  `gradient_accumulation_steps` by it.)
- **refused**: it asks for something that is not done here, and the error says what to do.

Rows are read as the other tool reads them. Columns that it passes over, and that a format here would read, are null in
`data.columns` (a `system` beside TRL's `messages`, say); the marks in messages that none of them obeys (`weight`,
`train`) are null in `data.message_keys`. Both are named before the run, and can be set otherwise.

A key that is empty, or whose feature is off, is named as such. A key that nobody knows is refused with what was
probably meant. What the file leaves to the other tool's defaults is written down too, and marked as its default.
`convert` writes paths absolute; `--quiet` leaves out the report.

A TRL file does not say which trainer reads it: type `trainer=dpo` (sft, dpo, kto, orpo, cpo, reward, grpo, rloo).
Without it a key that one trainer alone has decides, else it is sft; a file here whose rows are pairs or have labels is
then refused. LitGPT's says no command: `command=finetune_full`
or `finetune_lora`.

LLaMA-Factory's `dataset` names entries of `dataset_info.json`, looked for in `dataset_dir` (default `data`) from the
current folder and from the file's, and beside the file; a path may stand in place of a name.
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
        "| with | type | read as | chat template |",
        "|---|---|---|---|",
        "| | none | tokens: ids with their labels | |",
        "| | `chat_template` and its variants, `sharegpt` | messages | the file's, or the model's own |",
        "| | a mapping | its own words | plain |",
        "| `rl: grpo` | none, `chat_template` | prompts, by their columns | the file's, or the model's own |",
    ]
    tables = {"": INSTRUCT, "`rl: dpo, ipo, orpo, simpo`": PAIRS, "`rl: kto`": JUDGED, "`reward_model: true`": REWARDED}
    lines += [_row(beside, name, rows) for beside, table in tables.items() for name, rows in table.items()]
    return "\n".join([*lines, ""])


def _row(beside: str, name: str, rows: Rows) -> str:
    form = rows.format if isinstance(rows.format, str) else "its own words: " + ", ".join(rows.format)
    template = "the file's, or the model's own" if rows.template is None else rows.template
    return f"| {beside} | `{name}` | {form} | {'a template of its own' if '{' in template else template} |"
