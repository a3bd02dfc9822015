"""Tests of what the sessions benchmark makes of its figures, and of what it measures with."""

import pytest

from benchmarks.chat import Answered
from benchmarks.conversations import LONG, SHORT, Conversation, lengths
from benchmarks.sessions import Compared, Turn, agreed, print_answers, print_times


class Letters:
    """A tokenizer with a token for each letter."""

    def of(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def compared(first_ms: float, *, place: str = "arena", text: str = "same", cached: int = 0) -> Compared:
    seen = Answered(first_ms, text, 1500, 1480, 4)
    return Compared(Turn(place, True, (), seen), Answered(1000.0, "same", 1500, cached, 4))


def test_lengths_are_the_same_for_a_seed() -> None:
    """Within the bounds, and each third is a long one."""
    found = lengths(30, 1)
    assert found == lengths(30, 1) != lengths(30, 2)
    assert all(SHORT <= each <= LONG for each in found)
    assert found[::3] == [LONG] * 10


def test_a_turn_is_the_users_words_alone() -> None:
    """What was said before stays in the conversation."""
    conversation = Conversation("s")
    conversation.ask("one")
    conversation.answered("two")
    assert conversation.ask("three") == [{"role": "user", "content": "three"}]
    assert [each["content"] for each in conversation.messages] == ["one", "two", "three"]


@pytest.mark.parametrize(("one", "other", "same"), [("abc", "abd", 2), ("ab", "abc", 2), ("", "a", 0), ("a", "a", 1)])
def test_answers_agree_up_to_their_first_difference(one: str, other: str, same: int) -> None:
    """In tokens; an answer that is shorter differs at its end."""
    assert agreed(Letters().of(one), Letters().of(other)) == same


def test_a_prompt_that_was_not_computed_from_scratch_is_no_measure(capsys: pytest.CaptureFixture[str]) -> None:
    """It counts neither as fast nor as slow."""
    print_times([compared(20.0), compared(30.0), compared(900.0, cached=1400)])
    assert "3.0  <= 5: met" in capsys.readouterr().out


def test_a_share_above_the_goal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The goal is for the slowest, not for the median."""
    print_times([compared(20.0), compared(30.0), compared(90.0)])
    assert "<= 5: MISSED" in capsys.readouterr().out


def test_a_changed_token_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the tokens that were compared until then, the changed one among them."""
    print_answers([compared(20.0), compared(20.0, text="sane")], Letters(), exact=True)
    told = capsys.readouterr().out
    assert "1 of 2  <= 0: MISSED" in told
    assert "1 of 7: 14.29 %" in told
