"""Tables as office programs write them, columns under names of one's own, and a system prompt for all."""

import json

import pytest

from camelid.data.sources import Source, read
from camelid.data.templates import load_template
from camelid.data.text_encoder import TextEncoder
from camelid.data.token_cache import build_cache
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.train.batches import DataSettings, MixtureEntry, check_system, sources_of


def turns(record):
    return [message["content"] for message in record["messages"]]


def read_text(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read(Source(str(path), **options)))


def fault(folder, name, content, **options):
    with pytest.raises(UserError) as problem:
        read_text(folder, name, content, **options)
    return str(problem.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("a.csv", 'question,answer\n"a, b","say ""c"""\n', [("a, b", 'say "c"', 2)]),
        # Excel in Europe: semicolons, decimal commas, a byte order mark, cells of several lines, blank rows
        (
            "b.csv",
            '\ufeffQuestion;Answer\r\n"a\r\nb";1,5\r\n;\r\n\r\nc;d, e\r\n',
            [("a\nb", "1,5", 2), ("c", "d, e", 6)],
        ),
        ("c.csv", "sep=|\nquestion|answer\na|b\n", [("a", "b", 3)]),
        ("d.tsv", "question\tanswer\na; b, c\td\n", [("a; b, c", "d", 2)]),
        # a title above the header, a column without a name, Chinese names
        ("e.csv", "常见问题,,,\n2024,,,\n编号,问题,答案,\n1,谁？,安。,注\n", [("谁？", "安。", 4)]),
        ("f.csv", "Our questions\n\nquestion,answer\na,b\n", [("a", "b", 4)]),
    ],
)
def test_tables_of_office_programs_are_read_as_they_are(tmp_path, name, content, expected):
    found = read_text(tmp_path, name, content)
    assert [(*turns(record), int(record.where.rpartition(":")[2])) for record in found] == expected


def test_cells_of_no_use_are_kept_under_names_of_their_own(tmp_path):
    (record,) = read_text(tmp_path, "a.csv", "question,answer,answer,\na,b,c,d\n")
    assert (turns(record), record["meta"]) == (["a", "b"], {"answer (2)": "c", "column 4": "d"})


def test_a_bad_row_is_named_and_spoils_no_other(tmp_path):
    rows = ["question,answer", "a,b,c", '"d"e,f', "g,h", "i,", "k,l", '"open,m', "n,o"]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(rows))
    assert [turns(record) for record in read(Source(str(path), on_error="skip"))] == [["g", "h"], ["k", "l"]]
    for keep, said in [
        ([0, 1], "x.csv:2: the row has 3 cells and the header 2"),
        ([0, 2], "x.csv:2: a quoted cell goes on behind its last quotation mark"),
        ([0, 4], "x.csv:2: answer is missing"),
        ([0, 3, 6, 7], "x.csv:3: a quotation mark at the beginning of a cell is not closed"),
    ]:
        assert said in fault(tmp_path, "x.csv", "\n".join(rows[i] for i in keep))


def test_an_unclosed_quotation_mark_does_not_fill_the_memory(tmp_path):
    content = 'question,answer\na,"b\n' + "c,d\n" * 1000
    assert "x.csv:2: a cell of more than 100 characters" in fault(tmp_path, "x.csv", content, max_record_bytes=100)


def test_other_encodings_are_refused_with_a_remedy(tmp_path):
    content = "问题,答案\n谁？,安。\n"
    assert "iconv -f GB18030 -t UTF-8" in fault(tmp_path, "x.csv", content.encode("gb18030"))
    assert "UTF-16" in fault(tmp_path, "x.csv", content.encode("utf-16"))


def test_columns_name_the_fields_of_a_format(tmp_path):
    content = "ask,tell,output,topic\na,b,c,d\ne,f,,\n"
    columns = {"instruction": "ask", "output": "tell"}
    found = read_text(tmp_path, "x.csv", content, columns=columns)
    assert [(turns(record), record.get("meta")) for record in found] == [
        (["a", "b"], {"topic": "d"}),
        (["e", "f"], None),
    ]
    swapped = read_text(
        tmp_path, "x.jsonl", '{"input": "a", "output": "b"}', columns={"instruction": "output", "output": "input"}
    )
    assert turns(swapped[0]) == ["b", "a"]


def test_a_wrong_column_is_named_with_the_nearest_one(tmp_path):
    content = "ask,tell\na,b\n"
    said = fault(tmp_path, "x.csv", content, columns={"instruction": "ask", "output": "tel"})
    assert "x.csv:2: output is missing: there is no value in the column 'tel' of the map; did you mean tell?" in said
    said = fault(tmp_path, "x.csv", content, columns={"instruction": "ask", "output": "tell", "input": "asks"})
    assert "there is no value in the column 'asks' of the map; did you mean ask?; it has ask, tell" in said
    said = fault(tmp_path, "x.csv", content, columns={"instrction": "ask"})
    assert "there is no field 'instrction'; did you mean instruction?" in said
    said = fault(tmp_path, "x.csv", content, columns={"instruction": "ask", "output": "ask"})
    assert said == "columns.instruction and columns.output are both 'ask': give each its own column"
    with pytest.raises(UserError, match="columns are for the records of files"):
        Source("primer:chat", columns={"instruction": "ask"})


def test_a_system_prompt_is_for_conversations_that_have_none(tmp_path):
    records = [
        {"question": "a", "answer": "b"},
        {"question": "a", "answer": "b", "system": "own"},
        {"text": "plain"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    found = read_text(tmp_path, "x.jsonl", "\n".join(map(json.dumps, records)), system="all")
    assert [record["messages"][0]["content"] if "messages" in record else "" for record in found] == [
        *("all", "own", "", "all")
    ]
    assert next(read(Source("primer:chat", system="all")))["messages"][0] == {"role": "system", "content": "all"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "Ask a question, tell an answer. system user assistant <|im_start|> 0123456789"
    train_sentencepiece([text] * 3, vocab_size=320, output_dir=folder)
    return Tokenizer.load(folder)


def test_columns_and_system_prompt_decide_the_token_cache(tmp_path, tokenizer):
    (tmp_path / "x.csv").write_text("ask,tell\na,b\nc,d\n")
    encoder = TextEncoder(tokenizer, load_template("chatml"))
    entry = MixtureEntry(str(tmp_path / "x.csv"), columns={"instruction": "ask", "output": "tell"})
    plain = DataSettings({"faq": entry}, heldout=0.0)

    def built(settings):
        return build_cache(sources_of(settings.mixture, settings)[0], None, encoder, tmp_path / "caches")

    text = tokenizer.decode(built(DataSettings({"faq": entry}, heldout=0.0, system="all")).tokens)
    assert "all" in text and "all" not in tokenizer.decode(built(plain).tokens)
    turned = MixtureEntry(entry.source, columns={"instruction": "tell", "output": "ask"})
    names = {built(plain).path, built(DataSettings({"faq": turned}, heldout=0.0)).path}
    assert len(names) == 2 and len(list((tmp_path / "caches").glob("[!.]*"))) == 3


def test_a_template_that_cannot_write_a_system_prompt_is_refused_before_anything_is_read(tokenizer):
    check_system("all", load_template("chatml"), tokenizer)
    mute = load_template(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        UserError,
        match=r"config\.data\.system: the chat template custom cannot write this system prompt: it leaves it out",
    ):
        check_system("all", mute, tokenizer)
    with pytest.raises(UserError, match=r"config\.data\.system is for conversations"):
        check_system("all", None, tokenizer)
