"""Of an Axolotl file: what is learned from the rows, `rl` and its relatives."""

from __future__ import annotations

from tunesmith.dialects.base import (
    Fate,
    Key,
    Said,
    carried,
    clips,
    holds_to_reference,
    idle,
    instead,
    left_over,
    refused,
    there,
)

_LOSSES = {"dpo": "sigmoid", "ipo": "ipo_mean", "kto": "kto", "orpo": "orpo", "simpo": "simpo"}
_BETAS = ("rl_beta", "dpo_beta", "orpo_alpha")
"""What Axolotl takes for TRL's beta where `trl.beta` is empty, whatever `rl` is: the first that is given."""
_TRL = {
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
    "importance_sampling_level": ("objective.importance_sampling_level", str),
    "use_bias_correction_kl": ("objective.use_bias_correction_kl", bool),
}
_AGGREGATIONS = {"grpo": "sequences", "bnpo": "tokens", "dr_grpo": "constant", "dapo": "tokens"}
_ADVANTAGES = {"true": "group", "group": "group", "false": "group_mean", "none": "group_mean"}
_OFF = {"min_p": 0, "repetition_penalty": 1, "entropy_coef": 0, "multi_objective_aggregation": "sum_then_normalize"}
"""Of keys under `trl` that are refused, the values at which they do nothing."""
_NUM_GENERATIONS, _COMPLETION = 8, 512
"""TRL's defaults: completions of a prompt, and tokens of a completion."""
_SERVER = "the model writes its completions in this process; a server is named by objective.sampler"
_STEP = "completions are sampled for every step, by this process"
_FUSED = "the kernels here are always the fused ones; the numbers are the same"
_REFERENCE = "leave it out: the reference is the base, and does not move"
_CURRENT = "leave it out: completions are of the model as it is"
_EXACT = "leave it out: the policy's losses have no such term here"
_SAMPLING = "leave it out: take temperature, top_p, top_k"

OBJECTIVE_KEYS: dict[str, Key] = {
    **carried("objective.kind, objective.loss", "rl", "reward_model"),
    **carried("objective.beta", *_BETAS, "trl.beta"),
    **carried("objective.nll_weight", "rpo_alpha", "cpo_alpha"),
    **carried("objective.gamma", "simpo_gamma"),
    **carried("objective.label_smoothing", "dpo_label_smoothing"),
    **carried("objective.desirable_weight", "kto_desirable_weight"),
    **carried("objective.undesirable_weight", "kto_undesirable_weight"),
    **carried("objective.centring", "center_rewards_coefficient"),
    **carried("objective.reference", "precompute_ref_log_probs"),
    **carried("objective.rewards", "trl.reward_funcs"),
    **carried("objective.aggregation", "trl.loss_type"),
    **{f"trl.{name}": Key(Fate.CARRIED, setting) for name, (setting, _) in _TRL.items()},
    **carried("objective.advantage", "trl.scale_rewards"),
    **idle(_SERVER, "trl.use_vllm", "trl.vllm_mode", "trl.vllm_server_host", "trl.vllm_server_port"),
    **idle(_SERVER, "trl.vllm_server_timeout", "trl.vllm_gpu_memory_utilization", "trl.vllm_max_model_len"),
    **idle(_SERVER, "trl.vllm_tensor_parallel_size", "trl.vllm_dtype", "trl.vllm_enable_sleep_mode"),
    **idle(_SERVER, "trl.vllm_importance_sampling_correction", "trl.vllm_importance_sampling_mode"),
    **idle(_SERVER, "trl.vllm_importance_sampling_cap", "trl.vllm_importance_sampling_clip_min"),
    **idle(_SERVER, "trl.vllm_importance_sampling_clip_max", "trl.vllm_sync_interval", "trl.vllm_lora_sync", "vllm"),
    **idle(_STEP, "trl.streaming_partial_batch", "trl.streaming_min_groups", "trl.reward_num_workers"),
    **idle("completions without an advantage are not run", "trl.skip_zero_advantage_batches"),
    **idle("samples are shown as it trains", "trl.log_completions", "trl.num_completions_to_print"),
    **idle("samples are shown as it trains", "trl.log_multimodal", "dpo_generate_during_eval"),
    **idle(_FUSED, "trl.use_liger_loss", "dpo_use_liger_kernel", "dpo_use_logits_to_keep"),
    **idle("rows are not padded", "dpo_padding_free"),
    **idle("entropy_coef and use_adaptive_entropy are off", "trl.entropy_target", "trl.entropy_coef_delta"),
    **idle("entropy_coef and use_adaptive_entropy are off", "trl.entropy_coef_min", "trl.entropy_coef_max"),
    **refused(_REFERENCE, "trl.sync_ref_model", "trl.ref_model_mixup_alpha", "trl.ref_model_sync_steps"),
    **refused(
        "leave it out: completions are sampled for every step; num_iterations learns from them more than once",
        "trl.generation_batch_size",
    ),
    **refused(_CURRENT, "trl.async_prefetch", "trl.use_data_producer", "trl.prefetch_depth"),
    **refused(_CURRENT, "trl.replay_buffer_size", "trl.replay_recompute_logps"),
    **refused("leave it out: every prompt comes in every pass", "trl.reroll_start_fraction", "trl.reroll_max_groups"),
    **refused(_SAMPLING, "trl.min_p", "trl.repetition_penalty", "trl.generation_kwargs"),
    **refused("leave it out: completions are not held to a pattern", "trl.vllm_guided_decoding_regex"),
    **refused("write it into the template: chat_template_jinja", "trl.chat_template_kwargs"),
    **refused("give a world in objective.environment", "trl.rollout_func"),
    **refused(_EXACT, "trl.delta", "trl.entropy_coef", "trl.use_adaptive_entropy", "trl.off_policy_mask_threshold"),
    **refused("leave it out: rewards are added by reward_weights", "trl.multi_objective_aggregation"),
    **refused("learn the answers themselves: leave out rl and ebft; or take rl: grpo with rewards", "ebft"),
    **refused(
        "take reward_model: true with pairs of whole answers (type: bradley_terry.chat_template); steps are not judged",
        "process_reward_model",
    ),
    **refused(
        "leave it out: a reward is one number; for classes write a recipe of ours with objective.kind classify",
        "num_labels",
    ),
    **refused("leave it out: pairs are not weighed", "dpo_use_weighting", "dpo_ld_alpha"),
    **refused("set objective.loss on the command line (docs/preference.md)", "dpo_loss_type", "dpo_norm_loss"),
    **refused("set objective.loss on the command line (docs/preference.md)", "dpo_loss_weights"),
}


def objective(said: Said) -> None:
    rl = said.take("rl", str)
    if said.take("reward_model", bool, False):
        said.put("objective.kind", "reward", "reward_model")
        if said.has("center_rewards_coefficient"):
            said.put("objective.centring", said.take("center_rewards_coefficient", float), "center_rewards_coefficient")
        if str(said.raw("num_labels")) == "1":
            said.carry("num_labels", "a reward is one number")
    elif rl is None:
        pass
    elif rl in _LOSSES:
        _preference(said, rl)
    elif rl == "grpo":
        _policy(said)
    else:
        known = [*_LOSSES, "grpo"]
        fix = f"{instead('rl', rl, known, 'dpo')}; supervised rows need none"
        said.refuse("rl", f"cannot be {rl}", fix, expected=", ".join(known))
    _not_of_this(said, rl)


def completions_per_prompt(said: Said) -> int:
    """How many rows of a batch, as Axolotl counts them, belong to one prompt."""
    if said.take("rl", str) != "grpo":
        return 1
    return said.within("trl").count("num_generations", _NUM_GENERATIONS)


def prompts_per_step(said: Said, rows: int) -> int:
    """`rows` of a step as ours are counted: of grpo Axolotl counts completions, and here they are prompts."""
    each = completions_per_prompt(said)
    if rows % each:
        key = next((key for key in ("micro_batch_size", "batch_size") if said.has(key)), "micro_batch_size")
        said.refuse(
            key,
            f"makes a step of {rows} completions, which is no multiple of trl.num_generations ({each})",
            f"set micro_batch_size={each}",
        )
    trl = said.within("trl")
    if each > 1 and trl.raw("generation_batch_size") == rows:
        trl.idle("generation_batch_size", _STEP)
    return max(1, rows // each)


def _beta(said: Said) -> None:
    trl = said.within("trl")
    given = [(holder, key) for holder, key in ((trl, "beta"), *((said, key) for key in _BETAS)) if holder.has(key)]
    if not given:
        return
    holder, key = given[0]
    holder.put("objective.beta", holder.take(key, float), key)
    for other, name in given[1:]:
        left_over(other, f"{'trl.beta' if holder is trl else key} goes before it", name)


def _preference(said: Said, rl: str) -> None:
    said.put("objective.kind", "preference", "rl")
    said.put("objective.loss", _LOSSES[rl], "rl")
    _beta(said)
    for key, setting, of in (
        ("rpo_alpha", "objective.nll_weight", ("dpo", "ipo")),
        ("cpo_alpha", "objective.nll_weight", ("simpo",)),
        ("simpo_gamma", "objective.gamma", ("simpo",)),
        ("dpo_label_smoothing", "objective.label_smoothing", ("dpo",)),
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
    _beta(said)
    trl = said.within("trl")
    rewards = trl.items("reward_funcs", str)
    if not rewards:
        trl.refuse("reward_funcs", "is missing", "name a function: rewards.my_reward, in the file rewards.py")
    trl.put("objective.rewards", [_function(name) for name in rewards], "reward_funcs")
    clips(trl, "epsilon", "epsilon_high")
    beta = said.ledger.settings.get(("objective", "beta"), (0.0, ""))[0]
    holds_to_reference(trl, beta or 0.0, "use_bias_correction_kl")
    for key, (setting, kind) in _TRL.items():
        if not trl.has(key) or ("trl", key) in said.ledger.fates:
            continue
        if key == "top_k" and trl.take(key, int, 1) <= 0:
            trl.idle(key, "off")
        else:
            trl.put(setting, trl.items(key, float) if kind is list else trl.take(key, kind), key)
    if not trl.has("max_completion_length"):
        said.put("objective.max_completion_length", _COMPLETION)
    loss = trl.choose("loss_type", tuple(_AGGREGATIONS), "dapo")
    trl.put("objective.aggregation", _AGGREGATIONS[loss], *there(trl, "loss_type"))
    scaled = str(trl.raw("scale_rewards") if trl.has("scale_rewards") else "group").lower()
    if scaled not in _ADVANTAGES:
        fix = "take group, or none"
        trl.refuse("scale_rewards", f"cannot be {scaled}: rewards are divided within a prompt", fix)
    trl.put("objective.advantage", _ADVANTAGES.get(scaled, "group"), *there(trl, "scale_rewards"))
    for key, nothing in _OFF.items():
        if trl.raw(key) == nothing:
            trl.idle(key, "off")


def _function(name: str) -> str:
    """rewards.my_reward -> rewards.py:my_reward, as Axolotl finds it beside the file; a path is a reward model's."""
    if "/" in name:
        return f"model:{name}"
    module, _, function = name.rpartition(".")
    return f"{module.replace('.', '/')}.py:{function}" if module else name


def _not_of_this(said: Said, rl: str | None) -> None:
    """Settings of objectives that the file does not choose."""
    why = f"rl is {rl}" if rl else "rl is empty"
    read = [key for key, entry in OBJECTIVE_KEYS.items() if "." not in key and entry.fate is Fate.CARRIED]
    left_over(said, why, *(key for key in read if key not in ("rl", "reward_model")))
    if rl != "grpo":
        trl = said.within("trl")
        left_over(trl, why, *trl.values)
