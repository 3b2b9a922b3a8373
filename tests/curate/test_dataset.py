import json

import pytest

from camelid.curate.applying import RejectedRow
from camelid.curate.dataset import About, Layout, write_dataset
from camelid.curate.forms import final_record
from camelid.curate.rows import Row, id_of
from camelid.data.cards import CardSource, CardStep, Count
from camelid.data.formats import parse
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

USER, ANSWER = {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes, two."}
SYSTEM = {"role": "system", "content": "Be brief."}
RECORDS = {
    "chat": {"kind": "chat", "messages": [USER, ANSWER]},
    "long": {"kind": "chat", "messages": [SYSTEM, USER, ANSWER, {**USER, "input": "1, 2"}, ANSWER]},
    "bad": {"kind": "chat", "messages": [USER, ANSWER], "label": False},
    "preference": {"kind": "preference", "messages": [USER], "chosen": ANSWER, "rejected": {**ANSWER, "content": "No"}},
    "prompt": {"kind": "prompt", "messages": [USER]},
    "text": {"kind": "text", "text": "A text."},
    "untrained": {"kind": "chat", "messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]},
}
HOLDS = {
    "camelid": set(RECORDS),
    "alpaca": {"chat", "long", "bad", "preference"},
    "sharegpt": {"chat", "long", "bad", "preference", "prompt", "untrained"},
    "openai": set(RECORDS) - {"text"},
}


def row(record, **columns):
    return Row(id_of("a", record), record, "a", "a.json, record 1", columns)


@pytest.mark.parametrize("form", HOLDS)
@pytest.mark.parametrize("name", RECORDS)
def test_a_format_holds_a_record_that_is_read_back_or_refuses_it(form, name):
    record = parse(RECORDS[name], "camelid")
    if name not in HOLDS[form]:
        with pytest.raises(UserError, match=rf"the format {form} cannot hold this {record['kind']} record"):
            final_record(row(record), form)
        return
    written = json.loads(json.dumps(final_record(row(record, words=3), form)))
    again = parse(written, form)
    assert again.pop("meta") == {"id": row(record).id, "source": "a", "place": "a.json, record 1", "words": 3}
    assert again == record
    assert form == "camelid" or "kind" not in written


def test_other_fields_of_the_raw_record_are_kept_apart_from_columns():
    record = parse({"instruction": "Two?", "output": "Yes.", "id": 7, "words": "many"})
    assert final_record(row(record, words=1))["meta"] == {
        "source": "a",
        "place": "a.json, record 1",
        "given": {"id": 7, "words": "many"},
        "words": 1,
    }
    with pytest.raises(UserError, match="has a column given"):
        final_record(row(record, given=1))


def about(*steps):
    return About("made", {"seed": 0}, {"a": CardSource("a.json", "f", 9, Count())}, {s: CardStep(s) for s in steps})


def chats(count):
    return [row({"kind": "chat", "messages": [{"role": "user", "content": f"{n}?"}, ANSWER]}) for n in range(count)]


def lines_of(folder, kind):
    return [json.loads(line) for path in sorted((folder / kind).glob("*")) for line in path.open(encoding="utf-8")]


def test_rows_in_any_order_give_the_same_files_sorted_over_shards(tmp_path):
    rows, layout = chats(50), Layout(shards=4)
    for name, given in (("one", rows), ("other", rows[::-1])):
        write_dataset(tmp_path / name, given, [RejectedRow(rows[0], "short", "few")], about("short"), layout=layout)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert [str(file) for file in files if file.parent.name == "train"] == [
        f"train/part-{n:05d}-of-00004.jsonl" for n in range(4)
    ]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert [each["id"] for each in lines_of(tmp_path / "one", "train")] == sorted(each.id for each in rows)


def test_rejected_rows_keep_their_record_or_their_id_and_reason_alone(tmp_path):
    rejected = [RejectedRow(row(RECORDS["chat"], words=1), "short", "few", "1 word")]
    write_dataset(tmp_path / "all", chats(2), rejected, about("short"))
    [found] = lines_of(tmp_path / "all", "rejected")
    assert RejectedRow.from_json(found) == rejected[0]
    write_dataset(tmp_path / "ids", chats(2), rejected, about("short"), layout=Layout(keep_rejected=False))
    [found] = lines_of(tmp_path / "ids", "rejected")
    assert set(found) == {"id", "source", "place", "step", "reason", "detail"}


def test_tokens_are_those_of_the_tokenizer(tmp_path):
    texts = [f"The number {n} is a number." for n in range(50)]
    tokenizer = train_sentencepiece(texts, vocab_size=290, output_dir=tmp_path / "tokenizer")
    rejected = [RejectedRow(row({"any": ["raw record"]}), "short", "few")]
    card, table = write_dataset(
        tmp_path / "out", chats(3), rejected, about("short"), tokenizer=str(tmp_path / "tokenizer")
    )
    expected = sum(len(tokenizer.encode(f"{n}?\nYes, two.")) for n in range(3))
    assert (card.unit, card.tokenizer, card.splits) == ("tokens", tokenizer.fingerprint, {"train": Count(3, expected)})
    assert sum(each["meta"]["tokens"] for each in lines_of(tmp_path / "out", "train")) == expected
    assert table.dropped == {("short", "few", "unknown"): Count(1, len(tokenizer.encode("raw record")))}


def test_equal_ids_and_unknown_steps_are_mistakes_of_the_maker(tmp_path):
    with pytest.raises(ValueError, match="ids have to differ"):
        write_dataset(tmp_path / "one", chats(2) + chats(1), [], about())
    with pytest.raises(ValueError, match="none of the steps on the card"):
        write_dataset(tmp_path / "two", chats(2), [RejectedRow(chats(1)[0], "short", "few")], about())
