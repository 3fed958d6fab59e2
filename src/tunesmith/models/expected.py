"""What a recipe expects of its model, held against the model's files before any weight is read.

Architecture      a class of any head of the same family: LlamaForSequenceClassification of a Llama
Tokenizer class   the class that the files name or transformers makes of them, or one that it inherits from. Of a
                  tokenizer of no class of its own, what counts is the kind of its pieces
Special tokens    each is one token of the vocabulary, and becomes the tokenizer's own
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CodeLlamaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from tunesmith.errors import ModelError, TunesmithError, together
from tunesmith.models.settings import SpecialToken

_FAMILIES = ({LlamaTokenizer, CodeLlamaTokenizer},)
"""Tokenizers that cut text into the same pieces, though neither inherits from the other."""


def refuse_other_architecture(wanted: str, config: Any, name: str) -> None:
    """Refuse a model that is not of the family of `wanted`; an Auto class takes any."""
    own: list[str] = getattr(config, "architectures", None) or []
    if wanted in own or (wanted.startswith("AutoModel") and hasattr(transformers, wanted)):
        return
    known = _model_types(wanted)
    if known & {config.model_type, config.get_text_config().model_type}:
        return
    if not known and _stem(wanted) in map(_stem, own) and not any(map(_model_types, own)):
        return
    named = ", ".join(own)
    raise ModelError(
        f"{name} is a model of another architecture",
        where="model.architecture",
        found=named or f"a model of the type {config.model_type}",
        expected=wanted,
        fix="leave model.architecture out" + (f", or name the model's own: {named}" if named else ""),
    )


def _model_types(name: str) -> set[str]:
    """The types of models for which transformers has a class of this name."""
    tables = [getattr(modeling_auto, table) for table in dir(modeling_auto) if table.endswith("_MAPPING_NAMES")]
    pairs = [(kind, names) for table in tables for kind, names in table.items()]
    return {kind for kind, names in pairs if name in ((names,) if isinstance(names, str) else names)}


def _stem(name: str) -> str:
    """InternLM2 of InternLM2ForCausalLM, for classes that come with a model's own code."""
    return name.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model")


def refuse_other_tokenizer(wanted: str, tokenizer: PreTrainedTokenizerBase, declared: str | None, name: str) -> None:
    """Refuse a tokenizer that is not of the class `wanted`; `declared` is the class that its files name."""
    own = type(tokenizer)
    there = declared or own.__name__
    if wanted == "AutoTokenizer" or _plain(wanted) in {_plain(own.__name__), _plain(there)}:
        return
    kind = tokenizer_class_from_name(wanted) if _plain(wanted).endswith(("Tokenizer", "Backend")) else None
    if kind is None:
        known = [one for one in dir(transformers) if one.removesuffix("Fast").endswith("Tokenizer")]
        nearest = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
        raise ModelError(
            f"transformers has no tokenizer {wanted}",
            where="model.tokenizer_class",
            fix=f"leave it out, or name that of the model: {there}",
            notes={"did you mean": nearest[0]} if nearest else {},
        )
    if isinstance(tokenizer, kind) or any({own, kind} <= family for family in _FAMILIES):
        return
    pieces, theirs = _pieces(tokenizer), _pieces_of_class(kind)
    if own is PreTrainedTokenizerFast and pieces == theirs:
        return
    raise ModelError(
        f"{name} has a tokenizer of another class",
        where="model.tokenizer_class",
        found=f"{there}, of {pieces or 'pieces of its own'}",
        expected=f"{wanted}, of {theirs or 'pieces of its own'}",
        fix=f"leave model.tokenizer_class out, or name the one that is there: {there}",
    )


def _plain(name: str) -> str:
    return name.removesuffix("Fast")


def _pieces_of_class(kind: Any) -> str | None:
    """Of an empty tokenizer of the class, where one can be built."""
    try:
        return _pieces(kind())
    except Exception:
        return None  # written in Python, or of a package that is not here


def _pieces(tokenizer: Any) -> str | None:
    """Into which kind of pieces a fast tokenizer cuts text; None of one that is not fast."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = type(backend.model).__name__
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    written = [json.loads(part.__getstate__()) for part in parts if part is not None]
    if "ByteLevel" in _kinds(written):
        return f"byte-level {model}"
    if (
        model == "Unigram"
        or getattr(backend.model, "byte_fallback", False)
        or "▁" in json.dumps(written, ensure_ascii=False)
    ):
        return f"SentencePiece {model}"
    return model


def _kinds(part: Any) -> set[str]:
    """The types that stand anywhere in a part of a tokenizer as its JSON has it."""
    if isinstance(part, list):
        return set().union(*map(_kinds, part))
    if isinstance(part, dict):
        return {part.get("type", "")} | _kinds([inner for inner in part.values() if isinstance(inner, list | dict)])
    return set()


def set_special_tokens(wanted: Mapping[SpecialToken, str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Make these tokens the tokenizer's own ("eos": "</s>"); every one that cannot be is told."""
    vocabulary = tokenizer.get_vocab()
    errors: list[TunesmithError] = []
    for name, token in wanted.items():
        own = own_special_token(tokenizer, name)
        if token not in vocabulary:
            its = f"it has no {name}_token" if own is None else f"its {name}_token is {own!r}"
            errors.append(
                ModelError(
                    f"the tokenizer has no token {token!r}",
                    where=f"model.special_tokens.{name}",
                    fix=f"leave special_tokens.{name} out, name one of its own ({its}), "
                    "or add it with model.add_tokens",
                )
            )
        elif own is not None and own != token and _writes(tokenizer, name, own):
            place = "in front of" if name == "bos" else "behind"
            errors.append(
                ModelError(
                    f"the tokenizer itself puts its {name}_token {place} every text: {token!r} would stand beside it",
                    where=f"model.special_tokens.{name}",
                    found=own,
                    fix=f"leave special_tokens.{name} out, or set add_{name}_token: false in tokenizer_config.json",
                )
            )
    if errors:
        raise together(errors)
    for name, token in wanted.items():
        if own_special_token(tokenizer, name) != token:
            there = tokenizer.added_tokens_decoder.get(vocabulary[token], token)
            tokenizer.add_special_tokens({f"{name}_token": there})


def own_special_token(tokenizer: PreTrainedTokenizerBase, name: SpecialToken) -> str | None:
    """The tokenizer's "bos", "eos", "unk" or "pad" token."""
    token: str | None = tokenizer.special_tokens_map.get(f"{name}_token")
    return token


def _writes(tokenizer: PreTrainedTokenizerBase, name: SpecialToken, token: str) -> bool:
    """Whether the tokenizer itself puts its BOS in front of every text, or its EOS behind."""
    ids = tokenizer("a").input_ids
    place = {"bos": ids[:1], "eos": ids[-1:]}.get(name)
    return place == [tokenizer.convert_tokens_to_ids(token)]
