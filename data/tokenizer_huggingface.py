"""A Hugging Face `tokenizer.json` as a vocabulary: its control tokens, its bytes, and bare encoding of plain text.

"Bare" means that nothing is added: neither the tokens of its post-processor nor the space that LLaMA's tokenizers put
in front of a text, which is left to `Tokenizer`. Added tokens marked `special` are control tokens and are never found
in text; other added tokens are ordinary vocabulary, as their tokenizer means them to be.
"""

import json
from collections.abc import Callable, Iterator

import tokenizers

from .added_tokens import AddedToken
from .errors import UserError
from .tokenizer_sentencepiece import SPACE_SYMBOL

# Spellings looked for when no tokenizer_config.json says which tokens begin and end a text.
BOS_SPELLINGS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
EOS_SPELLINGS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")
PAD_SPELLINGS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


class HuggingFaceVocabulary:
    """The tokens of a `tokenizer.json`, its control tokens, and `encode` without any prefix."""

    def __init__(self, model: bytes, config: dict, where: str):
        spec = _parse(model, where)
        self.prefix = " " if _remove_prefix(spec) else ""
        self._tokenizer = _load(spec, where)
        self.added = {  # before bos, eos and pad are made control tokens, which takes their flags away
            token.content: AddedToken(i, token.special, token.single_word, token.lstrip, token.rstrip)
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        ids = _named_ids(self._tokenizer, config, where)
        self.bos_id, self.eos_id, self.pad_id = ids["bos_token"], ids["eos_token"], ids["pad_token"]
        self.unk_id = _unknown_id(spec, self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {
            token.content: i
            for i, token in sorted(added.items())
            if token.special and (i != self.unk_id or i in (self.bos_id, self.eos_id))
        }
        self._control = frozenset(self.special.values())
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.pieces = [""] * (max(vocabulary.values()) + 1)  # ids may have holes
        for spelling, i in vocabulary.items():
            self.pieces[i] = spelling
        steps = list(_steps(spec.get("decoder")))
        self.space_symbol = SPACE_SYMBOL if SPACE_SYMBOL in json.dumps(steps, ensure_ascii=False) else None
        self.leading_space = bool(self.prefix) or not steps or steps[0]["type"] == "WordPiece"
        to_bytes = _bytes_of_token(steps, where)
        self.token_bytes = [to_bytes(piece) for piece in self.pieces]
        for i, token in added.items():
            self.token_bytes[i] = b"" if token.content in self.special else token.content.encode()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which holds no space symbol."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the span of characters that each one covers."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, spans = encoding.ids, encoding.offsets
        if self._control.isdisjoint(ids):
            return ids, spans
        # Some files also hold a control token's spelling as an ordinary word of their model: cut the text inside it.
        start, end = next(span for i, span in zip(ids, spans, strict=True) if i in self._control)
        if end - start < 2:
            raise UserError(f"the tokenizer has no way to write {text[start:end]!r} but its control token")
        cut = start + 1
        left_ids, left_spans = self.encode_with_offsets(text[:cut])
        right_ids, right_spans = self.encode_with_offsets(text[cut:])
        return left_ids + right_ids, left_spans + [(a + cut, b + cut) for a, b in right_spans]


def _parse(model: bytes, where: str) -> dict:
    try:
        spec = json.loads(model)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(spec, dict) or "model" not in spec:
        raise UserError(f"{where} is not a tokenizer.json of Hugging Face's tokenizers: it has no 'model'")
    return spec


def _load(spec: dict, where: str) -> tokenizers.Tokenizer:
    # Truncation and padding ride along in files saved by a training script; text must come out whole. A post-processor
    # would take the space out of the span of a token that begins with it.
    spec = spec | {"truncation": None, "padding": None, "post_processor": None}
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{where} cannot be read by tokenizers {tokenizers.__version__}: {error}") from None
    tokenizer.encode_special_tokens = True  # the spelling of a control token in text is plain text
    return tokenizer


def _remove_prefix(spec: dict) -> bool:
    """Take the parts that put a space in front of a text out of `spec`; whether there were any."""
    found = False
    for step in [*_steps(spec.get("normalizer")), *_steps(spec.get("pre_tokenizer"))]:
        if step["type"] == "Prepend" and step["prepend"] in (SPACE_SYMBOL, " "):
            found = True
            step.clear()
            step.update(type="Sequence", normalizers=[])
        elif step["type"] == "Metaspace":
            found |= step.get("prepend_scheme", "always") != "never"
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)  # the older name of the same setting
        elif step["type"] == "ByteLevel":
            found |= step["add_prefix_space"]
            step["add_prefix_space"] = False
    return found


def _steps(part: dict | None) -> Iterator[dict]:
    """The single steps of a normalizer, pre-tokenizer or decoder, sequences unrolled."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(key, ()):
            yield from _steps(step)


def _named_ids(tokenizer: tokenizers.Tokenizer, config: dict, where: str) -> dict[str, int | None]:
    """The ids of bos, eos and pad, by `tokenizer_config.json` or well-known spellings; each is made a control token."""
    ids = {}
    defaults = {"bos_token": BOS_SPELLINGS, "eos_token": EOS_SPELLINGS, "pad_token": PAD_SPELLINGS}
    for name, known in defaults.items():
        if name in config:
            spelling = config[name]["content"] if isinstance(config[name], dict) else config[name]
            if spelling is not None and tokenizer.token_to_id(spelling) is None:
                raise UserError(f"tokenizer_config.json names {name} {spelling!r}, which {where} does not have")
        else:
            spelling = next((s for s in known if tokenizer.token_to_id(s) is not None), None)
        if name == "bos_token" and config.get("add_bos_token") is False:
            spelling = None  # the tokenizer says that its texts begin without one
        ids[name] = None
        if spelling is not None:
            tokenizer.add_special_tokens([tokenizers.AddedToken(spelling, special=True, normalized=False)])
            ids[name] = tokenizer.token_to_id(spelling)
    return ids


def _unknown_id(spec: dict, tokenizer: tokenizers.Tokenizer) -> int | None:
    """The token that the model itself writes for what it does not know."""
    model = spec["model"]
    if model.get("unk_id") is not None:  # Unigram
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _bytes_of_token(steps: list[dict], where: str) -> Callable[[str], bytes]:
    """A function from a token's spelling to the UTF-8 bytes that it decodes to, by the tokenizer's own decoder.

    Decoding by bytes, token by token, is what makes a stream of tokens give the same text as all of them at once.
    """
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    unsupported = kinds.keys() - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}
    if unsupported:
        raise UserError(f"{where} decodes by {', '.join(sorted(unsupported))}, which camelid does not know")

    def to_bytes(token: str) -> bytes:
        if not steps:  # tokenizers joins the tokens of a file without a decoder by spaces
            return b" " + token.encode()
        for step in steps:
            if step["type"] == "ByteFallback" and len(token) == 6 and token.startswith("<0x"):
                return bytes([int(token[1:-1], 16)])
            token = _decode_step(step, token)
        return token.encode()

    return to_bytes


def _decode_step(step: dict, token: str) -> str:
    """One step of a decoder on one token. Fuse joins tokens, and Strip is `Tokenizer`'s: it drops the prefix."""
    match step["type"]:
        case "Replace" if "String" in step["pattern"]:
            return token.replace(step["pattern"]["String"], step["content"])
        case "Metaspace":
            return token.replace(step["replacement"], " ")
        case "WordPiece":
            return token.removeprefix(step["prefix"]) if token.startswith(step["prefix"]) else " " + token
    return token


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes as printable characters, turned around.

    Printable Latin-1 characters stand for themselves, and the other bytes, in order, for U+0100 onwards.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[c] for c in token)
    except KeyError:  # not spelled in GPT-2's alphabet: the token is its own text
        return token.encode()
