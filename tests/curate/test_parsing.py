import pytest

from camelid.curate.parsing import Parse
from camelid.curate.rows import Rejected, Row
from camelid.data.formats import parse

RAW = {"instruction": "Name a colour.", "input": "", "output": "Red.", "difficulty": 3}


def row(raw, **columns):
    return Row("0" * 20, raw, "a", "a.json, record 1", columns)


def test_a_record_becomes_what_data_reads_with_its_other_fields_kept():
    found = Parse()(row(RAW))
    assert found.record == parse(RAW)
    assert found.record["meta"] == {"difficulty": 3}
    assert (found.id, found.place) == (row(RAW).id, row(RAW).place)


@pytest.mark.parametrize(
    "raw, said",
    [
        ({"instruction": "Name a colour.", "output": ""}, "output is empty"),
        ({"nothing": 1}, "no format has the fields nothing"),
        ({"conversations": [{"from": "human", "value": 7}]}, "not a string"),
    ],
)
def test_what_is_malformed_is_rejected_with_the_parser_s_words(raw, said):
    found = Parse()(row(raw))
    assert isinstance(found, Rejected) and found.reason == "malformed" and said in found.detail


def test_the_format_of_the_source_comes_before_that_of_the_step():
    both = RAW | {"text": "A text of its own."}
    assert Parse()(row(both)).record["kind"] == "chat"
    assert Parse(format="text")(row(both)).record["kind"] == "text"
    assert Parse(format="alpaca")(row(both, format="text")).record["kind"] == "text"
