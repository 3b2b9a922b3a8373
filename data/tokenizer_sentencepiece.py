"""A SentencePiece `tokenizer.model` as a vocabulary: what its file says, and bare encoding of plain text.

"Bare" means that nothing is added: the dummy prefix (the space that LLaMA's models put in front of a text) is taken out
of the model's settings and left to `Tokenizer`, which knows whether a text begins or continues.
"""

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

from .added_tokens import AddedToken
from .errors import UserError

SPACE_SYMBOL = "▁"  # how SentencePiece writes a space inside a piece
UNKNOWN_TEXT = " ⁇ "  # what SentencePiece decodes its unknown token to

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_ADDED = (_Piece.UNKNOWN, _Piece.USER_DEFINED)  # what is an added token to transformers, apart from control tokens


class SentencePieceVocabulary:
    """The pieces of a SentencePiece model, its control tokens, and `encode` without any prefix.

    Control tokens are the pieces of type CONTROL, which SentencePiece never produces from text.
    """

    space_symbol = SPACE_SYMBOL

    def __init__(self, model: bytes, where: str):
        proto = _parse(model, where)
        spec = proto.trainer_spec
        self.pieces = [piece.piece for piece in proto.pieces]
        self.special = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == _Piece.CONTROL}
        self.added = {p.piece: AddedToken(i, special=False) for i, p in enumerate(proto.pieces) if p.type in _ADDED}
        self.unk_id = next((i for i, p in enumerate(proto.pieces) if p.type == _Piece.UNKNOWN), None)
        self.bos_id = self.special.get(spec.bos_piece)
        self.eos_id = self.special.get(spec.eos_piece)
        self.pad_id = self.special.get(spec.pad_piece)
        self.token_bytes = [_piece_bytes(piece) for piece in proto.pieces]
        self.prefix = " " if proto.normalizer_spec.add_dummy_prefix else ""
        self.leading_space = bool(self.prefix)  # whether decoded text starts with a space that is not the text's
        self._is_byte = [piece.type == _Piece.BYTE for piece in proto.pieces]
        self._processor = _bare_processor(proto)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which holds no space symbol."""
        return self._processor.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the span of characters that each one covers."""
        serialized = self._processor.encode(text, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces
        ids = [piece.id for piece in pieces]
        character = _character_of_byte(text)  # SentencePiece counts in bytes of UTF-8
        spans = [(character[piece.begin], character[piece.end]) for piece in pieces]
        # Of a character spelled in bytes, SentencePiece gives the span to the last byte alone.
        for i in range(len(ids) - 2, -1, -1):
            if self._is_byte[ids[i]] and spans[i][0] == spans[i][1]:
                spans[i] = spans[i + 1]
        return ids, spans


def _parse(model: bytes, where: str) -> sentencepiece_model_pb2.ModelProto:
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError:
        proto = None
    if proto is None or not proto.pieces:
        raise UserError(
            f"{where} is not a SentencePiece model (Llama 3's own tokenizer.model is tiktoken's: "
            "use the tokenizer.json published beside it)"
        )
    return proto


def _bare_processor(proto: sentencepiece_model_pb2.ModelProto) -> sentencepiece.SentencePieceProcessor:
    bare = sentencepiece_model_pb2.ModelProto()
    bare.CopyFrom(proto)
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False  # it would eat the prefix that Tokenizer writes
    return sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())


def _piece_bytes(piece: _Piece) -> bytes:
    """The UTF-8 bytes that a piece stands for in decoded text."""
    if piece.type == _Piece.CONTROL:
        return b""
    if piece.type == _Piece.BYTE:
        return bytes([int(piece.piece[1:-1], 16)])
    if piece.type == _Piece.UNKNOWN:
        return UNKNOWN_TEXT.encode()
    return piece.piece.replace(SPACE_SYMBOL, " ").encode()


def _character_of_byte(text: str) -> list[int] | range:
    """The character index of each byte offset of `text`, its end included."""
    if text.isascii():
        return range(len(text) + 1)
    return [i for i, c in enumerate(text) for _ in c.encode()] + [len(text)]
