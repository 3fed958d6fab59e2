"""Tensors without numbers: what a computation would hold, found out by running the very code that computes it.

A `Ghost` has shape, strides, dtype and device and takes no memory; whatever is made of one is a ghost too. Tensors that
were real stay so (token ids, positions, masks), so that code which looks at them runs as it is. A `Meter` counts the
bytes that ghosts would hold, now and at most, and the multiplications that would be done. Compiled functions are told
apart by `is_ghost`: given a ghost they have nothing to do, since what they write into is there already.

Code that asks a ghost for a number is answered 1 (true); code whose shapes hang on a ghost's numbers is refused.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

aten = torch.ops.aten
_HELD = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8))
"""Dtypes of what a model computes with; the others count tokens and say which."""
_MADE = frozenset(
    (
        *(aten.empty.memory_format, aten.empty_strided.default, aten.zeros.default, aten.ones.default),
        *(aten.full.default, aten.rand.default, aten.randn.default),
    )
)


class NumbersNeededError(RuntimeError):
    """A shape hangs on numbers that a ghost has not."""


class Ghost(Tensor):
    """A tensor of `meta`'s shape that says it is on `device`."""

    meta: Tensor

    @staticmethod
    def __new__(cls: type[Ghost], meta: Tensor, device: torch.device, requires_grad: bool = False) -> Ghost:
        made: Ghost = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, strides=meta.stride(), storage_offset=meta.storage_offset(),
            dtype=meta.dtype, layout=meta.layout, device=device, requires_grad=requires_grad,
        )  # fmt: skip
        made.meta = meta
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Ghost({list(self.shape)}, {self.dtype}, {self.device})"

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Any) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.meta = other.meta

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


def is_ghost(*tensors: object) -> bool:
    """Whether one of `tensors` has no numbers."""
    return any(isinstance(tensor, Ghost) for tensor in tensors)


class Meter(TorchDispatchMode):
    """Inside, floating tensors made from nothing are ghosts, and what ghosts hold is counted.

    bytes      held now
    peak       the most since `reset`
    flops      multiplications and additions of matrix products, as run
    moved      bytes written
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.bytes = self.peak = 0
        self.flops = self.moved = 0.0
        self.operations = 0
        self.is_aside = False

    def reset(self) -> int:
        """The peak from here on; returns what is held."""
        self.peak = self.bytes
        return self.bytes

    def saw(self, tensor: Ghost) -> bool:
        """Count what `tensor` holds; whether it is new, and no view of what was there."""
        storage = tensor.meta.untyped_storage()
        if getattr(storage, "_seen", None) is self:
            return False
        storage._seen = self  # type: ignore[attr-defined]
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, size)
        return True

    def _gone(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.is_aside and func in _MADE and (kwargs.get("dtype") or torch.get_default_dtype()) in _HELD:
            made = func(*args, **{**kwargs, "device": "meta", "pin_memory": None})
            return self.ghost(made)
        return func(*args, **kwargs)

    def ghost(self, meta: Tensor, requires_grad: bool = False) -> Ghost:
        made = Ghost(meta, self.device, requires_grad)
        self.saw(made)
        return made

    @contextmanager
    def on(self) -> Iterator[Meter]:
        global _meter
        before, _meter = _meter, self
        try:
            with self:
                yield self
        finally:
            _meter = before


_meter: Meter | None = None


@contextmanager
def numbers() -> Iterator[None]:
    """Inside, tensors made from nothing have numbers, whoever counts."""
    meter = _meter
    if meter is None or meter.is_aside:
        yield
        return
    meter.is_aside = True
    try:
        yield
    finally:
        meter.is_aside = False


def haunt(model: nn.Module, meter: Meter) -> None:
    """Every parameter and buffer of `model`, which stands on the meta device, becomes a ghost; shared ones stay so."""
    made: dict[int, Tensor] = {}

    def once(tensor: Tensor, parameter: bool) -> Tensor:
        if id(tensor) not in made:
            ghost = meter.ghost(tensor.detach())
            made[id(tensor)] = nn.Parameter(ghost, requires_grad=tensor.requires_grad) if parameter else ghost
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = once(parameter, True)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = once(buffer, False)


def _flops(func: Any, args: tuple[Any, ...]) -> float:
    """2 m k n of a matrix product; 0 of what is none."""
    if func is aten.mm.default or func is aten.bmm.default:
        return 2.0 * math.prod(args[0].shape) * args[1].shape[-1]
    if func is aten.addmm.default or func is aten.baddbmm.default:
        return 2.0 * math.prod(args[1].shape) * args[2].shape[-1]
    return 0.0


def _scalar(args: tuple[Any, ...]) -> Any:
    tensor = args[0]
    return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def _indexed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Real masks among the indices become the places that they choose."""
    places: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype == torch.bool:
            if isinstance(index, Ghost):
                raise NumbersNeededError("a mask that has no numbers chooses what is taken")
            places += torch.nonzero(index, as_tuple=True)
        else:
            places.append(index)
    return (args[0], places, *args[2:])


_INDEXED = frozenset((aten.index.Tensor, aten.index_put.default, aten.index_put_.default))
_SCALARS: dict[Any, Callable[[tuple[Any, ...]], Any]] = {
    aten._local_scalar_dense.default: _scalar,
    aten.is_nonzero.default: lambda _: True,
    aten.equal.default: lambda _: True,
}


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in _SCALARS:
        return _SCALARS[func](args)
    if func in _INDEXED:
        args = _indexed(args)
    device = torch.device("cpu")
    known: dict[int, Tensor] = {}

    def bare(tensor: Tensor) -> Tensor:
        nonlocal device
        if isinstance(tensor, Ghost):
            device, meta = tensor.device, tensor.meta
        else:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        known[id(meta)] = tensor
        return meta

    bare_args, bare_kwargs = tree_map_only(Tensor, bare, (args, kwargs))
    if "device" in bare_kwargs:
        bare_kwargs["device"] = torch.device("meta")
    bare_kwargs.pop("pin_memory", None)
    try:
        found = func(*bare_args, **bare_kwargs)
    except (NotImplementedError, RuntimeError) as error:
        raise NumbersNeededError(f"{func}: {str(error).splitlines()[0]}") from error
    meter = _meter
    if meter is not None:
        meter.operations += 1
        meter.flops += _flops(func, args)

    def dressed(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if id(item) in known:
            if meter is not None and isinstance(known[id(item)], Ghost):
                meter.moved += item.nbytes
            return known[id(item)]
        ghost = Ghost(item, device)
        if meter is not None and meter.saw(ghost):
            meter.moved += item.nbytes
        return ghost

    return tree_map(dressed, found)
