"""Word files with planted headings, tables, lists, notes, tracked changes and defects."""

import re

import pytest

from camelid.curate.documents.files import read_document


def found(path):
    return [(block.kind, block.level, block.text) for block in read_document(path).blocks]


def test_a_word_file_keeps_headings_lists_tables_and_pages(tmp_path):
    docx = pytest.importorskip("docx", reason="python-docx is not installed")
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    document = docx.Document()
    document.add_heading("Handbook", 0)
    document.add_heading("Returns", 1)
    paragraph = document.add_paragraph("Within 30 days.")
    for tag, text_tag, text in (("w:ins", "w:t", " Inserted."), ("w:del", "w:delText", " Deleted.")):
        change, run, words = OxmlElement(tag), OxmlElement("w:r"), OxmlElement(text_tag)
        words.text = text
        words.set(qn("xml:space"), "preserve")
        run.append(words)
        change.append(run)
        paragraph._p.append(change)
    for item in ("open", "close"):
        document.add_paragraph(item, style="List Number")
    document.add_paragraph("dot", style="List Bullet")
    table = document.add_table(3, 3)
    for i, row in enumerate([("Name", "Price", "Stock"), ("Lamp", "12", "3"), ("Chair", "99", "")]):
        for j, text in enumerate(row):
            table.cell(i, j).text = text
    table.cell(1, 2).merge(table.cell(2, 2))
    document.add_heading("第二页", 2)
    last = document.add_paragraph("在下一页。")
    last.runs[0]._r.insert(0, OxmlElement("w:lastRenderedPageBreak"))
    document.save(tmp_path / "a.docx")
    blocks = read_document(tmp_path / "a.docx").blocks
    assert [(block.kind, block.level, block.text) for block in blocks] == [
        ("heading", 1, "Handbook"),
        ("heading", 2, "Returns"),
        ("paragraph", 0, "Within 30 days. Inserted."),
        ("paragraph", 0, "1. open"),
        ("paragraph", 0, "2. close"),
        ("paragraph", 0, "- dot"),
        ("table", 0, "| Name | Price | Stock |\n| --- | --- | --- |\n| Lamp | 12 | 3 |\n| Chair | 99 | 3 |"),
        ("heading", 3, "第二页"),
        ("paragraph", 0, "在下一页。"),
    ]
    assert [block.page for block in blocks] == [1] * 8 + [2]


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


BOX = (
    f'<w:r xmlns:w="{WORD}" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:AlternateContent>'
    "<mc:Choice Requires='wps'><w:drawing><w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p></w:txbxContent>"
    "</w:drawing></mc:Choice><mc:Fallback><w:pict><w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p>"
    "</w:txbxContent></w:pict></mc:Fallback></mc:AlternateContent></w:r>"
)


def test_notes_and_text_boxes_of_a_word_file_are_kept_once(tmp_path):
    docx = pytest.importorskip("docx", reason="python-docx is not installed")
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part
    from docx.oxml import parse_xml

    document = docx.Document()
    paragraph = document.add_paragraph("Returns are free.")
    paragraph._p.append(parse_xml(f'<w:r xmlns:w="{WORD}"><w:footnoteReference w:id="2"/></w:r>'))
    paragraph._p.append(parse_xml(f'<w:r xmlns:w="{WORD}"><w:endnoteReference w:id="2"/></w:r>'))
    paragraph._p.append(parse_xml(BOX))
    table = document.add_table(1, 2)
    table.cell(0, 0).paragraphs[0]._p.append(parse_xml(BOX))
    table.cell(0, 1).text = "Beside."
    document.add_paragraph("After.")
    for kind, text in (("footnote", "Within 30 days."), ("endnote", "Of the sale.")):
        note = f'<w:{kind} w:id="2"><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:{kind}>'
        notes = f'<w:{kind}s xmlns:w="{WORD}"><w:{kind} w:id="0"><w:p/></w:{kind}>{note}</w:{kind}s>'
        content = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml"
        part = Part(PackURI(f"/word/{kind}s.xml"), content, notes.encode(), document.part.package)
        document.part.relate_to(part, getattr(RELATIONSHIP_TYPE, f"{kind}s".upper()))
    document.save(tmp_path / "a.docx")
    assert found(tmp_path / "a.docx") == [
        ("paragraph", 0, "Returns are free.[^2][^e2]"),
        ("paragraph", 0, "In a box."),
        ("table", 0, "| In a box. | Beside. |\n| --- | --- |"),
        ("paragraph", 0, "After."),
        ("paragraph", 0, "[^2]: Within 30 days."),
        ("paragraph", 0, "[^e2]: Of the sale."),
    ]


def word_file(path, body):
    """A Word file whose body is this XML. <w:t> may stand for a run, and <c> for a cell with one paragraph."""
    docx = pytest.importorskip("docx", reason="python-docx is not installed")
    from docx.oxml import parse_xml

    body = re.sub("<c>(.*?)</c>", r"<w:tc><w:p>\1</w:p></w:tc>", body)
    body = re.sub("(<w:t>.*?</w:t>)", r"<w:r>\1</w:r>", body)
    document = docx.Document()
    for element in parse_xml(f'<w:body xmlns:w="{WORD}">{body}</w:body>'):
        document.element.body.insert(len(document.element.body) - 1, element)
    document.save(path)


@pytest.mark.parametrize(
    "rows,lines",
    [
        (
            "<w:tr><c><w:t>A</w:t></c><w:sdt><w:sdtContent><c><w:t>B</w:t></c></w:sdtContent></w:sdt></w:tr>",
            ["| A | B |"],
        ),
        ("<w:sdt><w:sdtContent><w:tr><c><w:t>A</w:t></c><c/></w:tr></w:sdtContent></w:sdt>", ["| A |  |"]),
        (
            '<w:tr><c><w:t>A</w:t></c><c><w:t>B</w:t></c></w:tr><w:tr><w:trPr><w:gridBefore w:val="1"/></w:trPr>'
            "<c><w:t>under B</w:t></c></w:tr>",
            ["| A | B |", "|  | under B |"],
        ),
        (
            "<w:tr><c><w:t>A</w:t></c><w:tc><w:p/><w:tbl><w:tr><c><w:t>1</w:t></c><c><w:t>2</w:t></c></w:tr></w:tbl>"
            "<w:p><w:t>B</w:t></w:p></w:tc></w:tr>",
            ["| A | 1, 2<br>B |"],
        ),
    ],
)
def test_cells_of_a_word_file_stand_in_their_columns(tmp_path, rows, lines):
    rows = rows.replace("<c/>", "<c></c>")
    word_file(tmp_path / "a.docx", f"<w:tbl>{rows}</w:tbl><w:p><w:t>End.</w:t></w:p>")
    (_, _, text), end = found(tmp_path / "a.docx")
    head, _, *rest = text.split("\n")
    assert [head, *rest] == lines and end == ("paragraph", 0, "End.")


def test_hidden_text_of_a_word_file_is_left_out_and_a_deleted_paragraph_mark_joins(tmp_path):
    mark = "<w:pPr><w:rPr><w:del/></w:rPr></w:pPr>"
    hidden = "<w:r><w:rPr><w:vanish{}/></w:rPr><w:t>{}</w:t></w:r>"
    runs = hidden.format("", "hidden").replace("<w:t>", "<w:t >") + hidden.format(' w:val="0"', "shown").replace(
        "<w:t>", "<w:t >"
    )
    word_file(
        tmp_path / "a.docx",
        f"<w:p>{mark}<w:t>One </w:t></w:p><w:p><w:t>whole.</w:t></w:p><w:p>{runs}</w:p>"
        f"<w:p>{mark}<w:t>Before.</w:t></w:p><w:tbl><w:tr><c><w:t>A</w:t></c><c><w:t>B</w:t></c></w:tr></w:tbl>",
    )
    assert [text for _, _, text in found(tmp_path / "a.docx")] == [
        "One whole.",
        "shown",
        "Before.",
        "| A | B |\n| --- | --- |",
    ]
