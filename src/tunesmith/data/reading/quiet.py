"""`datasets` and the hub client without their bars and log lines: what went wrong is said by our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no log lines of `datasets` and the hub client inside; all as it was afterwards."""
    import datasets
    from huggingface_hub import utils as hub

    bars, hub_bars = datasets.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    verbosity, hub_verbosity = datasets.logging.get_verbosity(), hub.logging.get_verbosity()
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    hub.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        hub.logging.set_verbosity(hub_verbosity)
        if bars:
            datasets.enable_progress_bars()
        if hub_bars:
            hub.enable_progress_bars()
