"""What an objective itself says of each row of the test: of pairs, and of rewarded completions.

Rows are kept by their number in the file: {"rows": [1, 2, …], "values": [0.0, 1.0, …]}.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Example, Origin
from tunesmith.errors import NonFiniteError
from tunesmith.held_out import asked_here, refer, room
from tunesmith.machine import cache_folder
from tunesmith.models.policy import Policy
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe
from tunesmith.session import Session
from tunesmith.train.memory import default_micro_batch_tokens

Say = Callable[[str], object]
ByRow = dict[str, list[float]]


def refuse_no_number(loss: float, called: str, origin: Origin) -> None:
    """A loss that is not finite is an error that names the row, `called` "test row"."""
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss of {called} {origin.row} is not finite",
            where=str(origin),
            found=f"{loss:g}",
            expected="a finite number",
            fix="train with a lower train.learning_rate, or with model.dtype: float32 where a smaller type overflows",
        )


@torch.no_grad()
def pairs(session: Session, policy: Policy, recipe: Recipe, data: DataSettings, say: Say) -> dict[str, Any]:
    """Of each pair of `data` its loss, and 1 where the preferred answer scores higher, else 0: by the scores that the
    objective learns (log-probabilities against the reference's, their means, a head's number).

    Left out: pairs of which a side is too long to be read. kto's loss hangs on the other rows of its step: it has none.
    """
    say("pairs of the test rows")
    prepared = _prepared(session, recipe, data)
    refer(policy, session, recipe)
    given = getattr(recipe.objective, "reference", None)
    record = recipe.objective if given is None else recipe.objective.model_copy(update={"reference": "online"})
    sides: dict[Origin, list[Example]] = defaultdict(list)
    for example in prepared.train:
        sides[example.origin].append(example)
    most, begun = default_micro_batch_tokens(policy.device), time.perf_counter()
    in_order, losses = dict[int, float](), dict[int, float]()
    with session.switch.set_to(session.adapter), Progress(quiet=True) as silent:
        for origin, both in sides.items():
            if len(both) != 2:  # of kto, an answer that stands alone
                continue
            one = recipe.offered.build(record, both, both, batch_size=2, seed=0)
            one.begin(policy, num_steps=None, max_tokens=most, cache=cache_folder(), stage=silent.stage)
            metrics = one.evaluate(policy, most)
            refuse_no_number(metrics["loss"], "test row", origin)
            in_order[origin.row], losses[origin.row] = metrics["rewards/accuracies"], metrics["loss"]
    found: dict[str, Any] = {"by_row": {"pairs": _by_row(in_order)}}
    if getattr(recipe.objective, "loss", "") != "kto":
        rows = _by_row(losses)
        found["loss"] = {"rows": rows["rows"], "sum": rows["values"], "weight": [1.0] * len(losses)}
    return found | {"left_out": prepared.counts.read - len(in_order), "judged_seconds": time.perf_counter() - begun}


@torch.no_grad()
def rewarded(session: Session, policy: Policy, recipe: Recipe, data: DataSettings, say: Say) -> dict[str, Any]:
    """What the likeliest completion of each prompt of `data` earns. Left out: prompts that no reward applies to."""
    say("completions of the test's prompts, and what they earn")
    prepared = _prepared(session, recipe, data)
    record, rows = asked_here(recipe.objective), prepared.train
    objective = recipe.offered.build(record, rows, rows, batch_size=1, seed=0, renderer=prepared.renderer)
    most, begun = default_micro_batch_tokens(policy.device), time.perf_counter()
    with session.switch.set_to(session.adapter), Progress(quiet=True) as silent:
        objective.begin(policy, num_steps=None, max_tokens=most, cache=cache_folder(), stage=silent.stage)
        try:
            earned = objective.by_row(policy)
        finally:
            objective.close()
    known = {row.origin.row: value for row, value in zip(rows, earned, strict=True) if not math.isnan(value)}
    return {
        "by_row": {"reward": _by_row(known)},
        "left_out": prepared.counts.read - len(known),
        "judged_seconds": time.perf_counter() - begun,
    }


def _prepared(session: Session, recipe: Recipe, data: DataSettings) -> Prepared:
    return prepare(
        data,
        session.words_of(session.adapter).tokenizer,
        seed=recipe.train.seed,
        most_tokens=room(session, recipe.objective),
        takes=recipe.takes,
    )


def _by_row(values: Mapping[int, float]) -> ByRow:
    rows = sorted(values)
    return {"rows": [float(row) for row in rows], "values": [values[row] for row in rows]}
