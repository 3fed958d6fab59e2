"""scripts/setup.py: an environment whole, mended, or one sentence; with a pip that is played, but for one test."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from zipfile import ZipFile

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "setup.py"
HERE = "{}.{}".format(*sys.version_info[:2])
OFFLINE = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: Failed to establish a new connection'
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""


class Tools:
    """What `venv`, `ensurepip` and `pip` do to the files; `fails` says in which words one of them fails, `strikes` at
    which of them the program is struck down."""

    def __init__(self, venv: Path) -> None:
        self.venv, self.calls = venv, []
        self.fails: dict[str, str] = {}
        self.strikes: dict[str, BaseException] = {}
        self.version = HERE

    @property
    def site(self) -> Path:
        return self.venv / "lib" / f"python{HERE}" / "site-packages"

    def installs(self) -> list[str]:
        return [words for words in self.calls if words.startswith("pip install")]

    def __call__(self, command, **_):
        own = command[0] == str(self.venv / "bin" / "python")
        words = " ".join(command[2:] if command[1] in ("-m", "-Im") else command[1:])
        if own and not (self.venv / "bin" / "python").exists():
            raise FileNotFoundError(2, "No such file or directory", command[0])
        if words.startswith("-c"):
            return subprocess.CompletedProcess(command, 0, self.version, "")
        if words == "pip install --help":
            missing = not (self.site / "pip" / "whole").is_file()
            return subprocess.CompletedProcess(command, int(missing), "", "No module named 'pip._vendor'" * missing)
        self.calls.append(words)
        tool = words.split(" ")[0] if own or words.startswith("venv") else "system pip"
        if tool in self.strikes:
            self.half(tool)
            raise self.strikes[tool]
        if tool in self.fails:
            return subprocess.CompletedProcess(command, 1, "", self.fails[tool])
        if tool == "venv":
            self.python()
        elif tool in ("ensurepip", "system pip"):
            self.put("pip")
        else:
            self.put("torch" if "-e" not in words else "tunesmith")
        return subprocess.CompletedProcess(command, 0, "", "")

    def python(self):
        (self.venv / "bin").mkdir(parents=True, exist_ok=True)
        (self.venv / "bin" / "python").touch()
        self.site.mkdir(parents=True, exist_ok=True)
        (self.venv / "pyvenv.cfg").write_text("home = /usr/bin\n")

    def put(self, name):
        for folder in (self.site / name, self.site / f"{name}-1.0.dist-info"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.site / name / "whole").write_text("all of it")
        (self.site / f"{name}-1.0.dist-info" / "RECORD").write_text(f"{name}/whole,sha256=x,9\n{name}/a.pyc,,\n")

    def half(self, tool):
        """As a kill would leave it."""
        if tool == "venv":
            (self.venv / "bin").mkdir(parents=True)
        else:
            name = "pip" if tool == "ensurepip" else "torch"
            self.put(name)
            (self.site / name / "whole").unlink()


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The script as a module, in a repository of its own."""
    for name in ("TORCH", "TORCH_INDEX", "VENV"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("")
    tools = module.tools = Tools(tmp_path / ".venv")
    monkeypatch.setattr(module.subprocess, "run", tools)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def refused(setup, capsys, code=1) -> str:
    """The one sentence that it ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        setup.main([])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == code
    assert len(lines) == 1
    assert lines[0].startswith("setup: ")
    return lines[0]


def is_whole(setup) -> bool:
    state = (setup.VENV / ".tunesmith").read_text()
    return state == setup.stamp() and not setup.torn() and (setup.tools.site / "tunesmith" / "whole").is_file()


def test_made_once_then_quick(setup):
    setup.main([])
    assert is_whole(setup)
    assert [words.split(" ")[0] for words in setup.tools.calls] == ["venv", "ensurepip", "pip", "pip"]
    assert "torch==2.13.0" in setup.tools.installs()[0]
    assert "-c constraints.txt torch==2.13.0 -e .[demo,dev]" in setup.tools.installs()[1]
    setup.tools.calls.clear()
    setup.main([])
    assert setup.tools.calls == []


@pytest.mark.parametrize(("name", "value"), [("TORCH", "torch==2.12.0"), ("TORCH_INDEX", "https://example.org/cpu")])
def test_another_torch_is_installed_into_the_same_environment(setup, monkeypatch, name, value):
    setup.main([])
    (setup.VENV / "kept").touch()
    setup.tools.calls.clear()
    monkeypatch.setattr(setup, name, value)
    setup.main([])
    assert value in setup.tools.installs()[0]
    assert len(setup.tools.calls) == 2
    assert (setup.VENV / "kept").exists()
    assert is_whole(setup)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_other_needs_are_installed(setup, name):
    setup.main([])
    setup.tools.calls.clear()
    (setup.ROOT / name).write_text("# changed\n")
    setup.main([])
    assert len(setup.tools.installs()) == 2


def test_an_old_python_is_one_sentence(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    assert "Python 3.11 or newer is needed" in refused(setup, capsys)
    assert setup.tools.calls == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OFFLINE, "the package registry cannot be reached"),
        ("Failed to establish a new connection: [Errno 111] Connection refused\nNo matching distribution", "refuses"),
        ("NameResolutionError: [Errno -3] Temporary failure in name resolution\nNo matching distribution", "reached"),
        ("ProxyError('Cannot connect to proxy.', OSError())\nERROR: No matching distribution", "the proxy"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED\nERROR: No matching distribution found", "certificate"),
        ("ERROR: No matching distribution found for torch==99", "does not have it"),
        ("ReadTimeoutError: Read timed out.", "too slow"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("something else\nfailed", "failed (all of it: setup.log)"),
    ],
)
def test_each_failure_of_pip_is_one_sentence_and_the_next_make_goes_on(setup, capsys, text, words):
    setup.tools.fails["pip"] = text
    said = refused(setup, capsys)
    assert said.startswith("setup: torch==2.13.0 cannot be installed: ")
    assert words in said
    setup.tools.fails.clear()
    setup.tools.calls.clear()
    setup.main([])
    assert is_whole(setup)
    assert len(setup.tools.calls) == 2  # the environment itself was whole, and stayed


def test_a_disk_without_room_is_told_before_anything_is_made(setup, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: usage(10**10, 9 * 10**9, 10**9))
    assert "the disk has 1.0 GB free" in refused(setup, capsys)
    assert not setup.VENV.exists()


def test_a_disk_that_fills_up_is_one_sentence(setup, monkeypatch, capsys):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert "the disk is full" in refused(setup, capsys)


@pytest.mark.parametrize("tool", ["venv", "ensurepip", "pip"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_struck_down_it_says_so_and_the_next_make_mends_it(setup, capsys, tool, number):
    setup.tools.strikes[tool] = setup.Stopped(int(number))
    assert "interrupted" in refused(setup, capsys, 128 + number)
    setup.tools.strikes.clear()
    setup.main([])
    assert is_whole(setup)
    assert "making it anew" in capsys.readouterr().out


def test_what_was_installed_by_half_beside_the_rest_is_found(setup, capsys):
    """Killed outright, in the midst of a change: nothing was said, and pip would call it installed."""
    setup.main([])
    for spoil in (
        lambda site: (site / "torch" / "whole").unlink(),
        lambda site: (site / "torch" / "whole").write_text("half"),
        lambda site: (site / "torch-1.0.dist-info" / "RECORD").unlink(),
        lambda site: (site / "~orch").mkdir(),
    ):
        (setup.VENV / ".tunesmith").write_text("unfinished")
        spoil(setup.tools.site)
        capsys.readouterr()
        setup.main([])
        assert "making it anew" in capsys.readouterr().out
        assert is_whole(setup)


def test_a_kill_while_the_old_one_is_taken_away_leaves_what_is_ours(setup, monkeypatch):
    def strike(*_, **__):
        raise setup.Stopped(15)

    setup.main([])
    (setup.VENV / ".tunesmith").write_text("unfinished")
    (setup.tools.site / "torch" / "whole").unlink()
    with monkeypatch.context() as struck:
        struck.setattr(setup.shutil, "rmtree", strike)
        with pytest.raises(SystemExit):
            setup.main([])
    assert setup.is_ours()
    setup.main([])
    assert is_whole(setup)


def test_another_python_gets_its_own(setup, monkeypatch, capsys):
    setup.main([])
    setup.tools.version = "3.10"
    monkeypatch.setattr(setup.sys, "version", "3.13.0 (main)")
    setup.main([])
    assert f"is of Python 3.10, not {HERE}: making it anew" in capsys.readouterr().out


def test_a_python_that_is_gone_is_made_anew(setup):
    setup.main([])
    (setup.VENV / "bin" / "python").unlink()
    setup.main([])
    assert (setup.VENV / "bin" / "python").exists()
    assert is_whole(setup)


def test_debian_without_python3_venv_takes_the_systems_pip(setup):
    setup.tools.fails["ensurepip"] = "/x/.venv/bin/python: No module named ensurepip"
    setup.main([])
    assert f"pip --python {setup.VENV / 'bin' / 'python'} install --quiet pip" in setup.tools.calls
    assert is_whole(setup)


@pytest.mark.parametrize("text", ["/usr/bin/python3: No module named pip", "no such option: --python"])
def test_debian_without_either_says_what_to_install_and_goes_on_then(setup, capsys, text):
    setup.tools.fails = {"ensurepip": "No module named ensurepip", "system pip": text}
    assert "apt-get install python3-venv" in refused(setup, capsys)
    assert "apt-get install python3-venv" in refused(setup, capsys)
    setup.tools.fails.clear()
    setup.main([])
    assert is_whole(setup)


def test_a_python_without_venv_says_what_to_install(setup, capsys):
    setup.tools.fails["venv"] = "/usr/bin/python3: No module named venv"
    assert "apt-get install python3-venv" in refused(setup, capsys)


def test_a_folder_that_is_no_environment_is_left_alone(setup, capsys):
    setup.VENV.mkdir()
    (setup.VENV / "letters.txt").write_text("dear")
    assert "is not a virtual environment" in refused(setup, capsys)
    setup.main(["--remove"])
    assert [path.name for path in setup.VENV.iterdir()] == ["letters.txt"]
    assert setup.tools.calls == []


def test_an_environment_of_others_gets_what_it_lacks_and_loses_nothing(setup, capsys):
    setup.tools.python()  # as Debian's venv leaves it where ensurepip is missing
    (setup.VENV / "mine").touch()
    setup.main([])
    assert is_whole(setup)
    assert not setup.is_ours()
    (setup.VENV / ".tunesmith").write_text("unfinished")
    (setup.tools.site / "torch" / "whole").unlink()
    assert "torch is installed by half" in refused(setup, capsys)
    assert (setup.VENV / "mine").exists()


def test_a_link_to_an_environment_is_not_ours(setup):
    elsewhere = setup.ROOT / "elsewhere"
    setup.main([])
    setup.VENV.rename(elsewhere)
    setup.VENV.symlink_to(elsewhere)
    assert not setup.is_ours()
    setup.main(["--remove"])
    assert not setup.VENV.is_symlink()
    assert (elsewhere / ".tunesmith").exists()


def test_two_at_once_wait_for_each_other(setup, monkeypatch, capsys):
    asked = []

    def flock(_, operation):
        asked.append(operation)
        if operation & setup.fcntl.LOCK_NB:
            setup.prepare()
            (setup.VENV / ".tunesmith").write_text(setup.stamp())  # the other one ends meanwhile
            raise BlockingIOError

    monkeypatch.setattr(setup.fcntl, "flock", flock)
    setup.main([])
    assert len(asked) == 2
    assert "waiting for another make" in capsys.readouterr().out
    assert setup.tools.installs() == []


def test_clean_takes_what_make_made(setup):
    setup.main([])
    setup.main(["--remove"])
    assert not setup.VENV.exists()
    setup.main(["--remove"])


BACKEND = """\
import zipfile

def build_editable(folder, settings=None, metadata=None):
    name, info = "tunesmith-0.1-py3-none-any.whl", "tunesmith-0.1.dist-info"
    files = {
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: tunesmith\\nVersion: 0.1\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""


@pytest.mark.slow
def test_with_the_real_pip_struck_down_and_run_again(tmp_path):
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "scripts" / "setup.py")
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    wheel = tmp_path / "torch-2.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as file:
        for name, text in {
            "torch/__init__.py": "",
            "torch-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n",
            "torch-2.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "torch-2.0.dist-info/RECORD": "torch/__init__.py,,\ntorch-2.0.dist-info/METADATA,,\n"
            "torch-2.0.dist-info/WHEEL,,\ntorch-2.0.dist-info/RECORD,,\n",
        }.items():
            file.writestr(name, text)
    environment = {**os.environ, "TORCH": str(wheel), "VENV": ".venv", "PIP_NO_INDEX": "1"}

    def begin():
        return subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    for stage in ("bin/python", f"lib/python{HERE}/site-packages/pip/_vendor", ".tunesmith"):
        process = begin()
        until = time.monotonic() + 60
        while not (tmp_path / ".venv" / stage).exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert error == "setup: interrupted; make goes on from here when it is run again\n"
    process = begin()
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    assert (tmp_path / ".venv" / ".tunesmith").read_text() not in ("", "unfinished")
    begun = time.perf_counter()
    assert begin().communicate(timeout=60) == ("", "")
    assert time.perf_counter() - begun < 5
