"""Cards of datasets: written and read, found from any location of their files, and what reading a dataset checks."""

import dataclasses
import hashlib
import json

import pytest

from camelid.data.cards import Card, CardSource, CardStep, Count, Parent, card_of, has_card, hash_of, read_card
from camelid.data.checksums import checksum
from camelid.data.files import find_files
from camelid.data.sources import Source, read
from camelid.errors import UserError


def dataset(folder, texts, name="chats", heldout=(), **fields):
    """A dataset of texts in a folder, with its card."""
    files = {}
    for split, of_split in (("train", texts), ("heldout", heldout)):
        for number, part in enumerate([of_split[::2], of_split[1::2]] if of_split else []):
            path = folder / split / f"part-{number:05d}-of-00002.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"kind": "text", "text": text}) + "\n" for text in part))
            files[str(path.relative_to(folder))] = checksum(path)
    (folder / "report.md").write_text("# chats")
    count = Count(len(texts), sum(map(len, texts)))
    sources = {"web": CardSource("web/*.json", "ab12", len(texts) + 1, count, "MIT", "gpt-4", "openai-terms")}
    steps = {"length": CardStep("length", {"characters": [2, None]}, 1, {"too_short": 1})}
    fields = {"sources": sources, "steps": steps} | fields
    card = Card(
        name, "characters", None, {"train": count}, {"en": count}, files=files, config=hash_of({"a": 1}), **fields
    )
    card.write(folder)
    return card


def test_a_card_is_read_as_it_was_written_and_has_no_other_bytes_the_second_time(tmp_path):
    parent = dataset(tmp_path / "one", ["a text", "一篇文章"])
    child = dataset(tmp_path / "two", ["a text"], parents={"one": Parent("one", parent)})
    assert read_card(tmp_path / "two") == child
    written = (tmp_path / "two/card.json").read_bytes()
    child.write(tmp_path / "two")
    assert (tmp_path / "two/card.json").read_bytes() == written
    assert child.hash != parent.hash


def test_the_hash_of_a_card_covers_its_parents(tmp_path):
    one, other = dataset(tmp_path / "one", ["a"]), dataset(tmp_path / "other", ["b"])
    children = [
        dataset(tmp_path / f"child{n}", ["a"], parents={"p": Parent("p", p)}) for n, p in enumerate((one, other))
    ]
    assert children[0].hash != children[1].hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("unit"), "needs the fields name, unit"),
        (lambda found: found.update(camelid_card=9), "has version 9, not 1"),
        (lambda found: found["splits"]["train"].update(rows="7"), "splits.train: rows has another type"),
        (lambda found: found["sources"].update(web=[]), "sources.web needs the fields location"),
        (lambda found: found.pop("camelid_card"), "is no card of a dataset"),
    ],
)
def test_a_card_with_other_fields_is_one_line_that_names_them(tmp_path, change, said):
    dataset(tmp_path, ["a"])
    path = tmp_path / "card.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=said):
        read_card(tmp_path)


def test_a_folder_without_a_card_or_with_half_of_one_says_so(tmp_path):
    with pytest.raises(UserError, match=r"has no card\.json"):
        read_card(tmp_path)
    (tmp_path / "card.json").write_text('{"camelid_card": 1, ')
    assert has_card(tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        read_card(tmp_path)


def test_the_folder_of_a_dataset_is_read_as_its_training_rows(tmp_path):
    dataset(tmp_path, ["a", "b", "c"], heldout=["d"])
    (tmp_path / "rejected").mkdir()
    (tmp_path / "rejected/part.jsonl").write_text('{"id": "x"}\n')
    assert [file.name for file in find_files(str(tmp_path))] == [
        "part-00000-of-00002.jsonl",
        "part-00001-of-00002.jsonl",
    ]
    assert sorted(record["text"] for record in read(Source(str(tmp_path)))) == ["a", "b", "c"]
    assert [record["text"] for record in read(Source(str(tmp_path / "heldout")))] == ["d"]


@pytest.mark.parametrize("left", [0, 1, 5, 40, -2])
def test_a_dataset_whose_card_is_cut_is_not_read_as_a_heap_of_files(tmp_path, left):
    dataset(tmp_path / "set", ["a", "b"], heldout=["c"])
    path = tmp_path / "set/card.json"
    path.write_bytes(path.read_bytes()[:left])
    for place in (tmp_path / "set", tmp_path, tmp_path / "set*"):
        for on_error in ("raise", "skip"):
            message = r"set/card\.json is damaged .*remove the folder, and make the dataset anew"
            with pytest.raises(UserError, match=message):
                list(read(Source(str(place), on_error=on_error)))


@pytest.mark.parametrize("beside", ["heldout", "rejected", ".writing"])
def test_a_dataset_without_its_card_is_not_read_as_a_heap_of_files(tmp_path, beside):
    dataset(tmp_path / "set", ["a", "b"])
    (tmp_path / "set" / beside).mkdir()
    (tmp_path / "set/card.json").unlink()
    for place in (tmp_path / "set", tmp_path):
        with pytest.raises(UserError, match=r"set is a dataset without its card\.json: give the command .*set/train"):
            find_files(str(place))
    assert sorted(record["text"] for record in read(Source(str(tmp_path / "set/train")))) == ["a", "b"]


def test_folders_of_other_programs_with_a_train_split_are_read_whole(tmp_path):
    for name in ("train/data-00000-of-00001.jsonl", "heldout/a.jsonl", "more/train/part-00000-of-00001.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "b"}\n')
    assert len(find_files(str(tmp_path))) == 3


def test_the_training_rows_of_datasets_in_a_folder_are_read(tmp_path):
    for name in ("one", "two"):
        dataset(tmp_path / name, [name], heldout=["held out"])
        (tmp_path / name / "report.md").write_text("# Report")
    assert [record["text"] for record in read(Source(str(tmp_path)))] == ["one", "two"]


def test_names_that_are_not_utf8_have_cards_and_hashes(tmp_path):
    card = dataclasses.replace(dataset(tmp_path, ["a"]), name="bad\udcff", config=hash_of({"folder": "bad\udcff"}))
    card.write(tmp_path)
    assert read_card(tmp_path) == card and read_card(tmp_path).hash == card.hash
    assert hash_of({"b": "é\udcff", "a": 1}) == hashlib.sha256(b'{"a": 1, "b": "\xc3\xa9\\udcff"}').hexdigest()


def test_the_card_of_another_program_changes_nothing(tmp_path):
    (tmp_path / "card.json").write_text('{"text": "a card of another program"}')
    (tmp_path / "more.jsonl").write_text('{"text": "b"}\n')
    assert [file.name for file in find_files(str(tmp_path))] == ["card.json", "more.jsonl"]


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_dataset_whose_file_is_cut_or_gone_is_not_read(tmp_path, harm):
    dataset(tmp_path, ["a text", "another"])
    path = tmp_path / "train/part-00001-of-00002.jsonl"
    path.unlink() if harm == "gone" else path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"part-00001-of-00002\.jsonl (is missing|has \d+ bytes instead of \d+)"):
        find_files(str(tmp_path))


def test_other_bytes_of_the_same_length_are_found_by_their_checksum(tmp_path):
    card = dataset(tmp_path, ["a text", "another"])
    assert card.damage(tmp_path) is None
    path = tmp_path / "train/part-00000-of-00002.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a text", b"a Text"))
    card.check_sizes(tmp_path)
    assert card.damage(tmp_path) == "train/part-00000-of-00002.jsonl has other bytes than were written"


@pytest.mark.parametrize(
    "inside", ["", "train", "train/*.jsonl", "heldout/part-00000-of-00002.jsonl", "*/part-*.jsonl"]
)
def test_a_dataset_is_recognised_from_any_location_of_its_files(tmp_path, inside):
    card = dataset(tmp_path / "set", ["a", "b"], heldout=["c", "d"])
    folder, found = card_of(str(tmp_path / "set" / inside))
    assert (str(folder), found) == (str(tmp_path / "set"), card)


@pytest.mark.parametrize("inside", ["notes", "train/other.jsonl", "../else", "rejected"])
def test_what_lies_beside_a_datasets_files_is_not_the_dataset(tmp_path, inside):
    dataset(tmp_path / "set", ["a", "b"])
    assert card_of(str(tmp_path / "set" / inside)) is None


@pytest.mark.parametrize(
    "location", ["primer:chat", "tfds:imdb_reviews:train", "http://localhost:8000/v1", "seeds.jsonl"]
)
def test_other_sources_have_no_card(location):
    assert card_of(location) is None


def test_origins_go_through_datasets_to_what_was_read_first(tmp_path):
    one = dataset(tmp_path / "one", ["a"])
    source = CardSource("one", "cd34", 1, Count(1, 1))
    two = dataset(tmp_path / "two", ["a"], sources={"x": source}, parents={"x": Parent("one", one)})
    mixed = dataset(
        tmp_path / "mix", ["a"], sources={"two/x": source, "y": source}, parents={"two": Parent("two", two)}
    )
    assert [name for name, _ in two.origins()] == ["x/web"]
    assert [(name, origin.location) for name, origin in mixed.origins()] == [("two/x/web", "web/*.json"), ("y", "one")]
    assert mixed.parent_of("two/x").card == one
    assert mixed.parent_of("y") is None
