"""The automaton of stop strings over tokens against a search in the text, whatever the tokens."""

import numpy as np
import pytest

from camelid.model.stopping import MOST_BYTES, follow, stops_of

BEGUN, LEFT = "你".encode()[:2], "你".encode()[2:]
PIECES = [b"", b"a", b"b", b" ", b"ab", b"ba", b" a", b"\n", b"\n\n", b"aab\nb", BEGUN, LEFT, b"END"]


def end_of(text: bytes, strings: list[bytes]) -> bool:
    return any(string in text for string in strings)


@pytest.mark.parametrize(
    "strings",
    [[b"ab"], [b"\n\n"], [b"aab", b"ba"], [b"aa", b"abab", b"b"], ["你".encode(), b" a"], [b"baab", b"aab"], [b"N"]],
    ids=str,
)
@pytest.mark.parametrize("drops_first_space", [False, True])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(strings, drops_first_space):
    stops = stops_of(strings, PIECES, len(PIECES) + 3, drops_first_space=drops_first_space)
    tokens_RT = np.random.default_rng(0).integers(0, len(PIECES) + 3, (300, 20))  # ids without a token among them
    states_R, found_R = np.zeros(300, np.int32), np.zeros(300, bool)
    for t in range(20):
        states_R, complete_R = follow(stops.table_SV, states_R, tokens_RT[:, t])
        found_R |= complete_R
        texts = [b"".join(PIECES[i] for i in row[: t + 1] if i < len(PIECES)) for row in tokens_RT]
        texts = [text.removeprefix(b" ") for text in texts] if drops_first_space else texts
        np.testing.assert_array_equal(found_R, [end_of(text, strings) for text in texts])
    assert found_R.sum() > 0


def test_stop_strings_of_a_like_length_share_the_shape_of_a_table():
    shapes = {stops_of([bytes([97] * n)], PIECES, 13).table_SV.shape for n in range(1, 14)}
    assert shapes == {(16, 13)}


@pytest.mark.parametrize("strings", [[], [b""], [b"a", b""], [b"a" * MOST_BYTES, b"b"]], ids=len)
def test_no_strings_empty_ones_and_too_long_ones_are_refused(strings):
    with pytest.raises(ValueError, match="stop string"):
        stops_of(strings, PIECES, 13)
