"""The tests of the sandbox: what a template may do, what it may not, and how missing data is named."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.apps.template import LOOP_LIMIT, OUTPUT_LIMIT, Condition, Template
from llmasos_edge.errors import BadRequest

NAMES = ("topic", "payload", "input")


def render(source: str, payload: object = None) -> str:
    """Render a template for a message from the kitchen."""
    return Template(source, NAMES).render({"topic": ["zigbee2mqtt", "kitchen", "smoke"], "payload": payload})


@pytest.mark.parametrize(
    ("source", "payload", "text"),
    [
        ("Smoke in the {{ topic[1] }}.", None, "Smoke in the kitchen."),
        ("{% if payload.t is defined %}, {{ payload.t }} C{% endif %}", {"t": 61}, ", 61 C"),
        ("{% if payload.t is defined %}, {{ payload.t }} C{% endif %}", {}, ""),
        ("{{ payload.items }}|{{ payload.update }}", {"items": 1, "update": 2}, "1|2"),
        ("{{ payload['a']['b'] }}", {"a": {"b": "x"}}, "x"),
        ("{% for it in payload %}{{ loop.index }}:{{ it.t }} {% endfor %}", [{"t": 1}, {"t": 2}], "1:1 2:2 "),
        ("{% for k, v in payload|dictsort %}{{ k }}={{ v }};{% endfor %}", {"b": 2, "a": 1}, "a=1;b=2;"),
        ("{{ payload.t * 9 / 5 + 32 }}", {"t": 10}, "50.0"),
        ("{{ payload.t|round(1) }} {{ payload.n|default('none') }}", {"t": 21.27}, "21.3 none"),
        ("{{ payload|tojson }}", {"a": "<ü>"}, '{"a": "<ü>"}'),
        ("{{ payload|join(', ') }}", ["a", 1], "a, 1"),
        ("{{ payload }}", "<b>", "<b>"),
    ],
)
def test_rendering(source: str, payload: object, text: str) -> None:
    """Fields, conditions, loops and filters give what they say; fields are never methods; nothing is escaped."""
    assert render(source, payload) == text


@pytest.mark.parametrize(
    ("source", "payload", "says"),
    [
        ("{{ payload.temperature }}", {"smoke": True}, "payload.temperature is missing"),
        ("{{ payload.a.b.c }}", {"a": {"b": {}}}, "payload.a.b.c is missing"),
        ("{% for it in payload %}{{ it.t }}{% endfor %}", [{"t": 1}, {}], "payload[1].t is missing"),
        ("{{ topic[7] }}", None, "topic[7] is missing"),
        ("{{ payload.x + 1 }}", {}, "payload.x is missing"),
        ("{{ payload.x * 2 }}", {}, "payload.x is missing"),
        ("{{ payload.x|upper }}", {}, "payload.x is missing"),
        ("{{ payload.x|round }}", {}, "payload.x is missing"),
        ("{{ payload.upper }}", "text", "payload.upper is missing"),
        ("{{ payload.keys }}", {}, "payload.keys is missing"),
        ("{{ input }}", None, "input is missing"),
        ("{{ payload / 0 }}", 1, "can't be rendered"),
        ("{{ payload + 'x' }}", 1, "can't be rendered"),
        ("{{ payload * 3 }}", "x", "numbers only"),
        ("{{ payload % 3 }}", "%d", "numbers only"),
    ],
)
def test_what_is_missing_or_wrong_is_named(source: str, payload: object, says: str) -> None:
    """A missing field is named with its whole path, and a wrong one makes a clear error."""
    with pytest.raises(BadRequest) as caught:
        render(source, payload)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ payload.__class__.__mro__() }}",
        "{{ ''.join(payload) }}",
        "{{ range(10) }}",
        "{{ lipsum(5) }}",
        "{{ 2 ** 100000000 }}",
        "{% set x = 1 %}",
        "{% macro m() %}{% endmacro %}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
        "{% filter upper %}x{% endfilter %}",
        "{{ 'x'|center(1000000000) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ payload|map('upper') }}",
        "{{ paylod }}",
        "{{ payload",
        "{% for a in payload %}{% for b in a %}{% for c in b %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in payload recursive %}{% endfor %}",
        "{{ payload is wonderful }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 200 + "{% endif %}" * 200,
    ],
)
def test_what_the_dialect_does_not_have(source: str) -> None:
    """What could reach Python, or cost without bound, is refused when the app is read."""
    with pytest.raises(ValueError, match="no template"):
        Template(source, NAMES)


def test_a_call_is_met_with_what_to_write_instead() -> None:
    """People who know Jinja2 are told how this dialect does it."""
    with pytest.raises(ValueError, match=r"use a filter, for example payload\|items"):
        Template("{{ payload.items() }}", NAMES)


def test_suggestions() -> None:
    """A misspelt variable or filter is met with the one that was meant."""
    with pytest.raises(ValueError, match='did you mean "payload"'):
        Template("{{ paylod.t }}", NAMES)
    with pytest.raises(ValueError, match='did you mean "upper"'):
        Template("{{ payload|uper }}", NAMES)


@pytest.mark.parametrize(
    ("source", "payload"),
    [
        ("{{ payload.__class__ }}", {}),
        ("{{ payload['__class__'] }}", "x"),
        ("{% for a in payload %}{{ loop._iterator }}{% endfor %}", [1]),
    ],
)
def test_no_way_to_python(source: str, payload: object) -> None:
    """What begins with an underscore is no field."""
    with pytest.raises(BadRequest):
        render(source, payload)


def test_bounds() -> None:
    """Length and rounds are bounded, and the bound is soon met."""
    started = time.monotonic()
    with pytest.raises(BadRequest, match=f"longer than {OUTPUT_LIMIT}"):
        render("{% for a in payload %}{{ topic|join('x' ~ payload|string) }}{% endfor %}", list(range(LOOP_LIMIT)))
    with pytest.raises(BadRequest, match=f"more than {LOOP_LIMIT} rounds"):
        render("{% for a in payload %}{% endfor %}", list(range(LOOP_LIMIT + 1)))
    with pytest.raises(BadRequest, match="join makes more"):
        render("{{ payload.a|join(payload.b) }}", {"a": [1] * 30_000, "b": "x" * 30_000})
    render("{% for a in payload %}{% for b in payload %}{% endfor %}{% endfor %}", list(range(LOOP_LIMIT)))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("source", "payload", "holds"),
    [
        ("payload.smoke", {"smoke": True}, True),
        ("payload.smoke", {"smoke": False}, False),
        ("payload.t is defined and payload.t > 40", {}, False),
        ("payload.t is defined and payload.t > 40", {"t": 41}, True),
        ("payload == 'ON' and topic[1] == 'kitchen'", "ON", True),
        ("'kit' in topic[1]", None, True),
    ],
)
def test_conditions(source: str, payload: object, holds: bool) -> None:
    """A condition is an expression over the message."""
    condition = Condition(source, NAMES)
    assert condition.holds({"topic": ["zigbee2mqtt", "kitchen"], "payload": payload}) is holds


@pytest.mark.parametrize("payload", [{}, "ON", 7, None, [1]])
def test_a_condition_on_a_missing_field_is_an_error(payload: object) -> None:
    """A missing field is not quietly false."""
    with pytest.raises(BadRequest, match=r"payload\.smoke is missing"):
        Condition("payload.smoke", NAMES).holds({"topic": [], "payload": payload})


@pytest.mark.parametrize("source", ["payload.smoke)", "payload smoke", "{{ payload }}", "open('x')", "x", "", "a = 1"])
def test_what_is_no_condition(source: str) -> None:
    """What is no expression over the message is refused when the app is read."""
    with pytest.raises(ValueError, match="no condition"):
        Condition(source, NAMES)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_payload_renders_or_is_a_bad_request(payload: object) -> None:
    """No message makes a template raise anything else."""
    template = Template("{{ payload.a.b }}{% for x in payload %}{{ x * 2 + payload[0]|round }}{% endfor %}", NAMES)
    with contextlib.suppress(BadRequest):
        template.render({"topic": [], "payload": payload})
