"""What the files beside a tokenizer's model file say: named tokens, added tokens, where bos and spaces go.

They are read as transformers reads them: where `tokenizer_config.json` has `added_tokens_decoder`, that is the list of
added tokens; else `special_tokens_map.json` goes before the names in `tokenizer_config.json`, and `added_tokens.json`
lists added tokens, which are special where they have a name.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import UserError
from .values import shown

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
FURTHER_NAMES = ("sep_token", "cls_token", "mask_token")  # nothing here uses these, but a chat template may write them
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", *FURTHER_NAMES)
LEGACY = "camelid_legacy"  # our own key beside `legacy`, for what transformers has no word for
LEGACY_VALUES = {"true": True, "false": False, "unsaid": None}
MAX_IDS = 2**22  # more than four times the largest vocabulary in use; a file that asks for more lies


class AddedToken(NamedTuple):
    """A token that is looked for in text as a whole, before the model cuts it.

    id: None where no file gives it one: then it goes behind the last. special: whether it is a control token, which
    text never becomes. lstrip, rstrip: whether it takes in white space before or behind it. single_word: whether it
    must stand between characters that are no letters, digits or underscores. normalized: whether it is looked for in
    text that the normaliser has been over.
    """

    id: int | None
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Settings(NamedTuple):
    """What the files say; None, and empty dicts, where they say nothing.

    names: the spellings of the tokens in `NAMES`, of those that are mentioned; None: there is no such token.
    added: added tokens by spelling. overrides: whether these go before what the model file says of the same tokens.
    add_bos: whether plain text begins with bos. legacy: transformers' LlamaTokenizer: whether text after a
    control token gets a space in front, as text at the beginning does. add_prefix_space: whether any text does.
    """

    names: Mapping[str, str | None] = {}
    added: Mapping[str, AddedToken] = {}
    overrides: bool = False
    add_bos: bool | None = None
    legacy: bool | None = None
    add_prefix_space: bool | None = None
    chat_template: str | None = None


NOTHING = Settings()


def read_settings(files: Mapping[str, bytes], where: str) -> Settings:
    """Reads what is there of the files named above. Raises UserError for what is malformed in them."""
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
            raise UserError(f"{CONFIG_FILE} beside {where}: {LEGACY} is not one of {', '.join(LEGACY_VALUES)}")
        flags["legacy"] = LEGACY_VALUES[config[LEGACY]]
    template = _chat_template(files, config, where)
    return Settings(names, added, "added_tokens_decoder" in config, *flags.values(), template)


def _object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} beside {where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} beside {where} is not a JSON object")
    return content


def _flag(config: dict[str, Any], name: str, where: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{CONFIG_FILE} beside {where}: {name} is {shown(value)}: give true or false, or leave it out")
    return value


def _names(content: dict[str, Any], file: str, where: str) -> tuple[dict[str, str | None], dict[str, AddedToken]]:
    """The named tokens' spellings, and those whose flags the file gives too. An empty spelling says nothing."""
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
    """Further control tokens, in the older and the newer key; transformers 5 also writes them as an object by names."""
    found = {}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = content.get(key) or []
        values = list(values.values()) if isinstance(values, dict) else values
        if not isinstance(values, list):
            raise UserError(f"{file} beside {where}: {key} is {shown(values)}, not a list of tokens")
        for value in values:
            spelling = _spelling(value, f"{file} beside {where}: {key}")
            flags = value if isinstance(value, dict) else {}
            found[spelling] = _token(None, flags | {"special": True}, f"{file} beside {where}: {key}")
    found.pop("", None)
    return found


def _added_decoder(content: Any, where: str) -> dict[str, AddedToken]:
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG_FILE} beside {where}: added_tokens_decoder is {shown(content)}, not an object by ids")
    added, owners = {}, {}
    for key, value in content.items():
        place = f"{CONFIG_FILE} beside {where}: added_tokens_decoder[{shown(key)}]"
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise UserError(f"{place}: the key is no id: ids are whole numbers from 0 on")
        _add(added, owners, _spelling(value, place), _token(int(key), value, place), place)
    return added


def _added_file(content: dict[str, Any], special: set[str], where: str) -> dict[str, AddedToken]:
    added, owners = {}, {}
    for spelling, i in content.items():
        place = f"{ADDED_FILE} beside {where}: {shown(spelling)}"
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise UserError(f"{place} has id {shown(i)}: ids are whole numbers from 0 on")
        is_special = spelling in special
        token = AddedToken(i, is_special, normalized=not is_special)
        _add(added, owners, _spelling(spelling, place), token, place)
    return added


def _add(added: dict, owners: dict, spelling: str, token: AddedToken, place: str) -> None:
    if token.id >= MAX_IDS:
        raise UserError(f"{place}: id {token.id:,} is beyond the {MAX_IDS:,} ids that a vocabulary may have")
    if not spelling:
        raise UserError(f"{place}: an added token without characters is found nowhere")
    if owners.setdefault(token.id, spelling) != spelling:
        raise UserError(f"{place}: {owners[token.id]!r} has id {token.id} already")
    if spelling in added and added[spelling].id != token.id:
        raise UserError(f"{place}: {spelling!r} has id {added[spelling].id} already")
    added[spelling] = token


def _spelling(value: Any, place: str) -> str:
    """A token's spelling, which is a string or the `content` of an object."""
    spelling = value.get("content") if isinstance(value, dict) else value
    if not isinstance(spelling, str):
        raise UserError(f"{place} is {shown(value)}: expected a token's spelling, or an object with `content`")
    try:
        spelling.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: {spelling!r} holds half a character (a lone surrogate)") from None
    return spelling


def _token(i: int | None, value: Any, place: str) -> AddedToken:
    flags = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    given = value if isinstance(value, dict) else {}
    # transformers and tokenizers take a token that is not special for one to find in normalised text
    flags["normalized"] = not given.get("special", False)
    for name in flags:
        flags[name] = given.get(name, flags[name])
        if not isinstance(flags[name], bool):
            raise UserError(f"{place}: {name} is {shown(flags[name])}: give true or false")
    return AddedToken(i, **flags)


def _chat_template(files: Mapping[str, bytes], config: dict[str, Any], where: str) -> str | None:
    """The chat template among Hugging Face's files; of several named ones, the one named `default`."""
    if TEMPLATE_FILE in files:
        try:
            return files[TEMPLATE_FILE].decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{TEMPLATE_FILE} beside {where} is not UTF-8: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in template):
            raise UserError(f"{CONFIG_FILE} beside {where}: chat_template is not a list of objects with a name")
        template = next((entry.get("template") for entry in template if entry["name"] == "default"), None)
    if template is not None and not isinstance(template, str):
        raise UserError(f"{CONFIG_FILE} beside {where}: chat_template is {shown(template)}, not jinja source")
    return template


def one_line(error: BaseException) -> str:
    """What a library says, which may quote a file at any length and with its line breaks."""
    return " ".join(str(error).split())[:500]
