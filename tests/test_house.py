"""The walls of the house: who may import whom (docs/decisions/0001), and what a file may look like."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tunesmith"
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"cli_options"},
    {"guard"},
    {"demo", "__init__"},
    {"search"},
    {"compare"},
    {"one_call", "rehearse"},
    {"run", "inference"},
    {"plan"},
    {"questions", "assemble", "held_out"},
    {"reward_model"},
    {"chat", "evaluate", "answer_file", "classifier"},
    {"session"},
    {"dialects"},
    {"recipe"},
    {"recipe_paths", "recipe_rules"},
    {"train"},
    {"objectives"},
    {"score"},
    {"models"},
    {"adapters"},
    {"data"},
    {"quant"},
    {"kernels"},
    {"doctor", "progress", "reporters"},
    {"record"},
    {"card", "plot", "strict"},
    {"atomic", "heap", "machine", "notation", "pages"},
    {"events", "settings", "ghost"},
    {"errors"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The folder or file right below the package that `path` belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tunesmith":
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tunesmith.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = unit(path)
    assert own in RANK, f"{own} has no place in LAYERS: give it one, and a line in docs/decisions/0001"
    above = {name for name in imported(path) - {own} if RANK.get(name, -1) <= RANK[own]}
    assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}, which do not stand below {own}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_thing(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), "a file says what it is for"
    assert not set(path.relative_to(PACKAGE).parts) & {"utils.py", "helpers.py", "common.py", "core.py"}


ERRORS = {"RecipeError", "DataError", "ModelError", "CheckpointError", "MachineError", "AdapterError"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_error_says_what_to_do_or_what_was_expected(path: Path) -> None:
    bare = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        named = {keyword.arg for keyword in node.exc.keywords}  # None: handed on as **more
        if getattr(node.exc.func, "id", "") in ERRORS and not named & {"fix", "expected", None}:
            bare.append(node.lineno)
    assert not bare, f"{path.relative_to(PACKAGE)}, lines {bare}"


def test_every_method_has_its_header() -> None:
    from tunesmith.adapters import METHODS

    for name, module in METHODS.items():
        header = module.__doc__ or ""
        for word in ("Paper", "Maths", "Shapes", "Init", "Merge", "arXiv:"):
            assert word in header, f"{name} does not say its {word}"
