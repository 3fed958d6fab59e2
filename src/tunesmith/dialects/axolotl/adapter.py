"""Of an Axolotl file: which adapter, of what size, on which layers."""

from __future__ import annotations

import contextlib
import re

from tunesmith.dialects.base import NO_EMBEDDING, Said, left_over, there
from tunesmith.recipe_rules import may_be_embedding


def adapter(said: Said) -> None:
    kind, again = said.take("adapter", str), said.take("lora_model_dir", str)
    if kind not in (None, "lora", "qlora", "llama-adapter"):
        fix = "write it so: adapter: lora; or take it out, and all weights are trained"
        said.refuse("adapter", f"cannot be {kind}", fix, expected="lora, qlora, llama-adapter, or nothing")
        return
    if kind is None:
        _in_full(said)
        return
    if kind == "llama-adapter":
        said.put("adapter.method", "llama-adapter", "adapter")
        _idle_lora(said, "llama-adapter has no matrices of low rank")
        return
    if again is not None:
        said.put("model.adapter", again, "lora_model_dir")
        said.carry("adapter", "the method is that of lora_model_dir")
        _idle_lora(said, "it is that of the adapter in lora_model_dir")
        return
    method = _lora_method(said)
    said.put("adapter.method", method, "adapter", *(key for key in ("peft_use_dora", "relora") if said.has(key)))
    _size(said)
    said.put("adapter.dropout", said.take("lora_dropout", float, 0.0), *there(said, "lora_dropout"))
    if said.take("peft_use_rslora", bool, False):
        said.put("adapter.rank_stabilised", True, "peft_use_rslora")
    _targets(said)
    in_full = said.items("lora_modules_to_save", str)
    if in_full:
        said.put("adapter.train_in_full", in_full, "lora_modules_to_save")
    if said.has("unfrozen_parameters"):
        said.refuse("unfrozen_parameters", "stands beside an adapter", "take adapter out, or use lora_modules_to_save")
    _start(said, method)
    _loraplus(said)


_RESET = 0.999
"""The share that Axolotl prunes with relora_prune_method: reset."""
_OF_LORA = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear", "lora_modules_to_save"),
    *("peft_use_rslora", "peft_use_dora", "peft_init_lora_weights", "loraplus_lr_ratio", "loraplus_lr_embedding"),
    "relora",
    *("lora_model_dir", "jagged_restart_steps", "relora_steps", "jagged_restart_warmup_steps", "relora_warmup_steps"),
    *("relora_prune_method", "relora_prune_ratio"),
)  # fmt: skip


def _size(said: Said) -> None:
    """Rank and alpha. Axolotl has no default of either: what is missing is ours, and is not put down as its own."""
    rank, alpha = said.take("lora_r", int, 8), said.take("lora_alpha", float, 16.0)
    for key, setting, value in (("lora_r", "adapter.r", rank), ("lora_alpha", "adapter.alpha", alpha)):
        if said.has(key):
            said.put(setting, value, key)
        else:
            said.note(f"{key} is missing, and Axolotl has no default for it: {setting} is {value:g}, which is ours")


def _loraplus(said: Said) -> None:
    ratio, rate = said.take("loraplus_lr_ratio", float), said.take("loraplus_lr_embedding", float, 1e-6)
    if ratio is None:
        said.idle("loraplus_lr_embedding", "loraplus_lr_ratio is not given")
        return
    said.put("adapter.lr_ratio", ratio, "loraplus_lr_ratio")
    if not may_be_embedding(_reached(said)):
        said.idle("loraplus_lr_embedding", NO_EMBEDDING)
    else:
        share = rate / said.take("learning_rate", float, 1.0)
        said.put("adapter.embedding_lr_ratio", float(f"{share:.6g}"), *there(said, "loraplus_lr_embedding"))


def _reached(said: Said) -> str | list[str]:
    """adapter.targets, as it was put."""
    targets: str | list[str] = said.ledger.settings.get(("adapter", "targets"), ("", ""))[0]
    return targets


def _idle_lora(said: Said, why: str) -> None:
    left_over(said, why, *_OF_LORA)


def _in_full(said: Said) -> None:
    unfrozen = said.items("unfrozen_parameters", str)
    said.put("adapter.method", "full", *there(said, "adapter"))
    if unfrozen:
        said.put("adapter.targets", "none", "unfrozen_parameters")
        said.put("adapter.train_in_full", [_of_modules(said, pattern) for pattern in unfrozen], "unfrozen_parameters")
        if any(pattern.removesuffix("$").endswith(".weight") for pattern in unfrozen):
            said.note(
                "unfrozen_parameters names weights: where such a module has a bias, it is trained beside its weight"
            )
    _idle_lora(said, "adapter is empty: all weights are trained")


def _of_modules(said: Said, pattern: str) -> str:
    """A regular expression that begins a parameter's name, as one over the paths of modules. A dot is a dot in it, but
    for that of `.+`."""
    if re.search(r"\[\d*(:\d*)?\]$", pattern):
        said.refuse(
            "unfrozen_parameters", f"holds {pattern}: a part of a weight is not trained alone", "name all of it"
        )
    whole = re.sub(r"(?<!\\)\.(?!\+)", r"\\.", pattern.removeprefix("^"))
    module, dot, last = whole.rpartition(r"\.")
    if dot and _means(last, "weight"):
        return f"re:{module}"
    if dot and _means(last, "bias"):
        fix = "take it out, or name the weight: its module is then trained with its bias"
        said.refuse("unfrozen_parameters", f"holds {pattern}: a bias is not trained without its weight", fix)
    if dot and not last:  # all of a module, be it one that holds others or a matrix
        return rf"re:(?:{module})(?:\..*)?"
    return f"re:(?:{whole.removesuffix('$')}).*"


def _means(pattern: str, parameter: str) -> bool:
    """Whether the last part of a pattern is this parameter's name; an expression that it fits ends in $."""
    if pattern == parameter:
        return True
    with contextlib.suppress(re.error):
        return pattern.endswith("$") and re.fullmatch(pattern, parameter) is not None
    return False


def _lora_method(said: Said) -> str:
    old = (said.take("relora_steps", int) or 0) > 0 and not said.has("relora")  # before `relora` was a key of its own
    if not old and not said.take("relora", bool, False):
        for key in ("jagged_restart_steps", "jagged_restart_warmup_steps"):
            if said.has(key):
                said.refuse(key, "stands without relora: true", "set relora=true, or take it out")
        for key in ("relora_steps", "relora_warmup_steps", "relora_prune_method", "relora_prune_ratio"):
            said.idle(key, "relora is off")
        return "dora" if said.take("peft_use_dora", bool, False) else "lora"
    if said.take("peft_use_dora", bool, False):
        said.refuse("peft_use_dora", "stands beside relora", "take one of them out")
    every = _one_of(said, "jagged_restart_steps", "relora_steps")
    if every is None:
        said.refuse(
            "relora",
            "needs jagged_restart_steps",
            "say after how many steps the adapter is merged: jagged_restart_steps: 500",
        )
    else:
        said.put("adapter.restart_every", said.take(every, int), every)
    rewarm = _one_of(said, "jagged_restart_warmup_steps", "relora_warmup_steps")
    if rewarm is not None:
        said.put("adapter.rewarm", said.take(rewarm, int), rewarm)
    how = said.choose("relora_prune_method", ("magnitude", "reset"), "magnitude")
    if how == "reset" and said.take("relora_prune_ratio", float, 1.0) < _RESET:
        fix = "take it out, or take relora_prune_method: magnitude"
        said.refuse("relora_prune_ratio", f"is below {_RESET}, beside reset, which keeps nothing here", fix)
    share = 0.0 if how == "reset" else round(1.0 - said.take("relora_prune_ratio", float, 0.9), 6)
    said.put("adapter.moments_kept", share, *there(said, "relora_prune_method"), *there(said, "relora_prune_ratio"))
    return "relora"


def _one_of(said: Said, new: str, old: str) -> str | None:
    """Which of two names of one thing the file uses; the new one goes first."""
    if said.has(new):
        left_over(said, f"{new} goes before it", old)
        return new
    return old if said.has(old) else None


def _targets(said: Said) -> None:
    value = said.raw("lora_target_modules")
    names = (
        [f"re:{value}"] if isinstance(value, str) and value != "all-linear" else said.items("lora_target_modules", str)
    )
    keys = there(said, "lora_target_modules")
    if said.take("lora_target_linear", bool, False):
        names, keys = ["all-linear", *(name for name in names if name != "all-linear")], ("lora_target_linear", *keys)
    if not names:
        fix = "set lora_target_linear=true, or lora_target_modules"
        said.refuse("lora_target_modules", "and lora_target_linear name no layers", fix)
        return
    said.put("adapter.targets", names[0] if len(names) == 1 else names, *keys)


def _start(said: Said, method: str) -> None:
    value = said.raw("peft_init_lora_weights")
    if value in (None, True, "true"):
        return
    word = str(value)
    steps = re.fullmatch(r"pissa_niter_(\d+)", word)
    if method == "lora" and (word in ("pissa", "olora") or steps):
        said.put("adapter.start", "pissa" if steps else word, "peft_init_lora_weights")
        if steps:
            said.put("adapter.svd_iterations", int(steps[1]), "peft_init_lora_weights")
        return
    fix = "write it so: peft_init_lora_weights: pissa; or take it out"
    if method != "lora":
        fix = f"take it out: it is a start of plain lora, and this file trains {method}"
    expected = "true, pissa, pissa_niter_N, olora" if method == "lora" else "true"
    said.refuse("peft_init_lora_weights", f"cannot be {word} with {method}", fix, expected=expected)
