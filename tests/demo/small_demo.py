"""Whole demos of a tiny model, each in a process of its own that a test may strike down.

`python small_demo.py MODEL` is a server: it imports everything once, then forks a child for each line of JSON that it
reads and answers with the child's exit status. `Server` talks to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from small_run import Forks, fork_for_each_line, in_child  # noqa: E402

NUM_TEST = 4
SETTINGS = {
    "data": {"held_out": 3, "shuffle": False},
    "adapter": {"method": "lora", "r": 2},
    "train": {"batch_size": 2, "learning_rate": 1e-3, "evaluate_every": 5, "save_every": 2},
}


class Server(Forks):
    """Starts demos."""

    def __init__(self, model: Path) -> None:
        super().__init__(__file__, str(model), TUNESMITH_CACHE=str(model.parent / "cache"))

    def run(self, folder: Path, log: Path, strike: dict | None = None) -> int:
        """`strike`: as `small_run.arm` takes it."""
        return self.ask({"folder": str(folder), "log": str(log), "strike": strike})


def child(order: dict) -> int:
    from tunesmith.demo import main

    return in_child(order, lambda: main.run(Path(order["folder"])))


def serve(model: Path) -> None:
    from tunesmith import card, plot, run  # noqa: F401 -- before the first fork, so that children start at once
    from tunesmith.demo import main
    from tunesmith.demo.task import make_task
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
    fork_for_each_line(child)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
