"""A model without numbers: every module where it will be, every tensor a ghost (ghost.py) of the dtype and storage that
it will have. Built from the config alone, before any weight is read."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.targets import anatomy
from tunesmith.errors import ModelError
from tunesmith.ghost import Meter, haunt
from tunesmith.models import attention, stored
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_config, pick_device, pick_dtype, resize_for, settle, without_weights
from tunesmith.models.policy import Policy
from tunesmith.models.settings import ModelSettings
from tunesmith.models.twin import Ways, ways


def hollow_model(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    meter: Meter,
    *,
    trust_remote_code: bool = False,
    head: ClassHead | None = None,
    blocks: int | None = None,
    decided: Ways | None = None,
) -> PreTrainedModel:
    """As `load_model` gives it, but for its numbers. Its bytes are the first that `meter` counts.

    `blocks`: so many of its blocks, the first ones, stand in for it. `decided`: how it runs, where that is known.
    """
    config = load_config(settings, trust_remote_code=trust_remote_code)
    ends = head is None
    storage = settle(settings, config, trust_remote_code=trust_remote_code, ends_in_words=ends, is_read=False)
    model = without_weights(settings, trust_remote_code=trust_remote_code, head=head)
    if model is None:
        raise ModelError(f"{settings.name} cannot be built from its config alone", fix="tunesmith rehearse loads it")
    attends = (decided or ways(model)).attends
    attention.register()
    model.tie_weights()
    if blocks is not None:
        keep_blocks(model, blocks)
    model.to(pick_dtype(settings.dtype, pick_device(settings.device)))  # type: ignore[arg-type]
    resize_for(model, tokenizer)
    stored.hollow(model, config, storage)
    haunt(model, meter)
    model.requires_grad_(False)
    model.eval()
    if attends:
        attention.install(model)
    fuse(model)
    return model


def keep_blocks(model: PreTrainedModel, count: int) -> None:
    """Take out all blocks but the first `count`."""
    path = anatomy(model).blocks[0].rpartition(".")[0]
    del model.get_submodule(path)[count:]  # type: ignore[operator]
    model.config.get_text_config().num_hidden_layers = count


def again(model: PreTrainedModel, meter: Meter) -> PreTrainedModel:
    """Another hollow model of the same ghosts, for adapters of its own; `meter` counts them as if it were the only
    one."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, dict(tensors))
    for tensor in tensors.values():
        meter.take(tensor)
    return made


def are_alike(model: PreTrainedModel) -> bool:
    """Whether all blocks of `model` have the same modules, of the same sizes, and attend in the same way."""
    body = anatomy(model)
    kinds = {
        tuple(
            (name, type(module), tuple(tuple(parameter.shape) for parameter in module.parameters(recurse=False)))
            for name, module in model.get_submodule(path).named_modules()
        )
        for path in body.blocks
    }
    attending = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return len(kinds) <= 1 and len(attending) <= 1


def hollow_policy(model: PreTrainedModel, switch: Switch, decided: Ways | None = None) -> Policy:
    """How `model` will run batches. `decided`: where that is known."""
    return Policy(model, switch, flat=(decided or ways(model)).flat)


def device_of(settings: ModelSettings) -> torch.device:
    """Where the ghosts say they are: where the run will be, but on a processor in place of an Apple GPU, whose code
    does not run without numbers."""
    device = pick_device(settings.device)
    return device if device.type == "cuda" else torch.device("cpu")
