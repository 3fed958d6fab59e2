"""A model tried before it is trained: that it runs, and that adapters beside it learn. What its code raises then names
the architecture, and comes before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Slot, slots
from tunesmith.adapters.heads import is_classifier
from tunesmith.adapters.targets import anatomy
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.models.room import is_out_of_memory
from tunesmith.quant.dense import is_matrix

if TYPE_CHECKING:
    from tunesmith.data.types import Batch
    from tunesmith.models.policy import Policy


def cause(error: BaseException) -> str:
    """`error` in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextmanager
def blamed(model: PreTrainedModel, what: str, fix: str) -> Iterator[None]:
    """Whatever the code of `model` raises inside becomes a ModelError that says `what`."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # which says nothing of the architecture
            raise
        name = type(model).__name__
        raise ModelError(f"{name} {what}", found=cause(error), fix=fix) from error


def refuse_broken(model: PreTrainedModel) -> None:
    """A base whose own numbers are not finite gives no logits, whatever is trained beside it."""
    broken = [
        name
        for name, held in model.named_parameters()
        if held.is_floating_point() and not torch.isfinite(held.detach()).all()
    ]
    if broken:
        raise ModelError(
            f"the weights of {type(model).__name__} are not all finite numbers",
            found=f"NaN or infinity in {len(broken)}: {', '.join(broken[:3])}" + (" …" if len(broken) > 3 else ""),
            fix="fetch the files again; what a training that diverged has written cannot be used. fp16 weights beyond "
            "65,504 become infinite: try model.dtype=bfloat16 or float32",
        )


@contextmanager
def tensors_only(model: PreTrainedModel) -> Iterator[None]:
    """Refuse adapters beside matrices that do not hand out one tensor, as the model runs inside: a router that chooses
    experts is such a one."""
    odd: list[str] = []

    def look(path: str) -> Any:
        return lambda _, __, output: None if isinstance(output, Tensor) else odd.append(path)

    watched = {path: slot for path, slot in slots(model).items() if _adds(slot)}
    with ExitStack() as stack:
        for path, slot in watched.items():
            stack.callback(slot.layer.register_forward_hook(look(path)).remove)
        yield
    if odd:
        first, more = list(dict.fromkeys(odd))[:3], " …" if len(set(odd)) > 3 else ""
        left = _named([path for path in watched if path not in set(odd)], [*odd, *_stacks(model)])
        raise ModelError(
            f"layers of {type(model).__name__} hand out more than a product: no adapter can stand beside them",
            found=", ".join(first) + more,
            fix="name the other layers" + (f": adapter.targets=[{','.join(left)}]" if left else " in adapter.targets"),
        )


def _stacks(model: PreTrainedModel) -> list[str]:
    """What a name in `adapter.targets` must not mean beside layers."""
    stacks = list(anatomy(model).stacks)
    return [*stacks, *(path.rpartition(".")[0] for path in stacks)]


def _named(paths: list[str], others: list[str]) -> list[str]:
    """The shortest names that mean `paths` and none of `others`."""
    names: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        names[next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))] = None
    return list(names)


def _adds(slot: Slot) -> bool:
    """Whether an adapter there adds to what the layer gives, in place of standing in for the layer."""
    return is_matrix(slot.layer) and any(one.replaces() is None for one in slot.adapters.values())  # type: ignore[operator]


def refuse_unlearnable(policy: Policy, batch: Batch) -> None:
    """One forward and one backward pass of `batch` with each adapter that learns, which leave no trace."""
    standing = slots(policy.model)
    names = dict.fromkeys(name for slot in standing.values() for name in slot.adapters)
    seen = {path: slot.base.left_alone for path, slot in standing.items()}
    for name in names:
        learned = [p for slot in standing.values() if name in slot.adapters for p in slot.adapters[name].parameters()]
        learned = [parameter for parameter in dict.fromkeys(learned) if parameter.requires_grad]
        if not learned:
            continue
        fix = "choose other layers in adapter.targets, another method or another model; and please report this"
        with (
            blamed(policy.model, "cannot be trained with this adapter", fix),
            torch.enable_grad(),
            torch.random.fork_rng(devices=()),
            policy.switch.set_to(name),
        ):
            given = policy.scores(batch) if is_classifier(policy.model) else policy.head().logits(policy.hidden(batch))
            reached = torch.autograd.grad(given.float().pow(2).mean(), learned, allow_unused=True)
        if all(gradient is None for gradient in reached):
            raise ModelError(
                f"{type(policy.model).__name__} cannot be trained with this adapter",
                found="its output does not depend on it",
                fix=fix,
            )
    for path, slot in standing.items():  # the first step in training mode is what this is learned from
        slot.base.left_alone = seen[path]


@contextmanager
def narrow_windows(model: PreTrainedModel, most: int) -> Iterator[None]:
    """Sliding windows and chunks of attention of at most `most` tokens, so that short documents reach beyond them."""
    before = []
    for holder in (model.config, model.config.get_text_config(), *model.modules()):
        for name in ("sliding_window", "attention_chunk_size"):
            value = vars(holder).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > most:
                before.append((holder, name, value))
                setattr(holder, name, most)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
