"""The `data` section of a recipe."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tunesmith.settings import Contradiction, Settings

Share = Annotated[float, Field(gt=0, lt=1)]
Role = Literal["system", "user", "assistant", "tool"]
Learn = Literal["answers", "everything", "completions", "marked"] | tuple[Role, ...]
Ends = Literal["turn", "learned", "last", "none", "all"]
MessageKey = Literal["role", "content", "learn", "learn_spans", "reasoning", "tool_calls", "name", "tool_call_id"]
MessageKeys = dict[MessageKey, str | None]

FormatName = Literal[
    "auto", "text", "messages", "prompt-completion", "alpaca", "preference", "openai-preference", "unpaired", "prompt",
    "labelled", "segments", "tokens", "input-output", "openpipe", "nemo", "nectar", "verl", "question-answer",
    "multiple-choice", "unanswerable",
]  # fmt: skip


class TemplateFormat(Settings):
    """A row turned into a conversation, into two answers to one prompt, into a prompt, or into a text or a prompt with
    its label, by Jinja over its own columns."""

    prompt: str | None = None
    """Jinja text of the user turn, for example "Context: {{ context }}\\nQuestion: {{ question }}"."""
    text: str | None = None
    """In place of `prompt`, for classification: plain text, without the turns of a chat."""
    label: str | None = None
    """For classification: which class it is of; of several, each on a line of its own."""
    answer: str | None = None
    """Jinja text of the assistant turn: the only part that is learned. For online learning, nothing."""
    chosen: str | None = None
    """In place of `answer`, for preference tuning: the assistant turn that is preferred."""
    rejected: str | None = None
    """Beside `chosen`: the other one."""
    system: str | None = None
    """Jinja text of a system turn."""

    @model_validator(mode="after")
    def _answer_or_pair(self) -> Self:
        given = [name for name in ("answer", "chosen", "rejected", "label") if getattr(self, name) is not None]
        if given not in ([], ["answer"], ["chosen", "rejected"], ["label"]):
            said = "stands beside " + " and ".join(given[1:]) if len(given) > 1 else "stands alone"
            raise Contradiction(given[0], said, "give answer, or chosen and rejected, or label")
        if (self.prompt is None) == (self.text is None):
            said = "is missing" if self.text is None else "stands beside text"
            raise Contradiction("prompt", said, "give prompt; for classification, prompt or text")
        if self.text is not None and (self.label is None or self.system is not None):
            said = "has no label beside it" if self.label is None else "has no turns, and so no system turn"
            raise Contradiction("text", said, "give text and label, or write turns with prompt")
        return self


class HeldOut(Settings):
    """Rows kept away from training. Give exactly one of the four."""

    share: Share | None = None
    """Between 0 and 1."""
    count: PositiveInt | None = None
    """Number of rows."""
    file: str | None = None
    """A file, folder or hub id of its own. `folder:test` and `owner/name:test` name a split; without one it is
    `data.split`."""
    key: str | None = None
    """A column: whole groups of equal value go to one side, about a tenth of the rows (or `share`, given beside it)."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("share", "count", "file", "key") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["share", "key"]:
            said = "gives " + " and ".join(given) if given else "says nothing"
            raise Contradiction("", said, "give one of share, count, file, key (share may stand beside key)")
        return self


class SourceSettings(Settings):
    """One of several sources of `data.train`. What it leaves null is as the data section says."""

    path: Annotated[str, Field(min_length=1)]
    """A file, a folder or a hub id, as `data.train`."""
    split: str | None = None
    """Which split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    format: FormatName | TemplateFormat | None = None
    """How its rows are read; sources may differ in it."""
    columns: dict[str, str | None] | None = None
    """Renames its columns: {wanted: yours}, or {wanted: null}."""
    message_keys: MessageKeys | None = None
    """Renames the keys of its messages: {ours: theirs}."""
    roles: dict[str, Role] | None = None
    """Its names of roles: {theirs: ours}."""
    limit: PositiveInt | None = None
    """Read only its first so many rows."""
    template: str | None = None
    """Chat template that words its rows, a name or Jinja, where they are worded otherwise than the others. The model is
    asked in its own, or in model.template, afterwards."""
    weight: PositiveFloat = 1.0
    """How many times its rows come in a pass: 2 is each twice, 0.5 half of them, 1.5 each once and half of them twice.
    Which ones is drawn by `train.seed`, and is the same in every pass. Held-out rows are taken away before that, and
    come once."""


ONCE = "name it once, and say by its weight how often its rows come; slices of it (limit) want files of their own"
"""What to do about a source that is named twice."""
OF_A_SOURCE = ("split", "subset", "format", "columns", "message_keys", "roles", "limit")
"""What a source may say otherwise than the section."""


class DataSettings(Settings):
    train: Annotated[str, Field(min_length=1)] | Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """A JSONL, JSON, CSV, TSV or text file (.gz too), a Parquet or Arrow file, a folder of such files, or a hub id; or
    a list of several, each with what it says otherwise than this section."""
    split: str = "train"
    """Which split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    format: FormatName | TemplateFormat = "auto"
    """How a row is read; auto recognises it by its columns and says what it took it for."""
    columns: dict[str, str | None] = {}
    """Renames columns before the format reads them: {wanted: yours}. With null for yours, a column wanted is not read,
    though the rows have one of that name."""
    message_keys: MessageKeys = {}
    """Renames the keys of each message before it is read: {ours: theirs}, ours of role, content, learn, learn_spans,
    reasoning, tool_calls, name, tool_call_id. The usual names are known without; of two, theirs wins. With null for
    theirs it is not read under any of its names: {learn: null} passes over a learn, train or weight."""
    roles: dict[str, Role] = {}
    """Their names of roles: {theirs: ours}, ours of system, user, assistant, tool. The usual names are known
    without."""
    learn: Learn = "answers"
    """Which turns are learned: answers, those of the assistant (of prompt and completion, the completion's); a list of
    roles, all turns of these; everything, every token of the row but the first, the template's own marks too;
    completions, as TRL does where nothing is said: the completion of prompt and completion, everything of other rows;
    marked, what the rows mark and nothing else. A message's own mark (learn, train, weight, or spans of its content in
    learn or learn_spans) wins over its role, and beside everything is an error where it says no. Plain text is always
    learned whole."""
    learn_ends: Ends = "turn"
    """Whose end token is learned: that of each learned turn of the assistant (turn), or of any role (learned), of the
    last learned turn alone, of any role (last), none, or that of every turn, learned or not and of any role (all)."""
    held_out: float | int | str | HeldOut | None = None
    """Share (0.1), count (200), a source of its own ("valid.jsonl", "folder:test", "owner/name:test"), or
    {key: column}."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """Longest row in tokens."""
    overlong: Literal["drop", "truncate", "split", "error"] = "drop"
    """What to do with a longer row; split cuts plain text into pieces. Drops and truncations are counted and shown."""
    system_turn: Literal["keep", "into-user"] = "keep"
    """For templates without a system role: put its text in front of the first user turn."""
    limit: PositiveInt | None = None
    """Read only the first so many rows."""
    shuffle: bool = True
    """Visit the rows in a new seeded order every epoch."""
    group_by: str | None = None
    """A column: rows of equal value are visited one after the other, and what they begin with in common is computed
    once for each micro-batch. For questions on one text, or answers to one prompt."""

    @field_validator("held_out")
    @classmethod
    def _share_or_count(cls, value: float | int | str | HeldOut | None) -> float | int | str | HeldOut | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise Contradiction(
                "held_out", f"is a share of {value:g}", "a share lies between 0 and 1; a count is whole"
            )
        if isinstance(value, int) and value < 1:
            raise Contradiction("held_out", f"is {value} rows", "leave it out, or unset it, to hold nothing out")
        return value

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.learn == ():
            raise Contradiction("learn", "names no role", "say answers, everything, or a list of roles")
        if self.learn in ("everything", "completions") and self.learn_ends != "turn":
            said = f"is {self.learn_ends} beside learn: {self.learn}, which learns every end token"
            raise Contradiction("learn_ends", said, "take one of the two out")
        return self

    @model_validator(mode="after")
    def _each_source_once(self) -> Self:
        if (place := self.repeated_source) is not None:
            said = f"names {self.sources[place].named} twice"
            raise Contradiction("train", said, ONCE)
        return self

    @property
    def sources(self) -> tuple[DataSettings, ...]:
        """The section as each of its sources is read: with one path, and what the source says otherwise."""
        if isinstance(self.train, str):
            return (self,)
        own = [{name: getattr(source, name) for name in OF_A_SOURCE} for source in self.train]
        changes = [{name: value for name, value in said.items() if value is not None} for said in own]
        return tuple(
            self.model_copy(update={"train": source.path, **said})
            for source, said in zip(self.train, changes, strict=True)
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """How many times the rows of each source come in a pass."""
        return (1.0,) if isinstance(self.train, str) else tuple(source.weight for source in self.train)

    @property
    def templates(self) -> tuple[str | None, ...]:
        """The chat template of each source that has one of its own."""
        return (None,) if isinstance(self.train, str) else tuple(source.template for source in self.train)

    @property
    def named(self) -> str:
        """Its sources, for a sentence."""
        return self.train if isinstance(self.train, str) else ", ".join(source.path for source in self.train)

    @property
    def of_other_files(self) -> DataSettings:
        """The section as rows of another file are read: as those of a single source, or as it says itself."""
        return self.sources[0] if len(self.sources) == 1 else self

    @property
    def repeated_source(self) -> int | None:
        """The place of a source that stands in the list already, and would be read alike, but for how many rows."""
        reading = [name for name in OF_A_SOURCE if name != "limit"]
        known = [
            (os.path.normpath(one.named), template, *(getattr(one, name) for name in reading))
            for one, template in zip(self.sources, self.templates, strict=True)
        ]
        return next((place for place, one in enumerate(known) if one in known[:place]), None)


def name_and_split(text: str) -> tuple[str, str | None]:
    """`folder:test` or `owner/name:test` as the source and its split; (text, None) where no split is named."""
    name, _, part = text.rpartition(":")
    return (name, part) if name and re.fullmatch(r"\w+", part) else (text, None)
