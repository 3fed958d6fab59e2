"""Of an Axolotl file: where the run goes, and who else gets its numbers."""

from __future__ import annotations

from tunesmith.dialects.base import Said, there

_NAMES = ("wandb_name", "trackio_run_name", "mlflow_run_name")
_SAME = ("liger", "cut_cross_entropy", "kernels")
"""Plugins that bring what the kernels here do anyway."""


def output(said: Said) -> None:
    said.put("output.folder", said.take("output_dir", str, "model-out"), *there(said, "output_dir"))
    services = {
        "wandb": ("use_wandb", "wandb_project"),
        "trackio": ("use_trackio", "trackio_project_name"),
        "mlflow": ("use_mlflow",),
        "tensorboard": ("use_tensorboard",),
    }
    chosen = {}
    for service, (switch, *projects) in services.items():
        on = said.take(switch, bool)
        if on or (on is None and said.has(*projects)):
            chosen[service] = [key for key in (switch, *projects) if said.has(key)]
    if chosen:
        said.put("output.report_to", list(chosen), *(key for keys in chosen.values() for key in keys))
    project, team = said.take("wandb_project", str), said.take("wandb_entity", str)
    if "wandb" in chosen and project:
        said.put(
            "output.project", f"{team}/{project}" if team else project, "wandb_project", *there(said, "wandb_entity")
        )
    elif "trackio" in chosen and said.has("trackio_project_name"):
        said.put("output.project", said.take("trackio_project_name", str), "trackio_project_name")
    for key in ("wandb_entity", "wandb_project", "trackio_project_name"):
        if said.has(key):
            said.idle(key, "its service is off")
    name = next((key for key in _NAMES if said.has(key)), None)
    if name is not None:
        said.put("output.name", said.take(name, str), name)
    for other in _NAMES:
        if said.has(other) and other != name:
            said.idle(other, f"{name} names the run")
    odd = [name for name in said.items("plugins", str) if not any(word in name.lower() for word in _SAME)]
    if odd:
        said.refuse("plugins", f"names {', '.join(odd)}, which does not exist here", "take it out")
