"""What TRL's GKDTrainer gives for the case of distill_case.py: loss and every adapter tensor's gradient.

    python tests/objectives/goldens/make_distill_trl.py      in an environment with TRL, PEFT and this package

Writes distill_trl.json beside itself, with the versions that made it.
"""

from __future__ import annotations

import json

import peft
import torch
import transformers
import trl
from make_preference_trl import CONFIG, HERE, filled, gradients, inputs_of
from peft import get_peft_model
from trl.experimental.gkd import GKDTrainer

from distill_case import SHARED, teacher_model  # isort: skip - found through make_preference_trl
from preference_case import answers, case_model  # isort: skip


def main() -> None:
    made: dict[str, dict] = {}
    batch, teacher = inputs_of(answers()), teacher_model()
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        taught = teacher(**given).logits
    for name, (beta, settings) in SHARED.items():
        model = filled(get_peft_model(case_model(), CONFIG))
        loss = GKDTrainer.generalized_jsd_loss(
            model(**given).logits[:, :-1],
            taught[:, :-1],
            labels=labels[:, 1:],
            beta=beta,
            temperature=settings.get("temperature", 1.0),
        )
        loss.backward()
        made[name] = {"loss": loss.item(), "gradients": gradients(model)}
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    (HERE / "distill_trl.json").write_text(json.dumps({"versions": versions, "made": made}) + "\n")
    print({name: round(entry["loss"], 6) for name, entry in made.items()})


if __name__ == "__main__":
    main()
