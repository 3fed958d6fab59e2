"""Of an Axolotl file: the model, its storage, its tokens and its chat template."""

from __future__ import annotations

from tunesmith.data.templating.templates import NAMED
from tunesmith.dialects.base import Said, left_over, there

_START, _END = NAMED["chatml"].tokens


def model(said: Said) -> None:
    for key, setting in (
        ("model_revision", "model.revision"),
        ("revision_of_model", "model.revision"),
        ("tokenizer_type", "model.tokenizer_class"),
    ):
        if said.has(key):
            said.put(setting, said.take(key, str), key)
    for key in ("model_type", "type_of_model"):
        if said.has(key):
            _architecture(said, key)
    for key in ("base_model_config", "tokenizer_config"):
        if said.has(key) and said.raw(key) == said.raw("base_model"):
            said.idle(key, "it is base_model's own")
    if str(said.raw("tokenizer_legacy")).lower() in ("false", "no", "off"):
        fix = "set legacy to false in the model's tokenizer_config.json, and take it out"
        said.refuse("tokenizer_legacy", "is false, which can change token ids: a tokenizer is read as it is", fix)
    in8, in4 = said.take("load_in_8bit", bool, False), said.take("load_in_4bit", bool, False)
    is_gptq, adapter = said.take("gptq", bool, False), said.take("adapter", str)
    if is_gptq:
        said.put("model.storage", "auto", "gptq")
        left_over(said, "the checkpoint is in few bits already", "load_in_8bit", "load_in_4bit")
    elif in8 and in4:
        said.refuse("load_in_8bit", "stands beside load_in_4bit", "take one of them out")
    elif in8:
        said.put("model.storage", "int8", "load_in_8bit")
    elif in4:
        said.put("model.storage", "nf4-double", "load_in_4bit")
    if adapter == "qlora" and is_gptq:
        said.refuse("adapter", "is qlora, and the checkpoint is GPTQ's", "set adapter=lora")
    elif adapter == "qlora" and not in4:
        said.refuse("adapter", "is qlora, and load_in_4bit is not true", "set load_in_4bit=true, or adapter=lora")
    if adapter is None and (in8 or in4):
        said.refuse("adapter", "is missing: a base in few bits is not trained in full", "set adapter=lora")
    _dtype(said)
    added = said.items("tokens", str)
    said.raw("special_tokens")
    special = said.within("special_tokens")
    more = special.items("additional_special_tokens", str)
    expected = {name: special.take(f"{name}_token", str) for name in ("bos", "eos", "unk")}
    given = {name: token for name, token in expected.items() if token}
    if given.get("eos") == _END and _START in added and _END not in added:
        more = [_END, *more]
        said.note(f"{_END} is added too: tokens adds {_START}, its other half")
    if added:
        said.put("model.add_tokens", [*added, *more], "tokens")
    if more:
        special.put("model.add_tokens", [*added, *more], *there(special, "additional_special_tokens"))
    if given:
        special.put("model.special_tokens", given, *(f"{name}_token" for name in given))


def _architecture(said: Said, key: str) -> None:
    kind = said.take(key, str, "")
    if kind.endswith("ForSequenceClassification") and said.take("reward_model", bool, False):
        said.put("model.architecture", kind, key)
        said.carry(key, "a reward model ends in a head")
    elif kind.endswith(("ForCausalLM", "LMHeadModel")):
        said.put("model.architecture", kind, key)
    else:
        said.refuse(key, f"is {kind}: causal language models and reward models are trained here", "leave it out")


def _dtype(said: Said) -> None:
    wide = [key for key in ("float32", "fp32") if said.take(key, bool, False)]
    half = [key for key in ("fp16", "float16") if said.take(key, bool, False)]
    brain = said.raw("bf16")
    on = brain == "full" or (brain not in (None, "auto") and said.take("bf16", bool, False))
    on = on or said.take("bfloat16", bool, False)
    if half and (on or brain == "auto"):
        fix = "take one of them out: bf16: true where the device has it, else fp16: true"
        said.refuse(half[0], f"stands beside {'bf16' if said.has('bf16') else 'bfloat16'}", fix)
    elif on:
        said.put("model.dtype", "bfloat16", *(key for key in ("bf16", "bfloat16") if said.has(key)))
        left_over(said, "the numbers of 16 bits go before it", *wide)
    elif half:
        said.put("model.dtype", "float16", *half)
        left_over(said, "the numbers of 16 bits go before it", *wide)
    elif wide:
        said.put("model.dtype", "float32", *wide)
    elif brain == "auto":
        said.put("model.dtype", "auto", "bf16")
    elif brain is False or str(brain).lower() in ("false", "no", "off"):
        said.put("model.dtype", "float32", "bf16")
