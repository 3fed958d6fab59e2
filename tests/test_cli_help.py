"""Help is instant and loads nothing heavy; errors are sentences with their own exit code."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith import cli
from tunesmith.errors import DataError, Interrupted, MachineError, RecipeError

VERBS = ["train", "check", "chat", "generate", "evaluate", "compare", "merge", "methods", "doctor", "demo"]


class Finer(DataError):
    """Of the kind that is raised within, and is no name that anybody knows."""


HEAVY = ("torch", "transformers", "datasets", "numpy", "matplotlib", "yaml", "jinja2", "huggingface_hub")


@pytest.mark.parametrize("arguments", [[], *[[verb] for verb in VERBS]], ids=["tunesmith", *VERBS])
def test_help_loads_nothing_heavy(arguments):
    script = (
        f"import sys; sys.argv = ['tunesmith', *{arguments!r}, '--help']\n"
        "from tunesmith.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Usage: tunesmith" in done.stdout


def test_help_lists_every_verb():
    text = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(f" {verb} " in text for verb in VERBS)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("no", where="r.yaml, line 3", fix="yes"), 2),
        (MachineError("full"), 4),
        (Interrupted("stopped", signal_number=15), 143),
        (Finer("no"), 2),
    ],
)
def test_an_error_is_a_sentence_on_stderr_with_its_exit_code(error, code, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("tunesmith.dialects.read.load", fails)
    done = CliRunner().invoke(cli.app, ["train", "r.yaml"])
    assert done.exit_code == code
    assert done.stderr == f"{error.public_name}: {error}\n"
    assert f"`{error.public_name}`" in (Path(__file__).parents[1] / "docs" / "errors.md").read_text()
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: the disk is full"),
    ],
)
def test_a_lack_of_memory_or_disk_is_a_sentence_wherever_it_shows(error, said, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("tunesmith.dialects.read.load", fails)
    done = CliRunner().invoke(cli.app, ["train", "r.yaml"])
    assert done.exit_code == 4
    assert done.stderr.startswith(f"MachineError: {said}\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EIO, "Input/output error")])
def test_other_errors_keep_their_traceback(error, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("tunesmith.dialects.read.load", fails)
    assert CliRunner().invoke(cli.app, ["train", "r.yaml"]).exception is error


def test_an_interrupt_is_130(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.dialects.read.load", interrupted)
    assert CliRunner().invoke(cli.app, ["train", "r.yaml"]).exit_code == 130


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(how):
    command = [sys.executable, "-m", "tunesmith", "generate", "somewhere"]
    environment = {key: value for key, value in os.environ.items() if key != "TUNESMITH_DEBUG"}
    plain = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert plain.returncode == 2
    assert plain.stderr.startswith("RecipeError: command line: there is no prompt")
    assert "Traceback" not in plain.stderr
    if how == "option":
        debugged = subprocess.run([*command, "--debug"], capture_output=True, text=True, env=environment)
    else:
        debugged = subprocess.run(command, capture_output=True, text=True, env={**environment, "TUNESMITH_DEBUG": "1"})
    assert "Traceback" in debugged.stderr
    assert "RecipeError: command line: there is no prompt" in debugged.stderr


def test_overrides_reach_the_recipe(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        "tunesmith.dialects.read.load", lambda path, overrides, strict: seen.update(path=path, overrides=overrides)
    )
    stand_in = type(sys)("tunesmith.run")
    stand_in.train = lambda resolved, **options: seen.update(options)
    monkeypatch.setitem(sys.modules, "tunesmith.run", stand_in)
    monkeypatch.setattr("tunesmith.run", stand_in, raising=False)
    arguments = ["train", "r.yaml", "train.steps=3", "data.limit=", "--resume", "--trust-remote-code"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert seen["overrides"] == ["train.steps=3", "data.limit="]
    assert (seen["resume"], seen["trust_remote_code"]) == (True, True)


def test_methods_are_listed_from_their_own_headers():
    text = CliRunner().invoke(cli.app, ["methods"]).output
    assert "lora" in text
    assert "2106.09685" in text


def test_generate_wants_exactly_one_source_of_prompts():
    done = CliRunner().invoke(cli.app, ["generate", "somewhere"])
    assert done.exit_code == 2
    assert "give one prompt, or --file" in done.stderr


def test_doctor_tells_programs_and_people():
    done = CliRunner().invoke(cli.app, ["doctor", "--json"])
    findings = json.loads(done.stdout)["findings"]
    assert {"python", "torch", "processor", "products", "disk here", "C compiler"} <= {f["name"] for f in findings}
    assert "hub" not in {f["name"] for f in findings}
    assert done.exit_code == (4 if any(f["verdict"] == "bad" for f in findings) else 0)
    assert CliRunner().invoke(cli.app, ["doctor"]).output.count("\n") >= len(findings)
