"""What a chat template changes that stands in place of another: real rows are worded by both, the first of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from tunesmith.data.problems import counted
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.templating.chat import common_prefix
from tunesmith.data.types import Conversation, Example, Text
from tunesmith.errors import DataError

LOOKED_AT = 32
"""Conversations that are worded twice, of each template."""
BEFORE, SHOWN = 10, 50
"""Characters that are shown: before the first difference, and with them."""
_CLOCK = "strftime_now"
_NO_CLOCK = "{%- macro strftime_now(format) -%}(the date as {{ format }}){%- endmacro %}\n"
"""In front of a template, so that what is said of it is the same on another day. Of the line break nothing is written,
and the first line of the template is as it was."""


class Replacing(Renderer):
    """A renderer that counts, of the first conversations, how many its template words otherwise than another.

    `replaced`: the other template; `names`: of its own, and of the other, for a sentence; `note`: what else is to be
    said of the two.
    """

    def __init__(
        self, tokenizer: Any, replaced: str, names: tuple[str, str], note: str | None = None, **how: Any
    ) -> None:
        super().__init__(tokenizer, **how)
        self.replaced, self.names, self.note = replaced, names, note
        self._num_looked_at = self._num_otherwise = 0
        self._first = ""

    @property
    def notes(self) -> tuple[str, ...]:
        said = [self.note] if self.note else []
        if self._num_otherwise:
            of_all = f"{self._num_otherwise:,} of the first {counted(self._num_looked_at, 'conversation')}"
            said.append(f"{self.names[0]} words {of_all} otherwise than {self.names[1]}: {self._first}")
        return (*super().notes, *said)

    @cached_property
    def _other(self) -> Renderer:
        return self._by(self.replaced)

    @cached_property
    def _without_clock(self) -> tuple[Renderer, Renderer] | None:
        """Its own template and the other, neither of which writes the date; None where neither ever does."""
        own = self.tokenizer.chat_template
        if not any(_CLOCK in template for template in (own, self.replaced)):
            return None
        return self._by(_without_clock(own)), self._by(_without_clock(self.replaced))

    def _by(self, template: str) -> Renderer:
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = template
        return Renderer(tokenizer, system_turn=self.system_turn, learn_ends=self.learn_ends)

    def render_all(self, rows: Sequence[Text]) -> Rendering:
        rendering = super().render_all(rows)
        for row, example in zip(rows, rendering.examples, strict=True):
            if self._num_looked_at == LOOKED_AT:
                break
            if isinstance(row, Conversation):
                self._num_looked_at += 1
                self._compare(row, example)
        return rendering

    def _compare(self, row: Conversation, example: Example) -> None:
        try:
            own, other = self._wordings(row, example)
        except DataError as error:
            self._count(f"{row.origin} has no wording by that one ({error.what})")
            return
        if not np.array_equal(other.token_ids, own.token_ids):
            ours, theirs = (self.tokenizer.decode(one.token_ids) for one in (own, other))
            at = max(len(common_prefix(ours, theirs)) - BEFORE, 0)
            self._count(f"{row.origin} has {_part(ours, at)} where that one has {_part(theirs, at)}")

    def _wordings(self, row: Conversation, example: Example) -> tuple[Example, Example]:
        """The row by its own template and by the other: without the date, but where a template cannot do without."""
        if self._without_clock:
            with suppress(DataError):
                own, other = self._without_clock
                return own.render(row), other.render(row)
        return example, self._other.render(row)

    def _count(self, what: str) -> None:
        self._num_otherwise += 1
        self._first = self._first or what


def _without_clock(template: str) -> str:
    return _NO_CLOCK + template if _CLOCK in template else template


def _part(text: str, start: int) -> str:
    """Of a text the part from `start` on, quoted."""
    part = text[start : start + SHOWN]
    return ("…" if start else "") + repr(part) + ("…" if start + SHOWN < len(text) else "")
