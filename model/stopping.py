"""Strings that end an answer, found by the decoding loop itself, token by token and on the device.

A stop string may begin in the middle of one token and end in the middle of another, so what is followed are bytes: the
automaton of Aho and Corasick (1975), whose state is the longest beginning of a stop string that the bytes so far end
with. What a whole token does to a state is worked out beforehand, for every token, so that the loop looks up one number
a token.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int16

MOST_BYTES = 512
"""How long all stop strings may be together: the table has a row for each of their bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stops:
    """Strings that end an answer, as an automaton over tokens. Made by `stops_of`."""

    strings: tuple[bytes, ...]
    """The strings."""

    table_SV: Int16[np.ndarray, "S V"]
    """The state after a token, from each state. State 0 is an answer without text, S - 1 one with a complete string."""


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


NO_STRINGS = -1
"""State of a row without stop strings: no token leaves it, and no string is complete in it."""


def join_tables(
    each: Sequence[Stops | None],
) -> tuple[Int[np.ndarray, "S V"] | None, Int[np.ndarray, " R"]]:
    """One table for rows with stop strings of their own.

    The states of different `Stops` stand below each other in the table; state S - 1, in which a string is complete, is
    common to all.

    Args:
        each: the stop strings of each row; None for a row without.

    Returns:
        The table, None where no row has stop strings, and the state in which each row's answer begins.
    """
    different = list({id(stops): stops for stops in each if stops is not None}.values())
    if not different:
        return None, np.full(len(each), NO_STRINGS, np.int32)
    heights = [len(stops.table_SV) for stops in different]
    begins = dict(zip(map(id, different), np.cumsum([0, *heights[:-1]]).tolist(), strict=True))
    starts_R = np.array([NO_STRINGS if stops is None else begins[id(stops)] for stops in each], np.int32)
    if len(different) == 1:
        return different[0].table_SV, starts_R
    S = 1 << (sum(heights) - 1).bit_length()
    table_SV = np.zeros((S, different[0].table_SV.shape[1]), np.int16 if S <= 1 << 15 else np.int32)
    for stops, height in zip(different, heights, strict=True):
        begin, part_SV = begins[id(stops)], stops.table_SV.astype(np.int32)
        table_SV[begin : begin + height] = np.where(part_SV == height - 1, S - 1, part_SV + begin)
    return table_SV, starts_R


def follow(
    table_SV: Int[Array, "S V"], states_R: Int[Array, " R"], tokens_R: Int[Array, " R"]
) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """The state of each row after one more token, and whether a stop string is complete in it."""
    next_R = table_SV[states_R, tokens_R].astype(states_R.dtype)
    states_R = jnp.where(states_R == NO_STRINGS, NO_STRINGS, next_R)
    return states_R, states_R == table_SV.shape[0] - 1


def follow_all(
    table_SV: Int[Array, "S V"], states_R: Int[Array, " R"], tokens_RT: Int[Array, "R T"]
) -> tuple[Int[Array, "R T"], Bool[Array, "R T"]]:
    """The state of each row after each of T tokens, and whether a stop string is complete in it."""
    states, complete = [], []
    for t in range(tokens_RT.shape[1]):
        states_R, complete_R = follow(table_SV, states_R, tokens_RT[:, t])
        states.append(states_R)
        complete.append(complete_R)
    return jnp.stack(states, axis=1), jnp.stack(complete, axis=1)
