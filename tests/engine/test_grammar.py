"""Tests of answer formats: every grammar is walked by a sampler at random, and what it lets through is checked."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos_edge.engine.grammar import grammar_of, parse_answer
from llmasos_edge.engine.llama import L, LlamaModel
from llmasos_edge.engine.protocol import Sampling
from llmasos_edge.engine.sampling import Sampler
from llmasos_edge.errors import BadRequest

PRINTABLE = [chr(code) for code in range(32, 127)] + ["é", "\n", "\t"]
Form = str | dict[str, Any]


class Walk:
    """A sampler's grammar, led through single characters."""

    def __init__(self, model: LlamaModel, form: Form) -> None:
        self._model = model
        self._sampler = Sampler(model, Sampling(temperature=0.0), grammar_of(form))
        (self._end,) = model.tokenize("<|im_end|>", special=True)

    def allows(self, token: int) -> bool:
        return self._sampler._allows(token)

    @property
    def complete(self) -> bool:
        return self.allows(self._end)

    def take(self, text: str) -> bool:
        """Whether the grammar lets all of `text` through from here."""
        for token in self._model.tokenize(text, special=False):
            if not self.allows(token):
                return False
            L.llama_sampler_accept(self._sampler._rules, token)
        return True

    def close(self) -> None:
        self._sampler.close()


def accepts(model: LlamaModel, form: Form, text: str) -> bool:
    walk = Walk(model, form)
    accepted = walk.take(text) and walk.complete
    walk.close()
    return accepted


def wander(model: LlamaModel, form: Form, seed: int, steps: int = 400) -> str | None:
    """A random answer of the grammar; None if it did not end. Never a dead end."""
    walk, choice, text = Walk(model, form), random.Random(seed), ""
    tokens = {character: model.tokenize(character, special=False)[0] for character in PRINTABLE}
    for _ in range(steps):
        options = [character for character, token in tokens.items() if walk.allows(token)]
        if walk.complete and (not options or choice.random() < 0.7):
            break
        assert options, f"a dead end after {text!r}"
        closing = [character for character in options if character in '"}]']
        picked = choice.choice(closing if closing and choice.random() < 0.5 else options)
        assert walk.take(picked)
        text += picked
    else:
        walk.close()
        return None
    walk.close()
    return text


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]}
NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("json", '{"a": [1, -2.5e3, "x\\n\\u00e9", null, true, {}]}', "[1]"),
        ("json", '{\n  "a": 1\n}', '{"a": 01}'),
        ({"enum": ["ü", 'say "hi"', "back\\slash", "😀", None, 5]}, '"say \\"hi\\""', '"other"'),
        ({"enum": ["😀"]}, '"😀"', '"x"'),
        ({"const": "a\nb"}, '"a\\nb"', '"a\nb"'),
        (OBJECT, '{"a": "x", "b": 5}', '{"a": "x"}'),
        (OBJECT, '{"b":5}', "{}"),
        ({"type": "string"}, '"line\\nline"', '"line\nline"'),
        ({"type": "array", "items": OBJECT, "minItems": 1, "maxItems": 2}, '[{"b": 1}, {"b": 2}]', "[]"),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, '[1, "a"]', "[1]"),
        ({"type": ["string", "null"]}, "null", "5"),
        ({"anyOf": [{"type": "boolean"}, OBJECT]}, "true", "1"),
        (
            {"allOf": [OBJECT, {"properties": {"c": {"type": "null"}}, "required": ["c"]}]},
            '{"b":1,"c":null}',
            '{"b":1}',
        ),
        ({"$defs": {"node": NODE}, "$ref": "#/$defs/node"}, '{"next": {"next": null}}', '{"next": 5}'),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"x": 1, "y": 2}', '{"x": "a"}'),
        ({"required": ["a"]}, '{"a": [true]}', "{}"),
        ({"properties": {'a"b': True}, "required": ['a"b']}, '{"a\\"b": 1}', "{}"),
        ({"items": {}}, '[1, "a"]', "5"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, '"abc"', '"abcd"'),
        ({"type": "string", "format": "date"}, '"2026-01-31"', '"2026-13-01"'),
    ],
)
def test_formats_take_what_fits_and_nothing_else(model: LlamaModel, form: Form, right: str, wrong: str) -> None:
    """Each kind of schema becomes a grammar that lets a fitting answer through, and stops another one."""
    assert accepts(model, form, right)
    assert parse_answer(right, form)[1] is None
    assert not accepts(model, form, wrong)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^a\.b$", "a.b", "axb"),
        (r"^\d{2,3}-\w+$", "123-ab_9", "1-a"),
        (r"^[\w.-]+@[a-z]+\.(com|org)$", "a.b-c@x.org", "a@x.net"),
        (r"^[ -~]*$", 'say "hi" \\ bye', "é"),
        (r'^"\\$', '"\\', "a"),
        (r"^[^a-z]{2}$", 'É"', "ab"),
        (r"^(?:ab)+?c?$", "ababc", "abab!"),
        (r"^.\n$", "x\n", "xx"),
        (r"b+", "abba", "aaa"),
        (r"^\x41\u00e9$", "Aé", "A"),
        (r"^$", "", "a"),
        (r"^[]a]-[a\]b-]$", "]--", "b-c"),
    ],
)
def test_patterns_hold_for_the_value_not_for_its_json(model: LlamaModel, pattern: str, right: str, wrong: str) -> None:
    """Escapes, classes and quantifiers; quotes and line ends of the value are escaped in the answer."""
    form = {"type": "string", "pattern": pattern}
    assert re.search(pattern, right)
    assert accepts(model, form, json.dumps(right, ensure_ascii=False))
    assert not accepts(model, form, json.dumps(wrong, ensure_ascii=False))


@pytest.mark.parametrize("pattern", ["^[ -~]*$", "^.*$", "a", "^[^x]*$", r"^\W*a\W*b\W*$", r"^[\x00-\x7f]*$"])
@pytest.mark.parametrize("text", ['"a"b"', '"a\nb"', '"a\\b\\"', '"ab'])
def test_no_pattern_lets_a_string_break(model: LlamaModel, pattern: str, text: str) -> None:
    """A quote, a line end or a backslash of the value is never bare, so what the grammar ends is JSON."""
    assert not accepts(model, {"type": "string", "pattern": pattern}, text)


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ({"pattern": "^(?=a)$"}, "format.pattern"),
        ({"properties": {"x": {"pattern": r"^(a)\1$"}}}, "format.properties.x.pattern"),
        ({"pattern": "^a|b$"}, "format.pattern"),
        ({"pattern": "^a++$"}, "format.pattern"),
        ({"pattern": "a^b"}, "format.pattern"),
        ({"pattern": r"^[\x00]$"}, "format.pattern"),
        ({"items": False}, "format.items"),
        ({"anyOf": [True, 5]}, "format.anyOf"),
        ({"allOf": [True]}, "format.allOf"),
        ({"properties": 5}, "format"),
        ({"minLength": 4096}, "format"),
        ({"type": "string", "pattern": "^(a|)*$"}, "format"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"}, "format"),
        ({"$ref": "#/$defs/none"}, "format"),
        ({"items": {"type": "array", "prefixItems": [{"minLength": 1999}] * 20}}, "format"),
    ],
)
def test_schemas_without_a_grammar_are_refused(model: LlamaModel, form: dict[str, Any], path: str) -> None:
    """Whatever the converter or llama.cpp can't take is the caller's error, and names its place."""
    with pytest.raises(BadRequest, match=path):
        Sampler(model, Sampling(), grammar_of(form))


schemas = st.recursive(
    st.sampled_from(
        [
            *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null")),
            {"enum": ["a", 'q"', "\\", "😀", 1.5, [None]]},
            {"const": "\x00\n"},
            {"pattern": r"^[^\w\s]{1,3}$", "type": "string"},
            {"type": "string", "maxLength": 3},
            {"type": "string", "format": "time"},
            {},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda part: {"type": "array", "items": part, "maxItems": 3}, inner),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda parts, needed, extra: {
                "type": "object",
                "properties": {f"{n}'{n}": part for n, part in enumerate(parts)},
                "required": [f"{n}'{n}" for n in needed if n < len(parts)],
                **extra,
            },
            st.lists(inner, max_size=3),
            st.lists(st.integers(0, 2)),
            st.sampled_from([{}, {"additionalProperties": True}, {"additionalProperties": False}]),
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemas, st.integers(0, 1000))
def test_any_answer_that_a_grammar_ends_fits_its_schema(model: LlamaModel, schema: dict[str, Any], seed: int) -> None:
    """A random walk never comes to a dead end (which would kill the worker), and what it ends is valid."""
    text = wander(model, schema, seed)
    if text is not None:
        assert parse_answer(text, schema)[1] is None


def test_whitespace_can_not_go_on_for_ever(model: LlamaModel) -> None:
    """A small model that likes line ends is made to go on with its answer."""
    walk = Walk(model, "json")
    assert walk.take("{\n")
    taken = 0
    while taken < 50 and any(walk.take(blank) for blank in (" ", "\n", "\t")):
        taken += 1
    walk.close()
    assert taken == 12


@pytest.mark.parametrize(
    ("text", "form", "why"),
    [
        ("{", "json", "not JSON"),
        ("5", {"type": "integer", "maximum": 4}, r"at \$"),
        ('{"a": 7}', {"properties": {"a": {"multipleOf": 2}}}, r"at \$\.a"),
        ('{"b": 1}', {"patternProperties": {"^b$": {"type": "string"}}}, r"at \$\.b"),
        ("5", {"$ref": "https://example.org/schema"}, "can't be checked"),
        ("5", {"type": 5}, "can't be checked"),
    ],
)
def test_finished_answers_are_checked_against_the_schema(text: str, form: Form, why: str) -> None:
    """What a grammar ignores is found in the finished answer, whose text is in the error."""
    value, error = parse_answer(text, form)
    assert value is None
    assert error is not None
    assert re.search(why, error.message)
    assert error.wire()["details"] == {"text": text}
