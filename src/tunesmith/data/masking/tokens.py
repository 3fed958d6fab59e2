"""Which tokens of a text a span of its characters is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.masking.mask import Span


def learned_tokens(text: str, offsets: np.ndarray, spans: Sequence[Span]) -> tuple[np.ndarray, bool]:
    """Tokens [n, 2] that share a character with a learned span, and whether one reaches over a turn's start."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    learned = np.zeros(len(offsets), dtype=bool)
    straddled = False
    for span in spans:
        if span.start == span.end:
            continue  # a token that reaches over the place where nothing is said
        learned |= _sharing(text, offsets, span)
        straddled |= not span.is_inner and bool(((starts < span.start) & (ends > span.start)).any())
    return learned, straddled


def token_run(text: str, offsets: np.ndarray, span: Span) -> tuple[int, int]:
    """[start, end) of the tokens [n, 2] that share a character with a span; of an empty one, none at its place."""
    places = np.flatnonzero(_sharing(text, offsets, span)).tolist() if span.start < span.end else []
    if not places:
        at = int(np.searchsorted(offsets[:, 0], span.start))
        return at, at
    return places[0], places[-1] + 1


def _sharing(text: str, offsets: np.ndarray, span: Span) -> np.ndarray:
    """[n] bool. White space at the beginning of a token goes with what stands behind it: " fox" is learned where "fox"
    is, and not where the space alone is."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    # An empty token at the very start (a tokenizer's word mark) is the answer's own.
    shares: np.ndarray = (starts < span.end) & ((ends > span.start) | ((starts == span.start) & (ends == span.start)))
    for token in np.flatnonzero((starts < span.end) & (ends > span.end)):
        first, last = offsets[token].tolist()
        if text[first : span.end].isspace() and not text[first:last].isspace():
            shares[token] = False
    return shares
