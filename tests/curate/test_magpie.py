"""Magpie: instructions come from a chat model itself, each kept or rejected with a reason, the same after any end."""

import contextlib
import itertools
from collections import Counter

import pytest

from camelid.curate.teachers.magpie import STEPS, Magpie
from camelid.curate.teachers.rouge import rouge_l, rouge_words
from camelid.data.formats import parse
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.data.user_turns import user_turn
from camelid.errors import UserError
from camelid.serve.journal import Reply
from camelid.settings.sections import read
from camelid.tests.curate.asking import Teacher, bytes_of, check_made, reasons
from camelid.tests.evals.small_model import write_model

CHATML = load_template("chatml")
SUBJECTS = ["river", "violin", "planet", "bridge", "teapot", "desert", "forest", "engine", "candle", "meadow"]
VERBS = ["Describe", "Compare", "Explain", "Invent", "Summarise", "Criticise", "Translate", "Improve"]
ENDS = ["in two short sentences", "for a child of seven", "with three examples", "as a dialogue", "in formal language"]
INSTRUCTIONS = [f"{verb} the {subject} {end}." for verb, subject, end in itertools.product(VERBS, SUBJECTS, ENDS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_model(tmp_path_factory.mktemp("model")))


def written(request):
    """An instruction for a prompt, another one for each sample, and an answer for a conversation."""
    if request.prompt is not None:
        return INSTRUCTIONS[request.sample * 37 % len(INSTRUCTIONS)]
    return f"Answer to: {request.messages[-1]['content']}"


def made_by(write, tokenizer, **settings):
    teacher = Teacher(write)
    return read(settings, Magpie)(teacher, CHATML, tokenizer), teacher


def test_instructions_are_sampled_after_the_users_header_and_answered(tokenizer):
    made, teacher = made_by(written, tokenizer, rows=3, temperatures=[1.2], seed=5)
    prompts = [request for request in teacher.asked if request.prompt is not None]
    header = tokenizer.encode_special("<s><|im_start|>user\n")
    assert all(list(request.prompt) == header for request in prompts)
    assert prompts[0].settings["stop_token_ids"] == [tokenizer.special["<|im_end|>"]]
    assert prompts[0].settings["temperature"] == 1.2 and prompts[0].settings["seed"] == 5
    for row in made.rows:
        question, answer = row.record["messages"]
        assert question["content"] in INSTRUCTIONS and answer["content"] == f"Answer to: {question['content']}"
        assert parse(dict(row.record)) == row.record and row.columns["teacher"] == "teacher"
        texts = [teacher.replies[key].text for key in row.columns["requests"]]
        assert texts == [question["content"], answer["content"]]


def test_no_two_kept_instructions_are_similar_and_the_counts_add_up(tokenizer):
    made, teacher = made_by(written, tokenizer, rows=20)
    assert len(made.rows) == 20
    texts = [rouge_words(row.record["messages"][0]["content"]) for row in made.rows]
    assert max(rouge_l(a, b) for a, b in itertools.combinations(texts, 2)) <= 0.7
    samples = [request for request in teacher.asked if request.prompt is not None]
    assert reasons(made)["novelty", "similar"] == len(samples) - 20 > 5
    check_made(made, STEPS, len(samples))
    similar = {each.row.columns["requests"][0]: each for each in made.rejected}
    for each in similar.values():
        number = int(each.detail.split()[-1])
        score = rouge_l(*(rouge_words(teacher.write(r)) for r in samples if r.sample in (number, _number(each.row))))
        assert f"{score:.3f}" in each.detail and score > 0.7


def _number(row):
    return int(row.place.removeprefix("sample "))


def test_each_defect_of_a_sample_has_its_reason(tokenizer):
    defects = {
        0: Reply("", "stop"),
        1: Reply("Describe the long long", "length", 5, 512),
        2: Reply("", "content_filter"),
        3: "Tell me about <|im_start|> tokens please",
        4: "Hi",
        5: "请用 三句话 介绍一下 长城的 历史",
        6: "Draw a picture of a cat on the moon",
        7: "Describe a planet made of glass<|im_end|>\n<|im_start|>assistant\nIt is",
    }
    bad_answers = {"Name the tallest tower of Europe.": Reply("It is", "length"), "Name the river of Rome.": Reply(" ")}

    def write(request):
        if request.prompt is None:
            return bad_answers.get(request.messages[-1]["content"], "Yes.")
        later = [*bad_answers, *INSTRUCTIONS[::41]]
        return defects[request.sample] if request.sample in defects else later[request.sample - len(defects)]

    made, teacher = made_by(write, tokenizer, rows=4, samples=30)
    assert reasons(made) == {
        ("instruction", "empty"): 1,
        ("instruction", "cut"): 1,
        ("instruction", "withheld"): 1,
        ("instruction", "control_text"): 1,
        ("filters", "too_short"): 1,
        ("filters", "other_language"): 1,
        ("filters", "beyond_text"): 1,
        ("answer", "cut"): 1,
        ("answer", "empty"): 1,
    }
    assert "Describe a planet made of glass" in [row.record["messages"][0]["content"] for row in made.rows]
    check_made(made, STEPS, sum(request.prompt is not None for request in teacher.asked))


def test_sampling_ends_at_the_most_samples(tokenizer):
    made, teacher = made_by(lambda request: "Name the river of Rome.", tokenizer, rows=5, samples=12)
    assert len(made.rows) == 1 and reasons(made) == {("novelty", "similar"): 11}
    assert sum(request.prompt is not None for request in teacher.asked) == 12


def test_topics_languages_and_temperatures_take_turns_and_the_answer_sees_no_system_prompt(tokenizer):
    zh = ["请介绍长江的源头在哪里", "写一首关于秋天的短诗", "如何学会弹钢琴", "解释一下光合作用的过程"]

    def write(request):
        if request.prompt is None:
            return "好" if request.messages[-1]["content"] in zh else "ok"
        return zh[request.sample // 2 % 4] if request.sample % 2 else INSTRUCTIONS[request.sample * 37 % 400]

    how = dict(rows=8, languages=["en", "zh"], topics=["general", "maths"], temperatures=[1.0, 1.1])
    made, teacher = made_by(write, tokenizer, **how)
    variants = Counter(tuple(row.columns[name] for name in ("language", "topic", "temperature")) for row in made.rows)
    assert variants == Counter(itertools.product(("en", "zh"), ("general", "maths"), (1.0, 1.1)))
    for request in teacher.asked:
        if request.prompt is None:
            assert [message["role"] for message in request.messages] == ["user"]
    shown = {tokenizer.decode(request.prompt) for request in teacher.asked if request.prompt is not None}
    assert sum("数学" in text for text in shown) == sum("tutor" in text for text in shown) == 1


def test_further_turns_follow_the_conversation_and_end_where_one_is_of_no_use(tokenizer):
    def write(request):
        if request.prompt is None:
            return Reply("It", "length") if request.messages[-1]["content"] == "Follow 2 of 2" else "Fine."
        turns = tokenizer.decode(request.prompt).count("Fine.")
        if not turns:
            return INSTRUCTIONS[request.sample * 37]
        return Reply("", "stop") if request.sample == 0 else f"Follow {turns} of {request.sample}"

    made, teacher = made_by(write, tokenizer, rows=3, turns=3)
    said = {_number(row): [m["content"] for m in row.record["messages"]] for row in made.rows}
    assert [len(said[number]) for number in range(3)] == [2, 6, 4]
    assert said[1][2::2] == ["Follow 1 of 1", "Follow 2 of 1"]
    ended = {_number(row): row.columns["ended"] for row in made.rows}
    assert ended == {0: "question empty", 1: "turns", 2: "answer cut"}
    second = next(r for r in teacher.asked if r.prompt is not None and r.sample == 1 and len(r.prompt) > 40)
    so_far = [{"role": r, "content": c} for r, c in zip(("user", "assistant"), said[1][:2], strict=True)]
    assert list(second.prompt) == user_turn(CHATML, tokenizer, so_far).prefix


def test_a_run_that_ends_anywhere_goes_on_to_the_same_bytes_and_asks_nothing_twice(tokenizer):
    settings = read(dict(rows=8, turns=2, languages=["en"]), Magpie)
    whole = Teacher(written)
    expected = bytes_of(settings(whole, CHATML, tokenizer))
    for first in range(1, len(whole.asked), 5):
        journal, asked = {}, 0
        for most in (first, 10**9):
            teacher = Teacher(written, replies=journal, most=most)
            with contextlib.suppress(KeyboardInterrupt):
                made = settings(teacher, CHATML, tokenizer)
            asked += len(teacher.asked)
        assert bytes_of(made) == expected and asked == len(whole.asked)


def test_settings_that_do_not_fit_are_one_line(tokenizer):
    with pytest.raises(UserError, match="languages: fr"):
        read({"languages": ["fr"]}, Magpie, "magpie")
    with pytest.raises(UserError, match="samples = 0"):
        read({"samples": 0}, Magpie, "magpie")
    with pytest.raises(UserError, match="topics is empty"):
        read({"topics": []}, Magpie, "magpie")
    with pytest.raises(UserError, match=r"magpie\.poems\.en\.toml"):
        made_by(written, tokenizer, topics=["poems"])
