"""Loading a model (that ends in words, or in a classification head) and its tokenizer, with an error that says what to
do."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as hf_logging

from tunesmith import heap
from tunesmith.adapters.heads import ClassHead, drawn, say_in_config
from tunesmith.adapters.targets import anatomy
from tunesmith.data.reading.hub import hub_answers
from tunesmith.errors import MachineError, ModelError
from tunesmith.machine import cache_folder, cpu_flags, cpu_name
from tunesmith.models import attention, stored
from tunesmith.models.expected import (
    own_special_token,
    refuse_other_architecture,
    refuse_other_tokenizer,
    set_special_tokens,
)
from tunesmith.models.fuse import fuse
from tunesmith.models.settings import ModelSettings
from tunesmith.models.whole import refuse_partial, torn_apart, without_report
from tunesmith.quant.dense import weight_shape

_FROM_PAD = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer", "esm")
"""Models that number positions from behind the padding token's id on."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    dtype: torch.dtype
    added_token_ids: tuple[int, ...]


def pick_device(wanted: str) -> torch.device:
    if wanted != "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = torch.device(wanted)
        if not there[device.type]:
            raise MachineError(
                f"model.device is {wanted}, but this torch finds no {device.type} device",
                found=f"torch {torch.__version__}",
                fix="model.device=auto, or another build of torch (README, PyTorch); tunesmith doctor says more",
            )
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            found = f"{torch.cuda.device_count()} devices"
            raise MachineError(f"there is no {wanted}", found=found, fix="model.device=cuda, or a lower number")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def product_seconds(dtypes: Sequence[torch.dtype], repeats: int = 7) -> list[float]:
    """Best time of one [512, 576] x [576, 1536] product in each of `dtypes` on the CPU, taken in turn."""
    pairs = [(torch.randn(512, 576).to(dtype), torch.randn(1536, 576).to(dtype)) for dtype in dtypes]
    best = [float("inf")] * len(dtypes)
    for attempt in range(repeats + 1):
        for index, (x, weight) in enumerate(pairs):
            start = time.perf_counter()
            x @ weight.T
            if attempt:
                best[index] = min(best[index], time.perf_counter() - start)
    return best


def fastest_cpu_dtype() -> torch.dtype:
    """bf16 where this processor multiplies it clearly faster than fp32, else fp32.

    Measured once and remembered in the cache, so that a busy moment cannot change what a recipe means.
    """
    key = f"{cpu_name()}|{','.join(cpu_flags())}|torch {torch.__version__}"
    path = cache_folder() / "fastest-dtype.json"
    try:
        known: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        narrow, wide = product_seconds((torch.bfloat16, torch.float32))
        known[key] = "bfloat16" if narrow < 0.8 * wide else "float32"
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known, indent=1))
    return _DTYPES[known[key]]


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype asked for; for auto, the fastest that training is stable in on this device."""
    if wanted != "auto":
        if wanted not in _DTYPES:
            raise ModelError(f"there is no dtype {wanted}", expected=", ".join(("auto", *_DTYPES)))
        return _DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32 if device.type == "mps" else fastest_cpu_dtype()


def _fetch(what: str, name: str, call: Any) -> Any:
    """Run `call`, and turn what goes wrong into one clear sentence."""
    try:
        return call()
    except Exception as error:
        text, kinds = str(error), {type(e).__name__ for e in _chain(error)}
        if "trust_remote_code" in text or "custom code" in text:
            raise ModelError(
                f"{name} brings its own code, which is not run unless you say so",
                fix="read the code, then add --trust-remote-code to the command (a recipe cannot say it)",
            ) from error
        if "GatedRepoError" in kinds or "gated" in text.lower():
            raise ModelError(
                f"{name} is gated on the hub", fix="accept its terms on its page, then `hf auth login`"
            ) from error
        if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
            raise ModelError(f"the hub has no {what} {name} (or you may not see it)", fix="check the id") from error
        if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError | SafetensorError):
            first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
            raise ModelError(
                f"the {what} of {name} cannot be loaded",
                found=first[:300],
                fix="a folder with config.json, tokenizer files and .safetensors weights, or a hub id you can reach",
            ) from error
        raise


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _check_name(name: str, revision: str | None = None) -> None:
    """Refuse at once what is neither a folder here nor to be had from the hub: its client would try for a minute."""
    if Path(name).expanduser().exists():
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"there is no folder {name}", fix="check the path, or give a hub id like owner/name")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    if not hub_answers():
        from tunesmith.models.gguf import already_unpacked

        there = "".join(f"; a model that is here: model.name={folder}" for folder in already_unpacked())
        raise ModelError(
            f"{name} is not a folder here and not in the hub's cache, and the hub cannot be reached",
            fix=f"check the spelling, give a folder, or come back with a network{there}",
        )


def _offline_kwargs(name: str) -> dict[str, Any]:
    return {"local_files_only": True} if Path(name).expanduser().exists() else {}


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in an adapter's folder: it has a template or tokens that the base's has not."""
    return (folder / "tokenizer_config.json").is_file()


def load_tokenizer(
    settings: ModelSettings, *, trust_remote_code: bool = False, folder: Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer, with the tokens to add added and its special tokens set (the chat template is the data path's
    concern).

    `folder`: where a tokenizer of its own may lie, beside an adapter that was trained with one.
    """
    own = folder is not None and has_tokenizer(folder)
    name = str(folder) if own else _local(settings.name)
    _check_name(name, settings.revision)
    tokenizer = _fetch(
        "tokenizer",
        settings.name,
        lambda: AutoTokenizer.from_pretrained(
            name,
            revision=None if own else settings.revision,
            trust_remote_code=trust_remote_code,
            **_offline_kwargs(name),
        ),
    )
    if settings.tokenizer_class is not None and own:
        load_tokenizer(settings.bare, trust_remote_code=trust_remote_code)  # of that one something is expected
    elif settings.tokenizer_class is not None:
        declared = get_tokenizer_config(name, revision=settings.revision, **_offline_kwargs(name))
        refuse_other_tokenizer(settings.tokenizer_class, tokenizer, declared.get("tokenizer_class"), settings.name)
    if settings.add_tokens:
        tokenizer.add_tokens(list(settings.add_tokens), special_tokens=True)
    set_special_tokens(settings.special_tokens, tokenizer)
    return tokenizer


def has_other_special_tokens(settings: ModelSettings, *, trust_remote_code: bool = False) -> bool:
    """Whether those that the settings name are others than the model's own files have."""
    if not settings.special_tokens:
        return False
    bare = load_tokenizer(settings.bare, trust_remote_code=trust_remote_code)
    return any(own_special_token(bare, name) != token for name, token in settings.special_tokens.items())


def load_config(settings: ModelSettings, *, trust_remote_code: bool = False) -> Any:
    """The model's config alone: what can be checked before any weight is loaded, the device too."""
    pick_device(settings.device)
    name = _local(settings.name)
    _check_name(name, settings.revision)
    config = _fetch(
        "config",
        settings.name,
        lambda: AutoConfig.from_pretrained(
            name, revision=settings.revision, trust_remote_code=trust_remote_code, **_offline_kwargs(name)
        ),
    )
    if settings.architecture is not None:
        refuse_other_architecture(settings.architecture, config, settings.name)
    return config


def most_tokens(config: Any) -> int | None:
    """Longest text for a model that looks positions up in a table (GPT-2, OPT); None where it reckons them."""
    text = config.get_text_config()
    reckoned = getattr(text, "rope_parameters", None) or getattr(text, "alibi", False)
    most: int | None = None if reckoned else getattr(text, "max_position_embeddings", None)
    if most is not None and text.model_type in _FROM_PAD:
        most -= (text.pad_token_id or 0) + 1
    return most


def made_for(config: Any) -> int | None:
    """Longest text that a model with rotary positions was made for: it goes on beyond, but was not trained there."""
    text = config.get_text_config()
    rotary = bool(getattr(text, "rope_parameters", None)) and not getattr(text, "alibi", False)
    return getattr(text, "max_position_embeddings", None) if rotary else None


def stored_dtype(settings: ModelSettings, *, trust_remote_code: bool = False) -> str:
    """The dtype in which the model's files hold it, where they say so and it is one of ours; else auto."""
    stored = load_config(settings, trust_remote_code=trust_remote_code).get_text_config().dtype
    return next((name for name, dtype in _DTYPES.items() if dtype == stored), "auto")


def settle(
    settings: ModelSettings,
    config: Any,
    *,
    trust_remote_code: bool = False,
    ends_in_words: bool = True,
    is_read: bool = True,
) -> str:
    """The storage that the model's matrices will have; refused where it cannot be, before any weight is read.

    `is_read`: not where shapes alone are asked for, which need no package."""
    storage = stored.choose(settings.storage, config, settings.name)
    if is_read:
        stored.reading(copy.deepcopy(config), storage, torch.device("cpu"))  # a package that is missing shows here
    if storage != "plain" and stored.in_files(config, settings.name) is None:
        stored.refuse_without_matrices(storage, config, settings.name, trust_remote_code, ends_in_words)
    return storage


def without_weights(
    settings: ModelSettings, *, trust_remote_code: bool = False, head: ClassHead | None = None
) -> PreTrainedModel | None:
    """The model's modules as its config has them, on no device: what a name means in it is known before any weight is
    read. None where it cannot be built so."""
    config = copy.deepcopy(load_config(settings, trust_remote_code=trust_remote_code))
    auto: Any = AutoModelForCausalLM
    if head is not None:
        auto, config.num_labels = AutoModelForSequenceClassification, head.num_outputs
    for holder in (config, config.get_text_config()):
        vars(holder).pop("quantization_config", None)
    said = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
        return model
    except Exception:
        return None  # loading says what is wrong
    finally:
        hf_logging.set_verbosity(said)


def load_model(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    head: ClassHead | None = None,
    seed: int = 0,
    say: Callable[[str], object] = warnings.warn,
) -> Loaded:
    """The frozen model, ready to answer, on its device. `dtype` overrides the settings: a resumed run keeps its own.

    `head`: it ends in a classification head, which is drawn by `seed` where the model's files have none. Files that
    lack anything else are refused; `say` gets what they hold beyond the model.
    """
    heap.keep()
    device = pick_device(settings.device)
    dtype = dtype or pick_dtype(settings.dtype, device)
    attention.register()
    name = _local(settings.name)
    config = load_config(settings, trust_remote_code=trust_remote_code)
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0  # RWKV halves what it learned in answering alone, and not what an adapter adds
    storage = settle(settings, config, trust_remote_code=trust_remote_code, ends_in_words=head is None)
    reading = stored.reading(config, storage, device)
    auto: Any = AutoModelForCausalLM
    if head is not None:
        auto = AutoModelForSequenceClassification
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        say_in_config(config, head, pad)
    drawing = nullcontext() if head is None else drawn(seed)
    with without_bars(), without_report(), torn_apart(settings.name), drawing:
        model, told = _fetch(
            "model",
            settings.name,
            lambda: auto.from_pretrained(
                name,
                config=config,
                revision=settings.revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # else a table, and an error without a name: refuse_partial says it
                **{"dtype": dtype, **reading},
                **_offline_kwargs(name),
            ),
        )
    refuse_partial(model, told, settings.name, drawn=() if head is None else anatomy(model).scorer, say=say)
    if reading:
        stored.settle_in(model, dtype, storage)
    resize_for(model, tokenizer)
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    attention.install(model)
    fuse(model)
    vocabulary = tokenizer.get_vocab()
    added = tuple(vocabulary[token] for token in settings.add_tokens)
    return Loaded(model, tokenizer, settings.name, dtype, added)


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers' own progress bars off: ours says the same on one line."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def resize_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every token of the tokenizer a row. Old rows keep their bits; beside rows without numbers, new ones have
    none."""
    before = weight_shape(model.get_input_embeddings())[1]
    if len(tokenizer) <= before:
        return
    has_numbers = not next(model.parameters()).is_meta
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    said = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it explains at length how new rows are drawn
    try:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=has_numbers)
    finally:
        hf_logging.set_verbosity(said)
        torch.random.set_rng_state(state)


def _local(name: str) -> str:
    """The folder to load from: a `.gguf` file is dequantised once into the cache."""
    if name.endswith(".gguf"):
        from tunesmith.models.gguf import dequantised

        return str(dequantised(Path(name).expanduser()))
    return os.path.expanduser(name) if name.startswith("~") else name
