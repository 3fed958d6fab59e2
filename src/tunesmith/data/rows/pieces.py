"""Rows in which somebody else has said which part is learned, to the token.

segments   {"segments": [{"label": true, "text": …}, …]}: pieces of text, each tokenised by itself, as Axolotl's
           input_output has them
tokens     {"input_ids": [...], "labels": [...]}: token ids; what is not learned has the label -100, as in transformers
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.messages import Names, Unreadable, need, parsed
from tunesmith.data.types import Origin, Piece, Pieces

IGNORED = -100
RawColumns = Mapping[str, Any]


def segments(row: RawColumns, origin: Origin, names: Names) -> Pieces:
    given = parsed(need(row, "segments"), "'segments'")
    if not isinstance(given, list | tuple):
        raise Unreadable("the column 'segments' must be a list of {label, text}", found=shown(given, 40))
    pieces: list[Piece] = []
    for number, segment in enumerate(given, 1):
        text = segment.get("text") if isinstance(segment, Mapping) else None
        label = segment.get("label") if isinstance(segment, Mapping) else None
        if not isinstance(text, str) or label not in (0, 1, False, True):
            raise Unreadable(f"segment {number} must be {{label: true or false, text: …}}", found=shown(segment, 40))
        pieces.append(Piece(text, bool(label)))
    return Pieces("".join(str(piece.content) for piece in pieces), origin, tuple(pieces))


def tokens(row: RawColumns, origin: Origin, names: Names) -> Pieces:
    ids = _integers(need(row, "input_ids"), "input_ids")
    labels = ids if not is_filled(row.get("labels")) else _integers(row["labels"], "labels")
    mask = row.get("attention_mask")
    kept = _integers(mask, "attention_mask") if is_filled(mask) else [1] * len(ids)
    for name, values in (("labels", labels), ("attention_mask", kept)):
        if len(values) != len(ids):
            raise Unreadable(f"input_ids and {name} differ in length", found=f"{len(ids)} and {len(values)}")
    pairs = list(zip(ids, labels, strict=True))
    wrong = next((at for at, (token, label) in enumerate(pairs) if label not in (token, IGNORED)), None)
    if wrong is not None:
        found = f"token {ids[wrong]} with label {labels[wrong]} at place {wrong}"
        raise Unreadable("a label is neither its token nor -100: labels stand under their own tokens", found=found)
    marked = [(label != IGNORED, token) for token, label, keep in zip(ids, labels, kept, strict=True) if keep]
    runs = groupby(marked, key=lambda item: item[0])
    pieces = tuple(Piece(tuple(token for _, token in run), learned) for learned, run in runs)
    return Pieces("", origin, pieces)


def _integers(values: Any, name: str) -> list[int]:
    values = parsed(values, repr(name))
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise Unreadable(f"the column {name!r} must be a list of whole numbers", found=shown(values, 40))
    return list(values)
