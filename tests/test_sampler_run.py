"""A sampler outside the process: vLLM's API, answered by a server here with the adapters that it is handed."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from small_run import make_model, recipe

from tunesmith import inference
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


WORLD = """
class Twice:
    def reset(self, **row):
        self.turns = 0

    def step(self, answer):
        self.turns += 1
        return "again", float(len(answer) % 3), self.turns > 1
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
            elif self.fault == "another base" and not self.names:
                with torch.no_grad():
                    self.session.model.get_input_embeddings().weight.mul_(1.5)
                self.names[body["lora_name"]] = None
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
            self.session.model, [body["prompt"]], max_new_tokens=body["max_tokens"], eos_ids=body["stop_token_ids"],
            num_samples=body["n"], temperature=body["temperature"], seed=body["seed"], want_logprobs=True,
            switch=self.session.switch, adapters=[name],
        )  # fmt: skip
        for index, one in enumerate(made):
            ids = one.token_ids[:-1] if self.fault == "short" else one.token_ids
            logprobs = {"token_logprobs": one.logprobs}
            reason = "stop" if one.finish_reason == "eos" else "length"
            choices.append({"index": index, "token_ids": ids, "logprobs": logprobs, "finish_reason": reason})
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


def test_a_server_writes_what_is_learned_and_has_each_step_s_adapter(model, prompts, tmp_path, capsys):
    server = FakeServer(model)
    train(from_dict(values(model, prompts, tmp_path / "a", server.url)), quiet=True)
    server.close()
    loads = [body for path, body in server.seen if path == "/v1/load_lora_adapter"]
    gone = [body for path, body in server.seen if path == "/v1/unload_lora_adapter"]
    assert len(loads) == len(gone) >= 6  # four steps and two evaluations; one version is there at a time
    assert len({body["lora_name"] for body in loads}) == len(loads)
    assert all(line["metrics"]["sampling_gap"] < 1e-4 for line in steps_of(tmp_path / "a"))
    sampled = [body for path, body in server.seen if path == "/v1/completions" and "n" in body]
    assert all(body["return_token_ids"] and isinstance(body["prompt"][0], int) for body in sampled)
    assert all(body["repetition_penalty"] == 1.0 for body in sampled)
    drawn = [body for body in sampled if body["temperature"] > 0]
    assert len({body["seed"] for body in drawn}) == len(drawn) == 4 * 2  # each prompt has draws of its own
    found = inference.evaluate(tmp_path / "a")  # with no server: the model is here
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    best = max(line["metrics"]["reward"] for line in lines if line["event"] == "evaluation")
    assert found["reward"] == pytest.approx(best, abs=1e-5)
    capsys.readouterr()


def test_an_environment_goes_on_with_a_server(model, prompts, tmp_path):
    (tmp_path / "world.py").write_text(WORLD)
    server = FakeServer(model)
    made = values(model, prompts, tmp_path / "a", server.url, environment=f"{tmp_path / 'world.py'}:Twice")
    made["objective"] |= {"rewards": [], "max_completion_length": 60}
    train(from_dict(made), quiet=True)
    server.close()
    assert all(line["metrics"]["sampling_gap"] < 1e-4 for line in steps_of(tmp_path / "a"))
    assert max(line["metrics"]["turns"] for line in steps_of(tmp_path / "a")) > 1
    drawn = [body for path, body in server.seen if path == "/v1/completions" and body.get("temperature", 0) > 0]
    assert len({body["seed"] for body in drawn}) == len(drawn)  # each copy of a prompt too


def test_what_a_server_cannot_do_is_refused_at_once(model, prompts, tmp_path):
    made = values(model, prompts, tmp_path / "a", "http://localhost:1")
    for wrong, said in {
        "objective.top_p=0.9": "fewer tokens than the trainer reckons with",
        "adapter.method=dora": "they take plain LoRA",
        "adapter.method=ia3": "they take plain LoRA",
        "adapter.train_in_full=[norms]": "not what servers load",
    }.items():
        values_of = json.loads(json.dumps(made))
        if "ia3" in wrong:
            values_of["adapter"] = {}
        with pytest.raises(RecipeError, match=said):
            from_dict(values_of, [wrong])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora: true"),
        ({"peft_type": "IA3"}, "peft_type: IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "trainable_token_indices"),
        ({}, None),
    ],
)
def test_an_adapter_that_no_server_loads_is_refused_before_the_model_is(
    model, prompts, tmp_path, monkeypatch, config, said
):
    class Loading(Exception):
        pass

    def load(*_, **__):
        raise Loading

    monkeypatch.setattr("tunesmith.assemble.load_model", load)
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2} | config))
    made = values(model, prompts, tmp_path / "a", "http://localhost:1")
    del made["adapter"]
    made["model"]["adapter"] = str(tmp_path / "trained")
    with pytest.raises(Loading if said is None else RecipeError, match=said):
        train(from_dict(made), quiet=True)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("stale", ModelError, "still answers with the adapter of before"),
        ("base", ModelError, "still answers with the adapter of before"),
        ("another base", ModelError, "weights are not the trainer's"),
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
