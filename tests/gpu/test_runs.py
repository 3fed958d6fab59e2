"""Whole runs on the device: trained, broken off and gone on with, merged and asked. Skipped where there is none.

`TUNESMITH_TEST_DEVICE=cpu python -m pytest tests/gpu/test_runs.py` tries the tests themselves.
"""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from small_run import make_model, make_rows, recipe

import tunesmith
from tunesmith import run
from tunesmith.errors import Interrupted
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict

DEVICE = os.environ.get("TUNESMITH_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("ignore"),
]
METHODS = {
    "lora": {},
    "dora": {},
    "lora-fa": {},
    "vera": {},
    "ia3": {},
    "delta-lora": {"start_step": 2},
    "relora": {"restart_every": 3, "rewarm": 1},
    "prefix": {},
    "full": {},
}
QUESTIONS = ["what is 3", "what is 12, and why", "no"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 12)
    return folder


def values(place, folder, method="lora", dtype="float32", storage="auto", **train):
    made = recipe(place / "model", place / "rows.jsonl", folder, epochs=None, steps=6, batch_size=9, **train)
    made["model"] |= {"device": DEVICE, "dtype": dtype, "storage": storage}
    made["adapter"] = {"method": method, **METHODS[method]}
    return made


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in lines if event["event"] == "step"]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_is_asked_by_a_fresh_session_as_by_the_one_that_trained(place, tmp_path, method):
    trained = run.train(from_dict(values(place, tmp_path / "run", method)))
    told = losses(tmp_path / "run")
    assert len(told) == 6
    assert told[-1] < told[0]
    params = tunesmith.Params(max_new_tokens=6)
    here = trained.session.answer(QUESTIONS, params=params)
    assert tunesmith.open_session(str(tmp_path / "run")).answer(QUESTIONS, params=params) == here


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_learns_what_fp32_on_the_processor_learns(place, tmp_path, dtype):
    run.train(from_dict(values(place, tmp_path / "run", dtype=dtype)))
    plain = values(place, tmp_path / "plain")
    plain["model"] |= {"device": "cpu"}
    run.train(from_dict(plain))
    gap = max(abs(a - b) for a, b in zip(losses(tmp_path / "run"), losses(tmp_path / "plain"), strict=True))
    assert gap < (1e-3 if dtype == "float32" else 0.1), gap


@pytest.mark.parametrize("storage", ["nf4", "nf4-double", "int8"])
def test_a_base_in_few_bits_learns(place, tmp_path, storage):
    pytest.importorskip("bitsandbytes")
    run.train(from_dict(values(place, tmp_path / "run", dtype="auto", storage=storage)))
    told = losses(tmp_path / "run")
    assert told[-1] < told[0]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(place, tmp_path, optimizer):
    if optimizer == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    run.train(from_dict(values(place, tmp_path / "whole", optimizer=optimizer)))

    def strike(event):
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    broken = from_dict(values(place, tmp_path / "broken", optimizer=optimizer))
    with pytest.raises(Interrupted):
        run.train(broken, listeners=[strike])
    run.train(broken, resume=True)
    assert losses(tmp_path / "broken") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_merged_weights_answer_as_the_adapter_does(place, tmp_path):
    trained = run.train(from_dict(values(place, tmp_path / "run")))
    params = tunesmith.Params(max_new_tokens=6)
    here = trained.session.answer(QUESTIONS, params=params)
    tunesmith.merge(str(tmp_path / "run"), str(tmp_path / "merged"))
    assert tunesmith.open_session(str(tmp_path / "merged")).answer(QUESTIONS, params=params) == here
