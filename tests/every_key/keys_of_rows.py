"""The keys of the model, data and output sections: another value of each, and where it shows."""

from __future__ import annotations

from observed import Case, card, first, reported, rows, rows_by_a_cached_model, rows_of_the_hub, where
from observed import order as visited

CHAT = {"data.train": "@/chat.jsonl"}
WORDED = {"data.format": {"prompt": "{{ prompt }}", "answer": "{{ completion }}"}}
LABELLED = {
    "objective.kind": "classify",
    "data.train": "@/texts.jsonl",
    "data.format": {"text": "{{ text }}", "label": "{{ label }}"},
}
PAIRED = {
    "objective.kind": "preference",
    "data.train": "@/pairs.jsonl",
    "data.format": {"prompt": "{{ prompt }}", "chosen": "{{ chosen }}", "rejected": "{{ rejected }}"},
}
HUB = {"data.train": "owner/rows", "data.limit": 8}
SHARED = {"output.report_to": ["wandb"]}

MODEL = {
    "model.name": Case("@/other", first),
    "model.revision": Case("older", rows_by_a_cached_model, {"model.name": "owner/tiny"}),
    "model.dtype": Case("bfloat16", first),
    "model.storage": Case("nf4", first, needs="bitsandbytes"),
    "model.device": Case("cuda:99", rows),
    "model.template": Case("alpaca", rows),
    "model.add_tokens": Case(["what"], rows),
    "model.special_tokens": Case({"eos": "<|end|>"}, rows, {"data.train": "@/plain.jsonl"}),
    "model.architecture": Case("MistralForCausalLM", rows),
    "model.tokenizer_class": Case("BertTokenizer", rows),
    "model.adapter": Case("@/adapter", first),
}

DATA = {
    "data.train": Case("@/more.jsonl", rows),
    "data.split": Case("test", rows, {"data.train": "@/splits"}),
    "data.subset": Case("small", rows_of_the_hub, HUB),
    "data.format": Case({"prompt": "Say: {{ prompt }}", "answer": "{{ completion }}"}, rows),
    "data.columns": Case({"completion": "better"}, rows),
    "data.message_keys": Case({"content": "words"}, rows, CHAT),
    "data.roles": Case({"human": "system"}, rows, CHAT),
    "data.learn": Case("everything", rows),
    "data.learn_ends": Case("none", rows),
    "data.held_out": Case(4, rows),
    "data.max_length": Case(24, rows),
    "data.overlong": Case("truncate", rows, {"data.train": "@/lengths.jsonl", "data.max_length": 24}),
    "data.system_turn": Case("into-user", rows, CHAT),
    "data.limit": Case(7, rows),
    "data.shuffle": Case(False, visited),
    "data.group_by": Case("half", visited),
}

SOURCES = {
    "data.train[].path": Case("@/splits", rows),
    "data.train[].split": Case("test", rows, {"data.train[].path": "@/splits"}),
    "data.train[].subset": Case("small", rows_of_the_hub, {"data.train[].path": "owner/rows", "data.limit": 8}),
    "data.train[].format": Case({"prompt": "Say: {{ prompt }}", "answer": "{{ completion }}"}, rows),
    "data.train[].columns": Case({"completion": "better"}, rows),
    "data.train[].message_keys": Case({"content": "words"}, rows, {"data.train[].path": "@/chat.jsonl"}),
    "data.train[].roles": Case({"human": "system"}, rows, {"data.train[].path": "@/chat.jsonl"}),
    "data.train[].limit": Case(7, rows),
    "data.train[].template": Case("alpaca", rows),
    "data.train[].weight": Case(2.0, rows),
}

FORMATS = {
    "data.format.prompt": Case("Say: {{ prompt }}", rows, WORDED),
    "data.format.text": Case("Mail: {{ text }}", rows, LABELLED),
    "data.format.label": Case("no {{ label }}", rows, LABELLED),
    "data.format.answer": Case("{{ completion }}!", rows, WORDED),
    "data.format.chosen": Case("{{ chosen }}!", rows, PAIRED),
    "data.format.rejected": Case("{{ rejected }}!", rows, PAIRED),
    "data.format.system": Case("Be short.", rows, WORDED),
}

HELD_OUT = {
    "data.held_out.share": Case(0.5, rows, {"data.held_out": {"share": 0.2}}),
    "data.held_out.count": Case(4, rows, {"data.held_out": {"count": 2}}),
    "data.held_out.file": Case("@/splits:test", rows, {"data.held_out": {"file": "@/more.jsonl"}}),
    "data.held_out.key": Case("third", rows, {"data.held_out": {"key": "half"}}),
}

OUTPUT = {
    "output.folder": Case("@/elsewhere", where),
    "output.name": Case("mine", reported, SHARED),
    "output.report_to": Case(["wandb"], reported),
    "output.project": Case("team/ours", reported, SHARED),
    "output.licence": Case("cc-by-4.0", card),
}

CASES = {**MODEL, **DATA, **SOURCES, **FORMATS, **HELD_OUT, **OUTPUT}
