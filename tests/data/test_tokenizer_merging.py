"""A tokenizer that learns Chinese: old ids and English stay, new pieces are really written, every text comes back."""

import itertools
import json
import random
import re

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_merging import CHINESE, HAN, characters_per_token, merge, merge_tokenizer, split_of_new
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CONTROL = ["<|im_start|>", "<|im_end|>"]
HOSTILE = [
    "</s>",
    "<s>",
    "<unk>",
    "<|im_end|>",
    "<0x0A>",
    "▁",
    "▁你▁好",
    "龘",
    "😀",
    " 你好",
    "a你b 好\n",
    "x\t\n  y",
    "",
]
N_PIECES = 120


def _sentences(words, n, seed, space=""):
    rng = random.Random(seed)
    return [space.join(rng.choices(words.split(), k=rng.randint(4, 9))) for _ in range(n)]


def _chinese(n, seed):
    words = "早上 晚上 我们 他们 你们 喜欢 看见 高山 河流 城市 学校 朋友 老师 今天 明天 昨天 天气 很好 不错 房间 酒店"
    return [f"{a}，{b}。" for a, b in zip(_sentences(words, n, seed), _sentences(words, n, seed + 1), strict=True)]


ENGLISH = _sentences("the llama walks over high hills and it's never, ever late again: 12345 times", 150, 1, " ")
GERMAN = _sentences("die Straße führt über grüne Hügel 1999 bis 2000 zurück! schön, oder?", 150, 6, " ")
CHINESE_TEXTS, HELD_OUT = _chinese(300, 2), _chinese(40, 4)
MIXED = [f"{english}\n{chinese}" for english, chinese in zip(ENGLISH, CHINESE_TEXTS, strict=False)]

plain_text = st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cs"]), max_size=30)
any_text = st.text(max_size=30) | st.lists(st.sampled_from([*HOSTILE, *HELD_OUT[:5]]), max_size=5).map("".join)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def byte_level(texts, vocab_size, control, **model):
    tokenizer = tokenizers.Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_byte_level(directory):
    """Like SmolLM2's: control tokens come first and are in the model's vocabulary."""
    byte_level(ENGLISH, 350, ["<s>", "</s>", *CONTROL]).save(str(directory / "tokenizer.json"))


def save_llama3_style(directory):
    """Like Llama 3's: control tokens come last, with a hole before the last, and the model does not hold them."""
    tokenizer = byte_level([*ENGLISH, "ignore"], 350, [], ignore_merges=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(["<s>", "</s>", *CONTROL])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("sentencepiece", "byte_level", "llama3_style")}
    train_sentencepiece(ENGLISH, vocab_size=340, output_dir=folders["sentencepiece"], special_tokens=CONTROL)
    save_byte_level(folders["byte_level"])
    save_llama3_style(folders["llama3_style"])
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def all_merged(bases, tmp_path_factory):
    def one(name):
        return merge(
            bases[name],
            iter(MIXED + CHINESE_TEXTS),
            n_pieces=N_PIECES,
            output_dir=tmp_path_factory.mktemp(f"{name}_merged"),
            characters=CHINESE,
        )

    return {name: one(name) for name in bases}


@pytest.fixture(params=["sentencepiece", "byte_level", "llama3_style"])
def name(request):
    return request.param


@pytest.fixture
def base(bases, name):
    return bases[name]


@pytest.fixture
def merged(all_merged, name):
    return all_merged[name]


def new_pieces(base, merged):
    return [merged.piece(i) for i in range(base.vocab_size, merged.vocab_size)]


def test_new_ids_follow_the_old_ones_which_stay_as_they_are(base, merged):
    assert merged.vocab_size == base.vocab_size + N_PIECES
    assert [merged.piece(i) for i in range(base.vocab_size)] == [base.piece(i) for i in range(base.vocab_size)]
    assert merged.special == base.special
    assert {"<s>", "</s>", *CONTROL} <= set(merged.special)
    assert (merged.bos_id, merged.eos_id, merged.pad_id) == (base.bos_id, base.eos_id, base.pad_id)
    assert merged.chat_template == base.chat_template
    assert merged.fingerprint != base.fingerprint
    pieces = new_pieces(base, merged)
    assert len(set(pieces)) == N_PIECES and "" not in pieces


def test_the_result_lies_in_its_folder(base, merged, name, tmp_path):
    merged.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.fingerprint == merged.fingerprint
    assert [copy.encode(text) for text in HELD_OUT] == [merged.encode(text) for text in HELD_OUT]
    again = merge(base, MIXED + CHINESE_TEXTS, n_pieces=N_PIECES, output_dir=tmp_path / "again", characters=CHINESE)
    assert again.fingerprint == merged.fingerprint, "the same texts give the same file"
    assert Tokenizer.load(tmp_path / "again").fingerprint == merged.fingerprint
    assert Tokenizer.load(tmp_path / "again").chat_template == base.chat_template


def test_settings_stay(bases, all_merged):
    old, new = (json.loads(t["llama3_style"]._files["tokenizer.json"]) for t in (bases, all_merged))
    assert new["model"]["ignore_merges"] is True
    for spec in (old, new):
        del spec["model"]["vocab"], spec["model"]["merges"]
    assert new == old
    old, new = (
        sentencepiece_model_pb2.ModelProto.FromString(t["sentencepiece"]._files["tokenizer.model"])
        for t in (bases, all_merged)
    )
    assert new.normalizer_spec == old.normalizer_spec
    assert new.trainer_spec.vocab_size == len(new.pieces)
    assert list(new.pieces[: len(old.pieces)]) == list(old.pieces), "control, byte and other pieces with their scores"
    assert max(piece.score for piece in new.pieces[len(old.pieces) :]) < min(piece.score for piece in old.pieces)


def test_chinese_takes_fewer_tokens(base, merged):
    before, after = characters_per_token(base, HELD_OUT), characters_per_token(merged, HELD_OUT)
    assert before < 0.4
    assert after > 1.5  # the words of the texts have two characters each
    assert before == sum(map(len, HELD_OUT)) / sum(len(base.encode(text)) for text in HELD_OUT)


@quick
@given(plain_text)
def test_text_without_chinese_has_the_tokens_that_it_had(base, merged, text):
    assert merged.encode(text) == base.encode(text)


def test_english_beside_chinese_has_the_tokens_that_it_had(base, merged):
    for text in [*ENGLISH, *GERMAN]:
        assert merged.encode(text) == base.encode(text)
    head, tail = base.encode("the llama "), base.encode(" walks", continues=True)
    ids = merged.encode("the llama 我们 walks")
    assert ids[: len(head)] == head and ids[-len(tail) :] == tail


@quick
@given(any_text)
def test_every_text_comes_back_without_control_tokens(merged, text):
    ids = merged.encode(text)
    assert merged.decode(ids) == text
    assert not set(ids) & set(merged.special.values())


def test_new_pieces_are_made_of_the_given_characters_alone(base, merged):
    whole = [piece for piece in new_pieces(base, merged) if not piece.startswith("<0x")]
    assert len(whole) > N_PIECES / 2
    assert all(re.fullmatch(f"{CHINESE}+", piece) for piece in whole)
    assert any(len(piece) > 1 for piece in whole)
    parts = {piece for piece in new_pieces(base, merged) if piece.startswith("<0x")}
    chinese = "".join(CHINESE_TEXTS).encode()
    assert all(bytes.fromhex(re.sub("[<>]|0x", "", part)) in chinese for part in parts)


def test_every_new_piece_is_written_for_its_own_text_and_serves_in_the_texts(base, merged):
    new = range(base.vocab_size, merged.vocab_size)
    written = {i for text in CHINESE_TEXTS for i in merged.encode(text)}
    spelled = [merged._vocabulary.token_bytes[i] for i in written]
    for i in new:
        piece = merged.piece(i)
        if not piece.startswith("<0x"):
            assert merged.encode(piece, continues=True) == [i]
        assert any(merged._vocabulary.token_bytes[i] in longer for longer in spelled)
    assert len(written & set(new)) > 0.3 * N_PIECES  # most characters of these texts occur in a single word


def test_a_split_spells_its_piece_in_old_tokens(base, merged):
    splits = split_of_new(base, merged)
    assert len(splits) == N_PIECES
    for i, split in enumerate(splits, base.vocab_size):
        assert b"".join(base._vocabulary.token_bytes[part] for part in split) == merged._vocabulary.token_bytes[i]
        piece = merged.piece(i)
        if not piece.startswith("<0x"):
            assert split == base.encode("a" + piece)[len(base.encode("a")) :], "as within a text"
    assert max(map(len, splits)) > 3 and min(map(len, splits)) > 1


def test_parts_of_characters_are_split_into_the_tokens_of_their_bytes(bases, all_merged):
    splits = split_of_new(bases["byte_level"], all_merged["byte_level"])
    parts = [i for i, piece in enumerate(new_pieces(bases["byte_level"], all_merged["byte_level"])) if "<0x" in piece]
    assert parts
    assert all(len(bases["byte_level"]._vocabulary.token_bytes[i]) == 1 for part in parts for i in splits[part])


def test_a_piece_with_a_space_in_front_is_split_without_a_second_one(bases, tmp_path):
    texts = [" ".join(text[k : k + 2] for k in range(0, len(text), 2)) for text in _chinese(200, 7)]
    for name in ("sentencepiece", "byte_level"):
        base = bases[name]
        merged = merge(base, texts, n_pieces=N_PIECES, output_dir=tmp_path / name)
        spaced = [i for i in range(base.vocab_size, merged.vocab_size) if merged.piece(i).startswith(" ")]
        assert spaced
        splits = split_of_new(base, merged)
        for i in spaced:
            spelled = b"".join(base._vocabulary.token_bytes[part] for part in splits[i - base.vocab_size])
            assert spelled == merged._vocabulary.token_bytes[i]


def test_the_pieces_are_those_that_save_the_most_tokens(bases, tmp_path):
    """Of 甲 and 乙 (9 times), 丙 and 丁 (5) and 戊 (3): a character saves two byte tokens, a pair one token.

    What occurs once is not learnt.
    """
    texts = ["甲乙"] * 9 + ["丙丁"] * 5 + ["戊"] * 3 + ["己", "庚辛"]

    def pieces(n):
        merged = merge(bases["sentencepiece"], texts, n_pieces=n, output_dir=tmp_path / str(n), characters=HAN)
        return new_pieces(bases["sentencepiece"], merged)

    assert pieces(4) == ["甲", "乙", "丙", "丁"]  # 18, 18, 10, 10
    assert pieces(5) == ["甲", "乙", "丙", "丁", "甲乙"]  # 9
    assert pieces(6) == ["甲", "乙", "丙", "丁", "戊", "甲乙"]  # 6
    assert pieces(7) == ["甲", "乙", "丙", "丁", "戊", "甲乙", "丙丁"]  # 5
    with pytest.raises(UserError, match="the texts give 7 new pieces, not 8: give more text, or ask for fewer"):
        pieces(8)


def test_merges_are_those_of_a_naive_trainer(bases, tmp_path):
    """Byte-pair encoding that counts all pairs anew for each merge."""
    texts = ["啊吧"] * 40 + ["啊吧次"] * 23 + ["的额"] * 11 + ["额飞"] * 4
    merged = merge(bases["byte_level"], texts, n_pieces=9, output_dir=tmp_path, characters=HAN)
    old = json.loads(bases["byte_level"]._files["tokenizer.json"])["model"]["merges"]
    new = json.loads(merged._files["tokenizer.json"])["model"]["merges"][len(old) :]
    pieces = bases["byte_level"]._vocabulary.pieces
    rows = [[pieces[i] for i in bases["byte_level"].encode(text)] for text in texts]
    for left, right in new:
        counts = {}
        for row in rows:
            for pair in itertools.pairwise(row):
                counts[pair] = counts.get(pair, 0) + 1
        assert counts[left, right] == max(counts.values())
        rows = [list(_merged(row, left, right)) for row in rows]
    assert len(new) == 9
    ids = {piece: i for i, piece in enumerate(merged._vocabulary.pieces)}
    assert [merged.encode(text) for text in texts] == [[ids[piece] for piece in row] for row in rows]


def _merged(row, left, right):
    k = 0
    while k < len(row):
        joined = row[k : k + 2] == [left, right]
        yield left + right if joined else row[k]
        k += 2 if joined else 1


def test_without_a_choice_of_characters_pieces_keep_to_llamas_rules(bases, tmp_path):
    base = bases["sentencepiece"]
    texts = [f"{text}\n{text}\t▁über天气" for text in GERMAN]
    merged = merge(base, texts, n_pieces=40, output_dir=tmp_path)
    pieces = new_pieces(base, merged)
    for piece in pieces:
        assert re.fullmatch(r" *([^\W\d_]+|[^\w\s]+)", piece), "spaces in front, no numerals, letters by themselves"
    assert " Straße" in pieces
    assert len(merged.encode("die Straße führt zurück!")) < len(base.encode("die Straße führt zurück!"))
    assert merged.decode(merged.encode("über\n▁ \tgrüne")) == "über\n▁ \tgrüne"


def test_line_breaks_and_space_symbols_in_the_texts_are_in_no_piece(bases, tmp_path):
    texts = ["▁高山\n\n高山\t\t"] * 5
    merged = merge(bases["sentencepiece"], texts, n_pieces=3, output_dir=tmp_path)
    assert new_pieces(bases["sentencepiece"], merged) == ["高", "山", "高山"]
    with pytest.raises(UserError, match="the texts give 3 new pieces, not 4"):
        merge(bases["sentencepiece"], texts, n_pieces=4, output_dir=tmp_path)


def test_a_piece_has_at_most_16_characters(bases, tmp_path):
    merged = merge(bases["sentencepiece"], ["哈" * 64] * 9, n_pieces=5, output_dir=tmp_path)
    assert [len(piece) for piece in new_pieces(bases["sentencepiece"], merged)] == [1, 2, 4, 8, 16]
    with pytest.raises(UserError, match="the texts give 5 new pieces, not 6"):
        merge(bases["sentencepiece"], ["哈" * 64] * 9, n_pieces=6, output_dir=tmp_path)


def test_a_control_token_that_the_merges_can_spell_is_in_no_piece(tmp_path):
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    pieces = ["a", "b", "<", "/", "s", ">", *("".join(parts) for parts in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    base = Tokenizer.load(tmp_path)
    merged = merge(base, ["aba</s>bb"] * 9, n_pieces=3, output_dir=tmp_path / "merged")
    assert sorted(new_pieces(base, merged)) == ["ab", "aba", "bb"]


def test_byte_level_pieces_keep_to_the_bases_own_cuts(bases, tmp_path):
    base = bases["llama3_style"]
    merged = merge(base, GERMAN, n_pieces=40, output_dir=tmp_path)
    cut = base._vocabulary._tokenizer.pre_tokenizer.pre_tokenize_str
    pieces = [piece for piece in new_pieces(base, merged) if not piece.startswith("<0x")]
    assert " Straße" in pieces
    assert all(len(cut(piece)) == 1 for piece in pieces)


def test_another_sentencepieces_pieces_join_in_their_order(bases, tmp_path):
    base = bases["sentencepiece"]
    other = train_sentencepiece(CHINESE_TEXTS + ENGLISH, vocab_size=420, output_dir=tmp_path / "other")
    proto = sentencepiece_model_pb2.ModelProto.FromString(other._files["tokenizer.model"])
    proto.pieces.add(piece="天气高山", score=-1000, type=1)  # its halves are there, but are they neighbours?
    proto.pieces.add(piece="天x气y", score=-1001, type=1)  # no halves
    proto.trainer_spec.vocab_size = len(proto.pieces)
    other = Tokenizer({"tokenizer.model": proto.SerializeToString()}, "other")
    merged = merge_tokenizer(base, other, output_dir=tmp_path / "merged")
    added = merged._vocabulary.pieces[base.vocab_size :]
    expected = [p.piece for p in proto.pieces if p.type == 1 and p.piece not in base._vocabulary.pieces]
    assert added == [piece for piece in expected if piece != "天x气y"]
    assert merged.special == base.special
    for i in range(base.vocab_size, merged.vocab_size):
        assert merged.encode(merged.piece(i), continues=True) == [i]
    assert characters_per_token(merged, HELD_OUT) > 1.3
    with pytest.raises(UserError, match="already has every piece that could be added"):
        merge_tokenizer(merged, base, output_dir=tmp_path)


def test_merges_that_the_bases_own_forestall_are_left_out(tmp_path):
    """After the base's b+c, another tokenizer's a+b never happens in abc, so its ab+c would be an id without a text."""

    def tokenizer(name, pieces, merges, added=()):
        pieces = ["</s>", *pieces, *("".join(parts) for parts in merges)]
        tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(list(added))
        tokenizer.save(str(tmp_path / name))
        return Tokenizer.load(tmp_path / name)

    base = tokenizer("base.json", "abc", [("b", "c")])
    of_dd = ("dd", "a")  # nothing makes dd
    merges = [("a", "b"), ("ab", "c"), ("abc", "d"), of_dd, ("b", "c"), ("c", "d"), ("bc", "d")]
    other = tokenizer("other.json", [*"abcd", "dd"], merges, added=["☃"])
    merged = merge_tokenizer(base, other, output_dir=tmp_path / "merged")
    assert new_pieces(base, merged) == ["d", "ab", "cd", "bcd"]  # abcd was to be made of abc
    assert merged.encode("abc") == base.encode("abc")
    assert [merged.piece(i) for i in merged.encode("abdbcd")] == ["ab", "d", "bcd"]


def test_kinds_that_take_no_pieces_are_refused(bases, tmp_path):
    def refused(folder, message, **changes):
        with pytest.raises(UserError, match=message):
            merge(Tokenizer.load(folder), CHINESE_TEXTS, n_pieces=5, output_dir=tmp_path / "never")

    for kind in (
        models.WordPiece({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"),
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0),
        models.BPE({"<unk>": 0, "</s>": 1, "a": 2}, [], unk_token="<unk>", byte_fallback=True),
    ):
        tokenizers.Tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
        refused(tmp_path / "tokenizer.json", r"tokenizer\.json is not a byte-level BPE.*tokenizer\.model")
    proto = sentencepiece_model_pb2.ModelProto.FromString(bases["sentencepiece"]._files["tokenizer.model"])
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    refused(tmp_path / "tokenizer.model", "of type unigram: give one of type bpe")
    with pytest.raises(UserError, match="different kinds"):
        merge_tokenizer(bases["sentencepiece"], bases["byte_level"], output_dir=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_merged_is_told_in_one_line(bases, all_merged, tmp_path):
    base = bases["byte_level"]

    def texts():
        yield "一行"
        raise UserError("b.txt:7: not UTF-8")

    for arguments, message in [
        (dict(texts=CHINESE_TEXTS, n_pieces=0), "the number of new pieces is 0: give 1 to 1,048,576"),
        (dict(texts=CHINESE_TEXTS, n_pieces=2**31), "the number of new pieces is 2147483648: give 1 to 1,048,576"),
        (dict(texts=CHINESE_TEXTS, n_pieces=5, characters="[a"), r"'\[a' is not a regular expression"),
        (dict(texts=[], n_pieces=5), "the texts give 0 new pieces, not 5"),
        (dict(texts=ENGLISH, n_pieces=5, characters=CHINESE), "the texts give 0 new pieces, not 5"),
        (dict(texts=["ab\ud83d"], n_pieces=5), "lone surrogate"),
        (dict(texts=texts(), n_pieces=5), r"^b\.txt:7: not UTF-8$"),
    ]:
        with pytest.raises(UserError, match=message):
            merge(base, output_dir=tmp_path / "never", **arguments)
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match=r"is not .* with new pieces: they differ in id 0"):
        split_of_new(base, all_merged["sentencepiece"])
    with pytest.raises(UserError, match=r"differ in id \d+"):
        split_of_new(all_merged["byte_level"], base)
    with pytest.raises(UserError, match="no text"):
        characters_per_token(base, [""])
