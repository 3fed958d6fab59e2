"""Whether the hub can be asked at all: its clients try for most of a minute before they say that it cannot."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit


def hub_answers() -> bool:
    """Whether a connection to the hub can be made; behind a proxy that is left to the hub's client."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def is_out_of_reach(name: str) -> bool:
    """Whether the data set `name` was never fetched by `datasets`, and cannot be now."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, _, own = name.rpartition("/")
    folder = Path(config.HF_DATASETS_CACHE).expanduser() / "___".join(
        filter(None, (owner, camelcase_to_snakecase(own)))
    )
    return not folder.is_dir() and not hub_answers()
