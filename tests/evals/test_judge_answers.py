"""Models answer sets of questions turn by turn, in memory or by an endpoint, the same whether interrupted or not."""

import json

import jax
import pytest

from camelid.checkpoints.language_model import LanguageModel
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.errors import UserError
from camelid.evals.answers import Answer, ask_questions, read_answers, write_records
from camelid.evals.questions import Question
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh
from camelid.serve.journal import Journal, Reply, Request
from camelid.serve.local import Local

QUESTIONS = [
    Question("1", ("Hello", "And you?", "Bye"), "writing"),
    Question("2", ("三加五？",), "math", language="zh"),
    Question("3", ("Who?", "Why?"), "stem"),
]


class Echo:
    """Answers with the number of messages and the last message, and notes the requests."""

    name = "echo"

    def __init__(self):
        self.asked = []

    def ask(self, requests):
        self.asked.append(requests)
        said = [f"{len(request.messages)}: {request.messages[-1]['content']}" for request in requests]
        return [Reply(text, "stop", 1, len(text) // 2, "echo-1") for text in said]


def test_later_turns_have_the_models_own_earlier_answers():
    asker = Echo()
    answers = ask_questions(QUESTIONS, asker)
    assert [answer.turns for answer in answers] == [
        ("1: Hello", "3: And you?", "5: Bye"),
        ("1: 三加五？",),
        ("1: Who?", "3: Why?"),
    ]
    assert [len(requests) for requests in asker.asked] == [3, 2, 1]
    assert asker.asked[2][0].messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "1: Hello"},
        {"role": "user", "content": "And you?"},
        {"role": "assistant", "content": "3: And you?"},
        {"role": "user", "content": "Bye"},
    ]
    assert answers[1] == Answer(
        *("2", "echo", ("1: 三加五？",), "math", "zh", {"temperature": 0.0, "max_tokens": 1024}),
        *(("stop",), (3,), (7,), ("echo-1",)),
    )


def test_temperatures_are_those_of_mt_bench_or_the_given_one():
    asker = Echo()
    ask_questions(QUESTIONS, asker, max_tokens=7)
    assert [request.settings for request in asker.asked[0]] == [
        {"temperature": temperature, "max_tokens": 7} for temperature in (0.7, 0.0, 0.1)
    ]
    ask_questions(
        QUESTIONS, asker, temperature=0.3, seed=5, system="Be brief.", more={"max_tokens": None, "top_p": 0.9}
    )
    assert all(request.settings == {"temperature": 0.3, "seed": 5, "top_p": 0.9} for request in asker.asked[3])
    assert asker.asked[4][0].messages[0] == {"role": "system", "content": "Be brief."}


def test_answers_are_read_as_they_were_written(tmp_path):
    answers = ask_questions(QUESTIONS, Echo(), name="other")
    write_records(answers, tmp_path / "a.jsonl")
    assert read_answers(tmp_path / "a.jsonl") == answers
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])["turns"] == ["1: 三加五？"]


def test_answers_of_fastchat_are_read(tmp_path):
    records = [
        {"question_id": 81, "model_id": "a", "choices": [{"index": 0, "turns": ["x", "y"]}], "tstamp": 1},
        {"question_id": 2, "model_id": "b", "text": "z", "answer_id": "q"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert read_answers(tmp_path / "a.jsonl") == [Answer("81", "a", ("x", "y")), Answer("2", "b", ("z",))]


@pytest.mark.parametrize(
    "line, message",
    {
        '{"question_id": 1, "model": "a", "turns": ["again"]}': "a.jsonl:2.*another|a.jsonl:2: a has an answer",
        '{"question_id": 2, "turns": ["x"]}': "a.jsonl:2.*no question_id, model and turns",
        '{"model": "a", "turns": ["x"]}': "a.jsonl:2.*no question_id, model and turns",
        '{"question_id": 2, "model": "a", "turns": [3]}': "a.jsonl:2.*give a text",
        '{"question_id": null, "model": "a", "turns": ["x"]}': "a.jsonl:2.*no question_id, model and turns",
        '{"question_id": [2], "model": "a", "turns": ["x"]}': "a.jsonl:2.*give a text or a whole number",
        r'{"question_id": 2, "model": "a\nb", "turns": ["x"]}': "a.jsonl:2: model is.*control character",
    }.items(),
)
def test_what_is_no_answer_is_one_line_with_its_place(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "model": "a", "turns": ["x"]}\n' + line)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / "a.jsonl")


@pytest.fixture(scope="module")
def model(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    config = LlamaConfig.preset("nano-test", vocab_size=tokenizer.vocab_size, max_len=64)
    built = llama.build(config)
    params = jax.tree.map(lambda x: 2 * x, jax.jit(built.init)(jax.random.key(0)))
    mesh = make_mesh({}, jax.devices()[:1])
    return LanguageModel(built, params, tokenizer, load_template("chatml"), mesh)


WORDS = ["red fox", "blue owl sees a whale", "狐狸", "green horse", "white wolf and black bee", "the fox"]


def requests(temperature=0.0, **more):
    settings = {"temperature": temperature, "max_tokens": 8} | more
    return [Request([{"role": "user", "content": text}], settings) for text in WORDS]


def local(model, journal):
    return Local(model, "tiny", ["hash"], journal=journal, batch_size=4)


def test_a_model_in_memory_answers_as_chat_batch_does(model):
    replies = local(model, Journal(None)).ask(requests())
    batches = [WORDS[:4], WORDS[4:]]
    expected = [text for batch in batches for text in model.chat_batch(batch, temperature=0.0, max_tokens=8)]
    assert [reply.text for reply in replies] == expected
    assert [reply.prompt_tokens for reply in replies] == [len(model.prompt(text)) for text in WORDS]
    for reply in replies:
        assert reply.finish_reason == ("length" if reply.completion_tokens == 8 else "stop")


def test_samples_and_seeds_differ_and_are_drawn_again_the_same(model):
    def sampled(sample, **more):
        asked = [Request(each.messages, each.settings, sample) for each in requests(temperature=1.5, **more)]
        return [reply.text for reply in local(model, Journal(None)).ask(asked)]

    assert sampled(0) == sampled(0) != sampled(1)
    assert sampled(1) == sampled(0, seed=1)


def test_an_interrupted_model_gives_the_replies_that_it_would_have_given(model, tmp_path):
    with Journal(tmp_path / "whole") as journal:
        whole = local(model, journal).ask(requests(temperature=1.5))
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (3, 6, len(lines) - 1):  # in the first batch: asked alone, and with two replies; in the last batch
        (tmp_path / "cut").write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        with Journal(tmp_path / "cut") as journal:
            assert local(model, journal).ask(requests(temperature=1.5)) == whole
    with Journal(tmp_path / "whole") as journal:
        size = (tmp_path / "whole").stat().st_size
        assert local(model, journal).ask(requests(temperature=1.5)) == whole
        assert (tmp_path / "whole").stat().st_size == size  # nothing was asked
        other = Local(model, "tiny", ["another hash"], journal=journal, batch_size=4)
        other.ask(requests(temperature=1.5))
        assert (tmp_path / "whole").stat().st_size > size  # other parameters have replies of their own


def test_a_conversation_that_fills_the_context_has_an_empty_answer_and_the_others_stay(model):
    long = Request([{"role": "user", "content": "fox " * 200}], requests()[0].settings)
    replies = local(model, Journal(None)).ask([*requests()[:2], long])
    assert replies[2].text == "" and replies[2].finish_reason == "length" and replies[2].completion_tokens == 0
    assert replies[2].prompt_tokens > 64
    assert [reply.text for reply in replies[:2]] == model.chat_batch(WORDS[:2], temperature=0.0, max_tokens=8)


def test_a_setting_that_is_not_known_is_refused(model):
    with pytest.raises(UserError, match="logit_bias"):
        local(model, Journal(None)).ask(requests(logit_bias={}))
    with pytest.raises(UserError, match="temperature"):
        local(model, Journal(None)).ask(requests(temperature=-1))
