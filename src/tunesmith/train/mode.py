"""Who trains while a run trains: adapters and noise. The frozen base stays in evaluation mode, its own dropout off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.adapters.base import Adapter
from tunesmith.errors import ModelError
from tunesmith.models.policy import Policy


def train_mode(policy: Policy, recompute: bool) -> None:
    """Adapters learn and noise is on; all else is in evaluation mode.

    With `recompute` (and after `gradient_checkpointing_enable`), transformers' checkpointed blocks are told that they
    train, which is how they know to recompute, but what runs inside them is not.
    """
    policy.eval()
    if policy.noise is not None:
        policy.noise.train()
    blocks = 0
    for module in policy.modules():
        if isinstance(module, Adapter):
            module.train()
        elif recompute and isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            block: Any = module
            if not isinstance(block._gradient_checkpointing_func, _Quiet):
                block._gradient_checkpointing_func = _Quiet(module, block._gradient_checkpointing_func)
            block.training = True
            blocks += 1
    if recompute and not blocks:
        raise ModelError(
            f"{type(policy.model).__name__} cannot recompute activations: transformers checkpoints none of its blocks",
            fix="take train.recompute out; a smaller data.max_length or train.micro_batch_tokens saves memory too",
        )


def recompute_blocks(model: Any) -> None:
    """Let transformers recompute what its blocks keep; what it is called differs by its version."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot recompute activations",
            found=str(error).partition("\n")[0],
            fix="take train.recompute out; a smaller data.max_length or train.micro_batch_tokens saves memory too",
        ) from error


class _Quiet:
    """Runs a checkpointed block as the frozen part that it is: dropout of its own, asked of `self.training`, is off."""

    def __init__(self, block: nn.Module, checkpoint: Callable[..., Any]) -> None:
        self.block, self.checkpoint = block, checkpoint

    def __call__(self, forward: Callable[..., Any], *inputs: Any) -> Any:
        def quiet(*again: Any) -> Any:
            self.block.training = False
            try:
                return forward(*again)
            finally:
                self.block.training = True

        return self.checkpoint(quiet, *inputs)
