"""Of an Axolotl file: where the run goes, and who else gets its numbers."""

from __future__ import annotations

import os

from tunesmith.dialects.base import Said, instead, left_over, there

_NAMES = ("wandb_name", "trackio_run_name", "mlflow_run_name")
_SAME = ("liger", "cut_cross_entropy", "kernels")
"""Plugins that bring what the kernels here do anyway."""
_SERVICES = {
    "wandb": ("use_wandb", "wandb_project"),
    "trackio": ("use_trackio", "trackio_project_name"),
    "mlflow": ("use_mlflow",),
    "tensorboard": ("use_tensorboard",),
}


def output(said: Said) -> None:
    said.put("output.folder", said.take("output_dir", str, "model-out"), *there(said, "output_dir"))
    chosen = _services(said)
    if chosen:
        said.put("output.report_to", list(chosen), *(key for keys in chosen.values() for key in keys))
    project, team = said.take("wandb_project", str), said.take("wandb_entity", str)
    if "wandb" in chosen and project:
        said.put(
            "output.project", f"{team}/{project}" if team else project, "wandb_project", *there(said, "wandb_entity")
        )
    elif "trackio" in chosen and said.has("trackio_project_name"):
        said.put("output.project", said.take("trackio_project_name", str), "trackio_project_name")
    left_over(said, "its service is off", "wandb_entity", "wandb_project", "wandb_mode", "trackio_project_name")
    name = next((key for key in _NAMES if said.has(key)), None)
    if name is not None:
        said.put("output.name", said.take(name, str), name)
    left_over(said, f"{name} names the run", *_NAMES)
    odd = [name for name in said.items("plugins", str) if not any(word in name.lower() for word in _SAME)]
    if odd:
        said.refuse("plugins", f"names {', '.join(odd)}, which does not exist here", "take it out")


def _services(said: Said) -> dict[str, list[str]]:
    """Who gets the numbers, each with the keys that say so."""
    chosen = {}
    for service, (switch, *projects) in _SERVICES.items():
        on = said.take(switch, bool)
        if on or (on is None and said.has(*projects)):
            chosen[service] = [key for key in (switch, *projects) if said.has(key)]
    mode = said.take("wandb_mode", str, "online")
    if "wandb" in chosen and mode == "disabled":
        said.carry("wandb_mode", "nothing is sent to wandb")
        left_over(said, "wandb_mode is disabled", *_SERVICES["wandb"], "wandb_entity")
        del chosen["wandb"]
    elif "wandb" in chosen and mode == "offline" and os.environ.get("WANDB_MODE") != mode:
        fix = "say `export WANDB_MODE=offline` in the shell: then it is kept, and not sent"
        said.refuse("wandb_mode", "is offline, and a file changes no environment here", fix)
    elif "wandb" in chosen and mode not in ("online", "offline"):
        known = ("online", "offline", "disabled")
        fix = instead("wandb_mode", mode, known, "online")
        said.refuse("wandb_mode", f"cannot be {mode}", fix, expected=", ".join(known))
    elif "wandb" in chosen and said.has("wandb_mode"):
        said.carry("wandb_mode", f"wandb is {mode}")
    return chosen
