"""Online learning in an environment of several turns: its tokens, what is learned of them, and what it does wrong."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import make_model, recipe
from transformers import AutoTokenizer

from tunesmith.data.render import Renderer
from tunesmith.data.types import Asked, Message, Origin, Prompt
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import StepDone
from tunesmith.models.generate import Generated
from tunesmith.objectives.environment import load_environment, play
from tunesmith.recipe import from_dict
from tunesmith.run import train

WORLD = """
class Echo:
    def reset(self, prompt, answer, **row):
        self.turns, self.goal = 0, int(answer)
        return None if self.goal % 2 else [{"role": "system", "content": "Count."}, {"role": "user", "content": prompt}]

    def step(self, answer):
        self.turns += 1
        return f"you said {len(answer)}", float(sum(map(ord, answer)) % 7) / 7, self.turns > self.goal % 3


class Breaks(Echo):
    def step(self, answer):
        if self.goal == 4:
            raise ValueError("the door is shut")
        return super().step(answer)


class Nan(Echo):
    def step(self, answer):
        return "x", float("nan"), True


class Half:
    def reset(self, **row):
        return None


class Table:
    # A database lives in the thread that opened it; the task is drawn by the seed.

    def reset(self, seed, **row):
        import random
        import sqlite3

        self.base = sqlite3.connect(":memory:")
        self.base.execute("create table t (x int)")
        self.base.execute("insert into t values (?)", (random.Random(seed).randrange(1000),))
        return None

    async def step(self, answer):
        (x,) = self.base.execute("select x from t").fetchone()
        return str(x), float(x), True


class Slow(Echo):
    def step(self, answer):
        import time

        time.sleep(5)


def score(completions, **columns):
    return [0.5 for _ in completions]


heard = []


def listens(prompts, completions, **columns):
    heard.extend(zip(prompts, completions))
    return [0.0 for _ in completions]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i}", "answer": str(i)}) + "\n" for i in range(9)))
    (tmp_path / "world.py").write_text(WORLD)
    return path


def values(model, prompts, folder, world="Echo", **objective):
    made = recipe(model, prompts, folder)
    made["adapter"]["dropout"] = 0.0
    made["objective"] = {
        "kind": "policy",
        "environment": f"{prompts.parent / 'world.py'}:{world}",
        "num_generations": 2,
        "max_completion_length": 120,
        "max_turns": 3,
        **objective,
    }
    made["train"] |= {"steps": 3, "batch_size": 2, "evaluate_every": 2}
    del made["train"]["epochs"]
    return made


def asked(renderer, number):
    text = f"what is {number}"
    prompt = Prompt((Message("user", text),), text, {"answer": str(number)}, Origin("rows", number + 1))
    ids = np.array(renderer.prompt_ids(prompt.messages), dtype=np.int64)
    return Asked(ids, np.zeros(len(ids), np.float32), prompt.origin, prompt=prompt)


def test_tokens_are_those_of_the_whole_conversation_and_only_the_answers_are_learned(model, prompts):
    tokenizer = AutoTokenizer.from_pretrained(model)
    renderer = Renderer(tokenizer)
    end = renderer.end_ids[-1]
    world = load_environment(f"{prompts.parent / 'world.py'}:Echo", 5.0, 5)
    said = ["one", "two two", "three"]
    seen = []

    def generate(given, room, rows, turn):
        seen.append((len(given), list(rows), turn))
        ids = tokenizer(said[turn], add_special_tokens=False)["input_ids"] + [end]
        return [Generated(list(ids), "eos", [-0.5 - turn] * len(ids)) for _ in given]

    odd = asked(renderer, 5)  # three turns; the prompt as it stands
    (episode,) = play(world, [odd], 1, renderer, generate, 200)
    turns = [Message("user", "what is 5")]
    for text in said:
        turns += [Message("assistant", text), Message("user", f"you said {len(text)}")]
    whole = renderer.render_all([_conversation(turns[:-1])]).examples[0]
    ids = episode.prompt_ids + episode.token_ids
    assert ids == whole.token_ids.tolist()[: len(ids)]
    mask = np.r_[np.zeros(len(episode.prompt_ids)), np.array(episode.learned, dtype=float)]
    assert mask.tolist() == (whole.loss_weights[: len(ids)] > 0).astype(float).tolist()
    assert len(episode.logprobs) == sum(episode.learned)
    assert episode.said == said
    assert episode.earned == pytest.approx(sum(sum(map(ord, text)) % 7 / 7 for text in said))
    assert [one[0] for one in seen] == [1, 1, 1]
    even, odd = asked(renderer, 0), asked(renderer, 1)  # one turn behind a system turn; two turns
    first, second = play(world, [even, odd], 1, renderer, generate, 200)
    assert first.prompt_ids == renderer.prompt_ids([Message("system", "Count."), Message("user", "what is 0")])
    assert [len(first.said), len(second.said)] == [1, 2]
    assert seen[-1][1] == [1]


def _conversation(turns):
    from tunesmith.data.types import Conversation

    return Conversation(tuple(turns), Origin("rows", 1))


def test_an_episode_ends_where_there_is_no_room_or_no_turn_left(model, prompts):
    tokenizer = AutoTokenizer.from_pretrained(model)
    renderer, end = Renderer(tokenizer), Renderer(tokenizer).end_ids[-1]
    generate = lambda given, room, rows, turn: [Generated([9, end], "eos", [-1.0, -1.0]) for _ in given]  # noqa: E731
    row = [asked(renderer, 5)]
    world = load_environment(f"{prompts.parent / 'world.py'}:Echo", 5.0, 2)
    (short,) = play(world, row, 1, renderer, generate, 200)
    assert len(short.said) == 2
    (cut,) = play(world, row, 1, renderer, generate, 6)
    assert (len(cut.said), cut.is_cut, len(cut.token_ids)) == (1, True, 2)
    with pytest.raises(DataError, match=r"(?s)rows, row 6.*more than the model has room for"):
        play(world, row, 1, renderer, generate, 6, positions=10)


def test_a_run_in_an_environment_is_resumed_bit_for_bit(model, prompts, tmp_path):
    whole = train(from_dict(values(model, prompts, tmp_path / "a")), quiet=True)
    stopped = from_dict(values(model, prompts, tmp_path / "b"))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 2 else None])
    train(stopped, resume=True, quiet=True)
    told = []
    for name in "ab":
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        told.append([(line["loss"], line["metrics"]) for line in lines if line["event"] == "step"])
    assert told[0] == told[1]
    assert all(1 <= metrics["turns"] <= 3 for _, metrics in told[0])
    assert whole.ended.best_metrics["rewards/world.py:Echo"] == pytest.approx(whole.ended.best_metrics["reward"])
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    assert all(metrics["sampling_gap"] < 1e-3 for _, metrics in told[0])


def test_what_a_reward_gives_is_added(model, prompts, tmp_path):
    more = values(model, prompts, tmp_path / "a", rewards=[f"{prompts.parent / 'world.py'}:score"])
    found = train(from_dict(more), quiet=True).ended.best_metrics
    assert found["reward"] == pytest.approx(found["rewards/world.py:Echo"] + 0.5)


@pytest.mark.parametrize(
    ("world", "said"),
    [("Breaks", "the door is shut"), ("Nan", "no finite number"), ("Slow", "did not answer within 0.2 s")],
)
def test_what_an_environment_does_wrong_is_said_with_its_row(model, prompts, tmp_path, world, said):
    made = values(model, prompts, tmp_path / "a", world, **({"reward_seconds": 0.2} if world == "Slow" else {}))
    with pytest.raises(DataError, match=said) as caught:
        train(from_dict(made | {"data": _one(prompts)}), quiet=True)
    assert f"world.py:{world}" in str(caught.value)
    assert "prompts.jsonl, row" in str(caught.value)


def _one(prompts):
    return {"train": str(prompts), "limit": 6, "held_out": 1}


def test_what_is_no_environment_is_refused_before_anything_is_loaded(model, prompts, tmp_path):
    for world, said in (("Half", "has no step"), ("Nobody", "has no class 'Nobody'")):
        with pytest.raises(RecipeError, match=said):
            train(from_dict(values(model, prompts, tmp_path / "a", world)), quiet=True)
    made = values(model, prompts, tmp_path / "a")
    del made["objective"]["environment"]
    with pytest.raises(RecipeError, match=r"max_turns is of an environment|rewards is missing"):
        from_dict(made)


def test_a_database_is_used_where_it_was_opened_and_one_prompt_is_one_task(model, prompts):
    renderer, end = Renderer(AutoTokenizer.from_pretrained(model)), 2
    world = load_environment(f"{prompts.parent / 'world.py'}:Table", 5.0, 2)
    generate = lambda given, room, rows, turn: [Generated([9, end], "eos", [-1.0, -1.0]) for _ in given]  # noqa: E731
    played = play(world, [asked(renderer, 1), asked(renderer, 2)], 3, renderer, generate, 200, seed=4)
    earned = [one.earned for one in played]
    assert len(set(earned[:3])) == len(set(earned[3:])) == 1
    assert earned[0] != earned[3]
    again = play(world, [asked(renderer, 1)], 1, renderer, generate, 200, seed=4)
    assert again[0].earned == earned[0]


def test_a_row_that_has_a_seed_is_reset_with_it(model, prompts):
    renderer = Renderer(AutoTokenizer.from_pretrained(model))
    world = load_environment(f"{prompts.parent / 'world.py'}:Table", 5.0, 2)
    generate = lambda given, room, rows, turn: [Generated([9, 2], "eos", [-1.0, -1.0]) for _ in given]  # noqa: E731

    def earned(own, seed):
        row = asked(renderer, 1)
        columns = {**row.prompt.columns, **own}
        row = dataclasses.replace(row, prompt=dataclasses.replace(row.prompt, columns=columns))
        return [one.earned for one in play(world, [row], 2, renderer, generate, 200, seed=seed)]

    given = random.Random(77).randrange(1000)
    assert earned({"seed": 77}, 4) == earned({"seed": 77}, 5) == [given, given]
    assert earned({"seed": None}, 4) == earned({}, 4) != earned({}, 5)


def test_a_reward_judges_the_last_answer_in_its_conversation(model, prompts, tmp_path):
    from tunesmith.objectives.plugins import imported

    name = f"{prompts.parent / 'world.py'}:listens"
    train(from_dict(values(model, prompts, tmp_path / "a", rewards=[name])), quiet=True)
    heard = imported(name, "x", "function").__globals__["heard"]
    longer = [(prompt, said) for prompt, said in heard if any(turn["role"] == "assistant" for turn in prompt)]
    assert longer
    for prompt, said in longer:
        assert [turn["role"] for turn in prompt[-2:]] == ["assistant", "user"]
        assert prompt[-1]["content"] == f"you said {len(prompt[-2]['content'])}"
        assert isinstance(said, list)


def test_a_template_that_ends_no_answer_is_refused(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    with pytest.raises(DataError, match="does not end an answer with a token"):
        Renderer(tokenizer).continuation_ids([Message("user", "more")])


def test_what_follows_an_answer_is_written_as_the_whole_is():
    from tiny_tokenizers import CHATML, byte_level

    from tunesmith.data.types import Conversation

    spaced = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    for template in (CHATML, spaced):
        renderer = Renderer(byte_level(template))
        first = [Message("user", "a b"), Message("assistant", "it is")]
        more = [Message("user", "and now")]
        head = renderer.render(Conversation(tuple(first), Origin("x", 1))).token_ids.tolist()
        while head[-1] not in renderer.end_ids:
            head = head[:-1]
        ids = head + renderer.continuation_ids(more)
        assert ids == renderer.prompt_ids([*first, *more])
