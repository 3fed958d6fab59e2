"""Arguments and options that several verbs of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A YAML recipe, another tool's YAML file, or a run folder.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings on top of the recipe's.", show_default=False),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A run folder, an adapter folder, a model folder, or a hub id.", show_default=False
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse another tool's keys that have no effect here.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; above, it is drawn.")]
NumBeams = Annotated[int, typer.Option(min=1, help="Above 1: the most probable whole answer, by beam search.")]
Base = Annotated[
    str | None, typer.Option(help="The base model, where the adapter's own note of it is not it.", show_default=False)
]
Storage = Annotated[
    str, typer.Option(help="How the base is held: auto (as when trained, or as its files are), plain, nf4, …, int8.")
]
OtherAdapter = Annotated[
    str | None, typer.Option(help="An adapter folder to put on SOURCE, or none: the base alone.", show_default=False)
]
SCORERS = "exact, f1, contains, number, label, sql, tool_call"
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat template for a model without one: a name (chatml, plain …), a file, Jinja.", show_default=False
    ),
]
System = Annotated[str | None, typer.Option(help="A system turn in front.", show_default=False)]


def _one_of(text: str) -> str:
    """Older releases of typer do not know Literal."""
    if text not in ("keep", "into-user"):
        raise typer.BadParameter(f"{text} is neither keep nor into-user")
    return text


SystemTurn = Annotated[
    Literal["keep", "into-user"] | None,
    typer.Option(
        parser=_one_of,
        metavar="keep|into-user",
        help="into-user: a system turn goes in front of the user's, for a template without a system role.",
    ),
]
