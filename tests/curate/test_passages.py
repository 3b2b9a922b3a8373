"""Passages are cut at headings, paragraphs and sentences, and nothing is lost."""

import random

import pytest

from camelid.curate.documents.files import Block
from camelid.curate.documents.passages import passages_of, sentences, size_of


def heading(text, level=1, page=None):
    return Block("heading", text, page, level)


def paragraph(text, page=None):
    return Block("paragraph", text, page)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("Ask Dr. Lee, e.g. on 3.5 m. Then J. Smith.", ["Ask Dr. Lee, e.g. on 3.5 m. Then J. Smith."]),
        ("He came (late.) Then he said “No.” She left.", ["He came (late.) ", "Then he said “No.” ", "She left."]),
        ("第一句。第二句！“第三句？”第四句", ["第一句。", "第二句！", "“第三句？”", "第四句"]),
        ("He said no. Take No. 7.", ["He said no. ", "Take No. 7."]),
        ("a\nb", ["a\n", "b"]),
        ("see fig. a and so on. Yes.", ["see fig. a and so on. ", "Yes."]),
    ],
)
def test_sentences_end_where_a_reader_says_so(text, expected):
    assert sentences(text) == expected


def test_sections_are_passages_and_short_neighbours_share_one():
    blocks = [
        heading("Book", page=1),
        heading("A", 2, 1),
        paragraph("a" * 90, 1),
        heading("B", 2, 2),
        paragraph("b" * 20, 2),
        heading("C", 2, 3),
        paragraph("c" * 20, 4),
        heading("Other", page=5),
        paragraph("o", 5),
    ]
    found = passages_of(blocks, 100)
    assert [passage.text for passage in found] == [
        f"# Book\n\n## A\n\n{'a' * 90}",
        f"## B\n\n{'b' * 20}\n\n## C\n\n{'c' * 20}",
        "# Other\n\no",
    ]
    assert [passage.headings for passage in found] == [("Book", "A"), ("Book",), ("Other",)]
    assert [(passage.page, passage.last_page) for passage in found] == [(1, 1), (2, 4), (5, 5)]


def test_a_long_paragraph_is_cut_between_sentences_and_a_long_sentence_is_whole():
    long = "X" * 150 + ". "
    found = passages_of([heading("H"), paragraph(f"{'One two. ' * 20}{long}Then three.")], 60)
    texts = [passage.text for passage in found]
    assert long.strip() in texts and all(size_of(text) <= 60 + len("# H\n\n") for text in texts if text != long.strip())
    assert all(text.endswith(".") for text in texts)
    assert {passage.headings for passage in found} == {("H",)}


def test_a_table_is_whole_or_keeps_its_header_in_each_part():
    rows = [f"| {i} | row |" for i in range(60)]
    table = Block("table", "\n".join(["| n | what |", "| --- | --- |", *rows]))
    (whole,) = passages_of([table], 200)
    assert whole.text == table.text
    parts = passages_of([table], 100)
    assert len(parts) > 1 and all(part.text.startswith("| n | what |\n| --- | --- |\n| ") for part in parts)
    assert [row for part in parts for row in part.text.split("\n")[2:]] == rows


def test_a_chinese_character_counts_three():
    assert size_of("骆驼 ab") == 9
    assert len(passages_of([paragraph("骆驼走。" * 10)], 60)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_no_word_is_lost_doubled_or_moved(seed):
    rng = random.Random(seed)
    words, blocks = iter(range(10_000)), []
    for _ in range(40):
        kind = rng.random()
        if kind < 0.3:
            blocks.append(heading(f"w{next(words)}", rng.randint(1, 4)))
        elif kind < 0.9:
            text = " ".join(f"w{next(words)}{rng.choice(['', '', '.', '。'])}" for _ in range(rng.randint(1, 60)))
            blocks.append(paragraph(text))
        else:
            blocks.append(Block("verbatim", "\n".join(f"w{next(words)}" for _ in range(20))))
    blocks.append(paragraph("end"))
    found = passages_of(blocks, rng.choice([40, 200, 1000]))
    expected = " ".join(block.text for block in blocks).replace("。", "。 ").split()
    told = " ".join(passage.text for passage in found).replace("。", "。 ").replace("#", "").split()
    assert told == expected
