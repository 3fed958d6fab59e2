"""A setting that acts only beside another one is refused where it stands alone, before anything is loaded."""

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe import from_dict, load
from tunesmith.recipe_rules import may_be_embedding

SMALLEST = {"model": {"name": "owner/model"}, "data": {"train": "owner/rows", "held_out": 0.1}}
POLICY = {"kind": "policy", "rewards": ["mine:right"]}

IDLE = [
    ({"train": {"stop_above_steps": 5}}, "train.stop_above_steps", "train.stop_above=8", {"train.stop_above": 9}),
    (
        {"train": {"min_learning_rate": 1e-5, "schedule": "constant"}},
        "train.min_learning_rate",
        "train.schedule=cosine",
        {"train.schedule": "linear"},
    ),
    ({"output": {"project": "mine"}}, "output.project", "output.report_to=[wandb]", {"output.report_to": ["wandb"]}),
    (
        {"output": {"project": "mine", "report_to": ["tensorboard"]}},
        "output.project",
        "tensorboard has none",
        {"output.report_to": ["tensorboard", "mlflow"]},
    ),
    (
        {"adapter": {"embedding_lr_ratio": 2}},
        "adapter.embedding_lr_ratio",
        "adapter.targets=[all-linear, embed_tokens]",
        {"adapter.targets": ["all-linear", "embed_tokens"]},
    ),
    (
        {"adapter": {"embedding_lr_ratio": 2, "train_in_full": ["embeddings"]}},
        "adapter.embedding_lr_ratio",
        "adapter.targets reaches none",
        {"adapter.targets": "re:.*"},
    ),
    ({"objective": {**POLICY, "gold": "solution"}}, "objective.gold", "exact", {"objective.rewards": ["exact"]}),
    (
        {"objective": {**POLICY, "gold": "solution"}},
        "objective.gold",
        "by its own name",
        {"objective.rewards": ["verl:mine.py:score"]},
    ),
    (
        {"objective": {**POLICY, "use_bias_correction_kl": False}},
        "objective.use_bias_correction_kl",
        "objective.beta is 0",
        {"objective.beta": 0.1},
    ),
    (
        {"objective": {**POLICY, "use_bias_correction_kl": False, "preset": "rloo"}},
        "objective.use_bias_correction_kl",
        "objective.kl_in is reward",
        {"objective.kl_in": "loss"},
    ),
    ({"objective": {**POLICY, "epsilon": 0.1}}, "objective.epsilon", "a ratio of 1", {"objective.num_iterations": 2}),
    (
        {"objective": {**POLICY, "preset": "cispo", "epsilon_high": 9.0}},
        "objective.epsilon_high",
        "num_iterations of 2 or more",
        {"objective.epsilon_high": 0.5},
    ),
    (
        {"data": {"train": "owner/rows", "format": "text", "learn": ["user"]}},
        "data.learn",
        "text is learned whole",
        {"data.learn": "everything"},
    ),
    (
        {"data": {"train": "owner/rows", "format": "segments", "learn": "everything"}},
        "data.learn",
        "the rows say themselves",
        {"data.format": "messages"},
    ),
    (
        {"data": {"train": "owner/rows", "format": "text", "learn_ends": "none"}},
        "data.learn_ends",
        "rows of messages",
        {"data.format": "alpaca"},
    ),
    (
        {"data": {"train": "a/b", "format": {"prompt": "p", "answer": "a"}, "roles": {"bot": "assistant"}}},
        "data.roles",
        "no messages",
        {"data.format": "auto"},
    ),
    (
        {"data": {"train": [{"path": "a/b", "format": "text", "template": "chatml"}, {"path": "c/d"}]}},
        "data.train[0].template",
        "words turns",
        {"data.train": [{"path": "a/b", "template": "chatml"}, {"path": "c/d"}]},
    ),
]


@pytest.mark.parametrize(
    ("values", "key", "said", "mended"), IDLE, ids=[f"{key}-{n}" for n, (_, key, *_) in enumerate(IDLE)]
)
def test_it_is_refused_alone_and_read_beside_what_it_needs(values, key, said, mended):
    with pytest.raises(RecipeError, match="has no effect") as caught:
        from_dict({**SMALLEST, **values})
    error = caught.value
    assert str(error).splitlines()[0].startswith(f"recipe: {key} has no effect: it ")
    assert all((error.found, error.expected, error.fix))
    assert said in str(error)
    made = from_dict({**SMALLEST, **values}, changes=[(other, value, "a change") for other, value in mended.items()])
    assert from_dict(made.plain).plain == made.plain


def test_a_default_that_is_written_down_is_no_wish():
    values = {"train": {"stop_above_steps": 3, "min_learning_rate": 0.0, "schedule": "constant"}}
    assert from_dict(from_dict({**SMALLEST, **values}).plain).recipe.train.stop_above_steps == 3


def test_all_of_them_are_told_at_once_each_at_its_line_and_to_changes_too(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {name: a/b}\ndata:\n  train: c/d\ntrain:\n  stop_above_steps: 7\n  min_learning_rate: 1e-5\n"
        "output:\n  project: mine\n"
    )
    with pytest.raises(RecipeError, match="3 problems") as caught:
        load(file, ["train.schedule=constant"])
    for place in ("line 5: train.stop_above_steps", "line 6: train.min_learning_rate", "line 8: output.project"):
        assert f"{file}, {place} has no effect" in str(caught.value)
    with pytest.raises(RecipeError, match=r"changes: train\.stop_above_steps has no effect"):
        from_dict(SMALLEST).recipe.with_changes({"train.stop_above_steps": 7})
    assert load(file, ["train.schedule=constant"], past=True).recipe.train.stop_above_steps == 7, "it was trained so"


def test_reporting_that_is_switched_off_leaves_the_project_for_the_next_time():
    values = {**SMALLEST, "output": {"project": "mine", "report_to": ["wandb"]}}
    assert from_dict(values, ["output.report_to=[]"]).recipe.output.project == "mine"


def test_a_file_has_no_parts_and_a_folder_no_subsets(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "folder").mkdir()

    def made(train, **more):
        return from_dict({"model": {"name": "a/b"}, "data": {"train": train, **more}}, folder=tmp_path)

    def refused(key, train, **more):
        with pytest.raises(RecipeError, match=rf"{key} has no effect: it names a (split|subset), and .* has none"):
            made(train, **more)

    rows, folder, hub = "rows.jsonl", "folder", "owner/rows"
    refused(r"data\.split", rows, split="test")
    refused(r"data\.subset", rows, subset="en")
    refused(r"data\.subset", folder, subset="en")
    refused(r"data\.split", rows, split="test", held_out=rows)
    refused(r"data\.split", rows, split="test", held_out="owner/other:test")
    refused(r"data\.train\[0\]\.split", [{"path": rows, "split": "test"}, {"path": hub}])
    refused(r"data\.split", [{"path": rows}, {"path": hub, "split": "train"}], split="test")
    made(folder, split="test")
    made(hub, split="test", subset="en")
    made(rows, split="test", held_out=hub)
    made(rows, split="test", held_out={"file": "folder"})
    made(rows, subset="en", held_out="owner/other:test")
    made([{"path": rows, "split": "train"}, {"path": hub}], split="test")


@pytest.mark.parametrize(
    ("targets", "may_be"),
    [
        ("all-linear", False),
        (("attention", "mlp"), False),
        (("q_proj", "v_proj"), False),
        ("none", False),
        (("q_proj", "embed_tokens"), True),
        ("wte", True),
        ("re:.*", True),
    ],
)
def test_which_targets_may_reach_a_table_of_tokens(targets, may_be):
    assert may_be_embedding(targets) is may_be
