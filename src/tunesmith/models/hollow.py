"""A model without numbers: every module where it will be, every tensor a ghost (ghost.py) of the dtype and storage that
it will have. Built from the config alone, before any weight is read."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead, is_classifier
from tunesmith.adapters.targets import anatomy
from tunesmith.errors import ModelError
from tunesmith.ghost import Meter, haunt
from tunesmith.models import attention, stored
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_config, pick_device, pick_dtype, settle, without_weights
from tunesmith.models.policy import Policy
from tunesmith.models.settings import ModelSettings
from tunesmith.quant.dense import weight_shape


def hollow_model(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    meter: Meter,
    *,
    trust_remote_code: bool = False,
    head: ClassHead | None = None,
    blocks: int | None = None,
) -> PreTrainedModel:
    """As `load_model` gives it, but for its numbers. Its bytes are the first that `meter` counts.

    `blocks`: so many of its blocks, the first ones, stand in for it.
    """
    config = load_config(settings, trust_remote_code=trust_remote_code)
    storage = settle(settings, config, trust_remote_code=trust_remote_code, ends_in_words=head is None)
    model = without_weights(settings, trust_remote_code=trust_remote_code, head=head)
    if model is None:
        raise ModelError(f"{settings.name} cannot be built from its config alone", fix="tunesmith rehearse loads it")
    attention.register()
    model.tie_weights()
    if blocks is not None:
        keep_blocks(model, blocks)
    model.to(pick_dtype(settings.dtype, pick_device(settings.device)))  # type: ignore[arg-type]
    if len(tokenizer) > weight_shape(model.get_input_embeddings())[1]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    stored.hollow(model, config, storage)
    haunt(model, meter)
    model.requires_grad_(False)
    model.eval()
    attention.install(model)
    fuse(model)
    return model


def keep_blocks(model: PreTrainedModel, count: int) -> None:
    """Take out all blocks but the first `count`."""
    path = anatomy(model).blocks[0].rpartition(".")[0]
    del model.get_submodule(path)[count:]  # type: ignore[operator]
    model.config.get_text_config().num_hidden_layers = count


def hollow_policy(model: PreTrainedModel, switch: Switch) -> Policy:
    """How `model` will most likely run batches: `probe` decides, by trying, once the numbers are there."""
    known: Any = model
    looks_ahead = is_classifier(model) and not hasattr(model, "score")
    return Policy(model, switch, flat=bool(known._supports_attention_backend) and not looks_ahead)


def device_of(settings: ModelSettings) -> torch.device:
    """Where the ghosts say they are: where the run will be, but on a processor in place of an Apple GPU, whose code
    does not run without numbers."""
    device = pick_device(settings.device)
    return device if device.type == "cuda" else torch.device("cpu")
