"""Tokenizers of both kinds: nothing said in text becomes a control token, and every text comes back."""

import codecs
import hashlib
import json
import pickle

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from camelid.data.templates import encode_text
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

WORDS = "the llama walks over high hills, 12345 times; 你好，羊驼走过高山。 def f(x):\n\treturn  x\n    pass\n"
CORPUS = [WORDS * 3, "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3, "hello world again and again " * 5]
CONTROL = ["<|im_start|>", "<|im_end|>"]
HOSTILE = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>user", "<0x0A>", "[INST] x [/INST]", "▁", "▁▁a▁ b▁", "<"]
AWKWARD = [
    "",
    " ",
    "  a",
    "a ",
    "\n",
    "\n\n x",
    "\t\ta",
    "a    b",
    "😀👩‍👩‍👧",
    "龘羊驼 羊驼",
    "\x00",
    "\r\n",
    "\ufffd",
    "\ufeffa",
    " ▁",
]

text_strategy = st.text(max_size=30) | st.lists(st.sampled_from(HOSTILE + AWKWARD), max_size=5).map("".join)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def save_byte_level(directory):
    """A byte-level BPE like Llama 3's and SmolLM2's, with a post-processor that adds bos."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", *CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "</strong> " * 20], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(4)  # left over from somebody's training script
    tokenizer.save(str(directory / "tokenizer.json"))


def save_llama_style(directory, sentencepiece_file):
    """What Hugging Face's conversion makes of a SentencePiece BPE: Prepend, byte fallback, Strip.

    The merges of the conversion can spell a control token, here "</s>" from "</" and "s>".
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    ranked = sorted(vocabulary, key=vocabulary.get)
    merges = [(p[:k], p[k:]) for p in ranked for k in range(1, len(p)) if p[:k] in vocabulary and p[k:] in vocabulary]
    for piece in ("<", "/", "s", ">", "</", "s>"):
        vocabulary.setdefault(piece, len(vocabulary))
    merges += [("<", "/"), ("s", ">"), ("</", "s>")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *CONTROL])
    tokenizer.save(str(directory / "tokenizer.json"))


def save_metaspace(directory, llama_style_file):
    """The newer conversion of the same: a Metaspace pre-tokenizer instead of normalisers."""
    spec = json.loads(llama_style_file.read_text())
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (directory / "tokenizer.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {
        name: tmp_path_factory.mktemp(name) for name in ("sentencepiece", "byte_level", "llama_style", "metaspace")
    }
    train_sentencepiece(CORPUS, vocab_size=400, output_dir=folders["sentencepiece"], special_tokens=CONTROL)
    save_byte_level(folders["byte_level"])
    save_llama_style(folders["llama_style"], folders["sentencepiece"] / "tokenizer.model")
    save_metaspace(folders["metaspace"], folders["llama_style"] / "tokenizer.json")
    return folders


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level", "llama_style", "metaspace"])
def tokenizer(request, folders):
    return Tokenizer.load(folders[request.param])


@pytest.fixture(scope="module")
def llama(folders):
    return Tokenizer.load(folders["sentencepiece"])


def kept(tokenizer, text):
    """What comes back of a text: Metaspace takes a first space for the one that it would put there."""
    return text.removeprefix(" ") if "metaspace" in tokenizer._where else text


@quick
@given(text_strategy)
@example("a</s>b</s>")
def test_text_comes_back_and_holds_no_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == kept(tokenizer, text)
    assert not set(ids) & set(tokenizer.special.values())


@pytest.mark.parametrize("text", HOSTILE + AWKWARD)
def test_hostile_and_awkward_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == kept(tokenizer, text)
    assert not set(ids) & set(tokenizer.special.values())


@quick
@given(text_strategy)
@example("a龘 😀b")
def test_tokens_begin_as_many_characters_as_their_text_has(tokenizer, text):
    prefix = bool(text) and tokenizer._vocabulary.leading_space
    assert tokenizer.characters[tokenizer.encode(text)].sum() == len(kept(tokenizer, text)) + prefix
    assert not tokenizer.characters[list(tokenizer.special.values())].any()


@quick
@given(text_strategy)
def test_offsets_are_characters_and_belong_to_the_tokens(tokenizer, text):
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert len(spans) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    covered = {i for start, end in spans for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_every_byte_token_of_a_character_has_the_span_of_the_character(tokenizer):
    text = "a龘 😀b"
    ids, spans = tokenizer.encode_with_offsets(text)
    for character in "龘😀":
        place = (text.index(character), text.index(character) + 1)
        parts = [tokenizer.piece(i) for i, span in zip(ids, spans, strict=True) if span == place]
        assert "".join(parts) == "".join(f"<0x{byte:02X}>" for byte in character.encode())


@quick
@given(text_strategy, text_strategy)
def test_a_continued_text_decodes_to_the_whole(tokenizer, head, tail):
    ids = tokenizer.encode(head) + tokenizer.encode(tail, continues=bool(head))
    assert tokenizer.decode(ids) == kept(tokenizer, head + tail)


@quick
@given(st.data())
def test_a_stream_gives_the_decoded_text_and_never_half_a_character(tokenizer, data):
    any_ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)
    ids = data.draw(any_ids | text_strategy.map(tokenizer.encode))
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_a_stream_waits_for_the_last_byte_of_an_emoji(tokenizer):
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode("😀龘")]
    assert [piece for piece in pieces if piece] == ["😀", "龘"]
    assert len(pieces) > 2
    assert stream.flush() == ""


def test_a_stream_cut_inside_a_character_flushes_the_replacement_character(tokenizer):
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in tokenizer.encode("a😀")[:-1]) == "a"
    assert stream.flush() == codecs.decode("😀".encode()[:-1], "utf-8", "replace")


def test_control_tokens_are_reachable_by_id_and_dropped_from_text(tokenizer):
    for spelling in ("<s>", "</s>", *CONTROL):
        i = tokenizer.special[spelling]
        assert tokenizer.piece(i) == spelling
        assert tokenizer.decode([i, *tokenizer.encode("hello"), i]) == "hello"
    assert tokenizer.bos_id == tokenizer.special["<s>"]
    assert tokenizer.eos_id == tokenizer.special["</s>"]


def test_sentencepiece_ids_are_those_of_sentencepiece_itself(llama, folders):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folders["sentencepiece"] / "tokenizer.model"))
    for text in [*CORPUS, *AWKWARD, "The llama walks.", "  two spaces"]:
        if "▁" not in text:
            assert llama.encode(text) == reference.encode(text)
            assert llama.decode(llama.encode(text)) == reference.decode(reference.encode(text))


def test_huggingface_ids_are_those_of_tokenizers_itself(folders):
    for name in ("byte_level", "llama_style", "metaspace"):
        reference = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        reference.no_truncation()
        tokenizer = Tokenizer.load(folders[name])
        for text in [*CORPUS, "The llama walks.", "你好 😀"]:
            assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(tokenizer.encode(text))


def test_the_spelling_of_a_control_token_is_tokenised_like_any_other_text(folders):
    reference = tokenizers.Tokenizer.from_file(str(folders["byte_level"] / "tokenizer.json"))
    reference.no_truncation()
    reference.encode_special_tokens = True
    text = "again</s> and again"
    tokenizer = Tokenizer.load(folders["byte_level"])
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert "</" in [tokenizer.piece(i) for i in tokenizer.encode(text)]  # a piece of the vocabulary, left whole


def test_the_llama_conversion_and_sentencepiece_agree(folders):
    original, converted = Tokenizer.load(folders["sentencepiece"]), Tokenizer.load(folders["llama_style"])
    for text in [*CORPUS, "The llama walks.  你好 😀"]:
        assert original.encode(text) == converted.encode(text)


def test_vocabularies_are_the_same_where_every_id_stands_for_the_same(folders, llama, tmp_path):
    metaspace, converted = Tokenizer.load(folders["metaspace"]), Tokenizer.load(folders["llama_style"])
    assert metaspace.fingerprint != converted.fingerprint and metaspace.difference(converted) is None
    where = [folders["sentencepiece"] / "tokenizer.model", folders["llama_style"] / "tokenizer.json"]
    assert llama.difference(converted) == f"token 400 is none in {where[0]} and '<' in {where[1]}"
    assert converted.difference(llama) == f"token 400 is '<' in {where[1]} and none in {where[0]}"
    spec = json.loads((folders["byte_level"] / "tokenizer.json").read_text())
    spec["added_tokens"][3]["content"] = "<|end|>"
    spec["model"]["vocab"]["<|end|>"] = spec["model"]["vocab"].pop("<|im_end|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    found = Tokenizer.load(folders["byte_level"]).difference(Tokenizer.load(tmp_path))
    assert "token 3 is '<|im_end|>' in" in found and f"'<|end|>' in {tmp_path}" in found


def test_a_training_with_llamas_settings_has_llamas_layout(llama):
    assert (llama.unk_id, llama.bos_id, llama.eos_id) == (0, 1, 2)
    assert [llama.special[token] for token in CONTROL] == [3, 4]
    assert llama.vocab_size == 400
    assert llama.decode(range(5, 5 + 256)).startswith("\x00\x01\x02")  # the bytes come first
    digits = [llama.piece(i).strip() for i in llama.encode("12345")]
    assert [d for d in digits if d] == list("12345")
    assert max(len(llama.piece(i)) for i in range(5, 400)) <= 16
    assert "  " in [llama.piece(i) for i in range(5, 400)]  # runs of spaces are pieces
    assert [llama.piece(i) for i in llama.encode("\n", continues=True)] == ["\n"]


def test_training_twice_writes_the_same_file(tmp_path):
    files = []
    for name in ("first", "second"):
        train_sentencepiece(iter(CORPUS), vocab_size=350, output_dir=tmp_path / name)
        files.append((tmp_path / name / "tokenizer.model").read_bytes())
    assert files[0] == files[1]


def test_training_reads_long_documents_to_their_end(tmp_path):
    filler = "abc " * 5000
    tokenizer = train_sentencepiece([filler + "zyxwv " * 200], vocab_size=280, output_dir=tmp_path)
    assert any("zyxwv" in tokenizer.piece(i) for i in range(tokenizer.vocab_size))


def test_ctrl_c_while_texts_are_read_is_no_mistake_of_theirs(tmp_path):
    def texts():
        yield "a text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sentencepiece(texts(), vocab_size=300, output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_training_is_quiet(tmp_path, capfd):
    train_sentencepiece(CORPUS, vocab_size=350, output_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "texts, vocab_size, message",
    [
        (CORPUS, 100_000, r"too large for this text: give more text, or at most \d+$"),
        (CORPUS, 100, r"too small for the characters of this text: give at least \d+"),
        ([], 300, "no text"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text_is_refused(tmp_path, texts, vocab_size, message):
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, vocab_size=vocab_size, output_dir=tmp_path)


def test_saving_and_loading_keep_the_files(tokenizer, tmp_path, folders):
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    (model_file,) = (tmp_path / "copy").iterdir()
    assert copy.fingerprint == tokenizer.fingerprint == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert Tokenizer.load(model_file).encode("hello 你好") == tokenizer.encode("hello 你好")


def test_a_pickled_tokenizer_still_refuses_control_tokens(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("hello </s> ▁") == tokenizer.encode("hello </s> ▁")


def test_tokenizer_config_names_bos_eos_pad_and_template(folders, tmp_path):
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>", "special": True},
        "pad_token": "<s>",
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}],
    }
    (tmp_path / "tokenizer.json").write_bytes((folders["byte_level"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (None, False)
    assert tokenizer.eos_id == tokenizer.special["<|im_end|>"]
    assert tokenizer.pad_id == tokenizer.special["<s>"]
    assert tokenizer.chat_template == "yes"
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").chat_template == "yes"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert Tokenizer.load(tmp_path).chat_template == "newer"


def test_a_config_that_says_no_bos_is_added_keeps_its_bos(folders, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folders["byte_level"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": False}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (0, False)
    assert encode_text("hello", tokenizer).tokens.tolist() == [*tokenizer.encode("hello"), tokenizer.eos_id]


def test_an_end_token_that_the_file_does_not_mark_special_is_still_a_control_token(folders, tmp_path):
    spec = json.loads((folders["byte_level"] / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id not in tokenizer.encode("a</s>")
    assert set(tokenizer.special) == {"<s>", "</s>"}  # the others are ordinary vocabulary by their file's own word
    assert tokenizer.decode(tokenizer.encode("x<|im_end|>")) == "x<|im_end|>"


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path, folders):
    def load(name, content):
        (tmp_path / name).write_bytes(content)
        return Tokenizer.load(tmp_path / name)

    with pytest.raises(UserError, match=r"no tokenizer at .*missing"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load("tokenizer.model", b"IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match="not JSON"):
        load("tokenizer.json", b"{")
    with pytest.raises(UserError, match="no object 'model'"):
        load("tokenizer.json", b"{}")
    with pytest.raises(UserError, match="cannot be read by tokenizers"):
        load("tokenizer.json", b'{"model": {"type": "Nonsense"}}')
    with pytest.raises(UserError, match="no end-of-text token"):
        load("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match="names eos_token '<end>'"):
        load("tokenizer.json", (folders["byte_level"] / "tokenizer.json").read_bytes())


def test_half_a_character_in_text_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"character 3 of a text is the lone surrogate U\+D83D"):
        tokenizer.encode("abc\ud83d")


def test_an_id_beyond_the_vocabulary_writes_nothing_and_one_below_0_is_refused(tokenizer):
    ids = tokenizer.encode("a fox")
    assert tokenizer.decode([*ids, 10_000]) == "a fox"
    assert "".join(map(tokenizer.stream().push, [*ids, 10_000])) == "a fox"
    with pytest.raises(ValueError, match="ids begin at 0"):
        tokenizer.decode([-1])


def test_ids_that_stand_for_no_token_are_the_holes_and_the_rows_beyond(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 4, "b": 7}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.unused(12) == ((2, 4), (5, 7), (8, 12))
    assert tokenizer.unused(8) == ((2, 4), (5, 7))
    assert tokenizer.decode([4, 5, 7]) == tokenizer.decode([4, 7])


def test_tokens_without_a_decoder_are_words(tmp_path):
    vocabulary = {"[UNK]": 0, "</s>": 1, "hello": 2, "world": 3}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    assert tokenizer.eos_id not in tokenizer.encode("hello </s>")


def test_what_the_texts_raise_comes_out_of_training_as_it_is(tmp_path):
    def texts():
        yield "one good line"
        raise UserError("b.txt:7: not UTF-8")

    with pytest.raises(UserError, match=r"^b\.txt:7: not UTF-8$"):
        train_sentencepiece(texts(), vocab_size=300, output_dir=tmp_path)
