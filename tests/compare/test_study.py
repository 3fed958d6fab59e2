"""Whole studies of a tiny model: end to end, broken off and gone on with, failing cells, and what is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import studies
from small_run import make_rows

import tunesmith
from tunesmith.compare.process import Outcome, in_process
from tunesmith.errors import Interrupted, MachineError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def whole(folder):
    """A study of two arms and two seeds, and the digest of every step's rows by cell."""
    from tunesmith.objectives.sft import SFT

    rows, current = {}, []
    original = SFT.micro_batches

    def spying(self, step, most):
        digest = hashlib.blake2b(b"".join(example.token_ids.tobytes() for example in step.examples)).hexdigest()
        rows.setdefault(current[-1], []).append(digest)
        return original(self, step, most)

    def runner(order, tell, stop):
        current.append(order.name)
        return studies.here(order, tell, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFT, "micro_batches", spying)
        found = tunesmith.compare(studies.values(folder), runner=runner, quiet=True)
    return found, rows, current


def test_two_arms_and_two_seeds_end_to_end(whole):
    found, _, orders = whole
    arms = found.results["arms"]
    assert list(arms) == ["lora", "dora", "no tuning, zero-shot", "no tuning, 2-shot"]
    assert len(orders) == 2 * 2 + 1 + 2
    for name in ("lora", "dora"):
        row = arms[name]
        assert row["seeds"] == [0, 1]
        assert row["failed"] == {}
        for key in ("train_seconds", "evaluation_seconds", "tokens_per_second", "peak_memory_bytes", "adapter_bytes"):
            assert row[key] > 0, key
        assert row["step"] == 4
        assert set(row["figures"]) == {"f1", "exact", "loss", "held_out_loss"}
        assert row["figures"]["loss"]["items"] == 10
        assert row["figures"]["loss"]["seeds"] == 2
        assert row["forgetting"]["before"] > 0
        assert row["price"] == pytest.approx(1.5 * row["train_seconds"] / 3600)
    assert arms["dora"]["trained_parameters"] > arms["lora"]["trained_parameters"]
    assert arms["no tuning, zero-shot"]["figures"]["loss"]["seeds"] == 1
    assert "loss" not in arms["no tuning, 2-shot"]["figures"]
    assert arms["no tuning, 2-shot"]["figures"]["f1"]["seeds"] == 2


def test_the_reported_loss_is_that_of_evaluate_on_the_same_rows(whole):
    from tunesmith import inference

    found, _, _ = whole
    row = found.results["arms"]["dora"]
    for seed in ("0", "1"):
        run = found.folder / row["folders"][seed]
        said = inference.evaluate(run, data=str(found.folder / "data" / "test.jsonl"), as_json=True)
        assert row["figures"]["loss"]["by_seed"][seed] == pytest.approx(said["loss"], rel=1e-4)
        scored = inference.evaluate(
            run,
            data=str(found.folder / "data" / "test.jsonl"),
            score="f1",
            max_new_tokens=6,
            as_json=True,
        )
        assert row["figures"]["f1"]["by_seed"][seed] == pytest.approx(scored["f1"]["value"])


def test_forgetting_is_the_loss_on_the_text_less_the_base_s(whole, folder):
    from tunesmith import inference

    found, _, _ = whole
    row = found.results["arms"]["lora"]
    text = str(folder / "text.txt")
    after = [inference.evaluate(found.folder / row["folders"][seed], data=text, as_json=True) for seed in ("0", "1")]
    base = inference.evaluate(found.folder / row["folders"]["0"], data=text, adapter="none", as_json=True)
    assert row["forgetting"]["before"] == pytest.approx(base["loss"], rel=1e-4)
    assert row["forgetting"]["after"] == pytest.approx(sum(one["loss"] for one in after) / 2, rel=1e-4)


def test_arms_of_a_seed_see_the_same_rows_in_the_same_order(whole):
    _, rows, _ = whole
    by_cell = {re.sub(r"-[0-9a-f]{10}$", "", name): digests for name, digests in rows.items() if len(digests) == 4}
    assert set(by_cell) == {"lora-seed0", "lora-seed1", "dora-seed0", "dora-seed1"}
    for seed in (0, 1):
        assert by_cell[f"lora-seed{seed}"] == by_cell[f"dora-seed{seed}"]
    assert by_cell["lora-seed0"] != by_cell["lora-seed1"]


def test_no_row_of_the_test_was_trained_on(whole):
    found, _, _ = whole
    train, test = ((found.folder / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    assert len(test) == 10
    assert not set(train) & set(test)


def test_with_two_seeds_the_words_are_careful(whole):
    found, _, _ = whole
    for one in found.results["comparisons"]:
        assert one["differs"] == (one["p_holm"] <= 0.05)
        assert one["verdict"].startswith("cannot tell") != one["differs"]
    assert any("2 seeds: too few" in note for note in found.results["notes"])


def test_every_file_of_the_report_is_there_and_holds_the_numbers(whole):
    found, _, _ = whole
    assert set(found.files) == {"json", "markdown", "html", "figures", "curves", "cost", "rows"}
    told = json.loads(found.files["json"].read_text())
    assert told == json.loads(json.dumps(found.results))
    page, text = found.files["html"].read_text(), found.files["markdown"].read_text()
    for name in ("lora", "dora"):
        row = told["arms"][name]
        for number in (f"{row['figures']['loss']['value']:.4g}", f"{row['trained_parameters']:,.0f}"):
            assert number in page
            assert number in text
    assert found.verdicts
    for verdict in found.verdicts:
        assert verdict.replace("'", "&#x27;")[1:] in page
        assert verdict[1:] in text
    assert "adapter.method" in page
    assert str(found.folder) not in page + text + found.files["json"].read_text()
    assert (found.folder / "cost.png").read_bytes()[:4] == b"\x89PNG"


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "data", "action", "srcset")]


def test_the_page_asks_for_nothing_outside_itself(whole):
    found, _, _ = whole
    text = found.files["html"].read_text()
    seen = References()
    seen.feed(text)
    assert len(seen.found) == 4
    assert all(reference.startswith("data:image/png;base64,") for reference in seen.found)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_nothing_is_done_twice_and_a_changed_arm_alone_is_done_again(whole, folder):
    found, _, _ = whole
    asked = []

    def counting(order, tell, stop):
        asked.append(order.name)
        return studies.here(order, tell, stop)

    again = tunesmith.compare(studies.values(folder), runner=counting, quiet=True)
    assert asked == []
    same = {name: row["figures"] for name, row in again.results["arms"].items()}
    assert same == {name: row["figures"] for name, row in found.results["arms"].items()}
    changed = studies.values(folder, arms={"lora": {}, "dora": {"adapter.method": "dora", "adapter.r": 4}})
    tunesmith.compare(changed, runner=counting, quiet=True)
    assert [name[:10] for name in asked] == ["dora-seed0", "dora-seed1"]
    asked.clear()
    more = studies.values(folder, seeds=[0, 1, 2])
    tunesmith.compare(more, runner=counting, quiet=True)
    assert sorted(name.rpartition("-")[0] for name in asked) == ["base-2-shot-seed2", "dora-seed2", "lora-seed2"]


def test_another_test_measures_again_and_trains_nothing(whole, folder):
    steps = []

    def watching(order, tell, stop):
        return studies.here(order, lambda values: steps.append(values.get("event")), stop)

    rows = folder / "other.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"who is {i}", "completion": f"it is {i}"}) + "\n" for i in range(5)))
    values = studies.values(folder, prompting=[])
    values["recipe"]["data"]["train"] = str(folder / "study" / "data" / "train.jsonl")
    values["recipe"]["data"]["split"] = "train"
    values["test"] = {"rows": str(rows)}
    found = tunesmith.compare(values, runner=watching, quiet=True)
    assert found.results["arms"]["lora"]["figures"]["loss"]["items"] == 5
    assert "StepDone" not in steps


def test_a_failing_cell_is_shown_with_its_reason_and_the_study_goes_on(folder, capsys):
    values = studies.values(folder, folder=str(folder / "failing"), seeds=[0], prompting=[], forget=None)
    values["arms"]["torn"] = {"train.learning_rate": 1e30, "train.max_grad_norm": None, "train.schedule": "constant"}
    found = tunesmith.compare(values, runner=studies.here)
    row = found.results["arms"]["torn"]
    assert "not a finite number" in row["failed"]["0"]
    assert row["figures"] == {}
    assert found.results["arms"]["dora"]["figures"]["loss"]["seeds"] == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "torn, seed 0, failed: the" in said
    assert "failed" in found.files["markdown"].read_text()
    assert any("one seed says nothing of the next" in one["verdict"] for one in found.results["comparisons"])


def test_a_text_with_a_line_separator_of_unicode_does_not_break_the_page(folder):
    (folder / "separated").mkdir(exist_ok=True)
    make_rows(folder / "separated" / "rows.jsonl", 40, answer="one\u2028two\x85three")
    rows = (folder / "separated" / "rows.jsonl").read_text()
    (folder / "separated" / "rows.jsonl").write_text(rows.replace("what is", "what\u2028is"))
    values = studies.values(folder, folder=str(folder / "separated" / "study"), seeds=[0], prompting=[], forget=None)
    values["recipe"]["data"]["train"] = str(folder / "separated" / "rows.jsonl")
    found = tunesmith.compare(values, runner=studies.here, quiet=True)
    assert "what\u2028is" in found.files["html"].read_text()


def test_where_everything_fails_that_is_an_error(folder):
    values = studies.values(folder, folder=str(folder / "ruin"), seeds=[0], prompting=[])

    def broken(order, tell, stop):
        return Outcome(failed="no memory\n  found: none")

    with pytest.raises(MachineError, match="every cell of the study failed"):
        tunesmith.compare(values, runner=broken, quiet=True)


def test_a_signal_stops_the_study_and_the_same_call_goes_on(folder):
    values = studies.values(folder, folder=str(folder / "stopped"), prompting=[], forget=None, test={"rows": 10})
    asked = []

    def struck(order, tell, stop):
        asked.append(order.name)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() == signal.SIGINT
            return Outcome(stopped=True)
        return studies.here(order, tell, stop)

    with pytest.raises(Interrupted) as raised:
        tunesmith.compare(values, runner=struck, quiet=True, command="tunesmith compare it.yaml")
    assert raised.value.exit_code == 130
    assert "stopped after 2 of 4 cells" in str(raised.value)
    assert "tunesmith compare it.yaml goes on from there" in str(raised.value)
    left = []

    def counting(order, tell, stop):
        left.append(order.name)
        return studies.here(order, tell, stop)

    found = tunesmith.compare(values, runner=counting, quiet=True)
    assert left[0] == asked[2]
    assert len(left) == 2
    assert found.results["arms"]["dora"]["seeds"] == [0, 1]


def test_learning_rates_are_tried_alike_on_rows_that_are_not_reported(folder):
    values = studies.values(
        folder,
        folder=str(folder / "rates"),
        seeds=[0],
        prompting=[],
        forget=None,
        test={"rows": 10},
        learning_rates=[1e-5, 1e-2, 3e-2, 1e30],
    )
    trials = []

    def watching(order, tell, stop):
        if order.measure is None:
            trials.append(order)
        return studies.here(order, tell, stop)

    found = tunesmith.compare(values, runner=watching, quiet=True)
    seeds = {order.recipe["train"]["seed"] for order in trials}
    assert seeds == {1000}
    budgets = [(order.name.partition("-")[0], order.recipe["train"]["steps"]) for order in trials]
    assert budgets == [(arm, steps) for arm in ("lora", "dora") for steps in (1, 1, 1, 1, 2, 2)]
    for name in ("lora", "dora"):
        row = found.results["arms"][name]
        assert row["learning_rate"] in (1e-2, 3e-2)
        last = [trial for trial in row["trials"] if trial["round"] == 1]
        assert row["learning_rate"] == min(last, key=lambda trial: trial["loss"])["learning_rate"]


def test_arms_that_do_not_see_the_same_rows_are_named(folder):
    values = studies.values(folder, folder=str(folder / "unlike"), seeds=[0], prompting=[], forget=None)
    values["arms"] = {"two": {}, "three": {"train.batch_size": 3}}
    values["test"] = {"rows": 10}
    found = tunesmith.compare(values, runner=studies.here, quiet=True)
    assert any(note.startswith("Not the same rows") and "three" in note for note in found.results["notes"])


def test_a_process_of_its_own_trains_measures_and_stops_when_asked(folder):
    """The command line, with real children: struck amid a cell, it saves and says how to go on; then it does."""
    text = studies.YAML.replace("FOLDER", str(folder / "real")).replace("steps: 4", "steps: 3000")
    (folder / "real.yaml").write_text(text.replace("evaluate_every: 2", "save_every: 5"))
    environment = {**os.environ, "PYTHONPATH": str(Path(tunesmith.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunesmith", "compare", "real.yaml", "--quiet", "seeds=[0]"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
    for _ in range(1200):
        if list((folder / "real" / "cells").glob("*/checkpoints/step-*")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "the study was stopped after 0 of 2 cells" in said
    assert "tunesmith compare real.yaml 'seeds=[0]' goes on from there" in said
    (cell,) = (folder / "real" / "cells").iterdir()
    assert json.loads((cell / "summary.json").read_text())["status"] == "interrupted"
    saved = max(int(path.name[5:]) for path in (cell / "checkpoints").glob("step-*"))
    from tunesmith.compare.worker import Order

    order = json.loads(next((folder / "real" / "orders").glob("*.json")).read_text())
    order["recipe"]["train"]["save_every"] = 1000  # free to change; what is left is short
    seen = []

    def tell(values):
        seen.append(values)

    done = in_process(Order(**order), lambda values: tell(values), lambda: signal.SIGTERM if len(seen) > 60 else None)
    assert done.stopped
    first = next(values for values in seen if values.get("event") == "Started")
    assert first["first_step"] == saved


def test_a_process_that_dies_is_a_failed_cell(folder):
    from tunesmith.compare.worker import Order

    lost = Order("lost", str(folder / "lost"), str(folder / "dead" / "forget"), {"model": {}}, {}, "test")
    outcome = in_process(lost, lambda values: None, lambda: None)
    assert outcome.failed is not None
    assert "model.name is missing" in outcome.failed
    assert not outcome.stopped
