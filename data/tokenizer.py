"""One tokenizer interface over SentencePiece `tokenizer.model` and Hugging Face `tokenizer.json` files.

Two promises hold for both kinds. Text never yields a control token, whatever it says: those are reachable by id alone.
And `decode(encode(text)) == text` for every text, as far as the model's own normaliser keeps it (LLaMA's keeps all).
"""

import codecs
import functools
import hashlib
import json
from collections.abc import Iterable

import numpy as np
from etils import epath

from .added_tokens import AddedToken
from .errors import UserError
from .tokenizer_huggingface import HuggingFaceVocabulary
from .tokenizer_sentencepiece import SentencePieceVocabulary

SENTENCEPIECE_FILE = "tokenizer.model"
HUGGINGFACE_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

Span = tuple[int, int]


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, control tokens included.
        bos_id: the token that begins a text, or None where the tokenizer has none.
        eos_id: the token that ends a text.
        pad_id: an id to fill unused positions with; padding is masked, so eos will do where there is no other.
        unk_id: what text becomes that no other token can write, or None where there is no such token.
        special: control tokens by their spelling ("</s>", "<|im_end|>").
        added: all added tokens by their spelling: control tokens, and those that are found in text.
        named_tokens: spellings by name, "bos_token", "eos_token", "unk_token" and "pad_token", of those that it has.
        adds_bos: whether plain text begins with bos.
        fingerprint: SHA-256 of the model file, in hexadecimal.
        chat_template: the jinja source of the chat template that came with the tokenizer's files, or None.
    """

    def __init__(self, files: dict[str, bytes], where: str):
        """Use `Tokenizer.load`. `files` holds the model file and what belongs to it, by file name."""
        self._files, self._where = files, where
        config = _read_config(files)
        if HUGGINGFACE_FILE in files:
            model_file = HUGGINGFACE_FILE
            self._vocabulary = HuggingFaceVocabulary(files[model_file], config, where)
        else:
            model_file = SENTENCEPIECE_FILE
            self._vocabulary = SentencePieceVocabulary(files[model_file], where)
        vocabulary = self._vocabulary
        if vocabulary.eos_id is None:
            hint = f": name one as eos_token in a {CONFIG_FILE} beside it" if model_file == HUGGINGFACE_FILE else ""
            raise UserError(f"{where} has no end-of-text token{hint}")
        self.vocab_size = len(vocabulary.pieces)
        self.special = vocabulary.special
        self.bos_id, self.eos_id, self.unk_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id
        self.pad_id = next(i for i in (vocabulary.pad_id, self.unk_id, self.eos_id) if i is not None)
        self.adds_bos = self.bos_id is not None
        self.added = vocabulary.added | {
            spelling: vocabulary.added.get(spelling, AddedToken(i))._replace(special=True)
            for spelling, i in self.special.items()
        }
        self.named_tokens = _named_tokens(vocabulary, config)
        self.fingerprint = hashlib.sha256(files[model_file]).hexdigest()
        self.chat_template = _chat_template(files, config)
        self._spellings = {i: spelling for spelling, i in self.special.items()}

    @classmethod
    def load(cls, path: str | epath.Path) -> "Tokenizer":
        """Load a `tokenizer.model`, a `tokenizer.json`, or the folder that holds one.

        A folder with both is a Hugging Face repository, whose `tokenizer.json` is the complete one. A
        `tokenizer_config.json` and `chat_template.jinja` beside the model file are read too.

        Raises:
            UserError: there is no such file, or it is not a tokenizer.
        """
        path = epath.Path(path)
        if path.is_dir():
            names = (HUGGINGFACE_FILE, SENTENCEPIECE_FILE)
            path = next((path / name for name in names if (path / name).exists()), path)
        if not path.is_file():
            raise UserError(
                f"no tokenizer at {path}: expected a {SENTENCEPIECE_FILE} or {HUGGINGFACE_FILE}, or a folder with one"
            )
        files = {HUGGINGFACE_FILE if path.suffix == ".json" else SENTENCEPIECE_FILE: path.read_bytes()}
        for name in (CONFIG_FILE, TEMPLATE_FILE):
            if (path.parent / name).exists():
                files[name] = (path.parent / name).read_bytes()
        return cls(files, str(path))

    def save(self, directory: str | epath.Path) -> None:
        """Copy the model file, and the configuration that came with it, into `directory`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (directory / name).write_bytes(content)

    def __reduce__(self):
        return Tokenizer, (self._files, self._where)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of `text`, with no control token among them.

        Args:
            text: any text.
            continues: whether `text` goes on where other text stopped. A tokenizer that puts a space in front of every
                text (LLaMA's dummy prefix) then leaves it out.

        Raises:
            UserError: `text` holds a lone surrogate, which is half a character and has no UTF-8 form.
        """
        text = self._prepare(text, continues)
        symbol = self._vocabulary.space_symbol
        if symbol is None or symbol not in text:
            return self._vocabulary.encode(text)
        return self._encode_around_symbol(text)[0]

    def encode_with_offsets(self, text: str, *, continues: bool = False) -> tuple[list[int], list[Span]]:
        """Like `encode`, with the span `(start, end)` of characters of `text` that each token covers.

        Tokens that are each a part of one character all have that character's span. The token of a lone prefix space
        has an empty span.
        """
        prepared = self._prepare(text, continues)
        ids, spans = self._encode_around_symbol(prepared)
        shift = len(prepared) - len(text)
        return ids, [(max(start - shift, 0), max(end - shift, 0)) for start, end in spans]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Control tokens are dropped; bytes that form no character become U+FFFD."""
        data = b"".join(map(self._bytes, ids))
        if self._vocabulary.leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """How many characters each token begins, int32 [vocab_size]: summed over the tokens of a text, its length.

        A token that only goes on with a character begins none (UTF-8: RFC 3629, section 3), a control token neither. A
        prefix space, where the tokenizer has one, is counted.
        """
        begun = [sum(byte & 0xC0 != 0x80 for byte in data) for data in self._vocabulary.token_bytes]
        return np.array(begun, np.int32)

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
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        return self._vocabulary.token_bytes[i]

    def _prepare(self, text: str, continues: bool) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start} of a text is the lone surrogate U+{ord(text[error.start]):04X}, half of "
                f"a character, which UTF-8 cannot write: {text[max(0, error.start - 20) : error.start + 20]!r}"
            ) from None
        return self._vocabulary.prefix + text if text and not continues else text

    def _encode_around_symbol(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode, and spell "▁" in bytes: as a piece it would be read as a space and come back as one."""
        symbol = self._vocabulary.space_symbol
        if symbol is None or symbol not in text or self._symbol_ids is None:
            return self._vocabulary.encode_with_offsets(text)
        ids, spans, start = [], [], 0
        for stretch in text.split(symbol):
            if start:
                ids += self._symbol_ids
                spans += [(start - 1, start)] * len(self._symbol_ids)
            stretch_ids, stretch_spans = self._vocabulary.encode_with_offsets(stretch)
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
    """Decodes token by token and holds back the bytes of a character until it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._bytes = tokenizer._bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._space_due = tokenizer._vocabulary.leading_space

    def push(self, i: int) -> str:
        """The text that token `i` completes, perhaps empty."""
        data = self._bytes(i)
        if data and self._space_due:
            data = data.removeprefix(b" ")
            self._space_due = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, otherwise nothing."""
        return self._utf8.decode(b"", final=True)


def _read_config(files: dict[str, bytes]) -> dict:
    try:
        config = json.loads(files.get(CONFIG_FILE, b"{}"))
    except ValueError as error:
        raise UserError(f"{CONFIG_FILE} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG_FILE} is not a JSON object")
    return config


def _named_tokens(vocabulary: HuggingFaceVocabulary | SentencePieceVocabulary, config: dict) -> dict[str, str]:
    """What chat templates find under the names of special tokens: like in transformers, only those that there are."""
    ids = {name: getattr(vocabulary, f"{name}_id") for name in ("bos", "eos", "unk", "pad")}
    named = {f"{name}_token": None if i is None else vocabulary.pieces[i] for name, i in ids.items()}
    if "unk_token" in config:  # the model may know of none, or of another
        given = config["unk_token"]
        named["unk_token"] = given["content"] if isinstance(given, dict) else given
    return {name: spelling for name, spelling in named.items() if spelling is not None}


def _chat_template(files: dict[str, bytes], config: dict) -> str | None:
    """The chat template among Hugging Face's files; of several named ones, the one named `default`."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode()
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template
