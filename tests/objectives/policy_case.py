"""One small case for policy gradients: two prompts with two completions each; model and adapter of preference_case.py.

The old policy and the reference are both the model without the adapter.
"""

from __future__ import annotations

import numpy as np
from preference_case import CHOSEN_ANSWERS, PROMPTS, REJECTED_ANSWERS

from tunesmith.data.types import Origin, Sampled

ADVANTAGES = [0.7, -0.7, 1.2, -0.4]
MOST = 8
TEMPERATURE = 0.9
COMPLETIONS = [CHOSEN_ANSWERS[0], REJECTED_ANSWERS[0], CHOSEN_ANSWERS[1], REJECTED_ANSWERS[1]]


def samples() -> list[Sampled]:
    made = []
    for number, (own, gain) in enumerate(zip(COMPLETIONS, ADVANTAGES, strict=True)):
        prompt = PROMPTS[number // 2]
        weights = np.array([0.0] * len(prompt) + [1.0] * len(own), dtype=np.float32)
        made.append(
            Sampled(
                np.array(prompt + own),
                weights,
                Origin("prompts", number // 2 + 1),
                advantage=gain,
                number=number,
                prompt_tokens=len(prompt),
            )
        )
    return made


# name -> (TRL's loss type, our settings)
SHARED = {
    "grpo": ("grpo", {"preset": "grpo"}),
    "grpo, beta": ("grpo", {"preset": "grpo", "beta": 0.3}),
    "grpo, beta, uncorrected": ("grpo", {"preset": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "grpo, epsilon": ("grpo", {"preset": "grpo", "epsilon": 0.05, "epsilon_high": 0.4}),
    "dapo": ("dapo", {"preset": "dapo"}),
    "dr_grpo": ("dr_grpo", {"preset": "dr_grpo"}),
    "gspo": ("grpo", {"preset": "gspo", "epsilon": 0.05, "epsilon_high": 0.06}),
    "cispo": ("cispo", {"preset": "cispo", "epsilon_high": 1.1}),
    "rloo": ("rloo", {"preset": "rloo", "beta": 0.0, "epsilon": 0.3}),
}

REWARDS = [1.0, 0.2, -0.3, 0.6]
"""Of the completions, where advantages are made of them."""
WITH_PRICE = 0.3
"""RLOO's beta there: how much of the divergence from the reference is taken from the reward."""
