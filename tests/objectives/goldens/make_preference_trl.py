"""What TRL's private methods give for the case of preference_case.py: loss and every adapter tensor's gradient.

    python tests/objectives/goldens/make_preference_trl.py      in an environment with TRL, PEFT and this package

Writes preference_trl.json beside itself, with the versions that made it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "data")]

from preference_case import BETA, SHARED, TARGETS, adapter_tensor, answers, case_model, pairs_of  # noqa: E402
from tiny_tokenizers import CHATML, byte_level  # noqa: E402

OURS = {"f_divergence": "f_divergence_type", "label_smoothing": "label_smoothing"}


CONFIG = LoraConfig(r=1, lora_alpha=2, target_modules=list(TARGETS))


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """With the adapter's tensors; a trainer that is handed an adapter with tensors takes a copy for the reference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                path, letter = place(name)
                parameter.copy_(adapter_tensor(path, letter, parameter.shape))
    return model


def place(name: str) -> tuple[str, str]:
    path, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
    return path, rest[0]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def inputs_of(pairs) -> dict[str, torch.Tensor]:
    ordered = [*pairs[::2], *pairs[1::2]]
    ids, mask = padded([row.token_ids.tolist() for row in ordered])
    learned, _ = padded([row.loss_weights.astype(int).tolist() for row in ordered])
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": learned}


def whole_loss(method, model: torch.nn.Module, name: str) -> torch.Tensor:
    """Of CPO or ORPO, the chosen answers' own part with it; a trainer without rows, which its loss does not ask for."""
    theirs, settings = SHARED[name]
    trainer, pairs = method.__new__(method), pairs_of(name)
    vars(trainer).update(
        beta=BETA,
        alpha=0.0,
        cpo_alpha=settings["nll_weight"],
        loss_type=theirs,
        simpo_gamma=settings.get("gamma", 0.0),
        label_smoothing=settings.get("label_smoothing", 0.0),
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        padding_value=0,
        pad_token_id=0,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
    )
    batch = {}
    for side, rows in (("chosen", pairs[::2]), ("rejected", pairs[1::2])):
        ids, mask = padded([row.token_ids.tolist() for row in rows])
        learned, _ = padded([row.loss_weights.astype(int).tolist() for row in rows])
        labels = ids.masked_fill(learned == 0, -100)
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels}
    return trainer.get_batch_loss_metrics(model, batch)[0]


def gradients(model) -> dict[str, list[float]]:
    return {
        ".".join(place(name)): [round(v, 9) for v in parameter.grad.flatten().tolist()]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def arguments(kind, folder: str, **options):
    return kind(
        output_dir=folder,
        report_to=[],
        use_cpu=True,
        bf16=False,
        beta=BETA,
        per_device_train_batch_size=6,
        gradient_checkpointing=False,
        **options,
    )


def main() -> None:
    made: dict[str, dict] = {}
    pairs = answers()
    rows = [{"prompt": "what", "chosen": "a", "rejected": "b"}] * 6
    judged = [{"prompt": "what", "completion": "a", "label": index % 2 == 0} for index in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        dpo = DPOTrainer(
            case_model(),
            peft_config=CONFIG,
            args=arguments(DPOConfig, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=byte_level(CHATML),
        )
        model = filled(dpo.model)
        for name, (theirs, settings) in SHARED.items():
            if name.partition(",")[0] in ("kto", "orpo", "cpo", "simpo"):
                continue
            dpo.loss_types, dpo.loss_weights = [theirs], [1.0]
            dpo.f_divergence_type = settings.get("f_divergence", "reverse_kl")
            dpo.label_smoothing = settings.get("label_smoothing", 0.0)
            model.zero_grad()
            loss = dpo._compute_loss(model, inputs_of(pairs), False)
            loss.backward()
            made[name] = {"loss": loss.item(), "gradients": gradients(model)}

        _, settings = SHARED["kto"]
        kto = KTOTrainer(
            case_model(),
            peft_config=CONFIG,
            args=arguments(KTOConfig, folder, **settings),
            train_dataset=Dataset.from_list(judged),
            processing_class=byte_level(CHATML),
        )
        model = filled(kto.model)
        ids, mask = padded([row.token_ids.tolist() for row in pairs])
        learned, _ = padded([row.loss_weights.astype(int).tolist() for row in pairs])
        # each prompt with the next answer to another prompt: that of the pair behind
        swapped, own = [], []
        for place, one in enumerate(pairs):
            other = pairs[2 * (place // 2 + 1) % len(pairs)]
            end = int(one.loss_weights.argmax())
            start = int(other.loss_weights.argmax())
            row = [*one.token_ids[:end].tolist(), *other.token_ids[start:].tolist()][: max(len(one), len(other))]
            swapped.append(row)
            own.append([0] * end + [1] * (len(row) - end))
        kl_ids, kl_mask = padded(swapped)
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "completion_mask": learned,
            "KL_input_ids": kl_ids,
            "KL_attention_mask": kl_mask,
            "KL_completion_mask": padded(own)[0],
            "label": torch.tensor([row.side == "chosen" for row in pairs]),
        }
        loss = kto._compute_loss(model, batch, False)
        loss.backward()
        made["kto"] = {"loss": loss.item(), "gradients": gradients(model)}

        inputs = inputs_of(pairs)
        for name in ("orpo", "cpo", "simpo"):
            theirs, settings = SHARED[name]
            model = filled(get_peft_model(case_model(), CONFIG))
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
            method = ORPOTrainer if name == "orpo" else CPOTrainer
            logps = method.get_batch_logps(logits, labels, average_log_prob=name != "cpo")
            stub = SimpleNamespace(
                beta=BETA,
                alpha=0.0,
                loss_type=theirs,
                simpo_gamma=settings.get("gamma", 0.0),
                label_smoothing=settings.get("label_smoothing", 0.0),
                accelerator=SimpleNamespace(device="cpu"),
            )
            if name == "orpo":
                losses = -method.odds_ratio_loss(stub, *logps.chunk(2))[0]
            else:
                losses = method.cpo_loss(stub, *logps.chunk(2))[0]
            losses.mean().backward()
            made[name] = {"loss": losses.mean().item(), "gradients": gradients(model)}

        for name in (name for name in SHARED if name.endswith(", nll")):
            model = filled(get_peft_model(case_model(), CONFIG))
            loss = whole_loss(ORPOTrainer if name == "orpo, nll" else CPOTrainer, model, name)
            loss.backward()
            made[name] = {"loss": loss.item(), "gradients": gradients(model)}
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    (HERE / "preference_trl.json").write_text(json.dumps({"versions": versions, "beta": BETA, "made": made}) + "\n")
    print({name: round(entry["loss"], 6) for name, entry in made.items()})


if __name__ == "__main__":
    main()
