"""What one does with a trained model from the command line: chat, generate, evaluate, merge."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunesmith.adapters import identity, store
from tunesmith.adapters.heads import note_in_config, writes_no_answers
from tunesmith.answer_file import Prompt, answer_file, read_prompts, refuse_unwritable
from tunesmith.atomic import no_room
from tunesmith.chat import run_chat
from tunesmith.classifier import Classifier, as_text, classify_file, texts_of
from tunesmith.data.formats import LEARNABLE
from tunesmith.data.mixture import read_parts
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Message
from tunesmith.dialects.read import load
from tunesmith.errors import AdapterError, DataError, Interrupted, MachineError, RecipeError
from tunesmith.evaluate import Evaluation, Item, Mean, scorers_named, write_answers
from tunesmith.evaluate import evaluate as score_items
from tunesmith.held_out import held_out_loss
from tunesmith.models.load import without_bars
from tunesmith.models.session import Params
from tunesmith.progress import Progress
from tunesmith.questions import ALL, LAST, calls_apart, questions, refuse_unscorable
from tunesmith.session import Session, SystemTurn, adapter_folder, head_of, open_session, recipe_of, refuse_impossible
from tunesmith.train.signals import watched

NO_ADAPTER = "none"
"""Given as an adapter, it stands for the base alone, as in chat."""


def _open(
    progress: Progress,
    source: str | Path,
    adapter: str | None = None,
    *,
    say: Callable[[str], object] | None = None,
    **options: Any,
) -> Session:
    """The session of `source`; `adapter`, where given, answers in place of the source's own ("none": the base)."""
    further = [adapter] if adapter and adapter != NO_ADAPTER else []
    with progress.stage("loading the model"):
        session = open_session(str(source), adapters=further, say=say or progress.say, **options)
    if adapter:
        session.adapter = session.adapters[-1] if further else None
    return session


def chat(
    source: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    base: str | None = None,
    storage: str = "auto",
    system: str | None = None,
    system_turn: SystemTurn | None = None,
    template: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    trust_remote_code: bool = False,
) -> None:
    """Talk with a model in the terminal."""
    with Progress() as progress, progress.stage("loading the model"):
        session = open_session(
            str(source),
            base=base,
            storage=storage,
            adapters=adapters,
            template=template,
            system_turn=system_turn,
            trust_remote_code=trust_remote_code,
            say=progress.say,
        )
        if system is None:
            system = _own_system(source, progress.say)
    session.refuse_head()
    run_chat(session, params=Params(max_new_tokens, temperature), adapter=session.adapter, system=system)


def generate(
    source: str | Path,
    *,
    prompt: str | None = None,
    file: Path | None = None,
    out: Path | None = None,
    adapter: str | None = None,
    base: str | None = None,
    storage: str = "auto",
    system: str | None = None,
    system_turn: SystemTurn | None = None,
    template: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    num_beams: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Answer one prompt, streamed (into `out` where it is given), or a file of prompts in batches."""
    params = Params(max_new_tokens, temperature, seed=seed, num_beams=num_beams)
    refuse_impossible(params, where="command line")
    if head_of(str(source), None if adapter == NO_ADAPTER else adapter, base, trust_remote_code) is not None:
        _refuse_of_words(system, temperature, num_beams, template)
        with Progress() as progress:
            own: dict[str, Any] = {"base": base, "storage": storage, "system_turn": system_turn}
            session = _open(progress, source, adapter, trust_remote_code=trust_remote_code, **own)
            _classify(session, adapter or source, prompt, file, out, progress)
        return
    target = out if file is None else out or file.with_suffix(".answers.jsonl")
    if target is not None:
        refuse_unwritable(target)
    with Progress() as progress:
        if system is None and (file is None or file.suffix.lower() == ".txt"):
            system = _own_system(source, progress.say)
    if file is not None:
        recipe = recipe_of(source) or (recipe_of(adapter) if adapter and adapter != NO_ADAPTER else None)
        prompts = read_prompts(file, system, None if recipe is None else recipe.data.of_other_files)
    else:
        before = (Message("system", system),) if system else ()
        prompts = [Prompt(1, (*before, Message("user", prompt or "")))]
    with Progress() as progress:
        options: dict[str, Any] = {
            "base": base,
            "storage": storage,
            "template": template,
            "system_turn": system_turn,
            "trust_remote_code": trust_remote_code,
        }
        session = _open(progress, source, adapter, **options)
        if target is None:
            for one in prompts:
                if num_beams > 1:  # which answer it is shows at its end
                    print(session.answer([one.messages], params=params)[0])
                    continue
                session.stream(
                    one.messages, params, lambda text: print(text, end="", flush=True), adapter=session.adapter
                )
                print()
            return
        said = _every_tenth(progress, "answered")
        with watched() as signals, signals.deferred():
            done = answer_file(
                session,
                prompts,
                target,
                params,
                adapter=session.adapter,
                max_rows=batch_size,
                on_progress=said,
                cancelled=lambda: signals.received is not None,
                weights=_weights(session),
            )
        progress.say(f"{done.answered} answered, {done.already} were there already: {target}")
        if done.cancelled and signals.received is not None:
            raise Interrupted(
                "stopped by a signal",
                signal_number=signals.received,
                fix=f"the same command answers the {len(prompts) - done.answered - done.already} that are missing",
            )


def _classify(
    session: Session, source: str | Path, prompt: str | None, file: Path | None, out: Path | None, progress: Progress
) -> None:
    """What `generate` means of a model that ends in a head: the class of each text, printed or into a file."""
    recipe = recipe_of(source)
    data = None if recipe is None else recipe.data.of_other_files
    cuts = data is not None and data.overlong == "truncate"
    classifier = Classifier(session, data.max_length if data is not None and cuts else None)
    if file is not None:
        target, texts = out or file.with_suffix(".classes.jsonl"), texts_of(file, data)
        classify_file(classifier, texts, target)
        progress.say(f"{len(texts)} classified: {target}")
        return
    system = _own_system(source, progress.say) if classifier.head.has_turns else None
    text: Any = prompt or ""
    if system is not None:
        text = [Message("system", system), Message("user", text)]
    if out is not None:
        refuse_unwritable(out)
        classify_file(classifier, [as_text(text)], out)
        return
    if classifier.head.meaning == "reward":
        print(f"{classifier.rewards([text])[0]:.4f}")
        return
    made = classifier.classify([text])[0]
    decides = [one for one in classifier.head.thresholds if one != 0.5]
    at = f" (from {decides[0]:.0%} on)" if len(decides) == 1 and len(made.probabilities) == 2 else ""
    print((made.label or "no label") + (at if made.label == [*made.probabilities][-1] else ""))
    for label, share in sorted(made.probabilities.items(), key=lambda item: -item[1]):
        print(f"  {share:6.1%}  {label}")


def _refuse_of_words(system: str | None, temperature: float, num_beams: int, template: str | None) -> None:
    """What a model that ends in a head has no use for."""
    told = (
        ("--system", system is not None),
        ("--temperature", temperature > 0),
        ("--num-beams", num_beams > 1),
        ("--template", template is not None),
    )
    if given := [option for option, is_given in told if is_given]:
        raise RecipeError(f"{' and '.join(given)}: a classifier writes no words", fix="leave it out")


def _own_system(source: str | Path, say: Callable[[str], object]) -> str | None:
    """The system turn that a run's template put before every row, if it was the same for all: asked as trained."""
    recipe = recipe_of(source)
    form = None if recipe is None else recipe.data.of_other_files.format
    text = form.system if isinstance(form, TemplateFormat) else None
    if not text or any(mark in text for mark in ("{{", "{%", "{#")):
        return None
    say(f"system turn, as in training (--system says another): {text}")
    return text


def _weights(session: Session) -> str:
    """A digest of the base and of the adapter that answers: two runs of one name are two adapters."""
    digest = hashlib.sha256(identity.fingerprint(session.model).encode())
    if session.adapter is not None:
        for name, parameter in sorted(session.sets[session.adapter].parameters().items()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _every_tenth(progress: Progress, verb: str) -> Callable[[int, int], None]:
    """A callback (done, in all) that says a line at each tenth of the way."""
    tenths = 0

    def say(done: int, total: int) -> None:
        nonlocal tenths
        if done * 10 // max(1, total) > tenths:
            tenths = done * 10 // max(1, total)
            progress.say(f"  {verb} {done} of {total}")

    return say


def evaluate(
    source: str | Path,
    *,
    data: str | None = None,
    recipe: Path | None = None,
    score: str | Sequence[str] = "loss",
    turns: str = LAST,
    gold: str | None = None,
    limit: int | None = None,
    adapter: str | None = None,
    base: str | None = None,
    storage: str = "auto",
    system_turn: SystemTurn | None = None,
    max_new_tokens: int = 256,
    num_beams: int = 1,
    batch_size: int = 16,
    as_json: bool = False,
    out: Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Score a model or adapter on rows: held-out loss, and answers by scorers. Prints and returns the figures.

    `score` names one or several; the answers are made once for all of them. `turns`: of a conversation the last answer
    is asked for, or "all" of them, each with the true turns before it. `recipe` says how rows are read where `source`
    is no run; `gold` is the column of the right answers; `system_turn` replaces what the run or recipe says of it.
    """
    wanted = list(dict.fromkeys([score] if isinstance(score, str) else score))
    of_answers = [name for name in wanted if name != "loss"]
    scorers_named(of_answers)
    _refuse_unread(of_answers, turns, gold, out, num_beams)
    if of_answers and head_of(str(source), None if adapter == NO_ADAPTER else adapter, base, trust_remote_code):
        raise writes_no_answers()
    if out is not None:
        refuse_unwritable(out)
    aloud = functools.partial(print, file=sys.stderr)  # what a program's person should know, quiet or not
    settings, seed = _rows_of(source, data, recipe, limit)
    settings = settings.model_copy(update={} if system_turn is None else {"system_turn": system_turn})
    own = load(recipe).recipe if recipe is not None else recipe_of(source)
    all_rows = data is not None
    if "loss" in wanted:  # whether there are rows at all is known before any weight is loaded
        read_parts(settings, limit=1)
    items: list[Item] = []
    if of_answers:
        items = questions(settings, seed, all_rows, limit, gold, turns, aloud, LEARNABLE if own is None else own.takes)
        refuse_unscorable(items, of_answers, settings.named)
        items = calls_apart(items) if "tool_call" in of_answers else items
    with Progress(quiet=as_json) as progress:
        session = _open(
            progress,
            source,
            adapter,
            base=base,
            storage=storage,
            trust_remote_code=trust_remote_code,
            say=aloud,
            **_asked_as(source, recipe, system_turn),
        )
        figures: dict[str, Any] = {}
        if "loss" in wanted:
            figures |= held_out_loss(session, settings, own, all_rows, limit, aloud)
        if of_answers:
            said = _every_tenth(progress, "answered")
            made = score_items(
                session,
                items,
                of_answers,
                adapter=session.adapter,
                params=Params(max_new_tokens, num_beams=num_beams),
                on_progress=said,
                max_rows=batch_size,
            )
            figures |= _figures(made, turns)
    plain = {key: asdict(value) if isinstance(value, Mean) else value for key, value in figures.items()}
    print(json.dumps(plain, indent=2) if as_json else "\n".join(f"{key}: {value}" for key, value in figures.items()))
    if out is not None:  # after the figures: a disk that is full does not take those too
        write_answers(out, items, made)
    return plain


def _rows_of(
    source: str | Path, data: str | None, recipe_file: Path | None, limit: int | None
) -> tuple[DataSettings, int]:
    """How to read the rows to score (as a recipe, or the run that `source` is, reads its own), and the split's seed."""
    recipe = load(recipe_file).recipe if recipe_file is not None else recipe_of(source)
    if data is None:
        if recipe is None or recipe.data.held_out is None:
            raise RecipeError(
                "there are no rows to score",
                found=f"{source}, where no run or recipe is" if recipe is None else "a recipe that holds no rows out",
                fix="give --data FILE, or a recipe or run folder that holds rows out",
            )
        if recipe.data.train == "rows" and not Path("rows").exists():
            raise RecipeError("the run's rows came from Python and are in no file", fix="give --data FILE")
        return recipe.data, recipe.train.seed
    if recipe is None:
        return DataSettings(train=data, limit=limit), 0
    changes = {"train": data, "held_out": None, "limit": limit}
    return recipe.data.of_other_files.model_copy(update=changes), recipe.train.seed


def _asked_as(source: str | Path, recipe_file: Path | None, system_turn: SystemTurn | None) -> dict[str, Any]:
    """What a recipe says of prompts, for a source that is no run and so does not say it itself."""
    if recipe_file is None or recipe_of(source) is not None:
        return {"system_turn": system_turn}
    recipe = load(recipe_file).recipe
    return {"template": recipe.model.template, "system_turn": system_turn or recipe.data.system_turn}


def _refuse_unread(of_answers: list[str], turns: str, gold: str | None, out: Path | None, num_beams: int) -> None:
    """Options that would change nothing, or contradict each other."""
    if turns not in (LAST, ALL):
        raise RecipeError(f"--turns {turns}: there is no such choice", expected=f"{LAST} or {ALL}")
    told = (
        ("--gold", gold is not None),
        ("--out", out is not None),
        ("--turns", turns == ALL),
        ("--num-beams", num_beams > 1),
    )
    if not of_answers and (given := [option for option, is_given in told if is_given]):
        raise RecipeError(f"{' and '.join(given)}: only answers have it, not the loss", fix="give --score too")
    if turns == ALL and gold is not None:
        raise RecipeError(
            "--gold names one right answer for a row, and --turns all asks for several",
            fix="take one of the two out: with --turns all each turn's own text is the right answer",
        )


def _figures(made: Evaluation, turns: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for score in made.scores:
        figures[score] = made.mean(score)
        figures |= {f"{score}, {part}": mean for part, mean in made.by_part(score).items()}
    figures["turns"] = turns
    if made.conversations is not None:
        figures["conversations"] = len(set(made.conversations))
    figures["seconds"] = round(made.seconds, 1)
    if made.num_cut:
        figures["cut at max_new_tokens"] = made.num_cut
    return figures


def _settle_generation(session: Session) -> None:
    """Whoever runs the merged model stops at the template's end of a turn, and where the base stopped. What a base says
    of sampling while it does not sample (Llama 2) transformers does not write: then it samples, as is meant."""
    config = getattr(session.model, "generation_config", None)
    if config is None:
        return
    there = config.eos_token_id
    known = [] if there is None else [there] if isinstance(there, int) else list(there)
    with suppress(DataError):  # a template that cannot write one question and one answer ends no turn
        config.eos_token_id = list(dict.fromkeys([*known, *session.renderer.end_ids])) or None
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def merge(
    source: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> str:
    """The base with the adapter worked in, as plain transformers weights, proved by comparing logits: by how much they
    differ is what it gives back."""
    from tunesmith.adapters.merge import merge_to_folder
    from tunesmith.models.fuse import unfuse

    store.refuse_unmergeable(adapter_folder(Path(source)))
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise AdapterError("there is something already", where=str(out), fix="choose another folder")
    with Progress(quiet=quiet) as progress:
        wanted = "stored" if dtype == "auto" else dtype
        session = _open(progress, source, base=base, dtype=wanted, trust_remote_code=trust_remote_code)
        if session.adapter is None:
            raise RecipeError(f"{source} holds no adapter to merge", fix="give a run folder or an adapter folder")
        unfuse(session.model)
        _settle_generation(session)
        if session.head is not None:
            note_in_config(session.model.config, session.head)
        with progress.stage("merging, writing and reading back"), without_bars():
            try:
                report = merge_to_folder(session.model, session.sets[session.adapter], Path(out), session.tokenizer)
            except Exception as error:
                if not no_room(error):
                    raise
                raise MachineError(
                    "the merged model cannot be written: the disk is full",
                    where=str(out),
                    found=str(error).partition("\n")[0],
                    fix="free space or choose another disk",
                ) from error
        progress.say(str(report))
    return str(report)
