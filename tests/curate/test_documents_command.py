"""`camelid curate documents` writes datasets that data/ reads, with a teacher over HTTP and without one."""

import json
import os
import shutil

import pytest

from camelid.data.cards import read_card
from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.launch.commands.arguments import Parser
from camelid.launch.commands.documents import add_documents
from camelid.tests.serve.misbehaving import misbehaving

PASSAGE = "# Returns\n\nGoods can be returned within 30 days. Keep the receipt and bring it to the shop with the goods."


def run(*words):
    parser = Parser(prog="camelid")
    add_documents(parser.add_subparsers(dest="action", required=True, parser_class=Parser))
    args = parser.parse_args(["documents", *map(str, words)])
    args.run(args)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "returns.md").write_text(PASSAGE)
    (tmp_path / "shop" / "faq.csv").write_text("ask;tell\nWho?;Ann.\n谁？;安。\n")
    return tmp_path / "shop"


COLUMNS = '--columns={"instruction": "ask", "output": "tell"}'


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_that_are_not_utf8_are_written_with_their_bytes(folder, tmp_path):
    try:
        folder = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/shop \xb5"))
        (folder / "returns.md").rename(os.fsdecode(os.fsencode(folder) + b"/r\xfcck.md"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    run(folder, f"--output={tmp_path / 'out'}", COLUMNS)
    (row,) = read(Source(str(tmp_path / "out/documents")))
    assert row["meta"]["file"] == r"r\xfcck.md"
    assert read_card(tmp_path / "out/documents").sources["documents"].location == rf"{tmp_path}/shop \xb5"
    assert r"| r\xfcck.md |" in (tmp_path / "out/documents/report.md").read_text("utf-8")


def test_passages_and_questions_are_datasets_with_cards(folder, tmp_path, capsys):
    out = tmp_path / "out"
    run(folder, f"--output={out}", COLUMNS, "--licence=MIT")
    (passage,) = read(Source(str(out / "documents")))
    assert passage["text"] == PASSAGE and passage["meta"]["heading"] == ["Returns"]
    assert passage["meta"]["file"] == "returns.md" and passage["meta"]["place"] == "returns.md, passage 1"
    questions = list(read(Source(str(out / "questions"))))
    assert sorted(record["messages"][0]["content"] for record in questions) == ["Who?", "谁？"]
    card = read_card(out / "questions")
    assert card.sources["documents"].licence == "MIT" and card.damage(out / "questions") is None
    assert {name: count.rows for name, count in card.languages.items()} == {"en": 1, "zh": 1}
    assert "faq.csv" in capsys.readouterr().out
    again = bytes_of(out)
    run(folder, f"--output={out}", COLUMNS, "--licence=MIT")
    assert bytes_of(out) == again


def test_files_that_cannot_be_read_end_the_command_or_are_rejected_by_name(folder, tmp_path, capsys):
    (folder / "bad.docx").write_bytes(b"PK broken")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"bad\.docx: it is damaged"):
        run(folder, f"--output={out}", COLUMNS)
    assert not (out / "documents").exists()
    run(folder, f"--output={out}", COLUMNS, "--on_error=skip")
    (line,) = (out / "documents" / "rejected" / "part-00000-of-00001.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("place", "step", "reason")} == {
        "place": "bad.docx",
        "step": "read",
        "reason": "unreadable",
    }
    assert "bad.docx" in (out / "documents" / "report.md").read_text() and "bad.docx" in capsys.readouterr().out


def test_a_name_with_a_line_break_stays_on_one_line_of_the_report(folder, tmp_path):
    (folder / "new\nline|.txt").write_text("Words.")
    run(folder, f"--output={tmp_path / 'out'}", COLUMNS)
    lines = (tmp_path / "out" / "documents" / "report.md").read_text().split("\n")
    assert sum(line.startswith("| new\\nline\\|.txt |") and line.endswith(" |") for line in lines) == 1


def test_a_teacher_over_http_writes_questions_and_is_asked_once(folder, tmp_path, capsys):
    def write(messages):
        return "Question: When?\nAnswer: Goods can be returned within 30 days.\nQuestion: Why?\nAnswer: For 99 reasons."

    out = tmp_path / "out"
    with misbehaving(write=write) as server:
        words = (folder, f"--output={out}", COLUMNS, f"--teacher={server.url}", "--questions=2", "--context")
        run(*words)
        first, asked = bytes_of(out), len(server.bodies)
        run(*words)
        assert bytes_of(out) == first and len(server.bodies) == asked
    found = {r["messages"][0]["content"]: r for r in read(Source(str(out / "questions")))}
    assert found.keys() == {"Who?", "谁？", "When?"}
    assert found["When?"]["messages"][0]["input"] == PASSAGE and found["When?"]["meta"]["rests_on"] == PASSAGE
    card = read_card(out / "questions")
    assert card.steps["grounded"].rejected["not_in_passage"] == 1
    assert card.sources["document-questions"].teacher and card.sources["document-questions"].read == 2
    assert "1 replies" in capsys.readouterr().out


def test_a_teacher_that_cannot_be_asked_is_told_before_anything_is_read(folder, tmp_path):
    (folder / "bad.docx").write_bytes(b"PK broken")
    for teacher, said in (("http://127.0.0.1:9", "cannot be reached"), (tmp_path / "none", "none")):
        with pytest.raises(UserError, match=said):
            run(folder, f"--output={tmp_path / 'out'}", f"--teacher={teacher}")
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_a_teacher_that_writes_nothing_of_use_is_on_record(folder, tmp_path, capsys):
    (folder / "faq.csv").unlink()
    out = tmp_path / "out"
    with misbehaving(write=lambda messages: "I cannot do that.") as server:
        run(folder, f"--output={out}", f"--teacher={server.url}")
    assert "0 of 3 questions were kept; answer: malformed took most (1 of 1)" in capsys.readouterr().err
    card = read_card(out / "questions")
    assert card.splits == {} and card.steps["answer"].rejected["malformed"] == 1
    (line,) = (out / "questions" / "rejected" / "part-00000-of-00001.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == {"reply": "I cannot do that."}


@pytest.mark.parametrize(
    "words,said",
    [
        (["--columns={ask: tell}"], "is no JSON object of names"),
        (['--columns={"instrction": "ask"}'], "did you mean instruction"),
        (["--questions=5"], "--questions=5 does nothing without --teacher"),
        (["--questions=3"], "--questions=3 does nothing without --teacher"),
        (["--retries=3"], "--retries=3 does nothing without --teacher"),
        (["--encoding=utf9"], "--encoding=utf9: there is no such encoding"),
        (["--passage=0"], "--passage 0: give 1 or more"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(folder, tmp_path, words, said):
    with pytest.raises(UserError) as problem:
        run(folder, f"--output={tmp_path / 'out'}", *words)
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_a_dataset_of_an_earlier_command_is_neither_replaced_nor_left_beside_new_ones(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, f"--output={out}", COLUMNS)
    before = bytes_of(out)
    (folder / "returns.md").write_text(PASSAGE.replace("30", "40"))
    with pytest.raises(UserError, match=r"documents holds a complete dataset that differs in .*its source documents"):
        run(folder, f"--output={out}", COLUMNS)
    assert bytes_of(out) == before
    shutil.rmtree(out / "documents")
    (folder / "faq.csv").unlink()
    with pytest.raises(UserError, match=r"questions is there from before, and this command makes no questions: delete"):
        run(folder, f"--output={out}")
    assert not (out / "documents").exists()
    with pytest.raises(UserError, match=r"lies in the source .*shop: give a folder outside of it"):
        run(folder, f"--output={folder / 'made'}")
