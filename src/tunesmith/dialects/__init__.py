"""Other tools' files: read as they stand, and turned into recipes of ours. One file each, one line in the table."""

from tunesmith.dialects import axolotl, litgpt, llama_factory, trl
from tunesmith.dialects.base import Dialect

DIALECTS: dict[str, Dialect] = {
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "trl": trl,
    "litgpt": litgpt,
}
