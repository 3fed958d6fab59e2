"""Jinja in a sandbox that refuses what would be too large before it is made, and ends what does not end.

What could grow passes through here: operators, joined texts, slices, filters, methods of texts, and what is written.
All else is as Jinja does it: a template within the limits writes what it writes without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from tunesmith.data.templating import sizes
from tunesmith.data.templating.limits import ITEM, MOST_BITS, MOST_LETTERS, limits

SMALL = 1024
"""Letters up to which a text is not counted."""

_TEXT = (str, bytes)
_SIZED = (str, bytes, list, tuple)

# No template can write these names.
_STEP, _SLICE, CONCAT = "(step)", "(slice)", "(concat)"


class Guarded(ImmutableSandboxedEnvironment):
    """`guard` is called once all filters are in place."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, finalize: Callable[[Any], Any] | None = None, **options: Any) -> None:
        def written(value: Any) -> Any:
            value = value if finalize is None else finalize(value)
            if not isinstance(value, str):
                limits().allow(sizes.letters(value))
            return value

        super().__init__(finalize=written, **options)

    def guard(self) -> None:
        self.filters = {name: _measured(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {_STEP: _step, _SLICE: _slice, CONCAT: concat}
        lipsum: Any = self.globals.get("lipsum")
        if lipsum is not None:
            self.globals["lipsum"] = _measured_call(lipsum, sizes.lorem)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewritten().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What a template, a macro or a block wrote."""
        limit, kept, count = limits(), [], 0
        for piece in pieces:
            kept.append(piece)
            count += len(piece)
            if count > MOST_LETTERS and count > limit.most:
                limit.allow(count, "writes as many as")
        limit.allow(count)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is str and type(right) is str and len(left) + len(right) <= SMALL:
                return left + right  # nearly all of a chat template
            if isinstance(left, _SIZED) and isinstance(right, _SIZED):
                limits().allow((len(left) + len(right)) * (1 if isinstance(left, _TEXT) else ITEM))
        elif operator == "%":
            if isinstance(left, _TEXT):
                limits().allow(sizes.percent(left, right))
        else:
            _allow_product(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", None)
        if isinstance(owner, _TEXT) and isinstance(name, str) and name in sizes.OF_METHODS:
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
            limits().allow(sizes.OF_METHODS[name](owner, *args, **kwargs))
        elif isinstance(owner, int) and name == "to_bytes":
            limits().allow(max((value for value in (*args, *kwargs.values()) if isinstance(value, int)), default=0))
        return _counted(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        plain = super().wrap_str_format(value)
        if plain is None:
            return None
        text = value.__self__
        formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)

        @wraps(plain)
        def write(*args: Any, **kwargs: Any) -> str:
            if value.__name__ != "format_map":
                return type(text)(formatter.vformat(text, args, kwargs))
            if kwargs or len(args) != 1:
                return plain(*args, **kwargs)  # says what is wrong
            return type(text)(formatter.vformat(text, (), args[0]))

        return write


class _Rewritten(NodeTransformer):
    """A look at the clock in all that can be repeated, and filters for what Jinja does without asking anyone."""

    def _repeated(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.Filter(nodes.Const(None), _STEP, [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step))
        return node.set_lineno(node.lineno)

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _repeated

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), CONCAT, [], [], None, None).set_lineno(node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)]
        return nodes.Filter(node.node, _SLICE, ends, [], None, None).set_lineno(node.lineno)


@pass_context
def _step(context: Context, value: Any) -> Any:
    limits().step()
    return value


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return _counted(value[start:stop:step])


@pass_context
def concat(context: Context, parts: list[Any]) -> str:
    limits().allow(sizes.joined(parts))
    return markup_join(parts) if context.eval_ctx.autoescape else str_join(parts)


def _allow_product(operator: str, left: Any, right: Any) -> None:
    counts = [value for value in (left, right) if isinstance(value, int)]
    if len(counts) == 2:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            raise OverflowError(f"{_told(left)} {operator} {_told(right)} is too large")
    elif operator == "*" and counts:
        value = right if isinstance(left, int) else left
        if isinstance(value, _SIZED) and value:
            length = len(value) * counts[0] * (1 if isinstance(value, _TEXT) else ITEM)
            limits().allow(max(0, length), f"repeats {len(value):,} letters or items {counts[0]:,} times, that is")


def _told(number: int) -> str:
    return str(number) if number.bit_length() < SMALL else f"a number of {number.bit_length():,} bits"


def _counted(value: Any) -> Any:
    """`value` itself, once it is counted to what was made."""
    if isinstance(value, _TEXT):
        if len(value) > SMALL:
            limits().allow(len(value))
    elif isinstance(value, (list, tuple, dict)):
        if len(value) * ITEM > SMALL:
            limits().allow(len(value) * ITEM)
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError(f"{_told(value)} is too large")
    return value


def _measured(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, asked how long it would write; a filter of a context is never computed while it is compiled."""
    length = sizes.OF_FILTERS.get(name)
    asks_for = getattr(getattr(filter_, "jinja_pass_arg", None), "name", None)

    @wraps(filter_)
    def measured(context: Context, value: Any, *values: Any, **options: Any) -> Any:
        if name == "join":
            value = _allow_join(context, value, *values, **options)
        elif name == "sum":
            value = _allow_sum(context, value, *values, **options)
        elif length is not None:
            limits().allow(length(value, *values, **options))
        if asks_for is None:
            return _counted(filter_(value, *values, **options))
        own = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[asks_for]
        return _counted(filter_(own, value, *values, **options))

    return pass_context(measured)


def _measured_call(function: Callable[..., Any], length: Callable[..., int]) -> Callable[..., Any]:
    @wraps(function)
    def measured(*values: Any, **options: Any) -> Any:
        limits().allow(length(*values, **options))
        return function(*values, **options)

    return measured


def _allow_join(context: Context, parts: Any, d: Any = "", attribute: Any = None) -> Any:
    """The parts; those that can be walked over but once are in a list."""
    parts = parts if isinstance(parts, str) else list(parts)
    limits().allow(sizes.joined(_said(context, parts, attribute), d))
    return parts


def _allow_sum(context: Context, items: Any, attribute: Any = None, start: Any = 0) -> list[Any]:
    """Lists become one."""
    items = list(items)
    limits().allow(
        sum(len(item) for item in _said(context, items, attribute) if isinstance(item, (list, tuple))) * ITEM
    )
    return items


def _said(context: Context, items: Any, attribute: Any) -> Any:
    return items if attribute is None else map(make_attrgetter(context.environment, attribute), items)


class _Formatter(SandboxedFormatter):
    """Widths may be of any size, and may come from the values themselves."""

    def format_field(self, value: Any, format_spec: str) -> str:
        widths = sum(map(int, re.findall(r"\d+", format_spec)))
        limits().allow(sizes.letters(value) + len(format_spec) + widths)
        return str(super().format_field(value, format_spec))


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    pass
