"""The tokenizer inside a GGUF file: from its metadata to the files that `Tokenizer` takes, and back.

GGUF knows byte-level BPE as "gpt2" and SentencePiece BPE as "llama". Of a byte-level tokenizer it keeps the vocabulary
and the merges, but of the way text is cut before the merges only a name, `tokenizer.ggml.pre`: what each name stands
for is written out here, as the models that made it known publish it. Normalisers have no place in the format; Qwen 2's
belongs to its name.

A byte that has no token of its own (SmolLM2 lacks 21 of them) is left out of what is encoded, as by its own tokenizer.
"""

import enum
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from ...data.tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer
from ...data.tokenizer_sentencepiece import SPACE_SYMBOL
from ...data.tokenizer_settings import CONFIG_FILE, LEGACY_VALUES, AddedToken, one_line
from ...errors import UserError

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model
LEGACY = "camelid.tokenizer.legacy"  # our own key for `legacy` of a tokenizer_config.json
ADDED_SCORE = -1000.0  # of tokens that the model does not merge; llama.cpp's converter writes the same
NAMED_IDS = ("bos", "eos", "unknown", "padding")
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # where the file does not say


class TokenType(enum.IntEnum):
    """What a token is, by the numbers that GGUF took over from SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Cut(NamedTuple):
    """What a value of `tokenizer.ggml.pre` stands for.

    Attributes:
        steps: the pre-tokenizers of a `tokenizer.json`, in order, as tokenizers writes them.
        normalizers: the types of its normalisers.
        ignore_merges: whether a stretch that is a token as a whole is that token, whatever the merges would make of it.
        adds_bos: whether texts begin with bos where `add_bos_token` does not say.
    """

    steps: list[dict[str, Any]]
    normalizers: tuple[str, ...] = ()
    ignore_merges: bool = False
    adds_bos: bool = False


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = _byte_level(use_regex=False)
_GPT2_WORDS = _byte_level(use_regex=True)
_GPT2_REGEX = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel cuts by
_WORDS_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _split(_WORDS_REGEX.replace("DIGITS", "{1,3}"))
_QWEN2_WORDS = _split(_WORDS_REGEX.replace("DIGITS", ""))
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_WORDS = _split(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (  # those that have a case; escaped where an editor that normalises would change them
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-"
    "ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LINES, _DEEPSEEK_HAN = _split("[\r\n]"), _split("[一-龥ࠀ-一가-퟿]+")

CUTS = {
    "gpt-2": Cut([_GPT2_WORDS]),
    "smollm": Cut([_DIGITS, _GPT2_WORDS]),
    "llama-bpe": Cut([_LLAMA3_WORDS, _BYTES], ignore_merges=True, adds_bos=True),
    "smaug-bpe": Cut([_LLAMA3_WORDS, _BYTES]),
    "qwen2": Cut([_QWEN2_WORDS, _BYTES], normalizers=("NFC",)),
    "deepseek-r1-qwen": Cut([_QWEN2_WORDS, _BYTES]),
    "tekken": Cut([_TEKKEN_WORDS, _BYTES], ignore_merges=True, adds_bos=True),
    "deepseek-llm": Cut(
        [
            _DEEPSEEK_LINES,
            _split(rf"\s?[{_DEEPSEEK_LETTERS}]+"),
            _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            _split(r"\s+$"),
            _DEEPSEEK_HAN,
            _DIGITS,
            _BYTES,
        ]
    ),
    "deepseek-coder": Cut(
        [_DEEPSEEK_LINES, _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _DEEPSEEK_HAN, _DIGITS, _BYTES]
    ),
    "default": Cut(
        [_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT2_REGEX), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _BYTES]
    ),
}
SAME_CUTS = {
    **dict.fromkeys(("phi-2", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), "llama-bpe"),
    "dbrx": "smaug-bpe",  # Phi 4
}


def tokenizer_files(fields: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """The files of the tokenizer that a GGUF file's metadata describes.

    Args:
        fields: metadata by key, as `gguf.GGUFReader` gives it: strings, numbers, booleans and lists of these.
        where: name of the GGUF file, for messages.

    Returns:
        A `tokenizer.json` or `tokenizer.model`, with a `tokenizer_config.json`, by file name: what `Tokenizer` takes.

    Raises:
        UserError: the tokenizer is of a kind or a pre-tokenizer that camelid does not know, or a field is missing or
            malformed.
    """
    model = _value(fields, "tokenizer.ggml.model", str, None, where)
    if model not in (BYTE_LEVEL, SENTENCEPIECE):
        raise UserError(
            f"{where} has a tokenizer of model {shown(model)}: camelid reads {BYTE_LEVEL!r} (byte-level BPE) and "
            f"{SENTENCEPIECE!r} (SentencePiece BPE)"
        )
    tokens = _list(fields, "tokens", str, where)
    types = _list(fields, "token_type", int, where, len(tokens))
    _check_tokens(tokens, types, where)
    ids = _named_ids(fields, SENTENCEPIECE_IDS if model == SENTENCEPIECE else {}, len(tokens), where)
    # Older converters called the tokens unknown with which they filled the embedding up.
    types = [TokenType.UNUSED if t == TokenType.UNKNOWN and i != ids["unknown"] else t for i, t in enumerate(types)]
    cut = _cut(fields, where) if model == BYTE_LEVEL else None
    adds_bos = _value(fields, "tokenizer.ggml.add_bos_token", bool, cut is None or cut.adds_bos, where)
    config = {"add_bos_token": adds_bos and ids["bos"] is not None}
    if cut is not None:
        name, content = HUGGINGFACE_FILE, _huggingface_file(tokens, types, _list(fields, "merges", str, where), cut)
    else:
        scores = _list(fields, "scores", (int, float), where, len(tokens))
        prefix = _value(fields, "tokenizer.ggml.add_space_prefix", bool, True, where)
        removes = _value(fields, "tokenizer.ggml.remove_extra_whitespaces", bool, False, where)
        name = SENTENCEPIECE_FILE
        content = _sentencepiece_file(tokens, types, scores, ids, (prefix, removes), where)
        # llama.cpp puts the space behind every control token and every token that users added; a file of camelid's says
        # how its tokens were made.
        if LEGACY not in fields:
            config["added_tokens_decoder"] = {
                str(i): {"content": token, "special": False, "normalized": False}
                for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
                if kind == TokenType.USER_DEFINED and i not in ids.values()
            }
        legacy = _value(fields, LEGACY, str, "true", where)
        if legacy not in LEGACY_VALUES:
            raise UserError(f"{where}: {LEGACY} is {shown(legacy)}: expected one of {', '.join(LEGACY_VALUES)}")
        config["legacy"] = LEGACY_VALUES[legacy]
    return {name: content, CONFIG_FILE: _config_file(config, fields, tokens, ids, where)}


def gguf_fields(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata that describes a tokenizer in a GGUF file: the inverse of `tokenizer_files`.

    Args:
        tokenizer: a byte-level BPE that cuts text as one of `CUTS` does, or a SentencePiece BPE with byte fallback.
        vocab_size: rows of the model's embedding, which GGUF wants a token for each of: unused ones fill the list up.

    Returns:
        Strings, booleans, lists, and integers, which are all ids and in the file unsigned.

    Raises:
        UserError: GGUF has no way to express this tokenizer.
    """
    tokens = list(tokenizer._vocabulary.pieces)
    if HUGGINGFACE_FILE in tokenizer._files:
        fields = _byte_level_fields(tokenizer, tokens)
    else:
        fields = _sentencepiece_fields(tokenizer, tokens)
    _fill_up(fields, max(vocab_size or 0, len(tokens)) - len(tokens))
    unk_id = None if tokenizer.unk_id in tokenizer.special.values() else tokenizer.unk_id
    ids = dict(zip(NAMED_IDS, (tokenizer.bos_id, tokenizer.eos_id, unk_id, tokenizer._vocabulary.pad_id), strict=True))
    fields |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    fields["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


# Reading --------------------------------------------------------------------------------------------------------------


def _list(
    fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str, length: int | None = None
) -> list:
    key = f"tokenizer.ggml.{name}"
    if key not in fields:
        raise UserError(f"{where} has no {key}, so it is not a whole tokenizer: convert the model to GGUF again")
    values = fields[key]
    if not isinstance(values, list) or not all(_is(value, kind) for value in values):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{where}: {key} is not a list of {kinds}: convert the model to GGUF again")
    if length is not None and len(values) != length:
        raise UserError(f"{where}: {key} has {len(values):,} entries for {length:,} tokens: convert it to GGUF again")
    return values


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is of a kind: a truth value is no number, and half of a character no text."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def _value(fields: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = fields.get(key, default)
    if key in fields and not _is(value, kind):
        raise UserError(f"{where}: {key} is {shown(value)}, not of type {kind.__name__}: convert it to GGUF again")
    return value


def _named_ids(fields: Mapping[str, Any], defaults: dict[str, int], length: int, where: str) -> dict[str, int | None]:
    """The ids that GGUF names."""
    ids = {}
    for name in NAMED_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        ids[name] = _value(fields, key, int, defaults.get(name), where)
        if ids[name] is not None and not 0 <= ids[name] < length:
            raise UserError(f"{where}: {key} is {ids[name]}, which is none of the {length:,} tokens")
    if ids["eos"] is None:
        raise UserError(
            f"{where} names no end-of-text token: `gguf-new-metadata --special-token eos TOKEN IN.gguf OUT.gguf` does"
        )
    return ids


def _check_tokens(tokens: list[str], types: list[int], where: str) -> None:
    seen = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not token:
            raise UserError(f"{where}: token {i} is empty, so nothing could be encoded as it")
        if token in seen:
            raise UserError(f"{where}: tokens {seen[token]} and {i} are both {shown(token)}")
        if not min(TokenType) <= kind <= max(TokenType):
            raise UserError(f"{where}: token {i}, {shown(token)}, is of type {kind}; types are 1 to 6")
        seen[token] = i


def _cut(fields: Mapping[str, Any], where: str) -> Cut:
    """What `tokenizer.ggml.pre` stands for. A guess in its place would give wrong tokens that look right."""
    name = _value(fields, "tokenizer.ggml.pre", str, None, where)
    known = CUTS | {alias: CUTS[other] for alias, other in SAME_CUTS.items()}
    if name not in known:
        said = "is missing" if name is None else f"is {shown(name)}"
        raise UserError(
            f"{where}: tokenizer.ggml.pre, the way in which its tokenizer cuts text, {said}; camelid knows "
            f"{', '.join(sorted(known))}. If it is one of these in truth, "
            "`gguf-new-metadata --pre-tokenizer NAME IN.gguf OUT.gguf` says so"
        )
    return known[name]


def _config_file(
    config: dict[str, Any], fields: Mapping[str, Any], tokens: list[str], ids: dict[str, int | None], where: str
) -> bytes:
    """A `tokenizer_config.json`."""
    names = {"bos_token": ids["bos"], "eos_token": ids["eos"], "pad_token": ids["padding"]}
    config = {name: None if i is None else tokens[i] for name, i in names.items()} | config
    if ids["unknown"] is not None:
        config["unk_token"] = tokens[ids["unknown"]]
    template = _value(fields, "tokenizer.chat_template", str, None, where)
    if template is not None:
        config["chat_template"] = template
    return json.dumps(config, ensure_ascii=False).encode()


def _huggingface_file(tokens: list[str], types: list[int], merges: list[str], cut: Cut) -> bytes:
    """A `tokenizer.json`. Ids that are unused in GGUF are left out of it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": tokens[i], **flags, "special": kind != TokenType.USER_DEFINED}
        for i, kind in enumerate(types)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "unk_token": tokens[types.index(TokenType.UNKNOWN)] if TokenType.UNKNOWN in types else None,
        "ignore_merges": cut.ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens) if types[i] != TokenType.UNUSED},
        "merges": merges,
    }
    spec = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": kind} for kind in cut.normalizers]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut.steps},
        "decoder": _byte_level(use_regex=True),
        "model": model,
    }
    return json.dumps(spec, ensure_ascii=False).encode()


def _sentencepiece_file(
    tokens: list[str],
    types: list[int],
    scores: list[float],
    ids: dict[str, int | None],
    spaces: tuple[bool, bool],
    where: str,
) -> bytes:
    """A `tokenizer.model` in which the named tokens are what their names say, whatever type GGUF gives them.

    spaces: whether one is put in front of a text, and whether extra ones are removed.
    """
    types = list(types)
    for name in ("bos", "eos", "padding"):
        if ids[name] is not None:
            types[ids[name]] = TokenType.CONTROL
    types[ids["unknown"]] = TokenType.UNKNOWN
    proto = sentencepiece_model_pb2.ModelProto()
    for token, kind, score in zip(tokens, types, scores, strict=True):
        # GGUF spells what users add as text, and SentencePiece looks for it in text whose spaces are symbols already.
        piece = token.replace(" ", SPACE_SYMBOL) if kind == TokenType.USER_DEFINED else token
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec = proto.trainer_spec
    spec.model_type = spec.BPE
    spec.vocab_size = len(tokens)
    spec.byte_fallback = TokenType.BYTE in types
    for name, gguf_name in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        i = ids[gguf_name]
        setattr(spec, f"{name}_id", -1 if i is None else i)
        setattr(spec, f"{name}_piece", "" if i is None else tokens[i])
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = spaces
    content = proto.SerializeToString(deterministic=True)
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{where}: SentencePiece does not take its tokens: {one_line(error)}") from None
    return content


# Writing --------------------------------------------------------------------------------------------------------------


def _byte_level_fields(tokenizer: Tokenizer, tokens: list[str]) -> dict[str, Any]:
    # tokenizers itself spells out what the file leaves to defaults, and merges in either of their two forms.
    spec = json.loads(tokenizers.Tokenizer.from_buffer(tokenizer._files[HUGGINGFACE_FILE]).to_str())
    where = tokenizer._where
    pre = _name_of_cut(spec, where)
    types = [TokenType.NORMAL if token else TokenType.UNUSED for token in tokens]
    _check_flags(tokenizer.added, where)
    for token in tokenizer.added.values():
        types[token.id] = TokenType.USER_DEFINED
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = TokenType.UNKNOWN
    for i in tokenizer.special.values():
        types[i] = TokenType.CONTROL
    return {
        "tokenizer.ggml.model": BYTE_LEVEL,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token or _unused(i) for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _name_of_cut(spec: dict[str, Any], where: str) -> str:
    """The name in `CUTS` for how a `tokenizer.json` cuts text."""
    model = spec["model"]
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    is_byte_level = model["type"] == "BPE" and (spec["decoder"] or {}).get("type") == "ByteLevel"
    if not is_byte_level or any(model[name] for name in settings):
        raise UserError(
            f"{where} is not a byte-level BPE, the one kind of tokenizer.json that GGUF can express: where a "
            f"{SENTENCEPIECE_FILE} is published beside it, load that"
        )
    steps = _unrolled(spec["pre_tokenizer"], "pretokenizers")
    steps = [step | {"trim_offsets": True} if "trim_offsets" in step else step for step in steps]  # cuts no text
    normalizers = tuple(step["type"] for step in _unrolled(spec["normalizer"], "normalizers"))
    for name, cut in CUTS.items():
        if (cut.steps, cut.normalizers, cut.ignore_merges) == (steps, normalizers, model["ignore_merges"]):
            return name
    raise UserError(
        f"{where} cuts text in a way that GGUF has no name for, or none that camelid knows: normalizer "
        f"{json.dumps(spec['normalizer'])}, pre_tokenizer {json.dumps(spec['pre_tokenizer'], ensure_ascii=False)}, "
        f"ignore_merges {json.dumps(model['ignore_merges'])}; known are {', '.join(CUTS)}"
    )


def _unrolled(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if part is None else part.get(key, [part])


def _sentencepiece_fields(tokenizer: Tokenizer, tokens: list[str]) -> dict[str, Any]:
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer._files[SENTENCEPIECE_FILE])
    _check_expressible(proto, tokenizer._where)
    _check_flags(tokenizer.added, tokenizer._where)
    types = tokenizer._vocabulary.types
    normalizer = proto.normalizer_spec
    scores = [piece.score for piece in proto.pieces]
    scores += [ADDED_SCORE] * (len(tokens) - len(scores))
    fields = {
        "tokenizer.ggml.model": SENTENCEPIECE,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            token.replace(SPACE_SYMBOL, " ") if kind == TokenType.USER_DEFINED else token or _unused(i)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        ],
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": tokenizer._vocabulary.leading_space,
        LEGACY: next(name for name, value in LEGACY_VALUES.items() if value is tokenizer._vocabulary.legacy),
    }
    return fields | ({"tokenizer.ggml.remove_extra_whitespaces": True} if normalizer.remove_extra_whitespaces else {})


def _check_flags(added: Mapping[str, AddedToken], where: str) -> None:
    for spelling, token in added.items():
        if not token.special and (token.single_word or token.lstrip or token.rstrip):
            raise UserError(
                f"{where}: its added token {spelling!r} takes in or asks for what stands around it "
                "(single_word, lstrip or rstrip), which GGUF cannot express"
            )


def _check_expressible(proto: sentencepiece_model_pb2.ModelProto, where: str) -> None:
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    if spec.model_type != spec.BPE:
        kind = spec.ModelType.Name(spec.model_type).lower()
        raise UserError(f"{where} is a SentencePiece model of type {kind}; in a GGUF file camelid writes BPE only")
    if not spec.byte_fallback:
        raise UserError(f"{where} has no byte fallback, which readers of GGUF need for characters that it lacks")
    if normalizer.precompiled_charsmap:
        raise UserError(f"{where} normalises text ({normalizer.name}), which GGUF cannot express for SentencePiece BPE")
    if not normalizer.escape_whitespaces or spec.treat_whitespace_as_suffix:
        raise UserError(f"{where} writes spaces in a way that GGUF cannot express: not as {SPACE_SYMBOL} before words")


def _unused(i: int) -> str:
    return f"[unused {i}]"


def _fill_up(fields: dict[str, Any], count: int) -> None:
    """Add `count` unused tokens."""
    start = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += [_unused(i) for i in range(start, start + count)]
    fields["tokenizer.ggml.token_type"] += [int(TokenType.UNUSED)] * count
    if "tokenizer.ggml.scores" in fields:
        fields["tokenizer.ggml.scores"] += [0.0] * count
