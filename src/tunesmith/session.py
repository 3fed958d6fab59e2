"""A loaded model with its adapters, ready to answer: what chat, generate, evaluate, merge and `tune` hand around.

session = open_session("runs/sql")             a run folder, an adapter folder, a merged model or a hub id
session.answer(["…"])                          text in, text out
session.load_adapter("runs/other/adapter")     a few megabytes, read once; then chosen per call or per row
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.adapters import store
from tunesmith.adapters.adapter_set import AdapterSet, unload
from tunesmith.adapters.heads import ClassHead, head_of_config, is_classifier, writes_no_answers
from tunesmith.data.problems import shown
from tunesmith.data.render import Renderer
from tunesmith.data.rows.asked import GoesOn, conversations_to_answer, turns_to_answer
from tunesmith.data.templating.templates import install
from tunesmith.data.types import Message
from tunesmith.errors import AdapterError, DataError, ModelError, RecipeError
from tunesmith.models.expected import own_special_token
from tunesmith.models.generate import Generated, Memory
from tunesmith.models.load import has_tokenizer, load_config, load_model, load_tokenizer, stored_dtype
from tunesmith.models.session import Params, Words
from tunesmith.models.session import Session as BaseSession
from tunesmith.models.settings import MADE, ModelSettings
from tunesmith.recipe import Recipe, load
from tunesmith.train.checkpoint import Checkpoints


def _goes_on(tokenizer: Any, adapter: Path | None) -> bool:
    """Whether the adapter is of a run whose rows were no conversations: there was no template to write any by."""
    if adapter is None or tokenizer.chat_template or not tokenizer.eos_token:
        return False
    recipe = recipe_of(adapter)
    return recipe is not None and not any(recipe.data.templates)


SystemTurn = Literal["keep", "into-user"]
"""As a system turn is written, or in front of the user's first."""


@dataclass
class Session(BaseSession):
    """`adapter` is the one that answers unless a call says otherwise; None is the base.

    `adapters` names those that are loaded; `sets` holds them. `base_tokenizer` loads the base's own tokenizer, where
    the session's is that of an adapter.
    """

    name: str = ""
    base_tokenizer: Callable[[], Any] | None = None
    sets: dict[str, AdapterSet] = field(default_factory=dict)
    adapter: str | None = None
    own_head: ClassHead | None = None
    """What the model's own classification head gives, where its files have one."""

    @property
    def head(self) -> ClassHead | None:
        """What the classification head gives, with the adapter that is set; None where the model ends in words."""
        return self.own_head if self.adapter is None else self.sets[self.adapter].head or self.own_head

    def stand(self, adapter_set: AdapterSet) -> None:
        """Know an adapter that stands in the model already."""
        self.sets[adapter_set.name] = adapter_set
        self.adapters.append(adapter_set.name)

    def load_adapter(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        same_base: bool = False,
    ) -> str:
        """Put an adapter of a folder beside the others; returns its name. Reads that folder's files alone.

        One that was trained with another template or other tokens than the session's is asked with its own, and that
        is said, and where the base is held otherwise than when the adapter was trained. `same_base`: PEFT's note in it
        names another base, but this is the same.
        """
        path = adapter_folder(Path(folder))
        words = self._own_words(path)
        called = self._place(path, name, same_base)
        if words is not None:
            self.words[called] = words
            if not isinstance(words.renderer, GoesOn):
                self.say(f"{called} was trained with another chat template or other tokens: it is asked with its own")
        return called

    def _place(self, path: Path, name: str | None = None, same_base: bool = False) -> str:
        called = name or unused_name(path, self.sets)
        self.stand(store.load(path, self.model, self.switch, called, same_base=same_base, say=self.say))
        return called

    def _own_words(self, path: Path) -> Words | None:
        """What the adapter in `path` reads and writes; None where the session's tokenizer and renderer do."""
        if has_tokenizer(path):
            tokenizer = load_tokenizer(ModelSettings(name=str(path)))
        else:
            tokenizer = self.tokenizer if self.base_tokenizer is None else self.base_tokenizer()
        if _goes_on(tokenizer, path):
            is_alike = isinstance(self.renderer, GoesOn) and _words_of(tokenizer) == _words_of(self.tokenizer)
            return None if is_alike else Words(tokenizer, GoesOn(tokenizer))
        if not tokenizer.chat_template:  # trained by a program that wrote none
            tokenizer.chat_template = self.tokenizer.chat_template
        if _words_of(tokenizer) == _words_of(self.tokenizer):
            return None
        recipe = recipe_of(path)
        return Words(tokenizer, Renderer(tokenizer, system_turn="keep" if recipe is None else recipe.data.system_turn))

    def unload_adapter(self, name: str) -> None:
        self.known(name)
        unload(self.model, name)
        del self.sets[name]
        self.adapters.remove(name)
        self.words.pop(name, None)
        if self.adapter == name:
            self.adapter = None

    def refuse_head(self) -> None:
        """Refuse a model that does not end in words, before it is asked for some."""
        if is_classifier(self.model):
            raise writes_no_answers()

    def known(self, *names: str | None) -> None:
        """Refuse a name that no loaded adapter has."""
        for name in names:
            if name is not None and name not in self.sets:
                raise AdapterError(f"no adapter is called {name}", expected=", ".join(self.sets) or "none is loaded")

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), adapter: str | None = None
    ) -> list[int]:
        """The prompt as `adapter` reads it. Where that is plain text it is said, once."""
        renderer = self.words_of(adapter).renderer
        if isinstance(renderer, GoesOn) and not renderer.is_said:
            renderer.is_said = True
            self.say("trained on plain text, without a chat template: the model goes on from the text as it stands")
        return super().prompt_ids(messages, tools, adapter)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Params, *, adapters: Sequence[str | None], **options: Any
    ) -> list[Generated]:
        """As the session of the models' own, but that what cannot be is said in a sentence: RecipeError for settings,
        DataError for a prompt without a token."""
        self.refuse_head()
        refuse_impossible(params, options.get("num_samples", 1))
        if empty := [number for number, prompt in enumerate(prompts, 1) if not len(prompt)]:
            raise DataError(
                "a prompt has no token to go on from",
                where=f"prompt {empty[0]}",
                found="nothing, and a tokenizer that begins no text with BOS",
                fix="give some text",
            )
        return super().generate(prompts, params, adapters=adapters, **options)

    def stream(
        self,
        messages: str | Sequence[Message | Mapping[str, Any]],
        params: Params,
        write: Callable[[str], object],
        *,
        adapter: str | None = None,
        cancelled: Callable[[], bool] | None = None,
        memory: Memory | None = None,
    ) -> Generated:
        """One answer, its text handed to `write` piece by piece; `messages` as one conversation of `answer`."""
        self.refuse_head()
        self.known(adapter)
        refuse_impossible(params, streamed=True)
        turns = turns_to_answer(messages, "messages")
        return super().stream(turns, params, write, adapter=adapter, cancelled=cancelled, memory=memory)

    def answer(
        self,
        conversations: Sequence[str | Sequence[Message | Mapping[str, Any]]],
        *,
        adapters: Sequence[str | None] | None = None,
        params: Params | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers as text, one for each conversation: a string is one turn of the user, else it is a list of messages,
        `Message`s or dictionaries as rows have them. `adapters`: one name (None: the base) per conversation.

        DataError for what is no conversation, RecipeError for params that cannot be, AdapterError for adapters.
        """
        self.refuse_head()
        turns = conversations_to_answer(conversations)
        chosen = [self.adapter] * len(turns) if adapters is None else list(adapters)
        self.known(*chosen)
        if len(chosen) != len(turns):
            raise AdapterError(
                "adapters must name one for each conversation",
                found=f"{len(chosen)} for {len(turns)}",
                fix="None stands for the base; leave adapters out for the one that is set",
            )
        params = params or Params()
        prompts = [self.prompt_ids(item, adapter=name) for item, name in zip(turns, chosen, strict=True)]
        made = self.generate(prompts, params, adapters=chosen, **options)
        each = options.get("num_samples", 1)
        return [self.text(item, params, chosen[i // each]) for i, item in enumerate(made)]


def refuse_impossible(params: Any, num_samples: int = 1, *, streamed: bool = False, where: str = "params") -> None:
    """RecipeError for settings of an answer that cannot be, or not together."""
    if not isinstance(params, Params):
        said = f"{type(params).__name__} {shown(params, 40)}"
        raise RecipeError(
            "params are tunesmith.Params", where=where, found=said, expected="Params(max_new_tokens=…, …)"
        )
    try:
        params.check()
        if num_samples < 1:
            raise ValueError("num_samples is at least 1")
        if params.num_beams > 1 and (num_samples > 1 or streamed):
            raise ValueError("num_beams looks for one answer, known at its end: it is neither streamed nor sampled")
    except ValueError as error:
        raise RecipeError(str(error), where=where, fix="give another value (docs/settings.md has them)") from error
    except TypeError as error:
        what, expected = "a number is no number", "whole numbers and shares, not text"
        raise RecipeError(what, where=where, found=f"{params}, {num_samples=}", expected=expected) from error


def _words_of(tokenizer: Any) -> list[Any]:
    """What says how text is written and where it ends."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    return [tokenizer.chat_template, added, *(own_special_token(tokenizer, name) for name in ("bos", "eos"))]


def adapter_folder(path: Path) -> Path:
    """The adapter in `path`: the folder itself, or that of a run."""
    for place in (path, path / "adapter"):
        if (place / "adapter_config.json").is_file():
            return place
    if not path.is_dir():
        raise AdapterError(f"there is no folder {path}", fix="check the path")
    if _is_run(path):
        so_far = Checkpoints(path / "checkpoints", 0).best_so_far()
        resume = f"tunesmith train {shlex.quote(str(path))} --resume"
        raise AdapterError(
            f"the run in {path} has not ended" if so_far else f"the run in {path} has saved nothing yet",
            fix=f"{resume}; or take its best checkpoint so far: {so_far}" if so_far else resume,
        )
    raise AdapterError(
        f"there is no adapter in {path}",
        expected="adapter_config.json and adapter_model.safetensors there, or in its folder adapter/",
        fix="give a run folder, an adapter's folder, or a checkpoint (checkpoints/step-…)",
    )


def standing_adapter(path: Path, say: Callable[[str], object]) -> Path:
    """The adapter in `path`; of a run that has not ended, its best checkpoint so far, and that it is one."""
    if _is_run(path) and not (path / "adapter" / "adapter_config.json").is_file():
        so_far = Checkpoints(path / "checkpoints", 0).best_so_far()
        if so_far is not None:
            say(f"the run in {path} has not ended: {so_far.name}, its best checkpoint so far, stands in for it")
            return so_far
    return adapter_folder(path)


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and (path / "provenance.json").is_file()


def unused_name(path: Path, taken: Any) -> str:
    """A name for the adapter of `path`: the run's, or the folder's own."""
    parts = [part for part in path.absolute().parts if part != "adapter"]
    stem = parts[-1].replace(".", "-") if parts else "adapter"
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name


_OF_TRAINING: dict[str, Any] = {"adapter": None, "architecture": None, "tokenizer_class": None}
"""What a run's recipe says of its model for the training alone."""


@dataclass(frozen=True)
class Source:
    """What a user named: a base, the adapter on it (if any), and how the run that made it treated system turns."""

    model: ModelSettings
    adapter: Path | None
    system_turn: SystemTurn = "keep"


def find_source(source: str, base: str | None = None, say: Callable[[str], object] = warnings.warn) -> Source:
    """A run folder, an adapter folder, a model folder or a hub id; `base` overrides what an adapter says."""
    path = Path(source).expanduser()
    is_model = path.exists() and ((path / "config.json").is_file() or path.suffix == ".gguf")
    if is_model or not path.exists():
        if base is not None:
            raise ModelError(
                f"{source} is a model, and so is --base {base}",
                fix=f"to put an adapter on {base}, give the adapter's folder in place of {source}",
            )
        return Source(ModelSettings(name=str(path) if is_model else source), None)
    if path.is_file():
        raise ModelError(
            f"{source} is a file",
            expected="a run folder, an adapter folder, a model folder, a .gguf file or a hub id",
            fix="a recipe goes behind --recipe, where the verb has one" if path.suffix in (".yaml", ".yml") else None,
        )
    adapter = standing_adapter(path, say)
    recipe = recipe_of(adapter)
    settings = None if recipe is None else recipe.model
    if base is not None:
        settings = ModelSettings(name=base) if settings is None else _on_another(settings, base)
    if settings is None:
        settings = ModelSettings.model_validate({"name": _base_in_config(adapter), "storage": _storage_noted(adapter)})
    settings = _still_there(settings, adapter)
    system_turn = "keep" if recipe is None else recipe.data.system_turn
    return Source(settings.model_copy(update=_OF_TRAINING), adapter, system_turn)


def _on_another(settings: ModelSettings, base: str) -> ModelSettings:
    """The same settings with another base; a revision means something in its own repository alone."""
    revision = settings.revision if base == settings.name else None
    return settings.model_copy(update={"name": base, "revision": revision})


def _still_there(settings: ModelSettings, adapter: Path) -> ModelSettings:
    """A run remembers files by their place: of those that are gone, the base is asked for, the template is done without
    where the adapter's own tokenizer has it."""
    if settings.name.startswith("/") and not Path(settings.name).exists():
        raise ModelError(
            "the base of this adapter is not where it was",
            where=str(adapter),
            found=f"there is no {settings.name}",
            fix="say where it is: --base FOLDER-OR-HUB-ID",
        )
    template = settings.template
    if template and template.startswith("/") and not Path(template).exists() and any(adapter.glob("tokenizer*")):
        return settings.model_copy(update={"template": None})
    return settings


def recipe_of(source: str | Path) -> Recipe | None:
    """The recipe of the run that `source` is or lies in (its adapter, a checkpoint); None where it is no run's."""
    path = Path(source).expanduser().absolute()
    for folder in (path, path.parent, path.parent.parent):
        if _is_run(folder):
            return load(folder / "recipe.yaml", past=True).recipe
    return None


def _base_in_config(adapter: Path) -> str:
    name = store.config_of(adapter).get("base_model_name_or_path")
    if not isinstance(name, str) or not name or (name.count("/") != 1 and not Path(name).exists()):
        raise ModelError(
            "the adapter does not say where its base model is",
            where=str(adapter),
            found=repr(name),
            fix="name the base: --base FOLDER-OR-HUB-ID",
        )
    return name


def _storage_noted(adapter: Path) -> str:
    """The storage that an adapter of ours was trained beside, where it is one to ask for; else auto."""
    noted = store.noted_base(adapter).get("storage")
    return noted if noted in MADE else "auto"


def open_session(
    source: str,
    *,
    base: str | None = None,
    adapters: Sequence[str | Path] = (),
    device: str = "auto",
    dtype: str = "auto",
    storage: str = "auto",
    template: str | None = None,
    system_turn: SystemTurn | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], object] = warnings.warn,
) -> Session:
    """Load what `source` names, and further `adapters` beside it. The source's own adapter answers first.

    Prompts are written with the source's tokenizer and template; where the source is a bare base, with those of the
    first adapter. A further adapter with others is asked with its own. `device`, `dtype` and `storage` other than auto
    go before what a run's recipe says; dtype "stored": that of the base's files. `template`, `system_turn` and
    `revision` (which of a hub's versions of the base) replace what the source says of them; a run that learned plain
    text, on a base without a template, is asked by plain text. `say` gets what one should know of it: that a run has
    not ended and its best checkpoint stands in, that a base is held otherwise.
    """
    found = find_source(source, base, say)
    folders = [standing_adapter(Path(folder).expanduser(), say) for folder in adapters]
    written_for = found.adapter
    if found.adapter is None and folders:
        written_for = folders[0]
        found = replace(find_source(str(written_for), found.model.name), adapter=None)
    settings = found.model
    if dtype == "stored":
        dtype = stored_dtype(settings, trust_remote_code=trust_remote_code)
    if storage not in ("auto", "plain", *MADE):
        raise ModelError(f"there is no storage {storage}", expected=", ".join(("auto", "plain", *MADE)))
    if system_turn not in (None, *get_args(SystemTurn)):
        raise RecipeError(f"there is no system_turn {system_turn}", expected=", ".join(get_args(SystemTurn)))
    given = {"device": device, "dtype": dtype, "storage": storage, "template": template, "revision": revision}
    settings = settings.model_copy(update={key: value for key, value in given.items() if value not in ("auto", None)})
    tokenizer = load_tokenizer(settings, trust_remote_code=trust_remote_code, folder=written_for)
    if settings.template:
        install(settings.template, tokenizer)
    own = head_of_config(load_config(settings, trust_remote_code=trust_remote_code))
    head = own if written_for is None else store.head_of(written_for) or own
    model = load_model(settings, tokenizer, trust_remote_code=trust_remote_code, head=head, say=say).model
    renderer = Renderer(tokenizer, system_turn=system_turn or found.system_turn)
    if head is None and _goes_on(tokenizer, written_for):
        renderer = GoesOn(tokenizer)
    session = Session(model, tokenizer, renderer, name=settings.name, say=say, own_head=own)
    if written_for is not None and has_tokenizer(written_for):
        session.base_tokenizer = partial(_base_tokenizer, settings, trust_remote_code)
    if found.adapter is not None:
        session.adapter = session._place(found.adapter, same_base=base is not None)
    for folder in folders:
        session._place(folder) if folder == written_for else session.load_adapter(folder)
    model.eval()
    return session


def head_of(source: str, adapter: str | None, base: str | None, trust_remote_code: bool) -> ClassHead | None:
    """What the classification head of a source gives, with `adapter` where one is named; None where it ends in words.
    Reads configs alone."""
    found = find_source(source, base, lambda text: None)
    chosen = found.adapter if adapter is None else standing_adapter(Path(adapter).expanduser(), lambda text: None)
    of_adapter = None if chosen is None else store.head_of(chosen)
    return of_adapter or head_of_config(load_config(found.model, trust_remote_code=trust_remote_code))


def _base_tokenizer(settings: ModelSettings, trust_remote_code: bool) -> Any:
    """The base's own tokenizer, as adapters without one were trained with it."""
    return load_tokenizer(settings.bare, trust_remote_code=trust_remote_code)
