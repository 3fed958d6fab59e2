"""Of a LitGPT file: the model, its storage, and the adapter."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith.dialects.base import Said, instead, left_over, there
from tunesmith.dialects.litgpt.keys import LORA, PARTS

_PRECISIONS = {
    **{"bf16-true": "bfloat16", "bf16-mixed": "bfloat16", "bf16": "bfloat16"},
    **{"16-true": "float16", "16-mixed": "float16", "16": "float16", "32-true": "float32", "32": "float32"},
}
_STORAGES = {"bnb.nf4": "nf4", "bnb.nf4-dq": "nf4-double", "bnb.int8-training": "int8"}
_USUAL = ("lora_query", "lora_value")


def model(said: Said) -> None:
    name = said.take("checkpoint_dir", str)
    if name is None:
        said.refuse("checkpoint_dir", "is missing", "give a folder, or a hub id")
    else:
        _checkpoint(said, name)
    precision = said.take("precision", str)
    if precision is not None and precision not in _PRECISIONS:
        fix = instead("precision", precision, _PRECISIONS, "bf16-true")
        said.refuse("precision", f"cannot be {precision}", fix, expected=", ".join(_PRECISIONS))
    elif precision is not None:
        said.put("model.dtype", _PRECISIONS[precision], "precision")
    storage = said.take("quantize", str)
    if storage is not None and storage not in _STORAGES:
        fix = instead("quantize", storage, _STORAGES, "bnb.nf4")
        said.refuse("quantize", f"cannot be {storage}", fix, expected=", ".join(_STORAGES))
    elif storage is not None:
        said.put("model.storage", _STORAGES[storage], "quantize")


def _checkpoint(said: Said, name: str) -> None:
    """LitGPT keeps `lit_model.pth` in checkpoints/owner/name, beside Hugging Face's files or in their place."""
    folder = Path(name).expanduser()
    for place in (folder, "checkpoints" / folder):
        weights = any(place.glob("*.safetensors")) or any(place.glob("pytorch_model*.bin"))
        if (place / "config.json").is_file() and weights:
            said.put("model.name", str(place), "checkpoint_dir")
            return
    owner, _, model = name.rstrip("/").rpartition("/")
    inside, is_id = re.search(r"(?:^|/)checkpoints/([^/]+)$", owner), re.fullmatch(r"[A-Za-z0-9][\w.-]*", owner)
    if inside or (is_id and not folder.exists()):
        found = f"{inside[1] if inside else owner}/{model}"
        said.put("model.name", found, "checkpoint_dir")
        if inside:
            said.note(f"{name} holds no weights in Hugging Face's form: the model is {found} of the hub")
    elif folder.exists():
        fix = "convert it: litgpt convert_from_litgpt, then name the folder with config.json and the weights"
        said.refuse("checkpoint_dir", f"is {name}, which holds no weights in Hugging Face's form", fix)
    else:
        said.put("model.name", name, "checkpoint_dir")


def adapter(said: Said) -> None:
    """Of full fine-tuning LitGPT's files have no lora_ key."""
    default = "finetune_lora" if said.has(*LORA, *PARTS) else "finetune_full"
    command = said.take("command", str, default)
    if command in ("finetune_adapter", "finetune_adapter_v2"):
        fix = "set command=finetune_full, and adapter.method=llama-adapter in our words"
        said.refuse("command", f"is {command}: its first blocks get no tokens, which is not done here", fix)
    elif command not in ("finetune", "finetune_lora", "finetune_full"):
        known = ("finetune_lora", "finetune_full")
        said.refuse(
            "command", f"cannot be {command}", instead("command", command, known, known[0]), expected=", ".join(known)
        )
    if command == "finetune_full":
        said.put("adapter.method", "full", *there(said, "command"))
        left_over(said, "all weights are trained: command=finetune_full", *LORA, *PARTS)
        if said.has("quantize"):
            said.refuse("quantize", "stands without LoRA: weights of few bits are not trained in full", "take it out")
        if not said.has("command"):
            said.note("the file has no lora_ key: all weights are trained (LoRA: command=finetune_lora)")
        return
    said.put("adapter.method", "lora", *there(said, "command"))
    said.put("adapter.r", said.take("lora_r", int, 8), *there(said, "lora_r"))
    said.put("adapter.alpha", said.take("lora_alpha", float, 16.0), *there(said, "lora_alpha"))
    said.put("adapter.dropout", said.take("lora_dropout", float, 0.05), *there(said, "lora_dropout"))
    _targets(said)


def _targets(said: Said) -> None:
    chosen = [key for key in PARTS if said.take(key, bool, key in _USUAL)]
    names = [PARTS[key] for key in chosen]
    keys = tuple(key for key in PARTS if said.has(key))
    if not names:
        said.refuse(keys[0], "and the others choose no layer", "set lora_query=true and lora_value=true")
        return
    if names[:4] == list(PARTS.values())[:4]:
        names = ["attention", *names[4:]]
    said.put("adapter.targets", names[0] if len(names) == 1 else names, *keys)
    if "q_proj" in names or "k_proj" in names or "v_proj" in names or "o_proj" in names:
        said.note(
            f"{', '.join(key for key in chosen if PARTS[key].endswith('_proj'))}: these layers are named as in models "
            "like Llama; where one layer makes them all (query_key_value, qkv_proj, c_attn): adapter.targets=attention"
        )
