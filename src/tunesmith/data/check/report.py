"""What `tunesmith check` shows: the counts, the lengths, and rows as the model sees them with learned tokens marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tunesmith.data.check.counts import OF_LENGTH, Counts, OfSource, told
from tunesmith.data.check.findings import findings
from tunesmith.data.prepare import Prepared
from tunesmith.data.problems import counted
from tunesmith.data.types import Answer, Classified, Example

PERCENTILES = (5, 25, 50, 75, 95, 100)
LONGEST_RUN = 1200
LEARNED, MASKED, SPECIAL = "bold green", "dim", "magenta"


def print_report(prepared: Prepared, tokenizer: Any, console: Console, rows: int = 3) -> None:
    console.print(_counts_table(prepared))
    if prepared.sources:
        console.print(_sources_table(prepared.sources))
    console.print(_lengths_table(prepared))
    for note in [*_notes(prepared), *map(str, findings(prepared))]:
        console.print(Text(f"· {note}"))
    in_colour = console.is_terminal and console.color_system is not None
    for example in first_rows(prepared, rows):
        console.print(Rule(Text(title_of(example)), align="left"))
        console.print(seen(example, tokenizer, in_colour=in_colour), soft_wrap=True)
    key = Text("learned", style=LEARNED) + Text(" masked", style=MASKED) + Text(" special", style=SPECIAL)
    console.print(Rule(key if in_colour else Text("learned tokens stand between ⟦ and ⟧"), align="left"))


def first_rows(prepared: Prepared, count: int) -> list[Example]:
    """The first so many rows, of several sources of each; of a pair both sides."""
    count *= 2 if isinstance(prepared.train[0], Answer) else 1
    starts = [one.first for one in prepared.sources] or [0]
    ends = [*starts[1:], len(prepared.train)]
    pairs = zip(starts, ends, strict=True)
    return [example for start, end in pairs for example in prepared.train[start : min(start + count, end)]]


def title_of(example: Example) -> str:
    return f"{example.origin}{_what(example)} · {counted(len(example), 'token')}, {example.num_learned} learned"


def _what(example: Example) -> str:
    """Which side of a pair, or of which class, a row is."""
    if isinstance(example, Answer):
        return f" · {example.side}"
    return f" · {', '.join(example.labels) or 'no label'}" if isinstance(example, Classified) else ""


def summary(prepared: Prepared) -> list[str]:
    """The few lines shown before a run."""
    return [*counts_told(prepared), *map(str, findings(prepared))]


def counts_told(prepared: Prepared) -> list[str]:
    """What was read, and what became of it."""
    counts = prepared.counts
    lines = [
        f"{counted(counts.read, 'row')} read as {prepared.format}: {counts.kept:,} to train on, "
        f"{counted(counts.tokens, 'token')}, "
        + (f"{counts.learned:,} of them learned ({_share(counts)})" if counts.learned else _without_learned(prepared))
    ]
    lines += [_of_source(one, counts.learned) for one in prepared.sources]
    if prepared.held_out:
        held_out = prepared.held_out_counts
        learned = f", {counted(held_out.learned, 'learned token')}" if held_out.learned else ""
        lines.append(f"{held_out.kept:,} held out{learned}")
    return [*lines, *_notes(prepared)]


def _of_source(one: OfSource, learned: int) -> str:
    """What a source gives to one pass."""
    counts, weight = one.train, f" (weight {one.weight:g})" if one.weight != 1 else ""
    share = f", {counts.learned / learned:.0%} of what is learned" if learned else ""
    return f"{one.path}, {one.format}: {counted(counts.visited, 'row')} a pass{weight}{share}"


def _without_learned(prepared: Prepared) -> str:
    first = prepared.train[0]
    if not isinstance(first, Classified):
        return "prompts without an answer"
    found = Counter(label for row in prepared.train if isinstance(row, Classified) for label in row.labels)
    most = [f"{label} {count:,}" for label, count in found.most_common(8)]
    return "labels: " + ", ".join(most) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def as_json(prepared: Prepared) -> dict[str, Any]:
    return {
        "format": prepared.format,
        "train": _counts_as_json(prepared.counts, prepared.train),
        "held_out": _counts_as_json(prepared.held_out_counts, prepared.held_out),
        **({"sources": [_source_as_json(one) for one in prepared.sources]} if prepared.sources else {}),
        "notes": list(prepared.notes),
        "findings": [asdict(finding) for finding in findings(prepared)],
        "fingerprint": prepared.fingerprint,
    }


def _source_as_json(one: OfSource) -> dict[str, Any]:
    what = {"path": one.path, "format": one.format, "weight": one.weight}
    return what | {"train": _numbers(one.train), "held_out": _numbers(one.held_out)}


def _numbers(counts: Counts) -> dict[str, Any]:
    return {
        "read": counts.read,
        "kept": counts.kept,
        "visited": counts.visited,
        "tokens": counts.tokens,
        "learned": counts.learned,
        **{kind: tally.count for kind, tally in counts.kinds.items()},
        "shares": {kind: round(counts.share(kind), 4) for kind in OF_LENGTH},
        "first_rows": {kind: [str(at) for at in tally.first] for kind, tally in counts.kinds.items() if tally.count},
    }


def _counts_as_json(counts: Counts, examples: Sequence[Example]) -> dict[str, Any]:
    made = _numbers(counts) | {"length_percentiles": _by_percentile([len(example) for example in examples])}
    if counts.is_cut:
        made["length_percentiles_before_cutting"] = _by_percentile(counts.lengths)
    return made


def _by_percentile(values: Sequence[int]) -> dict[str, int]:
    return dict(zip(map(str, PERCENTILES), percentiles(values), strict=True))


def percentiles(values: Sequence[int]) -> list[int]:
    return [round(float(value)) for value in np.percentile(values, PERCENTILES)] if values else [0] * len(PERCENTILES)


def _share(counts: Counts) -> str:
    return f"{counts.learned / counts.tokens:.0%}" if counts.tokens else "0%"


def _notes(prepared: Prepared) -> list[str]:
    held_out = [f"held out: {line}" for line in told(prepared.held_out_counts)]
    return [*told(prepared.counts), *held_out, *prepared.notes]


def _counts_table(prepared: Prepared) -> Table:
    title = f"rows read as {prepared.format}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    table.add_column("")
    sides = [("training", prepared.counts)]
    if prepared.held_out:
        sides.append(("held out", prepared.held_out_counts))
    for name, _ in sides:
        table.add_column(name, justify="right")
    for label, name in (("rows read", "read"), ("rows used", "kept"), ("tokens", "tokens"), ("learned", "learned")):
        table.add_row(label, *(f"{getattr(counts, name):,}" for _, counts in sides))
    for label, kind in (("dropped", "overlong"), ("truncated", "truncated"), ("empty", "empty")):
        table.add_row(label, *(_with_share(counts, kind) for _, counts in sides))
    of_pairs = [kind for kind in ("identical", "cut_alike") if any(counts[kind] for _, counts in sides)]
    for kind in ("unlearnable", *of_pairs):
        table.add_row(kind.replace("_", " "), *(f"{counts[kind]:,}" for _, counts in sides))
    return table


def _with_share(counts: Counts, kind: str) -> str:
    share = f" ({counts.share(kind):.1%})" if kind in OF_LENGTH and counts[kind] else ""
    return f"{counts[kind]:,}{share}"


def _sources_table(sources: Sequence[OfSource]) -> Table:
    table = Table(title="by source", title_justify="left", box=None, pad_edge=False)
    for name in ("", "format"):
        table.add_column(name, overflow="fold")
    for name in ("rows read", "used", "weight", "a pass", "tokens", "learned", "held out"):
        table.add_column(name, justify="right")
    for one in sources:
        counts = one.train
        numbers = (counts.tokens, counts.learned, one.held_out.kept)
        table.add_row(
            one.path,
            one.format,
            *(f"{number:,}" for number in (counts.read, counts.kept)),
            f"{one.weight:g}",
            *(f"{number:,}" for number in (counts.visited, *numbers)),
        )
    return table


def _lengths_table(prepared: Prepared) -> Table:
    table = Table(title="tokens a row", title_justify="left", box=None, pad_edge=False)
    table.add_column("percentile")
    for percentile in PERCENTILES:
        table.add_column("longest" if percentile == 100 else str(percentile), justify="right")
    for name, values in lengths(prepared).items():
        table.add_row(name, *(f"{value:,}" for value in percentiles(values)))
    return table


def lengths(prepared: Prepared) -> dict[str, Sequence[int]]:
    """Tokens of each row of training; where some are cut or left out, those of all rows before that too."""
    made: dict[str, Sequence[int]] = {"all": [len(example) for example in prepared.train]}
    made["learned"] = [example.num_learned for example in prepared.train]
    return made | ({"before cutting": prepared.counts.lengths} if prepared.counts.is_cut else {})


def seen(example: Example, tokenizer: Any, *, in_colour: bool) -> Text:
    """The row as the model sees it, special tokens written out; learned runs in colour, or between ⟦ and ⟧."""
    text = Text()
    for learned, alike in groupby(pieces(example, tokenizer), key=lambda piece: piece[0]):
        run = Text()
        for _, special, words in alike:
            style = LEARNED if learned else SPECIAL if special else MASKED
            run.append(visible(_clipped(words)), style=style if in_colour else None)
        text.append_text(Text("⟦") + run + Text("⟧") if learned and not in_colour else run)
    return text


def pieces(example: Example, tokenizer: Any) -> Iterator[tuple[bool, bool, str]]:
    """Runs of tokens that are alike: (learned, special, text)."""
    special = set(tokenizer.all_special_ids)
    marked = [
        (bool(w), int(t) in special, int(t)) for t, w in zip(example.token_ids, example.loss_weights, strict=True)
    ]
    before: list[int] = []
    for (learned, is_special), run in groupby(marked, key=lambda item: item[:2]):
        ids = [token for _, _, token in run]
        yield learned, is_special, _decoded(tokenizer, before, ids)
        before = ids[-1:]


def _decoded(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """The text of `ids` behind `before`: alone, some decoders would strip its first space."""

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    head, both = decode(before) if before else "", decode(before + ids)
    return both.removeprefix(head) if both.startswith(head) else decode(ids)


def _clipped(words: str) -> str:
    if len(words) <= LONGEST_RUN:
        return words
    half = LONGEST_RUN // 2
    return f"{words[:half]} … {len(words) - 2 * half:,} more characters … {words[-half:]}"


def visible(words: str) -> str:
    """Control characters of the data shown, not obeyed by the terminal."""
    return "".join(
        letter
        if letter in "\n\t" or letter.isprintable()
        else f"\\x{ord(letter):02x}"
        if ord(letter) < 256
        else f"\\u{ord(letter):04x}"
        for letter in words
    )
