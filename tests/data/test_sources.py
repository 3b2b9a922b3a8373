"""Sources: files of every kind, TFDS, where a fault stands, stable splits and fingerprints."""

import datetime
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from camelid import tasks
from camelid.data import sources
from camelid.data.files import DOCUMENT_CHARACTERS
from camelid.data.sources import Source, split_of
from camelid.data.tally import Tally
from camelid.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"

CHAT = {
    "kind": "chat",
    "messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi"}],
}
SHAREGPT = {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "Hi"}]}


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(source, split=None, tally=None, **options):
    return sources.read(Source(str(source), **options), split, tally)


def fingerprint(source):
    return sources.fingerprint(Source(source))


def texts(source, **options):
    return [record["text"] for record in read(source, **options)]


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    records = [{"text": "a"}, SHAREGPT, {"text": "b"}]
    sources = {
        "list.json": json.dumps(records),
        "pretty.json": json.dumps(records, indent=2),
        "misnamed.json": lines(*records),
        "lines.jsonl": lines(*records),
        "bom_crlf_blank.jsonl": "\ufeff\n" + lines(*records).replace("\n", "\r\n\r\n"),
        "no_last_newline.jsonl": lines(*records).rstrip(),
        "lines.jsonl.gz": gzip.compress(lines(*records).encode()),
        "misnamed.json.gz": gzip.compress(lines(*records).encode()),
    }
    expected = [{"kind": "text", "text": "a"}, CHAT, {"kind": "text", "text": "b"}]
    for name, content in sources.items():
        assert list(read(write(tmp_path / name, content))) == expected, name
    pq.write_table(
        pa.Table.from_pylist([{"conversations": None, "text": None} | record for record in records]),
        tmp_path / "rows.parquet",
    )
    assert list(read(str(tmp_path / "rows.parquet"))) == expected


def test_a_glob_reads_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "b/1.jsonl", "a.jsonl"):
        write(tmp_path / name, lines({"text": name}))
    assert texts(f"{tmp_path}/b/*.jsonl") == ["b/1.jsonl", "b/2.jsonl"]
    assert texts(f"{tmp_path}/*/[12].jsonl") == ["b/1.jsonl", "b/2.jsonl"]
    with pytest.raises(UserError, match="is not supported; write one"):
        read(f"{tmp_path}/**/*.jsonl")
    write(tmp_path / "[1].jsonl", lines({"text": "literal"}))
    assert texts(f"{tmp_path}/[1].jsonl") == ["literal"]


def test_an_lmflow_file_is_one_object_whose_instances_are_the_records(tmp_path):
    file = {
        "type": "text2text",
        "instances": [{"input": "Q", "output": "A"}, {"input": "Q2", "output": ""}],
    }
    for indent in (None, 2):
        path = write(tmp_path / "lmflow.json", json.dumps(file, indent=indent))
        with pytest.raises(UserError, match=r"lmflow\.json.*, instance 2: output is empty"):
            list(read(path))
        tally = Tally()
        assert len(list(read(path, on_error="skip", tally=tally))) == tally.read == tally.skipped == 1


def test_parquet_values_that_json_lacks_become_text(tmp_path):
    row = {"text": "a", "day": datetime.date(2024, 2, 29), "raw": "é".encode(), "n": 3, "missing": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    meta = {"day": "2024-02-29", "raw": "é", "n": 3}
    assert list(read(str(tmp_path / "x.parquet"))) == [{"kind": "text", "text": "a", "meta": meta}]


FAULTS = [
    ("x.jsonl", b'{"text": "a"}\n\n{"text": \n{"text": "d"}\n', "x.jsonl:3: invalid JSON: Expecting value at column 9"),
    ("x.jsonl", b'{"text": "a"}\n{"text": ""}\n{"text": "d"}\n', "x.jsonl:2: text is empty"),
    ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "d"}\n', "x.jsonl:2: not UTF-8: byte 0xff at position 11"),
    (
        "x.jsonl",
        b'{"text": "a"}\n[]\n{"text": "d"}\n',
        "x.jsonl:2: a record must be an object with named fields, not a list",
    ),
    (
        "x.jsonl",
        b'{"text": "a"}\n' + b"[" * 100_000 + b'\n{"text": "d"}\n',
        "x.jsonl:2: invalid JSON: nested too deeply",
    ),
    ("x.json", b'[{"text": "a"}, {"txt": "b"}, {"text": "d"}]', "x.json, record 2: no format has the fields txt"),
    ("x.txt", b"a\n\xff\nd\n", "x.txt:2: not UTF-8"),
]


@pytest.mark.parametrize("name,content,fault", FAULTS)
def test_a_malformed_record_names_its_place_or_is_left_out_and_listed(tmp_path, name, content, fault):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as problem:
        list(read(path))
    assert f"{tmp_path}/{fault}" in str(problem.value)
    assert str(problem.value).endswith("(on_error=skip leaves such records out)")
    assert "\n" not in str(problem.value)

    tally = Tally()
    kept = "".join(texts(path, on_error="skip", tally=tally)).replace("\n", "")
    assert kept == "ad"
    assert tally.skipped == 1
    assert fault in tally.problems[0] and fault in str(tally)


UNREADABLE = [
    ("x.json", b'{"text": ]', "x.json: invalid JSON: Expecting value at column 10"),
    ("x.jsonl.gz", b"not gzip", "x.jsonl.gz:1: the file cannot be read from here on"),
    ("x.parquet", b"not parquet", "x.parquet, record 1: the file cannot be read from here on"),
]


@pytest.mark.parametrize("name,content,fault", UNREADABLE)
def test_a_file_that_cannot_be_read_names_itself_and_the_others_are_read_on(tmp_path, name, content, fault):
    write(tmp_path / name, content)
    write(tmp_path / "y.jsonl", lines({"text": "y"}))
    with pytest.raises(UserError, match="on_error=skip"):
        list(read(f"{tmp_path}/*"))
    tally = Tally()
    assert texts(f"{tmp_path}/*", on_error="skip", tally=tally) == ["y"]
    assert tally.skipped == 1 and fault in tally.problems[0]


def test_a_truncated_gzip_gives_what_it_holds_and_says_where_it_ends(tmp_path):
    whole = gzip.compress(lines(*({"text": str(i)} for i in range(20_000))).encode())
    write(tmp_path / "x.jsonl.gz", whole[: len(whole) // 2])
    tally = Tally()
    kept = texts(f"{tmp_path}/x.jsonl.gz", on_error="skip", tally=tally)
    assert kept == [str(i) for i in range(len(kept))] and len(kept) > 1000
    assert tally.problems[0].startswith(f"{tmp_path}/x.jsonl.gz:{len(kept) + 1}: ")


def test_a_tally_counts_all_and_lists_the_first_problems(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(*[{"text": ""}] * 50, {"text": "a"}))
    tally = Tally()
    assert texts(path, on_error="skip", tally=tally) == ["a"]
    assert (tally.read, tally.skipped, len(tally.problems)) == (1, 50, 20)
    assert str(tally) == f"1 records, 50 skipped ({path}:1: text is empty)"


@pytest.mark.parametrize(
    "options,fault",
    [
        ({"source": "nowhere/*.jsonl"}, "nowhere/*.jsonl: no such file"),
        ({"source": "primmer:chat"}, "primmer:chat: no such file; did you mean primer?"),
        (
            {"source": "primer:chats"},
            "primer:chats: primer has no such kind of records; choose one of primer:documents, ",
        ),
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"source": "{tmp}"}, "x.docx: cannot read this kind of file"),
        ({"source": "{tmp}/empty"}, "empty: no data files in this folder"),
        (
            {"source": "{tmp}/x.docx"},
            "cannot read this kind of file; give .txt, .md, .json, .jsonl, .ndjson, .csv, .tsv, .parquet",
        ),
        ({"source": "{tmp}/x.docx", "format": "csv"}, "format is 'csv'; it must be one of auto, text"),
        ({"source": "{tmp}/x.docx", "on_error": "ignore"}, "on_error is 'ignore'"),
        ({"source": "{tmp}/x.docx", "split": "test"}, "split is 'test'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_read(tmp_path, options, fault):
    write(tmp_path / "x.docx", "a,b\n")
    (tmp_path / "empty").mkdir()
    options["source"] = options["source"].replace("{tmp}", str(tmp_path))
    with pytest.raises(UserError) as problem:
        read(**options)
    assert fault in str(problem.value)


def test_a_folder_is_all_files_in_it_by_name_but_for_hidden_ones(tmp_path):
    for place in ("b.txt", "a/z.jsonl", "a/deep/y.md", "c.json", ".hidden.docx", ".git/config.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(place).suffix
        write(tmp_path / place, lines({"text": place}) if suffix.startswith(".json") else place)
    found = ["a/deep/y.md", "a/z.jsonl", "b.txt", "c.json"]
    assert texts(str(tmp_path)) == found == texts(f"{tmp_path}/*")
    write(tmp_path / "a/z.jsonl", lines({"text": "fine"}, {"txt": "a typo"}))
    with pytest.raises(UserError, match=r"a/z\.jsonl:2: no format has the fields txt"):
        texts(str(tmp_path))


def test_jsonl_is_streamed_not_loaded(tmp_path):
    path = write(tmp_path / "x.jsonl", lines({"text": "a"}) + "not JSON\n")
    assert next(read(path)) == {"kind": "text", "text": "a"}


def test_a_short_text_file_is_one_document_and_a_long_one_is_cut_at_blank_lines(tmp_path):
    poem = "line one\nline two\n"
    assert texts(write(tmp_path / "short.txt", f"\n{poem}\n{poem}\n")) == [f"{poem}\n{poem}".strip()]

    poems = [f"poem {i}\n" + "words " * (i % 40) for i in range(500)]
    documents = texts(write(tmp_path / "long.txt", "\r\n\r\n".join(poems)))
    assert len(documents) > 10
    assert "\n\n".join(documents) == "\n\n".join(poems), "nothing is lost and no poem is cut"
    sizes = [len(document) for document in documents[:-1]]
    assert min(sizes) >= DOCUMENT_CHARACTERS - 2 and max(sizes) < DOCUMENT_CHARACTERS + 300

    dense = "a line without a blank one after it\n" * 1000
    documents = texts(write(tmp_path / "dense.txt", dense))
    assert "\n".join(documents) + "\n" == dense
    assert max(map(len, documents)) < 2 * DOCUMENT_CHARACTERS + 50


@pytest.mark.parametrize(
    "record,position",  # the hash is what `printf %s JSON | b2sum -l 64` prints for the JSON of text or first user turn
    [
        ({"kind": "text", "text": "hello", "meta": {"id": 1}}, 0xEEAE9BEA99F91D8A),
        (CHAT, 0x312D5E4A7635B623),
        (
            {"kind": "prompt", "messages": [{"role": "system", "content": "S"}, *CHAT["messages"][:1]]},
            0x312D5E4A7635B623,
        ),
        (
            {"kind": "prompt", "messages": [{"role": "user", "content": "Add.", "input": "1 2"}]},
            0xAA0BA3AC21F9C74D,
        ),
    ],
)
def test_the_split_is_the_known_hash_of_the_prompt(record, position):
    fraction = position / 2**64
    assert split_of(record, fraction + 1e-9) == "heldout"
    assert split_of(record, fraction - 1e-9) == "train"


def test_the_two_parts_make_up_the_source_and_share_no_prompt(tmp_path):
    records = [{"instruction": f"Question {i % 500}", "input": "", "output": f"Answer {i}"} for i in range(1000)]
    path = write(tmp_path / "x.jsonl", lines(*records))
    train, heldout = (list(read(path, split=split, heldout=0.2)) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 1000
    assert 120 < len(heldout) < 280
    prompts = [{record["messages"][0]["content"] for record in part} for part in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert list(read(path, split="train", heldout=0.0)) == list(read(path))


def test_the_split_does_not_depend_on_the_hash_seed_of_python(tmp_path):
    program = (
        "from camelid.data.sources import split_of\n"
        "print([split_of({'kind': 'text', 'text': str(i)}, 0.5) for i in range(50)])"
    )
    seeds = ({**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2"))
    outputs = {subprocess.check_output([sys.executable, "-c", program], env=env) for env in seeds}
    assert outputs == {str([split_of({"kind": "text", "text": str(i)}, 0.5) for i in range(50)]).encode() + b"\n"}


def test_a_fingerprint_follows_names_and_contents_but_not_the_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "1.jsonl", lines({"text": "one"}))
        write(tmp_path / folder / "2.jsonl", lines({"text": "two"}))
    first = fingerprint(f"{tmp_path}/a/*.jsonl")
    assert first == fingerprint(f"{tmp_path}/b/*.jsonl")
    write(tmp_path / "b" / "2.jsonl", lines({"text": "owt"}))
    changed = fingerprint(f"{tmp_path}/b/*.jsonl")
    write(tmp_path / "b" / "2.jsonl", lines({"text": "two"}))
    (tmp_path / "b" / "2.jsonl").rename(tmp_path / "b" / "3.jsonl")
    renamed = fingerprint(f"{tmp_path}/b/*.jsonl")
    assert len({first, changed, renamed, fingerprint(f"{tmp_path}/a/1.jsonl")}) == 4


def test_a_generator_is_read_by_its_name_and_kind():
    records = list(tasks.find("walks").records("chat", "heldout"))
    assert list(read("walks:chat", split="heldout", tally=(tally := Tally()))) == records
    assert tally.read == len(records)
    assert list(read("walks:chat")) == [*tasks.find("walks").records("chat", "train"), *records]


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_kind_that_a_generator_lacks_is_refused_with_the_ones_that_it_has(name):
    kinds = ", ".join(f"{name}:{kind}" for kind in tasks.find(name).KINDS)
    for use in (read, fingerprint):
        with pytest.raises(UserError) as problem:
            use(f"{name}:letters")
        assert str(problem.value) == f"{name}:letters: {name} has no such kind of records; choose one of {kinds}"


def test_the_fingerprint_of_a_generator_follows_kind_and_files(tmp_path, monkeypatch):
    sources = ["primer:documents", "primer:chat", "walks:chat", "walks:pairs", "safe_sums:chat", "safe_sums:pairs"]
    first = {source: fingerprint(source) for source in sources}
    assert len(set(first.values())) == len(sources)
    assert first == {source: fingerprint(source) for source in sources}
    changed = Path(write(tmp_path / "walks.py", "another program"))
    monkeypatch.setattr(tasks.find("walks"), "files", lambda: [changed])
    assert fingerprint("walks:chat") != first["walks:chat"]


class TinyChats(tfds.core.GeneratorBasedBuilder):
    """Five conversations as TFDS stores them: bytes, numpy scalars, and columns in place of a list of objects."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        turns = tfds.features.Sequence({"from": tfds.features.Text(), "value": tfds.features.Text()})
        tags = tfds.features.Sequence(tfds.features.Text())
        features = tfds.features.FeaturesDict({"id": np.int64, "tags": tags, "conversations": turns})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            answer = "" if i == 3 else f"第{i}"
            turns = [{"from": "human", "value": f"Q{i}"}, {"from": "gpt", "value": answer}]
            yield i, {"id": i, "tags": ["x"] * i, "conversations": turns}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    builder = TinyChats(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_a_prepared_tfds_folder_reads_back_as_records(tfds_folder):
    tally = Tally()
    records = list(read(f"tfds:{tfds_folder}:train", on_error="skip", tally=tally))
    expected = {
        i: {
            "kind": "chat",
            "messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"第{i}"}],
            "meta": {"id": i, "tags": ["x"] * i},
        }
        for i in (0, 1, 2, 4)
    }
    assert {record["meta"]["id"]: record for record in records} == expected
    json.dumps(records)
    assert tally.skipped == 1 and "turn 2 (assistant) is empty" in tally.problems[0]
    with pytest.raises(UserError, match=r"1\.0\.0:train, record \d: turn 2"):
        list(read(f"tfds:{tfds_folder}:train"))
    sliced = list(read(f"tfds:{tfds_folder}:train[:40%]", on_error="skip", tally=(part := Tally())))
    assert part.read + part.skipped == 2 and sliced == records[: part.read]


def test_a_tfds_dataset_is_found_by_name_in_tfds_data_dir(tfds_folder):
    program = (
        "import sys; from camelid.data.sources import Source, read; "
        "print(len(list(read(Source(sys.argv[1], on_error='skip')))))"
    )
    environment = {**os.environ, "TFDS_DATA_DIR": str(tfds_folder.parents[1])}
    command = [sys.executable, "-c", program, "tfds:tiny_chats:train"]
    assert subprocess.check_output(command, env=environment) == b"4\n"


def test_a_tfds_dataset_that_cannot_be_had_says_how_to_get_it(tfds_folder):
    with pytest.raises(UserError, match="Unknown split 'test'"):
        list(read(f"tfds:{tfds_folder}:test"))
    with pytest.raises(UserError, match="names no split: give one, such as tfds:tiny_chats:train"):
        list(read("tfds:tiny_chats"))
    with pytest.raises(UserError, match=r"no_such_set not found.*tfds build --file_format=array_record.*TFDS_DATA_DIR"):
        list(read("tfds:no_such_set:train"))


def test_a_tfds_fingerprint_follows_the_split_and_its_shards(tfds_folder, tmp_path):
    copy = tmp_path / "elsewhere" / "1.0.0"
    shutil.copytree(tfds_folder, copy)
    first = fingerprint(f"tfds:{tfds_folder}:train")
    assert first == fingerprint(f"tfds:{copy}:train") != fingerprint(f"tfds:{copy}:train[:40%]")
    (shard,) = copy.glob("*array_record-*")
    shard.write_bytes(shard.read_bytes() + b"x")
    assert fingerprint(f"tfds:{copy}:train") != first


REAL = {
    "alpaca_*_demo.json": ("chat", 1999),
    "dpo_*_demo.json": ("preference", 600),
    "sharegpt_en.json": ("chat", 500),
    "seed_tasks_*.jsonl": ("chat", 350),
    "c4_en.jsonl": ("text", 300),
}


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("pattern", REAL)
def test_public_files_are_read_without_a_fault(pattern):
    kind, count = REAL[pattern]
    records = list(read(str(SHARED / pattern)))
    assert len(records) == count and {record["kind"] for record in records} == {kind}


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_every_poem_of_the_public_collection_stays_whole():
    documents = texts(str(SHARED / "tang_poems_zh.txt"))
    poems = (SHARED / "tang_poems_zh.txt").read_text("utf-8").strip("\n").split("\n\n")
    assert [poem for document in documents for poem in document.split("\n\n")] == poems
