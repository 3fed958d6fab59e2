"""A sampler outside the process: vLLM's API, answered by a server here with the adapters that it is handed."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from small_run import make_model, recipe

from tunesmith.errors import MachineError, ModelError, RecipeError
from tunesmith.models.generate import generate
from tunesmith.models.policy import probe
from tunesmith.objectives.samplers import said_of
from tunesmith.recipe import from_dict
from tunesmith.run import train
from tunesmith.session import open_session

REWARD = """
def spread(completions, **kwargs):
    return [sum(map(ord, text)) % 11 / 11 for text in completions]
"""


class FakeServer:
    """Answers as vLLM does; `fault` makes it wrong in one way."""

    def __init__(self, model, fault=None):
        self.session = open_session(str(model), dtype="float32", device="cpu")
        self.policy, _ = probe(self.session.model, self.session.switch)
        self.fault, self.seen, self.lock = fault, [], threading.Lock()
        self.names: dict[str, str | None] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    code, said = outer.answer(self.path, body)
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(code)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path, body):
        self.seen.append((path, body))
        if path == "/v1/load_lora_adapter":
            if self.fault == "no lora":
                return 404, "not found"
            if self.fault == "stale" and self.names:
                self.names[body["lora_name"]] = next(iter(self.names.values()))
            elif self.fault == "base":
                self.names[body["lora_name"]] = None
            else:
                own = body["lora_name"].replace(".", "-")
                self.names[body["lora_name"]] = self.session.load_adapter(body["lora_path"], own)
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            if self.fault is None:
                self.session.unload_adapter(self.names.pop(body["lora_name"]))
            return 200, "Success"
        return 200, self.completions(body)

    def completions(self, body):
        name, choices = self.names[body["model"]], []
        if body.get("prompt_logprobs") is not None:
            (ids,) = body["prompt"]
            with self.session.switch.set_to(name):
                said = said_of(self.policy, ids)
            rows = [
                None,
                *({str(token): {"logprob": float(v), "rank": 1}} for token, v in zip(ids[1:], said, strict=True)),
            ]
            return {"choices": [{"index": 0, "token_ids": [1], "prompt_logprobs": rows, "finish_reason": "length"}]}
        made = generate(
            self.session.model, body["prompt"], max_new_tokens=body["max_tokens"], eos_ids=body["stop_token_ids"],
            num_samples=body["n"], temperature=body["temperature"], seed=body["seed"], want_logprobs=True,
            switch=self.session.switch, adapters=[name] * len(body["prompt"]),
        )  # fmt: skip
        for index, one in enumerate(made):
            ids = one.token_ids[:-1] if self.fault == "short" else one.token_ids
            logprobs = {"token_logprobs": one.logprobs}
            choices.append({"index": index, "token_ids": ids, "logprobs": logprobs, "finish_reason": "stop"})
        return {"choices": choices[::-1]}

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i}"}) + "\n" for i in range(9)))
    (tmp_path / "mine.py").write_text(REWARD)
    return path


def values(model, prompts, folder, url, **objective):
    made = recipe(model, prompts, folder)
    made["adapter"]["dropout"] = 0.0
    made["objective"] = {
        "kind": "policy",
        "rewards": [f"{prompts.parent / 'mine.py'}:spread"],
        "num_generations": 3,
        "max_completion_length": 6,
        **({} if url is None else {"sampler": url}),
        **objective,
    }
    made["train"] |= {"steps": 4, "batch_size": 2, "evaluate_every": 2, "learning_rate": 0.05}
    del made["train"]["epochs"]
    return made


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def test_a_server_writes_what_is_learned_and_has_each_step_s_adapter(model, prompts, tmp_path):
    server = FakeServer(model)
    train(from_dict(values(model, prompts, tmp_path / "a", server.url)), quiet=True)
    server.close()
    loads = [body for path, body in server.seen if path == "/v1/load_lora_adapter"]
    gone = [body for path, body in server.seen if path == "/v1/unload_lora_adapter"]
    assert len(loads) == len(gone) + 1 >= 6  # four steps and two evaluations; one version is there at a time
    assert len({body["lora_name"] for body in loads}) == len(loads)
    assert all(line["metrics"]["sampling_gap"] < 1e-4 for line in steps_of(tmp_path / "a"))
    sampled = [body for path, body in server.seen if path == "/v1/completions" and "n" in body]
    assert all(body["return_token_ids"] and isinstance(body["prompt"][0], list) for body in sampled)
    here = values(model, prompts, tmp_path / "b", None)
    train(from_dict(here), quiet=True)
    first = [steps_of(tmp_path / name)[0]["metrics"] for name in "ab"]
    assert first[0]["completions/mean_length"] > 0
    assert first[0].keys() == first[1].keys()


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("stale", ModelError, "still answers with the adapter of before"),
        ("base", ModelError, r"adapter of before|not the trainer"),
        ("no lora", MachineError, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ("short", MachineError, "no token ids with their log-probabilities"),
    ],
)
def test_a_sampler_that_is_wrong_ends_the_run(model, prompts, tmp_path, fault, error, said):
    server = FakeServer(model, fault)
    with pytest.raises(error, match=said):
        train(from_dict(values(model, prompts, tmp_path / "a", server.url)), quiet=True)
    server.close()


def test_no_server_and_no_address_are_said(model, prompts, tmp_path):
    with pytest.raises(MachineError, match="does not answer"):
        train(from_dict(values(model, prompts, tmp_path / "a", "http://127.0.0.1:9")), quiet=True)
    with pytest.raises(RecipeError, match="give an address"):
        from_dict(values(model, prompts, tmp_path / "b", "localhost:8000"))


def test_the_canary_reads_what_generation_says(model):
    session = open_session(str(model), dtype="float32", device="cpu")
    policy, _ = probe(session.model, session.switch)
    ids = session.tokenizer("what is it that is what it is")["input_ids"]
    with torch.no_grad():
        logits = session.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [logits[i, token].item() for i, token in enumerate(ids[1:])]
    assert said_of(policy, ids) == pytest.approx(wanted, abs=1e-5)
