import pytest

from camelid.curate.heldout import Heldout
from camelid.curate.rows import Row
from camelid.data.sources import split_of
from camelid.errors import UserError


def chat(question, answer="Yes."):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"kind": "chat", "messages": turns}


def row(record, id="0123456789abcdef0123"):
    return Row(id, record, "a", "a:1")


def split(record, id="0123456789abcdef0123", **settings):
    return Heldout(**settings)(row(record, id)).columns["split"]


def test_rows_are_held_out_as_data_holds_them_out():
    records = [chat(f"Question {n}?") for n in range(300)] + [
        {"kind": "text", "text": f"Text {n}."} for n in range(300)
    ]
    assert [split(record, share=0.1) for record in records] == [split_of(record, 0.1) for record in records]
    assert 30 < [split(record, share=0.1) for record in records].count("heldout") < 90


@pytest.mark.parametrize("share, name", [(0.0, "train"), (1.0, "heldout")])
def test_a_share_of_nothing_or_all(share, name):
    assert {split(chat(f"{n}?"), share=share) for n in range(50)} == {name}


def test_conversations_that_begin_with_one_question_are_on_one_side():
    for n in range(30):
        assert len({split(chat(f"{n}?", answer), f"{n:020x}", share=0.5) for answer in "abcdef"}) == 1


def test_parts_of_one_record_are_on_one_side_by_origin():
    sides = set()
    for n in range(40):
        found = {split(chat(f"{n} {part}"), f"{n:020x}-{part}", share=0.5, by="origin") for part in range(5)}
        assert len(found) == 1
        sides |= found
    assert sides == {"train", "heldout"}


def test_divided_rows_cannot_be_told_by_their_prompt():
    with pytest.raises(UserError, match="put heldout before that step"):
        split(chat("Two?"), "0123456789abcdef0123-2")
