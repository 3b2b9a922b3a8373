"""A SentencePiece `tokenizer.model` as a vocabulary: its tokens, with those of the files beside it, and encoding.

Text is encoded at one of two positions. At the start of a text, SentencePiece encodes it with the model's dummy prefix
(or suffix), if it has one. Within a text, the same model without the dummy prefix puts nothing in front. The rest of
the normaliser (removing extra white space, spaces behind words, NFKC) is the same at both.

Added tokens of a Hugging Face folder are cut out of the text before SentencePiece sees it.
"""

import functools
from typing import Literal

import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2
from tokenizers import models

from ..errors import UserError
from .tokenizer_settings import MAX_IDS, NOTHING, AddedToken, TokenizerSettings, one_line

SPACE_SYMBOL = "▁"  # how SentencePiece writes a space inside a piece

TextPosition = Literal["start", "after", "within"]

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class SentencePieceVocabulary:
    """The vocabulary of a SentencePiece model with added tokens, and encoding at each position of a text.

    Control tokens are the pieces of type CONTROL, which SentencePiece never makes from text. Special added tokens, and
    the tokens named as bos, eos or pad, are control tokens too.

    Attributes:
        pieces: the spelling of each id; "" for an id without a token.
        types: the SentencePiece type of each id; UNUSED for an id without a token.
        added: id and flags, by spelling, of the tokens that the files beside the model add or describe.
        found_whole: id and flags, by spelling, of the pieces that SentencePiece finds as a whole.
        named: the spellings of bos_token, eos_token, unk_token and pad_token, of those that exist.
        special: ids of the control tokens by spelling.
        bos_id: id of bos, or None.
        eos_id: id of eos, or None.
        pad_id: id of the padding token, or None.
        unk_id: id of the unknown token, or None.
        unused: ids without a token.
        token_bytes: the UTF-8 bytes of each id; empty for control tokens.
        leading_space: whether decoded text begins with a space that is not the text's.
        trailing_space: whether decoded text ends with a space that is not the text's.
        legacy: transformers' flag for text behind control tokens; None for Meta's rule. See `position_after`.
        rules: what decides tokens besides the model file and the names; empty for LLaMA's model alone.
    """

    space_symbol = SPACE_SYMBOL

    def __init__(self, model: bytes, where: str, settings: TokenizerSettings = NOTHING):
        """
        Args:
            model: the content of the tokenizer.model.
            where: its path, for messages.
            settings: the content of the files beside it.

        Raises:
            UserError: the file is not a SentencePiece model, or the files beside it contradict it.
        """
        proto = _parse(model, where)
        own = [(piece.piece, piece.type) for piece in proto.pieces]
        self.pieces, self.types = [piece for piece, _ in own], [kind for _, kind in own]
        self.unk_id = next((i for i, kind in enumerate(self.types) if kind == _Piece.UNKNOWN), None)
        whole = (_Piece.UNKNOWN, _Piece.USER_DEFINED)
        self.found_whole = {piece: AddedToken(i, special=False) for i, (piece, kind) in enumerate(own) if kind in whole}
        self.added = self._add(settings, where)
        self._name(settings, proto.trainer_spec, where)
        changed = _changed(own, self.pieces, self.types, where)
        control = {self.pieces[i]: i for i, kind in enumerate(self.types) if kind == _Piece.CONTROL}
        self.special = dict(sorted(control.items(), key=lambda item: item[1]))
        self._found = {s: token for s, token in self.added.items() if s not in self.special and token.id != self.unk_id}
        self.unused = {i for i, kind in enumerate(self.types) if kind == _Piece.UNUSED}
        self.legacy = settings.legacy
        self._normalizer, self._unknown_text = proto.normalizer_spec, proto.trainer_spec.unk_surface
        self._dummy = self._normalizer.add_dummy_prefix and settings.add_prefix_space is not False
        self._is_suffix = proto.trainer_spec.treat_whitespace_as_suffix

        self.leading_space = self._dummy and not self._is_suffix
        self.trailing_space = self._dummy and self._is_suffix
        added = {s: token for s, token in self.added.items() if s in self._found or token.id in changed}
        added |= {s: token for s, token in self.added.items() if token.id >= len(own)}
        rules = {
            "added": sorted((s, *token) for s, token in added.items()),
            "control": sorted(changed),
            "legacy": settings.legacy,
            "prefix": self._dummy if settings.add_prefix_space is not None else None,
            "spaces": [self._normalizer.remove_extra_whitespaces, self._is_suffix],
        }
        self.rules = {name: rule for name, rule in rules.items() if rule not in (None, [], [False, False])}
        self._told = _as_told(proto, changed, self.types, self.pieces)
        try:
            self._processor_for("", "start")  # makes SentencePiece check the model now, not at the first text
        except RuntimeError as error:
            raise UserError(f"{where}: SentencePiece cannot load it: {one_line(error)}") from None
        self.token_bytes = self._bytes()

    @functools.cached_property
    def _with_dummy(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self._told, dummy=True)

    @functools.cached_property
    def _without_dummy(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self._told, dummy=False)

    def position_after(self, i: int) -> TextPosition:
        """The position of text that follows control token `i`.

        With `legacy`, transformers' LlamaTokenizer puts the dummy prefix behind every control token; without, behind
        none. If no file says which, Meta's rule holds: a text begins behind bos and behind eos.
        """
        begins = self.legacy if self.legacy is not None else i in (self.bos_id, self.eos_id)
        return "start" if begins else "within"

    def encode(self, text: str, position: TextPosition) -> list[int]:
        """Token ids of `text`, which must not hold the space symbol."""
        if self._found:
            return self.encode_with_offsets(text, position)[0]
        return self._processor_for(text, position).encode(text)

    def encode_with_offsets(self, text: str, position: TextPosition) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and the span (start, end) of characters that each token covers."""
        if not self._found:
            return self._encode_plain(text, position)
        ids, spans = [], []
        cut = self._splitter.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(cut.ids, cut.offsets, strict=True):
            if token:
                ids.append(self._found[self._splitter.id_to_token(token)].id)
                spans.append((start, end))
                position = self.position_after(ids[-1])
            else:
                part_ids, part_spans = self._encode_plain(text[start:end], position)
                ids += part_ids
                spans += [(a + start, b + start) for a, b in part_spans]
        return ids, spans

    def _encode_plain(self, text: str, position: TextPosition) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and spans of a text without added tokens."""
        serialized = self._processor_for(text, position).encode(text, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces
        ids = [piece.id for piece in pieces]
        character = _character_of_byte(text)  # SentencePiece counts in bytes of UTF-8
        spans = [(character[piece.begin], character[piece.end]) for piece in pieces]
        # SentencePiece gives the span of a character spelled in bytes to its last byte alone.
        for i in range(len(ids) - 2, -1, -1):
            if self.types[ids[i]] == _Piece.BYTE and spans[i][0] == spans[i][1]:
                spans[i] = spans[i + 1]
        return ids, spans

    def _processor_for(self, text: str, position: TextPosition) -> sentencepiece.SentencePieceProcessor:
        """The SentencePiece model for `text` at `position`, with or without the dummy prefix."""
        if position == "start":
            return self._with_dummy if self._dummy else self._without_dummy
        # A model that removes extra spaces would also remove the space between words at the start of a continuation.
        keeps_one = self._normalizer.remove_extra_whitespaces and not self._is_suffix
        return self._with_dummy if keeps_one and text.startswith(" ") else self._without_dummy

    @functools.cached_property
    def _splitter(self) -> tokenizers.Tokenizer:
        """Finds added tokens by the rules of tokenizers. Id 0 stands for the text between them."""
        splitter = tokenizers.Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        flags = {spelling: token._asdict() for spelling, token in self._found.items()}
        for spelling, token in flags.items():
            del token["id"]
            splitter.add_tokens([tokenizers.AddedToken(spelling, **token)])
        return splitter

    # What the files beside the model say ------------------------------------------------------------------------------

    def _add(self, settings: TokenizerSettings, where: str) -> dict[str, AddedToken]:
        """Adds tokens to `pieces` and `types`; returns all added tokens with their ids."""
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        added, owners = {}, {}
        placed = {spelling: token for spelling, token in settings.added.items() if token.id is not None}
        for spelling, token in sorted(placed.items(), key=lambda item: item[1].id):
            self._put(spelling, token)
            added[spelling] = token
            owners[token.id] = spelling
        wanted = {spelling: token for spelling, token in settings.added.items() if token.id is None}
        for name in ("bos_token", "eos_token", "pad_token"):
            if (spelling := settings.names.get(name)) is not None:
                wanted.setdefault(spelling, AddedToken(None, special=True))
        for spelling, token in wanted.items():
            if spelling in added:
                continue
            i = ids.get(spelling, len(self.pieces))
            if owners.get(i, spelling) != spelling:  # the id of that piece was given to another token
                i = len(self.pieces)
            added[spelling] = token._replace(id=i)
            self._put(spelling, added[spelling])
        if len(self.pieces) > MAX_IDS:
            raise UserError(f"{where} has {len(self.pieces):,} ids with added tokens; at most {MAX_IDS:,} are allowed")
        return added

    def _put(self, spelling: str, token: AddedToken) -> None:
        """Puts an added token at its id, and makes ids up to it without a token UNUSED."""
        i = token.id
        holes = i + 1 - len(self.pieces)
        self.pieces += [""] * holes
        self.types += [_Piece.UNUSED] * holes
        if self.pieces[i] != spelling or (token.special and i != self.unk_id):
            self.types[i] = _Piece.CONTROL if token.special else _Piece.USER_DEFINED
        self.pieces[i] = spelling

    def _name(self, settings: TokenizerSettings, spec: sentencepiece_model_pb2.TrainerSpec, where: str) -> None:
        """Sets bos_id, eos_id, pad_id and `named`, and makes the tokens bos, eos and pad control tokens."""
        ids = {piece: i for i, piece in enumerate(self.pieces) if piece}
        own = {"bos_token": spec.bos_piece, "eos_token": spec.eos_piece, "pad_token": spec.pad_piece}
        self.named = {}
        for name, spelling in own.items():
            if spelling not in ids or self.types[ids[spelling]] != _Piece.CONTROL:
                spelling = None
            # If the configuration has no eos, the model's own is used: generation must be able to stop.
            if name in settings.names and (name != "eos_token" or settings.names[name] is not None):
                spelling = settings.names[name]
            if spelling is not None:
                self.named[name] = spelling
        self.bos_id, self.eos_id, self.pad_id = (ids[self.named[name]] if name in self.named else None for name in own)
        for i in {self.bos_id, self.eos_id, self.pad_id} - {None, self.unk_id}:
            self.types[i] = _Piece.CONTROL
        if self.unk_id is not None and self.unk_id in (self.bos_id, self.eos_id):
            raise UserError(f"{where}: bos or eos is the unknown token: name another token for it")
        if self.unk_id is not None:
            named = settings.names.get("unk_token")
            self.named["unk_token"] = named if named in ids else self.pieces[self.unk_id]

    def _bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each id in decoded text."""
        as_written = {token.id for token in self.added.values()}
        found = []
        for i, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True)):
            if kind in (_Piece.CONTROL, _Piece.UNUSED):
                found.append(b"")
            elif kind == _Piece.BYTE:
                found.append(bytes([int(piece[1:-1], 16)]))
            elif kind == _Piece.UNKNOWN:
                found.append(self._unknown_text.encode())
            else:
                found.append((piece if i in as_written else piece.replace(SPACE_SYMBOL, " ")).encode())
        return found


def _parse(model: bytes, where: str) -> sentencepiece_model_pb2.ModelProto:
    """The protocol buffer of a SentencePiece model. Raises UserError for any other file."""
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError:
        proto = None
    if proto is None or not proto.pieces:
        raise UserError(
            f"{where} is not a SentencePiece model (Llama 3's tokenizer.model is a tiktoken file: use the "
            "tokenizer.json published beside it)"
        )
    spec = proto.trainer_spec
    try:
        spellings = [
            spec.bos_piece,
            spec.eos_piece,
            spec.pad_piece,
            spec.unk_surface,
            *(piece.piece for piece in proto.pieces),
        ]
    except UnicodeDecodeError:
        spellings = [b""]
    if not all(isinstance(spelling, str) for spelling in spellings):  # protobuf gives bytes for what is not UTF-8
        raise UserError(f"{where} is damaged: it has pieces that are not UTF-8; download it again")
    return proto


def _changed(own: list[tuple[str, int]], pieces: list[str], types: list[int], where: str) -> set[int]:
    """The ids of the model's own pieces that the files beside it change.

    Args:
        own: spelling and type of each piece in the model file.
        pieces: the spelling of each id in the vocabulary.
        types: the type of each id in the vocabulary.
        where: the model file, for messages.
    """
    changed = {i for i, piece in enumerate(own) if piece != (pieces[i], types[i])}
    for i in changed:
        spelling, kind = own[i]
        if kind in (_Piece.BYTE, _Piece.UNKNOWN):
            name = "the byte" if kind == _Piece.BYTE else "the unknown token"
            problem = f"give {pieces[i]!r} id {i}, that of {name} {spelling!r}"
            raise UserError(f"the files beside {where} {problem}: give another id")
    return changed


def _as_told(
    proto: sentencepiece_model_pb2.ModelProto, changed: set[int], types: list[int], pieces: list[str]
) -> sentencepiece_model_pb2.ModelProto:
    """The model for SentencePiece, which never makes control tokens or replaced pieces from text.

    Args:
        proto: the model.
        changed: the ids of its own pieces that other files change.
        types: the type of each id in the vocabulary.
        pieces: the spelling of each id in the vocabulary.
    """
    told = sentencepiece_model_pb2.ModelProto()
    told.CopyFrom(proto)
    for i in changed:
        renamed = told.pieces[i].piece != pieces[i]
        told.pieces[i].type = _Piece.UNUSED if renamed else types[i]
    return told


def _processor(proto: sentencepiece_model_pb2.ModelProto, *, dummy: bool) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece for a model, with or without the dummy prefix."""
    told = sentencepiece_model_pb2.ModelProto()
    told.CopyFrom(proto)
    told.normalizer_spec.add_dummy_prefix = dummy
    return sentencepiece.SentencePieceProcessor(model_proto=told.SerializeToString())


def _character_of_byte(text: str) -> list[int] | range:
    """The index of the character at each byte offset of the UTF-8 text, and at its end."""
    if text.isascii():
        return range(len(text) + 1)
    return [i for i, c in enumerate(text) for _ in c.encode()] + [len(text)]
