"""Of an Axolotl file: which chat template, by name or written out."""

from __future__ import annotations

from tunesmith.dialects.base import Said, left_over

OWN = "tokenizer_default"
"""The tokenizer's own chat template, whatever else the file says."""
TEMPLATES = {
    **{"chatml": "chatml", "llama3": "llama3", "gemma": "gemma", "phi_3": "phi3", "alpaca": "alpaca"},
    **{"mistral_v1": "mistral", "inst": "mistral", "phi_35": "phi3", "vicuna": "vicuna", "zephyr": "zephyr"},
}
FAMILIES = (
    *("aya", "cohere", "command_a", "deepseek", "exaone", "falcon_h1", "gemma3", "gemma4", "jamba", "llama3_2"),
    *("llama4", "llava", "mistral_v", "nemotron_h", "phi_4", "pixtral", "qwen"),
)
"""Beginnings of names of templates that copy what these models' tokenizers bring."""
_FALLBACK = "tokenizer_default_fallback_"


def template(said: Said, worded: str | None) -> None:
    """`worded`: the template that the rows' type brings; then the file's own words nothing."""
    name, text = said.take("chat_template", str), said.take("chat_template_jinja", str)
    if worded is not None:
        if worded != OWN:
            said.put("model.template", worded)
            source = f"{said.where(('datasets', 0, 'type'))} (datasets[0].type)"
            said.ledger.settings[("model", "template")] = (worded, source)
        for key in ("chat_template", "chat_template_jinja"):
            said.idle(key, "the type of the rows words them, or asks for the tokenizer's own")
    elif text is not None and name in (None, "jinja"):
        said.put("model.template", text, "chat_template_jinja")
    elif name == "jinja":
        said.refuse("chat_template", "is jinja, and chat_template_jinja is not there", "give chat_template_jinja")
    elif name is not None and (ours := named(said, name)) not in (None, OWN):
        said.put("model.template", ours, "chat_template")
    if worded is None and name not in (None, "jinja"):
        left_over(said, f"chat_template is {name}, and not jinja", "chat_template_jinja")


def named(said: Said, name: str) -> str | None:
    """Our template for a name of Axolotl's, or OWN where it is the tokenizer's; None: it is refused."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.startswith(_FALLBACK):
        other = name.removeprefix(_FALLBACK)
        said.carry("chat_template", "the tokenizer's own chat template")
        said.note(
            f"{name}: the tokenizer's own chat template is taken; where it has none the run says so, and "
            f"chat_template={other} is to be set"
        )
    elif name.startswith(FAMILIES):
        said.carry("chat_template", "the tokenizer's own chat template, which it copies")
        said.note(
            f"{name}: the tokenizer's own chat template is taken; a model without one needs another name "
            "(llama3, chatml …)"
        )
    elif name != OWN:
        expected = ", ".join([OWN, "jinja", *TEMPLATES, *(f"{family} …" for family in FAMILIES)])
        fix = "give the template itself: chat_template: jinja, chat_template_jinja: …"
        said.refuse("chat_template", f"is {name}, which is not among those here", fix, expected=expected)
        return None
    return OWN
