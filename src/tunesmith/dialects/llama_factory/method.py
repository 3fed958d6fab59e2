"""Of a LLaMA-Factory file: what is trained, `finetuning_type` and its settings."""

from __future__ import annotations

from tunesmith.dialects.base import NO_EMBEDDING, Said, instead, there
from tunesmith.dialects.llama_factory.model import names
from tunesmith.recipe_rules import may_be_embedding

OF_LORA = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "pissa_init", "pissa_iter"),
    *("pissa_convert", "loraplus_lr_ratio", "loraplus_lr_embedding", "additional_target"),
)
OF_FREEZE = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_OF_ADAPTER = ("adapter_name_or_path", "adapter_folder")
_PARTS = {
    "mlp": "mlp",
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention"), "attention"),
}
"""What a module of a block is called among the words of adapter.targets."""


def method(said: Said, stage: str) -> None:
    kind = said.choose("finetuning_type", ("lora", "freeze", "full"), "lora")
    if kind != "freeze":
        _idle(said, OF_FREEZE, f"finetuning_type is {kind}")
    if kind != "lora":
        _idle(said, OF_LORA, f"finetuning_type is {kind}")
        if said.has("adapter_name_or_path"):
            said.refuse("adapter_name_or_path", f"stands beside finetuning_type {kind}", "take finetuning_type: lora")
        said.put("adapter.method", "full", *there(said, "finetuning_type"))
        if kind == "freeze":
            _freeze(said)
        if said.take("resize_vocab", bool, False):
            said.carry("resize_vocab", "the rows of added tokens are trained")
    elif said.has("adapter_name_or_path"):
        _go_on(said, stage)
    else:
        _idle(said, ("adapter_folder",), "adapter_name_or_path is not given")
        _lora(said, stage)


def _idle(said: Said, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        said.raw(key)
        said.idle(key, why)


def _go_on(said: Said, stage: str) -> None:
    """Training goes on from an adapter: all that makes it is its own."""
    paths, folder = names(said, "adapter_name_or_path"), said.take("adapter_folder", str)
    if len(paths) > 1:
        fix = "merge all but the last into the base: `tunesmith merge`"
        said.refuse("adapter_name_or_path", f"names {len(paths)} adapters", fix)
    if said.take("create_new_adapter", bool, False):
        fix = "merge that adapter into the base (`tunesmith merge`), and name the result as model_name_or_path"
        said.refuse("create_new_adapter", "begins a new adapter on top of another", fix)
    path = paths[0] if folder is None else f"{paths[0].rstrip('/')}/{folder}"
    said.put("model.adapter", path, *(key for key in _OF_ADAPTER if said.has(key)))
    said.carry("finetuning_type", "the method is that of adapter_name_or_path")
    _idle(said, OF_LORA, "it is that of the adapter in adapter_name_or_path")
    if said.take("resize_vocab", bool, False):
        said.carry("resize_vocab", "what the adapter trains of the vocabulary is its own")
    if stage in ("dpo", "kto") and not said.has("ref_model"):
        said.note(
            "the reference is the adapter that training goes on from; LLaMA-Factory takes the base beneath it, "
            "unless ref_model and ref_model_adapters say otherwise"
        )


def _lora(said: Said, stage: str) -> None:
    dora = said.take("use_dora", bool, False)
    said.put("adapter.method", "dora" if dora else "lora", *there(said, "finetuning_type"), *there(said, "use_dora"))
    rank = said.take("lora_rank", int, 8)
    said.put("adapter.r", rank, *there(said, "lora_rank"))
    said.put("adapter.alpha", said.take("lora_alpha", float, 2.0 * rank), *there(said, "lora_alpha"))
    dropout = said.take("lora_dropout", float, 0.0)
    if stage in ("dpo", "kto"):
        said.put("adapter.dropout", 0.0)
        said.idle("lora_dropout", "LLaMA-Factory itself turns dropout off in preference tuning")
    else:
        said.put("adapter.dropout", dropout, *there(said, "lora_dropout"))
    if said.take("use_rslora", bool, False):
        said.put("adapter.rank_stabilised", True, "use_rslora")
    targets = names(said, "lora_target") or ["all"]
    targets = ["all-linear" if target == "all" else target for target in targets]
    said.put("adapter.targets", targets[0] if len(targets) == 1 else targets, *there(said, "lora_target"))
    _in_full(said)
    _start(said, dora)
    ratio, rate = said.take("loraplus_lr_ratio", float), said.take("loraplus_lr_embedding", float, 1e-6)
    if ratio is None:
        said.idle("loraplus_lr_embedding", "loraplus_lr_ratio is not given")
        return
    said.put("adapter.lr_ratio", ratio, "loraplus_lr_ratio")
    if not may_be_embedding(targets):
        said.idle("loraplus_lr_embedding", NO_EMBEDDING)
    else:
        share = rate / said.take("learning_rate", float, 5e-5)
        said.put("adapter.embedding_lr_ratio", float(f"{share:.6g}"), *there(said, "loraplus_lr_embedding"))


def _in_full(said: Said) -> None:
    """Beside the adapter: what is named, or the tables of a vocabulary that grows."""
    named = names(said, "additional_target")
    grows = [key for key in ("add_tokens", "add_special_tokens") if said.has(key)]
    grows += ["resize_vocab"] if said.take("resize_vocab", bool, False) else []
    if named:
        said.put("adapter.train_in_full", named, "additional_target")
        if "resize_vocab" in grows:
            said.carry("resize_vocab", "the vocabulary grows by what is added to it")
    elif grows:
        said.put("adapter.train_in_full", ["embeddings", "head"], *grows)


def _start(said: Said, dora: bool) -> None:
    rounds, converts = said.take("pissa_iter", int, 16), said.take("pissa_convert", bool, False)
    if not said.take("pissa_init", bool, False):
        for key in ("pissa_iter", "pissa_convert"):
            said.idle(key, "pissa_init is off")
        return
    if dora:
        said.refuse("pissa_init", "stands beside use_dora", "take one of them out")
    said.put("adapter.start", "pissa", "pissa_init")
    if rounds >= 0:
        said.put("adapter.svd_iterations", rounds, *there(said, "pissa_iter"))
    else:
        said.carry("pissa_iter", "adapter.start = pissa, by the exact SVD")
    if converts:
        said.carry("pissa_convert", "the adapter's file holds a plain LoRA in any case")


def _freeze(said: Said) -> None:
    """Weights of the last blocks, and of modules outside the blocks."""
    count = said.take("freeze_trainable_layers", int, 2)
    if count < 1:
        fix = "give a positive number, for the last so many"
        said.refuse("freeze_trainable_layers", f"is {count}: of the first blocks alone nothing is trained here", fix)
    else:
        said.put("adapter.last_blocks", count, *there(said, "freeze_trainable_layers"))
    parts, more = names(said, "freeze_trainable_modules") or ["all"], names(said, "freeze_extra_modules")
    odd = [part for part in parts if part != "all" and part not in _PARTS]
    if odd:
        known = ["all", *_PARTS]
        fix = instead("freeze_trainable_modules", odd[0], known, "all")
        said.refuse("freeze_trainable_modules", f"names {', '.join(odd)}", fix, expected=", ".join(known))
    elif "all" not in parts:
        targets = list(dict.fromkeys(_PARTS[part] for part in parts))
        said.put("adapter.targets", targets[0] if len(targets) == 1 else targets, "freeze_trainable_modules")
    else:
        said.note("finetuning_type freeze: the norm behind the last block is trained too")
    if more:
        kept = ["rest", *more] if "all" in parts else more
        said.put("adapter.train_in_full", kept, "freeze_extra_modules")
