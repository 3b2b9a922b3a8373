"""A Hugging Face `tokenizer.json` as a vocabulary: control tokens, bytes of every token, and encoding of plain text.

Text is encoded by `tokenizers` with the file's own normaliser and pre-tokenizer. They decide whether a space is put in
front of a text: at the start of a text; after a control token, where `Prepend`, `Metaspace` with the scheme `always`
and `ByteLevel` put one and `Metaspace` with the scheme `first` does not; and never within a text. The post-processor
only decides whether plain text begins with bos; `Tokenizer` adds bos itself.

Added tokens marked `special` are control tokens and are never found in text. Other added tokens are ordinary
vocabulary.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import tokenizers
import tokenizers.decoders

from ..errors import UserError, shown
from .tokenizer_sentencepiece import SPACE_SYMBOL, TextPosition
from .tokenizer_settings import CONFIG_FILE, MAX_IDS, NOTHING, AddedToken, TokenizerSettings, one_line

# Spellings to look for if no tokenizer_config.json names the tokens that begin, end and pad a text.
KNOWN_SPELLINGS = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}


class HuggingFaceVocabulary:
    """The vocabulary of a `tokenizer.json`, and encoding at each position of a text.

    Attributes:
        pieces: the spelling of each id in the file; "" for an id without a token.
        added: id and flags of each added token by spelling, special or not.
        named: the spellings of bos_token, eos_token, unk_token and pad_token, of those that exist.
        special: ids of the control tokens by spelling.
        bos_id: id of bos, or None.
        eos_id: id of eos, or None.
        pad_id: id of the padding token, or None.
        unk_id: id of the unknown token, or None.
        adds_bos: whether the post-processor begins a text with bos.
        unused: ids without a token.
        token_bytes: the UTF-8 bytes of each id; empty for control tokens.
        space_symbol: the character that spells a space in pieces, or None.
        leading_space: whether decoded text begins with a space that is not the text's.
        rules: what decides tokens besides the model file and the names.
    """

    trailing_space = False
    found_whole: ClassVar = {}

    def __init__(self, model: bytes, where: str, settings: TokenizerSettings = NOTHING):
        """
        Args:
            model: the content of the tokenizer.json.
            where: its path, for messages.
            settings: the content of the files beside it.

        Raises:
            UserError: the file is malformed, or the files beside it contradict it.
        """
        self._spec, self._where = _parse(model, where), where
        self._tokenizer = _load(self._spec, where)
        own = _added(self._tokenizer)
        self.unk_id = _unknown_id(self._spec, self._tokenizer)
        self.named = _add_and_name(self._tokenizer, settings, where)
        unknown = settings.names.get("unk_token")
        if unknown is not None and self._tokenizer.token_to_id(unknown) is not None:
            self.named["unk_token"] = unknown
        elif self.unk_id is not None:
            self.named["unk_token"] = self._tokenizer.id_to_token(self.unk_id)
        ids = {name: self._tokenizer.token_to_id(spelling) for name, spelling in self.named.items()}
        self.bos_id, self.eos_id, self.pad_id = (ids.get(name) for name in KNOWN_SPELLINGS)
        self.added = _added(self._tokenizer)
        self.special = {
            spelling: token.id
            for spelling, token in sorted(self.added.items(), key=lambda item: item[1].id)
            if token.special and (token.id != self.unk_id or token.id in (self.bos_id, self.eos_id))
        }
        self._control = frozenset(self.special.values())
        self.adds_bos = _begins_with(self._spec.get("post_processor"), self.bos_id, where)
        self.pieces = _pieces(self._tokenizer, where)
        self.unused = {i for i, piece in enumerate(self.pieces) if not piece}
        self._parts = _parts_by_position(self._tokenizer)
        self._by_position = {"start": self._tokenizer}
        steps = list(_steps(_part(self._tokenizer.decoder)))
        self.space_symbol = SPACE_SYMBOL if SPACE_SYMBOL in json.dumps(steps, ensure_ascii=False) else None
        has_prefix = self._parts["start"] != self._parts["within"]
        self.leading_space = has_prefix or not steps or steps[0]["type"] == "WordPiece"
        to_bytes = _bytes_of_token(steps, where)
        self.token_bytes = [to_bytes(piece) if piece else b"" for piece in self.pieces]
        for spelling, token in self.added.items():
            found = self._tokenizer.id_to_token(token.id)  # with a space before it if the normaliser puts one
            written = spelling if self.space_symbol is None else found.replace(self.space_symbol, " ")
            self.token_bytes[token.id] = b"" if spelling in self.special else written.encode()
        changed = {s: token for s, token in self.added.items() if own.get(s) != token and s not in self.named.values()}
        rules = {"added": sorted((s, *token) for s, token in changed.items()), "spaces": has_prefix}
        self.rules = {name: rule for name, rule in rules.items() if rule}

    def position_after(self, i: int) -> TextPosition:
        """The position of text after control token `i`; the file decides whether a space is put in front."""
        return "after"

    def at(self, position: TextPosition) -> tokenizers.Tokenizer:
        """The tokenizer that treats spaces in front of a text as they are treated at `position`."""
        parts = self._parts[position]
        same = next((p for p in self._by_position if self._parts[p] == parts), None)
        if same is None:
            tokenizer = _load(self._spec | parts, self._where)
            for token in self._tokenizer.get_added_tokens_decoder().values():
                tokenizer.add_tokens([token])
            self._by_position[position], same = tokenizer, position
        return self._by_position[same]

    def encode(self, text: str, position: TextPosition) -> list[int]:
        """Token ids of `text`, which must not hold the space symbol."""
        return self.encode_with_offsets(text, position)[0]

    def encode_with_offsets(self, text: str, position: TextPosition) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and the span (start, end) of characters that each token covers."""
        try:
            encoding = self.at(position).encode(text, add_special_tokens=False)
        except BaseException as error:
            _reraise_foreign(error)
            raise UserError(f"{self._where}: tokenizers cannot encode {shown(text)}: {one_line(error)}") from None
        ids, spans = encoding.ids, encoding.offsets
        if not self._control.isdisjoint(ids):
            return self._cut_control(text, ids, spans, position)
        if self.leading_space and len(ids) > 1 and self.token_bytes[ids[0]] == b" " and not text.startswith(" "):
            spans = [(spans[0][0], spans[0][0]), *spans[1:]]  # a prefix space covers no character of the text
        return ids, spans

    def _cut_control(
        self, text: str, ids: list[int], spans: list[tuple[int, int]], position: TextPosition
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and spans of a text in which the model finds control tokens: their spellings are cut in two and encoded.

        Some files also hold the spelling of a control token as an ordinary word of the model.

        Args:
            text: the text.
            ids: its ids, with control tokens.
            spans: the spans of the ids.
            position: where the text is.
        """
        cuts = [0]
        for i, (start, end) in zip(ids, spans, strict=True):
            if i in self._control:
                if end - start < 2:
                    raise UserError(f"remove {text[start:end]!r} from the text: it is a control token only")
                cuts.append(start + 1)
        found_ids, found_spans = [], []
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            part_ids, part_spans = self.encode_with_offsets(text[start:end], "within" if start else position)
            found_ids += part_ids
            found_spans += [(a + start, b + start) for a, b in part_spans]
        return found_ids, found_spans


# Reading --------------------------------------------------------------------------------------------------------------


def _parse(model: bytes, where: str) -> dict[str, Any]:
    """Parses the bytes of a tokenizer.json; truncation, padding and dropout are off in the result.

    Args:
      model: content of the file.
      where: its path, for error messages.

    Raises UserError if the file is not a tokenizer.json, or has merges on which the library tokenizers panics.
    """
    try:
        spec = json.loads(model)
    except (ValueError, RecursionError) as error:
        pointer = model.startswith(b"version https://git-lfs")
        why = "it is a Git LFS pointer; run `git lfs pull`" if pointer else error
        raise UserError(f"{where} is not JSON: {why}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError(f"{where} is not a tokenizer.json of Hugging Face's tokenizers: it has no object 'model'")
    # Files saved by a training script may have truncation, padding and dropout. Text must be encoded whole, and always
    # in the same way.
    spec |= {"truncation": None, "padding": None}
    if "dropout" in spec["model"]:
        spec["model"]["dropout"] = None
    _check_merges(spec["model"], where)
    for step in _steps(spec.get("pre_tokenizer")):
        if step.get("type") == "Metaspace" and step.get("add_prefix_space") is False:
            step.setdefault("prepend_scheme", "never")  # the spelling in older files
    return spec


def _check_merges(model: dict[str, Any], where: str) -> None:
    """Raises UserError for merges on which tokenizers panics: second parts without the model's subword prefix."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not prefix or not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and len(parts) == 2 and not str(parts[1]).startswith(prefix):
            raise UserError(f"{where}: merge {shown(merge)}: the second part lacks the model's prefix {shown(prefix)}")


def _load(spec: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    """A tokenizer without post-processor, which encodes the spellings of control tokens as plain text."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec | {"post_processor": None}))
    except BaseException as error:  # tokenizers raises bare Exceptions, and panics, which are not Exceptions
        _reraise_foreign(error)
        raise UserError(f"{where} cannot be read by tokenizers {tokenizers.__version__}: {one_line(error)}") from None
    tokenizer.encode_special_tokens = True  # despite its name: encodes the spelling of a control token as plain text
    return tokenizer


def _reraise_foreign(error: BaseException) -> None:
    """Re-raises an error that is neither an Exception nor a panic of tokenizers, such as KeyboardInterrupt."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _part(part: Any) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder as JSON in the form that tokenizers writes."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The single steps of a normalizer, pre-tokenizer, post-processor or decoder, with sequences flattened."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for step in part.get(key) or ():
            yield from _steps(step)


def _parts_by_position(tokenizer: tokenizers.Tokenizer) -> dict[TextPosition, dict[str, Any]]:
    """The JSON of the normaliser and the pre-tokenizer for each position of a text."""

    def parts() -> dict[str, Any]:
        return {"normalizer": _part(tokenizer.normalizer), "pre_tokenizer": _part(tokenizer.pre_tokenizer)}

    found = {"start": parts(), "after": parts(), "within": parts()}
    for step in _steps(found["after"]["pre_tokenizer"]):
        if step["type"] == "Metaspace" and step["prepend_scheme"] == "first":
            step["prepend_scheme"] = "never"
    for step in [*_steps(found["within"]["normalizer"]), *_steps(found["within"]["pre_tokenizer"])]:
        if step["type"] == "Prepend" and step["prepend"] in (SPACE_SYMBOL, " "):
            step.clear()
            step.update(type="Sequence", normalizers=[])
        elif step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return found


def _added(tokenizer: tokenizers.Tokenizer) -> dict[str, AddedToken]:
    """Id and flags of each added token, by spelling."""
    return {
        token.content: AddedToken(i, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }


def _add_and_name(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, where: str) -> dict[str, str]:
    """Adds the tokens that the files beside the model file add, and makes bos, eos and pad control tokens.

    Returns:
        The spellings of bos_token, eos_token and pad_token, of those that exist.
    """
    own = _added(tokenizer)
    placed = {spelling: token for spelling, token in settings.added.items() if token.id is not None}
    for spelling, token in sorted(placed.items(), key=lambda item: item[1].id):
        if spelling not in own or (settings.overrides and own[spelling]._replace(id=token.id) != token):
            _add(tokenizer, spelling, token)
        if (i := tokenizer.token_to_id(spelling)) != token.id and spelling not in own:
            raise UserError(f"the files beside {where} give {spelling!r} id {token.id}; make it {i}, as in {where}")
    for spelling, token in settings.added.items():
        if token.id is None:
            _add(tokenizer, spelling, own[spelling]._replace(special=True) if spelling in own else token)
    named = {}
    for name, known in KNOWN_SPELLINGS.items():
        if name in settings.names:
            spelling = settings.names[name]
            if spelling is not None and tokenizer.token_to_id(spelling) is None and name != "pad_token":
                raise UserError(f"{CONFIG_FILE} names {name} {spelling!r}, which {where} lacks: name another")
        else:
            spelling = next((s for s in known if tokenizer.token_to_id(s) is not None), None)
        if spelling is not None:
            token = _added(tokenizer).get(spelling) or AddedToken(None, special=True)
            if not token.special or token.id is None:
                _add(tokenizer, spelling, token._replace(special=True))
            named[name] = spelling
    return named


def _add(tokenizer: tokenizers.Tokenizer, spelling: str, token: AddedToken) -> None:
    flags = token._asdict()
    del flags["id"]
    tokenizer.add_tokens([tokenizers.AddedToken(spelling, **flags)])


def _pieces(tokenizer: tokenizers.Tokenizer, where: str) -> list[str]:
    """The spelling of each id; "" for an id without a token."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocabulary.values(), default=-1)
    if last >= MAX_IDS:
        raise UserError(f"{where} has an id {last:,}; ids must be below {MAX_IDS:,}")
    if last < 0:
        raise UserError(f"{where} has no tokens")
    pieces = [""] * (last + 1)  # some ids may have no token
    for spelling, i in vocabulary.items():
        pieces[i] = spelling
    return pieces


def _unknown_id(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id that the model gives to text that it does not know; None if there is none."""
    model = spec["model"]
    if model.get("unk_id") is not None:  # Unigram
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _begins_with(post_processor: Any, bos_id: int | None, where: str) -> bool:
    """Whether a post-processor puts the token `bos_id` in front of a text."""
    if post_processor is None or bos_id is None:
        return False
    probe = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}
    try:
        probing = tokenizers.Tokenizer.from_str(json.dumps(probe | {"post_processor": post_processor}))
        for step in _steps(_part(probing.post_processor)):
            if step["type"] == "TemplateProcessing":
                _check_template(step, where)
        encoding = probing.encode("a")
    except UserError:
        raise
    except BaseException as error:
        _reraise_foreign(error)
        raise UserError(f"{where}: its post_processor cannot be read by tokenizers: {one_line(error)}") from None
    return encoding.special_tokens_mask[:1] == [1] and encoding.ids[0] == bos_id


def _check_template(step: dict[str, Any], where: str) -> None:
    """Raises UserError for a TemplateProcessing step on which tokenizers panics."""
    for item in step["single"]:
        token, text = item.get("SpecialToken", {}).get("id"), item.get("Sequence", {}).get("id", "A")
        if token is not None and token not in step["special_tokens"]:
            raise UserError(f"{where}: its post_processor inserts {shown(token)} without giving its id")
        if text != "A":
            raise UserError(f"{where}: its post_processor has a second text, {shown(text)}, in the template for one")


def _bytes_of_token(steps: list[dict], where: str) -> Callable[[str], bytes]:
    """A function from the spelling of a token to the UTF-8 bytes that the file's decoder makes of it.

    Decoding tokens to bytes one by one gives a stream of tokens the same text as all of them at once.
    """
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    unsupported = kinds.keys() - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}
    if unsupported:
        raise UserError(f"{where} has the decoder {', '.join(sorted(unsupported))}, which is not supported")

    def to_bytes(token: str) -> bytes:
        if not steps:  # without a decoder, tokenizers joins tokens by spaces
            return b" " + token.encode()
        for step in steps:
            if step["type"] == "ByteFallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
                return bytes([int(token[1:-1], 16)])
            token = _decode_step(step, token)
        return token.encode()

    return to_bytes


def _decode_step(step: dict, token: str) -> str:
    """One step of a decoder applied to one token. Fuse changes nothing here; `Tokenizer` does the work of Strip."""
    match step["type"]:
        case "Replace" if "String" in step["pattern"]:
            return token.replace(step["pattern"]["String"], step["content"])
        case "Replace":
            return _replacing(step["pattern"]["Regex"], step["content"]).decode([token])
        case "Metaspace":
            return token.replace(step["replacement"], " ")
        case "WordPiece":
            return token.removeprefix(step["prefix"]) if token.startswith(step["prefix"]) else " " + token
    return token


@functools.lru_cache(maxsize=8)
def _replacing(regex: str, content: str) -> tokenizers.decoders.Replace:
    return tokenizers.decoders.Replace(tokenizers.Regex(regex), content)


def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character in GPT-2's spelling of bytes.

    A byte that is a printable Latin-1 character is spelled by itself; the others, in order, by U+0100 and following.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[c] for c in token)
    except KeyError:  # not in GPT-2's alphabet: the token is plain text
        return token.encode()
