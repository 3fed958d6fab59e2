"""A loaded model with its adapters, ready to answer: what chat, generate, evaluate, merge and `tune` hand around.

session = open_session("runs/sql")             a run folder, an adapter folder, a merged model or a hub id
session.answer(["…"])                          text in, text out
session.load_adapter("runs/other/adapter")     a few megabytes, read once; then chosen per call or per row
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters import store
from tunesmith.adapters.adapter_set import AdapterSet, unload
from tunesmith.adapters.attach import Switch
from tunesmith.data.render import Renderer
from tunesmith.data.templates import install
from tunesmith.data.types import Message
from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.generate import Generated, generate
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.settings import ModelSettings


@dataclass
class Session:
    """`adapter` is the one that answers unless a call says otherwise; None is the base."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    switch: Switch
    name: str
    adapters: dict[str, AdapterSet] = field(default_factory=dict)
    adapter: str | None = None

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Token ids of a conversation up to where the answer begins: what training saw before each answer."""
        return self.renderer.prompt_ids(messages, tools)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens at which an answer ends."""
        return self.renderer.end_ids

    def load_adapter(self, folder: str | Path, name: str | None = None) -> str:
        """Stand an adapter of a folder beside the others; returns its name. Reads that folder's files alone."""
        path = adapter_folder(Path(folder))
        called = name or unused_name(path, self.adapters)
        self.adapters[called] = store.load(path, self.model, self.switch, called)
        return called

    def unload_adapter(self, name: str) -> None:
        unload(self.model, name)
        del self.adapters[name]
        if self.adapter == name:
            self.adapter = None

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """One adapter (None: the base) for the length of a `with`."""
        self._known(adapter)
        with self.switch.set_to(adapter):
            yield

    def _known(self, *names: str | None) -> None:
        for name in names:
            if name is not None and name not in self.adapters:
                raise AdapterError(
                    f"no adapter is called {name}", expected=", ".join(self.adapters) or "none is loaded"
                )

    def generate(
        self,
        conversations: Sequence[str | Sequence[Message]],
        *,
        adapters: Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[Generated]:
        """Answers as tokens. A bare string is one user turn. `adapters`: one name (None: the base) per conversation."""
        prompts = [
            self.prompt_ids([Message("user", item)] if isinstance(item, str) else item) for item in conversations
        ]
        options.setdefault("max_new_tokens", 256)
        if adapters is not None:
            self._known(*adapters)
            return generate(
                self.model, prompts, eos_ids=self.eos_ids, switch=self.switch, adapters=list(adapters), **options
            )
        with self.using(self.adapter):
            return generate(self.model, prompts, eos_ids=self.eos_ids, **options)

    def answer(self, conversations: Sequence[str | Sequence[Message]], **options: Any) -> list[str]:
        """Answers as text."""
        answers = self.generate(conversations, **options)
        return [self.tokenizer.decode(item.token_ids, skip_special_tokens=True).strip() for item in answers]


def adapter_folder(path: Path) -> Path:
    """The adapter in `path`: the folder itself, or that of a run."""
    for place in (path, path / "adapter"):
        if (place / "adapter_config.json").is_file():
            return place
    raise AdapterError(
        f"there is no adapter in {path}",
        expected="adapter_config.json and adapter_model.safetensors there, or in its folder adapter/",
        fix="give a run folder whose training has ended, or a checkpoint of it (checkpoints/step-…)",
    )


def unused_name(path: Path, taken: Any) -> str:
    """A name for the adapter of `path`: the run's, or the folder's own."""
    parts = [part for part in path.absolute().parts if part != "adapter"]
    stem = parts[-1].replace(".", "-") if parts else "adapter"
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name


@dataclass(frozen=True)
class Source:
    """What a user named: a base, and the adapter on it (if any)."""

    model: ModelSettings
    adapter: Path | None


def find_source(source: str, base: str | None = None) -> Source:
    """A run folder, an adapter folder, a model folder or a hub id; `base` overrides what an adapter says."""
    path = Path(source).expanduser()
    if not path.exists():
        return Source(ModelSettings(name=source), None)
    if (path / "config.json").is_file() or path.suffix == ".gguf":
        return Source(ModelSettings(name=str(path)), None)
    adapter = adapter_folder(path)
    settings = _model_of_run(adapter)
    if base is not None:
        settings = ModelSettings(name=base) if settings is None else settings.model_copy(update={"name": base})
    if settings is None:
        settings = ModelSettings(name=_base_in_config(adapter))
    return Source(settings.model_copy(update={"adapter": None}), adapter)


def _model_of_run(adapter: Path) -> ModelSettings | None:
    """The model section of the run that `adapter` lies in."""
    from tunesmith.recipe import load

    for folder in (adapter.parent, adapter.parent.parent):
        if (folder / "recipe.yaml").is_file() and (folder / "provenance.json").is_file():
            return load(folder / "recipe.yaml").recipe.model
    return None


def _base_in_config(adapter: Path) -> str:
    name = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not name or (name.count("/") != 1 and not Path(name).exists()):
        raise ModelError(
            "the adapter does not say where its base model is",
            where=str(adapter),
            found=repr(name),
            fix="name the base: --base FOLDER-OR-HUB-ID",
        )
    return str(name)


def open_session(
    source: str,
    *,
    base: str | None = None,
    adapters: Sequence[str | Path] = (),
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Session:
    """Load what `source` names, and further `adapters` beside it. The source's own adapter answers first."""
    found = find_source(source, base)
    settings = found.model
    if settings.device == "auto":
        settings = settings.model_copy(update={"device": device})
    if settings.dtype == "auto":
        settings = settings.model_copy(update={"dtype": dtype})
    folders = [adapter_folder(Path(folder)) for folder in adapters]
    tokenizer = load_tokenizer(settings, trust_remote_code=trust_remote_code, folder=found.adapter)
    if settings.template:
        install(settings.template, tokenizer)
    model = load_model(settings, tokenizer, trust_remote_code=trust_remote_code).model
    session = Session(model, tokenizer, Renderer(tokenizer), Switch(), settings.name)
    if found.adapter is not None:
        session.adapter = session.load_adapter(found.adapter)
    for folder in folders:
        session.load_adapter(folder)
    model.eval()
    return session
