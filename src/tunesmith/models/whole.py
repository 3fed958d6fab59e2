"""Whether a model's files hold the whole of it. transformers draws at random what they lack, and goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from tunesmith.errors import ModelError

_COMPUTED = re.compile(
    r"(^|\.)((original_)?inv_freq|position_ids|cos_cached|sin_cached|attn\.(masked_)?bias|attention\.(masked_)?bias)$"
)
"""Buffers that old files hold, or that a model's code fills by itself: tables of angles and places, causal masks."""
_SHOWN = 3


def refuse_partial(
    model: PreTrainedModel,
    told: Mapping[str, Any],
    name: str,
    *,
    drawn: Collection[str] = (),
    say: Callable[[str], object],
) -> None:
    """Refuse what would be trained, or answered, from noise: tensors that the files of `name` lack or hold in another
    shape. What they hold beyond the model is said.

    `told`: the loading info of `from_pretrained`. `drawn`: paths of modules that may be drawn anew, a new head's.
    """
    architecture = type(model).__name__
    wrong = sorted((key, tuple(held), tuple(wanted)) for key, held, wanted in told["mismatched_keys"])
    if wrong:
        shapes = [f"{key} {list(held)} for {list(wanted)}" for key, held, wanted in wrong]
        raise ModelError(
            f"the files of {name} hold tensors of other shapes than its config.json says",
            found=f"{len(wrong)}: {_some(shapes)}",
            fix="fetch config.json and the weights again, from one place; a config.json that was edited by hand is "
            "often the reason",
        )
    missing = sorted(
        key for key in told["missing_keys"] if key.rpartition(".")[0] not in drawn and not _is_computed(model, key)
    )
    unexpected = sorted(key for key in told["unexpected_keys"] if not _COMPUTED.search(key))
    if missing:
        beyond = {"and hold beyond it": f"{len(unexpected)}: {_some(unexpected)}"} if unexpected else None
        raise ModelError(
            f"the files of {name} do not hold the whole {'body ' if drawn else ''}of {architecture}",
            found=f"{_tensors(len(missing))} missing: {_some(missing)}",
            notes=beyond,
            fix="take a model of this architecture; an encoder's files, or a causal language model's"
            if drawn
            else "fetch the files again; where all are there, config.json names another architecture than theirs",
        )
    if drawn:  # the files of a body have heads of their own kind, which a new one replaces
        prefix = f"{model.base_model_prefix}."
        unexpected = [key for key in unexpected if key.startswith(prefix)]
    if unexpected:
        say(
            f"left out of the files of {name}, no part of {architecture}: {_tensors(len(unexpected))}, "
            f"{_some(unexpected)}"
        )


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    """The first few of `names`."""
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (" …" if len(listed) > _SHOWN else "")


def _is_computed(model: PreTrainedModel, key: str) -> bool:
    """Whether the tensor at `key` is none that is learned: a model's code fills it."""
    return _COMPUTED.search(key) is not None and key in dict(model.named_buffers())


@contextmanager
def without_report() -> Iterator[None]:
    """transformers' own table of what is missing off: `refuse_partial` says it."""
    said = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(said)


@contextmanager
def torn_apart(name: str) -> Iterator[None]:
    """A failure of transformers to bring tensors together (a mixture's experts into one stack) as an error of ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        raise ModelError(
            f"tensors in the files of {name} do not fit together",
            found="such as experts of a mixture of which one is missing, or has another shape",
            fix="fetch the files again; where all are there, config.json names another architecture than theirs",
        ) from error
