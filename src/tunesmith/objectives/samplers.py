"""Who writes the completions: the model itself, in this process, or a server that has the same base.

A sampler offers `generate` (token ids in, token ids and their log-probabilities out; text is never tokenised again) and
`sync`, which hands it the adapter as it is now. A server speaks vLLM's API:

    POST /v1/completions              prompts as token ids, `return_token_ids`, log-probabilities of what was sampled
    POST /v1/load_lora_adapter        the adapter's folder, under a name of its own for each version
    POST /v1/unload_lora_adapter      the version before

Canary: after each `sync` the server says how likely one prompt's tokens are. They must be as likely as the trainer
says, and not what it said before: whoever learns from a sampler that goes on with old weights learns from another
policy, and nothing else shows it.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin
from tunesmith.errors import MachineError, ModelError
from tunesmith.models.alone import told_alone
from tunesmith.models.generate import MAX_ROWS, Generated, generate
from tunesmith.models.policy import Policy
from tunesmith.models.room import by_less
from tunesmith.objectives.logprobs import token_logps

AT_ONCE = 64
"""Requests that a server is sent at a time."""
UNCHANGED = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "top_k": -1,
    "top_p": 1.0,
}
"""What a server would else take from the base's own settings of generation: the policy is the model alone."""


@dataclass(frozen=True)
class Drawing:
    """How completions are drawn. Temperature 0 takes the likeliest token."""

    temperature: float
    top_p: float
    top_k: int | None
    seed: int

    @property
    def plain(self) -> dict[str, Any]:
        """What is passed on where nothing is drawn: neither bound has a meaning then."""
        drawn = self.temperature > 0
        return {"top_p": self.top_p if drawn else 1.0, "top_k": self.top_k if drawn else None}


class Sampler(Protocol):
    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        drawing: Drawing,
        *,
        num_samples: int = 1,
        rows: Sequence[int] | None = None,
    ) -> list[Generated]:
        """`num_samples` completions of each prompt, prompt by prompt, of at most `most` tokens; `rows` decide the draws
        with the seed, where the sampler can."""
        ...

    def sync(self, policy: Policy) -> None:
        """The sampler's adapter becomes that of `policy`."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


def told_of(server: str | None, policy: Policy) -> list[str]:
    """What a run says at its begin of who will write."""
    if server is not None:
        return [f"written by {server}; a resumed run draws others"]
    line = told_alone(policy.model, policy.switch)
    return [] if line is None else [line]


@dataclass(frozen=True)
class InProcess:
    """The model that learns, with the weights that it has at the moment: nothing to hand over."""

    end_ids: Collection[int]

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        drawing: Drawing,
        *,
        num_samples: int = 1,
        rows: Sequence[int] | None = None,
    ) -> list[Generated]:
        def made(max_rows: int) -> list[Generated]:
            return generate(
                policy.model,
                prompts,
                max_new_tokens=list(most),
                eos_ids=self.end_ids,
                num_samples=num_samples,
                temperature=drawing.temperature,
                seed=drawing.seed,
                want_logprobs=True,
                switch=policy.switch,
                adapters=[policy.switch.name] * len(prompts),
                row_ids=rows,
                max_rows=max_rows,
                **drawing.plain,
            )

        with policy.answering():
            return by_less(made, min(MAX_ROWS, max(1, len(prompts) * num_samples)), 1, policy.device)

    def sync(self, policy: Policy) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Server:
    """A server of vLLM's API at `url`, which can read the folders that are written here."""

    url: str
    end_ids: Collection[int]
    most_apart: float
    """How far log-probabilities may lie apart in the mean."""
    probe: Sequence[int]
    """Token ids of the canary."""
    seconds: float = 600.0
    version: int = 0
    before: tuple[np.ndarray, np.ndarray] | None = None
    """What the trainer and the server said of the canary at the last sync."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="tunesmith-sampler-")))

    @property
    def name(self) -> str:
        """Of the adapter that answers: a new one for each version, since caches go by names."""
        return f"{self.folder.name}-{self.version}"

    def sync(self, policy: Policy) -> None:
        if policy.write is None:
            raise ValueError("a sampler outside the process needs to be handed the adapter's files")
        old, old_folder = self.name, self.folder / str(self.version)
        had_one = self.version > 0
        self.version += 1
        where = self.folder / str(self.version)
        policy.write(where)
        self._asked("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": str(where)}, is_json=False)
        if had_one:
            self._asked("/v1/unload_lora_adapter", {"lora_name": old}, is_json=False)
            shutil.rmtree(old_folder, ignore_errors=True)
        self._canary(policy)

    def __post_init__(self) -> None:
        self.folder.chmod(0o755)  # the server may be another user
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def close(self) -> None:
        if self.version:
            with suppress(MachineError):
                self._asked("/v1/unload_lora_adapter", {"lora_name": self.name}, is_json=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        drawing: Drawing,
        *,
        num_samples: int = 1,
        rows: Sequence[int] | None = None,
    ) -> list[Generated]:
        """A request for each prompt, many at a time, each with a seed of its own: in one request all prompts would be
        given the same draws."""
        numbers = range(len(prompts)) if rows is None else rows

        def ask(place: int) -> list[Generated]:
            own = np.random.SeedSequence([drawing.seed, numbers[place]]).generate_state(1)[0]
            body = {
                "model": self.name,
                "prompt": list(prompts[place]),
                "max_tokens": most[place],
                "n": num_samples,
                "temperature": drawing.temperature,
                "seed": int(own) % 2**31,
                "stop_token_ids": sorted(self.end_ids),
                "logprobs": 0,
                "return_token_ids": True,
                "skip_special_tokens": False,
                **UNCHANGED,
            }
            return [self._answer(choice) for choice in self._choices(self._asked("/v1/completions", body), num_samples)]

        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            return [one for answers in pool.map(ask, range(len(prompts))) for one in answers]

    def _answer(self, choice: dict[str, Any]) -> Generated:
        ids = choice.get("token_ids")
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or values is None or len(ids) != len(values):
            raise MachineError(
                "the sampler gave no token ids with their log-probabilities",
                where=self.url,
                found=", ".join(choice),
                fix="a server that knows return_token_ids and logprobs: vLLM 0.10.2 or newer",
            )
        ended = choice.get("finish_reason") == "stop"
        return Generated(list(ids), "eos" if ended else "length", [float(value) for value in values])

    def _choices(self, found: Any, count: int) -> list[dict[str, Any]]:
        choices = sorted(found.get("choices", []), key=lambda choice: choice.get("index", 0))
        if len(choices) != count:
            raise MachineError(
                "the sampler gave another number of completions than were asked for",
                where=self.url,
                found=str(len(choices)),
                expected=str(count),
            )
        return choices

    def _canary(self, policy: Policy) -> None:
        """Refuse a sampler whose weights are not the trainer's."""
        body = {
            "model": self.name,
            "prompt": [list(self.probe)],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "return_token_ids": True,
        }
        (choice,) = self._choices(self._asked("/v1/completions", body), 1)
        given = choice.get("prompt_logprobs")
        if not given or len(given) != len(self.probe):
            what = "the sampler does not say how likely a prompt's tokens are"
            raise MachineError(what, where=self.url, fix="start a server that knows prompt_logprobs, as vLLM does")
        pairs = zip(given[1:], self.probe[1:], strict=True)
        theirs = np.array([one[str(token)]["logprob"] for one, token in pairs])
        ours = said_of(policy, self.probe)
        apart = float(np.abs(theirs - ours).mean())
        stale = False
        if self.before is not None:
            ours_before, theirs_before = self.before
            moved, followed = (float(np.abs(a - b).mean()) for a, b in ((ours, ours_before), (theirs, theirs_before)))
            stale = moved > 0 and followed < 0.1 * moved
        self.before = ours, theirs
        if stale or apart > self.most_apart:
            raise ModelError(
                "the sampler still answers with the adapter of before"
                if stale
                else "the sampler's weights are not the trainer's",
                where=self.url,
                found=f"log-probabilities of one prompt {apart:.3g} apart in the mean",
                expected=f"at most {self.most_apart:g}, and others than before the step",
                fix="start the server on the same base and dtype, with --enable-lora and a --max-lora-rank that fits",
            )

    def _asked(self, path: str, body: dict[str, Any], *, is_json: bool = True) -> Any:
        request = urllib.request.Request(
            self.url.rstrip("/") + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                text = answer.read().decode()
            return json.loads(text) if is_json else text
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            fix = None
            if path.endswith("lora_adapter"):
                fix = (
                    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a --max-lora-rank that fits"
                )
            raise MachineError(
                f"the sampler refused {path}", where=self.url, found=f"{error.code}: {said}", fix=fix
            ) from error
        except (OSError, ValueError) as error:
            raise MachineError(
                "the sampler does not answer",
                where=self.url + path,
                found=f"{type(error).__name__}: {error}",
                fix="start the server, or take objective.sampler out; --resume goes on after the last whole step",
            ) from error


@torch.no_grad()
def said_of(policy: Policy, token_ids: Sequence[int]) -> np.ndarray:
    """How likely the trainer finds each of `token_ids` after the first [n - 1]."""
    weights = np.ones(len(token_ids), dtype=np.float32)
    weights[0] = 0.0
    example = Example(np.array(token_ids, dtype=np.int64), weights, Origin("canary", 1))
    with policy.answering():
        found = token_logps(policy, collate([example]).to(policy.device))
    values: np.ndarray = found.values.float().cpu().numpy()
    return values
