"""What TRL's private methods give for the case of policy_case.py: loss and every adapter tensor's gradient.

python tests/objectives/goldens/make_policy_trl.py      in an environment with TRL, PEFT and this package
"""

from __future__ import annotations

import json
import tempfile

import peft
import torch
import transformers
import trl
from datasets import Dataset
from make_preference_trl import CONFIG, HERE, filled, gradients, padded
from policy_case import ADVANTAGES, COMPLETIONS, MOST, REWARDS, SHARED, TEMPERATURE, WITH_PRICE
from preference_case import PROMPTS, case_model
from tiny_tokenizers import CHATML, byte_level
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


def inputs() -> dict[str, torch.Tensor]:
    prompts = [PROMPTS[number // 2] for number in range(len(COMPLETIONS))]
    longest = max(map(len, prompts))
    completion_ids, completion_mask = padded(COMPLETIONS)
    return {
        "prompt_ids": torch.tensor([[0] * (longest - len(row)) + row for row in prompts]),
        "prompt_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts]),
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": completion_mask.sum(),
    }


def logps(trainer, batch) -> torch.Tensor:
    """Of the model without the adapter."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad(), trainer.model.disable_adapter():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, batch["completion_ids"].size(1))[0]


def trainer_of(kind, config, folder: str):
    rows = Dataset.from_list([{"prompt": "what"}] * 4)
    return kind(
        model=case_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(
            output_dir=folder,
            report_to=[],
            use_cpu=True,
            bf16=False,
            temperature=TEMPERATURE,
            num_generations=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            max_completion_length=MOST,
            gradient_checkpointing=False,
            beta=0.1,
        ),
        train_dataset=rows,
        processing_class=byte_level(CHATML),
        peft_config=CONFIG,
    )


def rloo_of_rewards(trainer) -> dict:
    """The first update from the case's completions, as if the adapter had sampled them: advantages, loss, gradients."""
    filled(trainer.model)
    trainer.model.train()
    trainer.beta, trainer.normalize_advantages = WITH_PRICE, False
    prompts = [PROMPTS[number // 2] for number in range(len(COMPLETIONS))]
    trainer._generate = lambda _: (prompts, COMPLETIONS, ["said"] * len(COMPLETIONS))
    trainer._calculate_rewards = lambda *_: torch.tensor(REWARDS)[:, None]
    batch = trainer._generate_and_score_completions([{"prompt": "what"}] * len(COMPLETIONS))
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    advantages = [round(value, 7) for value in batch["advantages"].tolist()]
    return {"advantages": advantages, "loss": loss.item(), "gradients": gradients(trainer.model)}


def main() -> None:
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        grpo, rloo = trainer_of(GRPOTrainer, GRPOConfig, folder), trainer_of(RLOOTrainer, RLOOConfig, folder)
        for name, (theirs, settings) in SHARED.items():
            trainer = rloo if theirs == "rloo" else grpo
            filled(trainer.model)
            trainer.model.train()
            batch = inputs()
            old = logps(trainer, batch)
            epsilon = settings.get("epsilon", 0.2)
            trainer.epsilon_low = epsilon
            trainer.epsilon_high = settings.get("epsilon_high") or (0.28 if name == "dapo" else epsilon)
            if trainer is rloo:
                batch["old_logps"] = (old * batch["completion_mask"]).sum(1)
            else:
                trainer.args.use_bias_correction_kl = settings.get("use_bias_correction_kl", True)
                trainer.loss_type, trainer.beta = theirs, settings.get("beta", 0.0)
                trainer.importance_sampling_level = "sequence" if name == "gspo" else "token"
                trainer.current_gradient_accumulation_steps = 1
                trainer.args.steps_per_generation = 1
                batch |= {"old_per_token_logps": old, "ref_per_token_logps": old}
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, batch)
            loss.backward()
            made[name] = {"loss": loss.item(), "gradients": gradients(trainer.model)}
        made["rloo, beta"] = rloo_of_rewards(rloo)
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    (HERE / "policy_trl.json").write_text(json.dumps({"versions": versions, "made": made}) + "\n")
    print({name: round(entry["loss"], 6) for name, entry in made.items()})


if __name__ == "__main__":
    main()
