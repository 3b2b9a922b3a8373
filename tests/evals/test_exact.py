"""Questions with known answers, asked of models whose answers are known."""

import json

import pytest

import camelid
from camelid.errors import UserError
from camelid.evals import answer_metrics
from camelid.evals.exact import exact, read_asked
from camelid.evals.items import metrics_of


class Scripted:
    """Stands for a model: gives the answers of a list to each prompt, in turns."""

    max_len, begin, eos_id = 512, [], 0

    def __init__(self, *answers):
        self.answers = answers

    def encode(self, text):
        return [text]

    def chat_ids(self, messages):
        return [messages]

    def decode(self, ids):
        return str(ids[-1])

    def generate(self, prompts, *, n, **how):
        self.prompts, self.how = [prompt[-1] for prompt in prompts], how
        return [[self.answers[(place + i) % len(self.answers)] for i in range(n)] for place in range(len(prompts))]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sums.jsonl"
    lines = [
        {"question": f"{n} + 1?", "answer": f"add\n#### {n + 1:,}", "group": "odd" if n % 2 else "even"}
        for n in (1, 2, 999)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_numbers_are_compared_as_numbers(file):
    items = exact(Scripted("So it is 2.0.", "#### 4 or 3", "1000 apples"), file=file, metric="number")
    assert [item.scores["number"] for item in items] == [1.0, 1.0, 1.0]
    assert metrics_of(items)["number/odd"].n == 2


def test_a_table_of_questions_is_asked(tmp_path):
    path = tmp_path / "faq.csv"
    path.write_text("编号;问题;答案\n7;谁？;安。\n8;Where, then?;Here.\n")
    found = [(each.messages[0]["content"], each.references) for each in read_asked(str(path))]
    assert found == [("谁？", ("安。",)), ("Where, then?", ("Here.",))]


def test_questions_of_one_cluster_count_together(tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [{"question": f"{n}?", "answer": "1", "cluster": f"text {n // 4}"} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = metrics_of(exact(Scripted("1", "2"), file=str(path)))["exact"]
    assert (found.n, found.clusters) == (12, 3)


def test_the_majority_counts_where_there_are_several_answers(file):
    model = Scripted("2", "3", "2.0")
    (item, *_) = exact(model, file=file, metric="number", n=3, temperature=1.0, limit=1)
    assert item.scores == {"number": pytest.approx(2 / 3), "maj@3": 1.0}
    assert item.shown["answers"] == ["2", "3", "2.0"]
    with pytest.raises(UserError, match="n is 3 at temperature 0, where all answers are equal"):
        exact(model, file=file, n=3)


def test_examples_stand_before_the_question_and_are_not_asked(file):
    model = Scripted("2")
    items = exact(model, file=file, shots=2)
    assert len(items) == 1
    assert model.prompts == [
        "Question: 2 + 1?\nAnswer: add\n#### 3\n\nQuestion: 999 + 1?\nAnswer: add\n#### 1,000\n\n"
        "Question: 1 + 1?\nAnswer:"
    ]
    assert items[0].shown["prompt"] == model.prompts[0]
    assert model.how["stop"] == ["\nQuestion:", "\n问题："]
    exact(model, file=file, shots=1, chat=True)
    assert [message["role"] for message in model.prompts[0]] == ["user", "assistant", "user"]
    with pytest.raises(UserError, match="shots is 3: there are 3 questions with answers"):
        exact(model, file=file, shots=3)


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "score"),
    [
        ("exact", "The Fox!", "fox", 1.0),
        ("exact", "foxes", "fox", 0.0),
        ("exact", "红色。", "红色", 1.0),
        ("starts", "fox\nQuestion", "fox", 1.0),
        ("contains", "It is a red fox.", "Red fox", 1.0),
        ("f1", "the red fox", "red owl", 0.5),
        ("f1", "红色狐", "红狐", 0.8),
        ("number", "No idea.", "3", 0.0),
        ("number", "It costs $1,234.50", "1234.5", 1.0),
        ("number", "-3", "3", 0.0),
        ("number", "４２", "42", 1.0),
        ("number", "\N{MINUS SIGN}5", "5", 0.0),
        ("number", "1/4 of it", "0.25", 1.0),
        ("number", "3/4", "1/4", 0.0),
        ("number", "from 10-12", "12", 1.0),
        ("number", "1e5", "100000", 1.0),
        ("number", "10²", "102", 0.0),
        ("contains", "I do not know", "A", 0.0),
        ("contains", "The answer is A.", "A", 1.0),
        ("contains", "foxes", "fox", 0.0),
        ("contains", "这是红色的狐狸。", "红色", 1.0),
        ("exact", "", "A", 0.0),
        ("exact", "A", "a", 1.0),
        ("exact", "-5", "5", 0.0),
        ("exact", "C", "C++", 0.0),
        ("exact", "...", "The", 0.0),
    ],
)
def test_metrics(metric, answer, reference, score):
    assert answer_metrics.find(metric, "here")(answer, [reference]) == pytest.approx(score)


def test_own_metrics_are_found_by_name_and_their_faults_are_told(file, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def length(answer, references):\n    return len(answer)\n\n\n"
        "def broken(answer, references):\n    return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert exact(Scripted("abc"), file=file, metric="own_metric:length")[0].scores == {"length": 3.0}
    with pytest.raises(
        UserError, match=r"metric broken: ZeroDivisionError: .*own_metric.py, line 6.* for the answer to"
    ):
        exact(Scripted("abc"), file=file, metric="own_metric:broken")
    with pytest.raises(UserError, match=r"there is no metric 'exat', only exact, .*; did you mean exact"):
        exact(Scripted("abc"), file=file, metric="exat")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": 3, "answer": "a"}, 'sums.jsonl:1: "question" is a number'),
        ({"question": "q"}, 'sums.jsonl:1: "answer" is null'),
        ({"question": "q", "answer": []}, '"answer" is a list'),
        ({"question": "q", "answr": "a"}, "nothing reads the field 'answr'; did you mean answer"),
        ({"question": "q", "answer": "a", "group": ["x"]}, '"group" is a list'),
        ({"question": "q\ud800", "answer": "a"}, "sums.jsonl:1: .* has a lone surrogate"),
        ({"messages": [{"role": "assistant", "content": "q"}], "answer": "a"}, "the last of the user"),
    ],
)
def test_a_line_that_is_no_question_is_told_with_its_place(tmp_path, line, message):
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        read_asked(str(path))


def test_an_id_that_stands_twice_is_told_with_both_places(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(json.dumps({"id": name, "question": "q", "answer": "a"}) for name in "xyx"))
    with pytest.raises(UserError, match=r"sums.jsonl:3: the id 'x' stands in .*sums.jsonl:1 too"):
        read_asked(str(path))


def test_a_reference_without_a_number_and_a_question_without_room_are_told(tmp_path, capsys):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "q", "answer": "two"}')
    with pytest.raises(UserError, match=r"sums.jsonl:1: the answer has no number"):
        exact(Scripted("2"), file=str(path), metric="number")
    model = Scripted("2")
    model.max_len, model.encode = 40, list
    lines = [{"question": "1 + 1?", "answer": "2"}, {"question": "x" * 50, "answer": "2"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [item.scores["exact"] for item in exact(model, file=str(path))] == [1.0, 0.0]
    assert "1 questions fill the context of 40 tokens" in capsys.readouterr().err


def test_a_question_is_no_example_of_itself(file):
    model = Scripted("2")
    exact(model, file=file, shots=3, shots_file=file)
    assert [prompt.count("Question:") for prompt in model.prompts] == [3, 3, 3]
    assert all(prompt.count(prompt.rpartition("Question: ")[2].partition("\n")[0]) == 1 for prompt in model.prompts)


def test_a_loaded_model_answers(tuned, tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "Which colour has the red fox number 1?", "answer": ["It is red, fox."]}))
    model = camelid.load(tuned)
    (item,) = exact(model, file=str(path), metric="f1", chat=True, max_tokens=12)
    said = model.chat("Which colour has the red fox number 1?", max_tokens=12, temperature=0.0)
    assert item.shown["answer"] == said
    assert item.scores["f1"] == answer_metrics.f1(said, ["It is red, fox."])


def test_questions_that_all_lack_room_get_no_answer(tuned, tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "owl " * 400, "answer": "red"}))
    (item,) = exact(camelid.load(tuned), file=str(path), max_tokens=4)
    assert item.scores == {"exact": 0.0} and item.shown["answer"] == ""
