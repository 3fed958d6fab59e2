"""PEFT's adapter_config.json: written so that PEFT resolves it to exactly our layers, read by PEFT's own rules.

Every key is known: read, without effect on the numbers, or refused by name with what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import AdapterSet, by_layer
from tunesmith.adapters.full import PEFT_TYPE, Full
from tunesmith.adapters.settings import NONE, AdapterSettings
from tunesmith.adapters.targets import Anatomy, before_documents
from tunesmith.adapters.virtual import Virtual, VirtualSettings
from tunesmith.errors import AdapterError, TunesmithError, together

KNOWN_TYPES = tuple(
    dict.fromkeys(method.to_peft(method.Settings())["peft_type"] for method in METHODS.values())  # type: ignore[attr-defined]
)
"""The peft_type of the methods that are read here; PEFT knows most of them."""

READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("trainable_token_indices", "ensure_weight_tying", "task_type", "bias", "init_lora_weights"),
    *("base_model_name_or_path", "revision", "use_dora"),
    *("vera_dropout", "d_initial", "save_projection", "feedforward_modules"),
    *("activation", "num_virtual_tokens", "adapter_len", "adapter_layers"),
}
INERT = {
    *("auto_mapping", "peft_version", "inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("projection_prng_key", "init_weights", "init_ia3_weights", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs", "encoder_hidden_size", "prefix_projection"),
    *("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"),
}
"""Say how the adapter was made or run, or what its tensors' shapes say too; not what it computes."""
REFUSED = {
    "lora_bias": "merge it with PEFT and load the merged model",
    "target_parameters": "merge it with PEFT and load the merged model: stacks of experts take no adapter here",
    "layer_replication": "replicate the layers of the base model first and save it, then train anew",
    "use_qalora": "merge it with PEFT and load the merged model",
    "alora_invocation_tokens": "this adapter acts from an invocation token on; run it with PEFT",
    "velora_config": "it is a way of training; save the adapter again without it",
    "monteclora_config": "save its mean with PEFT as a plain LoRA",
    "arrow_config": "load the adapters that it routes between one by one",
    "use_bdlora": "merge it with PEFT and load the merged model",
    "kasa_config": "merge it with PEFT and load the merged model",
    "megatron_config": "export the adapter from Megatron first",
}
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights after which the adapter fits a changed base alone."""


ENDS = ("embed_tokens", "lm_head")
"""PEFT's ensure_weight_tying acts where one of these names is asked for, and nowhere else: not on GPT-2's wte alone."""


SEQUENCE_CLASSIFICATION = "SEQ_CLS"
OFFERED_HEADS = ("classifier", "score")
"""PEFT names both in modules_to_save of each sequence classifier, whichever of them the model has."""


SHAPES: dict[str, tuple[type, ...]] = {
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "feedforward_modules": (str, list),
    "modules_to_save": (list,),
    "layers_pattern": (str, list),
    "layers_to_transform": (int, list),
    "trainable_token_indices": (list, dict),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
}
"""What a key may hold, where it holds anything; lists of names, but of numbers in the two of `NUMBERED`."""
NUMBERED = ("layers_to_transform", "trainable_token_indices")
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "rank_pattern", "alpha_pattern")
"""Where text, or the keys of a mapping, are regular expressions."""


@dataclass(frozen=True)
class Plan:
    """What a config asks for, resolved on one model."""

    settings: AdapterSettings
    layers: dict[str, AdapterSettings]
    """Settings of each adapted matrix by its path."""
    in_full: tuple[str, ...]
    token_rows: dict[str, tuple[int, ...]]
    """Trained tokens of embedding and head, in the order of the stored rows."""
    share_tied: bool
    """Embedding and head, trained in full, are one copy."""
    base_name: str | None


def write(adapter_set: AdapterSet, base_name: str, revision: str | None) -> dict[str, Any]:
    """The config that makes PEFT build `adapter_set`'s layers and no others."""
    settings, body = adapter_set.settings, adapter_set.body
    method = METHODS[settings.method]  # type: ignore[attr-defined]
    main = method.to_peft(settings)
    common = {
        "task_type": SEQUENCE_CLASSIFICATION if body.scorer else "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": base_name or None,
        "revision": revision,
        "inference_mode": True,
    }
    if isinstance(settings, VirtualSettings):
        own = [adapter.peft_fields() for adapter in adapter_set.adapters.values() if isinstance(adapter, Virtual)]
        return common | main | own[0]
    adapted, in_full = adapter_set.targets.adapted, adapter_set.targets.in_full
    tokens = dict(adapter_set.token_rows)
    if body.tied and tokens.get(body.head or "") == tokens.get(body.embedding or ""):
        tokens.pop(body.head or "", None)  # PEFT gives a tied head its embedding's rows by itself
    per_layer = {
        path: method.to_peft(adapter_set.adapters[path].in_file(own))
        for path, own in adapter_set.layer_settings.items()
    }
    if per_layer and main not in per_layer.values():
        main = next(iter(per_layer.values()))
    config = {
        **common,
        "fan_in_fan_out": all(isinstance(body.modules[path], Conv1D) for path in adapted),
        "target_modules": _compact(adapted, body),
        "modules_to_save": list(in_full) or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        **main,
        **(method.peft_layers(adapter_set.layer_settings) if hasattr(method, "peft_layers") else {}),
    }
    of_lora = {
        "bias": "none",
        "init_lora_weights": True,
        "exclude_modules": None,
        "ensure_weight_tying": shares_tied(adapter_set),
        "trainable_token_indices": {path: list(ids) for path, ids in tokens.items()} or None,
        "rank_pattern": _pattern("r", main, per_layer),
        "alpha_pattern": _pattern("lora_alpha", main, per_layer),
    }
    # Other types of PEFT's know none of these; one that matters is written all the same, so that it is not lost here.
    needed = {key: value for key, value in of_lora.items() if value and key not in ("bias", "init_lora_weights")}
    return config | (of_lora if main["peft_type"] == "LORA" else needed)


def left_out_by_peft(adapter_set: AdapterSet) -> list[str]:
    """What PEFT, reading the adapter's folder, would leave out without an error, in a sentence each."""
    kind = METHODS[adapter_set.settings.method].to_peft(adapter_set.settings)["peft_type"]  # type: ignore[attr-defined]
    if not adapter_set.token_rows or kind not in ("VERA", "IA3"):
        return []
    return [f"PEFT knows no rows of added tokens beside {kind}: it would use this adapter without them"]


def _pattern(key: str, main: dict[str, Any], per_layer: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {re.escape(path): own[key] for path, own in per_layer.items() if own.get(key) != main.get(key)}


def shares_tied(adapter_set: AdapterSet) -> bool:
    """Whether embedding and head are trained in full as one."""
    body = adapter_set.body
    ends = [adapter_set.adapters.get(path) for path in (body.embedding, body.head) if path]
    if len(ends) < 2 or not all(isinstance(end, Full) for end in ends):
        return False
    return ends[0].get_parameter("weight") is ends[1].get_parameter("weight")  # type: ignore[union-attr]


def _compact(adapted: Sequence[str], body: Anatomy) -> list[str]:
    """Leaf names where a leaf name means our layers and no others, full paths elsewhere."""
    there: dict[str, set[str]] = {}
    for path in body.modules:
        there.setdefault(path.rpartition(".")[2], set()).add(path)
    ours = set(adapted)
    return list(dict.fromkeys(leaf if there[leaf := path.rpartition(".")[2]] <= ours else path for path in adapted))


def read(config: dict[str, Any], body: Anatomy) -> Plan:
    """Resolve PEFT's `config` on a model; everything that cannot be honoured is refused together."""
    errors = [*_refusals(config, body), *_malformed(config)]
    if errors:
        raise together(errors)
    method, fields = _method(config)
    if issubclass(method.Settings, VirtualSettings):
        return _before_documents(config, _settings(method, fields), body)
    in_full = _saved_modules(config, body, errors)
    adapted = _target_modules(config, body, in_full, errors)
    rows = _token_rows(config, body, errors)
    if errors:
        raise together(errors)
    chosen = {"targets": tuple(adapted) or NONE, "train_in_full": tuple(in_full)}
    settings = _settings(method, fields | chosen)
    layers: dict[str, AdapterSettings] = {}
    for path in adapted:
        own = dict(config)
        for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            found = _matching_key(config.get(pattern) or {}, path)
            if found is not None:
                own[key] = config[pattern][found]
        layers |= by_layer(_settings(method, method.from_peft(own) | chosen), body, [path])
    copied = config.get("peft_type") == PEFT_TYPE  # ours alone: the weight itself learns, by whichever end it is named
    tied = bool(config.get("ensure_weight_tying")) and body.tied
    share = tied if copied else _ties(config, body, config.get("modules_to_save"))
    return Plan(settings, layers, tuple(in_full), rows, share, config.get("base_model_name_or_path"))


def _before_documents(config: dict[str, Any], settings: VirtualSettings, body: Anatomy) -> Plan:
    """A method of virtual tokens: beside the embedding, and nothing else."""
    if config.get("modules_to_save"):
        raise AdapterError(
            "modules trained beside virtual tokens are not supported",
            found=str(config["modules_to_save"])[:80],
            fix="run it with PEFT",
        )
    layers: dict[str, AdapterSettings] = dict.fromkeys(before_documents(body).adapted, settings)
    return Plan(settings, layers, (), {}, False, config.get("base_model_name_or_path"))


def unmergeable(config: dict[str, Any]) -> str | None:
    """Why no weight computes what an adapter of PEFT's `config` does; None where one does, or where nobody knows."""
    for method in METHODS.values():
        if method.from_peft(config) is not None:  # type: ignore[attr-defined]
            return getattr(method, "UNMERGEABLE", None)
    return None


def _method(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The method of PEFT's `config`, and its fields."""
    for method in METHODS.values():
        fields = method.from_peft(config)  # type: ignore[attr-defined]
        if fields is not None:
            return method, fields
    what = f"no method here reads peft_type {config['peft_type']} as it is set"
    raise AdapterError(what, fix="run it with PEFT")


def _refusals(config: dict[str, Any], body: Anatomy) -> Iterable[TunesmithError]:
    kind = config.get("peft_type")
    if kind not in KNOWN_TYPES:
        yield AdapterError(
            f"peft_type {kind} is not known here",
            expected=", ".join(KNOWN_TYPES),
            fix="merge it with PEFT and load the merged model",
        )
        return
    wanted = SEQUENCE_CLASSIFICATION if body.scorer else "CAUSAL_LM"
    if config.get("task_type") not in (None, wanted):
        yield AdapterError(
            f"the adapter is for a model of another kind: its task_type is {config['task_type']}", expected=wanted
        )
    if config.get("bias", "none") != "none":
        yield AdapterError(f"bias: {config['bias']} changes the base's biases", fix="merge it with PEFT first")
    if kind == "VERA" and not config.get("save_projection", True):
        yield AdapterError(
            "this VeRA adapter was saved without its pair of matrices", fix="save it again with save_projection=True"
        )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(BASE_CHANGING):
        yield AdapterError(
            f"init_lora_weights: {init} starts from a changed base model",
            fix="save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )
    for key, fix in REFUSED.items():
        if config.get(key):
            yield AdapterError(f"{key} is not supported", found=str(config[key])[:80], fix=fix)
    for key in config.keys() - READ - INERT - REFUSED.keys():
        if config[key]:
            yield AdapterError(
                f"{key} is not a setting that is known here",
                found=str(config[key])[:80],
                fix="load it with the PEFT that wrote it, merge, and load the merged model",
            )


def _malformed(config: dict[str, Any]) -> Iterable[TunesmithError]:
    """Values that PEFT does not write: a config that a person or another program has changed."""
    for key, kinds in SHAPES.items():
        value = config.get(key)
        if value is None:
            continue
        item = int if key in NUMBERED else str
        inner = value.values() if isinstance(value, dict) else [value] if isinstance(value, list) else []
        lists = [one for one in inner if isinstance(one, list)] if key in NUMBERED else inner
        whole = isinstance(value, kinds) and not isinstance(value, bool)
        if isinstance(value, dict) and key in NUMBERED:
            whole = whole and len(lists) == len(value)
        if isinstance(value, list) or key in NUMBERED:
            whole = whole and all(isinstance(one, item) for some in lists for one in some)
        if not whole:
            yield AdapterError(f"{key} is not as PEFT writes it", found=str(value)[:80])
            continue
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            try:
                re.compile(pattern if key in PATTERNS else "")
            except re.error as error:
                yield AdapterError(f"{key} holds a broken regular expression: {error}", found=pattern[:80])


def _settings(method: Any, fields: dict[str, Any]) -> Any:
    """The method's record, or which of PEFT's numbers cannot be."""
    try:
        return method.Settings(**fields)
    except ValidationError as error:
        said = [(".".join(map(str, one["loc"])), one) for one in error.errors()]
        raise together(
            [AdapterError(f"{name} of this adapter cannot be {one['input']!r}: {one['msg']}") for name, one in said]
        ) from error


def _saved_modules(config: dict[str, Any], body: Anatomy, errors: list[TunesmithError]) -> list[str]:
    """Modules that PEFT trains in full: those whose path ends in a name, with all below them."""
    chosen: set[str] = set()
    for name in config.get("modules_to_save") or ():
        tops = [path for path in body.modules if path and path.endswith(name)]
        if not tops and not (body.scorer and name in OFFERED_HEADS):
            errors.append(AdapterError(f"modules_to_save names {name}, which matches nothing in this model"))
        chosen.update(p for p in body.modules if any(p == top or p.startswith(top + ".") for top in tops))
    if _ties(config, body, config.get("modules_to_save")):
        chosen.update(path for path in (body.embedding, body.head) if path)
    return [path for path in body.modules if path in chosen and any(True for _ in _own(body.modules[path]))]


def _ties(config: dict[str, Any], body: Anatomy, names: str | Sequence[str] | None) -> bool:
    """Whether PEFT makes embedding and head one again, where `names` are what it trains or adapts."""
    if not (config.get("ensure_weight_tying") and body.tied):
        return False
    if isinstance(names, str):
        return any(re.fullmatch(names, end) for end in ENDS)
    return any(name.rpartition(".")[2] in ENDS for name in names or ())


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    return module.parameters(recurse=False)


def _target_modules(
    config: dict[str, Any], body: Anatomy, in_full: Sequence[str], errors: list[TunesmithError]
) -> list[str]:
    """Paths that PEFT would adapt, in the model's order."""
    targets = config.get("target_modules")
    if not targets and in_full and config.get("peft_type") == PEFT_TYPE:
        return []
    if not targets:
        errors.append(AdapterError("target_modules is empty", fix="name the layers that the adapter touches"))
        return []
    if isinstance(targets, str) and targets.lower() == "all-linear":
        linear = [path for path, module in body.matrices.items() if not isinstance(module, nn.Embedding)]
        found = [path for path in linear if path != body.head]
    else:
        found = [path for path in body.modules if path and _targeted(config, targets, path)]
    found = [path for path in found if path not in set(in_full) and not _excluded(config, path)]
    odd = [path for path in found if path not in body.matrices]
    if odd:
        errors.append(
            AdapterError("target_modules reaches modules that take no adapter here", found=", ".join(odd[:4]))
        )
    if not found:
        errors.append(AdapterError("target_modules matches nothing in this model", found=str(targets)[:120]))
    copied = config.get("peft_type") == PEFT_TYPE
    tied = _ties(config, body, targets) and not _ties(config, body, config.get("modules_to_save"))
    if tied and {body.embedding, body.head} & set(found) and not copied:
        errors.append(
            AdapterError("ensure_weight_tying of a low-rank change is not supported", fix="merge it with PEFT")
        )
    return found


def _targeted(config: dict[str, Any], targets: str | list[str], path: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    if path in targets:
        return True
    if not any(path.endswith(f".{target}") for target in targets):
        return False
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", path)
        if match:
            return int(match["index"]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def _excluded(config: dict[str, Any], path: str) -> bool:
    names = config.get("exclude_modules") or []
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _matching_key(patterns: dict[str, Any], path: str) -> str | None:
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)


def _token_rows(config: dict[str, Any], body: Anatomy, errors: list[TunesmithError]) -> dict[str, tuple[int, ...]]:
    """Trained tokens by path; a tied head follows its embedding."""
    asked = config.get("trainable_token_indices")
    if not asked:
        return {}
    if isinstance(asked, list):
        asked = {body.embedding: asked}
    ends = [path for path in (body.embedding, body.head) if path]
    rows: dict[str, tuple[int, ...]] = {}
    for name, ids in asked.items():
        found = [path for path in ends if path.endswith(name)]
        if not found:
            errors.append(AdapterError(f"trainable_token_indices names {name}, neither embedding nor head here"))
        rows |= {path: tuple(ids) for path in found}
    if body.tied and body.embedding in rows and body.head:
        rows.setdefault(body.head, rows[body.embedding])
    return rows
