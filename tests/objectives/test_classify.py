"""Classification: what the head is given, its losses against others' code and by hand, and the fit at once."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertConfig

from tunesmith.adapters import METHODS, identity, store
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead, head_of_config, read_head, say_in_config
from tunesmith.classifier import Classifier
from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Classified, Origin
from tunesmith.errors import DataError, ModelError
from tunesmith.models import attention
from tunesmith.models.policy import flat_batch, last_places, probe
from tunesmith.models.tiny import ARCHITECTURES, config, randomise
from tunesmith.objectives.classify import ENOUGH, Classification, build
from tunesmith.objectives.classify_losses import MEANINGS, ClassifySettings, rank
from tunesmith.objectives.features import fitted
from tunesmith.score.classification import decided

LABELS = ("bad", "fair", "good")
PAD = 0


def rows(count=9, labels=LABELS, several=False, longest=23, seed=0):
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = generator.integers(3, 90, generator.integers(4, longest))
        chosen = tuple(label for label in labels if generator.random() < 0.5) if several else (labels[i % len(labels)],)
        made.append(Classified(ids, np.zeros(len(ids), np.float32), Origin("rows", i + 1), labels=chosen))
    return made


def encoder_config():
    return BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def classifier(arch, head, dtype=torch.float32):
    shape = encoder_config() if arch == "bert" else config(arch)
    say_in_config(shape, head, PAD)
    attention.register()
    model = AutoModelForSequenceClassification.from_config(shape, attn_implementation="eager")
    randomise(model, 0)
    model = model.to(dtype).eval()
    model.requires_grad_(False)
    attention.install(model)
    return model


def adapted(arch, head, method="lora", dtype=torch.float32, **settings):
    """(policy, adapter set, model), every adapter tensor perturbed."""
    model, switch = classifier(arch, head, dtype), Switch()
    made = add(model, switch, METHODS[method].Settings(**settings), name="a", seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters().values():
        with torch.no_grad():
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    policy, _ = probe(model, switch)
    switch.name = "a"
    return policy, made, model


def objective_of(train, settings=None, **options):
    options = {"batch_size": len(train), "seed": 0, "shuffle": False, **options}
    return Classification(train, options.pop("held_out", []), settings or ClassifySettings(), **options)


def total(policy, objective, max_tokens):
    """Loss of one step and the gradient of every adapter tensor, the step cut at `max_tokens`."""
    step = next(objective.steps(policy))
    for parameter in policy.parameters():
        parameter.grad = None
    losses = []
    for batch in objective.micro_batches(step, max_tokens):
        loss = objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]
        loss.backward()
        losses.append(loss.item())
    return sum(losses)


def gradients(made):
    return {name: parameter.grad.clone() for name, parameter in made.parameters().items()}


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "bert"])
def test_loss_and_gradients_are_those_of_transformers_own_classifier(arch):
    policy, made, model = adapted(arch, ClassHead("one", LABELS))
    assert policy.flat == (arch not in ("falcon", "bloom", "stablelm", "bert"))
    train = rows()
    objective = objective_of(train)
    found = total(policy, objective, 10**6)
    ours = gradients(made)
    longest = max(map(len, train))
    ids = torch.full((len(train), longest), model.config.pad_token_id)
    for i, row in enumerate(train):
        ids[i, : len(row)] = torch.from_numpy(row.token_ids)
    for parameter in made.parameters().values():
        parameter.grad = None
    mask = (ids != model.config.pad_token_id).long()
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    wanted = F.cross_entropy(logits, torch.tensor([LABELS.index(row.labels[0]) for row in train]))
    wanted.backward()
    assert found == pytest.approx(wanted.item(), abs=2e-5)
    largest = max(gradient.abs().max() for gradient in gradients(made).values())
    for name, gradient in gradients(made).items():
        assert (ours[name] - gradient).abs().max() <= 3e-5 * largest, name
    assert sum(bool(gradient.any()) for gradient in ours.values()) >= len(ours) - 4  # experts that nobody chose
    assert any("score" in name or "classifier" in name for name in ours)


@pytest.mark.parametrize("classes", ["one", "several", "ordered"])
def test_how_a_step_is_cut_changes_nothing(classes):
    head = ClassHead(classes, LABELS)
    policy, made, _ = adapted("llama", head, dtype=torch.float64)
    weights = None if classes == "ordered" else "balanced"
    settings = ClassifySettings(classes=classes, labels=LABELS, class_weights=weights)
    objective = objective_of(rows(several=classes == "several"), settings)
    whole = total(policy, objective, 10**6)
    wanted = gradients(made)
    for max_tokens in (1, 40):
        objective.load_state_dict({"steps_done": 0})
        assert total(policy, objective, max_tokens) == pytest.approx(whole, rel=1e-10)
        for name, gradient in gradients(made).items():
            assert torch.allclose(gradient, wanted[name], atol=1e-10), name


@pytest.mark.parametrize("method", [name for name, module in METHODS.items() if not hasattr(module, "UNMERGEABLE")])
def test_every_method_that_can_be_merged_trains_beside_a_head(method):
    if METHODS[method].Settings().virtual_tokens:
        pytest.skip("virtual tokens are refused beside a head")
    policy, made, model = adapted("llama", ClassHead("one", LABELS), method)
    total(policy, objective_of(rows()), 100)
    assert made.parameters()["score.weight"].grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in made.parameters().values())
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if ".adapters." not in name)


def test_a_row_ends_at_its_last_token_that_is_not_padding():
    batch = flat_batch([torch.tensor([5, 6, 0]), torch.tensor([7, 0, 8]), torch.tensor([0, 0])])
    assert last_places(batch, 0).tolist() == [1, 5, 7]
    assert last_places(batch, None).tolist() == [2, 5, 7]


def test_softmax_loss_with_weights_is_torch_s():
    outputs, classes = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1, 0, 2])
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    found = MEANINGS["one"].loss(outputs, F.one_hot(classes, 3).double(), weights)
    wanted = F.cross_entropy(outputs, classes, weight=weights, reduction="none")
    assert torch.allclose(found, wanted)
    assert torch.allclose(found.sum() / weights[classes].sum(), F.cross_entropy(outputs, classes, weight=weights))


def test_several_labels_is_torch_s_multilabel_loss():
    outputs = torch.randn(6, 4, dtype=torch.float64)
    wanted = (torch.randn(6, 4) > 0).double()
    found = MEANINGS["several"].loss(outputs, wanted, torch.ones(4, dtype=torch.float64)).mean()
    assert torch.allclose(found, F.multilabel_soft_margin_loss(outputs, wanted))


def corn_by_the_paper(outputs, classes, num_classes):
    """Shi et al. 2021, equation 4 and their listing, task by task."""
    losses, examples = 0.0, 0
    for task in range(num_classes - 1):
        there = classes > task - 1
        above = (classes[there] > task).double()
        given = outputs[there, task]
        losses -= (F.logsigmoid(given) * above + (F.logsigmoid(given) - given) * (1 - above)).sum()
        examples += int(there.sum())
    return losses / examples


def test_ordered_classes_follow_the_paper():
    torch.manual_seed(0)
    classes, outputs = torch.tensor([0, 3, 1, 2, 2, 0, 3]), torch.randn(7, 3, dtype=torch.float64)
    names = ("1", "2", "3", "4")
    train = [
        Classified(np.arange(3, 8), np.zeros(5, np.float32), Origin("rows", i), labels=(names[k],))
        for i, k in enumerate(classes.tolist())
    ]
    objective = objective_of(train, ClassifySettings(classes="ordered"))
    assert objective.labels == names
    assert objective.head.num_outputs == 3
    sums = objective._loss(outputs, train).sums["loss"]
    assert torch.allclose(sums / objective._denominator(train), corn_by_the_paper(outputs, classes, 4))
    shares = MEANINGS["ordered"].probabilities(outputs)
    above = torch.sigmoid(outputs).cumprod(1)
    assert torch.allclose(shares.sum(1), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(shares[:, 2:].sum(1), above[:, 1])


def outputs_above(*shares):
    """CORN's outputs [1, K - 1] that give P(y > k) = shares[k]."""
    each = torch.tensor([later / before for before, later in pairwise((1.0, *shares))], dtype=torch.float64)
    return torch.logit(each)[None]


def test_of_ordered_classes_the_count_above_a_half_decides_everywhere(monkeypatch):
    outputs, names = outputs_above(0.6, 0.35), ("1", "2", "3")
    shares = MEANINGS["ordered"].probabilities(outputs)
    assert shares[0].tolist() == pytest.approx([0.4, 0.25, 0.35])  # the likeliest is the first
    train = [replace(row, labels=(name,)) for row, name in zip(rows(3), names, strict=True)]
    objective = objective_of(train, ClassifySettings(classes="ordered"), held_out=train[1:2])
    for row, is_right in zip(train, (0.0, 1.0, 0.0), strict=True):
        assert objective._loss(outputs, [row]).metrics["accuracy"].item() == is_right
        assert objective.by_row(outputs, [row], objective.head)[1] == [is_right]
        assert objective.figures(outputs, [row])["accuracy"] == is_right
        assert objective.figures(outputs, [row])["mean_error"] == 1.0 - is_right
    monkeypatch.setattr(objective, "outputs", lambda *_: (train[1:2], outputs))
    counts = objective.detail(None, 1, None)["rows of each class, by what they are taken for"]
    assert counts == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    drawn = 3 * torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    said = decided(MEANINGS["ordered"].probabilities(drawn).numpy(), False, ordered=True)
    assert said.argmax(1).tolist() == rank(drawn).tolist()


def test_a_classifier_says_the_class_that_training_counts_as_right():
    policy, _, _ = adapted("llama", ClassHead("ordered", ("1", "2", "3")))
    session = SimpleNamespace(head=ClassHead("ordered", ("1", "2", "3")), model=policy.model, switch=policy.switch)
    classifier = Classifier(session)
    classifier.outputs = lambda texts: outputs_above(0.6, 0.35)
    (made,) = classifier.classify(["a text"])
    assert made.label == "2"
    assert list(made.probabilities.values()) == pytest.approx([0.4, 0.25, 0.35])


def test_a_threshold_needs_enough_rows_on_both_sides(monkeypatch, tmp_path):
    """One row alone with a label would set its threshold: a half stays, and it is said."""
    count = 3 * ENOUGH
    labels = [
        tuple(
            name for name, has in (("often", i % 3 == 0), ("once", i == 0), ("always", True), ("nearly", i > 2)) if has
        )
        for i in range(count)
    ]
    names = ("often", "once", "always", "nearly")
    held_out = [replace(row, labels=own) for row, own in zip(rows(count), labels, strict=True)]
    objective = objective_of(held_out, ClassifySettings(classes="several", labels=names), held_out=held_out)
    outputs = torch.from_numpy(3 * objective.truth(held_out) - 4.5 + 0.01 * np.arange(count)[:, None])
    monkeypatch.setattr(objective, "outputs", lambda *_: (held_out, outputs))
    monkeypatch.setattr("tunesmith.objectives.classify.draw", lambda *_, **__: None)
    lines = objective.conclude(SimpleNamespace(answering=nullcontext), 1, tmp_path)
    assert objective.head.thresholds[0] < 0.5
    assert objective.head.thresholds[1:] == (0.5, 0.5, 0.5)
    assert "often 0." in lines[0]
    assert "once" not in lines[0]
    assert "stays at a half for once, always, nearly: fewer than 10 held-out rows" in lines[1]


@pytest.mark.parametrize("second", [ENOUGH - 1, ENOUGH])
def test_of_two_classes_both_need_enough_rows(second, monkeypatch, tmp_path):
    held_out = [replace(row, labels=("good" if i < second else "bad",)) for i, row in enumerate(rows(3 * ENOUGH))]
    objective = objective_of(held_out, ClassifySettings(labels=("bad", "good")), held_out=held_out)
    outputs = torch.from_numpy(2 * objective.truth(held_out) - [0.0, 4.0])
    monkeypatch.setattr(objective, "outputs", lambda *_: (held_out, outputs))
    monkeypatch.setattr("tunesmith.objectives.classify.draw", lambda *_, **__: None)
    lines = objective.conclude(SimpleNamespace(answering=nullcontext), 1, tmp_path)
    assert len(objective.head.thresholds) == (second == ENOUGH)
    assert ("macro-F1" in lines[0]) == (second == ENOUGH)
    assert ("stays at a half for good" in lines[0]) == (second < ENOUGH)


def test_labels_of_which_no_training_row_has_any_are_refused():
    none = [replace(row, labels=()) for row in rows()]
    settings = ClassifySettings(classes="several", labels=LABELS)
    with pytest.raises(DataError, match="no training row has a label"):
        build(settings, none, rows(several=True), batch_size=2, seed=0)
    with pytest.raises(DataError, match="no training row has a label"):
        build(ClassifySettings(classes="several"), none, [], batch_size=2, seed=0)
    assert build(settings, none, none, batch_size=2, seed=0).labels == LABELS  # rows that are scored may have none


def test_labels_that_cannot_be_are_named_with_their_rows():
    train = rows(6)
    strange = [Classified(train[0].token_ids, train[0].loss_weights, Origin("test", 7), labels=("awful",))]
    with pytest.raises(DataError, match=r"awful(.|\n)*test, row 7|test, row 7(.|\n)*awful"):
        objective_of(train, held_out=strange)
    with pytest.raises(DataError, match="not of one class"):
        objective_of([*train, *rows(5, several=True)], ClassifySettings(labels=LABELS))
    with pytest.raises(DataError, match="nothing to tell apart"):
        objective_of(rows(4, labels=("same",)))
    with pytest.raises(DataError, match="have an order that their names do not tell"):
        objective_of(train, ClassifySettings(classes="ordered"))
    with pytest.raises(DataError, match="class_weights names nice"):
        objective_of(train, ClassifySettings(class_weights={"nice": 2.0}))
    for wrong in ({"fit": "svm"}, {"labels": ("a", "a")}, {"classes": "ordered", "class_weights": "balanced"}):
        with pytest.raises(ValueError, match=r"is of way features alone|names a class twice|has no meaning in CORN"):
            ClassifySettings(**wrong)


def test_balanced_weights_are_scikit_learn_s():
    from sklearn.utils.class_weight import compute_class_weight

    train = [*rows(6), *rows(7, labels=("good",))]
    found = objective_of(train, ClassifySettings(class_weights="balanced")).weights
    names = np.array([row.labels[0] for row in train])
    assert found.numpy() == pytest.approx(compute_class_weight("balanced", classes=np.array(LABELS), y=names), rel=1e-6)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "opt"])
def test_the_head_travels_with_the_adapter_and_peft_computes_the_same(arch, tmp_path):
    head = ClassHead("one", LABELS, (0.4,))
    policy, made, model = adapted(arch, head)
    made.head = head
    batch = micro_batches(rows(5), 10**6)[0]
    with torch.no_grad():
        wanted = policy.scores(batch)
    store.save(tmp_path / "adapter", made, identity.identify(model, "some/base"))
    assert store.head_of(tmp_path / "adapter") == head
    fresh, switch = classifier(arch, head), Switch()
    for name, parameter in fresh.named_parameters():
        if "score" in name or "classifier" in name:
            parameter.data.zero_()  # another draw of the head is the same base
    loaded = store.load(tmp_path / "adapter", fresh, switch, "a")
    assert loaded.head == head
    again, _ = probe(fresh, switch)
    switch.name = "a"
    with torch.no_grad():
        assert torch.equal(again.scores(batch), wanted)
    own = PeftModel.from_pretrained(classifier(arch, head), str(tmp_path / "adapter"))
    for leaf, row in zip(batch.leaves, wanted, strict=True):
        ids = torch.from_numpy(batch.examples[leaf].token_ids)[None]
        with torch.no_grad():
            assert torch.allclose(own(input_ids=ids).logits[0], row, atol=2e-5)


def test_an_adapter_of_peft_for_a_classifier_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    own = get_peft_model(classifier("llama", ClassHead("one", LABELS)), LoraConfig(task_type="SEQ_CLS", r=2))
    for name, parameter in own.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    own.save_pretrained(str(tmp_path))
    assert store.head_of(tmp_path).num_outputs == 3
    model, switch = classifier("llama", ClassHead("one", LABELS)), Switch()
    store.load(tmp_path, model, switch, "theirs")
    policy, _ = probe(model, switch)
    switch.name = "theirs"
    ids = torch.arange(5, 20)
    with torch.no_grad():
        assert torch.allclose(policy.scores(flat_batch([ids])), own(input_ids=ids[None]).logits, atol=1e-5)


@pytest.mark.parametrize(
    "head", [ClassHead("one", LABELS), ClassHead("several", LABELS), ClassHead("ordered", LABELS), ClassHead("reward")]
)
def test_what_a_head_gives_is_read_from_a_config_and_from_json(head):
    shape = config("llama")
    shape.architectures = ["LlamaForCausalLM"]
    assert head_of_config(shape) is None
    say_in_config(shape, head, PAD)
    shape.architectures = ["LlamaForSequenceClassification"]
    found = head_of_config(shape)
    assert found == head
    del shape.tunesmith_head
    plain = head_of_config(shape)
    assert plain.num_outputs == head.num_outputs
    assert plain.names == head.names
    assert read_head(head.as_dict()) == head
    with pytest.raises(ModelError, match="another number of outputs"):
        say_in_config(shape, ClassHead("one", tuple("abcdefg")), PAD)


# ---- the fit at once -------------------------------------------------------------------------------------------------


def problem(count=300, width=8, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 1.2, (classes, width))
    y = generator.integers(0, classes, count)
    x = centres[y] + generator.normal(0, 1, (count, width))
    return (x * np.linspace(0.1, 5, width)).astype(np.float32), np.eye(classes, dtype=np.float32)[y]


@pytest.mark.parametrize("how", ["logistic", "svm"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_fitted_head_is_the_best_of_its_loss(how, classes, has_bias):
    x, wanted = problem(classes=classes)
    weights = np.linspace(1, 2, classes)
    options = {"several": False, "has_bias": has_bias, "how": how, "seed": 0}
    made = fitted(x, wanted, weights, strength=1.0, **options)
    outputs = x @ made.weight.T + (0 if made.bias is None else made.bias)
    assert made.weight.shape == (classes, 8)
    assert (outputs.argmax(1) == wanted.argmax(1)).mean() > 0.8
    if how == "logistic":  # no small change is better, the penalty counted: it is a minimum
        scale, y = x.std(0), wanted.argmax(1)

        def penalised(matrix):
            logits = torch.from_numpy(x @ matrix.T + (0 if made.bias is None else made.bias))
            losses = F.cross_entropy(logits, torch.from_numpy(y), reduction="none").numpy() * weights[y]
            free = (matrix[1] - matrix[0])[None] if classes == 2 else matrix
            return losses.sum() + 0.5 * ((free * scale) ** 2).sum()

        best, generator = penalised(made.weight), np.random.default_rng(0)
        for _ in range(20):
            assert penalised(made.weight + 1e-2 * generator.normal(0, 1, made.weight.shape) / scale) > best
    searched = fitted(x, wanted, weights, strength=None, **options)
    assert "by cross-validation" in searched.notes[0]
    assert searched.strength in (0.01, 0.1, 1.0, 10.0, 100.0)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("mean", "constants"), [(0, 20), (30, 0), (1000, 3)])
def test_features_far_from_zero_and_constant_ones_change_nothing(has_bias, mean, constants):
    """A decoder's states have both; fp32 holds a constant with a spread of its own rounding."""
    generator = np.random.default_rng(1)

    def drawn(count):
        x = generator.normal(size=(count, 8))
        y = (x[:, 0] + 0.5 * x[:, 1] + 0.3 * generator.normal(size=count) > 0.3).astype(int)
        return x, y

    def far(x):
        moved = x + mean * (np.arange(8) > 1)
        return np.concatenate([moved, 1 + 1e-7 * generator.normal(size=(len(x), constants))], 1).astype(np.float32)

    (x, y), (asked, truth) = drawn(120), drawn(2000)
    options = {"several": False, "how": "logistic", "strength": 1.0, "seed": 0}
    wanted = np.eye(2, dtype=np.float32)[y]
    plain = fitted(x.astype(np.float32), wanted, np.ones(2), has_bias=True, **options)
    made = fitted(far(x), wanted, np.ones(2), has_bias=has_bias, **options)
    outputs = far(asked) @ made.weight.T.astype(np.float32)
    outputs = outputs + (0 if made.bias is None else made.bias.astype(np.float32))
    best = asked @ plain.weight.T + plain.bias
    assert (best.argmax(1) == truth).mean() > 0.85
    assert (outputs.argmax(1) == best.argmax(1)).mean() > 0.97


def test_several_labels_are_fitted_one_by_one():
    x, wanted = problem()
    made = fitted(x, wanted, np.ones(3), several=True, has_bias=True, how="logistic", strength=1.0, seed=0)
    outputs = x @ made.weight.T + made.bias
    assert ((outputs > 0) == (wanted > 0)).mean() > 0.8


@pytest.mark.parametrize(
    ("labels", "always", "says"),
    [((*LABELS, "never"), (), "no training row is of class.*never"), (LABELS, ("fair",), "every training row.*fair")],
)
@pytest.mark.parametrize("classes", ["one", "several"])
def test_what_is_fitted_at_once_needs_rows_with_each_label_and_without_it(classes, labels, always, says):
    several = classes == "several"
    train = [replace(row, labels=tuple({*row.labels, *always}) if several else row.labels) for row in rows()]
    settings = {"classes": classes, "labels": labels}
    objective_of(train, ClassifySettings(**settings, way="all"))
    if always and not several:
        return
    with pytest.raises(DataError, match=says):
        objective_of(train, ClassifySettings(**settings, way="features"))


@pytest.mark.parametrize("classes", ["one", "ordered"])
def test_ordered_classes_are_not_one_number_in_two_writings(classes):
    train = rows(labels=("1.5", "2", "1.50"))
    if classes == "one":
        assert set(objective_of(train, ClassifySettings()).labels) == {"1.5", "1.50", "2"}
        return
    with pytest.raises(DataError, match=r"(?s)two ways.*'1\.50?' and '1\.50?'"):
        objective_of(train, ClassifySettings(classes=classes))


def test_way_features_is_a_fit_of_the_model_s_own_head(tmp_path):
    stage = lambda name: nullcontext(lambda share: None)  # noqa: E731
    policy, _, _ = adapted("llama", ClassHead("one", LABELS), "full", targets="none", train_in_full=("head",))
    train = rows(30)
    objective = objective_of(train, ClassifySettings(way="features", fit_strength=10.0), held_out=train)
    assert objective.steps_per_epoch == 0
    before = objective.evaluate(policy, 1000)["loss"]
    lines = objective.begin(policy, num_steps=0, max_tokens=200, cache=tmp_path, stage=stage)
    after = objective.evaluate(policy, 1000)["loss"]
    assert "has no effect" in lines[-1]
    assert after < 0.5 * before
    assert after < math.log(3)
    lines = objective.begin(policy, num_steps=0, max_tokens=200, cache=tmp_path, stage=stage)
    assert lines[0] == "the features were in the cache"
    assert objective.evaluate(policy, 1000)["loss"] == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("meaning", MEANINGS)
def test_gradients_of_every_meaning_by_finite_differences(meaning):
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 4, dtype=torch.float64, generator=draw).requires_grad_()
    wanted = {
        "one": torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 1]],
        "several": torch.randint(0, 2, (5, 4), generator=draw).double(),
        "ordered": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]).double(),
    }[meaning]
    weights = torch.rand(4, dtype=torch.float64, generator=draw) + 0.5
    assert torch.autograd.gradcheck(lambda x: MEANINGS[meaning].loss(x, wanted, weights), (outputs,))
