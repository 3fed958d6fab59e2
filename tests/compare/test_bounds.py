"""No interval reaches beyond what its figure can be, however few the seeds."""

from __future__ import annotations

import pytest

from tunesmith.compare.pairing import Measured
from tunesmith.compare.results import _difference, _figures
from tunesmith.compare.verdict import Measure

SHARE, LOSS = (Measure(key, key, points, points) for key, points in (("label", True), ("loss", False)))
HIGH = {0: dict.fromkeys(range(40), 1.0), 1: dict.fromkeys(range(40), 0.8)}
LOW = {0: dict.fromkeys(range(40), 0.0), 1: dict.fromkeys(range(40), 0.3)}


def test_a_difference_of_two_shares_lies_between_minus_one_and_one():
    found = _difference({"a": Measured({"label": HIGH}), "b": Measured({"label": LOW})}, "a", "b", SHARE)
    assert found.value == pytest.approx(0.75)
    assert found.low >= -1.0
    assert found.high == 1.0
    loss = _difference({"a": Measured({"loss": HIGH}), "b": Measured({"loss": LOW})}, "a", "b", LOSS)
    assert loss.high > 1.0


def test_no_loss_is_negative_and_no_share_above_one():
    share, loss = _figures(HIGH, SHARE), _figures(HIGH, LOSS)
    assert share["high"] == 1.0
    assert loss["high"] > 1.0
    assert _figures(LOW, LOSS)["low"] == 0.0
