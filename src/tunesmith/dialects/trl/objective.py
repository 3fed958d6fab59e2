"""Of a TRL file: what its trainer learns from the rows."""

from __future__ import annotations

import os
from typing import Any

from tunesmith.dialects.base import Said, clips, holds_to_reference, instead, left_over, there
from tunesmith.dialects.trl.trainer import POLICY
from tunesmith.notation import write_inline

_DPO = {
    **{name: name for name in ("sigmoid", "sigmoid_norm", "robust", "hinge", "apo_zero", "apo_down", "exo_pair")},
    **{name: name for name in ("nca_pair", "sppo_hard", "discopop")},
    "ipo": "ipo_mean",
}
_CPO = {"sigmoid": "cpo", "simpo": "simpo"}
_KINDS = {"dpo": _DPO, "cpo": _CPO, "kto": {"kto": "kto"}, "orpo": {"orpo": "orpo"}}
_TRLS_OWN = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
_ADVANTAGES = {"group": "group", "none": "group_mean", "batch": "group_mean_batch_std"}
"""By scale_rewards: by what a reward is divided, once the mean of its prompt is taken from it."""
_AGGREGATIONS = {"grpo": "sequences", "dapo": "tokens", "bnpo": "tokens", "dr_grpo": "constant", "cispo": "tokens"}


def objective(said: Said, trainer: str) -> None:
    if trainer == "sft":
        loss = said.choose("loss_type", ("nll", "chunked_nll"), "nll")
        if said.has("loss_type"):
            said.carry("loss_type", f"{loss}: cross entropy, as it is anyway")
    elif trainer == "reward":
        said.put("objective.kind", "reward", *there(said, "trainer"))
        _put(said, "center_rewards_coefficient", "objective.centring", float)
    elif trainer in POLICY:
        _policy(said, trainer)
    else:
        _preference(said, trainer)


def _put(said: Said, key: str, setting: str, kind: type[Any]) -> None:
    """One of our settings for one of their keys, where it says something."""
    if said.has(key):
        said.put(setting, said.take(key, kind), key)


def _preference(said: Said, trainer: str) -> None:
    said.put("objective.kind", "preference", *there(said, "trainer"))
    table = _KINDS[trainer]
    names = said.items("loss_type", str) if trainer != "orpo" else []
    names = names or [next(iter(table))]
    loss, more = names[0], names[1:]
    if loss not in table:
        fix = instead("loss_type", loss, table, next(iter(table)))
        said.refuse("loss_type", f"cannot be {loss} of {trainer}", fix, expected=", ".join(table))
        loss = next(iter(table))
    said.put("objective.loss", table[loss], *there(said, "trainer"), *there(said, "loss_type"))
    said.put("objective.beta", said.take("beta", float, 0.1), *there(said, "beta"))
    if trainer == "dpo":
        _weights(said, loss, more)
        divergence = said.take("f_divergence_type", str, "reverse_kl")
        _put(said, "f_divergence_type", "objective.f_divergence", str)
        if divergence == "alpha_divergence":
            of = there(said, "f_alpha_divergence_coef")
            said.put("objective.alpha", said.take("f_alpha_divergence_coef", float, 0.5), *of)
        left_over(said, "f_divergence_type is not alpha_divergence", "f_alpha_divergence_coef")
    elif more:
        said.refuse("loss_type", f"cannot be {write_inline(names)}", f"take one of them: loss_type: {loss}")
    if trainer == "cpo":
        said.put("objective.nll_weight", said.take("cpo_alpha", float, 1.0), *there(said, "cpo_alpha"))
        if loss == "simpo":
            _put(said, "simpo_gamma", "objective.gamma", float)
        left_over(said, "loss_type is not simpo", "simpo_gamma")
    for key in ("desirable_weight", "undesirable_weight"):
        _put(said, key, f"objective.{key}", float)
    if loss in ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "simpo"):
        _put(said, "label_smoothing", "objective.label_smoothing", float)
    left_over(said, f"loss_type {loss} does not read it", "label_smoothing")
    if said.has("precompute_ref_log_probs"):
        once = said.take("precompute_ref_log_probs", bool, False)
        said.put("objective.reference", "precomputed" if once else "online", "precompute_ref_log_probs")


def _weights(said: Said, loss: str, more: list[str]) -> None:
    """[sigmoid, sft] with weights [1, 0.5] is sigmoid beside half of the chosen answers' own loss; so is rpo_alpha."""
    weights = said.items("loss_weights", float) or [1.0] * (1 + len(more))
    if more not in ([], ["sft"]) or len(weights) != 1 + len(more) or weights[0] != 1:
        key = "loss_weights" if more in ([], ["sft"]) else "loss_type"
        fix = "take one loss, or [LOSS, sft] with loss_weights [1, WEIGHT]"
        said.refuse(key, f"cannot be {write_inline(said.values[key])}: losses are not mixed here", fix)
    elif more:
        said.put("objective.nll_weight", weights[1], "loss_type", *there(said, "loss_weights"))
    elif said.has("loss_weights"):
        said.carry("loss_weights", f"the whole of {loss}")
    _put(said, "rpo_alpha", "objective.nll_weight", float)


def _policy(said: Said, trainer: str) -> None:
    said.put("objective.kind", "policy", *there(said, "trainer"))
    said.put("objective.preset", "rloo" if trainer == "rloo" else "grpo", *there(said, "trainer"))
    _rewards(said)
    said.put(
        "objective.num_generations",
        said.take("num_generations", int, 2 if trainer == "rloo" else 8),
        *there(said, "num_generations"),
    )
    length = said.take("max_completion_length", int, 512)
    said.put("objective.max_completion_length", length, *there(said, "max_completion_length"))
    for key, kind in (("num_iterations", int), ("temperature", float), ("top_p", float), ("beta", float)):
        _put(said, key, f"objective.{key}", kind)
    top = said.take("top_k", int, 0)
    if top > 0:
        said.put("objective.top_k", top, "top_k")
    left_over(said, "off", "top_k")
    _put(said, "mask_truncated_completions", "objective.mask_truncated_completions", bool)
    if trainer == "grpo" and holds_to_reference(said, said.take("beta", float, 0.0), "use_bias_correction_kl"):
        _put(said, "use_bias_correction_kl", "objective.use_bias_correction_kl", bool)
    if said.has("reward_weights"):
        said.put("objective.reward_weights", said.items("reward_weights", float), "reward_weights")
    loss = said.choose("loss_type", tuple(_AGGREGATIONS), "dapo") if trainer == "grpo" else "rloo"
    if loss == "cispo":  # one bound alone: the ratio's cap
        bound = "epsilon_high" if said.has("epsilon_high") else "epsilon"
        cap = said.take(bound, float, 0.2)
        if cap < 1 or said.take("num_iterations", int, 1) > 1:
            said.put("objective.epsilon_high", cap, *there(said, bound))
        else:  # there is no cap in effect, as with our own default; one below 1 would weigh every token
            said.carry(bound, "nothing is capped: num_iterations is 1, and so is the ratio")
        left_over(said, "cispo caps the ratio at epsilon_high", "epsilon")
    elif clips(said, "epsilon", "epsilon_high"):
        _put(said, "epsilon", "objective.epsilon", float)
        _put(said, "epsilon_high", "objective.epsilon_high", float)
    if trainer == "grpo":
        _grpo(said, loss)


def _grpo(said: Said, loss: str) -> None:
    said.put("objective.aggregation", _AGGREGATIONS[loss], *there(said, "loss_type"))
    if loss == "cispo":
        said.put("objective.clipping", "cispo", "loss_type")
    _put(said, "importance_sampling_level", "objective.importance_sampling_level", str)
    scaled = str(said.raw("scale_rewards") if said.has("scale_rewards") else "group").lower()
    scaled = {"true": "group", "false": "none"}.get(scaled, scaled)
    if scaled not in _ADVANTAGES:
        fix = instead("scale_rewards", scaled, _ADVANTAGES, "group")
        said.refuse("scale_rewards", f"cannot be {scaled}", fix, expected=", ".join(_ADVANTAGES))
    said.put("objective.advantage", _ADVANTAGES.get(scaled, "group"), *there(said, "scale_rewards"))


def _rewards(said: Said) -> None:
    names, judge = said.items("reward_funcs", str), said.take("reward_model_name_or_path", str)
    made = [] if judge is None else [f"model:{judge}"]
    for name in names:
        module, _, function = name.rpartition(".")
        if name in _TRLS_OWN:
            made.append(f"trl.rewards:{name}")
        elif name == "get_soft_overlong_punishment":
            fix = "take it out, and set objective.overlong_buffer=0.2 on the command line"
            said.refuse("reward_funcs", f"names {name}, which makes a reward and is none", fix)
        else:
            file = f"{module.replace('.', '/')}.py"  # TRL looks for modules from where it is started, too
            made.append(f"{file if os.path.isfile(file) else module}:{function}" if module else name)
    if not made:
        fix = "name a function: reward_funcs: [my_rewards.correct]"
        said.refuse("reward_funcs", "is missing", fix)
    keys = (*there(said, "reward_model_name_or_path"), *there(said, "reward_funcs"))
    said.put("objective.rewards", made, *keys)
    if any(name in _TRLS_OWN for name in names):
        said.note("rewards of TRL's own are taken from it: pip install trl")
