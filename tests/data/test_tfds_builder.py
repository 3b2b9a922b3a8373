"""Sources as TFDS datasets: what goes in comes out again, by our own reader and by plain TFDS."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow_datasets as tfds

from camelid.data import locks, sources
from camelid.data.sources import Source
from camelid.data.tfds_builder import build_dataset
from camelid.errors import UserError

tfds.disable_progress_bar()


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content):
    return {"role": "assistant", "content": content}


RECORDS = {
    "text": [{"kind": "text", "text": f"document {i}, 你好\n\x00 é"} for i in range(40)],
    "chat": [
        {"kind": "chat", "messages": [user(f"question {i}", input="材料"), assistant(f"answer {i}")]} for i in range(40)
    ]
    + [{"kind": "chat", "messages": [user("a"), assistant("b"), user("c"), assistant("d")]}],
    "preference": [
        {
            "kind": "preference",
            "messages": [user(f"question {i}")],
            "chosen": [assistant("好")],
            "rejected": [assistant("no")],
            "margin": i / 4,
            "safer": "rejected" if i % 3 else "chosen",
            "chosen_safe": i % 2 == 0,
            "rejected_safe": False,
        }
        for i in range(40)
    ],
    "prompt": [{"kind": "prompt", "messages": [user(f"question {i}")]} for i in range(40)],
}


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return str(path)


def as_set(records):
    return {json.dumps(record, sort_keys=True) for record in records}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_built_dataset_reads_back_as_the_same_records_in_the_same_splits(tmp_path, kind):
    source = write(tmp_path / "records.jsonl", RECORDS[kind])
    folder = build_dataset(Source(source, heldout=0.3), "mine", tmp_path / "datasets")
    assert folder == tmp_path / "datasets" / "mine" / kind / "1.0.0"
    for split in ("train", "heldout"):
        expected = list(sources.read(Source(source, heldout=0.3), split))
        back = [{k: v for k, v in r.items() if k != "meta"} for r in sources.read(Source(f"tfds:{folder}:{split}"))]
        assert len(back) == len(expected) > 0
        assert as_set(back) == as_set(expected)


def test_plain_tfds_opens_it_with_its_metadata(tmp_path):
    records = [record | {"meta": {"id": i}} for i, record in enumerate(RECORDS["text"])]
    source = write(tmp_path / "records.jsonl", records)
    folder = build_dataset(Source(source, heldout=0.3), "mine", tmp_path)
    builder = tfds.builder_from_directory(folder)
    data = {split: builder.as_data_source(split=split) for split in ("train", "heldout")}
    assert sum(map(len, data.values())) == 40
    texts = {example["text"].decode(): json.loads(example["meta"]) for part in data.values() for example in part}
    assert texts == {record["text"]: record["meta"] for record in records}
    assert builder.info.metadata == {
        "source": source,
        "fingerprint": sources.fingerprint(Source(source)),
        "format": "auto",
        "heldout": 0.3,
        "records": {split: len(examples) for split, examples in data.items()},
    }
    assert builder.info.file_format.value == "array_record"


def test_a_built_dataset_is_reused_and_never_overwritten_by_another_source(tmp_path):
    source = write(tmp_path / "records.jsonl", RECORDS["text"])
    folder = build_dataset(Source(source), "mine", tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert build_dataset(Source(source), "mine", tmp_path) == folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UserError, match="made from other data or settings"):
        build_dataset(Source(source, heldout=0.5), "mine", tmp_path)


def test_a_source_too_small_to_hold_anything_out_has_no_heldout_split(tmp_path):
    source = write(tmp_path / "records.jsonl", RECORDS["text"][:2])
    folder = build_dataset(Source(source, heldout=0.0), "mine", tmp_path)
    assert list(tfds.builder_from_directory(folder).info.splits) == ["train"]


def test_mistakes_are_one_clear_line_and_leave_no_dataset(tmp_path):
    mixed = write(tmp_path / "mixed.jsonl", RECORDS["text"] + RECORDS["prompt"])
    with pytest.raises(UserError, match=r"mixed\.jsonl:41: a prompt record among text records"):
        build_dataset(Source(mixed), "mine", tmp_path)
    assert not (tmp_path / "mine" / "text" / "1.0.0").exists()
    unlabelled = {name: value for name, value in RECORDS["preference"][0].items() if name != "safer"}
    labelled = write(tmp_path / "labelled.jsonl", [*RECORDS["preference"], unlabelled])
    with pytest.raises(UserError, match="some records have the field safer and some do not"):
        build_dataset(Source(labelled, heldout=0.0), "labelled", tmp_path)
    with pytest.raises(UserError, match="'My Data': use small letters"):
        build_dataset(Source(mixed), "My Data", tmp_path)
    with pytest.raises(UserError, match="there are no records"):
        build_dataset(Source(write(tmp_path / "empty.jsonl", [])), "mine", tmp_path)
    some = write(tmp_path / "some.jsonl", [{"text": "a"}, {"text": 1}, {"text": "b"}])
    with pytest.raises(UserError, match=r"some\.jsonl:2"):
        build_dataset(Source(some), "some", tmp_path)
    folder = build_dataset(Source(some, on_error="skip", heldout=0.0), "some", tmp_path)
    assert len(list(sources.read(Source(f"tfds:{folder}:train")))) == 2


def test_nothing_of_it_loads_tensorflow(tmp_path):
    source = write(tmp_path / "records.jsonl", RECORDS["chat"])
    code = f"""
import sys
from camelid.data import packed_rows, prefetch, prompts, sources, tfds_builder
folder = tfds_builder.build_dataset(sources.Source({source!r}), "mine", {str(tmp_path)!r})
assert len(list(sources.read(sources.Source(f"tfds:{{folder}}:train")))) > 30
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_process_builds_a_dataset_leaves_nothing_else_and_takes_away_what_a_killed_one_left(
    tmp_path, monkeypatch, capsys
):
    source = write(tmp_path / "records.jsonl", RECORDS["text"])
    kind = tmp_path / "datasets" / "mine" / "text"
    (kind / "incomplete.AB12CD_1.0.0").mkdir(parents=True)
    (tmp_path / "datasets" / ".mine.text.downloads" / "extracted").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with ThreadPoolExecutor(1) as pool:
        with locks.locked(tmp_path / "datasets" / ".mine.text.lock", pytest.fail):
            build = pool.submit(build_dataset, Source(source, heldout=0.3), "mine", tmp_path / "datasets")
            while "which is building" not in capsys.readouterr().err:
                assert not build.done(), build.result()
            assert os.listdir(kind) == ["incomplete.AB12CD_1.0.0"]
        assert build.result() == kind / "1.0.0"
    assert os.listdir(kind) == ["1.0.0"]
    assert os.listdir(tmp_path / "datasets") == ["mine"] and os.listdir(tmp_path / "tmp") == []
    with pytest.raises(UserError, match="made from other data or settings"):
        build_dataset(Source(source, heldout=0.5), "mine", tmp_path / "datasets")


def test_what_the_writer_of_records_cannot_do_is_an_error_of_the_machine(tmp_path, monkeypatch):
    def fail(self, **_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match=r"mine/text/1\.0\.0: write\(\) failed: No space left"):
        build_dataset(Source(write(tmp_path / "records.jsonl", RECORDS["text"])), "mine", tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A dataset's folder and what its training split reads back as."""
    root = tmp_path_factory.mktemp("built")
    folder = build_dataset(Source(write(root / "records.jsonl", RECORDS["chat"]), heldout=0.3), "mine", root)
    return folder, list(sources.read(Source(f"tfds:{folder}:train")))


@pytest.mark.parametrize("seed", range(int(os.environ.get("CAMELID_FUZZ", 20))))  # 200 by hand
def test_a_damaged_dataset_gives_its_own_records_or_is_one_line(built, tmp_path, seed):
    folder, records = built
    copy = shutil.copytree(folder, tmp_path / "mine" / "chat" / "1.0.0")
    rng = random.Random(seed)
    path = rng.choice(sorted(copy.iterdir()))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    match seed % 4:
        case 0:
            del content[place:]
        case 1:
            content[place] ^= 1 << rng.randrange(8)
        case 2:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
    path.unlink() if seed % 4 == 3 else path.write_bytes(content)
    try:
        found = list(sources.read(Source(f"tfds:{copy}:train")))
    except UserError as error:
        assert str(copy) in str(error) and "\n" not in str(error)
    else:
        assert found == records
