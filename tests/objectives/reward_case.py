"""One small case for reward models: the pairs of preference_case.py, a tiny Llama that ends in one number.

Its base, its head and the adapter beside it are the same numbers wherever they are made.
"""

from __future__ import annotations

import torch
from preference_case import adapter_tensor
from transformers import LlamaForSequenceClassification, PreTrainedModel

from tunesmith.models.tiny import config, randomise

SETTINGS = {"plain": {}, "margin": {"margin": 0.4}, "centring": {"centring": 0.05, "margin": 0.4}}


def case_classifier() -> PreTrainedModel:
    shape = config("llama")
    shape.num_labels, shape.pad_token_id = 1, 0
    model = LlamaForSequenceClassification(shape)
    randomise(model, 3)
    return model.eval()


def head_tensor(shape: torch.Size) -> torch.Tensor:
    return adapter_tensor("score", "weight", shape)
