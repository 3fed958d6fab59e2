"""Which matrices an adapter stands beside, and which modules are trained in full.

The choice is made on any causal language model of transformers by its structure: the blocks are the longest list of
modules in the backbone; inside a block, a matrix belongs to the attention or to the MLP by the modules around it, and
by its own name only where it hangs in the block directly (OPT's fc1). Whatever a choice did not reach is listed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Slot, layers
from tunesmith.adapters.full import is_lookup
from tunesmith.adapters.heads import head_paths
from tunesmith.adapters.settings import KINDS, NONE, AdapterSettings
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.errors import AdapterError, TunesmithError, together
from tunesmith.quant.dense import is_matrix, weight_shape
from tunesmith.quant.quantised import QuantisedLinear

PARTS = ("embeddings", "norms", "head", "rest")
"""Words for `train_in_full`."""

_ATTENTION = re.compile(r"attn|attention", re.I)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert", re.I)
_ATTENTION_LEAF = re.compile(r"(q|k|v|o|qkv|out)_proj|query_key_value|query|key|value|c_attn|w?qkv|wqkv|wo", re.I)
_ATTENTION_OUT = re.compile(r"o_proj|out_proj|out_lin|c_proj|dense|proj|wo|o", re.I)
"""Names of what the attention ends in."""
_MLP_LEAF = re.compile(
    r"fc\d?|fc_(in|out)|c_fc|ffn(_output)?|(gate|up|down|gate_up)_proj|dense_h_to_4h|dense_4h_to_h|linear\d|w\d|lin\d",
    re.I,
)
_KEY_VALUE = re.compile(
    r"(k|v|kv|qkv|key|value)_proj|(k|v|qkv)_lin|query_key_value|key|value|c_attn|w?qkv|wqkv|w?k|w?v", re.I
)
_MLP_OF_BERT = ("intermediate", "output")
"""Children of a block that each hold one matrix of its MLP."""


@dataclass(frozen=True)
class Targets:
    adapted: tuple[str, ...]
    """Paths of the matrices that get an adapter, in the model's order."""
    in_full: tuple[str, ...]
    """Paths of the modules whose own parameters are trained whole."""
    missed: tuple[str, ...]
    """Paths of every matrix (and of every stack of matrices) that the choice did not reach."""

    def summary(self) -> list[str]:
        """`missed`, one line for each place in the blocks: "model.layers.*.mlp.experts.down_proj × 32"."""
        counts: dict[str, int] = {}
        for path in self.missed:
            place = re.sub(r"\.\d+(?=\.|$)", ".*", path)
            counts[place] = counts.get(place, 0) + 1
        return [place if count == 1 else f"{place} × {count}" for place, count in counts.items()]


@dataclass(frozen=True)
class Anatomy:
    """A model's matrices and where they stand, as if no adapter were attached."""

    modules: dict[str, nn.Module]
    """Every module by its path."""
    blocks: tuple[str, ...]
    """Paths of the blocks, first to last."""
    embedding: str | None
    head: str | None
    tied: bool
    """Embedding and head are one parameter."""
    scorer: tuple[str, ...] = ()
    """Paths of what makes a classification head, where the model ends in one: it is always trained in full."""

    def rows(self, path: str | None) -> int:
        """Tokens in the table of the embedding or head at `path`."""
        if path is None:
            return 0
        layer = self.modules[path]
        return weight_shape(layer)[0] if isinstance(layer, QuantisedLinear) else layer.get_parameter("weight").shape[0]

    @cached_property
    def matrices(self) -> dict[str, nn.Module]:
        """Every layer that an adapter can stand beside."""
        return {
            path: module
            for path, module in self.modules.items()
            if is_matrix(module) and (not isinstance(module, nn.Embedding) or is_lookup(module))
        }

    @cached_property
    def stacks(self) -> dict[str, nn.Parameter]:
        """Matrices that no adapter can stand beside: parameters of two or more dimensions of other modules."""
        matrices = self.matrices
        return {
            f"{path}.{name}": parameter
            for path, module in self.modules.items()
            if path not in matrices
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() >= 2
        }

    def block_of(self, path: str) -> int | None:
        """Number of the block that holds `path`, or None outside the blocks."""
        return next((i for i, block in enumerate(self.blocks) if path == block or path.startswith(block + ".")), None)

    def kind(self, path: str) -> str | None:
        """attention, mlp, or None, for a path inside a block."""
        block = self.block_of(path)
        if block is None:
            return None
        *around, leaf = path[len(self.blocks[block]) + 1 :].split(".")
        walked = self.blocks[block]
        for name in around:
            walked = f"{walked}.{name}"
            kind = type(self.modules[walked]).__name__
            for word, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
                if pattern.search(name) or pattern.search(kind):
                    return word
        if _ATTENTION_LEAF.fullmatch(leaf):
            return "attention"
        if len(around) == 1 and around[0] in _MLP_OF_BERT:
            return "mlp"
        return "mlp" if _MLP_LEAF.fullmatch(leaf) else None

    def is_of(self, path: str, kind: str) -> bool:
        """Whether the matrix at `path`, inside a block, is meant by a word of `KINDS`."""
        if kind == "all-linear":
            return True
        if kind == "key-value":
            return self.kind(path) == "attention" and _KEY_VALUE.fullmatch(path.rpartition(".")[2]) is not None
        if kind == "outputs" and self.kind(path) == "attention":
            return _ATTENTION_OUT.fullmatch(path.rpartition(".")[2]) is not None
        return path in self._mlp_downs if kind in ("mlp-down", "outputs") else self.kind(path) == kind

    @cached_property
    def _mlp_downs(self) -> frozenset[str]:
        """The last matrix of each MLP: it leads back to the width from which an earlier one beside it came."""
        widths: dict[str, set[int]] = {}
        last: dict[str, str] = {}
        for path, module in self.matrices.items():
            if self.kind(path) == "mlp":
                out, in_ = weight_shape(module)
                parent = path.rpartition(".")[0]
                if parent.rpartition(".")[2] in _MLP_OF_BERT:
                    parent = parent.rpartition(".")[0]
                if out in widths.setdefault(parent, set()):
                    last[parent] = path
                widths[parent].add(in_)
        return frozenset(last.values())


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Look `model` over; slots count as the layers they hold."""
    modules = dict(layers(model))
    paths = {id(module): path for path, module in modules.items()}

    def path_of(module: nn.Module | None) -> str | None:
        return paths.get(id(module.layer if isinstance(module, Slot) else module))

    lists = {path: module for path, module in modules.items() if isinstance(module, nn.ModuleList) and len(module)}
    outermost = {p: m for p, m in lists.items() if not any(p != other and p.startswith(other + ".") for other in lists)}
    longest = max(outermost, key=lambda path: len(outermost[path]), default=None)
    blocks = () if longest is None else tuple(f"{longest}.{name}" for name, _ in outermost[longest].named_children())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and embedding is not None and getattr(head, "weight", None) is embedding.weight
    return Anatomy(modules, blocks, path_of(embedding), path_of(head), tied, head_paths(model, modules))


def choose(model: PreTrainedModel, settings: AdapterSettings) -> Targets:
    """The matrices and modules that `settings` name in `model`; every name that matches nothing is an error."""
    body = anatomy(model)
    errors: list[TunesmithError] = []
    _refuse_blocks(body, settings, errors)
    if isinstance(settings, VirtualSettings) and not errors:
        if body.scorer:
            raise AdapterError(
                "virtual tokens and a classification head cannot be trained at once",
                fix="choose a method that stands beside layers, such as lora",
            )
        return before_documents(body)
    adapted = _matrices(body, settings.targets, errors)
    if settings.whole and body.tied and {body.embedding, body.head} & set(adapted):
        adapted = [path for path in body.matrices if path in {*adapted, body.embedding, body.head}]
    in_full = _modules_in_full(body, settings, set(adapted), errors)
    named = not set([settings.targets] if isinstance(settings.targets, str) else settings.targets) <= set(KINDS)
    if settings.last_blocks is not None:
        first = len(body.blocks) - settings.last_blocks
        adapted = [path for path in adapted if (body.block_of(path) or 0) >= first or body.block_of(path) is None]
        in_full = [path for path in in_full if (body.block_of(path) or 0) >= first or body.block_of(path) is None]
    both = sorted(set(adapted) & set(in_full))
    if both and named:
        errors.append(
            AdapterError(
                f"{', '.join(both[:3])} cannot be adapted and trained in full at once",
                fix="take it out of adapter.targets or of adapter.train_in_full",
            )
        )
    if errors:
        raise together(errors)
    adapted = [path for path in adapted if path not in set(in_full)]
    if not adapted and not (settings.targets == NONE and in_full and settings.whole):
        what = f"adapter.targets {settings.targets!r} reaches no matrix of this model"
        raise AdapterError(what, fix="name layers that it has, or all-linear")
    reached = set(adapted) | set(in_full)
    missed = [path for path in body.matrices if path not in reached]
    missed += [path for path in body.stacks if path.rpartition(".")[0] not in reached]
    return Targets(tuple(adapted), tuple(in_full), tuple(missed))


def _refuse_blocks(body: Anatomy, settings: AdapterSettings, errors: list[TunesmithError]) -> None:
    if settings.last_blocks is not None and settings.last_blocks > len(body.blocks):
        errors.append(
            AdapterError(
                f"adapter.last_blocks is {settings.last_blocks}, the model has {len(body.blocks)} blocks",
                fix=f"choose 1 to {len(body.blocks)}",
            )
        )


def before_documents(body: Anatomy) -> Targets:
    """Virtual tokens stand in the embedding's slot, and miss nothing."""
    if body.embedding is None or body.embedding not in body.matrices:
        raise AdapterError(
            "virtual tokens need an embedding that hands out its rows",
            found="none" if body.embedding is None else type(body.modules[body.embedding]).__name__,
            fix="choose a method that stands beside layers, such as lora",
        )
    return Targets((body.embedding,), (), ())


def _matrices(body: Anatomy, targets: str | tuple[str, ...], errors: list[TunesmithError]) -> list[str]:
    """Paths that `targets` name, in the model's order."""
    chosen: set[str] = set()
    if targets == NONE:
        return []
    for target in (targets,) if isinstance(targets, str) else targets:
        known = len(errors)
        found = matching(body, target)
        if target in KINDS:
            stacks = [path for path in body.stacks if body.kind(path) == target.removesuffix("-down")]
            if target == "outputs":
                _refuse_untold(body, found, errors)
            if not found and _refuse_stacks(target, stacks, errors):
                continue
        elif target.startswith("re:"):
            stacks = [path for path in body.stacks if re.fullmatch(target[3:], path)]
            if not found and _refuse_stacks(target, stacks, errors):
                continue
        else:
            stacks = [path for path in body.stacks if _ends(path, target) or _ends(path.rpartition(".")[0], target)]
            if _refuse_stacks(target, stacks, errors):
                continue
        if not found and len(errors) == known:
            errors.append(_unmatched("adapter.targets", target, (*KINDS, *body.matrices), body))
        chosen.update(found)
    return [path for path in body.matrices if path in chosen]


def _refuse_untold(body: Anatomy, outputs: list[str], errors: list[TunesmithError]) -> None:
    """Every block's attention and MLP, where they have matrices, have an output among `outputs`."""
    ended = {(body.block_of(path), body.kind(path)) for path in outputs}
    untold = [
        path
        for path in body.matrices
        if body.kind(path) is not None and (body.block_of(path), body.kind(path)) not in ended
    ]
    if untold:
        leaves = dict.fromkeys(path.rpartition(".")[2] for path in untold)
        errors.append(
            AdapterError(
                "which layer ends the attention or the MLP of a block cannot be told",
                found=", ".join(leaves),
                fix="name the layers in adapter.targets",
            )
        )


def matching(body: Anatomy, target: str) -> list[str]:
    """Paths of the matrices that one word or name means, in the model's order."""
    if target in KINDS:
        return [
            path
            for path, module in body.matrices.items()
            if body.block_of(path) is not None and not _is_passed_over(module) and body.is_of(path, target)
        ]
    if target.startswith("re:"):
        return [path for path in body.matrices if re.fullmatch(target[3:], path)]
    return [path for path in body.matrices if _ends(path, target)]


def _is_passed_over(module: nn.Module) -> bool:
    """Whether a word leaves this matrix out: a table of embeddings, or a router, which hands out a choice of experts
    and no product. Where nothing else reaches it, it is told as missed."""
    return isinstance(module, nn.Embedding) or "router" in type(module).__name__.lower()


def _refuse_stacks(target: str, stacks: list[str], errors: list[TunesmithError]) -> bool:
    if stacks:
        errors.append(
            AdapterError(
                f"adapter.targets names {target}, no layer here but stacks of a mixture's experts or its router",
                found=", ".join(stacks[:3]) + (" …" if len(stacks) > 3 else ""),
                fix="name layers by a longer path that leaves these out, or list them in adapter.train_in_full",
            )
        )
    return bool(stacks)


def _modules_in_full(
    body: Anatomy, settings: AdapterSettings, adapted: set[str], errors: list[TunesmithError]
) -> list[str]:
    """Modules with parameters of their own that `train_in_full` reaches; a container stands for all below it."""
    owners = [path for path, module in body.modules.items() if any(True for _ in module.parameters(recurse=False))]
    chosen: set[str] = set(body.scorer)
    for name in settings.train_in_full:
        if name == "embeddings":
            found = [body.embedding] if body.embedding else []
        elif name == "head":
            found = list(body.scorer) or ([body.head] if body.head else [])
        elif name == "norms":
            found = [path for path in owners if _is_norm(body, path)]
        elif name == "rest":
            found = [path for path in owners if path not in adapted]
            if settings.last_blocks is not None:
                found = [path for path in found if body.block_of(path) is not None or _follows_blocks(body, path)]
        elif name.startswith("re:"):
            found = [path for path in owners if re.fullmatch(name[3:], path)]
        else:
            tops = [path for path in body.modules if _ends(path, name)]
            found = [path for path in owners if any(path == top or path.startswith(top + ".") for top in tops)]
        if not found and name != "rest":
            errors.append(_unmatched("adapter.train_in_full", name, (*PARTS, *body.modules), body))
        chosen.update(found)
    if body.tied and chosen & {body.embedding, body.head}:
        chosen.update(path for path in (body.embedding, body.head) if path)
    return [path for path in owners if path in chosen]


def _is_norm(body: Anatomy, path: str) -> bool:
    return "norm" in type(body.modules[path]).__name__.lower()


def _follows_blocks(body: Anatomy, path: str) -> bool:
    """A norm behind the last block; one of the embeddings (BLOOM's, BERT's) says so by its path."""
    return _is_norm(body, path) and body.block_of(path) is None and "embed" not in path.lower()


def _ends(path: str, name: str) -> bool:
    """Whether `name` is `path`, its leaf, or a run of its last parts."""
    return path == name or path.endswith("." + name)


def _unmatched(setting: str, name: str, known: Iterable[str], body: Anatomy) -> AdapterError:
    leaves = dict.fromkeys(part for path in known for part in (path.rpartition(".")[2], path) if part)
    near = difflib.get_close_matches(name.removeprefix("re:"), [leaf for leaf in leaves if not leaf.isdigit()], n=4)
    there = dict.fromkeys(path.rpartition(".")[2] for path in body.matrices)
    return AdapterError(
        f"{setting} names {name}, which matches nothing in this model",
        notes={"layers": ", ".join(there), "did you mean": ", ".join(near)},
    )
