"""What TRL's RewardTrainer gives for the case of reward_case.py: loss and the gradient of every tensor that learns.

    python tests/objectives/goldens/make_reward_trl.py      in an environment with TRL, PEFT and this package

Writes reward_trl.json beside itself, with the versions that made it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import peft
import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from trl import RewardTrainer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from make_preference_trl import padded, place  # noqa: E402
from preference_case import TARGETS, adapter_tensor, answers  # noqa: E402
from reward_case import SETTINGS, case_classifier, head_tensor  # noqa: E402

CONFIG = LoraConfig(task_type="SEQ_CLS", r=1, lora_alpha=2, target_modules=list(TARGETS), modules_to_save=["score"])
HEAD = "base_model.model.score.modules_to_save.default.weight"


def main() -> None:
    made: dict[str, dict] = {}
    pairs = answers()
    for name, settings in SETTINGS.items():
        model = get_peft_model(case_classifier(), CONFIG)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(adapter_tensor(*place(key), parameter.shape))
                elif key == HEAD:
                    parameter.copy_(head_tensor(parameter.shape))
        ordered = [*pairs[::2], *pairs[1::2]]
        ids, mask = padded([row.token_ids.tolist() for row in ordered])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "margin" in settings:
            inputs["margin"] = torch.full((len(pairs) // 2,), settings["margin"])
        gather = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
        stub = SimpleNamespace(
            model=model,
            args=SimpleNamespace(center_rewards_coefficient=settings.get("centring")),
            accelerator=gather,
            _total_train_tokens=0,
            _tp_size=1,
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        loss = RewardTrainer.compute_loss(stub, model, inputs)
        loss.backward()
        gradients = {
            "score.weight" if key == HEAD else ".".join(place(key)): [round(v, 9) for v in p.grad.flatten().tolist()]
            for key, p in model.named_parameters()
            if p.grad is not None
        }
        gathered = stub._metrics["train"] | stub._metrics["eval"]
        told = {key: gathered[key][-1] for key in ("accuracy", "margin")}
        made[name] = {"loss": loss.item(), "gradients": gradients, "metrics": told}
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    (HERE / "reward_trl.json").write_text(json.dumps({"versions": versions, "made": made}) + "\n")
    print({name: round(entry["loss"], 6) for name, entry in made.items()})


if __name__ == "__main__":
    main()
