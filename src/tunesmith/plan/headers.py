"""What the hub says of a model by the headers of its files: how many numbers they hold, of which type, and how much of
them is still to be fetched. No weight is fetched for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tunesmith.data.reading.hub import hub_answers
from tunesmith.models.settings import ModelSettings
from tunesmith.progress import size

NEAR = 0.005
"""Share by which the files' numbers may differ from the config's (buffers that are saved too)."""
WHOLE_NUMBERS = ("I8", "U8", "I16", "I32", "I64", "BOOL")


def of_hub(settings: ModelSettings, parameters: int | None) -> list[str]:
    """Lines for a person; none of a model that is a folder or a file here, or where the hub is not asked.

    parameters: of the model as its config makes it, None where that is not known. Files that hold others are named: the
    forecast is of the config's.
    """
    if Path(settings.name).expanduser().exists() or settings.name.count("/") > 1 or not hub_answers():
        return []
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        api = HfApi()
        metadata = api.get_safetensors_metadata(settings.name, revision=settings.revision)
        files = sorted(set(metadata.weight_map.values()))
        listed = api.model_info(settings.name, revision=settings.revision, files_metadata=True).siblings or []
        sizes = {one.rfilename: one.size or 0 for one in listed}
        here = [
            file
            for file in files
            if isinstance(try_to_load_from_cache(settings.name, file, revision=settings.revision), str)
        ]
    except Exception as error:  # whatever the network does: a plan needs none of it
        return [f"the hub's headers of {settings.name} were not read ({type(error).__name__})"]
    counts = metadata.parameter_count
    held = " and ".join(f"{count:,} numbers in {dtype}" for dtype, count in sorted(counts.items()))
    left = sum(sizes.get(file, 0) for file in files if file not in here)
    told = [f"on the hub {held}: " + (f"{size(left)} to fetch" if left else "all of it is here")]
    return [*told, *_odd({str(dtype): count for dtype, count in counts.items()}, parameters), *_no_room(left)]


def _odd(counts: Mapping[str, int], parameters: int | None) -> list[str]:
    plain = sum(counts.values())
    if parameters is None or any(dtype in counts for dtype in WHOLE_NUMBERS) or not plain:  # packed: other numbers
        return []
    if abs(plain - parameters) <= NEAR * parameters:
        return []
    return [f"its config makes {parameters:,} parameters, its files hold {plain:,}: the forecast is of the config"]


def _no_room(left: int) -> list[str]:
    """Where what is to be fetched does not fit onto the disk."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if left <= free:
        return []
    place = os.fspath(folder)
    return [f"{size(left)} do not fit into the {size(free)} free under {place}: set HF_HOME to a larger disk"]
