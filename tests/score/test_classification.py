"""Figures of a classifier against scikit-learn's, and by hand where it has none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from tunesmith.score.classification import (
    Bin,
    at_thresholds,
    best_thresholds,
    calibration_error,
    confusion,
    decided,
    measured,
    reliability,
    too_few,
)
from tunesmith.score.classification_picture import draw


def made(n=200, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    outputs = rng.normal(0, 1, (n, classes)) + 1.2 * np.eye(classes)[y]
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    return shares, np.eye(classes)[y], y


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_are_scikit_learn_s(classes):
    shares, wanted, y = made(classes=classes)
    found = measured(shares, wanted, several=False)
    assert found["accuracy"] == (shares.argmax(1) == y).mean()
    assert found["macro_f1"] == pytest.approx(f1_score(y, shares.argmax(1), average="macro"))
    wanted_auc = roc_auc_score(y, shares[:, 1] if classes == 2 else shares, multi_class="ovr")
    assert found["auc"] == pytest.approx(wanted_auc)
    assert log_loss(y, shares) > 0


def test_a_class_that_never_comes_is_left_out_and_one_alone_has_no_auc():
    shares, wanted, _ = made()
    wanted[:, 2], wanted[:, 1] = 0, wanted[:, 1] + wanted[:, 2]
    assert set(measured(shares, wanted, several=False)) == {"accuracy", "macro_f1", "auc", "ece"}
    only = np.zeros_like(wanted)
    only[:, 0] = 1
    assert "auc" not in measured(shares, only, several=False)


def test_order_is_measured_by_how_many_classes_lie_between():
    shares = np.eye(4)[[0, 1, 3, 3]]
    wanted = np.eye(4)[[0, 3, 3, 1]]
    assert measured(shares, wanted, several=False, ordered=True)["mean_error"] == 1.0


def test_confidence_and_truth_by_hand():
    shares = np.array([[0.95, 0.05], [0.91, 0.09], [0.35, 0.65], [0.62, 0.38]])
    wanted = np.array([[1, 0], [0, 1], [0, 1], [0, 1]])
    bins = reliability(shares, wanted, several=False)
    assert bins == [Bin(pytest.approx(0.635), 0.5, 2), Bin(pytest.approx(0.93), 0.5, 2)]
    assert calibration_error(bins) == pytest.approx((2 * 0.135 + 2 * 0.43) / 4)
    assert confusion(decided(shares, False), wanted).tolist() == [[1, 0], [2, 1]]
    several = reliability(np.array([[0.9, 0.2]]), np.array([[1, 1]]), several=True)
    assert [(one.count, one.right) for one in several] == [(1, 0.0), (1, 1.0)]


@pytest.mark.parametrize("seed", range(8))
def test_of_two_classes_it_does_not_matter_which_is_the_second(seed):
    generator = np.random.default_rng(seed)
    truth = generator.random(60) < 0.3
    second = np.clip(0.15 * truth + 0.6 * generator.random(60), 0.0, 1.0)
    shares, wanted = np.stack([1 - second, second], 1), np.stack([~truth, truth], 1)
    said = []
    for order in ([0, 1], [1, 0]):
        (threshold,) = best_thresholds(shares[:, order][:, 1:], wanted[:, order][:, 1:], both=True)
        found = decided(shares[:, order], False, (threshold,))[:, order]
        said.append(f1_score(truth, found[:, 1], average="macro"))
    every = [f1_score(truth, second >= t, average="macro", zero_division=0) for t in (*second, 2.0)]
    assert said == pytest.approx([max(every)] * 2, abs=1e-9)
    assert said[0] >= f1_score(truth, second >= 0.5, average="macro", zero_division=0)


def test_the_best_threshold_is_the_best_of_all():
    shares, wanted, _ = made(classes=2)
    (threshold,) = best_thresholds(shares[:, 1:], wanted[:, 1:])
    truth = wanted[:, 1].astype(bool)
    every = [f1_score(truth, shares[:, 1] >= t, zero_division=0) for t in (*shares[:, 1], 2.0)]
    assert f1_score(truth, shares[:, 1] >= threshold) == pytest.approx(max(every), abs=1e-9)
    assert best_thresholds(np.array([[0.2], [0.7]]), np.array([[0], [1]])) == (0.5,)
    assert best_thresholds(np.array([[0.2], [0.3]]), np.array([[0], [1]])) == (pytest.approx(0.25),)
    assert best_thresholds(np.array([[0.2], [0.3]]), np.array([[0], [0]])) == (0.5,)
    told = at_thresholds(shares, wanted, False, (threshold,))
    assert told["macro_f1 at the thresholds"] == pytest.approx(
        f1_score(truth, shares[:, 1] >= threshold, average="macro")
    )


def test_of_ordered_classes_the_median_is_decided_for():
    """P(y > 0) = 0.6 and P(y > 1) = 0.35: one of the two is above a half, though class 0 is the likeliest."""
    shares = np.array([[0.4, 0.25, 0.35], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.3, 0.19, 0.51]])
    assert decided(shares, False, ordered=True).argmax(1).tolist() == [1, 2, 0, 2]
    assert decided(shares, False).argmax(1).tolist() == [0, 2, 0, 2]
    wanted = np.eye(3)[[1, 2, 0, 2]]
    found = measured(shares, wanted, several=False, ordered=True)
    assert (found["accuracy"], found["mean_error"]) == (1.0, 0.0)
    sure = {one.confidence for one in reliability(shares, wanted, several=False, ordered=True)}
    assert min(sure) == pytest.approx(0.25)


def test_a_threshold_is_looked_for_where_enough_rows_tell_it():
    probabilities = np.linspace(0.9, 0.1, 9)[:, None]
    for count in (1, 3, 6, 8):
        wanted = (np.arange(9) < count).astype(float)[:, None]
        assert too_few(wanted, 3).tolist() == [count in (1, 8)]
        (threshold,) = best_thresholds(probabilities, wanted, enough=3)
        assert (threshold == 0.5) == (count in (1, 8))


@pytest.mark.parametrize("several", [False, True])
def test_the_picture_is_drawn(tmp_path, several):
    shares, wanted, _ = made(classes=4)
    draw(tmp_path / "a.png", shares, wanted, ["a", "b", "c", "a very long name indeed"], several=several, title="run")
    assert (tmp_path / "a.png").stat().st_size > 10_000
