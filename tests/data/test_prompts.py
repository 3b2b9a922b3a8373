"""Prompts: what they are of each kind of record, in which order they come, and what is left out."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from camelid.data import sources
from camelid.data.mixture import EvalPass, Mixture
from camelid.data.prompts import PromptEncoder, heldout_prompts
from camelid.data.samples import read_samples
from camelid.data.sources import Source
from camelid.data.templates import BUILT_IN, load_template
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.model.decode import prompt_ids

CORPUS = ["system user assistant question number answer 0 1 2 3 4 5 6 7 8 9 hello there 你好吗我很好 " * 5]
P = 64


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_sentencepiece(CORPUS, vocab_size=330, output_dir=folder, special_tokens=["<|im_start|>", "<|im_end|>"])


def questions(n, word="question"):
    """`n` conversations with different questions."""
    return [{"messages": [user(f"{word} {i}"), assistant(f"answer {i}")], "number": i} for i in range(n)]


@pytest.fixture
def write(tmp_path):
    """write(records, name="a"): a source with these records."""

    def write_records(records, name="a"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
        return str(path)

    return write_records


@pytest.fixture
def make(tokenizer):
    """make(source, ..., weights=None, **options): the batches of these sources, named s0, s1, ..."""

    def prompts_of(*paths, weights=None, template="chatml", max_tokens=P, batch_size=4, seed=1, split=None, **reading):
        weights = weights or [1] * len(paths)
        sources = [Source(p, f"s{i}", weight=weights[i], **reading) for i, p in enumerate(paths)]
        encoder = PromptEncoder(tokenizer, load_template(template), max_tokens)
        return Mixture(sources, lambda source: read_samples(source, split, encoder), batch_size, seed)

    return prompts_of


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def indices(batches, start, stop):
    """Which records the rows `start:stop` of a run are."""
    steps = range(start // batches.batch_size, -(-stop // batches.batch_size))
    rows = [i for step in steps for i in batches[step]["index"].tolist()]
    skip = start - steps.start * batches.batch_size
    return rows[skip : skip + stop - start]


RECORDS = [
    {"messages": [user("hello"), assistant("there")], "id": 7},
    {"messages": [user("你好"), assistant("很好"), user("吗"), assistant("我很好")]},
    {"prompt": "question"},
    {"prompt": "number", "chosen": "good", "rejected": "bad"},
]
PROMPTS = [
    {"messages": [user("hello")], "reference": "there", "language": "en", "meta": {"id": 7}},
    {"messages": [user("你好"), assistant("很好"), user("吗")], "reference": "我很好", "language": "zh", "meta": {}},
    {"messages": [user("question")], "reference": None, "language": "en", "meta": {}},
    {"messages": [user("number")], "reference": None, "language": "en", "meta": {}},
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_prompt_is_all_before_the_last_answer_and_the_templates_prompt(name, write, make, tokenizer):
    batches = make(write(RECORDS), template=name, max_tokens=200)
    assert batches.records == PROMPTS
    batch = batches[0]
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3]
    for row, index in enumerate(batch["index"]):
        messages = PROMPTS[index]["messages"]
        expected = load_template(name).encode(messages, tokenizer, generation_prompt=True).tokens.tolist()
        assert batch["lengths"][row] == len(expected)
        assert batch["tokens"][row].tolist() == expected + [0] * (200 - len(expected))


def test_arrays_have_the_contracts_shapes_and_types(write, make):
    batches = make(write(RECORDS))
    found = {name: (array.shape, array.dtype.name) for name, array in batches[3].items()}
    assert found == {
        "tokens": ((4, P), "int32"),
        "lengths": ((4,), "int32"),
        "ids": ((4,), "uint32"),
        "index": ((4,), "int32"),
    }
    assert found == {name: (shape, np.dtype(dtype).name) for name, (shape, dtype) in batches.shapes.items()}
    assert batches.length == P


def test_ids_are_those_that_decoding_gives_a_prompt(write, make):
    batch = make(write(questions(20)), batch_size=20)[0]
    np.testing.assert_array_equal(batch["ids"], prompt_ids(batch["tokens"], batch["lengths"]))
    assert len(set(batch["ids"].tolist())) == 20


def test_the_reference_is_never_in_the_prompts_tokens(write, make, tokenizer):
    secret = [{"messages": [user(f"question {i}"), assistant(f"hello {i} there")]} for i in range(9)]
    batches = make(write(secret), batch_size=9)
    for row, index in zip(batches[0]["tokens"], batches[0]["index"], strict=True):
        assert batches.records[index]["reference"] not in tokenizer.decode(row.tolist())


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_is_every_prompt_once_in_an_order_of_its_own(write, make, epoch):
    batches = make(write(questions(30)))
    order = indices(batches, 30 * epoch, 30 * (epoch + 1))
    assert sorted(order) == list(range(30))
    assert order != indices(batches, 30 * (epoch + 1), 30 * (epoch + 2))
    assert batches.steps_per_epoch == 7.5
    assert batches.epochs(15) == {"s0": 2.0}


def test_a_step_is_the_same_in_any_object_and_order(write, make):
    paths = [write(questions(n, word), word) for n, word in ((30, "question"), (7, "number"), (50, "hello"))]
    forward, scattered = (make(*paths, weights=[0.7, 0.2, 0.1]) for _ in range(2))
    expected = [forward[step] for step in range(60)]
    for step in np.random.default_rng(0).permutation(60).tolist():
        assert_same(scattered[step], expected[step])
    assert_same(make(*paths, weights=[0.7, 0.2, 0.1])[41], expected[41])  # what a resumed run sees
    assert forward.fingerprint == scattered.fingerprint
    with pytest.raises(IndexError):
        forward[-1]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_rows_of_all_hosts_are_the_batch(write, make, hosts):
    batches = make(write(questions(13)), write(questions(9, "hello"), "b"), batch_size=8)
    each = 8 // hosts
    for step in (0, 9):
        parts = [batches.rows(step, slice(h * each, (h + 1) * each)) for h in range(hosts)]
        assert_same({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, batches[step])


def test_a_mixture_draws_by_weight_and_counts_epochs_exactly(write, make):
    sizes, weights = (20, 10, 5), [0.67, 0.285, 0.045]
    batches = make(*(write(questions(n), f"s{n}") for n in sizes), weights=weights, batch_size=5)
    assert [summary["share"] for summary in batches.summary().values()] == weights
    borders, given = np.cumsum(sizes), np.zeros(3)
    for step in range(40):
        assert list(batches.epochs(step).values()) == [g / n for g, n in zip(given, sizes, strict=True)]
        for index in batches[step]["index"]:
            given[np.searchsorted(borders, index, side="right")] += 1
    np.testing.assert_allclose(given, 200 * np.array(weights))
    assert batches.steps_per_epoch == 35 / 5


def test_long_and_repeated_prompts_are_left_out_and_counted(write, make):
    long = {"prompt": "hello there " * 40}
    path = write([*questions(3), long, *questions(5)])
    batches = make(path)
    assert [record["meta"]["number"] for record in batches.records] == [0, 1, 2, 3, 4]
    summary = batches.summary()["s0"]
    counts = {name: summary[name] for name in ("records", "samples", "too_long", "repeated", "skipped")}
    assert counts == {"records": 9, "samples": 5, "too_long": 1, "repeated": 3, "skipped": 0}
    lengths = batches.rows(0, slice(4))["lengths"].tolist() + batches.rows(1, slice(1))["lengths"].tolist()
    assert (summary["tokens"], summary["longest"]) == (sum(lengths), max(lengths))
    assert summary["fill"] == sum(lengths) / (5 * P)
    (message,) = batches.skipped()["s0"]
    assert f"{path}:4: the prompt has " in message and message.endswith("tokens, more than 64")


def test_the_same_prompt_may_stand_in_two_sources(write, make):
    batches = make(write(questions(3), "a"), write(questions(3), "b"))
    assert [summary["samples"] for summary in batches.summary().values()] == [3, 3]


def test_records_without_a_prompt_stop_the_run_or_are_listed(write, make):
    two = {"messages": [user("a"), assistant("b"), assistant("c")]}
    path = write([*questions(1), {"text": "hello"}, two])
    with pytest.raises(UserError, match=r"jsonl:2: a text record has no prompt: give conversations.*on_error=skip"):
        make(path)
    batches = make(path, on_error="skip")
    assert batches.summary()["s0"]["skipped"] == 2
    assert [message.split(":")[1] for message in batches.skipped()["s0"]] == ["2", "3"]


def test_a_source_with_no_prompt_left_says_why(write, make):
    with pytest.raises(
        UserError, match=r"no prompt is left: 2 records, 2 too_long, 0 repeated, 0 skipped \(.*jsonl:1: "
    ):
        make(write(questions(2)), max_tokens=3)
    with pytest.raises(UserError, match=r"\(heldout\): no prompt is left: 0 records.*holds out a larger share"):
        make(write(questions(2)), split="heldout", heldout=0.0)


def test_whatever_changes_the_batches_changes_the_fingerprint(write, make):
    a, b = write(questions(9), "a"), write(questions(8), "b")
    other_answer = write([*questions(8), {"messages": [user("question 8"), assistant("no")], "number": 8}], "c")
    prints = [
        make(a).fingerprint,
        make(b).fingerprint,
        make(other_answer).fingerprint,
        make(a, seed=2).fingerprint,
        make(a, batch_size=8).fingerprint,
        make(a, max_tokens=65).fingerprint,
        make(a, template="llama2").fingerprint,
        make(a, b).fingerprint,
        make(b, a).fingerprint,
        make(a, b, weights=[1, 2]).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert make(a, b, weights=[1, 2]).fingerprint == make(a, b, weights=[0.5, 1]).fingerprint


def test_seeds_and_sources_have_orders_of_their_own(write, make):
    a, b = write(questions(40), "a"), write(questions(40, "hello"), "b")
    orders = [indices(make(path, seed=seed), 0, 40) for path in (a, b) for seed in (1, 2)]
    assert all(x != y for x, y in itertools.combinations(orders, 2))


def test_training_and_heldout_prompts_are_the_sources_splits(write, make, tokenizer):
    path = write(questions(60))
    wanted = Counter(r["messages"][0]["content"] for r in sources.read(Source(path, heldout=0.3), "train"))
    train = make(path, split="train", heldout=0.3)
    assert Counter(record["messages"][0]["content"] for record in train.records) == wanted
    encoder = PromptEncoder(tokenizer, load_template("chatml"), P)
    held = read_samples(Source(path, heldout=0.3), "heldout", encoder)
    assert len(held) + len(train.records) == 60


def test_heldout_prompts_take_turns_among_sources(write, tokenizer):
    two = [Source(write(questions(60, name), name), name, heldout=0.999) for name in ("question", "hello")]
    short = Source(write(questions(3, "number"), "number"), "number", heldout=0.999)
    encoder = PromptEncoder(tokenizer, load_template("chatml"), P)
    held = heldout_prompts([*two, short], 8, encoder)
    words = [record["messages"][0]["content"].split()[0] for record in held.records]
    assert words == ["question", "hello", "number"] * 2 + ["question", "hello"]
    everything = read_samples(two[0], "heldout", encoder).records
    assert heldout_prompts(two[:1], 3, encoder).records == [everything[i * len(everything) // 3] for i in range(3)]
    assert len(heldout_prompts(two, 1000, encoder)) > 100
    assert held.records[0]["reference"].startswith("answer")


def test_one_pass_over_prompts_fills_up_its_last_batch(write, tokenizer):
    encoder = PromptEncoder(tokenizer, load_template("chatml"), P)
    held = heldout_prompts([Source(write(questions(60)), heldout=0.999)], 10, encoder)
    batches = EvalPass(held, batch_size=4)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [batches.real(step) for step in range(3)] == [4, 4, 2]
    assert batches.records == held.records and len(held) == 10
    assert_same(batches.rows(2, slice(1, 3)), {name: array[1:3] for name, array in batches[2].items()})
    assert batches[-1]["tokens"].shape == batches.shapes["tokens"][0]
    with pytest.raises(IndexError):
        batches[3]
