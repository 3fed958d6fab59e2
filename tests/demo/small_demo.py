"""Whole demos of a tiny model, each in a process of its own that a test may strike down.

`python small_demo.py MODEL` is a server: it imports everything once, then forks a child for each line of JSON that it
reads and answers with the child's exit status. `Server` talks to it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
NUM_TEST = 4
SETTINGS = {
    "data": {"held_out": 3, "shuffle": False},
    "adapter": {"method": "lora", "r": 2},
    "train": {"batch_size": 2, "learning_rate": 1e-3, "evaluate_every": 5, "save_every": 2},
}


class Server:
    """`run` starts a demo in a forked child, and returns the exit status as a shell tells it (128 + n for a signal)."""

    def __init__(self, model: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_CACHE": str(model.parent / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder: Path, log: Path, strike: dict | None = None) -> int:
        """`strike`: as `small_run.arm` takes it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "log": str(log), "strike": strike}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the server is gone"
        status = int(line)
        return status if status >= 0 else 128 - status

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def child(order: dict) -> int:
    from small_run import arm, no_network

    from tunesmith.demo import main
    from tunesmith.errors import TunesmithError

    no_network()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["strike"]:
        arm(order["strike"])
    try:
        main.run(Path(order["folder"]))
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


def serve(model: Path) -> None:
    sys.path[:0] = [str(TESTS)]
    import torch

    from tunesmith import card, plot, run  # noqa: F401 -- before the first fork, so that children start at once
    from tunesmith.demo import main
    from tunesmith.demo.task import make_task
    from tunesmith.kernels.native import library
    from tunesmith.models.session import Params

    task = make_task(num_rows=40, turns=1, num_test=NUM_TEST, seed=5)
    small = {
        "small_model_folder": lambda say: model,
        "make_task": lambda: task,
        "NUM_TEST": NUM_TEST,
        "PARAMS": Params(max_new_tokens=3),
        "SETTINGS": SETTINGS,
        "MINUTES": 0.02,
    }
    for name, value in small.items():
        assert hasattr(main, name)
        setattr(main, name, value)
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


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
