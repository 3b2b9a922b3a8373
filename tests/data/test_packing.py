"""Packing against slow loops and against what must hold for any lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.data.packing import best_fit_layout, contiguous_plan, heads, pack, permutation
from camelid.errors import UserError

QUICK = settings(max_examples=60, deadline=None)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40).map(lambda pairs: np.array(pairs, np.int64))


def rows_of(plan):
    return [list(plan.row(row)) for row in range(len(plan))]


def packed(pairs, length, method, first=None):
    return pack(pairs, np.zeros_like(pairs) if first is None else first, length, method)


@QUICK
@given(LENGTHS, st.integers(1, 16))
def test_contiguous_packing_uses_every_pair_once_and_pads_one_row_only(pairs, length):
    packing = packed(pairs, length, "contiguous")
    rows = rows_of(packing.plan((3, 0)))
    seen = sorted((s, pair) for row in rows for s, first, n in row for pair in range(first, first + n))
    assert seen == [(s, pair) for s, n in enumerate(pairs) for pair in range(n)]
    sizes = sorted((sum(n for _, _, n in row) for row in rows), reverse=True)
    assert sizes[:-1] == [length] * (packing.rows - 1)
    assert packing.fill == pytest.approx(pairs.sum() / (len(rows) * length))


@QUICK
@given(LENGTHS, st.integers(1, 16))
def test_contiguous_packing_equals_a_slow_loop(pairs, length):
    plan = contiguous_plan(pairs, length, (5,))
    stream = [(s, pair) for s in permutation(len(pairs), (5, 0)) for pair in range(pairs[s])]
    slow = [stream[at : at + length] for at in range(0, len(stream), length)]
    fast = [[(s, pair) for s, first, n in row for pair in range(first, first + n)] for row in rows_of(plan)]
    assert fast == [slow[row] for row in permutation(len(slow), (5, 1))]


@QUICK
@given(LENGTHS, st.integers(1, 50))
def test_best_fit_places_every_sample_once_and_whole_or_cut_at_the_row(pairs, length):
    packing = packed(pairs, length, "best_fit")
    rows = rows_of(packing.plan((1, 4)))
    pieces = sorted(piece for row in rows for piece in row)
    assert pieces == [(s, 0, min(n, length)) for s, n in enumerate(pairs)]
    assert all(sum(n for _, _, n in row) <= length for row in rows)
    assert packing.truncated == sum(n > length for n in pairs)
    assert len(rows) == packing.rows
    assert packing.fill == sum(n for _, _, n in pieces) / (len(rows) * length)


@QUICK
@given(LENGTHS, st.integers(1, 16))
def test_fewest_cuts_places_every_pair_once_and_cuts_only_what_is_longer_than_a_row(pairs, length):
    packing = packed(pairs, length, "fewest_cuts")
    rows = rows_of(packing.plan((2, 7)))
    pieces = sorted(piece for row in rows for piece in row)
    assert pieces == [(s, at, min(length, n - at)) for s, n in enumerate(pairs) for at in range(0, n, length)]
    assert all(sum(n for _, _, n in row) <= length for row in rows)
    assert (packing.truncated, packing.left_out, packing.rows) == (0, 0, len(rows))
    assert packing.fill == pairs.sum() / (len(rows) * length)


@QUICK
@given(LENGTHS, st.integers(1, 50))
def test_best_fit_needs_the_rows_that_a_slow_best_fit_decreasing_needs(pairs, length):
    rooms = []
    for count in sorted(np.minimum(pairs, length), reverse=True):
        fitting = [room for room in rooms if room >= count]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else length) - count)
    layout = best_fit_layout(heads(pairs, np.zeros_like(pairs), length), length)
    filled = np.add.reduceat(layout.slot_counts, layout.row_starts[:-1])
    assert sorted(length - filled) == sorted(rooms)


def test_best_fit_deals_new_neighbours_each_epoch_in_as_many_rows():
    pairs = np.random.default_rng(0).integers(1, 30, 400)
    packing = packed(pairs, 64, "best_fit")
    first, again, second = (rows_of(packing.plan((0, epoch))) for epoch in (0, 0, 1))
    assert first == again
    neighbours = [{frozenset(s for s, _, _ in row) for row in rows} for rows in (first, second)]
    assert len(neighbours[0] & neighbours[1]) < 0.1 * packing.rows
    assert len(first) == len(second) == packing.rows
    assert packing.fill > 0.98


def test_a_sample_whose_cut_head_holds_no_trained_pair_is_left_out_and_counted():
    pairs = np.array([10, 10, 10, 3])
    packing = packed(pairs, 5, "best_fit", first=np.array([4, 5, 0, 2]))
    assert sorted(piece for row in rows_of(packing.plan((0,))) for piece in row) == [(0, 0, 5), (2, 0, 5), (3, 0, 3)]
    assert (packing.truncated, packing.left_out) == (2, 1)


def test_packing_that_leaves_nothing_over_says_to_use_longer_rows():
    with pytest.raises(UserError, match="make rows longer"):
        packed(np.array([10]), 4, "best_fit", first=np.array([4]))
    with pytest.raises(UserError, match="contiguous, best_fit or fewest_cuts"):
        packed(np.array([10]), 4, "bestfit")


def test_the_permutation_is_the_documented_one():
    """Golden values: another order would change every run that is resumed."""
    assert permutation(8, (0, 1, 2)).tolist() == [6, 7, 2, 3, 0, 5, 1, 4]
