"""What the files beside a tokenizer's model file say: names, added tokens, bos and spaces, as transformers reads them.

Ids of transformers 5.24 (LlamaTokenizer) and SentencePiece 0.2.3 for the models trained here.
"""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from camelid.checkpoints.interop.tokenizer_export import save_for_transformers
from camelid.checkpoints.interop.tokenizer_gguf import gguf_fields, tokenizer_files
from camelid.data.sources import Source
from camelid.data.templates import ChatTemplate, encode_text
from camelid.data.text_encoder import TextEncoder
from camelid.data.token_cache import build_cache
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.tests.data.test_tokenizer import CORPUS

N = 400  # pieces of the model
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
BOS_FIRST = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
BOTH_ENDS = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
BYTES = processors.ByteLevel(trim_offsets=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(CORPUS, vocab_size=N, output_dir=tmp_path_factory.mktemp("model"))._files


@pytest.fixture(scope="module")
def spec():
    """A byte-level BPE whose post-processor adds nothing."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())


def written(files, where="their/tokenizer"):
    content = {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in files.items()}
    return Tokenizer(content, where)


def llama(model, config=None, names=None, added=None):
    beside = {"tokenizer_config.json": config, "special_tokens_map.json": names, "added_tokens.json": added}
    return written(model | {name: content for name, content in beside.items() if content is not None})


def added_list(**changes):
    tokens = {0: ("<unk>", True), 1: ("<s>", True), 2: ("</s>", True), N: ("<|im_end|>", True)}
    tokens |= {N + 1: ("<tool>", False), N + 2: ("[PAD]", True)}
    listed = {str(i): {"content": spelling, **FLAGS, "special": special} for i, (spelling, special) in tokens.items()}
    listed[str(N + 1)] |= changes
    return listed


# bos ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "processor, says, adds",
    [
        (None, {}, False),
        (BYTES, {}, False),
        (BOS_FIRST, {}, True),
        (BOTH_ENDS, {}, True),
        (processors.Sequence([BYTES, BOS_FIRST]), {}, True),
        (processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)]), {}, False),
        (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), {}, True),
        (BOS_FIRST, {"bos_token": "<pad>"}, False),  # what is put in front is another token than bos
        (BOS_FIRST, {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
        (BOS_FIRST, {"add_bos_token": None}, True),
        (BOS_FIRST, {"bos_token": None, "add_bos_token": True}, False),
    ],
)
def test_plain_text_begins_with_bos_as_its_files_say_and_bos_is_known_all_the_same(spec, processor, says, adds):
    post = None if processor is None else json.loads(processor.__getstate__())
    tokenizer = written({"tokenizer.json": spec | {"post_processor": post}, "tokenizer_config.json": says})
    bos = says.get("bos_token", "<s>")
    assert tokenizer.bos_id == (None if bos is None else tokenizer.special[bos])
    assert tokenizer.adds_bos is adds
    begin = [tokenizer.bos_id] if adds else []
    assert encode_text("a", tokenizer).tokens.tolist() == [*begin, *tokenizer.encode("a"), tokenizer.eos_id]


def test_llamas_own_model_adds_bos_unless_told_not_to(model):
    assert llama(model).adds_bos and llama(model, {"tokenizer_class": "LlamaTokenizer"}).adds_bos
    told = llama(model, {"add_bos_token": False})
    assert (told.adds_bos, told.bos_id) == (False, 1)


@pytest.mark.parametrize("adds", [False, True])
def test_exports_say_whether_bos_is_added_in_every_place_that_others_look_at(spec, adds, tmp_path):
    files = {"tokenizer.json": spec, "tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": adds}}
    tokenizer = written(files)
    save_for_transformers(tokenizer, ChatTemplate("t", "{{ messages[0].content }}"), tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("a").ids == encode_text("a", tokenizer).tokens[:-1].tolist()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is adds
    assert (tmp_path / "chat_template.jinja").read_text().startswith("{{ bos_token }}") is adds
    fields = gguf_fields(tokenizer)
    assert fields["tokenizer.ggml.add_bos_token"] is adds and fields["tokenizer.ggml.bos_token_id"] == 0
    for again in (Tokenizer.load(tmp_path), Tokenizer(tokenizer_files(fields, "a.gguf"), "a.gguf")):
        assert (again.adds_bos, again.bos_id) == (adds, 0)


# Added tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "legacy, text, ids",
    [
        (True, "hello world", [281, 282]),
        (True, "hello  <tool>world", [281, N + 1, 282]),
        (False, "hello  <tool>world", [281, N + 1, 365, 279]),
        (False, "a<tool>", [259, N + 1]),
    ],
)
def test_added_tokens_are_found_in_text_as_transformers_finds_them(model, legacy, text, ids):
    config = {"legacy": legacy, "eos_token": "<|im_end|>", "pad_token": "[PAD]"}
    tokenizer = llama(model, config | {"added_tokens_decoder": added_list(lstrip=True)})
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (N + 3, 1, N, N + 2)
    assert tokenizer.encode(text) == ids
    ids, spans = tokenizer.encode_with_offsets(text)
    assert sorted(spans) == spans and spans[-1][1] == len(text)
    assert tokenizer.added["<tool>"] == (N + 1, False, True, False, False, False)
    assert 2 < max(tokenizer.encode("<|im_end|>[PAD]</s>")) < N, "control tokens' spellings are text"
    assert tokenizer.decode([N + 1, N, 281]) == "<tool> hello"


def test_text_after_a_control_token_gets_a_space_as_transformers_gives_it_one(model):
    config = {"added_tokens_decoder": added_list()}
    for legacy, ids in ((True, [281]), (False, [358, 278])):
        tokenizer = llama(model, config | {"legacy": legacy})
        assert tokenizer.encode("hello", after=N) == tokenizer.encode("hello", after=1) == ids
        assert tokenizer.encode("hello") == [281]
    bare = llama(model)  # as Meta's code: a text begins behind bos and behind eos
    assert bare.encode("hello", after=1) == bare.encode("hello", after=2) == [281]
    assert llama(model, config).encode("hello", after=N) == [358, 278]


def test_older_files_list_added_tokens_and_those_with_a_name_are_special(model):
    names = {"eos_token": {"content": "<|im_end|>", **FLAGS}, "pad_token": "[PAD]"}
    added = {"[PAD]": N, "<|im_end|>": N + 1, "<tool>": N + 2}
    tokenizer = llama(model, {"legacy": False, "eos_token": "</s>"}, names, added)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (N + 3, N + 1, N)
    assert tokenizer.encode("a<tool>b") == [259, N + 2, 384]
    special = {"<s>": True, "</s>": True, "<unk>": False, "[PAD]": True, "<|im_end|>": True, "<tool>": False}
    assert {s: t.special for s, t in tokenizer.added.items()} == special
    # where the newer list is there, it alone counts
    newer = llama(model, {"added_tokens_decoder": {}}, names, added)
    assert (newer.vocab_size, newer.eos_id) == (N, 2)


def test_a_named_token_is_special_and_keeps_the_flags_that_the_list_gives_it(model):
    listed = added_list()
    listed[str(N)] = {"content": "<|im_end|>", **FLAGS, "lstrip": True, "special": False}
    tokenizer = llama(model, {"legacy": False, "eos_token": "<|im_end|>", "added_tokens_decoder": listed})
    assert tokenizer.added["<|im_end|>"] == (N, True, True, False, False, False)
    template = ChatTemplate("t", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    tokens = template.encode([{"role": "user", "content": "hello  "}], tokenizer).tokens.tolist()
    assert tokens == [1, *tokenizer.encode("hello"), N], "the spaces before it are its own"


def test_ids_may_have_holes_take_pieces_over_and_come_of_names_alone(model):
    far = llama(model, added={"<far>": N + 7})
    assert (far.vocab_size, far.encode("a<far>")[-1], far.decode([N + 3])) == (N + 8, N + 7, "")
    replaced = llama(model, {"added_tokens_decoder": {"281": {"content": "<new>", **FLAGS, "special": False}}})
    assert replaced.encode("<new>") == [281] and replaced.decode([281]) == "<new>"
    assert 281 not in replaced.encode("hello") and replaced.decode(replaced.encode("hello")) == "hello"
    named = llama(model, {"pad_token": "[PAD]"})
    assert (named.vocab_size, named.pad_id, named.named["pad_token"]) == (N + 1, N, "[PAD]")
    assert llama(model, {"bos_token": "", "eos_token": "", "unk_token": ""}).eos_id == 2  # LLaMA's first conversions


def test_a_sentencepiece_folder_goes_through_exports_with_its_added_tokens(model, tmp_path):
    config = {"legacy": False, "eos_token": "<|im_end|>", "pad_token": "[PAD]", "added_tokens_decoder": added_list()}
    tokenizer = llama(model, config)
    save_for_transformers(tokenizer, None, tmp_path)
    copies = [Tokenizer.load(tmp_path), Tokenizer(tokenizer_files(gguf_fields(tokenizer), "a.gguf"), "a.gguf")]
    for copy in copies:
        assert copy.special == tokenizer.special
        assert (copy.bos_id, copy.eos_id, copy.pad_id) == (1, N, N + 2)
        for text in ("hello", "a<tool>b", "x<|im_end|>"):
            assert copy.encode(text) == tokenizer.encode(text)
            assert copy.encode(text, after=N) == tokenizer.encode(text, after=N)


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
def test_a_template_can_write_every_token_that_has_a_name(model, spec, kind):
    files = model if kind == "tokenizer.model" else {kind: spec}
    config = {"bos_token": "<s>", "sep_token": "[SEP]", "cls_token": {"content": "[CLS]", **FLAGS}, "mask_token": None}
    tokenizer = written(files | {"tokenizer_config.json": config, "special_tokens_map.json": {"mask_token": "<mask>"}})
    template = ChatTemplate("t", "{{ cls_token }}{{ messages[0].content }}{{ sep_token }}{{ mask_token }}")
    tokens = template.encode([{"role": "user", "content": "[SEP]"}], tokenizer).tokens.tolist()
    ids = [tokenizer.special[spelling] for spelling in ("[CLS]", "[SEP]", "<mask>")]
    assert [i for i in tokens if i in ids] == ids and min(ids) >= (N if kind == "tokenizer.model" else 340)
    other = written(files | {"tokenizer_config.json": config, "special_tokens_map.json": {"mask_token": "[MASK]"}})
    assert other.cache_key(template.source) != tokenizer.cache_key(template.source)


def test_added_tokens_of_a_configuration_go_behind_those_of_a_tokenizer_json(spec):
    token = {"content": "<tool>", **FLAGS, "special": False}
    tokenizer = written({"tokenizer.json": spec, "tokenizer_config.json": {"added_tokens_decoder": {"340": token}}})
    assert tokenizer.encode("a<tool>")[-1] == 340 == tokenizer.vocab_size - 1
    with pytest.raises(UserError, match="give '<tool>' id 350; make it 340, as in their/tokenizer"):
        written({"tokenizer.json": spec, "tokenizer_config.json": {"added_tokens_decoder": {"350": token}}})


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"added_tokens_decoder": {"0": {"content": "<x>"}}},
            "give '<x>' id 0, that of the unknown token '<unk>'",
        ),
        ({"added_tokens_decoder": {"5": {"content": "<x>"}}}, "id 5, that of the byte"),
        ({"added_tokens_decoder": {"-1": {"content": "<x>"}}}, "the key is not an id"),
        (
            {"added_tokens_decoder": {"99999999": {"content": "<x>"}}},
            "the id is 99,999,999; ids must be below 4,194,304",
        ),
        ({"added_tokens_decoder": {"400": {"content": "<x>", "lstrip": "yes"}}}, "lstrip is 'yes'"),
        ({"added_tokens_decoder": {"400": {"content": "a"}, "401": {"content": "a"}}}, "'a' already has the id 400"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\]: map ids"),
        ({"eos_token": 7}, "eos_token is 7: give the token's spelling"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes': give true or false"),
        ({"legacy": 1}, "legacy is 1: give true or false"),
        ({"chat_template": {"a": 1}}, "chat_template is .*: give jinja source"),
        ({"bos_token": "<unk>"}, "bos or eos is the unknown token"),
    ],
)
def test_what_is_malformed_beside_a_model_is_told_in_one_line(model, config, message):
    with pytest.raises(UserError, match=message) as error:
        llama(model, config)
    assert "\n" not in str(error.value) and "their/tokenizer" in str(error.value)


# Spaces ---------------------------------------------------------------------------------------------------------------


def with_spaces(spec, normalizer=None, pre_tokenizer=None):
    """A tokenizer.json of single characters with spaces as the parts given write them."""
    letters = ["<s>", "</s>", "<unk>", "▁", *"abc", "<tool>"]
    parts = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    token = {"id": 7, "content": "<tool>", **FLAGS, "special": False}
    special = [token | {"id": i, "content": spelling, "special": True} for i, spelling in enumerate(letters[:2])]
    model = {"type": "BPE", "vocab": {s: i for i, s in enumerate(letters)}, "merges": [], "unk_token": "<unk>"}
    described = {name: part and json.loads(part.__getstate__()) for name, part in parts.items()}
    return (
        spec
        | described
        | {
            "added_tokens": [*special, token],
            "decoder": json.loads(decoder.__getstate__()),
            "model": model,
        }
    )


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
A, SPACE, TOOL = 4, 3, 7


@pytest.mark.parametrize(
    "parts, ids",
    [  # of "a", of " a", of "a" after a control token, of "a<tool>a", worked out by hand
        ({"normalizer": PREPEND}, ([SPACE, A], [SPACE, SPACE, A], [SPACE, A], [SPACE, A, TOOL, SPACE, A])),
        ("always", ([SPACE, A], [SPACE, A], [SPACE, A], [SPACE, A, TOOL, SPACE, A])),
        ("first", ([SPACE, A], [SPACE, A], [A], [SPACE, A, TOOL, A])),
        ("never", ([A], [SPACE, A], [A], [A, TOOL, A])),
    ],
)
def test_a_space_in_front_is_put_as_tokenizers_puts_it(spec, parts, ids):
    if isinstance(parts, str):
        parts = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme=parts, split=False)}
    file = with_spaces(spec, **parts)
    tokenizer, theirs = written({"tokenizer.json": file}), tokenizers.Tokenizer.from_str(json.dumps(file))
    alone, spaced, after, around = ids
    assert tokenizer.encode("a") == theirs.encode("a", add_special_tokens=False).ids == alone
    assert tokenizer.encode(" a") == theirs.encode(" a", add_special_tokens=False).ids == spaced
    assert tokenizer.encode("a<tool>a") == theirs.encode("a<tool>a", add_special_tokens=False).ids == around
    assert [0, *tokenizer.encode("a", after=0)] == theirs.encode("<s>a", add_special_tokens=False).ids == [0, *after]
    assert tokenizer.encode("a", continues=True) == [A]
    assert tokenizer.decode(alone) == "a"


def test_an_added_token_that_is_found_with_the_space_before_it_comes_back_with_it(spec):
    file = with_spaces(spec, normalizer=PREPEND)
    file["added_tokens"][-1]["normalized"] = True
    tokenizer, theirs = written({"tokenizer.json": file}), tokenizers.Tokenizer.from_str(json.dumps(file))
    for text, ids in {"a <tool> b": [SPACE, A, TOOL, SPACE, 5], "<tool>a": [TOOL, A]}.items():
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids == ids
        assert tokenizer.decode(ids) == theirs.decode(ids) == text


def test_a_decoder_may_replace_what_a_regular_expression_finds(spec):
    file = with_spaces(spec, pre_tokenizer=pre_tokenizers.Metaspace())
    file["decoder"] = json.loads(decoders.Replace(tokenizers.Regex("▁+"), " ").__getstate__())
    assert written({"tokenizer.json": file}).decode([SPACE, A, SPACE, 5]) == "a b"


def test_a_byte_level_space_in_front_stands_before_every_stretch(spec):
    file = json.loads(json.dumps(spec))
    file["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer, theirs = written({"tokenizer.json": file}), tokenizers.Tokenizer.from_str(json.dumps(file))
    for text in ("hello", " hello", "a\nb", "", "你好 again"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert [0, *tokenizer.encode(text, after=0)] == theirs.encode("<s>" + text, add_special_tokens=False).ids
    assert tokenizer.piece(tokenizer.encode("b")[0]) == " b"
    assert tokenizer.piece(tokenizer.encode("b", continues=True)[0]) == "b"


def test_an_old_spelling_of_no_space_in_front_is_read(spec):
    file = with_spaces(spec, pre_tokenizer=pre_tokenizers.Metaspace())
    file["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}
    assert written({"tokenizer.json": file}).encode("a") == [A]


def train(path, **settings):
    (path / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "corpus.txt"),
        model_prefix=str(path / "tokenizer"),
        hard_vocab_limit=False,
        minloglevel=2,
        **dict(vocab_size=340, byte_fallback=True, model_type="bpe", normalization_rule_name="identity") | settings,
    )
    return path / "tokenizer.model"


SPACED = ["hello world", "  a  b  ", " ", "", "a ", " a", "你好  世界 😀 ", "tab\tx two  "]


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("dummy", [False, True])
def test_a_sentencepiece_model_keeps_its_own_spaces(tmp_path, extra, suffix, dummy):
    settings = dict(remove_extra_whitespaces=extra, treat_whitespace_as_suffix=suffix, add_dummy_prefix=dummy)
    file = train(tmp_path, **settings, user_defined_symbols=["two"])
    tokenizer, theirs = Tokenizer.load(file), sentencepiece.SentencePieceProcessor(model_file=str(file))
    for text in SPACED:
        ids, spans = tokenizer.encode_with_offsets(text)
        assert tokenizer.encode(text) == ids == theirs.encode(text)
        assert all(0 <= a <= b <= len(text) for a, b in spans) and spans == sorted(spans)
        kept = " ".join(part for part in text.split(" ") if part) if extra else text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids) == kept
    going_on = tokenizer.encode("hello") + tokenizer.encode("  world", continues=True)
    if not suffix:
        assert tokenizer.decode(going_on) == ("hello world" if extra else "hello  world")


def test_the_unknown_token_reads_as_its_model_says(tmp_path):
    file = train(tmp_path, byte_fallback=False, unk_surface="?")
    ids = Tokenizer.load(file).encode("hello €uro")
    assert Tokenizer.load(file).decode(ids) == sentencepiece.SentencePieceProcessor(model_file=str(file)).decode(ids)
    assert Tokenizer.load(file).decode(ids).endswith("?uro")


def test_a_gguf_file_says_that_extra_spaces_are_removed(tmp_path):
    tokenizer = Tokenizer.load(train(tmp_path, remove_extra_whitespaces=True))
    fields = gguf_fields(tokenizer)
    assert fields["tokenizer.ggml.remove_extra_whitespaces"] is True
    copy = Tokenizer(tokenizer_files(fields, "a.gguf"), "a.gguf")
    for text in SPACED:
        assert copy.encode(text) == tokenizer.encode(text)
    del fields["camelid.tokenizer.legacy"]  # a file of others: llama.cpp puts the space behind every control token
    theirs = Tokenizer(tokenizer_files(fields, "a.gguf"), "a.gguf")
    assert theirs.encode("a", after=0) == theirs.encode("a") != tokenizer.encode("a", after=0)


# Names of caches and older runs ---------------------------------------------------------------------------------------


def test_everything_that_decides_tokens_is_in_the_fingerprint_and_in_a_caches_name(model, spec, tmp_path):
    list_ = {"added_tokens_decoder": added_list()}
    told = [{}, list_, {"added_tokens_decoder": added_list(lstrip=True)}, list_ | {"legacy": True}]
    told += [list_ | {"legacy": False}, {"add_bos_token": False}, {"add_prefix_space": False}, {"bos_token": "</s>"}]
    told += [list_ | {"eos_token": "<|im_end|>"}, list_ | {"pad_token": "[PAD]"}]
    found = [llama(model, config) for config in told]
    assert len({tokenizer.fingerprint for tokenizer in found}) == len(told)
    source = "{{ pad_token }}{{ bos_token }}{{ messages[0].content }}"
    assert len({json.dumps(tokenizer.cache_key(source)) for tokenizer in found}) == len(told)
    assert found[0].fingerprint == llama(model).fingerprint == found[0].model_fingerprint

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "hello"}))
    names = set()
    for pad in ("<pad>", "</s>"):
        tokenizer = written({"tokenizer.json": spec, "tokenizer_config.json": {"pad_token": pad}})
        for template in (ChatTemplate("reads", "{{ pad_token }}"), None):
            encoder = TextEncoder(tokenizer, template)
            names.add(build_cache(Source(str(tmp_path / "a.jsonl")), None, encoder, tmp_path, workers=1).fingerprint)
    assert len(names) == 3, "plain text does not ask for the padding token"


def test_names_of_caches_that_held_these_tokens_before_stay(model, spec):
    """The name was made of the model file's hash, bos where it was added, and eos."""
    plain = llama(model)
    assert plain.cache_key() == [plain.model_fingerprint, 1, 2]
    same = llama(model, {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>"})
    assert same.cache_key("{{ eos_token }}") == plain.cache_key()
    theirs = written({"tokenizer.json": spec, "tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": False}})
    assert theirs.cache_key() == [theirs.model_fingerprint, None, 1]


def test_an_older_run_keeps_the_tokens_that_it_was_trained_with(model, spec, tmp_path):
    theirs = written({"tokenizer.json": spec, "tokenizer_config.json": {"bos_token": "<s>"}})
    before = theirs.as_trained_before()
    assert not theirs.adds_bos and before.adds_bos and before.bos_id == 0
    before.save(tmp_path)
    assert Tokenizer.load(tmp_path).adds_bos, "a run that starts from it stores what it means"
    config = {"legacy": False, "eos_token": "<|im_end|>", "added_tokens_decoder": added_list()}
    before = llama(model, config).as_trained_before()
    assert (before.vocab_size, before.eos_id) == (N, 2)
    np.testing.assert_array_equal(encode_text("hello", before).tokens, [1, 281, 2])
