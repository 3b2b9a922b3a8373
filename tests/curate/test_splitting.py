"""Long conversations are split between pairs of turns: each turn once, each part within the budget, none empty."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.curate.conversations.filters import Length
from camelid.curate.conversations.splitting import SplitLong, pairs_of, size_by, split
from camelid.curate.rows import Row
from camelid.data.formats import parse
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CORPUS = ["USER: ASSISTANT: a chat between system user assistant hello there, how are you? fine 你好 " * 5]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a LLaMA tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(CORPUS, vocab_size=330, output_dir=folder)
    return str(folder)


def conversation(*pairs, system=True, **fields):
    turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in pairs]
    messages = [*([SYSTEM] if system else []), *itertools.chain.from_iterable(turns)]
    return Row(
        "0123456789abcdef0123", {"kind": "chat", "messages": messages, **fields}, "chats", "chats.json, record 1"
    )


def many(count, length=20):
    return conversation(*[(f"q{n}" + "?" * length, f"a{n}" + "." * length) for n in range(count)])


def turns(rows):
    """The turns of all rows, without system turns."""
    return [m for row in rows for m in row.record["messages"] if m["role"] != "system"]


def test_a_conversation_within_the_budget_stays():
    row = many(3)
    assert SplitLong(budget=1000)(row) == row


def test_parts_are_as_long_as_the_budget_allows_and_begin_with_the_system_turn():
    row = many(10)
    parts = SplitLong(budget=120)(row)  # 9 for the system turn, 44 for a pair
    assert [len(part.record["messages"]) for part in parts] == [5, 5, 5, 5, 5]
    assert all(part.record["messages"][0] == SYSTEM for part in parts)
    assert turns(parts) == turns([row])
    assert [part.id for part in parts] == [f"{row.id}-{n}" for n in range(1, 6)]
    assert [part.columns for part in parts] == [{"parts": 5, "part": n} for n in range(1, 6)]


def test_columns_of_length_become_those_of_the_part():
    parts = SplitLong(budget=60)(Length()(conversation(("q" * 30, "a"), ("r" * 40, "b"))))
    assert [part.columns for part in parts] == [
        {"characters": 40, "turns": 2, "parts": 2, "part": 1},
        {"characters": 50, "turns": 2, "parts": 2, "part": 2},
    ]


def test_the_last_pair_is_not_lost_and_no_part_is_empty():
    long, short = ("q" * 90, "a" * 90), ("q", "a")
    for pairs in itertools.product([long, short], repeat=4):
        row = conversation(*pairs)
        found = SplitLong(budget=100)(row)
        parts = found if isinstance(found, list) else [found]
        assert turns(parts) == turns([row])
        assert all(len(part.record["messages"]) >= 3 for part in parts)


def test_a_pair_over_the_budget_is_kept_whole_or_its_conversation_rejected():
    row = conversation(("q", "a"), ("q" * 200, "a"), ("q", "a"))
    parts = SplitLong(budget=100)(row)
    assert [len(part.record["messages"]) for part in parts] == [3, 3, 3]
    found = SplitLong(budget=100, too_long="reject")(row)
    assert found.reason == "pair_too_long"
    assert found.detail == "part 2 of 3 is one pair of 210 characters"
    assert SplitLong(budget=100)(conversation(("q" * 200, "a"))) == conversation(("q" * 200, "a"))


def test_tools_documents_and_labels_go_with_the_parts():
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = conversation(("q" * 40, "a"), ("q" * 40, "a"), tools=tools, label=False, meta={"id": 1})
    first, last = SplitLong(budget=60)(row)
    assert first.record["tools"] == last.record["tools"] == tools and first.record["meta"] == {"id": 1}
    assert "label" not in first.record and last.record["label"] is False


def test_calls_of_tools_stay_with_their_question():
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    messages = [
        {"role": "user", "content": "q" * 50},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "r" * 50},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert pairs_of(messages) == ([], [messages[:4], messages[4:]])
    parts = SplitLong(budget=60)(Row("0", {"kind": "chat", "messages": messages}, "s", "p"))
    assert [len(part.record["messages"]) for part in parts] == [4, 2]


def test_texts_stay_and_prompts_and_preferences_follow_the_setting():
    text = Row("0", {"kind": "text", "text": "x" * 500}, "s", "p")
    question = [{"role": "user", "content": "q" * 90}]
    prompt = Row("0", {"kind": "prompt", "messages": question}, "s", "p")
    answers = {side: [{"role": "assistant", "content": "a" * 9}] for side in ("chosen", "rejected")}
    preference = Row("0", {"kind": "preference", "messages": question, **answers}, "s", "p")
    for row in (text, prompt, preference):
        assert SplitLong(budget=50)(row) == row
    assert SplitLong(budget=50, too_long="reject")(text) == text
    for row in (prompt, preference):
        assert SplitLong(budget=50, too_long="reject")(row).reason == "too_long"


TURN = st.text("ab 你\n", min_size=1, max_size=30).map(lambda text: f"{text}.")
PAIR = st.tuples(TURN, TURN)


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIR, min_size=1, max_size=12), st.integers(1, 150), st.booleans())
def test_parts_have_exactly_the_turns_of_the_conversation(pairs, budget, system):
    row = conversation(*pairs, system=system)
    size = size_by(None, None)
    found = SplitLong(budget=budget)(row)
    parts = found if isinstance(found, list) else [found]
    assert turns(parts) == turns([row])
    for part in parts:
        messages = [m for m in part.record["messages"] if m["role"] != "system"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) and messages
        assert (part.record["messages"][0] == SYSTEM) == system
        assert size(part.record) <= budget or len(messages) == 2
        assert parse(part.record) == part.record  # data/ reads each part
    for part, following in itertools.pairwise(parts):  # no part could have been longer
        first = [m for m in following.record["messages"] if m["role"] != "system"][:2]
        longer = {**part.record, "messages": [*part.record["messages"], *first]}
        assert size(longer) > budget


@settings(max_examples=25, deadline=None)
@given(st.lists(PAIR, min_size=2, max_size=6), st.integers(60, 200))
@pytest.mark.parametrize("template", ["vicuna", "llama2"])
def test_parts_in_tokens_are_counted_as_training_writes_them(tokenizer, template, pairs, budget):
    step = SplitLong(budget=budget, tokenizer=tokenizer, template=template)
    row = conversation(*pairs)
    found = step(row)
    parts = found if isinstance(found, list) else [found]
    assert turns(parts) == turns([row])
    loaded, encoder = load_template(template), Tokenizer.load(tokenizer)
    for part in parts:
        tokens = len(loaded.encode(part.record["messages"], encoder).tokens)
        assert part.columns["tokens"] == tokens
        assert tokens <= budget or len(part.record["messages"]) == 3


def test_the_number_of_counts_grows_slowly_with_the_length_of_a_conversation():
    counted = []

    def size(record):
        counted.append(len(record["messages"]))
        return len(record["messages"])

    parts = split(many(3000).record, 2001, size)
    assert [len(part["messages"]) for part in parts] == [2001, 2001, 2001]
    assert len(counted) < 120  # one for each pair would be 3,000


def test_a_tokenizer_without_a_template_is_an_error_that_says_so(tokenizer):
    for step in (SplitLong(tokenizer=tokenizer), Length(tokenizer=tokenizer)):
        with pytest.raises(UserError, match=r"no chat template, .*: name one in template"):
            step(many(1))
    with pytest.raises(UserError, match="no tokenizer at nowhere"):
        SplitLong(tokenizer="nowhere")(many(1))


def test_a_conversation_that_the_template_refuses_is_rejected_with_what_it_says(tokenizer):
    messages = [{"role": role, "content": role} for role in ("user", "user", "assistant")]
    refusing = "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ raise_exception('no such roles') }}"
    row = Row("0", {"kind": "chat", "messages": messages}, "s", "p")
    for step in (SplitLong, Length):
        found = step(tokenizer=tokenizer, template=refusing)(row)
        assert found.reason == "not_rendered" and "no such roles" in found.detail


def test_lengths_in_tokens_are_those_of_training(tokenizer):
    row = conversation(("hello", "there"))
    count = size_by(tokenizer, "vicuna")(row.record)
    assert Length(tokenizer=tokenizer, template="vicuna")(row).columns["tokens"] == count
    limited = Length(tokenizer=tokenizer, template="vicuna", most_tokens=count - 1)
    assert limited(row).reason == "many_tokens"
    text = Row("0", {"kind": "text", "text": "hello there"}, "s", "p")
    assert Length(tokenizer=tokenizer, least_tokens=1000)(text).reason == "few_tokens"
