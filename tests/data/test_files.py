"""Files that lie, that are too large, that are not there: each says so in one line, and spoils no other record."""

import datetime
import decimal
import gzip
import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camelid.data import sources
from camelid.data.sources import Source
from camelid.data.tally import Tally
from camelid.data.templates import load_template
from camelid.data.text_encoder import TextEncoder
from camelid.data.token_cache import build_cache
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

DIGITS = "9" * 5000


def read(source, split=None, tally=None, **options):
    return sources.read(Source(str(source), **options), split, tally)


def texts(source, **options):
    return [record["text"] for record in read(source, **options)]


def skipped(source, **options):
    """The texts read with on_error=skip, and the problems; all of them one line each."""
    tally = Tally()
    found = texts(source, on_error="skip", tally=tally, **options)
    assert all("\n" not in problem for problem in tally.problems)
    return found, tally.problems


def refusal(source, **options):
    with pytest.raises(UserError) as problem:
        texts(source, **options)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# What nobody needs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_number_of_thousands_of_digits_in_a_field_that_nobody_needs_stops_nothing(tmp_path, name):
    lines = [f'{{"text": "a", "n": {DIGITS}}}', '{"text": "b", "n": [1e999, -1e999, NaN]}', '{"text": "c"}']
    (tmp_path / name).write_text("\n".join(lines) if name == "x.jsonl" else f"[{','.join(lines)}]")
    records = list(read(str(tmp_path / name)))
    assert [record["text"] for record in records] == ["a", "b", "c"]
    assert records[0]["meta"] == {"n": DIGITS}
    json.dumps(records)


def test_a_number_of_thousands_of_digits_where_words_belong_is_refused_by_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a"}}\n{{"text": {DIGITS}}}\n')
    assert refusal(tmp_path / "x.jsonl").startswith(f"{tmp_path}/x.jsonl:2: text is a number, not a string")
    margin = f'{{"prompt": "a", "chosen": "b", "rejected": "c", "margin": {"9" * 400}}}'
    (tmp_path / "y.jsonl").write_text(margin)
    assert "margin is not a finite number" in refusal(tmp_path / "y.jsonl")


def test_what_is_nested_too_deeply_is_one_record_and_not_the_file(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "x.json").write_text(f'[{{"text": "a"}}, {{"text": "b", "x": {deep}}}, {{"text": "c"}}]')
    assert skipped(tmp_path / "x.json") == (
        ["a", "c"],
        [f"{tmp_path}/x.json, record 2: invalid JSON: nested too deeply"],
    )
    (tmp_path / "y.jsonl").write_text('{"text": "a", "x": ' + "[" * 300 + "]" * 300 + "}")
    assert texts(tmp_path / "y.jsonl") == ["a"]


def test_cells_of_parquet_that_python_does_not_have_stop_nothing_unless_they_are_needed(tmp_path):
    far = pa.array([2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    columns = {
        "text": pa.array(["a", "b"]),
        "far": far,
        "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
        "image": pa.array([b"\xff\xd8", b""], pa.binary()),
        "day": pa.array([datetime.date(2024, 2, 29), None]),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "tags": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "nested": pa.StructArray.from_arrays([far, pa.array([1, 2])], ["when", "n"]),
        "nothing": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    first, second = read(str(tmp_path / "x.parquet"))
    assert (first["text"], second["text"]) == ("a", "b")
    assert first["meta"]["day"] == "2024-02-29" and first["meta"]["price"] == "1.50"
    assert first["meta"]["nested"]["n"] == 1 and first["meta"]["far"].startswith("unreadable: ")
    json.dumps([first, second])

    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"text": invalid}), tmp_path / "y.parquet")
    found, problems = skipped(tmp_path / "y.parquet")
    assert found == ["a"] and problems[0].startswith(
        f"{tmp_path}/y.parquet, record 2: text is a value that cannot be read"
    )


def test_parquet_fills_the_fields_that_an_object_lacks_with_null_and_they_are_none(tmp_path):
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g", "arguments": {"b": 2}}}]
    messages = [
        {"role": "user", "content": "Q"},
        *({"role": "assistant", "content": "", "tool_calls": [c]} for c in calls),
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "x.parquet")
    (record,) = read(str(tmp_path / "x.parquet"))
    found = [message["tool_calls"][0]["function"]["arguments"] for message in record["messages"][1:]]
    assert found == [{"a": 1}, {"b": 2}]


def test_numbers_instances_and_marks_in_fields_that_nobody_needs_stop_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": "a", "instances": [3, 4]}\n{"text": "b", "text_": "\\ud800", "meta": "{"}\n'
        '{"text": "c", "x": 1, "x": {"y": [null]}}\n\ufeff{"text": "d"}\n{"text": "\\u0000e"}\n',
        "utf-8",
    )
    found, problems = skipped(tmp_path / "x.jsonl")
    assert found == ["a", "b", "c", "\x00e"]
    assert problems == [
        f"{tmp_path}/x.jsonl:4: invalid JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1"
    ]


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_longer_than_the_limit_is_one_bad_record_that_tells_the_limit(tmp_path, packed):
    content = b'{"text": "a"}\n{"text": "' + random.Random(0).randbytes(1_500_000).hex().encode() + b'"}\n{"text": "c"}'
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert len(texts(path)) == 3
    assert skipped(path, max_record_bytes=2_000_000) == (["a", "c"], [f"{path}:2: a line of more than 2,000,000 bytes"])
    assert refusal(path, max_record_bytes=2_000_000).endswith(
        "more than 2,000,000 bytes (max_record_bytes=N raises the limit)"
    )


def test_a_list_is_read_record_by_record_and_each_has_the_limit(tmp_path):
    path = tmp_path / "x.json"
    records = [{"text": 'a\\"],[{'}, {"text": "b" * 5000}, {"text": "é" * 100, "n": [[], {}]}, {"text": "c"}]
    for indent in (None, 1):
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), "utf-8")
        assert texts(path) == [record["text"] for record in records]
        found, problems = skipped(path, max_record_bytes=1000)
        assert found == [records[i]["text"] for i in (0, 2, 3)]
        assert problems == [f"{path}, record 2: a record of more than 1,000 bytes"]
    path.write_text("[" + ",".join(f'{{"text": "{"x" * 70_000} {i}"}}' for i in range(60)) + "]")
    assert [text.split()[1] for text in texts(path)] == [str(i) for i in range(60)]  # across the pieces it is read in
    long = ['"],[{\\' * 300_000, "b", "]" * 2_000_000, "c"]  # over many pieces
    path.write_text(json.dumps([{"text": text} for text in long]))
    assert texts(path) == long
    path.write_text(json.dumps({"type": "text_only", "instances": [{"text": text} for text in long]}, indent=1))
    assert texts(path) == long


@pytest.mark.parametrize(
    "content,found,fault",
    [
        ("[]", [], None),
        ("", [], None),
        (" \n ", [], None),
        ('[{"text": "a"},', ["a"], "record 2: invalid JSON: the file ends before the list is closed"),
        ('[{"text": "a"}', ["a"], "record 1"),
        ('[{"text": "a"}] []', ["a"], "record 2: invalid JSON: there is text after the end of the list"),
        ('[{"text": "a"},]', ["a"], "record 2: invalid JSON: Expecting value"),
        ('[{"text": "a"} {"text": "b"}, {"text": "c"}]', ["c"], "record 1: invalid JSON: Extra data"),
        ('[{"text": "a"}, {"text": "b}]', ["a"], "record 2: invalid JSON: the file ends before the list is closed"),
        ("nonsense", [], "x.json: invalid JSON: Expecting value at column 1"),
        ('{"a": "\x01"}', [], "x.json: invalid JSON: Invalid control character at column 8"),
        ('{"text": "a"', [], "x.json: invalid JSON"),
        ("3", [], "x.json: a record must be an object with named fields, not a number"),
    ],
)
def test_a_json_file_that_is_cut_or_malformed_gives_what_it_holds(tmp_path, content, found, fault):
    path = tmp_path / "x.json"
    path.write_text(content)
    if fault and fault.endswith("record 1"):
        found, fault = [], "record 1: invalid JSON: the file ends before the list is closed"
    got, problems = skipped(path)
    assert got == found and len(problems) == (fault is not None)
    assert not fault or fault in problems[0]


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.ndjson", "x.jsonl.gz", "x.json", "x.Json.GZ"])
@pytest.mark.parametrize(
    "content",
    ['\n[{"text": "a"},\n{"text": "b"}]\n', '[{"text": "a"}, {"text": "b"}]', '{"text": "a"}\n\n{"text": "b"}'],
)
def test_a_file_of_json_is_read_for_what_it_holds_whatever_its_ending_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.lower().endswith("gz") else content.encode())
    assert texts(tmp_path / name) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "x.txt.gz"])
def test_a_file_in_another_encoding_is_one_line(tmp_path, name, encoding):
    content = "\ufeff" * (encoding == "utf-16-be") + '{"text": "a"}\n{"text": "b"}\n'
    content = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, problems = skipped(tmp_path / name)
    assert not found and len(problems) == 1 and problems[0].endswith("it is in UTF-16 or UTF-32: save it as UTF-8")


@pytest.mark.parametrize("content", [b"a" * 2**27, b"\n" * 2**27, b'[{"text": "' + b"a" * 2**27])
@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.txt.gz"])
def test_a_bomb_ends_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1))
    _, problems = skipped(path, max_record_bytes=2**20)
    assert len(problems) >= 1
    assert any("more than" in problem or "ends before" in problem for problem in problems)


def test_a_row_of_parquet_larger_than_the_limit_is_one_bad_record(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b" * 5000, "c"]}), tmp_path / "x.parquet")
    assert skipped(tmp_path / "x.parquet", max_record_bytes=1000) == (
        ["a", "c"],
        [f"{tmp_path}/x.parquet, record 2: a row of more than 1,000 bytes"],
    )


@pytest.mark.parametrize("categories", [False, True])
def test_a_parquet_file_that_unpacks_to_a_thousand_times_its_size_is_not_read_on(tmp_path, categories):
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 99, pa.int32()), pa.array(["a" * 100_000]))
    pq.write_table(pa.table({"text": words if categories else words.dictionary_decode()}), tmp_path / "x.parquet")
    found, problems = skipped(tmp_path / "x.parquet", max_record_bytes=2_000_000)
    assert len(found) < 33 and len(problems) == 1
    assert "the file unpacks to more than 2,000,000 bytes, 100 times its stored size" in problems[0]
    assert len(texts(tmp_path / "x.parquet", max_record_bytes=10_000_000)) == 99


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"word {i}" * 50 for i in range(2000)]}), path, row_group_size=500)
    whole = path.read_bytes()
    for damaged in (whole[:2000], whole[: len(whole) // 2], whole[:200] + b"\xff" * 400 + whole[600:], b"", b"PAR1"):
        path.write_bytes(damaged)
        _, problems = skipped(path)
        assert len(problems) == 1 and "the file cannot be read from here on" in problems[0]


# Folders and names ---------------------------------------------------------------------------------------------------


def test_what_tells_about_the_data_is_no_document_of_a_folder_unless_it_is_named(tmp_path):
    about = ["README.md", "README_zh.md", "readme.txt", "LICENSE", "LICENSE-APACHE.txt", "CONTRIBUTING.md"]
    about += ["dataset_infos.json", "dataset_info.json", ".gitattributes", "CITATION.cff", "deep/README.md"]
    (tmp_path / "deep").mkdir()
    for name in about:
        (tmp_path / name).write_text(f"about {name}")
    for name in ("a.txt", "deep/b.md", "reading_me.md", "readme.jsonl"):
        (tmp_path / name).write_text('{"text": "data"}' if name.endswith("l") else "data")
    assert texts(tmp_path) == ["data"] * 4
    assert texts(tmp_path / "README.md") == ["about README.md"]
    (tmp_path / "about").mkdir()
    (tmp_path / "about" / "README.md").write_text("about")
    assert refusal(tmp_path / "about").endswith("about: no data files in this folder")
    assert texts(tmp_path / "README*.md") == ["about README.md", "about README_zh.md"]


def test_a_folder_with_the_name_of_a_file_is_a_folder_and_links_to_folders_above_are_passed_over(tmp_path):
    (tmp_path / "x.json").mkdir()
    (tmp_path / "x.json" / "a.txt").write_text("a")
    (tmp_path / "x.json" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert texts(tmp_path) == texts(tmp_path / "x.json") == ["a"]


def test_what_is_no_file_or_cannot_be_opened_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe, a socket or a device" in refusal(tmp_path / "pipe.jsonl")
    for name in ("a\nb.jsonl", os.fsdecode(b"caf\xe9.jsonl")):
        (tmp_path / name).write_text("")
        assert refusal(tmp_path / name).endswith("control characters or is not UTF-8: rename the file")
        with pytest.raises(UserError):
            sources.fingerprint(Source(str(tmp_path / name)))
        (tmp_path / name).unlink()
    for name in ("\x00", "a" * 5000, "~nobody_at_all/x.txt", "", "/proc/1/root/../x\ny.txt"):
        refusal(name)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "no such file" in refusal(tmp_path / "link.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    assert "link.jsonl:1: the file cannot be read from here on" in refusal(tmp_path / "*.jsonl".replace("*", "[al]*"))
    with pytest.raises(UserError, match=r"link\.jsonl"):
        sources.fingerprint(Source(f"{tmp_path}/[al]*.jsonl"))


def test_a_file_that_vanishes_while_it_is_read_is_one_line(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.json", "d.parquet"):
        (tmp_path / name).write_text('{"text": "a"}')
    tally = Tally()
    records = read(str(tmp_path), on_error="skip", tally=tally)
    assert next(records)["text"] == "a"
    for name in ("b.jsonl", "c.json", "d.parquet"):
        (tmp_path / name).unlink()
    assert list(records) == [] and tally.skipped == 3
    assert all("cannot be read from here on" in problem for problem in tally.problems)


# Small sources -------------------------------------------------------------------------------------------------------


def write(path, n):
    path.write_text(
        "".join(json.dumps({"instruction": f"question {i}", "output": f"answer {i}"}) + "\n" for i in range(n))
    )
    return str(path)


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_a_small_source_holds_out_at_least_one_record_and_always_the_same(tmp_path, n):
    path = write(tmp_path / "faq.jsonl", n)
    parts = [list(read(path, split=split, heldout=0.01)) for split in ("train", "heldout")]
    assert [len(part) for part in parts] == [n - 1, 1]
    assert list(read(path, split="heldout", heldout=0.01)) == parts[1]
    lines = (tmp_path / "faq.jsonl").read_text().splitlines()[::-1]
    (tmp_path / "turned.jsonl").write_text("\n".join(lines))
    assert list(read(f"{tmp_path}/turned.jsonl", split="heldout", heldout=0.01)) == parts[1]


def test_a_source_that_holds_something_out_by_its_share_is_divided_as_ever(tmp_path):
    path = write(tmp_path / "x.jsonl", 1000)
    found = [record["messages"][0]["content"] for record in read(path, split="heldout", heldout=0.01)]
    assert found == [f"question {i}" for i in (126, 175, 390, 462, 486, 515, 581, 767, 920)]


def test_a_source_of_one_prompt_says_which_setting_holds_nothing_out(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"instruction": "question", "output": "answer"}\n' * 3)
    assert len(list(read(f"{tmp_path}/one.jsonl", split="train"))) == 3
    tokenizer = train_sentencepiece(["question answer 0 1 2 3 " * 9], vocab_size=290, output_dir=tmp_path / "t")
    encoder = TextEncoder(tokenizer, load_template("vicuna"))
    with pytest.raises(UserError, match=r"\(heldout\): nothing to train on: 0 records.*\(heldout=SHARE holds out"):
        build_cache(Source(f"{tmp_path}/one.jsonl"), "heldout", encoder, tmp_path)
    with pytest.raises(
        UserError, match=r"\(train\): nothing to train on: 0 records.*\(heldout=SHARE holds out a small"
    ):
        build_cache(Source(f"{tmp_path}/one.jsonl", heldout=1.0), "train", encoder, tmp_path)
    small = Source(write(tmp_path / "faq.jsonl", 6))
    assert [len(build_cache(small, split, encoder, tmp_path)) for split in ("train", "heldout")] == [5, 1]


@pytest.mark.parametrize(
    "options", [{"heldout": -0.1}, {"heldout": 1.5}, {"heldout": float("nan")}, {"max_record_bytes": 0}]
)
def test_settings_out_of_range_are_refused(tmp_path, options):
    path = write(tmp_path / "x.jsonl", 2)
    with pytest.raises(UserError, match=next(iter(options))):
        read(path, split="train", **options)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.txt.gz", "x.csv.gz"])
def test_a_gzip_file_of_no_bytes_is_truncated(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name}:?.*: a gzip file of 0 bytes is truncated"):
        list(read(tmp_path / name))
    (tmp_path / name).write_bytes(gzip.compress(b""))
    assert list(read(tmp_path / name)) == []
