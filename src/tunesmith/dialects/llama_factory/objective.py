"""Of a LLaMA-Factory file: what is learned from the rows, `stage` and the settings of preferences."""

from __future__ import annotations

from tunesmith.dialects.base import Said, there
from tunesmith.dialects.hf_arguments import at_rest

STAGES = ("pt", "sft", "rm", "dpo", "kto")
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo_mean", "orpo": "orpo", "simpo": "simpo"}
OF_PREFERENCES = {
    "pref_beta": ("dpo", "kto"),
    "pref_ftx": ("dpo", "kto"),
    "pref_loss": ("dpo",),
    "simpo_gamma": ("dpo",),
    "dpo_label_smoothing": ("dpo",),
    "kto_chosen_weight": ("kto",),
    "kto_rejected_weight": ("kto",),
    "ref_model": ("dpo", "kto"),
    "ref_model_adapters": ("dpo", "kto"),
}
"""Keys, and the stages in which they are read."""


def is_training(said: Said) -> bool:
    """Whether the file asks for a training that is done here; what else it asks for is refused by one sentence."""
    if said.has("task") and said.raw("task") is not False:
        fix = "score answers to rows of your own: `tunesmith evaluate`"
        said.refuse("task", "names a benchmark, and none are run here", fix)
    elif said.has("export_dir") and said.raw("export_dir") is not False:
        said.refuse(
            "export_dir", "asks for an export", "write the model with its adapter: `tunesmith merge ADAPTER FOLDER`"
        )
    elif not said.take("do_train", bool, True):
        fix = "`tunesmith evaluate` scores a model on rows; to train, set do_train=true"
        said.refuse("do_train", "is false", fix)
    elif not said.has("do_train") and said.take("do_predict", bool, False):
        fix = "`tunesmith generate` writes answers and `tunesmith evaluate` scores them; to train, set do_train=true"
        said.refuse("do_predict", "stands without do_train", fix)
    elif said.take("stage", str) == "ppo":
        fix = "write a recipe with objective.kind policy and objective.rewards: [model:FOLDER] (docs/policy.md)"
        said.refuse("stage", "is ppo, for which there is no value model here", fix)
    else:
        return True
    return False


def objective(said: Said, stage: str) -> None:
    for key, stages in OF_PREFERENCES.items():
        said.raw(key)
        if stage not in stages:
            said.idle(key, f"stage is {stage}")
    at_rest(said, {"pref_bco_weight": 0})
    if stage == "rm":
        said.put("objective.kind", "reward", "stage")
    elif stage in ("dpo", "kto"):
        _preference(said, stage)
    elif said.has("stage"):
        said.put("objective.kind", "sft", "stage")


def _preference(said: Said, stage: str) -> None:
    said.put("objective.kind", "preference", "stage")
    loss = "kto" if stage == "kto" else said.choose("pref_loss", tuple(_LOSSES), "sigmoid")
    said.put("objective.loss", _LOSSES.get(loss, loss), *(there(said, "pref_loss") if stage == "dpo" else ("stage",)))
    said.put("objective.beta", said.take("pref_beta", float, 0.1), *there(said, "pref_beta"))
    own = said.take("pref_ftx", float, 0.0)
    if stage == "kto" and own:
        said.refuse(
            "pref_ftx", "stands beside stage kto", "leave it out: wanted answers are learned by kto's loss alone"
        )
    elif stage == "dpo":
        said.put("objective.nll_weight", own + (1.0 if loss == "orpo" else 0.0), *there(said, "pref_ftx"))
    smoothing = said.take("dpo_label_smoothing", float, 0.0)
    if stage == "dpo" and smoothing and loss != "sigmoid":
        said.refuse(
            "dpo_label_smoothing", f"stands beside pref_loss {loss}", "take pref_loss: sigmoid, or leave it out"
        )
    elif stage == "dpo" and loss == "sigmoid":
        said.put("objective.label_smoothing", smoothing, *there(said, "dpo_label_smoothing"))
    gamma = said.take("simpo_gamma", float, 0.5)
    if loss == "simpo":
        said.put("objective.gamma", gamma, *there(said, "simpo_gamma"))
    else:
        said.idle("simpo_gamma", f"the loss is {loss}")
    if stage == "kto":
        for key, setting in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
            said.put(f"objective.{setting}", said.take(key, float, 1.0), *there(said, key))
    _reference(said, loss)


def _reference(said: Said, loss: str) -> None:
    """The reference is where training begins, and no other model."""
    model, adapter = said.take("ref_model", str), said.take("ref_model_adapters", str)
    for key, given in (("ref_model", model), ("ref_model_adapters", adapter)):
        if given is not None and loss in ("orpo", "simpo"):
            said.idle(key, f"loss {loss} has no reference")
            continue
        there_too = "model_name_or_path" if key == "ref_model" else "adapter_name_or_path"
        if given is not None and given == said.take(there_too, str):
            said.carry(key, "the reference is what training begins with")
        elif given is not None:
            fix = f"leave it out, or begin there: {there_too}={given}"
            said.refuse(key, f"is {given}: the reference is what training begins with", fix)
    if model is not None and adapter is None and said.has("adapter_name_or_path") and loss not in ("orpo", "simpo"):
        fix = "leave ref_model out: the reference is the adapter that training goes on from"
        said.refuse("ref_model", "stands without ref_model_adapters", fix)
