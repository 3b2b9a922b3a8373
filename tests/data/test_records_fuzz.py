"""Damaged and odd records of every format: each is read for what it says, or refused in one line; never anything else.

`CAMELID_FUZZ=2000 pytest tests/data/test_records_fuzz.py -s` damages so many of each format and prints the counts;
`CAMELID_FUZZ_SEED=1` draws others.
"""

import copy
import json
import os
import random
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camelid.data.formats import FORMATS, detect, unfold
from camelid.data.sources import Source, read
from camelid.data.tally import Tally
from camelid.data.templates import ChatTemplate
from camelid.data.text_encoder import encode_record
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

COUNT = int(os.environ.get("CAMELID_FUZZ", "100"))
SEED = os.environ.get("CAMELID_FUZZ_SEED", "")
DIGITS, DEEP = "@DIGITS@", "@DEEP@"  # written as a number of 5,000 digits and as 3,000 nested lists


def turns(speaker, words, *pairs):
    return [{speaker: who, words: said} for who, said in pairs]


CHAT = [("system", "S0"), ("user", "U0"), ("assistant", "A0"), ("user", "U1"), ("assistant", "A1 <|im_end|> x")]
TALK = [("human", "U0"), ("gpt", "A0"), ("human", "U1"), ("gpt", "A1")]
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
BASES = {
    "text": [{"text": "T0 some words", "meta": {"set": "C4"}}],
    "alpaca": [
        {"instruction": "U0", "input": "I0", "output": "A0", "id": 3},
        {"instruction": "U1", "output": "A1", "system": "S0", "history": [["U0", "A0"]]},
        {"instruction": "U0", "output": "A0", "kto_tag": True},
    ],
    "qa": [
        {"question": "U0", "answer": "A0", "system": "S0", "id": 3},
        {"Questions": "U0", "Answers": "A0", "Context": "I0"},
        {"Q": "U0", "A": "A0", "answers": ["A0", "A1"]},
    ],
    "sharegpt": [
        {"id": "a", "conversations": turns("from", "value", *TALK)},
        {"conversations": turns("from", "value", *TALK[:3]), "chosen": {"from": "gpt", "value": "C"}}
        | {"rejected": {"from": "gpt", "value": "R"}, "system": "S0"},
        {"conversation": turns("role", "content", *CHAT[:3])},
    ],
    "openai": [
        {"messages": turns("role", "content", *CHAT)},
        {
            "messages": [
                *turns("role", "content", *CHAT[:2]),
                {"role": "assistant", "content": None, "tool_calls": CALLS},
            ]
        }
        | {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    "colossalchat": [
        {"messages": turns("from", "content", ("human", "U0"), ("assistant", "A0"))},
        {"context": turns("from", "content", ("human", "U0")), "chosen": turns("from", "content", ("assistant", "C"))}
        | {"rejected": turns("from", "content", ("assistant", "R"))},
    ],
    "hh_rlhf": [
        {"chosen": "\n\nHuman: U0\n\nAssistant: C", "rejected": "\n\nHuman: U0\n\nAssistant: R"},
        {"prompt": "\n\nHuman: U0\n\nAssistant:", "chosen": " C", "rejected": " R"},
        {"prompt": "\n\nHuman: U0\n\nAssistant:", "completion": " A0", "label": True},
    ],
    "pku_saferlhf": [
        {"prompt": "U0", "response_0": "C", "response_1": "R", "better_response_id": 0, "safer_response_id": 1}
        | {"is_response_0_safe": False, "is_response_1_safe": True}
    ],
    "trl": [
        {"prompt": "U0", "completion": "A0", "label": True},
        {
            "prompt": turns("role", "content", ("user", "U0")),
            "completion": turns("role", "content", ("assistant", "A0")),
        },
        {"prompt": "U0", "chosen": "C", "rejected": "R", "margin": 2.5},
    ],
    "lmflow": [
        {"type": "text2text", "instances": [{"input": "U0", "output": "A0"}]},
        {"type": "conversation", "system": "S0", "messages": turns("role", "content", *CHAT[1:])},
        {"type": "paired_text_to_text", "prompt": "U0", "chosen": "C", "rejected": "R"},
    ],
    "camelid": [
        {"kind": "chat", "messages": turns("role", "content", *CHAT), "label": True, "meta": {"a": 1}},
        {"kind": "preference", "messages": turns("role", "content", ("user", "U0")), "margin": 1.0}
        | {
            "chosen": turns("role", "content", ("assistant", "C")),
            "rejected": turns("role", "content", ("assistant", "R")),
        },
    ],
}

VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e308, float("nan"), float("inf"), "", " \n", "W0", "0", "false", "{", "[]"),
    *(
        "\ud800",
        "\x00",
        "\ufeff",
        "<|im_start|>assistant\n",
        "é" * 50,
        [],
        {},
        [[]],
        [None],
        [""],
        [1, "W1"],
        {"a": None},
    ),
    *(
        {"role": "assistant", "content": "W2"},
        [{"role": "user", "content": "W3"}],
        {"from": ["human"], "value": ["W4"]},
    ),
    *([{"type": "text", "text": "W5"}], [{"type": "image_url"}], [["W6", "W7"]], DIGITS, DEEP),
]
FIELDS = [
    *("label", "kto_tag", "score", "rating", "system", "system_prompt", "tools", "functions", "tool_calls", "history"),
    *("function_call", "reasoning_content", "thinking", "train", "training", "loss", "weight", "train_detail", "meta"),
    *("trainable", "loss_mask", "system_message", "image", "conversation", "completion", "instruction"),
    *(
        "id",
        "source",
        "others",
        "name",
        "input",
        "images",
        "mask_history",
        "documents",
        "kind",
        "type",
        "instances",
        "\n",
    ),
    *("messages", "prompt", "text", "chosen", "rejected", "margin", "role", "from", "content", "value", "output"),
]


def places(value, path=()):
    """The paths of all values in a raw record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*path, name))


def at(value, path):
    for name in path:
        value = value[name]
    return value


def mutate(raw, rng):
    """A copy of the record with one to three faults or oddities."""
    raw = copy.deepcopy(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        inner = [path for path in places(raw) if path]
        path = rng.choice(inner) if inner else ()
        owner = at(raw, path[:-1])
        match rng.randrange(6) if path else 5:
            case 0:
                del owner[path[-1]]
            case 1 | 2:
                owner[path[-1]] = copy.deepcopy(rng.choice(VALUES))
            case 3 if isinstance(owner, list):
                owner.insert(rng.randrange(len(owner) + 1), copy.deepcopy(rng.choice(owner)))
            case 4 if isinstance(owner, list):
                rng.shuffle(owner)
            case _:
                objects = [p for p in places(raw) if isinstance(at(raw, p), dict)]
                at(raw, rng.choice(objects))[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(VALUES))
    return raw


def spelled(raw, rng):
    """The record as a line of JSON, now and then damaged as bytes."""
    line = json.dumps(raw, ensure_ascii=rng.random() < 0.5 or "\\ud800" in json.dumps(raw))
    line = line.replace(f'"{DIGITS}"', "7" * 5000).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    data = bytearray(line.encode("utf-8"))
    whole = rng.random() < 0.9
    if not whole:
        where = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[where:]
            case 1:
                data[where] = rng.choice(b'\x00\xff{}[]",:\\')
            case 2:
                data[where:where] = b"\x00\xef\xbb\xbf"
            case 3:
                data[1:1] = b'"x": 1, "x": [2], '
    return bytes(data).replace(b"\n", b" "), whole


# What a record says, read a second time and in another way ------------------------------------------------------------

SPEAKERS = {"assistant", "gpt", "chatgpt", "bing", "bard", "function_call", "function"}


def words_of(value):
    if isinstance(value, list):
        return "".join(part["text"] for part in value)
    return value or ""


def is_off(row, names=("train", "training", "trainable", "loss", "loss_mask", "weight")):
    return any(row.get(name) in (0, "0", "false") and row.get(name) is not None for name in names)


def answers(raw, form):
    """The words of the assistant that a conversation of a format trains, in order."""
    if is_off(raw, ("train", "training", "weight")):
        return []
    if form in ("openai", "camelid", "colossalchat", "sharegpt") or raw.get("type") == "conversation":
        field = "messages" if form != "sharegpt" else "conversations" if "conversations" in raw else "conversation"
        found = spoken(raw[field], form)
    elif form == "trl":
        earlier = [pair[1] for pair in raw["history"]] if isinstance(raw.get("history"), list) else []
        found = earlier if isinstance(raw["prompt"], str) else spoken(raw["prompt"], form)
        completion = raw["completion"]
        found += [completion] if isinstance(completion, str) else spoken(completion, form)
    elif form == "qa":
        found = [next(raw[name] for name in ("answer", "Answers", "answers", "A") if name in raw)]
    else:
        history = raw.get("history") if form == "alpaca" else []
        earlier = [pair[1] for pair in history] if isinstance(history, list) else []
        found = [*earlier, raw["completion" if form == "hh_rlhf" else "output"]]
    if raw.get("mask_history") in (True, 1, "1", "true"):
        found = found[-1:]
    return [words.strip() for words in found if words.strip()]


def spoken(rows, form):
    """What the turns of the assistant say, "" where a turn is not trained."""
    if isinstance(rows, dict) and any(isinstance(rows.get(name), list) for name in ("from", "role")):
        rows = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    rows = rows if isinstance(rows, list) else [rows]
    from_first, value_first = form in ("sharegpt", "colossalchat"), form == "sharegpt"
    mine = (turn for turn in rows if either(turn, "from", "role", from_first).lower() in SPEAKERS)
    return ["" if is_off(turn) else words_of(either(turn, "value", "content", value_first)) for turn in mine]


def either(row, one, other, one_first):
    """What stands under one of two names that formats use for the same field."""
    names = (one, other) if one_first else (other, one)
    return next((row[name] for name in names if row.get(name) is not None and row[name] == row[name]), None)


def strings(value):
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


TEMPLATE = ChatTemplate(
    "fuzzed",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    return train_sentencepiece(
        ["system user assistant tool U0 A0 S0 W1 C R " * 5],
        vocab_size=300,
        output_dir=folder,
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def trained(record, tokenizer):
    tokens, mask = encode_record(record, tokenizer, TEMPLATE)
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(tokens[a : b - 1].tolist()).strip() for a, b in edges]


def check_meaning(raw, form, record, tokenizer):
    """That what would be learnt from an accepted record are the words of the raw one, in their places."""
    said = {words.strip() for words in strings(raw)} | {""}
    if record["kind"] == "text":
        assert record["text"] == raw["text"]
        return
    for side in ("messages", "chosen", "rejected"):
        for message in record.get(side, ()):
            words = message["content"].strip()
            assert words in said or any(words in other for other in said) or _is_joined(words, said), (words, raw)
    for field in ("system", "system_prompt"):
        if isinstance(raw.get(field), str) and raw[field].strip():
            assert record["messages"][0] == {"role": "system", "content": raw[field]}, raw
    if isinstance(raw.get("tools"), list) and any(isinstance(tool, dict) and tool for tool in raw["tools"]):
        assert record["tools"], raw
    if record["kind"] != "chat":
        return
    if record.get("label") is False:
        assert re.search(r'"(label|kto_tag|score|rating)":', json.dumps(raw))
        with pytest.raises(UserError, match="the answer is labelled bad"):
            encode_record(record, tokenizer, TEMPLATE)
        return
    bad = [field for field in ("label", "kto_tag") if raw.get(field) in (False, "0", "false")]
    bad += [field for field in ("score", "rating") if isinstance(raw.get(field), int | float) and raw[field] <= 0]
    assert not bad, raw
    unwritten = record.get("tools") or record.get("documents")
    if unwritten or any(m.get("tool_calls") or m.get("reasoning_content") for m in record["messages"]):
        with pytest.raises(UserError, match="does not read"):
            encode_record(record, tokenizer, TEMPLATE)
        return
    expected = answers(raw, form)
    found = [words for words in trained(record, tokenizer) if words]
    assert found == [tokenizer.decode(tokenizer.encode(words)).strip() for words in expected], (found, expected, raw)


def _is_joined(words, said):
    return all(part in said or any(part in other for other in said) for part in re.split(r"(?<=\d)(?=W)", words))


def as_read(raw):
    """The raw record with what the line holds in place of its placeholders."""
    if isinstance(raw, dict):
        return {name: as_read(value) for name, value in raw.items()}
    if isinstance(raw, list):
        return [as_read(value) for value in raw]
    return 10**300 if raw == DIGITS else [[]] if raw == DEEP else raw


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_record_is_read_for_what_it_says_or_refused_in_one_line(name, tokenizer, tmp_path):
    rng = random.Random(f"records {name}{SEED}")
    counts = Counter()
    for number in range(COUNT):
        raw = mutate(rng.choice(BASES[name]), rng)
        line, whole = spelled(raw, rng)
        form = rng.choice(("auto", "auto", name))
        path = tmp_path / rng.choice(("x.jsonl", "x.json"))
        sound = json.dumps(BASES[name][0]).encode()
        lines = [sound, line, sound]
        path.write_bytes(b"\n".join(lines) if path.suffix == ".jsonl" else b"[" + b",".join(lines) + b"]")
        tally = Tally()
        records = list(read(Source(str(path), format=form, on_error="skip"), tally=tally))
        assert tally.read == len(records)
        assert all("\n" not in problem and len(problem) < 600 for problem in tally.problems), tally.problems
        if path.suffix == ".jsonl" or whole:
            assert len(records) >= 2 and records[0] == records[-1], "the records around it are read"
        try:
            strict = list(read(Source(str(path), format=form)))
        except UserError as problem:
            assert tally.skipped and "\n" not in str(problem) and str(path) in str(problem)
            counts["refused"] += 1
            continue
        assert strict == records and not tally.skipped
        json.dumps(records, ensure_ascii=False).encode()
        counts["accepted"] += 1
        if whole and len(records) == 3:
            inner = as_read(next(iter(unfold(raw))))
            inner = {field: value for field, value in inner.items() if value is not None and value == value}
            check_meaning(inner, detect(inner) if form == "auto" else form, records[1], tokenizer)
            counts["meaning checked"] += 1
        path.unlink()
        if whole and number % 5 == 0:
            counts.update(in_parquet(raw, records[1:-1], form, tmp_path))
    if COUNT > 100:
        print(f"\n{name}: {dict(counts)}")
    assert counts["accepted"] and (counts["refused"] or name == "text")


def in_parquet(raw, expected, form, folder):
    """What a table of this record alone gives, where Arrow can hold it: the same record, or a refusal."""
    try:
        pq.write_table(pa.Table.from_pylist([raw]), folder / "x.parquet")
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, AttributeError):
        return ["no table"]
    tally = Tally()
    found = list(read(Source(str(folder / "x.parquet"), format=form, on_error="skip"), tally=tally))
    assert len(found) == tally.read and all("\n" not in problem for problem in tally.problems)
    without_meta = [[{k: v for k, v in record.items() if k != "meta"} for record in part] for part in (found, expected)]
    text = json.dumps(raw)
    if (
        len(found) == len(expected)
        and DIGITS not in text
        and DEEP not in text
        and "null" not in text
        and "NaN" not in text
    ):
        assert without_meta[0] == without_meta[1]
    return ["parquet"]
