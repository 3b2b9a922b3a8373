"""Cutting texts before stop strings, at once and piece by piece."""

import random

import pytest

from camelid.data.stop_strings import StopFilter, cut


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("one\n\nUser: two", ["\n\n", "User:"], "one"),
        ("abcd", ["abcd", "bc"], "a"),  # complete first
        ("xab", ["b", "ab"], "x"),  # complete together: the longest
        ("aaab", ["aab"], "a"),
        ("nothing", ["END"], "nothing"),
        ("END", ["END"], ""),
        ("EN", ["END"], "EN"),
        ("你好。再见", ["。"], "你好"),
        ("text", [], "text"),
    ],
)
def test_a_text_is_cut_before_the_stop_string_that_is_complete_first(text, stops, kept):
    assert cut(text, stops) == kept


def test_a_stream_says_what_a_cut_text_says_and_nothing_too_early():
    rng = random.Random(0)
    for _ in range(500):
        stops = ["".join(rng.choices("ab\n", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        pieces = ["".join(rng.choices("ab\n", k=rng.randint(0, 3))) for _ in range(8)]
        told = StopFilter(stops)
        said = ""
        for piece in pieces:
            said += told.push(piece)
            assert cut("".join(pieces), stops).startswith(said)
        assert said + told.flush() == cut("".join(pieces), stops)
        assert told.stopped == any(stop in "".join(pieces) for stop in stops)


def test_text_is_held_back_only_while_it_may_begin_a_stop_string():
    told = StopFilter(["\nUser"])
    assert [told.push(piece) for piece in ("hello", "\nUs", "ual", " words")] == ["hello", "", "\nUsual", " words"]
