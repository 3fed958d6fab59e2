"""Of a LitGPT file: the rows, the words around their questions, and which of their tokens are learned."""

from __future__ import annotations

import os
import re

from tunesmith.dialects.axolotl.types import INSTRUCT, Rows, instruct
from tunesmith.dialects.base import Said, left_over, there
from tunesmith.notation import write_inline

ENDLESS = 1 << 20
"""For no limit of length: the model's own is kept in any case."""

_SETS: dict[str, tuple[str, str, float]] = {
    "Alpaca": ("yahma/alpaca-cleaned", "data/alpaca/alpaca_data_cleaned_archive.json", 0.03865),
    "AlpacaGPT4": ("vicgalle/alpaca-gpt4", "data/alpacagpt4/alpacagpt4_data_cleaned_archive.json", 0.03847),
    "Alpaca2k": ("mhenrichsen/alpaca_2k_test", "", 0.05),
    "Deita": ("HuggingFaceH4/deita-10k-v0-sft", "", 0.0),
    "LIMA": ("GAIR/lima", "", 0.1),
}
"""By data module: the rows' id on the hub, the file that LitGPT downloads in its place, and the share held out."""
_FIRST_TURNS = {
    "Deita": ("messages[0].content", "messages[1].content"),
    "LIMA": ("conversations[0]", "conversations[1]"),
}
"""Of rows of conversations, where the question and the answer stand."""

_HUMAN, _MODEL = "<|im_start|>user\n{instruction}<|im_end|>\n", "<|im_start|>assistant\n"
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
STYLES: dict[str, str] = {
    "default": "{instruction}",
    "platypus": "### Instruction:\n\n{instruction}\n\n### Response:\n",
    "stablecode": "###Instruction\n{instruction}###Response\n",
    "stablelmzephyr": "<|user|>\n{instruction}<|endoftext|>\n<|assistant|>\n",
    "falcon": "{instruction}\nAnswer:",
    "codellama": "[INST] {instruction} [/INST]",
    "phi1": "{instruction}\n\nAnswer:",
    "phi2": "Instruct: {instruction}\nOutput:",
    "phi3": "<|system|>\nYou are a helpful assistant.<|end|>\n<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>user<|im_sep|>{instruction}<|im_end|><|im_start|>assistant<|im_sep|>",
    "phi4mini": "<|user|>{instruction}<|end|><|assistant|>",
    "tinyllama": "<|system|>\nYou are a friendly chatbot who always gives helpful, detailed, and polite answers.</s>\n"
    "<|user|>\n{instruction}</s>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model\n",
    "olmo": "<|endoftext|><|user|>\n{instruction}\n<|assistant|>\n",
    "qwen3": _HUMAN + _MODEL,
    "qwen25": f"<|im_start|>system\n{_QWEN}<|im_end|>\n{_HUMAN}{_MODEL}",
    "smollm2": f"<|im_start|>system\n{_SMOL}<|im_end|>\n{_HUMAN}{_MODEL}",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}
"""Prompt styles beside alpaca and flan, by their names' letters and digits: what stands before an answer."""


def rows(said: Said) -> None:
    given = said.values.get("data")
    data = said.within("data")
    is_named = isinstance(given, str) and given != ""
    path = said.take("data", str, "Alpaca") if is_named else data.take("class_path", str, "Alpaca")
    owner, key = (said, "data") if is_named else (data, "class_path")
    name, args = path.rpartition(".")[2], data.within("init_args")
    if name == "JSON":
        share = _json(owner, key, args)
    elif name in _SETS:
        share = _known_set(owner, key, name, args)
    else:
        fix = "give the rows as JSON: data: {class_path: JSON, init_args: {json_path: rows.json}}"
        if name in ("TextFiles", "LitData"):
            fix = "write a recipe of ours: data.train: FOLDER, data.format: text"
        owner.refuse(key, f"is {path}, which is not read here", fix, expected=", ".join(("JSON", *_SETS)))
        share = 0.0
    if args.has("json_path") and name != "JSON":
        args.refuse("json_path", f"stands beside {name}, which has rows of its own", "set data.class_path=JSON")
    left_over(args, f"{name} does not have it", "repo_id", "download_dir", "file_name")
    _worded(args, name)
    if share is not None and args.take("val_split_fraction", float, share) > 0:
        given_share = there(args, "val_split_fraction")
        args.put("data.held_out", args.take("val_split_fraction", float, share), *given_share)
    left_over(args, "rows of their own are held out" if share is None else "nothing is", "val_split_fraction")
    masked = args.take("mask_prompt", bool, False)
    args.put("data.learn", "answers" if masked else "everything", *there(args, "mask_prompt"))
    train = said.within("train")
    limit = train.take("max_seq_length", int)
    train.put("data.max_length", ENDLESS if limit is None else limit, *there(train, "max_seq_length"))
    said.put("data.overlong", "truncate")


def _json(owner: Said, key: str, args: Said) -> float | None:
    """A file, of which a part is held out; or a folder with train and val, of which none is: gives None."""
    path = args.take("json_path", str)
    if path is None:
        expected = "a file of JSON, or a folder with train.json and val.json"
        args.refuse("json_path", "is missing", "name the rows: json_path: rows.json", expected=expected)
        return 0.0
    owner.carry(key, "rows of JSON")
    if path.endswith((".json", ".jsonl")):
        args.put("data.train", path, "json_path")
        return 0.05
    if args.has("val_split_fraction"):
        args.refuse("val_split_fraction", "stands beside a folder, which holds val.json", "take it out")
    train, held_out = (_of_folder(path, part) for part in ("train", "val"))
    args.put("data.train", train, "json_path")
    args.put("data.held_out", held_out, "json_path")
    return None


def _of_folder(folder: str, part: str) -> str:
    found = [os.path.join(folder, part + suffix) for suffix in (".json", ".jsonl")]
    return next((path for path in found if os.path.isfile(path)), found[0])


def _known_set(owner: Said, key: str, name: str, args: Said) -> float | None:
    """One of LitGPT's own data sets: the file that it downloaded, where it is there, else the same rows on the hub."""
    hub, file, share = _SETS[name]
    hub = args.take("repo_id", str, hub)
    folder, own = os.path.split(file)
    downloaded = os.path.join(args.take("download_dir", str, folder), args.take("file_name", str, own)) if file else ""
    found = downloaded if downloaded and os.path.isfile(downloaded) else hub
    where = there(args, "repo_id") if found == hub else (*there(args, "download_dir"), *there(args, "file_name"))
    args.put("data.train", found, *where)
    owner.put("data.train", found, *there(owner, key))
    left_over(args, f"the rows are {found} of the hub", "download_dir", "file_name", "repo_id")
    if found != downloaded:
        said = f"{name}: the rows are {found} of the hub"
        args.note(f"{said}; LitGPT's own file: data.train={downloaded}" if downloaded else said)
    if name != "Deita":
        return share
    args.put("data.split", "train_sft")
    args.put("data.held_out", f"{found}:test_sft")
    return None


def _worded(args: Said, name: str) -> None:
    """The words around a question, LitGPT's prompt style: an answer ends in EOS with each of them."""
    given = args.raw("prompt_style")
    style = given.get("class_path") if isinstance(given, dict) and not given.get("init_args") else given
    called = "alpaca" if given is None else re.sub(r"[^a-z0-9]", "", str(style).removeprefix("litgpt.prompts.").lower())
    question, answer = _FIRST_TURNS.get(name, ("instruction", "output"))
    plain = {"prompt": f"{{{{ {question} }}}}", "answer": f"{{{{ {answer} }}}}"}
    if called == "alpaca":
        rows = INSTRUCT["alpaca"] if name not in _FIRST_TURNS else Rows(plain, "alpaca")
    elif called == "flan":
        rows = Rows(plain, "alpaca")
    elif called in STYLES:
        words = STYLES[called]
        rows = instruct(words, words, instruction=question, input=None, output=f"{{{{ {answer} }}}}")
    else:
        fix = "take alpaca, or word the rows yourself: model.template and data.format in our words"
        args.refuse(
            "prompt_style", f"cannot be {write_inline(given)}", fix, expected=", ".join(("alpaca", "flan", *STYLES))
        )
        return
    keys = there(args, "prompt_style")
    args.put("model.template", rows.template, *keys)
    args.put("data.format", rows.format, *keys)
