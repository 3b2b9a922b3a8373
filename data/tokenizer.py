"""One tokenizer interface for SentencePiece `tokenizer.model` and Hugging Face `tokenizer.json` files.

Two promises hold for both kinds. Encoding text never gives a control token; control tokens are added by id alone. And
`decode(encode(text)) == text` for every text, as far as the model's own normaliser keeps it. LLaMA's keeps everything;
`Metaspace` and `ByteLevel` of a tokenizer.json add no space in front of a text that begins with one, and lose it.
"""

import codecs
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from ..errors import UserError
from . import hub
from .checksums import write_whole
from .tokenizer_huggingface import HuggingFaceVocabulary
from .tokenizer_sentencepiece import SentencePieceVocabulary, TextPosition
from .tokenizer_settings import (
    ADDED_FILE,
    CONFIG_FILE,
    FURTHER_NAMES,
    MAP_FILE,
    NOTHING,
    TEMPLATE_FILE,
    AddedToken,
    read_settings,
)

SENTENCEPIECE_FILE = "tokenizer.model"
HUGGINGFACE_FILE = "tokenizer.json"

Span = tuple[int, int]


class Tokenizer:
    """Encodes text as token ids and decodes ids to text.

    Attributes:
        vocab_size: number of ids, with control tokens and added tokens.
        bos_id: id of the token that begins a text, or None if there is none.
        adds_bos: whether plain text begins with bos; a chat template may write bos in any case.
        eos_id: id of the token that ends a text.
        pad_id: an id for unused positions, which are masked: that of a padding token, else unk_id, else eos_id.
        unk_id: id for text that no other token can write, or None if there is none.
        special: ids of the control tokens by spelling ("</s>", "<|im_end|>").
        added: id and flags, by spelling, of the tokens that are found as a whole. Special ones are control tokens;
            others are found in plain text too.
        named: spelling of bos_token, eos_token, unk_token, pad_token, sep_token, cls_token and mask_token; only those
            that the tokenizer has.
        model_fingerprint: SHA-256 of the model file, in hexadecimal.
        fingerprint: SHA-256 of everything that decides tokens; equal to model_fingerprint if no other file matters.
        chat_template: the jinja source of the chat template among the tokenizer's files, or None.
    """

    def __init__(self, files: dict[str, bytes], where: str):
        """Use `Tokenizer.load`. `files` holds the model file and the files beside it by name; `where` is their path."""
        self._files, self._where = files, where
        settings = read_settings(files, where)
        model_file = HUGGINGFACE_FILE if HUGGINGFACE_FILE in files else SENTENCEPIECE_FILE
        kind = HuggingFaceVocabulary if model_file == HUGGINGFACE_FILE else SentencePieceVocabulary
        vocabulary = self._vocabulary = kind(files[model_file], where, settings)
        if vocabulary.eos_id is None:
            raise UserError(f"{where} has no end-of-text token: name it as eos_token in a {CONFIG_FILE} beside it")
        self.vocab_size = len(vocabulary.pieces)
        self.special = vocabulary.special
        further = {name: settings.names[name] for name in FURTHER_NAMES if settings.names.get(name)}
        self.named = vocabulary.named | further
        control = {spelling: AddedToken(i, special=True) for spelling, i in self.special.items()}
        flagged = {
            spelling: token._replace(special=token.special or spelling in control)
            for spelling, token in vocabulary.added.items()
        }
        self.added = vocabulary.found_whole | control | flagged
        self.bos_id, self.eos_id, self.unk_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id
        self.pad_id = next(i for i in (vocabulary.pad_id, self.unk_id, self.eos_id) if i is not None)
        own_way = getattr(vocabulary, "adds_bos", True)  # a SentencePiece model does not say; LLaMA adds bos
        self.adds_bos = self.bos_id is not None and (own_way if settings.add_bos is None else settings.add_bos)
        self.chat_template = settings.chat_template
        self.model_fingerprint = hashlib.sha256(files[model_file]).hexdigest()
        self.fingerprint = self.model_fingerprint
        if settings._replace(chat_template=None) != NOTHING:
            decides = [*self.cache_key(), self.adds_bos, self.bos_id, self.pad_id, self.unk_id, self.named]
            self.fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        self._spellings = {i: spelling for spelling, i in self.special.items()}

    @classmethod
    def load(cls, path: str | epath.Path) -> "Tokenizer":
        """Loads a `tokenizer.model`, a `tokenizer.json`, or the folder that holds one, with the files beside it.

        In a folder with both, a Hugging Face repository, `tokenizer.json` is used, which is the complete one. The path
        may be the name of a model on the Hugging Face Hub (`data/hub.py`), of which only the tokenizer is fetched.

        Raises:
            UserError: there is no such file, or it is not a tokenizer.
        """
        path = epath.Path(hub.local_path(path, _tokenizer_alone))
        if path.is_dir():
            names = (HUGGINGFACE_FILE, SENTENCEPIECE_FILE)
            path = next((path / name for name in names if _exists(path / name)), path)
        if not (_exists(path) and path.is_file()):
            raise UserError(
                f"no tokenizer at {path}: give a {SENTENCEPIECE_FILE} or {HUGGINGFACE_FILE}, or a folder with one"
            )
        files = {HUGGINGFACE_FILE if path.suffix == ".json" else SENTENCEPIECE_FILE: path.read_bytes()}
        for name in (CONFIG_FILE, MAP_FILE, ADDED_FILE, TEMPLATE_FILE):
            if _exists(path.parent / name):
                files[name] = (path.parent / name).read_bytes()
        return cls(files, hub.shown(path))

    def save(self, directory: str | epath.Path) -> None:
        """Writes the model file and the configuration files that came with it into `directory`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            write_whole(directory / name, content)

    def as_trained_before(self) -> "Tokenizer":
        """The tokenizer as older versions of camelid read its files, for runs whose manifest does not say `adds_bos`.

        Those versions began every text with bos, if there was one, unless `add_bos_token` was false; the post-processor
        was ignored. Of the files beside a `tokenizer.model` they read only the chat template.
        """
        if HUGGINGFACE_FILE not in self._files:
            names = (CONFIG_FILE, MAP_FILE, ADDED_FILE)
            config = {} if self.chat_template is None else {"chat_template": self.chat_template}
            files = {name: content for name, content in self._files.items() if name not in names}
            return Tokenizer(files | ({CONFIG_FILE: json.dumps(config).encode()} if config else {}), self._where)
        config = json.loads(self._files.get(CONFIG_FILE, b"{}"))
        if self.bos_id is None or config.get("add_bos_token") is not None:
            return self
        content = json.dumps(config | {"add_bos_token": True}, ensure_ascii=False).encode()
        return Tokenizer(self._files | {CONFIG_FILE: content}, self._where)

    def __reduce__(self):
        return Tokenizer, (self._files, self._where)

    def cache_key(self, template_source: str = "") -> list:
        """Everything that decides the tokens of a text, and of conversations in a chat template. It names token caches.

        The names of tokens count only if the template's source mentions them.
        """
        named = {name: spelling for name, spelling in self.named.items() if name not in ("bos_token", "eos_token")}
        if not self.adds_bos and self.bos_id is not None:
            named["bos_token"] = self.named["bos_token"]
        named = {name: spelling for name, spelling in named.items() if name in template_source}
        rules = self._vocabulary.rules | ({"named": named} if named else {})
        key = [self.model_fingerprint, self.bos_id if self.adds_bos else None, self.eos_id]
        return [*key, rules] if rules else key

    def encode(self, text: str, *, after: int | None = None, continues: bool = False) -> list[int]:
        """Token ids of `text`, without control tokens.

        Args:
            text: any text.
            after: id of the control token that `text` follows in a conversation; None at the beginning. It decides
                whether a tokenizer that puts a space in front of texts (LLaMA's dummy prefix) does so here.
            continues: whether `text` continues earlier text; then no space is put in front.

        Raises:
            UserError: `text` has a lone surrogate, which is half a character and cannot be written in UTF-8.
        """
        check_surrogates(text)
        position = self._position(after, continues)
        symbol = self._vocabulary.space_symbol
        if symbol is None or symbol not in text:
            return self._vocabulary.encode(text, position)
        return self._encode_around_symbol(text, position)[0]

    def encode_special(self, text: str) -> list[int]:
        """Token ids of a text in which the spellings of control tokens stand for these tokens."""
        spellings = "|".join(map(re.escape, sorted(self.special, key=len, reverse=True)))
        ids: list[int] = []
        for part in re.split(f"({spellings})", text) if spellings else [text]:
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self.encode(part, after=ids[-1] if ids else None)
        return ids

    def encode_with_offsets(
        self, text: str, *, after: int | None = None, continues: bool = False
    ) -> tuple[list[int], list[Span]]:
        """Token ids of `text`, and the span (start, end) of characters that each token covers.

        Arguments and errors are those of `encode`. Tokens that are parts of one character all have the span of that
        character. The token of a lone prefix space has an empty span.
        """
        check_surrogates(text)
        return self._encode_around_symbol(text, self._position(after, continues))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids.

        Control tokens are dropped, and so are ids beyond the vocabulary, which padded networks have. Bytes that form no
        character become U+FFFD.
        """
        data = b"".join(map(self._bytes, ids))
        if self._vocabulary.leading_space:
            data = data.removeprefix(b" ")
        if self._vocabulary.trailing_space:
            data = data.removesuffix(b" ")
        return data.decode("utf-8", "replace")

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """How many characters begin in each token, int32 [vocab_size]; their sum over a text's tokens is its length.

        No character begins in a control token, nor in a token that only continues a character (UTF-8: RFC 3629, section
        3). A prefix space counts as a character.
        """
        begun = [sum(byte & 0xC0 != 0x80 for byte in data) for data in self._vocabulary.token_bytes]
        return np.array(begun, np.int32)

    @property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each id; empty for control tokens and for ids without a token."""
        return self._vocabulary.token_bytes

    @property
    def drops_first_space(self) -> bool:
        """Whether `decode` removes a space at the beginning, which `encode` has put there."""
        return self._vocabulary.leading_space

    def unused(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Ranges (first, one past the last) of ids below `rows` that have no token.

        `rows` is the number of rows in a network's embedding. Unused are holes in the vocabulary, tokens that its file
        calls unused, and rows beyond the vocabulary.
        """
        used = np.zeros(rows + 2, bool)  # with one more entry at either end, always used
        used[[0, -1]] = True
        known = min(rows, self.vocab_size)
        used[1 : known + 1] = [i not in self._vocabulary.unused for i in range(known)]
        edges = np.flatnonzero(np.diff(used))
        return tuple((int(first), int(end)) for first, end in edges.reshape(-1, 2))

    def stream(self) -> "StreamDecoder":
        """A decoder that takes one id at a time. Its joined outputs equal `decode` of all the ids."""
        return StreamDecoder(self)

    def piece(self, i: int) -> str:
        """Token `i` for people to read: its text, a control token's spelling, or `<0xE4>` for a part of a character."""
        data = self._bytes(i)
        if not data:
            return self._spellings.get(int(i), "")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def difference(self, other: "Tokenizer") -> str | None:
        """The first id that has different tokens in the two tokenizers, in words; None if all ids agree.

        Only ids are compared: two tokenizers with one vocabulary may still cut a text differently.
        """
        shared = min(self.vocab_size, other.vocab_size)
        first = next((i for i in range(shared) if self._meaning(i) != other._meaning(i)), shared)
        if first == self.vocab_size == other.vocab_size:
            return None
        here, there = (repr(each.piece(first)) if first < each.vocab_size else "none" for each in (self, other))
        return f"token {first} is {here} in {self._where} and {there} in {other._where}"

    def _meaning(self, i: int) -> tuple[bytes, str | None] | None:
        """The bytes and the control spelling of a token; None for the unknown token, spelled differently by formats."""
        return None if i == self.unk_id else (self._bytes(i), self._spellings.get(i))

    def _bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of id `i`; empty beyond the vocabulary."""
        if i < 0:
            raise ValueError(f"token id {i} is negative: ids begin at 0")
        return self._vocabulary.token_bytes[i] if i < self.vocab_size else b""

    def _position(self, after: int | None, continues: bool) -> TextPosition:
        """The position for encoding text: within a text, at its start, or after control token `after`."""
        if continues:
            return "within"
        return "start" if after is None else self._vocabulary.position_after(after)

    def _encode_around_symbol(self, text: str, position: TextPosition) -> tuple[list[int], list[Span]]:
        """Ids and spans of `text`, with "▁" as byte tokens. As a piece "▁" would be decoded as a space."""
        vocabulary, symbol = self._vocabulary, self._vocabulary.space_symbol
        if symbol is None or symbol not in text or self._symbol_ids is None:
            return vocabulary.encode_with_offsets(text, position)
        ids, spans, start = [], [], 0
        for stretch in text.split(symbol):
            if start:
                ids += self._symbol_ids
                spans += [(start - 1, start)] * len(self._symbol_ids)
            elif not stretch and position != "within" and vocabulary.leading_space:  # the space in front of the symbol
                ids += vocabulary.encode(" ", "within")
                spans += [(0, 0)] * len(ids)
            stretch_ids, stretch_spans = vocabulary.encode_with_offsets(stretch, "within" if start else position)
            ids += stretch_ids
            spans += [(a + start, b + start) for a, b in stretch_spans]
            start += len(stretch) + 1
        return ids, spans

    @functools.cached_property
    def _symbol_ids(self) -> list[int] | None:
        """The ids of the byte tokens of the space symbol; None for a model without byte fallback."""
        id_of_piece = {piece: i for i, piece in enumerate(self._vocabulary.pieces)}
        ids = [id_of_piece.get(f"<0x{byte:02X}>") for byte in self._vocabulary.space_symbol.encode()]
        return None if None in ids else ids


class StreamDecoder:
    """Decodes token by token.

    It holds back the bytes of a character until they are complete. If the tokenizer ends texts with a space of its own,
    it also holds back a last space.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._bytes = tokenizer._bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._space_due = tokenizer._vocabulary.leading_space
        self._holds_space = tokenizer._vocabulary.trailing_space
        self._held = b""

    def push(self, i: int) -> str:
        """Takes token id `i`; returns the text that it completes, perhaps ""."""
        data = self._bytes(i)
        if data and self._space_due:
            data = data.removeprefix(b" ")
            self._space_due = False
        if data and self._holds_space:
            data, self._held = self._held + data, b""
            if data.endswith(b" "):
                data, self._held = data[:-1], b" "
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Ends the text; returns U+FFFD for an unfinished character, else ""."""
        return self._utf8.decode(b"", final=True)


def tokenizer_files(names: Iterable[str]) -> list[str]:
    """Those names of files in a folder that `Tokenizer.load` reads."""
    known = (HUGGINGFACE_FILE, SENTENCEPIECE_FILE, CONFIG_FILE, MAP_FILE, ADDED_FILE, TEMPLATE_FILE)
    return [name for name in names if name in known]


def _tokenizer_alone(names: Sequence[str], asked: str | None, read: Callable[[str], bytes]) -> list[str]:
    """Chooses the files of a tokenizer in a repository of the Hub (`hub.Choose`)."""
    del read
    if asked is None and not {HUGGINGFACE_FILE, SENTENCEPIECE_FILE} & set(names):
        raise UserError(f"has no {HUGGINGFACE_FILE} or {SENTENCEPIECE_FILE}: give the name of a model that has one")
    return [name for name in names if name == asked or name in tokenizer_files(names)]


def _exists(path: epath.Path) -> bool:
    """Whether there is a file at `path`. Raises UserError for a broken link, as in an emptied download cache."""
    if not path.exists() and os.path.islink(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist: download the file again")
    return path.exists()


def check_surrogates(text: str) -> None:
    """Raises UserError if a text has a lone surrogate, which is half a character and has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of a text is the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 "
            f"cannot write; remove it: {text[max(0, error.start - 20) : error.start + 20]!r}"
        ) from None
