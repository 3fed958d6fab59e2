"""One virtual environment per rival, under `.venv-rivals/` in the repository, made from the rival's pinned list."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".venv-rivals"


def environment(rival: str) -> Path:
    """The Python of the rival's environment; made, or made anew where its list changed, on first use.

    Which build of torch is installed follows TORCH_INDEX, as for the project itself: a package index that holds the
    build for this machine. Unset, it is the one that pip finds.
    """
    lists = [HERE / "rivals" / rival / name for name in ("requirements.txt", "constraints.txt")]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()
    folder = ENVIRONMENTS / rival
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"making the environment of {rival} in {folder.relative_to(HERE.parent)} (a few minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(lists[1])]
    index = os.environ.get("TORCH_INDEX")
    if index:
        subprocess.run([*pip, "--index-url", index, "torch"], check=True)
    subprocess.run([*pip, "--requirement", str(lists[0])], check=True)
    stamp.write_text(wanted)
    return python
