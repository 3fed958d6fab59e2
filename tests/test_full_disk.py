"""A disk that is really full, at whatever file: a sentence, exit code 4, and what was saved goes on when there is room.

The disks are small tmpfs, which only root on Linux may mount; elsewhere these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import make_model, make_rows, recipe
from test_run import result
from typer.testing import CliRunner

from tunesmith import cli
from tunesmith.notation import write
from tunesmith.train.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("needs Linux and mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system may not be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


def invoke(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def leave(disk: Path, num_bytes: int) -> Path:
    """A file that takes all of the disk but so much."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    usage = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, usage.f_bavail * usage.f_frsize - num_bytes))
    return ballast


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def recipe_file(place, folder, name="r.yaml"):
    path = place / name
    path.write_text(write(recipe(place / "model", place / "rows.jsonl", folder, keep_checkpoints=9)))
    return path


def test_a_run_on_a_disk_that_fills_at_any_of_its_files_is_resumed_as_if_nothing_had_been(place, disk):
    file = recipe_file(place, place / "unbroken")
    assert invoke("train", file).exit_code == 0
    unbroken, needed = result(place / "unbroken"), used(place / "unbroken")
    broken = 0
    for share in (0.0, 0.002, 0.01, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.86, 0.9, 0.94, 0.97, 1.2):
        folder = disk / "run"
        file = recipe_file(place, folder)
        ballast = leave(disk, int(share * needed))
        done = invoke("train", file)
        assert done.exit_code in (0, 4), (share, done.output)
        if done.exit_code:
            broken += 1
            last = [line for line in done.stderr.splitlines() if not line.startswith(" ")][-1]
            assert last.startswith("MachineError: "), (share, done.stderr)
            summary = folder / "summary.json"
            assert not summary.exists() or json.loads(summary.read_text())["status"] in ("unfinished", "failed")
            assert "space" in done.stderr.lower() or "full" in done.stderr, (share, done.stderr)
        checkpoints = Checkpoints(folder / "checkpoints", 9)
        assert [step for step in checkpoints.steps() if checkpoints.problem(step)] == [], share
        assert not list(folder.rglob(".*")), "nothing half-made takes the room that is left"
        ballast.unlink()
        again = invoke("train", file, "--resume")
        assert again.exit_code == 0, (share, again.output)
        assert result(folder) == unbroken, share
        shutil.rmtree(folder)
    assert broken >= 8


def test_merging_onto_a_full_disk_leaves_nothing_and_is_done_when_there_is_room(place, disk):
    if not (place / "whole").exists():
        assert invoke("train", recipe_file(place, place / "whole")).exit_code == 0
    assert invoke("merge", place / "whole", place / "merged").exit_code == 0
    needed = used(place / "merged")
    for share in (0.0, 0.3, 0.6, 0.95):
        ballast = leave(disk, int(share * needed))
        done = invoke("merge", place / "whole", disk / "merged")
        assert done.exit_code == 4, (share, done.output)
        assert "MachineError" in done.stderr
        assert "No space left" in done.stderr or "full" in done.stderr, (share, done.stderr)
        assert [path.name for path in disk.iterdir()] == ["ballast"], share
        ballast.unlink()
    assert invoke("merge", place / "whole", disk / "merged").exit_code == 0
    assert (disk / "merged" / "model.safetensors").read_bytes() == (place / "merged" / "model.safetensors").read_bytes()
    shutil.rmtree(place / "merged")


def test_answers_on_a_full_disk_are_kept_and_go_on_when_there_is_room(place, disk):
    if not (place / "whole").exists():
        assert invoke("train", recipe_file(place, place / "whole")).exit_code == 0
    prompts = place / "prompts.txt"
    prompts.write_text("".join(f"{'long ' * 40} question {i}\n" for i in range(40)))
    words = ("generate", place / "whole", "--file", prompts, "--max-new-tokens", 2, "--batch-size", 4)
    assert invoke(*words, "--out", place / "answers.jsonl").exit_code == 0
    ballast = leave(disk, 8192)
    done = invoke(*words, "--out", disk / "answers.jsonl")
    assert done.exit_code == 4, done.output
    assert "No space left on device" in done.stderr
    ballast.unlink()
    done = invoke(*words, "--out", disk / "answers.jsonl")
    assert done.exit_code == 0, done.output
    assert "0 were there" not in done.stderr
    assert (disk / "answers.jsonl").read_bytes() == (place / "answers.jsonl").read_bytes()
    leave(disk, 0)
    scored = ("evaluate", place / "whole", "--score", "f1", "--max-new-tokens", 2, "--out", disk / "scored.jsonl")
    done = invoke(*scored)
    assert done.exit_code == 4, done.output
    assert "No space left on device" in done.stderr
