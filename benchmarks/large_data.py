"""Preparing a large source: memory that grows with it, seconds the first time, and seconds once its rows are kept.

Rows of question and answer in invented words are written into one file, and prepared twice as a run prepares them (the
lines that are told before it included), each time in a process of its own. The second takes them from the cache.

    anonymous_bytes   most anonymous memory (RssAnon) of the process, less what it had with libraries and tokenizer
    held_bytes        the same once all is prepared: what a run carries through its steps
    seconds           from the settings to the lines that are told
    was_kept          whether the rows were taken from the cache

Files that are mapped are no anonymous memory: the system takes their pages back when it needs them. Files lie in a
folder of their own that goes afterwards; 10^6 rows want about 2 GB there.

python benchmarks/large_data.py
python benchmarks/large_data.py --rows 20000 --kinds jsonl,csv --no-write
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prepare import REPOSITORY, invented_text, make_model
from result import Result, load_average, warn_if_busy

ROWS = 1_000_000
KINDS = ("jsonl", "csv", "parquet")
NUM_TEXTS, ASKED_WORDS, ANSWERED_WORDS = 4_000, 20, 60
PARQUET_ROWS = 50_000
"""Rows of one group of a Parquet file: they are read together."""
SECONDS_BETWEEN_LOOKS = 0.02


def rows(count: int) -> Iterator[dict[str, str]]:
    """Each is another one, by its number."""
    rng = random.Random(0)
    asked, answered = ([invented_text(rng, words) for _ in range(NUM_TEXTS)] for words in (ASKED_WORDS, ANSWERED_WORDS))
    for number in range(count):
        yield {"prompt": f"{number}: {rng.choice(asked)}", "completion": f"{rng.choice(answered)} {number}"}


def write(path: Path, count: int) -> None:
    if path.suffix == ".parquet":
        _write_parquet(path, count)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, ["prompt", "completion"])
            table.writeheader()
            table.writerows(rows(count))
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))


def _write_parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
    walk = rows(count)
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, PARQUET_ROWS):
            group = [next(walk) for _ in range(min(PARQUET_ROWS, count - start))]
            writer.write_table(pa.Table.from_pylist(group, schema))


def anonymous_bytes() -> int:
    """Of this process, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("anonymous memory is read from /proc/self/status, which does not tell it here")


class Watched:
    """The most anonymous memory inside a `with`, looked at from a thread."""

    def __enter__(self) -> Watched:
        self.most, self._ended = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(model: Path, source: Path, cache: Path) -> dict[str, Any]:
    """In this process."""
    import datasets  # noqa: F401  (as every run that reads Parquet loads it)

    from tunesmith.data.cache.kept import prepare_once
    from tunesmith.data.check.report import summary
    from tunesmith.data.settings import DataSettings
    from tunesmith.models.load import load_tokenizer
    from tunesmith.models.settings import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name=str(model)))
    said: list[str] = []
    gc.collect()
    before, started = anonymous_bytes(), time.perf_counter()
    with Watched() as watched:
        prepared = prepare_once(
            DataSettings(train=str(source), held_out=0.01), tokenizer, seed=0, root=cache, say=said.append
        )
        lines = summary(prepared)
        seconds = time.perf_counter() - started
        gc.collect()
        held = anonymous_bytes()
    return {
        "anonymous_bytes": watched.most - before,
        "held_bytes": held - before,
        "seconds": seconds,
        "was_kept": any("prepared before" in line for line in said),
        "rows": prepared.counts.kept + prepared.held_out_counts.kept,
        "tokens": prepared.counts.tokens + prepared.held_out_counts.tokens,
        "told": lines[0],
    }


def child(model: Path, source: Path, cache: Path) -> dict[str, Any]:
    call = [sys.executable, __file__, "--child", *map(str, (model, source, cache))]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def both(kind: str, count: int, model: Path) -> dict[str, Any]:
    """Numbers of both times; by row where they go by rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"rows.{kind}"
        write(source, count)
        first, again = (child(model, source, Path(folder) / "cache") for _ in range(2))
        kept = sum(path.stat().st_size for path in (Path(folder) / "cache").rglob("*") if path.is_file())
        found = {"source_bytes": source.stat().st_size, "cache_bytes": kept, "first": first, "again": again}
    if first["rows"] != count or first["was_kept"] or not again["was_kept"]:
        raise SystemExit(f"{kind}: not what was to be measured: {found}")
    for name, one in (("first", first), ("again", again)):
        print(
            f"{kind:8} {name:6} {one['seconds']:8.1f} s, {one['anonymous_bytes'] / 1e6:8.1f} MB more at most, "
            f"{one['held_bytes'] / 1e6:8.1f} MB held ({one['held_bytes'] / count:.0f} bytes a row)",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of files, with , between them")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "SOURCE", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*map(Path, options.child))))
        return 0
    before, model = warn_if_busy(), make_model()
    found = {kind: both(kind, options.rows, model) for kind in options.kinds.split(",")}
    result = Result(
        benchmark="large-data",
        subject=f"{options.rows}-rows",
        settings={
            "rows": options.rows,
            "words": {"asked": ASKED_WORDS, "answered": ANSWERED_WORDS},
            "held_out": 0.01,
            "tokenizer": model.name,
        },
        load_average={"before": before, "after": load_average()},
        contenders={"tunesmith": found},
        ratios={},
    )
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
