"""Every error that Tunesmith raises on purpose.

    TunesmithError                 something a person can act on; the CLI prints it without a traceback
    ├── RecipeError                a setting: unknown, misspelt, of the wrong kind, contradictory        exit 2
    ├── DataError                  a file or a row: missing, broken, empty, unlearnable                  exit 2
    ├── ModelError                 a model or tokenizer: missing, gated, unsupported, remote code        exit 2
    ├── AdapterError               an adapter: missing, unused or misshapen tensor, another base         exit 2
    ├── CheckpointError            a checkpoint or run folder: damaged, locked, of another recipe        exit 3
    ├── MachineError               the machine: disk full, out of memory, no registry, missing extra     exit 4
    ├── NonFiniteError             a loss or gradient became NaN or infinite; nothing was applied        exit 5
    └── Interrupted                a signal arrived; what was made so far is resumable           128 + signal

Each says where, what was found, what was expected and what to do.
"""

from __future__ import annotations

from typing import Self

ELSEWHERE = "see whether you may write there, or name another place"
AS_UTF8 = "save it as UTF-8"
"""What to do about a file that cannot be written, or read as text."""


class TunesmithError(Exception):
    """An error a person can act on.

    `what` is one sentence. `where` is a file with its line or row, `found` and `expected` are short,
    `fix` is the next thing to type or change. `notes` are further labelled lines ("settings", "did you mean").
    """

    exit_code = 1

    @property
    def public_name(self) -> str:
        """The name under which people know it: that of the class above, also where a finer one was raised."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__ == __name__)

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        self.notes = dict(notes or {})
        super().__init__(self._render())

    def at(self, where: str) -> Self:
        """The same error, said of `where` if it did not know better."""
        self.where = self.where or where
        self.args = (self._render(),)
        return self

    def noted(self, label: str, text: str) -> Self:
        """The same error with one more labelled line."""
        self.notes[label] = text
        self.args = (self._render(),)
        return self

    def to_do(self, fix: str) -> Self:
        """The same error with another next thing to type or change."""
        self.fix = fix
        self.args = (self._render(),)
        return self

    def _render(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        said = (("found", self.found), ("expected", self.expected), *self.notes.items(), ("to do", self.fix))
        for label, text in said:
            if text:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)


class RecipeError(TunesmithError):
    exit_code = 2


class DataError(TunesmithError):
    exit_code = 2

    problems: object = None
    """The broken rows of which it speaks (data/problems.py), where it speaks of rows of one kind alone."""


class ModelError(TunesmithError):
    exit_code = 2


class AdapterError(TunesmithError):
    exit_code = 2


class CheckpointError(TunesmithError):
    exit_code = 3


class MachineError(TunesmithError):
    exit_code = 4


class NonFiniteError(TunesmithError):
    exit_code = 5


class Interrupted(TunesmithError):
    """Raised when SIGINT, SIGTERM or SIGHUP asked the work to stop; `signal_number` sets the exit code."""

    def __init__(self, what: str, *, signal_number: int, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.exit_code = 128 + signal_number


def together(errors: list[TunesmithError]) -> TunesmithError:
    """One error out of many of the same kind, so that a person mends them all at once."""
    if len(errors) == 1:
        return errors[0]
    kind = type(errors[0])
    return kind(f"{len(errors)} problems\n" + "\n".join(str(error) for error in errors))
