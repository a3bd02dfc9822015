"""The sandbox that prompts, topics and conditions run in: data in, text or truth out; never Python, never for long.

Jinja2's own sandbox keeps a template away from Python; it does not bound time and memory. So this dialect is smaller:
no calls, no assignments, no macros or includes, a short list of filters, `*` for numbers only, two nested loops at most
of at most 1000 rounds. A missing field is an error that names it, unless it is tested with `is defined`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, UndefinedError, nodes
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from llmasos_edge.config.section import suggestion
from llmasos_edge.errors import BadRequest

OUTPUT_LIMIT = 64 * 1024
LOOP_LIMIT = 1000
LOOP_DEPTH = 2

Variables = Mapping[str, object]

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Name, nodes.Const,
    nodes.List, nodes.Tuple, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.CondExpr, nodes.Filter, nodes.Test,
    nodes.Keyword, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add,
    nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat,
)  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list",
    "lower", "max", "min", "reverse", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper",
)  # fmt: skip
_OFFERED = (*_FILTERS, "join", "round", "tojson")


class _MissingField(UndefinedError):
    """A name that the data lacks: what was asked, and of which object (`missing` for a variable)."""

    def __init__(self, owner: object, name: object) -> None:
        super().__init__(f"{name} is missing")
        self.owner = owner
        self.name = name


class _Missing(StrictUndefined):
    """An undefined value whose error keeps the object that lacks it."""

    def __init__(self, hint: str | None = None, obj: Any = missing, name: Any = None, _kind: object = None) -> None:
        super().__init__(hint, obj, name, lambda _message: _MissingField(obj, name))  # type: ignore[arg-type]  # called


class _Sandbox(ImmutableSandboxedEnvironment):
    """Fields are data alone: `payload.items` is the field `items`, never a method of dict."""

    intercepted_binops = frozenset({"*", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute) if isinstance(obj, _DATA) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(obj, _DATA):
            return super().getitem(obj, argument)
        try:
            return obj[argument]  # type: ignore[index]  # what is no container raises the TypeError below
        except (LookupError, TypeError):
            return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, (int, float, _Missing)) or not isinstance(right, (int, float, _Missing)):
            raise TemplateError(f"{operator} is for numbers only")
        return super().call_binop(context, operator, left, right)


_DATA = (dict, list, tuple, str, int, float, type(None))


def _at_most(values: Iterable[object]) -> Iterator[object]:
    for count, value in enumerate(values):
        if count >= LOOP_LIMIT:
            raise TemplateError(f"a loop of more than {LOOP_LIMIT} rounds")
        yield value


def _joined(values: Iterable[object], separator: str = "") -> str:
    parts = [str(it) for it in values]
    if sum(map(len, parts)) + len(separator) * len(parts) > OUTPUT_LIMIT:
        raise TemplateError(f"join makes more than {OUTPUT_LIMIT} characters")
    return separator.join(parts)


def _rounded(value: object, precision: int = 0) -> float:
    return round(float(str(value)), precision)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sandbox() -> _Sandbox:
    environment = _Sandbox(undefined=_Missing, autoescape=False, keep_trailing_newline=False, cache_size=0)
    environment.filters = {it: FILTERS[it] for it in _FILTERS}
    environment.filters |= {"join": _joined, "round": _rounded, "tojson": _json, "at_most": _at_most}
    return environment


_ENVIRONMENT = _sandbox()


class Template:
    """A text with `{{ fields }}`, compiled once. ValueError where it is no template of this dialect."""

    def __init__(self, source: str, variables: Iterable[str]) -> None:
        try:
            tree = _ENVIRONMENT.parse(source)
            _check(tree, variables)
            self.constant = not find_undeclared_variables(tree)  # it renders the same text, whatever the data
            self._compiled = _ENVIRONMENT.from_string(tree)
        except _UNCOMPILED as error:
            raise ValueError(f"no template: {_reason(error)}") from None

    def render(self, variables: Variables) -> str:
        """The text for this data. BadRequest names what is missing, or what goes beyond a bound."""
        parts: list[str] = []
        length = 0
        try:
            for part in self._compiled.generate(variables):
                length += len(part)
                if length > OUTPUT_LIMIT:
                    raise BadRequest(f"the rendered text is longer than {OUTPUT_LIMIT} characters")
                parts.append(part)
        except _FAULTS as error:
            raise BadRequest(_explained(error, variables)) from None
        return "".join(parts)


class Condition:
    """An expression that holds for a message or does not. ValueError where it is no expression of this dialect."""

    def __init__(self, source: str, variables: Iterable[str]) -> None:
        try:
            expression = Parser(_ENVIRONMENT, source, state="variable").parse_expression()
            tree = nodes.Template([nodes.Output([expression])], lineno=1)
            tree.set_environment(_ENVIRONMENT)
            _check(tree, variables)
            self._holds = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except _UNCOMPILED as error:
            raise ValueError(f"no condition: {_reason(error)}") from None

    def holds(self, variables: Variables) -> bool:
        """Whether it is true of this data. BadRequest names what is missing."""
        try:
            return bool(self._holds(**variables))
        except _FAULTS as error:
            raise BadRequest(_explained(error, variables)) from None


_UNCOMPILED = (TemplateError, SyntaxError, RecursionError, MemoryError)  # the last three: nested too deeply
_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)


def _check(tree: nodes.Template, variables: Iterable[str]) -> None:
    """Refuse what the dialect does not have, and bound every loop."""
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.Call):
            raise TemplateError(f"line {node.lineno}: calls are not allowed: use a filter, for example payload|items")
        if not isinstance(node, (*_NODES, nodes.Helper)):
            raise TemplateError(f"line {node.lineno}: {type(node).__name__.lower()} is not allowed here")
        if isinstance(node, nodes.Filter) and node.name not in _OFFERED:
            raise TemplateError(f'line {node.lineno}: no filter "{node.name}"{suggestion(node.name, _OFFERED)}')
    _bound_loops(tree, 0)
    known = set(variables)
    for name in sorted(find_undeclared_variables(tree) - known):
        raise TemplateError(f'there is no "{name}" here{suggestion(name, known)}')


def _bound_loops(node: nodes.Node, depth: int) -> None:
    if isinstance(node, nodes.For):
        depth += 1
        if depth > LOOP_DEPTH or node.recursive:
            raise TemplateError(f"line {node.lineno}: more than {LOOP_DEPTH} loops within each other")
        node.iter = nodes.Filter(node.iter, "at_most", [], [], None, None, lineno=node.lineno)
    for child in node.iter_child_nodes():
        _bound_loops(child, depth)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TemplateError) else "nested too deeply"


def _explained(error: Exception, variables: Variables) -> str:
    if not isinstance(error, _MissingField):
        return f"the template can't be rendered: {error}"
    if error.owner is missing:
        return f"{error.name} is missing"
    owner = _where(error.owner, variables)
    return f"{owner}[{error.name}] is missing" if isinstance(error.name, int) else f"{owner}.{error.name} is missing"


def _where(owner: object, variables: Variables) -> str:
    """The path to an object of the data, found by identity: errors are rare, so nothing is tracked before."""
    waiting: list[tuple[str, object]] = list(variables.items())
    while waiting:
        path, value = waiting.pop(0)
        if value is owner:
            return path
        if isinstance(value, dict):
            waiting.extend((f"{path}.{key}", item) for key, item in value.items())
        elif isinstance(value, list):
            waiting.extend((f"{path}[{index}]", item) for index, item in enumerate(value))
    return "the value"
