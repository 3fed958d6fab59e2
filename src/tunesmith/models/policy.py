"""The policy: a model with its adapters, as objectives see it.

An objective asks for hidden states of a flat batch and for the head that turns them into logits. Whether the model runs
the batch flat or padded is decided here once, at load, by trying it: two documents together against each alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.attach import Slot, Switch, virtual
from tunesmith.adapters.heads import is_classifier
from tunesmith.adapters.targets import anatomy
from tunesmith.adapters.virtual import Virtual
from tunesmith.data.types import Batch, Segment
from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.room import is_out_of_memory
from tunesmith.models.trial import (
    blamed,
    cause,
    narrow_windows,
    refuse_broken,
    refuse_unlearnable,
    tensors_only,
)
from tunesmith.quant.dense import dense_weight, storage_of

WINDOW = 12
"""Tokens to which the probe shortens sliding windows."""


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (h W^T + b) / softcap), the cap where there is one. W [V, d], b [V]."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] -> [..., V] in fp32."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float() * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class Stored(Protocol):
    """Hidden states that are known already (models/frozen.py)."""

    def of(self, batch: Batch) -> Tensor | None:
        """[T, d] for the tokens of `batch`, or None where one of its rows is not known."""
        ...

    def given(self, hidden: Tensor) -> AbstractContextManager[None]:
        """Inside, the model takes `hidden`, shaped as it runs the batch, for the output of its lower blocks."""
        ...


class Policy(nn.Module):
    """`hidden(batch)` and `head()`; `flat` says whether batches run without padding."""

    def __init__(self, model: PreTrainedModel, switch: Switch, *, flat: bool) -> None:
        super().__init__()
        self.model = model
        self.switch = switch
        self.flat = flat
        self._backbone = (_backbone(model),)
        self.noise: nn.Module | None = None
        """Called with the embedded tokens [..., d] and the length of each one's document [...]."""
        self.stored: Stored | None = None
        """What stands in for the lower blocks, on rows that it knows."""
        self.write: Callable[[Path], object] | None = None
        """Writes the adapter that acts, as it is at the moment, into a folder."""
        self.reference_name: str | None = None
        """The adapter that acts in `reference()`; None: no adapter."""
        self.reference_digest: str | None = None
        """Of all that makes that adapter."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, batch: Batch) -> Tensor:
        return self.hidden(batch)

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states [T, d] of a flat batch, in its own order."""
        return self._flat(batch) if self.flat else self._padded(batch)

    def as_run(self, states: Tensor, batch: Batch) -> Tensor:
        """States [T, d] of `batch` laid out as the model runs it: [1, T + spare, d], or [B, L, d] with padding of 0."""
        if self.flat:
            spare = _spare_tokens(len(batch), states.device, self.model.dtype)
            return nn.functional.pad(states, (0, 0, 0, spare))[None]
        mask = _padding_mask(batch)
        laid = states.new_zeros(*mask.shape, states.shape[-1])
        laid[mask] = states
        return laid

    def from_run(self, laid: Tensor, batch: Batch) -> Tensor:
        """The inverse of `as_run`: [T, d] in the batch's own order."""
        return laid[0, : len(batch)] if self.flat else laid[_padding_mask(batch)]

    def _known(self, batch: Batch) -> AbstractContextManager[None]:
        """Stored states in place of the lower blocks, where all rows of `batch` have them."""
        states = None if self.stored is None else self.stored.of(batch)
        if self.stored is None or states is None:
            return nullcontext()
        return self.stored.given(self.as_run(states.to(self.device), batch))

    @contextmanager
    def _noised(self, lengths: Tensor) -> Iterator[None]:
        """What embeds the tokens adds `noise`, if there is any, to the last ones. lengths: as these are shaped."""
        noise = self.noise
        if noise is None or not noise.training:
            yield
            return
        embedding: Any = self.model.get_input_embeddings()
        num_own = lengths.shape[1]

        def add(_: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            num_virtual = embedded.shape[1] - num_own
            return torch.cat([embedded[:, :num_virtual], noise(embedded[:, num_virtual:], lengths)], dim=1)

        handle = embedding.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def scores(self, batch: Batch) -> Tensor:
        """What a classification head gives each row of `batch` [n, K] in fp32 or wider, in the order of its leaves.

        A decoder's is read from the state of a row's last token that is not padding, as transformers reads it.
        """
        if not self.flat and not hasattr(self.model, "score"):
            return self._scored_whole(batch)
        hidden = self.hidden(batch)[last_places(batch, self.model.config.pad_token_id)]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return nn.functional.linear(hidden.to(wide), self.score_weight().to(wide))

    def features(self, batch: Batch) -> Tensor:
        """What the last matrix of a classification head is given for each row of `batch` [n, d]."""
        if self.flat or hasattr(self.model, "score"):
            return self.hidden(batch)[last_places(batch, self.model.config.pad_token_id)]
        given: list[Tensor] = []
        handle = self._last_layer().register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            self._scored_whole(batch)
        finally:
            handle.remove()
        return given[0]

    def score_weight(self) -> Tensor:
        """Of a decoder's classification head [K, d], with the adapter that acts."""
        return self.last_of_head()["weight"]

    def last_of_head(self) -> dict[str, Tensor]:
        """The parameters of the last matrix of a classification head, with the adapter that acts, by name."""
        layer: Any = self._last_layer()
        adapter = layer.adapter(self.switch.name) if isinstance(layer, Slot) else None
        holder = (layer.layer if isinstance(layer, Slot) else layer) if adapter is None else adapter
        return dict(holder.named_parameters(recurse=False))

    def _last_layer(self) -> nn.Module:
        name = "score" if hasattr(self.model, "score") else anatomy(self.model).scorer[-1]
        return self.model.get_submodule(name)

    def _scored_whole(self, batch: Batch) -> Tensor:
        """By the model's own forward pass: encoders, whose head is more than a matrix."""
        there = _padding_mask(batch)
        ids = batch.token_ids.new_zeros(there.shape)
        ids[there] = batch.token_ids
        lengths = there.long().sum(1, keepdim=True).expand_as(ids)
        with self._known(batch), self._noised(lengths):
            logits: Tensor = self.model(input_ids=ids, attention_mask=there.long()).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def head(self) -> Head:
        """The output head with whatever adapter acts on it; differentiable in what is trained."""
        return head_of(self.model, self.switch.name)

    def refer_to(self, adapter_set: AdapterSet) -> None:
        """Make an adapter that stands in the model the reference."""
        digest = hashlib.blake2b(adapter_set.settings.model_dump_json().encode(), digest_size=16)
        for name, tensor in sorted(adapter_set.state().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.reference_name, self.reference_digest = adapter_set.name, digest.hexdigest()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside, nothing trains: no dropout, no recomputation, no gradients."""
        learning = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in learning:
                module.training = True

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is what it was before training, and nothing trains: the adapter off, or that which training
        goes on from."""
        with self.answering(), self.switch.set_to(self.reference_name):
            yield

    def _flat(self, batch: Batch) -> Tensor:
        device, tokens = batch.token_ids.device, len(batch)
        spare = _spare_tokens(tokens, device, self.model.dtype)
        ids, positions, segments = batch.token_ids, batch.positions, batch.segments
        if spare:  # one more document, which nobody attends to and nobody reads
            ids = nn.functional.pad(ids, (0, spare))
            positions = torch.cat([positions, torch.arange(spare, device=device)])
            segments = (*segments, Segment(tokens, tokens + spare))
        layout = attention.Layout(segments, device)
        lengths = document_lengths(segments)[None].to(device)
        lead = virtual(self.model, self.switch.name)
        if lead is not None:
            layout.virtual, layout.given = lead.num_tokens, lead.keys_values()
            layout.gated = lead if lead.gates else None
            positions = positions + lead.num_tokens
            if layout.given is None:
                ids = torch.cat([torch.tensor(lead.ids, dtype=torch.long, device=device), ids])
                positions = torch.cat([torch.arange(lead.num_tokens, device=device), positions])
        with self._known(batch), self._noised(lengths):
            output = self._backbone[0](
                input_ids=ids[None],
                # Any mask of four dimensions is taken as made: the layout says which token sees which.
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
                position_ids=positions[None],
                use_cache=False,
                layout=layout,
            )
        return self.from_run(output.last_hidden_state[:, len(ids) - lengths.shape[1] :], batch)

    def _padded(self, batch: Batch) -> Tensor:
        if any(segment.parent is not None for segment in batch.segments):
            raise ModelError(
                "this model cannot run two branches of one prompt in one row",
                fix="use an objective's plain form, one row per branch",
            )
        there = _padding_mask(batch)
        ids, mask = batch.token_ids.new_zeros(there.shape), there.long()
        ids[there] = batch.token_ids
        lengths, known = mask.sum(1, keepdim=True).expand_as(mask), None
        lead = virtual(self.model, self.switch.name)
        gated: dict[str, Any] = {}
        if lead is not None and lead.gates:
            self.refuse_lead()
            gated = {"gated": [([*range(len(ids))], lead)]}
        elif lead is not None:
            mask = nn.functional.pad(mask, (lead.num_tokens, 0), value=1)
            known = self._cache_of(lead, len(ids))
            if known is None:
                before = torch.tensor(lead.ids, dtype=torch.long, device=ids.device).expand(len(ids), -1)
                ids = torch.cat([before, ids], dim=1)
        with self._known(batch), self._noised(lengths):
            output = self._backbone[0](
                input_ids=ids, attention_mask=mask, past_key_values=known, use_cache=known is not None, **gated
            )
        return self.from_run(output.last_hidden_state[:, -there.shape[1] :], batch)

    def _cache_of(self, lead: Virtual, num_rows: int) -> DynamicCache | None:
        """The learned keys and values of `lead` before each row, or None where the model computes them."""
        each = lead.keys_values()
        if each is None:
            return None
        self.refuse_lead()
        cache = DynamicCache(config=self.model.config)
        for layer, pair in enumerate(each):
            keys, values = (part.to(self.model.dtype).expand(num_rows, -1, -1, -1) for part in pair)
            cache.update(keys, values, layer)
        return cache

    def refuse_lead(self) -> None:
        """Refuse what the adapter puts before documents, where this model cannot heed it."""
        lead, name = virtual(self.model, self.switch.name), type(self.model).__name__
        if lead is None or self.flat:
            return
        if lead.gates and self.model.config._attn_implementation != attention.NAME:
            raise ModelError(
                f"{name} has an attention of its own, which reads nothing through a gate",
                fix="choose another method, such as prefix or lora",
            )
        blocks = (module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer))
        recomputes = any(block.training and block.gradient_checkpointing for block in blocks)
        if recomputes and lead.keys_values() is not None:
            raise ModelError(
                f"{name} runs padded, and cannot recompute activations behind learned keys and values",
                fix="train.recompute: false, or another method",
            )


def last_places(batch: Batch, pad_id: int | None) -> Tensor:
    """Where the last token of each row stands that is not `pad_id` (of a row of nothing else: its last) [n], in the
    order of the batch's leaves."""
    kept = batch.token_ids != pad_id if pad_id is not None else torch.ones_like(batch.token_ids, dtype=torch.bool)
    ends = torch.cummax(torch.where(kept, torch.arange(len(batch), device=kept.device), -1), 0).values.tolist()
    places = []
    for leaf in batch.leaves:
        own = batch.segments[leaf]
        place = ends[own.end - 1]
        if place < own.start and own.parent is not None:
            place = ends[batch.segments[own.parent].end - 1]
        known = own if own.parent is None else batch.segments[own.parent]
        places.append(place if place >= known.start else own.end - 1)
    return torch.tensor(places, device=batch.token_ids.device)


def document_lengths(segments: Sequence[Segment]) -> Tensor:
    """For each token of `segments`, how long its document is [T]; of what several share, the longest of them."""
    lengths = [len(segment) for segment in segments]
    for index, segment in enumerate(segments):
        if segment.parent is not None:
            lengths[index] += len(segments[segment.parent])
            lengths[segment.parent] = max(lengths[segment.parent], lengths[index])
    return torch.repeat_interleave(torch.tensor(lengths), torch.tensor([len(segment) for segment in segments]))


def _padding_mask(batch: Batch) -> Tensor:
    """[B, L] bool: where, a row to each segment, the tokens of `batch` stand; they lie to the left."""
    lengths = torch.tensor([len(segment) for segment in batch.segments], device=batch.token_ids.device)
    return torch.arange(int(lengths.max()), device=lengths.device)[None] < lengths[:, None]


def _spare_tokens(tokens: int, device: torch.device, dtype: torch.dtype) -> int:
    """Tokens to add so that batches come in few sizes.

    In half precision on a CPU every new shape of a product is compiled when first seen: ten milliseconds, for each
    of some thirty products. A few spare tokens are cheaper than a batch of a size of its own.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return 0
    return -tokens % (64 if tokens > 512 else 16)


def _backbone(model: PreTrainedModel) -> nn.Module:
    """What gives hidden states: the model's base, or, where its class misnames that (Llama 4's text model), what holds
    the blocks."""
    found: nn.Module = model.base_model
    if found is model and (blocks := anatomy(model).blocks):
        return model.get_submodule(blocks[0].rpartition(".")[0].rpartition(".")[0])
    return found


def head_of(model: PreTrainedModel, adapter_name: str | None) -> Head:
    """The output head as numbers, with the adapter called `adapter_name` merged into it."""
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head", fix="use a causal language model")
    own: Any = layer.layer if isinstance(layer, Slot) else layer
    weight, bias = own.weight if storage_of(own) is None else dense_weight(own), getattr(own, "bias", None)
    if isinstance(layer, Slot):
        adapter = layer.adapter(adapter_name)
        if adapter is not None:
            weight, bias = adapter.merged(weight, bias)
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = scale / config.logits_scaling
    return Head(weight, bias, float(scale), getattr(config, "final_logit_softcapping", None))


def flat_batch(documents: list[Tensor]) -> Batch:
    """A batch of token id lists [n_i], nothing learned: for probes and tests."""
    segments, start = [], 0
    for document in documents:
        segments.append(Segment(start, start + len(document)))
        start += len(document)
    ids = torch.cat(documents)
    positions = torch.cat([torch.arange(len(document), device=ids.device) for document in documents])
    return Batch(ids, torch.zeros(len(ids), device=ids.device), positions, tuple(segments))


@torch.no_grad()
def probe(model: PreTrainedModel, switch: Switch) -> tuple[Policy, str | None]:
    """Decide how `model` runs batches, by trying.

    Returns the policy, and the reason where it runs padded. A model whose head is not understood is refused: hidden
    states through `head()` must give the model's own logits.
    """
    was_training = model.training
    model.eval()
    narrow = ExitStack()
    try:
        config = model.config.get_text_config()
        generator = torch.Generator().manual_seed(7)
        rows: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr,index,assignment]
        high = min(config.vocab_size, rows)
        lengths = (3 * WINDOW, WINDOW // 2, 2 * WINDOW)
        documents = [torch.randint(0, high, (n,), generator=generator).to(model.device) for n in lengths]
        narrow.enter_context(narrow_windows(model, WINDOW))
        fix = "take another version of transformers, or another model; what was found says why"
        with blamed(model, "does not run", fix), tensors_only(model):
            options = {} if is_classifier(model) else {"use_cache": False}
            given = [model(input_ids=document[None], **options).logits for document in documents]
        alone = given if is_classifier(model) else [logits[0] for logits in given]
        batch = flat_batch(documents)
        looks_ahead = is_classifier(model) and not hasattr(model, "score")
        reason = "the tokens of an encoder see those behind them too" if looks_ahead else None
        for flat in (False,) if looks_ahead else (True, False):
            policy = Policy(model, switch, flat=flat)
            try:
                gap = _gap_of_scores(policy, batch, alone) if is_classifier(model) else _gap(policy, batch, alone)
            except Exception as error:  # of a model's own code, which may not be made for this
                if is_out_of_memory(error):
                    raise
                reason = reason or cause(error)
                continue
            if gap <= 1:
                refuse_unlearnable(policy, flat_batch([document[:WINDOW] for document in documents]))
                return policy, None if flat else reason
            reason = reason or f"documents in one row disturb each other (logits differ {gap:.3g} times too much)"
        refuse_broken(model)
        raise ModelError(
            f"{type(model).__name__} cannot be trained: its logits are not its head applied to its hidden states",
            found=reason,
            fix="please report the architecture",
        )
    finally:
        narrow.close()
        model.train(was_training)


def _gap(policy: Policy, batch: Batch, alone: Sequence[Tensor]) -> float:
    """How far the logits of documents in one batch are from those of each `alone`; at most 1: the same."""
    found = policy.head().logits(policy.hidden(batch)).split([len(segment) for segment in batch.segments])
    return max(attention.same_logits(*pair, policy.model.dtype) for pair in zip(found, alone, strict=True))


def _gap_of_scores(policy: Policy, batch: Batch, alone: Sequence[Tensor]) -> float:
    """The same of a classification head."""
    wanted = torch.cat(list(alone)).float()
    bound = 0.1 if policy.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return (policy.scores(batch) - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-6) / bound
