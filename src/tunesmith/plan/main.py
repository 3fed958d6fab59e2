"""A whole plan: what a recipe needs, whether it fits, what would, and what else there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.data.prepare import Prepared
from tunesmith.data.problems import counted
from tunesmith.errors import MachineError, ModelError, TunesmithError
from tunesmith.models.load import load_config, pick_device, pick_dtype, settle
from tunesmith.objectives.base import Objective
from tunesmith.plan import plain
from tunesmith.plan.advice import changed, changes, that_fits
from tunesmith.plan.headers import of_hub
from tunesmith.plan.memory import memory_of
from tunesmith.plan.methods import Candidate, side_by_side
from tunesmith.plan.planner import Need, Planner
from tunesmith.plan.report import Plan
from tunesmith.plan.speed import measure
from tunesmith.plan.timing import seen
from tunesmith.progress import Progress, size
from tunesmith.recipe import Recipe, Resolved

UNITS = {1: "row", 2: "pair"}
"""What `train.batch_size` counts, by the rows that make one."""
ELSEWHERE = {"full": "full, AdamW", "lora": "LoRA", "qlora": "QLoRA"}


def plan(
    resolved: Resolved,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    objective: Objective,
    progress: Progress,
    *,
    memory: int | None = None,
    price: float | None = None,
    methods: bool = True,
    remedies: bool = True,
    trust_remote_code: bool = False,
) -> Plan:
    """`memory`: bytes that there are to be, in place of what this machine has free. `price`: of an hour. `methods`,
    `remedies`: whether other methods, and what takes less, are looked at."""
    recipe = resolved.recipe
    device = pick_device(recipe.model.device)
    if not objective.steps_per_epoch:
        raise ModelError(
            "this objective learns without steps: there is nothing to plan but one pass of the frozen model",
            where="objective",
            fix="tunesmith train: it takes about what answering takes",
        )
    planner = Planner(
        recipe, tokenizer, prepared, objective, memory_of(device, memory), trust_remote_code=trust_remote_code
    )
    config = load_config(recipe.model, trust_remote_code=trust_remote_code)
    dtype = pick_dtype(recipe.model.dtype, device)
    with progress.stage("one step without numbers"):
        width = config.get_text_config().hidden_size
        planner.pace = measure(min(planner.micro_tokens(recipe), 1024), width, dtype, device)
        need = planner.need(planner.recipe)
    with progress.stage("a part of the model with random numbers, timed"):
        if seen(planner, planner.recipe):
            need = planner.need(planner.recipe)
    found, cheapest, room = [], None, planner.memory.room
    if remedies:
        with progress.stage("what takes less"):
            found = changes(planner, need)
            cheapest = that_fits(planner, found, room) if room is not None and need.memory > room else None
    candidates: list[Candidate] = []
    storage = settle(recipe.model, config, trust_remote_code=trust_remote_code, ends_in_words=objective.head is None)
    if methods and recipe.model.adapter is None:
        with progress.stage("every method beside it") as told:
            candidates = side_by_side(planner, storage, told)
    elsewhere, at = _elsewhere(recipe, need, candidates, planner)
    train, unit = recipe.train, UNITS[planner.foreseen.sides]
    return Plan(
        resolved.name,
        f"{(config.architectures or [config.model_type])[0]}, {counted(planner.num_blocks, 'block')}, "
        f"{str(dtype).removeprefix('torch.')} on {device}{'' if storage == 'plain' else f', matrices in {storage}'}",
        planner.recipe.adapter.method,  # type: ignore[attr-defined]
        need,
        planner.memory,
        planner.pace,
        len(prepared.train) // planner.foreseen.sides,
        unit,
        f"{train.batch_tokens:,} tokens" if train.batch_tokens else counted(train.batch_size or 1, unit),
        found,
        cheapest,
        candidates,
        elsewhere,
        at,
        price,
        train.minutes,
        _notes(planner),
    )


def _notes(planner: Planner) -> list[str]:
    notes = [planner.foreseen.note] if planner.foreseen.note else []
    bare = planner.bench.bare
    notes += of_hub(planner.recipe.model, None if bare is None else sum(own.numel() for own in bare.parameters()))
    if planner.memory.kind == "mps":
        notes.append("on an Apple GPU the forecast is that of a processor's code: take it as rough")
    if planner.recipe.model.name.endswith(".gguf"):
        notes.append("the GGUF file was unpacked to be planned for, once: later runs find it in the cache")
    if planner.num_blocks and not planner.bench.blocks_are_alike:
        notes.append("the blocks of this model differ: each forecast is of all of them, and took its time")
    return notes


def _elsewhere(
    recipe: Recipe, need: Need, candidates: Sequence[Candidate], planner: Planner
) -> tuple[dict[str, dict[str, int]], str]:
    """Plain transformers and PEFT on the same rows: a batch of as many, of pairs both sides, padded to the longest."""
    model = planner.bench.bare
    if model is None or planner.objective.head is not None:
        return {}, ""
    shape = plain.shape_of(model)
    sides, length = planner.foreseen.sides, need.trial.longest
    batch = recipe.train.batch_size or max(1, need.trial.rows // sides)
    lora = next((one.need for one in candidates if one.method == "lora"), None)
    if planner.recipe.adapter.method == "lora":  # type: ignore[attr-defined]
        lora = need
    told: dict[str, dict[str, int]] = {}
    for way, words in ELSEWHERE.items():
        if way != "full" and lora is None:
            continue
        kind: Any = way
        trained = shape.parameters if way == "full" or lora is None else lora.trial.counts.trained
        told[words] = plain.forecast(
            shape,
            way=kind,
            trained=trained,
            batch=batch * sides,
            length=length,
            dtype_bytes=2,
            recompute=recipe.train.recompute,
            optimizer="adamw",
        )
    return told, f"bf16, {counted(batch, UNITS[sides])} at once, padded to {length:,} tokens"


ROOMY = 20
"""A model whose weights are this many times smaller than the room, and its rows too, is not looked at closer."""


def what_fits(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    objective: Objective,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> int | None:
    """Before any weight is read: a run that needs more than there is does not begin, unless the recipe says so.

    Returns the tokens of a micro-batch that fits, where the recipe leaves them open and the usual number does not;
    None: as they are. A forecast that fails is told, and stops nobody.
    """
    if recipe.train.memory_forecast == "off" or not objective.steps_per_epoch:
        return None
    try:
        memory = memory_of(pick_device(recipe.model.device))
        room = memory.room
        if room is None:
            return None
        planner = Planner(recipe, tokenizer, prepared, objective, memory, trust_remote_code=trust_remote_code)
        if _is_far_below(planner, recipe, room - memory.held):
            return None
        need = planner.need(planner.recipe, quick=True)
        progress.say(f"memory: {size(need.memory)} forecast, {size(room)} free")
        if need.memory <= room:
            return None
        fewer = _smaller_micro_batch(planner, room)
        change = None if fewer else that_fits(planner, changes(planner, need), room)
    except Exception as error:
        told = error.what if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        progress.say(f"memory: no forecast ({told.splitlines()[0][:200]})")
        return None
    if fewer is not None:
        progress.say(f"micro-batches hold {fewer:,} tokens, which fits; the result is the same")
        return fewer
    fix = "a smaller model, or a machine with more memory" if change is None else f"{change.typed} ({change.cost})"
    if recipe.train.memory_forecast == "tell":
        progress.say(f"it may not fit. What would: {fix}")
        return None
    raise MachineError(
        "this run needs more memory than there is",
        found=f"about {size(need.memory)} at its peak; {size(room)} free on {memory.kind}",
        fix=f"{fix}; or begin all the same: train.memory_forecast=tell (tunesmith plan shows the parts)",
    )


def _smaller_micro_batch(planner: Planner, room: int) -> int | None:
    """The largest half, quarter … of the usual micro-batch that fits, where the recipe leaves it open."""
    if planner.recipe.train.micro_batch_tokens is not None:
        return None
    tokens = planner.micro_tokens(planner.recipe) // 2
    while tokens > planner.longest // 2:
        tokens = max(tokens, planner.longest)
        recipe = changed(planner.recipe, {"train.micro_batch_tokens": tokens})
        if planner.need(recipe, quick=True).memory <= room:
            return tokens
        tokens //= 2
    return None


def _is_far_below(planner: Planner, recipe: Recipe, room: int) -> bool:
    """Whether no closer look is needed: far more room than weights and the largest micro-batch could fill."""
    model = planner.bench.bare
    if model is None:
        return True
    if planner.foreseen.teacher is not None:
        return False
    numbers = sum(parameter.numel() for parameter in model.parameters())
    rows = planner.objective.foreseen(False).rows
    tokens = max(planner.micro_tokens(recipe), max(map(len, rows), default=1))
    config = model.config.get_text_config()
    passing = tokens * config.hidden_size * config.num_hidden_layers * BYTES_A_PLACE
    return ROOMY * numbers + passing < room


BYTES_A_PLACE = 240
"""More than any method keeps of one number of one token in one block (34 to 90 were seen)."""
