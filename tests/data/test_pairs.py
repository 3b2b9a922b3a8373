"""Preference pairs: what is compared, up to which token, in which order, and how it comes onto the devices."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from camelid.data import sources
from camelid.data.mixture import EvalPass, Mixture
from camelid.data.pairs import PairEncoder, encode_pair, flip_pair
from camelid.data.prefetch import device_batch, prefetch
from camelid.data.samples import read_samples
from camelid.data.sources import Source
from camelid.data.templates import BUILT_IN, load_template
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CONTROL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CORPUS = ["USER: ASSISTANT: system user assistant question good answer bad 0 1 2 3 4 5 6 7 8 9 你好吗我很好 " * 5]
T = 64
MOVING = (  # the system message stands in the last user turn, as in Mistral's templates
    "{% set questions = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'Be kind. ' if m is sameas questions[-1] }}Q: {{ m.content }} A: "
    "{% else %}{{ m.content + SEPARATOR }}{% endif %}{% endfor %}"
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def preference(messages, chosen, rejected, **more):
    return {"kind": "preference", "messages": messages, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A tokenizer with the templates' control tokens."""
    folder = tmp_path_factory.mktemp("rich")
    return train_sentencepiece(CORPUS, vocab_size=340, output_dir=folder, special_tokens=CONTROL)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One with <s> and </s> only."""
    return train_sentencepiece(CORPUS, vocab_size=330, output_dir=tmp_path_factory.mktemp("plain"))


@pytest.fixture(params=["rich", "plain"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def pairs(n, word="question"):
    """`n` records with different prompts and answers."""
    return [{"prompt": f"{word} {i}", "chosen": f"good {i}", "rejected": "bad " * (1 + i % 3)} for i in range(n)]


@pytest.fixture
def write(tmp_path):
    """write(records, name="a"): a source with these records."""

    def write_records(records, name="a"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
        return str(path)

    return write_records


@pytest.fixture
def make(rich):
    """make(source, ..., weights=None, **options): the batches of these sources, named s0, s1, ..."""

    def pairs_of(*paths, weights=None, split=None, limit=None, batch_size=4, seed=1, **options):
        shape = {name: options.pop(name) for name in ("length", "noise", "sides") if name in options}
        encoder = PairEncoder(rich, load_template(options.pop("template", "chatml")), **({"length": T} | shape))
        weights = weights or [1] * len(paths)
        sources = [Source(p, f"s{i}", weight=weights[i], **options) for i, p in enumerate(paths)]
        return Mixture(sources, lambda source: read_samples(source, split, encoder, limit), batch_size, seed)

    return pairs_of


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def said(encoded, tokenizer):
    """What the mask covers, control tokens spelled out, one string per turn."""
    edges = np.flatnonzero(np.diff(encoded.mask, prepend=False, append=False)).reshape(-1, 2)
    return ["".join(tokenizer.piece(t) for t in encoded.tokens[a:b]) for a, b in edges]


# Which tokens are compared -------------------------------------------------------------------------------------------

SINGLE = preference([user("question")], [assistant("good")], [assistant("bad")])
CHINESE = preference([user("你好吗")], [assistant("我很好")], [assistant("好")])
CONTEXT = preference([user("1"), assistant("answer"), user("2")], [assistant("good")], [assistant("bad 3")])
LONGER = preference(
    [user("1")], [assistant("good"), user("2"), assistant("good 3")], [assistant("bad"), user("2"), assistant("bad 3")]
)
SILENT = preference([user("1"), assistant("answer"), user("2")], [assistant("good")], [assistant("")])
SILENT_LAST = preference([user("1")], [assistant("good")], [assistant("bad"), user("2"), assistant(" \n")])


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("record", [SINGLE, CHINESE, CONTEXT, LONGER, SILENT, SILENT_LAST])
def test_the_mask_covers_the_words_of_each_answer_and_their_stop_tokens(name, record, tokenizer):
    template = load_template(name)
    prompt = template.encode(record["messages"], tokenizer, generation_prompt=True).tokens
    for side, encoded in zip(("chosen", "rejected"), encode_pair(record, tokenizer, template), strict=True):
        np.testing.assert_array_equal(encoded.tokens[: len(prompt)], prompt)
        assert not encoded.mask[: len(prompt)].any()
        assert encoded.mask[len(prompt)] and encoded.mask[-1]
        stop = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(name)
        stop = stop if stop in tokenizer.special else tokenizer.piece(tokenizer.eos_id)
        assert tokenizer.piece(encoded.tokens[-1]) == stop
        turns = [m["content"].strip() for m in record[side] if m["role"] == "assistant"]
        assert [turn.replace(stop, " ").strip() for turn in said(encoded, tokenizer)] == turns
        assert all(turn.endswith(stop) for turn in said(encoded, tokenizer))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_side_is_the_conversations_own_tokens_up_to_the_stop(name, tokenizer):
    template = load_template(name)
    for encoded, answer in zip(encode_pair(CONTEXT, tokenizer, template), ("good", "bad 3"), strict=True):
        whole = template.encode([*CONTEXT["messages"], assistant(answer)], tokenizer)
        assert encoded.tokens.tolist() == whole.tokens[: np.flatnonzero(whole.mask)[-1] + 1].tolist()
    if name == "chatml" and "<|im_end|>" in tokenizer.special:
        assert len(whole.tokens) > len(encoded.tokens)  # the newline that nobody says


def test_an_empty_answer_is_the_stop_token_right_after_the_prompt(rich):
    template = load_template("chatml")
    prompt = template.encode(SILENT["messages"], rich, generation_prompt=True).tokens.tolist()
    _, rejected = encode_pair(SILENT, rich, template)
    assert rejected.tokens.tolist() == [*prompt, rich.special["<|im_end|>"]]
    assert rejected.mask.tolist() == [False] * len(prompt) + [True]


def test_answers_are_told_apart_where_the_template_rewrites_the_prompt(plain):
    template = load_template(MOVING.replace("SEPARATOR", "eos_token"))
    chosen, rejected = encode_pair(LONGER, plain, template)
    assert said(chosen, plain) == ["good</s>", "good 3</s>"]
    assert said(rejected, plain) == ["bad</s>", "bad 3</s>"]
    earlier = LONGER | {"messages": [user("0"), assistant("answer"), user("1")]}
    assert said(encode_pair(earlier, plain, template)[0], plain) == ["good</s>", "good 3</s>"]
    assert said(encode_pair(CONTEXT, plain, template)[1], plain) == ["bad 3</s>"]


def test_answers_that_cannot_be_told_apart_are_refused(plain):
    merging = "{% for m in messages %}{{ m.content if m.role == 'assistant' else loop.length }}{% endfor %}"
    record = preference([user("1")], [assistant("good"), assistant("2")], [assistant("bad")])
    with pytest.raises(UserError, match=r"changes the prompt when an answer follows.*another template"):
        encode_pair(record, plain, load_template(merging))
    mute = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(UserError, match="writes nothing of message 2, the assistant's"):
        encode_pair(SINGLE, plain, load_template(mute))
    with pytest.raises(UserError, match="the chosen answer is empty"):
        encode_pair(preference([user("1")], [assistant("")], [assistant("bad")]), plain, load_template("llama2"))


# Batches -------------------------------------------------------------------------------------------------------------

LABELLED = [
    {"kind": "preference", "messages": [user("1")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    | {"margin": 1.5, "safer": "rejected", "chosen_safe": False, "rejected_safe": True, "meta": {"id": 3}},
    {"prompt": "你好", "chosen": "good", "rejected": "bad", "chosen_score": 2, "rejected_score": 4},
    {"prompt": "2", "chosen": "good", "rejected": "很好", "id": 9},
    {"prompt": "3", "response_0": "bad", "response_1": "good", "better_response_id": 1, "safer_response_id": 1}
    | {"is_response_0_safe": False, "is_response_1_safe": True},
]


def test_labels_margins_languages_and_other_fields_are_kept(write, make):
    batches = make(write(LABELLED))
    batch = batches[0]
    order = np.argsort(batch["index"])
    assert batches.records == [
        {"language": "en", "margin": 1.5, "meta": {"id": 3}, "flipped": False},
        {"language": "zh", "margin": -2.0, "meta": {}, "flipped": False},
        {"language": "zh", "margin": None, "meta": {"id": 9}, "flipped": False},
        {"language": "en", "margin": None, "meta": {}, "flipped": False},
    ]
    assert batch["margin"][order].tolist() == [1.5, -2, 0, 0]
    assert batch["safer"][order].tolist() == [-1, 0, 0, 1]
    assert batch["safe"][order].tolist() == [[-1, 1], [0, 0], [0, 0], [1, -1]]
    assert batch["weight"].tolist() == [1] * 4


def test_arrays_have_the_contracts_shapes_and_types(write, make):
    batches = make(write(pairs(9)))
    found = {name: (array.shape, array.dtype.name) for name, array in batches[0].items()}
    assert found == {
        "tokens": ((4, 2, T), "int32"),
        "answer_mask": ((4, 2, T), "float32"),
        "lengths": ((4, 2), "int32"),
        "margin": ((4,), "float32"),
        "weight": ((4,), "float32"),
        "side_weight": ((4, 2), "float32"),
        "safer": ((4,), "float32"),
        "safe": ((4, 2), "float32"),
        "index": ((4,), "int32"),
    }
    assert found == {name: (shape, np.dtype(dtype).name) for name, (shape, dtype) in batches.shapes.items()}


def test_a_row_holds_both_sides_and_padding_of_zeros(write, make, rich):
    path = write(pairs(9))
    records, template = list(sources.read(Source(path))), load_template("chatml")
    batches = make(path, batch_size=9)
    batch = batches[0]
    for row, index in enumerate(batch["index"]):
        for side, encoded in enumerate(encode_pair(records[index], rich, template)):
            n = len(encoded.tokens)
            assert batch["lengths"][row, side] == n
            assert batch["tokens"][row, side].tolist() == encoded.tokens.tolist() + [0] * (T - n)
            assert batch["answer_mask"][row, side].tolist() == encoded.mask.tolist() + [0] * (T - n)


def test_an_epoch_is_every_pair_once_and_steps_are_random_access(write, make):
    path = write(pairs(30))
    batches, scattered = make(path, batch_size=5), make(path, batch_size=5)
    for epoch in (0, 4):
        order = np.concatenate([batches[6 * epoch + step]["index"] for step in range(6)])
        assert sorted(order.tolist()) == list(range(30))
    for step in (17, 3, 29, 3):
        assert_same(scattered[step], batches[step])
        halves = [scattered.rows(step, rows) for rows in (slice(0, 2), slice(2, 5))]
        assert_same({name: np.concatenate([half[name] for half in halves]) for name in halves[0]}, batches[step])
    assert batches.steps_per_epoch == 6 and batches.epochs(9) == {"s0": 1.5}


def test_sources_mix_by_weight(write, make):
    batches = make(write(pairs(10)), write(pairs(5, "user"), "b"), weights=[3, 1])
    rows = np.concatenate([batches[step]["index"] for step in range(10)])
    assert (rows < 10).sum() == 30
    assert batches.epochs(10) == {"s0": 3.0, "s1": 2.0}
    assert {name: summary["share"] for name, summary in batches.summary().items()} == {"s0": 0.75, "s1": 0.25}


def test_long_and_equal_pairs_are_left_out_and_counted(write, make):
    long = {"prompt": "1", "chosen": "good", "rejected": "bad 1 2 3 " * 20}
    same = {"prompt": "2", "chosen": [assistant("good")], "rejected": [assistant("good ")]}
    path = write([*pairs(2), long, same, *pairs(1)])
    batches = make(path, template="llama2")  # which strips what is said
    summary = batches.summary()["s0"]
    assert [summary[name] for name in ("records", "samples", "too_long", "same_tokens")] == [5, 3, 1, 1]
    too_long, equal = batches.skipped()["s0"]
    assert f"{path}:3: its answers have " in too_long and too_long.endswith("more than 64")
    assert f"{path}:4: chosen and rejected are the same tokens" in equal
    assert make(path, template="llama2", length=summary["longest"]).summary()["s0"]["samples"] == 3
    with pytest.raises(UserError, match="no preference pair is left: 5 records, 4 too_long, 1 same_tokens"):
        make(path, template="llama2", length=summary["longest"] - 1)


def test_other_records_stop_the_run_or_are_listed(write, make):
    path = write([*pairs(1), {"prompt": "1"}])
    with pytest.raises(UserError, match="jsonl:2: a prompt record has no two answers to compare: give preferences"):
        make(path)
    assert make(path, on_error="skip").summary()["s0"]["skipped"] == 1


def test_a_limit_takes_the_first_of_the_train_split(write, make):
    path = write([record | {"id": i} for i, record in enumerate(pairs(40))])
    every = [record["meta"]["id"] for record in make(path, split="train", heldout=0.3).records]
    assert len(every) < 40
    few = make(path, split="train", heldout=0.3, limit=7)
    assert [record["meta"]["id"] for record in few.records] == every[:7]
    assert sorted(np.concatenate([few[step]["index"] for step in range(7)]).tolist()) == sorted([*range(7)] * 4)
    with pytest.raises(UserError, match="limit is 0: give 1 or more"):
        make(path, limit=0)


def test_whatever_changes_the_batches_changes_the_fingerprint(write, make):
    a, b = write(pairs(9), "a"), write(pairs(8), "b")
    labelled = write([record | {"margin": 1} for record in pairs(9)], "c")
    prints = [
        make(a).fingerprint,
        make(b).fingerprint,
        make(labelled).fingerprint,
        make(a, seed=2).fingerprint,
        make(a, batch_size=8).fingerprint,
        make(a, length=65).fingerprint,
        make(a, limit=7).fingerprint,
        make(a, b).fingerprint,
        make(a, b, weights=[1, 2]).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert make(a).fingerprint == prints[0]


def test_evaluation_is_one_pass_with_the_filling_at_weight_0(write, rich):
    path = write([record | {"id": i} for i, record in enumerate(pairs(40))])
    encoder = PairEncoder(rich, load_template("chatml"), T)
    batches = EvalPass(read_samples(Source(path, heldout=0.3), "heldout", encoder), batch_size=4)
    held = [record["meta"]["id"] for record in sources.read(Source(path, heldout=0.3), "heldout")]
    n = len(held)
    assert n % 4, "the test wants a last batch that is not full"
    assert [record["meta"]["id"] for record in batches.records] == held
    index = np.concatenate([batch["index"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert index.tolist() == [*range(n)] + [n - 1] * (-n % 4)
    assert weight.tolist() == [1] * n + [0] * (-n % 4)
    assert all(batch["lengths"].min() > 0 and batch["answer_mask"].sum(-1).min() > 0 for batch in batches)
    assert batches.rows(len(batches) - 1, slice(2, 4))["weight"].tolist() == weight[-2:].tolist()
    assert batches.summary()["samples"] == n and batches.part.tally.problems == []
    assert {name: (x.shape, x.dtype) for name, x in batches[-1].items()} == batches.shapes
    whole = EvalPass(read_samples(Source(path), None, encoder), batch_size=4)
    assert len(whole) == 10 and whole.part.fingerprint != batches.part.fingerprint
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_pairs_come_onto_the_devices_split_by_rows_alone(write, make):
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    batches = make(write(LABELLED + pairs(9)), batch_size=8)
    for spec in (P("data"), P(("data", "context"))):
        on_device = device_batch(batches, 3, NamedSharding(mesh, spec))
        assert_same(jax.device_get(on_device), batches[3])
        assert all(array.sharding.spec == spec for array in on_device.values())
    ((step, batch),) = prefetch(batches, 3, 4, NamedSharding(mesh, P("data")))
    assert step == 3
    assert_same(jax.device_get(batch), batches[3])


def test_an_array_of_fewer_axes_takes_the_beginning_of_the_spec(write, make):
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    batches = make(write(pairs(9)), batch_size=8)
    on_device = device_batch(batches, 0, NamedSharding(mesh, P("data", "context")))
    assert_same(jax.device_get(on_device), batches[0])
    assert on_device["margin"].sharding.spec == P("data")
    assert on_device["safe"].sharding.spec == on_device["tokens"].sharding.spec == P("data", "context")


def test_noise_exchanges_the_sides_of_its_share_of_pairs_and_their_labels(write, make):
    path = write([record | {"margin": 1.0} for record in pairs(400)])
    right, noisy = (make(path, noise=noise, length=T) for noise in (0.0, 0.25))
    flipped = [record["flipped"] for record in noisy.records]
    assert 0.18 < np.mean(flipped) < 0.32
    for clean, found in zip(by_index(right), by_index(noisy), strict=True):
        turned = noisy.records[found["index"]]["flipped"]
        assert found["margin"] == (-1.0 if turned else 1.0)
        np.testing.assert_array_equal(found["tokens"], clean["tokens"][::-1] if turned else clean["tokens"])
    assert right.fingerprint != noisy.fingerprint


def test_a_pair_flip_pair_turns_its_labels():
    labels = {"margin": 2.0, "safer": "rejected", "chosen_safe": False, "rejected_safe": True}
    turned = flip_pair(preference([user("1")], [assistant("good")], [assistant("bad")], **labels))
    assert turned["chosen"] == [assistant("bad")] and turned["rejected"] == [assistant("good")]
    assert turned["margin"] == -2.0 and turned["safer"] == "chosen"
    assert turned["chosen_safe"] is True and turned["rejected_safe"] is False


def test_further_answers_stand_beside_the_pair_and_missing_ones_weigh_nothing(write, make):
    more = [{"others": ["bad 7", "8 bad", "9"]}, {"others": ["7"]}, {}]
    records = [record | extra for record, extra in zip(pairs(3), more, strict=True)]
    batches = make(write(records), sides=4, length=T)
    rows = by_index(batches)[:3]
    assert [row["side_weight"].tolist() for row in rows] == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    two = by_index(make(write(records, "b"), length=T))[:3]
    for row, pair in zip(rows, two, strict=True):
        assert row["tokens"].shape == (4, T)
        np.testing.assert_array_equal(row["tokens"][:2], pair["tokens"])
    np.testing.assert_array_equal(rows[2]["tokens"][2], rows[2]["tokens"][1])
    begin = int(rows[0]["answer_mask"][0].argmax())
    np.testing.assert_array_equal(rows[0]["tokens"][:, :begin], np.tile(rows[0]["tokens"][:1, :begin], (4, 1)))
    assert len({tuple(side) for side in rows[0]["tokens"].tolist()}) == 4
    with pytest.raises(UserError, match=r"meta\.others is not a list of strings"):
        make(write([pairs(1)[0] | {"others": "bad"}], "c"), sides=3, length=T)


def by_index(batches):
    """Every pair's arrays, in the order of the records."""
    rows = {}
    for step in range(-(-len(batches.records) // batches.batch_size)):
        batch = batches[step]
        for row, index in enumerate(batch["index"].tolist()):
            rows[index] = {name: array[row] for name, array in batch.items()}
    return [rows[index] for index in sorted(rows)]
