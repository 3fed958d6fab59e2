"""Every key of TRL's configurations that is known here, with its fate; those of TrainingArguments are hf_arguments'.

Among them those of older versions, as blogs still write them: max_seq_length, rpo_alpha, torch_dtype.
"""

from __future__ import annotations

from typing import Any

from tunesmith.dialects import hf_arguments
from tunesmith.dialects.base import WALKED, Key, carried, idle, refused

_ONE_PROCESS = "one process on one device does the work"
_FUSED = "the kernels here are always the fused ones; the numbers are the same"
_UNPADDED = "rows are not padded"
_HERE = "rows are prepared in this process"
_EVALUATION = "evaluations take the whole of the held-out rows, and cut them to fit"
_SENT = "nothing is sent anywhere: `hf upload` does it"
_SAMPLER = "the model writes its completions in this process; a server is named by objective.sampler"
_REFERENCE = "leave it out: the reference is the base, and does not move"
_STILL = "sync_ref_model is off"
_OTHER_LOSS = "it is of losses that are not here"
_EXACT = "leave it out: the policy's losses have no such term here"

HARMLESS: dict[str, tuple[Any, ...]] = {
    "router_aux_loss_coef": (0,),
    "discopop_tau": (0.05,),
    "alpha": (0,),
    "top_entropy_quantile": (1,),
    "entropy_coef": (0,),
    "multi_objective_aggregation": ("sum_then_normalize",),
    "repetition_penalty": (1,),
    "truncation_mode": ("keep_start",),
}
"""Values at which what is refused says nothing: their defaults."""

KEYS: dict[str, Key] = {
    **hf_arguments.KEYS,
    **carried("objective.kind: sft, dpo, kto, orpo, cpo, reward, grpo or rloo", "trainer"),
    # The model and its adapter.
    **carried("model.name", "model_name_or_path"),
    **carried("model.revision", "model_revision", "model_init_kwargs.revision"),
    **carried("model.dtype", "dtype", "torch_dtype"),
    **carried("model.dtype", "model_init_kwargs.dtype", "model_init_kwargs.torch_dtype"),
    **carried("model.storage", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
    **carried("model.template", "chat_template_path", "chat_template"),
    **carried("model.special_tokens", "eos_token"),
    **carried("adapter.method", "use_peft", "use_dora"),
    **carried("adapter.r", "lora_r"),
    **carried("adapter.alpha", "lora_alpha"),
    **carried("adapter.dropout", "lora_dropout", "disable_dropout"),
    **carried("adapter.targets", "lora_target_modules"),
    **carried("adapter.train_in_full", "lora_modules_to_save"),
    **carried("adapter.rank_stabilised", "use_rslora"),
    # The rows.
    **carried("data.train", "dataset_name", "datasets", "datasets[].path", "datasets[].data_files"),
    **carried("data.subset", "dataset_config", "datasets[].name"),
    **carried("data.split", "dataset_train_split", "datasets[].split"),
    **carried("data.format", "datasets[].columns"),
    **carried("data.held_out", "dataset_test_split", "test_split_size"),
    **carried("data.columns", "dataset_text_field"),
    **carried("data.max_length", "max_length", "max_seq_length"),
    **carried("data.learn", "completion_only_loss", "assistant_only_loss"),
    **carried("data.shuffle", "shuffle_dataset"),
    **carried("train.batch_tokens", "packing"),
    # What is learned.
    **carried("objective.loss or objective.aggregation", "loss_type"),
    **carried("objective.nll_weight", "loss_weights", "rpo_alpha", "cpo_alpha"),
    **carried("objective.beta", "beta"),
    **carried("objective.label_smoothing", "label_smoothing"),
    **carried("objective.f_divergence", "f_divergence_type"),
    **carried("objective.alpha", "f_alpha_divergence_coef"),
    **carried("objective.gamma", "simpo_gamma"),
    **carried("objective.desirable_weight", "desirable_weight"),
    **carried("objective.undesirable_weight", "undesirable_weight"),
    **carried("objective.reference", "precompute_ref_log_probs"),
    **carried("objective.centring", "center_rewards_coefficient"),
    **carried("objective.rewards", "reward_funcs", "reward_model_name_or_path"),
    **carried("objective.reward_weights", "reward_weights"),
    **carried("objective.num_generations", "num_generations"),
    **carried("objective.max_completion_length", "max_completion_length"),
    **carried("objective.num_iterations", "num_iterations"),
    **carried("train.batch_size", "generation_batch_size", "steps_per_generation"),
    **carried("objective.temperature", "temperature"),
    **carried("objective.top_p", "top_p"),
    **carried("objective.top_k", "top_k"),
    **carried("objective.epsilon", "epsilon"),
    **carried("objective.epsilon_high", "epsilon_high"),
    **carried("objective.importance_sampling_level", "importance_sampling_level"),
    **carried("objective.advantage", "scale_rewards"),
    **carried("objective.use_bias_correction_kl", "use_bias_correction_kl"),
    **carried("objective.mask_truncated_completions", "mask_truncated_completions"),
    # Refused at some of their values, and without effect at others: `translate` says which.
    **refused("leave it out: every row is prepared here", "dataset_kwargs"),
    **refused("take bfd, which keeps rows whole, as here", "packing_strategy"),
    # Refused, but at the values of HARMLESS.
    **refused("write it as a mapping", "model_init_kwargs"),
    **refused("leave it out: rows are cut at their end, as keep_start does", "truncation_mode"),
    **idle("prompts are not cut: max_length holds for the whole row, and longer rows are counted", "max_prompt_length"),
    **refused("leave it out: experts are not balanced by a loss", "router_aux_loss_coef"),
    **refused("name the layers in lora_target_modules, or train the stacks in full", "lora_target_parameters"),
    **refused("write it into the template: chat_template_path", "chat_template_kwargs"),
    **refused("take it out: rows of a mixture come by their number, or by weight in data.train", "datasets[].fraction"),
    **refused("name the folder in path", "datasets[].data_dir"),
    **refused("write datasets: [{path: …, split: …}]", "dataset_mixer", "dataset_splits", "dataset_mixture"),
    **refused("leave it out: discopop's temperature is 0.05", "discopop_tau"),
    **refused("leave it out: pairs are not weighed", "use_weighting", "ld_alpha"),
    **refused("take trainer=cpo, which has no reference", "reference_free"),
    **refused(_REFERENCE, "sync_ref_model", "model_adapter_name", "ref_adapter_name", "force_use_ref_model"),
    **refused(_REFERENCE, "ref_model_init_kwargs"),
    **refused("put the tools into the rows, in a column tools", "tools"),
    **refused("train a causal language model", "is_encoder_decoder"),
    **refused("leave it out: AlphaPO is not here; take loss_type: simpo", "alpha"),
    **refused(_EXACT, "delta", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy"),
    **refused(_EXACT, "off_policy_mask_threshold", "normalize_advantages", "reward_clip_range"),
    **refused("leave it out: rewards are added by reward_weights", "multi_objective_aggregation"),
    **refused("leave it out: take temperature, top_p, top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    **refused("leave it out: completions are not held to a pattern", "vllm_structured_outputs_regex"),
    **refused("leave it out: completions are not held to a pattern", "vllm_guided_decoding_regex"),
    **refused("give a world in objective.environment", "max_tool_calling_iterations"),
    **refused("leave it out: the head is held in model.dtype", "cast_lm_head_to_fp32"),
    **refused("write a recipe of ours with objective.kind distill", "teacher_model_name_or_path"),
    **refused("set load_in_4bit or load_in_8bit", "model_init_kwargs.quantization_config", "quantization_config"),
    # Without effect here.
    **idle("a file cannot consent to running a model's own code: --trust-remote-code does", "trust_remote_code"),
    **idle(
        "a file cannot consent to running a model's own code: --trust-remote-code does",
        "model_init_kwargs.trust_remote_code",
    ),
    **idle("set it in the shell: a file changes no environment here", "env"),
    **idle(
        "how attention is computed is chosen by what the machine has; the numbers are the same",
        *("attn_implementation", "model_init_kwargs.attn_implementation", "use_flash_attention_2"),
    ),
    **idle("no cache is kept while training", "model_init_kwargs.use_cache"),
    **idle("batches are not padded, and the token is never read", "pad_token"),
    **idle("what is trained is seen from the trainer", "lora_task_type"),
    **idle("how the numbers of few bits are stored is bitsandbytes' own", "bnb_4bit_quant_storage"),
    **idle(WALKED, "dataset_streaming", "streaming"),
    **idle("it is for models of several processes", "ignore_bias_buffers"),
    **idle("TRL's scripts do not read it", "do_train", "do_eval", "do_predict"),
    **idle(_UNPADDED, "padding_free", "pad_to_multiple_of", "eval_packing", "label_pad_token_id", "padding_value"),
    **idle(_HERE, "dataset_num_proc", "dataset_batch_size", "preprocessing_num_workers"),
    **idle(_ONE_PROCESS, "ds3_gather_for_generation", "accelerate_config", "num_processes", "num_machines"),
    **idle(_ONE_PROCESS, "model_init_kwargs.device_map", "model_init_kwargs.low_cpu_mem_usage"),
    **idle("how recomputation is done is ours to choose", "gradient_checkpointing_use_reentrant"),
    **idle("activations that do not fit are recomputed: gradient_checkpointing", "activation_offloading"),
    **idle(_FUSED, "use_liger_loss", "use_liger", "use_logits_to_keep", "model_init_kwargs.use_kernels"),
    **idle("micro-batches are cut to fit", "precompute_ref_batch_size"),
    **idle(_EVALUATION, "num_generations_eval", "generate_during_eval"),
    **idle("nothing that is trained depends on it", "base_model_attribute_name"),
    **idle(_SENT, "push_to_hub_revision", "log_completions_hub_repo"),
    **idle(_STILL, "ref_model_mixup_alpha", "ref_model_sync_steps"),
    **idle("samples are shown as it trains", "log_completions", "num_completions_to_print", "log_unique_prompts"),
    **idle("samples are shown as it trains", "log_multimodal", "wandb_log_unique_prompts"),
    **idle(_OTHER_LOSS, "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"),
    **idle(_OTHER_LOSS, "vespo_k_neg", "vespo_lambda_neg"),
    **idle("entropy_coef is off", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    **idle(_SAMPLER, "use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_server_base_url"),
    **idle(_SAMPLER, "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
    **idle(_SAMPLER, "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_max_model_len"),
    **idle(_SAMPLER, "vllm_tensor_parallel_size"),
    **idle(_SAMPLER, "vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
    **idle(_SAMPLER, "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
    **idle(_SAMPLER, "vllm_importance_sampling_cap", "vllm_device", "vllm_dtype", "cache_implementation"),
    **idle(_SAMPLER, "use_transformers_continuous_batching", "transformers_continuous_batching_config"),
    **idle(_SAMPLER, "use_transformers_paged"),
}  # fmt: skip
