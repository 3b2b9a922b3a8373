"""Reads the files beside a tokenizer's model file: named tokens, added tokens, and where bos and spaces go.

They are read as in transformers. `added_tokens_decoder` in `tokenizer_config.json`, if it is there, is the list of
added tokens. Otherwise the names in `special_tokens_map.json` override those in `tokenizer_config.json`, and
`added_tokens.json` lists the added tokens; those with a name are special.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import UserError, shown

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
FURTHER_NAMES = ("sep_token", "cls_token", "mask_token")  # used by chat templates only
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", *FURTHER_NAMES)
LEGACY = "camelid_legacy"  # camelid's own key, for values of `legacy` that transformers does not have
LEGACY_VALUES = {"true": True, "false": False, "unsaid": None}
MAX_IDS = 2**22  # more than four times the largest vocabulary in use; a file with more ids is damaged


class AddedToken(NamedTuple):
    """A token that is found in text as a whole, before the model cuts the text."""

    id: int | None  # None if no file gives one: it then gets the next free id
    special: bool  # whether it is a control token, which text never becomes
    lstrip: bool = False  # whether it takes in white space before it
    rstrip: bool = False  # whether it takes in white space behind it
    single_word: bool = False  # whether it is found only between characters that are not part of a word
    normalized: bool = False  # whether it is looked for in normalised text


class TokenizerSettings(NamedTuple):
    """The content of the files beside a model file; None, or an empty dict, for what they do not say."""

    names: Mapping[str, str | None] = {}  # spellings of the tokens in NAMES; None for a token that is not wanted
    added: Mapping[str, AddedToken] = {}  # added tokens by spelling
    overrides: bool = False  # whether `added` overrides what the model file says of the same tokens
    add_bos: bool | None = None  # whether plain text begins with bos
    legacy: bool | None = None  # transformers' LlamaTokenizer: whether text behind a control token gets a prefix space
    add_prefix_space: bool | None = None  # whether text gets a prefix space at all
    chat_template: str | None = None  # jinja source


NOTHING = TokenizerSettings()


def read_settings(files: Mapping[str, bytes], where: str) -> TokenizerSettings:
    """Reads the settings of a tokenizer. Raises UserError for a malformed file.

    Args:
        files: contents of the files beside the model file by name; missing files say nothing.
        where: the model file, for messages.
    """
    config = _object(files, CONFIG_FILE, where)
    names, named = _names(config, CONFIG_FILE, where)
    special = _special_list(config, CONFIG_FILE, where)
    if "added_tokens_decoder" in config:
        added = _added_decoder(config["added_tokens_decoder"], where)
    else:
        more = _object(files, MAP_FILE, where)
        more_names, more_named = _names(more, MAP_FILE, where)
        names |= {name: spelling for name, spelling in more_names.items() if spelling is not None}
        named |= more_named
        special |= _special_list(more, MAP_FILE, where)
        spelled = {spelling for spelling in names.values() if spelling} | special.keys()
        added = _added_file(_object(files, ADDED_FILE, where), spelled, where)
    for spelling in filter(None, map(names.get, FURTHER_NAMES)):
        special.setdefault(spelling, AddedToken(None, special=True))
    for spelling, token in (special | named).items():
        added[spelling] = added[spelling]._replace(special=True) if spelling in added else token
    flags = {name: _flag(config, name, where) for name in ("add_bos_token", "legacy", "add_prefix_space")}
    if LEGACY in config:
        if not isinstance(config[LEGACY], str) or config[LEGACY] not in LEGACY_VALUES:
            raise UserError(f"{CONFIG_FILE} beside {where}: set {LEGACY} to one of {', '.join(LEGACY_VALUES)}")
        flags["legacy"] = LEGACY_VALUES[config[LEGACY]]
    template = _chat_template(files, config, where)
    return TokenizerSettings(names, added, "added_tokens_decoder" in config, *flags.values(), template)


def _object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} beside {where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} beside {where} is not a JSON object")
    return content


def _flag(config: dict[str, Any], name: str, where: str) -> bool | None:
    """The boolean `name` of a configuration; None if it is missing."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{CONFIG_FILE} beside {where}: {name} is {shown(value)}: give true or false, or leave it out")
    return value


def _names(content: dict[str, Any], file: str, where: str) -> tuple[dict[str, str | None], dict[str, AddedToken]]:
    """The spelling of each named token, and id and flags of those that the file describes by an object.

    An empty spelling counts as missing.

    Args:
        content: the JSON of the file.
        file: its name, for messages.
        where: the model file, for messages.
    """
    names, named = {}, {}
    for name in NAMES:
        value = content.get(name, "")
        if value == "":
            continue
        names[name] = None if value is None else _spelling(value, f"{file} beside {where}: {name}")
        if isinstance(value, dict):
            named[names[name]] = _token(None, value | {"special": True}, f"{file} beside {where}: {name}")
    return {name: spelling for name, spelling in names.items() if spelling != ""}, {s: t for s, t in named.items() if s}


def _special_list(content: dict[str, Any], file: str, where: str) -> dict[str, AddedToken]:
    """Further control tokens by spelling, from the older and the newer key. transformers 5 also writes objects.

    Args:
        content: the JSON of the file.
        file: its name, for messages.
        where: the model file, for messages.
    """
    found = {}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = content.get(key) or []
        values = list(values.values()) if isinstance(values, dict) else values
        if not isinstance(values, list):
            raise UserError(f"{file} beside {where}: {key} is {shown(values)}: give a list of tokens")
        for value in values:
            spelling = _spelling(value, f"{file} beside {where}: {key}")
            flags = value if isinstance(value, dict) else {}
            found[spelling] = _token(None, flags | {"special": True}, f"{file} beside {where}: {key}")
    found.pop("", None)
    return found


def _added_decoder(content: Any, where: str) -> dict[str, AddedToken]:
    """The added tokens by spelling, from `added_tokens_decoder`."""
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG_FILE} beside {where}: added_tokens_decoder is {shown(content)}: map ids to tokens")
    added, owners = {}, {}
    for key, value in content.items():
        place = f"{CONFIG_FILE} beside {where}: added_tokens_decoder[{shown(key)}]"
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise UserError(f"{place}: the key is not an id: give an integer from 0 up")
        _add(added, owners, _spelling(value, place), _token(int(key), value, place), place)
    return added


def _added_file(content: dict[str, Any], special: set[str], where: str) -> dict[str, AddedToken]:
    """The added tokens by spelling, from `added_tokens.json`. Those in `special` are control tokens."""
    added, owners = {}, {}
    for spelling, i in content.items():
        place = f"{ADDED_FILE} beside {where}: {shown(spelling)}"
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise UserError(f"{place} has id {shown(i)}: give an integer from 0 up")
        is_special = spelling in special
        token = AddedToken(i, is_special, normalized=not is_special)
        _add(added, owners, _spelling(spelling, place), token, place)
    return added


def _add(added: dict, owners: dict, spelling: str, token: AddedToken, place: str) -> None:
    """Adds a token to `added`, after checks of its id and its spelling.

    Args:
        added: the added tokens so far, by spelling.
        owners: the spelling of each id so far.
        spelling: the spelling of the token.
        token: its id and flags.
        place: where it was read, for messages.
    """
    if token.id >= MAX_IDS:
        raise UserError(f"{place}: the id is {token.id:,}; ids must be below {MAX_IDS:,}")
    if not spelling:
        raise UserError(f"{place}: the token is empty: give it at least one character")
    if owners.setdefault(token.id, spelling) != spelling:
        raise UserError(f"{place}: id {token.id} is already that of {owners[token.id]!r}")
    if spelling in added and added[spelling].id != token.id:
        raise UserError(f"{place}: {spelling!r} already has the id {added[spelling].id}")
    added[spelling] = token


def _spelling(value: Any, place: str) -> str:
    """The spelling of a token, which is given as a string or as an object with `content`."""
    spelling = value.get("content") if isinstance(value, dict) else value
    if not isinstance(spelling, str):
        raise UserError(f"{place} is {shown(value)}: give the token's spelling, or an object with `content`")
    try:
        spelling.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: {spelling!r} has a lone surrogate, which UTF-8 cannot write: remove it") from None
    return spelling


def _token(i: int | None, value: Any, place: str) -> AddedToken:
    """Id and flags of a token. `value` is its spelling or an object; `place` says where it was read."""
    flags = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    given = value if isinstance(value, dict) else {}
    # transformers and tokenizers look for tokens that are not special in normalised text
    flags["normalized"] = not given.get("special", False)
    for name in flags:
        flags[name] = given.get(name, flags[name])
        if not isinstance(flags[name], bool):
            raise UserError(f"{place}: {name} is {shown(flags[name])}: give true or false")
    return AddedToken(i, **flags)


def _chat_template(files: Mapping[str, bytes], config: dict[str, Any], where: str) -> str | None:
    """The chat template among the files; if there are several named ones, the one named `default`."""
    if TEMPLATE_FILE in files:
        try:
            return files[TEMPLATE_FILE].decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{TEMPLATE_FILE} beside {where} is not UTF-8: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in template):
            raise UserError(f"{CONFIG_FILE} beside {where}: give chat_template as a list of objects with a name")
        template = next((entry.get("template") for entry in template if entry["name"] == "default"), None)
    if template is not None and not isinstance(template, str):
        raise UserError(f"{CONFIG_FILE} beside {where}: chat_template is {shown(template)}: give jinja source")
    return template


def one_line(error: BaseException) -> str:
    """The message of an error of a library on one line of at most 500 characters; it may quote a file at any length."""
    return " ".join(str(error).split())[:500]
