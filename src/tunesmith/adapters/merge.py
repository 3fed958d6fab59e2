"""An adapter worked into plain weights: a transformers model without slots, and the proof that it computes the same.

Merged numbers are reckoned in fp64 from the weights that the adapter saw and rounded once, to the base's dtype. Nothing
is called done before three things have been shown:

    the merge is right      in fp32, weights of the base widened (which is exact) and merged ones not rounded, each
                            layer's change is that of its adapter to a hundredth, and logits equal those of the adapted
                            model to within fp32's own noise
    the files are right     each number read back from disk is the unrounded one, to half a unit in its last place
    the adapter is left     logits of what stands on disk, in fp32 again, are nearer to those of the adapted model than
                            half the way back to the base: each weight of a bf16 base is a bf16 number, and an update of
                            less than half the way to the next is rounded away

Comparing in bf16 would hide the first behind the second: activations rounded in every layer move logits by several per
cent of the largest, and a forgotten layer by less. Widened, only the weights' own rounding is left, and it is taken out
of the first comparison too. Costs four bytes for each weight more, twice, while it lasts.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.attach import detach, replace, slots
from tunesmith.adapters.base import Adapter, Base, Whole
from tunesmith.adapters.full import is_lookup
from tunesmith.adapters.heads import is_classifier
from tunesmith.atomic import no_room
from tunesmith.errors import AdapterError, MachineError
from tunesmith.quant.dense import dense_weight
from tunesmith.quant.quantised import QuantisedLinear, dequantise, quantised_layers, storage_name

EXACT = {torch.float64: 1e-9, torch.float32: 3e-5}
"""Largest gap of a logit between adapted and merged, unrounded, as a share of the largest: noise of the arithmetic."""
MOST_WRONG = 0.01
"""Largest gap of a merged layer's output, before rounding, as a share of what its adapter changes there: in a large
model one layer's part in the logits may be within their noise."""
LAYER_NOISE = 1e-5
"""What fp32 may add to it, as a share of the largest output."""
MOST_LOST = 0.5
"""Share of what the adapter does to the logits that rounding may undo."""
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
    """Of the files."""
    proof: float
    """Largest difference of a logit between the adapted model and the merged one before rounding, in fp32 or wider."""
    gap: float
    """The same for the merged model as read back from disk: what rounding costs."""
    lost: float
    """Root mean square of that, over the same of what the adapter does to the logits."""
    largest_logit: float
    agreement: float
    """Share of positions where the adapted and the stored model would say the same next token."""
    storage: str = "plain"
    """How the matrices were held that the adapter was beside."""
    ends_in_words: bool = True

    def __str__(self) -> str:
        same = f"next token at {self.agreement:.1%} of positions"
        if not self.ends_in_words:
            same = f"class of {self.agreement:.1%} of texts"
        seen = (
            ""
            if self.storage == "plain"
            else f", from {self.storage} as the adapter saw it, written in {_name(self.dtype)}"
        )
        return (
            f"merged = adapted: largest gap of a logit {self.proof:.2g} before rounding to {_name(self.dtype)}, "
            f"{self.gap:.2g} after it (logits reach {self.largest_logit:.3g}), which undoes {self.lost:.1%} of what "
            f"the adapter does; same {same}{seen}"
        )


def _name(dtype: torch.dtype) -> str:
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
        stored = weight.t() if isinstance(plain, (Conv1D, nn.Embedding)) else weight
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
        full = no_room(error)
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
    """The three proofs; one that fails is an error."""
    device, dtype = next(model.parameters()).device, model.dtype
    prompts = [ids.to(device) for ids in prompts]
    with _answering(model):
        with _widened(model):
            with adapter_set.switch.set_to(adapter_set.name):
                wanted = _logits(model, prompts)
            with adapter_set.switch.set_to(None):
                base = _logits(model, prompts)
            unrounded = merge(model, adapter_set)
            _same_layers(model, unrounded, adapter_set, folder)
            merged = _logits(unrounded, prompts)
        largest = wanted.abs().max().item()
        proof, bound = _gap(merged, wanted), EXACT[wanted.dtype] * largest
        if not proof <= bound:
            raise AdapterError(
                "the merged model does not compute what the adapted one does; nothing was kept",
                where=str(folder),
                found=f"largest gap of a logit {proof:.3g} before rounding",
                expected=f"at most {bound:.3g}; the adapter moves logits by up to {_gap(base, wanted):.3g}",
                fix="serve the adapter unmerged, and report this: the model has a layer that merging does not reach",
            )
        auto: Any = AutoModelForSequenceClassification if is_classifier(model) else AutoModelForCausalLM
        plain: Any = auto.from_pretrained(half, dtype=dtype, local_files_only=True)
        plain.to(device).eval()
        _same_numbers(plain, unrounded, folder)
        del unrounded
        with _widened(plain):
            got = _logits(plain, prompts)
    same = (got.argmax(-1) == wanted.argmax(-1)).double().mean().item()
    lost = _size(got - wanted) / max(_size(base - wanted), torch.finfo(wanted.dtype).tiny)
    words = not is_classifier(model)
    report = MergeReport(folder, dtype, proof, _gap(got, wanted), lost, largest, same, storage_name(model), words)
    if not (lost <= MOST_LOST or report.gap <= bound):
        raise AdapterError(
            f"rounded to {_name(dtype)}, the merged model has lost what the adapter does; nothing was kept",
            where=str(folder),
            found=f"{lost:.0%} of what it does to the logits is rounded away",
            expected=f"at most {MOST_LOST:.0%}",
            fix="merge in float32 (--dtype float32), or serve the adapter unmerged",
        )
    return report


def _same_layers(model: PreTrainedModel, unrounded: nn.Module, adapter_set: AdapterSet, folder: Path) -> None:
    """Each adapted matrix, merged, gives random inputs what matrix and adapter give them; what an adapter puts in a
    layer's place stands there."""
    generator = torch.Generator().manual_seed(0)
    for path, slot in slots(model).items():
        adapter, base = slot.adapter(adapter_set.name), slot.base
        if adapter is None:
            continue
        found = unrounded.get_submodule(path)
        for name, tensor in (adapter.replaces() or {}).items():
            held = found.get_parameter(name)
            if not torch.equal(held, tensor.to(held.dtype)):
                raise AdapterError(
                    "a merged layer does not hold what was trained; nothing was kept",
                    where=str(folder),
                    found=f"other numbers in {path}.{name}",
                    fix="serve the adapter unmerged, and report this",
                )
        if not _answers_alone(base, adapter):
            continue
        if base.is_embedding:
            x = torch.randint(0, base.in_features, (16,), generator=generator).to(base.device)
        else:
            wide = torch.promote_types(base.dtype, torch.float32)
            x = torch.randn(16, base.in_features, generator=generator).to(base.device, wide)
        wanted, alone, merged = adapter(x, base), base.output(x), found(x)
        gap, change = _gap(merged, wanted), _gap(alone, wanted)
        if not gap <= MOST_WRONG * change + LAYER_NOISE * wanted.abs().max().item():
            raise AdapterError(
                "a merged layer does not compute what the adapted one does; nothing was kept",
                where=str(folder),
                found=f"before rounding, {path} is off by {gap:.3g}, where its adapter changes up to {change:.3g}",
                expected=f"at most {MOST_WRONG:.0%} of that",
                fix="serve the adapter unmerged, and report this",
            )


def _answers_alone(base: Base, adapter: Adapter) -> bool:
    """Whether the layer takes one input and multiplies it, as matrices and lookup tables do.

    A norm or a router does not, nor does an embedding that reckons its own positions (OPT's takes an attention mask).
    These are only trained in full: their tensors are compared, and the logits hold their product.
    """
    layer = base.layer
    if isinstance(base, Whole):
        return False
    known = isinstance(layer, QuantisedLinear) or type(layer).forward in (nn.Linear.forward, Conv1D.forward)
    return known or is_lookup(layer) or adapter.replaces() is None


def _logits(model: PreTrainedModel, prompts: list[Tensor]) -> Tensor:
    """[positions of all prompts, vocabulary], in fp32 or wider; of a classification head [prompts, outputs]."""
    if is_classifier(model):
        joined = torch.cat([model(input_ids=ids).logits for ids in prompts])
    else:
        joined = torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in prompts])
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _size(logits: Tensor) -> float:
    """Root mean square."""
    return logits.double().square().mean().sqrt().item()


def _gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@contextmanager
def _answering(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, then each module as it was."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


@contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Weights in fp32 where they are narrower, then bit for bit as they were. What is held in few bits stays so, and
    gives the numbers that it gave."""
    narrow = [
        (tensor, tensor.dtype)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.element_size() < 4
    ]
    quantised = [layer for _, layer in quantised_layers(model)]
    try:
        for layer in quantised:
            layer.rounded = layer.like.dtype
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
        for layer in quantised:
            layer.rounded = None


def _same_numbers(plain: nn.Module, unrounded: nn.Module, folder: Path) -> None:
    """Each number of `plain` is that of `unrounded` to within half a unit in its last place."""
    wanted = dict(unrounded.named_parameters(remove_duplicate=False))
    found = dict(plain.named_parameters(remove_duplicate=False))
    wrong = sorted(wanted.keys() ^ found.keys())
    for name in wanted.keys() & found.keys():
        stored, exact = found[name], wanted[name]
        if stored.shape != exact.shape:
            wrong.append(name)
            continue
        wide = torch.promote_types(exact.dtype, torch.float32)
        if not ((stored.to(wide) - exact.to(wide)).abs() <= _half_unit(exact.to(wide), stored.dtype)).all():
            wrong.append(name)
    if wrong:
        raise AdapterError(
            "what was read back from disk is not what was merged; nothing was kept",
            where=str(folder),
            found=", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            fix="merge again, on another disk; where a number is too large for float16: --dtype bfloat16 or float32",
        )


def _half_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of two neighbours in `dtype`, for each number of `x`; a hair more, for a second rounding."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp_min(limits.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(x, 0.5001 * limits.eps), exponent - 1)


def _token_ids(
    adapter_set: AdapterSet, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str]
) -> list[Tensor]:
    """Fixed prompts [1, n] each; without a tokenizer, an even walk over the vocabulary."""
    if tokenizer is not None:
        return [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in prompts]
    rows = adapter_set.body.rows(adapter_set.body.embedding)
    return [(torch.arange(3, 35) * stride % rows).unsqueeze(0) for stride in (1, 7, 13)]
