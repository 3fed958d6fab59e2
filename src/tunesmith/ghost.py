"""Tensors without numbers: what a computation would hold, found out by running the very code that computes it.

A `Ghost` has shape, strides, dtype and device and takes no memory; whatever is made of one is a ghost too. Tensors that
were real stay so (token ids, positions, masks), so that code which looks at them runs as it is. A `Meter` counts the
bytes that ghosts would hold, now and at most, and the multiplications that would be done. Compiled functions are told
apart by `is_ghost`: given a ghost they have nothing to do, since what they write into is there already.

Code that asks a ghost for a number is answered 1 (true); code whose shapes hang on a ghost's numbers is refused.
What an operation gives is worked out once for each set of shapes: blocks are alike, and the next one is only counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

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
    attended   those of them between tokens: scores, and values weighed by them
    moved      bytes written

    `known`: what operations gave to others before, by their shapes; meters that share it save each other work.
    """

    def __init__(self, device: torch.device, known: dict[Any, _Given] | None = None) -> None:
        super().__init__()
        self.device = device
        self.bytes = self.peak = 0
        self.flops = self.attended = self.moved = 0.0
        self.operations = 0
        self.is_aside = False
        self.known = {} if known is None else known

    def start(self) -> int:
        """Work is counted from here on, and the peak; returns what is held."""
        self.flops = self.attended = self.moved = 0.0
        self.operations = 0
        return self.reset()

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

    def take(self, tensor: Tensor) -> None:
        """Count a ghost that another meter has seen."""
        if isinstance(tensor, Ghost):
            self.saw(tensor)

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


def attended(flops: float) -> None:
    """Count what compiled attention multiplies, where it was handed ghosts and had nothing to do."""
    if _meter is not None:
        _meter.flops += flops
        _meter.attended += flops


def _flops(func: Any, args: tuple[Any, ...]) -> float:
    """2 m k n of a matrix product; 0 of what is none."""
    if func is aten.mm.default or func is aten.bmm.default:
        return 2.0 * math.prod(args[0].shape) * args[1].shape[-1]
    if func is aten.addmm.default or func is aten.baddbmm.default:
        return 2.0 * math.prod(args[1].shape) * args[2].shape[-1]
    if func is aten._grouped_mm.default:  # each row meets one of the matrices
        return 2.0 * math.prod(args[0].shape) * args[1].shape[-1]
    return 0.0


@cache
def _attention(func: Any) -> tuple[int, int, bool] | None:
    """Of one of torch's attention kernels: where its queries and its `is_causal` stand; whether it goes backward."""
    name = func._schema.name
    if "scaled_dot_product" not in name or "attention" not in name:
        return None
    names = [argument.name for argument in func._schema.arguments]
    if "query" not in names or "is_causal" not in names:
        return None
    return names.index("query"), names.index("is_causal"), "backward" in name


def _attended(func: Any, args: tuple[Any, ...]) -> float:
    """Of torch's kernels: 2 D for each score and as much for its value, half of them where attention is causal; two
    and a half times that backward, which reckons the scores again. q [B, H, T, D]"""
    found = _attention(func)
    if found is None:
        return 0.0
    first, causal, is_backward = found
    query, key = args[first], args[first + 1]
    is_causal = len(args) > causal and bool(args[causal])
    flops = 4.0 * math.prod(query.shape) * key.shape[-2] * (0.5 if is_causal else 1.0)
    return 2.5 * flops if is_backward else flops


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


def _grouped_mm(a: Tensor, b: Tensor, offsets: Tensor | None = None, *_: Any, **more: Any) -> Tensor:
    """The products of a mixture's experts, of any dtype: torch has their shape for bf16 alone."""
    if offsets is None:
        return torch.bmm(a, b)
    rows, columns = a.shape[-2], b.shape[-1]
    dtype = more.get("out_dtype") or a.dtype
    shape = (len(offsets), rows, columns) if a.dim() == b.dim() == 2 else (rows, columns)
    whole = 16 // dtype.itemsize
    wide = -(-columns // whole) * whole  # rows begin at multiples of 16 bytes
    strides = (rows * wide, wide, 1) if len(shape) == 3 else (wide, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


_Given = tuple[tuple[Any, ...], ...]
"""(shape, strides, dtype) of each tensor that an operation makes; one alone is led by None."""


@cache
def _makes_new(func: Any) -> bool:
    """Whether what `func` gives is no view of what it was given, and that stays as it was."""
    schema = func._schema
    return all(item.alias_info is None for item in (*schema.arguments, *schema.returns))


_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _described(item: Any) -> Any:
    """All of an argument that decides what is made of it, hashable; a `TypeError` where that is not known."""
    if isinstance(item, Tensor):
        return (item.shape, item.stride(), item.dtype)
    if isinstance(item, _PLAIN):
        return (type(item), item)
    if isinstance(item, list | tuple):
        return tuple(map(_described, item))
    raise TypeError


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Under which `Meter.known` has what `func` gives; None where it is worked out each time."""
    if not _makes_new(func):
        return None
    try:
        return (func, _described(args), _described(tuple(kwargs.items())))
    except TypeError:
        return None


def _given(found: Any, bare: dict[int, Any]) -> _Given | None:
    """What to know of `found`, to make it again; None where it shares memory, or has more than it shows."""
    tensors = (found,) if isinstance(found, Tensor) else found
    if not isinstance(tensors, list | tuple) or not all(isinstance(item, Tensor) for item in tensors):
        return None
    before = {meta.untyped_storage()._cdata for meta in bare.values()}
    for item in tensors:
        storage = item.untyped_storage()
        places = 1 + sum((size - 1) * stride for size, stride in zip(item.shape, item.stride(), strict=True))
        exact = 0 if 0 in item.shape else places * item.itemsize
        if storage._cdata in before or storage.nbytes() != exact:
            return None
    told = tuple((item.shape, item.stride(), item.dtype) for item in tensors)
    return ((None,), *told) if isinstance(found, Tensor) else told


def _again(given: _Given, meter: Meter) -> Any:
    """Ghosts of what `given` says."""
    is_alone = given[0] == (None,)
    made = []
    for shape, strides, dtype in given[1:] if is_alone else given:
        ghost = meter.ghost(torch.empty_strided(shape, strides, dtype=dtype, device="meta"))
        meter.moved += ghost.meta.nbytes
        made.append(ghost)
    return made[0] if is_alone else tuple(made)


_IN_PLACE = frozenset(
    (
        *(aten.uniform_.default, aten.normal_.default, aten.zero_.default, aten.copy_.default, aten.fill_.Scalar),
        *(aten.add_.Tensor, aten.mul_.Tensor, aten.addmm.out),
        *(aten._foreach_lerp_.Scalar, aten._foreach_mul_.Scalar, aten._foreach_add_.Scalar),
        *(aten._foreach_addcmul_.Scalar, aten._foreach_div_.ScalarList, aten._foreach_addcdiv_.ScalarList),
    )
)
"""What writes numbers into a tensor of the shape that it has, and so does nothing to a ghost: the frequent ones."""


def _written(args: tuple[Any, ...], kwargs: dict[str, Any], meter: Meter) -> Any:
    target = kwargs.get("out", args[0])
    if not isinstance(target, Tensor):
        return None
    meter.moved += target.nbytes if isinstance(target, Ghost) else 0
    return target


def _each(change: Callable[[Tensor], Any], item: Any) -> Any:
    """`item` with `change` of each tensor in it; of what operations are called with, faster than `tree_map`."""
    if isinstance(item, Tensor):
        return change(item)
    if type(item) is tuple or type(item) is list:
        return type(item)([_each(change, part) for part in item])
    if type(item) is dict:
        return {key: _each(change, part) for key, part in item.items()}
    return item


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in _SCALARS:
        return _SCALARS[func](args)
    if func in _INDEXED:
        args = _indexed(args)
    meter, key = _meter, None
    if meter is not None:
        meter.operations += 1
        meter.flops += _flops(func, args)
        attended(_attended(func, args))
        if func in _IN_PLACE:
            return _written(args, kwargs, meter)
        key = _key(func, args, kwargs)
        if key is not None and key in meter.known:
            return _again(meter.known[key], meter)
    device = torch.device("cpu")
    known: dict[int, Tensor] = {}
    bared: dict[int, Tensor] = {}

    def bare(tensor: Tensor) -> Tensor:
        nonlocal device
        if isinstance(tensor, Ghost):
            device, meta = tensor.device, tensor.meta
        else:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        known[id(meta)], bared[id(meta)] = tensor, meta
        return meta

    bare_args, bare_kwargs = _each(bare, args), _each(bare, kwargs)
    if "device" in bare_kwargs:
        bare_kwargs["device"] = torch.device("meta")
    bare_kwargs.pop("pin_memory", None)
    does = _grouped_mm if func is aten._grouped_mm.default else func
    try:
        found = does(*bare_args, **bare_kwargs)
    except (NotImplementedError, RuntimeError) as error:
        raise NumbersNeededError(f"{func}: {str(error).splitlines()[0]}") from error
    if meter is not None and key is not None and meter.device == device:
        given = _given(found, bared)
        if given is not None:
            meter.known[key] = given

    def dressed(item: Tensor) -> Tensor:
        if id(item) in known:
            if meter is not None and isinstance(known[id(item)], Ghost):
                meter.moved += item.nbytes
            return known[id(item)]
        ghost = Ghost(item, device)
        if meter is not None and meter.saw(ghost):
            meter.moved += item.nbytes
        return ghost

    return tree_map_only(Tensor, dressed, found) if not isinstance(found, Tensor) else dressed(found)
