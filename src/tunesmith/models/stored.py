"""From a checkpoint to the storage that a recipe asks for: which one it will be, and how transformers is told.

transformers reads bitsandbytes' storages itself and quantises a plain checkpoint layer by layer, so that the model is
never whole in memory. What it made is then put into layers of ours (`quant/`), and every trace of a quantised model is
taken off it: from there on it is a model with unusual linear layers.

Weights are quantised from the numbers in the files, whatever dtype products will run in: the same base has the same
integers on every machine.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.targets import anatomy
from tunesmith.errors import ModelError
from tunesmith.quant import QUANTISED
from tunesmith.quant.quantised import QuantisedLinear, dequantise, quantised_layers, substitute


def _held(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint, None for a plain one."""
    for holder in (config, config.get_text_config()):
        found = getattr(holder, "quantization_config", None)
        if found is not None:
            return dict(found if isinstance(found, dict) else found.to_dict())
    return None


def _reader(held: dict[str, Any]) -> ModuleType | None:
    """The file of `quant/` that reads a checkpoint with this `quantization_config`."""
    return next((module for module in QUANTISED.values() if module.in_files(held) is not None), None)  # type: ignore[attr-defined]


def in_files(config: Any, name: str) -> str | None:
    """The storage of the files, None for plain ones; one that nobody here reads is refused by name."""
    held = _held(config)
    if held is None:
        return None
    module = _reader(held)
    if module is not None:
        return str(module.in_files(held))
    raise ModelError(
        f"{name} is quantised in a way that is not read here",
        found=str(held.get("quant_method")),
        expected="plain weights, bitsandbytes, GPTQ or a GGUF file",
        fix="name the model that it was made from, with model.storage=nf4 where memory is short",
    )


def choose(wanted: str, config: Any, name: str) -> str:
    """plain, or the storage's name: what the recipe asks for, reconciled with what the files hold."""
    held = in_files(config, name)
    if wanted == "auto":
        return held or "plain"
    if held not in (None, wanted) and wanted != "plain":
        raise ModelError(
            f"the files of {name} hold {held}: they are not quantised a second time",
            where="model.storage",
            found=wanted,
            expected=f"auto or plain{f' or {held}' if held in QUANTISED and held != 'gptq' else ''}",
            fix="model.storage=auto or plain (on the command line --storage plain)",
        )
    return wanted


def refuse_without_matrices(
    storage: str, config: Any, name: str, trust_remote_code: bool, ends_in_words: bool = True
) -> None:
    """Some architectures have linear classes of their own, which transformers does not quantise. Builds no weight."""
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM if ends_in_words else AutoModelForSequenceClassification
        model = auto.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    if not any(
        (type(layer) is nn.Linear or isinstance(layer, Conv1D)) and layer is not head for layer in model.modules()
    ):
        kinds = sorted({type(layer).__name__ for layer in model.modules() if isinstance(layer, nn.Linear)})
        raise ModelError(
            f"no matrix of {name} can be held in {storage}",
            found=f"its linear layers are of a class of its own: {', '.join(kinds)}" if kinds else "no linear layer",
            fix="model.storage=plain",
        )


def reading(config: Any, storage: str, device: torch.device) -> dict[str, Any]:
    """Arguments for `from_pretrained`; empty where plain files are read plainly."""
    held = _held(config)
    if held is None and storage == "plain":
        return {}
    name = storage if held is None else in_files(config, "the checkpoint")
    module = QUANTISED[storage] if held is None else _reader(held)
    told = module.reading(name, held)  # type: ignore[union-attr]
    arguments: dict[str, Any] = {"dtype": "auto"}
    if isinstance(told, dict):
        config.quantization_config = told
    else:
        arguments["device_map"] = {"": device}
        if told is not None:
            arguments["quantization_config"] = told
    return arguments


@torch.no_grad()
def settle_in(model: PreTrainedModel, dtype: torch.dtype, storage: str) -> None:
    """Layers as transformers read them become ours, everything else is cast to `dtype`; plain: made dense for good."""
    modules = dict.fromkeys(QUANTISED.values())

    def ours(layer: nn.Module) -> QuantisedLinear | None:
        if not isinstance(layer, nn.Linear | QuantisedLinear):
            return None
        return next((new for module in modules if (new := module.taken(layer, dtype)) is not None), None)  # type: ignore[attr-defined]

    substitute(model, ours)
    read = model.dtype
    for parameter in model.parameters():
        if parameter.dtype == read:  # copied: a view into the file would keep all of it in memory
            parameter.data = parameter.data.to(dtype, copy=True)
    if storage == "plain":
        dequantise(model)
    _forget(model)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = dtype


def hollow(model: PreTrainedModel, config: Any, storage: str) -> None:
    """Matrices in the blocks of a model on the meta device become what they would be in `storage`."""
    if storage == "plain":
        return
    held, body = _held(config), anatomy(model)
    module: Any = QUANTISED[storage] if held is None else _reader(held)
    wanted = {id(layer) for path, layer in body.modules.items() if body.block_of(path) is not None}

    def ours(layer: nn.Module) -> QuantisedLinear | None:
        if id(layer) not in wanted or not isinstance(layer, nn.Linear | Conv1D):
            return None
        linear = layer
        if isinstance(layer, Conv1D):
            in_, out = layer.weight.shape
            linear = nn.Linear(in_, out, layer.bias is not None, device="meta", dtype=layer.weight.dtype)
        made: QuantisedLinear = module.hollow(linear, storage, held)
        return made

    substitute(model, ours)


def _forget(model: PreTrainedModel) -> None:
    """Take off what transformers noted of a quantised model: it refuses to move or save such a one."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    known: Any = getattr(model, "_weight_conversions", None) or []
    kept = [one for one in known if not any(hasattr(step, "hf_quantizer") for step in getattr(one, "operations", ()))]
    vars(model)["_weight_conversions"] = kept  # what it would undo when saving
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(name, None)
    for config in (model.config, model.config.get_text_config()):
        for name in ("_is_quantized", "quantization_config"):
            vars(config).pop(name, None)


def described(model: nn.Module) -> str | None:
    """One line on what is held in few bits, None where nothing is."""
    layers = [layer for _, layer in quantised_layers(model)]
    if not layers:
        return None
    held = sum(layer.held_bytes() for layer in layers)
    plain = sum(layer.in_features * layer.out_features * layer.like.itemsize for layer in layers)
    names = "+".join(sorted({layer.storage for layer in layers}))
    return f"{len(layers)} matrices in {names}: {held / 1e6:,.0f} MB, dense they would be {plain / 1e6:,.0f} MB"
