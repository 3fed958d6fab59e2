"""A loss is sums over a step's rows, divided by what the step says: two processes that each run half of a step's
micro-batches and add up their gradients (gloo) have the gradients of one that runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from preference_case import answers
from safetensors.torch import load_file, save_file
from test_classify import LABELS, adapted
from test_classify import objective_of as classification
from test_classify import rows as texts
from test_policy_gradient import objective_of as online
from test_preference import objective_of as preference
from test_preference import policy_of
from test_reward_model import objective_of as reward_modelling
from test_reward_model import pairs
from torch import distributed

from tunesmith.adapters.heads import ClassHead
from tunesmith.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")
RANKS = 2


def headed(head):
    policy, made, _ = adapted("llama", head, dtype=torch.float64)
    return policy, made.parameters()


CASES = {
    "sft": lambda: (*policy_of(torch.float64), SFT(answers(), (), batch_size=6, seed=0, shuffle=False)),
    "dpo": lambda: (*policy_of(torch.float64), preference("sigmoid", share=False)),
    "dpo, shared prompts": lambda: (*policy_of(torch.float64), preference("sigmoid")),
    "kto": lambda: (*policy_of(torch.float64), preference("kto")),
    "orpo": lambda: (*policy_of(torch.float64), preference("orpo")),
    "grpo": lambda: (*policy_of(torch.float64), online(beta=0.1)),
    "dapo": lambda: (*policy_of(torch.float64), online(preset="dapo")),
    "reward": lambda: (*headed(ClassHead("reward")), reward_modelling(pairs())),
    "classify": lambda: (*headed(ClassHead("one", LABELS)), classification(texts())),
}


def gradients(case: str, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Of the micro-batches that are `rank`'s, every parameter's gradient of the first step."""
    policy, parameters, objective = CASES[case]()
    for parameter in parameters.values():
        parameter.data, parameter.grad = parameter.data.double(), None
    step = next(objective.steps(policy))
    batches = objective.micro_batches(step, 1)
    assert len(batches) >= ranks
    for batch in batches[rank::ranks]:
        found = objective.loss(policy, batch)
        sum(value / step.denominators[name] for name, value in found.sums.items()).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    for case in CASES:
        own = gradients(case, rank, RANKS)
        for _, gradient in sorted(own.items()):
            distributed.all_reduce(gradient)
        if rank == 0:
            save_file({name: tensor.contiguous() for name, tensor in own.items()}, f"{folder}/{case}.safetensors")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def added_up(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    processes.spawn(work, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_ranks_add_up_to_those_of_one(case, added_up):
    whole, parts = gradients(case, 0, 1), load_file(added_up / f"{case}.safetensors")
    assert whole.keys() == parts.keys()
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    assert largest > 0
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max().item() <= 1e-6 * largest, name
