"""Answers made one row at a time, for models whose rows cannot stand in one padded cache.

A layer that keeps a state (recurrent, a convolution) would run it through the padding. A row alone has none, so it goes
through the model with the cache that transformers itself makes for it, or, where a model has no cache or answers
otherwise with it than without, whole again for each token. Which it is decides a trial.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch, virtuals
from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.rows import Row, adapters_set

_IN_BATCHES = {"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp"}
"""Kinds of layers that padding does not reach, or that keep nothing."""
_STATES = ("past_key_values", "cache_params", "state")
"""What models call what they have computed so far, where they take it and where they give it."""
_TRIED, _PREFILLED = 9, 5


def why_alone(model: PreTrainedModel) -> str | None:
    """Why answers of `model` are made one at a time, in a few words; None where they are made in batches."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if others := sorted(kinds - _IN_BATCHES):
        return f"layers of the kind {', '.join(others)} keep a state that padding would run through"
    if getattr(model, "_is_stateful", False):
        return "its layers keep a state that padding would run through"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "it takes no cache"
    return None


def told_alone(model: PreTrainedModel, switch: Switch | None) -> str | None:
    """A line for whoever waits for answers that are made one at a time; None where they are made in batches."""
    why = why_alone(model)
    if why is None:
        return None
    again = "" if Alone(model, switch).keeps else "; without a cache, so that each token reads the whole text again"
    return f"answers are made one at a time, since {why}{again}"


class Alone:
    """Rows under way, each with a state of its own; they share neither columns nor a forward pass."""

    def __init__(self, model: PreTrainedModel, switch: Switch | None) -> None:
        self.model, self.switch = model, switch
        self.rows: list[Row] = []
        self._states: list[Any] = []
        accepted = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._state_name = next((name for name in _STATES if name in accepted), None)
        self._places = False
        """Whether the model is told where a token stands; of its cache some models ask the wrong layer (MiniMax's)."""
        if self._state_name is not None and not self._goes_on():
            self._places = "position_ids" in accepted
            if not self._places or not self._goes_on():
                self._state_name = None

    @property
    def keeps(self) -> bool:
        """Whether what was computed for one token serves the next."""
        return self._state_name is not None

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Whether the model, given a text in pieces, answers as it does to the whole."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr,index,assignment]
        ids = (torch.arange(1, _TRIED + 1, device=self.model.device) % rows)[None]
        try:
            with adapters_set(self.switch, [None]):
                wanted = self.model(input_ids=ids, use_cache=False).logits[0, _PREFILLED - 1 :]
            logits, state = self._forward(ids[:, :_PREFILLED], 0, None, None)
            found = [logits]
            for at in range(_PREFILLED, _TRIED):
                logits, state = self._forward(ids[:, at : at + 1], at, state, None)
                found.append(logits)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of a model's own code, which may not be made for pieces
            return False
        return attention.same_logits(torch.cat(found), wanted, self.model.dtype) <= 1

    def _forward(self, tokens: Tensor, start: int, state: Any, adapter: str | None) -> tuple[Tensor, Any]:
        """tokens [1, Q] behind the `start` that made `state` -> logits of the last one [1, V], and the state behind
        them."""
        named: dict[str, Any] = {}
        if state is not None and self._state_name is not None:
            named[self._state_name] = state
            if self._places:
                named["position_ids"] = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        with adapters_set(self.switch, [adapter]):
            output = self.model(input_ids=tokens, use_cache=self._state_name is not None, **self._last_only, **named)
        made = None if self._state_name is None else output[self._state_name]
        return output.logits[:, -1], made

    def _computed(self, row: Row) -> tuple[Tensor, Any]:
        """All of `row` from its first token on."""
        tokens = torch.tensor([[*row.prompt, *row.token_ids]], device=self.model.device)
        return self._forward(tokens, 0, None, row.adapter)

    def admit(self, groups: list[list[Row]]) -> Tensor:
        """Compute one row per group, copy its state to the group's other rows -> logits [rows admitted, V]."""
        heads, others = [], []
        for group in groups:
            self._refuse_lead(group[0])
            logits, state = self._computed(group[0])
            heads.append((group[0], logits, state))
            others += [(row, logits, copy.deepcopy(state)) for row in group[1:]]
        admitted = [*heads, *others]
        self.rows += [row for row, _, _ in admitted]
        self._states += [state for _, _, state in admitted]
        return torch.cat([logits for _, logits, _ in admitted])

    def step(self) -> Tensor:
        """One more token of every row -> logits [n, V]."""
        made = []
        for at, row in enumerate(self.rows):
            if self._state_name is None:
                logits, _ = self._computed(row)
            else:
                token = torch.tensor([row.token_ids[-1:]], device=self.model.device)
                logits, self._states[at] = self._forward(token, row.length - 1, self._states[at], row.adapter)
            made.append(logits)
        return torch.cat(made)

    def drop(self, ended: Collection[int]) -> None:
        """Rows `ended` leave; those from the back take their places, as in a batch with one cache."""
        kept = len(self.rows) - len(ended)
        targets = [at for at in sorted(ended) if at < kept]
        sources = [at for at in range(kept, len(self.rows)) if at not in ended]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target], self._states[target] = self.rows[source], self._states[source]
        del self.rows[kept:], self._states[kept:]

    def copy_rows(self, sources: list[int], targets: list[int]) -> None:
        """What row `sources[i]` has computed becomes that of row `targets[i]`."""
        copies = [copy.deepcopy(self._states[source]) for source in sources]
        for target, state in zip(targets, copies, strict=True):
            self._states[target] = state

    def _refuse_lead(self, row: Row) -> None:
        lead = virtuals(self.model, [row.adapter], self.switch)[0]
        if lead is not None and (lead.gates or lead.keys_values() is not None):
            raise ModelError(
                f"{type(self.model).__name__} has layers without keys and values, which no learned ones can precede",
                fix="choose another method, such as lora",
            )
