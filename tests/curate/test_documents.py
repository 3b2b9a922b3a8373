"""HTML, Markdown, text and workbooks with planted headings, tables, lists and defects."""

import json
import re

import pytest

from camelid.curate.documents.files import Block, read_document
from camelid.curate.documents.rows import Reading, read_documents
from camelid.curate.documents.tables import tables_of
from camelid.data.sources import Source, read
from camelid.errors import DataError, UserError


def found(path):
    return [(block.kind, block.level, block.text) for block in read_document(path).blocks]


def test_a_markdown_file_is_its_headings_paragraphs_tables_and_code(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "---\ntitle: x\n---\nTop\n===\n\nOne\ntwo.\n\n## Sub *x*\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- x\n- y\n\n"
        "```py\ncode\n\n# no heading\n```\n<!-- hidden -->\n"
    )
    assert found(path) == [
        ("heading", 1, "Top"),
        ("paragraph", 0, "One\ntwo."),
        ("heading", 2, "Sub *x*"),
        ("table", 0, "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("paragraph", 0, "- x\n- y"),
        ("verbatim", 0, "```py\ncode\n\n# no heading\n```"),
    ]


@pytest.mark.parametrize(
    "text,texts",
    [
        ("---\n\nFirst.\n\n---\n\nRest.", ["First.", "Rest."]),
        ("---\nFirst of all.\n---\nRest.", ["First of all.", "Rest."]),
        ("---\ntitle: x\ntags:\n- a\n# note\n\n中文: |\n  b\n---\nRest.", ["Rest."]),
        ("---\r\n'a b': x\r\n...\r\nRest.", ["Rest."]),
        ("---\ntitle: x\nnever closed", ["title: x\nnever closed"]),
        (
            "See [1] and [^1].\n\n[^1]: foot\n\n[1]: http://x 'T'",
            ["See [1] and [^1].", "[^1]: foot", "[1]: http://x 'T'"],
        ),
    ],
)
def test_of_markdown_only_metadata_are_left_out(tmp_path, text, texts):
    (tmp_path / "a.md").write_text(text, newline="")
    assert [block.text for block in read_document(tmp_path / "a.md").blocks] == texts


def test_wrapped_lines_of_text_are_joined_and_chinese_ones_without_a_space(tmp_path):
    chinese = [
        "骆驼是沙漠里的动物，它可以很多天不喝水，所以",
        "人们叫它沙漠之舟。它的背上有一个或者两个驼峰，",
        "不是水。",
    ]
    english = [
        "A camel is an animal of the desert that needs",
        "no water for many days, so that people call",
        "it a ship.",
    ]
    poem = ["roses", "violets"]
    parts = [["第一章 骆驼"], chinese, english, poem]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in parts))
    assert found(tmp_path / "a.txt") == [
        ("heading", 1, "第一章 骆驼"),
        ("paragraph", 0, "".join(chinese)),
        ("paragraph", 0, " ".join(english)),
        ("paragraph", 0, "roses\nviolets"),
    ]


def test_form_feeds_part_pages_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\fTwo.")
    assert [block.page for block in read_document(tmp_path / "a.txt").blocks] == [1, 2]


def test_a_web_page_is_its_content_without_menus(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(
        "<html><head><title>Shop</title><script>var x</script></head><body><nav>Menu</nav><header>Banner</header>"
        "<h2>Hours</h2><p>We are <b>open</b>.</p><table><tr><th>Day</th><th>Hours</th></tr><tr><td rowspan=2>Mon</td>"
        "<td>9</td></tr><tr><td>10</td></tr></table><ul><li>a</li><li>b</li></ul>"
        "<pre><code class='language-python'>if x:\n    y</code></pre><footer>Imprint</footer></body></html>"
    )
    assert found(path) == [
        ("heading", 1, "Shop"),
        ("heading", 2, "Hours"),
        ("paragraph", 0, "We are **open**."),
        ("table", 0, "| Day | Hours |\n| --- | --- |\n| Mon | 9 |\n| Mon | 10 |"),
        ("paragraph", 0, "- a\n- b"),
        ("verbatim", 0, "```python\nif x:\n    y\n```"),
    ]
    path.write_text("<body><header>H</header><main><p>Only this.</p></main><p>Not this.</p></body>")
    assert found(path) == [("paragraph", 0, "Only this.")]


@pytest.mark.parametrize(
    "html,texts",
    [
        ("<nav>menu</nav><form><p>In a form.</p><input value=x><select><option>o</select></form>", ["In a form."]),
        (
            "<header>site</header><article><header><h2>One</h2></header><p>1</p></article><article><header><h2>Two</h2>"
            "</header><aside>Note.</aside></article><aside>bar</aside>",
            ["One", "1", "Two", "Note."],
        ),
        ("<p>Before.</p><article>Inside.</article><p>After.</p>", ["Before.", "Inside.", "After."]),
        ("<main><p>First.</p></main><p>no</p><div role=main>Second.</div>", ["First.", "Second."]),
        ("<details><summary>Why?</summary>Because.</details>", ["Why?", "Because."]),
        ("<p>snake_case 2*3</p><p>x <script>var y</script>z</p>", ["snake_case 2*3", "x z"]),
    ],
)
def test_menus_and_edges_of_a_web_page_are_left_out_and_what_stands_beside_is_kept(tmp_path, html, texts):
    (tmp_path / "a.html").write_text(f"<html><body>{html}</body></html>")
    assert [block.text for block in read_document(tmp_path / "a.html").blocks] == texts


@pytest.mark.parametrize(
    "table,rows",
    [
        ("<tr><td>c1<td>c2<tr><td>c3", ["| c1 | c2 |", "| c3 | |"]),
        ("<tr><th>A<th colspan=2>B<tr><td>a|b<td>c<td>d", ["| A | B | |", "| a\\|b | c | d |"]),
        (
            "<tr><td>A<td>B<td>C<tr><td colspan=2>ab<td rowspan=2>c<tr><td>d<td>e<tr><td rowspan=9>f<td>g<td>h",
            ["| A | B | C |", "| ab | | c |", "| d | e | c |", "| f | g | h |"],
        ),
        ("<tr><td><table><tr><td>a<td>b<tr><td>c<td>d</table><td>", ["| a | b |", "| c | d |"]),
    ],
)
def test_tables_of_a_web_page_keep_their_columns(tmp_path, table, rows):
    (tmp_path / "a.html").write_text(f"<table>{table}</table>")
    ((kind, _, text),) = found(tmp_path / "a.html")
    head, rule, *rest = text.split("\n")
    assert kind == "table" and rule == "|" + " --- |" * (rule.count("|") - 1) and [head, *rest] == rows


def test_a_web_page_that_is_nested_too_deeply_is_refused(tmp_path):
    for name, html in {"list": "<ul><li>" * 300, "div": "<div>" * 3000}.items():
        (tmp_path / f"{name}.html").write_text(f"{html}Deep.")
    (tmp_path / "flat.html").write_text("<div>" * 150 + "Text.")
    documents = read_documents(tmp_path, Reading(on_error="skip"))
    assert [row.record["text"] for row in documents.passages] == ["Text."]
    assert [each.detail.partition(";")[0] for each in documents.rejected] == [
        "its elements are nested 3,002 levels deep",
        "its elements are nested 602 levels deep",
    ]


def test_formulas_of_a_web_page_are_their_tex_or_else_their_characters(tmp_path):
    (tmp_path / "a.html").write_text('<p><script type="math/tex">z^2</script> <math><mi>x</mi></math></p>')
    document = read_document(tmp_path / "a.html")
    assert [block.text for block in document.blocks] == ["$z^2$ x"]
    assert document.notes == ("formulas without TeX are read as their characters",)


def test_a_web_page_in_gb18030_is_read_as_it_says(tmp_path):
    content = '<html><head><meta charset="gb18030"></head><body><p>商品可以退回。</p></body></html>'
    (tmp_path / "a.html").write_bytes(content.encode("gb18030"))
    assert found(tmp_path / "a.html") == [("paragraph", 0, "商品可以退回。")]
    (tmp_path / "a.html").write_bytes(content.replace("gb18030", "utf-8").encode("gb18030"))
    page = read_document(tmp_path / "a.html")
    assert not page.blocks[0].text.isascii() and page.notes[0].startswith("it says utf-8 and is no such file: read as")


def workbook(path, **more):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "FAQ"
    for row in [["Our FAQ"], [], ["Topic", "Question", "Answer"], ["A", "How much?", 12.5], [None, "When?", "Now."]]:
        sheet.append(row)
    sheet.merge_cells("A1:C1")
    sheet.merge_cells("A4:A5")
    sheet["C4"].number_format = '"$"0.00'
    hidden = book.create_sheet("hidden")
    hidden.append(["Question", "Answer"])
    hidden.append(["no", "no"])
    hidden.sheet_state = "hidden"
    prices = book.create_sheet("Prices")
    for row in [["Item", "Price"], ["Lamp", 3], ["Chair|x", "a\nb"]]:
        prices.append(row)
    for cell, formula in more.items():
        sheet[cell] = formula
    book.save(path)


def test_a_workbook_is_records_where_its_columns_are_known_and_else_a_markdown_table(tmp_path):
    workbook(tmp_path / "a.xlsx")
    documents = read_documents(tmp_path, Reading())
    assert [[m["content"] for m in row.record["messages"]] for row in documents.records] == [
        ["How much?", "$12.50"],
        ["When?", "Now."],
    ]
    assert [row.record["meta"] for row in documents.records] == [{"Topic": "A"}, {"Topic": "A"}]
    assert [row.place for row in documents.records] == ["a.xlsx, FAQ, row 4", "a.xlsx, FAQ, row 5"]
    (passage,) = documents.passages
    assert passage.record["text"] == "# Prices\n\n| Item | Price |\n| --- | --- |\n| Lamp | 3 |\n| Chair\\|x | a<br>b |"
    assert passage.columns["sheet"] == "Prices" and passage.columns["heading"] == ["Prices"]


def test_a_formula_without_a_value_is_named(tmp_path):
    workbook(tmp_path / "a.xlsx", C5="=1+2")
    with pytest.raises(DataError, match=r"a\.xlsx, FAQ, row 5: cell C5 has a formula without a stored value"):
        read_documents(tmp_path, Reading())
    rejected = read_documents(tmp_path, Reading(on_error="skip")).rejected
    assert [(each.row.place, each.reason) for each in rejected] == [("a.xlsx, FAQ, row 5", "malformed")]


def test_columns_of_ones_own_name_the_questions_of_the_tables_that_have_them(tmp_path):
    (tmp_path / "a.csv").write_text("ask,tell,more\nWho?,Ann.,\nWhere?,Here.,x\n")
    (tmp_path / "b.csv").write_text("item,price\nLamp,3\n")
    columns = {"instruction": "ask", "output": "tell"}
    documents = read_documents(tmp_path, Reading(columns=columns))
    assert [row.record["messages"][1]["content"] for row in documents.records] == ["Ann.", "Here."]
    assert [row.record["text"] for row in documents.passages] == ["| item | price |\n| --- | --- |\n| Lamp | 3 |"]
    with pytest.raises(UserError, match=r"--columns: there is no value in the column 'tel' .* did you mean tell\?"):
        read_documents(tmp_path, Reading(columns={"instruction": "ask", "output": "tel"}))


def test_a_table_that_becomes_text_has_a_note_with_the_columns_that_would_make_it_records(tmp_path):
    (tmp_path / "a.csv").write_text("Ask;Tell;Nr\nWho?;Ann.;1\nWhere?;Here.;2\n")
    (tmp_path / "b.csv").write_text("Q;A\nWho?;Eve.\n")
    (note,), none = (each.notes for each in read_documents(tmp_path, Reading()).files)
    assert (
        note.startswith("read as text, as no format has the columns Ask, Tell, Nr; if they are questions") and not none
    )
    columns = json.loads(re.search(r"--columns='(.*)'$", note)[1])
    documents = read_documents(tmp_path, Reading(columns=columns))
    assert [row.record["messages"][1]["content"] for row in documents.records] == ["Ann.", "Here.", "Eve."]
    assert not any(each.notes for each in documents.files)


BAD = {
    "empty.txt": (b"", "it is empty (0 bytes)"),
    "blank.txt": (b" \n\n", "it holds no text"),
    "heads.md": (b"# One\n\n## Two\n", "it holds headings alone, and no text"),
    "a.doc": (b"x", ".doc is not read: save it as .docx"),
    "a.png": (b"x", "it is a picture: make a PDF with a text layer of it by OCR"),
    "a.exe": (b"x", "this kind of file is not read; give .pdf, .docx"),
    "zip.docx": (b"PK\x03\x04garbage", "it is damaged, or no .docx"),
    "locked.xlsx": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(99), "it is encrypted, or an old office file"),
    "binary.txt": (b"a\x1b[1mb\n\x00", "it is no text: character 8 is the control character U+0000"),
    "gb.txt": ("商品可以退回。".encode("gb18030"), "it is not UTF-8 at byte 1 (--encoding=gb18030 reads"),
    "gb.html": ("<p>商品可以退回。</p>".encode("gb18030"), "it is not UTF-8 at byte 4 (--encoding=gb18030 reads"),
    "gb.csv": ("问题,答案\n谁？,安。\n".encode("gb18030"), "it is not UTF-8 at byte 1 (--encoding=gb18030 reads"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as problem:
        read_documents(tmp_path, Reading())
    assert str(problem.value).startswith(f"{tmp_path / name}: {reason}"), problem.value
    assert "on_error=skip leaves such files out and lists them" in str(problem.value)


def test_skipped_files_are_listed_and_copies_are_left_out(tmp_path):
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("Good words.")
    (tmp_path / "same.txt").write_text("Good words.")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    documents = read_documents(tmp_path, Reading(on_error="skip"))
    assert [row.record["text"] for row in documents.passages] == ["Good words."]
    reasons = {each.row.place: each.reason for each in documents.rejected}
    assert reasons == dict.fromkeys(BAD, "unreadable") | {"same.txt": "copy"}
    assert {each.name: each.notes for each in documents.files}["same.txt"] == ["a copy of good.txt"]
    gb = read_documents(tmp_path, Reading(on_error="skip", encoding="gb18030"))
    assert (
        sorted((row.record["text"] for row in gb.passages), reverse=True) == ["商品可以退回。"] * 2 + ["Good words."]
        and len(gb.records) == 1
    )


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no files in this folder"):
        read_documents(tmp_path, Reading())
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 files could be read: it is empty"):
        read_documents(tmp_path, Reading(on_error="skip"))
    with pytest.raises(UserError, match="there is no such encoding"):
        (tmp_path / "a.txt").write_text("x")
        read_documents(tmp_path, Reading(on_error="skip", encoding="utf9"))


def test_a_large_workbook_of_questions_keeps_the_place_of_each(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(300)))
    (table,) = tables_of(tmp_path / "a.csv", "a.csv")
    assert table.records()[299] == ("a.csv:301", {"question": "q299", "answer": "a299"})
    ids = {row.id for row in read_documents(tmp_path, Reading()).records}
    assert len(ids) == 300


def test_lines_of_a_table_end_where_the_training_reader_ends_them(tmp_path):
    text = "question,answer\nQ1?,a\u2028b\x0bc\x0cd\x85e\x1cf\n\nQ2?,ok\n"
    (tmp_path / "a.csv").write_text(text, newline="")
    rows = read_documents(tmp_path, Reading()).records
    assert [(row.place, row.record["messages"][1]["content"]) for row in rows] == [
        ("a.csv:2", "a\u2028b\x0bc\x0cd\x85e\x1cf"),
        ("a.csv:4", "ok"),
    ]
    trained = list(read(Source(str(tmp_path / "a.csv"))))
    assert [record["messages"] for record in trained] == [row.record["messages"] for row in rows]


def test_text_without_a_table_below_it_is_kept_and_a_header_without_rows_is_told(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.active["A1"] = "All prices include tax."
    for name, rows in {
        "Lines": [["One."], ["Two."]],
        "Head": [["question", "answer"]],
        "Prices": [["Valid from May"], [], ["Item", None, "Price", "Stock"], ["Lamp", "x", None, "2"], ["Bed", "", 3]],
    }.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "b.csv").write_text("hello\n")
    documents = read_documents(tmp_path, Reading())
    assert [row.record["text"] for row in documents.passages] == [
        "# Notes\n\nAll prices include tax.",
        "# Lines\n\nOne.\n\nTwo.",
        "# Prices\n\nValid from May\n\n| Item | column 2 | Price | Stock |\n| --- | --- | --- | --- |\n"
        "| Lamp | x |  | 2 |\n| Bed |  | 3 |  |",
        "hello",
    ]
    head, prices = documents.files[0].notes
    assert (head, prices[:27], documents.files[1].notes) == (
        "sheet Head: a header without rows",
        "sheet Prices: read as text,",
        [],
    )
    (tmp_path / "c.csv").write_text("question,answer\n")
    with pytest.raises(DataError, match=r"c\.csv: a header without rows"):
        read_documents(tmp_path, Reading())


def test_a_bad_row_of_a_table_that_is_text_is_named_and_the_others_are_kept(tmp_path):
    (tmp_path / "a.csv").write_text("item,price\nLamp,3\nBed,1,2\nDesk,a\x00b\nChair,4\n")
    with pytest.raises(DataError, match=r"^a\.csv:3: the row has 3 cells and the header 2"):
        read_documents(tmp_path, Reading())
    documents = read_documents(tmp_path, Reading(on_error="skip"))
    assert [row.record["text"] for row in documents.passages] == [
        "| item | price |\n| --- | --- |\n| Lamp | 3 |\n| Chair | 4 |"
    ]
    assert {each.row.place: each.detail.partition(":")[0] for each in documents.rejected} == {
        "a.csv:3": "the row has 3 cells and the header 2",
        "a.csv:4": "the row has the control character U+0000, which no text has",
    }


def test_of_a_large_table_it_is_told_how_far_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(25)))
    monkeypatch.setattr("camelid.curate.documents.rows.TELL_ROWS", 10)
    told = []
    read_documents(tmp_path, Reading(), tell=told.append)
    assert told == ["a.csv: 10 of 25 rows read", "a.csv: 20 of 25 rows read"]


def test_blocks_know_nothing_of_the_machine(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.md").write_text("# H\n\nText.")
    first, second = (read_documents(tmp_path / name, Reading()).passages for name in ("one", "two"))
    assert first == second and read_document(tmp_path / "one" / "a.md").blocks[0] == Block("heading", "H", None, 1)
