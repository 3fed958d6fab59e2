"""Of an Axolotl file: the model, its storage, its tokens and its chat template."""

from __future__ import annotations

from tunesmith.dialects.axolotl.data import OWN
from tunesmith.dialects.base import Said


def model(said: Said) -> None:
    for key, setting in (("revision_of_model", "model.revision"), ("tokenizer_type", "model.tokenizer_class")):
        if said.has(key):
            said.put(setting, said.take(key, str), key)
    kind = said.take("model_type", str)
    if kind is not None:
        if kind == "AutoModelForCausalLM" or kind.endswith(("ForCausalLM", "LMHeadModel")):
            said.put("model.architecture", kind, "model_type")
        else:
            said.refuse("model_type", f"is {kind}: causal language models are trained here", "leave it out")
    in8, in4 = said.take("load_in_8bit", bool, False), said.take("load_in_4bit", bool, False)
    is_gptq, adapter = said.take("gptq", bool, False), said.take("adapter", str)
    if in8 and in4:
        said.refuse("load_in_8bit", "stands beside load_in_4bit", "take one of them out")
    elif in8:
        said.put("model.storage", "int8", "load_in_8bit")
    elif in4:
        said.put("model.storage", "nf4-double", "load_in_4bit")
    elif is_gptq:
        said.put("model.storage", "auto", "gptq")
    if adapter == "qlora" and not in4:
        said.refuse("adapter", "is qlora, and load_in_4bit is not true", "set load_in_4bit=true, or adapter=lora")
    if adapter is None and (in8 or in4):
        said.refuse("adapter", "is missing: a base in few bits is not trained in full", "set adapter=lora")
    _dtype(said)
    added = said.items("tokens", str)
    said.raw("special_tokens")
    special = said.within("special_tokens")
    more = special.items("additional_special_tokens", str)
    if added:
        said.put("model.add_tokens", [*added, *more], "tokens")
    if more:
        special.put("model.add_tokens", [*added, *more], "additional_special_tokens")
    expected = {name: special.take(f"{name}_token", str) for name in ("bos", "eos", "unk")}
    given = {name: token for name, token in expected.items() if token}
    if given:
        special.put("model.special_tokens", given, *(f"{name}_token" for name in given))


def _dtype(said: Said) -> None:
    wide = [key for key in ("float32", "fp32") if said.take(key, bool, False)]
    half = [key for key in ("fp16", "float16") if said.take(key, bool, False)]
    brain = said.raw("bf16")
    on = brain == "full" or (brain not in (None, "auto") and said.take("bf16", bool, False))
    on = on or said.take("bfloat16", bool, False)
    if on:
        said.put("model.dtype", "bfloat16", *(key for key in ("bf16", "bfloat16") if said.has(key)))
    elif half:
        said.put("model.dtype", "float16", *half)
    elif wide:
        said.put("model.dtype", "float32", *wide)
    elif brain == "auto":
        said.put("model.dtype", "auto", "bf16")
    elif brain is False or str(brain).lower() in ("false", "no", "off"):
        said.put("model.dtype", "float32", "bf16")


TEMPLATES = {
    **{"chatml": "chatml", "llama3": "llama3", "gemma": "gemma", "phi_3": "phi3", "alpaca": "alpaca"},
    **{"mistral_v1": "mistral", "inst": "mistral", "phi_35": "phi3", "vicuna": "vicuna", "zephyr": "zephyr"},
}


def template(said: Said, worded: str | None) -> None:
    """`worded`: the template that the rows' type brings; then the file's own words nothing."""
    name, text = said.take("chat_template", str), said.take("chat_template_jinja", str)
    if worded is not None:
        if worded != OWN:
            said.put("model.template", worded)
        for key in ("chat_template", "chat_template_jinja"):
            said.idle(key, "the type of the rows words them, or asks for the tokenizer's own")
        return
    if text is not None and name in (None, "jinja"):
        said.put("model.template", text, "chat_template_jinja")
    elif name == "jinja":
        said.refuse("chat_template", "is jinja, and chat_template_jinja is not there", "give chat_template_jinja")
    elif name in TEMPLATES:
        said.put("model.template", TEMPLATES[name], "chat_template")
    elif name is not None and name.startswith("tokenizer_default_fallback_"):
        other = name.removeprefix("tokenizer_default_fallback_")
        said.refuse(
            "chat_template",
            "leaves it to the tokenizer which template is taken",
            f"set chat_template=tokenizer_default where the tokenizer has one, else chat_template={other}",
        )
    elif name not in (None, "tokenizer_default"):
        expected = ", ".join(["tokenizer_default", "jinja", *TEMPLATES])
        fix = "give the template itself: chat_template: jinja, chat_template_jinja: …"
        said.refuse("chat_template", f"is {name}, which is not among those here", fix, expected=expected)
