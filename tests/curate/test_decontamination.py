"""Rows that leak evaluation questions or answers are found, however they are formatted; others stay."""

import json
import pickle
import random
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from camelid.curate.duplicates.decontamination import Decontaminate
from camelid.curate.duplicates.evaluation_sets import EvaluationSet, items_of
from camelid.curate.duplicates.ngrams import Index, Ngrams
from camelid.curate.rows import Rejected, Row
from camelid.errors import UserError
from camelid.settings.sections import read, to_config

from .partitions import chat_row, text_row

DATA = Path(__file__).parents[2] / "../shared/data"
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
WORDS = sorted({"".join(random.Random(n).choices(SYLLABLES, k=1 + n % 4)) for n in range(4000)})
HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 2500)]


def sentence(draw, count):
    """A sentence of made words, with numbers among them."""
    words = [str(draw.randrange(1000, 10**7)) if draw.random() < 0.1 else draw.choice(WORDS) for _ in range(count)]
    return " ".join(words).capitalize() + "."


def chinese(draw, count):
    """A sentence of a number of Chinese characters in clauses."""
    return "".join(draw.choice(HAN) + ("，" if n % 7 == 6 else "") for n in range(count)) + "。"


def problems(count=40):
    """Records of questions and answers, every other one in Chinese."""
    draw = random.Random(1)
    for number in range(count):
        if number % 2:
            yield {"question": chinese(draw, 15 + number), "answer": chinese(draw, 30)}
        else:
            yield {"question": " ".join(sentence(draw, 9) for _ in range(2)), "answer": sentence(draw, 20)}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A file of questions and answers."""
    path = tmp_path_factory.mktemp("evaluation") / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems()), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def index(evaluation):
    return Index.from_sets({"problems": EvaluationSet(evaluation)}, Ngrams())


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


def other_punctuation(text):
    return text.translate(str.maketrans("，。.,", ",.。，"))


def lines(text):
    """A break after every third word or clause, with marks of lists and quotations."""
    marks = iter(["\n- ", "\n2. ", "\n> ", "\r\n\r\n", "\n* ", "\n\t(b) "] * 50)
    return re.sub(r"((?:\S+ ){3}|，)", lambda found: found[0] + next(marks), text)


def markdown(text):
    words = iter(["**{}**", "`{}`", "_{}_", "[{}](http://example.com/a)", "{}", "<b>{}</b>"] * 50)
    return "## Question\n\n" + re.sub(r"\w+", lambda found: next(words).format(found[0]), text)


def latex(text):
    return re.sub(r"\d+", lambda found: rf"$\mathbf{{{found[0]}}}$", rf"\textbf{{Question}} {text}")


def embedded(text):
    draw = random.Random(2)
    return " ".join([*draw.choices(WORDS, k=400), text, *draw.choices(WORDS, k=400)])


LEAKS = {
    "as it is": str,
    "in capitals": str.upper,
    "full width": full_width,
    "other punctuation": other_punctuation,
    "other lines": lines,
    "thousands": lambda text: re.sub(r"\d+", lambda found: f"{int(found[0]):,}", text),
    "Markdown": markdown,
    "LaTeX": latex,
    "HTML": lambda text: f"<p class='q'>{text.replace('. ', '.<br/>')}</p>&nbsp;",
    "comments": lambda text: re.sub(" |，", "<!-- a\n> b --> ", text),
    "colours": lambda text: f"\x1b[1;31m{re.sub(' |，', chr(27) + '[0m ' + chr(27) + '[4m', text)}\x1b[K",
    "JSON": lambda text: json.dumps({"text": re.sub(" |，", "\n", text)}),
    "a URL": lambda text: "https://example.com/?q=" + quote(text),
    "soft hyphens": lambda text: "\u00ad".join(text),
    "one long line": lambda text: re.sub(r"\s", "", text),
    "in a long text": embedded,
    "in Chinese": lambda text: chinese(random.Random(3), 300) + text + chinese(random.Random(4), 300),
    "all together": lambda text: embedded(lines(markdown(other_punctuation(text)))),
}


@pytest.mark.parametrize("form", LEAKS)
def test_leaked_questions_and_answers_are_found_in_every_form(form, index):
    for number, problem in enumerate(problems(), 1):
        for text in problem.values():
            hits = index.hits(LEAKS[form](text))
            assert [hit.item for hit in hits] == [f"problems.jsonl:{number}"], (form, text)


def test_a_hit_names_the_ngram_in_the_words_of_the_item_and_its_share(index):
    problem = next(problems())
    words = problem["question"].split()
    [hit] = index.hits("Hello " + " ".join(words[2:15]).upper())
    assert hit == ("problems", "problems.jsonl:1", " ".join(words[2:15]).lower().rstrip("."), 1 / (18 - 13 + 1))
    assert index.hits("Hello " + " ".join(words[2:14])) == []
    assert index.hits(problem["question"])[0].share == 1
    assert index.hits(" ".join(words[:9]), " ".join(words[9:])) == []  # not from one message into the next


@pytest.mark.parametrize("unit", ["[", "![a](", "```", "<a", "<!--", "<!-- ", "\x1b[", "\\", "\\n", "%20", "\\u4f60"])
def test_time_grows_with_the_length_of_a_text(unit, index):
    def seconds(length):
        start = time.process_time()
        index.hits(unit * (length // len(unit)))
        return time.process_time() - start

    assert seconds(100_000) < 30 * seconds(10_000) + 0.3  # 100 times as long if it were quadratic


def test_made_rows_have_no_hits(index):
    draw = random.Random(9)
    assert not any(index.hits(sentence(draw, 40), chinese(draw, 40)) for _ in range(1000))


def test_short_questions_count_as_a_whole_and_very_short_ones_as_a_whole_message(tmp_path):
    texts = [
        "How can I improve my time management skills?",
        "What makes it rain?",
        "怎样才能提高我的时间管理能力",
        "为何会下雨？",
    ]
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"turns": [text, "Why?"]}) + "\n" for text in [*texts, "Why not?"]), "utf-8")
    index = Index.from_sets({"short": EvaluationSet(str(path))}, Ngrams())
    found = {text: [hit.item for hit in index.hits(f"Tell me this: {text} Thank you!")] for text in texts}
    assert list(found.values()) == [["short.jsonl:1"], [], ["short.jsonl:3"], []]
    for number, text in enumerate(texts, 1):
        assert [hit.item for hit in index.hits(text.upper())] == [f"short.jsonl:{number}"]
    assert index.hits("How can I improve my time") == []
    assert index.hits("Why?") == []  # so short a question is in every other conversation
    assert index.unchecked == [("short", "short.jsonl:5")]


def test_words_of_one_or_two_letters_make_ngrams_longer(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"question": "for i in range(1, m + 1): for j in range(1, n + 1): lengths[i][j] = 0"}))
    index = Index.from_sets({"code": EvaluationSet(str(path))}, Ngrams())
    assert index.hits("for i in range(1, m + 1): for j in range(1, n + 1): print(i, j)") == []
    assert index.hits("# x\nfor i in range(1, m + 1):\n  for j in range(1, n + 1):\n    lengths[i][j] = 0")


@pytest.mark.parametrize("how", ["items", "background"])
def test_common_text_does_not_count(how, tmp_path):
    draw = random.Random(5)
    instruction = "Answer the question step by step, and put the result in a box at the end of your answer."
    path, background = tmp_path / "set.jsonl", tmp_path / "background.txt"
    records = [{"question": f"{instruction}\n{sentence(draw, 20)}"} for _ in range(12)] + [{"question": instruction}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    background.write_text(f"People often write: {instruction}")
    sets = {"set": EvaluationSet(str(path))}
    settings = Ngrams(common=12) if how == "items" else Ngrams(common=100, background=[str(background)])
    index = Index.from_sets(sets, settings)
    assert index.hits(instruction) == []
    assert index.unchecked == [("set", "set.jsonl:13")]
    assert [hit.item for hit in index.hits(records[3]["question"])] == ["set.jsonl:4"]
    assert len(Index.from_sets(sets, Ngrams(common=13)).hits(instruction)) == 13


def test_very_short_questions_that_many_items_share_do_not_count(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(
        "".join(
            json.dumps({"turns": [f"{'x' * n} is not {'y' * n}", "Please explain it again."]}) + "\n"
            for n in range(3, 9)
        )
    )
    sets = {"set": EvaluationSet(str(path))}
    assert len(Index.from_sets(sets, Ngrams(common=6)).hits("Please explain it again.")) == 6
    assert Index.from_sets(sets, Ngrams(common=5)).hits("Please explain it again.") == []


def test_an_answer_that_is_short_without_its_calculations_is_found_without_them(tmp_path):
    path = tmp_path / "set.jsonl"
    answer = (
        "A pen costs $1.20 + $0.30 = $<<1.20+0.30=1.50>>1.50.\nSo, 8 pens cost $1.50 x 8 = $<<8*1.5=12>>12.\n#### 12"
    )
    path.write_text(json.dumps({"question": "How much?", "answer": answer}))
    index = Index.from_sets({"set": EvaluationSet(str(path))}, Ngrams())
    assert index.hits("A **pen** costs $1.20 + $0.30 = **$1.50**. So, 8 pens cost $1.50 x 8 = $12. **12**")
    assert index.hits(answer.replace("costs", "*costs*"))


def test_greek_letters_equal_their_names_in_latex(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(
        json.dumps(
            {"question": r"What is the sum of $\alpha$ and $\beta$ in a triangle whose third angle is $\gamma$?"}
        )
    )
    index = Index.from_sets({"set": EvaluationSet(str(path))}, Ngrams())
    assert index.hits("What is the sum of α and β in a triangle whose third angle is γ?")[0].share == 1


def test_traditional_characters_equal_simplified_ones_if_asked(tmp_path):
    pytest.importorskip("opencc", reason="opencc is not installed")
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"question": "请说明计算机网络与国际贸易发展之间的关系"}))
    traditional = "請說明計算機網絡與國際貿易發展之間的關係"
    sets = {"set": EvaluationSet(str(path))}
    assert Index.from_sets(sets, Ngrams(simplified=True)).hits(traditional)
    assert not Index.from_sets(sets, Ngrams()).hits(traditional)


@pytest.mark.parametrize(
    "raw, questions, answers",
    [
        ({"question": "Q", "answer": "A"}, ["Q"], ["A"]),
        ({"question": "Q", "choices": ["x", "y"], "answer": 1}, ["Q"], ["1", "x\ny"]),
        ({"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}, ["Q"], ["x\ny\nA\nB"]),
        ({"problem": "Q", "solution": "A", "level": "5"}, ["Q"], ["A"]),
        ({"question_id": 81, "turns": ["Q", "R"], "reference": ["A", "B"]}, ["Q", "R"], ["A\nB"]),
        ({"prompt": "Q", "canonical_solution": "A", "test": "T"}, ["Q"], ["A"]),
        ({"instruction": "Q", "input": "I", "output": "A"}, ["Q\nI"], ["A"]),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, ["Q"], ["A", "B"]),
        ({"text": "Q"}, ["Q"], []),
    ],
)
def test_questions_and_answers_are_read_from_the_fields_of_public_sets(raw, questions, answers, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(raw))
    [item] = items_of("set", EvaluationSet(str(path)))
    assert (item.place, item.questions, item.answers) == ("set.jsonl:1", questions, answers)


def test_fields_can_be_named_and_are_asked_for_where_none_is_known(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"题目": "Q", "solutions": {"best": "A"}, "answer": "B"}))
    [item] = items_of("set", EvaluationSet(str(path), question=["题目"], answer=["solutions"]))
    assert (item.questions, item.answers) == (["Q"], ["A"])
    path.with_name("empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl: no questions in these files"):
        list(items_of("set", EvaluationSet(str(path.with_name("empty.jsonl")))))
    with pytest.raises(UserError, match=r"set.jsonl:1: no question in .*name its field, as in question=\['text'\]"):
        list(items_of("set", EvaluationSet(str(path))))


def test_the_step_rejects_or_marks_rows_by_the_share_that_they_have(evaluation):
    problem = next(problems())
    leak = chat_row("a", "Hello", "Hi", problem["question"].upper(), "No idea")
    part = chat_row("b", " ".join(problem["question"].split()[:14]), "No idea")
    clean = text_row("c", sentence(random.Random(6), 50))
    against = {"problems": EvaluationSet(evaluation)}
    step = Decontaminate(against)
    assert step(clean) is clean
    assert isinstance(step(part), Rejected)
    why = step(leak)
    assert why.reason == "leaks_evaluation" and why.reason in step.reasons
    first = " ".join(problem["question"].lower().split()[:13]).rstrip(".")
    assert why.detail == f'problems: problems.jsonl:1, 100% of its n-grams, such as "{first}"'
    half = Decontaminate(against, share=0.5)
    assert half(part) is part and isinstance(half(leak), Rejected)
    mark = Decontaminate(against, action="mark")
    assert [mark(row).columns["leaks"] for row in (leak, clean)] == [["problems: problems.jsonl:1"], []]
    again = pickle.loads(pickle.dumps(step))
    assert again == step and "index" not in vars(again) and again(leak) == why


def test_the_sections_settings_are_checked(evaluation):
    with pytest.raises(UserError, match=r"step.d.against names no evaluation set"):
        read(to_config(Decontaminate()), Decontaminate, "step.d")
    config = to_config(Decontaminate({"problems": EvaluationSet(evaluation)}))
    assert read(config, Decontaminate, "step.d") == Decontaminate({"problems": EvaluationSet(evaluation)})
    with pytest.raises(UserError, match=r"step.d.ngrams.shortest = 14: give at most step.d.ngrams.words = 13"):
        config.ngrams.shortest = 14
        read(config, Decontaminate, "step.d")
    with pytest.raises(UserError, match="parse"):
        Decontaminate({"problems": EvaluationSet(evaluation)})(Row("a", {"question": "Q"}, "s", "p"))


def test_real_questions_are_found_and_real_clean_text_is_not():
    if not DATA.exists():
        pytest.skip("../shared/data is not there")
    sets = {name: EvaluationSet(str(DATA / f"{name}.jsonl")) for name in ("vicuna_questions", "mt_bench_questions")}
    index = Index.from_sets(sets, Ngrams())
    clean = [json.loads(line)["text"] for line in (DATA / "c4_en.jsonl").open(encoding="utf-8")]
    assert not any(map(index.hits, clean))
    for name, one in sets.items():
        for item in items_of(name, one):
            for text in item.questions:
                assert (name, item.place) in [hit[:2] for hit in index.hits(text)]
