"""The `model` section of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from tunesmith.settings import Contradiction, Settings

SpecialToken = Literal["bos", "eos", "unk", "pad"]
MADE = ("nf4", "nf4-double", "int8")
"""Storages that are made while a plain checkpoint is read."""


class ModelSettings(Settings):
    name: Annotated[str, Field(min_length=1)]
    """Folder or hub id of a causal language model; a `.gguf` file is dequantised once into the cache."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Numbers in which the frozen weights are held and multiplied. auto: on a processor the faster of bfloat16 and
    float32, measured once and remembered; on a GPU bfloat16 where it has it, else float16."""
    storage: Literal["auto", "plain", "nf4", "nf4-double", "int8"] = "auto"
    """How the matrices of the blocks are held: plain, in dtype; nf4, nf4-double, int8: quantised by bitsandbytes while
    reading, and made dense in dtype for each product. auto: as the files hold them (GPTQ and bitsandbytes are read)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    template: str | None = None
    """Chat template for a base model without one (or to replace its own): a name (chatml, llama3, alpaca, plain …),
    a file, or inline Jinja."""
    add_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary. Only their rows are trained, unless embeddings are trained in full."""
    special_tokens: dict[SpecialToken, str] = {}
    """What the tokenizer's bos, eos, unk and pad are to be: {eos: "</s>"}. Each is a token that it has, or one of
    add_tokens."""
    architecture: str | None = None
    """Class that the model has to be of, as its config.json names it (LlamaForCausalLM); any head of it will do."""
    tokenizer_class: str | None = None
    """Class of transformers that the model's tokenizer has to be of (LlamaTokenizer, with or without Fast)."""
    adapter: str | None = None
    """An adapter folder (ours or PEFT's) to go on training from."""

    @property
    def bare(self) -> Self:
        """The same model with the words of its own files alone."""
        return self.model_copy(update={"template": None, "add_tokens": (), "special_tokens": {}})

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise Contradiction("device", f"is {device!r}", "give auto, cpu, mps, cuda or cuda:0, cuda:1 …")
        return device

    @field_validator("add_tokens")
    @classmethod
    def _distinct_tokens(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if "" in tokens:
            raise Contradiction("add_tokens", "holds an empty token")
        if len(set(tokens)) != len(tokens):
            raise Contradiction("add_tokens", "names a token twice")
        return tokens
