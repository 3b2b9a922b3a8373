"""A complete dataset is never changed, and no dataset is written among other files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from camelid.curate.dataset import Layout, write_dataset
from camelid.curate.outputs import check_replaceable
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.tests.curate.test_dataset import about, chats


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "rows, said, layout, differs",
    [
        (chats(3), about(), Layout(), "its rows"),
        (chats(2), replace(about(), config={"seed": 1}), Layout(), "its settings"),
        (chats(2), replace(about(), name="other"), Layout(), "its name"),
        (chats(2), replace(about(), versions={"jieba": "2"}), Layout(), "versions of packages"),
        (chats(2), about(), Layout(write_as="openai"), "its rows"),
        (
            chats(2),
            replace(about(), sources={"a": replace(about().sources["a"], fingerprint="g")}),
            Layout(),
            "its source a",
        ),
    ],
)
def test_a_complete_dataset_is_written_again_and_never_replaced_by_another(tmp_path, rows, said, layout, differs):
    write_dataset(tmp_path / "out", chats(2), [], about())
    first = files_of(tmp_path / "out")
    with pytest.raises(UserError, match=f"out holds a complete dataset that differs in {differs}: give another"):
        write_dataset(tmp_path / "out", rows, [], said, layout=layout)
    assert files_of(tmp_path / "out") == first
    (tmp_path / "out" / "train" / "part-00000-of-00001.jsonl").unlink()
    write_dataset(tmp_path / "out", chats(2), [], about())
    assert files_of(tmp_path / "out") == first


def test_only_an_empty_folder_or_one_of_a_dataset_is_written_into(tmp_path):
    check_replaceable(tmp_path / "none")
    (tmp_path / ".hidden").touch()
    check_replaceable(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"holds train, but no card.json"):
        check_replaceable(tmp_path)
    (tmp_path / ".writing").mkdir()  # a command was killed while it wrote
    check_replaceable(tmp_path)
    (tmp_path / "card.json").write_text('{"of": "another program"}')
    with pytest.raises(UserError, match=r"card.json is damaged, or no card"):
        check_replaceable(tmp_path)
    (tmp_path / "guide.md").touch()
    with pytest.raises(UserError, match=r"holds guide.md, which is no file of a dataset"):
        check_replaceable(tmp_path)
    with pytest.raises(UserError, match=r"there is a file of this name"):
        check_replaceable(tmp_path / "guide.md")


@pytest.mark.parametrize(
    "source, output, refused",
    [
        ("chats", "chats", True),
        ("chats", "chats/clean", True),
        ("chats", "chats2", False),
        ("chats/*.json", "chats/clean", False),
        ("chats/*", "chats/clean", True),
        ("chats/*/*.json", "chats/clean", True),
        ("chats/*/*/*.jsonl", "chats/clean", True),
        ("chats/../chats/*", "chats/clean", True),
        ("chats/a.json", "clean", False),
        ("primer:chat", "clean", False),
    ],
)
def test_an_output_among_the_records_of_a_source_is_refused(tmp_path, monkeypatch, source, output, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats").mkdir()
    if refused:
        with pytest.raises(UserError, match=re.escape(f"lies in the source {source}")):
            check_replaceable(Path(output), [source])
    else:
        check_replaceable(Path(output), [source])


@pytest.mark.parametrize("output, said", [("pages", "holds a.json"), ("pages/a.json", "a file of this name")])
def test_a_run_leaves_no_trace_in_a_folder_of_other_files(tmp_path, monkeypatch, capsys, output, said):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.json").write_text(json.dumps({"instruction": "Two?", "output": "Yes."}))
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    assert main(["curate", "conversations", "--source=pages/*.json", f"--output={output}", "--workers=1"]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert files_of(tmp_path) == before
