"""Tokenizer files with one field changed: each is taken, and then gives the ids of tokenizers, or refused in one line.

`CAMELID_FUZZ=500 pytest tests/data/test_tokenizer_fuzz.py -s` changes 500 fields of each kind and prints the counts.
"""

import collections
import copy
import json
import os
import random

import pytest
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from camelid.checkpoints.interop.tokenizer_gguf import gguf_fields, tokenizer_files
from camelid.data.templates import encode_text
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

COUNT = int(os.environ.get("CAMELID_FUZZ", "40"))
CORPUS = ["the llama walks over high hills, 12345 times; 你好，羊驼走过高山。\n\tdef f(x)"] * 3
CONTROL = ["<s>", "</s>", "<|im_end|>"]
TEXTS = ["", " ", "the llama", " hills  x\n", "你好 😀", "a<tool> b <tool>", "<|im_end|></s>", "1\t\xa0é", "x" * 300]
ODD = [None, True, -1, 0, 1, 2**31, 2**32 + 1, 2**63, 10**30, 1.5, 1e308, "", "x", "▁", "\ud800", "a" * 70, [], {}, [1]]
ODD += [["a", "b"], {"type": "x"}, {"type": "Sequence"}, {"String": "a"}, {"Regex": "("}, {"content": "</s>"}, [[]]]


def byte_level(name):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=name == "prefix")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=290, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )


def metaspace(name):
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("x", "y")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=90, special_tokens=[*CONTROL, "<unk>"], unk_token="<unk>", show_progress=False
    )


def spec_of(make, name):
    tokenizer, trainer = make(name)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", lstrip=name != "gguf", normalized=False)])
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Files of each kind, as JSON where they are JSON."""
    llama = train_sentencepiece(CORPUS, vocab_size=300, output_dir=tmp_path_factory.mktemp("sentencepiece"))
    model = llama._files["tokenizer.model"]
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", **flags},
        "pad_token": "<pad>",
        "add_bos_token": True,
        "legacy": False,
        "added_tokens_decoder": {
            "300": {"content": "<pad>", **flags, "special": True},
            "302": {"content": "<tool>", **flags, "special": False},
        },
        "additional_special_tokens": ["<pad>"],
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    }
    names = {"eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["<end>"]}
    added = {"<pad>": 300, "<tool>": 301}
    beside = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": None, "chat_template": None}
    specs = {"byte level": spec_of(byte_level, "plain"), "prefix": spec_of(byte_level, "prefix")}
    specs["metaspace"] = spec_of(metaspace, "metaspace")
    return {
        **{name: {"tokenizer.json": spec, "tokenizer_config.json": beside} for name, spec in specs.items()},
        "config": {"tokenizer.model": model, "tokenizer_config.json": config},
        "old names": {"tokenizer.model": model, "special_tokens_map.json": names, "added_tokens.json": added},
        "gguf llama": {"gguf": gguf_fields(llama)},
        "gguf gpt2": {"gguf": gguf_fields(from_json({"tokenizer.json": spec_of(byte_level, "gguf")}))},
    }


def from_json(files):
    if "gguf" in files:
        return Tokenizer(tokenizer_files(files["gguf"], "a.gguf"), "a.gguf")
    written = {name: json.dumps(content).encode() for name, content in files.items() if not isinstance(content, bytes)}
    return Tokenizer(files | written, "their/tokenizer")


def places(content, depth=0):
    """Every place in a JSON value; of long lists and tables, a few."""
    keys = range(len(content)) if isinstance(content, list) else list(content) if isinstance(content, dict) else []
    for key in list(keys)[:12] + list(keys)[-3:]:
        yield content, key
        yield from places(content[key], depth + 1)


def changed(files, rng):
    """The files with one field replaced, taken out, or put in twice, and what was done."""
    files = copy.deepcopy(files)
    name = rng.choice([name for name, content in files.items() if not isinstance(content, bytes)])
    parent, key = rng.choice(list(places(files[name])))
    how = rng.choice(["replace", "replace", "replace", "remove", "copy"])
    if how == "remove":
        del parent[key]
        return files, (name, key, how)
    value = rng.choice(ODD)
    if how == "copy" or isinstance(parent[key], bool):
        value = copy.deepcopy(rng.choice([content[k] for content, k in places(files[name])]))
    parent[key] = value
    return files, (name, key, repr(value)[:60])


def check(files, where):
    """What came of files: refused, or taken with the ids of tokenizers, where tokenizers reads them."""
    try:
        tokenizer = from_json(files)
        ids = [tokenizer.encode(text) for text in TEXTS]
        [encode_text(text, tokenizer) for text in TEXTS]
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, (where, str(error))
        return "clear"
    assert all(0 <= i < tokenizer.vocab_size for each in ids for i in each), where
    assert not set(tokenizer.special.values()) & {i for each in ids for i in each}, where
    for each in ids:
        stream = tokenizer.stream()
        assert "".join(map(stream.push, each)) + stream.flush() == tokenizer.decode(each), where
    if set(files) - {"tokenizer_config.json"} != {"tokenizer.json"}:
        return "accepted"
    spec = files["tokenizer.json"] | {"truncation": None, "padding": None, "post_processor": None}
    reference = tokenizers.Tokenizer.from_str(json.dumps(spec | {"model": spec["model"] | {"dropout": None}}))
    reference.encode_special_tokens = True
    for text, own in zip(TEXTS, ids, strict=True):
        theirs = reference.encode(text, add_special_tokens=False).ids
        # a name that a configuration gives makes a control token of a word, and a control token is never written
        assert own == theirs or set(theirs) & set(tokenizer.special.values()), (where, text, own, theirs)
    return "accepted, as tokenizers"


@pytest.mark.parametrize(
    "kind", ["byte level", "prefix", "metaspace", "config", "old names", "gguf llama", "gguf gpt2"]
)
def test_a_changed_field_is_taken_as_tokenizers_takes_it_or_told_in_one_line(kind, cases):
    rng = random.Random(f"{kind} 1")
    assert check(cases[kind], kind).startswith("accepted")
    counts = collections.Counter()
    for _ in range(COUNT):
        counts[check(*changed(cases[kind], rng))] += 1
    print(f"{kind}: {dict(counts)}")
    assert counts["clear"] and sum(counts.values()) == COUNT


def damaged(model, rng):
    """A SentencePiece model with one thing changed."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    piece = rng.choice(proto.pieces)
    how = rng.randrange(7)
    if how == 0:
        piece.type = rng.randint(1, 6)
    elif how == 1:
        piece.piece = rng.choice(["", "a", "<0xZZ>", "▁" * 50, "<s>", " ", "\n"])
    elif how == 2:
        piece.score = rng.choice([float("nan"), float("inf"), -1e38, 0])
    elif how == 3:
        proto.trainer_spec.model_type = rng.randint(1, 4)
    elif how == 4:
        name = rng.choice(["bos_piece", "eos_piece", "unk_piece", "pad_piece"])
        setattr(proto.trainer_spec, name, rng.choice(["", "x", "<unk>", "a"]))
    elif how == 5:
        proto.normalizer_spec.precompiled_charsmap = rng.randbytes(rng.choice([3, 4, 8, 100]))
    content = bytearray(proto.SerializeToString())
    if how == 6:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content), how


def test_a_damaged_sentencepiece_model_is_taken_or_told_in_one_line(cases):
    rng = random.Random(1)
    counts = collections.Counter()
    for _ in range(COUNT):
        content, how = damaged(cases["config"]["tokenizer.model"], rng)
        counts[check({"tokenizer.model": content}, how)] += 1
    print(f"tokenizer.model: {dict(counts)}")
    assert counts["clear"] and counts["accepted"]
