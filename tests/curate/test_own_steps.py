import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from camelid.curate.applying import call_step, decisions
from camelid.curate.rows import Rejected, Row, id_of
from camelid.errors import UserError

RECORD = {"kind": "text", "text": "a fox"}
ID = id_of("web", RECORD)


def row() -> Row:
    return Row(ID, {**RECORD, "meta": {"tags": ["a"]}}, "web", "web.jsonl:7", {"words": 2})


@dataclass(frozen=True)
class Own:
    """A step that gives back what a function says."""

    reasons: ClassVar = ("bad",)

    function: Callable[[Row], Any] = field(default=lambda row: row)
    """From the row to the result."""

    def __call__(self, row: Row) -> Any:
        return self.function(row)

    def decide(self, rows: Iterable[Row]) -> Any:
        return self.function(rows)


def raising(error: BaseException) -> Callable:
    def function(_):
        raise error

    return function


def in_place(row: Row) -> Row:
    row.record["meta"]["tags"].append("b")
    return row


def in_place_then_rejected(row: Row) -> Rejected:
    row.columns["words"] = {1}
    return Rejected("bad")


def shared_in_place(row: Row) -> Row:
    after = row.with_({**row.record, "text": "an owl"})
    after.record["meta"]["tags"].append("b")
    return after


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda row: row.with_(split="weird"), "gave the column split = 'weird': give train or heldout"),
        (lambda row: row.with_(split=["train"]), r"gave the column split = \['train'\]: give train or heldout"),
        (lambda row: row.with_(language=["en"]), r"gave the column language = \['en'\]: give a text"),
        (lambda row: row.with_(place="x"), "gave the column place, which the engine writes itself"),
        (lambda row: row.with_(x={"a"}), "the column x is of the type set, and JSON cannot hold it"),
        (lambda row: row.with_(x=[float("nan")]), r"the column x\[0\] is NaN"),
        (lambda row: row.with_({**row.record, "x": {1: 2}}), "the field x has a key of the type int"),
        (lambda row: row.with_("text"), "gave a record that is of the type str: give a dict"),
        (lambda row: row.split([{**RECORD, "x": object()}]), "the field x is of the type object"),
        (lambda row: Rejected("bad", 5), "gave the detail 5: give a text"),
        (lambda row: Rejected("bad", "", {"x": b"a"}), "the column x is of the type bytes"),
        (lambda row: Rejected("other"), "rejects as 'other', which is none of the reasons of own"),
        (lambda row: dataclasses.replace(row, source="other"), "changed the row's source or place"),
        (lambda row: dataclasses.replace(row, id="other"), "gave the row the id other"),
        (lambda row: [row, row], "gave rows with the ids"),
        (lambda row: None, "gave back NoneType"),
        (in_place, "changed the row in place"),
        (in_place_then_rejected, "changed the row in place"),
        (shared_in_place, "changed the row in place"),
        (raising(SystemExit(0)), "raised SystemExit: 0"),
        (raising(KeyError("a")), "raised KeyError: 'a'"),
    ],
)
def test_what_no_step_may_do_is_one_line_with_the_step_the_row_and_its_place(function, said):
    with pytest.raises(UserError, match=rf"^step own at row {ID} \(web.jsonl:7\):? {said}"):
        call_step("own", Own(function), row())


@pytest.mark.parametrize(
    "function",
    [
        lambda row: row,
        lambda row: row.with_(x=[1, 2.5, "a", None, {"b": True}], split="heldout", language=None),
        lambda row: row.split([RECORD, RECORD], split="train"),
        lambda row: Rejected("bad", "why", {"x": 1}),
    ],
)
def test_what_a_step_may_give_back_goes_on_as_it_is(function):
    assert call_step("own", Own(function), row()) == function(row())


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", [lambda step: call_step("own", step, row()), lambda s: list(decisions("own", s, []))])
def test_a_lack_of_memory_or_disk_is_no_mistake_of_the_user_but_names_the_step(error, call):
    with pytest.raises(OSError, match=r"^step own.*: (out of memory: lower --workers|\[Errno 28\] No space)"):
        call(Own(raising(error)))


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda rows: [("zz", Rejected("bad"))], "step own rejects 'zz', which is the id of no row"),
        (lambda rows: [(5, Rejected("bad"))], r"step own decides \(5, Rejected.*give pairs of a row's id"),
        (lambda rows: [(ID, "bad")], r"step own decides .*, 'bad'\): give pairs"),
        (lambda rows: {ID: Rejected("bad")}, f"step own decides '{ID}': give pairs"),
        (lambda rows: [(ID, Rejected("other"))], f"step own at row {ID} rejects as 'other'"),
        (
            lambda rows: [(ID, Rejected("bad", "", {"x": {1}}))],
            f"step own at row {ID}: the column x is of the type set",
        ),
        (lambda rows: (raising(SystemExit(0))(each) for each in [1]), "step own raised SystemExit"),
        (lambda rows: None, "step own raised TypeError"),
    ],
)
def test_what_no_decision_may_be_is_one_line(function, said):
    with pytest.raises(UserError, match=f"^{said}"):
        list(decisions("own", Own(function), [row()]))
