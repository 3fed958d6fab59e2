"""Run every test, the slow ones too, and write a dated table of what passed.

benchmarks/results/<date>-tests.md    one line per test file: passed, failed, skipped, seconds
"""

from __future__ import annotations

import datetime
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest

from tunesmith import machine

ROOT = Path(__file__).resolve().parent.parent
OUTCOMES = ("passed", "failed", "skipped")


def main() -> int:
    date = datetime.date.today().isoformat()
    report = ROOT / "build" / "tests.xml"
    report.parent.mkdir(exist_ok=True)
    code = pytest.main(["-m", "slow or not slow", f"--junitxml={report}", str(ROOT / "tests")])
    table = ROOT / "benchmarks" / "results" / f"{date}-tests.md"
    table.write_text(render(report, date))
    print(f"table: {table.relative_to(ROOT)}")
    return int(code)


def render(report: Path, date: str) -> str:
    counts: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys((*OUTCOMES, "seconds"), 0))
    for case in ET.parse(report).getroot().iter("testcase"):
        row = counts[case.get("classname", "?").removeprefix("tests.").replace(".", "/")]
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        row[outcome] += 1
        row["seconds"] += float(case.get("time", 0))
    where = machine.describe()
    lines = [
        f"# Every test, {date}",
        "",
        f"{where['processor']}, {where['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in where["versions"].items()),
        "",
        "| tests | passed | failed | skipped | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in sorted(counts.items()):
        lines.append(f"| {name} | {' | '.join(str(int(row[o])) for o in OUTCOMES)} | {row['seconds']:.1f} |")
    total = {key: sum(row[key] for row in counts.values()) for key in (*OUTCOMES, "seconds")}
    lines.append(f"| **all** | {' | '.join(str(int(total[o])) for o in OUTCOMES)} | {total['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
