"""Every key of LitGPT's that is known here, with its fate."""

from __future__ import annotations

from tunesmith.dialects.base import Key, carried, idle, refused

LORA = ("lora_r", "lora_alpha", "lora_dropout")
PARTS = {
    "lora_query": "q_proj",
    "lora_key": "k_proj",
    "lora_value": "v_proj",
    "lora_projection": "o_proj",
    "lora_mlp": "mlp",
    "lora_head": "lm_head",
}
"""What each part of a block is called in models like Llama; of the MLP a word of ours for all of its layers."""
_ONE_PROCESS = "one process on one device does the work; the batch is that of all devices together"
_SCRATCH = "train a model of ours on: checkpoint_dir; models are not begun from random weights here"
_EVALUATION = "evaluations take the whole of the held-out rows; samples are shown as it trains"

KEYS: dict[str, Key] = {
    **carried("adapter.method", "command"),
    **carried("model.name", "checkpoint_dir"),
    **carried("model.dtype", "precision"),
    **carried("model.storage", "quantize"),
    **carried("adapter.r", "lora_r"),
    **carried("adapter.alpha", "lora_alpha"),
    **carried("adapter.dropout", "lora_dropout"),
    **carried("adapter.targets", *PARTS),
    **carried("data.train", "data", "data.class_path", "data.init_args.json_path", "data.init_args.repo_id"),
    **carried("data.train", "data.init_args.download_dir", "data.init_args.file_name"),
    **carried("data.learn", "data.init_args.mask_prompt"),
    **carried("data.held_out", "data.init_args.val_split_fraction"),
    **carried("model.template, data.format", "data.init_args.prompt_style"),
    **carried("train.batch_size", "train.global_batch_size"),
    **carried("train.warmup", "train.lr_warmup_steps"),
    **carried("train.epochs", "train.epochs"),
    **carried("train.steps", "train.max_steps"),
    **carried("train.tokens", "train.max_tokens"),
    **carried("train.minutes", "train.max_time"),
    **carried("data.max_length", "train.max_seq_length"),
    **carried("train.max_grad_norm", "train.max_norm"),
    **carried("train.save_every", "train.save_interval"),
    **carried("train.evaluate_every", "eval.interval"),
    **carried("train.learning_rate", "optimizer.init_args.lr", "train.learning_rate"),
    **carried("train.weight_decay", "optimizer.init_args.weight_decay", "train.weight_decay"),
    **carried("train.betas", "optimizer.init_args.betas", "train.beta1", "train.beta2"),
    **carried("train.eps", "optimizer.init_args.eps"),
    **carried("train.optimizer", "optimizer", "optimizer.class_path"),
    **carried("train.seed", "seed"),
    **carried("output.folder", "out_dir"),
    **carried("output.report_to", "logger_name"),
    **carried("output.project", "log.project"),
    **carried("output.name", "log.run"),
    # Refused.
    **refused("write it as a mapping", "data.init_args", "train", "eval", "log", "optimizer.init_args"),
    **refused("go on with a run of ours by --resume", "resume"),
    **refused("take it out and log in: hf auth login", "access_token", "data.init_args.access_token"),
    **refused("give train.lr_warmup_steps", "train.lr_warmup_fraction"),
    **refused("take it out: a model's tied weights are tied here as well", "train.tie_embeddings"),
    **refused("take it out: only AdamW's own settings are read", "optimizer.init_args.amsgrad"),
    **refused(
        "take it out, or part the rows into one a pair yourself", "data.init_args.include_multiturn_conversations"
    ),
    **refused(
        "download it, and name it: data: {class_path: JSON, init_args: {json_path: …}}",
        "data.init_args.file_url",
    ),
    **refused(_SCRATCH, "model_name", "model_config", "initial_checkpoint_dir"),
    # Without effect here.
    **idle(_ONE_PROCESS, "devices", "num_nodes"),
    **idle("how a step is cut into micro-batches never changes the result", "train.micro_batch_size"),
    **idle("the tokenizer is the model's", "tokenizer_dir"),
    **idle("LitGPT's fine-tuning does not read it: its cosine ends at 0", "train.min_lr"),
    **idle("every step's numbers are kept", "train.log_interval"),
    **idle(_EVALUATION, "eval.max_new_tokens", "eval.max_iters", "eval.evaluate_example"),
    **idle("the held-out rows are evaluated as it trains, and at the end", "eval.initial_validation"),
    **idle("the held-out rows are evaluated as it trains, and at the end", "eval.final_validation"),
    **idle("what is not learned needs no mark", "data.init_args.ignore_index"),
    **idle("rows are parted and mixed by seed", "data.init_args.seed"),
    **idle("rows are prepared in this process", "data.init_args.num_workers"),
    **idle("how the optimizer is computed is ours to choose", "optimizer.init_args.fused"),
    **idle("how the optimizer is computed is ours to choose", "optimizer.init_args.foreach"),
    **idle("the services' own settings say it", "log.group", "log.teamspace", "log.metadata", "log.checkpoint_name"),
    **idle("numbers alone are sent to trackers", "log.log_model", "log.save_logs"),
}  # fmt: skip
