"""Which base model an adapter belongs to: a fingerprint that is the same in every process and for every load dtype.

It covers the config's essentials and, for each tensor, its name, shape and an even sample of 256 numbers rounded to
bf16. The vocabulary's length is left out, so that rows for added tokens leave the fingerprint as it was.

Of weights held in fp16 bf16 numbers are others than of the same weights in fp32 or bf16: they are rounded twice, and
fp16 has no room for the smallest. Their signs are the same everywhere; where one side was in fp16, those decide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters.adapter_set import base_parameters
from tunesmith.adapters.heads import is_classifier
from tunesmith.adapters.targets import anatomy
from tunesmith.errors import AdapterError
from tunesmith.quant.dense import weight_shape
from tunesmith.quant.quantised import QuantisedLinear, storage_name

SAMPLE = 256
ESSENTIALS = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")


@dataclass(frozen=True)
class BaseIdentity:
    name: str
    """Hub id, or the folder's own name; never a path of this machine. Empty where the model came from neither."""
    revision: str | None
    fingerprint: str
    vocabulary: int
    """Rows of the embedding that the adapter was trained beside."""
    dtype: str
    """In which the base was held then."""
    signs: str
    """The fingerprint of the sample's signs alone."""
    storage: str
    """How its matrices were held: plain, nf4 …"""
    frame: str
    """The fingerprint of what no storage touches: embeddings, head, norms and biases, by signs."""

    def as_dict(self) -> dict[str, str | int | None]:
        return asdict(self)


def identify(model: PreTrainedModel, name: str | None = None, revision: str | None = None) -> BaseIdentity:
    """The identity of `model`; `name` is what it was loaded from (else what the model itself remembers)."""
    body = anatomy(model)
    given = name if name is not None else str(getattr(model.config, "_name_or_path", "") or "")
    rows = body.rows(body.embedding)
    held = storage_name(model)
    return BaseIdentity(
        public_name(given), revision, fingerprint(model), rows, _dtype(model), signs(model), held, frame(model)
    )


def held_otherwise(base: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """The storage in which the base that a `BaseIdentity`, written out, is of was held, where `model` has another."""
    then = str(base.get("storage", "plain"))
    return None if then == storage_name(model) else then


def is_same(base: Mapping[str, Any], model: PreTrainedModel) -> bool:
    """Whether `model` is the base that a `BaseIdentity`, written out, is of.

    Held otherwise, the numbers of its matrices are others: then what no storage touches decides, and their names.
    """
    if held_otherwise(base, model) is not None:
        return base.get("frame") == frame(model)
    if "float16" in (base.get("dtype"), _dtype(model)) and base.get("dtype") != _dtype(model):
        return base.get("signs") == signs(model)
    return base.get("fingerprint") == fingerprint(model)


def refuse_other(side: Mapping[str, Any], model: PreTrainedModel, here: str, there: str) -> None:
    """AdapterError where `model`, called `here`, is not the base `there` of the adapter that `side` is of."""
    if is_same(side.get("base", {}), model):
        return
    then, now = (
        "a classification head" if has_head else "words" for has_head in (bool(side.get("head")), is_classifier(model))
    )
    if then != now:
        raise AdapterError(
            f"this adapter was trained on a model that ends in {then}, and here the model ends in {now}",
            found=here or "this model",
            fix="begin with the base alone, or merge the adapter first and take the merged model as model.name",
        )
    raise AdapterError(
        "this adapter was trained beside another base model",
        found=here or "this model",
        expected=there or "the base it was trained beside",
        fix="load it on the model it was trained on",
    )


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def public_name(name: str) -> str:
    """A hub id as it is; of a path, the last part alone."""
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists():
        return name
    return Path(name).expanduser().resolve().name if name else ""


def fingerprint(model: PreTrainedModel) -> str:
    """64 hex digits; two models agree exactly when an adapter of one means the same beside the other."""
    return _digest(model, _numbers)


def signs(model: PreTrainedModel) -> str:
    """64 hex digits that no rounding changes; fine-tuning of the base does."""
    return _digest(model, _signs)


def frame(model: PreTrainedModel) -> str:
    """64 hex digits that are the same however the matrices are held, and in whatever dtype."""
    return _digest(model, _signs, matrices=False)


@torch.no_grad()
def _digest(model: PreTrainedModel, as_bytes: Callable[[Tensor], bytes], matrices: bool = True) -> str:
    body = anatomy(model)
    config = model.config.get_text_config()
    digest = hashlib.sha256(json.dumps({key: getattr(config, key, None) for key in ESSENTIALS}).encode())
    vocabulary = {path for path in (body.embedding, body.head) if path}
    own: dict[str, Tensor] = dict(base_parameters(model))
    held = {f"{path}.weight": layer for path, layer in body.modules.items() if isinstance(layer, QuantisedLinear)}
    order = sorted({*own, *held}) if held or not matrices else own
    for name in order:
        path = name.rpartition(".")[0]
        if path in body.scorer:
            continue  # the adapter's, whatever stood there before
        by_token = path in vocabulary
        if not matrices and not by_token and (name in held or own[name].dim() > 1):
            digest.update(name.encode())
            continue
        if name in held:  # integers and scales as they are: no dtype changes them
            layer = held[name]
            digest.update(f"{name}{weight_shape(layer)}{layer.storage}".encode())
            digest.update(_sample(getattr(layer, layer.FIXED), by_token).cpu().numpy().tobytes())
            continue
        parameter = own[name]
        if not matrices and parameter.device.type != "meta" and not parameter.any():
            continue  # biases of zero, which writers of quantised files add
        shape = tuple(parameter.shape[1:]) if by_token else tuple(parameter.shape)
        digest.update(f"{name}{shape}".encode())
        if parameter.device.type != "meta":
            digest.update(as_bytes(_sample(parameter, by_token)))
    return digest.hexdigest()


def _sample(parameter: Tensor, by_token: bool) -> Tensor:
    """An even sample; of a table with a row for each token, from its first rows."""
    flat = parameter.detach()[:64].reshape(-1) if by_token else parameter.detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLE)
    return flat[::step][:SAMPLE]


def _numbers(sample: Tensor) -> bytes:
    return sample.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes()


def _signs(sample: Tensor) -> bytes:
    return sample.signbit().cpu().numpy().tobytes()
