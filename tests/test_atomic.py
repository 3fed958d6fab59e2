"""Folders for what is not whole yet."""

from __future__ import annotations

import os
import time

from tunesmith.atomic import new_partial


def test_what_a_killed_process_left_goes_after_a_day_and_not_before(tmp_path):
    old, young, other = (tmp_path / name for name in ("partial-old", "partial-young", "made"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "part").write_text("half")
    for folder in (old, other):
        os.utime(folder, (time.time() - 90_000,) * 2)
    made = new_partial(tmp_path)
    assert made.is_dir()
    assert not list(made.iterdir())
    assert not old.exists()
    assert young.exists()
    assert other.exists()
