"""Policy gradients as four independent choices, and the presets that name their combinations.

    advantage     how good a completion was, beside what else was sampled
    level         whether the ratio to the sampling policy is a token's or a sequence's
    clipping      what keeps an update near that policy
    aggregation   what the sum over tokens is divided by

All functions are pure. r [n] rewards of completions, g [n] the group (prompt) of each; logp, old, ref [m] of tokens,
row [m] the completion of each token.

Papers  GRPO 2402.03300 · DAPO 2503.14476 · Dr.GRPO 2503.20783 · GSPO 2507.18071 · CISPO 2506.13585 · RLOO 2402.14740
        REINFORCE++ 2501.03262 · the estimators k1, k2, k3 of a KL divergence: Schulman 2020
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.settings import Contradiction

STD_EPS = 1e-4
"""Added to a standard deviation before it divides, as TRL does (verl 1e-6, OpenRLHF 1e-9)."""

Advantage = Literal["group", "group_mean", "group_mean_batch_std", "leave_one_out", "batch"]
Level = Literal["token", "sequence", "product"]
Clipping = Literal["ratio", "cispo", "none"]
Aggregation = Literal["sequences", "tokens", "constant"]
Kl = Literal["k1", "k2", "k3"]
Preset = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_pp"]

_GRPO = {"advantage": "group", "importance_sampling_level": "token", "clipping": "ratio", "aggregation": "sequences",
         "epsilon": 0.2, "epsilon_high": None, "beta": 0.0, "kl": "k3", "kl_in": "loss",
         "dynamic_sampling": False, "overlong_buffer": None}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": _GRPO,
    "dapo": _GRPO | {"aggregation": "tokens", "epsilon_high": 0.28, "dynamic_sampling": True, "overlong_buffer": 0.2},
    "dr_grpo": _GRPO | {"advantage": "group_mean", "aggregation": "constant"},
    "gspo": _GRPO | {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": _GRPO | {"clipping": "cispo", "aggregation": "tokens", "epsilon_high": 5.0},
    "rloo": _GRPO | {"advantage": "leave_one_out", "importance_sampling_level": "product", "beta": 0.05, "kl": "k1",
                     "kl_in": "reward"},
    "reinforce_pp": _GRPO | {"advantage": "batch", "aggregation": "tokens", "beta": 0.01, "kl": "k1",
                             "kl_in": "reward"},
}  # fmt: skip
"""What each preset sets where nothing else is said."""
_PLAIN = {"epsilon": 0.2, "epsilon_high": None, "kl": "k3", "kl_in": "loss"}


class PolicySettings(ObjectiveSettings):
    """The `objective` section for online reinforcement learning. TRL's names where it has one."""

    kind: Literal["policy"] = "policy"
    """Learns from rewards for what the model itself writes: GRPO and its relatives."""
    rewards: tuple[str, ...] = ()
    """Each "file.py:function" or "module:function", or one that is built in: a scorer's name, format:REGEX, length:N,
    repetition, json, json_schema:FILE, model:FOLDER (a reward model). docs/policy.md says how they are called."""
    environment: str | None = None
    """"file.py:Class" or "module:Class": a world that the model answers to turn after turn, and earns from. Beside
    rewards or in their place; docs/policy.md says how it is asked."""
    max_turns: PositiveInt | None = None
    """Of an environment: most answers in an episode. None: 8."""
    reward_weights: tuple[float, ...] | None = None
    """One for each reward; null: 1."""
    gold: str = "answer"
    """The column of the right answer, for rewards that are scorers."""
    sampler: str | None = None
    """Address of a server of vLLM's API that writes the completions, on the same base; it is handed the adapter before
    each step, and held against the trainer. None: the model itself, in this process."""
    reward_seconds: PositiveFloat = 60.0
    """How long a call of a reward may take."""
    preset: Preset = "grpo"
    """Which of the settings below hold where they are not given."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions of each prompt. train.batch_size counts prompts."""
    max_completion_length: PositiveInt = 256
    """Most new tokens."""
    temperature: PositiveFloat = 1.0
    """Of sampling; log-probabilities are taken at it too."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that make up so much."""
    top_k: PositiveInt | None = None
    """Sample from so many likeliest tokens."""
    advantage: Advantage = "group"
    """group: (r - mean) / std of the prompt's completions; group_mean: r - mean; group_mean_batch_std: that mean, and
    the std of the whole step; leave_one_out: r - mean of the others; batch: (r - mean) / std of the whole step."""
    importance_sampling_level: Level = "token"
    """The ratio to the sampling policy: of each token; of the whole completion as the geometric mean over its tokens
    (sequence, GSPO) or as their product (RLOO)."""
    clipping: Clipping = "ratio"
    """ratio: PPO's; cispo: the ratio weighs the gradient, capped; none."""
    aggregation: Aggregation = "sequences"
    """sequences: the mean over completions of their means over tokens; tokens: the mean over all tokens; constant: the
    sum over completions times max_completion_length."""
    epsilon: PositiveFloat = 0.2
    """How far the ratio may fall below 1 before it stops counting."""
    epsilon_high: PositiveFloat | None = None
    """And rise above it; null: as epsilon. Of cispo: the ratio's cap, null: 5."""
    beta: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the reference; 0: no reference is needed."""
    kl: Kl = "k3"
    """Its estimator."""
    use_bias_correction_kl: bool = True
    """The estimate is weighed by the ratio, so that its gradient is that of the divergence from the reference."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether it is a part of the loss, or taken from the reward."""
    dynamic_sampling: bool = False
    """Further prompts are sampled in place of those whose completions all earned the same by the rewards, three times
    as many at most."""
    overlong_buffer: Annotated[float, Field(gt=0, le=1)] | None = None
    """The last share of max_completion_length, over which the reward falls by up to 1."""
    num_iterations: PositiveInt = 1
    """Updates from what was sampled once. With one the ratio is 1, and epsilon has nothing to clip."""
    max_sampling_gap: PositiveFloat | None = None
    """How far the sampler's log-probabilities may lie from the trainer's, in the mean over a batch's tokens, before the
    run ends; null: 0.01 in fp32, 0.2 in fewer bits."""
    mask_truncated_completions: bool = False
    """Completions that met their limit teach nothing."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """What is not given is as the preset has it; its epsilons are for its own kind of clipping."""
        if not isinstance(values, dict) or values.get("preset", "grpo") not in PRESETS:
            return values
        preset = PRESETS[values.get("preset", "grpo")]
        clipping = values.get("clipping", preset["clipping"])
        if clipping != preset["clipping"]:
            preset = preset | {"epsilon": 0.2, "epsilon_high": 5.0 if clipping == "cispo" else None}
        elif "epsilon" in values and clipping == "ratio":
            preset = preset | {"epsilon_high": None}
        # What comes out of here is checked as Python, where a list is no tuple.
        return preset | {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.rewards and self.environment is None:
            raise Contradiction("rewards", "is missing", "name a reward, or objective.environment")
        if self.sampler is not None and not self.sampler.startswith(("http://", "https://")):
            raise Contradiction("sampler", f"is {self.sampler!r}", "give an address, such as http://localhost:8000")
        if self.max_turns is not None and self.environment is None:
            raise Contradiction(
                "max_turns", "is of an environment alone", "give objective.environment, or leave it out"
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(self.rewards):
            said = f"has {len(self.reward_weights)} weights for {len(self.rewards)} rewards"
            raise Contradiction("reward_weights", said, "give one for each")
        own = PRESETS[self.preset]
        unread = ["epsilon"] * (self.clipping != "ratio") + ["epsilon_high"] * (self.clipping == "none")
        if self.beta == 0:
            unread += ["kl", "kl_in"]
        for name in unread:
            if getattr(self, name) not in (own[name], _PLAIN.get(name)):
                why = "beta 0" if name in ("kl", "kl_in") else f"clipping {self.clipping}"
                raise Contradiction(name, f"is not read with {why}", "take it out")
        return self

    @property
    def answer_tokens(self) -> int:
        return self.max_completion_length


# ---- advantages: r [n], g [n] -> [n]; NaN is a completion that nobody judged, and gets 0 -----------------------------


def advantages(r: Tensor, g: Tensor, kind: Advantage) -> Tensor:
    """By group or over all; a group whose rewards are equal gets exactly 0."""
    made = torch.zeros_like(r)
    whole = ~torch.isnan(r)
    if kind == "batch":
        made[whole] = _scaled(r[whole])
        return made
    for group in g.unique():
        own = whole & (g == group)
        if own.any():
            made[own] = _ADVANTAGES[kind](r[own])
    if kind == "group_mean_batch_std" and whole.sum() > 1:
        made /= r[whole].std() + STD_EPS
    return made


def _centred(r: Tensor) -> Tensor:
    return torch.zeros_like(r) if bool((r == r[0]).all()) else r - r.mean()


def _scaled(r: Tensor) -> Tensor:
    centred = _centred(r)
    return centred / (r.std() + STD_EPS) if len(r) > 1 else centred


def _leave_one_out(r: Tensor) -> Tensor:
    return _centred(r) * (len(r) / (len(r) - 1)) if len(r) > 1 else torch.zeros_like(r)


_ADVANTAGES = {
    "group": _scaled,
    "group_mean": _centred,
    "group_mean_batch_std": _centred,
    "leave_one_out": _leave_one_out,
}


def kl(logp: Tensor, ref: Tensor, kind: Kl) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled: k1 d, k2 d^2/2,
    k3 e^-d + d - 1, with d = logp - ref."""
    d = logp - ref
    match kind:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.exp(-d) + d - 1


def ratios(logp: Tensor, old: Tensor, row: Tensor, counts: Tensor, level: Level) -> Tensor:
    """[m] of the policy to that which sampled, by token, or one for all tokens of a completion."""
    log = logp - old
    if level != "token":
        whole = torch.zeros(len(counts), dtype=logp.dtype, device=logp.device).index_add(0, row, log)
        log = (whole / counts if level == "sequence" else whole)[row]
    return log.exp()


def token_losses(logp: Tensor, ratio: Tensor, advantage: Tensor, settings: PolicySettings) -> Tensor:
    """[m] before aggregation. ratio, advantage [m]; the advantage of a token is that of its completion."""
    low, high = _bounds(settings)
    match settings.clipping:
        case "ratio":
            return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        case "cispo":
            return -ratio.clamp(max=high).detach() * advantage * logp
        case _:
            return -ratio * advantage


CLIP_RATIOS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def clipped(ratio: Tensor, advantage: Tensor, settings: PolicySettings) -> dict[str, Tensor]:
    """[m] by metric, whether a token's ratio is beyond its bound: it moves nothing any more; of cispo, its weight is
    the cap. Without an advantage there is nothing to clip."""
    low, high = _bounds(settings)
    match settings.clipping:
        case "ratio":
            below, above = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)
            return dict(zip(CLIP_RATIOS, (below, above, below | above), strict=True))
        case "cispo":
            return {CLIP_RATIOS[1]: (ratio > high) & (advantage != 0)}
        case _:
            return {}


def _bounds(settings: PolicySettings) -> tuple[float, float]:
    """Of the ratio: the least and the most. Of cispo there is a cap alone."""
    low, high = settings.epsilon, settings.epsilon_high
    if settings.clipping == "cispo":
        return 0.0, 5.0 if high is None else high
    return 1 - low, 1 + (low if high is None else high)


def overlong(lengths: Tensor, most: int, share: float) -> Tensor:
    """DAPO's soft punishment: 0 up to (1 - share) most, then falling to -1 at `most` (2503.14476, eq. 13)."""
    buffer = share * most
    return -((lengths - (most - buffer)) / buffer).clamp(0, 1)
