"""PDF files whose lines are known: columns, headings, tables, running heads, hyphens, Chinese, scans."""

import itertools

import pytest

from camelid.curate.documents.files import read_document
from camelid.tests.curate.make_pdf import Put, column, pdf

pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")

LEFT = "The quick brown fox jumps over the lazy dog and runs away into the forest where nobody finds it again. " * 3
RIGHT = "A second column begins here with other words about llamas and camels that walk through the desert sand. " * 3
CHINESE = "骆驼是沙漠里的动物，它可以很多天不喝水，所以人们叫它沙漠之舟。它的背上有一个或者两个驼峰，里面储存着脂肪。"


def read(folder, pages, **how):
    (folder / "a.pdf").write_bytes(pdf(pages, **how))
    return read_document(folder / "a.pdf")


def texts(document, kind="paragraph"):
    return [block.text for block in document.blocks if block.kind == kind]


def test_two_columns_are_read_one_after_the_other_however_the_file_has_them(tmp_path):
    left, right = column(LEFT, 50, 700, width=45), column(RIGHT, 320, 700, width=45)
    full = Put(
        50, 740, "A line over both columns that says something about the two of them and their order in the text."
    )
    rows = [line for pair in itertools.zip_longest(left, right) for line in pair if line]
    expected = [full.text, LEFT.strip(), RIGHT.strip()]
    assert texts(read(tmp_path, [[full, *left, *right]])) == expected
    assert texts(read(tmp_path, [[full, *rows]])) == expected


def test_a_paragraph_goes_on_in_the_next_column_and_page(tmp_path):
    words = [f"word{i}" for i in range(160)]
    lines = column(" ".join(words), 50, 0, width=45)
    half = len(lines) // 2
    pages = [[line._replace(y=700 - 12 * i) for i, line in enumerate(part)] for part in (lines[:half], lines[half:])]
    (block,) = read(tmp_path, pages).blocks
    assert block.text == " ".join(words) and block.page == 1


def test_headings_are_found_by_size_and_by_bold_numbers(tmp_path):
    lines = [
        Put(50, 700, "The Handbook", 20),
        Put(50, 660, "Returns", 14, "bold"),
        *column(LEFT, 50, 640, width=90),
        Put(50, 560, "2.1 Exchanges", 10, "bold"),
        *column(RIGHT, 50, 540, width=90),
    ]
    document = read(tmp_path, [lines])
    found = [(block.level, block.text) for block in document.blocks if block.kind == "heading"]
    assert found == [(1, "The Handbook"), (2, "Returns"), (3, "2.1 Exchanges")]
    assert texts(document) == [LEFT.strip(), RIGHT.strip()]


def test_aligned_cells_are_a_table_with_its_header(tmp_path):
    rows = [("Name", "Price", "Stock"), ("Lamp", "12.50", "3"), ("Chair", "99.00", ""), ("Table", "250.00", "17")]
    cells = [Put(50 + 150 * j, 600 - 14 * i, c) for i, row in enumerate(rows) for j, c in enumerate(row) if c]
    document = read(tmp_path, [[*column(LEFT, 50, 740, width=90), *cells, *column(RIGHT, 50, 500, width=90)]])
    (table,) = texts(document, "table")
    assert table.split("\n") == [
        "| Name | Price | Stock |",
        "| --- | --- | --- |",
        "| Lamp | 12.50 | 3 |",
        "| Chair | 99.00 |  |",
        "| Table | 250.00 | 17 |",
    ]
    assert texts(document) == [LEFT.strip(), RIGHT.strip()]


def test_running_heads_and_page_numbers_are_left_out_and_told(tmp_path):
    def page(number):
        heads = [Put(50, 770, "ACME handbook", 8), Put(290, 30, f"Page {number} of 4", 8)]
        return [*heads, Put(50, 740, f"Chapter {number}", 16), *column(f"Text {number}. {LEFT}", 50, 700, width=90)]

    document = read(tmp_path, [page(number) for number in (1, 2, 3, 4)])
    assert texts(document) == [f"Text {number}. {LEFT}".strip() for number in (1, 2, 3, 4)]
    assert texts(document, "heading") == [f"Chapter {number}" for number in (1, 2, 3, 4)]
    assert [block.page for block in document.blocks] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert document.notes == (
        "8 lines of running heads and page numbers left out, such as 'ACME handbook', 'Page 1 of 4', 'Page 2 of 4'",
    )


def test_a_table_of_contents_is_left_out_and_told(tmp_path):
    contents = [Put(50, 700 - 12 * i, f"{i} Part {'. ' * 30}{i}") for i in range(1, 5)]
    document = read(tmp_path, [[*contents, *column(LEFT, 50, 500, width=90)]])
    assert texts(document) == [LEFT.strip()] and document.notes == ("4 lines of a table of contents left out",)


def test_a_table_in_a_column_stays_in_its_column(tmp_path):
    left, right = column(LEFT, 50, 700, width=45), column(RIGHT * 2, 320, 700, width=45)
    rows = [("Lamp", "12.50 pounds"), ("Chair", "99.00 pounds"), ("Table", "250.00 pounds")]
    cells = [Put(50 + 150 * j, 570 - 14 * i, cell) for i, row in enumerate(rows) for j, cell in enumerate(row)]
    document = read(tmp_path, [[*left, *cells, *right]])
    assert [block.kind for block in document.blocks] == ["paragraph", "table", "paragraph"]
    assert texts(document) == [LEFT.strip(), (RIGHT * 2).strip()]


def test_words_cut_by_a_hyphen_are_whole_and_real_hyphens_stay(tmp_path):
    lines = [
        "This is an exam-",
        "ple of a well-known hyphen-",
        "ation and a well-",
        "known problem of Jean-",
        "Luc in 2019-",
        "2020.",
    ]
    document = read(tmp_path, [[Put(50, 700 - 12 * i, line) for i, line in enumerate(lines)]])
    assert texts(document) == [
        "This is an example of a well-known hyphenation and a well-known problem of Jean-Luc in 2019-2020."
    ]


def test_a_hyphen_at_the_end_of_a_line_stays_in_compounds_unless_the_document_has_the_word_without_it(tmp_path):
    lines = [
        "The state-of-the-",
        "art and a well-",
        "known e-",
        "mail of self-",
        "made co-",
        "operation, and wellknown.",
    ]
    document = read(tmp_path, [[Put(50, 700 - 12 * i, line) for i, line in enumerate(lines)]])
    assert texts(document) == ["The state-of-the-art and a wellknown e-mail of self-made cooperation, and wellknown."]


def test_values_of_form_fields_stand_beside_their_labels(tmp_path):
    lines = [Put(50, 700, "Name:"), Put(50, 660, "Town:"), Put(50, 620, "Paid:"), Put(50, 580, "Secret:")]
    values = [Put(200, 695, "Ann 安"), Put(200, 655, "Oslo"), Put(200, 615, "[x]"), Put(200, 575, "hidden", 0)]
    document = read(tmp_path, [lines, [Put(50, 700, "Second page.")]], fields=values)
    words = " ".join(" ".join(block.text for block in document.blocks).replace("|", " ").split())
    assert words.replace("--- --- ", "") == "Name: Ann 安 Town: Oslo Paid: [x] Secret: Second page."


def test_a_form_without_labels_is_its_values(tmp_path):
    assert texts(read(tmp_path, [[]], fields=[Put(50, 700, "Filled in by hand.")])) == ["Filled in by hand."]


def test_chinese_lines_are_joined_without_spaces(tmp_path):
    document = read(tmp_path, [column(CHINESE * 3, 50, 700, width=40, font="chinese")])
    assert texts(document) == [CHINESE * 3]


@pytest.mark.parametrize(
    "content,reason",
    [
        (pdf([[], []], pictures=[0, 1]), "a scan of 2 pages without a text layer: make one by OCR"),
        (pdf([[]], pictures=[0]), "a scan of 1 page without a text layer"),
        (pdf([[]]), "it has no text"),
        (b"%PDF-1.4 garbage", "it is damaged, or no PDF"),
        (pdf([[Put(50, 700, "Text.")]])[:700], "it is damaged, or no PDF"),
    ],
)
def test_scans_and_damaged_files_are_errors(tmp_path, content, reason):
    (tmp_path / "a.pdf").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_document(tmp_path / "a.pdf")


def test_pages_that_are_pictures_are_told(tmp_path):
    document = read(tmp_path, [[Put(50, 700, "Words on the first page.")], []], pictures=[1])
    assert document.notes == ("pictures without text, which OCR would read, on pages 2",)
