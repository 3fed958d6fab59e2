"""Storages of few bits: one file and one line each.

A file holds a `QuantisedLinear` (quantised.py), its header (Paper, Maths, Bits, Name), and

    in_files(config)            the storage of a checkpoint with this `quantization_config`, None for another's
    reading(storage, config)    the `quantization_config` for transformers; an error where a package is missing
    taken(layer, dtype)         a layer as transformers read it, in our class
    hollow(linear, storage, config)    the same on the meta device: shapes alone, for who wants to know what it takes
"""

from tunesmith.quant import four_bit, gptq, int8

QUANTISED = {
    "nf4": four_bit,
    "nf4-double": four_bit,
    "int8": int8,
    "gptq": gptq,
}
