"""A format written by the user: Jinja over a row's own columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError

from tunesmith.data.problems import listed, shown
from tunesmith.data.rows.messages import Unreadable
from tunesmith.data.settings import TemplateFormat
from tunesmith.data.templating.limits import TEMPLATE_ERRORS, limited
from tunesmith.data.templating.sandbox import Unwritable, column_environment
from tunesmith.data.types import Conversation, Document, Labelled, Message, Origin, Preference, Prompt, Row, Text
from tunesmith.errors import DataError

RawColumns = Mapping[str, Any]
_BEFORE = {"system": "system", "prompt": "user"}
_ANSWERS = dict.fromkeys(("answer", "chosen", "rejected"), "assistant")
_CLASSES = {"text": "text", "label": "label"}


def template(settings: TemplateFormat) -> Callable[[RawColumns, Origin], Row]:
    """A format written by the user: Jinja over the row's columns."""
    turns_before, answers = _written(settings, _BEFORE), _written(settings, _ANSWERS)
    classes = _written(settings, _CLASSES)

    def read(row: RawColumns, origin: Origin) -> Row:
        if settings.label is not None:
            made = {name: turn.content for name, turn in classes(row).items()}
            labels = tuple(dict.fromkeys(line.strip() for line in made["label"].splitlines() if line.strip()))
            if "text" in made:
                return Labelled(Document(made["text"], origin), labels)
            return Labelled(Conversation(tuple(turns_before(row).values()), origin), labels)
        before, said = tuple(turns_before(row).values()), answers(row)
        if not said:
            return Prompt(before, before[-1].content, dict(row), origin)
        if "answer" in said:
            return Conversation((*before, said["answer"]), origin)
        return Preference(before, (said["chosen"],), (said["rejected"],), origin)

    return read


def columns_named(settings: TemplateFormat) -> frozenset[str]:
    """The columns that its parts name, in conditions, loops and filters too."""
    environment, names = column_environment(), set[str]()
    for part in (*_BEFORE, *_ANSWERS, *_CLASSES):
        tree = environment.parse(getattr(settings, part) or "")
        names |= meta.find_undeclared_variables(tree)
        names |= {node.name for node in tree.find_all(nodes.Name) if node.name in environment.globals}
    return frozenset(names)


def text_template(settings: TemplateFormat) -> Callable[[RawColumns, Origin], Text]:
    """What such a format has a classifier read, without its label."""
    text, turns_before = _written(settings, {"text": "text"}), _written(settings, _BEFORE)

    def read(row: RawColumns, origin: Origin) -> Text:
        if settings.text is not None:
            return Document(text(row)["text"].content, origin)
        return Conversation(tuple(turns_before(row).values()), origin)

    return read


def prompt_template(settings: TemplateFormat) -> Callable[[RawColumns], tuple[Message, ...]]:
    """What such a format writes before the answer."""
    turns_before = _written(settings, _BEFORE)
    return lambda row: tuple(turns_before(row).values())


def _written(settings: TemplateFormat, roles: Mapping[str, str]) -> Callable[[RawColumns], dict[str, Message]]:
    """From a row to those turns of `settings` that are given, in the order of `roles`; an empty system turn is none."""
    sources = {name: getattr(settings, name) for name in roles}
    compiled = {name: _compile(name, source) for name, source in sources.items() if source is not None}

    def write(row: RawColumns) -> dict[str, Message]:
        turns = {name: Message(roles[name], _fill(part, name, row)) for name, part in compiled.items()}
        return {name: turn for name, turn in turns.items() if turn.content or name != "system"}

    return write


def _compile(name: str, source: str) -> Template:
    try:
        return column_environment().from_string(source)
    except TemplateSyntaxError as error:
        raise DataError(
            f"not a valid Jinja template: {error.message}",
            where=f"data.format.{name}, line {error.lineno}",
            found=shown(source),
            fix="columns are written {{ name }}",
        ) from None


def _fill(part: Template, name: str, row: RawColumns) -> str:
    try:
        with limited(*row.values()):
            return part.render(row)
    except UndefinedError as error:
        raise Unreadable(f"data.format.{name}: {error.message}", found=f"columns {listed(row)}") from None
    except Unwritable as error:
        raise Unreadable(f"data.format.{name}: {error}", found=shown(dict(row))) from None
    except SecurityError as error:
        raise Unreadable(f"data.format.{name} does what a template may not: {error}") from None
    except TEMPLATE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise Unreadable(f"data.format.{name} cannot be filled: {reason}", found=shown(dict(row))) from None


def makes(format: TemplateFormat) -> type[Row]:
    if format.chosen is not None:
        return Preference
    if format.label is not None:
        return Labelled
    return Prompt if format.answer is None else Conversation
