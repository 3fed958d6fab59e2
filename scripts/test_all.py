"""Run every test, the slow ones too, and write a dated table of what passed.

benchmarks/results/<date>-tests.md    one line per test file: passed, failed, skipped, seconds

The quick ones share the cores, as in `make test`; the slow ones have all of them, one after the other: some train.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tunesmith import machine

ROOT = Path(__file__).resolve().parent.parent
OUTCOMES = ("passed", "failed", "skipped")
SHARED = ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]


def main() -> int:
    date = datetime.date.today().isoformat()
    reports, codes = [], []
    for marked, more in (("not slow", SHARED), ("slow", [])):
        report = ROOT / "build" / f"tests-{marked.replace(' ', '-')}.xml"
        report.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pytest", "-m", marked, f"--junitxml={report}", *more, str(ROOT / "tests")]
        codes.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
        reports.append(report)
    table = ROOT / "benchmarks" / "results" / f"{date}-tests.md"
    table.write_text(render(reports, date))
    print(f"table: {table.relative_to(ROOT)}")
    return max(codes)


def render(reports: Sequence[Path], date: str) -> str:
    """Seconds are those of each test, beside others or alone."""
    counts: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys((*OUTCOMES, "seconds"), 0))
    for case in (case for report in reports for case in ET.parse(report).getroot().iter("testcase")):
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
