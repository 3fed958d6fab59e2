"""An adapter as a folder, in PEFT's format both ways.

    adapter_config.json          what PEFT reads; names exactly our layers
    adapter_model.safetensors    fp32 tensors under PEFT's names
    tunesmith.json               what PEFT does not say: the base's fingerprint, settings, added tokens, digests

A folder without `tunesmith.json` is PEFT's own. Loading is staged: everything is read and checked beside the model,
and only an adapter without fault is placed in it. No hub is asked.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters import METHODS, peft_config
from tunesmith.adapters.adapter_set import AdapterSet, make, place
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.base import Stored
from tunesmith.adapters.heads import ClassHead, read_head
from tunesmith.adapters.identity import BaseIdentity, held_otherwise, public_name, refuse_other
from tunesmith.adapters.peft_config import Plan
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.adapters.targets import Anatomy, Targets, anatomy
from tunesmith.adapters.tokens import Tokens
from tunesmith.adapters.virtual import Virtual
from tunesmith.atomic import write_file
from tunesmith.errors import ELSEWHERE, AdapterError, MachineError, TunesmithError, together
from tunesmith.quant.dense import dense_weight
from tunesmith.quant.quantised import storage_name

CONFIG, TENSORS, SIDE = "adapter_config.json", "adapter_model.safetensors", "tunesmith.json"
AGAIN = "copy the folder again from where it was saved"
PREFIX = "base_model.model."
OUTPUTS = ("score", "classifier", "classifier.out_proj")
"""Where PEFT's sequence classifiers keep the last matrix of their heads."""
FORMAT = 1


def save(folder: Path | str, adapter_set: AdapterSet, base: BaseIdentity) -> Path:
    """Write `adapter_set`, trained beside `base`, to `folder`."""
    folder = Path(folder)
    tensors = {
        key: stored.joined().detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, stored in _keys(adapter_set).items()
    }
    config = peft_config.write(adapter_set, base.name, base.revision)
    files = {TENSORS: serialise(tensors, metadata={"format": "pt"}), CONFIG: _json(config)}
    side = {
        "format": FORMAT,
        "base": base.as_dict(),
        "settings": adapter_set.settings.model_dump(mode="json"),
        "layer_settings": _odd_layers(adapter_set),
        "added_tokens": list(adapter_set.added_tokens),
        "head": None if adapter_set.head is None else adapter_set.head.as_dict(),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (*files.items(), (SIDE, _json(side))):
            write_file(folder / name, data)
    except OSError as error:
        raise MachineError(
            f"the adapter cannot be written: {error.strerror}", where=str(folder), fix=ELSEWHERE
        ) from error
    return folder


def _odd_layers(adapter_set: AdapterSet) -> dict[str, dict[str, Any]]:
    """By path, what a layer's settings have otherwise than the adapter's."""
    main = adapter_set.settings.model_dump(mode="json")
    odd = {}
    for path, own in adapter_set.layer_settings.items():
        values = own.model_dump(mode="json", exclude=set(AdapterSettings.model_fields))
        odd[path] = {key: value for key, value in values.items() if value != main.get(key)}
    return {path: values for path, values in odd.items() if values}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _keys(adapter_set: AdapterSet) -> dict[str, Stored]:
    """PEFT's name for each tensor that is stored. PEFT wants a tied table under both its names, tied rows under one."""
    names = getattr(METHODS[adapter_set.settings.method], "SHARED", {})  # type: ignore[attr-defined]
    keys = {names[letter]: Stored([tensor]) for letter, tensor in adapter_set.shared.items()}
    rows: list[Tensor] = []
    for path, adapter in adapter_set.adapters.items():
        if isinstance(adapter, Tokens):
            if any(adapter.rows is other for other in rows):
                continue
            rows.append(adapter.rows)
        before = "" if isinstance(adapter, Virtual) else f"{PREFIX}{path}."
        keys |= {f"{before}{name}": stored for name, stored in adapter.stored().items()}
    return keys


def load(
    folder: Path | str,
    model: PreTrainedModel,
    switch: Switch,
    name: str,
    *,
    trainable: bool = False,
    same_base: bool = False,
    say: Callable[[str], object] = warnings.warn,
) -> AdapterSet:
    """Read an adapter, ours or PEFT's, prove that it is whole and of this base, and place it in `model` as `name`.

    `trainable`: training goes on from it, and it alone learns. `same_base`: PEFT's folder names another base model,
    but the caller knows that this is the same. `say` is told where the base is held otherwise than in training.
    """
    folder = _folder(folder)
    try:
        config, side = _read(folder)
        _check_base(config, side, model, same_base)
        if side is not None and (then := held_otherwise(side.get("base", {}), model)) is not None:
            say(
                f"{name} was trained beside this base held in {then}; here it is {storage_name(model)}: the weights "
                "differ by what rounding to few bits costs, and so will answers"
            )
        tensors = _tensors(folder)
        body = anatomy(model)
        plan = peft_config.read(config, body)
        rows = _rows_needed(plan, side, tensors, body)
        with _resized(model, body, rows):
            adapter_set = _build(model, plan, side, tensors, name)
            place(model, switch, adapter_set)
    except TunesmithError as error:
        raise error.at(str(folder)) from error.__cause__
    if trainable:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    adapter_set.requires_grad(trainable)
    return adapter_set


def settings_of(folder: Path | str, model: PreTrainedModel) -> AdapterSettings:
    """By what an adapter's files were made, on a model that may stand on no device."""
    config, side = _read(_folder(folder))
    return peft_config.read(config, anatomy(model)).settings if side is None else _own_settings(side)


def refuse_unmergeable(folder: Path | str) -> None:
    """Say of an adapter that cannot be worked into weights why that is so; reads its config alone."""
    path = _folder(folder)
    reason = peft_config.unmergeable(config_of(path))
    if reason is not None:
        raise AdapterError(
            f"this adapter cannot be merged: {reason}",
            where=str(path),
            fix="use it as an adapter: tunesmith chat or generate with its folder, or PEFT where it knows the method",
        )


def config_of(folder: Path | str) -> dict[str, Any]:
    """PEFT's config of the adapter in `folder`, as it is written."""
    return _object(_inside(_folder(folder), CONFIG))


def noted_base(folder: Path | str) -> dict[str, Any]:
    """What an adapter of ours says of its base; empty where PEFT wrote the folder."""
    side = Path(folder) / SIDE
    noted = _object(side).get("base") if side.is_file() else None
    return noted if isinstance(noted, dict) else {}


def head_of(folder: Path | str) -> ClassHead | None:
    """What the classification head gives that the adapter in `folder` was trained with; None where it has none.

    Of PEFT's folder, the number of its outputs alone is known.
    """
    folder = Path(folder)
    if (folder / SIDE).is_file():
        return noted_head(_object(folder / SIDE))
    if config_of(folder).get("task_type") != peft_config.SEQUENCE_CLASSIFICATION:
        return None
    return _head_of(_tensors(folder))


def _head_of(tensors: dict[str, Tensor]) -> ClassHead:
    """By the last matrix of PEFT's head: one number is a reward."""
    found = [tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in OUTPUTS]
    if len({len(tensor) for tensor in found}) != 1:
        what = "how many classes the adapter tells apart cannot be seen"
        raise AdapterError(what, expected="one head among its tensors (score, classifier)")
    count = len(found[0])
    return ClassHead("reward") if count == 1 else ClassHead("one", tuple(f"LABEL_{index}" for index in range(count)))


def note_head(folder: Path, head: ClassHead) -> None:
    """Write what is known of the adapter's head by now beside it."""
    side = _object(folder / SIDE)
    if side.get("head") != json.loads(json.dumps(head.as_dict())):
        write_file(folder / SIDE, _json(side | {"head": head.as_dict()}))


def noted_head(side: dict[str, Any] | None) -> ClassHead | None:
    """What our side file says of the adapter's classification head."""
    written = None if side is None else side.get("head")
    return None if written is None else read_head(written)


def virtual_tokens(folder: Path | str) -> int:
    """How many positions before each document the adapter in `folder` takes; reads its config alone."""
    number = config_of(folder).get("num_virtual_tokens")
    return number if isinstance(number, int) else 0


def _folder(folder: Path | str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise AdapterError(
            f"no adapter folder is at {folder}",
            fix="give a local folder; to use one from the hub, download it first",
        )
    return path


def _inside(folder: Path, name: str) -> Path:
    """`folder/name`, refused where it is no plain file of that folder."""
    path = folder / name
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise AdapterError(f"{name} is a link out of the folder", fix="copy the file itself into the folder")
    if not path.is_file():
        unsafe = folder / "adapter_model.bin"
        fix = "save it again as safetensors: pickled files run code and are not read" if unsafe.exists() else None
        raise AdapterError(f"{name} is missing", fix=fix)
    return path


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """PEFT's config, and our side file where there is one; digests are checked."""
    config = _object(_inside(folder, CONFIG))
    if not (folder / SIDE).exists():
        return config, None
    side = _object(_inside(folder, SIDE))
    if side.get("format") != FORMAT:
        raise AdapterError(
            f"{SIDE} has format {side.get('format')}", expected=str(FORMAT), fix="use the version that wrote it"
        )
    for name in (CONFIG, TENSORS):
        found = hashlib.sha256(_inside(folder, name).read_bytes()).hexdigest()
        if found != side.get("sha256", {}).get(name):
            raise AdapterError(
                f"{name} is not what was saved: its sha256 differs",
                fix=f"copy it again; if you changed it on purpose, delete {SIDE} (the base is then checked less well)",
            )
    return config, side


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path.name} is no JSON: {error}", where=str(path.parent), fix=AGAIN) from error
    if not isinstance(value, dict):
        what = f"{path.name} holds no JSON object"
        raise AdapterError(what, where=str(path.parent), found=type(value).__name__, fix=AGAIN)
    return value


def _check_base(config: dict[str, Any], side: dict[str, Any] | None, model: PreTrainedModel, same_base: bool) -> None:
    """Refuse the adapter of another base: by fingerprint where we wrote it, by name where PEFT did."""
    here = public_name(str(getattr(model.config, "_name_or_path", "") or ""))
    there = public_name(str(config.get("base_model_name_or_path") or ""))
    if side is not None:
        refuse_other(side, model, here, there)
    elif here and there and here.rpartition("/")[2].lower() != there.rpartition("/")[2].lower() and not same_base:
        raise AdapterError(
            "this adapter names another base model",
            found=here,
            expected=there,
            fix=f"load it on that model; if both are the same, write {here} as base_model_name_or_path into its "
            f"{CONFIG} (or --base, or same_base=True in Python)",
        )


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The stored tensors without PEFT's prefix; every one a finite floating-point one."""
    errors: list[TunesmithError] = []
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(_inside(folder, TENSORS), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    errors.append(AdapterError(f"{key} is no floating-point tensor", found=str(tensor.dtype)))
                elif not torch.isfinite(tensor).all():
                    errors.append(AdapterError(f"{key} holds NaN or infinity", fix="use an earlier checkpoint"))
                tensors[key.removeprefix(PREFIX)] = tensor
    except SafetensorError as error:
        raise AdapterError(f"{TENSORS} is damaged: {error}", fix=AGAIN) from error
    if errors:
        raise together(errors)
    return tensors


def _rows_needed(plan: Plan, side: dict[str, Any] | None, tensors: dict[str, Tensor], body: Anatomy) -> int:
    """How many rows the vocabulary must have for this adapter."""
    needs = [0] if side is None else [int(side["base"]["vocabulary"])]
    needs += [max(ids) + 1 for ids in plan.token_rows.values() if ids]
    ends = [path for path in (body.embedding, body.head) if path]
    needs += [len(tensors[key]) for path in ends for key in _tables(path) if key in tensors]
    return max(needs)


def _tables(path: str) -> tuple[str, str, str]:
    """Names under which PEFT stores the whole table of an embedding or head."""
    return f"{path}.weight", f"{path}.base_layer.weight", f"{path}.token_adapter.base_layer.weight"


@contextmanager
def _resized(model: PreTrainedModel, body: Anatomy, rows: int) -> Iterator[None]:
    """Give the model `rows` rows where it has fewer (old ones keep their bits); taken back if what follows fails."""
    have = body.rows(body.embedding)
    if rows <= have:
        yield
        return
    if {body.embedding, body.head} & slots(model).keys():
        raise AdapterError(
            "this adapter brings added tokens, but another adapter stands beside the embeddings",
            found=f"{have} rows",
            expected=f"{rows} rows",
            fix="load this adapter first, or add its tokens when the model is loaded (model.add_tokens)",
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        yield
    except BaseException:
        model.resize_token_embeddings(have, mean_resizing=False)
        raise


def _build(
    model: PreTrainedModel, plan: Plan, side: dict[str, Any] | None, tensors: dict[str, Tensor], name: str
) -> AdapterSet:
    """The adapter beside the model, filled from `tensors`; each tensor finds its place and each place its tensor."""
    body = anatomy(model)
    left = dict(tensors)
    brought = _brought_tables(body, plan, left)
    if brought and body.tied:
        brought = [path for path in (body.embedding, body.head) if path]
    targets = Targets(tuple(plan.layers), tuple(dict.fromkeys((*plan.in_full, *brought))), ())
    settings = plan.settings if side is None else _own_settings(side)
    layers = plan.layers
    if side is not None and "layer_settings" in side:
        odd = side["layer_settings"]
        layers = {path: _with_odd(settings, odd.get(path, {})) for path in layers}
    adapter_set = make(
        model,
        settings,
        name=name,
        seed=None,
        targets=targets,
        token_rows={path: sorted(ids) for path, ids in plan.token_rows.items()},
        layer_settings=layers,
        share_tied=plan.share_tied or bool(brought),
    )
    _fill(adapter_set, plan, left)
    adapter_set.added_tokens = tuple(side["added_tokens"]) if side else ()
    if body.scorer:
        adapter_set.head = _head_of(tensors) if side is None else noted_head(side)
    return adapter_set


def _own_settings(side: dict[str, Any]) -> AdapterSettings:
    stored = side["settings"]
    try:
        return METHODS[stored["method"]].Settings.model_validate(stored)
    except (KeyError, ValueError) as error:
        fix = f"use the version that wrote it, or delete {SIDE}: the adapter is then read as PEFT's"
        raise AdapterError(f"the settings in {SIDE} cannot be read: {error}", fix=fix) from error


def _with_odd(settings: AdapterSettings, odd: dict[str, Any]) -> AdapterSettings:
    """A layer's own settings, where they differ."""
    return settings.model_validate(settings.model_dump(mode="json") | odd) if odd else settings


def _brought_tables(body: Anatomy, plan: Plan, left: dict[str, Tensor]) -> list[str]:
    """Embedding and head that PEFT stored whole without being asked, as it does after a resize.

    One that equals the base's own is dropped from `left`; another one is a module trained in full.
    """
    brought = []
    for path in (body.embedding, body.head):
        if path is None or path in plan.in_full or (plan.settings.whole and path in plan.layers):
            continue
        dense = dense_weight(body.modules[path]).detach()
        own = dense.t() if path == body.embedding else dense
        for key in _tables(path):
            if key not in left:
                continue
            stored = left[key].to(own.dtype).to(own.device)
            free = torch.ones(len(own), dtype=torch.bool)
            free[list(plan.token_rows.get(path, ()))] = False
            if stored.shape == own.shape and torch.equal(stored[free], own[free]):
                del left[key]
            elif key == f"{path}.weight" and path not in plan.layers and path not in plan.token_rows:
                brought.append(path)
    return brought


@torch.no_grad()
def _fill(adapter_set: AdapterSet, plan: Plan, left: dict[str, Tensor]) -> None:
    """Copy each tensor into its parameter; all that is missing, unused or misshapen is said at once."""
    errors: list[TunesmithError] = []
    filled: dict[int, str] = {}
    for key, target in _keys(adapter_set).items():
        key, first = key.removeprefix(PREFIX), target.pieces[0]
        tensor, twin = left.pop(key, None), filled.get(id(first))
        if tensor is None and twin is None:
            errors.append(AdapterError(f"{key} is missing", expected=str(list(target.shape))))
        elif tensor is None:
            continue
        elif not target.fits(tensor.shape):
            errors.append(
                AdapterError(f"{key} is misshapen", found=str(list(tensor.shape)), expected=str(list(target.shape)))
            )
        elif twin is not None and not torch.equal(target.joined(), tensor.to(first.device, first.dtype)):
            errors.append(AdapterError(f"{key} and {twin} are said to be one, but differ"))
        else:
            path = key.removesuffix(".token_adapter.trainable_tokens_delta")
            if path != key:
                tensor = tensor[torch.argsort(torch.tensor(plan.token_rows[path]))]
            target.fill(tensor)
            filled[id(first)] = key
    errors += [AdapterError(f"{key} is used by no layer of this model") for key in left]
    if errors:
        raise _all_of(errors)


def _all_of(errors: list[TunesmithError]) -> TunesmithError:
    """The first few errors in full, the rest counted: a wrong base model misses hundreds of tensors."""
    shown = errors[:6]
    rest = len(errors) - len(shown)
    return together(shown) if not rest else together([*shown, AdapterError(f"and {rest} more tensors")])
