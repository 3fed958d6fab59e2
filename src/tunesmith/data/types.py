"""What flows through the data path, from the meaning of a row to what the device sees.

row --formats--> Conversation | Document | Preference | Judged | Prompt | Labelled     what it means
    --render---> Example; an Answer for each side; Asked; Classified                   what the model sees
    --pack-----> Batch                                                                 what the device sees
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Origin:
    """Where a row came from. `row` counts from 1, as an editor does."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}"


@dataclass(frozen=True)
class Message:
    """One turn. `learn` None means: by role (assistant turns are learned, all others are not).

    `tool_calls` are {"type": "function", "function": {"name": str, "arguments": dict}} with an optional "id";
    `reasoning` is the thinking that came before an answer.
    """

    role: str
    content: str
    learn: bool | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def is_learned(self) -> bool:
        return self.role == "assistant" if self.learn is None else self.learn

    @property
    def learns_words(self) -> bool:
        """Whether any of its content is learned."""
        return self.is_learned and bool(self.content)


LearnedSpan = tuple[int, int, bool]
"""Characters [start, end) of a content, and whether they are learned."""


@dataclass(frozen=True)
class Marked(Message):
    """A turn of which its row says to the character what is learned. `learn` False takes it out all the same.

    spans   (start, end, learn) over characters [start, end) of the content, in order, none over another
    rest    whether what no span names is learned, thoughts and calls too; None: as the turn would be without spans
    """

    spans: tuple[LearnedSpan, ...] = ()
    rest: bool | None = None

    @property
    def learns_rest(self) -> bool:
        return self.role == "assistant" if self.rest is None else self.rest

    @property
    def is_learned_whole(self) -> bool:
        return self.is_learned and self.learns_rest and all(learn for _, _, learn in self.spans)

    @property
    def learns_words(self) -> bool:
        named = sum(end - start for start, end, _ in self.spans)
        some = any(learn and start < end for start, end, learn in self.spans)
        return self.is_learned and (some or (self.learns_rest and named < len(self.content)))


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()
    num_asked: int = 0
    """Of the messages, those at the beginning that the row has apart from its answer, as its prompt."""
    is_whole: bool = False
    """Every token is learned, the template's marks too."""


@dataclass(frozen=True)
class Document:
    """Plain text, every token of it learned."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class Piece:
    """Text that is tokenised by itself, or its token ids, and whether it is learned."""

    content: str | tuple[int, ...]
    is_learned: bool


@dataclass(frozen=True)
class Pieces(Document):
    """A document whose mask is given. Nothing is added to it: BOS and EOS are for its pieces to hold."""

    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from one prompt, the first of which is preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()
    margin: float | str | None = None
    """How much better the first is, where the row says so: reward models learn it. Text is no number."""

    @property
    def sides(self) -> dict[str, Conversation]:
        return {
            CHOSEN: continued(self.prompt, self.chosen, self.origin, self.tools),
            REJECTED: continued(self.prompt, self.rejected, self.origin, self.tools),
        }


@dataclass(frozen=True)
class Judged:
    """One way to go on from a prompt, and whether it is wanted."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    wanted: bool
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def sides(self) -> dict[str, Conversation]:
        side = CHOSEN if self.wanted else REJECTED
        return {side: continued(self.prompt, self.completion, self.origin, self.tools)}


@dataclass(frozen=True)
class Prompt:
    """A question whose answers are judged by a reward. `given` is it as the row has it, text or messages; `columns` are
    what rewards are handed."""

    messages: tuple[Message, ...]
    given: Any
    columns: Mapping[str, Any]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


CHOSEN, REJECTED = "chosen", "rejected"

Text = Conversation | Document
"""What the model reads from beginning to end."""


@dataclass(frozen=True)
class Labelled:
    """A text, or a conversation, and what it is: one label, or any number of them."""

    text: Text
    labels: tuple[str, ...]

    @property
    def origin(self) -> Origin:
        return self.text.origin


Row = Text | Preference | Judged | Prompt | Labelled


def turns_of(row: Row) -> tuple[Message, ...]:
    """All turns that stand anywhere in a row."""
    match row:
        case Document():
            return ()
        case Conversation():
            return row.messages
        case Preference():
            return row.prompt + row.chosen + row.rejected
        case Judged():
            return row.prompt + row.completion
        case Prompt():
            return row.messages
        case Labelled():
            return turns_of(row.text)


def continued(
    prompt: tuple[Message, ...], answer: tuple[Message, ...], origin: Origin, tools: tuple[dict[str, Any], ...]
) -> Conversation:
    """A conversation of which the answer alone is learned, whatever turns the prompt holds."""
    return Conversation(tuple(replace(turn, learn=False) for turn in prompt) + answer, origin, tools)


Runs = tuple[tuple[int, int], ...]
"""[start, end) of tokens."""


@dataclass(frozen=True)
class Example:
    """What the model sees of one row.

    token_ids     [n] int64
    loss_weights  [n] float32; the weight of token t *as a target*: 0 is masked, 1 is learned. The first token can
                  never be a target. Whoever turns hidden states into losses does the shift by one.
    """

    token_ids: np.ndarray
    loss_weights: np.ndarray
    origin: Origin
    group: str | None = None
    """Rows of one group are likely to begin alike (`data.group_by`)."""
    answers: Runs | None = field(default=None, kw_only=True)
    """[start, end) of each answer in it; None where they are its runs of learned tokens (masking/answering.py)."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_learned(self) -> int:
        return int(np.count_nonzero(self.loss_weights[1:]))


@dataclass(frozen=True)
class Answer(Example):
    """An example whose learned tokens are one side of a preference: "chosen" (wanted) or "rejected"."""

    side: str = CHOSEN
    margin: float | str | None = None
    """Of its pair, where the row gives one."""


@dataclass(frozen=True)
class Asked(Example):
    """A prompt as the model sees it, nothing of it learned; `prompt` is what it means."""

    prompt: Prompt = field(kw_only=True)


@dataclass(frozen=True)
class Sampled(Example):
    """A prompt and a completion that the model wrote, which alone is learned.

    `number`: which of its rollout; `reference` [m]: the reference's log-probabilities of its learned tokens.
    """

    advantage: float = 0.0
    number: int = 0
    prompt_tokens: int = 0
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Classified(Example):
    """A text whose labels are learned, and none of its tokens."""

    labels: tuple[str, ...] = ()
    has_turns: bool = False
    """It was written by the chat template."""


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a batch. A child attends to its parent's keys and its own; a document has no parent."""

    start: int
    end: int
    parent: int | None = None

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Batch:
    """One micro-batch as a flat list of tokens: no padding anywhere.

    token_ids [T] int64, loss_weights [T] float32, positions [T] int64 (restart at every document; a child's go on from
    its parent's), segments in order and covering [0, T), a parent right before its children, examples one per segment
    (a parent's is its first child's). A weight in a parent is the sum of what its rows give that token.
    """

    token_ids: torch.Tensor
    loss_weights: torch.Tensor
    positions: torch.Tensor
    segments: tuple[Segment, ...]
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def origins(self) -> tuple[Origin, ...]:
        """One per segment."""
        return tuple(example.origin for example in self.examples)

    @property
    def num_learned(self) -> int:
        """Learned targets. The first token of a segment has nothing before it, and never counts."""
        learned = self.loss_weights != 0
        learned[[segment.start for segment in self.segments if segment.parent is None]] = False
        return int(learned.sum())

    @property
    def leaves(self) -> list[int]:
        """The segments that end a row: all but those that several rows share."""
        parents = {segment.parent for segment in self.segments}
        return [index for index in range(len(self.segments)) if index not in parents]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.token_ids.to(device),
            self.loss_weights.to(device),
            self.positions.to(device),
            self.segments,
            self.examples,
        )
