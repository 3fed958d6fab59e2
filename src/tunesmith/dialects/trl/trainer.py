"""Of a TRL file: which trainer reads it. The command says so (`trl dpo`), the file does not."""

from __future__ import annotations

from tunesmith.dialects.base import Said, instead, left_over
from tunesmith.dialects.columns import first_row
from tunesmith.notation import write_inline

TRAINERS = ("sft", "dpo", "kto", "orpo", "cpo", "reward", "grpo", "rloo")
PAIRS = ("dpo", "kto", "orpo", "cpo", "reward")
POLICY = ("grpo", "rloo")
_ROWS = ("sft", *PAIRS)

OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss", "dataset_text_field", "packing"), ("sft",)),
    **dict.fromkeys(("max_length",), _ROWS),
    **dict.fromkeys(("max_seq_length",), ("sft",)),
    **dict.fromkeys(("chat_template_path", "eos_token"), ("sft", "reward")),
    **dict.fromkeys(("shuffle_dataset",), ("sft", *POLICY)),
    **dict.fromkeys(("disable_dropout",), (*PAIRS, *POLICY)),
    **dict.fromkeys(("loss_type",), ("sft", "dpo", "kto", "cpo", "grpo")),
    **dict.fromkeys(("beta",), ("dpo", "kto", "orpo", "cpo", *POLICY)),
    **dict.fromkeys(("label_smoothing",), ("dpo", "cpo")),
    **dict.fromkeys(("precompute_ref_log_probs",), ("dpo", "kto")),
    **dict.fromkeys(("f_divergence_type", "f_alpha_divergence_coef", "rpo_alpha", "loss_weights"), ("dpo",)),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ("kto",)),
    **dict.fromkeys(("cpo_alpha", "simpo_gamma"), ("cpo",)),
    **dict.fromkeys(("center_rewards_coefficient",), ("reward",)),
    **dict.fromkeys(("num_generations", "num_iterations", "generation_batch_size", "steps_per_generation"), POLICY),
    **dict.fromkeys(("reward_funcs", "reward_model_name_or_path", "reward_weights", "max_completion_length"), POLICY),
    **dict.fromkeys(("temperature", "top_p", "top_k", "epsilon", "epsilon_high"), POLICY),
    **dict.fromkeys(("mask_truncated_completions",), POLICY),
    **dict.fromkeys(("importance_sampling_level", "scale_rewards", "use_bias_correction_kl"), ("grpo",)),
}
"""Which trainers have a key of their own; what is not here all have, or none of them acts on here."""
_LOSSES: dict[str, tuple[str, ...]] = {
    "sft": ("nll", "chunked_nll", "dft"),
    "kto": ("kto", "apo_zero_unpaired"),
    "cpo": ("simpo", "alphapo"),
    "grpo": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"),
}
_OF_PAIRS = ("dpo", "orpo", "cpo", "reward")
"""Who reads pairs of a chosen and a rejected answer, the usual one first."""
_OF_SFT = {"messages", "conversations", "text"}
"""Columns that sft reads, whatever stands beside them."""
_SHARED = ("max_completion_length",)
"""Keys that older versions of other trainers had as well: they tell nothing."""


def chosen(said: Said) -> str:
    """The trainer that the file names, or that its keys give away; keys of the others are refused."""
    given = said.take("trainer", str)
    if given is not None and given not in TRAINERS:
        said.refuse(
            "trainer", f"cannot be {given}", instead("trainer", given, TRAINERS, "sft"), expected=", ".join(TRAINERS)
        )
        given = None
    guesses = _guesses(said)
    if given is not None:
        name = given
        said.carry("trainer", f"objective.kind: that of {name}")
    elif len(guesses) > 1:
        said.refuse(
            "model_name_or_path",
            f"stands in a file of {_listed(guesses)}",
            f"say which: {' or '.join(f'trainer={name}' for name in guesses)}",
        )
        name = next(iter(guesses))
    elif guesses:
        name, key = next(iter(guesses.items()))
        said.note(f"which trainer reads the file was seen from {key}: trainer={name}")
    else:
        name = "sft"
        said.note(
            "the file does not say which trainer reads it: trainer=sft was taken; rows of chosen and rejected answers "
            "want trainer=dpo (or orpo, cpo, reward), answers with a label trainer=kto"
        )
        _refuse_judged(said)
    for key, trainers in OF.items():
        if name in trainers or not said.has(key):
            continue
        if said.values[key] is False:
            left_over(said, f"off, and of {', '.join(trainers)}", key)
        else:
            said.refuse(
                key,
                f"is not a key of {name}: of {', '.join(trainers)}",
                f"take it out, or say which trainer is meant: trainer={trainers[0]}",
            )
    return name


def _refuse_judged(said: Said) -> None:
    """Rows of answers under judgement are for other trainers than sft, which can only learn them all as they stand: of
    a prompt and its completion it passes over the label."""
    holders = [(entry, "path") for entry in said.entries("datasets")] or [(said, "dataset_name")]
    for holder, key in holders:
        row = first_row(said, str(holder.values.get(key) or ""))
        is_pair, is_labelled = row.keys() >= {"chosen", "rejected"}, isinstance(row.get("label"), bool)
        if (is_pair or is_labelled) and _OF_SFT.isdisjoint(row):
            of_labels = ("kto", "sft") if "completion" in row else ("kto",)
            rows, trainers = ("pairs of answers", _OF_PAIRS) if is_pair else ("answers with a label", of_labels)
            what = f"has {rows}, and the file does not say which trainer reads them"
            holder.refuse(key, what, f"say which: {', or '.join(f'trainer={name}' for name in trainers)}")


def _guesses(said: Said) -> dict[str, str]:
    """{trainer: the key that it alone has}"""
    found: dict[str, str] = {}
    for key, trainers in OF.items():
        if not said.has(key) or said.values[key] is False or key in _SHARED:
            continue
        if len(trainers) == 1 or trainers == POLICY:
            found.setdefault(trainers[0], key)
    for key in ("normalize_advantages", "reward_clip_range"):
        if said.has(key):
            found["rloo"] = key
    loss = said.values.get("loss_type")
    losses = loss if isinstance(loss, list) else [loss]
    for name, words in _LOSSES.items():
        if any(word in words for word in losses):
            found.setdefault(name, f"loss_type {write_inline(loss)}")
    if said.has("loss_type") and not found:
        found["dpo"] = f"loss_type {write_inline(loss)}"
    if "rloo" in found and found.get("grpo") in OF and OF[found["grpo"]] == POLICY:
        del found["grpo"]
    return found


def _listed(guesses: dict[str, str]) -> str:
    return " and ".join(f"{name} ({key})" for name, key in guesses.items())
