"""The model card: what was trained, on what, how, and with which result, for whoever finds the adapter later.

Made from the run folder alone. The names of `summary.json` that it knows beside the loop's own:

    base_model, base_digest     hub id or folder name of the base, and the digest of its weights
    base_storage                how its matrices were held: plain, nf4 …
    trained_parameters, total_parameters
    rows, held_out_rows, dropped_rows, truncated_rows, learned_tokens_per_epoch
    data_digest                 of the training file(s)
    before, after               held-out metrics of the base and of the best checkpoint
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from tunesmith.atomic import write_file
from tunesmith.notation import write


def write_card(folder: Path) -> None:
    """README.md in the run folder, and in those of its folders that hold an adapter."""
    text = card(folder)
    for place in [folder, *(config.parent for config in sorted(folder.glob("*/adapter_config.json")))]:
        write_file(place / "README.md", text)


def card(folder: Path) -> str:
    """The card's text, front matter first."""
    summary, environment, recipe = (
        _read(folder / name) for name in ("summary.json", "environment.json", "provenance.json")
    )
    recipe = recipe["recipe"]
    base = str(summary.get("base_model") or public(recipe["model"]["name"]))
    front = {
        "library_name": "peft",
        "base_model": base,
        "pipeline_tag": _PIPELINES.get(recipe["objective"]["kind"], "text-generation"),
        "tags": ["tunesmith", recipe["adapter"]["method"], recipe["objective"]["kind"]],
    }
    licence = recipe["output"].get("licence")
    if licence:
        front["license"] = licence
    name = recipe["output"].get("name") or folder.absolute().name
    version = environment["versions"].get("tunesmith", "")
    sections = [
        f"---\n{write(front)}---\n",
        f"# {name}\n\nAn adapter for **{base}**, trained with Tunesmith {version}.\n",
        _table("Training", _training(recipe, summary)),
        _table("Data", _data(recipe, summary)),
        _table("Results", _results(summary)),
        _table("Made with", _made_with(environment, summary)),
        _use(base, recipe["objective"]["kind"], summary.get("outputs")),
        f"## Licence\n\n{licence or 'Not stated by its maker. The terms of the base model and of the data apply.'}\n",
    ]
    return "\n".join(section for section in sections if section)


_BUDGETS = ("steps", "epochs", "tokens", "minutes")
_PIPELINES = {"classify": "text-classification", "reward": "text-classification"}


def _use(base: str, kind: str, outputs: int | None) -> str:
    """How the adapter is asked, by our command and with PEFT."""
    ask, auto, more = "tunesmith chat FOLDER", "AutoModelForCausalLM", ""
    if kind in _PIPELINES:
        ask, auto = 'tunesmith generate FOLDER "a text"', "AutoModelForSequenceClassification"
        more = "" if outputs is None else f", num_labels={outputs}"
    return (
        f"## Use\n\n```sh\n{ask}\n```\n\nor with PEFT:\n\n```python\nfrom peft import PeftModel\n"
        f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained({base!r}{more})\n"
        'model = PeftModel.from_pretrained(model, "FOLDER")\n```\n'
    )


def _training(recipe: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    adapter, train = recipe["adapter"], recipe["train"]
    letters = ", ".join(
        f"{key} {value}" for key, value in adapter.items() if key != "method" and value not in (None, [])
    )
    budget = next(f"{train[kind]:,.12g} {kind}" for kind in _BUDGETS if train.get(kind) is not None)
    trained, total = summary.get("trained_parameters"), summary.get("total_parameters")
    batch = f"{train['batch_size']} rows" if train["batch_size"] else f"about {train['batch_tokens']:,} tokens"
    share = f"{trained:,} of {total:,} ({trained / total:.2%})" if trained and total else None
    return {
        "method": f"{adapter['method']} ({letters})",
        "base held in": summary.get("base_storage"),
        "objective": recipe["objective"]["kind"],
        "weights trained": share,
        "budget": f"{budget}; {summary['step']} steps done, ended: {summary['reason']}",
        "batch": f"{batch} a step",
        "optimizer": f"{train['optimizer']}, learning rate {train['learning_rate']:g}, {train['schedule']}",
        "seed": train["seed"],
    }


def _data(recipe: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    data = recipe["data"]
    train = data["train"]
    sources = [{"path": train}] if isinstance(train, str) else train
    return {
        "source": ", ".join(_source(source) for source in sources),
        "format": ", ".join(dict.fromkeys(_shape(source.get("format") or data["format"]) for source in sources)),
        "rows": summary.get("rows"),
        "held out": summary.get("held_out_rows"),
        "dropped": summary.get("dropped_rows"),
        "truncated": summary.get("truncated_rows"),
        "digest": summary.get("data_digest"),
    }


def _source(source: dict[str, Any]) -> str:
    weight = source.get("weight", 1)
    return public(source["path"]) + (f" (weight {weight:g})" if weight != 1 else "")


def _shape(form: str | dict[str, Any]) -> str:
    return form if isinstance(form, str) else "template over its columns"


def _results(summary: dict[str, Any]) -> dict[str, Any]:
    results: dict[str, Any] = {"last training loss": _rounded(summary.get("final_loss"))}
    for name, value in (summary.get("best_metrics") or {}).items():
        results[f"held-out {name} (best, step {summary.get('best_step')})"] = _rounded(value)
    if summary.get("published") == "last":
        results["adapter"] = f"of the last step, {summary.get('step')}"
    for when in ("before", "after"):
        for name, value in (summary.get(when) or {}).items():
            results[f"{name} {when}"] = _rounded(value)
    return results


def _made_with(environment: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    seconds, evaluating, saving = (summary[f"{name}_seconds"] for name in ("train", "evaluation", "saving"))
    return {
        "command": f"`{shlex.join(public(word) for word in environment['command'])}`",
        "time": f"{seconds:,.0f} s of training, {evaluating:,.0f} s of evaluation, {saving:,.0f} s of saving",
        "tokens": f"{summary['num_tokens']:,}",
        "tokens per second": _rounded(summary.get("tokens_per_second")),
        "machine": f"{environment['processor']}, {environment['cores']} cores"
        + "".join(f", {gpu}" for gpu in environment.get("gpus", [])),
        "versions": ", ".join(f"{package} {version}" for package, version in environment["versions"].items()),
        "commit": environment.get("commit"),
        "base digest": summary.get("base_digest"),
        "finished": environment.get("started", "")[:10],
    }


_PATH_WITHIN = re.compile(r"""(?<![\w.}])/[^\s,\]}"']+""")


def public(text: str) -> str:
    """Hub ids and flags as they are; of an absolute path its last part: a card is read by strangers."""
    head, equals, value = text.partition("=")
    if equals and value.startswith("/"):
        return f"{head}={Path(value).name}"
    if equals and value.startswith(("[", "{")):  # a list of sources
        return f"{head}={_PATH_WITHIN.sub(lambda path: Path(path.group()).name, value)}"
    return Path(text).name if text.startswith("/") else text


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n" if lines else ""


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values
