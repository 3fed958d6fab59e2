"""The law of settings: every key that a recipe may have is read, so that another value of it shows somewhere.

What shows may be a refusal that names the key, other rows, another first gradient, other steps, or other files. The
tables in keys_of_*.py say for each key another value, what it needs beside it, and the cheapest place to look.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keys_of_adapters
import keys_of_objectives
import keys_of_rows
import keys_of_training
import pytest
import torch
from observed import Case, Home, Refused, See, first, ran, rows, same, steps
from records import ADAPTERS, all_keys, base_of, is_fixed, place_of, put, with_beside
from small_run import make_model, make_rows

from tunesmith.kernels.native import library
from tunesmith.objectives import OBJECTIVES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CASES: dict[str, Case] = {
    **keys_of_rows.CASES,
    **keys_of_adapters.CASES,
    **keys_of_objectives.CASES,
    **keys_of_training.CASES,
}
KEYS = all_keys()
FIXED = [key for key, annotation in KEYS.items() if is_fixed(annotation)]
MINE = '''
import time


def spread(completions, **columns):
    said = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [sum(map(ord, text)) % 11 / 11 for text in said]


def length(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]


def flat(completions, answer, **columns):
    """Of every second prompt all completions earn the same."""
    return [0.0 if int(own) % 2 else sum(map(ord, text)) % 11 / 11 for own, text in zip(answer, completions)]


def slow(completions, **columns):
    time.sleep(0.1)
    return spread(completions)


class Echo:
    def reset(self, prompt, **row):
        self.turns = 0

    def step(self, answer):
        self.turns += 1
        return f"you said {len(answer)}", float(len(answer) % 5), self.turns > 1
'''


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in values))


def make_data(folder: Path) -> None:
    make_rows(folder / "more.jsonl", 8, answer="more of it")
    for letter in "az":
        write(folder / f"{letter}.jsonl", [{"prompt": f"what is {i}", "completion": letter * 9} for i in range(8)])
    (folder / "splits").mkdir()
    make_rows(folder / "splits" / "train.jsonl", 8)
    make_rows(folder / "splits" / "test.jsonl", 6, answer="the test's")
    numbers = range(12)
    write(
        folder / "rows.jsonl",
        [
            {"prompt": f"what is {i}", "completion": f"it is what it is {i * i}", "better": f"it is {i}"}
            | {"half": i % 2, "third": i % 3}
            for i in numbers
        ],
    )
    write(
        folder / "lengths.jsonl", [{"prompt": "what " * (i % 4), "completion": "it is " * (1 + i % 7)} for i in numbers]
    )
    write(folder / "plain.jsonl", [{"text": f"it is what it is {i}"} for i in numbers])
    write(
        folder / "pairs.jsonl", [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no"} for i in numbers]
    )
    write(folder / "prompts.jsonl", [{"prompt": f"what is {i}", "answer": str(i), "other": ""} for i in numbers])
    write(folder / "texts.jsonl", [{"text": f"number {i}", "label": "spam" if i % 3 else "ham"} for i in numbers])
    turns = [
        ("system", "be short"),
        ("human", "what is"),
        ("assistant", "it is"),
        ("human", "why"),
        ("assistant", "no"),
    ]
    write(
        folder / "chat.jsonl",
        [
            {"messages": [{"role": role, "content": f"{said} {i}", "words": f"or {said} {i}"} for role, said in turns]}
            for i in numbers
        ],
    )
    (folder / "mine.py").write_text(MINE)


def make_hub(folder: Path) -> None:
    """The hub's cache of a model's config and tokenizer in two revisions, which word a conversation otherwise."""
    there = folder / "hub" / "models--owner--tiny"
    for number, name in enumerate(("main", "older")):
        commit = str(number) * 40
        own = there / "snapshots" / commit
        own.mkdir(parents=True)
        for path in (folder / "model").iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, own / path.name)
        (there / "refs").mkdir(exist_ok=True)
        (there / "refs" / name).write_text(commit)
    template = own / "chat_template.jinja"
    template.write_text(template.read_text().replace("'\\n'", "': '"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    from transformers import AutoModelForCausalLM

    from tunesmith.models.tiny import randomise

    library()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is done faster by one
    folder = tmp_path_factory.mktemp("home")
    make_model(folder / "model")
    shutil.copytree(folder / "model", folder / "other")
    other = AutoModelForCausalLM.from_pretrained(folder / "model")
    randomise(other, 1)
    other.save_pretrained(folder / "other")
    make_data(folder)
    make_hub(folder)
    made = Home(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.plot.plot_run", lambda *_: None)  # the picture shows what metrics.jsonl says
        trained = ran(made, made.resolved(base_of("model.name")))
        shutil.copytree(trained.folder / "adapter", folder / "adapter")
        yield made
    torch.set_num_threads(threads)


def test_every_key_has_its_case() -> None:
    assert set(CASES) | set(FIXED) == set(KEYS)
    assert not set(CASES) & set(FIXED)
    assert {key.rpartition(".")[2] for key in FIXED} == {"method", "kind", "targets"}


def names(said: str, key: str) -> bool:
    """Whether a refusal names the key."""
    return ".".join(map(str, (place_of(key)[0], place_of(key)[-1]))) in said or place_of(key)[-1] in said.split()


@pytest.mark.parametrize("key", CASES)
def test_another_value_shows(home: Home, key: str) -> None:
    case = CASES[key]
    if case.needs is not None and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    before = home.look(case.see, with_beside(key, case.beside))
    changed = with_beside(key, case.beside)
    put(changed, place_of(key), case.value)
    after = home.look(case.see, changed)
    if isinstance(after, Refused):
        assert names(after.said, key), after.said
    assert not isinstance(before, Refused), before
    assert not same(before, after)


OTHER_KINDS = {
    "sft": {"kind": "distill", "teacher": "@/other"},
    "distill": {"kind": "sft"},
    "preference": {"kind": "reward"},
    "reward": {"kind": "preference"},
    "classify": {"kind": "sft"},
    "policy": {"kind": "distill", "teacher": "@/other", "answers": "sampled", "max_completion_length": 4},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_another_objective_shows(home: Home, kind: str) -> None:
    key = f"objective.{kind}.kind"
    before = home.look(first, base_of(key))
    after = home.look(first, base_of(key) | {"objective": OTHER_KINDS[kind]})
    assert not isinstance(before, Refused), before
    assert names(after.said, key) if isinstance(after, Refused) else not same(before, after)


def test_every_method_shows(home: Home) -> None:
    seen = {method: home.look(first, base_of(f"adapter.{method}.method")) for method in ADAPTERS}
    assert [method for method, one in seen.items() if isinstance(one, Refused)] == []
    pairs = [(one, other) for one in seen for other in seen if one < other]
    assert [pair for pair in pairs if same(seen[pair[0]], seen[pair[1]])] == []


PLACES = {(case.see, key.split(".")[1] if key.startswith("objective") else ""): key for key, case in CASES.items()}


@pytest.mark.parametrize("key", PLACES.values(), ids=[f"{see.__name__}-{kind}" for see, kind in PLACES])
def test_the_same_recipe_shows_the_same(home: Home, key: str) -> None:
    """Else a difference would say nothing."""
    case = CASES[key]
    values = with_beside(key, case.beside)
    assert same(home.look(case.see, values), home.look(case.see, values, anew=True))


@pytest.mark.parametrize("see", [rows, first, steps])
def test_a_key_that_is_read_elsewhere_does_not_show(home: Home, see: See) -> None:
    """What the law looks for can be missing."""
    values = base_of("model.name")
    assert same(home.look(see, values), home.look(see, values | {"output": {"licence": "cc-by-4.0"}}))
