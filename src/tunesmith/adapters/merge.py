"""An adapter worked into plain weights: a transformers model without slots, and the proof that it computes the same.

Merged numbers are reckoned in fp64 from the weights that the adapter saw and rounded once, to the base's dtype. What
the rounding costs is measured on logits before anything is called done.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.attach import detach, replace, slots
from tunesmith.adapters.base import Adapter
from tunesmith.errors import AdapterError, MachineError
from tunesmith.quant.dense import dense_weight
from tunesmith.quant.quantised import QuantisedLinear, dequantise, storage_name

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest gap between logits that passes, as a share of the largest logit, by the dtype of the weights."""
PROMPTS = (
    "The capital of France is",
    "SELECT name, COUNT(*) FROM",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "Ein Meter hat hundert",
)


@dataclass(frozen=True)
class MergeReport:
    folder: Path
    dtype: torch.dtype
    gap: float
    """Largest difference of a logit between the adapted model and the reloaded merged one."""
    largest_logit: float
    agreement: float
    """Share of positions where both would say the same next token."""
    storage: str = "plain"
    """How the matrices were held that the adapter was beside."""

    @property
    def bound(self) -> float:
        return BOUNDS[self.dtype] * self.largest_logit

    def __str__(self) -> str:
        seen = (
            ""
            if self.storage == "plain"
            else f", from {self.storage} as the adapter saw it, written in {name_of(self.dtype)}"
        )
        return (
            f"merged = adapted: largest gap of a logit {self.gap:.3g} (logits reach {self.largest_logit:.3g}), "
            f"same next token at {self.agreement:.1%} of positions{seen}"
        )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def merge(model: PreTrainedModel, adapter_set: AdapterSet) -> PreTrainedModel:
    """A plain copy of `model` with `adapter_set` in its weights; what it does not touch is shared, not copied.

    Matrices held in few bits become dense ones of the dtype that products run in, those without an adapter too.
    """
    keep = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, keep)
    merged = {
        path: _plain_layer(slot.layer, slot.adapter(adapter_set.name))
        for path, slot in slots(plain).items()
        if slot.adapter(adapter_set.name) is not None
    }
    body = adapter_set.body
    tied = body.tied
    detach(plain)
    for path, layer in merged.items():
        replace(plain, path, layer)
    dequantise(plain)
    if tied and body.embedding and body.head:
        _settle_tie(plain, body.embedding, body.head)
    return plain.requires_grad_(False)


def _plain_layer(layer: nn.Module, adapter: Adapter | None) -> nn.Module:
    """A copy of `layer` (not of its tensors) that holds the merged ones."""
    assert adapter is not None
    if isinstance(layer, QuantisedLinear):
        plain: nn.Module = layer.plain()
    else:
        plain = copy.copy(layer)
        plain._parameters = dict(layer._parameters)
    own = adapter.replaces()
    if own is None:
        if not adapter.mergeable:
            raise AdapterError(f"{type(adapter).__name__} cannot be merged into weights", fix="serve it as an adapter")
        bias = getattr(layer, "bias", None)
        weight, bias = adapter.merged(dense_weight(layer).double(), None if bias is None else bias.double())
        stored = weight.t() if isinstance(layer, (Conv1D, nn.Embedding)) else weight
        own = {"weight": stored} if bias is None else {"weight": stored, "bias": bias}
    for name, tensor in own.items():
        dtype = plain.get_parameter(name).dtype
        plain._parameters[name] = nn.Parameter(tensor.to(dtype).contiguous(), requires_grad=False)
    return plain


def _settle_tie(plain: PreTrainedModel, embedding: str, head: str) -> None:
    """One parameter where both sides came out the same; else the model is untied, and its config says so."""
    first, second = plain.get_submodule(embedding), plain.get_submodule(head)
    if first.weight is second.weight:
        return
    if torch.equal(first.weight, second.weight):  # type: ignore[arg-type]
        second.weight = first.weight
        return
    for config in (plain.config, plain.config.get_text_config()):
        config.tie_word_embeddings = False


def merge_to_folder(
    model: PreTrainedModel,
    adapter_set: AdapterSet,
    folder: Path | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> MergeReport:
    """Merge, save as plain transformers weights, load again from disk, and compare logits; nothing is overwritten.

    The folder appears under its name only once the comparison has passed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError("there is something already", where=str(folder), fix="choose another folder")
    half = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        merge(model, adapter_set).save_pretrained(half)
        if tokenizer is not None:
            tokenizer.save_pretrained(half)
        report = _compare(model, adapter_set, half, folder, _token_ids(adapter_set, tokenizer, prompts))
        if folder.exists():
            folder.rmdir()
        half.replace(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise MachineError(
            "the merged model cannot be written" + (": the disk is full" if full else f": {error.strerror or error}"),
            where=str(folder),
            fix="free space or choose another disk" if full else None,
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return report


@torch.no_grad()
def _compare(
    model: PreTrainedModel, adapter_set: AdapterSet, half: Path, folder: Path, prompts: list[Tensor]
) -> MergeReport:
    """Logits of the adapted model against those of the folder; a gap past the bound is an error."""
    device, dtype = next(model.parameters()).device, model.dtype
    plain: nn.Module = AutoModelForCausalLM.from_pretrained(half, dtype=dtype, local_files_only=True)
    plain.to(device).eval()
    learning = [module for module in model.modules() if module.training]
    model.eval()
    gap, largest, same, positions = 0.0, 0.0, 0, 0
    try:
        for ids in prompts:
            ids = ids.to(device)
            with adapter_set.switch.set_to(adapter_set.name):
                wanted = model(input_ids=ids, use_cache=False).logits.float()
            got = plain(input_ids=ids, use_cache=False).logits.float()
            gap = max(gap, (got - wanted).abs().max().item())
            largest = max(largest, wanted.abs().max().item())
            same += int((got.argmax(-1) == wanted.argmax(-1)).sum())
            positions += wanted.shape[1]
    finally:
        for module in learning:
            module.training = True
    report = MergeReport(folder, dtype, gap, largest, same / positions, storage_name(model))
    if not gap <= report.bound:
        raise AdapterError(
            "the merged model does not compute what the adapted one does; nothing was kept",
            where=str(folder),
            found=f"largest gap of a logit {gap:.3g}, same next token at {report.agreement:.1%} of positions",
            expected=f"at most {report.bound:.3g} in {name_of(dtype)}",
            fix="merge in float32 (model.dtype=float32)",
        )
    return report


def _token_ids(
    adapter_set: AdapterSet, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str]
) -> list[Tensor]:
    """Fixed prompts [1, n] each; without a tokenizer, an even walk over the vocabulary."""
    if tokenizer is not None:
        return [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in prompts]
    rows = adapter_set.body.rows(adapter_set.body.embedding)
    return [(torch.arange(3, 35) * stride % rows).unsqueeze(0) for stride in (1, 7, 13)]
