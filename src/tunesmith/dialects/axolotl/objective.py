"""Of an Axolotl file: what is learned from the rows, `rl` and its relatives."""

from __future__ import annotations

from tunesmith.dialects.base import Key, Said, carried, idle, refused, there

_LOSSES = {"dpo": "sigmoid", "ipo": "ipo_mean", "kto": "kto", "orpo": "orpo", "simpo": "simpo"}
_TRL = {
    "beta": ("objective.beta", float),
    "num_generations": ("objective.num_generations", int),
    "max_completion_length": ("objective.max_completion_length", int),
    "reward_weights": ("objective.reward_weights", list),
    "temperature": ("objective.temperature", float),
    "top_p": ("objective.top_p", float),
    "top_k": ("objective.top_k", int),
    "num_iterations": ("objective.num_iterations", int),
    "epsilon": ("objective.epsilon", float),
    "epsilon_high": ("objective.epsilon_high", float),
    "mask_truncated_completions": ("objective.mask_truncated_completions", bool),
}
_SERVER = "the model writes its completions in this process; a server is named by objective.sampler"

OBJECTIVE_KEYS: dict[str, Key] = {
    **carried("objective.kind, objective.loss", "rl", "reward_model"),
    **carried("objective.beta", "rl_beta", "dpo_beta", "orpo_alpha"),
    **carried("objective.nll_weight", "rpo_alpha", "cpo_alpha"),
    **carried("objective.gamma", "simpo_gamma"),
    **carried("objective.label_smoothing", "dpo_label_smoothing"),
    **carried("objective.desirable_weight", "kto_desirable_weight"),
    **carried("objective.undesirable_weight", "kto_undesirable_weight"),
    **carried("objective.centring", "center_rewards_coefficient"),
    **carried("objective.reference", "precompute_ref_log_probs"),
    **carried("objective.rewards", "trl.reward_funcs"),
    **carried("objective.preset", "trl.loss_type"),
    **{f"trl.{name}": Key(carried("", "x")["x"].fate, setting) for name, (setting, _) in _TRL.items()},
    **carried("objective.advantage", "trl.scale_rewards"),
    **idle(_SERVER, "trl.use_vllm", "trl.vllm_mode", "trl.vllm_server_host", "trl.vllm_server_port"),
    **idle(_SERVER, "trl.vllm_server_timeout", "trl.vllm_gpu_memory_utilization", "trl.vllm_max_model_len"),
    **idle(_SERVER, "vllm"),
    **idle("samples are shown as it trains", "trl.log_completions", "trl.num_completions_to_print"),
    **refused("leave it out: the reference is the base, and does not move", "trl.sync_ref_model"),
    **refused("leave it out: the reference is the base, and does not move", "trl.ref_model_mixup_alpha"),
    **refused("leave it out: the reference is the base, and does not move", "trl.ref_model_sync_steps"),
    **refused("take adapter.method=… objectives of docs/", "ebft", "process_reward_model", "num_labels"),
    **refused("leave it out: pairs are not weighed", "dpo_use_weighting", "dpo_use_logits_to_keep"),
    **refused("take objective.loss=… (docs/preference.md)", "dpo_loss_type", "dpo_norm_loss"),
}


def objective(said: Said) -> None:
    rl = said.take("rl", str)
    if said.take("reward_model", bool, False):
        said.put("objective.kind", "reward", "reward_model")
        if said.has("center_rewards_coefficient"):
            said.put("objective.centring", said.take("center_rewards_coefficient", float), "center_rewards_coefficient")
    elif rl is None:
        pass
    elif rl in _LOSSES:
        _preference(said, rl)
    elif rl == "grpo":
        _policy(said)
    else:
        said.refuse("rl", f"cannot be {rl}", expected=", ".join([*_LOSSES, "grpo"]))
    _not_of_this(said, rl)


def _preference(said: Said, rl: str) -> None:
    said.put("objective.kind", "preference", "rl")
    said.put("objective.loss", _LOSSES[rl], "rl")
    beta = next((key for key in ("rl_beta", "dpo_beta") if said.has(key)), None)
    if rl == "orpo":
        said.put("objective.beta", said.take("orpo_alpha", float, 0.1), *there(said, "orpo_alpha"))
    elif beta is not None:
        said.put("objective.beta", said.take(beta, float), beta)
    for key, setting, of in (
        ("rpo_alpha", "objective.nll_weight", ("dpo", "ipo")),
        ("cpo_alpha", "objective.nll_weight", ("simpo",)),
        ("simpo_gamma", "objective.gamma", ("simpo",)),
        ("dpo_label_smoothing", "objective.label_smoothing", ("dpo", "ipo")),
        ("kto_desirable_weight", "objective.desirable_weight", ("kto",)),
        ("kto_undesirable_weight", "objective.undesirable_weight", ("kto",)),
    ):
        if said.has(key) and rl in of:
            said.put(setting, said.take(key, float), key)
    if rl == "simpo" and not said.has("cpo_alpha"):
        said.put("objective.nll_weight", 1.0)
    if said.has("precompute_ref_log_probs") and rl in ("dpo", "ipo", "kto"):
        once = said.take("precompute_ref_log_probs", bool, True)
        said.put("objective.reference", "precomputed" if once else "online", "precompute_ref_log_probs")


def _policy(said: Said) -> None:
    said.put("objective.kind", "policy", "rl")
    said.raw("trl")
    trl = said.within("trl")
    rewards = trl.items("reward_funcs", str)
    if not rewards:
        trl.refuse("reward_funcs", "is missing", "name a function: rewards.my_reward, in the file rewards.py")
    trl.put("objective.rewards", [_function(name) for name in rewards], "reward_funcs")
    for key, (setting, kind) in _TRL.items():
        if not trl.has(key):
            continue
        value = trl.items(key, float) if kind is list else trl.take(key, kind)
        trl.put(setting, value, key)
    loss = trl.choose("loss_type", ("grpo", "bnpo", "dr_grpo", "dapo"), "grpo")
    if trl.has("loss_type"):
        how = {"grpo": "sequences", "bnpo": "tokens", "dr_grpo": "constant", "dapo": "tokens"}[loss]
        trl.put("objective.aggregation", how, "loss_type")
    if trl.has("scale_rewards"):
        scaled = trl.take("scale_rewards", bool, True)
        trl.put("objective.advantage", "group" if scaled else "group_mean", "scale_rewards")


def _function(name: str) -> str:
    """rewards.my_reward -> rewards.py:my_reward, as Axolotl finds it beside the file."""
    module, _, function = name.rpartition(".")
    return f"{module.replace('.', '/')}.py:{function}" if module else name


def _not_of_this(said: Said, rl: str | None) -> None:
    """Settings of objectives that the file does not choose."""
    why = f"rl is {rl}" if rl else "rl is empty"
    for key in OBJECTIVE_KEYS:
        if "." not in key and key not in ("rl", "reward_model") and said.has(key):
            said.raw(key)
            said.idle(key, why) if OBJECTIVE_KEYS[key].fate.name == "CARRIED" else None
    if rl != "grpo" and said.has("trl"):
        trl = said.within("trl")
        for key in list(trl.values):
            trl.idle(key, why)
