"""Work that is cut smaller where memory runs out: the same result, and other errors as they are."""

from __future__ import annotations

import pytest
import torch

from tunesmith.models.room import by_less

CPU = torch.device("cpu")
FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("fits", "tried"), [(100, [100]), (30, [100, 50, 25]), (7, [100, 50, 25, 12, 7]), (1, [100, 50, 25, 12, 7])]
)
def test_half_as_much_is_tried_down_to_the_least(fits, tried):
    asked = []

    def work(most):
        asked.append(most)
        if most > fits:
            raise FULL
        return "done"

    if fits < 7:
        with pytest.raises(RuntimeError, match="allocate"):
            by_less(work, 100, 7, CPU)
    else:
        assert by_less(work, 100, 7, CPU) == "done"
    assert asked == tried


def test_another_error_is_not_met_with_less():
    asked = []

    def work(most):
        asked.append(most)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        by_less(work, 100, 1, CPU)
    assert asked == [100]
