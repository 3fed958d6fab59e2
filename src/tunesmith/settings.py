"""The base of every settings record: frozen, strict, and its field docstrings are its help texts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen record that refuses unknown keys. Each record is declared once, in the file that uses it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


class Contradiction(ValueError):
    """A rule between settings is broken; raised by a record's own validators, one per rule.

    `key` is the setting to point at, relative to the record (dotted from the recipe's top for rules across sections).
    """

    def __init__(self, key: str, text: str, fix: str | None = None) -> None:
        self.key, self.text, self.fix = key, text, fix
        super().__init__(f"{key} {text}" + (f"; {fix}" if fix else ""))
