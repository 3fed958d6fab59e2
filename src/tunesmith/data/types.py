"""What flows through the data path, from the meaning of a row to what the device sees.

    row --formats--> Conversation | Document     what it means
        --render---> Example                     what the model sees
        --pack-----> Batch                       what the device sees

Preference, Prompt and Labelled rows join `Conversation` and `Document` when their objectives arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Document:
    """Plain text, every token of it learned."""

    text: str
    origin: Origin


Row = Conversation | Document


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

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_learned(self) -> int:
        return int(np.count_nonzero(self.loss_weights[1:]))


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
    its parent's), segments in order and covering [0, T), a parent right before its children, origins one per segment
    (a parent's are its first child's). A weight in a parent is the sum of what its rows give that token.
    """

    token_ids: torch.Tensor
    loss_weights: torch.Tensor
    positions: torch.Tensor
    segments: tuple[Segment, ...]
    origins: tuple[Origin, ...] = field(default=())

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_learned(self) -> int:
        """Learned targets. The first token of a segment has nothing before it, and never counts."""
        learned = self.loss_weights != 0
        learned[[segment.start for segment in self.segments if segment.parent is None]] = False
        return int(learned.sum())

    def alone(self, index: int) -> Batch:
        """Segment `index` as a batch of its own, behind its parent where it has one."""
        own = self.segments[index]
        parts = [own] if own.parent is None else [self.segments[own.parent], own]
        take = torch.cat([torch.arange(part.start, part.end) for part in parts]).to(self.token_ids.device)
        segments: tuple[Segment, ...] = (Segment(0, len(parts[0])),)
        if len(parts) == 2:
            segments = (*segments, Segment(len(parts[0]), len(take), 0))
        return Batch(
            self.token_ids[take],
            self.loss_weights[take],
            self.positions[take],
            segments,
            tuple(self.origins[index] for _ in parts) if self.origins else (),
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.token_ids.to(device),
            self.loss_weights.to(device),
            self.positions.to(device),
            self.segments,
            self.origins,
        )
