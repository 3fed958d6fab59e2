"""Of a LitGPT file: batches, budget, rates, when to evaluate and save, and where the run goes."""

from __future__ import annotations

from tunesmith.dialects.base import Said, instead, left_over, there
from tunesmith.dialects.hf_arguments import ALL_CHECKPOINTS
from tunesmith.recipe_rules import WITH_PROJECTS

_OPTIMIZERS = {"AdamW": "adamw", "PagedAdamW": "adamw", "PagedAdamW32bit": "adamw", "AdamW32bit": "adamw"}
_OPTIMIZERS |= {"AdamW8bit": "adamw-8bit", "PagedAdamW8bit": "adamw-8bit"}


def budget(train: Said) -> None:
    rows, micro = train.take("global_batch_size", int, 16), train.take("micro_batch_size", int, 1)
    train.put("train.batch_size", rows, *there(train, "global_batch_size"))
    if micro < rows:
        train.note("LitGPT weighs micro-batches alike; here all learned tokens of a step weigh the same")
    count, passes = train.take("max_steps", int), train.take("epochs", float)
    seconds, tokens = train.take("max_time", float), train.take("max_tokens", int)
    *others, last = [key for key in ("epochs", "max_steps", "max_time", "max_tokens") if train.has(key)] or ["epochs"]
    if others and last in ("max_time", "max_tokens"):
        fix = "take it out, or unset the others: " + " ".join(f"train.{key}=" for key in others)
        train.refuse(last, "stands beside another budget, and a run has one", fix)
    elif tokens is not None:
        train.put("train.tokens", tokens, "max_tokens")
        train.note(
            "LitGPT counts train.max_tokens in full sequences, and stops before it has read more; here whole rows are "
            "counted, and the run ends with the step that reaches it"
        )
    elif seconds is not None:
        train.put("train.minutes", seconds / 60, "max_time")
    elif count is not None:
        train.put("train.steps", count, "max_steps")
        if passes is not None:
            train.idle("epochs", "max_steps goes before it")
            train.note(f"LitGPT would end after {passes:g} passes, where they come before {count} steps")
    elif passes is not None or "epochs" not in train.values:
        train.put("train.epochs", 5.0 if passes is None else passes, *there(train, "epochs"))
    else:
        train.note("train.epochs is null, and no other budget of LitGPT's is given: say train.steps, or 3 passes it is")
    warmup = train.take("lr_warmup_steps", int, 100)
    if count is not None and warmup > count:
        said = "" if train.has("lr_warmup_steps") else " (LitGPT's default)"
        fix = f"set train.lr_warmup_steps={max(0, count // 10)}"
        train.refuse("lr_warmup_steps", f"of {warmup}{said} is longer than max_steps of {count}", fix)
    train.put("train.warmup", float(warmup), *there(train, "lr_warmup_steps"))
    train.put("train.schedule", "cosine")
    train.put("train.max_grad_norm", train.take("max_norm", float), *there(train, "max_norm"))


def optimizer(said: Said, train: Said) -> None:
    """torch's defaults: a rate of 1e-3 and a decay of 0.01. What stands under `train` goes before."""
    given = said.values.get("optimizer")
    inner = said.within("optimizer")
    args = inner.within("init_args")
    owner, key = (said, "optimizer") if isinstance(given, str) else (inner, "class_path")
    name = owner.take(key, str, "AdamW").rpartition(".")[2]
    if name not in _OPTIMIZERS:
        fix = f"write it so: {key}: torch.optim.AdamW"
        owner.refuse(key, f"cannot be {name}", fix, expected=", ".join(_OPTIMIZERS))
    owner.put("train.optimizer", _OPTIMIZERS.get(name, "adamw"), *there(owner, key))
    for own, old, setting, default in (
        ("lr", "learning_rate", "train.learning_rate", 1e-3),
        ("weight_decay", "weight_decay", "train.weight_decay", 0.01),
    ):
        holder, at = (train, old) if train.has(old) else (args, own)
        holder.put(setting, holder.take(at, float, default), *there(holder, at))
        left_over(args, f"train.{old} goes before it", own)
    if train.has("beta1", "beta2"):
        betas = [train.take("beta1", float, 0.9), train.take("beta2", float, 0.95)]
        train.put("train.betas", betas, *there(train, "beta1"), *there(train, "beta2"))
        left_over(args, "train.beta1 and train.beta2 go before it", "betas")
    elif args.has("betas"):
        args.put("train.betas", args.items("betas", float), "betas")
    if args.has("eps"):
        args.put("train.eps", args.take("eps", float), "eps")


def when(said: Said, train: Said) -> None:
    every = train.take("save_interval", int, 1000)
    if "save_interval" not in train.values or train.has("save_interval"):
        train.put("train.save_every", every, *there(train, "save_interval"))
    train.put("train.keep_checkpoints", ALL_CHECKPOINTS)
    train.put("train.publish", "last")
    evaluation = said.within("eval")
    if ("data", "held_out") in said.ledger.settings:
        default = 600 if said.ledger.settings[("adapter", "method")][0] == "full" else 100
        interval = evaluation.take("interval", int, default)
        evaluation.put("train.evaluate_every", interval, *there(evaluation, "interval"))
    left_over(evaluation, "nothing is held out", "interval")


def output(said: Said) -> None:
    said.put("train.seed", said.take("seed", int, 1337), *there(said, "seed"))
    kind = "full" if said.ledger.settings[("adapter", "method")][0] == "full" else "lora"
    said.put("output.folder", said.take("out_dir", str, f"out/finetune/{kind}"), *there(said, "out_dir"))
    logger, log = said.take("logger_name", str, "csv"), said.within("log")
    if logger in ("tensorboard", "wandb", "mlflow"):
        said.put("output.report_to", [logger], "logger_name")
        if log.has("project") and logger in WITH_PROJECTS:
            log.put("output.project", log.take("project", str), "project")
    elif logger == "csv":
        left_over(said, "every step's numbers are kept in the run folder", "logger_name")
    else:
        expected = "csv, tensorboard, wandb, mlflow"
        said.refuse(
            "logger_name",
            f"cannot be {logger}",
            instead("logger_name", logger, expected.split(", "), "csv"),
            expected=expected,
        )
    left_over(log, "logger_name names no service that has projects", "project")
    if log.has("run"):
        log.put("output.name", log.take("run", str), "run")
