"""A Hugging Face `tokenizer.json` as a vocabulary: its control tokens, its bytes, and encoding of plain text.

Text is encoded by tokenizers with the file's own normaliser and pre-tokenizer, so that a space in front is put, or not,
as they put it: at the start of a text; after a control token, where `Prepend`, `Metaspace` of scheme `always` and
`ByteLevel` put one too and `Metaspace` of scheme `first` does not; and within a text, where none is put. What a
post-processor adds is left out: it says whether plain text begins with bos, and `Tokenizer` says it to the rest.

Added tokens marked `special` are control tokens and are never found in text; other added tokens are ordinary
vocabulary, as their tokenizer means them to be.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import tokenizers
import tokenizers.decoders

from ..errors import UserError
from .tokenizer_sentencepiece import SPACE_SYMBOL, Place
from .tokenizer_settings import CONFIG_FILE, MAX_IDS, NOTHING, AddedToken, Settings, one_line
from .values import shown

# Spellings looked for when no tokenizer_config.json says which tokens begin and end a text.
KNOWN_SPELLINGS = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
}


class HuggingFaceVocabulary:
    """The tokens of a `tokenizer.json`, its control tokens, and encoding at each place of a text.

    Attributes:
        pieces: the spelling of each id in the file, empty where an id is a hole.
        added: added tokens by spelling, special or not.
        named: the spellings of bos_token, eos_token, unk_token and pad_token, of those that there are.
        adds_bos: whether the post-processor begins a text with bos.
        rules: what decides tokens beside the model file and the names.
    """

    trailing_space = False
    found_whole: ClassVar = {}

    def __init__(self, model: bytes, where: str, settings: Settings = NOTHING):
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
        self._parts = _parts_by_place(self._tokenizer)
        self._by_place = {"start": self._tokenizer}
        steps = list(_steps(_part(self._tokenizer.decoder)))
        self.space_symbol = SPACE_SYMBOL if SPACE_SYMBOL in json.dumps(steps, ensure_ascii=False) else None
        has_prefix = self._parts["start"] != self._parts["within"]
        self.leading_space = has_prefix or not steps or steps[0]["type"] == "WordPiece"
        to_bytes = _bytes_of_token(steps, where)
        self.token_bytes = [to_bytes(piece) if piece else b"" for piece in self.pieces]
        for spelling, token in self.added.items():
            found = self._tokenizer.id_to_token(token.id)  # with a space before it, where the normaliser puts one
            written = spelling if self.space_symbol is None else found.replace(self.space_symbol, " ")
            self.token_bytes[token.id] = b"" if spelling in self.special else written.encode()
        changed = {s: token for s, token in self.added.items() if own.get(s) != token and s not in self.named.values()}
        rules = {"added": sorted((s, *token) for s, token in changed.items()), "spaces": has_prefix}
        self.rules = {name: rule for name, rule in rules.items() if rule}

    def place_after(self, i: int) -> Place:
        """Where text stands that follows control token `i`: the file says what that means."""
        return "after"

    def at(self, place: Place) -> tokenizers.Tokenizer:
        """The tokenizer that puts a space in front, or not, as text at `place` gets it."""
        parts = self._parts[place]
        same = next((p for p in self._by_place if self._parts[p] == parts), None)
        if same is None:
            tokenizer = _load(self._spec | parts, self._where)
            for token in self._tokenizer.get_added_tokens_decoder().values():
                tokenizer.add_tokens([token])
            self._by_place[place], same = tokenizer, place
        return self._by_place[same]

    def encode(self, text: str, place: Place) -> list[int]:
        """Token ids of `text`, which holds no space symbol."""
        return self.encode_with_offsets(text, place)[0]

    def encode_with_offsets(self, text: str, place: Place) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the span of characters that each one covers."""
        try:
            encoding = self.at(place).encode(text, add_special_tokens=False)
        except BaseException as error:
            _reraise_foreign(error)
            raise UserError(f"{self._where}: tokenizers cannot encode {shown(text)}: {one_line(error)}") from None
        ids, spans = encoding.ids, encoding.offsets
        if not self._control.isdisjoint(ids):
            return self._cut_control(text, ids, spans, place)
        if self.leading_space and len(ids) > 1 and self.token_bytes[ids[0]] == b" " and not text.startswith(" "):
            spans = [(spans[0][0], spans[0][0]), *spans[1:]]  # a space in front covers nothing of the text
        return ids, spans

    def _cut_control(
        self, text: str, ids: list[int], spans: list[tuple[int, int]], place: Place
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Some files also hold a control token's spelling as an ordinary word of their model: cut the text inside."""
        cuts = [0]
        for i, (start, end) in zip(ids, spans, strict=True):
            if i in self._control:
                if end - start < 2:
                    raise UserError(f"the tokenizer has no way to write {text[start:end]!r} but its control token")
                cuts.append(start + 1)
        found_ids, found_spans = [], []
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            part_ids, part_spans = self.encode_with_offsets(text[start:end], "within" if start else place)
            found_ids += part_ids
            found_spans += [(a + start, b + start) for a, b in part_spans]
        return found_ids, found_spans


# Reading --------------------------------------------------------------------------------------------------------------


def _parse(model: bytes, where: str) -> dict[str, Any]:
    try:
        spec = json.loads(model)
    except (ValueError, RecursionError) as error:
        pointer = model.startswith(b"version https://git-lfs")
        why = "Git LFS keeps its place until `git lfs pull` fetches it" if pointer else error
        raise UserError(f"{where} is not JSON: {why}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError(f"{where} is not a tokenizer.json of Hugging Face's tokenizers: it has no 'model'")
    # Truncation and padding ride along in files saved by a training script, dropout in their model; text must come out
    # whole, and the same each time.
    spec |= {"truncation": None, "padding": None}
    if "dropout" in spec["model"]:
        spec["model"]["dropout"] = None
    _check_merges(spec["model"], where)
    for step in _steps(spec.get("pre_tokenizer")):
        if step.get("type") == "Metaspace" and step.get("add_prefix_space") is False:
            step.setdefault("prepend_scheme", "never")  # as older files say it
    return spec


def _check_merges(model: dict[str, Any], where: str) -> None:
    """Refuses merges on which tokenizers would panic: second parts that are shorter than the prefix they must have."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not prefix or not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and len(parts) == 2 and not str(parts[1]).startswith(prefix):
            raise UserError(f"{where}: merge {shown(merge)} goes on without the model's prefix {shown(prefix)}")


def _load(spec: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec | {"post_processor": None}))
    except BaseException as error:  # tokenizers raises bare Exception, and panics, which are none
        _reraise_foreign(error)
        raise UserError(f"{where} cannot be read by tokenizers {tokenizers.__version__}: {one_line(error)}") from None
    tokenizer.encode_special_tokens = True  # the spelling of a control token in text is plain text
    return tokenizer


def _reraise_foreign(error: BaseException) -> None:
    """Lets through what is not tokenizers' own: only its panics are no Exception and may be turned into a message."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _part(part: Any) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder as tokenizers itself writes it, whatever the spelling in the file."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The single steps of a normalizer, pre-tokenizer or decoder, sequences unrolled."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for step in part.get(key) or ():
            yield from _steps(step)


def _parts_by_place(tokenizer: tokenizers.Tokenizer) -> dict[Place, dict[str, Any]]:
    """Normaliser and pre-tokenizer of each place of a text."""

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
    return {
        token.content: AddedToken(i, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }


def _add_and_name(tokenizer: tokenizers.Tokenizer, settings: Settings, where: str) -> dict[str, str]:
    """Adds what the files beside the model file add, and makes bos, eos and pad control tokens; their spellings."""
    own = _added(tokenizer)
    placed = {spelling: token for spelling, token in settings.added.items() if token.id is not None}
    for spelling, token in sorted(placed.items(), key=lambda item: item[1].id):
        if spelling not in own or (settings.overrides and own[spelling]._replace(id=token.id) != token):
            _add(tokenizer, spelling, token)
        if (i := tokenizer.token_to_id(spelling)) != token.id and spelling not in own:
            raise UserError(f"the files beside {where} say that {spelling!r} is id {token.id}; with {where} it is {i}")
    for spelling, token in settings.added.items():
        if token.id is None:
            _add(tokenizer, spelling, own[spelling]._replace(special=True) if spelling in own else token)
    named = {}
    for name, known in KNOWN_SPELLINGS.items():
        if name in settings.names:
            spelling = settings.names[name]
            if spelling is not None and tokenizer.token_to_id(spelling) is None and name != "pad_token":
                raise UserError(f"{CONFIG_FILE} names {name} {spelling!r}, which {where} does not have")
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
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocabulary.values(), default=-1)
    if last >= MAX_IDS:
        raise UserError(f"{where} has an id {last:,}, beyond the {MAX_IDS:,} ids that a vocabulary may have")
    if last < 0:
        raise UserError(f"{where} has no tokens")
    pieces = [""] * (last + 1)  # ids may have holes
    for spelling, i in vocabulary.items():
        pieces[i] = spelling
    return pieces


def _unknown_id(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> int | None:
    """The token that the model itself writes for what it does not know."""
    model = spec["model"]
    if model.get("unk_id") is not None:  # Unigram
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _begins_with(post_processor: Any, bos_id: int | None, where: str) -> bool:
    """Whether a post-processor puts token `bos_id` in front of a text."""
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
    """Refuses a post-processor on which tokenizers would panic."""
    for item in step["single"]:
        token, text = item.get("SpecialToken", {}).get("id"), item.get("Sequence", {}).get("id", "A")
        if token is not None and token not in step["special_tokens"]:
            raise UserError(f"{where}: its post_processor puts in {shown(token)}, whose id it does not say")
        if text != "A":
            raise UserError(f"{where}: its post_processor wants a second text, {shown(text)}, where there is one")


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
            if step["type"] == "ByteFallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
                return bytes([int(token[1:-1], 16)])
            token = _decode_step(step, token)
        return token.encode()

    return to_bytes


def _decode_step(step: dict, token: str) -> str:
    """One step of a decoder on one token. Fuse joins tokens, and Strip is `Tokenizer`'s: it drops the prefix."""
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
