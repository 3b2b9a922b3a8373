"""Adds pieces to a tokenizer, for another language say, without changing any of its ids.

`merge` continues byte-pair encoding where the base tokenizer stopped (arXiv:2512.03989): it counts the tokens that the
base makes of the texts. So each new piece is made of tokens that the base really writes, and the base's own merges are
applied first. Chinese-LLaMA (arXiv:2304.08177) trains a second tokenizer instead and adds its pieces: that is
`merge_tokenizer`. `split_of_new` gives the old tokens that each new one is made of, for the rows of a network's
embedding (`model/vocabulary.py`).
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
from .tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer, check_surrogates
from .tokenizer_sentencepiece import SPACE_SYMBOL

HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
CHINESE = HAN[:-1] + r"\u3000-\u303f\uff00-\uffef]"  # Han characters, punctuation and full-width forms

_FIRST = 0x10000  # for the trainer, old tokens are characters from here on: no white space, no surrogates


MOST_PIECES = 2**20
"""The most pieces to add. The trainer of `tokenizers` allocates memory for all pieces when it starts."""


class Candidate(NamedTuple):
    """A piece that may be added."""

    parts: tuple[str, ...]  # the two pieces that merge into it, or itself if it is one character or byte
    saved: int = 0  # number of tokens that it saves in the texts

    @property
    def piece(self) -> str:
        """The spelling of the piece."""
        return "".join(self.parts)


class Symbol(NamedTuple):
    """A token of the base in a text, or a character for which the base has no token."""

    spelling: str  # as a piece
    text: str  # the characters of the text that it covers
    begins: bool  # whether a new piece may only begin with it, not continue with it


def merge(
    base: Tokenizer,
    texts: Iterable[str],
    *,
    n_pieces: int,
    output_dir: str | epath.Path,
    characters: str | None = None,
) -> Tokenizer:
    """Adds to `base` the `n_pieces` pieces that save the most tokens in the texts, and writes the result.

    New ids begin at `base.vocab_size`; old ids and all settings stay. Text without any of `characters` keeps its
    tokens. (One exception: pieces of a byte-level tokenizer may be parts of characters. A character of another script
    that the base spells in bytes may then take fewer tokens.)

    The same texts in the same order give the same file. Their words are held in memory: of a large corpus, give a
    sample.

    Args:
        base: a SentencePiece BPE, or a byte-level BPE as `tokenizer.json`.
        texts: documents of any length.
        n_pieces: number of ids to add, including those that only serve as a part of others.
        output_dir: folder for the files of the result; it is created.
        characters: a regular expression for one character, e.g. `CHINESE`; new pieces hold only such characters. None
            allows all characters.

    Returns:
        The merged tokenizer.

    Raises:
        UserError: `base` is of another kind, `characters` is not a regular expression, or the texts have too few
            pieces.
        Exception: any error that `texts` raises.
    """
    if not 1 <= n_pieces <= MOST_PIECES:
        raise UserError(f"the number of new pieces is {n_pieces}: give 1 to {MOST_PIECES:,}")
    kind = _kind(base)
    candidates = _learn(kind, texts, n_pieces, _character_test(characters))
    return _add(kind, candidates, n_pieces, output_dir)


def merge_tokenizer(base: Tokenizer, other: Tokenizer, *, output_dir: str | epath.Path) -> Tokenizer:
    """Adds to `base` the pieces of `other` that it lacks, in their order, and writes the result.

    Control tokens are left out, and so are pieces that would never be written: in BPE a piece is made from two shorter
    ones, which the base's own merges may have used up.

    Args:
        base: a SentencePiece BPE, or a byte-level BPE as `tokenizer.json`.
        other: a tokenizer of the same kind.
        output_dir: folder for the files of the result; it is created.

    Returns:
        The merged tokenizer.

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
    """For each id of `merged` that `base` lacks, in order, the ids of `base` for the same bytes within a text.

    Raises:
        UserError: `merged` is not `base` with ids added, or `base` cannot write one of the new pieces.
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
    """The mean number of characters of `texts` per token. Raises UserError if there is no text."""
    characters = tokens = 0
    for text in texts:
        characters += len(text)
        tokens += len(tokenizer.encode(text))
    if not tokens:
        raise UserError("there is no text to count tokens in: give a source with text")
    return characters / tokens


def _split(base: Tokenizer, merged: Tokenizer, i: int) -> list[int]:
    """The ids of `base` for the text of token `i` of `merged`; [] if it cannot be written."""
    try:
        text = merged._vocabulary.token_bytes[i].decode() or merged.piece(i)  # a control token has no bytes
    except UnicodeDecodeError:  # a part of a character, to which the base's merges can be applied directly
        model = base._vocabulary._tokenizer.model
        return [token.id for token in model.tokenize(merged._vocabulary.pieces[i])]
    return base.encode(text, continues=True)


# Both kinds of tokenizers---------------------------------------------------------------------------------------------


def _kind(base: Tokenizer) -> "_ByteLevel | _SentencePiece":
    """The operations of `merge` for the kind of tokenizer that `base` is. Raises UserError for any other kind."""
    return _ByteLevel(base) if HUGGINGFACE_FILE in base._files else _SentencePiece(base)


def _character_test(characters: str | None) -> Callable[[str], bool]:
    """A function that tells whether a text consists of characters that `characters` matches."""
    if characters is None:
        return bool
    try:
        pattern = re.compile(f"(?:{characters})+")
    except re.error as error:
        raise UserError(f"characters {characters!r} is not a regular expression: {error}") from None
    return lambda text: pattern.fullmatch(text) is not None


def _learn(
    kind: "_ByteLevel | _SentencePiece", texts: Iterable[str], n_pieces: int, allowed: Callable[[str], bool]
) -> list[Candidate]:
    """Candidates from texts: characters that the base lacks, the most frequent first, then merges in order.

    Args:
        kind: the operations for the base tokenizer.
        texts: documents.
        n_pieces: number of pieces wanted.
        allowed: whether a text consists of allowed characters.
    """
    alphabet: dict[str, str] = {}
    words = _words(kind, texts, allowed, alphabet)
    n_merges = n_pieces + n_pieces // 10 + 100  # more than wanted, since some turn out to be useless
    merges, counts = _train(words, len(alphabet), n_merges, kind.longest)
    spelling = {character: symbol for symbol, character in alphabet.items()}

    def spell(symbols: str) -> str:
        return "".join(map(spelling.__getitem__, symbols))

    missing = sorted((s for s in alphabet if s not in kind.known), key=lambda s: -counts[alphabet[s]])
    # A character without a token takes one token for each byte. A character seen once is useless, like such a merge.
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
    """How often each word occurs: a run of symbols inside which pieces may be made, with one character per symbol.

    Args:
        kind: the operations for the base tokenizer.
        texts: documents.
        allowed: whether a text consists of allowed characters.
        alphabet: filled with the character that stands for each symbol, by its spelling.
    """
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
    """Trains byte-pair encoding on words.

    Args:
        words: how often each word occurs.
        n_symbols: number of different symbols.
        n_merges: number of merges to learn.
        longest: the most symbols in a piece.

    Returns:
        The merges in order, and how often each symbol and each result of a merge occurs, also inside longer pieces.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.BpeTrainer(
        vocab_size=n_symbols + n_merges,
        min_frequency=2,
        max_token_length=longest + 1,  # for the trainer it is the first length that is too long
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n".join([word] * count) for word, count in words.items()), trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for token in tokenizer.model.tokenize(word):
            counts[token.value] += count
    for left, right in reversed(merges):  # parts of longer pieces count too
        counts[left] += counts[left + right]
        counts[right] += counts[left + right]
    return merges, counts


def _new(candidates: Iterable[Candidate], known: Iterable[str]) -> list[Candidate]:
    """The candidates whose piece is not in `known`, without repetitions."""
    seen = set(known)
    return [c for c in candidates if not (c.piece in seen or seen.add(c.piece))]


def _add(
    kind: "_ByteLevel | _SentencePiece",
    candidates: list[Candidate],
    n_pieces: int | None,
    output_dir: str | epath.Path,
) -> Tokenizer:
    """Writes the base with the best candidates that it can write, in their order.

    A piece is left out if a part of it is missing, or is always taken by an earlier merge: its id would never occur.

    Args:
        kind: the operations for the base tokenizer.
        candidates: the pieces to choose from.
        n_pieces: number of pieces to add; None adds all.
        output_dir: folder for the files of the result.
    """
    while True:
        if len(candidates) < (n_pieces or 0):
            raise UserError(
                f"the texts give {len(candidates):,} new pieces, not {n_pieces:,}: give more text, or ask for fewer"
            )
        if not candidates:
            raise UserError(
                f"{kind.base._where} already has every piece that could be added: give other texts or another tokenizer"
            )
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
    """Operations of `merge` for a byte-level BPE: a `tokenizer.json` with pieces in GPT-2's spelling of bytes."""

    file = HUGGINGFACE_FILE
    longest = 48  # the most old tokens in a new piece: 16 characters of three bytes

    def __init__(self, base: Tokenizer):
        self.base = base
        # tokenizers writes out all defaults, and merges always in the same form.
        self._spec = json.loads(tokenizers.Tokenizer.from_buffer(base._files[self.file]).to_str())
        model = self._spec["model"]
        settings = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        if (
            model["type"] != "BPE"
            or any(model.get(name) for name in settings)
            or (self._spec["decoder"] or {}).get("type") != "ByteLevel"
        ):
            raise UserError(
                f"{base._where} is not a byte-level BPE, the only {HUGGINGFACE_FILE} that takes new pieces: load the "
                f"{SENTENCEPIECE_FILE} beside it if there is one"
            )
        # Added tokens are included: otherwise the id of one that is not in the model would move as the model grows.
        vocabulary = base._vocabulary._tokenizer.get_vocab(with_added_tokens=True)
        self.known = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        self._fixed = base._vocabulary._tokenizer.get_added_tokens_decoder().keys()
        self._plain = tokenizers.Tokenizer.from_str(base._vocabulary.at("within").to_str())

    def symbols(self, text: str) -> Iterator[Symbol]:
        """The tokens of `text`. Pieces end where the pre-tokenizer cuts; an added token is a word by itself."""
        check_surrogates(text)
        if self.base._vocabulary.leading_space and not text.startswith(" "):
            text = " " + text
        encoding = self._plain.encode(text, add_special_tokens=False)
        last = None
        for piece, (start, end), word in zip(encoding.tokens, encoding.offsets, encoding.word_ids, strict=True):
            yield Symbol(piece, text[start:end], word != last)
            last = word

    def candidates(self) -> Iterator[Candidate]:
        """The pieces that this tokenizer offers to another: bytes, then merges in order."""
        yield from (Candidate((piece,)) for piece, i in self.known.items() if len(piece) == 1 and i not in self._fixed)
        yield from (Candidate(tuple(parts)) for parts in self._spec["model"]["merges"])

    def unwritten(self, chosen: list[Candidate]) -> set[str]:
        """The pieces that would not be made from their own bytes."""
        reachable = set(self.known)
        unreachable = set()
        for candidate in chosen:
            if len(candidate.parts) == 1 or reachable.issuperset(candidate.parts):
                reachable.add(candidate.piece)
            else:
                unreachable.add(candidate.piece)
        if unreachable:
            return unreachable
        vocabulary, merges = self._grown(chosen)
        model = models.BPE(vocabulary, merges)
        return {c.piece for c in chosen if [token.value for token in model.tokenize(c.piece)] != [c.piece]}

    def extended(self, chosen: list[Candidate]) -> bytes:
        """The tokenizer.json with the chosen pieces added."""
        vocabulary, merges = self._grown(chosen)
        model = self._spec["model"] | {"vocab": vocabulary, "merges": merges}
        return json.dumps(self._spec | {"model": model}, ensure_ascii=False).encode()

    def _grown(self, chosen: list[Candidate]) -> tuple[dict[str, int], list[tuple[str, ...]]]:
        """The vocabulary and the merges with the chosen pieces added."""
        vocabulary = self.known | {c.piece: i for i, c in enumerate(chosen, self.base.vocab_size)}
        old = [tuple(parts) for parts in self._spec["model"]["merges"]]
        return vocabulary, old + [c.parts for c in chosen if len(c.parts) == 2]


# SentencePiece BPE ----------------------------------------------------------------------------------------------------

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class _SentencePiece:
    """Operations of `merge` for a SentencePiece BPE: neighbours that spell a piece merge, the highest score first."""

    file = SENTENCEPIECE_FILE
    longest = 16  # the most old pieces or characters in a new piece; LLaMA's pieces have up to 16 characters

    def __init__(self, base: Tokenizer):
        self.base = base
        self._proto = sentencepiece_model_pb2.ModelProto.FromString(base._files[self.file])
        spec = self._proto.trainer_spec
        if spec.model_type != spec.BPE:
            kind = spec.ModelType.Name(spec.model_type).lower()
            raise UserError(f"{base._where} is a SentencePiece model of type {kind}: give one of type bpe")
        if base.vocab_size > len(self._proto.pieces):
            spelling = base._vocabulary.pieces[-1]
            raise UserError(
                f"{base._where}: the added token {spelling!r} has the id that a new piece would get: remove it"
            )
        self._pieces = [(piece.piece, piece.type) for piece in self._proto.pieces]
        self.known = {piece: i for i, (piece, _) in enumerate(self._pieces)}

    def symbols(self, text: str) -> Iterator[Symbol | None]:
        """The pieces of `text`, and the characters without a piece; None for a character that no new piece may hold.

        As in LLaMA's training, a piece has spaces at its beginning only, letters and other characters do not mix, and
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
        """The spelling of each symbol of `text`, or None."""
        last_span = None
        for i, span in zip(*self.base.encode_with_offsets(text), strict=True):
            piece, kind = self._pieces[i]
            if kind == _Piece.NORMAL:
                yield piece
            elif kind not in (_Piece.BYTE, _Piece.UNKNOWN):
                yield None
            elif span != last_span:  # once for all bytes of a character
                # As in LLaMA's training, control characters stay bytes; the space symbol would become a space.
                for character in text[slice(*span)]:
                    control = character.isascii() and not character.isprintable()
                    yield None if control or character == SPACE_SYMBOL else character
            last_span = span

    def candidates(self) -> Iterator[Candidate]:
        """The pieces that this tokenizer offers to another."""
        return (Candidate((piece,)) for piece, kind in self._pieces if kind == _Piece.NORMAL)

    def unwritten(self, chosen: list[Candidate]) -> set[str]:
        """The pieces that would not be made from their own text."""
        vocabulary = type(self.base._vocabulary)(self.extended(chosen), self.base._where)
        texts = [candidate.piece.replace(SPACE_SYMBOL, " ") for candidate in chosen]
        ids = enumerate(texts, self.base.vocab_size)
        return {chosen[i - self.base.vocab_size].piece for i, text in ids if vocabulary.encode(text, "within") != [i]}

    def extended(self, chosen: list[Candidate]) -> bytes:
        """The model file with the chosen pieces added. Their scores are below all others: old merges come first."""
        proto = sentencepiece_model_pb2.ModelProto()
        proto.CopyFrom(self._proto)
        lowest = min(piece.score for piece in proto.pieces)
        for rank, candidate in enumerate(chosen, 1):
            proto.pieces.add(piece=candidate.piece, score=lowest - rank, type=_Piece.NORMAL)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return proto.SerializeToString(deterministic=True)


def _group(text: str) -> str:
    """The group of a text's first character: "letter" (also for marks), "numeral" or "other"; "" for an empty text."""
    if not text:
        return ""
    return {"L": "letter", "M": "letter", "N": "numeral"}.get(unicodedata.category(text[0])[0], "other")
