"""Online reinforcement learning: the model answers prompts, rewards judge the answers, and better ones become likelier.

The choices stand in `policy_losses.py`, the rewards in `rewards.py`. A step is `batch_size` prompts with
`num_generations` completions each; its denominators are known once it is sampled, before the first forward pass.

Tokens      what was sampled is what is trained: ids go from the sampler to the loss, text is made for the rewards alone
Old         with one update to a rollout the old policy is the policy: its pass is left out, and the ratio is 1
Zero        completions whose advantage is 0 have no gradient and are not run, unless a KL term gives them one
Reference   one pass over the groups that are trained, where beta asks for it
Gap         the sampler's log-probabilities are held against the trainer's in the first update from each rollout: a
            sampler that lags behind, or computes something else, ends the run
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.pack import micro_batches
from tunesmith.data.render import Renderer
from tunesmith.data.types import Asked, Batch, Example, Prompt, Row, Sampled
from tunesmith.errors import ModelError
from tunesmith.models.generate import Generated
from tunesmith.models.load import most_tokens
from tunesmith.models.policy import Policy
from tunesmith.models.room import by_less
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.environment import Played, alone, load_environment, play
from tunesmith.objectives.foreseen import written
from tunesmith.objectives.logprobs import TokenLogps, token_logps
from tunesmith.objectives.order import Order
from tunesmith.objectives.policy_losses import PolicySettings, advantages, clipped, kl, ratios, token_losses
from tunesmith.objectives.policy_metrics import (
    dropped,
    entropy_of,
    lengths_of,
    mean_reward,
    parts_of,
    said_of,
    shown,
    spread_of,
)
from tunesmith.objectives.reward_rows import refuse_rows
from tunesmith.objectives.rewards import Judge, Told, judge, load, none_applied, source_of
from tunesmith.objectives.rollout import (
    Draw,
    Group,
    Judged,
    Rollout,
    apart,
    are_enough,
    as_json,
    completion_of,
    denominators,
    from_json,
    judged_of,
    moving,
    sample_of,
    worth,
)
from tunesmith.objectives.samplers import Drawing, InProcess, Sampler, Server, told_of

Settings = PolicySettings
LEARNING_RATE = 1e-5
MOST_TRIES = 3
"""Of dynamic sampling: so many times the prompts of a step."""
GAPS = 0.01, 0.2
"""Most that the sampler's log-probabilities may lie from the trainer's in the mean, in fp32 and in fewer bits."""
CANARY = 64
"""Tokens of the prompt by which a sampler outside the process is held against the trainer."""
DEFAULT_TURNS = 8
"""Of an environment: answers in an episode."""
SHOW_EVERY = 10
"""Updates between completions that are shown."""
MOST_UNJUDGED = 5
"""Rollouts in a row that no reward may apply to anything of before the run ends."""


def takes(settings: Settings) -> tuple[type[Row], ...]:
    return (Prompt,)


def needs_reference(settings: Settings) -> bool:
    return settings.beta > 0


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
) -> PolicyGradient:
    return PolicyGradient(
        train, held_out, settings, batch_size=batch_size, seed=seed, shuffle=shuffle, renderer=renderer
    )


class PolicyGradient:
    """Prompts in a seeded order; what is sampled depends on seed and step alone, and on the weights."""

    head = None

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: PolicySettings,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        renderer: Renderer | None = None,
    ) -> None:
        """`train`, `held_out`: `Asked` prompts."""
        self.settings, self.seed, self.batch_size = settings, seed, batch_size
        self.train, self.held_out = cast(Sequence[Asked], train), cast(Sequence[Asked], held_out)
        self.rewards = load(settings.rewards, settings.reward_weights, settings.gold)
        refuse_rows(settings.gold, settings.rewards, (*self.train, *self.held_out))
        self.beta = settings.beta
        self._order = Order([None] * len(train), batch_size=batch_size, seed=seed, shuffle=shuffle)
        self.steps_per_epoch = self._order.steps_per_epoch * settings.num_iterations
        self._world = None
        if settings.environment is not None:
            turns = settings.max_turns or DEFAULT_TURNS
            self._world = load_environment(settings.environment, settings.reward_seconds, turns)
        self._source = source_of(self.rewards, [] if self._world is None else [self._world.make])
        self.share = False
        self._renderer = renderer
        self._max_tokens = 4096
        self._rollout: Rollout | None = None
        self._sampler: Sampler | None = None
        self._untold, self._unjudged = False, 0
        self._updates = 0
        """That were handed out: all of them are made where anything is sampled."""
        self._news: tuple[str, ...] = ()
        self._dtype = torch.float32

    def begin(
        self,
        policy: Policy,
        *,
        num_steps: int | None,
        max_tokens: int,
        cache: Path,
        stage: Stage,
    ) -> list[str]:
        self.share, self._max_tokens, self._dtype = policy.flat, max_tokens, policy.model.dtype
        worlds = [] if self._world is None else [self._world.name]
        names = ", ".join([*worlds, *(reward.name for reward in self.rewards)])
        for judge_of in (reward.function for reward in self.rewards):
            if isinstance(judge_of, Judge):
                with stage("loading the reward model"):
                    judge_of.ready()
        n = self.settings.num_generations
        told = told_of(self.settings.sampler, policy)
        return [*told, f"{self.settings.preset}: {self.batch_size} prompts x {n} completions a step, judged by {names}"]

    def steps_until(self, tokens: int) -> None:
        return None

    def foreseen(self, flat: bool) -> Foreseen:
        n, most = self.settings.num_generations, self.settings.answer_tokens
        made = written(self.train, most, num_each=n, batch_size=self.batch_size, seed=self.seed, share=flat)
        return made if self.settings.sampler is None else replace(made, written=0)

    def steps(self, policy: Policy) -> Iterator[Step]:
        drawn = self._order.steps()
        while True:
            if self._rollout is None or self._rollout.iteration >= self.settings.num_iterations:
                self._rollout = self._roll_out(policy, drawn)
            rollout = self._rollout
            rollout.iteration += 1
            first = rollout.iteration == 1
            kept, shares = moving(rollout.samples, self.settings), denominators(rollout.samples, self.settings)
            notes = (*self._news, *(rollout.notes if first else ()))
            self._news = ()
            self._updates += 1
            yield Step(kept, shares, rollout.epoch, rollout.metrics, notes)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return micro_batches(step.examples, max_tokens, share=self.share)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        settings, rollout = self.settings, self._rollout
        assert rollout is not None
        found = token_logps(policy, batch, settings.temperature)
        rows = [cast(Sampled, batch.examples[leaf]) for leaf in batch.leaves]
        wide, device = found.values.dtype, found.values.device
        counts = torch.bincount(found.row, minlength=len(rows)).to(wide)

        def of_tokens(values: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(values)).to(device, wide)

        sampled = of_tokens([rollout.sampled[row.number] for row in rows])
        if rollout.iteration > 1:
            old = of_tokens([np.array(rollout.old[row.number]) for row in rows])
        else:
            old = found.values.detach()
            self._hold_against(sampled, found)
            if settings.num_iterations > 1:
                parts = old.cpu().split(counts.long().tolist())
                rollout.old |= {row.number: part.tolist() for row, part in zip(rows, parts, strict=True)}
        gain = torch.tensor([row.advantage for row in rows], dtype=wide, device=device)[found.row]
        ratio = ratios(found.values, old, found.row, counts, settings.importance_sampling_level)
        losses = token_losses(found.values, ratio, gain, settings)
        metrics = {"sampling_gap": (found.values.detach() - sampled).abs().sum()}
        each = 1.0 if settings.importance_sampling_level == "token" else 1.0 / counts[found.row]  # or one by completion
        for name, is_clipped in clipped(ratio.detach(), gain, settings).items():
            metrics[name] = (is_clipped.to(wide) * each).sum()
        if self.beta:
            reference = of_tokens([row.reference for row in rows])
            metrics["kl"] = kl(found.values.detach(), reference, "k3").sum()
            if settings.kl_in == "loss":
                price = kl(found.values, reference, settings.kl)
                losses = losses + self.beta * (ratio * price if settings.use_bias_correction_kl else price)
        if settings.aggregation == "sequences":
            losses = losses / counts[found.row]
        return Loss({"loss": losses.sum()}, metrics)

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """The mean reward of the likeliest completions of the held-out prompts; `loss` is less that."""
        if not self.held_out:
            return {}
        made = self._tried(policy)
        reward = mean_reward(made)
        self._untold = not reward
        if not reward:
            return {}
        parts = parts_of(made, self.rewards, self._world)
        return {"loss": -reward["reward"], **reward, **parts, **lengths_of(made)}

    @torch.no_grad()
    def by_row(self, policy: Policy) -> list[float]:
        """What the likeliest completion of each held-out prompt earns; NaN where no reward applies."""
        return [one.earned for one in self._tried(policy)]

    def close(self) -> None:
        """Lets go of what answers and judges."""
        if self._sampler is not None:
            self._sampler.close()
        for reward in self.rewards:
            reward.close()

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        self.close()
        return ["no reward applied to any held-out prompt: nothing was measured on them"] if self._untold else []

    def held_out_lengths(self) -> list[int]:
        return [len(asked) + self.settings.max_completion_length for asked in self.held_out]

    def state_dict(self) -> dict[str, Any]:
        """With what was sampled, where further updates come from it."""
        rollout, state = self._rollout, {"steps_done": self._order.done, "rewards": self._source}
        state["updates"] = self._updates
        if rollout is None or rollout.iteration >= self.settings.num_iterations:
            return state
        return state | {"rollout": as_json(rollout)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("rewards", self._source) != self._source:
            self._news = ("the code of the rewards is not what it was: from this step on the new one judges",)
        if "updates" not in state:
            old = "this run was begun by an older version: trainer_state.global_step now counts updates"
            self._news += (f"{old}, and an environment gets a row's own column seed",)
        self._order.done = int(state["steps_done"])
        self._rollout = from_json(held) if (held := state.get("rollout")) else None
        left = 0 if self._rollout is None else self.settings.num_iterations - self._rollout.iteration
        self._updates = int(state.get("updates", self._order.done * self.settings.num_iterations - left))

    # ---- sampling ------------------------------------------------------------------------------------------------

    def _roll_out(self, policy: Policy, drawn: Iterator[tuple[np.ndarray, float]]) -> Rollout:
        """Completions of the next prompts; with dynamic sampling, of further ones until enough groups differ."""
        self._known_sampler().sync(policy)
        draws = [self._drawn(policy, *next(drawn))]
        if not self.settings.dynamic_sampling:
            return self._of_draws(policy, draws, draws[0].groups)
        while len(draws) < MOST_TRIES and not are_enough(draws):
            draws.append(self._drawn(policy, *next(drawn)))
        groups = apart(draws)
        made = self._of_draws(policy, draws, groups)
        return replace(made, metrics=made.metrics | dropped(draws, groups))

    def _drawn(self, policy: Policy, rows: np.ndarray, epoch: float) -> Draw:
        """Each of these prompts answered `num_generations` times, and judged."""
        settings, n = self.settings, self.settings.num_generations
        asked = [self.train[row] for row in rows]
        seed = int(np.random.SeedSequence([self.seed, self._order.done]).generate_state(1)[0])
        made = self._played(policy, asked, n, temperature=settings.temperature, seed=seed)
        said = Told(self._updates)
        judged = self._judged(made, said)
        return Draw([judged[at : at + n] for at in range(0, len(judged), n)], said.metrics, epoch)

    def _of_draws(self, policy: Policy, draws: Sequence[Draw], groups: Sequence[Group]) -> Rollout:
        """`groups` of what was drawn, with their advantages; what is told is of them."""
        settings = self.settings
        judged = [one for group in groups for one in group]
        cut = settings.mask_truncated_completions
        samples = [sample_of(one.played, place, mask_truncated=cut) for place, one in enumerate(judged)]
        sampled = [
            np.array(one.played.logprobs if sample.num_learned else [], dtype=np.float32)
            for one, sample in zip(judged, samples, strict=True)
        ]
        if self.beta:
            samples = self._with_reference(policy, samples)
        numbers = torch.arange(len(judged)) // settings.num_generations
        gains = advantages(worth(judged, samples, sampled, settings), numbers, settings.advantage).tolist()
        samples = [replace(sample, advantage=gain) for sample, gain in zip(samples, gains, strict=True)]
        metrics = {
            **said_of(draws),
            **mean_reward(judged),
            **spread_of(groups),
            **parts_of(judged, self.rewards, self._world),
            **lengths_of(judged),
            **entropy_of(draws),
        }
        notes = self._shown(judged) + self._watched([one for draw in draws for group in draw.groups for one in group])
        return Rollout(samples, sampled, metrics, notes, draws[-1].epoch)

    def _shown(self, judged: Sequence[Judged]) -> list[str]:
        """The table of what is trained, where one is due since the rollout before."""
        since = self._updates - self.settings.num_iterations
        return shown(judged, self.rewards) if self._updates // SHOW_EVERY > since // SHOW_EVERY else []

    def _watched(self, judged: Sequence[Judged]) -> list[str]:
        """What is said where no reward applied to anything that was sampled; it ends the run in the long run."""
        silent = all(math.isnan(one.earned) for one in judged)
        self._unjudged = self._unjudged + 1 if silent else 0
        if self._unjudged >= MOST_UNJUDGED:
            raise none_applied(self.rewards, [one.completion for one in judged], self._unjudged)
        return ["no reward applied to any completion of this step: nothing is learned from it"] if silent else []

    def _played(self, policy: Policy, asked: Sequence[Asked], n: int, *, temperature: float, seed: int) -> list[Played]:
        """`n` completions of each prompt: answers, or episodes of the environment."""
        settings, renderer = self.settings, self._known_renderer()
        most, sampler = settings.max_completion_length, self._known_sampler()
        drawing = Drawing(temperature, settings.top_p, settings.top_k, seed)
        if self._world is None:
            prompts = [one.token_ids.tolist() for one in asked]
            answers = sampler.generate(policy, prompts, [most] * len(prompts), drawing, num_samples=n)
            return alone(asked, n, answers, renderer)

        def turn(
            prompts: Sequence[Sequence[int]], room: Sequence[int], rows: Sequence[int], number: int
        ) -> list[Generated]:
            own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            return sampler.generate(policy, prompts, room, replace(drawing, seed=own), rows=rows)

        positions = most_tokens(policy.model.config)
        return play(self._world, asked, n, renderer, turn, most, seed, positions)

    def _tried(self, policy: Policy) -> list[Judged]:
        """The likeliest completions of the held-out prompts."""
        self._known_sampler().sync(policy)
        made = self._played(policy, self.held_out, 1, temperature=0.0, seed=0)
        return self._judged(made, Told(self._updates))

    def _judged(self, made: Sequence[Played], said: Told) -> list[Judged]:
        completions = [completion_of(one) for one in made]
        values = judge(self.rewards, completions, self.settings.reward_seconds, said)
        return judged_of(made, completions, self.rewards, values, said.extra)

    def _known_sampler(self) -> Sampler:
        if self._sampler is None:
            self._sampler = self._made_sampler()
        return self._sampler

    def _made_sampler(self) -> Sampler:
        end_ids = self._known_renderer().end_ids
        if self.settings.sampler is None:
            return InProcess(end_ids)
        canary = max(self.train or self.held_out, key=lambda one: min(len(one), CANARY)).token_ids[:CANARY].tolist()
        return Server(self.settings.sampler, end_ids, self._most_gap, canary if len(canary) > 1 else 2 * canary)

    @property
    def _most_gap(self) -> float:
        return self.settings.max_sampling_gap or (GAPS[0] if self._dtype.itemsize >= 4 else GAPS[1])

    def _known_renderer(self) -> Renderer:
        if self._renderer is None:
            raise ValueError("an online objective needs the renderer of its tokenizer")
        return self._renderer

    def _with_reference(self, policy: Policy, samples: Sequence[Sampled]) -> list[Sampled]:
        """With the reference's log-probabilities of their tokens."""
        found: dict[int, np.ndarray] = {}
        learned = [sample for sample in samples if sample.num_learned]

        def referred(most: int) -> None:
            for batch in micro_batches(learned, most, share=self.share):
                with policy.reference():
                    logps = token_logps(policy, batch.to(policy.device), self.settings.temperature)
                values = logps.values.float().cpu().numpy()
                row = logps.row.cpu().numpy()
                for place, leaf in enumerate(batch.leaves):
                    found[cast(Sampled, batch.examples[leaf]).number] = values[row == place]

        by_less(referred, self._max_tokens, min(map(len, learned), default=1), policy.device)
        nothing = np.zeros(0, dtype=np.float32)
        return [replace(sample, reference=found.get(sample.number, nothing)) for sample in samples]

    def _hold_against(self, sampled: Tensor, found: TokenLogps) -> None:
        """The sampler must have computed what the trainer computes."""
        most = self._most_gap
        gap = float((found.values.detach() - sampled).abs().mean()) if len(sampled) else 0.0
        if gap > most:  # a number that is not finite is the loop's to name
            raise ModelError(
                "the sampler's log-probabilities are not the trainer's: what was sampled came from another policy",
                found=f"{gap:.3g} apart in the mean over tokens",
                expected=f"at most {most:g} (objective.max_sampling_gap)",
                fix="model.dtype=float32 where rounding is the cause"
                if self.settings.sampler is None
                else "start the server on the same base and dtype, with --logprobs-mode processed_logprobs",
            )
