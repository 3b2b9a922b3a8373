"""Converts between the tokenizer in a GGUF file's metadata and the files that `Tokenizer` reads.

GGUF calls byte-level BPE "gpt2" and SentencePiece BPE "llama". Of a byte-level tokenizer it stores the vocabulary and
the merges. Of the pre-tokenizer, which splits text before the merges, it stores only a name, `tokenizer.ggml.pre`. This
module has the pre-tokenizer of each name, as the model publishes it that made the name known. The format has no field
for normalisers; Qwen 2's belongs to the name of its pre-tokenizer.

A byte without a token (SmolLM2 lacks 21 of them) is left out when text is encoded, as by the model's own tokenizer.
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
from ...errors import UserError, shown

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model
LEGACY = "camelid.tokenizer.legacy"  # our own key for `legacy` of a tokenizer_config.json
ADDED_SCORE = -1000.0  # the score of tokens that are never merged, as llama.cpp's converter writes it
NAMED_IDS = ("bos", "eos", "unknown", "padding")
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # used where the file has no ids


class TokenType(enum.IntEnum):
    """The types of tokens, with GGUF's numbers, which are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class PreTokenizer(NamedTuple):
    """How text is split before the merges, for one value of `tokenizer.ggml.pre`."""

    steps: list[dict[str, Any]]
    """The pre-tokenizers of a `tokenizer.json`, in order."""
    normalizers: tuple[str, ...] = ()
    """The types of its normalisers, in order."""
    ignore_merges: bool = False
    """Whether a piece of text that is a token is encoded as that token, without the merges."""
    adds_bos: bool = False
    """Whether texts begin with bos if the file has no `add_bos_token`."""


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = _byte_level(use_regex=False)
_GPT2_WORDS = _byte_level(use_regex=True)
_GPT2_REGEX = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
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
_DEEPSEEK_LETTERS = (  # letters with a case; some are escaped because Unicode normalisation would change them
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-"
    "ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LINES, _DEEPSEEK_HAN = _split("[\r\n]"), _split("[一-龥ࠀ-一가-퟿]+")

PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer([_GPT2_WORDS]),
    "smollm": PreTokenizer([_DIGITS, _GPT2_WORDS]),
    "llama-bpe": PreTokenizer([_LLAMA3_WORDS, _BYTES], ignore_merges=True, adds_bos=True),
    "smaug-bpe": PreTokenizer([_LLAMA3_WORDS, _BYTES]),
    "qwen2": PreTokenizer([_QWEN2_WORDS, _BYTES], normalizers=("NFC",)),
    "deepseek-r1-qwen": PreTokenizer([_QWEN2_WORDS, _BYTES]),
    "tekken": PreTokenizer([_TEKKEN_WORDS, _BYTES], ignore_merges=True, adds_bos=True),
    "deepseek-llm": PreTokenizer(
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
    "deepseek-coder": PreTokenizer(
        [_DEEPSEEK_LINES, _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _DEEPSEEK_HAN, _DIGITS, _BYTES]
    ),
    "default": PreTokenizer(
        [_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT2_REGEX), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _BYTES]
    ),
}
PRE_TOKENIZER_ALIASES = {
    **dict.fromkeys(("phi-2", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), "llama-bpe"),
    "dbrx": "smaug-bpe",  # Phi 4
}


def tokenizer_files(fields: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """The files of the tokenizer in a GGUF file's metadata.

    Args:
      fields: metadata by key, as `gguf.GGUFReader` returns it: strings, numbers, booleans and lists of them.
      where: path of the GGUF file, for messages.

    Returns:
      {file name: content} of a `tokenizer.json` or `tokenizer.model` and a `tokenizer_config.json`.

    Raises:
      UserError: camelid does not know the kind of tokenizer or its pre-tokenizer, or a field is missing or malformed.
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
    # Older converters gave the type "unknown" to the tokens with which they padded the vocabulary.
    types = [TokenType.UNUSED if t == TokenType.UNKNOWN and i != ids["unknown"] else t for i, t in enumerate(types)]
    pre = _pre_tokenizer(fields, where) if model == BYTE_LEVEL else None
    adds_bos = _value(fields, "tokenizer.ggml.add_bos_token", bool, pre is None or pre.adds_bos, where)
    config = {"add_bos_token": adds_bos and ids["bos"] is not None}
    if pre is not None:
        name, content = HUGGINGFACE_FILE, _huggingface_file(tokens, types, _list(fields, "merges", str, where), pre)
    else:
        scores = _list(fields, "scores", (int, float), where, len(tokens))
        prefix = _value(fields, "tokenizer.ggml.add_space_prefix", bool, True, where)
        removes = _value(fields, "tokenizer.ggml.remove_extra_whitespaces", bool, False, where)
        name = SENTENCEPIECE_FILE
        content = _sentencepiece_file(tokens, types, scores, ids, (prefix, removes), where)
        # llama.cpp puts a space after every control token and every user-defined token. A file that camelid wrote says
        # how its tokenizer does it.
        if LEGACY not in fields:
            config["added_tokens_decoder"] = {
                str(i): {"content": token, "special": False, "normalized": False}
                for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
                if kind == TokenType.USER_DEFINED and i not in ids.values()
            }
        legacy = _value(fields, LEGACY, str, "true", where)
        if legacy not in LEGACY_VALUES:
            raise UserError(f"{where}: {LEGACY} is {shown(legacy)}: write one of {', '.join(LEGACY_VALUES)}")
        config["legacy"] = LEGACY_VALUES[legacy]
    return {name: content, CONFIG_FILE: _config_file(config, fields, tokens, ids, where)}


def gguf_fields(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata of a GGUF file for a tokenizer; the inverse of `tokenizer_files`.

    Args:
      tokenizer: a byte-level BPE with one of `PRE_TOKENIZERS`, or a SentencePiece BPE with byte fallback.
      vocab_size: rows of the model's embedding; GGUF needs a token for each, so unused tokens are added.

    Returns:
      Metadata by key: strings, booleans, lists, and integers, all of which are ids and are written unsigned.

    Raises:
      UserError: GGUF cannot express the tokenizer.
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
    """A list in the metadata, checked for its length and for the type of its entries."""
    key = f"tokenizer.ggml.{name}"
    if key not in fields:
        raise UserError(f"{where} has no {key}, so its tokenizer is incomplete: convert the model to GGUF again")
    values = fields[key]
    if not isinstance(values, list) or not all(_is(value, kind) for value in values):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{where}: {key} is not a list of {kinds}: convert the model to GGUF again")
    if length is not None and len(values) != length:
        raise UserError(
            f"{where}: {key} has {len(values):,} entries for {length:,} tokens: convert the model to GGUF again"
        )
    return values


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value has a type; a boolean is no number, and a string with a lone surrogate is no string."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def _value(fields: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    """A value in the metadata, checked for its type."""
    value = fields.get(key, default)
    if key in fields and not _is(value, kind):
        raise UserError(
            f"{where}: {key} is {shown(value)}, not of type {kind.__name__}: convert the model to GGUF again"
        )
    return value


def _named_ids(fields: Mapping[str, Any], defaults: dict[str, int], length: int, where: str) -> dict[str, int | None]:
    """The ids of bos, eos, the unknown token and padding, which are checked to be tokens; eos must be there."""
    ids = {}
    for name in NAMED_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        ids[name] = _value(fields, key, int, defaults.get(name), where)
        if ids[name] is not None and not 0 <= ids[name] < length:
            raise UserError(f"{where}: {key} is {ids[name]}, which is none of the {length:,} tokens")
    if ids["eos"] is None:
        raise UserError(
            f"{where} names no end-of-text token: add it with "
            "`gguf-new-metadata --special-token eos TOKEN IN.gguf OUT.gguf`"
        )
    return ids


def _check_tokens(tokens: list[str], types: list[int], where: str) -> None:
    """Raises UserError for an empty or repeated token and for an unknown type."""
    seen = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not token:
            raise UserError(f"{where}: token {i} is empty, so nothing could be encoded as it")
        if token in seen:
            raise UserError(f"{where}: tokens {seen[token]} and {i} are both {shown(token)}")
        if not min(TokenType) <= kind <= max(TokenType):
            raise UserError(f"{where}: token {i}, {shown(token)}, is of type {kind}; known types are 1 to 6")
        seen[token] = i


def _pre_tokenizer(fields: Mapping[str, Any], where: str) -> PreTokenizer:
    """The pre-tokenizer that `tokenizer.ggml.pre` names. Unknown names are refused: a guess would give wrong tokens."""
    name = _value(fields, "tokenizer.ggml.pre", str, None, where)
    known = PRE_TOKENIZERS | {alias: PRE_TOKENIZERS[other] for alias, other in PRE_TOKENIZER_ALIASES.items()}
    if name not in known:
        said = "is missing" if name is None else f"is {shown(name)}"
        raise UserError(
            f"{where}: tokenizer.ggml.pre, the name of the pre-tokenizer, {said}; camelid knows "
            f"{', '.join(sorted(known))}. If one of these is right, write it with "
            "`gguf-new-metadata --pre-tokenizer NAME IN.gguf OUT.gguf`"
        )
    return known[name]


def _config_file(
    config: dict[str, Any], fields: Mapping[str, Any], tokens: list[str], ids: dict[str, int | None], where: str
) -> bytes:
    """The content of a `tokenizer_config.json`: the fields `config`, the special tokens and the chat template."""
    names = {"bos_token": ids["bos"], "eos_token": ids["eos"], "pad_token": ids["padding"]}
    config = {name: None if i is None else tokens[i] for name, i in names.items()} | config
    if ids["unknown"] is not None:
        config["unk_token"] = tokens[ids["unknown"]]
    template = _value(fields, "tokenizer.chat_template", str, None, where)
    if template is not None:
        config["chat_template"] = template
    return json.dumps(config, ensure_ascii=False).encode()


def _huggingface_file(tokens: list[str], types: list[int], merges: list[str], pre_tokenizer: PreTokenizer) -> bytes:
    """The content of a `tokenizer.json`; tokens that are unused in GGUF are left out."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": tokens[i], **flags, "special": kind != TokenType.USER_DEFINED}
        for i, kind in enumerate(types)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "unk_token": tokens[types.index(TokenType.UNKNOWN)] if TokenType.UNKNOWN in types else None,
        "ignore_merges": pre_tokenizer.ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens) if types[i] != TokenType.UNUSED},
        "merges": merges,
    }
    spec = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": kind} for kind in pre_tokenizer.normalizers]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer.steps},
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
    """The content of a `tokenizer.model`.

    Args:
      tokens: the pieces.
      types: their types; those of the named ids are replaced by the types that their names imply.
      scores: their scores.
      ids: the ids of bos, eos, the unknown token and padding.
      spaces: whether a space is put before a text, and whether extra spaces are removed.
      where: path of the GGUF file, for messages.
    """
    types = list(types)
    for name in ("bos", "eos", "padding"):
        if ids[name] is not None:
            types[ids[name]] = TokenType.CONTROL
    types[ids["unknown"]] = TokenType.UNKNOWN
    proto = sentencepiece_model_pb2.ModelProto()
    for token, kind, score in zip(tokens, types, scores, strict=True):
        # GGUF spells user-defined tokens with spaces; SentencePiece searches for them in text with space symbols.
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
        raise UserError(f"{where}: SentencePiece refuses its tokens: {one_line(error)}") from None
    return content


# Writing --------------------------------------------------------------------------------------------------------------


def _byte_level_fields(tokenizer: Tokenizer, tokens: list[str]) -> dict[str, Any]:
    # The tokenizers library writes out the defaults of the file, and brings merges into one of their two forms.
    spec = json.loads(tokenizers.Tokenizer.from_buffer(tokenizer._files[HUGGINGFACE_FILE]).to_str())
    where = tokenizer._where
    pre = _pre_tokenizer_name(spec, where)
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


def _pre_tokenizer_name(spec: dict[str, Any], where: str) -> str:
    """The name in `PRE_TOKENIZERS` of the pre-tokenizer of a `tokenizer.json`."""
    model = spec["model"]
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    is_byte_level = model["type"] == "BPE" and (spec["decoder"] or {}).get("type") == "ByteLevel"
    if not is_byte_level or any(model[name] for name in settings):
        raise UserError(
            f"{where} is not a byte-level BPE, the only kind of tokenizer.json that GGUF can express: if a "
            f"{SENTENCEPIECE_FILE} is published beside it, load that"
        )
    steps = _unrolled(spec["pre_tokenizer"], "pretokenizers")
    steps = [step | {"trim_offsets": True} if "trim_offsets" in step else step for step in steps]  # splits no text
    normalizers = tuple(step["type"] for step in _unrolled(spec["normalizer"], "normalizers"))
    for name, known in PRE_TOKENIZERS.items():
        if (known.steps, known.normalizers, known.ignore_merges) == (steps, normalizers, model["ignore_merges"]):
            return name
    raise UserError(
        f"{where} splits text in a way for which camelid knows no name in GGUF: normalizer "
        f"{json.dumps(spec['normalizer'])}, pre_tokenizer {json.dumps(spec['pre_tokenizer'], ensure_ascii=False)}, "
        f"ignore_merges {json.dumps(model['ignore_merges'])}; known are {', '.join(PRE_TOKENIZERS)}"
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
                f"{where}: its added token {spelling!r} depends on the text around it (single_word, lstrip or rstrip), "
                "which GGUF cannot express"
            )


def _check_expressible(proto: sentencepiece_model_pb2.ModelProto, where: str) -> None:
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    if spec.model_type != spec.BPE:
        kind = spec.ModelType.Name(spec.model_type).lower()
        raise UserError(f"{where} is a SentencePiece model of type {kind}; camelid writes only BPE into a GGUF file")
    if not spec.byte_fallback:
        raise UserError(
            f"{where} has no byte fallback, which readers of GGUF need for characters without a piece: "
            "export with --to=huggingface instead"
        )
    if normalizer.precompiled_charsmap:
        raise UserError(f"{where} normalises text ({normalizer.name}), which GGUF cannot express for SentencePiece BPE")
    if not normalizer.escape_whitespaces or spec.treat_whitespace_as_suffix:
        raise UserError(f"{where} writes spaces in a way that GGUF cannot express: not as {SPACE_SYMBOL} before words")


def _unused(i: int) -> str:
    return f"[unused {i}]"


def _fill_up(fields: dict[str, Any], count: int) -> None:
    """Adds `count` unused tokens to the metadata."""
    start = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += [_unused(i) for i in range(start, start + count)]
    fields["tokenizer.ggml.token_type"] += [int(TokenType.UNUSED)] * count
    if "tokenizer.ggml.scores" in fields:
        fields["tokenizer.ggml.scores"] += [0.0] * count
