"""The command line: one function per verb, each importing what it runs when it is run, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith import heap
from tunesmith.cli_options import (
    SCORERS,
    Base,
    MaxNewTokens,
    NumBeams,
    OtherAdapter,
    Overrides,
    RecipeFile,
    RemoteCode,
    Source,
    Storage,
    Strict,
    System,
    SystemTurn,
    Temperature,
    Template,
)
from tunesmith.guard import guarded

app = typer.Typer(
    name="tunesmith",
    help="Fine-tune large language models cheaply, with the proof that what was trained is what is served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a verb."""
    return app.command()(guarded(function))


def main() -> None:
    """The `tunesmith` command."""
    if "--debug" in sys.argv[1:]:
        sys.argv.remove("--debug")
        os.environ["TUNESMITH_DEBUG"] = "1"
    heap.keep()
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tunesmith {version('tunesmith')}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which, and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also TUNESMITH_DEBUG=1).")] = False,
) -> None:
    """`--debug` is taken by `main`, wherever it stands."""


@verb
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")] = False,
    strict: Strict = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train an adapter by a recipe."""
    from tunesmith.dialects.read import load

    resolved = load(recipe, overrides or [], strict=strict)
    from tunesmith import run

    run.train(resolved, resume=resume, trust_remote_code=trust_remote_code)


@verb
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to print.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page, with learned tokens in colour.", show_default=False),
    ] = None,
    strict: Strict = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show rows as the model will see them, with counts and what is odd; train nothing."""
    from tunesmith.dialects.read import load
    from tunesmith.errors import RecipeError

    if as_json and html is not None:
        raise RecipeError("--json stands beside --html", where="command line", fix="leave one of them out")
    resolved = load(recipe, overrides or [], strict=strict)
    from tunesmith import run

    run.check(resolved, rows=rows, as_json=as_json, html=html, trust_remote_code=trust_remote_code)


@verb
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for so much memory (24GB), not what is free.", show_default=False),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="What an hour of this machine costs.", show_default=False)
    ] = None,
    methods: Annotated[bool, typer.Option(help="Every adapter method side by side.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    strict: Strict = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what a run will need, memory and time, and what would fit; load no weight. Ends with 4 where it does not
    fit."""
    from tunesmith.dialects.read import load
    from tunesmith.notation import read_size

    room = None if memory is None else read_size(memory, "--memory")
    resolved = load(recipe, overrides or [], strict=strict)
    from tunesmith import run

    if (
        run.plan(
            resolved, memory=room, price=price, methods=methods, as_json=as_json, trust_remote_code=trust_remote_code
        )
        is False
    ):
        raise typer.Exit(4)


@verb
def rehearse(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    strict: Strict = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Run the whole path on the longest rows, to be killed and resumed, merged and asked; keep nothing."""
    from tunesmith.dialects.read import load
    from tunesmith.errors import MachineError

    resolved = load(recipe, overrides or [], strict=strict)
    from tunesmith.rehearse import rehearse as run

    if not as_json:
        print("\n".join(resolved.notes), end="\n" if resolved.notes else "")
    made = run(resolved, trust_remote_code=trust_remote_code, say=(lambda line: None) if as_json else print)
    if as_json:
        import json

        print(json.dumps({**made.as_json, "notes": resolved.notes}, indent=2, ensure_ascii=False))
    if not made.ok:
        raise MachineError("the rehearsal failed: the run would have, too", fix="mend what stands above")


@verb
def convert(
    file: Annotated[Path, typer.Argument(help="Another tool's YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings on top of the file's, in its words or ours.", show_default=False
        ),
    ] = None,
    strict: Strict = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Write the recipe alone, without what became of each key.")
    ] = False,
) -> None:
    """Write a recipe from another tool's file, and say what became of each of its keys."""
    from tunesmith.dialects.read import converted

    recipe, table = converted(file, overrides or [], strict=strict)
    print(recipe, end="")
    if not quiet:
        print("\n".join(table), file=sys.stderr)


@verb
def chat(
    source: Source,
    adapter: Annotated[
        list[str] | None, typer.Option(help="A further adapter, for /adapter NAME; give it again for more.")
    ] = None,
    base: Base = None,
    storage: Storage = "auto",
    system: System = None,
    system_turn: SystemTurn = None,
    template: Template = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Talk with a model; /adapter NAME changes the adapter, /help says what else."""
    from tunesmith import inference

    inference.chat(
        source,
        adapters=adapter or [],
        base=base,
        storage=storage,
        system=system,
        system_turn=system_turn,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        trust_remote_code=trust_remote_code,
    )


@verb
def generate(
    source: Source,
    prompt: Annotated[str | None, typer.Argument(help="One prompt; or give --file.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="Prompts: .jsonl, or text with one a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the answers go (JSONL); else they are printed.")] = None,
    adapter: OtherAdapter = None,
    base: Base = None,
    storage: Storage = "auto",
    system: System = None,
    system_turn: SystemTurn = None,
    template: Template = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    num_beams: NumBeams = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="For temperatures above 0.")] = 0,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Answer one prompt, or a file of prompts in batches."""
    if (prompt is None) == (file is None):
        from tunesmith.errors import RecipeError

        raise RecipeError("there is no prompt", where="command line", fix="give one prompt, or --file with prompts")
    from tunesmith import inference

    inference.generate(
        source,
        prompt=prompt,
        file=file,
        out=out,
        adapter=adapter,
        base=base,
        storage=storage,
        system=system,
        system_turn=system_turn,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_beams=num_beams,
        batch_size=batch_size,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )


@verb
def evaluate(
    source: Source,
    data: Annotated[str | None, typer.Option(help="Rows to score; else those that the run held out.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Read rows as this recipe does, where SOURCE is no run.", show_default=False)
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help=f"loss (the default), or of answers: {SCORERS}; give it again for more.", show_default=False),
    ] = None,
    turns: Annotated[
        str, typer.Option(metavar="last|all", help="Which answers of a conversation, each after the true turns.")
    ] = "last",
    gold: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Where the right answers stand; else each row's last answer.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many rows.")] = None,
    adapter: OtherAdapter = None,
    base: Base = None,
    storage: Storage = "auto",
    system_turn: SystemTurn = None,
    max_new_tokens: MaxNewTokens = 256,
    num_beams: NumBeams = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered together.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where each answer and its score goes (JSONL).")] = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Score a model or adapter on rows."""
    from tunesmith import inference

    inference.evaluate(
        source,
        data=data,
        recipe=recipe,
        score=score or "loss",
        turns=turns,
        gold=gold,
        limit=limit,
        adapter=adapter,
        base=base,
        storage=storage,
        system_turn=system_turn,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        batch_size=batch_size,
        as_json=as_json,
        out=out,
        trust_remote_code=trust_remote_code,
    )


@verb
def compare(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="A YAML study; none with --quick.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings on top of the study's.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small study of the demo's data and model, in minutes.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write the report and print nothing.")] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare ways of training on the same rows: quality, time, memory, with a verdict."""
    from tunesmith.errors import RecipeError

    if quick:
        from tunesmith.demo.study import compare_quickly

        first = [] if study is None else [str(study)]
        compare_quickly([*first, *(overrides or [])], quiet=quiet)
        return
    if study is None:
        raise RecipeError("there is no study", where="command line", fix="name a study's file, or give --quick")
    import shlex

    from tunesmith.compare.main import compare as run

    command = shlex.join(["tunesmith", "compare", str(study), *(overrides or [])])
    run(study, overrides or [], trust_remote_code=trust_remote_code, quiet=quiet, command=command)


@verb
def search(
    source: Annotated[
        Path, typer.Argument(metavar="SEARCH|RECIPE", help="A YAML search, or a recipe.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings on top of the search's or recipe's.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write the report and print nothing.")] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Find settings by training, within a budget counted in runs: of a recipe, the learning rate and LoRA+'s ratio."""
    import shlex

    from tunesmith.search.main import search as run

    command = shlex.join(["tunesmith", "search", str(source), *(overrides or [])])
    run(source, overrides or [], trust_remote_code=trust_remote_code, quiet=quiet, command=command)


@verb
def merge(
    source: Annotated[Path, typer.Argument(help="A run folder or an adapter folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="auto (as the base is stored), bfloat16, float16 or float32.")] = "auto",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write the base with the adapter worked in, as plain transformers weights, and prove it."""
    from tunesmith import inference

    inference.merge(source, out, base=base, dtype=dtype, trust_remote_code=trust_remote_code)


@verb
def methods() -> None:
    """List the adapter methods."""
    from rich.console import Console
    from rich.table import Table

    from tunesmith.adapters import METHODS

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("method", "what it does", "paper"):
        table.add_column(title)
    for name, module in METHODS.items():
        title, paper = method_header(module.__doc__ or "")
        table.add_row(name, title, paper)
    Console().print(table)


def method_header(docstring: str) -> tuple[str, str]:
    """(what it does in one line, its paper) from the header of a method's file."""
    lines = docstring.strip().splitlines() or [""]
    title = lines[0].partition(":")[2].strip() or lines[0]
    paper = next((line.removeprefix("Paper").strip() for line in lines if line.startswith("Paper")), "")
    return title.rstrip("."), paper.partition(";")[0]


@verb
def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also try to reach the hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at this machine and say what to expect of it."""
    from tunesmith.doctor import show

    raise typer.Exit(show(online=online, as_json=as_json))


@verb
def demo(
    folder: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("demo-run"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier demo left in the folder.")] = False,
) -> None:
    """Teach a small model to write SQL, offline, in minutes; before and after."""
    from tunesmith.demo.main import run

    run(folder, fresh=fresh)
