"""Whole runs of a tiny model, each in a process of its own that a test may strike down.

`python small_run.py` is a server: it imports everything once, then forks a child for each line of JSON that it reads
and answers with the child's exit status. `Server` talks to it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make_model(folder: Path) -> Path:
    """A tiny Llama with a byte-level tokenizer and a chat template."""
    sys.path.insert(0, str(HERE / "data"))
    from tiny_tokenizers import CHATML, byte_level
    from transformers import AutoModelForCausalLM

    from tunesmith.models.tiny import config, randomise

    tokenizer = byte_level(CHATML)
    shape = config("llama")
    shape.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(path: Path, count: int, answer: str = "it is what it is") -> Path:
    rows = [{"prompt": f"what is {i}", "completion": f"{answer} {i * i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(model: Path, rows: Path, folder: Path, **train) -> dict:
    """Plain values: 10 rows of which 3 held out, batches of 2, dropout, shuffled, two epochs."""
    settings = {"epochs": 2, "batch_size": 2, "learning_rate": 0.01, "evaluate_every": 3, "save_every": 1, **train}
    return {
        "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(rows), "held_out": 3},
        "adapter": {"r": 2, "dropout": 0.2},
        "train": settings,
        "output": {"folder": str(folder)},
    }


class Forks:
    """A server that forks a child for each line; `ask` returns its exit status as a shell tells it (128 + n for a
    signal)."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def ask(self, order: dict) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the server is gone"
        status = int(line)
        return status if status >= 0 else 128 - status

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


class Server(Forks):
    """Starts runs."""

    def __init__(self) -> None:
        super().__init__(__file__, CANARY_TOKEN=CANARY, HF_TOKEN=CANARY)

    def run(self, values: dict, *, resume: bool = False, strike: dict | None = None, log: Path | None = None) -> int:
        """`strike`: {"target": "module:path", "call": n, "signal": s}: the signal comes as the n-th call begins."""
        return self.ask({"values": values, "resume": resume, "strike": strike, "log": str(log) if log else None})


CANARY = "canary-7f3e-secret-of-the-environment"


def no_network() -> None:
    """Any connection is an error."""
    import socket

    def refuse(*_: object) -> None:
        raise OSError("the network was asked for")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    socket.create_connection = refuse  # type: ignore[assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]


def arm(strike: dict) -> None:
    """Wrap `target`: as its n-th call begins, the signal goes out to this process (or the named OSError is raised)."""
    module, _, path = strike["target"].partition(":")
    holder = importlib.import_module(module)
    *way, leaf = path.split(".")
    for name in way:
        holder = getattr(holder, name)
    original, calls = getattr(holder, leaf), [0]

    def wrapped(*args, **named):
        calls[0] += 1
        if calls[0] == strike["call"]:
            if "errno" in strike:
                raise OSError(strike["errno"], os.strerror(strike["errno"]))
            os.kill(os.getpid(), strike["signal"])
        return original(*args, **named)

    setattr(holder, leaf, wrapped)


def in_child(order: dict, work: Callable[[], object]) -> int:
    """The exit status of `work`, which may be struck; what it prints goes to the order's log."""
    from tunesmith.errors import TunesmithError

    no_network()
    log = os.open(order["log"] or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["strike"]:
        arm(order["strike"])
    try:
        work()
    except TunesmithError as error:
        print(error, flush=True)
        return error.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        return 99
    sys.stdout.flush()
    return 0


def fork_for_each_line(child: Callable[[dict], int]) -> None:
    """Imports what every child needs, then forks one for each order on stdin."""
    import torch

    from tunesmith import run  # noqa: F401 - imported before the first fork, so that children start at once
    from tunesmith.kernels.native import library

    torch.set_num_threads(1)
    library()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 98
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = child(json.loads(line))
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def child(order: dict) -> int:
    from tunesmith import run
    from tunesmith.recipe import from_dict

    return in_child(order, lambda: run.train(from_dict(order["values"]), resume=order["resume"]))


if __name__ == "__main__":
    fork_for_each_line(child)
