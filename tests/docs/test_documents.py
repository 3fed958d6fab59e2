"""What the documents show is run: commands, Python and recipes, on a tiny model; their links lead somewhere.

A block of commands says in a comment above it how it is run: `<!-- test: tiny -->`, or `<!-- not run: reason -->`.
Python and YAML run unless they say otherwise. The blocks of one document run in its order, in one folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import workshop

from tunesmith.compare import settings
from tunesmith.compare.grid import arms_of, resolve
from tunesmith.recipe import from_dict
from tunesmith.search import settings as searches

PAGES = [*(workshop.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((workshop.ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<kind>sh|python|yaml)\n(?P<text>.*?)^```$", re.S | re.M)
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.S | re.M)


@dataclass(frozen=True)
class Block:
    kind: str
    mark: str
    text: str

    @property
    def runs(self) -> bool:
        return self.mark == "test: tiny" if self.kind == "sh" else not self.mark.startswith("not run: ")


def blocks(text):
    return [Block(found["kind"], found["mark"] or "", found["text"]) for found in BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return workshop.make(tmp_path_factory.mktemp("documents"))


LONG = ("docs/compare.md", "docs/search.md")
"""Their blocks are whole studies and searches, a minute each; the tests of these folders run smaller ones."""


def named(pages, slow=()):
    ids = {page: str(page.relative_to(workshop.ROOT)) for page in pages}
    return [pytest.param(p, id=name, marks=pytest.mark.slow if name in slow else ()) for p, name in ids.items()]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_block_of_commands_says_how_it_is_run(page):
    text = page.read_text()
    assert len(BLOCK.findall(text)) == len(re.findall(r"^```(?:sh|python|yaml)$", text, re.M))
    for block in blocks(text):
        if block.kind == "sh":
            assert block.runs or block.mark.startswith("not run: "), block.text


RUNNING = [page for page in PAGES if any(block.runs for block in blocks(page.read_text()))]


@pytest.mark.parametrize("page", named(RUNNING, LONG))
def test_blocks_run(page, models, monkeypatch):
    monkeypatch.chdir(models)
    names = {"__name__": "document"}
    for block in blocks(page.read_text()):
        if not block.runs:
            continue
        if block.kind == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip():
                    workshop.run(line, models)
        elif block.kind == "python":
            exec(compile(block.text, str(page.name), "exec"), names)
        else:
            _load(block.text)
    for made in ("runs", "merged", "merged-again", "answers.jsonl"):
        path = models / made
        subprocess.run(["rm", "-rf", str(path)], check=True)


def _load(text):
    """A study, a search, a whole recipe, or sections of one beside what every recipe needs."""
    from tunesmith.notation import read

    lined = read(text, "document")
    assert not lined.errors
    if "arms" in lined.value:
        study = settings.from_dict(lined.value)
        assert [resolve(study, arm).plain for arm in arms_of(study)]
        return
    if "space" in lined.value:
        assert searches.from_dict(lined.value).settings.space
        return
    values = {"model": {"name": workshop.MODELS[0]}, "data": {"train": "recipes/data/marketing_mail.jsonl"}}
    assert from_dict(values | lined.value).plain


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page):
    text = page.read_text()
    prose = CODE.sub("", text)
    for link in LINK.findall(prose):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor:
            assert anchor in {_anchor(line) for line in file.read_text().splitlines() if line.startswith("#")}, link


def _anchor(heading):
    words = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def test_made_pages_are_up_to_date():
    script = workshop.ROOT / "scripts" / "make_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_scorer():
    from tunesmith import cli
    from tunesmith.score import SCORERS

    assert cli.SCORERS.split(", ") == list(SCORERS)


def test_no_document_names_a_registry_or_a_path_of_a_machine():
    for page in PAGES:
        assert not re.search(r"pypi|download\.pytorch|/home/|/root/|/tmp/", page.read_text(), re.I), page
