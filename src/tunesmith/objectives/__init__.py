"""Objectives: what is learned, one file and one line each.

A file offers `Settings` (its record, with `kind: Literal["name"]`), `takes(settings)` (what kinds of rows it learns
from), `needs_reference(settings)`, `LEARNING_RATE` (where none is given), and
`build(settings, train, held_out, *, batch_size, seed, shuffle, renderer)` -> Objective; `renderer` writes prompts and
knows the tokenizer, for whom the model has to speak. Those that learn rows as they stand take `batch_tokens` too
(`recipe_rules.whole_rows` names them); batch_size is None then.
"""

from tunesmith.objectives import classify, distill, policy, preference, reward, sft

OBJECTIVES = {
    "sft": sft,
    "preference": preference,
    "policy": policy,
    "classify": classify,
    "reward": reward,
    "distill": distill,
}
