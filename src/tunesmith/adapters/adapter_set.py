"""One adapter over a whole model: its layers' adapters, the modules it trains in full, the tokens whose rows it trains.

make(model, settings, …) -> AdapterSet     beside the model; nothing in the model changes
place(model, switch, adapter_set)          into slots
add(model, switch, settings, …)            both, and the base is frozen
unload(model, name)                        out again; layers without adapters stand as before
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.adapters import METHODS
from tunesmith.adapters.attach import Switch, attach, layers, remove, slots
from tunesmith.adapters.base import Adapter, Base, Request, base_of, lengthen
from tunesmith.adapters.full import Full
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.adapters.targets import Anatomy, Targets, anatomy, choose
from tunesmith.adapters.tokens import Tokens
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.errors import AdapterError
from tunesmith.quant.dense import weight_shape
from tunesmith.quant.quantised import QuantisedLinear


@dataclass(frozen=True)
class Counts:
    trained: int
    """Numbers that learn; shared ones once."""
    total: int
    """Numbers of the base model."""

    @property
    def share(self) -> float:
        return self.trained / self.total


@dataclass
class AdapterSet:
    """One named adapter: an `Adapter` for each path it touches."""

    name: str
    settings: AdapterSettings
    targets: Targets
    body: Anatomy
    """The model that it was made for."""
    adapters: dict[str, Adapter]
    """By the path of the layer."""
    layer_settings: dict[str, AdapterSettings]
    """Settings of each adapted matrix; they differ from `settings` where PEFT's rank_pattern said so."""
    token_rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tokens whose rows alone are trained, for embedding and head by path."""
    added_tokens: tuple[str, ...] = ()
    """Texts of tokens added to the vocabulary; whoever adds them says so here, and they travel with the adapter."""
    head: ClassHead | None = None
    """What the classification head that it trains gives; None beside a model that ends in words."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """What layers share and nobody trains (VeRA's pair), by its letter."""
    total: int = 0
    switch: Switch = field(default_factory=Switch)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by "path.letter"; a parameter that two layers share stands under the first."""
        named: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for path, adapter in self.adapters.items():
            for letter, parameter in adapter.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    named[f"{path}.{letter}"] = parameter
        return named

    def counts(self) -> Counts:
        return Counts(sum(parameter.numel() for parameter in self.parameters().values()), self.total)

    def groups(self) -> dict[str, float]:
        """Learning-rate multipliers other than 1, under the names of `parameters`."""
        known = self.parameters()
        multipliers = {
            f"{path}.{letter}": value
            for path, adapter in self.adapters.items()
            for letter, value in adapter.groups().items()
        }
        return {name: value for name, value in multipliers.items() if name in known and value != 1.0}

    def state(self) -> dict[str, Tensor]:
        """Every tensor that makes this adapter: what learns, and persistent buffers. Views, not copies."""
        tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in self.parameters().items()}
        for path, adapter in self.adapters.items():
            learned = {name for name, _ in adapter.named_parameters()}
            for name, tensor in adapter.state_dict().items():
                if name not in learned:
                    tensors[f"{path}.{name}"] = tensor.detach()
        return tensors | {f"shared.{letter}": tensor for letter, tensor in self.shared.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` (as `state` gave them) in; all of them fit, or none is taken."""
        own = self.state()
        missing, unused = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        grown = self._growing()
        bent = [
            name
            for name in own.keys() & tensors.keys()
            if not _fits(own[name].shape, tensors[name].shape, grown[name][1] if name in grown else None)
        ]
        if missing or unused or bent:
            notes = {"missing": missing, "unused": unused, "misshapen": bent}
            raise AdapterError(
                f"these tensors are not those of adapter {self.name}",
                notes={word: ", ".join(names[:5]) for word, names in notes.items()},
                fix="give the tensors of an adapter with the same settings on the same model",
            )
        for name, (buffer, dim) in grown.items():
            lengthen(buffer, dim, tensors[name].shape[dim])
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])

    def _growing(self) -> dict[str, tuple[Tensor, int]]:
        """Buffers that grow while training, under the names of `state`, and along which dimension."""
        return {
            f"{path}.{name}": (adapter.get_buffer(name), dim)
            for path, adapter in self.adapters.items()
            for name, dim in adapter.growing.items()
        }

    def on_step(self, step: int, num_steps: int | None) -> Sequence[Request]:
        """What the method does when `step` updates are done, and what it asks of the loop."""
        hook = getattr(METHODS[self.settings.method], "on_step", None)  # type: ignore[attr-defined]
        if hook is None:
            return ()
        requests: Sequence[Request] = hook({path: self.adapters[path] for path in self.layer_settings}, step, num_steps)
        return requests

    def requires_grad(self, flag: bool) -> None:
        for parameter in self.parameters().values():
            parameter.requires_grad_(flag)

    def train(self, mode: bool = True) -> None:
        """Dropout on or off, in the adapter alone."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    def eval(self) -> None:
        self.train(False)


def _fits(own: torch.Size, given: torch.Size, growing: int | None) -> bool:
    """Whether one shape is the other, but for its length along `growing`."""
    if growing is None or len(own) != len(given):
        return own == given
    return all(one == other for dim, (one, other) in enumerate(zip(own, given, strict=True)) if dim != growing)


def check(settings: AdapterSettings, num_steps: int | None, optimizer: str) -> None:
    """Refuse a run that the method cannot serve. `num_steps` is None for a budget in minutes."""
    hook = getattr(METHODS[settings.method], "check", None)  # type: ignore[attr-defined]
    if hook is not None:
        hook(settings, num_steps, optimizer)


def for_share(settings: AdapterSettings, share: float) -> AdapterSettings:
    """The settings of a run with `share` of the budget: the same, unless the method counts steps of its own."""
    hook = getattr(METHODS[settings.method], "for_share", None)  # type: ignore[attr-defined]
    if hook is None:
        return settings
    own: AdapterSettings = hook(settings, share)
    return own


def by_layer(settings: AdapterSettings, body: Anatomy, paths: Sequence[str]) -> dict[str, AdapterSettings]:
    """Each layer's own settings: the same for all, unless the method says otherwise."""
    hook = getattr(METHODS[settings.method], "for_layers", None)  # type: ignore[attr-defined]
    if hook is None:
        return dict.fromkeys(paths, settings)
    own: dict[str, AdapterSettings] = hook(settings, body, paths)
    return own


def add(
    model: PreTrainedModel,
    switch: Switch,
    settings: AdapterSettings,
    *,
    name: str,
    seed: int,
    added_tokens: int | Sequence[int] = 0,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> AdapterSet:
    """A fresh adapter everywhere that `settings` say; it alone learns. `added_tokens`: ids, or how many last rows.

    `encode`: text -> token ids, for a method that begins as a text.
    """
    if isinstance(settings, VirtualSettings) and added_tokens:
        raise AdapterError(
            "virtual tokens and tokens added to the vocabulary cannot be trained at once",
            fix="leave out model.add_tokens, or choose a method that stands beside layers",
        )
    targets = choose(model, settings)
    rows = _token_rows(anatomy(model), added_tokens, targets)
    with switch.set_to(None):
        adapter_set = make(model, settings, name=name, seed=seed, targets=targets, token_rows=rows)
        _begin_as_text(adapter_set, encode)
    place(model, switch, adapter_set)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter_set.requires_grad(True)
    return adapter_set


def _begin_as_text(adapter_set: AdapterSet, encode: Callable[[str], Sequence[int]] | None) -> None:
    text = getattr(adapter_set.settings, "init_text", None)
    if text is None:
        return
    token_ids = [] if encode is None else encode(text)
    if not len(token_ids):
        raise AdapterError("adapter.init_text has no tokens", found=repr(text), fix="give a text, or leave it out")
    for path, adapter in adapter_set.adapters.items():
        modules = adapter_set.body.modules
        adapter.begin_as(token_ids, base_of(modules[path]), modules[""])  # type: ignore[operator]


def make(
    model: PreTrainedModel,
    settings: AdapterSettings,
    *,
    name: str,
    seed: int | None,
    targets: Targets,
    token_rows: Mapping[str, Sequence[int]],
    layer_settings: dict[str, AdapterSettings] | None = None,
    share_tied: bool = True,
) -> AdapterSet:
    """Build an adapter beside `model` without touching it. `layer_settings` by path, where they differ by layer.

    `seed` None: nothing is drawn, the tensors are to be filled from a file.
    """
    if not name or "." in name:
        raise AdapterError(f"an adapter cannot be called {name!r}", fix="use letters, digits, - and _")
    body = anatomy(model)
    layer_settings = layer_settings or by_layer(settings, body, targets.adapted)
    bases = {path: base_of(body.modules[path]) for path in layer_settings}
    shared = _shared(settings, bases, seed)
    more: list[object] = [shared] if shared else [body] if isinstance(settings, VirtualSettings) else []
    built: dict[str, Adapter] = {}
    for path, own in layer_settings.items():
        generator = None if seed is None else generator_of(seed, path)
        built[path] = METHODS[own.method].build(own, bases[path], generator, *more)  # type: ignore[attr-defined]
    _refuse_head(body, built)
    for path in targets.in_full:
        built[path] = Full(base_of(body.modules[path]))
    if share_tied:
        _tie(body, built)
    _build_tokens(body, token_rows, built)
    order = [path for path in body.modules if path in built]
    adapters = {path: built[path].train(model.training) for path in order}
    total = sum(parameter.numel() for parameter in base_parameters(model).values())
    total += sum(
        math.prod(weight_shape(layer)) for layer in body.modules.values() if isinstance(layer, QuantisedLinear)
    )
    rows = {path: tuple(ids) for path, ids in token_rows.items()}
    return AdapterSet(name, settings, targets, body, adapters, layer_settings, rows, shared=shared, total=total)


def _refuse_head(body: Anatomy, built: Mapping[str, Adapter]) -> None:
    """The loss is reckoned from the head's weight: what stands there must be a weight."""
    adapter = None if body.head is None else built.get(body.head)
    if adapter is not None and not adapter.mergeable:
        raise AdapterError(
            f"{type(adapter).__name__} cannot stand beside the output head: no weight computes the same",
            where=body.head,
            fix="take it out of adapter.targets, or train it in full (adapter.train_in_full: [head])",
        )


def _shared(settings: AdapterSettings, bases: Mapping[str, Base], seed: int | None) -> dict[str, Tensor]:
    """What the method's layers have in common, on the first one's device; nothing for most methods."""
    method = METHODS[settings.method]  # type: ignore[attr-defined]
    if not hasattr(method, "shared"):
        return {}
    shapes = [(base.out_features, base.in_features) for base in bases.values()]
    made = method.shared(settings, shapes, None if seed is None else generator_of(seed, "shared"))
    device = next(iter(bases.values())).device
    return {letter: tensor.to(device) for letter, tensor in made.items()}


def _tie(body: Anatomy, built: Mapping[str, Adapter]) -> None:
    """Embedding and head of a tied model, both trained as copies, share one."""
    first, second = (built.get(path or "") for path in (body.embedding, body.head))
    if body.tied and isinstance(first, Full) and isinstance(second, Full):
        second.tie(first)


def _build_tokens(body: Anatomy, token_rows: Mapping[str, Sequence[int]], built: dict[str, Adapter]) -> None:
    """The rows of some tokens in embedding and head; a tied head shares its embedding's."""
    shared: nn.Parameter | None = None
    for path, ids in sorted(token_rows.items(), key=lambda item: item[0] == body.head):
        if path in built:
            raise AdapterError(
                f"{path} cannot be adapted and have the rows of added tokens trained at once",
                fix="take it out of adapter.targets, or train the embeddings in full (adapter.train_in_full)",
            )
        rows = body.rows(path)
        if max(ids) >= rows or min(ids) < 0:
            what, fix = f"{path} has no row for token {max(ids)}", "add the tokens first: model.add_tokens"
            raise AdapterError(what, found=f"{rows} rows", fix=fix)
        same = body.tied and path == body.head and list(ids) == list(token_rows.get(body.embedding or "", ()))
        built[path] = Tokens(base_of(body.modules[path]), ids, shared if same else None)
        shared = built[path].get_parameter("rows")  # type: ignore[assignment]


def refusal(settings: AdapterSettings, storage: str) -> str | None:
    """Why the method cannot stand beside matrices in `storage`; None where it can."""
    wants_plain: str | None = getattr(METHODS[settings.method], "PLAIN_ONLY", None)  # type: ignore[attr-defined]
    return None if storage == "plain" else wants_plain


def place(model: PreTrainedModel, switch: Switch, adapter_set: AdapterSet) -> None:
    """Stand `adapter_set` in the model's slots, making those that are not there yet."""
    name = adapter_set.name
    if any(name in slot.adapters for slot in slots(model).values()):
        raise AdapterError(f"the model has an adapter called {name} already", fix="unload it first, or choose a name")
    for path, slot in attach(model, list(adapter_set.adapters), switch).items():
        slot.adapters[name] = adapter_set.adapters[path]
    adapter_set.switch = switch


def unload(model: PreTrainedModel, name: str) -> None:
    """Take the adapter called `name` out of `model`."""
    if not any(name in slot.adapters for slot in slots(model).values()):
        fix = "name one that is loaded: session.adapters has them"
        raise AdapterError(f"the model has no adapter called {name}", fix=fix)
    remove(model, name)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, tied ones once, as if no adapter were attached. What is held in few bits is
    no parameter."""
    named: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in layers(model):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{path}.{name}" if path else name] = parameter
    return named


def generator_of(seed: int, path: str) -> torch.Generator:
    """Random numbers of one layer: the same whatever else is adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _token_rows(body: Anatomy, added: int | Sequence[int], targets: Targets) -> dict[str, tuple[int, ...]]:
    """The added tokens' ids for embedding and head, but for those trained in full anyway."""
    if not added or body.embedding is None:
        return {}
    rows = body.rows(body.embedding)
    ids = range(rows - added, rows) if isinstance(added, int) else sorted(added)
    ends = [path for path in (body.embedding, body.head) if path and path not in targets.in_full]
    return {path: tuple(ids) for path in ends}  # type: ignore[arg-type]
