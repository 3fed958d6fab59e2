"""One small case for distillation: the student of preference_case.py, its rows, and a teacher of another architecture.

What the answers hold is compared, of either side.
"""

from __future__ import annotations

import torch
from preference_case import fill
from torch import nn

from tunesmith.models.tiny import tiny

# name -> (TRL's beta, our settings)
SHARED = {
    "forward_kl": (0.0, {"divergence": "forward_kl"}),
    "reverse_kl": (1.0, {"divergence": "reverse_kl"}),
    "jsd": (0.5, {"divergence": "jsd"}),
    "jsd, beta": (0.3, {"divergence": "jsd", "beta": 0.3}),
    "forward_kl, temperature": (0.0, {"divergence": "forward_kl", "temperature": 1.7}),
    "reverse_kl, temperature": (1.0, {"divergence": "reverse_kl", "temperature": 1.7}),
    "jsd, temperature": (0.8, {"divergence": "jsd", "beta": 0.8, "temperature": 0.6}),
}


def teacher_model() -> nn.Module:
    return fill(tiny("qwen3")).to(torch.float32)
