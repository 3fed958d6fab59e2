"""Tokenizers of every family, for the mask's oracle, and where in a text each of their tokens stands."""

from __future__ import annotations

from collections.abc import Callable

import tiny_tokenizers as tiny
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# As GPT-2's: which letter stands for which byte.
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
BYTES = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"]
MARKS += ["<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SPECIAL = ["<unk>", "<s>", "</s>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OVER_BORDERS = ["\nthe\n\nthe .\n\n. What\n", "user\nwhat assistant\nthe system\nis", "a b c: the. the: \n the"]
CORPUS = [*tiny.CORPUS, *OVER_BORDERS] * 3


def _wrapped(tokenizer: Tokenizer, *, adds_bos: bool = False, pad: str | None = None) -> PreTrainedTokenizerFast:
    if adds_bos:
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        add = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos])
        before = tokenizer.post_processor
        tokenizer.post_processor = add if before is None else processors.Sequence([before, add])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad or "<unk>"
    )


def _bytes(split: Callable[[], pre_tokenizers.PreTokenizer], *, post: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split()
    tokenizer.decoder = decoders.ByteLevel()
    if post:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIAL + MARKS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _llama3() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _unparted() -> pre_tokenizers.PreTokenizer:
    """Tokens may hold anything, white space and what follows it too: many reach over a border."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _sentence_piece() -> Tokenizer:
    """As Gemma's: a mark for spaces, before the first piece alone, and bytes for the unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + MARKS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    """As T5's: NFKC before, which makes letters into others and fewer or more of them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL + MARKS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    """As BERT's: lower case, white space dropped, whole words unknown."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL + MARKS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _swallowing() -> PreTrainedTokenizerFast:
    """As Phi 3's: its marks take the white space behind them."""
    wrapped = tiny.byte_level(adds_bos=True)
    wrapped.add_tokens([AddedToken(mark, special=True, rstrip=True, normalized=False) for mark in MARKS])
    return wrapped


def _word_mark(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    wrapped = tiny.word_mark(adds_bos=adds_bos)
    wrapped.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return wrapped


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "GPT-2": lambda: _wrapped(_bytes(_gpt2)),
    "GPT-2, trimmed offsets, pad is eos": lambda: _wrapped(_bytes(_gpt2, post=True), adds_bos=True, pad="</s>"),
    "Llama 3": lambda: _wrapped(_bytes(_llama3, post=True), adds_bos=True, pad="<|eot_id|>"),
    "tokens over any border": lambda: _wrapped(_bytes(_unparted)),
    "Phi 3": _swallowing,
    "Llama 2": lambda: _word_mark(adds_bos=True),
    "Llama 2 without BOS": _word_mark,
    "SentencePiece": lambda: _wrapped(_sentence_piece(), adds_bos=True),
    "Unigram": lambda: _wrapped(_unigram(), pad="</s>"),
    "WordPiece": lambda: _wrapped(_word_piece()),
}


def placed(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of `text`, and the characters [start, end) of each. Bytes are counted, where tokens are made of them:
    what a byte-level tokenizer says itself is trimmed by some."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded.input_ids, encoded.offset_mapping
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return ids, offsets
    if any(token.rstrip for token in tokenizer.added_tokens_decoder.values()):
        return ids, offsets
    of_byte = [place for place, letter in enumerate(text) for _ in letter.encode()]
    added = tokenizer.added_tokens_decoder
    at, places = 0, []
    for number in ids:
        token = tokenizer.convert_ids_to_tokens(number)
        length = len(token.encode()) if number in added else len(token)
        places.append((of_byte[at], of_byte[at + length - 1] + 1))
        at += length
    assert at == len(of_byte)
    return ids, places
