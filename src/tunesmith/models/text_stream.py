"""Token ids in, text out, as a terminal or a web page shows it."""

from __future__ import annotations

from collections.abc import Callable


class TextStream:
    """Token ids in, text out, piece by piece, never half a character.

    Some decoders drop a leading space or join what follows, so each piece is the difference between two decodings
    that begin at the same token.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown_from = 0
        self._shown_to = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; "" while a character is incomplete."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        now = self._decode(self._ids[self._shown_from :])
        if len(now) <= len(before) or now.endswith("�"):
            return ""
        self._shown_from, self._shown_to = self._shown_to, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, incomplete characters as they decode."""
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        return self._decode(self._ids[self._shown_from :])[len(before) :]
