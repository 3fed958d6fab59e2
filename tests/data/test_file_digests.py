"""A file that nobody wrote is not read again, and one that somebody wrote is never taken for what it was."""

from __future__ import annotations

import os
import time

import pytest

from tunesmith.data.cache import file_digests
from tunesmith.data.cache.file_digests import FileDigests
from tunesmith.data.cache.laid import digest_of_file


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Every file is large, and is taken for settled at once."""
    monkeypatch.setattr(file_digests, "LEAST_BYTES", 0)
    monkeypatch.setattr(file_digests, "LEFT_ALONE_NS", 0)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Names and digests as a process finds them that begins now, and how many files it read for that."""

    def asked(*paths):
        read = []
        with monkeypatch.context() as patched:
            patched.setattr(file_digests, "digest_of_file", lambda path: read.append(path) or digest_of_file(path))
            found = FileDigests(tmp_path / "cache" / "digests.json").of_all(paths)
        assert found == [part for path in paths for part in (str(path), digest_of_file(path))]
        time.sleep(0.02)  # several ticks of the file system's clock
        return len(read)

    return asked


def test_what_nobody_wrote_is_not_read_again(tmp_path, ask):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    time.sleep(0.02)
    assert [ask(*paths[:2]), ask(*paths), ask(*paths)] == [2, 1, 0]


def test_what_somebody_wrote_is_read_whatever_its_size_and_its_time(tmp_path, ask):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    time.sleep(0.02)
    assert [ask(path), ask(path)] == [1, 0]
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    time.sleep(0.02)
    assert [ask(path), ask(path)] == [1, 0]
    other.write_text("six")
    os.utime(other, ns=(1, 1))
    other.replace(path)
    time.sleep(0.02)
    assert [ask(path), ask(path)] == [1, 0]
    with path.open("a") as file:
        file.write("seven")
    assert ask(path) == 1


def test_what_was_written_just_now_is_not_kept(tmp_path, ask, monkeypatch):
    path = tmp_path / "a"
    path.write_text("one")
    time.sleep(0.02)
    with monkeypatch.context() as patched:
        patched.setattr(file_digests, "LEFT_ALONE_NS", 10**9)
        assert [ask(path), ask(path)] == [1, 1]
    with monkeypatch.context() as patched:  # somebody writes it while it is read
        moments = iter(range(9))
        patched.setattr(file_digests, "stamp", lambda _: [1, 1, 1, 1, next(moments)])
        assert [ask(path), ask(path)] == [1, 1]
    os.utime(path, ns=(1, time.time_ns() + 10**12))  # of a clock that is ahead
    assert [ask(path), ask(path)] == [1, 1]


def test_a_damaged_list_is_none_and_a_folder_that_cannot_be_written_is_no_error(tmp_path, ask):
    path, kept = tmp_path / "a", tmp_path / "cache" / "digests.json"
    path.write_text("one")
    time.sleep(0.02)
    assert ask(path) == 1
    for harmed in (kept.read_text().replace(digest_of_file(path), "0" * 32), "", "\xff"):
        kept.write_text(harmed)
        assert [ask(path), ask(path)] == [1, 0]
    kept.unlink()
    kept.mkdir()
    assert [ask(path), ask(path)] == [1, 1]
