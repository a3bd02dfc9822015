"""Tests of the text of a growing answer: characters cut by tokens, stop strings across them, and broken UTF-8."""

from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.engine.answer_text import AnswerText

ALPHABET = st.text(alphabet="abé😀\n", max_size=30)


def feed(data: bytes, cuts: list[int], stops: list[str]) -> AnswerText:
    """An answer that was fed `data` in pieces; whatever it gave out is its whole text."""
    answer = AnswerText(stops)
    at, given_out = 0, ""
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if not answer.stopped:
            given_out += answer.feed(data[at:cut])
        at = cut
    given_out += answer.finish()
    assert given_out == answer.whole
    return answer


@given(ALPHABET, st.lists(st.integers(0, 200)))
def test_any_split_gives_the_same_text(text: str, cuts: list[int]) -> None:
    """Characters that tokens cut in two come out whole."""
    assert feed(text.encode(), cuts, []).whole == text


@given(ALPHABET, st.lists(st.integers(0, 200)), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, cuts: list[int], stops: list[str]) -> None:
    """Wherever tokens cut a stop string, the text ends before the first one."""
    answer = feed(text.encode(), cuts, stops)
    assert not any(stop in answer.whole for stop in stops)
    assert answer.stopped == any(stop in text for stop in stops)
    assert text.startswith(answer.whole)
    assert answer.stopped or answer.whole == text


@given(st.binary(max_size=40), st.lists(st.integers(0, 200)))
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, cuts: list[int]) -> None:
    """Invalid UTF-8 is replaced, the same way however it is cut."""
    assert feed(data, cuts, []).whole == data.decode(errors="replace")


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    """What may become a stop string is shown only when it can no longer."""
    answer = AnswerText(["END"])
    assert [answer.feed(piece) for piece in (b"a E", b"N", b"d")] == ["a ", "", "ENd"]
    assert answer.finish() == ""
