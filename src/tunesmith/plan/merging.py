"""What `tunesmith merge` holds at its most, by what adapters/merge.py does: it writes a merged copy, and proves it.

Maths   m numbers of the matrices that a product is added to, M of the largest of them; f of the layers that training in
        full replaces; q of those in few bits; t of the whole model, X of its largest tensor; s bytes of a number;
        b, a the base and the adapter as they stand; l the prompts' logits
        write     b + a + s (m + q + f) + 16 M      the merged copies; weight and product in fp64. No f where s = 4
        widen     w + 4 (m + q) + 16 M + 8 l        w: base and adapter in fp32, but for what is held in few bits
        read      b + a + 4 (m + q) + s t + 24 X    the copy from disk beside the unrounded one, held against each other
        answer    b + a + 4 t + 16 l                the copy from disk in fp32
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.attach import slots
from tunesmith.adapters.merge import PROMPTS
from tunesmith.quant.quantised import QuantisedLinear, quantised_layers

WIDE, WIDEST = 4, 8
"""Bytes of a number in fp32, in which a merge is proved, and in fp64, in which it is reckoned."""
COMPARED = 6
"""Tensors of 4 bytes a number, of the size of the two that are held against each other."""


def merging(model: PreTrainedModel, adapter_set: AdapterSet, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes. `model`: with the adapter in its slots; its numbers are not looked at."""
    adapters = {id(parameter) for adapter in adapter_set.adapters.values() for parameter in adapter.parameters()}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    few = [layer for _, layer in quantised_layers(model)]
    in_few_bits = {id(tensor) for layer in few for tensor in (*layer.parameters(), *layer.buffers())}
    plain = [tensor for key, tensor in tensors.items() if key not in adapters and key not in in_few_bits]
    learned = [tensor for key, tensor in tensors.items() if key in adapters]
    held = sum(tensor.nbytes for tensor in tensors.values())
    widened = sum(max(tensor.nbytes, WIDE * tensor.numel()) for tensor in (*plain, *learned))
    widened += sum(layer.held_bytes() for layer in few)
    dense = [layer.in_features * layer.out_features for layer in few]
    own = [(slot.layer, slot.adapter(adapter_set.name)) for slot in slots(model).values()]
    touched = [(layer, adapter.replaces() is None) for layer, adapter in own if adapter is not None]
    products = [_numbers(layer) for layer, is_product in touched if is_product]
    replaced = sum(_numbers(layer) for layer, is_product in touched if not is_product)
    made = sum(dense)
    made += sum(_numbers(layer) for layer, product in touched if product and not isinstance(layer, QuantisedLinear))
    size = model.dtype.itemsize
    total = sum(tensor.numel() for tensor in plain) + sum(dense)
    largest = max(*(tensor.numel() for tensor in plain), *dense, 0, 0)
    logits, product = _logits(model, tokenizer), 2 * WIDEST * max(products, default=0)
    return max(
        held + size * (made + (replaced if size < WIDE else 0)) + product,
        widened + WIDE * made + product + 2 * WIDE * logits,
        held + WIDE * made + size * total + COMPARED * WIDE * largest,
        held + max(size, WIDE) * total + 4 * WIDE * logits,
    )


def _numbers(layer: nn.Module) -> int:
    if isinstance(layer, QuantisedLinear):
        return layer.in_features * layer.out_features
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Numbers in those of the prompts that a merge is proved on."""
    head = model.get_output_embeddings()
    if head is None:
        return 0
    places = sum(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    return places * len(tokenizer)
