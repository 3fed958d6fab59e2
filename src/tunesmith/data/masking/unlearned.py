"""Rows of which no token is learned, as the model sees them: prompts to be answered, and texts to be classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunesmith.data.check.counts import Counts
from tunesmith.data.problems import Problems
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Asked, Classified, Conversation, Example, Labelled, Prompt
from tunesmith.errors import DataError


def asked(
    rows: Sequence[Prompt], settings: DataSettings, renderer: Renderer, counts: Counts
) -> tuple[list[Example], Counts]:
    """What a model is asked, as it is asked; a prompt is never cut."""
    examples: list[Example] = []
    problems = Problems("prompts are longer than data.max_length", stage=2)
    for row in rows:
        try:
            ids = np.array(renderer.prompt_ids(row.messages, row.tools), dtype=np.int64)
        except DataError as error:
            raise error.at(str(row.origin)) from error
        if len(ids) < settings.max_length:
            examples.append(Asked(ids, np.zeros(len(ids), dtype=np.float32), row.origin, prompt=row))
        elif settings.overlong == "drop":
            counts.add("overlong", row.origin)
        else:
            found = f"{len(ids)} tokens"
            problems.add(
                DataError(
                    "a prompt cannot be cut, and leaves no room to answer",
                    where=str(row.origin),
                    found=found,
                    expected=f"fewer than {settings.max_length}",
                    fix="raise data.max_length, or data.overlong=drop",
                )
            )
    problems.raise_if_any()
    counts.kept, counts.tokens = len(examples), sum(map(len, examples))
    return examples, counts


def classified(
    rows: Sequence[Labelled], settings: DataSettings, renderer: Renderer, counts: Counts, advice: Mapping[str, str]
) -> tuple[list[Example], Counts]:
    """Texts as a classifier reads them. What is cut off goes from the text's end; what closes a text stays."""
    if settings.overlong == "split":
        raise DataError(
            "a text that is classified cannot be cut into pieces", where="data.overlong", fix="drop, truncate or error"
        )
    examples: list[Example] = []
    problems = Problems("texts are longer than data.max_length", stage=2)
    for row in rows:
        try:
            ids, closing = renderer.classified_ids(row.text)
        except DataError as error:
            raise error.at(str(row.origin)) from error
        if len(ids) > settings.max_length and settings.overlong == "truncate":
            counts.add("truncated", row.origin)
            ids = [*ids[: settings.max_length - len(closing)], *closing]
        if len(ids) <= settings.max_length:
            array = np.array(ids, dtype=np.int64)
            zeros = np.zeros(len(ids), dtype=np.float32)
            has_turns = isinstance(row.text, Conversation)
            examples.append(Classified(array, zeros, row.origin, labels=row.labels, has_turns=has_turns))
        elif settings.overlong == "drop":
            counts.add("overlong", row.origin)
        else:
            found, expected = f"{len(ids)} tokens", f"at most {settings.max_length}"
            fix = f"{advice['overlong']}; or set data.overlong to drop or truncate"
            where = str(row.origin)
            problems.add(DataError("the text is too long", where=where, found=found, expected=expected, fix=fix))
    problems.raise_if_any()
    counts.kept, counts.tokens = len(examples), sum(map(len, examples))
    return examples, counts
