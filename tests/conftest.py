"""What every test starts from, whatever started the tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Begun in the background or under nohup, a process ignores these from its start, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Beside others (`-n`) each keeps to one core, and so do the processes it starts; set before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where a failure stops others (`make test`), the same cases each time; on a desk, new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
