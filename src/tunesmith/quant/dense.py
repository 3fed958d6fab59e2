"""The one door through which anyone asks a stored weight for its numbers.

Plain layers are known here; those of few bits are a file each in this folder and a line in `QUANTISED`
(quant/__init__.py). Nobody else looks at how a layer keeps its weight: adapters, merges and backward passes call
`dense_weight` and keep no dense copy.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.quant.quantised import QuantisedLinear


class Storage(Protocol):
    """How one kind of layer keeps its weight. `weight` returns a dense [out, in] tensor."""

    def owns(self, layer: nn.Module) -> bool: ...

    def weight(self, layer: nn.Module) -> Tensor: ...

    def shape(self, layer: nn.Module) -> tuple[int, int]: ...

    def like(self, layer: nn.Module) -> Tensor:
        """Any tensor of the dtype that the layer multiplies in, on its device; nothing is made dense."""
        ...


class PlainLinear:
    """`nn.Linear`: weight is kept as [out, in]."""

    def owns(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return layer.out_features, layer.in_features  # type: ignore[return-value]

    def like(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]


class PlainConv1D:
    """GPT-2's `Conv1D`: weight is kept as [in, out]."""

    def owns(self, layer: nn.Module) -> bool:
        return isinstance(layer, Conv1D)

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight.t()  # type: ignore[operator]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        rows, columns = self.weight(layer).shape
        return rows, columns

    def like(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]


class PlainEmbedding:
    """`nn.Embedding`: a table [num, dim]; as a matrix that acts on one-hot rows it is [out=dim, in=num]."""

    def owns(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Embedding)

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight.t()  # type: ignore[operator]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return layer.embedding_dim, layer.num_embeddings  # type: ignore[return-value]

    def like(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]


class Quantised:
    """Few bits, made dense on request."""

    def owns(self, layer: nn.Module) -> bool:
        return isinstance(layer, QuantisedLinear)

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.dense()  # type: ignore[operator]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return layer.out_features, layer.in_features  # type: ignore[return-value]

    def like(self, layer: nn.Module) -> Tensor:
        return layer.like  # type: ignore[return-value]


STORAGES: dict[str, Storage] = {
    "linear": PlainLinear(),
    "conv1d": PlainConv1D(),
    "embedding": PlainEmbedding(),
    "quantised": Quantised(),
}


def storage_of(layer: nn.Module) -> Storage | None:
    """The storage that owns `layer`, or None where no storage knows it."""
    return next((storage for storage in STORAGES.values() if storage.owns(layer)), None)


def is_matrix(layer: nn.Module) -> bool:
    """Whether `layer` multiplies by one weight matrix that an adapter can stand beside."""
    return storage_of(layer) is not None


def known_storage(layer: nn.Module) -> Storage:
    """The storage that owns `layer`; TypeError where no storage knows it."""
    storage = storage_of(layer)
    if storage is None:
        raise TypeError(f"no storage knows {type(layer).__name__}; storages: {', '.join(STORAGES)}")
    return storage


def dense_weight(layer: nn.Module) -> Tensor:
    """The numbers of `layer`'s weight, dense, shape [out, in], whatever the storage. A view where that is free."""
    return known_storage(layer).weight(layer)


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of `layer`, without making anything dense."""
    return known_storage(layer).shape(layer)


def like(layer: nn.Module) -> Tensor:
    """A tensor of the dtype that `layer` multiplies in, on its device, without making anything dense."""
    return known_storage(layer).like(layer)
