"""Strings that end an answer, found by the decoding loop itself, token by token and on the device.

A stop string may begin in the middle of one token and end in the middle of another, so what is followed are bytes: the
automaton of Aho and Corasick (1975), whose state is the longest beginning of a stop string that the bytes so far end
with. What a whole token does to a state is worked out beforehand, for every token, so that the loop looks up one number
a token.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Int, Int16

MOST_BYTES = 512
"""How long all stop strings may be together: the table has a row for each of their bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stops:
    """Strings that end an answer. Made by `stops_of`.

    strings: as bytes. table_SV: the state after a token, from each state; state 0 is that of an answer without text,
    S - 1 that of one in which a string is complete.
    """

    strings: tuple[bytes, ...]
    table_SV: Int16[np.ndarray, "S V"]


def stops_of(
    strings: Sequence[bytes], token_bytes: Sequence[bytes], vocab_size: int, *, drops_first_space: bool = False
) -> Stops:
    """The automaton of `strings` over the tokens of a vocabulary.

    Args:
        strings: one or more, none empty, of `MOST_BYTES` together.
        token_bytes: what each token writes; nothing for a control token.
        vocab_size: rows of the network's embedding, of which those beyond `token_bytes` write nothing.
        drops_first_space: whether a space at the very beginning of an answer is no part of its text.

    Raises:
        ValueError: no string, an empty one, or too many bytes.
    """
    if not strings or not all(strings):
        raise ValueError("a stop string is empty: give one or more characters")
    if sum(map(len, strings)) > MOST_BYTES:
        raise ValueError(f"stop strings of {sum(map(len, strings))} bytes: give at most {MOST_BYTES} together")
    step_NB = _byte_automaton(strings)
    found = len(step_NB) - 1
    # Of few heights, so that another string is rarely another program: states, the beginning, and the end.
    S = max(16, 1 << found.bit_length())
    table_SV = np.zeros((S, vocab_size), np.int16)
    nodes_NV = _after_tokens(step_NB, token_bytes)
    begun = [data.removeprefix(b" ") for data in token_bytes] if drops_first_space else token_bytes
    first_V = _after_tokens(step_NB, begun, nodes=1)[0]
    last, known = S - 1, len(token_bytes)
    table_SV[:, known:] = np.arange(S)[:, None]
    table_SV[1 : found + 1, :known] = np.where(nodes_NV[:found] == found, last, nodes_NV[:found] + 1)
    table_SV[0, :known] = np.where(first_V == found, last, first_V + 1)
    table_SV[0, :known][[not data for data in token_bytes]] = 0
    table_SV[last] = last
    return Stops(tuple(strings), table_SV)


def _byte_automaton(strings: Sequence[bytes]) -> Int16[np.ndarray, "N 256"]:
    """The node after each byte, from each node: 0 is that of no beginning, N - 1, which is not left, of a whole string.

    Nodes in which a string is complete are not entered and stand for nothing.
    """
    children: list[dict[int, int]] = [{}]
    ends = set()
    for string in strings:
        node = 0
        for byte in string:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.add(node)
    step_NB = np.zeros((len(children) + 1, 256), np.int16)
    fallback = [0] * len(children)  # the node of the longest shorter beginning that the same bytes end with
    queue = deque([0])
    while queue:
        node = queue.popleft()
        if node in ends or fallback[node] in ends:
            ends.add(node)
        if node:
            step_NB[node] = step_NB[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(step_NB[node, byte])
            step_NB[node, byte] = child
            queue.append(child)
    found = len(children)
    step_NB[np.isin(step_NB, sorted(ends))] = found
    step_NB[found] = found
    return step_NB


def _after_tokens(
    step_NB: Int16[np.ndarray, "N 256"], token_bytes: Sequence[bytes], nodes: int | None = None
) -> Int16[np.ndarray, "N V"]:
    """The node after each token, from each of the first `nodes` nodes (None: all)."""
    order = sorted(range(len(token_bytes)), key=lambda i: -len(token_bytes[i]))
    nodes_NV = np.repeat(np.arange(len(step_NB) if nodes is None else nodes, dtype=np.int16)[:, None], len(order), 1)
    longest = [token_bytes[i] for i in order]
    place = 0
    while longest and len(longest[0]) > place:
        longest = [data for data in longest if len(data) > place]  # those before the others are as long or longer
        bytes_V = np.array([data[place] for data in longest])
        nodes_NV[:, : len(longest)] = step_NB[nodes_NV[:, : len(longest)], bytes_V]
        place += 1
    in_order_NV = np.empty_like(nodes_NV)
    in_order_NV[:, order] = nodes_NV
    return in_order_NV


def follow(
    table_SV: Int16[Array, "S V"], states_R: Int[Array, " R"], tokens_R: Int[Array, " R"]
) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """The states after one more token of each row, and whether a stop string is complete in it."""
    states_R = table_SV[states_R, tokens_R].astype(states_R.dtype)
    return states_R, states_R == table_SV.shape[0] - 1
