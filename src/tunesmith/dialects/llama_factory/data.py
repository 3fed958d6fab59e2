"""Of a LLaMA-Factory file: which rows, which of their tokens are learned, and which are held out."""

from __future__ import annotations

from typing import Any

from tunesmith.dialects.base import Said, there
from tunesmith.dialects.llama_factory.info import Catalogue, Entry
from tunesmith.dialects.llama_factory.model import names
from tunesmith.dialects.llama_factory.rows import source
from tunesmith.dialects.llama_factory.templates import WORDED
from tunesmith.errors import TunesmithError

_OF_READING = ("format", "columns", "message_keys", "roles")


def data(said: Said, stage: str) -> tuple[bool, int | None]:
    """Puts `data`. Whether rows are held out, and how long the pieces are into which rows were packed."""
    opening = None if stage == "pt" or said.take("template", str) in WORDED else said.take("default_system", str)
    catalogue = Catalogue(said)
    if not said.has("dataset"):
        fix = "name data sets of dataset_info.json; to talk with a model: `tunesmith chat`"
        said.refuse("dataset", "is missing", fix)
    entries = catalogue.named("dataset", names(said, "dataset"))
    sources = [_read(said, entry, stage, opening) for entry in entries]
    if None not in sources:
        _put(said, entries, [made for made in sources if made is not None])
    _limits(said, entries)
    held = catalogue.named("eval_dataset", names(said, "eval_dataset"))
    holds_out = _held_out(said, stage, opening, held, [made for made in sources if made is not None])
    if opening is not None:
        said.carry("default_system", "the system turn of rows without one")
    _mixed(said, len(entries))
    _learned(said, stage, entries)
    packed = _lengths(said, stage)
    if said.take("disable_shuffling", bool, False):
        said.put("data.shuffle", False, "disable_shuffling")
    return holds_out, packed


def _read(said: Said, entry: Entry, stage: str, opening: str | None) -> dict[str, Any] | None:
    """A source of ours, or nothing and an error noted."""
    try:
        reading = source(entry, stage, opening)
    except TunesmithError as error:
        said.ledger.errors.append(error)
        return None
    own = {"split": entry.split, "subset": entry.subset, "limit": entry.limit}
    return {"path": entry.path, **{name: value for name, value in own.items() if value is not None}, **reading}


def _put(said: Said, entries: list[Entry], sources: list[dict[str, Any]]) -> None:
    if len(sources) == 1:
        for name, value in sources[0].items():
            said.put("data.train" if name == "path" else f"data.{name}", value, "dataset")
    elif sources:
        said.put("data.train", sources, "dataset")


def _limits(said: Said, entries: list[Entry]) -> None:
    """`max_samples` is of each data set, as data.limit is of each source."""
    most = said.take("max_samples", int)
    if most is None:
        return
    shorter = [entry for entry in entries if entry.limit is not None and entry.limit > most]
    for entry in shorter:
        said.ledger.errors.append(
            entry.wrong(f"split takes more rows than max_samples ({most})", "take one of them out")
        )
    if len(entries) == 1 and entries[0].limit is not None:
        said.idle("max_samples", "the split of the data set takes fewer rows")
    else:
        said.put("data.limit", most, "max_samples")
    if said.has("eval_dataset"):
        said.note("max_samples: of eval_dataset all rows are held out, not the first so many")


def _held_out(said: Said, stage: str, opening: str | None, held: list[Entry], sources: list[dict[str, Any]]) -> bool:
    size = said.take("val_size", float, 0.0)
    if said.take("do_eval", bool, False) and not size and not said.has("eval_dataset"):
        said.refuse("do_eval", "has no rows to evaluate on", "hold rows out: val_size=0.1")
    if size and said.has("eval_dataset"):
        said.refuse("val_size", "stands beside eval_dataset", "take one of them out")
    elif (size >= 1 and not size.is_integer()) or size < 0:
        fix = "write it so: val_size: 0.1 for a tenth of the rows, or val_size: 100 for so many"
        said.refuse("val_size", f"cannot be {size:g}", fix, expected="a share below 1, or a number of rows")
    elif size:
        said.put("data.held_out", size if size < 1 else int(size), "val_size")
    if len(held) > 1:
        said.refuse("eval_dataset", f"names {len(held)} data sets", "put the held-out rows into one file")
    elif held and sources:
        _of_its_own(said, held[0], _read(said, held[0], stage, opening), sources)
    return bool(size) or said.has("eval_dataset")


def _of_its_own(said: Said, entry: Entry, wanted: dict[str, Any] | None, sources: list[dict[str, Any]]) -> None:
    """Held-out rows of a data set of their own: of several sources they are read as the section says, of one as it."""
    if wanted is None:
        return
    differing = [name for name in (*_OF_READING, "subset") if any(one.get(name) != wanted.get(name) for one in sources)]
    if (len(sources) == 1 and differing) or "subset" in differing or entry.limit is not None:
        said.refuse(
            "eval_dataset",
            "is read otherwise than dataset: " + (", ".join(differing) or "of its rows the first so many"),
            "give both the same formatting, columns and tags, or hold rows out by val_size",
        )
        return
    if differing:
        for one in sources:
            one |= {name: {} for name in differing if name not in one}
        for name in _OF_READING:
            if name in wanted:
                said.put(f"data.{name}", wanted[name], "eval_dataset")
    path = entry.path if entry.is_local else f"{entry.path}:{entry.split or 'train'}"
    said.put("data.held_out", path, "eval_dataset")


def _mixed(said: Said, count: int) -> None:
    how = said.choose("mix_strategy", ("concat", "interleave_under", "interleave_over", "interleave_once"), "concat")
    said.raw("interleave_probs")
    if count < 2 or how == "concat":
        said.idle("interleave_probs", "rows are not interleaved")
        why = "all rows of each come in every pass" if count > 1 else "there is one data set"
        if said.has("mix_strategy"):
            said.carry("mix_strategy", why)
        return
    fix = "take mix_strategy: concat; `tunesmith convert` writes a recipe in which each source can have a weight"
    said.refuse("mix_strategy", f"is {how}: how often rows come would depend on how many there are", fix)


def _learned(said: Said, stage: str, entries: list[Entry]) -> None:
    """Which tokens are learned. LLaMA-Factory masks the history of supervised rows alone."""
    everything, last = said.take("train_on_prompt", bool, False), said.take("mask_history", bool, False)
    if stage != "sft":
        for key in ("train_on_prompt", "mask_history"):
            said.idle(key, f"stage is {stage}")
    elif everything and last:
        said.refuse("mask_history", "stands beside train_on_prompt", "take one of them out")
    elif everything:
        said.put("data.learn", "everything", "train_on_prompt")
    elif last and all(entry.formatting in ("alpaca", "file") and "history" not in entry.columns for entry in entries):
        said.carry("mask_history", "the rows have one answer each")
    elif last:
        fix = (
            "convert the file, mark the answers in the rows that are not to be learned (a key learn in such a message, "
            "false), and take learn: null out of data.message_keys"
        )
        said.refuse("mask_history", "is not done here: all answers of a conversation are learned", fix)


def _lengths(said: Said, stage: str) -> int | None:
    """How long rows may be, and what becomes of longer ones. The length of packed pieces."""
    length = said.take("cutoff_len", int, 2048)
    said.put("data.max_length", length, *there(said, "cutoff_len"))
    neat = said.take("neat_packing", bool, False)
    packs = neat or said.take("packing", bool, stage == "pt")
    keys = tuple(key for key in ("packing", "neat_packing") if said.has(key))
    if stage not in ("pt", "sft"):
        for key in keys:
            said.idle(key, f"rows of stage {stage} are not packed")
        packs = False
    said.put("data.overlong", "split" if stage == "pt" and packs else "truncate", *(keys if stage == "pt" else ()))
    if stage != "pt":
        said.note(
            f"rows of more than {length} tokens are cut at their end; LLaMA-Factory cuts question and answer alike"
        )
    if not packs:
        for key in keys if stage == "sft" else ():
            said.idle(key, "off")
        return None
    for key in keys:
        said.carry(key, f"train.batch_tokens: {length} tokens a piece")
    if stage == "sft" and not neat:
        said.note("packing: rows of one piece do not see each other here, as with neat_packing")
    return length
