"""Every recipe loads, shows its rows, and trains for two steps on a tiny model in place of its own."""

from __future__ import annotations

import json

import pytest
import workshop

RECIPES = sorted((workshop.ROOT / "recipes").glob("*.yaml"))
STUDIES = sorted((workshop.ROOT / "recipes" / "studies").glob("*.yaml"))
SEARCHES = sorted((workshop.ROOT / "recipes" / "searches").glob("*.yaml"))
SMALLER = {name: ["adapter.last_blocks=1"] for name in ("chat_identity", "last_blocks")}
SMALLER |= {"base_model_template": ["data.limit=40"]}
SMALLER |= {
    name: ["data.limit=40", "data.held_out=4"] for name in ("alpaca", "function_calling", "qlora", "spam", "squad")
}
SMALLER |= {"plain_text": ["data.limit=4", "data.max_length=256"]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """With the SQL data (a small part of it), and an adapter for the recipe that goes on from one."""
    folder = workshop.make(tmp_path_factory.mktemp("recipes"))
    script = "import sys; sys.path.insert(0, 'recipes/data'); from make_sql import write; "
    script += "from pathlib import Path; from tunesmith.demo.task import make_task; "
    script += "write(Path('recipes/data/sql'), make_task(num_rows=40, num_test=4))"
    workshop.run(f'python -c "{script}"', folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        workshop.run("tunesmith train recipes/marketing_mail.yaml", folder)
        yield folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps(path, checkout):
    overrides = SMALLER.get(path.stem, [])
    short = [word for word in workshop.SHORT if not any(word.split("=")[0] in given for given in overrides)]
    file = str(checkout / "recipes" / path.name)
    if "../shared/" in path.read_text() and not workshop.SHARED.is_dir():
        pytest.skip("the shared data is not beside the repository")
    checked = workshop.run(" ".join(["tunesmith check", file, *overrides, *short, "--json", "--rows 0"]), checkout)
    counts = json.loads(checked)["train"]
    assert counts["kept"] >= 4
    assert counts["learned"] > 0 or any(f"kind: {kind}" in path.read_text() for kind in ("policy", "classify"))
    workshop.run(" ".join(["tunesmith train", file, *overrides, f"output.folder=runs/two-{path.stem}"]), checkout)
    summary = json.loads((checkout / "runs" / f"two-{path.stem}" / "summary.json").read_text())
    assert summary["step"] == 2
    assert (checkout / "runs" / f"two-{path.stem}" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_are_sound(path, checkout):
    """All that a study says is checked, on a tiny model and its own rows; nothing is trained."""
    from tunesmith.compare.checks import plan
    from tunesmith.compare.settings import load

    if "../shared/" in path.read_text() and not workshop.SHARED.is_dir():
        pytest.skip("the shared data is not beside the repository")
    out = checkout / "runs" / f"study-{path.stem}"
    planned = plan(load(checkout / "recipes" / "studies" / path.name, [f"folder={out}", "shared.data.limit=200"]))
    assert len(planned.arms) >= 2
    assert planned.baseline == planned.arms[0].name


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_searches_are_sound(path, checkout):
    from tunesmith.search.checks import plan
    from tunesmith.search.settings import load

    if not workshop.SHARED.is_dir():
        pytest.skip("the shared data is not beside the repository")
    out = checkout / "runs" / f"search-{path.stem}"
    planned = plan(load(checkout / "recipes" / "searches" / path.name, [f"folder={out}", "shared.data.limit=200"]))
    assert planned.own in planned.first
    assert planned.trials >= 2


@pytest.mark.slow
@pytest.mark.skipif(not workshop.SHARED.is_dir(), reason="the shared data is not beside the repository")
def test_squad_beats_always_refusing():
    """Trained for real: exact match on the 956 validation rows, paired with a model that always refuses."""
    import subprocess
    import sys

    command = [sys.executable, "squad.py", "--no-write"]
    done = subprocess.run(command, cwd=workshop.ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["tuned less always refuse"]["exact"]["low"] > 0
    assert figures["tuned less base"]["exact"]["low"] > 0


def test_squad_answers():
    """The answer is the first of the list, a text as it is, and the refusal where there is none."""
    from tunesmith.data.rows.template_rows import template
    from tunesmith.data.settings import TemplateFormat
    from tunesmith.data.types import Origin
    from tunesmith.notation import read

    text = (workshop.ROOT / "recipes" / "squad.yaml").read_text()
    form = template(TemplateFormat(**read(text, "squad.yaml").value["data"]["format"]))
    row = {"context": "It rained.", "question": " Did it? "}
    said = [form(row | {"answers": answers}, Origin("squad", 1)).messages for answers in (["yes", "it did"], "yes", [])]
    assert [turns[-1].content for turns in said] == ["yes", "yes", "Cannot find answer"]
    assert said[0][1].content == "Context: It rained.\n\nQuestion: Did it?"
