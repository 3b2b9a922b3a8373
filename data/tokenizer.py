"""One tokenizer interface over SentencePiece `tokenizer.model` and Hugging Face `tokenizer.json` files.

Two promises hold for both kinds. Text never yields a control token, whatever it says: those are reachable by id alone.
And `decode(encode(text)) == text` for every text, as far as the model's own normaliser keeps it. LLaMA's keeps all;
`Metaspace` and `ByteLevel` of a tokenizer.json put no space in front of a text that has one, which is lost that way.
"""

import codecs
import functools
import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np
from etils import epath

from ..errors import UserError
from .checksums import write_whole
from .tokenizer_huggingface import HuggingFaceVocabulary
from .tokenizer_sentencepiece import Place, SentencePieceVocabulary
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
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, control tokens and added ones included.
        bos_id: the token that begins a text, or None where the tokenizer has none.
        adds_bos: whether plain text begins with bos; a chat template may write it all the same.
        eos_id: the token that ends a text.
        pad_id: an id to fill unused positions with; padding is masked, so eos will do where there is no other.
        unk_id: what text becomes that no other token can write, or None where there is no such token.
        special: control tokens by their spelling ("</s>", "<|im_end|>").
        added: tokens that are looked for as a whole, by their spelling, with their flags: special ones, which are
            control tokens, and others, which are found in plain text too.
        named: spellings of bos_token, eos_token, unk_token, pad_token, sep_token, cls_token and mask_token, of those
            that the tokenizer has.
        model_fingerprint: SHA-256 of the model file, in hexadecimal.
        fingerprint: SHA-256 of all that decides tokens: of the model file alone where no other file says anything.
        chat_template: the jinja source of the chat template that came with the tokenizer's files, or None.
    """

    def __init__(self, files: dict[str, bytes], where: str):
        """Use `Tokenizer.load`. `files` holds the model file and what belongs to it, by file name."""
        self._files, self._where = files, where
        settings = read_settings(files, where)
        model_file = HUGGINGFACE_FILE if HUGGINGFACE_FILE in files else SENTENCEPIECE_FILE
        kind = HuggingFaceVocabulary if model_file == HUGGINGFACE_FILE else SentencePieceVocabulary
        vocabulary = self._vocabulary = kind(files[model_file], where, settings)
        if vocabulary.eos_id is None:
            raise UserError(f"{where} has no end-of-text token: name one as eos_token in a {CONFIG_FILE} beside it")
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
        own_way = getattr(vocabulary, "adds_bos", True)  # a SentencePiece model says nothing; LLaMA's texts begin so
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
        """Load a `tokenizer.model`, a `tokenizer.json`, or the folder that holds one.

        A folder with both is a Hugging Face repository, whose `tokenizer.json` is the complete one. What
        `tokenizer_settings.py` knows of, and lies beside the model file, is read too.

        Raises:
            UserError: there is no such file, or it is not a tokenizer.
        """
        path = epath.Path(path)
        if path.is_dir():
            names = (HUGGINGFACE_FILE, SENTENCEPIECE_FILE)
            path = next((path / name for name in names if _is_there(path / name)), path)
        if not (_is_there(path) and path.is_file()):
            raise UserError(
                f"no tokenizer at {path}: expected a {SENTENCEPIECE_FILE} or {HUGGINGFACE_FILE}, or a folder with one"
            )
        files = {HUGGINGFACE_FILE if path.suffix == ".json" else SENTENCEPIECE_FILE: path.read_bytes()}
        for name in (CONFIG_FILE, MAP_FILE, ADDED_FILE, TEMPLATE_FILE):
            if _is_there(path.parent / name):
                files[name] = (path.parent / name).read_bytes()
        return cls(files, str(path))

    def save(self, directory: str | epath.Path) -> None:
        """Copy the model file, and the configuration that came with it, into `directory`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            write_whole(directory / name, content)

    def as_trained_before(self) -> "Tokenizer":
        """The tokenizer with the meaning that its files had for runs whose manifests do not say `adds_bos`.

        A bos that there was began every text unless `add_bos_token` was false, whatever the post-processor said; of the
        files beside a `tokenizer.model` only the chat template was read.
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
        """What names token caches: all that decides the tokens of a text, and of conversations in a chat template.

        Names of tokens count where the template's source speaks of them, so that others may change.
        """
        named = {name: spelling for name, spelling in self.named.items() if name not in ("bos_token", "eos_token")}
        if not self.adds_bos and self.bos_id is not None:
            named["bos_token"] = self.named["bos_token"]
        named = {name: spelling for name, spelling in named.items() if name in template_source}
        rules = self._vocabulary.rules | ({"named": named} if named else {})
        key = [self.model_fingerprint, self.bos_id if self.adds_bos else None, self.eos_id]
        return [*key, rules] if rules else key

    def encode(self, text: str, *, after: int | None = None, continues: bool = False) -> list[int]:
        """Token ids of `text`, with no control token among them.

        Args:
            text: any text.
            after: the control token that `text` follows, in a conversation; None where it begins by itself. It decides
                whether a tokenizer that puts a space in front of texts (LLaMA's dummy prefix) does so here.
            continues: whether `text` goes on where other text stopped: then no space is put.

        Raises:
            UserError: `text` holds a lone surrogate, which is half a character and has no UTF-8 form.
        """
        check_whole(text)
        place = self._place(after, continues)
        symbol = self._vocabulary.space_symbol
        if symbol is None or symbol not in text:
            return self._vocabulary.encode(text, place)
        return self._encode_around_symbol(text, place)[0]

    def encode_with_offsets(
        self, text: str, *, after: int | None = None, continues: bool = False
    ) -> tuple[list[int], list[Span]]:
        """Like `encode`, with the span `(start, end)` of characters of `text` that each token covers.

        Tokens that are each a part of one character all have that character's span. The token of a lone prefix space
        has an empty span.
        """
        check_whole(text)
        return self._encode_around_symbol(text, self._place(after, continues))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Control tokens are dropped, as are ids beyond the vocabulary, which padded networks have;
        bytes that form no character become U+FFFD."""
        data = b"".join(map(self._bytes, ids))
        if self._vocabulary.leading_space:
            data = data.removeprefix(b" ")
        if self._vocabulary.trailing_space:
            data = data.removesuffix(b" ")
        return data.decode("utf-8", "replace")

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """How many characters each token begins, int32 [vocab_size]: summed over the tokens of a text, its length.

        A token that only goes on with a character begins none (UTF-8: RFC 3629, section 3), a control token neither. A
        prefix space, where the tokenizer has one, is counted.
        """
        begun = [sum(byte & 0xC0 != 0x80 for byte in data) for data in self._vocabulary.token_bytes]
        return np.array(begun, np.int32)

    @property
    def token_bytes(self) -> list[bytes]:
        """What each id writes, in UTF-8; nothing for control tokens and for ids that stand for no token."""
        return self._vocabulary.token_bytes

    @property
    def drops_first_space(self) -> bool:
        """Whether `decode` leaves out a space at the beginning, which `encode` put there."""
        return self._vocabulary.leading_space

    def unused(self, rows: int) -> tuple[tuple[int, int], ...]:
        """The ids below `rows`, those of a network's embedding, that stand for no token, as ranges (first, one past the
        last): holes in the vocabulary, tokens that its file calls unused, and rows beyond it."""
        used = np.zeros(rows + 2, bool)  # with an edge on either side
        used[[0, -1]] = True
        known = min(rows, self.vocab_size)
        used[1 : known + 1] = [i not in self._vocabulary.unused for i in range(known)]
        edges = np.flatnonzero(np.diff(used))
        return tuple((int(first), int(end)) for first, end in edges.reshape(-1, 2))

    def stream(self) -> "StreamDecoder":
        """A decoder that takes one id at a time: its outputs, joined, are `decode` of all the ids."""
        return StreamDecoder(self)

    def piece(self, i: int) -> str:
        """Token `i` for people to read: its text, a control token's spelling, `<0xE4>` for a part of a character."""
        data = self._bytes(i)
        if not data:
            return self._spellings.get(int(i), "")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def difference(self, other: "Tokenizer") -> str | None:
        """The first id that stands for another token in `other`, in words; None where every id stands for the same.

        What counts is the ids: two tokenizers of one vocabulary may still cut a text differently.
        """
        shared = min(self.vocab_size, other.vocab_size)
        first = next((i for i in range(shared) if self._meaning(i) != other._meaning(i)), shared)
        if first == self.vocab_size == other.vocab_size:
            return None
        here, there = (repr(each.piece(first)) if first < each.vocab_size else "none" for each in (self, other))
        return f"token {first} is {here} in {self._where} and {there} in {other._where}"

    def _meaning(self, i: int) -> tuple[bytes, str | None] | None:
        """What tells two tokens apart; None for the unknown token, which every format spells otherwise."""
        return None if i == self.unk_id else (self._bytes(i), self._spellings.get(i))

    def _bytes(self, i: int) -> bytes:
        if i < 0:
            raise ValueError(f"token id {i}: ids are 0 and more")
        return self._vocabulary.token_bytes[i] if i < self.vocab_size else b""

    def _place(self, after: int | None, continues: bool) -> Place:
        if continues:
            return "within"
        return "start" if after is None else self._vocabulary.place_after(after)

    def _encode_around_symbol(self, text: str, place: Place) -> tuple[list[int], list[Span]]:
        """Encode, and spell "▁" in bytes: as a piece it would be read as a space and come back as one."""
        vocabulary, symbol = self._vocabulary, self._vocabulary.space_symbol
        if symbol is None or symbol not in text or self._symbol_ids is None:
            return vocabulary.encode_with_offsets(text, place)
        ids, spans, start = [], [], 0
        for stretch in text.split(symbol):
            if start:
                ids += self._symbol_ids
                spans += [(start - 1, start)] * len(self._symbol_ids)
            elif not stretch and place != "within" and vocabulary.leading_space:  # the space in front of the symbol
                ids += vocabulary.encode(" ", "within")
                spans += [(0, 0)] * len(ids)
            stretch_ids, stretch_spans = vocabulary.encode_with_offsets(stretch, "within" if start else place)
            ids += stretch_ids
            spans += [(a + start, b + start) for a, b in stretch_spans]
            start += len(stretch) + 1
        return ids, spans

    @functools.cached_property
    def _symbol_ids(self) -> list[int] | None:
        """The byte tokens of the space symbol, or None for a model without byte fallback."""
        id_of_piece = {piece: i for i, piece in enumerate(self._vocabulary.pieces)}
        ids = [id_of_piece.get(f"<0x{byte:02X}>") for byte in self._vocabulary.space_symbol.encode()]
        return None if None in ids else ids


class StreamDecoder:
    """Decodes token by token and holds back what may not be the text's yet: the bytes of a character until it is whole,
    and a last space where the tokenizer ends texts with one of its own."""

    def __init__(self, tokenizer: Tokenizer):
        self._bytes = tokenizer._bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._space_due = tokenizer._vocabulary.leading_space
        self._holds_space = tokenizer._vocabulary.trailing_space
        self._held = b""

    def push(self, i: int) -> str:
        """The text that token `i` completes, perhaps empty."""
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
        """What is left at the end: U+FFFD for an unfinished character, otherwise nothing."""
        return self._utf8.decode(b"", final=True)


def _is_there(path: epath.Path) -> bool:
    """Whether there is such a file. Raises UserError for a link that leads nowhere, as in a cache that was emptied."""
    if not path.exists() and os.path.islink(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")
    return path.exists()


def check_whole(text: str) -> None:
    """Raises UserError for half a character in a text: it has no UTF-8 form, and no token."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of a text is the lone surrogate U+{ord(text[error.start]):04X}, half of "
            f"a character, which UTF-8 cannot write: {text[max(0, error.start - 20) : error.start + 20]!r}"
        ) from None
