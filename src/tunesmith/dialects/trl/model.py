"""Of a TRL file: the model, its storage, its tokens and template, and the adapter."""

from __future__ import annotations

import os
import re

from tunesmith.dialects.base import Said, instead, left_over, there
from tunesmith.dialects.trl.trainer import PAIRS, POLICY

_DTYPES = ("auto", "bfloat16", "float16", "float32")
_KEYS_OF_LORA = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_rslora", "use_dora"),
)
_LIKE_LLAMA = ["q_proj", "v_proj"]


def model(said: Said) -> None:
    said.put("model.name", said.take("model_name_or_path", str, ""), "model_name_or_path")
    more = said.within("model_init_kwargs")
    for holder, key in ((more, "revision"), (said, "model_revision")):
        revision = holder.take(key, str)
        if revision == "main":
            holder.idle(key, "it is what is taken anyway")
        elif revision is not None:
            holder.put("model.revision", revision, key)
    _dtype(said, more)
    for key, device in (("use_cpu", "cpu"), ("no_cuda", "cpu"), ("use_mps_device", "mps")):
        if said.take(key, bool, False):
            said.put("model.device", device, key)
    left_over(said, "off", "use_cpu", "no_cuda", "use_mps_device")
    _storage(said)
    if said.has("eos_token"):
        said.put("model.special_tokens", {"eos": said.take("eos_token", str)}, "eos_token")
    _template(said)


def _dtype(said: Said, more: Said) -> None:
    """bf16 and fp16 are what matrices are multiplied in, dtype what weights are held in; here both are one."""
    places = [(said, "dtype"), (said, "torch_dtype"), (more, "dtype"), (more, "torch_dtype")]
    given = [(holder, key) for holder, key in places if holder.has(key)]
    held = "float32"
    for holder, key in given:
        held = str(holder.take(key, str)).removeprefix("torch.")
        if held not in _DTYPES:
            holder.refuse(
                key, f"cannot be {held}", instead(key, held, _DTYPES, "bfloat16"), expected=", ".join(_DTYPES)
            )
            held = "float32"
    half, brain = said.take("fp16", bool, False), said.take("bf16", bool)
    if half and brain:
        said.refuse("fp16", "stands beside bf16", "take one of them out")
    if half or brain:
        key = "fp16" if half else "bf16"
        said.put("model.dtype", "float16" if half else "bfloat16", key)
        for holder, name in given:
            holder.carry(name, f"matrices are multiplied as {key} says; what is trained is held in float32")
    elif brain is False:
        said.put("model.dtype", held, "bf16")
        for holder, name in given:
            holder.put("model.dtype", held, name)
    elif held in ("bfloat16", "float16"):
        for holder, name in given:
            holder.put("model.dtype", held, name)
    else:
        for holder, name in given:
            holder.put("model.dtype", "auto", name)
            said.note(f"{name} {held}: TRL multiplies in bfloat16 all the same, where bf16 is not false; so does auto")
    left_over(said, "off", "fp16", "bf16")


def _storage(said: Said) -> None:
    in8, in4 = said.take("load_in_8bit", bool, False), said.take("load_in_4bit", bool, False)
    nested, kind = said.take("use_bnb_nested_quant", bool, False), said.take("bnb_4bit_quant_type", str, "nf4")
    if in8 and in4:
        said.refuse("load_in_8bit", "stands beside load_in_4bit", "take one of them out")
    elif in8:
        said.put("model.storage", "int8", "load_in_8bit")
    elif in4 and kind != "nf4":
        said.refuse("bnb_4bit_quant_type", f"cannot be {kind}", "take nf4, which loses less", expected="nf4")
    elif in4:
        keys = (*there(said, "use_bnb_nested_quant"), *there(said, "bnb_4bit_quant_type"))
        said.put("model.storage", "nf4-double" if nested else "nf4", "load_in_4bit", *keys)
    left_over(said, "off", "load_in_8bit", "load_in_4bit")
    left_over(said, "load_in_4bit is off", "use_bnb_nested_quant", "bnb_4bit_quant_type")
    if (in8 or in4) and not said.take("use_peft", bool, False):
        key = "load_in_8bit" if in8 else "load_in_4bit"
        said.refuse(key, "stands without use_peft: weights of few bits are not trained in full", "set use_peft=true")


def _template(said: Said) -> None:
    text = said.take("chat_template", str)
    if text is not None:
        said.put("model.template", text, "chat_template")
    path = said.take("chat_template_path", str)
    if path is None:
        return
    inside = os.path.join(path, "chat_template.jinja")
    if path.endswith((".jinja", ".j2", ".txt")):
        said.put("model.template", path, "chat_template_path")
    elif os.path.isfile(inside):
        said.put("model.template", inside, "chat_template_path")
    else:
        fix = "give a file of Jinja (that tokenizer's chat_template.jinja)"
        said.refuse("chat_template_path", f"is {path}: a tokenizer's template is not fetched", fix)


def adapter(said: Said, trainer: str) -> None:
    if not said.take("use_peft", bool, False):
        said.put("adapter.method", "full", *there(said, "use_peft"))
        left_over(said, "use_peft is not true: all weights are trained", *_KEYS_OF_LORA)
        if said.has("disable_dropout"):
            said.carry("disable_dropout", "the model's own dropout is always off")
        return
    method = "dora" if said.take("use_dora", bool, False) else "lora"
    said.put("adapter.method", method, "use_peft", *there(said, "use_dora"))
    said.put("adapter.r", said.take("lora_r", int, 16), *there(said, "lora_r"))
    said.put("adapter.alpha", said.take("lora_alpha", float, 32.0), *there(said, "lora_alpha"))
    _dropout(said, trainer)
    if said.take("use_rslora", bool, False):
        said.put("adapter.rank_stabilised", True, "use_rslora")
    left_over(said, "off", "use_rslora")
    in_full = said.items("lora_modules_to_save", str)
    if trainer == "reward":  # whose head is always trained, whatever it is called
        in_full = ["head" if name in ("score", "classifier") else name for name in in_full]
    if in_full:
        said.put("adapter.train_in_full", in_full, "lora_modules_to_save")
    _targets(said)


def _dropout(said: Said, trainer: str) -> None:
    """TRL's `disable_dropout` sets every dropout of the model to 0, the adapter's too; of pairs it is the default."""
    share = said.take("lora_dropout", float, 0.05)
    off = said.take("disable_dropout", bool, trainer in PAIRS)
    if off:
        said.put("adapter.dropout", 0.0, *there(said, "disable_dropout"))
        left_over(said, "disable_dropout is true: TRL sets every dropout to 0", "lora_dropout")
        return
    if said.has("disable_dropout"):
        said.carry("disable_dropout", "lora_dropout holds; the model's own dropout is always off")
    if trainer in POLICY and share:
        if said.has("lora_dropout"):
            why = "would train another model than the one that answers"
            said.refuse("lora_dropout", f"of {share:g} {why}", "set lora_dropout=0")
        said.note(f"TRL's lora_dropout of {share:g} is not taken: what answers would be another than what is trained")
        share = 0.0
    said.put("adapter.dropout", share, *there(said, "lora_dropout"))


def _targets(said: Said) -> None:
    names = said.items("lora_target_modules", str)
    if not names:
        said.put("adapter.targets", _LIKE_LLAMA)
        said.note(
            "lora_target_modules is not given: q_proj and v_proj are taken, as PEFT does for models like Llama; "
            "of others name the layers (gpt2: c_attn; gpt_neox, falcon, bloom: query_key_value; phi: fc1, fc2 too)"
        )
        return
    if len(names) == 1 and re.search(r"[\\*+?()|\[\]^$]", names[0]):
        names = [f"re:{names[0]}"]
    said.put("adapter.targets", names[0] if len(names) == 1 else names, "lora_target_modules")
