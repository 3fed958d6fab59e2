"""bitsandbytes, imported when a storage first needs it: the core does without."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from typing import Any

from tunesmith.errors import MachineError


@functools.cache
def bitsandbytes() -> Any:
    """The package. What it logs while it is imported (kernels that it would rather have) is not said."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(before)


def refuse_without_bitsandbytes(storage: str) -> None:
    """bitsandbytes makes and reads the storage, accelerate is what transformers reads it with."""
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            f"a base in {storage} needs {' and '.join(missing)}",
            fix="pip install 'tunesmith[bitsandbytes]', or model.storage=plain",
        )
    bitsandbytes()
