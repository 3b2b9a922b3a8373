"""Tokenizers inside GGUF files: read as llama.cpp reads them, and back from what camelid writes."""

import json
import os

import gguf
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

from camelid.checkpoints.interop.tokenizer_gguf import (
    PRE_TOKENIZER_ALIASES,
    PRE_TOKENIZERS,
    gguf_fields,
    tokenizer_files,
)
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CORPUS = [
    "the llama walks over high hills, 12345 times; 你好，羊驼走过高山。 def f(x):\n\treturn  x\n    pass\n" * 3,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z it's I'LL 1234 22 33 " * 3,
]
CONTROL = ["<|im_start|>", "<|im_end|>"]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  a \n\n b\t",
    "12345 3.14 ½ 1,000",
    "I'm you'RE it's",
    "龘 羊驼 😀👩‍👩‍👧",
    "\x00\r\n",
    "a</s><|im_end|>b",
    "<tool> x<tool>",
    "e\u0301",
]
text_strategy = st.text(max_size=20) | st.lists(st.sampled_from(TEXTS), max_size=3).map("".join)
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# Where llama.cpp (in llama-cpp-python 0.3.36) cuts PROBE with the vocabulary of `mergeable`, in which every stretch
# becomes one token. It leaves the digits of deepseek-llm together; DeepSeek's own tokenizer.json parts them, and since
# its vocabulary joins no digits the tokens are the same.
PROBE = "I'LL it's 12345x\t ab  c\n\n d!?$你a。½ aBc"
CUT_PROBE = {
    "gpt-2": "I|'|LL| it|'s| 12345|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "smollm": "I|'|LL| it|'s| |1|2|3|4|5|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "llama-bpe": "I|'LL| it|'s| |123|45|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "smaug-bpe": "I|'LL| it|'s| |123|45|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "qwen2": "I|'LL| it|'s| |1|2|3|4|5|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "deepseek-r1-qwen": "I|'LL| it|'s| |1|2|3|4|5|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
    "tekken": "I|'LL| it|'s| |1|2|3|4|5|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| a|Bc",
    "deepseek-llm": "I|'|LL| it|'|s| |1|2|3|4|5|x|\t| ab| | c|\n|\n| d|!?$|你|a|。|½| aBc",
    "deepseek-coder": "I|'|LL| it|'|s| |1|2|3|4|5|x|\t| ab| | c|\n|\n| d|!?|$|你|a|。|½| aBc",
    "default": "I|'|LL| it|'|s| |123|45|x|\t| ab| | c|\n\n| d|!?$|你a|。|½| aBc",
}


def mergeable(text, pre):
    """The fields of a vocabulary that holds every part of `text` and every merge of two of them."""
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    ends = range(1, len(spelling) + 1)
    parts = sorted({spelling[a:b] for b in ends for a in range(b)}, key=len)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["</s>", *parts],
        "tokenizer.ggml.token_type": [3] + [1] * len(parts),
        "tokenizer.ggml.merges": [f"{part[:k]} {part[k:]}" for part in parts for k in range(1, len(part))],
        "tokenizer.ggml.eos_token_id": 0,
    }


def byte_level_spec(name="smollm"):
    """A small tokenizer.json, trained by tokenizers, that cuts text as `name` does."""
    cut = PRE_TOKENIZERS[name]
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=cut.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", *CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cut.steps}
    spec["normalizer"] = {"type": cut.normalizers[0]} if cut.normalizers else None
    return spec


def from_spec(spec, **config):
    files = {"tokenizer.json": json.dumps(spec).encode(), "tokenizer_config.json": json.dumps(config).encode()}
    return Tokenizer(files, "their/tokenizer.json")


def from_fields(fields):
    return Tokenizer(tokenizer_files(fields, "a.gguf"), "a.gguf")


@pytest.fixture(scope="module")
def byte_level():
    return from_spec(byte_level_spec(), chat_template="{{ messages }}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return train_sentencepiece(CORPUS, vocab_size=360, output_dir=folder, special_tokens=CONTROL)


@pytest.fixture(scope="module", params=["byte_level", "llama"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def copy(tokenizer):
    return from_fields(gguf_fields(tokenizer))


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, *PRE_TOKENIZER_ALIASES])
def test_each_pre_tokenizer_cuts_where_llama_cpp_does(pre):
    tokenizer = from_fields(mergeable(PROBE, pre))
    cuts = "|".join(map(tokenizer.piece, tokenizer.encode(PROBE)))
    assert cuts == CUT_PROBE[PRE_TOKENIZER_ALIASES.get(pre, pre)]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_known_byte_level_tokenizer_comes_back_under_its_name(name):
    original = from_spec(byte_level_spec(name))
    fields = gguf_fields(original)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", name)
    copy = from_fields(fields)
    for text in TEXTS:
        assert copy.encode(text) == original.encode(text)
        assert copy.encode_with_offsets(text) == original.encode_with_offsets(text)
        assert copy.decode(copy.encode(text)) == original.decode(original.encode(text))
    assert gguf_fields(copy) == fields


@quick
@given(text_strategy)
@example("<|im_end|></s> <s><tool>")
def test_a_tokenizer_comes_back_with_the_same_tokens_and_texts(tokenizer, copy, text):
    ids = tokenizer.encode(text)
    assert copy.encode(text) == ids
    assert copy.encode(text, continues=True) == tokenizer.encode(text, continues=True)
    assert copy.decode(ids) == text


def test_a_tokenizer_comes_back_with_its_ids_and_template(tokenizer, copy):
    for name in ("vocab_size", "bos_id", "eos_id", "unk_id", "pad_id", "special", "chat_template"):
        assert getattr(copy, name) == getattr(tokenizer, name)
    pieces = range(tokenizer.vocab_size)
    assert list(map(copy.piece, pieces)) == list(map(tokenizer.piece, pieces))
    assert gguf_fields(copy) == gguf_fields(tokenizer)


def test_fields_survive_a_gguf_file(tokenizer, tmp_path):
    fields = gguf_fields(tokenizer)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    add = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        list: writer.add_array,
    }
    for key, value in fields.items():
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert {key: read[key] for key in fields} == fields
    assert from_fields(read).encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


def test_a_model_with_more_rows_than_tokens_gets_unused_ones(tokenizer):
    fields = gguf_fields(tokenizer, vocab_size=512)
    for name in {"tokens", "token_type", "scores"} & {key.rpartition(".")[2] for key in fields}:
        assert len(fields[f"tokenizer.ggml.{name}"]) == 512
    assert set(fields["tokenizer.ggml.token_type"][tokenizer.vocab_size :]) == {5}
    copy = from_fields(fields)
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_holes_in_a_vocabulary_are_unused_tokens_and_come_back_as_holes():
    spec = byte_level_spec()
    last = spec["added_tokens"][-1]
    assert last["content"] == "<tool>"
    spec["model"]["vocab"]["<far>"] = last["id"] + 5
    spec["added_tokens"] = spec["added_tokens"][:-1]
    original = from_spec(spec)
    fields = gguf_fields(original)
    assert fields["tokenizer.ggml.token_type"][last["id"] : last["id"] + 6] == [5, 5, 5, 5, 5, 1]
    copy = from_fields(fields)
    assert copy.vocab_size == original.vocab_size
    assert copy.decode([last["id"]]) == original.decode([last["id"]]) == ""


def test_token_types_say_what_is_control_and_what_is_text(byte_level):
    fields = gguf_fields(byte_level)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert {tokens[i] for i, kind in enumerate(types) if kind == 3} == {"<s>", "</s>", *CONTROL}
    assert [tokens[i] for i, kind in enumerate(types) if kind == 4] == ["<tool>"]
    copy = from_fields(fields)
    assert tokens.index("<tool>") in copy.encode("x<tool>y")
    assert not set(copy.encode("x</s><|im_end|>y")) & set(copy.special.values())
    types[tokens.index("<|im_end|>")] = 1
    assert "<|im_end|>" not in from_fields(fields).special
    fields["tokenizer.ggml.eos_token_id"] = tokens.index("<|im_end|>")  # named, so control whatever its type
    assert from_fields(fields).eos_id == from_fields(fields).special["<|im_end|>"]


def test_the_unknown_token_of_a_byte_level_tokenizer_comes_back():
    spec = byte_level_spec()
    spec["model"]["unk_token"] = "<s>"
    del spec["model"]["vocab"]["Q"]
    spec["model"]["vocab"]["<other>"] = 0
    original = from_spec(spec, bos_token=None)
    copy = from_fields(gguf_fields(original))
    assert copy.unk_id == original.unk_id is not None
    assert copy.encode("aQ") == original.encode("aQ")
    assert copy.unk_id in copy.encode("aQ")


def test_a_sentencepiece_model_is_llamas_own(llama):
    files = tokenizer_files(gguf_fields(llama), "a.gguf")
    proto = sentencepiece_model_pb2.ModelProto.FromString(files["tokenizer.model"])
    original = sentencepiece_model_pb2.ModelProto.FromString(llama._files["tokenizer.model"])
    pieces, expected = ([(p.piece, p.score, p.type) for p in model.pieces] for model in (proto, original))
    assert pieces == expected
    spec = proto.trainer_spec
    assert spec.model_type == spec.BPE
    assert (spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id) == (0, 1, 2, -1)
    assert (spec.unk_piece, spec.bos_piece, spec.eos_piece) == ("<unk>", "<s>", "</s>")
    assert proto.normalizer_spec.name == "identity"
    assert proto.normalizer_spec.add_dummy_prefix
    assert not proto.normalizer_spec.remove_extra_whitespaces


def test_characters_without_a_token_are_spelled_in_bytes(llama):
    copy = from_fields(gguf_fields(llama))
    assert list(map(copy.piece, copy.encode("龘", continues=True))) == ["<0xE9>", "<0xBE>", "<0x98>"]


def test_a_sentencepiece_model_without_byte_tokens_has_the_unknown_token_for_them(llama):
    fields = gguf_fields(llama)
    kept = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind != 6]
    for name in ("tokens", "token_type", "scores"):
        fields = changed(fields, name, lambda values: [values[i] for i in kept])
    tokenizer = from_fields(fields)
    assert tokenizer.encode("龘", continues=True) == [tokenizer.unk_id]


def test_the_space_in_front_of_a_text_is_a_field(llama):
    fields = gguf_fields(llama)
    with_space = from_fields(fields)
    without = from_fields(fields | {"tokenizer.ggml.add_space_prefix": False})
    assert without.encode("the llama") == with_space.encode("the llama", continues=True)
    assert with_space.piece(with_space.encode("the llama")[0]).startswith(" ")
    assert without.decode(without.encode(" the")) == " the"
    assert gguf_fields(without)["tokenizer.ggml.add_space_prefix"] is False
    del fields["tokenizer.ggml.add_space_prefix"]
    assert from_fields(fields).encode("the llama") == with_space.encode("the llama")


def test_what_users_add_to_a_sentencepiece_model_is_found_in_text(llama):
    fields = gguf_fields(llama)
    added = [("two words", 4), ("<end>", 3)]
    fields["tokenizer.ggml.tokens"] += [token for token, _ in added]
    fields["tokenizer.ggml.token_type"] += [kind for _, kind in added]
    fields["tokenizer.ggml.scores"] += [-1000.0] * len(added)
    tokenizer = from_fields(fields)
    pieces = list(map(tokenizer.piece, tokenizer.encode("or two words<end>")))
    assert "two words" in pieces
    assert "<end>" not in pieces
    assert tokenizer.decode(tokenizer.encode("or two words<end>")) == "or two words<end>"
    assert gguf_fields(tokenizer) == fields
    of_others = from_fields({name: value for name, value in fields.items() if name != "camelid.tokenizer.legacy"})
    user = fields["tokenizer.ggml.tokens"].index("two words")
    begun = [*tokenizer.encode("or "), user]
    assert tokenizer.encode("or two wordsor") == [*begun, *tokenizer.encode("or", continues=True)]
    assert of_others.encode("or two wordsor") == [*begun, *tokenizer.encode("or")], "a space, as in llama.cpp"


def test_named_tokens_of_a_sentencepiece_model_are_control_whatever_their_type(llama):
    fields = gguf_fields(llama)
    types = fields["tokenizer.ggml.token_type"]
    types[:3] = [3, 1, 4]  # as an old conversion of Phi 3 has them
    fields["tokenizer.ggml.padding_token_id"] = 2
    tokenizer = from_fields(fields)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 2)
    assert not {0, 1, 2} & set(tokenizer.encode("<unk> <s> </s>"))


def test_sentencepiece_ids_that_a_file_does_not_name_are_llamas(llama):
    fields = gguf_fields(llama)
    named = [key for key in fields if key.endswith("_token_id")]
    tokenizer = from_fields({key: value for key, value in fields.items() if key not in named})
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_tokens_of_type_unknown_that_are_not_the_unknown_token_are_padding(tokenizer):
    fields = gguf_fields(tokenizer, vocab_size=512)
    fields["tokenizer.ggml.token_type"][tokenizer.vocab_size :] = [2] * (512 - tokenizer.vocab_size)
    copy = from_fields(fields)
    assert copy.unk_id == tokenizer.unk_id
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("pre, adds_bos", [("smollm", False), ("llama-bpe", True)])
def test_byte_level_texts_begin_with_bos_where_the_file_or_its_kind_says_so(byte_level, pre, adds_bos):
    fields = gguf_fields(byte_level) | {"tokenizer.ggml.pre": pre}
    bos_id = byte_level.bos_id
    fields["tokenizer.ggml.add_bos_token"] = True
    assert from_fields(fields).adds_bos
    assert not from_fields(fields | {"tokenizer.ggml.add_bos_token": False}).adds_bos
    del fields["tokenizer.ggml.add_bos_token"]
    assert from_fields(fields).adds_bos == adds_bos
    assert from_fields(fields).bos_id == bos_id  # whether it is added or not


def test_sentencepiece_texts_begin_with_bos_unless_the_file_says_otherwise(llama):
    fields = gguf_fields(llama)
    assert not from_fields(fields | {"tokenizer.ggml.add_bos_token": False}).adds_bos
    del fields["tokenizer.ggml.add_bos_token"]
    assert from_fields(fields).adds_bos and from_fields(fields).bos_id == llama.bos_id


def test_a_bos_that_is_not_added_keeps_its_name(tokenizer):
    fields = gguf_fields(tokenizer) | {"tokenizer.ggml.add_bos_token": False}
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    copy = from_fields(fields)
    assert copy.special["<s>"] == tokenizer.bos_id
    assert gguf_fields(copy) == fields


def test_the_chat_template_goes_along(tokenizer):
    fields = gguf_fields(tokenizer) | {"tokenizer.chat_template": "{{ 'ü' }}"}
    copy = from_fields(fields)
    assert copy.chat_template == "{{ 'ü' }}"
    assert gguf_fields(copy)["tokenizer.chat_template"] == "{{ 'ü' }}"
    del fields["tokenizer.chat_template"]
    assert "tokenizer.chat_template" not in gguf_fields(from_fields(fields))


@pytest.mark.parametrize("pre, said", [("falcon", "is 'falcon'"), (None, "is missing")])
def test_an_unknown_pre_tokenizer_is_refused_by_name_with_the_known_ones(byte_level, pre, said):
    fields = gguf_fields(byte_level)
    fields = fields | {"tokenizer.ggml.pre": pre} if pre else {k: v for k, v in fields.items() if not k.endswith("pre")}
    with pytest.raises(UserError, match=rf"a\.gguf: tokenizer\.ggml\.pre.*{said}.*llama-bpe.*gguf-new-metadata"):
        from_fields(fields)


def without(fields, name):
    return {key: value for key, value in fields.items() if key != f"tokenizer.ggml.{name}"}


def changed(fields, name, change):
    return fields | {f"tokenizer.ggml.{name}": change(fields[f"tokenizer.ggml.{name}"])}


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: f | {"tokenizer.ggml.model": "t5"}, r"a\.gguf has a tokenizer of model 't5'.*'gpt2'.*'llama'"),
        (lambda f: without(f, "model"), "of model None"),
        (lambda f: without(f, "tokens"), r"has no tokenizer\.ggml\.tokens"),
        (lambda f: without(f, "token_type"), r"has no tokenizer\.ggml\.token_type"),
        (lambda f: f | {"tokenizer.ggml.tokens": "abc"}, r"tokens is not a list of str"),
        (lambda f: changed(f, "tokens", lambda t: [*t[:-1], 7]), "tokens is not a list of str"),
        (lambda f: changed(f, "tokens", lambda t: [*t[:-1], t[5]]), r"tokens 5 and \d+ are both"),
        (lambda f: changed(f, "tokens", lambda t: ["", *t[1:]]), "token 0 is empty"),
        (lambda f: changed(f, "token_type", lambda t: t[:-1]), r"token_type has \d+ entries for \d+ tokens"),
        (lambda f: changed(f, "token_type", lambda t: [9, *t[1:]]), "token 0, .*, is of type 9"),
        (lambda f: f | {"tokenizer.ggml.eos_token_id": 10_000}, r"eos_token_id is 10000, which is none of the \d+"),
        (lambda f: f | {"tokenizer.ggml.eos_token_id": "</s>"}, "eos_token_id is '</s>', not of type int"),
        (lambda f: f | {"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1, not of type bool"),
        (lambda f: f | {"tokenizer.chat_template": ["x"]}, r"chat_template is \['x'\], not of type str"),
    ],
)
def test_malformed_fields_are_told_in_one_line(tokenizer, spoil, message):
    with pytest.raises(UserError, match=message) as error:
        from_fields(spoil(gguf_fields(tokenizer)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: without(f, "merges"), r"has no tokenizer\.ggml\.merges"),
        (lambda f: changed(f, "merges", lambda m: [*m, "no such"]), "cannot be read by tokenizers"),
        (lambda f: without(f, "eos_token_id"), "names no end-of-text token"),
    ],
)
def test_malformed_fields_of_byte_level_bpe_are_told_in_one_line(byte_level, spoil, message):
    with pytest.raises(UserError, match=message):
        from_fields(spoil(gguf_fields(byte_level)))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: without(f, "scores"), r"has no tokenizer\.ggml\.scores"),
        (lambda f: changed(f, "scores", lambda s: s[1:]), r"scores has \d+ entries"),
        (
            lambda f: changed(f, "tokens", lambda t: ["<0x00>!" if x == "<0x00>" else x for x in t]),
            "SentencePiece refuses",
        ),
    ],
)
def test_malformed_fields_of_sentencepiece_are_told_in_one_line(llama, spoil, message):
    with pytest.raises(UserError, match=message):
        from_fields(spoil(gguf_fields(llama)))


def test_a_byte_level_tokenizer_without_a_name_in_gguf_is_refused():
    def refuse(message, **changes):
        with pytest.raises(UserError, match=rf"^their/tokenizer\.json.*{message}"):
            gguf_fields(from_spec(byte_level_spec() | changes))

    spec = byte_level_spec()
    space_in_front = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    refuse("add_prefix_space", pre_tokenizer=space_in_front)
    refuse("NFC", normalizer={"type": "NFC"})
    refuse("ignore_merges true", model=spec["model"] | {"ignore_merges": True})
    refuse("load that", model=spec["model"] | {"byte_fallback": True})
    refuse("'<tool>'.*lstrip", added_tokens=[t | {"lstrip": not t["special"]} for t in spec["added_tokens"]])


def test_a_pre_tokenizer_is_known_however_its_file_writes_it():
    spec = byte_level_spec("gpt-2")
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    spec["normalizer"] = {"type": "Sequence", "normalizers": []}
    assert gguf_fields(from_spec(spec))["tokenizer.ggml.pre"] == "gpt-2"


def test_a_tokenizer_json_of_another_kind_is_refused():
    spec = byte_level_spec()
    spec["model"] = {"type": "WordLevel", "vocab": {"</s>": 0, "[UNK]": 1, "a": 2}, "unk_token": "[UNK]"}
    spec["added_tokens"] = []
    with pytest.raises(UserError, match=r"not a byte-level BPE.*tokenizer\.model"):
        gguf_fields(from_spec(spec))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(model_type="unigram", byte_fallback=True), "of type unigram"),
        (dict(model_type="bpe", byte_fallback=False), "no byte fallback"),
        (dict(model_type="bpe", byte_fallback=True, normalization_rule_name="nmt_nfkc"), "nmt_nfkc"),
        (dict(model_type="bpe", byte_fallback=True, treat_whitespace_as_suffix=True), "writes spaces"),
    ],
)
def test_a_sentencepiece_model_that_gguf_cannot_express_is_refused(tmp_path, settings, message):
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=340 if settings["byte_fallback"] else 90,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"normalization_rule_name": "identity"} | settings,
    )
    with pytest.raises(UserError, match=message):
        gguf_fields(Tokenizer.load(tmp_path / "tokenizer.model"))


@pytest.mark.skipif("CAMELID_SMOLLM2" not in os.environ, reason="CAMELID_SMOLLM2 is not the path of SmolLM2's .gguf")
def test_smollm2_has_the_tokens_of_llama_cpp():
    """Ids of llama-cpp-python 0.3.36."""
    reader = gguf.GGUFReader(os.environ["CAMELID_SMOLLM2"])
    tokenizer = from_fields({name: field.contents() for name, field in reader.fields.items()})
    text = "The llama walked 12 miles.\n\n  你好 it's"
    ids = [504, 303, 4130, 81, 13197, 216, 33, 34, 4158, 30, 8866, 216, 18645, 250, 48392, 138, 357, 506]
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode("x</s><|im_end|>") == [104, 9617, 99, 21198, 108, 306, 79, 486, 108, 46]
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_id, tokenizer.vocab_size) == (1, False, 2, 49_152)
    assert "<|im_start|>" in tokenizer.chat_template
