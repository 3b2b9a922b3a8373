"""Writes a tokenizer as transformers reads it, with a `tokenizer_config.json` and the chat template."""

import json
import re
from typing import Any

from etils import epath

from ...data.templates import ChatTemplate
from ...data.tokenizer import HUGGINGFACE_FILE, Tokenizer
from ...data.tokenizer_settings import CONFIG_FILE, LEGACY, TEMPLATE_FILE


def save_for_transformers(tokenizer: Tokenizer, template: ChatTemplate | None, directory: epath.PathLike) -> None:
    """Writes a tokenizer into a folder from which transformers' AutoTokenizer encodes the same tokens.

    The tokenizer's own `tokenizer_config.json` is kept, except for the fields that decide tokens. Those are written out
    in full, because readers have different defaults for them.

    Args:
      tokenizer: the tokenizer.
      template: the chat template to write in place of the tokenizer's own; None writes none.
      directory: the folder.
    """
    directory = epath.Path(directory)
    tokenizer.save(directory)
    config = json.loads((directory / CONFIG_FILE).read_text()) if (directory / CONFIG_FILE).exists() else {}
    is_fast = (directory / HUGGINGFACE_FILE).exists()
    kept = {"tokenizer_class": "PreTrainedTokenizerFast" if is_fast else "LlamaTokenizer", "add_eos_token": False}
    config = kept | config | {"bos_token": None} | tokenizer.named | {"add_bos_token": tokenizer.adds_bos}
    if is_fast:
        _say_bos(tokenizer, directory / HUGGINGFACE_FILE)
    else:
        config["legacy"] = _legacy(tokenizer, template)
        if config["legacy"] is not tokenizer._vocabulary.legacy:
            config[LEGACY] = "unsaid"
        config["added_tokens_decoder"] = _added_tokens(tokenizer)
    config.pop("chat_template", None)
    if template is not None:
        source = with_bos(template, tokenizer)
        (directory / TEMPLATE_FILE).write_text(source)
        config["chat_template"] = source  # transformers before 4.43 looks here only
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False))


def with_bos(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The source of a chat template, with a leading bos if the tokenizer adds one and the template does not write it.

    camelid puts the bos before a conversation; other software leaves it to the template.
    """
    if not tokenizer.adds_bos:
        return template.source
    text = template.render([{"role": "user", "content": "a"}], tokenizer)
    if text.startswith(tokenizer.piece(tokenizer.bos_id)):
        return template.source
    return "{{ bos_token }}" + template.source


def _say_bos(tokenizer: Tokenizer, file: epath.Path) -> None:
    """Makes the post-processor in a `tokenizer.json` add bos if the tokenizer does; transformers 5 reads only this."""
    if tokenizer._vocabulary.adds_bos == tokenizer.adds_bos:
        return
    spec = json.loads(file.read_text())
    old = spec.get("post_processor") or {"type": "Sequence", "processors": []}
    steps = old["processors"] if old["type"] == "Sequence" else [old]
    steps = [step for step in steps if step["type"] == "ByteLevel"]  # the other kinds add tokens around a text
    if tokenizer.adds_bos:
        bos = tokenizer.piece(tokenizer.bos_id)
        first, text, second = ({"SpecialToken": {"id": bos, "type_id": 0}}, _sequence("A", 0), _sequence("B", 1))
        described = {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}}
        template = {"single": [first, text], "pair": [first, text, first, second], "special_tokens": described}
        steps.append({"type": "TemplateProcessing", **template})
    spec["post_processor"] = {"type": "Sequence", "processors": steps} if steps else None
    file.write_text(json.dumps(spec, ensure_ascii=False))


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _legacy(tokenizer: Tokenizer, template: ChatTemplate | None) -> bool:
    """The field `legacy`: True if transformers puts a space before text after every control token, False if after none.

    A tokenizer that does so only after bos and eos cannot be expressed; then the chat template decides.
    """
    if tokenizer._vocabulary.legacy is not None or template is None:
        return tokenizer._vocabulary.legacy is True
    words = {"user": "a", "assistant": "b"}
    text = template.render([{"role": role, "content": word} for role, word in words.items()] * 2, tokenizer)
    ends = [re.escape(tokenizer.piece(i)) for i in {tokenizer.bos_id, tokenizer.eos_id} - {None}]
    control = "|".join(map(re.escape, sorted(tokenizer.special, key=len, reverse=True)))
    return re.search(rf"({'|'.join(ends)})(?!{control}|\Z)", text) is not None


def _added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The field `added_tokens_decoder`: all tokens matched as a whole, by id; the slow tokenizer finds them by it."""
    vocabulary = tokenizer._vocabulary
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    found = {i: {"content": spelling, **flags, "special": True} for spelling, i in tokenizer.special.items()}
    if tokenizer.unk_id is not None:
        found[tokenizer.unk_id] = {"content": vocabulary.pieces[tokenizer.unk_id], **flags, "special": True}
    for spelling, token in tokenizer.added.items():
        said = token._asdict()
        found[said.pop("id")] = {"content": spelling, **said, "special": token.special or spelling in tokenizer.special}
    return {str(i): token for i, token in sorted(found.items())}
