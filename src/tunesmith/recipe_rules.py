"""Rules between the sections of a recipe.

`RULES`: what cannot stand together; a broken one is a `Contradiction` that names the setting to point at.
`IDLE`: settings that act only beside another one. Given where they can change nothing they are refused, all in one
error. A setting counts as given where it is not at its default: a run's own recipe.yaml writes all of them down. What
depends on the rows or on the model's layers is found where these are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Protocol

from tunesmith.adapters import METHODS
from tunesmith.adapters.lora import FactorSettings
from tunesmith.adapters.settings import KINDS, NONE
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.settings import DataSettings, HeldOut, TemplateFormat, name_and_split
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.models.settings import ModelSettings
from tunesmith.notation import Path, dotted, write_inline
from tunesmith.objectives.classify_losses import ClassifySettings
from tunesmith.objectives.distill import DistillSettings
from tunesmith.objectives.policy_losses import PRESETS, PolicySettings
from tunesmith.objectives.reward import RewardSettings
from tunesmith.objectives.rewards_built_in import OTHERS
from tunesmith.objectives.sft import SFTSettings
from tunesmith.record import OutputSettings
from tunesmith.score import SCORERS
from tunesmith.settings import Contradiction, Settings
from tunesmith.train.settings import TrainSettings

BARE = ("text", "segments", "tokens")
"""Formats whose rows are neither worded by a template nor asked which of their turns are learned."""
WITH_PROJECTS = ("wandb", "trackio", "mlflow")
"""Services that read output.project."""
_EMBEDDINGS = ("emb", "wte", "wpe", "shared")
"""What is in the name of a layer that is a table of tokens, in every model that transformers has."""
_CLIPS_NOTHING = "an update from what was just sampled has a ratio of 1"


class Sections(Protocol):
    @property
    def model(self) -> ModelSettings: ...

    @property
    def data(self) -> DataSettings: ...

    @property
    def adapter(self) -> Any: ...

    @property
    def objective(self) -> Any: ...

    @property
    def train(self) -> TrainSettings: ...

    @property
    def output(self) -> OutputSettings: ...


def something_held_out(recipe: Sections) -> None:
    for name in ("stop_after_no_gain", "evaluate_every"):
        if getattr(recipe.train, name) is not None and recipe.data.held_out is None:
            raise Contradiction(
                f"train.{name}", "has nothing to evaluate on", "hold rows out, for example data.held_out: 0.05"
            )


def pairs_or_groups(recipe: Sections) -> None:
    if recipe.data.group_by is not None and not isinstance(recipe.objective, SFTSettings):
        raise Contradiction(
            "data.group_by",
            "is for supervised rows that begin alike (objective.kind sft)",
            "take it out: of pairs, what both answers begin with is computed once anyway",
        )


def whole_rows(recipe: Sections) -> None:
    """Steps that are counted in tokens need rows of which all tokens are known."""
    objective = recipe.objective
    given = isinstance(objective, DistillSettings) and objective.answers == "given"
    if recipe.train.batch_tokens is not None and not isinstance(objective, SFTSettings) and not given:
        raise Contradiction(
            "train.batch_tokens",
            "is for rows that are learned as they stand (objective.kind sft, or distill of given answers)",
            f"say with train.batch_size how many a step of objective.kind {objective.kind} takes",
        )


def known_rows(recipe: Sections) -> None:
    """A budget in tokens needs rows that are all there before the first step."""
    objective = recipe.objective
    sampled = isinstance(objective, DistillSettings) and objective.answers == "sampled"
    if recipe.train.tokens is not None and (sampled or isinstance(objective, PolicySettings)):
        raise Contradiction(
            "train.tokens",
            "counts rows that are there before the first step, and these are written while training",
            "give train.steps, train.epochs or train.minutes",
        )


def one_policy(recipe: Sections) -> None:
    if not isinstance(recipe.objective, PolicySettings):
        return
    if recipe.train.cache_frozen:
        raise Contradiction("train.cache_frozen", "has nothing to store: what is trained is sampled", "leave it out")
    for section, name in (("adapter", "dropout"), ("train", "neftune_alpha")):
        if getattr(getattr(recipe, section), name, None):
            text = "would make the model that is trained another one than the model that answered"
            raise Contradiction(f"{section}.{name}", text, "leave it out with objective.kind policy")


def a_sampler(recipe: Sections) -> None:
    """What a server outside the process cannot do."""
    if not isinstance(recipe.objective, PolicySettings) or recipe.objective.sampler is None:
        return
    for name in ("top_p", "top_k"):
        if getattr(recipe.objective, name) not in (None, 1.0):
            text = "has the server draw from fewer tokens than the trainer reckons with"
            raise Contradiction(f"objective.{name}", text, "leave it out beside objective.sampler")
    if recipe.model.adapter is not None:
        return
    written = METHODS[recipe.adapter.method].to_peft(recipe.adapter)  # type: ignore[attr-defined]
    if not _is_plain_lora(written):
        text = f"{recipe.adapter.method} is not what servers load: they take plain LoRA"
        raise Contradiction("adapter.method", text, "take lora, or leave objective.sampler out")
    if recipe.adapter.train_in_full or recipe.model.add_tokens:
        key = "adapter.train_in_full" if recipe.adapter.train_in_full else "model.add_tokens"
        raise Contradiction(key, "is not what servers load beside a LoRA", "leave it out, or objective.sampler")


def _is_plain_lora(written: Mapping[str, Any]) -> bool:
    """By PEFT's config of an adapter."""
    return written.get("peft_type") == "LORA" and not written.get("use_dora")


def refuse_unserved(objective: Any, written: Mapping[str, Any]) -> None:
    """Of an adapter that training goes on from, by PEFT's config of it."""
    if not isinstance(objective, PolicySettings) or objective.sampler is None:
        return
    beside = [key for key in ("modules_to_save", "trainable_token_indices") if written.get(key)]
    if _is_plain_lora(written) and not beside:
        return
    kind = "use_dora: true" if written.get("use_dora") else f"peft_type: {written.get('peft_type')}"
    raise RecipeError(
        "the adapter that training goes on from is not what servers load: they take plain LoRA alone",
        where="model.adapter",
        found=", ".join(beside) if _is_plain_lora(written) else kind,
        fix="go on from a plain LoRA, or leave objective.sampler out",
    )


def a_student(recipe: Sections) -> None:
    """What a student that learns from its own answers has no use for."""
    sampled = isinstance(recipe.objective, DistillSettings) and recipe.objective.answers == "sampled"
    if sampled and recipe.train.cache_frozen:
        raise Contradiction("train.cache_frozen", "has nothing to store: the rows are sampled", "leave it out")


def a_head(recipe: Sections) -> None:
    """What a classification head goes with."""
    if not isinstance(recipe.objective, ClassifySettings | RewardSettings):
        return
    if isinstance(recipe.adapter, VirtualSettings):
        raise Contradiction(
            "adapter.method", "puts tokens before documents, and trains no head", "choose lora, full or another method"
        )
    way = getattr(recipe.objective, "way", "all")
    if way != "all" and recipe.adapter.method != "full":
        raise Contradiction(
            "adapter.method",
            f"adapts what objective.way {way} leaves as it is",
            "leave it out, or set objective.way=all",
        )
    if way == "features" and recipe.adapter.targets != NONE:
        raise Contradiction(
            "objective.way",
            "features trains no block",
            "leave out adapter.last_blocks and adapter.targets, or way=head",
        )
    if way == "all" and recipe.adapter.targets == NONE and recipe.model.adapter is None:
        raise Contradiction(
            "adapter.targets",
            "is none: nothing but the head would learn",
            "say what is adapted, or set objective.way=head",
        )
    if way == "features" and (set(recipe.adapter.train_in_full) - {"head"} or recipe.model.add_tokens):
        key = "model.add_tokens" if recipe.model.add_tokens else "adapter.train_in_full"
        raise Contradiction(key, "would not be trained: objective.way features fits the head alone", "leave it out")
    if way == "features" and recipe.model.adapter is not None:
        raise Contradiction("objective.way", "features begins at a base", "leave out model.adapter, or take way all")


def virtual_or_added_tokens(recipe: Sections) -> None:
    if recipe.model.add_tokens and isinstance(recipe.adapter, VirtualSettings) and recipe.model.adapter is None:
        raise Contradiction("model.add_tokens", "cannot be trained beside virtual tokens", "leave out either")


def something_frozen(recipe: Sections) -> None:
    fresh = recipe.train.cache_frozen and recipe.model.adapter is None
    if fresh and isinstance(recipe.adapter, VirtualSettings):
        raise Contradiction(
            "train.cache_frozen",
            "has no block to store: virtual tokens change what every block gives",
            "leave it out, or choose a method that stands beside layers",
        )
    if fresh and recipe.adapter.targets in KINDS and recipe.adapter.last_blocks is None:
        raise Contradiction(
            "train.cache_frozen",
            "has no frozen block to store: all of them are adapted",
            "set adapter.last_blocks, for example to 4",
        )


def refuse_dropout(objective: Any, adapter: Any) -> None:
    """Of an adapter that training goes on from."""
    if isinstance(objective, PolicySettings) and getattr(adapter, "dropout", None):
        raise RecipeError(
            "the adapter that training goes on from has dropout: it would be trained as another than it answers",
            where="model.adapter",
            found=f"dropout {adapter.dropout:g}",
            fix="train the adapter without dropout, or start a fresh one",
        )


RULES: tuple[Callable[[Sections], None], ...] = (
    something_held_out,
    pairs_or_groups,
    whole_rows,
    known_rows,
    one_policy,
    a_sampler,
    a_student,
    a_head,
    virtual_or_added_tokens,
    something_frozen,
)


# ---- settings without effect -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """A setting that has no effect. `why` ends a sentence that begins with it; `expected`: beside what it acts."""

    path: Path
    value: Any
    why: str
    expected: str
    fix: str


def refuse_idle(recipe: Sections, where: Callable[[Path], str]) -> None:
    """Every setting of the recipe that has no effect, in one error. Its files are absolute: they are looked up."""
    idle = [one for rule in IDLE for one in rule(recipe)]
    errors: list[TunesmithError] = [
        RecipeError(
            f"{dotted(one.path)} has no effect: it {one.why}",
            where=where(one.path),
            found=write_inline(one.value),
            expected=one.expected,
            fix=one.fix,
        )
        for one in idle
    ]
    if errors:
        raise together(errors)


def is_given(section: Settings, name: str) -> bool:
    default = type(section).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(section, name) != default)


def may_be_embedding(targets: str | tuple[str, ...] | list[str]) -> bool:
    """Whether adapter.targets may reach a table of tokens: its own words name matrices of blocks alone."""
    names = (targets,) if isinstance(targets, str) else targets
    words = (*KINDS, NONE)
    return any(
        name.startswith("re:") or any(part in name.lower() for part in _EMBEDDINGS)
        for name in names
        if name not in words
    )


def _splits(recipe: Sections) -> Iterator[Idle]:
    """A file has neither splits nor subsets, a folder no subsets."""
    data = recipe.data
    own = [] if isinstance(data.train, str) else list(enumerate(data.train))
    for name, has_none, beside in (
        ("split", _is_file, "a hub data set, or a folder of splits"),
        ("subset", _is_local, "a hub data set"),
    ):
        usual = DataSettings.model_fields[name].default
        for number, source in own:
            if getattr(source, name) not in (None, usual) and has_none(source.path):
                why = f"names a {name}, and {source.path} has none"
                yield Idle(("data", "train", number, name), getattr(source, name), why, beside, "take it out")
        left = [data.train] if isinstance(data.train, str) else [s.path for _, s in own if getattr(s, name) is None]
        left += [held] if (held := _held_out_read_by(data, name)) else []
        if is_given(data, name) and all(map(has_none, left)):
            why = f"names a {name}, and {' and '.join(dict.fromkeys(left))} has none"
            why = why if left else f"names a {name}, and every source names its own"
            yield Idle(("data", name), getattr(data, name), why, beside, "take it out")


def _held_out_read_by(data: DataSettings, name: str) -> str | None:
    """The source of held-out rows, where the section's split (or subset) says which of its rows."""
    held = data.held_out.file if isinstance(data.held_out, HeldOut) else data.held_out
    if not isinstance(held, str):
        return None
    source, part = (held, None) if _is_local(held) else name_and_split(held)
    return None if name == "split" and part is not None else source


def _is_file(name: str) -> bool:
    return FilePath(name).expanduser().is_file()


def _is_local(name: str) -> bool:
    return FilePath(name).expanduser().exists()


def _turns(recipe: Sections) -> Iterator[Idle]:
    """What is said of turns, where no row has any, or Jinja writes them in roles of ours."""
    data = recipe.data
    formats = [source.format for source in data.sources]
    has_turns = not all(map(_is_bare, formats))
    whole = "text is learned whole" if "text" in formats else "the rows say themselves what is learned"
    for name in ("learn", "learn_ends"):
        # Of plain text everything is learned: to ask for that is no contradiction.
        is_so = name == "learn" and data.learn in ("everything", "completions") and set(formats) == {"text"}
        if is_given(data, name) and not has_turns and not is_so:
            why, beside = (
                f"speaks of turns, and the rows have none: {whole}",
                "rows of messages, or of prompt and answer",
            )
            yield Idle(("data", name), getattr(data, name), why, beside, "take it out")
    if data.roles and all(_is_bare(form) or isinstance(form, TemplateFormat) for form in formats):
        why = "renames the roles of messages, and the rows have no messages"
        yield Idle(("data", "roles"), data.roles, why, "rows of messages", "take it out")
    for number, (source, template) in enumerate(zip(data.sources, data.templates, strict=True)):
        if template is not None and _is_bare(source.format):
            path, why = ("data", "train", number, "template"), "words turns, and the rows of this source have none"
            yield Idle(path, template, why, "rows of messages, or of prompt and answer", "take it out")


def _is_bare(form: Any) -> bool:
    return form in BARE or (isinstance(form, TemplateFormat) and form.text is not None)


def _embedding_rate(recipe: Sections) -> Iterator[Idle]:
    adapter = recipe.adapter
    fresh = isinstance(adapter, FactorSettings) and recipe.model.adapter is None
    if fresh and is_given(adapter, "embedding_lr_ratio") and not may_be_embedding(adapter.targets):
        yield Idle(
            ("adapter", "embedding_lr_ratio"), adapter.embedding_lr_ratio,
            "is the rate of factors beside an embedding, and adapter.targets reaches none",
            "a table of tokens among adapter.targets",
            "take it out, or name the table: adapter.targets=[all-linear, embed_tokens]",
        )  # fmt: skip


def _policy(recipe: Sections) -> Iterator[Idle]:
    objective = recipe.objective
    if not isinstance(objective, PolicySettings):
        return
    if is_given(objective, "gold") and not any(map(_reads_gold, objective.rewards)):
        yield Idle(
            ("objective", "gold"), objective.gold, "is the column that scorers compare with, and no reward is one",
            f"a scorer among objective.rewards: {', '.join(SCORERS)}",
            "take it out: a function is given every column of the rows by its own name",
        )  # fmt: skip
    if is_given(objective, "use_bias_correction_kl") and (objective.beta == 0 or objective.kl_in == "reward"):
        why = "objective.beta is 0" if objective.beta == 0 else "objective.kl_in is reward"
        yield Idle(
            ("objective", "use_bias_correction_kl"), objective.use_bias_correction_kl,
            f"weighs a divergence within the loss, and {why}",
            "objective.beta above 0, with objective.kl_in: loss", "take it out",
        )  # fmt: skip
    for name in ("epsilon", "epsilon_high"):
        value = getattr(objective, name)
        caps = objective.clipping == "cispo" and value is not None and value < 1  # below 1 a cap weighs every token
        usual = (type(objective).model_fields[name].default, PRESETS[objective.preset][name], 5.0)
        if objective.num_iterations == 1 and value not in usual and not caps:
            yield Idle(
                ("objective", name), value, f"has nothing to clip: {_CLIPS_NOTHING}",
                "objective.num_iterations of 2 or more", "take it out",
            )  # fmt: skip


def _reads_gold(reward: str) -> bool:
    return reward in SCORERS or reward.partition(":")[0] in OTHERS


def _schedule(recipe: Sections) -> Iterator[Idle]:
    train = recipe.train
    if is_given(train, "min_learning_rate") and train.schedule == "constant":
        yield Idle(
            ("train", "min_learning_rate"), train.min_learning_rate,
            "is where a falling rate ends, and train.schedule is constant",
            "train.schedule linear or cosine", "take it out, or set train.schedule=cosine",
        )  # fmt: skip
    if is_given(train, "stop_above_steps") and train.stop_above is None:
        yield Idle(
            ("train", "stop_above_steps"), train.stop_above_steps, "counts steps above a loss, and none is named",
            "train.stop_above", "take it out, or say above which loss a run ends: train.stop_above=8",
        )  # fmt: skip


def _project(recipe: Sections) -> Iterator[Idle]:
    output = recipe.output
    # A list that is said to be empty switches reporting off for one run, as a rehearsal does: the project waits for
    # the next.
    if output.project is None or (not output.report_to and "report_to" in output.model_fields_set):
        return
    if not set(output.report_to) & set(WITH_PROJECTS):
        to = ", ".join(output.report_to)
        why = f"is of a service with projects, and {f'{to} has none' if to else 'numbers are sent to none'}"
        expected = f"output.report_to with one of {', '.join(WITH_PROJECTS)}"
        yield Idle(("output", "project"), output.project, why, expected, "take it out, or set output.report_to=[wandb]")


IDLE: tuple[Callable[[Sections], Iterator[Idle]], ...] = (
    _splits,
    _turns,
    _embedding_rate,
    _policy,
    _schedule,
    _project,
)
