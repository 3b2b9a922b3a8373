"""New pieces for an old tokenizer: it learns another language, and every id that it has stays what it was.

`merge` goes on training byte-pair encoding where the base stopped (arXiv:2512.03989): what it counts are the tokens
that the base makes of the texts. So each new piece is made of tokens that the base really writes, and the base's own
merges go first. Chinese-LLaMA (arXiv:2304.08177) trains a second tokenizer instead and takes over its pieces; that is
`merge_tokenizer`. `split_of_new` says of which old tokens a new one is made, for the rows of a network's embedding
(`model/vocabulary.py`).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, pre_tokenizers, trainers

from ..errors import UserError
from .tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer, check_whole
from .tokenizer_sentencepiece import SPACE_SYMBOL

HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
CHINESE = HAN[:-1] + r"\u3000-\u303f\uff00-\uffef]"  # with punctuation and full-width forms

_FIRST = 0x10000  # old tokens stand as characters from here on for the trainer: no white space, no surrogates


MOST_PIECES = 2**20
"""No vocabulary is larger; the trainer of `tokenizers` asks for memory for all pieces at its start."""


class Candidate(NamedTuple):
    """A piece that may be added. `parts` are the two that merge into it, or itself where it is one character or byte.
    `saved` is how many tokens it saves in the texts."""

    parts: tuple[str, ...]
    saved: int = 0

    @property
    def piece(self) -> str:
        return "".join(self.parts)


class Symbol(NamedTuple):
    """A token of the base in a text, or a character for which it has none: how it is spelled as a piece, the characters
    of the text that it stands in, and whether a piece may begin but not go on with it."""

    spelling: str
    text: str
    begins: bool


def merge(
    base: Tokenizer,
    texts: Iterable[str],
    *,
    n_pieces: int,
    output_dir: str | epath.Path,
    characters: str | None = None,
) -> Tokenizer:
    """Adds to `base` the `n_pieces` that save the most tokens in `texts`; writes the result into `output_dir`.

    Ids from `base.vocab_size` on are new; the others, and all settings, stay. Text without any of `characters` keeps
    its tokens. (One exception: pieces of a byte-level tokenizer may be parts of characters, and a character of another
    script which the base spelled in bytes, and which has those bytes in it, may now take fewer tokens.)

    The same texts in the same order give the same file. Their words are held in memory: of a large corpus, give a
    sample.

    Args:
        base: a SentencePiece BPE, or a byte-level BPE as `tokenizer.json`.
        texts: documents of any length.
        n_pieces: how many ids to add, those among them that only serve as a part of others.
        output_dir: folder, made if need be.
        characters: a regular expression for one character, e.g. `CHINESE`. New pieces are made of such characters
            alone, whatever else the texts hold. Without it, of any.

    Raises:
        UserError: `base` is of another kind, `characters` is no regular expression, or the texts have too few pieces.
        Whatever `texts` raises.
    """
    if not 1 <= n_pieces <= MOST_PIECES:
        raise UserError(f"{n_pieces} new pieces: give 1 to {MOST_PIECES:,}")
    kind = _kind(base)
    candidates = _learn(kind, texts, n_pieces, _character_test(characters))
    return _add(kind, candidates, n_pieces, output_dir)


def merge_tokenizer(base: Tokenizer, other: Tokenizer, *, output_dir: str | epath.Path) -> Tokenizer:
    """Adds to `base` the pieces of `other` that it lacks, in their order; writes the result into `output_dir`.

    Left out are control tokens, and pieces that could never be written: in BPE a piece comes of two shorter ones, and
    where the base's merges go first, those may be gone.

    Raises:
        UserError: the two are not both SentencePiece BPE or both byte-level BPE, or nothing would be added.
    """
    kind, source = _kind(base), _kind(other)
    if type(kind) is not type(source):
        raise UserError(
            f"{base._where} and {other._where} are tokenizers of different kinds, whose pieces cannot be mixed: train "
            "new pieces on texts instead"
        )
    return _add(kind, _new(source.candidates(), kind.known), None, output_dir)


def split_of_new(base: Tokenizer, merged: Tokenizer) -> list[list[int]]:
    """For each id of `merged` that `base` lacks, in order, the base's ids for the same bytes within a text.

    Raises:
        UserError: `merged` is not `base` with ids added, or the base cannot write one of the new pieces.
    """
    old, new = base._vocabulary.pieces, merged._vocabulary.pieces
    if old != new[: len(old)]:
        i = next(i for i, piece in enumerate(old) if i >= len(new) or piece != new[i])
        raise UserError(f"{merged._where} is not {base._where} with new pieces: they differ in id {i}, {old[i]!r}")
    splits = [_split(base, merged, i) for i in range(len(old), len(new))]
    for i, split in enumerate(splits, len(old)):
        if not split:
            raise UserError(f"{base._where} cannot write {merged.piece(i)!r}, id {i} of {merged._where}")
    return splits


def characters_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """How many characters of `texts` a token stands for, on average. Raises UserError where there is no text."""
    characters = tokens = 0
    for text in texts:
        characters += len(text)
        tokens += len(tokenizer.encode(text))
    if not tokens:
        raise UserError("there is no text to count characters per token in")
    return characters / tokens


def _split(base: Tokenizer, merged: Tokenizer, i: int) -> list[int]:
    try:
        text = merged._vocabulary.token_bytes[i].decode() or merged.piece(i)  # a control token writes nothing
    except UnicodeDecodeError:  # a part of a character: text cannot hold it, but the base's merges take it
        model = base._vocabulary._tokenizer.model
        return [token.id for token in model.tokenize(merged._vocabulary.pieces[i])]
    return base.encode(text, continues=True)


# Both kinds -----------------------------------------------------------------------------------------------------------


def _kind(base: Tokenizer) -> "_ByteLevel | _SentencePiece":
    return _ByteLevel(base) if HUGGINGFACE_FILE in base._files else _SentencePiece(base)


def _character_test(characters: str | None) -> Callable[[str], bool]:
    """Whether a text is made of such characters alone."""
    if characters is None:
        return bool
    try:
        pattern = re.compile(f"(?:{characters})+")
    except re.error as error:
        raise UserError(f"characters {characters!r} is no regular expression: {error}") from None
    return lambda text: pattern.fullmatch(text) is not None


def _learn(
    kind: "_ByteLevel | _SentencePiece", texts: Iterable[str], n_pieces: int, allowed: Callable[[str], bool]
) -> list[Candidate]:
    """Characters that the base lacks, the most frequent first, then merges in the order in which they apply."""
    alphabet: dict[str, str] = {}
    words = _words(kind, texts, allowed, alphabet)
    n_merges = n_pieces + n_pieces // 10 + 100  # some will prove to be of no use
    merges, counts = _train(words, len(alphabet), n_merges, kind.longest)
    spelling = {character: symbol for symbol, character in alphabet.items()}

    def spell(symbols: str) -> str:
        return "".join(map(spelling.__getitem__, symbols))

    missing = sorted((s for s in alphabet if s not in kind.known), key=lambda s: -counts[alphabet[s]])
    # A character that has no token takes one for each of its bytes; a character seen once is as little use as a merge.
    characters = [(s, counts[alphabet[s]]) for s in missing if counts[alphabet[s]] > 1]
    candidates = [Candidate((s,), count * (len(s.encode()) - 1)) for s, count in characters]
    candidates += [Candidate((spell(left), spell(right)), counts[left + right]) for left, right in merges]
    return _new(candidates, kind.known)


def _words(
    kind: "_ByteLevel | _SentencePiece",
    texts: Iterable[str],
    allowed: Callable[[str], bool],
    alphabet: dict[str, str],
) -> Counter[str]:
    """How often each stretch of symbols occurs within which pieces may be made; a symbol stands as one character."""
    words: Counter[str] = Counter()
    for text in texts:
        word: list[str] = []
        for symbol in kind.symbols(text):
            fits = symbol is not None and allowed(symbol.text)
            if word and (not fits or symbol.begins):
                words["".join(word)] += 1
                word = []
            if fits:
                word.append(alphabet.setdefault(symbol.spelling, chr(_FIRST + len(alphabet))))
        if word:
            words["".join(word)] += 1
    return words


def _train(
    words: Counter[str], n_symbols: int, n_merges: int, longest: int
) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Byte-pair encoding: merges in order, and how often each symbol and each merge's result arises on the way."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.BpeTrainer(
        vocab_size=n_symbols + n_merges,
        min_frequency=2,
        max_token_length=longest + 1,  # the trainer's is the first length that is too long
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n".join([word] * count) for word, count in words.items()), trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for token in tokenizer.model.tokenize(word):
            counts[token.value] += count
    for left, right in reversed(merges):  # what went into a longer piece was there before
        counts[left] += counts[left + right]
        counts[right] += counts[left + right]
    return merges, counts


def _new(candidates: Iterable[Candidate], known: Iterable[str]) -> list[Candidate]:
    """The candidates that are not known and the first of their spelling."""
    seen = set(known)
    return [c for c in candidates if not (c.piece in seen or seen.add(c.piece))]


def _add(
    kind: "_ByteLevel | _SentencePiece",
    candidates: list[Candidate],
    n_pieces: int | None,
    output_dir: str | epath.Path,
) -> Tokenizer:
    """The base with the best `n_pieces` that it can write (None: with all of them), in their order.

    A piece whose parts are missing, or are taken by another merge before, would be an id that never occurs.
    """
    while True:
        if len(candidates) < (n_pieces or 0):
            raise UserError(
                f"the texts give {len(candidates):,} new pieces, not {n_pieces:,}: give more text, or ask for fewer"
            )
        if not candidates:
            raise UserError(f"{kind.base._where} has every piece already that could be added")
        best = set(sorted(candidates, key=lambda candidate: -candidate.saved)[:n_pieces])
        chosen = [candidate for candidate in candidates if candidate in best]
        unwritten = kind.unwritten(chosen)
        if not unwritten:
            break
        candidates = [candidate for candidate in candidates if candidate.piece not in unwritten]
    output_dir = epath.Path(output_dir)
    merged = Tokenizer(kind.base._files | {kind.file: kind.extended(chosen)}, str(output_dir / kind.file))
    merged.save(output_dir)
    return merged


# Byte-level BPE -------------------------------------------------------------------------------------------------------


class _ByteLevel:
    """A `tokenizer.json` whose pieces are stretches of bytes in GPT-2's spelling."""

    file = HUGGINGFACE_FILE
    longest = 48  # old tokens in a new piece: 16 characters of three bytes

    def __init__(self, base: Tokenizer):
        self.base = base
        # tokenizers itself spells out what the file leaves to defaults, and merges in either of their two forms.
        self._spec = json.loads(tokenizers.Tokenizer.from_buffer(base._files[self.file]).to_str())
        model = self._spec["model"]
        settings = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        if (
            model["type"] != "BPE"
            or any(model.get(name) for name in settings)
            or (self._spec["decoder"] or {}).get("type") != "ByteLevel"
        ):
            raise UserError(
                f"{base._where} is no byte-level BPE, the one kind of {HUGGINGFACE_FILE} that takes new pieces: where "
                f"a {SENTENCEPIECE_FILE} is published beside it, load that"
            )
        # With the added tokens: one that the model does not hold is counted behind the model's last, so that its id
        # would move as the model grows.
        vocabulary = base._vocabulary._tokenizer.get_vocab(with_added_tokens=True)
        self.known = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        self._fixed = base._vocabulary._tokenizer.get_added_tokens_decoder().keys()
        self._plain = tokenizers.Tokenizer.from_str(base._vocabulary.at("within").to_str())

    def symbols(self, text: str) -> Iterator[Symbol]:
        """The tokens of `text`. The pre-tokenizer says where pieces end; added tokens are words by themselves."""
        check_whole(text)
        if self.base._vocabulary.leading_space and not text.startswith(" "):
            text = " " + text
        encoding = self._plain.encode(text, add_special_tokens=False)
        last = None
        for piece, (start, end), word in zip(encoding.tokens, encoding.offsets, encoding.word_ids, strict=True):
            yield Symbol(piece, text[start:end], word != last)
            last = word

    def candidates(self) -> Iterator[Candidate]:
        """What this tokenizer has to offer to another: bytes, then merges in order."""
        yield from (Candidate((piece,)) for piece, i in self.known.items() if len(piece) == 1 and i not in self._fixed)
        yield from (Candidate(tuple(parts)) for parts in self._spec["model"]["merges"])

    def unwritten(self, chosen: list[Candidate]) -> set[str]:
        """The pieces that would not come of their own bytes."""
        there = set(self.known)
        homeless = set()
        for candidate in chosen:
            if len(candidate.parts) == 1 or there.issuperset(candidate.parts):
                there.add(candidate.piece)
            else:
                homeless.add(candidate.piece)
        if homeless:
            return homeless
        vocabulary, merges = self._grown(chosen)
        model = models.BPE(vocabulary, merges)
        return {c.piece for c in chosen if [token.value for token in model.tokenize(c.piece)] != [c.piece]}

    def extended(self, chosen: list[Candidate]) -> bytes:
        """The file with these pieces."""
        vocabulary, merges = self._grown(chosen)
        model = self._spec["model"] | {"vocab": vocabulary, "merges": merges}
        return json.dumps(self._spec | {"model": model}, ensure_ascii=False).encode()

    def _grown(self, chosen: list[Candidate]) -> tuple[dict[str, int], list[tuple[str, ...]]]:
        vocabulary = self.known | {c.piece: i for i, c in enumerate(chosen, self.base.vocab_size)}
        old = [tuple(parts) for parts in self._spec["model"]["merges"]]
        return vocabulary, old + [c.parts for c in chosen if len(c.parts) == 2]


# SentencePiece BPE ----------------------------------------------------------------------------------------------------

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class _SentencePiece:
    """A `tokenizer.model` of type BPE: two neighbours merge where they spell a piece, the highest score first."""

    file = SENTENCEPIECE_FILE
    longest = 16  # old pieces or characters in a new piece, as many as LLaMA's have characters

    def __init__(self, base: Tokenizer):
        self.base = base
        self._proto = sentencepiece_model_pb2.ModelProto.FromString(base._files[self.file])
        spec = self._proto.trainer_spec
        if spec.model_type != spec.BPE:
            kind = spec.ModelType.Name(spec.model_type).lower()
            raise UserError(f"{base._where} is a SentencePiece model of type {kind}: only BPE takes new pieces")
        if base.vocab_size > len(self._proto.pieces):
            spelling = base._vocabulary.pieces[-1]
            raise UserError(f"{base._where}: {spelling!r} is added behind its pieces, where new ones would go")
        self._pieces = [(piece.piece, piece.type) for piece in self._proto.pieces]
        self.known = {piece: i for i, (piece, _) in enumerate(self._pieces)}

    def symbols(self, text: str) -> Iterator[Symbol | None]:
        """The pieces of `text`, and the characters that it has none for; None for one that no piece can hold.

        As in LLaMA's training a piece has spaces at its beginning only, letters and other characters do not mix, and
        numerals stay alone. Scripts may mix.
        """
        last = ""
        for spelling in self._spellings(text):
            group = _group((spelling or "").lstrip(SPACE_SYMBOL))
            if spelling is None or group == "numeral":
                yield None
            else:
                begins = spelling.startswith(SPACE_SYMBOL) or (group != last and last != "")
                yield Symbol(spelling, spelling.replace(SPACE_SYMBOL, " "), begins)
            last = group

    def _spellings(self, text: str) -> Iterator[str | None]:
        last_span = None
        for i, span in zip(*self.base.encode_with_offsets(text), strict=True):
            piece, kind = self._pieces[i]
            if kind == _Piece.NORMAL:
                yield piece
            elif kind not in (_Piece.BYTE, _Piece.UNKNOWN):
                yield None
            elif span != last_span:  # once for all the bytes of a character
                # Line breaks and their like are bytes in LLaMA's training, and the space symbol would be a space.
                for character in text[slice(*span)]:
                    control = character.isascii() and not character.isprintable()
                    yield None if control or character == SPACE_SYMBOL else character
            last_span = span

    def candidates(self) -> Iterator[Candidate]:
        """What this tokenizer has to offer to another."""
        return (Candidate((piece,)) for piece, kind in self._pieces if kind == _Piece.NORMAL)

    def unwritten(self, chosen: list[Candidate]) -> set[str]:
        """The pieces that would not come of their own text."""
        vocabulary = type(self.base._vocabulary)(self.extended(chosen), self.base._where)
        texts = [candidate.piece.replace(SPACE_SYMBOL, " ") for candidate in chosen]
        ids = enumerate(texts, self.base.vocab_size)
        return {chosen[i - self.base.vocab_size].piece for i, text in ids if vocabulary.encode(text, "within") != [i]}

    def extended(self, chosen: list[Candidate]) -> bytes:
        """The file with these pieces. Their scores are below all others, so that old merges go first."""
        proto = sentencepiece_model_pb2.ModelProto()
        proto.CopyFrom(self._proto)
        lowest = min(piece.score for piece in proto.pieces)
        for rank, candidate in enumerate(chosen, 1):
            proto.pieces.add(piece=candidate.piece, score=lowest - rank, type=_Piece.NORMAL)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return proto.SerializeToString(deterministic=True)


def _group(text: str) -> str:
    """What a text begins with: a letter (or a mark on one), a numeral, something else; nothing where it is empty."""
    if not text:
        return ""
    return {"L": "letter", "M": "letter", "N": "numeral"}.get(unicodedata.category(text[0])[0], "other")
