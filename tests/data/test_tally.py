"""Tallies: what is counted of records, which problems are listed, and how tallies are added."""

import pytest

from camelid.data.encoding import LeftOut, encoded
from camelid.data.sources import Record
from camelid.data.tally import Tally
from camelid.errors import DataError, UserError


def encode(record):
    """Leaves out numbers below 0, with a word about -1 alone, and refuses 0."""
    if record["n"] < 0:
        raise LeftOut("negative", "it is -1" if record["n"] == -1 else "")
    if not record["n"]:
        raise UserError("it is 0")
    return 2 * record["n"]


def records(*numbers):
    return [Record({"n": n}, f"x:{place}") for place, n in enumerate(numbers, 1)]


def test_records_are_kept_or_left_out_by_reason_and_the_first_problems_are_listed():
    tally = Tally.by(("negative",))
    assert list(encoded(records(1, -1, -2, 0, 3), encode, tally, "skip")) == [2, 6]
    assert list(tally.counts().items()) == [("records", 5), ("samples", 2), ("negative", 2), ("skipped", 1)]
    assert tally.problems == ["x:2: it is -1", "x:4: it is 0"]
    assert str(tally) == "5 records, 2 negative, 1 skipped (x:2: it is -1)"


def test_a_record_that_is_refused_ends_the_reading_unless_it_is_skipped():
    tally = Tally()
    with pytest.raises(DataError, match=r"^x:2: it is 0 \(on_error=skip leaves such records out\)$"):
        list(encoded(records(1, 0, 2), encode, tally, "raise"))
    assert (tally.read, tally.kept, tally.skipped) == (2, 1, 0)


def test_a_sum_keeps_counts_of_0_and_lists_the_problems_of_the_left_tally_first():
    left, right = Tally.by(("negative",)), Tally.by(("negative",))
    for place in range(15):
        left.leave_out("skipped", f"left {place}")
        right.leave_out("skipped", f"right {place}")
    total = left + right
    assert list(total.left_out.items()) == [("negative", 0), ("skipped", 30)]
    assert total.problems == [f"left {n}" for n in range(15)] + [f"right {n}" for n in range(5)]
    assert (left.skipped, len(left.problems)) == (15, 15)
